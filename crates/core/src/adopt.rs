//! Memory that the protocol did not make: pages that came without a fault, that went without being
//! asked, or that moved with their mapping. For a program's own mappings, which the program changes
//! itself.

use crate::mask::{filter, indices};
use crate::page_table::{Pte, PteState, split};
use crate::space::{AddressSpace, Frames};
use crate::swap::{Mm, Swap};

impl<F: Frames> Swap<F> {
    /// Takes on those pages of `chunk` that `find` says are in memory and that have no word yet: they
    /// can be swapped out from now on. `find` runs with the chunk locked. Returns the pages taken on.
    pub fn adopt<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        chunk: usize,
        find: impl FnOnce() -> u64,
    ) -> u64 {
        let mut locked = mm.table.lock(chunk);
        let found = find() & mm.table.chunk_mask(chunk);
        let new = filter(found, |i| locked.get(i) == Pte::NONE);
        for i in indices(new) {
            locked.set(i, Pte::PRESENT);
        }
        new
    }

    /// The pages of `chunk` in `mask` are not mapped any more: frees their slots and forgets what was in
    /// memory. The caller keeps faults and swap-out away from them meanwhile. Returns the pages that
    /// were present.
    pub fn forget<S: AddressSpace<Frames = F>>(&self, mm: &Mm<S>, chunk: usize, mask: u64) -> u64 {
        let locked = mm.table.lock(chunk);
        let mask = mask & mm.table.chunk_mask(chunk);
        let present = filter(mask, |i| locked.get(i).state() == PteState::Present);
        self.clear_words(locked, mask);
        present
    }

    /// If `page` is present by its word, but `is_gone` says, with its chunk locked, that it is not in memory: it was dropped
    /// behind the protocol's back, and reads as zeros from now on. Returns whether it was so.
    pub fn note_gone<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        page: usize,
        is_gone: impl FnOnce() -> bool,
    ) -> bool {
        let (chunk, index) = split(page);
        let mut locked = mm.table.lock(chunk);
        let gone = locked.get(index).state() == PteState::Present && is_gone();
        if gone {
            locked.set(index, Pte::NONE);
        }
        gone
    }

    /// The mapping moved, and what was `page` of `from` is now `to_page` of `to`, whose word says nothing
    /// yet: the word goes along. The caller keeps faults and swap-out away from both meanwhile, so that
    /// nobody sees the entry in no word at all (I1).
    pub fn carry_over<S: AddressSpace<Frames = F>>(
        &self,
        from: &Mm<S>,
        page: usize,
        to: &Mm<S>,
        to_page: usize,
    ) {
        let (chunk, index) = split(page);
        let word = {
            let mut locked = from.table.lock(chunk);
            let word = locked.get(index);
            locked.set(index, Pte::NONE);
            word
        };
        if word == Pte::NONE {
            return;
        }
        let (chunk, index) = split(to_page);
        let mut locked = to.table.lock(chunk);
        debug_assert_eq!(locked.get(index), Pte::NONE, "a page moves onto another");
        locked.set(index, word);
    }
}
