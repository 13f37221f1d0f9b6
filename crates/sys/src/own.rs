//! What in this process is ours: memory that must never be swapped out, because swapping it in needs it.
//!
//! Where userswap swaps a program's own memory, its tables, frames and thread stacks lie among it. Whoever
//! makes such memory notes it here, and whoever looks for memory to swap leaves it out.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::ranges::Ranges;
use crate::{PAGE_SIZE, place};

/// Mappings of ours that are not where [`place::ours`] says. More of them than this cannot be told from the program's.
static TABLE: Ranges<1024> = Ranges::new();

/// What threads of ours need, two rows each.
static THREAD_TABLE: Ranges<512> = Ranges::new();

/// The numbers of threads of ours; 0: a free place.
static THREADS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];

/// In the number of a thread of the program's: it is only inside our code. No thread has a number as large.
const WITHIN: u32 = 1 << 31;

/// Threads of ours that have been started and have not noted themselves yet.
static COMING: AtomicU32 = AtomicU32::new(0);

static LOST: AtomicBool = AtomicBool::new(false);

/// Notes a range of ours.
pub fn note(range: &Range<usize>) {
    if !is_known(range) && !TABLE.note(range) {
        LOST.store(true, Ordering::Relaxed);
    }
}

/// A range noted before is gone.
pub fn forget(range: &Range<usize>) {
    if !is_known(range) {
        TABLE.forget(|noted| noted == range);
    }
}

/// Whether it lies where only ours does: then it is known without being noted. Such addresses are told once only.
fn is_known(range: &Range<usize>) -> bool {
    let ours = place::ours();
    ours.start <= range.start && range.end <= ours.end
}

/// A thread of ours is being started, which calls [`note_thread`].
pub fn expect_thread() {
    COMING.fetch_add(1, Ordering::SeqCst);
}

/// It could not be started after all, or is here.
pub fn expect_no_thread() {
    let less = |coming: u32| coming.checked_sub(1);
    let _ = COMING.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
}

/// Whether a thread may be one of ours, though [`is_thread`] does not say so yet.
pub fn thread_is_coming() -> bool {
    COMING.load(Ordering::SeqCst) != 0
}

/// Notes what the calling thread, one of ours, needs to run: the memory its stack is in, and its table of thread-local
/// variables, which libc keeps in the program's heap.
pub fn note_thread() {
    let me = crate::cpu::thread();
    // A number that finds no place loses `is_thread`: its faults are put off like the program's, and it keeps its privileges.
    THREADS.iter().find(|place| {
        place
            .compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    });
    let on_stack = 0u8;
    let stack = std::ptr::from_ref(&on_stack) as usize;
    THREAD_TABLE.note(&(stack..stack + 1));
    #[cfg(target_arch = "x86_64")]
    {
        let dtv: usize;
        // SAFETY: reads the second word of the thread's control block, where the x86-64 ABI for thread-local storage keeps
        // the address of the thread's table.
        unsafe {
            std::arch::asm!("mov {}, fs:[8]", out(reg) dtv, options(nostack, readonly, preserves_flags));
        }
        // One entry lies before the address; a table of 200 modules is shorter than a page.
        THREAD_TABLE.note(&(dtv - 16..dtv + PAGE_SIZE));
    }
    expect_no_thread();
}

/// A thread of the program that is inside our code, where it may hold locks that others wait for.
///
/// While one of these lives, [`is_thread`] says yes for the thread: its faults are not to be put off.
#[derive(Debug)]
#[must_use = "the thread is inside only while this lives"]
pub struct Within(Option<&'static AtomicU32>);

impl Within {
    /// This thread comes in; they nest.
    pub fn new() -> Self {
        let me = crate::cpu::thread() | WITHIN;
        // Where there is no place, its faults may be put off: only slower, unless a lock is waited for meanwhile.
        Within(THREADS.iter().find(|place| {
            place
                .compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        }))
    }
}

impl Default for Within {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        if let Some(place) = self.0 {
            place.store(0, Ordering::Relaxed);
        }
    }
}

