//! The swap map: one word a slot, (c, h) of the protocol's section 2.
//!
//! ```text
//!  31  30  29                                   0
//! +---+---+--------------------------------------+
//! | h | 0 |  c: PTEs that hold the entry         |
//! +---+---+--------------------------------------+
//! ```
//!
//! | word | meaning | who may change it |
//! |---|---|---|
//! | 0 | free | the holder of the slot's cluster: allocate |
//! | (0,1) | being swapped out, or being freed | the owner of h only |
//! | (c,0) | in c PTEs | anyone holding the PTE lock of such a PTE; whoever sets h |
//! | (c,1) | in c PTEs, and cached, being written or pinned | as above; only the owner of h clears it |
//!
//! Guarantee of h: from the successful [`SlotMap::prepare`] (or allocation) until its release nobody
//! else inserts into the cache, writes, frees or reuses the slot. Mechanism: every transition that
//! could do so refuses a word with h set.
//!
//! Where c = 1 and h is ours and we hold the PTE lock of the one PTE, or where c = 0 and h is ours,
//! nobody else may change the word: no compare-and-swap is needed there.

use crate::sync::{AtomicU32, Ordering, zeroed_u32};

const H: u32 = 1 << 31;

/// The largest count of PTEs a slot can have.
pub const COUNT_MAX: u32 = (1 << 30) - 1;

/// Why the map refused a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// EEXIST: somebody else owns the cache flag.
    #[error("the slot is cached, being written or pinned")]
    Busy,
    /// ENOENT: the slot is free, or holds nothing that could be read.
    #[error("the slot is not in use")]
    Free,
    /// The count of PTEs is at its limit.
    #[error("the slot is in as many page-table entries as can be counted")]
    CountFull,
    /// The cache flag was released twice.
    #[error("the slot's cache flag is not set")]
    NotOwned,
}

/// A slot's state, read at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotState {
    /// How many PTEs hold the entry.
    pub count: u32,
    /// The cache flag.
    pub has_cache: bool,
}

/// What a drop of a reference left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Dropped {
    /// The slot is still in use.
    InUse,
    /// Nobody uses the slot; the caller owns h and must discard the data and finish the free.
    Last,
}

#[derive(Debug)]
pub(crate) struct SlotMap {
    words: Box<[AtomicU32]>,
}

