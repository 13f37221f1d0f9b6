//! Recompression: what LZ4 stored before the store outgrew its share of the limit, or the engine asked for small pages, is
//! compressed anew with Zstandard, in the background.
//!
//! Guarantee: to everybody else it is one step, under the slot's lock, and the slot's content is the same before and after.
//! Whoever reads such a slot meanwhile waits: some fifteen microseconds, longer where the store takes memory from the system.
//! What gets little smaller stays as it is.

use userswap_core::device::{PAGE_SIZE, PageBytes};

use super::word::{Stored, Word};
use super::{DENSE, PACKED, STORED_BYTES, Zram};
use crate::codec::{Codec, Format, Method};
use crate::cpu;

/// Pages tried in one step: some two hundred microseconds.
const PAGES_A_STEP: usize = 16;

/// Slots looked at in one step.
const SLOTS_A_STEP: usize = 4096;

/// One part in so many must be saved.
const SAVES: usize = 8;

/// How: nobody waits for it, and what lies long enough to be found here is read seldom.
const METHOD: Method = Method::Zstd;

/// Where the search for objects by LZ4 is.
pub(super) struct Sweep {
    /// The next slot; nothing between two rounds.
    next: Option<usize>,
    /// Objects by LZ4 that this round leaves, since they would get little smaller; and the last one.
    leaves: u64,
    left: u64,
    page: PageBytes,
}

impl Sweep {
    pub(super) fn new() -> Self {
        Self {
            next: None,
            leaves: 0,
            left: 0,
            page: [0; PAGE_SIZE],
        }
    }
}

/// What came of looking at a slot.
enum Tried {
    /// It holds nothing by LZ4.
    Nothing,
    /// Its page takes less now.
    Smaller,
    /// Its page stays as it is.
    Left,
}

impl Zram {
    /// Recompresses some pages where the store has outgrown its share, or is to be small; `true`: there may be more.
    pub(super) fn recompress_some(&self) -> bool {
        // By content: what has just been made smaller leaves holes, which count as memory until they are closed.
        let by_content = self.method(self.counters.total(STORED_BYTES));
        if self.options.codec != Codec::Adaptive || by_content == Method::Lz4 {
            return false;
        }
        // Somebody else is at it.
        let Ok(mut sweep) = self.sweep.try_lock() else {
            return false;
        };
        let sweep = &mut *sweep;
        let by_lz4 = (self.counters.total(PACKED)).saturating_sub(self.counters.total(DENSE));
        sweep.left = sweep.left.min(by_lz4);
        if sweep.next.is_none() && by_lz4 <= sweep.left + sweep.left / 8 {
            // Only what the last round left.
            return false;
        }
        let cpu = cpu::current();
        let (mut slot, mut tried) = (sweep.next.unwrap_or(0), 0);
        let end = slot + SLOTS_A_STEP;
        while slot < end && tried < PAGES_A_STEP {
            let touched = self.slots.next_touched(slot);
            let Some(touched) = touched.filter(|&slot| slot < self.slots.len()) else {
                sweep.next = None;
                sweep.left = std::mem::take(&mut sweep.leaves);
                return false;
            };
            match self.recompress(cpu, touched, &mut sweep.page) {
                Tried::Nothing => {}
                Tried::Smaller => tried += 1,
                Tried::Left => {
                    tried += 1;
                    sweep.leaves += 1;
                }
            }
            slot = touched + 1;
        }
        sweep.next = Some(slot);
        true
    }

    /// Recompresses the page of `slot`, if LZ4 compressed it and Zstandard saves something.
    fn recompress(&self, cpu: usize, slot: usize, page: &mut PageBytes) -> Tried {
        let by_lz4 = |word: Word| match word.stored() {
            Stored::Packed(handle, len, Format::Lz4) => Some((handle, len)),
            _ => None,
        };
        if self
            .slots
            .peek(slot)
            .is_some_and(|word| by_lz4(word).is_none())
        {
            return Tried::Nothing;
        }
        let mut context = self.contexts.zstd(cpu);
        let mut locked = self.slots.lock(slot);
        let old = locked.word();
        let Some((handle, len)) = by_lz4(old) else {
            return Tried::Nothing;
        };
        if self.read_locked(&locked, page).is_err() {
            return Tried::Left;
        }
        let smaller = context
            .compress(self.contexts.level(METHOD), page)
            .filter(|packed| packed.len() + len / SAVES <= len);
        let Some(packed) = smaller else {
            return Tried::Left;
        };
        let Ok(place) = self.store.put(cpu, slot as u32, packed) else {
            return Tried::Left;
        };
        let word = Word::packed(place, packed.len(), METHOD.format());
        locked.set(word);
        let excess = self.store.free(handle);
        drop(locked);
        self.count(cpu, old, -1);
        self.count(cpu, word, 1);
        self.give_back(excess);
        Tried::Smaller
    }
}
