//! The swap map: one word a slot. What the words can become stands in [`crate::slot_word`]; here is
//! who may make them so, and how memory is kept in order.
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

use crate::slot_word::{Dropped, SlotError, SlotState, SlotWord};
use crate::sync::{AtomicU32, Ordering, zeroed_u32};

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
        self.load(slot, Ordering::Acquire).state()
    }

    pub(crate) fn is_free(&self, slot: u64) -> bool {
        // Acquire: pairs with `finish_free`; the allocator must see the discard as done.
        self.load(slot, Ordering::Acquire).is_free()
    }

    /// Only the holder of the slot's cluster calls this, on a slot it saw free, so nobody else can
    /// change the word: a plain store will do.
    pub(crate) fn allocate(&self, slot: u64) {
        debug_assert!(self.is_free(slot));
        self.store(slot, SlotWord::OWNED, Ordering::Relaxed);
    }

    /// The entry goes into a PTE. The caller owns h and holds the PTE lock.
    pub(crate) fn put_in_pte(&self, slot: u64) -> Result<(), SlotError> {
        let now = self.load(slot, Ordering::Relaxed);
        if now == SlotWord::OWNED {
            // (0,1) is ours alone. Release: whoever finds the entry sees the slot's cache page.
            self.store(slot, now.put_in_pte()?, Ordering::Release);
            return Ok(());
        }
        self.update(slot, |word| Ok((word.put_in_pte()?, ())))
    }

    /// The caller holds the PTE lock of a PTE that holds the entry.
    pub(crate) fn duplicate(&self, slot: u64) -> Result<(), SlotError> {
        self.update(slot, |word| Ok((word.duplicated()?, ())))
    }

    /// Takes h for a cached read, a direct pin or a writeback.
    pub(crate) fn prepare(&self, slot: u64) -> Result<(), SlotError> {
        self.update(slot, |word| Ok((word.prepared()?, ())))
    }

    /// `swap_free` for a caller that does not own h.
    pub(crate) fn free(&self, slot: u64) -> Result<Dropped, SlotError> {
        self.update(slot, SlotWord::freed)
    }

    /// `swap_free` for the owner of h who also holds the lock of a PTE with the entry.
    pub(crate) fn free_owned(&self, slot: u64) -> Result<(), SlotError> {
        let now = self.load(slot, Ordering::Relaxed);
        let then = now.freed_by_owner()?;
        if now.state().count == 1 {
            // The one PTE is locked by us and h is ours: nobody else may change the word.
            self.store(slot, then, Ordering::Relaxed);
            return Ok(());
        }
        self.update(slot, |word| Ok((word.freed_by_owner()?, ())))
    }

    /// The caller owns h and gives it up; with [`Dropped::Last`] it keeps h until
    /// [`SlotMap::finish_free`].
    pub(crate) fn release(&self, slot: u64) -> Result<Dropped, SlotError> {
        // Acquire: pairs with the drop of the last PTE by somebody else, who left the free to us.
        if self.load(slot, Ordering::Acquire) == SlotWord::OWNED {
            return Ok(Dropped::Last);
        }
        self.update(slot, SlotWord::released)
    }

    /// (0,1) -> free, after the discard. The slot may be handed out as soon as this is done.
    pub(crate) fn finish_free(&self, slot: u64) {
        debug_assert_eq!(self.load(slot, Ordering::Relaxed), SlotWord::OWNED);
        // Release: the discard happens before the slot's next allocation.
        self.store(slot, SlotWord::FREE, Ordering::Release);
    }

    fn load(&self, slot: u64, ordering: Ordering) -> SlotWord {
        SlotWord::from_bits(self.word(slot).load(ordering))
    }

    fn store(&self, slot: u64, word: SlotWord, ordering: Ordering) {
        self.word(slot).store(word.bits(), ordering);
    }

    fn word(&self, slot: u64) -> &AtomicU32 {
        &self.words[slot as usize]
    }

    /// Changes the word by `next`; returns what that said.
    fn update<T>(
        &self,
        slot: u64,
        next: impl Fn(SlotWord) -> Result<(SlotWord, T), SlotError>,
    ) -> Result<T, SlotError> {
        let word = self.word(slot);
        let mut now = word.load(Ordering::Relaxed);
        loop {
            let (then, said) = next(SlotWord::from_bits(now))?;
            // AcqRel: taking h sees the data of its last owner; dropping it publishes ours.
            let changed =
                word.compare_exchange_weak(now, then.bits(), Ordering::AcqRel, Ordering::Relaxed);
            match changed {
                Ok(_) => return Ok(said),
                Err(seen) => now = seen,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot_word::COUNT_MAX;

    fn at(count: u32, has_cache: bool) -> SlotMap {
        let map = SlotMap::new(2);
        map.words[1].store(
            count | if has_cache { SlotWord::OWNED.bits() } else { 0 },
            Ordering::Relaxed,
        );
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