impl SlotMap {
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            words: zeroed_u32(slots),
        }
    }

    pub(crate) fn state(&self, slot: u64) -> SlotState {
        // Acquire: pairs with the release of h, so that the reader sees the data written under it.
        let word = self.word(slot).load(Ordering::Acquire);
        SlotState {
            count: word & COUNT_MAX,
            has_cache: word & H != 0,
        }
    }

    pub(crate) fn is_free(&self, slot: u64) -> bool {
        // Acquire: pairs with `finish_free`; the allocator must see the discard as done.
        self.word(slot).load(Ordering::Acquire) == 0
    }

    /// free -> (0,1). Only the holder of the slot's cluster calls this, on a slot it saw free, so
    /// nobody else can change the word: a plain store will do.
    pub(crate) fn allocate(&self, slot: u64) {
        debug_assert!(self.is_free(slot));
        self.word(slot).store(H, Ordering::Relaxed);
    }

    /// (c,1) -> (c+1,1): the entry goes into a PTE. The caller owns h and holds the PTE lock.
    pub(crate) fn put_in_pte(&self, slot: u64) -> Result<(), SlotError> {
        let word = self.word(slot);
        match word.load(Ordering::Relaxed) {
            // (0,1) is ours alone. Release: whoever finds the entry sees the slot's cache page.
            H => {
                word.store(H | 1, Ordering::Release);
                Ok(())
            }
            now if now & H == 0 => Err(SlotError::NotOwned),
            _ => self.duplicate(slot),
        }
    }

    /// (c>=1,h) -> (c+1,h). The caller holds the PTE lock of a PTE that holds the entry.
    pub(crate) fn duplicate(&self, slot: u64) -> Result<(), SlotError> {
        self.update(slot, |word| match word & COUNT_MAX {
            0 => Err(SlotError::Free),
            COUNT_MAX => Err(SlotError::CountFull),
            _ => Ok(word + 1),
        })
        .map(drop)
    }

    /// (c>=1,0) -> (c,1): takes h for a cached read, a direct pin or a writeback.
    pub(crate) fn prepare(&self, slot: u64) -> Result<(), SlotError> {
        self.update(slot, |word| match word {
            _ if word & H != 0 => Err(SlotError::Busy),
            0 => Err(SlotError::Free),
            _ => Ok(word | H),
        })
        .map(drop)
    }

    /// (c>=1,h) -> (c-1,h), for a caller that does not own h. The last drop of an unowned slot takes
    /// h itself, so that the slot cannot be reused before its data are discarded.
    pub(crate) fn free(&self, slot: u64) -> Result<Dropped, SlotError> {
        let word = self.update(slot, |word| match word {
            _ if word & COUNT_MAX == 0 => Err(SlotError::Free),
            1 => Ok(H),
            _ => Ok(word - 1),
        })?;
        Ok(if word == 1 {
            Dropped::Last
        } else {
            Dropped::InUse
        })
    }

    /// (c>=1,1) -> (c-1,1), for the owner of h who also holds the lock of a PTE with the entry.
    pub(crate) fn free_owned(&self, slot: u64) -> Result<(), SlotError> {
        let word = self.word(slot);
        let now = word.load(Ordering::Relaxed);
        if now & H == 0 {
            return Err(SlotError::NotOwned);
        }
        if now & COUNT_MAX == 1 {
            // The one PTE is locked by us and h is ours: nobody else may change the word.
            word.store(H, Ordering::Relaxed);
            return Ok(());
        }
        self.free(slot).map(drop)
    }

    /// (c,1) -> (c,0), or the start of a free when c = 0: then h stays until
    /// [`SlotMap::finish_free`]. The caller owns h and gives it up.
    pub(crate) fn release(&self, slot: u64) -> Result<Dropped, SlotError> {
        let word = self.word(slot);
        // Acquire: pairs with the drop of the last PTE by somebody else.
        if word.load(Ordering::Acquire) == H {
            return Ok(Dropped::Last);
        }
        let before = self.update(slot, |word| match word {
            _ if word & H == 0 => Err(SlotError::NotOwned),
            // Others dropped the last PTE meanwhile and left the free to us.
            H => Ok(H),
            _ => Ok(word & !H),
        })?;
        Ok(if before == H {
            Dropped::Last
        } else {
            Dropped::InUse
        })
    }

    /// (0,1) -> free, after the discard. The slot may be handed out as soon as this is done.
    pub(crate) fn finish_free(&self, slot: u64) {
        debug_assert_eq!(self.word(slot).load(Ordering::Relaxed), H);
        // Release: the discard happens before the slot's next allocation.
        self.word(slot).store(0, Ordering::Release);
    }

    fn word(&self, slot: u64) -> &AtomicU32 {
        &self.words[slot as usize]
    }

    /// Changes the word by `next`; returns what it was.
    fn update(
        &self,
        slot: u64,
        next: impl Fn(u32) -> Result<u32, SlotError>,
    ) -> Result<u32, SlotError> {
        let word = self.word(slot);
        let mut now = word.load(Ordering::Relaxed);
        loop {
            let then = next(now)?;
            // AcqRel: taking h sees the data of its last owner; dropping it publishes ours.
            match word.compare_exchange_weak(now, then, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(now),
                Err(seen) => now = seen,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(count: u32, has_cache: bool) -> SlotMap {
        let map = SlotMap::new(2);
        map.words[1].store(count | if has_cache { H } else { 0 }, Ordering::Relaxed);
        map
    }

    fn state(map: &SlotMap) -> (u32, bool) {
        let state = map.state(1);
        (state.count, state.has_cache)
    }

    #[test]
    fn allocate_gives_no_count_and_the_flag() {
        let map = at(0, false);
        assert!(map.is_free(1));
        map.allocate(1);
        assert_eq!(state(&map), (0, true));
    }

    #[test]
    fn put_in_pte_counts_up_to_the_limit() {
        for count in [0, 1, 7, COUNT_MAX - 1] {
            let map = at(count, true);
            assert_eq!(map.put_in_pte(1), Ok(()));
            assert_eq!(state(&map), (count + 1, true));
        }
        let map = at(COUNT_MAX, true);
        assert_eq!(map.put_in_pte(1), Err(SlotError::CountFull));
        assert_eq!(state(&map), (COUNT_MAX, true));
        assert_eq!(at(1, false).put_in_pte(1), Err(SlotError::NotOwned));
    }

    #[test]
    fn duplicate_needs_a_used_slot_and_room_in_the_count() {
        for has_cache in [false, true] {
            let map = at(1, has_cache);
            assert_eq!(map.duplicate(1), Ok(()));
            assert_eq!(state(&map), (2, has_cache));
            assert_eq!(
                at(COUNT_MAX, has_cache).duplicate(1),
                Err(SlotError::CountFull)
            );
            assert_eq!(at(0, has_cache).duplicate(1), Err(SlotError::Free));
        }
    }

    #[test]
    fn prepare_takes_the_flag_once() {
        let map = at(3, false);
        assert_eq!(map.prepare(1), Ok(()));
        assert_eq!(state(&map), (3, true));
        assert_eq!(map.prepare(1), Err(SlotError::Busy));
        assert_eq!(at(0, true).prepare(1), Err(SlotError::Busy));
        assert_eq!(at(0, false).prepare(1), Err(SlotError::Free));
    }

    #[test]
    fn free_never_underflows() {
        assert_eq!(at(0, false).free(1), Err(SlotError::Free));
        assert_eq!(at(0, true).free(1), Err(SlotError::Free));
        let map = at(2, false);
        assert_eq!(map.free(1), Ok(Dropped::InUse));
        assert_eq!(map.free(1), Ok(Dropped::Last));
        assert_eq!(
            state(&map),
            (0, true),
            "the freeing thread owns the flag until the discard is done"
        );
        map.finish_free(1);
        assert!(map.is_free(1));
        let map = at(1, true);
        assert_eq!(
            map.free(1),
            Ok(Dropped::InUse),
            "the owner of the flag frees it"
        );
        assert_eq!(state(&map), (0, true));
    }

    #[test]
    fn free_owned_is_free_with_the_flag_held() {
        for count in [1, 2, 9] {
            let map = at(count, true);
            assert_eq!(map.free_owned(1), Ok(()));
            assert_eq!(state(&map), (count - 1, true));
        }
        assert_eq!(at(0, true).free_owned(1), Err(SlotError::Free));
        assert_eq!(at(1, false).free_owned(1), Err(SlotError::NotOwned));
    }

    #[test]
    fn release_happens_once_and_the_last_one_frees() {
        let map = at(1, true);
        assert_eq!(map.release(1), Ok(Dropped::InUse));
        assert_eq!(state(&map), (1, false));
        assert_eq!(map.release(1), Err(SlotError::NotOwned));
        let map = at(0, true);
        assert_eq!(map.release(1), Ok(Dropped::Last));
        map.finish_free(1);
        assert!(map.is_free(1));
        assert_eq!(map.release(1), Err(SlotError::NotOwned));
    }
}
