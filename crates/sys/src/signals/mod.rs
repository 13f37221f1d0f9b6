//! The one SIGBUS handler of the process.
//!
//! userfaultfd with the SIGBUS feature turns a touch of a missing page into SIGBUS for the thread that touched it. The
//! handler installed here saves what must be saved, asks the engine, and passes what is not the engine's to the handler
//! that was there before ([`chain`]).
//!
//! While the engine's handler runs, every signal that can wait is blocked on that thread: a program's own handler that
//! interrupted it could touch a missing page, which would wait for a fault that its own thread is in the middle of.

mod blocked;
mod chain;
mod fault;
pub mod kernel;
mod stderr;

use std::ffi::{c_int, c_void};
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError};

pub use blocked::{Blocked, blocked};
pub use chain::{chain, earlier, set_earlier};
pub use fault::Fault;
pub use stderr::stderr_line;

use crate::Errno;
use kernel::Action;

/// What a handler made of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The page is there now (or will be found there, or not, when the access repeats).
    Handled,
    /// The fault is none of the engine's, or cannot be resolved: the earlier handler's turn.
    NotOurs,
}

/// The engine's part of the handler.
pub type Handler = fn(Fault<'_>) -> Verdict;

/// Which stack the handler runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stack {
    /// The stack of the faulting thread. A touch of swapped memory happens on a good stack, with room as for any call;
    /// the alternate stacks that Rust gives its threads are 8 KiB, too little for a decompressor.
    #[default]
    Current,
    /// The thread's alternate stack where it has one (`SA_ONSTACK`). For programs whose stacks have no room for a handler,
    /// such as Go's, and which therefore demand this.
    Alternate,
}

/// What [`install`] or [`reinstall`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// The handler is in force now, and was not before.
    Now,
    /// It was in force already; nothing changed.
    Already,
}

/// The engine's handler, a [`Handler`]; null before the first install.
static HANDLER: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Serialises installing: which stack was asked for, `None` before the first install. Never taken in the handler.
static INSTALL: Mutex<Option<Stack>> = Mutex::new(None);

/// Installs the process-wide SIGBUS handler, on the faulting thread's own stack. See [`install_on`].
///
/// # Safety
/// As [`install_on`].
pub unsafe fn install(handler: Handler) -> Result<Installed, Errno> {
    // SAFETY: the same contract.
    unsafe { install_on(handler, Stack::Current) }
}

/// Installs the process-wide SIGBUS handler. A second call changes nothing, whichever handler it names.
///
/// # Safety
/// `handler` runs inside a synchronous signal handler, at any instruction of any thread: it calls nothing that the
/// interrupted code may be in the middle of (the allocator, a lock's owner), and does not panic.
pub unsafe fn install_on(handler: Handler, stack: Stack) -> Result<Installed, Errno> {
    let mut installed = INSTALL.lock().unwrap_or_else(PoisonError::into_inner);
    if installed.is_some() {
        return Ok(Installed::Already);
    }
    HANDLER.store(handler as *mut (), Ordering::Release);
    // The first use of each looks up the vDSO, which does not belong in a fault.
    crate::timing::now_ns();
    crate::cpu::current();
    take_over(stack)?;
    *installed = Some(stack);
    Ok(Installed::Now)
}

/// Puts the handler back in force if a program has replaced it; the replacement becomes the earlier handler.
///
/// Only for a replacement that does *not* itself call the handler it replaced (ours): the two would call each other
/// without end. `INVAL` before the first install.
pub fn reinstall() -> Result<Installed, Errno> {
    let installed = INSTALL.lock().unwrap_or_else(PoisonError::into_inner);
    let stack = (*installed).ok_or(Errno::INVAL)?;
    if is_in_force() {
        return Ok(Installed::Already);
    }
    take_over(stack)?;
    Ok(Installed::Now)
}

/// Whether SIGBUS leads to the handler installed here.
pub fn is_in_force() -> bool {
    current_action().sa_sigaction == entry as *const () as usize
}

