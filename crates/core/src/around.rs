//! Fault-around: how many pages one fault brings in.
//!
//! Whether the neighbours of a faulting page get used cannot be seen once they are mapped. So now
//! and then one neighbour, the *canary*, is left out on purpose. If it is faulted before its chunk is
//! evicted again, it was used; if it is still out then, it was not. Used means soon: in a program that
//! touches all it has, each page is used some day, the neighbours no sooner than what they drive out.
//!
//! There are two windows, since neighbours are not always equally dear. One that is read from a device costs its
//! reading, later its eviction, and the place of something else: the window for reading grows where more than three in
//! five get used very soon, and shrinks where fewer do. One that is still in memory, staged for eviction, only stays there
//! longer: the window for taking back grows where more than half get used before an eighth of memory has come in.
//!
//! A window of one page brings in no neighbours, and its canary is the other page of its pair, which costs nothing. It grows as
//! well when faults walk through neighbouring pages, and only then where random access was announced.

use crate::page_table::CHUNK_PAGES;
use crate::sync::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering};

/// The window a new address space starts with, in pages.
const START: u32 = 64;

/// One fault-around in this many has a canary.
const CANARY_EVERY: u32 = 8;

/// What a used canary adds to a score.
const USED: i32 = 2;

/// The score at which a window grows.
const GROW_AT: i32 = 2 * USED;

/// The score at which it shrinks.
const SHRINK_AT: i32 = -3 * USED;

/// Faults on a page and then, one after the other, on so many next ones are a walk. One thing may lie across two pages.
const WALK: u32 = 2;

/// A neighbour that was left out, if there is one, and how many pages had come in by then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Canary(u32);

impl Canary {
    pub(crate) const NONE: Self = Self(0);
    /// Its index in its chunk plus one; the number of pages, which wraps, is above.
    const INDEX_BITS: u32 = CHUNK_PAGES.ilog2() + 1;

    fn new(index: usize, came_in: u32) -> Self {
        Self(came_in << Self::INDEX_BITS | (index as u32 + 1))
    }

    /// Which page of its chunk it is.
    pub(crate) fn index(self) -> Option<usize> {
        let index = self.0 & ((1 << Self::INDEX_BITS) - 1);
        (index as usize).checked_sub(1)
    }

    /// How many pages came in since, now that so many have.
    fn age(self, came_in: u32) -> usize {
        let since = came_in.wrapping_sub(self.0 >> Self::INDEX_BITS);
        (since & (u32::MAX >> Self::INDEX_BITS)) as usize
    }
}

/// When neighbours are worth their while.
#[derive(Clone, Copy, Debug)]
struct Terms {
    /// A canary that is faulted after more pages have come in than this part of what memory holds was not used soon.
    soon: usize,
    /// What a canary that was not used soon takes from the score.
    lost: i32,
}

/// For neighbours that are read from a device.
const READ: Terms = Terms { soon: 16, lost: 3 };

/// For neighbours that are staged.
const BACK: Terms = Terms {
    soon: 8,
    lost: USED,
};

/// A window that adapts.
#[derive(Debug)]
struct Window {
    /// A power of two.
    pages: AtomicU32,
    score: AtomicI32,
    terms: Terms,
}

impl Window {
    fn new(pages: u32, terms: Terms) -> Self {
        Self {
            pages: AtomicU32::new(pages),
            score: AtomicI32::new(0),
            terms,
        }
    }

    fn pages(&self) -> usize {
        self.pages.load(Ordering::Relaxed) as usize
    }

    fn set(&self, pages: usize) {
        self.pages.store(pages as u32, Ordering::Relaxed);
    }

    /// The aligned window around page `index` of a chunk, at most `limit` pages.
    fn mask(&self, index: usize, limit: usize) -> u64 {
        let limit = limit.clamp(1, CHUNK_PAGES);
        let size = self.pages().min(1 << limit.ilog2());
        crate::mask::run(index & !(size - 1), size)
    }

