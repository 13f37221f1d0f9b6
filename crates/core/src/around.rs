//! Fault-around: how many pages one fault brings in.
//!
//! Whether the neighbours of a faulting page get used cannot be seen once they are mapped. So now
//! and then one neighbour, the *canary*, is left out on purpose. If it is faulted before its chunk is
//! evicted again, neighbours get used and the window grows; if it is still out then, they do not
//! and the window shrinks. A window of one page has no canary; it grows when faults walk through
//! neighbouring pages.

use crate::page_table::CHUNK_PAGES;
use crate::sync::{AtomicU32, AtomicUsize, Ordering};

/// The window a new address space starts with, in pages.
const START: u32 = 64;

/// One fault-around in this many has a canary.
const CANARY_EVERY: u32 = 8;

/// Canaries lost in a row before the window shrinks: a wrong shrink costs faults at once, a wrong
/// growth only memory that reclaim gets back.
const LOST_LIMIT: u32 = 4;

/// The fault-around of an address space. All fields are hints: Relaxed throughout.
#[derive(Debug)]
pub(crate) struct Around {
    /// Pages, a power of two.
    window: AtomicU32,
    fixed: bool,
    lost: AtomicU32,
    turn: AtomicU32,
    /// The page after the last fault's.
    next: AtomicUsize,
    /// The page after the last first touch's window, and how wide the next may be.
    fresh_next: AtomicUsize,
    fresh_width: AtomicUsize,
}

impl Around {
    /// A window that adapts, or stays at `fixed` pages (rounded up to a power of two).
    pub(crate) fn new(fixed: Option<usize>) -> Self {
        let window = fixed.map_or(START, |pages| {
            pages.clamp(1, CHUNK_PAGES).next_power_of_two() as u32
        });
        Self {
            window: AtomicU32::new(window),
            fixed: fixed.is_some(),
            lost: AtomicU32::new(0),
            turn: AtomicU32::new(0),
            next: AtomicUsize::new(usize::MAX),
            fresh_next: AtomicUsize::new(usize::MAX),
            fresh_width: AtomicUsize::new(1),
        }
    }

    pub(crate) fn window(&self) -> usize {
        self.window.load(Ordering::Relaxed) as usize
    }

    /// The pages to bring in with page `index` of a chunk: an aligned window, at most `limit` pages.
    pub(crate) fn mask(&self, index: usize, limit: usize) -> u64 {
        let limit = limit.clamp(1, CHUNK_PAGES);
        let size = self.window().min(1 << limit.ilog2());
        crate::mask::run(index & !(size - 1), size)
    }

    /// The pages to fill with zeros on a first touch of `page`, index `index` of its chunk: from it
    /// onwards, and more only while first touches walk on, since each takes memory of its own.
    pub(crate) fn fresh_mask(&self, page: usize, index: usize, limit: usize) -> u64 {
        let walk = self.fresh_next.load(Ordering::Relaxed) == page;
        let width = match walk {
            true => (self.fresh_width.load(Ordering::Relaxed) * 2).min(self.window()),
            false => 1,
        };
        let count = width.min(limit).min(CHUNK_PAGES - index).max(1);
        self.fresh_width.store(width, Ordering::Relaxed);
        self.fresh_next.store(page + count, Ordering::Relaxed);
        crate::mask::run(index, count)
    }

    /// Notes a fault on `page`; a walk through neighbours widens a window of one.
    pub(crate) fn note_fault(&self, page: usize) {
        if !self.fixed && self.window() == 1 && self.next.load(Ordering::Relaxed) == page {
            self.grow();
        }
        self.next.store(page + 1, Ordering::Relaxed);
    }

    /// The neighbour to leave out this time, of those in `mask`; `index` is the faulting page.
    pub(crate) fn choose_canary(&self, mask: u64, index: usize) -> Option<usize> {
        if self.fixed
            || !self
                .turn
                .fetch_add(1, Ordering::Relaxed)
                .is_multiple_of(CANARY_EVERY)
        {
            return None;
        }
        let after = mask & !crate::mask::run(0, index) & !crate::mask::bit(index);
        let others = if after == 0 {
            mask & !crate::mask::bit(index)
        } else {
            after
        };
        (others != 0).then(|| others.trailing_zeros() as usize)
    }

    /// A canary was faulted: neighbours get used.
    pub(crate) fn canary_used(&self) {
        self.lost.store(0, Ordering::Relaxed);
        self.grow();
    }

    /// A chunk is evicted with its canary untouched.
    pub(crate) fn canary_lost(&self) {
        if self.lost.fetch_add(1, Ordering::Relaxed) + 1 >= LOST_LIMIT {
            self.lost.store(0, Ordering::Relaxed);
            self.set((self.window() / 2).max(1));
        }
    }

    /// Sequential access is coming: the widest window at once.
    pub(crate) fn widen(&self) {
        self.set(CHUNK_PAGES);
    }

    /// Random access is coming: no neighbours.
    pub(crate) fn narrow(&self) {
        self.set(1);
    }

    fn grow(&self) {
        self.set((self.window() * 2).min(CHUNK_PAGES));
    }

    fn set(&self, window: usize) {
        if !self.fixed {
            self.window.store(window as u32, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_aligned_and_never_leave_the_chunk() {
        for (window, index, limit, first, size) in [
            (64, 63, 64, 0, 64),
            (16, 17, 64, 16, 16),
            (64, 9, 12, 8, 8),
            (1, 5, 64, 5, 1),
        ] {
            let around = Around::new(Some(window));
            assert_eq!(around.mask(index, limit), crate::mask::run(first, size));
        }
    }

    #[test]
    fn first_touches_take_more_only_while_they_walk() {
        let around = Around::new(Some(64));
        let mut page = 1000 * CHUNK_PAGES;
        for count in [1, 2, 4, 8, 16, 32, 1, 64, 64] {
            let mask = around.fresh_mask(page, page % CHUNK_PAGES, 64);
            assert_eq!(mask, crate::mask::run(page % CHUNK_PAGES, count));
            page += count;
        }
        assert_eq!(around.fresh_mask(5, 5, 64), crate::mask::bit(5), "a jump");
        assert_eq!(around.fresh_mask(9, 9, 64), crate::mask::bit(9), "another");
    }

    #[test]
    fn used_canaries_widen_and_lost_ones_narrow() {
        let around = Around::new(None);
        around.canary_used();
        assert_eq!(around.window(), 64);
        around.canary_used();
        assert_eq!(around.window(), 64, "never past a chunk");
        for _ in 0..64 * LOST_LIMIT {
            around.canary_lost();
        }
        assert_eq!(around.window(), 1);
        around.note_fault(10);
        assert_eq!(around.window(), 1);
        around.note_fault(11);
        assert_eq!(around.window(), 2, "a walk shows that neighbours get used");
    }

    #[test]
    fn a_canary_is_a_neighbour_never_the_page_itself() {
        let around = Around::new(None);
        let mut chosen = 0;
        for index in 0..64 {
            for mask in [u64::MAX, crate::mask::bit(index), 0xff00] {
                if let Some(canary) = around.choose_canary(mask | crate::mask::bit(index), index) {
                    assert_ne!(canary, index);
                    chosen += 1;
                }
            }
        }
        assert!(chosen > 0);
        assert_eq!(
            Around::new(Some(8)).choose_canary(u64::MAX, 0),
            None,
            "a fixed window has none"
        );
    }
}
