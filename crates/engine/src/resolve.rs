//! Resolving one fault: its pages are charged, the protocol brings them in, and what stood in the way is tried again.

use std::sync::atomic::Ordering;
use std::time::Duration;

use userswap_core::device::PAGE_SIZE;
use userswap_core::page_table::{CHUNK_PAGES, PteState};
use userswap_core::space::SpaceError;
use userswap_core::{Access, FaultError, Source, mask};
use userswap_sys::timing::now_ns;

use crate::cyclic::Arrival;
use crate::moving::Moving;
use crate::shared::{RegionMemory, Shared};
use crate::spec::Policy;

/// How often a fault makes room when the system has no memory for its page.
const NO_MEMORY_TRIES: u32 = 64;

/// Nanoseconds a page from which on helpers pay: a window of 64 then takes
/// about as long as waking one.
const HELP_WORTH_NS: u64 = 500;

/// What resolving a fault came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolved {
    /// This fault mapped the page.
    Mapped,
    /// Somebody else did, or it has left again: the access shall look.
    ByOthers,
}

impl RegionMemory {
    /// Makes an access to `page` succeed on its next try.
    pub(crate) fn resolve(&self, page: usize, write: bool) -> Result<Resolved, FaultError> {
        let chunk = page / CHUNK_PAGES;
        if write && self.charge_and_unguard(chunk) && self.is_present(page) {
            // The end of the protection has woken who waits to write. It may have been put off.
            return Ok(if self.mm.space.is_guarded(chunk) {
                Resolved::ByOthers
            } else {
                Resolved::Mapped
            });
        }
        self.shared.resolve(self, page, write)
    }