    /// A canary was faulted after `came_in` pages, of `room` that memory holds.
    fn note_canary(&self, came_in: usize, room: usize) {
        if came_in <= room / self.terms.soon {
            self.canary_used();
        } else {
            self.canary_lost();
        }
    }

    fn canary_used(&self) {
        if self.score.fetch_add(USED, Ordering::Relaxed) + USED >= GROW_AT {
            self.score.store(0, Ordering::Relaxed);
            self.grow();
        }
    }

    fn canary_lost(&self) {
        let lost = self.terms.lost;
        if self.score.fetch_sub(lost, Ordering::Relaxed) - lost <= SHRINK_AT {
            self.score.store(0, Ordering::Relaxed);
            self.set((self.pages() / 2).max(1));
        }
    }

    fn grow(&self) {
        self.set((self.pages() * 2).min(CHUNK_PAGES));
    }
}

/// The fault-around of an address space. All fields are hints: Relaxed throughout.
#[derive(Debug)]
pub(crate) struct Around {
    /// For pages that are read.
    read: Window,
    /// For pages that are taken back.
    back: Window,
    fixed: bool,
    /// Random access was announced, and no walk has been seen since.
    random: AtomicBool,
    /// Fault-arounds so far, and the pages of their windows.
    turn: AtomicU32,
    came_in: AtomicU32,
    /// Pages that memory holds.
    room: AtomicUsize,
    /// The page after the last fault's, and how many faults before it were each on the page after the one before.
    next: AtomicUsize,
    walked: AtomicU32,
    /// The page after the last first touch's window, and how wide the next may be.
    fresh_next: AtomicUsize,
    fresh_width: AtomicUsize,
}

impl Around {
    /// Windows that adapt, or stay at `fixed` pages (rounded up to a power of two).
    pub(crate) fn new(fixed: Option<usize>) -> Self {
        let pages = fixed.map_or(START, |pages| {
            pages.clamp(1, CHUNK_PAGES).next_power_of_two() as u32
        });
        Self {
            read: Window::new(pages, READ),
            back: Window::new(pages, BACK),
            fixed: fixed.is_some(),
            random: AtomicBool::new(false),
            turn: AtomicU32::new(0),
            came_in: AtomicU32::new(0),
            room: AtomicUsize::new(usize::MAX),
            next: AtomicUsize::new(usize::MAX),
            walked: AtomicU32::new(0),
            fresh_next: AtomicUsize::new(usize::MAX),
            fresh_width: AtomicUsize::new(1),
        }
    }

    /// How many pages a fault may read.
    pub(crate) fn most_read(&self) -> usize {
        self.read.pages()
    }

    /// How many pages a fault may take back.
    pub(crate) fn most_back(&self) -> usize {
        self.back.pages()
    }

    /// How many pages a first touch of `page` may fill.
    pub(crate) fn most_fresh(&self, page: usize) -> usize {
        let widest = self.read.pages().max(self.back.pages());
        match self.fresh_next.load(Ordering::Relaxed) == page {
            true => (self.fresh_width.load(Ordering::Relaxed) * 2).min(widest),
            false => 1,
        }
    }

    /// The pages to read with page `index` of a chunk: an aligned window, at most `limit` pages.
    pub(crate) fn mask(&self, index: usize, limit: usize) -> u64 {
        self.read.mask(index, limit)
    }

    /// The pages to take back with page `index`, likewise.
    pub(crate) fn back_mask(&self, index: usize, limit: usize) -> u64 {
        self.back.mask(index, limit)
    }

    /// The pages to fill with zeros on a first touch of `page`, index `index` of its chunk: from it
    /// onwards, and more only while first touches walk on, since each takes memory of its own.
    pub(crate) fn fresh_mask(&self, page: usize, index: usize, limit: usize) -> u64 {
        let width = self.most_fresh(page);
        let count = width.min(limit).min(CHUNK_PAGES - index).max(1);
        self.fresh_width.store(width, Ordering::Relaxed);
        self.fresh_next.store(page + count, Ordering::Relaxed);
        crate::mask::run(index, count)
    }

