//! Calls that are only noted, for as long as nobody needs to hear of them: the thread writes what it calls where everybody
//! can read it, makes the call, and takes the note away. That is a few plain stores; the handlers are not asked.
//!
//! Guarantee: when [`hear_of_all`] returns `true`, every call in flight that the handlers were not asked about is in its thread's
//! [`Note`] until it ends, and of every call that begins from then on the handlers are asked.
//!
//! Mechanism: a thread writes its note, *then* looks once more whether notes are enough, and only then makes the call; who wants
//! to hear of all calls says so, has the system put a full barrier into every running thread of the process (`membarrier`), and
//! then reads the notes. That barrier falls before the thread's look or behind its note: either the thread sees that notes are
//! not enough any more, takes its note away and asks, or the note is there to be read. So the thread itself needs no barrier.
//!
//! One note for each thread is enough. A signal handler that interrupts a call with a note finds it taken, and asks about its own
//! calls; the call, which is restarted from its instruction, keeps its note meanwhile. A note whose call was left (by `longjmp`, by
//! cancellation) stays until the thread makes a call from the same place of its stack or further up, which overwrites it.
//! Signal handlers on a stack of their own always ask: only calls on the thread's own stack are noted, so that this can be told.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::call::Call;
use crate::frame::{self, NOT_YET};
use crate::gate;

/// What a thread notes of the call that it makes. Written by the entry code of its thread, in this order; read by everybody.
#[repr(C)]
#[derive(Debug)]
pub struct Note {
    /// The thread's stack: first address and end; equal: nothing is noted.
    pub(crate) low: AtomicUsize,
    pub(crate) high: AtomicUsize,
    /// The stack pointer at the call; 0: no call is under way. Taken first, before anything else is written, so that no signal
    /// handler writes between.
    pub(crate) stack: AtomicUsize,
    /// Changes with each call, before the arguments do.
    pub(crate) turn: AtomicUsize,
    /// The call's number, written last; [`NOT_YET`] before.
    pub(crate) nr: AtomicUsize,
    pub(crate) args: [AtomicUsize; 6],
}

impl Note {
    /// One that no thread uses.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            low: AtomicUsize::new(0),
            high: AtomicUsize::new(0),
            stack: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
            nr: AtomicUsize::new(NOT_YET),
            args: [const { AtomicUsize::new(0) }; 6],
        }
    }

    /// The calling thread, whose stack is `stack`, notes its calls here from now on.
    pub fn begin(&'static self, stack: &Range<usize>) {
        self.clear();
        self.low.store(stack.start, Ordering::Relaxed);
        self.high.store(stack.end, Ordering::Relaxed);
        // SAFETY: the word is this thread's own; the note lives for ever.
        unsafe { (&raw mut (*frame::thread()).note).write_volatile(self) };
    }

    /// The calling thread notes nothing any more.
    pub fn end(&self) {
        // SAFETY: the word is this thread's own.
        unsafe { (&raw mut (*frame::thread()).note).write_volatile(std::ptr::null()) };
        self.clear();
    }

    /// There is no call: its thread is gone.
    pub fn clear(&self) {
        self.stack.store(0, Ordering::Relaxed);
    }

    /// The thread makes a call at `stack`, on its own stack: one that was made further down, or there, is over.
    pub fn end_stale(&self, stack: usize) {
        if self.stack.load(Ordering::Relaxed) <= stack {
            self.clear();
        }
    }

    /// The call that is noted, and its turn. To be asked when [`hear_of_all`] has returned.
    #[must_use]
    pub fn call(&self) -> Option<(usize, Call)> {
        let read = || {
            // Acquire: loads in this order, which is the reverse of the writer's. A turn that is the same before and after is
            // that of all between.
            let turn = self.turn.load(Ordering::Acquire);
            let stack = self.stack.load(Ordering::Acquire);
            let nr = self.nr.load(Ordering::Acquire);
            let args = std::array::from_fn(|at| self.args[at].load(Ordering::Acquire));
            let mut call = Call::new(nr, args);
            call.stack = stack;
            (turn, call)
        };
        loop {
            let (turn, call) = read();
            if call.stack == 0 {
                return None;
            }
            // Half written, or written meanwhile: the thread has not looked yet whether that is enough, and will find that
            // it is not.
            if call.nr == NOT_YET {
                return None;
            }
            if (turn, call) == read() {
                return Some((turn, call));
            }
        }
    }

    /// Whether the call of that turn is still under way.
    #[must_use]
    pub fn is_in(&self, turn: usize) -> bool {
        self.turn.load(Ordering::Acquire) == turn && self.stack.load(Ordering::Acquire) != 0
    }
}

impl Default for Note {
    fn default() -> Self {
        Self::new()
    }
}

/// From now on the handlers are not asked about calls that need only be noted (see [`crate::Handlers::only_noted`]).
/// `false`: this system has no barrier for [`hear_of_all`], and they are asked about every call.
pub fn note_only() -> bool {
    let possible = membarrier(REGISTER);
    if possible {
        gate::note_only(true);
    }
    possible
}

/// The handlers are asked about all calls from now on, and those in flight can be read from their notes. `false`: the system
/// has refused the barrier: there may be calls in flight that nobody knows of.
#[must_use]
pub fn hear_of_all() -> bool {
    let noted = gate::notes_are_enough();
    gate::note_only(false);
    // A child of fork may have to say again that it wants it.
    !noted || membarrier(REGISTER) && membarrier(BARRIER)
}

/// `MEMBARRIER_CMD_PRIVATE_EXPEDITED`, and what makes it ready for use.
const BARRIER: usize = 8;
const REGISTER: usize = 16;

fn membarrier(command: usize) -> bool {
    // SAFETY: takes no memory.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}
