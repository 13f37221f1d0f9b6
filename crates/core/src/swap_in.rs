//! The fault (section 3 of the protocol; the step numbers are its own).

use crate::area::SwapArea;
use crate::around::Canary;
use crate::bug;
use crate::device::{Content, DeviceError, SlotRead};
use crate::entry::SwapEntry;
use crate::mask::{bit, filter, indices, run, runs};
use crate::page_table::{CHUNK_PAGES, LockedChunk, Pte, PteState, split};
use crate::rule::Rule;
use crate::slot_word::SlotError;
use crate::space::{AddressSpace, Block, Frame, Frames, Purpose, SpaceError};
use crate::step::{self, Step};
use crate::swap::{FaultError, Mm, Swap, Way};

/// An access that faulted.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// The page.
    pub page: usize,
    /// Whether it is a write; `true` where that is not known.
    pub write: bool,
    /// How many pages may be mapped at most, this one included.
    pub max_pages: usize,
    /// Whether to wait for somebody else who is at work on the page; `false` for read-ahead.
    pub wait: bool,
}

/// The pages one fault works on: those in `mask`, with their entries.
struct Batch {
    mask: u64,
    /// Of `mask`: read as zeros, the frame was not filled.
    zeros: u64,
    entries: [SwapEntry; CHUNK_PAGES],
}

impl Batch {
    fn new(entry: SwapEntry) -> Self {
        Self {
            mask: 0,
            zeros: 0,
            entries: [entry; CHUNK_PAGES],
        }
    }

    fn entries(&self, mask: u64) -> impl Iterator<Item = SwapEntry> {
        indices(mask).map(|index| self.entries[index])
    }
}

/// What an attempt to read a page came to.
enum Attempt {
    /// This many pages were mapped; 0: the PTE changed.
    Mapped(usize),
    /// Somebody else owns the slot's cache flag.
    Busy,
}

/// Pages that were mapped, and why the page that faulted is not one of them.
pub(crate) type Mapped = (u64, Option<SpaceError>);

