//! swapoff: everything an area holds comes back into memory, or the area stays.

use crate::area::SwapArea;
use crate::page_table::CHUNK_PAGES;
use crate::space::{AddressSpace, Frames};
use crate::step::{self, Step};
use crate::swap::{FaultError, Mm, Swap};
use crate::swap_in::Access;
use crate::sync::yield_now;

impl<F: Frames> Swap<F> {
    /// Ends allocation from `area`: after this, no slot of it is handed out. Slots handed out before
    /// may still be on their way into a PTE.
    pub fn begin_swapoff(&self, area: &SwapArea) {
        step::at(Step::StopAllocation);
        area.clusters().stop();
    }

    /// Takes back [`Swap::begin_swapoff`].
    pub fn abort_swapoff(&self, area: &SwapArea) {
        area.clusters().resume();
    }

    /// Whether `area` hands out slots.
    #[must_use]
    pub fn is_open(&self, area: &SwapArea) -> bool {
        !area.clusters().is_stopped()
    }

    /// Brings back every page of `mm` that `area` holds. Returns how many were brought.
    ///
    /// # Errors
    /// How many were brought, and which page could not be: it is still where it was.
    pub fn unuse<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        area: &SwapArea,
    ) -> Result<usize, (usize, usize, FaultError)> {
        let mut brought = 0;
        for chunk in 0..mm.table.chunks() {
            match self.unuse_chunk(mm, chunk, area) {
                Ok(pages) => brought += pages,
                Err((pages, page, error)) => return Err((brought + pages, page, error)),
            }
        }
        Ok(brought)
    }

    /// [`Swap::unuse`] for one chunk.
    ///
    /// # Errors
    /// As there.
    pub fn unuse_chunk<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        chunk: usize,
        area: &SwapArea,
    ) -> Result<usize, (usize, usize, FaultError)> {
        let mut brought = 0;
        for page in pages_of(mm, chunk) {
            while self.holds(mm, page, area) {
                match self.fault(
                    mm,
                    Access {
                        page,
                        write: true,
                        max_pages: CHUNK_PAGES,
                        wait: true,
                    },
                ) {
                    Ok(pages) => brought += pages,
                    Err(FaultError::NoFrames) => yield_now(),
                    Err(error) => return Err((brought, page, error)),
                }
            }
        }
        Ok(brought)
    }

    /// How many pages of `chunk` are in `area` now, staged ones included.
    pub fn count_in<S: AddressSpace<Frames = F>>(
        &self,
        mm: &Mm<S>,
        chunk: usize,
        area: &SwapArea,
    ) -> usize {
        pages_of(mm, chunk)
            .filter(|&page| self.holds(mm, page, area))
            .count()
    }

    fn holds<S: AddressSpace<Frames = F>>(&self, mm: &Mm<S>, page: usize, area: &SwapArea) -> bool {
        step::at(Step::ScanPte);
        let entry = mm.table.load(page).entry();
        entry.is_some_and(|entry| std::ptr::eq(self.area_of(entry), area))
    }

    /// Closes `area`, none of whose slots is in use: returns when nobody uses its device any more, which
    /// then gives up what it holds.
    ///
    /// # Panics
    /// If slots are in use.
    pub fn end_swapoff(&self, area: &SwapArea) {
        assert_eq!(area.used(), 0, "swapoff of an area in use");
        area.gate().close();
        area.device().retire();
    }
}

/// The pages of a chunk.
fn pages_of<S: AddressSpace>(mm: &Mm<S>, chunk: usize) -> std::ops::Range<usize> {
    let first = chunk * CHUNK_PAGES;
    first..(first + CHUNK_PAGES).min(mm.table.pages())
}