    /// Brings one page in and touches nothing else, whatever the limit says: for a fault that a change of the
    /// address space waits for.
    pub(crate) fn resolve_alone(&self, page: usize, write: bool) -> Result<Resolved, FaultError> {
        let shared = &*self.shared;
        let access = Access {
            page,
            write,
            max_pages: 1,
            wait: true,
        };
        if write {
            self.mm.space.unguard_all(&(page..page + 1));
        }
        let mut no_memory = 0;
        loop {
            shared.budget.force(1);
            let fault = shared.swap.fault(&self.mm, access);
            shared.budget.uncharge(1 - fault.unwrap_or(0) as u64);
            match fault {
                Ok(0) if !self.is_present(page) => {}
                Ok(0) => return Ok(Resolved::ByOthers),
                Ok(_) => return Ok(Resolved::Mapped),
                Err(FaultError::NoFrames) => shared.swap.frames().wait_for_scratch(),
                Err(FaultError::Space(SpaceError::Again)) => std::thread::yield_now(),
                Err(FaultError::Space(SpaceError::NoMemory)) if no_memory < NO_MEMORY_TRIES => {
                    no_memory += 1;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Shared {
    fn resolve(
        &self,
        region: &RegionMemory,
        page: usize,
        write: bool,
    ) -> Result<Resolved, FaultError> {
        debug_assert!(!region.mm.space.is_window() || Moving::is_mover());
        let start = now_ns();
        let mm = &region.mm;
        let (mut waits, mut stalled_ns, mut no_memory) = (0, 0, 0);
        // The first time somebody else is at work on the page there may be something better to do than
        // to wait for him.
        let mut wait = false;
        let source = self.swap.source(mm, page);
        let swapped = source.is_swapped();
        loop {
            // Who waits for somebody else's page must not take a window out of the limit meanwhile.
            let max_pages = if wait { 1 } else { self.window(region, page) };
            stalled_ns += self.charge(max_pages as u64);
            let fault = self.swap.fault(
                mm,
                Access {
                    page,
                    write,
                    max_pages,
                    wait,
                },
            );
            let mapped = fault.unwrap_or(0);
            self.budget.uncharge((max_pages - mapped) as u64);
            match fault {
                Ok(0) if mm.table.load(page).state() != PteState::Present => {
                    // A walk that has caught up with its helpers: it goes on ahead of them.
                    region.stream.note(page / CHUNK_PAGES);
                    wait = wait || !region.read_ahead();
                    waits += 1;
                }
                Ok(mapped) => {
                    let ns = now_ns() - start;
                    self.counters.fault(mapped, waits, ns, stalled_ns);
                    self.note_arrival(region, page, source, mapped);
                    if swapped && mapped >= CHUNK_PAGES / 2 {
                        let slow = (ns - stalled_ns) / mapped as u64 > HELP_WORTH_NS;
                        if region.stream.note(page / CHUNK_PAGES) && slow {
                            self.help_wanted.post(region.number);
                        }
                    }
                    // Where neighbours were mapped and the page was not, nobody has woken who waits for it.
                    return Ok(if mapped == 0 || !region.is_present(page) {
                        Resolved::ByOthers
                    } else {
                        Resolved::Mapped
                    });
                }
                Err(FaultError::NoFrames) => {
                    waits += 1;
                    self.swap.frames().wait_for_scratch();
                }
                Err(FaultError::Space(SpaceError::Again)) => std::thread::yield_now(),
                Err(FaultError::Space(SpaceError::NoMemory)) if no_memory < NO_MEMORY_TRIES => {
                    no_memory += 1;
                    self.reclaim_step();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Tries to bring `page` and its neighbours in before they are needed.
    pub(crate) fn bring_ahead(&self, region: &RegionMemory, page: usize) {
        let mm = &region.mm;
        debug_assert!(!mm.space.is_window() || Moving::is_mover());
        let source = self.swap.source(mm, page);
        let max_pages = self.window(region, page);
        self.charge(max_pages as u64);
        let access = Access {
            page,
            write: false,
            max_pages,
            wait: false,
        };
        let mapped = self.swap.fault(mm, access).unwrap_or(0);
        self.budget.uncharge((max_pages - mapped) as u64);
        self.counters.ahead(mapped);
        self.note_arrival(region, page, source, mapped);
    }

    /// A fault on `page`, found in `source`, has mapped so many pages, neighbours included.
    fn note_arrival(&self, region: &RegionMemory, page: usize, source: Source, mapped: usize) {
        if mapped == 0 || self.policy != Policy::Recency || !source.is_swapped() {
            return;
        }
        let (chunk, index) = (page / CHUNK_PAGES, page % CHUNK_PAGES);
        // Windows are aligned. Where some of one were there before, they are taken for arrivals, or others are not.
        let window = mapped.next_power_of_two().min(CHUNK_PAGES);
        let pages = mask::run(index & !(window - 1), window);
        let left = self.counters.pages_out.load(Ordering::Relaxed);
        let distance = region.departures.take(chunk, pages, left);
        if source == Source::Device {
            let region = region.number;
            let arrival = Arrival {
                region,
                chunk,
                pages,
            };
            self.cyclic.note(arrival, distance, self.room_pages());
        }
    }

    /// How many pages a fault on `page` may map: fewer where so little memory is left for pages that a full window would
    /// be a large part of it.
    fn window(&self, region: &RegionMemory, page: usize) -> usize {
        let (mm, room) = (&region.mm, self.room_pages());
        mm.note_room(room);
        self.swap.fault_around(mm, page).min((room / 32).max(1))
    }

    /// How many pages memory holds, staged ones included: what the limit leaves beside the store and the rest, or what is
    /// there now where that is more.
    pub(crate) fn room_pages(&self) -> usize {
        let Some(limit) = self.budget.limit() else {
            return usize::MAX;
        };
        let staged = self.swap.frames().staged_bytes();
        let left = limit.saturating_sub(self.other_bytes());
        (left.max(self.budget.resident_bytes()) + staged) as usize / PAGE_SIZE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Engine;
    use crate::testing::{build_or_skip, fill_with_noise};

    /// A fault's neighbours are measured by what memory is left for pages, not by a limit that the store fills.
    #[test]
    fn windows_are_narrow_where_the_store_leaves_little_room() {
        const LIMIT: usize = 64 << 20;
        let builder = Engine::builder().limit(LIMIT as u64);
        let name = "windows_are_narrow_where_the_store_leaves_little_room";
        let Some(engine) = build_or_skip(builder, name) else {
            return;
        };
        let shared = engine.shared();
        let mut region = engine.region(120 << 20).expect("a region");
        let memory = shared.region_at(region.as_ptr() as usize).expect("listed");
        for (seed, page) in region.chunks_exact_mut(PAGE_SIZE).enumerate() {
            fill_with_noise(&mut page[PAGE_SIZE / 2..], seed as u64);
        }
        let (room, store) = (shared.room_pages(), shared.store_bytes() as usize);
        assert!(store > LIMIT / 2, "{store}");
        assert!(room <= (LIMIT - store) / PAGE_SIZE + 64, "{room}, {store}");
        assert_eq!(shared.swap.fault_around(&memory.mm, 0), 64);
        let window = shared.window(&memory, 0);
        assert!(
            window < 64 && window.abs_diff(room / 32) <= 2,
            "{window} of {room}"
        );
    }
}
