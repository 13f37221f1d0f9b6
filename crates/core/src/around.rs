//! Fault-around: how many pages one fault brings in.
//!
//! Whether the neighbours of a faulting page get used cannot be seen once they are mapped. So now
//! and then one neighbour, the *canary*, is left out on purpose. If it is faulted before its chunk is
//! evicted again, it was used; if it is still out then, it was not. The window grows where more than about
//! half of them get used, and shrinks where fewer do: a neighbour brought in costs its reading, later its eviction,
//! and the place of something else, about half of the fault that it saves. Used means soon: in a program that
//! touches all it has, each page is used some day, the neighbours no sooner than what they drive out. A window of
//! one page has no canary; it grows when faults walk through neighbouring pages.

use crate::page_table::CHUNK_PAGES;
use crate::sync::{AtomicI32, AtomicU32, AtomicUsize, Ordering};

/// The window a new address space starts with, in pages.
const START: u32 = 64;

/// One fault-around in this many has a canary.
const CANARY_EVERY: u32 = 8;

/// The score at which the window grows.
const GROW_AT: i32 = 2;

/// The score at which it shrinks.
const SHRINK_AT: i32 = -3;

/// A canary that is faulted after more pages have come in than this part of what memory holds was not used soon.
const SOON: usize = 8;

/// The fault-around of an address space. All fields are hints: Relaxed throughout.
#[derive(Debug)]
pub(crate) struct Around {
    /// Pages, a power of two.
    window: AtomicU32,
    fixed: bool,
    score: AtomicI32,
    /// Fault-arounds so far.
    turn: AtomicU32,
    /// Pages that memory holds.
    room: AtomicUsize,
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
            score: AtomicI32::new(0),
            turn: AtomicU32::new(0),
            room: AtomicUsize::new(usize::MAX),
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
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        if self.fixed || !turn.is_multiple_of(CANARY_EVERY) {
            return None;
        }
        // Any of them: the next one is used more often than the rest of a wide window, where one thing lies across two
        // pages for example.
        let others = mask & !crate::mask::bit(index);
        let nth = (turn / CANARY_EVERY).wrapping_mul(0x9e37_79b9) >> 16;
        crate::mask::indices(others).nth((nth % others.count_ones().max(1)) as usize)
    }

    /// Memory holds `pages` pages now.
    pub(crate) fn note_room(&self, pages: usize) {
        // A line that all threads read is written only when it has to be.
        if self.room.load(Ordering::Relaxed) != pages {
            self.room.store(pages, Ordering::Relaxed);
        }
    }

    /// What to remember of now, for [`Around::canary_faulted`].
    pub(crate) fn now(&self) -> u16 {
        self.turn.load(Ordering::Relaxed) as u16
    }

    /// A canary left out at `since` was faulted.
    pub(crate) fn canary_faulted(&self, since: u16) {
        let turns = usize::from(self.now().wrapping_sub(since));
        let came_in = turns * self.window();
        if came_in <= self.room.load(Ordering::Relaxed) / SOON {
            self.canary_used();
        } else {
            self.canary_lost();
        }
    }

    /// A canary was used: neighbours get used.
    fn canary_used(&self) {
        if self.score.fetch_add(1, Ordering::Relaxed) + 1 >= GROW_AT {
            self.score.store(0, Ordering::Relaxed);
            self.grow();
        }
    }

    /// A chunk is evicted with its canary untouched, or it was touched late.
    pub(crate) fn canary_lost(&self) {
        if self.score.fetch_sub(1, Ordering::Relaxed) - 1 <= SHRINK_AT {
            self.score.store(0, Ordering::Relaxed);
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
        for _ in 0..64 * -SHRINK_AT {
            around.canary_lost();
        }
        assert_eq!(around.window(), 1);
        around.note_fault(10);
        assert_eq!(around.window(), 1);
        around.note_fault(11);
        assert_eq!(around.window(), 2, "a walk shows that neighbours get used");
    }

    #[test]
    fn the_window_goes_where_half_of_the_neighbours_get_used() {
        for (used_of_ten, widest) in [(0, 1), (3, 8), (7, 64), (10, 64)] {
            let around = Around::new(None);
            around.set(8);
            let mut most = 1;
            for turn in 0..1000_u32 {
                // Spread evenly.
                if turn * 7 % 10 < used_of_ten {
                    around.canary_used();
                } else {
                    around.canary_lost();
                }
                if turn > 500 {
                    most = most.max(around.window());
                }
            }
            assert!(
                if used_of_ten > 5 {
                    around.window() == widest
                } else {
                    most <= widest
                },
                "{used_of_ten} of 10 used: {} pages",
                around.window()
            );
        }
    }

    #[test]
    fn a_neighbour_that_is_used_late_was_not_worth_bringing_in() {
        let around = Around::new(None);
        around.note_room(64 * 8 * 10);
        let later = |turns: u32| {
            let since = around.now();
            around.turn.fetch_add(turns, Ordering::Relaxed);
            since
        };
        for _ in 0..10 {
            around.canary_faulted(later(10));
        }
        assert_eq!(around.window(), 64);
        for _ in 0..10 {
            around.canary_faulted(later(1000));
        }
        assert!(around.window() < 64);
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