impl<F: Frames> Swap<F> {
    /// Resolves a fault, or finds that it has resolved itself; the access then repeats. Returns how
    /// many pages were mapped: 0 when the access shall simply repeat.
    ///
    /// # Errors
    /// The access cannot succeed now. No page is lost.
    pub fn fault<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        access: Access,
    ) -> Result<usize, FaultError> {
        // Step 1.
        step::at(Step::ReadPte);
        let pte = mm.table.load(access.page);
        match pte.state() {
            PteState::Present => {
                // Perhaps just being unmapped or mapped: look again when that is done.
                step::at(Step::AwaitPte);
                drop(mm.table.lock(split(access.page).0));
                Ok(0)
            }
            PteState::None => self.fill_zeros(mm, access),
            PteState::Swapped(entry) => {
                mm.around.note_fault(access.page);
                let Some(area) = self.area(entry) else {
                    return Ok(0);
                };
                // Steps 2 and 11: the reference lives to the end of the fault.
                let Some(_reference) = area.enter() else {
                    return Ok(0);
                };
                // Step 3.
                step::at(Step::LookUpCache);
                match area.cache.lookup(entry.offset()) {
                    Some(frame) => self.take_back(mm, access, pte, area, frame),
                    None => self.read_in(mm, access, pte, area),
                }
            }
        }
    }

    /// First touch: pages that never held anything.
    fn fill_zeros<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        access: Access,
    ) -> Result<usize, FaultError> {
        let (chunk, index) = split(access.page);
        let window =
            mm.around.fresh_mask(access.page, index, access.max_pages) & mm.table.chunk_mask(chunk);
        step::at(Step::FillZeros);
        let mut locked = mm.table.lock(chunk);
        if locked.get(index) != Pte::NONE {
            return Ok(0);
        }
        let empty = filter(window, |i| locked.get(i) == Pte::NONE);
        let (mapped, failed) = map_runs(empty, index, |first, count| {
            mm.space.map_zeros(locked.page(first), count, access.write)
        });
        step::at(Step::SetPte);
        for i in indices(mapped) {
            locked.set(i, Pte::PRESENT);
        }
        result(mapped, failed)
    }

    /// Steps 4 to 10 for a page that is not in the cache.
    fn read_in<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        access: Access,
        pte: Pte,
        area: &SwapArea,
    ) -> Result<usize, FaultError> {
        let entry = pte.entry().expect("a swapped page");
        step::at(Step::ChooseWay);
        let way = if area.properties().synchronous && area.slot(entry).count == 1 {
            self.way()
        } else {
            Way::Cached
        };
        let way = match way {
            Way::Direct if !self.kept.keeps(Rule::PinBeforeRead) => Way::Unpinned,
            way => way,
        };
        // Whoever only waits takes no frames.
        if way != Way::Unpinned {
            step::at(Step::LookPinned);
            if is_pinned(area, entry) {
                if access.wait {
                    self.waiters.wait(entry, || is_pinned(area, entry));
                }
                return Ok(0);
            }
        }
        let (chunk, index) = split(access.page);
        let window = mm.around.mask(index, access.max_pages) & mm.table.chunk_mask(chunk);
        // Step 4: allocate first, so that a failure has no pin to leak.
        step::at(Step::TakeFrame);
        let Some(block) = self.frames().take(Purpose::Read(window)) else {
            if !self.kept.keeps(Rule::AllocateBeforePin) {
                // As if the pin had come first.
                let _ = area.prepare(entry);
            }
            return Err(FaultError::NoFrames);
        };
        let attempt = self.read_and_map(mm, access, pte, area, way, window, block);
        step::at(Step::ReleaseFrame);
        self.frames().release(block, 1);
        match attempt? {
            Attempt::Mapped(pages) => Ok(pages),
            Attempt::Busy => {
                if access.wait {
                    self.waiters.wait(entry, || is_pinned(area, entry));
                }
                Ok(0)
            }
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the state of one fault, between two of its steps"
    )]
    fn read_and_map<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        access: Access,
        pte: Pte,
        area: &SwapArea,
        way: Way,
        window: u64,
        block: Block,
    ) -> Result<Attempt, FaultError> {
        let (chunk, index) = split(access.page);
        let entry = pte.entry().expect("a swapped page");
        let mut batch = Batch::new(entry);
        step::at(Step::Pin);
        {
            let mut locked = mm.table.lock(chunk);
            if locked.get(index) != pte {
                return Ok(Attempt::Mapped(0));
            }
            // Steps 4 and 5: pin the page, then whatever neighbours can be pinned.
            if let Err(error) = self.claim(area, entry, way, Frame { block, index }) {
                drop(locked);
                if error != SlotError::Busy {
                    // A locked PTE holds an entry whose slot is free: never junk, never a loop.
                    bug::report("swapcache_prepare", entry, error);
                    return Err(FaultError::Read {
                        entry,
                        error: DeviceError::Corrupt,
                    });
                }
                return Ok(Attempt::Busy);
            }
            batch.mask = bit(index);
            self.claim_neighbours(mm, &mut locked, area, way, window, block, index, &mut batch);
        }
        let read = self.read(area, block, index, &mut batch, way);
        if let Err(error) = read {
            // Step 7: nobody needs a page that was discarded meanwhile.
            step::at(Step::LookWanted);
            let wanted = mm.table.lock(chunk).get(index) == pte;
            if self.kept.keeps(Rule::ReleaseWhenGivingUp) {
                self.give_up(area, way, block, &batch, batch.mask);
            }
            return if wanted {
                Err(FaultError::Read { entry, error })
            } else {
                Ok(Attempt::Mapped(0))
            };
        }
        let way = if self.kept.keeps(Rule::ReleaseAfterPte) {
            way
        } else {
            // Nothing is pinned any more when the PTE is looked at.
            self.give_up(area, way, block, &batch, batch.mask);
            Way::Unpinned
        };
        // Step 7.
        step::at(Step::Map);
        let mut locked = mm.table.lock(chunk);
        let same = filter(batch.mask, |i| {
            locked.get(i).entry() == Some(batch.entries[i]) || !self.kept.keeps(Rule::RecheckPte)
        });
        let (mapped, failed) =
            self.map_batch(mm, &locked, block, same, batch.zeros, index, access.write);
        // Step 8.
        for i in indices(mapped) {
            match way {
                Way::Unpinned => area.free(batch.entries[i]),
                Way::Direct | Way::Cached => area.free_owned(batch.entries[i]),
            }
            step::at(Step::SetPte);
            locked.set(i, Pte::PRESENT);
        }
        // Step 9, then step 10, in this order: with (0,1) the slot is not reused before the PTE is done.
        drop(locked);
        let release = if self.kept.keeps(Rule::ReleaseWhenGivingUp) {
            batch.mask
        } else {
            mapped
        };
        self.give_up(area, way, block, &batch, release);
        result(mapped, failed).map(Attempt::Mapped)
    }

    /// Takes the right to read `entry`'s slot into `frame`.
    fn claim(
        &self,
        area: &SwapArea,
        entry: SwapEntry,
        way: Way,
        frame: Frame,
    ) -> Result<(), SlotError> {
        match way {
            Way::Unpinned => Ok(()),
            Way::Direct => area.prepare(entry),
            Way::Cached => {
                area.prepare(entry)?;
                step::at(Step::InsertCache);
                self.cache.insert_locked(&area.cache, entry, frame, false);
                Ok(())
            }
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the state of one fault, between two of its steps"
    )]
    fn claim_neighbours<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        locked: &mut LockedChunk<'_>,
        area: &SwapArea,
        way: Way,
        window: u64,
        block: Block,
        index: usize,
        batch: &mut Batch,
    ) {
        if locked.state.canary.index() == Some(index) {
            mm.around.canary_faulted(locked.state.canary);
            locked.state.canary = Canary::NONE;
        }
        let mut others = window & !bit(index);
        let pair = bit(index ^ 1) & mm.table.chunk_mask(split(locked.page(index)).0);
        let canary = mm.around.choose_canary(window, pair, index);
        if locked.state.canary == Canary::NONE
            && let Some(canary) = canary
            && let Some(left_out) = canary.index()
            && locked.get(left_out).entry().is_some()
        {
            locked.state.canary = canary;
            others &= !bit(left_out);
        }
        for i in indices(others) {
            let Some(entry) = locked.get(i).entry() else {
                continue;
            };
            if entry.area() != batch.entries[index].area() {
                continue;
            }
            let slot = area.slot(entry);
            let suits = !slot.has_cache && (way == Way::Cached || slot.count == 1);
            if suits
                && self
                    .claim(area, entry, way, Frame { block, index: i })
                    .is_ok()
            {
                batch.mask |= bit(i);
                batch.entries[i] = entry;
            }
        }
    }

    /// Reads the batch. A neighbour that cannot be read drops out; for the page itself it is an error.
    fn read(
        &self,
        area: &SwapArea,
        block: Block,
        index: usize,
        batch: &mut Batch,
        way: Way,
    ) -> Result<(), DeviceError> {
        let mut failed = 0;
        let mut together = (area.device().batches() && batch.mask.count_ones() > 1)
            .then(|| self.read_together(area, block, batch));
        for i in indices(batch.mask) {
            let slot = batch.entries[i].offset();
            step::at(Step::ReadDevice);
            let read = together.as_mut().and_then(|results| results[i].take());
            let content = read.unwrap_or_else(|| {
                self.frames().fill(Frame { block, index: i }, |page| {
                    area.device().read(slot, page)
                })
            });
            match content {
                Ok(Content::Bytes) => {}
                Ok(Content::Zeros) => batch.zeros |= bit(i),
                Err(_) if !self.kept.keeps(Rule::FailedReadMapsNothing) => {}
                Err(error) if i == index => return Err(error),
                Err(_) => failed |= bit(i),
            }
        }
        if failed != 0 {
            self.give_up(area, way, block, batch, failed);
            batch.mask &= !failed;
        }
        if !self.kept.keeps(Rule::EachSlotTested) {
            let first = batch.mask & batch.mask.wrapping_neg();
            batch.zeros = if batch.zeros & first == 0 {
                0
            } else {
                batch.mask
            };
        }
        Ok(())
    }

    /// Has the device read the whole batch at once.
    fn read_together(
        &self,
        area: &SwapArea,
        block: Block,
        batch: &Batch,
    ) -> [Option<Result<Content, DeviceError>>; CHUNK_PAGES] {
        self.frames().fill_all(block, batch.mask, |pages| {
            let mut index = 0;
            let mut reads = pages.map(|page| {
                let slot = batch.entries[index].offset();
                index += 1;
                page.map(|page| SlotRead::new(slot, page))
            });
            area.device().read_batch(&mut reads);
            reads.map(|read| read.map(|read| read.result))
        })
    }

    /// Gives back what [`Swap::claim`] took for the pages in `mask`: the one place where the pins of
    /// a fault are released, on every way out.
    fn give_up(&self, area: &SwapArea, way: Way, block: Block, batch: &Batch, mask: u64) {
        match way {
            Way::Unpinned => return,
            Way::Direct => {}
            Way::Cached => {
                for index in indices(mask) {
                    let entry = batch.entries[index];
                    step::at(Step::DeleteCached);
                    self.cache
                        .delete_locked(&area.cache, entry, Frame { block, index });
                }
            }
        }
        area.release(batch.entries(mask));
        if !self.kept.keeps(Rule::ReleaseOnce) {
            area.release(batch.entries(mask));
        }
        self.waiters.wake(batch.entries(mask));
    }

    /// Maps the pages in `mask` from the frames of the same index; `index` is the page that faulted.
    #[expect(
        clippy::too_many_arguments,
        reason = "the state of one fault, between two of its steps"
    )]
    pub(crate) fn map_batch<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        locked: &LockedChunk<'_>,
        block: Block,
        mask: u64,
        zeros: u64,
        index: usize,
        write: bool,
    ) -> Mapped {
        let (with_bytes, failed) = map_runs(mask & !zeros, index, |first, count| {
            mm.space.map(
                locked.page(first),
                Frame {
                    block,
                    index: first,
                },
                count,
            )
        });
        let (without, failed_zeros) = map_runs(mask & zeros, index, |first, count| {
            mm.space.map_zeros(locked.page(first), count, write)
        });
        (with_bytes | without, failed.or(failed_zeros))
    }
}

