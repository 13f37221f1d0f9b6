//! Which of the program's memory must stay because a system call may be using it.
//!
//! In inline mode the kernel finds only what is in memory: a page that is missing fails the call. So each thread says
//! what a call is going to use before the call is made, whether the memory is taken on or not, engine or none.
//!
//! Guarantee: from the moment [`Holder::hold`] returns until [`Holder::end`], no page of the range leaves memory that is
//! there when the caller next looks (with [`crate::Process::bring_in`]), and no page of it that is missing becomes one
//! that only we can bring in. Mechanism: the ranges are written where everybody finds them, then comes a fence, then the
//! caller looks whether memory is taken on, and whether it is about to leave. Who takes memory on or out says so
//! first, then comes a fence, then it looks at the ranges. One of the two sees the other.
//!
//! Calls that began before their threads said so ([`hold_while`]) are held by who starts the engine, before anything is taken on.
//!
//! Nothing is counted, so a call that is never seen to end (a handler that jumped away, a thread that a fork left behind)
//! costs nothing but memory that stays until its thread makes another call.

use std::ops::Range;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering, fence};

use userswap_core::device::PAGE_SIZE;

/// Calls that a thread can be in at once: one, and one for each signal handler that interrupts another.
pub const MOST_CALLS: usize = 16;

/// Ranges that are told apart in one call; with more of them, what lies between is held, too.
const MOST_RANGES: usize = 12;

#[derive(Debug, Default)]
struct Held {
    start: AtomicUsize,
    end: AtomicUsize,
}

/// What one call uses.
#[derive(Debug, Default)]
struct CallMemory {
    /// Ranges in use; those beyond mean nothing.
    count: AtomicUsize,
    ranges: [Held; MOST_RANGES],
}

/// What the calls of one thread use. Its thread changes it, and handlers that interrupt the thread, which leave it as
/// they found it; everybody may look.
#[derive(Debug, Default)]
pub struct Holder {
    /// Calls under way.
    depth: AtomicUsize,
    calls: [CallMemory; MOST_CALLS],
    next: AtomicPtr<Holder>,
}

/// All holders there ever were.
static FIRST: AtomicPtr<Holder> = AtomicPtr::new(std::ptr::null_mut());

fn all() -> impl Iterator<Item = &'static Holder> {
    let mut at = &FIRST;
    std::iter::from_fn(move || {
        // SAFETY: null, or from `Holder::make`: never freed. Acquire pairs with the release there.
        let holder = unsafe { at.load(Ordering::Acquire).as_ref() }?;
        at = &holder.next;
        Some(holder)
    })
}

impl Holder {
    /// A holder for a thread, and those that come after it. Allocates.
    #[must_use]
    pub fn make() -> &'static Self {
        let new: &'static Self = Box::leak(Box::default());
        let mut first = FIRST.load(Ordering::Relaxed);
        loop {
            new.next.store(first, Ordering::Relaxed);
            let pointer = std::ptr::from_ref(new).cast_mut();
            // Release: whoever finds it finds it whole.
            match FIRST.compare_exchange(first, pointer, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return new,
                Err(now) => first = now,
            }
        }
    }

    /// Calls under way.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.depth.load(Ordering::Relaxed)
    }

    /// A call begins. Returns its number, for the other functions; `None`: there are too many already.
    #[must_use]
    pub fn begin(&self) -> Option<usize> {
        let call = self.depth();
        let memory = self.calls.get(call)?;
        memory.count.store(0, Ordering::Relaxed);
        // Release: the count before.
        self.depth.store(call + 1, Ordering::Release);
        Some(call)
    }

    /// `call`, and those that began after it, are over.
    pub fn end(&self, call: usize) {
        if call < self.depth() {
            // Release: what the caller did before.
            self.depth.store(call, Ordering::Release);
        }
    }

    /// `call` is going to use `range`.
    pub fn hold(&self, call: usize, range: &Range<usize>) {
        let memory = &self.calls[call];
        let start = range.start & !(PAGE_SIZE - 1);
        let end = range.end.next_multiple_of(PAGE_SIZE);
        let count = memory.count.load(Ordering::Relaxed);
        let known = &memory.ranges[..count];
        let touching = known.iter().position(|held| {
            start <= held.end.load(Ordering::Relaxed) && held.start.load(Ordering::Relaxed) <= end
        });
        match touching.or((count == MOST_RANGES).then(|| count - 1)) {
            // Grows, one word at a time: who looks meanwhile sees at least what was held before.
            Some(at) => {
                memory.ranges[at].start.fetch_min(start, Ordering::Relaxed);
                memory.ranges[at].end.fetch_max(end, Ordering::Relaxed);
            }
            None => {
                memory.ranges[count].start.store(start, Ordering::Relaxed);
                memory.ranges[count].end.store(end, Ordering::Relaxed);
                // Release: the range before.
                memory.count.store(count + 1, Ordering::Release);
            }
        }
        // The guarantee's fence: who looked at the ranges before this has said before what it is about to do.
        fence(Ordering::SeqCst);
    }
}

/// What a call uses that its thread has not said.
struct Other {
    is_under_way: Box<dyn Fn() -> bool + Send + Sync>,
    ranges: Box<[Range<usize>]>,
    next: *const Other,
}

/// All there ever were.
static OTHERS: AtomicPtr<Other> = AtomicPtr::new(std::ptr::null_mut());

