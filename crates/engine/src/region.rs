//! Regions: memory that may be larger than RAM.

use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use userswap_core::device::PAGE_SIZE;
use userswap_core::mask;
use userswap_core::page_table::CHUNK_PAGES;
use userswap_core::{PinResult, StageError};
use userswap_sys::signals::{Blocked, stderr_line};

use crate::Error;
use crate::crew::share_out;
use crate::engine::{Owner, check_size};
use crate::reclaim::chunk_mask;
use crate::registry::{self, Registration};
use crate::shared::{RegionMemory, Shared};
use crate::space::RealSpace;

/// How often a page-out looks again for a slot in a full area.
const AREA_FULL_TRIES: u32 = 16;

/// How often a page-out writes a staged block, or waits for one, to get a block of its own.
const NO_FRAMES_TRIES: usize = 256;

/// What a program knows about its next accesses to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// The range is not needed soon: write it out now.
    PageOut,
    /// The range is needed soon: bring it in now.
    WillNeed,
    /// Accesses will walk through the region: bring in the widest window.
    Sequential,
    /// Accesses will jump about: bring in single pages.
    Random,
}

/// Memory that the engine swaps: derefs to `[u8]`, and may be used from many threads through
/// [`Region::as_mut_ptr`].
///
/// The region is not inherited by a forked process: there its addresses are unmapped.
pub struct Region {
    memory: Arc<RegionMemory>,
    /// Left before the memory goes.
    registration: Option<Registration>,
    owner: Arc<Owner>,
}

impl Region {
    pub(crate) fn new(owner: &Arc<Owner>, len: usize) -> Result<Self, Error> {
        let region = Self::unlisted(owner, len)?;
        region.list();
        Ok(region)
    }

    /// A region that the reclaimer does not know yet.
    fn unlisted(owner: &Arc<Owner>, len: usize) -> Result<Self, Error> {
        check_size("a region", len as u64)?;
        let shared = &owner.shared;
        let frames = Arc::clone(shared.swap.frames());
        let space = RealSpace::new(len, Arc::clone(&shared.uffd), frames)?;
        let memory = Arc::new(RegionMemory::new(space, shared));
        let base = memory.mm.space.base();
        // From here on: a handler that touched a region would wait for the row being written.
        let blocked = Blocked::new();
        // SAFETY: `memory` is kept until after the registration is dropped, and the region cannot be
        // accessed any more when it is being dropped.
        let registration = unsafe { registry::register(Arc::as_ptr(&memory), base, len) }
            .ok_or(Error::TooManyRegions(registry::ROWS))?;
        let tables = memory.mm.table.memory_bytes() + memory.departures.memory_bytes();
        shared.budget.add_tables(tables as u64);
        drop(blocked);
        Ok(Self {
            memory,
            registration: Some(registration),
            owner: Arc::clone(owner),
        })
    }

    /// Makes the region known to the reclaimer.
    fn list(&self) {
        let _blocked = Blocked::new();
        self.shared().list(Arc::clone(&self.memory));
    }

    /// Bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a region is never empty")]
    pub fn len(&self) -> usize {
        self.memory.mm.space.len()
    }