/// Where the calling thread's control block lies, around which libc keeps what the kernel writes for the thread.
#[cfg(target_arch = "x86_64")]
pub fn control_block() -> usize {
    let control: usize;
    // SAFETY: reads the first word of the thread's control block, which holds its own address.
    unsafe {
        std::arch::asm!("mov {}, fs:[0]", out(reg) control, options(nostack, readonly, preserves_flags));
    }
    control
}

/// How many bytes the main thread's stack may grow to, of what is worth to be known: where there is no limit, some.
pub fn main_stack_bytes() -> usize {
    const SOME: u64 = 1 << 30;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Stack).current;
    limit.unwrap_or(SOME).min(SOME) as usize
}

/// Touches what the calling thread needs for its next steps: some pages of its stack, and its control block.
pub fn touch_thread() {
    const BELOW: usize = 4 * PAGE_SIZE;
    let mut below = [0u8; BELOW];
    for byte in below.iter_mut().step_by(PAGE_SIZE / 2) {
        *byte = 1;
    }
    std::hint::black_box(&mut below);
    #[cfg(target_arch = "x86_64")]
    {
        let control = control_block();
        for offset in [0, 0x700] {
            // SAFETY: inside the control block of libc, which is longer.
            let byte = unsafe { ((control + offset) as *const u8).read_volatile() };
            std::hint::black_box(byte);
        }
    }
}

/// Whether `thread` is one that was noted, or is inside.
pub fn is_thread(thread: u32) -> bool {
    thread != 0
        && THREADS
            .iter()
            .any(|place| place.load(Ordering::Relaxed) & !WITHIN == thread)
}

/// How many threads of ours there are. `None`: some have been started that have not noted themselves yet.
pub fn threads() -> Option<usize> {
    // In this order: a thread notes itself before it no longer counts as coming.
    let is_coming = thread_is_coming();
    let noted = THREADS.iter().map(|place| place.load(Ordering::SeqCst));
    let ours = noted.filter(|&thread| thread != 0 && thread & WITHIN == 0);
    (!is_coming).then(|| ours.count())
}

/// In a child of fork: the parent's threads are not there.
pub fn forget_threads() {
    COMING.store(0, Ordering::Relaxed);
    for place in &THREADS {
        place.store(0, Ordering::Relaxed);
    }
    THREAD_TABLE.forget(|_| true);
}

/// What is ours, in no order; a range of one byte stands for the whole mapping it is in. `None`: it is more than
/// could be noted.
pub fn ranges() -> Option<impl Iterator<Item = Range<usize>>> {
    let places = std::iter::once(place::ours()).filter(|ours| !ours.is_empty());
    let told = places.chain(TABLE.iter()).chain(THREAD_TABLE.iter());
    (!LOST.load(Ordering::Relaxed)).then_some(told)
}

/// What threads of ours need.
pub fn thread_ranges() -> impl Iterator<Item = Range<usize>> {
    THREAD_TABLE.iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_known_until_it_is_forgotten() {
        let ours = 0x7000_0000_0000..0x7000_0000_2000;
        let told = || ranges().expect("room").any(|range| range == ours);
        assert!(!told());
        note(&ours);
        assert!(told());
        forget(&ours);
        assert!(!told());
        // Many are no more than one, where only ours are.
        for _ in 0..3000 {
            let place = place::hint(PAGE_SIZE).addr();
            note(&(place..place + PAGE_SIZE));
            let mut all = ranges().expect("room");
            assert!(all.any(|range| range.contains(&place)));
        }
    }

    /// Whether a thread that counts as ours does not when they are counted.
    fn is_only_inside(thread: u32) -> bool {
        let place = |place: &AtomicU32| place.load(Ordering::Relaxed);
        THREADS.iter().map(place).all(|noted| noted != thread)
    }

    #[test]
    fn a_thread_inside_is_one_of_ours_until_it_leaves() {
        let me = crate::cpu::thread();
        assert!(!is_thread(me));
        {
            let _within = Within::new();
            let _again = Within::new();
            assert!(is_thread(me));
            // Not where ours are counted.
            assert!(is_only_inside(me));
        }
        assert!(!is_thread(me));
        touch_thread();
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
