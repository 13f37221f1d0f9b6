//! What a process does that eviction cannot be made safe with: what is out comes back, and nothing leaves any more; or, where
//! that is enough and the host permits it, handler threads take over from the program's own.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use userswap::{FaultMode, Process};
use userswap_hook::{Bypass, Call};
use userswap_sys::signals::Blocked;

use crate::{monitor, owner, raw, state};

/// Why eviction cannot go on: the kernel would use memory without our knowing, a fault could not be handled, or the program wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Why {
    Rings = 1,
    Filter,
    OwnMemory,
    UnknownCall,
    Stack,
    Nesting,
    SharedThread,
    Faults,
    Stacks,
    Code,
    Unreadable,
    Locked,
    Read,
}

const ALL: [Why; 13] = [
    Why::Rings,
    Why::Filter,
    Why::OwnMemory,
    Why::UnknownCall,
    Why::Stack,
    Why::Nesting,
    Why::SharedThread,
    Why::Faults,
    Why::Stacks,
    Why::Code,
    Why::Unreadable,
    Why::Locked,
    Why::Read,
];

impl Why {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Rings => "the program has the kernel work on its memory (io_uring, aio)",
            Self::Filter => "the program has the kernel dispatch its system calls",
            Self::OwnMemory => "the program looks at its memory from outside (/proc/PID/mem)",
            Self::UnknownCall => "the program makes a system call whose memory is not known",
            Self::Stack => "the program runs on stacks in its ordinary memory",
            Self::Nesting => "the program's signal handlers interrupt each other too deeply",
            Self::SharedThread => "the program makes threads that share their thread-local memory",
            Self::Faults => "the program handles page faults itself (userfaultfd)",
            Self::Stacks => "the program has too many stacks",
            Self::Code => "the program has loaded a library whose system calls cannot be seen",
            Self::Unreadable => {
                "this host does not let a process read its own memory (process_vm_readv)"
            }
            Self::Locked => "the program locks all of its memory (mlockall)",
            Self::Read => "another program reads its memory (process_vm_readv)",
        }
    }
}

/// Why eviction cannot go on, where faults are handled inline, and where they are handled in threads; 0: nothing is wrong.
static WHY: [AtomicU8; 2] = [const { AtomicU8::new(0) }; 2];

fn why(mode: FaultMode) -> &'static AtomicU8 {
    &WHY[usize::from(mode == FaultMode::Thread)]
}

/// Why nothing may be swapped out in this process where faults are handled so.
pub(crate) fn reason(mode: FaultMode) -> Option<Why> {
    // SeqCst: who starts the engine makes it known first, and then looks here.
    let why = why(mode).load(Ordering::SeqCst);
    ALL.into_iter().find(|known| *known as u8 == why)
}

/// Gives a reason against a mode, which the monitor finds. Only the first counts.
fn note(reason: Why, mode: FaultMode) {
    let _ = why(mode).compare_exchange(0, reason as u8, Ordering::SeqCst, Ordering::SeqCst);
}

/// The same against inline mode.
pub(crate) fn note_inline(reason: Why) {
    note(reason, FaultMode::Inline);
}

/// From here on nothing of the process is swapped out, whoever handles faults; returns when that is so.
pub(crate) fn stop(reason: Why) {
    note(reason, FaultMode::Thread);
    stop_inline(reason);
}

/// From here on nothing of the process is swapped out that only a fault inline would bring back; returns when that is so.
/// Where the host permits it, handler threads go on.
pub(crate) fn stop_inline(reason: Why) {
    note_inline(reason);
    // On a stack that may be swapped out somebody else has to be at it: its thread, at work on pages, could need one of those.
    let here = 0_u8;
    let is_taken = |engine: &Process| engine.has_taken(std::ptr::from_ref(&here) as usize);
    // And where the memory is only borrowed (vfork): the descriptors are this one's own, and end with it.
    let is_owner = owner::is_this_process();
    let not_me = reason == Why::Stack || !is_owner || state::engine().is_some_and(is_taken);
    let mut looks = 0;
    while is_due() {
        if !not_me || is_owner && looks == MOST_LOOKS {
            let (_blocked, _bypass) = (Blocked::new(), Bypass::new());
            finish();
            if !is_due() {
                return;
            }
        }
        monitor::look_now();
        pause();
        // Who is at it takes as long as it takes.
        looks += u32::from(!AT_IT.load(Ordering::SeqCst));
    }
}

/// Whether there is an engine, and a reason against it.
pub(crate) fn is_due() -> bool {
    state::engine().is_some_and(|engine| reason(engine.fault_mode()).is_some())
}

/// Looks, of a tenth of a millisecond at least, until the monitor is taken to be gone: as in a child of fork whose libc knows
/// nothing of it.
const MOST_LOOKS: u32 = 50_000;

/// Sleeps a little. By the raw call: libc's would come here again.
fn pause() {
    let time = [0_usize, 100_000];
    let arguments = [time.as_ptr() as usize, 0, 0, 0, 0, 0];
    // SAFETY: reads the two words, and sleeps.
    unsafe { raw::make(&Call::new(libc::SYS_nanosleep as usize, arguments)) };
}

/// Somebody is in [`finish`].
static AT_IT: AtomicBool = AtomicBool::new(false);

/// In a child of fork: only its one thread is left.
pub(crate) fn only_this_thread() {
    AT_IT.store(false, Ordering::SeqCst);
}

/// Where there is an engine and a reason against it: has handler threads go on, or ends it. Signals are blocked, and no call of
/// this thread is looked at.
pub(crate) fn finish() {
    while let Some(process) = state::engine()
        && let Some(why) = reason(process.fault_mode())
        && !AT_IT.swap(true, Ordering::SeqCst)
    {
        let may_go_on = state::may_use_threads()
            && process.fault_mode() == FaultMode::Inline
            && reason(FaultMode::Thread).is_none();
        if may_go_on && process.go_over().is_ok() {
            // The others are started by the monitor.
            monitor::look_now();
        } else {
            state::end(process);
            monitor::refuse(why.text());
        }
        AT_IT.store(false, Ordering::SeqCst);
        state::look_again();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_text_of_its_own() {
        for (at, why) in ALL.into_iter().enumerate() {
            assert_eq!(why as usize, at + 1);
            assert!(
                ALL.iter()
                    .all(|other| *other == why || other.text() != why.text())
            );
        }
    }
}
