//! The swap cache: which frame holds a slot's page, and the state of such pages.
//!
//! A page is in the cache while it is staged or written by swap-out, or read by a cached swap-in.
//! Lookups take no lock, so a frame found by one means nothing until its page is locked and looked
//! at again with [`SwapCache::lock`] (invariant I4): the entry may have been freed and reused twice
//! in between.
//!
//! Page state, one word a frame:
//!
//! | bit | meaning | who changes it |
//! |---|---|---|
//! | LOCKED | the page lock | whoever sets it clears it |
//! | WRITEBACK | the device reads the frame: it must keep its content | under the page lock |
//! | DIRTY | the slot's data are not written yet | under the page lock |
//!
//! Guarantee of the page lock: while it is held, the page stays in the cache for its entry (or stays
//! out), and WRITEBACK and DIRTY do not change.

use crate::entry::SwapEntry;
use crate::page_table::CHUNK_PAGES;
use crate::rule::{Kept, Rule};
use crate::space::Frame;
use crate::step::{self, Step};
use crate::sync::{
    AtomicU32, AtomicU64, Ordering, store_among_updates, yield_now, zeroed_u32, zeroed_u64,
};

const LOCKED: u32 = 1;
const WRITEBACK: u32 = 2;
const DIRTY: u32 = 4;

/// A cached page's owner word when the frame holds none.
const NO_ENTRY: u64 = 0;

/// Slot to frame, for one area: frame number + 1, or 0.
#[derive(Debug)]
pub(crate) struct CacheIndex(Box<[AtomicU32]>);

impl CacheIndex {
    pub(crate) fn new(slots: usize) -> Self {
        Self(zeroed_u32(slots))
    }

    /// The frame that may hold the slot's page: a hint.
    pub(crate) fn lookup(&self, slot: u64) -> Option<Frame> {
        // Acquire: the page state was set up before the index showed the frame.
        match self.0[slot as usize].load(Ordering::Acquire) {
            0 => None,
            number => Some(frame_at(number as usize - 1)),
        }
    }

    fn set(&self, slot: u64, frame: Option<Frame>) {
        let number = frame.map_or(0, |frame| number_of(frame) as u32 + 1);
        self.0[slot as usize].store(number, Ordering::Release);
    }
}

/// The state of every frame's page.
#[derive(Debug)]
pub(crate) struct SwapCache {
    states: Box<[AtomicU32]>,
    /// The entry + 1 whose page the frame holds; changed under the page lock.
    owners: Box<[AtomicU64]>,
    kept: Kept,
}

fn number_of(frame: Frame) -> usize {
    frame.block as usize * CHUNK_PAGES + frame.index
}

fn frame_at(number: usize) -> Frame {
    Frame {
        block: (number / CHUNK_PAGES) as u32,
        index: number % CHUNK_PAGES,
    }
}

impl SwapCache {
    pub(crate) fn new(blocks: usize, kept: Kept) -> Self {
        let frames = blocks * CHUNK_PAGES;
        Self {
            states: zeroed_u32(frames),
            owners: zeroed_u64(frames),
            kept,
        }
    }

