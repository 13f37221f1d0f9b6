//! What an engine's regions, threads and fault handler share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard};

use userswap_core::device::PAGE_SIZE;
use userswap_core::page_table::{CHUNK_PAGES, PteState};
use userswap_core::space::SpaceError;
use userswap_core::{Access, FaultError, Gate, Mm, Swap};
use userswap_sys::timing::now_ns;
use userswap_sys::uffd::Uffd;

use crate::budget::{Budget, Level};
use crate::crew::ReadAhead;
use crate::frames::FramePool;
use crate::reclaim::{Hand, Inactive};
use crate::space::RealSpace;
use crate::spec::{FaultAround, FaultMode};
use crate::stats::{Counters, Stats};
use crate::stream::Stream;

/// A region as the engine sees it.
pub(crate) struct RegionMemory {
    /// Tells it from every other region, past ones included.
    pub(crate) number: u64,
    pub(crate) mm: Mm<RealSpace>,
    /// Entered by helpers that bring pages in; closed before the region's pages are dropped.
    pub(crate) gate: Gate,
    pub(crate) stream: Stream,
    pub(crate) shared: Arc<Shared>,
}

/// How often a fault makes room when the system has no memory for its page.
const NO_MEMORY_TRIES: u32 = 64;

/// The state of an engine. Everything the fault path needs is here and allocated.
///
/// Lock order, before any lock of the protocol: `regions` (read by reclaim, written only to add and
/// remove a region), then `hand` or `inactive`, never both. None is held while a region's memory is
/// touched, because it never is.
pub(crate) struct Shared {
    pub(crate) swap: Swap<Arc<FramePool>>,
    pub(crate) budget: Budget,
    pub(crate) counters: Counters,
    pub(crate) mode: FaultMode,
    pub(crate) fault_around: FaultAround,
    /// The userfaultfd of regions.
    pub(crate) uffd: Arc<Uffd>,
    pub(crate) regions: RwLock<Vec<Arc<RegionMemory>>>,
    pub(crate) hand: Mutex<Hand>,
    pub(crate) inactive: Mutex<Inactive>,
    /// Blocks being written out now.
    pub(crate) writing: AtomicUsize,
    pub(crate) warned_area_full: AtomicBool,
    pub(crate) reclaimer: Bell,
    pub(crate) read_ahead: ReadAhead,
}

/// Wakes the reclaimer.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rung: Mutex<Rung>,
    condvar: Condvar,
    /// A ring is under way already: spares the fault path the lock.
    pending: AtomicBool,
}

#[derive(Debug, Default)]
struct Rung {
    work: bool,
    stop: bool,
}

impl Bell {
    pub(crate) fn ring(&self) {
        if !self.pending.swap(true, Ordering::Relaxed) {
            self.rung
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .work = true;
            self.condvar.notify_one();
        }
    }

    pub(crate) fn stop(&self) {
        self.rung
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .stop = true;
        self.condvar.notify_all();
    }

    /// Waits for a ring; `false`: stop.
    pub(crate) fn wait(&self) -> bool {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        while !rung.work && !rung.stop {
            rung = self
                .condvar
                .wait(rung)
                .unwrap_or_else(PoisonError::into_inner);
        }
        rung.work = false;
        self.pending.store(false, Ordering::Relaxed);
        !rung.stop
    }
}

impl RegionMemory {
    /// Makes an access to `page` succeed on its next try.
    pub(crate) fn resolve(&self, page: usize, write: bool) -> Result<Resolved, FaultError> {
        self.shared.resolve(self, page, write)
    }

    pub(crate) fn is_swapped(&self, page: usize) -> bool {
        matches!(self.mm.table.load(page).state(), PteState::Swapped(_))
    }

    pub(crate) fn is_present(&self, page: usize) -> bool {
        self.mm.table.load(page).state() == PteState::Present
    }
}

/// What resolving a fault came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolved {
    /// This fault mapped the page.
    Mapped,
    /// Somebody else did.
    ByOthers,
}

