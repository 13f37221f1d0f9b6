//! Giving up on a process in which eviction cannot be made safe: what is out comes back, and nothing leaves any more.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use userswap_hook::{Bypass, Call};
use userswap_sys::signals::Blocked;

use crate::{monitor, raw, state};

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
}

const ALL: [Why; 12] = [
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
        }
    }
}

/// 0: nothing is wrong.
static WHY: AtomicU8 = AtomicU8::new(0);

/// Why nothing may be swapped out in this process.
pub(crate) fn reason() -> Option<Why> {
    // SeqCst: who starts the engine makes it known first, and then looks here.
    let why = WHY.load(Ordering::SeqCst);
    ALL.into_iter().find(|known| *known as u8 == why)
}

/// Gives a reason, which the monitor finds. Only the first counts.
pub(crate) fn note(why: Why) {
    let _ = WHY.compare_exchange(0, why as u8, Ordering::SeqCst, Ordering::SeqCst);
}

/// From here on nothing of the process is swapped out; returns when that is so.
pub(crate) fn stop(why: Why) {
    note(why);
    if state::engine().is_none() {
        return;
    }
    if why != Why::Stack {
        let (_blocked, _bypass) = (Blocked::new(), Bypass::new());
        finish();
    }
    // Somebody else is at it. On a stack that may be swapped out that has to be so: its thread, at work on pages, could need
    // one of those.
    monitor::look_now();
    for _ in 0..MOST_LOOKS {
        if state::engine().is_none() {
            return;
        }
        pause();
    }
    let (_blocked, _bypass) = (Blocked::new(), Bypass::new());
    finish();
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

/// Ends the engine, if there is one and a reason to. Signals are blocked, and no call of this thread is looked at.
pub(crate) fn finish() {
    static AT_IT: AtomicBool = AtomicBool::new(false);
    let (Some(why), Some(process)) = (reason(), state::engine()) else {
        return;
    };
    if AT_IT.swap(true, Ordering::SeqCst) {
        return;
    }
    state::end(process);
    monitor::refuse(why.text());
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
