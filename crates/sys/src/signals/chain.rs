//! Delivering a SIGBUS to the handler that was there before ours, as nearly as the kernel would have.
//!
//! | the earlier action | what happens |
//! |---|---|
//! | default, or ignored and an access caused it | the default is restored; the access repeats and ends the process |
//! | default, and somebody sent it | the default is restored and the signal sent again |
//! | ignored, and somebody sent it | nothing |
//! | a handler | called with three arguments (SA_SIGINFO) or one, its sa_mask added to what the program had blocked |
//!
//! SA_RESETHAND is honoured: such a handler gets one signal, the next meets the default. Two things differ from the kernel.
//! SIGBUS stays open while the earlier handler runs, also without SA_NODEFER, since it may touch swapped memory; if it
//! faults elsewhere it is entered again instead of being killed. And it runs on the stack that our handler runs on, whatever
//! its SA_ONSTACK says.

use std::ffi::{c_int, c_void};
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::Fault;
use super::kernel::{self, Action};

/// The action before ours; null is the default action. What it points to is never freed: a handler on another thread may
/// be reading it, and there is one for each install.
static EARLIER: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

pub(super) fn remember(action: &libc::sigaction) {
    let earlier = match action.sa_sigaction {
        libc::SIG_DFL => ptr::null_mut(),
        _ => Box::into_raw(Box::new(*action)),
    };
    EARLIER.store(earlier, Ordering::Release);
}

/// The action that SIGBUS has for the program.
pub fn earlier() -> Action {
    // SAFETY: null, or published whole by `remember`, never freed.
    unsafe { EARLIER.load(Ordering::Acquire).as_ref() }.map_or(Action::DEFAULT, Action::from_libc)
}

/// Gives SIGBUS another action for the program, as its own sigaction would; ours stays in force. Allocates.
pub fn set_earlier(action: &Action) {
    remember(&action.to_libc());
}

/// Delivers `fault` to the handler that was installed before ours. Returns if that handler does, or if the repeated access
/// is to be the end.
///
/// A [`super::Handler`] need not call this: [`super::Verdict::NotOurs`] does.
pub fn chain(fault: Fault<'_>) {
    let earlier = loop {
        let earlier = EARLIER.load(Ordering::Acquire);
        if earlier.is_null() {
            return die(fault);
        }
        // SAFETY: published whole by `remember`, never freed.
        let action = unsafe { &*earlier };
        if action.sa_flags & libc::SA_RESETHAND == 0 {
            break action;
        }
        // One signal for this handler: whoever takes it out delivers.
        let taken = EARLIER.compare_exchange(
            earlier,
            ptr::null_mut(),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        if taken.is_ok() {
            break action;
        }
    };
    if earlier.sa_sigaction == libc::SIG_IGN {
        if fault.is_synchronous() {
            // An ignored fault would repeat for ever; the kernel ends such a process too.
            die(fault);
        }
        return;
    }
    // What the program had blocked, and what the handler asked for; SIGBUS never (see the module).
    let asked = first_word(&earlier.sa_mask);
    let blocked = (fault.blocked_before() | asked) & !bit(libc::SIGBUS);
    let ours = set_mask(blocked);
    if earlier.sa_flags & libc::SA_SIGINFO != 0 {
        type WithInfo = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
        // SAFETY: neither of the two special values, and installed with SA_SIGINFO: a function of this shape.
        let handler = unsafe { mem::transmute::<usize, WithInfo>(earlier.sa_sigaction) };
        handler(fault.signal, fault.info, fault.context);
    } else {
        type Plain = extern "C" fn(c_int);
        // SAFETY: neither of the two special values, and installed without SA_SIGINFO: a function of this shape.
        let handler = unsafe { mem::transmute::<usize, Plain>(earlier.sa_sigaction) };
        handler(fault.signal);
    }
    set_mask(ours);
}

/// Restores the default action, so that the signal ends the process once our handler has returned.
fn die(fault: Fault<'_>) {
    // By the raw call: a program's interposed `sigaction` would only note down what it is told, and so would we.
    // It can be refused for no signal of this number.
    // SAFETY: the default action involves no code of ours.
    let _ = unsafe { kernel::set_action(libc::SIGBUS, &Action::DEFAULT) };
    if fault.is_synchronous() {
        return;
    }
    // No access will repeat, so the same signal, sender included, is queued again; it waits until our handler returns.
    // SAFETY: plain system calls; `info` is this delivery's.
    unsafe {
        let (process, thread) = (
            libc::syscall(libc::SYS_getpid),
            libc::syscall(libc::SYS_gettid),
        );
        let queued = libc::syscall(
            libc::SYS_rt_tgsigqueueinfo,
            process,
            thread,
            fault.signal,
            fault.info,
        );
        if queued != 0 {
            libc::syscall(libc::SYS_tgkill, process, thread, fault.signal);
        }
    }
}

/// Sets this thread's signal mask, and returns what it was.
pub(super) fn set_mask(mask: u64) -> u64 {
    kernel::set_mask(mask)
}

const fn bit(signal: c_int) -> u64 {
    1 << (signal - 1)
}

/// Signals 1 to 64 of libc's longer set, which is all that Linux has.
fn first_word(set: &libc::sigset_t) -> u64 {
    kernel::first_word(set)
}
