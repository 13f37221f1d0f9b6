//! SIGBUS, in inline mode: it is how faults reach us, so no thread ever blocks it and no handler of the program's replaces
//! ours. The program reads back what it set all the same, and its own handler gets what is not ours.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use libc::{c_int, c_long};
use userswap_hook::{Bypass, Call, Decision};
use userswap_sys::signals::kernel::{self, Action};
use userswap_sys::signals::{self, Blocked};

use crate::memory::{words, write_words};
use crate::threads::{InFlight, Thread};
use crate::{raw, state};

const BUS: u64 = 1 << (libc::SIGBUS - 1);

/// The length of a mask that the kernel takes.
const MASK_LEN: usize = 8;
/// Where an action's mask stands.
const MASK_AT: usize = 24;

/// The calls looked at here.
pub(crate) const CALLS: [c_long; 11] = [
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigsuspend,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    SYS_IO_PGETEVENTS,
    libc::SYS_execve,
    libc::SYS_execveat,
];
const SYS_IO_PGETEVENTS: c_long = 333;

/// The signals whose handlers the program wants SIGBUS blocked in; bit N is signal N + 1.
static MASKED: AtomicU64 = AtomicU64::new(0);

/// Our handler is in force; what the program has for SIGBUS is only noted.
static NOTED: AtomicBool = AtomicBool::new(false);

/// From here on the program's action for SIGBUS does not reach the kernel.
pub(crate) fn note_actions() {
    NOTED.store(true, Ordering::SeqCst);
}

/// What the process was given before this library was loaded.
pub(crate) fn start() {
    let mask = kernel::mask();
    // The main thread has what each has from its first call on.
    let thread = Thread::current();
    if mask & BUS != 0 {
        if let Some(thread) = thread {
            thread.blocks_bus.set(true);
        }
        kernel::set_mask(mask & !BUS);
    }
    for signal in 1..=64 {
        let action = kernel::action(signal);
        let handled = ![libc::SIG_DFL, libc::SIG_IGN].contains(&action.handler);
        if signal != libc::SIGBUS && handled && action.mask & BUS != 0 {
            MASKED.fetch_or(1 << (signal - 1), Ordering::Relaxed);
            let without = Action {
                mask: action.mask & !BUS,
                ..action
            };
            // Refused only where there is no such signal: it has just been asked for.
            // SAFETY: the action that the signal has, but for its mask.
            let _ = unsafe { kernel::set_action(signal, &without) };
        }
    }
}

/// Before a call, whose memory is there: `Some`: it is not to be made.
pub(crate) fn before(thread: &Thread, number: usize, call: &mut Call) -> Option<Decision> {
    let now = thread.call(number);
    match call.nr as c_long {
        libc::SYS_rt_sigprocmask => change_mask(thread, now, call),
        libc::SYS_rt_sigaction if call.args[0] as c_int == libc::SIGBUS => {
            return Some(change_action(thread, call));
        }
        libc::SYS_rt_sigaction => change_other_action(thread, now, call),
        // A child that borrows this memory leaves it as it is.
        libc::SYS_sigaltstack if !thread.is_borrowed() => {
            return Some(thread.alternate.change(call));
        }
        libc::SYS_rt_sigsuspend => open(thread, now, call, [0, 1]),
        libc::SYS_ppoll => open(thread, now, call, [3, 4]),
        libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => open(thread, now, call, [4, 5]),
        libc::SYS_pselect6 | SYS_IO_PGETEVENTS => open_sized(thread, now, call),
        // What is executed begins with the mask that the program believes in.
        libc::SYS_execve | libc::SYS_execveat if thread.blocks_bus.get() => {
            kernel::set_mask(kernel::mask() | BUS);
        }
        _ => {}
    }
    None
}

/// After it.
pub(crate) fn after(thread: &Thread, call: &Call, result: isize) {
    let Some(number) = call.data.checked_sub(1) else {
        return;
    };
    let now = thread.call(number);
    match call.nr as c_long {
        libc::SYS_rt_sigprocmask => {
            let before = now.blocked_bus.get();
            if result != 0 {
                thread.blocks_bus.set(before);
            } else if before {
                add_bus(call.args[2]);
            }
        }
        libc::SYS_rt_sigaction => {
            let (before, bit) = (now.blocked_bus.get(), signal_bit(call));
            if result != 0 {
                note_masked(bit, before);
            } else if before {
                add_bus(call.args[2].wrapping_add(if call.args[2] == 0 { 0 } else { MASK_AT }));
            }
        }
        libc::SYS_execve | libc::SYS_execveat if thread.blocks_bus.get() => {
            kernel::set_mask(kernel::mask() & !BUS);
        }
        _ => {}
    }
}

/// Adds SIGBUS to a mask that the kernel has just written; 0: it has not.
fn add_bus(at: usize) {
    if at != 0
        && let Some([mask]) = words::<1>(at, &(0..0))
    {
        write_words(at, [mask | BUS]);
    }
}

