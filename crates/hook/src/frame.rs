//! What lies on the stack while the handlers run, and what each thread has.

use crate::call::Call;
use crate::note::Note;
use crate::stub;
use std::arch::asm;
use std::mem::offset_of;

/// What lies on the stack while the handlers run.
#[repr(C)]
pub(crate) struct Frame {
    pub(crate) call: Call,
    pub(crate) saved: [usize; 6],
    pub(crate) result: isize,
    /// Where the address of the tail stands.
    pub(crate) route: usize,
    /// Whether the handlers saw the call, and are to see its result: 0, 1, or [`UNKNOWN`].
    pub(crate) asked: usize,
    /// Whether they gave the result themselves.
    pub(crate) answered: usize,
    pub(crate) _padding: usize,
    pub(crate) rbp: usize,
    pub(crate) record: *const stub::Record,
    pub(crate) flags: usize,
}

/// Behind a tail nothing is left of what was before.
pub(crate) const UNKNOWN: usize = 2;
/// In the place of a call's number: what is noted is not complete.
pub(crate) const NOT_YET: usize = usize::MAX;
/// The signal that libc cancels threads with (`SIGRTMIN - 2`).
pub(crate) const SIGCANCEL: usize = 32;

/// What each thread has: thread-local memory that is set up with the thread, since the ordinary way to reach thread-local
/// memory of a library may allocate, and this code may be inside the allocator.
#[repr(C)]
pub(crate) struct Thread {
    /// How many [`crate::Bypass`] guards live.
    pub(crate) bypass: u32,
    /// The handlers are running.
    pub(crate) inside: u32,
    /// A cancellation came meanwhile.
    pub(crate) pending: u32,
    _unused: u32,
    /// The handlers' own: see [`crate::thread_word`].
    pub(crate) word: usize,
    /// Where calls are noted; null: nowhere.
    pub(crate) note: *const Note,
}

/// The bytes below the stack pointer that are the program's.
pub(crate) const REDZONE: usize = 128;
/// Where the program's stack pointer is above ours while flags and record are all that is saved.
pub(crate) const SMALL_CFA: usize = REDZONE + 16;
/// How much of the frame lies below the saved `rbp`.
pub(crate) const BELOW_RBP: usize = offset_of!(Frame, rbp);

/// The saved legacy part, and the header behind it.
pub(crate) const LEGACY: usize = 512;

/// This thread's own; to be used through the pointer only, since signal handlers write there too.
pub(crate) fn thread() -> *mut Thread {
    let address: *mut Thread;
    // SAFETY: reads two words that the thread's creator set up: the offset of our block, which is part of every thread's
    // initial block since the library is loaded at start, and the block's base.
    unsafe {
        asm!(
            "mov {0}, qword ptr [rip + userswap_hook_thread@GOTTPOFF]",
            "add {0}, qword ptr fs:[0]",
            out(reg) address,
            options(pure, readonly, nostack),
        );
    }
    address
}
