//! Pins: a pinned page is present and stays so.

use crate::bug;
use crate::page_table::{PteState, split};
use crate::space::{AddressSpace, Frames};
use crate::swap::{Mm, Swap};

/// What [`Swap::pin`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum PinResult {
    /// The page is pinned once more.
    Pinned,
    /// The page is not present: fault it in and try again.
    NotPresent,
    /// The page has as many pins as can be counted.
    TooMany,
}

impl<F: Frames> Swap<F> {
    /// Pins `page` if it is present.
    pub fn pin<S: AddressSpace<Frames = F>>(&self, mm: &Mm<S>, page: usize) -> PinResult {
        let (chunk, index) = split(page);
        let mut locked = mm.table.lock(chunk);
        let pte = locked.get(index);
        if pte.state() != PteState::Present {
            return PinResult::NotPresent;
        }
        match pte.pinned() {
            Some(pinned) => {
                locked.set(index, pinned);
                PinResult::Pinned
            }
            None => PinResult::TooMany,
        }
    }

    /// Drops one pin of `page`, which has one.
    pub fn unpin<S: AddressSpace<Frames = F>>(&self, mm: &Mm<S>, page: usize) {
        let (chunk, index) = split(page);
        let mut locked = mm.table.lock(chunk);
        let pte = locked.get(index);
        if pte.pins() == 0 {
            // Counting down from here would make the word name another page.
            bug::report_page("unpin", page);
            return;
        }
        locked.set(index, pte.unpinned());
    }

    /// The reclaimer shall pass over those pages of `chunk` in `mask` that are present, `skips` times (at
    /// most 15).
    pub fn leave_alone<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        chunk: usize,
        mask: u64,
        skips: u64,
    ) {
        let mut locked = mm.table.lock(chunk);
        for index in crate::mask::indices(mask & mm.table.chunk_mask(chunk)) {
            let pte = locked.get(index);
            if pte.state() == PteState::Present {
                locked.set(index, pte.with_skips(skips));
            }
        }
    }

    /// Lets the reclaimer pass over the pages of `chunk` whose last write did not save memory: returns
    /// the pages of `mask` it may take, and counts one pass off for the others.
    pub fn pass_over<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        chunk: usize,
        mask: u64,
    ) -> u64 {
        let mut locked = mm.table.lock(chunk);
        let mut free = 0;
        for index in crate::mask::indices(mask & mm.table.chunk_mask(chunk)) {
            let pte = locked.get(index);
            match pte.skips() {
                0 => free |= crate::mask::bit(index),
                skips => locked.set(index, pte.with_skips(skips - 1)),
            }
        }
        free
    }
}