/// Whether somebody has the entry of a PTE pinned, and will soon release it and wake who waits. A
/// staged page keeps its cache flag for as long as it likes, but the next try finds it in the cache.
fn is_pinned(area: &SwapArea, entry: SwapEntry) -> bool {
    let slot = area.slot(entry);
    slot.has_cache && slot.count > 0 && area.cache.lookup(entry.offset()).is_none()
}

/// Maps `mask` run by run; stops at the first run that fails. A neighbour that cannot be mapped does
/// not keep out page `index`, the one that faulted.
fn map_runs(
    mask: u64,
    index: usize,
    mut map: impl FnMut(usize, usize) -> Result<(), (usize, SpaceError)>,
) -> Mapped {
    let mut mapped = 0;
    for (first, count) in runs(mask) {
        let Err((done, error)) = map(first, count) else {
            mapped |= run(first, count);
            continue;
        };
        mapped |= run(first, done);
        if first + done == index {
            return (mapped, Some(error));
        }
        if mask & !mapped & bit(index) == 0 {
            return (mapped, None);
        }
        return match map(index, 1) {
            Ok(()) => (mapped | bit(index), None),
            Err((_, error)) => (mapped, Some(error)),
        };
    }
    (mapped, None)
}

/// What a fault that mapped these pages comes to: an error only where none was mapped, so that what was
/// mapped is counted; the access then repeats and meets the error again.
pub(crate) fn result(mapped: u64, failed: Option<SpaceError>) -> Result<usize, FaultError> {
    match failed {
        Some(error) if mapped == 0 => Err(FaultError::Space(error)),
        _ => Ok(mapped.count_ones() as usize),
    }
}
