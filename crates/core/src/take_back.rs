//! The cached half of a fault: a page found in the swap cache, staged or being written.

use crate::area::SwapArea;
use crate::cache::Lock;
use crate::entry::SwapEntry;
use crate::mask::{bit, filter, indices};
use crate::page_table::{CHUNK_PAGES, LockedChunk, Pte, split};
use crate::rule::Rule;
use crate::space::{AddressSpace, Block, Frame, Frames};
use crate::step::{self, Step};
use crate::swap::{FaultError, Mm, Swap};
use crate::swap_in::{Access, Mapped, result};

impl<F: Frames> Swap<F> {
    /// Steps 6 to 10 for a page found in the cache: staged, or being written.
    pub(crate) fn take_back<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        access: Access,
        pte: Pte,
        area: &SwapArea,
        frame: Frame,
    ) -> Result<usize, FaultError> {
        let entry = pte.entry().expect("a swapped page");
        // Step 6.
        let stable = area.properties().stable_pages;
        let written =
            || area.cache.lookup(entry.offset()) == Some(frame) && self.cache.is_writeback(frame);
        if stable {
            step::at(Step::LookWriteback);
            // Before the page lock: threads that took it only to see this would wake each other in turn
            // until the write is done.
            if self.kept.keeps(Rule::StableWhileWritten) && written() {
                if access.wait {
                    self.waiters.wait(entry, written);
                }
                return Ok(0);
            }
        }
        match self.lock_page(area, entry, frame) {
            Lock::Locked => {}
            Lock::Gone => return Ok(0),
            Lock::Busy => {
                if access.wait {
                    self.wait_unlocked(area, entry, frame);
                }
                return Ok(0);
            }
        }
        let writeback = self.cache.is_writeback(frame) && self.kept.keeps(Rule::StableWhileWritten);
        if writeback && stable {
            self.unlock_pages(frame.block, bit(frame.index), [entry]);
            if access.wait {
                self.waiters.wait(entry, written);
            }
            return Ok(0);
        }
        let (chunk, index) = split(access.page);
        step::at(Step::Compare);
        let mut locked = mm.table.lock(chunk);
        // Step 7.
        if locked.get(index) != pte {
            drop(locked);
            self.unlock_pages(frame.block, bit(frame.index), [entry]);
            return Ok(0);
        }
        let shared = area.slot(entry).count > 1 && self.kept.keeps(Rule::CopyWhatOthersHold);
        if writeback || shared || frame.index != index {
            // The frame is still needed: by the device, or by the entry's other holders.
            step::at(Step::Map);
            let copied = mm.space.map_copy(access.page, frame);
            if copied.is_ok() {
                area.free(entry);
                step::at(Step::SetPte);
                locked.set(index, Pte::PRESENT);
            }
            drop(locked);
            self.unlock_pages(frame.block, bit(frame.index), [entry]);
            return copied.map(|()| 1).map_err(FaultError::Space);
        }
        let window = mm.around.back_mask(index, access.max_pages) & mm.table.chunk_mask(chunk);
        let others = self.lock_staged(&locked, frame.block, window & !bit(index));
        let (mapped, failed) =
            self.map_staged(mm, locked, frame.block, bit(index) | others, index, 0);
        result(mapped, failed)
    }

    /// Puts the staged pages of `block` in `mask` back into the chunk of `mm` they came from, as far as
    /// nobody else is working on them: for pages whose write failed. Of a page that others hold too, `mm`
    /// gets a copy; forks keep pages at their place, so every holder has the same chunk and index.
    /// Returns the pages that are back.
    pub fn put_back<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        chunk: usize,
        block: Block,
        mask: u64,
        skips: u64,
    ) -> u64 {
        // Of another holder's chunk only as much as this one has: its last chunk may be shorter.
        let mask = mask & mm.table.chunk_mask(chunk);
        let mut locked = mm.table.lock(chunk);
        let copied = filter(mask, |i| self.copy_shared(mm, &mut locked, block, i, skips));
        let staged = self.lock_staged(&locked, block, mask & !copied);
        let Some(first) = indices(staged).next() else {
            return copied;
        };
        // A page that cannot be mapped stays staged and dirty: nothing to do but leave it.
        let (mapped, _) = self.map_staged(mm, locked, block, staged, first, skips);
        copied | mapped
    }

    /// Gives `mm` a copy of a staged page that others hold too.
    fn copy_shared<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        locked: &mut LockedChunk<'_>,
        block: Block,
        index: usize,
        skips: u64,
    ) -> bool {
        let frame = Frame { block, index };
        let Some(entry) = locked.get(index).entry() else {
            return false;
        };
        let area = self.area_of(entry);
        if area.slot(entry).count < 2
            || area.cache.lookup(entry.offset()) != Some(frame)
            || self.lock_page(area, entry, frame) != Lock::Locked
        {
            return false;
        }
        // The count may have dropped to ours since: then a copy is right too, and the frame is dropped
        // when it is next looked at.
        let copied = mm.space.map_copy(locked.page(index), frame).is_ok();
        if copied {
            area.free(entry);
            locked.set(index, Pte::PRESENT.with_skips(skips));
        }
        self.unlock_pages(block, bit(index), [entry]);
        copied
    }

    /// The frames of `block` in `mask` that hold a cached page.
    pub fn still_staged(&self, block: Block, mask: u64) -> u64 {
        filter(mask, |index| {
            self.cache.owner(Frame { block, index }).is_some()
        })
    }

    /// Locks those pages of `mask` that are staged in `block`, whole and for this chunk alone.
    fn lock_staged(&self, locked: &LockedChunk<'_>, block: Block, mask: u64) -> u64 {
        filter(mask, |i| {
            let frame = Frame { block, index: i };
            let Some(entry) = locked.get(i).entry() else {
                return false;
            };
            let area = self.area_of(entry);
            if area.cache.lookup(entry.offset()) != Some(frame)
                || self.lock_page(area, entry, frame) != Lock::Locked
            {
                return false;
            }
            let whole = !self.cache.is_writeback(frame) && area.slot(entry).count == 1;
            if !whole {
                self.unlock_pages(block, bit(i), [entry]);
            }
            whole
        })
    }

    /// Steps 8 to 10 for staged pages whose locks are held. The reclaimer shall pass over them `skips`
    /// times.
    fn map_staged<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        mut locked: LockedChunk<'_>,
        block: Block,
        mask: u64,
        index: usize,
        skips: u64,
    ) -> Mapped {
        let mut entries = [SwapEntry::from_raw(0); CHUNK_PAGES];
        for i in indices(mask) {
            entries[i] = locked.get(i).entry().expect("staged pages are swapped");
        }
        step::at(Step::Map);
        let (mapped, failed) = self.map_batch(mm, &locked, block, mask, 0, index, true);
        for i in indices(mapped) {
            self.area_of(entries[i]).free_owned(entries[i]);
            step::at(Step::SetPte);
            locked.set(i, Pte::PRESENT.with_skips(skips));
        }
        drop(locked);
        for i in indices(mapped) {
            let area = self.area_of(entries[i]);
            step::at(Step::DeleteCached);
            self.cache
                .delete_locked(&area.cache, entries[i], Frame { block, index: i });
            area.release([entries[i]]);
        }
        if mapped != 0 {
            step::at(Step::ReleaseFrame);
            self.frames().release(block, mapped.count_ones());
        }
        for i in indices(mask & !mapped) {
            step::at(Step::UnlockPage);
            self.cache.unlock(Frame { block, index: i });
        }
        self.waiters.wake(indices(mask).map(|i| entries[i]));
        (mapped, failed)
    }

    /// Locks a cached page, if nobody has it and it is still the entry's.
    pub(crate) fn lock_page(&self, area: &SwapArea, entry: SwapEntry, frame: Frame) -> Lock {
        let found = self.cache.lock(&area.cache, entry, frame);
        if found == Lock::Gone && self.kept.keeps(Rule::WakeAfterVainLock) {
            // The lock was taken for a moment, in vain: whoever met it then may have parked.
            self.waiters.wake(self.cache.owner(frame));
        }
        found
    }

    /// Waits while somebody has `entry`'s page in `frame` locked. May return early.
    pub(crate) fn wait_unlocked(&self, area: &SwapArea, entry: SwapEntry, frame: Frame) {
        // The entry first: while it is in this frame, whoever unlocks the frame wakes the entry.
        self.waiters.wait(entry, || {
            area.cache.lookup(entry.offset()) == Some(frame) && self.cache.is_locked(frame)
        });
    }

    /// Unlocks cached pages and wakes who waits for them.
    pub(crate) fn unlock_pages(
        &self,
        block: Block,
        mask: u64,
        entries: impl IntoIterator<Item = SwapEntry>,
    ) {
        for index in indices(mask) {
            step::at(Step::UnlockPage);
            self.cache.unlock(Frame { block, index });
        }
        self.waiters.wake(entries);
    }
}
