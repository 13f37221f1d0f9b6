//! Doing something to a page that is not there, and cannot come meanwhile.

use crate::page_table::{PteState, split};
use crate::space::{AddressSpace, Frames};
use crate::swap::{Mm, Swap};

impl<F: Frames> Swap<F> {
    /// Runs `then` if `page` is not present, with its chunk locked. Returns whether it was run.
    pub fn while_missing<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        page: usize,
        then: impl FnOnce(),
    ) -> bool {
        let (chunk, index) = split(page);
        let locked = mm.table.lock(chunk);
        let missing = locked.get(index).state() != PteState::Present;
        if missing {
            then();
        }
        missing
    }
}
