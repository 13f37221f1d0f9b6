//! Swap-out: staging, then writing.
//!
//! *Staging* takes pages of one chunk out of the address space and puts entries in their PTEs; the
//! pages are then in the swap cache, unwritten. A fault takes them back without I/O, so the staged
//! blocks are also the inactive list. *Writing* gives their data to the device and their frames back.

use std::cmp::Reverse;

use crate::area::SwapArea;
use crate::around::Canary;
use crate::cache::Lock;
use crate::device::DeviceError;
use crate::entry::SwapEntry;
use crate::mask::{bit, filter, indices, run, runs};
use crate::page_table::{CHUNK_PAGES, LockedChunk, Pte, PteState};
use crate::rule::Rule;
use crate::space::{AddressSpace, Block, Frame, Frames, Purpose};
use crate::step::{self, Step};
use crate::swap::{Mm, Swap};

/// A staged block: the caller has its hold, and drops it when it has been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a staged block has a hold that must be dropped"]
pub struct Staged {
    /// The block whose frames hold the pages.
    pub block: Block,
    /// The pages of the chunk that were staged.
    pub mask: u64,
}

/// Why nothing was staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// No page asked for is present, unpinned and free to leave.
    #[error("no page could be taken out")]
    NothingToDo,
    /// Every slot of every area is in use.
    #[error("the swap area is full")]
    AreaFull,
    /// No block of frames is free.
    #[error("no frame is free")]
    NoFrames,
}

/// What became of the pages that were to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Written; their frames are free.
    pub written: u64,
    /// Not needed any more, or taken back while being written; their frames are free.
    pub dropped: u64,
    /// Could not be written: still staged, nothing is lost.
    pub failed: u64,
    /// Why the last of `failed` could not be written.
    pub error: Option<DeviceError>,
    /// The number of the area it was to be written to.
    pub failed_area: usize,
}

/// What [`Swap::discard`] met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discarded {
    /// Pages that were present and are gone.
    pub present: u64,
    /// Pages that stay: they are pinned, or the system has them locked.
    pub pinned: u64,
}

