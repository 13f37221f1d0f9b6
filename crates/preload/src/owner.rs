//! Whose memory this is: a child of vfork runs in its parent's until another program is started in it.

use std::sync::atomic::{AtomicU32, Ordering};

/// 0: in no program that the library was loaded into (`run` itself).
static OWNER: AtomicU32 = AtomicU32::new(0);

/// This memory is this process's: at the start, and in a child of fork.
pub(crate) fn belongs_to_this_process() {
    // Relaxed, throughout: a number, changed where there is one thread.
    OWNER.store(std::process::id(), Ordering::Relaxed);
}

/// Whether this memory is this process's.
pub(crate) fn is_this_process() -> bool {
    OWNER.load(Ordering::Relaxed) == std::process::id()
}

/// The process whose memory this is.
pub(crate) fn process() -> u32 {
    match OWNER.load(Ordering::Relaxed) {
        0 => std::process::id(),
        owner => owner,
    }
}
