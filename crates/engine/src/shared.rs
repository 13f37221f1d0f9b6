//! What an engine's regions, threads and fault handler share.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use userswap_core::device::PAGE_SIZE;
use userswap_core::page_table::PteState;
use userswap_core::{Gate, Mm, Swap};
use userswap_sys::timing::now_ns;
use userswap_sys::{futex, own};

use crate::budget::{Budget, Level, Whole};
use crate::crew::HelpWanted;
use crate::cyclic::{Cyclic, Departures};
use crate::density::Density;
use crate::frames::FramePool;
use crate::guard::Known;
use crate::hand::Hand;
use crate::moving::Moving;
use crate::reclaim::Inactive;
use crate::registrar::Registrar;
use crate::space::RealSpace;
use crate::spare::Spare;
use crate::spec::Policy;
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
    pub(crate) departures: Departures,
    /// The page + 1 whose failure was last delivered as SIGBUS, in thread mode; 0: none.
    pub(crate) delivered: AtomicUsize,
    pub(crate) shared: Arc<Shared>,
}

/// The state of an engine. Everything the fault path needs is here and allocated.
///
/// Lock order, before any lock of the protocol: `moving`, then `regions` (read by reclaim, written only to add and
/// remove a region), then `hand`, `inactive` or the one in `cyclic`, one of them only. None but `moving` is held while a
/// region's memory is touched, because it never is.
pub(crate) struct Shared {
    pub(crate) swap: Swap<Arc<FramePool>>,
    pub(crate) budget: Budget,
    pub(crate) counters: Counters,
    pub(crate) density: Density,
    pub(crate) cyclic: Cyclic,
    /// How faults reached it at first: it goes over from inline to threads at most.
    pub(crate) first_mode: FaultMode,
    pub(crate) in_threads: AtomicBool,
    pub(crate) fault_around: FaultAround,
    /// The limit is not to be exceeded, whatever it costs.
    pub(crate) strict: bool,
    /// What the limit is a share of.
    pub(crate) whole: Option<Whole>,
    pub(crate) policy: Policy,
    /// The userfaultfd of regions.
    pub(crate) uffd: Arc<Registrar>,
    pub(crate) regions: RwLock<Vec<Arc<RegionMemory>>>,
    pub(crate) hand: Mutex<Hand>,
    pub(crate) inactive: Mutex<Inactive>,
    /// Threads making room now.
    pub(crate) working: AtomicUsize,
    /// How many may be at it at once.
    pub(crate) most_working: usize,
    /// Chunks that were looked for to be staged.
    pub(crate) turn: AtomicU32,
    pub(crate) warned_area_full: AtomicBool,
    pub(crate) warned_write: AtomicBool,
    pub(crate) reclaimer: Bell,
    /// Stops who watches the devices.
    pub(crate) watch: Bell,
    pub(crate) help_wanted: HelpWanted,
    /// Taken for the whole of a swapoff.
    pub(crate) swapoff: Mutex<()>,
    /// Keeps changes of the program's own mappings away from those who move its pages.
    pub(crate) moving: Moving,
    /// Where threads of an engine over a whole process wait until all have started.
    pub(crate) start: StartLine,
    /// The descriptor that the handler threads of an engine over a whole process watch beside the userfaultfd; -1: none.
    pub(crate) bell_number: AtomicI32,
    /// In a child of fork, until its handler threads run: faults are resolved in the thread that meets
    /// them, whatever the mode.
    pub(crate) inline_for_now: AtomicBool,
    /// Whether it is known what this process has: see [`crate::guard::Known`].
    pub(crate) known: Known,
    /// A thread of the program was seen with its stack in memory that is taken on.
    pub(crate) stack_taken: AtomicBool,
    /// The handler thread of a process that may go over to such threads.
    pub(crate) spare: Spare,
    /// Whether one is kept.
    pub(crate) keeps_spare: bool,
}

/// Wakes the reclaimer. One word, no lock: a forked child finds nothing held.
#[derive(Debug, Default)]
pub(crate) struct Bell(AtomicU32);

impl Bell {
    const SILENT: u32 = 0;
    const RUNG: u32 = 1;
    const STOPPED: u32 = 2;

