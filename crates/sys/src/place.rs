//! Where our own memory goes: far from the program's.
//!
//! Left to choose, the system puts a mapping into the highest hole. That may be one that the program has just made and counts on,
//! as the only one who maps: what it then maps there with `MAP_FIXED` would take the place of ours.

use std::ffi::c_void;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::PAGE_SIZE;

/// Addresses that the system uses only once it has given out a hundred tebibytes, and that no program is known to ask for.
const START: usize = 0x2000_0000_0000;
const END: usize = 0x3000_0000_0000;

/// The first address told, and the next; 0: nothing yet.
static FIRST: AtomicUsize = AtomicUsize::new(0);
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// They have begun again.
static AGAIN: AtomicBool = AtomicBool::new(false);

/// An address to ask for in a mapping of `len` bytes, not used before. Where it is taken after all, the system chooses another.
pub fn hint(len: usize) -> *mut c_void {
    // Relaxed, throughout: nothing but the number counts, and the system decides.
    let first = START + drawn();
    let _ = FIRST.compare_exchange(0, first, Ordering::Relaxed, Ordering::Relaxed);
    let first = FIRST.load(Ordering::Relaxed);
    let _ = NEXT.compare_exchange(0, first, Ordering::Relaxed, Ordering::Relaxed);
    let taken = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
        let end = next.checked_add(len)?.next_multiple_of(PAGE_SIZE);
        if end >= END {
            AGAIN.store(true, Ordering::Relaxed);
        }
        Some(if end < END { end } else { START })
    });
    taken.map_or(ptr::null_mut(), ptr::without_provenance_mut)
}

/// All addresses that [`hint`] has told so far. What lies there is ours: nobody else is given so much that the system goes there,
/// and of a program that draws its addresses at random a few lie there, at worst, that are then taken for ours.
pub fn told() -> Range<usize> {
    if AGAIN.load(Ordering::Relaxed) {
        return START..END;
    }
    FIRST.load(Ordering::Relaxed)..NEXT.load(Ordering::Relaxed)
}

/// Whole pages, up to a tebibyte: as hard to guess as where the stack is.
fn drawn() -> usize {
    let here = 0_u8;
    (ptr::from_ref(&here).addr() >> 12 & 0x0fff_ffff) << 12
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Mapping;

    #[test]
    fn our_memory_does_not_go_where_the_programs_was() {
        let hole = {
            let programs = vec![1_u8; 64 << 20];
            programs.as_ptr().addr()..programs.as_ptr().addr() + programs.len()
        };
        let ours: Vec<_> = (0..64)
            .map(|_| Mapping::reserve(1 << 20, PAGE_SIZE).expect("address space"))
            .collect();
        for mapping in &ours {
            let own = mapping.addresses();
            assert!(
                own.end <= hole.start || own.start >= hole.end,
                "{own:x?} {hole:x?}"
            );
        }
    }

    #[test]
    fn no_address_is_told_twice() {
        let mut told: Vec<_> = (0..100).map(|_| hint(PAGE_SIZE + 1).addr()).collect();
        told.sort_unstable();
        assert!(
            told.windows(2)
                .all(|pair| pair[1] - pair[0] >= 2 * PAGE_SIZE)
        );
        assert!(told.iter().all(|address| (START..END).contains(address)));
        let all = super::told();
        assert!(told.iter().all(|address| all.contains(address)));
        assert!(
            all.len() < 1 << 44,
            "what is not told is not taken for ours"
        );
    }
}
