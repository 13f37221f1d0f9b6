//! What is known of each thread of the program, in inline mode: its stack, the calls it is in, and what it has been told of
//! its signal mask.
//!
//! A thread's own part is used by the thread and by signal handlers that interrupt it, and found without a look at memory
//! that may be swapped out.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use userswap::held::{Holder, MOST_CALLS};
use userswap_hook::{Bypass, Call, Note, thread_word};
use userswap_sys::signals::Blocked;
use userswap_sys::{cpu, own};

use crate::alternate::Alternate;
use crate::stop::{Why, stop_inline};
use crate::{stacks, state};

/// A thread of the program; used again by another when it has ended.
pub(crate) struct Thread {
    in_use: AtomicBool,
    /// Made before this one.
    next: *const Thread,
    pub(crate) holder: &'static Holder,
    /// The call it is in, where that is only noted.
    note: Note,
    /// Its first address and its end; equal: not known yet.
    stack: Cell<(usize, usize)>,
    /// One of ours: none of its calls is the program's.
    ours: Cell<bool>,
    /// As the program believes.
    pub(crate) blocks_bus: Cell<bool>,
    pub(crate) alternate: Alternate,
    calls: [InFlight; MOST_CALLS],
}

/// All there ever were.
static LAST: AtomicPtr<Thread> = AtomicPtr::new(std::ptr::null_mut());

/// A call that the thread is in.
#[derive(Default)]
pub(crate) struct InFlight {
    /// The stack pointer it was made at.
    stack: Cell<usize>,
    on_own_stack: Cell<bool>,
    /// It makes a thread or a process: it stays until the maker comes back from it, whoever else uses this thread's memory
    /// meanwhile (a child of vfork does).
    makes: Cell<bool>,
    /// [`Thread::blocks_bus`] before it.
    pub(crate) blocked_bus: Cell<bool>,
    /// What the kernel reads in the place of the program's.
    pub(crate) words: [Cell<u64>; 4],
}