    pub(crate) fn ring(&self) {
        // Relaxed: the level it rings for is read anew. Rung already: spares the fault path a system call.
        let rung = self.0.compare_exchange(
            Self::SILENT,
            Self::RUNG,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        if rung.is_ok() {
            futex::wake_all(&self.0);
        }
    }

    pub(crate) fn stop(&self) {
        self.0.store(Self::STOPPED, Ordering::Relaxed);
        futex::wake_all(&self.0);
    }

    /// In a child of fork, whose parent's threads are not there.
    pub(crate) fn reset(&self) {
        self.0.store(Self::SILENT, Ordering::Relaxed);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::STOPPED
    }

    /// Waits for `limit`; `true`: it was stopped meanwhile.
    pub(crate) fn is_stopped_within(&self, limit: std::time::Duration) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        if word != Self::STOPPED {
            futex::wait_for(&self.0, word, limit);
        }
        self.is_stopped()
    }

    /// Waits for a ring; `false`: stop.
    pub(crate) fn wait(&self) -> bool {
        loop {
            let taken = self.0.compare_exchange(
                Self::RUNG,
                Self::SILENT,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match taken {
                Ok(_) => return true,
                Err(Self::STOPPED) => return false,
                Err(silent) => futex::wait(&self.0, silent),
            }
        }
    }
}

/// Where the engine's threads wait until all of them run, and nothing they needed to start is in memory that they
/// would have to bring in themselves: libc gives each a piece of the program's heap.
#[derive(Debug)]
pub(crate) struct StartLine {
    arrived: AtomicU32,
    open: AtomicU32,
}

impl StartLine {
    /// `open`: threads need not wait.
    pub(crate) fn new(open: bool) -> Self {
        Self {
            arrived: AtomicU32::new(0),
            open: AtomicU32::new(u32::from(open)),
        }
    }

    /// Called by each thread of the engine first of all.
    pub(crate) fn pass(&self) {
        own::note_thread();
        self.arrived.fetch_add(1, Ordering::Release);
        futex::wake_all(&self.arrived);
        while self.open.load(Ordering::Acquire) == 0 {
            futex::wait(&self.open, 0);
        }
    }

    /// Waits until `threads` have arrived.
    pub(crate) fn wait_for(&self, threads: u32) {
        loop {
            let arrived = self.arrived.load(Ordering::Acquire);
            if arrived >= threads {
                return;
            }
            futex::wait(&self.arrived, arrived);
        }
    }

    /// Lets those who wait go, and those who come.
    pub(crate) fn open(&self) {
        self.open.store(1, Ordering::Release);
        futex::wake_all(&self.open);
    }

    /// In a child of fork: nobody has arrived.
    pub(crate) fn close(&self) {
        self.arrived.store(0, Ordering::Relaxed);
        self.open.store(0, Ordering::Relaxed);
    }
}

impl RegionMemory {
    /// A region of `space`, known to nobody yet.
    pub(crate) fn new(space: RealSpace, shared: &Arc<Shared>) -> Self {
        let pages = space.len() / PAGE_SIZE;
        Self::of(Mm::new(space, pages, shared.fault_around.pages()), shared)
    }

    fn of(mm: Mm<RealSpace>, shared: &Arc<Shared>) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Self {
            // Relaxed: only distinctness matters.
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            departures: Departures::new(mm.table.chunks()),
            mm,
            gate: Gate::default(),
            stream: Stream::default(),
            delivered: AtomicUsize::new(0),
            shared: Arc::clone(shared),
        }
    }

    /// A window on the program's own memory, like the one `beside` it, if there is one.
    pub(crate) fn window(
        base: usize,
        len: usize,
        beside: Option<&Self>,
        shared: &Arc<Shared>,
    ) -> Self {
        let frames = Arc::clone(shared.swap.frames());
        let space = RealSpace::window(base, len, Arc::clone(&shared.uffd), frames);
        match beside {
            Some(other) => {
                let pages = space.len() / PAGE_SIZE;
                Self::of(Mm::beside(&other.mm, space, pages), shared)
            }
            None => Self::new(space, shared),
        }
    }

    pub(crate) fn is_swapped(&self, page: usize) -> bool {
        matches!(self.mm.table.load(page).state(), PteState::Swapped(_))
    }

    /// How many pages are swapped out now.
    pub(crate) fn swapped_pages(&self) -> u64 {
        let pages = 0..self.mm.table.pages();
        pages.filter(|&page| self.is_swapped(page)).count() as u64
    }

    pub(crate) fn is_present(&self, page: usize) -> bool {
        self.mm.table.load(page).state() == PteState::Present
    }
}

impl Shared {
    /// How faults reach the engine now: inline until the last page has gone over.
    pub(crate) fn mode(&self) -> FaultMode {
        // SeqCst: a system call of the program whose memory is not brought in any more was made after all had gone over.
        if self.in_threads.load(Ordering::SeqCst) {
            FaultMode::Thread
        } else {
            FaultMode::Inline
        }
    }

