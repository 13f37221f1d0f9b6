//! The slot table: one word a slot, lazily in memory, each with a lock bit.

use std::hint::spin_loop;
use std::marker::PhantomData;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::thread::yield_now;

use userswap_core::device::{DeviceError, PAGE_SIZE};

use crate::arena::Table;

pub(crate) const WORDS_PER_PAGE: usize = PAGE_SIZE / size_of::<u64>();
/// Tries before a waiter gives its CPU to others: about as long as a decompression takes.
const SPINS: u32 = 100;

/// The bit of a word that is the slot's lock.
const LOCK: u64 = 1;

/// What a device keeps in a slot's word, of which the lowest bit is the lock. 0: the slot is empty.
pub(crate) trait SlotWord: Copy {
    /// From what is in the table, unlocked.
    fn from_raw(raw: u64) -> Self;

    /// As it goes into the table, unlocked.
    fn raw(self) -> u64;
}

/// All slots' words.
pub(crate) struct Slots<W> {
    kind: PhantomData<fn() -> W>,
    words: Table<AtomicU64>,
    /// One bit for each page of `words`: it was written, so it takes memory.
    touched: Table<AtomicU64>,
    touched_pages: AtomicU64,
}

/// A locked slot: while this lives, nobody else changes its word or its object.
pub(crate) struct Locked<'a, W: SlotWord> {
    word: &'a AtomicU64,
    held: W,
}

impl<W: SlotWord> Slots<W> {
    pub(crate) fn new(slots: usize) -> Result<Self, DeviceError> {
        Ok(Self {
            kind: PhantomData,
            words: Table::zeroed(slots)?,
            touched: Table::zeroed(slots.div_ceil(WORDS_PER_PAGE * 64))?,
            touched_pages: AtomicU64::new(0),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.words.len()
    }

    /// The word of `slot`, without waiting; nothing while the slot is locked.
    pub(crate) fn peek(&self, slot: usize) -> Option<W> {
        // Acquire: pairs with the release of whoever set the word, for devices used in a way that
        // brings no order of its own.
        let raw = self.words[slot].load(Acquire);
        (raw & LOCK == 0).then(|| W::from_raw(raw))
    }

    /// Locks `slot`, waiting for whoever holds it.
    ///
    /// In the ways `direct` and `cached` nobody does, other than a compaction for the length of
    /// one copy.
    pub(crate) fn lock(&self, slot: usize) -> Locked<'_, W> {
        let word = &self.words[slot];
        let mut spins = 0;
        loop {
            let raw = word.load(Relaxed);
            // Acquire: what the last holder wrote to the object is seen by this one.
            if raw & LOCK == 0
                && word
                    .compare_exchange_weak(raw, raw | LOCK, Acquire, Relaxed)
                    .is_ok()
            {
                let held = W::from_raw(raw);
                return Locked { word, held };
            }
            spins += 1;
            if spins < SPINS {
                spin_loop()
            } else {
                yield_now()
            }
        }
    }

    /// Counts the page of the table that holds `slot` as taking memory.
    pub(crate) fn touch(&self, slot: usize) {
        let page = slot / WORDS_PER_PAGE;
        let (word, bit) = (&self.touched[page / 64], 1 << (page % 64));
        // Relaxed: only a count depends on it.
        if word.load(Relaxed) & bit == 0 && word.fetch_or(bit, Relaxed) & bit == 0 {
            self.touched_pages.fetch_add(1, Relaxed);
        }
    }

    /// The first slot from `slot` on whose word may have been written.
    pub(crate) fn next_touched(&self, slot: usize) -> Option<usize> {
        let first = slot / WORDS_PER_PAGE;
        let pages = first..self.words.len().div_ceil(WORDS_PER_PAGE);
        let is_touched =
            |&page: &usize| self.touched[page / 64].load(Relaxed) >> (page % 64) & 1 != 0;
        let page = pages.into_iter().find(is_touched)?;
        Some(slot.max(page * WORDS_PER_PAGE))
    }

    /// Makes every slot empty, none of which is locked, and gives the table's memory back.
    pub(crate) fn clear(&self) {
        self.words.clear();
        self.touched.clear();
        self.touched_pages.store(0, Relaxed);
    }

    /// Pages of the table that take memory; each holds [`WORDS_PER_PAGE`] words.
    pub(crate) fn touched_pages(&self) -> u64 {
        self.touched_pages.load(Relaxed)
    }

    /// Bytes of the table that take memory.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.touched_pages.load(Relaxed) * PAGE_SIZE as u64 + self.touched.reserved_bytes() as u64
    }
}

impl<W: SlotWord> Locked<'_, W> {
    /// What the slot holds.
    pub(crate) fn word(&self) -> W {
        self.held
    }

    /// What the slot is to hold when it is unlocked.
    pub(crate) fn set(&mut self, word: W) {
        self.held = word;
    }
}

impl<W: SlotWord> Drop for Locked<'_, W> {
    fn drop(&mut self) {
        // Release: the next holder sees the object as this one leaves it.
        self.word.store(self.held.raw(), Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Even(u64);

    impl SlotWord for Even {
        fn from_raw(raw: u64) -> Self {
            Self(raw)
        }

        fn raw(self) -> u64 {
            self.0
        }
    }

    #[test]
    fn a_lock_excludes_and_publishes() {
        let slots = Slots::<Even>::new(1).unwrap();
        let total = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let _held = slots.lock(0);
                        // Not atomic as a whole: only the lock keeps this from losing additions.
                        total.store(total.load(Relaxed) + 1, Relaxed);
                    }
                });
            }
        });
        assert_eq!(total.load(Relaxed), 40_000);
    }

    #[test]
    fn a_locked_slot_cannot_be_peeked_at() {
        let slots = Slots::<Even>::new(2).unwrap();
        let mut held = slots.lock(1);
        assert_eq!(slots.peek(1), None);
        assert_eq!(slots.peek(0), Some(Even(0)));
        held.set(Even(10));
        drop(held);
        assert_eq!(slots.peek(1), Some(Even(10)));
    }

    #[test]
    fn touched_pages_are_counted_once() {
        let slots = Slots::<Even>::new(1 << 20).unwrap();
        let empty = slots.resident_bytes();
        for slot in [0, 1, 511, 512, 1 << 19, 0] {
            slots.touch(slot);
        }
        assert_eq!(slots.resident_bytes() - empty, 3 * PAGE_SIZE as u64);
        for (from, next) in [
            (0, Some(0)),
            (700, Some(700)),
            (1024, Some(1 << 19)),
            ((1 << 19) + 512, None),
        ] {
            assert_eq!(slots.next_touched(from), next);
        }
        slots.clear();
        assert_eq!(slots.resident_bytes(), empty);
        slots.touch(1);
        assert_eq!(slots.resident_bytes() - empty, PAGE_SIZE as u64);
    }
}