/// Holds `ranges` while `is_under_way`: a call that its thread has told nobody of, and that the caller knows to have begun. Once
/// it is over the answer stays "no". Allocates. To be called before anything is taken on.
pub fn hold_while(
    is_under_way: impl Fn() -> bool + Send + Sync + 'static,
    ranges: impl IntoIterator<Item = Range<usize>>,
) {
    let whole_pages =
        |range: Range<usize>| range.start & !(PAGE_SIZE - 1)..range.end.next_multiple_of(PAGE_SIZE);
    let new = Box::leak(Box::new(Other {
        is_under_way: Box::new(is_under_way),
        ranges: ranges.into_iter().map(whole_pages).collect(),
        next: OTHERS.load(Ordering::Acquire),
    }));
    // Release: whoever finds it finds it whole.
    while let Err(now) = OTHERS.compare_exchange(
        new.next.cast_mut(),
        new,
        Ordering::Release,
        Ordering::Acquire,
    ) {
        new.next = now;
    }
}

fn others() -> impl Iterator<Item = &'static Other> {
    let mut at = OTHERS.load(Ordering::Acquire).cast_const();
    std::iter::from_fn(move || {
        // SAFETY: null, or from `hold_while`: never freed, and not changed once it is there to be found.
        let other = unsafe { at.as_ref() }?;
        at = other.next;
        Some(other)
    })
}

/// Tells `found` what is held within `range`, in whole pages and in no order. The caller has said what it is about to do.
pub(crate) fn within(range: &Range<usize>, mut found: impl FnMut(Range<usize>)) {
    // The guarantee's other fence.
    fence(Ordering::SeqCst);
    let mut tell = |held: Range<usize>| {
        let (start, end) = (held.start.max(range.start), held.end.min(range.end));
        if start < end {
            found(start..end);
        }
    };
    for other in others().filter(|other| (other.is_under_way)()) {
        other.ranges.iter().cloned().for_each(&mut tell);
    }
    for holder in all() {
        let depth = holder.depth.load(Ordering::Acquire).min(MOST_CALLS);
        for memory in &holder.calls[..depth] {
            let count = memory.count.load(Ordering::Acquire).min(MOST_RANGES);
            for held in &memory.ranges[..count] {
                tell(held.start.load(Ordering::Relaxed)..held.end.load(Ordering::Relaxed));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(range: Range<usize>) -> Vec<Range<usize>> {
        let mut ranges = Vec::new();
        within(&range, |held| ranges.push(held));
        ranges.sort_unstable_by_key(|range| range.start);
        ranges
    }

    #[test]
    fn what_a_call_uses_is_found_until_it_ends() {
        const BASE: usize = 0x7700_0000_0000;
        let holder = Holder::make();
        let outer = holder.begin().expect("room");
        holder.hold(outer, &(BASE + 10..BASE + 20));
        let inner = holder.begin().expect("room");
        holder.hold(inner, &(BASE + 0x5ff0..BASE + 0x6010));
        let all = BASE..BASE + 0x10_0000;
        assert_eq!(
            held(all.clone()),
            [BASE..BASE + 0x1000, BASE + 0x5000..BASE + 0x7000]
        );
        assert_eq!(held(BASE + 0x6000..BASE + 0x9000).len(), 1);
        holder.end(inner);
        assert_eq!(held(all.clone()).len(), 1);
        holder.end(outer);
        assert!(held(all.clone()).is_empty());
        for _ in 0..MOST_CALLS {
            assert!(holder.begin().is_some());
        }
        assert_eq!(holder.begin(), None);
        holder.end(0);
        assert!(held(all).is_empty());
    }

    #[test]
    fn a_call_that_told_nobody_is_held_until_it_is_over() {
        const BASE: usize = 0x7500_0000_0000;
        static OVER: AtomicUsize = AtomicUsize::new(0);
        for call in [1, 2] {
            let start = BASE + call * 0x10_0000;
            let pieces = [start + 10..start + 20, start + 0x3ff8..start + 0x4008];
            hold_while(move || OVER.load(Ordering::Relaxed) < call, pieces);
        }
        let of = |call: usize| held(BASE + call * 0x10_0000..BASE + (call + 1) * 0x10_0000);
        let first = BASE + 0x10_0000;
        let expected = [first..first + 0x1000, first + 0x3000..first + 0x5000];
        assert_eq!(of(1), expected);
        assert_eq!(held(first + 0x4000..first + 0x4001).len(), 1);
        OVER.store(1, Ordering::Relaxed);
        assert!(of(1).is_empty());
        assert_eq!(of(2).len(), 2);
        OVER.store(2, Ordering::Relaxed);
        assert!(of(2).is_empty());
    }

    #[test]
    fn more_ranges_than_there_is_room_for_hold_what_lies_between() {
        const BASE: usize = 0x7600_0000_0000;
        let holder = Holder::make();
        let call = holder.begin().expect("room");
        for piece in 0..MOST_RANGES + 3 {
            let start = BASE + piece * 4 * PAGE_SIZE;
            holder.hold(call, &(start..start + 1));
        }
        for piece in 0..MOST_RANGES + 3 {
            let start = BASE + piece * 4 * PAGE_SIZE;
            assert!(!held(start..start + PAGE_SIZE).is_empty(), "{piece}");
        }
        assert!(held(BASE + PAGE_SIZE..BASE + 2 * PAGE_SIZE).is_empty());
        holder.end(0);
    }
}
