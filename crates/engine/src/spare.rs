//! The handler thread that an inline engine over a whole process keeps for the time when its process goes over to handler
//! threads.
//!
//! It cannot be started then: libc allocates for a new thread, and whoever asks for the change may be in the middle of an
//! allocation. It resolves faults by itself until others have been started, for which nobody waits.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use userswap_sys::uffd::Doorbell;
use userswap_sys::{cpu, futex};

use crate::Error;
use crate::fault::{Handlers, handle, make_bell};
use crate::shared::Shared;
use crate::thread;

#[derive(Debug, Default)]
pub(crate) struct Spare {
    state: AtomicU32,
    /// What it watches beside the userfaultfd.
    bell: Mutex<Option<Arc<Doorbell>>>,
}

const NONE: u32 = 0;
const WAITS: u32 = 1;
const CALLED: u32 = 2;
/// It has heard, and handles faults.
const SERVES: u32 = 3;
/// The others have been started.
const RELIEVED: u32 = 4;

impl Spare {
    /// Whether the thread waits to be called.
    pub(crate) fn is_there(&self) -> bool {
        self.state.load(Ordering::Acquire) == WAITS
    }

    /// Has it handle faults from now on.
    pub(crate) fn call(&self) {
        self.state.store(CALLED, Ordering::Release);
        futex::wake_all(&self.state);
    }

    /// In a child of fork: it is not there.
    pub(crate) fn forget(&self) {
        self.state.store(NONE, Ordering::Relaxed);
    }

    /// Starts it. Once, and once more in each child of fork.
    pub(crate) fn start(shared: &Arc<Shared>) -> Result<(), Error> {
        let bell = make_bell(shared)?;
        *lock(&shared.spare.bell) = Some(Arc::clone(&bell));
        let its = Arc::clone(shared);
        shared.spare.state.store(WAITS, Ordering::Release);
        let started = thread::start(
            "userswap-spare".into(),
            "start a fault handler thread",
            move || {
                its.start.pass();
                its.spare.wait_while(WAITS);
                its.spare.serve();
                if let Some(cpu) = cpu::allowed().first() {
                    // As in `Handlers`.
                    let _ = cpu::pin_to(*cpu);
                }
                handle(&its, &bell);
            },
        );
        if started.is_err() {
            shared.spare.forget();
        }
        // It runs until the process ends.
        started.map(drop)
    }

    /// Waits until the thread that has been called handles faults. Before, it may still be at the start line, which must not
    /// be closed in front of it.
    pub(crate) fn wait_until_it_serves(&self) {
        self.wait_while(CALLED);
    }

    fn wait_while(&self, state: u32) {
        while self.state.load(Ordering::Acquire) == state {
            futex::wait(&self.state, state);
        }
    }

    fn serve(&self) {
        self.state.store(SERVES, Ordering::Release);
        futex::wake_all(&self.state);
    }

    /// Starts the handlers of the other CPUs, as far as that can be: they wait at the start line. `None`: they are there, or
    /// not wanted.
    pub(crate) fn start_others(shared: &Arc<Shared>) -> Option<Handlers> {
        let claimed = shared.spare.state.compare_exchange(
            SERVES,
            RELIEVED,
            Ordering::Acquire,
            Ordering::Relaxed,
        );
        claimed.ok()?;
        let bell = lock(&shared.spare.bell).clone()?;
        // The one that is there does the work of those that cannot be started.
        Some(Handlers::on(shared, bell, cpu::allowed().into_iter().skip(1)).0)
    }

    /// Whether the others are still to be started.
    pub(crate) fn is_alone(&self) -> bool {
        matches!(self.state.load(Ordering::Relaxed), CALLED | SERVES)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
