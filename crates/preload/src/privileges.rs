//! Our threads run with the privileges of the program's.
//!
//! Users and groups belong to a thread. libc has all threads of a process change them together, ours, too, and ends the process
//! where one of them is answered otherwise than the rest. So before one of ours makes such a call it takes over what the program
//! has changed for its own threads alone: capabilities, and whether they outlast a change of user.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use libc::c_long;
use userswap_hook::Call;
use userswap_sys::cpu;

use crate::{owner, raw};

/// The calls by which the program changes privileges of the calling thread alone.
pub(crate) const CHANGES: [c_long; 2] = [libc::SYS_capset, libc::SYS_prctl];

/// The calls that libc has every thread make.
pub(crate) const EVERYWHERE: [c_long; 7] = [
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
];

/// The thread of the program whose privileges ours take over; 0: they all have the same.
static WHOSE: AtomicU32 = AtomicU32::new(0);

/// Its securebits, "keep capabilities" among them, which nobody else can ask for.
static SECUREBITS: AtomicUsize = AtomicUsize::new(0);

/// "Version 3" of the interface: two words of each set.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    thread: u32,
}

/// A thread of the program has made `call`, one of [`CHANGES`], with success.
pub(crate) fn changed(call: &Call) {
    let changes_bits = [libc::PR_SET_KEEPCAPS, libc::PR_SET_SECUREBITS];
    if call.nr as c_long == libc::SYS_prctl && !changes_bits.contains(&(call.args[0] as i32)) {
        return;
    }
    // A child that borrows this memory (vfork) changes its own.
    if !owner::is_this_process() {
        return;
    }
    let bits = prctl(libc::PR_GET_SECUREBITS, 0);
    SECUREBITS.store(bits.max(0) as usize, Ordering::Relaxed);
    // Release: with the bits.
    WHOSE.store(cpu::thread(), Ordering::Release);
}

/// In a child of fork: the thread that is left has what it had, and those that it starts have the same.
pub(crate) fn only_this_thread() {
    WHOSE.store(0, Ordering::Relaxed);
}

/// The calling thread, one of ours, is about to make one of the calls of [`EVERYWHERE`], in libc's signal handler. Whoever has
/// called for it makes the call last, and still has the privileges it will make it with.
pub(crate) fn take_over() {
    let thread = WHOSE.load(Ordering::Acquire);
    if thread == 0 {
        return;
    }
    // One that has ended left the others as they are.
    let process = make(libc::SYS_getpid, [0; 3]) as usize;
    let is_there = make(libc::SYS_tgkill, [process, thread as usize, 0]) == 0;
    let thread = if is_there { thread } else { process as u32 };
    // Each set in two words: effective, permitted, inheritable, and again.
    let mut sets = [0; 6];
    // All that it may have in effect, for what comes next.
    if capabilities(libc::SYS_capget, 0, &mut sets) {
        (sets[0], sets[3]) = (sets[1], sets[4]);
        capabilities(libc::SYS_capset, 0, &mut sets);
    }
    let bits = SECUREBITS.load(Ordering::Relaxed);
    if prctl(libc::PR_SET_SECUREBITS, bits) != 0 {
        // All that a thread may change without privileges.
        let keep = bits & libc::SECBIT_KEEP_CAPS as usize != 0;
        prctl(libc::PR_SET_KEEPCAPS, usize::from(keep));
    }
    if capabilities(libc::SYS_capget, thread, &mut sets)
        || capabilities(libc::SYS_capget, process as u32, &mut sets)
    {
        capabilities(libc::SYS_capset, 0, &mut sets);
    }
}

/// Asks for the capabilities of a thread, or sets those of the calling one (0). Whether that may be.
fn capabilities(call: c_long, thread: u32, sets: &mut [u32; 6]) -> bool {
    let header = Header {
        version: VERSION,
        thread,
    };
    let arguments = [&raw const header as usize, sets.as_mut_ptr() as usize, 0];
    make(call, arguments) == 0
}

fn prctl(option: i32, argument: usize) -> isize {
    make(libc::SYS_prctl, [option as usize, argument, 0])
}

/// Makes a call of ours about privileges: of a thread's own, or a question.
fn make(call: c_long, arguments: [usize; 3]) -> isize {
    let [first, second, third] = arguments;
    let arguments = [first, second, third, 0, 0, 0];
    // SAFETY: of the calls made here only capget and capset use memory, a header and three sets of two words, which the caller
    // has.
    unsafe { raw::make(&Call::new(call as usize, arguments)) }
}
