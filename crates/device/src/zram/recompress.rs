//! Recompression: what LZ4 stored before the store outgrew its share of the limit is compressed anew with Zstandard, in the
//! background.
//!
//! Guarantee: to everybody else it is one step, under the slot's lock, and the slot's content is the same before and after.
//! Whoever reads such a slot waits for some ten microseconds at most. What gets little smaller stays as it is.

use userswap_core::device::{PAGE_SIZE, PageBytes};

use super::word::{Stored, Word};
use super::{DENSE, PACKED, Zram};
use crate::codec::{Codec, Format};
use crate::cpu;

/// Pages tried in one step: some two hundred microseconds.
const PAGES_A_STEP: usize = 16;

/// Slots looked at in one step.
const SLOTS_A_STEP: usize = 4096;

/// One part in so many must be saved.
const SAVES: usize = 8;

/// Where the search for objects by LZ4 is.
pub(super) struct Sweep {
    /// The next slot; nothing between two rounds.
    next: Option<usize>,
    /// Objects by LZ4 that the last round left, since they would get little smaller.
    left: u64,
    page: PageBytes,
}

impl Sweep {
    pub(super) fn new() -> Self {
        Self {
            next: None,
            left: 0,
            page: [0; PAGE_SIZE],
        }
    }
}

impl Zram {
    /// Recompresses some pages where the store has outgrown its share; `true`: there may be more.
    pub(super) fn recompress_some(&self) -> bool {
        if self.options.codec != Codec::Adaptive || !self.is_dense() {
            return false;
        }
        // Somebody else is at it.
        let Ok(mut sweep) = self.sweep.try_lock() else {
            return false;
        };
        let Sweep { next, left, page } = &mut *sweep;
        let by_lz4 = (self.counters.total(PACKED)).saturating_sub(self.counters.total(DENSE));
        if next.is_none() && by_lz4 <= *left + *left / 8 {
            // Only what the last round left.
            return false;
        }
        let cpu = cpu::current();
        let (mut slot, mut tried) = (next.unwrap_or(0), 0);
        let end = slot + SLOTS_A_STEP;
        while slot < end && tried < PAGES_A_STEP {
            let Some(touched) = self.slots.next_touched(slot) else {
                (*next, *left) = (None, by_lz4);
                return false;
            };
            if touched < self.slots.len() && self.recompress(cpu, touched, page) {
                tried += 1;
            }
            slot = touched + 1;
        }
        *next = Some(slot);
        true
    }

    /// Recompresses the page of `slot`, if LZ4 compressed it and Zstandard saves something; `false`: there was nothing to try.
    fn recompress(&self, cpu: usize, slot: usize, page: &mut PageBytes) -> bool {
        let by_lz4 = |word: Word| match word.stored() {
            Stored::Packed(handle, len, Format::Lz4) => Some((handle, len)),
            _ => None,
        };
        if self
            .slots
            .peek(slot)
            .is_some_and(|word| by_lz4(word).is_none())
        {
            return false;
        }
        let mut context = self.contexts.zstd(cpu);
        let mut locked = self.slots.lock(slot);
        let old = locked.word();
        let Some((handle, len)) = by_lz4(old) else {
            return false;
        };
        if self.read_locked(&locked, page).is_err() {
            return true;
        }
        let smaller = context
            .compress(page)
            .filter(|packed| packed.len() + len / SAVES <= len);
        let Some(packed) = smaller else {
            return true;
        };
        let Ok(place) = self.store.put(cpu, slot as u32, packed) else {
            return true;
        };
        let word = Word::packed(place, packed.len(), Format::Zstd);
        locked.set(word);
        let excess = self.store.free(handle);
        drop(locked);
        self.count(cpu, old, -1);
        self.count(cpu, word, 1);
        self.give_back(excess);
        true
    }
}