    /// The first byte.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.memory.mm.space.base() as *const u8
    }

    /// The first byte, for use from many threads: who writes through it sees to it that no two threads
    /// write the same bytes at once, or uses atomics, and holds no `&[u8]` of them meanwhile.
    #[must_use]
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.memory.mm.space.base() as *mut u8
    }

    /// Takes advice about a range of bytes, whole pages. Returns how many pages it moved: written out
    /// or brought in.
    ///
    /// Pages that cannot leave (pinned, in use by the system, no room in the store) stay; that is no
    /// error. `Sequential` and `Random` hold for the whole region.
    ///
    /// # Errors
    /// A range outside the region; a page that cannot be brought in.
    pub fn advise(&self, range: Range<usize>, advice: Advice) -> Result<usize, Error> {
        let pages = self.pages(&range)?;
        let _blocked = Blocked::new();
        match advice {
            Advice::PageOut => Ok(self.page_out(&pages)),
            Advice::WillNeed => self.bring_in(&pages),
            Advice::Sequential => {
                self.memory.mm.expect_sequential();
                Ok(0)
            }
            Advice::Random => {
                self.memory.mm.expect_random();
                Ok(0)
            }
        }
    }

    /// Brings a range of bytes, whole pages, into memory and keeps it there until the pin is dropped: it
    /// can be handed to system calls in every fault mode.
    ///
    /// # Errors
    /// A range outside the region; more than half of the limit; a page that cannot be brought in.
    pub fn pin(&self, range: Range<usize>) -> Result<Pin<'_>, Error> {
        let pages = self.pages(&range)?;
        if let Some(limit) = self.shared().budget.limit()
            && range.len() as u64 > limit / 2
        {
            return Err(Error::PinLimit {
                bytes: range.len() as u64,
                limit,
            });
        }
        let _blocked = Blocked::new();
        // Grows page by page, so that an error half-way drops what is pinned.
        let mut pin = Pin {
            region: self,
            pages: pages.start..pages.start,
        };
        for page in pages {
            loop {
                match self.shared().swap.pin(&self.memory.mm, page) {
                    PinResult::Pinned => break,
                    PinResult::NotPresent => self.resolve(page)?,
                    PinResult::TooMany => {
                        return Err(Error::TooManyPins {
                            offset: page * PAGE_SIZE,
                        });
                    }
                }
            }
            pin.pages.end = page + 1;
        }
        Ok(pin)
    }

    /// A copy of the region, 256 KiB at a time as they are when the call comes to them. Pages are shared while they
    /// are swapped out, and become each side's own when it touches them.
    ///
    /// # Errors
    /// The copy could not be made; this region is unharmed.
    pub fn fork(&self) -> Result<Self, Error> {
        // Unlisted until it is whole: nobody takes its pages before they are counted.
        let child = Self::unlisted(&self.owner, self.len())?;
        let _blocked = Blocked::new();
        let shared = self.shared();
        for chunk in 0..self.memory.mm.table.chunks() {
            let (staged, copied) = shared
                .swap
                .fork_chunk(&self.memory.mm, &child.memory.mm, chunk);
            if let Some(staged) = staged {
                shared.budget.uncharge(u64::from(staged.mask.count_ones()));
                shared.queue(self.memory.number, chunk, staged);
                // Do not let a large region fill staging.
                shared.trim_inactive();
            }
            // Counted also after an error: the child drops them then.
            let present = shared.swap.present(&child.memory.mm, chunk);
            shared.charge(u64::from(present.count_ones()));
            copied.map_err(|error| Error::Fork {
                offset: chunk * CHUNK_PAGES * PAGE_SIZE,
                error,
            })?;
        }
        child.list();
        Ok(child)
    }

    /// Drops the contents of a range of bytes, whole pages: it reads as zeros afterwards, and takes
    /// neither memory nor slots. Returns how many pages were dropped.
    ///
    /// # Errors
    /// A range outside the region; pages that are pinned or locked in memory, which are kept.
    pub fn discard(&mut self, range: Range<usize>) -> Result<usize, Error> {
        // SAFETY: the exclusive borrow of the region is one of its bytes.
        unsafe { self.discard_shared(range) }
    }

    /// [`Region::discard`] for a region that several threads use through [`Region::as_mut_ptr`].
    ///
    /// # Safety
    /// Nobody holds a reference to bytes of the range: they change.
    ///
    /// # Errors
    /// As for [`Region::discard`].
    pub unsafe fn discard_shared(&self, range: Range<usize>) -> Result<usize, Error> {
        let pages = self.pages(&range)?;
        let _blocked = Blocked::new();
        let (dropped, kept) = self.memory.discard(&pages);
        self.shared().compact_store();
        if kept > 0 {
            return Err(Error::Pinned { pages: kept });
        }
        Ok(dropped)
    }

    /// Whether the page at byte `offset` is in memory now. It may have left when this returns.
    ///
    /// # Panics
    /// If `offset` is outside the region.
    #[must_use]
    pub fn is_resident(&self, offset: usize) -> bool {
        self.memory.is_present(offset / PAGE_SIZE)
    }

    fn shared(&self) -> &Shared {
        &self.owner.shared
    }

    fn pages(&self, range: &Range<usize>) -> Result<Range<usize>, Error> {
        let Range { start, end } = *range;
        let whole = start.is_multiple_of(PAGE_SIZE) && end.is_multiple_of(PAGE_SIZE);
        if !whole || start > end || end > self.len() {
            return Err(Error::Range {
                start,
                end,
                len: self.len(),
            });
        }
        Ok(start / PAGE_SIZE..end / PAGE_SIZE)
    }

    fn resolve(&self, page: usize) -> Result<(), Error> {
        match self.memory.resolve(page, true) {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::Fault {
                offset: page * PAGE_SIZE,
                error,
            }),
        }
    }

    fn page_out(&self, pages: &Range<usize>) -> usize {
        let chunks = chunks(pages);
        let (next, written) = (AtomicUsize::new(chunks.start), AtomicUsize::new(0));
        share_out(chunks.len(), || {
            loop {
                // Relaxed: only that each chunk is taken once; the threads are joined at the end.
                let chunk = next.fetch_add(1, Ordering::Relaxed);
                if chunk >= chunks.end {
                    return;
                }
                let done = self.page_out_chunk(chunk, chunk_mask(pages, chunk));
                written.fetch_add(done, Ordering::Relaxed);
            }
        });
        written.into_inner()
    }

    fn page_out_chunk(&self, chunk: usize, mask: u64) -> usize {
        let shared = self.shared();
        let (mut tries, mut no_frames) = (0, 0);
        loop {
            match shared.stage(&self.memory, chunk, mask) {
                Ok(_) | Err(StageError::NothingToDo) => break,
                // Every block may hold pages that cannot be written: then these stay in memory.
                Err(StageError::NoFrames) if no_frames < NO_FRAMES_TRIES => {
                    no_frames += 1;
                    shared.wait_for_frames();
                }
                Err(StageError::NoFrames) => break,
                // Slots that are being freed now, or taken in vain by others, are used for a moment longer;
                // where it was full once for good, that is not worth the time.
                Err(StageError::AreaFull)
                    if tries < AREA_FULL_TRIES
                        && !shared.warned_area_full.load(Ordering::Relaxed) =>
                {
                    tries += 1;
                    std::thread::sleep(Duration::from_micros(100));
                }
                Err(StageError::AreaFull) => {
                    // After swapoff there is no area: that is no news.
                    let open = shared.swap.areas().any(|area| shared.swap.is_open(area));
                    if open && !shared.warned_area_full.swap(true, Ordering::Relaxed) {
                        stderr_line(format_args!(
                            "userswap: the swap area is full; pages stay in memory"
                        ));
                    }
                    break;
                }
            }
        }
        // What the reclaimer staged earlier leaves with it.
        shared.write_out_chunk(self.memory.number, chunk)
    }

    fn bring_in(&self, pages: &Range<usize>) -> Result<usize, Error> {
        let mut brought = 0;
        for chunk in chunks(pages) {
            // One fault brings in several: count what is missing before the first.
            let missing = mask::indices(
                chunk_mask(pages, chunk) & !self.shared().swap.present(&self.memory.mm, chunk),
            );
            for index in missing {
                let page = chunk * CHUNK_PAGES + index;
                if !self.memory.is_present(page) {
                    self.resolve(page)?;
                }
                brought += 1;
            }
        }
        Ok(brought)
    }
}

