//! Page-table words: what each page of an address space is, and the locks over them.
//!
//! One word a page:
//!
//! ```text
//!  63 62 61                                                       0
//! +-----+----------------------------------------------------------+
//! | 0 0 | 0                        none: never written, reads as zeros
//! | 0 1 | 0 ... | skip (4 bits) | pins (16 bits)       present in memory
//! | 1 0 | swap entry                                   swapped out
//! +-----+----------------------------------------------------------+
//! ```
//!
//! Guarantee of a chunk's lock (the PTE lock of the protocol): while it is held, no word of the
//! chunk changes, and each word tells the truth about the address space: exactly the pages whose
//! word says present can be touched without a fault. Mechanism: words are written, and pages of the
//! chunk mapped and unmapped, only under it. Reading a word without the lock gives a hint.

use crate::around::Canary;
use crate::entry::SwapEntry;
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering, zeroed_u64};

/// Pages under one lock: 256 KiB. Fault-around and swap-out work within a chunk, so that a set of
/// its pages is one 64-bit mask.
pub const CHUNK_PAGES: usize = 64;

const TAG_SHIFT: u32 = 62;
const PRESENT: u64 = 1 << TAG_SHIFT;
const SWAPPED: u64 = 2 << TAG_SHIFT;
const PINS: u64 = 0xffff;
const SKIP_SHIFT: u32 = 16;
const SKIP: u64 = 0xf << SKIP_SHIFT;

/// A page-table word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pte(u64);

/// What a word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PteState {
    /// Never written, or discarded: reads as zeros.
    None,
    /// In memory.
    Present,
    /// Swapped out to this slot.
    Swapped(SwapEntry),
}

impl Pte {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const PRESENT: Self = Self(PRESENT);

    pub(crate) fn swapped(entry: SwapEntry) -> Self {
        Self(SWAPPED | entry.raw())
    }

    /// What the word says.
    #[must_use]
    pub fn state(self) -> PteState {
        match self.0 >> TAG_SHIFT {
            0 => PteState::None,
            1 => PteState::Present,
            _ => PteState::Swapped(SwapEntry::from_raw(self.0 & !(3 << TAG_SHIFT))),
        }
    }

    pub(crate) fn entry(self) -> Option<SwapEntry> {
        match self.state() {
            PteState::Swapped(entry) => Some(entry),
            PteState::None | PteState::Present => None,
        }
    }

    pub(crate) fn pins(self) -> u64 {
        if self.state() == PteState::Present {
            self.0 & PINS
        } else {
            0
        }
    }

    /// One pin more; `None` at the limit. Only for a present page.
    pub(crate) fn pinned(self) -> Option<Self> {
        debug_assert_eq!(self.state(), PteState::Present);
        (self.0 & PINS < PINS).then_some(Self(self.0 + 1))
    }

    /// One pin less. Only for a pinned page.
    pub(crate) fn unpinned(self) -> Self {
        debug_assert!(self.pins() > 0, "unpinning a page that is not pinned");
        Self(self.0 - 1)
    }

    /// Passes of the reclaimer that shall leave the page alone: it did not compress.
    pub(crate) fn skips(self) -> u64 {
        if self.state() == PteState::Present {
            (self.0 & SKIP) >> SKIP_SHIFT
        } else {
            0
        }
    }

    pub(crate) fn with_skips(self, skips: u64) -> Self {
        debug_assert!(self.state() == PteState::Present && skips <= SKIP >> SKIP_SHIFT);
        Self(self.0 & !SKIP | skips << SKIP_SHIFT)
    }
}

/// What the fault-around policy remembers of a chunk; guarded by the chunk's lock.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    /// A page left out of a fault-around on purpose. See [`crate::around`].
    pub(crate) canary: Canary,
}

/// The words of an address space and their locks.
#[derive(Debug)]
pub struct PageTable {
    words: Box<[AtomicU64]>,
    chunks: Box<[Mutex<Chunk>]>,
    /// One bit a chunk: clear only where no word of the chunk says present. Set and cleared under the chunk's
    /// lock; read without it, as a hint where there is something to swap out.
    occupied: Box<[AtomicU64]>,
}

/// A locked chunk: its words may be changed.
pub(crate) struct LockedChunk<'a> {
    table: &'a PageTable,
    first: usize,
    pub(crate) state: MutexGuard<'a, Chunk>,
}