    pub(crate) fn regions(&self) -> RwLockReadGuard<'_, Vec<Arc<RegionMemory>>> {
        // The list is consistent whenever the lock is free.
        self.regions.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a region known to the reclaimer.
    pub(crate) fn list(&self, region: Arc<RegionMemory>) {
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        regions.push(region);
    }

    /// The region that `address` is in.
    pub(crate) fn region_at(&self, address: usize) -> Option<Arc<RegionMemory>> {
        let regions = self.regions();
        let region = regions.iter().find(|region| {
            let space = &region.mm.space;
            address.wrapping_sub(space.base()) < space.len()
        });
        region.map(Arc::clone)
    }

    /// Whether memory is so short that only what is needed now should be brought in.
    pub(crate) fn is_short(&self) -> bool {
        self.budget.limit().is_some() && self.budget.level(self.other_bytes()) != Level::Roomy
    }

    /// Charges `pages`, making room if need be. Returns how long that took, in nanoseconds.
    pub(crate) fn charge(&self, pages: u64) -> u64 {
        if self.budget.limit().is_none() {
            self.budget.force(pages);
            return 0;
        }
        let others = self.other_bytes();
        if self.budget.charge(pages, others) {
            let others = self.other_bytes();
            let used = self.budget.resident_bytes() + others;
            if self.budget.is_exceeded() {
                self.budget.ease(used, now_ns());
            }
            if self.budget.is_news(used, now_ns) {
                self.tell_exceeded(used);
            }
            if self.budget.level(others) == Level::Tight {
                self.reclaimer.ring();
            }
            return 0;
        }
        let start = now_ns();
        self.budget.note_refused(start);
        self.reclaimer.ring();
        self.make_room(pages);
        now_ns() - start
    }

    /// Bytes in use beside resident pages.
    pub(crate) fn other_bytes(&self) -> u64 {
        let moving = self.store_bytes() + self.swap.frames().staged_bytes();
        match self.budget.rest() {
            // The tables are in it.
            Some(rest) => moving.saturating_add_signed(rest),
            None => moving + self.metadata_bytes() + self.fixed_bytes(),
        }
    }

    pub(crate) fn store_bytes(&self) -> u64 {
        let areas = self.swap.areas();
        areas.map(|area| area.device().memory_bytes()).sum()
    }

    /// The limit is `bytes` from now on, in bytes.
    pub(crate) fn set_limit(&self, bytes: u64) {
        self.budget.set_limit(bytes);
        self.fit_inactive(bytes);
        for area in self.swap.open_areas() {
            area.device().note_limit(bytes);
        }
    }

    fn metadata_bytes(&self) -> u64 {
        self.swap.areas().map(|area| area.metadata_bytes()).sum()
    }

    /// Bytes that are in use whatever is swapped out.
    pub(crate) fn fixed_bytes(&self) -> u64 {
        self.swap.frames().fixed_bytes() + self.budget.table_bytes()
    }

    /// The process has `resident` bytes in memory, as the system says.
    pub(crate) fn note_resident(&self, resident: u64) {
        let counted =
            self.budget.resident_bytes() + self.store_bytes() + self.swap.frames().staged_bytes();
        self.budget.set_rest(resident as i64 - counted as i64);
        self.known.set();
        self.budget.ease(self.used_bytes(), now_ns());
    }

    /// Bytes in use, all told: what the limit is compared with.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.budget.resident_bytes() + self.other_bytes()
    }

    pub(crate) fn stats(&self) -> Stats {
        let mut stats = Stats {
            resident_bytes: self.budget.resident_bytes(),
            limit_bytes: self.budget.limit(),
            bugs: userswap_core::bug::count(),
            ..Stats::default()
        };
        for area in self.swap.areas() {
            let usage = area.device().usage();
            stats.swapped_bytes += area.used() * PAGE_SIZE as u64;
            stats.stored_bytes += usage.stored_bytes;
            stats.store_memory_bytes += usage.memory_bytes;
            stats.dense_bytes += usage.dense_pages * PAGE_SIZE as u64;
            stats.file_bytes += usage.file_pages * PAGE_SIZE as u64;
            stats.file_read_bytes += usage.file_read_bytes;
            stats.file_written_bytes += usage.file_written_bytes;
        }
        // Other threads work on: the store may have shrunk or grown since it was asked.
        stats.overhead_bytes = self.other_bytes().saturating_sub(stats.store_memory_bytes);
        self.counters.fill(&mut stats);
        stats
    }
}