impl RegionMemory {
    /// Drops pages; returns how many, and how many stay because they are pinned.
    fn discard(&self, pages: &Range<usize>) -> (usize, usize) {
        let (mut dropped, mut kept) = (0, 0);
        for chunk in chunks(pages) {
            let mask = chunk_mask(pages, chunk);
            let done = self.shared.swap.discard(&self.mm, chunk, mask);
            self.shared
                .budget
                .uncharge(u64::from(done.present.count_ones()));
            dropped += (mask & !done.pinned).count_ones() as usize;
            kept += done.pinned.count_ones() as usize;
        }
        (dropped, kept)
    }
}

impl RegionMemory {
    /// Drops all pages of a region that is going. Those that the system has locked in memory go with the mapping.
    fn discard_for_good(&self) {
        for chunk in 0..self.mm.table.chunks() {
            let done = self.shared.swap.discard_for_good(&self.mm, chunk);
            debug_assert_eq!(done.pinned, 0, "a pin borrows its region");
            self.shared
                .budget
                .uncharge(u64::from(done.present.count_ones()));
        }
    }
}

impl Shared {
    /// Waits for other threads to give frames back; gives some back itself if it can.
    fn wait_for_frames(&self) {
        if !self.write_out_oldest() {
            self.swap.frames().wait_for_staging();
        }
    }
}

/// The chunks that hold `pages`.
fn chunks(pages: &Range<usize>) -> Range<usize> {
    if pages.is_empty() {
        return 0..0;
    }
    pages.start / CHUNK_PAGES..pages.end.div_ceil(CHUNK_PAGES)
}

impl Drop for Region {
    fn drop(&mut self) {
        let _blocked = Blocked::new();
        drop(self.registration.take());
        let shared = &self.owner.shared;
        {
            // Waits for reclaimers that are at work on a region.
            let mut regions = shared
                .regions
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            regions.retain(|region| region.number != self.memory.number);
            shared
                .budget
                .drop_tables(self.memory.mm.table.memory_bytes() as u64);
        }
        // Waits for helpers that are bringing pages in.
        self.memory.gate.close();
        self.memory.discard_for_good();
        // What is staged from here is of no use to anybody: give its frames back now.
        shared.write_out_region(self.memory.number);
        shared.compact_store();
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is as long as the region and lives as long; a page that is not there comes
        // back, with the bytes it had, before an access to it completes.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len()) }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the exclusive borrow of the region is one of its bytes.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), self.len()) }
    }
}

/// Pages that are in memory and stay there until this is dropped.
#[must_use = "pages are pinned only while this lives"]
pub struct Pin<'a> {
    region: &'a Region,
    pages: Range<usize>,
}

impl Pin<'_> {
    /// The pinned bytes of the region.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.pages.start * PAGE_SIZE..self.pages.end * PAGE_SIZE
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let _blocked = Blocked::new();
        for page in self.pages.clone() {
            self.region
                .shared()
                .swap
                .unpin(&self.region.memory.mm, page);
        }
    }
}