impl PageTable {
    /// A table for `pages` pages, all of them `None`.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        Self {
            words: zeroed_u64(pages),
            chunks: (0..pages.div_ceil(CHUNK_PAGES))
                .map(|_| Mutex::default())
                .collect(),
            occupied: zeroed_u64(pages.div_ceil(CHUNK_PAGES * 64)),
        }
    }

    /// Pages in the table.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.words.len()
    }

    /// Chunks in the table.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Bytes the table takes when every word is in use.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.words) + size_of_val(&*self.chunks) + size_of_val(&*self.occupied)
    }

    /// The word of `page`, without the lock: a hint.
    #[must_use]
    pub fn load(&self, page: usize) -> Pte {
        // Acquire: whoever sees an entry sees the slot state and the cache page it was made with.
        Pte(self.words[page].load(Ordering::Acquire))
    }

    pub(crate) fn lock(&self, chunk: usize) -> LockedChunk<'_> {
        LockedChunk {
            table: self,
            first: chunk * CHUNK_PAGES,
            state: self.chunks[chunk].lock(),
        }
    }

    /// The first chunk from `from` on that may have a present page. A hint.
    #[must_use]
    pub fn next_occupied(&self, from: usize) -> Option<usize> {
        let mut mask = u64::MAX << (from % 64);
        for at in from / 64..self.occupied.len() {
            // Relaxed: a chunk missed now is found on the next round.
            let bits = self.occupied[at].load(Ordering::Relaxed) & mask;
            if bits != 0 {
                return Some(at * 64 + bits.trailing_zeros() as usize);
            }
            mask = u64::MAX;
        }
        None
    }

    /// How many chunks may have a present page.
    #[must_use]
    pub fn occupied(&self) -> usize {
        // Relaxed: a count that is out of date at once.
        let words = self
            .occupied
            .iter()
            .map(|word| word.load(Ordering::Relaxed));
        words.map(|word| word.count_ones() as usize).sum()
    }

    /// Lets [`PageTable::next_occupied`] pass over `chunk` if no page of it is present.
    pub fn note_empty(&self, chunk: usize) {
        let locked = self.lock(chunk);
        let mask = self.chunk_mask(chunk);
        let is_present = |i| locked.get(i).state() == PteState::Present;
        if !crate::mask::indices(mask).any(is_present) {
            self.occupied[chunk / 64].fetch_and(!(1 << (chunk % 64)), Ordering::Relaxed);
        }
    }

    /// The pages of `chunk` that exist: all, except in a last chunk that is cut short.
    #[must_use]
    pub fn chunk_mask(&self, chunk: usize) -> u64 {
        let pages = (self.pages() - chunk * CHUNK_PAGES).min(CHUNK_PAGES);
        if pages == CHUNK_PAGES {
            u64::MAX
        } else {
            (1 << pages) - 1
        }
    }
}

impl LockedChunk<'_> {
    /// The page number of the chunk's page `index`.
    pub(crate) fn page(&self, index: usize) -> usize {
        self.first + index
    }

    pub(crate) fn get(&self, index: usize) -> Pte {
        // Relaxed: the lock orders it.
        Pte(self.table.words[self.first + index].load(Ordering::Relaxed))
    }

    pub(crate) fn set(&mut self, index: usize, pte: Pte) {
        if pte.state() == PteState::Present {
            let chunk = self.first / CHUNK_PAGES;
            let (bits, bit) = (&self.table.occupied[chunk / 64], 1 << (chunk % 64));
            // Relaxed: bits of this chunk change under its lock; looked at first, since mostly it is set.
            if bits.load(Ordering::Relaxed) & bit == 0 {
                bits.fetch_or(bit, Ordering::Relaxed);
            }
        }
        // Release: for the lockless `load`.
        self.table.words[self.first + index].store(pte.0, Ordering::Release);
    }
}

/// The chunk of a page and its index there.
pub(crate) fn split(page: usize) -> (usize, usize) {
    (page / CHUNK_PAGES, page % CHUNK_PAGES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_say_what_was_put_in_them() {
        let entry = SwapEntry::new(63, (1 << 56) - 1);
        assert_eq!(Pte::NONE.state(), PteState::None);
        assert_eq!(Pte::PRESENT.state(), PteState::Present);
        assert_eq!(Pte::swapped(entry).state(), PteState::Swapped(entry));
        let pinned = Pte::PRESENT.with_skips(15).pinned().expect("room");
        assert_eq!(
            (pinned.pins(), pinned.skips(), pinned.state()),
            (1, 15, PteState::Present)
        );
        assert_eq!(pinned.unpinned(), Pte::PRESENT.with_skips(15));
        assert_eq!(
            (Pte::swapped(entry).pins(), Pte::swapped(entry).skips()),
            (0, 0)
        );
    }

    #[test]
    fn pins_stop_at_their_limit() {
        let full = (0..PINS).fold(Pte::PRESENT, |pte, _| pte.pinned().expect("room"));
        assert_eq!(full.pins(), PINS);
        assert!(full.pinned().is_none());
    }

    #[test]
    fn occupied_chunks_are_found_and_empty_ones_passed_over() {
        let table = PageTable::new(200 * CHUNK_PAGES);
        assert_eq!(table.next_occupied(0), None);
        for chunk in [3, 64, 199] {
            table.lock(chunk).set(7, Pte::PRESENT);
        }
        let found = |from| table.next_occupied(from);
        assert_eq!(
            (found(0), found(3), found(4), found(65), found(199)),
            (Some(3), Some(3), Some(64), Some(199), Some(199))
        );
        table.note_empty(64);
        assert_eq!(found(4), Some(64), "it is not empty");
        table.lock(64).set(7, Pte::NONE);
        table.note_empty(64);
        assert_eq!((found(4), found(200)), (Some(199), None));
    }

    #[test]
    fn a_short_last_chunk_has_a_short_mask() {
        let table = PageTable::new(CHUNK_PAGES + 3);
        assert_eq!(
            (table.chunks(), table.chunk_mask(0), table.chunk_mask(1)),
            (2, u64::MAX, 0b111)
        );
    }
}
