//! Who moves pages and who changes the address space: never both at once.
//!
//! A program's own mappings come and go by its system calls. Guarantee: while such a change is under
//! way (from [`Moving::close`] to the drop of what it returns), no page is mapped, swapped out or taken
//! on in any window, so the words of the pages it concerns can be made to tell the truth again before
//! anybody acts on them. Mechanism: movers enter a gate; a change closes it and waits until they have
//! left. A fault that finds the gate closed is put off and woken when it opens, so that the
//! threads that handle faults are never held up: the change itself may fault, on the stack of its
//! thread say, and is let through.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use userswap_core::{Gate, Pass};
use userswap_sys::{cpu, own};

/// Faults that can be put off at once: as many as threads can fault.
const MOST_PUT_OFF: usize = 4096;

#[derive(Debug)]
pub(crate) struct Moving {
    gate: Gate,
    /// The thread that has the gate closed; 0: none.
    closer: AtomicU32,
    /// Held by the closer.
    changing: Mutex<()>,
    /// Addresses that were touched while the gate was closed.
    put_off: Mutex<Vec<usize>>,
}

/// What a fault may do.
#[derive(Debug)]
pub(crate) enum Admitted<'a> {
    /// Move pages until this is dropped.
    Inside(#[expect(dead_code, reason = "kept for its drop")] Pass<'a>),
    /// Move pages: the change waits for this very fault, that of its own thread or of a thread inside.
    ForCloser,
    /// Nothing: it is put off, and woken when the change is done.
    PutOff,
}

impl Moving {
    pub(crate) fn new() -> Self {
        Self {
            gate: Gate::default(),
            closer: AtomicU32::new(0),
            changing: Mutex::new(()),
            // A push never allocates.
            put_off: Mutex::new(Vec::with_capacity(MOST_PUT_OFF)),
        }
    }

    /// Enters as a mover; waits while a change is under way. Not for a thread that is inside already.
    pub(crate) fn enter(&self) -> Pass<'_> {
        loop {
            if let Some(pass) = self.gate.enter() {
                return pass;
            }
            std::thread::sleep(std::time::Duration::from_micros(20));
        }
    }

    /// Enters for a fault of this thread, which has nowhere else to go meanwhile; `None`: the change under
    /// way is its own.
    pub(crate) fn enter_in_fault(&self) -> Option<Pass<'_>> {
        if let Some(pass) = self.gate.enter() {
            return Some(pass);
        }
        if self.closer.load(Ordering::Relaxed) == cpu::thread() {
            return None;
        }
        Some(self.enter())
    }

    /// Enters for a fault of `thread` at `address`, without waiting.
    pub(crate) fn admit(&self, thread: u32, address: usize) -> Admitted<'_> {
        loop {
            if let Some(pass) = self.gate.enter() {
                return Admitted::Inside(pass);
            }
            // Relaxed: the closer's own fault comes after its store; nobody else has its number.
            // Nor do threads of ours touch what they have locked.
            if self.closer.load(Ordering::Relaxed) == thread || own::is_thread(thread) {
                return Admitted::ForCloser;
            }
            let mut put_off = self.put_off();
            // Once more, under the lock that the closer takes after it has opened the gate: a fault put
            // off here is one it will find.
            if let Some(pass) = self.gate.enter() {
                return Admitted::Inside(pass);
            }
            if put_off.len() < MOST_PUT_OFF {
                put_off.push(address);
                return Admitted::PutOff;
            }
            drop(put_off);
            std::thread::yield_now();
        }
    }

    /// Closes the gate for a change by this thread; returns when no mover is inside.
    pub(crate) fn close(&self) -> Change<'_> {
        let changing = lock(&self.changing);
        self.closer.store(cpu::thread(), Ordering::Relaxed);
        self.gate.close();
        Change {
            moving: self,
            _changing: changing,
        }
    }

    fn put_off(&self) -> MutexGuard<'_, Vec<usize>> {
        lock(&self.put_off)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in a critical section panics.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A change of the address space under way.
#[derive(Debug)]
#[must_use = "the change is over when this is dropped"]
pub(crate) struct Change<'a> {
    moving: &'a Moving,
    _changing: MutexGuard<'a, ()>,
}

impl Change<'_> {
    /// In a child of fork: the thread goes on under another number.
    pub(crate) fn inherit(&self) {
        self.moving.closer.store(cpu::thread(), Ordering::Relaxed);
    }

    /// Ends the change; `wake` is told each address that was touched meanwhile.
    pub(crate) fn end(self, mut wake: impl FnMut(usize)) {
        self.moving.closer.store(0, Ordering::Relaxed);
        self.moving.gate.reopen();
        for address in self.moving.put_off().drain(..) {
            wake(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_during_a_change_are_put_off_but_its_own() {
        let moving = Moving::new();
        let me = cpu::thread();
        let inside = moving.admit(me, 0x1000);
        assert!(matches!(inside, Admitted::Inside(_)));
        drop(inside);
        let change = moving.close();
        assert!(matches!(moving.admit(me, 0x1000), Admitted::ForCloser));
        assert!(matches!(moving.admit(me + 1, 0x2000), Admitted::PutOff));
        assert!(matches!(moving.admit(me + 2, 0x3000), Admitted::PutOff));
        let mut woken = Vec::new();
        change.end(|address| woken.push(address));
        assert_eq!(woken, [0x2000, 0x3000]);
        assert!(matches!(moving.admit(me + 1, 0x2000), Admitted::Inside(_)));
    }

    #[test]
    fn a_change_waits_for_movers() {
        let moving = Moving::new();
        let pass = moving.enter();
        std::thread::scope(|scope| {
            let change = scope.spawn(|| moving.close().end(|_| {}));
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!change.is_finished());
            drop(pass);
        });
    }
}
