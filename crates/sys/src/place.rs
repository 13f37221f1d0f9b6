//! Where our own memory goes: far from the program's.
//!
//! Left to choose, the system puts a mapping into the highest hole. That may be one that the program has just made and counts on,
//! as the only one who maps: what it then maps there with `MAP_FIXED` would take the place of ours.

use std::ffi::c_void;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::PAGE_SIZE;

/// Addresses that the system uses only once it has given out a hundred tebibytes, and that no program is known to ask for.
const START: usize = 0x2000_0000_0000;
const END: usize = 0x3000_0000_0000;

/// The first address told, and the next; 0: nothing yet.
static FIRST: AtomicUsize = AtomicUsize::new(0);
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// The end of those that are ours as a whole. It never falls.
static OURS: AtomicUsize = AtomicUsize::new(0);

/// So many are: programs that draw their addresses at random, as V8 does among 2^46, draw one in 16 of theirs there, at worst, and
/// those are taken for ours. The store of an engine with a limit of 16 GiB takes a quarter of them.
const MOST_OURS: usize = 1 << 42;

/// An address to ask for in a mapping of `len` bytes, not used before. Where it is taken after all, or the mapping is larger than
/// anything, the system chooses another.
pub fn hint(len: usize) -> *mut c_void {
    if len > MOST_OURS {
        return ptr::null_mut();
    }
    // Relaxed, where nothing else is said: nothing but the number counts, and the system decides.
    let first = START + drawn();
    let _ = FIRST.compare_exchange(0, first, Ordering::Relaxed, Ordering::Relaxed);
    let first = FIRST.load(Ordering::Relaxed);
    let _ = NEXT.compare_exchange(0, first, Ordering::Relaxed, Ordering::Relaxed);
    let taken = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
        let end = next.checked_add(len)?.next_multiple_of(PAGE_SIZE);
        Some(if end < END { end } else { START })
    });
    if let Ok(next) = taken {
        let end = next.saturating_add(len).next_multiple_of(PAGE_SIZE);
        // Release: whoever finds a mapping of ours in the system's list, which is made after this, finds that it is ours.
        OURS.fetch_max(end.min(first + MOST_OURS), Ordering::Release);
    }
    taken.map_or(ptr::null_mut(), ptr::without_provenance_mut)
}

/// The addresses that [`hint`] has told so far, the first of them. What lies there is ours: nobody else is given so much
/// that the system goes there.
pub fn ours() -> Range<usize> {
    FIRST.load(Ordering::Relaxed)..OURS.load(Ordering::Acquire)
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
        let all = ours();
        assert!(told.iter().all(|address| all.contains(address)));
        assert!(hint(MOST_OURS + 1).is_null());
        assert!(
            all.len() < MOST_OURS,
            "what is not told is not taken for ours"
        );
    }
}
