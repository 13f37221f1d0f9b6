//! A system call as its handlers see it.

/// Numbers from here on are always looked at: nobody knows them.
pub(crate) const NUMBERS: usize = 512;

/// One system call that the program is about to make, or has made.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The system call's number.
    pub nr: usize,
    /// Its six arguments, used or not.
    pub args: [usize; 6],
    /// For the handlers: what [`Handlers::before`] leaves here, [`Handlers::after`] of the same call finds. 0 at first;
    /// and 0 again after calls that start a thread, `vfork` and `clone3`, which keep nothing on the stack.
    pub data: usize,
    /// The program's stack pointer. A call that was left by `longjmp` or cancelled never reaches `after`; the next call
    /// of that thread on the same stack, from a higher address, shows that it is gone.
    pub stack: usize,
    /// The address behind the call's instruction in the program's code.
    pub site: usize,
}

impl Call {
    /// A call that was not made here; its stack and site are unknown.
    #[must_use]
    pub fn new(nr: usize, args: [usize; 6]) -> Self {
        Call {
            nr,
            args,
            data: 0,
            stack: 0,
            site: 0,
        }
    }
}

/// What to do with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Make it, with the arguments as they stand in the [`Call`] now, and report the result to [`Handlers::after`].
    /// Arguments of calls that start a thread, `vfork`, `clone3` and `rt_sigreturn` cannot be changed.
    Run,
    /// Do not make it: the program sees this as the kernel's answer (an error as its negated number).
    Return(isize),
}

/// Who looks at the calls.
///
/// They run on the thread that makes the call, on its own stack, at any instruction of its libraries: inside
/// `malloc`, in a signal handler, in the child of `vfork`, in a thread whose libc set-up is not finished. They must not
/// allocate, take locks that code which makes system calls may hold, panic, or change `errno` by means other than libc calls
/// (which is put back). A signal may interrupt them, and its handler may make calls, which come here again: block
/// signals where that is not wanted. What they call in libc is intercepted in turn unless a [`crate::Bypass`] is held.
///
/// # Stack
/// About 3.5 KiB of the caller's stack are in use while they run (vector registers are saved there), and 200 bytes
/// otherwise.
pub trait Handlers: Sync {
    /// Whether calls with this number are looked at. Asked once for each number, when the hook is installed.
    fn wants(&self, nr: usize) -> bool {
        let _ = nr;
        true
    }

    /// Whether calls with this number, among those looked at, need only be noted while nobody needs to hear of them: what they do
    /// to memory is over when they return, and the handlers would change nothing about them. See [`crate::note_only`].
    fn only_noted(&self, nr: usize) -> bool {
        let _ = nr;
        false
    }

    /// Before a call that is looked at is made by a thread that holds a [`crate::Bypass`], in a signal handler perhaps: nothing
    /// can be changed about it.
    fn before_bypassed(&self, call: &Call) {
        let _ = call;
    }

    /// Before the call is made.
    fn before(&self, call: &mut Call) -> Decision;

    /// After it, with the kernel's answer (an error is its negated number). Of a call that makes a process or a
    /// thread, both sides come here: the child with 0.
    fn after(&self, call: &Call, result: isize);
}