    /// Bytes the tables take when every frame is in use.
    pub(crate) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.states) + size_of_val(&*self.owners)
    }

    /// Adds the page in `frame`, locked. The caller owns the entry's cache flag and the frame.
    pub(crate) fn insert_locked(
        &self,
        index: &CacheIndex,
        entry: SwapEntry,
        frame: Frame,
        dirty: bool,
    ) {
        // Somebody who looked the frame up for an earlier entry may hold its lock for a moment: he
        // will find the entry gone and let go, without waiting for anything.
        while !self.try_lock(frame) {
            yield_now();
        }
        let number = number_of(frame);
        debug_assert_eq!(self.owners[number].load(Ordering::Relaxed), NO_ENTRY);
        self.owners[number].store(entry.raw() + 1, Ordering::Relaxed);
        // Nobody but the lock's holder changes the other bits.
        let state = LOCKED | if dirty { DIRTY } else { 0 };
        store_among_updates(&self.states[number], state, Ordering::Relaxed);
        index.set(entry.offset(), Some(frame));
    }

    /// Takes the page out of the cache and drops its lock. The caller still owns the entry's cache
    /// flag and releases it afterwards.
    pub(crate) fn delete_locked(&self, index: &CacheIndex, entry: SwapEntry, frame: Frame) {
        let number = number_of(frame);
        debug_assert_eq!(self.owners[number].load(Ordering::Relaxed), entry.raw() + 1);
        debug_assert_eq!(self.states[number].load(Ordering::Relaxed) & WRITEBACK, 0);
        index.set(entry.offset(), None);
        self.owners[number].store(NO_ENTRY, Ordering::Relaxed);
        // Release: pairs with the next taker of the lock.
        store_among_updates(&self.states[number], 0, Ordering::Release);
    }

    /// Locks the page `frame` if nobody has it and it holds `entry`'s page.
    pub(crate) fn lock(&self, index: &CacheIndex, entry: SwapEntry, frame: Frame) -> Lock {
        step::at(Step::LockPage);
        if !self.try_lock(frame) {
            // Locked by somebody who looked it up too late, perhaps: nothing to wait for then.
            return if index.lookup(entry.offset()) == Some(frame) {
                Lock::Busy
            } else {
                Lock::Gone
            };
        }
        step::at(Step::RecheckPage);
        if !self.kept.keeps(Rule::RecheckCachedPage) {
            return Lock::Locked;
        }
        let owner = self.owners[number_of(frame)].load(Ordering::Relaxed);
        if owner == entry.raw() + 1 && index.lookup(entry.offset()) == Some(frame) {
            Lock::Locked
        } else {
            self.unlock(frame);
            Lock::Gone
        }
    }

    pub(crate) fn unlock(&self, frame: Frame) {
        // Release: what was done under the lock happens before the next holder looks.
        self.states[number_of(frame)].fetch_and(!LOCKED, Ordering::Release);
    }

    pub(crate) fn is_locked(&self, frame: Frame) -> bool {
        self.states[number_of(frame)].load(Ordering::Acquire) & LOCKED != 0
    }

    /// The entry whose page `frame` holds: a hint without the page lock.
    pub(crate) fn owner(&self, frame: Frame) -> Option<SwapEntry> {
        match self.owners[number_of(frame)].load(Ordering::Relaxed) {
            NO_ENTRY => None,
            owner => Some(SwapEntry::from_raw(owner - 1)),
        }
    }

    pub(crate) fn is_writeback(&self, frame: Frame) -> bool {
        self.states[number_of(frame)].load(Ordering::Acquire) & WRITEBACK != 0
    }

    pub(crate) fn is_dirty(&self, frame: Frame) -> bool {
        self.states[number_of(frame)].load(Ordering::Acquire) & DIRTY != 0
    }

    /// The device is going to read the frame. The caller holds the page lock.
    pub(crate) fn start_writeback(&self, frame: Frame) {
        self.states[number_of(frame)].fetch_or(WRITEBACK, Ordering::Relaxed);
    }

    /// The device has read the frame; `written`: and the slot holds its data. Under the page lock.
    pub(crate) fn end_writeback(&self, frame: Frame, written: bool) {
        let done = WRITEBACK | if written { DIRTY } else { 0 };
        self.states[number_of(frame)].fetch_and(!done, Ordering::Release);
    }

    pub(crate) fn try_lock(&self, frame: Frame) -> bool {
        // Acquire: pairs with the release in `unlock` and `delete_locked`.
        self.states[number_of(frame)].fetch_or(LOCKED, Ordering::Acquire) & LOCKED == 0
    }
}

/// What [`SwapCache::lock`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lock {
    /// The page is locked and belongs to the entry.
    Locked,
    /// Somebody else has it locked.
    Busy,
    /// The frame does not hold the entry's page any more.
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Frame = Frame { block: 1, index: 5 };

    #[test]
    fn a_page_is_found_only_under_its_own_entry() {
        let (cache, index) = (SwapCache::new(2, Kept::default()), CacheIndex::new(8));
        let (entry, other) = (SwapEntry::new(0, 3), SwapEntry::new(0, 4));
        assert_eq!(index.lookup(3), None);
        cache.insert_locked(&index, entry, FRAME, true);
        assert_eq!(index.lookup(3), Some(FRAME));
        assert_eq!(cache.lock(&index, entry, FRAME), Lock::Busy);
        cache.unlock(FRAME);
        assert_eq!(cache.lock(&index, other, FRAME), Lock::Gone);
        assert_eq!(cache.lock(&index, entry, FRAME), Lock::Locked);
        cache.delete_locked(&index, entry, FRAME);
        assert_eq!(index.lookup(3), None);
        assert_eq!(
            cache.lock(&index, entry, FRAME),
            Lock::Gone,
            "a stale lookup finds nothing"
        );
    }

    #[test]
    fn a_frame_reused_for_another_entry_is_not_mistaken() {
        let (cache, index) = (SwapCache::new(2, Kept::default()), CacheIndex::new(8));
        let (first, second) = (SwapEntry::new(0, 3), SwapEntry::new(0, 4));
        cache.insert_locked(&index, first, FRAME, true);
        let stale = index.lookup(3).expect("cached");
        cache.delete_locked(&index, first, FRAME);
        cache.insert_locked(&index, second, FRAME, true);
        cache.unlock(FRAME);
        assert_eq!(cache.lock(&index, first, stale), Lock::Gone);
    }

    #[test]
    fn writeback_ends_clean_only_when_written() {
        let (cache, index) = (SwapCache::new(1, Kept::default()), CacheIndex::new(1));
        let frame = Frame { block: 0, index: 0 };
        cache.insert_locked(&index, SwapEntry::new(0, 0), frame, true);
        cache.start_writeback(frame);
        assert!(cache.is_writeback(frame));
        cache.end_writeback(frame, false);
        assert!(!cache.is_writeback(frame) && cache.is_dirty(frame));
        cache.start_writeback(frame);
        cache.end_writeback(frame, true);
        assert!(!cache.is_dirty(frame));
    }
}
