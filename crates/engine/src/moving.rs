//! Who moves pages and who changes the address space: never both at once.
//!
//! A program's own mappings come and go by its system calls. Guarantee: while such a change is under
//! way (from [`Moving::close`] to the drop of what it returns), no page is mapped, swapped out or taken
//! on in any window, so the words of the pages it concerns can be made to tell the truth again before
//! anybody acts on them. Mechanism: movers enter a gate; a change closes it and waits until they have
//! left. A fault that finds the gate closed is put off and woken when it opens, so that the
//! threads that handle faults are never held up: the change itself may fault, on the stack of its
//! thread say, and is let through.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
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
    /// Addresses that were touched while the gate was closed; 0: a free place.
    put_off: Box<[AtomicUsize]>,
    /// Faults being resolved though the gate is closed.
    helping: AtomicU32,
}

/// What a fault may do.
#[derive(Debug)]
pub(crate) enum Admitted<'a> {
    /// Move pages until this is dropped.
    Inside(#[expect(dead_code, reason = "kept for its drop")] Inside<'a>),
    /// Bring this one page, and move nothing else: the change waits for this very fault, that of its own
    /// thread or of a thread inside.
    ForCloser(#[expect(dead_code, reason = "kept for its drop")] Helping<'a>),
    /// Nothing: it is put off, and woken when the change is done.
    PutOff,
}

/// How often each thread is inside, by its number: checked in debug builds. Threads whose numbers meet here are not told apart.
/// Not a thread-local variable, which a library finds through a table in the program's heap: a fault must not need that.
static INSIDE: [AtomicU32; 1024] = [const { AtomicU32::new(0) }; 1024];

fn inside() -> &'static AtomicU32 {
    &INSIDE[cpu::thread() as usize % INSIDE.len()]
}

/// Being a mover; it ends when this is dropped, on the thread that began it.
#[derive(Debug)]
#[must_use]
pub(crate) struct Inside<'a> {
    _pass: Pass<'a>,
    /// A pass that is counted for this thread does not change threads.
    _of_this_thread: PhantomData<*const ()>,
}

impl<'a> Inside<'a> {
    fn new(pass: Pass<'a>) -> Self {
        if cfg!(debug_assertions) {
            inside().fetch_add(1, Ordering::Relaxed);
        }
        Self {
            _pass: pass,
            _of_this_thread: PhantomData,
        }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if cfg!(debug_assertions) {
            inside().fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A fault being resolved though the gate is closed.
#[derive(Debug)]
pub(crate) struct Helping<'a>(&'a AtomicU32);

impl Drop for Helping<'_> {
    fn drop(&mut self) {
        // Release: what was done for the fault happens before whoever waits sees zero.
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl Moving {
    pub(crate) fn new() -> Self {
        Self {
            gate: Gate::default(),
            closer: AtomicU32::new(0),
            changing: Mutex::new(()),
            put_off: (0..MOST_PUT_OFF).map(|_| AtomicUsize::new(0)).collect(),
            helping: AtomicU32::new(0),
        }
    }

    /// Enters as a mover; waits while a change is under way. Not for a thread that is inside already.
    pub(crate) fn enter(&self) -> Inside<'_> {
        loop {
            if let Some(pass) = self.gate.enter() {
                return Inside::new(pass);
            }
            std::thread::sleep(std::time::Duration::from_micros(20));
        }
    }

    /// Enters for a fault of this thread, which has nowhere else to go meanwhile; `None`: the change under
    /// way is its own.
    pub(crate) fn enter_in_fault(&self) -> Option<Inside<'_>> {
        if let Some(pass) = self.gate.enter() {
            return Some(Inside::new(pass));
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
                return Admitted::Inside(Inside::new(pass));
            }
            // Relaxed: the closer's own fault comes after its store; nobody else has its number.
            // Nor do threads of ours touch what they have locked.
            if self.closer.load(Ordering::Relaxed) == thread || own::is_thread(thread) {
                self.helping.fetch_add(1, Ordering::Relaxed);
                return Admitted::ForCloser(Helping(&self.helping));
            }
            let Some(place) = self.put_off.iter().find(|place| {
                // SeqCst: before the look at the gate below, as the closer opens it before it looks here.
                let free = place.compare_exchange(0, address, Ordering::SeqCst, Ordering::SeqCst);
                free.is_ok()
            }) else {
                std::thread::yield_now();
                continue;
            };
            // Once more: a fault put off before the gate opens is one the closer will find.
            let Some(pass) = self.gate.enter() else {
                return Admitted::PutOff;
            };
            // Found already, or not: woken once too often does no harm.
            let _ = place.compare_exchange(address, 0, Ordering::SeqCst, Ordering::SeqCst);
            return Admitted::Inside(Inside::new(pass));
        }
    }

    /// Whether this thread is a mover. Known in debug builds only, where windows are moved by nobody else.
    pub(crate) fn is_mover() -> bool {
        !cfg!(debug_assertions) || inside().load(Ordering::Relaxed) > 0
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

    /// Waits until no fault is being resolved while the gate is closed.
    fn wait_for_helpers(&self) {
        // Acquire: pairs with the drop of `Helping`.
        while self.helping.load(Ordering::Acquire) != 0 {
            std::hint::spin_loop();
        }
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
    /// Before a fork: what the thread is going to touch is in memory, and nobody is at work on it any more.
    pub(crate) fn settle(&self) {
        own::touch_thread();
        self.moving.wait_for_helpers();
    }

    /// In a child of fork: the thread goes on under another number, and the others are not here.
    pub(crate) fn inherit(&self) {
        self.moving.closer.store(cpu::thread(), Ordering::Relaxed);
        self.moving.gate.forget_users();
        self.moving.helping.store(0, Ordering::Relaxed);
        for place in &self.moving.put_off {
            place.store(0, Ordering::Relaxed);
        }
    }

    /// Ends the change; `wake` is told each address that was touched meanwhile.
    pub(crate) fn end(self, mut wake: impl FnMut(usize)) {
        self.moving.closer.store(0, Ordering::Relaxed);
        self.moving.gate.reopen();
        for place in &self.moving.put_off {
            // SeqCst: after the gate was opened, see `admit`.
            let address = place.swap(0, Ordering::SeqCst);
            if address != 0 {
                wake(address);
            }
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
        assert!(matches!(moving.admit(me, 0x1000), Admitted::ForCloser(_)));
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
