//! Helper threads that read ahead of a walk.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use userswap_core::page_table::CHUNK_PAGES;
use userswap_sys::signals::Blocked;
use userswap_sys::timing::now_ns;
use userswap_sys::{Errno, cpu};

use crate::Error;
use crate::shared::{RegionMemory, Shared};

/// More helpers than this find no work: a walk takes what they bring faster than they can wake.
const MOST_HELPERS: usize = 3;

/// How long a helper looks for more work before it sleeps, in nanoseconds: a walk comes for the next
/// chunk within tens of microseconds, about what waking a thread takes.
const LINGER_NS: u64 = 60_000;

/// The region that is being walked through, if a helper is wanted.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    wanted: Mutex<Wanted>,
    rung: Condvar,
    helpers: usize,
}

#[derive(Debug, Default)]
struct Wanted {
    region: Option<u64>,
    sleeping: usize,
    stop: bool,
}

impl ReadAhead {
    /// As many helpers as there are other CPUs.
    pub(crate) fn for_this_host() -> Self {
        Self {
            helpers: (cpu::count() - 1).min(MOST_HELPERS),
            ..Self::default()
        }
    }

    /// How many chunks ahead of a walk are handed out.
    pub(crate) fn ahead(&self) -> usize {
        2 * self.helpers
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A walk through `region` is on: a sleeping helper, if there is one, shall join.
    pub(crate) fn call(&self, region: u64) {
        if self.helpers == 0 {
            return;
        }
        let mut wanted = self.wanted();
        if wanted.sleeping > 0 {
            wanted.region = Some(region);
            drop(wanted);
            self.rung.notify_one();
        }
    }

    fn next(&self) -> Option<u64> {
        let mut wanted = self.wanted();
        wanted.sleeping += 1;
        while wanted.region.is_none() && !wanted.stop {
            wanted = self
                .rung
                .wait(wanted)
                .unwrap_or_else(PoisonError::into_inner);
        }
        wanted.sleeping -= 1;
        if wanted.stop {
            None
        } else {
            wanted.region.take()
        }
    }

    fn stop(&self) {
        self.wanted().stop = true;
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
        for number in 0..shared.read_ahead.helpers {
            let shared = Arc::clone(shared);
            let thread = std::thread::Builder::new()
                .name(format!("userswap-in-{number}"))
                .spawn(move || {
                    Blocked::forever();
                    while let Some(region) = shared.read_ahead.next() {
                        shared.help(region);
                    }
                })
                .map_err(|error| Error::System {
                    what: "start a read-ahead thread",
                    errno: Errno::from_io_error(&error).unwrap_or(Errno::AGAIN),
                })?;
            crew.threads.push(thread);
        }
        Ok(crew)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.read_ahead.stop();
        for thread in self.threads.drain(..) {
            // A helper that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Joins a walk through a region until there is nothing to do for a while.
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
        let mut idle_since = now_ns();
        while now_ns() - idle_since < LINGER_NS {
            if region.read_ahead() {
                idle_since = now_ns();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

impl RegionMemory {
    /// Brings in one chunk ahead of the walk, if one is to be had and memory is not short.
    pub(crate) fn read_ahead(&self) -> bool {
        let chunks = self.mm.table.chunks();
        if self.shared.is_short() {
            return false;
        }
        let Some(chunk) = self.stream.claim(chunks, self.shared.read_ahead.ahead()) else {
            return false;
        };
        let first = chunk * CHUNK_PAGES;
        let pages = first..(first + CHUNK_PAGES).min(self.mm.table.pages());
        if let Some(page) = pages.into_iter().find(|&page| self.is_swapped(page)) {
            // A page that cannot be read now will say so when it is touched.
            self.shared.bring_ahead(&self.mm, page);
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
                .name("userswap-out".into())
                .spawn_scoped(scope, || {
                    Blocked::forever();
                    work();
                });
            if helper.is_err() {
                // No thread to be had: this one does it all.
                break;
            }
        }
        work();
    });
}