impl Thread {
    /// The calling thread's own; `None`: it is one of ours.
    pub(crate) fn current() -> Option<&'static Self> {
        let word = thread_word();
        // SAFETY: the word is this thread's, 0 or from below, where it is never freed.
        let known = unsafe { (word.read_volatile() as *const Self).as_ref() };
        let thread = known.unwrap_or_else(|| {
            let (_blocked, _bypass) = (Blocked::new(), Bypass::new());
            let thread = Self::take();
            thread.stack.set((0, 0));
            thread.ours.set(false);
            thread.blocks_bus.set(false);
            // SAFETY: as above.
            unsafe { word.write_volatile(std::ptr::from_ref(thread) as usize) };
            if !thread.alternate.begin() {
                stop_inline(Why::Stacks);
            }
            thread
        });
        (!thread.ours.get()).then_some(thread)
    }

    /// One that no thread uses.
    fn take() -> &'static Self {
        let free = Self::all().find(|thread| !thread.in_use.swap(true, Ordering::Acquire));
        if let Some(thread) = free {
            return thread;
        }
        let new = Box::leak(Box::new(Self {
            in_use: AtomicBool::new(true),
            next: LAST.load(Ordering::Acquire),
            holder: Holder::make(),
            note: Note::new(),
            stack: Cell::new((0, 0)),
            ours: Cell::new(false),
            blocks_bus: Cell::new(false),
            alternate: Alternate::new(),
            calls: Default::default(),
        }));
        // Release: whoever finds it finds it whole.
        while let Err(last) = LAST.compare_exchange(
            new.next.cast_mut(),
            new,
            Ordering::Release,
            Ordering::Acquire,
        ) {
            new.next = last;
        }
        new
    }

    fn all() -> impl Iterator<Item = &'static Self> {
        let mut at = LAST.load(Ordering::Acquire).cast_const();
        std::iter::from_fn(move || {
            // SAFETY: null, or from `take`: never freed. What is not the owner's to touch is not touched: `in_use`, `next`,
            // `holder` and `note` are for all.
            let thread = unsafe { at.as_ref() }?;
            at = thread.next;
            Some(thread)
        })
    }

    /// In a child of fork: the other threads are not here.
    pub(crate) fn is_the_only_one(&self) {
        for other in Self::all().filter(|other| !std::ptr::eq(*other, self)) {
            other.holder.end(0);
            other.note.clear();
            other.in_use.store(false, Ordering::Release);
        }
    }

    /// What threads have noted of the calls that they are in.
    pub(crate) fn notes() -> impl Iterator<Item = &'static Note> {
        Self::all().map(|thread| &thread.note)
    }

    /// A call begins; returns its number. `None`: nothing is kept of it, and nothing is swapped out any more, or the thread is
    /// ours.
    pub(crate) fn begin(&'static self, call: &Call, makes: bool) -> Option<usize> {
        let on_own_stack = self.is_on_own_stack(call.stack);
        if !on_own_stack && stacks::containing(call.stack).is_none() {
            if own::is_thread(cpu::thread()) {
                self.ours.set(true);
                return None;
            }
            if !own::thread_is_coming() && state::follows_calls() {
                // A fault there could not be handled.
                stop_inline(Why::Stack);
            }
        }
        self.end_stale(call.stack, on_own_stack);
        let number = self.holder.begin().or_else(|| {
            if state::follows_calls() {
                stop_inline(Why::Nesting);
            }
            if state::follows_calls() {
                return None;
            }
            // Nothing depends on what those under way hold: they are forgotten.
            self.holder.end(0);
            self.holder.begin()
        })?;
        let now = &self.calls[number];
        now.stack.set(call.stack);
        now.on_own_stack.set(on_own_stack);
        now.makes.set(makes);
        now.blocked_bus.set(self.blocks_bus.get());
        Some(number)
    }

    fn is_on_own_stack(&'static self, at: usize) -> bool {
        let (start, end) = self.stack.get();
        if start == end
            && let Some(stack) = stacks::containing(at)
        {
            self.stack.set((stack.start, stack.end));
            self.note.begin(&stack);
            return true;
        }
        (start..end).contains(&at)
    }

    /// Calls that a handler jumped out of are over: those made further down the stack than this one. And those made on the
    /// stack of handlers, when this is not.
    fn end_stale(&self, stack: usize, on_own_stack: bool) {
        if on_own_stack {
            self.note.end_stale(stack);
        }
        while let Some(last) = self.holder.depth().checked_sub(1) {
            let before = &self.calls[last];
            let stale = on_own_stack && (!before.on_own_stack.get() || before.stack.get() <= stack);
            if before.makes.get() || !stale {
                return;
            }
            self.holder.end(last);
        }
    }

    pub(crate) fn call(&self, number: usize) -> &InFlight {
        &self.calls[number]
    }

    /// The thread or process is made, on the side of who made it.
    pub(crate) fn has_made(&self) {
        let made = (0..self.holder.depth())
            .rev()
            .find(|&at| self.calls[at].makes.get());
        if let Some(made) = made {
            self.blocks_bus.set(self.calls[made].blocked_bus.get());
            self.holder.end(made);
        }
    }

    /// Whether this is a child that borrows the thread's memory: the thread itself waits in a call that makes one.
    pub(crate) fn is_borrowed(&self) -> bool {
        let under_way = self.holder.depth();
        // The last is the call that asks.
        (0..under_way.saturating_sub(1)).any(|at| self.calls[at].makes.get())
    }

    /// The part of the thread's stack that is in use by whoever called.
    pub(crate) fn stack_above(&self, call: &Call) -> Range<usize> {
        let (start, end) = self.stack.get();
        if (start..end).contains(&call.stack) {
            call.stack..end
        } else {
            0..0
        }
    }

    /// The thread makes no more calls.
    pub(crate) fn ends(&self) {
        let (_blocked, _bypass) = (Blocked::new(), Bypass::new());
        self.alternate.end();
        self.note.end();
        self.holder.end(0);
        // SAFETY: the word is this thread's.
        unsafe { thread_word().write_volatile(0) };
        // Release: what was done with it, to whoever takes it.
        self.in_use.store(false, Ordering::Release);
    }
}