fn change_mask(thread: &Thread, now: &InFlight, call: &mut Call) {
    if call.args[1] == 0 || call.args[3] != MASK_LEN {
        return;
    }
    let Some([mask]) = words::<1>(call.args[1], &thread.stack_above(call)) else {
        return;
    };
    let has = mask & BUS != 0;
    // Before the call: a handler that runs when it returns may never come back.
    match call.args[0] as c_int {
        libc::SIG_BLOCK => thread.blocks_bus.set(thread.blocks_bus.get() || has),
        libc::SIG_UNBLOCK => thread.blocks_bus.set(thread.blocks_bus.get() && !has),
        libc::SIG_SETMASK => thread.blocks_bus.set(has),
        _ => return,
    }
    if has {
        call.args[1] = lend(now, [mask & !BUS, 0, 0, 0]);
    }
}

/// Gives the kernel words of ours to read; returns their address.
fn lend(now: &InFlight, words: [u64; 4]) -> usize {
    for (word, value) in now.words.iter().zip(words) {
        word.set(value);
    }
    now.words.as_ptr() as usize
}

/// A mask for the time of a call.
fn open(thread: &Thread, now: &InFlight, call: &mut Call, [mask, len]: [usize; 2]) {
    if call.args[mask] == 0 || call.args[len] != MASK_LEN {
        return;
    }
    if let Some([set]) = words::<1>(call.args[mask], &thread.stack_above(call))
        && set & BUS != 0
    {
        call.args[mask] = lend(now, [set & !BUS, 0, 0, 0]);
    }
}

/// The same, where the last argument is a pointer to the mask's address and length.
fn open_sized(thread: &Thread, now: &InFlight, call: &mut Call) {
    let readable = thread.stack_above(call);
    let Some([at, len]) = words::<2>(call.args[5], &readable) else {
        return;
    };
    if at == 0 || len as usize != MASK_LEN {
        return;
    }
    if let Some([set]) = words::<1>(at as usize, &readable)
        && set & BUS != 0
    {
        let lent = lend(now, [set & !BUS, 0, 0, 0]);
        call.args[5] = lend(now, [set & !BUS, lent as u64, len, 0]) + size_of::<u64>();
    }
}

fn signal_bit(call: &Call) -> u64 {
    let signal = call.args[0] as u32;
    if (1..=64).contains(&signal) {
        1 << (signal - 1)
    } else {
        0
    }
}

fn note_masked(bit: u64, masked: bool) {
    // Relaxed: the program orders its own calls.
    if masked {
        MASKED.fetch_or(bit, Ordering::Relaxed);
    } else {
        MASKED.fetch_and(!bit, Ordering::Relaxed);
    }
}

/// A handler for another signal, in which SIGBUS is not to be blocked.
fn change_other_action(thread: &Thread, now: &InFlight, call: &mut Call) {
    let bit = signal_bit(call);
    // Relaxed: see above.
    now.blocked_bus
        .set(MASKED.load(Ordering::Relaxed) & bit != 0);
    if call.args[1] == 0 || call.args[3] != MASK_LEN {
        return;
    }
    let Some([handler, flags, restorer, mask]) =
        words::<4>(call.args[1], &thread.stack_above(call))
    else {
        return;
    };
    let has = mask & BUS != 0;
    if !thread.is_borrowed() {
        note_masked(bit, has);
    }
    if has {
        call.args[1] = lend(now, [handler, flags, restorer, mask & !BUS]);
    }
}

/// The program's own action for SIGBUS.
fn change_action(thread: &Thread, call: &Call) -> Decision {
    if !NOTED.load(Ordering::SeqCst) {
        // SAFETY: the program is making this very call.
        if let Ok(result) = state::unseen(|| unsafe { raw::make(call) }) {
            return Decision::Return(result);
        }
    }
    let [_, new, old, len, ..] = call.args;
    let fault = Decision::Return(-(libc::EFAULT as isize));
    if len != MASK_LEN {
        return Decision::Return(-(libc::EINVAL as isize));
    }
    let before = signals::earlier();
    if new != 0 {
        let Some([handler, flags, restorer, mask]) = words::<4>(new, &thread.stack_above(call))
        else {
            return fault;
        };
        // A child that borrows this memory has actions of its own, which end with it or with what it executes.
        if !thread.is_borrowed() {
            let (_blocked, _bypass) = (Blocked::new(), Bypass::new());
            signals::set_earlier(&Action {
                handler: handler as usize,
                flags,
                restorer: restorer as usize,
                mask,
            });
        }
    }
    let Action {
        handler,
        flags,
        restorer,
        mask,
    } = before;
    if old != 0 && !write_words(old, [handler as u64, flags, restorer as u64, mask]) {
        return fault;
    }
    Decision::Return(0)
}
