//! fork, in two halves: everything of the engine stands still between them, and the child makes what it inherits its own.

use std::sync::RwLockWriteGuard;
use std::sync::atomic::Ordering;

use userswap_core::PinResult;
use userswap_core::device::{PAGE_SIZE, Side};
use userswap_sys::own;
use userswap_sys::signals::{self, Blocked};

use super::taken::windows_of;
use super::{Process, lock};
use crate::Error;
use crate::engine::{open_faults_again, start_reclaimer};
use crate::fault::Handlers;
use crate::moving::Change;
use crate::spare::Spare;
use crate::spec::FaultMode;
use crate::watch;
use crate::windows;

/// Everything that must stand still while the process forks.
pub(super) struct Forking {
    changes: RwLockWriteGuard<'static, ()>,
    change: Change<'static>,
    blocked: Blocked,
}

// SAFETY: a `Forking` is put away and taken out by one thread, the one that forks; in the child that is
// the only thread there is.
unsafe impl Send for Forking {}

impl Process {
    /// Before a fork: when this returns, nothing of the engine moves, and no lock of it is held by another
    /// thread. [`Process::fork_end`] follows, in the parent and in the child.
    pub fn fork_begin(&'static self) {
        let blocked = Blocked::new();
        let changes = self.changes_write();
        let change = self.shared.moving.close();
        change.settle();
        for area in self.shared.swap.open_areas() {
            area.device().fork_begin();
        }
        *lock(&self.forking) = Some(Forking {
            changes,
            change,
            blocked,
        });
    }

    /// After a fork, or one that failed, on `side`. In the child, swapped memory works when this returns, in the thread
    /// that touches it; [`Process::start_threads`] follows when threads can be started.
    ///
    /// # Errors
    /// In the child, when it cannot be given swapped memory of its own: it must not go on.
    pub fn fork_end(&'static self, side: Side) -> Result<(), Error> {
        let Some(forking) = lock(&self.forking).take() else {
            return Ok(());
        };
        let child = side == Side::Child;
        let mut result = self.end_fork_of_devices(side);
        if child {
            forking.change.inherit();
            result = result.and_then(|()| self.become_child());
        }
        let Forking {
            change,
            changes,
            blocked,
        } = forking;
        self.end(change);
        drop((changes, blocked));
        if child {
            // With SIGBUS blocked, a touch of swapped memory would be the end.
            signals::open_faults();
        }
        // With handler threads a stack may lie in memory that is taken on: until a child has them, the signal of a fault there would
        // find no room.
        let guards = match side {
            Side::Parent => true,
            Side::Child => self.shared.mode() == FaultMode::Inline,
            Side::Failed => false,
        };
        if result.is_ok() && guards {
            self.guard();
        }
        result
    }

    fn end_fork_of_devices(&self, side: Side) -> Result<(), Error> {
        for area in self.shared.swap.open_areas() {
            area.device()
                .fork_end(side)
                .map_err(|error| Error::DeviceInChild { error })?;
        }
        Ok(())
    }

    fn become_child(&self) -> Result<(), Error> {
        let shared = &*self.shared;
        own::forget_threads();
        shared.inline_for_now.store(true, Ordering::Relaxed);
        shared.known.forget();
        for region in shared.regions().iter() {
            // The parent's memory is, not this.
            region.mm.space.forget_guards();
        }
        shared.spare.forget();
        // Of a parent that came halfway from the one to the other: all is registered anew here.
        shared.uffd.close_former();
        open_faults_again(&shared.uffd, FaultMode::Inline)?;
        shared.swap.frames().become_child()?;
        self.forget_unmapped(&(0..usize::MAX));
        self.register_all()?;
        // The program may have put another handler there, which knows nothing of ours.
        signals::reinstall().map_err(|errno| Error::System {
            what: "install the SIGBUS handler in the child",
            errno,
        })?;
        Ok(())
    }

    /// Starts the engine's threads in a child of fork.
    ///
    /// # Errors
    /// A thread or a userfaultfd cannot be had: the child goes on with what [`Process::fork_end`] gave it.
    pub fn start_threads(&'static self) -> Result<(), Error> {
        let shared = &self.shared;
        if !shared.inline_for_now.load(Ordering::Relaxed) {
            return Ok(());
        }
        let _blocked = Blocked::new();
        shared.reclaimer.reset();
        shared.start.close();
        shared.watch.reset();
        drop(start_reclaimer(shared)?);
        let mut threads = 1;
        threads += u32::from(watch::start(shared)?.is_some());
        if shared.mode() == FaultMode::Thread {
            let handlers = Handlers::start(shared)?;
            threads += handlers.count() as u32;
            std::mem::forget(handlers);
        } else if shared.keeps_spare {
            if let Err(error) = Spare::start(shared) {
                // Those that have started go on.
                shared.start.open();
                return Err(error);
            }
            threads += 1;
        }
        // Until they all run, each resolves its own faults.
        shared.start.wait_for(threads);
        self.keep_what_threads_need();
        if shared.mode() == FaultMode::Thread {
            let change = shared.moving.close();
            let opened = open_faults_again(&shared.uffd, FaultMode::Thread);
            if let Err(error) = opened {
                self.end(change);
                shared.start.open();
                return Err(error);
            }
            shared.inline_for_now.store(false, Ordering::Relaxed);
            shared.start.open();
            let registered = self.register_all();
            self.end(change);
            if let Err(error) = registered {
                signals::stderr_line(format_args!(
                    "userswap: {error}: what is swapped out would be lost; ending the process"
                ));
                std::process::abort();
            }
            self.guard();
        }
        shared.inline_for_now.store(false, Ordering::Relaxed);
        shared.start.open();
        Ok(())
    }

    /// Pins and no longer guards what threads of ours need and the program's heap holds: libc keeps their thread-local variables there.
    pub(super) fn keep_what_threads_need(&self) {
        for range in own::thread_ranges() {
            for part in self.taken_parts(&range) {
                let first = part.start & !(PAGE_SIZE - 1);
                for address in (first..part.end).step_by(PAGE_SIZE) {
                    let Some(window) = windows::find(address) else {
                        continue;
                    };
                    let page = (address - window.mm.space.base()) / PAGE_SIZE;
                    let _inside = self.shared.moving.enter();
                    window.mm.space.unguard_all(&(page..page + 1));
                    while self.shared.swap.pin(&window.mm, page) == PinResult::NotPresent
                        && window.resolve(page, true).is_ok()
                    {}
                }
            }
        }
    }

    /// Registers every range taken on with a userfaultfd that has just been opened.
    fn register_all(&self) -> Result<(), Error> {
        for (&start, &end) in self.taken().iter() {
            for (window, part) in windows_of(&(start..end)) {
                let Some(space) = windows::find(window) else {
                    continue;
                };
                let base = space.mm.space.base();
                let range = base + part.start * PAGE_SIZE..base + part.end * PAGE_SIZE;
                space
                    .mm
                    .space
                    .register(&range)
                    .map_err(|errno| Error::System {
                        what: "register memory in a child process",
                        errno,
                    })?;
            }
        }
        Ok(())
    }
}