impl<F: Frames> Swap<F> {
    /// Stages those pages of `chunk` in `wanted` that can be.
    ///
    /// # Errors
    /// Nothing was changed.
    pub fn stage<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        chunk: usize,
        wanted: u64,
    ) -> Result<Staged, StageError> {
        self.stage_and(mm, chunk, wanted, |_| {})
    }

    /// [`Swap::stage`], with `then` run before the chunk is unlocked.
    pub(crate) fn stage_and<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        chunk: usize,
        wanted: u64,
        then: impl FnOnce(&mut LockedChunk<'_>),
    ) -> Result<Staged, StageError> {
        // Spares slots for pages that are not there. Under the lock: a page that its faulting thread sees
        // already may be marked present only when the handler drops it.
        step::at(Step::LookPresent);
        let likely = {
            let locked = mm.table.lock(chunk);
            filter(wanted & mm.table.chunk_mask(chunk), |i| {
                self.can_leave(locked.get(i))
            })
        };
        if likely == 0 {
            return Err(StageError::NothingToDo);
        }
        let mut slots = [0; CHUNK_PAGES];
        let slots = &mut slots[..likely.count_ones() as usize];
        let Some((area, _reference, got)) = self.allocate(slots) else {
            return Err(StageError::AreaFull);
        };
        step::at(Step::TakeFrame);
        let Some(block) = self.frames().take(Purpose::Unmap) else {
            area.release(slots[..got].iter().map(|&slot| area.entry(slot)));
            return Err(StageError::NoFrames);
        };
        step::at(Step::Unmap);
        let mut locked = mm.table.lock(chunk);
        let first = locked.page(0);
        let leaving = mm
            .space
            .leaving(first, filter(likely, |i| self.can_leave(locked.get(i))));
        let mut entries = [SwapEntry::from_raw(0); CHUNK_PAGES];
        let mut used = 0;
        for (i, &slot) in indices(leaving).zip(&slots[..got]) {
            entries[i] = area.entry(slot);
            used |= bit(i);
        }
        let staged = self.unmap(mm, &locked, block, used);
        if !self.kept.keeps(Rule::UnmapWithPte) {
            drop(locked);
            step::at(Step::AwaitPte);
            locked = mm.table.lock(chunk);
        }
        self.put_entries(&mut locked, area, block, staged, &entries);
        if staged != 0
            && let Some(canary) = locked.state.canary.index()
        {
            locked.state.canary = Canary::NONE;
            if locked.get(canary).entry().is_some() && staged & bit(canary) == 0 {
                mm.around.canary_lost();
            }
        }
        then(&mut locked);
        mm.space.left(first);
        step::at(Step::UnlockPte);
        drop(locked);
        let unused = used.count_ones() as usize;
        let leftover = slots[unused..got].iter().map(|&slot| area.entry(slot));
        area.release(leftover.chain(indices(used & !staged).map(|i| entries[i])));
        if staged == 0 {
            step::at(Step::ReleaseFrame);
            self.frames().release(block, 1);
            return Err(StageError::NothingToDo);
        }
        Ok(Staged {
            block,
            mask: staged,
        })
    }

    /// Takes the pages in `mask` out; returns those that left. With [`Swap::put_entries`] it is one step
    /// for everybody else, since the chunk is locked.
    fn unmap<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        locked: &LockedChunk<'_>,
        block: Block,
        mask: u64,
    ) -> u64 {
        let mut left = 0;
        for (first, count) in runs(mask) {
            let mut next = first;
            while next < first + count {
                let frame = Frame { block, index: next };
                let done = mm
                    .space
                    .unmap(locked.page(next), frame, first + count - next);
                left |= run(next, done);
                // The page that would not go stays; go on behind it.
                next += done + 1;
            }
        }
        left
    }

    /// Puts the entries of the pages in `left`, which were unmapped, in their PTEs.
    fn put_entries(
        &self,
        locked: &mut LockedChunk<'_>,
        area: &SwapArea,
        block: Block,
        left: u64,
        entries: &[SwapEntry; CHUNK_PAGES],
    ) {
        for i in indices(left) {
            let frame = Frame { block, index: i };
            // The cache first: whoever sees the entry in the PTE must find the page.
            step::at(Step::InsertCache);
            self.cache
                .insert_locked(&area.cache, entries[i], frame, true);
            step::at(Step::CountPte);
            let counted = area.put_in_pte(entries[i]);
            debug_assert_eq!(counted, Ok(()), "a fresh slot has no count");
            step::at(Step::PutEntry);
            locked.set(i, Pte::swapped(entries[i]));
            step::at(Step::UnlockPage);
            self.cache.unlock(frame);
        }
        self.frames().hold(block, left.count_ones());
        // A fault may have met one of the locks and parked.
        self.waiters.wake(indices(left).map(|i| entries[i]));
    }

    /// Slots from the area of the highest priority that has any.
    fn allocate(&self, out: &mut [u64]) -> Option<(&SwapArea, crate::gate::Pass<'_>, usize)> {
        let mut asked = 0_u64;
        loop {
            let left = self.areas().filter(|area| asked & bit(area.number()) == 0);
            // Of equals the first: the key is unique, whatever `max_by_key` does with them.
            let area = left.max_by_key(|area| (area.priority(), Reverse(area.number())))?;
            asked |= bit(area.number());
            let Some(reference) = area.enter() else {
                continue;
            };
            step::at(Step::AllocateSlot);
            let got = area.allocate(out);
            if got > 0 {
                return Some((area, reference, got));
            }
        }
    }

    /// Writes the pages of `block` in `mask` that are still staged, and frees their frames.
    pub fn write_back(&self, block: Block, mask: u64) -> Written {
        let mut result = Written::default();
        for index in indices(mask) {
            let frame = Frame { block, index };
            step::at(Step::FindOwner);
            let Some(entry) = self.cache.owner(frame) else {
                continue;
            };
            let area = self.area_of(entry);
            let Some(_reference) = area.enter() else {
                continue;
            };
            // Busy: somebody is taking the page back, or a copy of it, or fails to: it may stay here,
            // and nobody else comes to write it. Gone: somebody has taken it.
            let found = loop {
                match self.lock_page(area, entry, frame) {
                    Lock::Busy => self.wait_unlocked(area, entry, frame),
                    found => break found,
                }
            };
            if found == Lock::Gone {
                continue;
            }
            if self.cache.is_writeback(frame) {
                self.unlock_pages(block, bit(index), [entry]);
                continue;
            }
            step::at(Step::LookCounted);
            if area.slot(entry).count == 0 {
                self.uncache(area, entry, frame);
                result.dropped |= bit(index);
                continue;
            }
            let dirty = self.cache.is_dirty(frame);
            if dirty && !self.kept.keeps(Rule::WriteBeforeDelete) {
                self.uncache(area, entry, frame);
                step::at(Step::WriteDevice);
                let _ = self
                    .frames()
                    .read(frame, |page| area.device().write(entry.offset(), page));
                result.written |= bit(index);
                continue;
            }
            if dirty
                && let Err(error) = self.write(area, entry, frame)
                // Copied meanwhile: nobody needs the page, or comes to free it.
                && area.slot(entry).count > 0
                && self.kept.keeps(Rule::FailedWriteKeepsPage)
            {
                self.unlock_pages(block, bit(index), [entry]);
                result.failed |= bit(index);
                result.error = Some(error);
                result.failed_area = entry.area();
                continue;
            }
            let dropped = area.slot(entry).count == 0;
            self.uncache(area, entry, frame);
            *(if dropped {
                &mut result.dropped
            } else {
                &mut result.written
            }) |= bit(index);
        }
        result
    }

    /// Writes a locked page; unlocked while the device works, so that a fault can copy it meanwhile.
    fn write(&self, area: &SwapArea, entry: SwapEntry, frame: Frame) -> Result<(), DeviceError> {
        self.cache.start_writeback(frame);
        self.unlock_pages(frame.block, bit(frame.index), [entry]);
        step::at(Step::WriteDevice);
        let written = self
            .frames()
            .read(frame, |page| area.device().write(entry.offset(), page));
        // Nobody else deletes a page under writeback, so the lock is for this entry still.
        step::at(Step::Relock);
        while !self.cache.try_lock(frame) {
            self.wait_unlocked(area, entry, frame);
            step::at(Step::Relock);
        }
        self.cache.end_writeback(frame, written.is_ok());
        written
    }

    /// Deletes a locked page from the cache, gives up the cache flag and frees the frame.
    fn uncache(&self, area: &SwapArea, entry: SwapEntry, frame: Frame) {
        step::at(Step::DeleteCached);
        self.cache.delete_locked(&area.cache, entry, frame);
        area.release([entry]);
        step::at(Step::ReleaseFrame);
        self.frames().release(frame.block, 1);
        self.waiters.wake([entry]);
    }

    /// Takes the pages of `chunk` in `mask` out of existence: slots are freed, present pages dropped,
    /// PTEs read as zeros again. Pinned pages stay.
    pub fn discard<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        chunk: usize,
        mask: u64,
    ) -> Discarded {
        self.drop_pages(mm, chunk, mask, false)
    }

    /// The same for a whole chunk of an address space that nobody accesses any more: what the system will not drop now
    /// goes with the space's memory.
    pub fn discard_for_good<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        chunk: usize,
    ) -> Discarded {
        self.drop_pages(mm, chunk, u64::MAX, true)
    }

    fn drop_pages<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        chunk: usize,
        mask: u64,
        for_good: bool,
    ) -> Discarded {
        let mask = mask & mm.table.chunk_mask(chunk);
        step::at(Step::ClearPte);
        let locked = mm.table.lock(chunk);
        let mut pinned = filter(mask, |i| locked.get(i).pins() > 0);
        for (first, count) in runs(mask & !pinned) {
            if !mm.space.discard(locked.page(first), count) && !for_good {
                // A run can be refused half-way: the words must say which pages stay.
                pinned |= filter(run(first, count), |i| !mm.space.discard(locked.page(i), 1));
            }
        }
        let present = filter(mask & !pinned, |i| {
            locked.get(i).state() == PteState::Present
        });
        self.clear_words(locked, mask & !pinned);
        Discarded { present, pinned }
    }

    /// Makes the words in `mask` read as zeros, unlocks the chunk, and frees the slots they held.
    pub(crate) fn clear_words(&self, mut locked: LockedChunk<'_>, mask: u64) {
        let mut entries = [SwapEntry::from_raw(0); CHUNK_PAGES];
        let mut swapped = 0;
        for i in indices(mask) {
            if let Some(entry) = locked.get(i).entry() {
                entries[i] = entry;
                swapped |= bit(i);
            }
            locked.set(i, Pte::NONE);
        }
        drop(locked);
        // Each entry is still counted: the device discards its data with no lock held.
        for i in indices(swapped) {
            let area = self.area_of(entries[i]);
            // An area is only closed when none of its slots is in use.
            let _reference = area.enter().expect("a slot in use keeps its area open");
            area.free(entries[i]);
        }
    }

    /// Whether a page with this word may be staged.
    fn can_leave(&self, pte: Pte) -> bool {
        pte.state() == PteState::Present
            && (pte.pins() == 0 || !self.kept.keeps(Rule::PinnedPagesStay))
    }
}