/// Lets SIGBUS through on this thread, whatever the program has blocked.
pub fn open_faults() {
    chain::set_mask(blocked() & !(1 << (libc::SIGBUS - 1)));
}

fn take_over(stack: Stack) -> Result<(), Errno> {
    // The earlier handler is known before ours is in force: a fault in between finds it.
    let found = current_action();
    chain::remember(&found);
    let ours = kernel::with_restorer(Action::from_libc(&action(&found, stack)));
    // Past libc: programs put functions of their own in its place, and what those wait for a thread of the program may hold that
    // waits for them (Firefox: a lock of the dynamic linker's).
    // SAFETY: `entry` keeps to what a handler may do.
    let replaced = unsafe { kernel::set_action(libc::SIGBUS, &ours) }?;
    if replaced.handler != found.sa_sigaction {
        // Another thread installed its own in between; that one is the earlier handler.
        chain::remember(&replaced.to_libc());
    }
    Ok(())
}

/// What the kernel has, whatever a `sigaction` in between would say.
fn current_action() -> libc::sigaction {
    kernel::action(libc::SIGBUS).to_libc()
}

fn action(earlier: &libc::sigaction, stack: Stack) -> libc::sigaction {
    // SAFETY: `sigaction` is plain data, for which zeros are a value; what matters is set below.
    let mut ours: libc::sigaction = unsafe { mem::zeroed() };
    ours.sa_sigaction = entry as *const () as usize;
    // SA_SIGINFO: the faulting address comes in the siginfo.
    ours.sa_flags = libc::SA_SIGINFO;
    // SA_RESTART concerns only a SIGBUS that another process sends while a system call waits: as the program had it.
    ours.sa_flags |= earlier.sa_flags & libc::SA_RESTART;
    // SA_ONSTACK only on request, see `Stack`.
    if stack == Stack::Alternate {
        ours.sa_flags |= libc::SA_ONSTACK;
    }
    // Not SA_NODEFER: a fault of the engine on swapped memory is a bug, and with SIGBUS blocked the kernel ends the
    // process there and then instead of letting it recurse. `chain` opens SIGBUS again for the earlier handler.
    // Not SA_RESETHAND: there is more than one fault.
    //
    // Everything is blocked (see the module) except the signals that a crash of the handler itself would raise, which kill
    // without a word when blocked, and SIGSYS, by which system-call filters answer the calls that the handler makes.
    // SAFETY: a sigset of ours; every number is a signal's.
    unsafe {
        libc::sigfillset(&mut ours.sa_mask);
        for open in CRASHES.into_iter().chain([libc::SIGSYS]) {
            libc::sigdelset(&mut ours.sa_mask, open);
        }
    }
    ours
}

/// What the kernel calls.
extern "C" fn entry(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the address of this thread's errno, valid while the thread lives.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let saved = unsafe { *errno };
    // SAFETY: with SA_SIGINFO the kernel passes a siginfo and a ucontext, both valid until this function returns.
    let fault = unsafe { Fault::new(signal, info, context) };
    if !fault.is_synchronous() || ask(fault) == Verdict::NotOurs {
        chain(fault);
    }
    // SAFETY: as above.
    unsafe { *errno = saved };
}

fn ask(fault: Fault<'_>) -> Verdict {
    let handler = HANDLER.load(Ordering::Acquire);
    if handler.is_null() {
        return Verdict::NotOurs;
    }
    // SAFETY: only `install_on` writes it, from a `Handler`.
    let handler = unsafe { mem::transmute::<*mut (), Handler>(handler) };
    handler(fault)
}

/// What a crash raises, other than SIGBUS: blocked, it would kill without a word.
const CRASHES: [c_int; 5] = [
    libc::SIGSEGV,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGTRAP,
    libc::SIGABRT,
];

/// The signals that a thread inside the engine keeps open, as a mask: crashes, faults on swapped memory, and SIGSYS.
fn unblockable() -> u64 {
    CRASHES
        .into_iter()
        .chain([libc::SIGBUS, libc::SIGSYS])
        .fold(0, |mask, signal| mask | 1 << (signal - 1))
}
