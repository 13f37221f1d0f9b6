//! Copying an address space: swapped pages are shared by `swap_duplicate`, present ones are staged
//! first and then shared, so that both sides get their own copy on their next access.

use crate::entry::SwapEntry;
use crate::mask::{filter, indices};
use crate::page_table::{LockedChunk, Pte, PteState};
use crate::slot_word::SlotError;
use crate::space::{AddressSpace, Frames, SpaceError};
use crate::step::{self, Step};
use crate::swap::{Mm, Swap};
use crate::swap_out::Staged;

/// Why a page could not be copied to the child. The parent is unharmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForkError {
    /// The page's slot cannot be shared once more.
    #[error("cannot share a swapped page: {0}")]
    Slot(#[from] SlotError),
    /// The child's page could not be mapped.
    #[error(transparent)]
    Space(#[from] SpaceError),
}

impl<F: Frames> Swap<F> {
    /// Copies `chunk` of `parent` to `child`, whose chunk is untouched and which nobody else uses yet.
    /// The chunk is copied as it is at one moment, except for pages that cannot be staged (pinned, in use
    /// by the system, no slot left): those are copied as they stand, under a writer's hands if need be.
    /// Returns the block in which present pages were staged, and how many were copied.
    ///
    /// # Errors
    /// The child's chunk may be copied in part; the parent is as before.
    pub fn fork_chunk<S: AddressSpace<Frames = F>>(
        &self,
        parent: &Mm<S>,
        child: &Mm<S>,
        chunk: usize,
    ) -> (Option<Staged>, Result<usize, ForkError>) {
        let mut copied = None;
        let copy = |locked: &mut LockedChunk<'_>| {
            copied = Some(self.copy_chunk(parent, child, locked, chunk));
        };
        let staged = self.stage_and(parent, chunk, u64::MAX, copy).ok();
        // Where nothing could be staged (all pinned, say, or no slot left), all is copied.
        let copied = copied.unwrap_or_else(|| {
            step::at(Step::AwaitPte);
            self.copy_chunk(parent, child, &mut parent.table.lock(chunk), chunk)
        });
        (staged, copied)
    }

    fn copy_chunk<S: AddressSpace<Frames = F>>(
        &self,
        parent: &Mm<S>,
        child: &Mm<S>,
        locked: &mut LockedChunk<'_>,
        chunk: usize,
    ) -> Result<usize, ForkError> {
        let mut child_chunk = child.table.lock(chunk);
        let mut present = 0;
        for i in indices(parent.table.chunk_mask(chunk)) {
            if child_chunk.get(i) != Pte::NONE {
                continue;
            }
            match locked.get(i).state() {
                PteState::None => {}
                PteState::Swapped(entry) => {
                    self.share(entry)?;
                    child_chunk.set(i, Pte::swapped(entry));
                }
                PteState::Present => {
                    step::at(Step::CopyPresent);
                    child.space.map_copy_of(&parent.space, locked.page(i))?;
                    child_chunk.set(i, Pte::PRESENT);
                    present += 1;
                }
            }
        }
        Ok(present)
    }

    fn share(&self, entry: SwapEntry) -> Result<(), SlotError> {
        let area = self.area_of(entry);
        let _reference = area.enter().ok_or(SlotError::Free)?;
        step::at(Step::Duplicate);
        area.duplicate(entry)
    }

    /// The pages of `chunk` that are present.
    pub fn present<S: AddressSpace<Frames = F>>(&self, mm: &Mm<S>, chunk: usize) -> u64 {
        let first = chunk * crate::page_table::CHUNK_PAGES;
        filter(mm.table.chunk_mask(chunk), |i| {
            mm.table.load(first + i).state() == PteState::Present
        })
    }
}
