//! Calls that are not looked at: our own.

use crate::frame;
use std::marker::PhantomData;

/// While it lives, system calls of this thread are made as they are. For threads and code of the hook's owner, which use
/// libc (allocate, start threads) where that must not come back to the handlers.
///
/// A signal handler that runs meanwhile is not looked at either: block signals, unless none of the program's can come here.
#[derive(Debug)]
pub struct Bypass {
    _this_thread: PhantomData<*const ()>,
}

impl Bypass {
    /// Begins it; they nest.
    #[must_use]
    pub fn new() -> Self {
        // SAFETY: the counter is this thread's own; nobody else reads or writes it. A signal handler between the read and
        // the write leaves it as it was, since guards end in reverse order.
        unsafe {
            let counter = &raw mut (*frame::thread()).bypass;
            counter.write(counter.read() + 1);
        }
        Bypass {
            _this_thread: PhantomData,
        }
    }
}

impl Default for Bypass {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Bypass {
    fn drop(&mut self) {
        // SAFETY: as above; this guard added one.
        unsafe {
            let counter = &raw mut (*frame::thread()).bypass;
            counter.write(counter.read() - 1);
        }
    }
}

/// A word of this thread's own, for the handlers: 0 in a new thread, copied by a fork. To be used through the pointer only,
/// since handlers run in signal handlers, too.
///
/// Other than thread-local variables it is found without a look at memory that the program allocated.
#[must_use]
pub fn thread_word() -> *mut usize {
    // SAFETY: the block is this thread's, and always there; no reference is made.
    unsafe { &raw mut (*frame::thread()).word }
}
