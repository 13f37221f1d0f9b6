//! Helper threads that bring pages in ahead of a walk.
//!
//! They pay only where bringing a window in takes longer than waking a thread, and only while memory
//! is not short. Sharing out single windows of a random access does not pay where the other CPU is the
//! same core's second thread: it was measured 10 % slower.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use userswap_core::page_table::CHUNK_PAGES;
use userswap_sys::timing::now_ns;
use userswap_sys::{cpu, inject};

use crate::Error;
use crate::shared::{RegionMemory, Shared};
use crate::thread;

/// More helpers than this find no work: a walk takes what they bring faster than they can wake.
const MOST_HELPERS: usize = 3;

/// How long a helper looks for more work before it sleeps, in nanoseconds: the next fault comes within
/// tens of microseconds, about what waking a thread takes.
const LINGER_NS: u64 = 60_000;

/// Where faults call for help: one region at a time.
#[derive(Debug, Default)]
pub(crate) struct HelpWanted {
    desk: Mutex<Desk>,
    rung: Condvar,
    /// A hint that a region lies on the desk, for helpers that linger.
    posted: AtomicBool,
    helpers: usize,
}

#[derive(Debug, Default)]
struct Desk {
    /// The region whose walk wants help.
    region: Option<u64>,
    /// Helpers that have nothing to do.
    idle: usize,
    /// Of these, those that must be woken.
    asleep: usize,
    stop: bool,
}

impl HelpWanted {
    /// As many helpers as there are other CPUs.
    pub(crate) fn for_this_host() -> Self {
        Self {
            helpers: (cpu::count() - 1).min(MOST_HELPERS),
            ..Self::default()
        }
    }

    /// How many chunks ahead of a walk are handed out.
    pub(crate) fn ahead(&self) -> usize {
        if self.helpers == 0 {
            0
        } else {
            4 * (self.helpers + 1)
        }
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A walk through `region` is on: an idle helper, if there is one, shall join it.
    pub(crate) fn post(&self, region: u64) {
        if self.helpers == 0 {
            return;
        }
        let mut desk = self.desk();
        if desk.idle == 0 || desk.region.is_some() {
            return;
        }
        desk.region = Some(region);
        self.posted.store(true, Ordering::Relaxed);
        if desk.idle == desk.asleep {
            drop(desk);
            self.rung.notify_one();
        }
    }

    /// The next region to help in; `None`: stop.
    fn next(&self) -> Option<u64> {
        self.desk().idle += 1;
        let since = now_ns();
        while !self.posted.load(Ordering::Relaxed) && now_ns() - since < LINGER_NS {
            std::hint::spin_loop();
        }
        let mut desk = self.desk();
        while desk.region.is_none() && !desk.stop {
            desk.asleep += 1;
            desk = self.rung.wait(desk).unwrap_or_else(PoisonError::into_inner);
            desk.asleep -= 1;
        }
        desk.idle -= 1;
        self.posted.store(false, Ordering::Relaxed);
        if desk.stop { None } else { desk.region.take() }
    }

    fn stop(&self) {
        self.desk().stop = true;
        self.rung.notify_all();
    }
}

/// The helper threads; stopped and joined when dropped.
pub(crate) struct Crew {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    pub(crate) fn start(shared: &Arc<Shared>) -> Result<Self, Error> {
        let mut crew = Self {
            shared: Arc::clone(shared),
            threads: Vec::new(),
        };
        for number in 0..shared.help_wanted.helpers {
            let shared = Arc::clone(shared);
            let thread = thread::start(
                format!("userswap-in-{number}"),
                "start a read-ahead thread",
                move || {
                    while let Some(region) = shared.help_wanted.next() {
                        shared.help(region);
                    }
                },
            )?;
            crew.threads.push(thread);
        }
        Ok(crew)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.help_wanted.stop();
        for thread in self.threads.drain(..) {
            thread.join().expect(thread::ENDS_WELL);
        }
    }
}

impl Shared {
    /// Helps in the walk through a region.
    fn help(&self, number: u64) {
        let region = self
            .regions()
            .iter()
            .find(|region| region.number == number)
            .map(Arc::clone);
        let Some(region) = region else { return };
        // Holds off the region's end while pages are brought into it.
        let Some(_inside) = region.gate.enter() else {
            return;
        };
        inject::pass(inject::Thread::ReadAhead);
        region.join_walk();
    }
}

impl RegionMemory {
    /// Takes chunks ahead of the walk until there are none for a while.
    fn join_walk(&self) {
        let mut idle_since = now_ns();
        while now_ns() - idle_since < LINGER_NS {
            if self.read_ahead() {
                idle_since = now_ns();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// Brings in one chunk ahead of the walk, if one is to be had and memory is not short.
    pub(crate) fn read_ahead(&self) -> bool {
        let chunks = self.mm.table.chunks();
        if self.shared.is_short() {
            return false;
        }
        let Some(chunk) = self.stream.claim(chunks, self.shared.help_wanted.ahead()) else {
            return false;
        };
        let first = chunk * CHUNK_PAGES;
        let pages = first..(first + CHUNK_PAGES).min(self.mm.table.pages());
        if let Some(page) = pages.into_iter().find(|&page| self.is_swapped(page)) {
            // A page that cannot be read now will say so when it is touched.
            self.shared.bring_ahead(self, page);
        }
        true
    }
}

/// Runs `work` in this thread and in others beside it, one for each other CPU; returns when all are
/// done. `work` takes pieces of one job until none is left.
pub(crate) fn share_out(pieces: usize, work: impl Fn() + Sync) {
    /// A thread is worth starting for this many pieces.
    const PIECES_A_THREAD: usize = 16;
    let others = (cpu::count() - 1)
        .min(MOST_HELPERS)
        .min(pieces / PIECES_A_THREAD);
    std::thread::scope(|scope| {
        for _ in 0..others {
            let helper = std::thread::Builder::new()
                .name("userswap-page".into())
                .spawn_scoped(scope, || {
                    thread::run(|| {
                        inject::pass(inject::Thread::PageOut);
                        work();
                    });
                });
            if helper.is_err() {
                // No thread to be had: this one does it all.
                break;
            }
        }
        work();
    });
}
