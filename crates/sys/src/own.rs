//! What in this process is ours: memory that must never be swapped out, because swapping it in needs it.
//!
//! Where userswap swaps a program's own memory, its tables, frames and thread stacks lie among it. Whoever
//! makes such memory notes it here, and whoever looks for memory to swap leaves it out.
//!
//! Guarantee: what was noted before [`ranges`] is called is told. Mechanism: a row is written end
//! first, and is valid from the moment its start is there; it goes in the opposite order.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use crate::PAGE_SIZE;

/// More mappings of ours than this cannot be told from the program's.
const ROWS: usize = 1024;

struct Row {
    start: AtomicUsize,
    end: AtomicUsize,
}

static TABLE: [Row; ROWS] = [const {
    Row {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
    }
}; ROWS];

/// The numbers of threads of ours; 0: a free place.
static THREADS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];

static LOST: AtomicBool = AtomicBool::new(false);

/// A row being written has this start: not free, and not valid yet.
const CLAIMED: usize = 1;

/// Notes a range of ours.
pub fn note(range: &Range<usize>) {
    for row in &TABLE {
        let free = row
            .start
            .compare_exchange(0, CLAIMED, Ordering::Relaxed, Ordering::Relaxed);
        if free.is_ok() {
            row.end.store(range.end, Ordering::Relaxed);
            // Release: whoever sees the start sees the end.
            row.start.store(range.start, Ordering::Release);
            return;
        }
    }
    LOST.store(true, Ordering::Relaxed);
}

/// A range noted before is gone.
pub fn forget(range: &Range<usize>) {
    let row = TABLE.iter().find(|row| {
        row.start.load(Ordering::Acquire) == range.start
            && row.end.load(Ordering::Relaxed) == range.end
    });
    if let Some(row) = row {
        row.start.store(0, Ordering::Release);
    }
}

/// Notes what the calling thread, one of ours, needs to run: the memory its stack is in, and its table of thread-local
/// variables, which libc keeps in the program's heap.
pub fn note_thread() {
    let me = crate::cpu::thread();
    // A number that finds no place only loses `is_thread`.
    THREADS.iter().find(|place| {
        place
            .compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    });
    let on_stack = 0u8;
    let stack = std::ptr::from_ref(&on_stack) as usize;
    note(&(stack..stack + 1));
    #[cfg(target_arch = "x86_64")]
    {
        let dtv: usize;
        // SAFETY: reads the second word of the thread's control block, where the x86-64 ABI for thread-local storage keeps
        // the address of the thread's table.
        unsafe {
            std::arch::asm!("mov {}, fs:[8]", out(reg) dtv, options(nostack, readonly, preserves_flags));
        }
        // One entry lies before the address; a table of 200 modules is shorter than a page.
        note(&(dtv - 16..dtv + PAGE_SIZE));
    }
}

/// Whether `thread` is one that was noted.
pub fn is_thread(thread: u32) -> bool {
    thread != 0
        && THREADS
            .iter()
            .any(|place| place.load(Ordering::Relaxed) == thread)
}

/// In a child of fork: the parent's threads are not there.
pub fn forget_threads() {
    for place in &THREADS {
        place.store(0, Ordering::Relaxed);
    }
}

/// What is ours, in no order; a range of one byte stands for the whole mapping it is in. `None`: it is more than
/// could be noted.
pub fn ranges() -> Option<impl Iterator<Item = Range<usize>>> {
    let told = TABLE.iter().filter_map(|row| {
        let start = row.start.load(Ordering::Acquire);
        (start > CLAIMED).then(|| start..row.end.load(Ordering::Relaxed))
    });
    (!LOST.load(Ordering::Relaxed)).then_some(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_told_until_it_is_forgotten() {
        let ours = 0x7000_0000_0000..0x7000_0000_2000;
        let told = || ranges().expect("room").any(|range| range == ours);
        assert!(!told());
        note(&ours);
        assert!(told());
        forget(&ours);
        assert!(!told());
    }

    #[test]
    fn a_thread_notes_its_stack_and_its_table() {
        let before: Vec<_> = ranges().expect("room").collect();
        std::thread::spawn(|| {
            note_thread();
            let on_stack = 0u8;
            let here = std::ptr::from_ref(&on_stack) as usize;
            let near = |range: &Range<usize>| range.start.abs_diff(here) < 64 * PAGE_SIZE;
            assert!(ranges().expect("room").any(|range| near(&range)));
        })
        .join()
        .expect("thread");
        assert!(ranges().expect("room").count() >= before.len() + 2);
    }
}
