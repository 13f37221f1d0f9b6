//! The slot table: one word a slot, lazily in memory, each with a lock bit.

use std::hint::spin_loop;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::thread::yield_now;

use userswap_core::device::{DeviceError, PAGE_SIZE};

use super::word::Word;
use crate::arena::Table;

const WORDS_PER_PAGE: usize = PAGE_SIZE / size_of::<u64>();
/// Tries before a waiter gives its CPU to others: about as long as a decompression takes.
const SPINS: u32 = 100;

/// All slots' words.
pub(super) struct Slots {
    words: Table<AtomicU64>,
    /// One bit for each page of `words`: it was written, so it takes memory.
    touched: Table<AtomicU64>,
    touched_pages: AtomicU64,
}

/// A locked slot: while this lives, nobody else changes its word or its object.
pub(super) struct Locked<'a> {
    word: &'a AtomicU64,
    held: Word,
}

impl Slots {
    pub(super) fn new(slots: usize) -> Result<Self, DeviceError> {
        Ok(Self {
            words: Table::zeroed(slots)?,
            touched: Table::zeroed(slots.div_ceil(WORDS_PER_PAGE * 64))?,
            touched_pages: AtomicU64::new(0),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.words.len()
    }

    /// The word of `slot`, without waiting; nothing while the slot is locked.
    pub(super) fn peek(&self, slot: usize) -> Option<Word> {
        // Acquire: pairs with the release of whoever set the word, for devices used in a way that
        // brings no order of its own.
        Word::unlocked(self.words[slot].load(Acquire))
    }

    /// Locks `slot`, waiting for whoever holds it.
    ///
    /// In the ways `direct` and `cached` nobody does, other than a compaction for the length of
    /// one copy.
    pub(super) fn lock(&self, slot: usize) -> Locked<'_> {
        let word = &self.words[slot];
        let mut spins = 0;
        loop {
            if let Some(held) = Word::unlocked(word.load(Relaxed)) {
                // Acquire: what the last holder wrote to the object is seen by this one.
                if word
                    .compare_exchange_weak(held.raw(), held.raw_locked(), Acquire, Relaxed)
                    .is_ok()
                {
                    return Locked { word, held };
                }
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
    pub(super) fn touch(&self, slot: usize) {
        let page = slot / WORDS_PER_PAGE;
        let (word, bit) = (&self.touched[page / 64], 1 << (page % 64));
        // Relaxed: only a count depends on it.
        if word.load(Relaxed) & bit == 0 && word.fetch_or(bit, Relaxed) & bit == 0 {
            self.touched_pages.fetch_add(1, Relaxed);
        }
    }

    /// Bytes of the table that take memory.
    pub(super) fn resident_bytes(&self) -> u64 {
        self.touched_pages.load(Relaxed) * PAGE_SIZE as u64 + self.touched.reserved_bytes() as u64
    }
}

impl Locked<'_> {
    /// What the slot holds.
    pub(super) fn word(&self) -> Word {
        self.held
    }

    /// What the slot is to hold when it is unlocked.
    pub(super) fn set(&mut self, word: Word) {
        self.held = word;
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Release: the next holder sees the object as this one leaves it.
        self.word.store(self.held.raw(), Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_excludes_and_publishes() {
        let slots = Slots::new(1).unwrap();
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
        let slots = Slots::new(2).unwrap();
        let mut held = slots.lock(1);
        assert_eq!(slots.peek(1), None);
        assert_eq!(slots.peek(0), Some(Word::EMPTY));
        held.set(Word::same(5).unwrap());
        drop(held);
        assert_eq!(slots.peek(1), Word::same(5));
    }

    #[test]
    fn touched_pages_are_counted_once() {
        let slots = Slots::new(1 << 20).unwrap();
        let empty = slots.resident_bytes();
        for slot in [0, 1, 511, 512, 1 << 19, 0] {
            slots.touch(slot);
        }
        assert_eq!(slots.resident_bytes() - empty, 3 * PAGE_SIZE as u64);
    }
}