    /// Notes a fault on `page`; a walk through neighbours widens a window of one.
    pub(crate) fn note_fault(&self, page: usize) {
        if self.next.swap(page + 1, Ordering::Relaxed) == page {
            let walked = self.walked.fetch_add(1, Ordering::Relaxed) + 1;
            if walked >= WALK && self.read.pages() == 1 && !self.fixed {
                self.random.store(false, Ordering::Relaxed);
                self.read.grow();
            }
        } else if self.walked.load(Ordering::Relaxed) != 0 {
            self.walked.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a fault-around that reads the pages in `window`. Gives the neighbour to leave out this time, of those or of `pair`;
    /// `index` is the faulting page.
    pub(crate) fn choose_canary(&self, window: u64, pair: u64, index: usize) -> Option<Canary> {
        let pages = window.count_ones();
        let before = self.came_in.fetch_add(pages, Ordering::Relaxed);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        if self.fixed || !turn.is_multiple_of(CANARY_EVERY) || self.random.load(Ordering::Relaxed) {
            return None;
        }
        // Any of them: the next one is used more often than the rest of a wide window, where one thing lies across two
        // pages for example.
        let others = (window | pair) & !crate::mask::bit(index);
        let nth = (turn / CANARY_EVERY).wrapping_mul(0x9e37_79b9) >> 16;
        let canary =
            crate::mask::indices(others).nth((nth % others.count_ones().max(1)) as usize)?;
        Some(Canary::new(canary, before.wrapping_add(pages)))
    }

    /// Memory holds about `pages` pages now.
    pub(crate) fn note_room(&self, pages: usize) {
        // A line that all threads read is written only when it has to be.
        if self.room.load(Ordering::Relaxed).abs_diff(pages) > pages / 8 {
            self.room.store(pages, Ordering::Relaxed);
        }
    }

    /// A canary was faulted.
    pub(crate) fn canary_faulted(&self, canary: Canary) {
        let age = canary.age(self.came_in.load(Ordering::Relaxed));
        let room = self.room.load(Ordering::Relaxed);
        for window in self.adapting() {
            window.note_canary(age, room);
        }
    }

    /// A chunk is evicted with its canary untouched.
    pub(crate) fn canary_lost(&self) {
        for window in self.adapting() {
            window.canary_lost();
        }
    }

    /// Sequential access is coming: the widest window at once.
    pub(crate) fn widen(&self) {
        self.set(CHUNK_PAGES, false);
    }

    /// Random access is coming: no neighbours.
    pub(crate) fn narrow(&self) {
        self.set(1, true);
    }

    fn set(&self, pages: usize, random: bool) {
        self.random.store(random, Ordering::Relaxed);
        for window in self.adapting() {
            window.set(pages);
            window.score.store(0, Ordering::Relaxed);
        }
    }

    /// The windows, unless they are fixed.
    fn adapting(&self) -> impl Iterator<Item = &Window> {
        let windows = [&self.read, &self.back];
        windows.into_iter().filter(|_| !self.fixed)
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
            assert_eq!(
                around.back_mask(index, limit),
                crate::mask::run(first, size)
            );
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
        for terms in [READ, BACK] {
            let window = Window::new(START, terms);
            window.canary_used();
            window.canary_used();
            assert_eq!(window.pages(), 64, "never past a chunk");
            for _ in 0..66 {
                window.canary_lost();
            }
            assert_eq!(window.pages(), 1);
            window.canary_used();
            assert_eq!(window.pages(), 1);
            window.canary_used();
            assert_eq!(window.pages(), 2);
        }
    }

    #[test]
    fn a_walk_shows_that_neighbours_get_used_and_a_pair_of_pages_does_not() {
        let around = Around::new(None);
        around.narrow();
        for page in [10, 11, 20, 21, 30] {
            around.note_fault(page);
            assert_eq!(around.most_read(), 1);
        }
        around.note_fault(31);
        around.note_fault(32);
        assert_eq!(around.most_read(), 2);
        let fixed = Around::new(Some(1));
        (0..9).for_each(|page| fixed.note_fault(page));
        assert_eq!(fixed.most_read(), 1);
    }

    #[test]
    fn a_window_goes_where_enough_of_the_neighbours_get_used() {
        for (terms, used_of_ten, widest) in [
            (READ, 0, 1),
            (READ, 4, 8),
            (READ, 7, 64),
            (BACK, 0, 1),
            (BACK, 3, 8),
            (BACK, 6, 64),
            (BACK, 10, 64),
        ] {
            let window = Window::new(8, terms);
            let mut most = 1;
            for turn in 0..1000_u32 {
                // Spread evenly.
                if turn * 7 % 10 < used_of_ten {
                    window.canary_used();
                } else {
                    window.canary_lost();
                }
                if turn > 500 {
                    most = most.max(window.pages());
                }
            }
            assert!(
                if used_of_ten > 5 {
                    window.pages() == widest
                } else {
                    most <= widest
                },
                "{used_of_ten} of 10 used, {terms:?}: {} pages",
                window.pages()
            );
        }
    }

    #[test]
    fn a_neighbour_that_is_used_late_was_not_worth_its_reading() {
        let around = Around::new(None);
        around.note_room(64 * 8 * 10);
        let later = |pages: u32| {
            let canary = Canary::new(5, around.came_in.load(Ordering::Relaxed));
            around.came_in.fetch_add(pages, Ordering::Relaxed);
            canary
        };
        let windows = || (around.most_read(), around.most_back());
        for _ in 0..10 {
            around.canary_faulted(later(160));
        }
        assert_eq!(windows(), (64, 64));
        around.canary_faulted(later(640));
        around.canary_faulted(later(640));
        assert_eq!(windows(), (32, 64), "soon enough to be kept in memory");
        for _ in 0..10 {
            around.canary_faulted(later(100_000));
        }
        assert_eq!(windows(), (1, 8));
    }

    #[test]
    fn a_canary_remembers_its_page_and_its_age_when_counts_wrap() {
        for (index, came_in, later) in [(0, 0, 1), (63, u32::MAX, 7), (5, 1 << 25, 1 << 24)] {
            let canary = Canary::new(index, came_in);
            assert_eq!(canary.index(), Some(index));
            assert_eq!(canary.age(came_in.wrapping_add(later)), later as usize);
        }
        assert_eq!(Canary::NONE.index(), None);
    }

    #[test]
    fn announced_random_access_brings_single_pages_until_there_is_a_walk() {
        let around = Around::new(None);
        around.narrow();
        for _ in 0..100 {
            assert_eq!(around.choose_canary(0b10, 0b01, 1), None);
        }
        (10..13).for_each(|page| around.note_fault(page));
        assert_eq!(around.most_read(), 2);
        let canaries = (0..8).filter_map(|_| around.choose_canary(0b11, 0b01, 1));
        assert_eq!(canaries.count(), 1);
    }

    #[test]
    fn a_canary_is_a_neighbour_never_the_page_itself() {
        let around = Around::new(None);
        let mut chosen = 0;
        for index in 0..64 {
            for mask in [u64::MAX, crate::mask::bit(index), 0xff00] {
                let window = mask | crate::mask::bit(index);
                if let Some(canary) = around.choose_canary(window, 0, index) {
                    let canary = canary.index().expect("a page");
                    assert!(canary != index && window & crate::mask::bit(canary) != 0);
                    chosen += 1;
                }
            }
        }
        assert!(chosen > 0);
        let single = around.choose_canary(0b10, 0b01, 1);
        assert_eq!(single.and_then(Canary::index), Some(0), "its pair");
        assert_eq!(
            Around::new(Some(8)).choose_canary(u64::MAX, 0, 0),
            None,
            "a fixed window has none"
        );
    }
}