impl Shared {
    pub(crate) fn regions(&self) -> RwLockReadGuard<'_, Vec<Arc<RegionMemory>>> {
        // The list is consistent whenever the lock is free.
        self.regions.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn resolve(
        &self,
        region: &RegionMemory,
        page: usize,
        write: bool,
    ) -> Result<Resolved, FaultError> {
        let start = now_ns();
        let mm = &region.mm;
        let (mut waits, mut stalled_ns, mut no_memory) = (0, 0, 0);
        // The first time somebody else is at work on the page there may be something better to do than
        // to wait for him.
        let mut wait = false;
        loop {
            let max_pages = self.window(mm);
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
                    wait = wait || !region.read_ahead();
                    waits += 1;
                }
                Ok(mapped) => {
                    if mapped >= CHUNK_PAGES / 2 && region.stream.note(page / CHUNK_PAGES) {
                        self.read_ahead.call(region.number);
                    }
                    self.counters
                        .fault(mapped, waits, now_ns() - start, stalled_ns);
                    return Ok(if mapped == 0 {
                        Resolved::ByOthers
                    } else {
                        Resolved::Mapped
                    });
                }
                Err(FaultError::NoFrames) => {
                    waits += 1;
                    self.swap.frames().wait_for_block();
                }
                Err(FaultError::Space(SpaceError::NoMemory)) if no_memory < NO_MEMORY_TRIES => {
                    no_memory += 1;
                    self.reclaim_step();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Tries to bring `page` and its neighbours in before they are needed.
    pub(crate) fn bring_ahead(&self, mm: &Mm<RealSpace>, page: usize) {
        let max_pages = self.window(mm);
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
    }

    /// Whether memory is so short that only what is needed now should be brought in.
    pub(crate) fn is_short(&self) -> bool {
        self.budget.limit().is_some() && self.budget.level(self.used_bytes()) != Level::Roomy
    }

    /// How many pages a fault may map: fewer where the limit is so small that a full window would be a
    /// large part of it.
    fn window(&self, mm: &Mm<RealSpace>) -> usize {
        let most = self
            .budget
            .limit()
            .map_or(u64::MAX, |limit| limit / PAGE_SIZE as u64 / 32);
        mm.fault_around().min(most.max(1) as usize)
    }

    /// Charges `pages`, making room if need be. Returns how long that took, in nanoseconds.
    pub(crate) fn charge(&self, pages: u64) -> u64 {
        let others = self.other_bytes();
        if self.budget.charge(pages, others) {
            if self.budget.level(self.used_bytes()) == Level::Tight {
                self.reclaimer.ring();
            }
            return 0;
        }
        let start = now_ns();
        self.reclaimer.ring();
        self.make_room(pages);
        now_ns() - start
    }

    /// Bytes in use beside resident pages.
    fn other_bytes(&self) -> u64 {
        let devices: u64 = self
            .swap
            .areas()
            .map(|area| area.device().memory_bytes() + area.metadata_bytes())
            .sum();
        let frames = self.swap.frames();
        devices + frames.staged_bytes() + frames.fixed_bytes() + self.budget.table_bytes()
    }

    /// Bytes in use, all told: what the limit is compared with.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.budget.resident_pages() * PAGE_SIZE as u64 + self.other_bytes()
    }

    pub(crate) fn stats(&self) -> Stats {
        let mut stats = Stats {
            resident_bytes: self.budget.resident_pages() * PAGE_SIZE as u64,
            limit_bytes: self.budget.limit(),
            bugs: userswap_core::bug::count(),
            ..Stats::default()
        };
        for area in self.swap.areas() {
            let usage = area.device().usage();
            stats.swapped_bytes += area.used() * PAGE_SIZE as u64;
            stats.stored_bytes += usage.stored_bytes;
            stats.store_memory_bytes += usage.memory_bytes;
        }
        stats.overhead_bytes =
            self.other_bytes() - stats.store_memory_bytes.min(self.other_bytes());
        self.counters.fill(&mut stats);
        stats
    }
}
