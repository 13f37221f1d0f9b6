//! The engine's own threads: no signal handler runs on them, and none ends unnoticed.

use std::thread::JoinHandle;

use userswap_sys::signals::{Blocked, stderr_line};
use userswap_sys::{Errno, own};

use crate::Error;

/// Bytes of address space for a thread's stack. Larger than any that libc keeps from threads of the program that have
/// ended, in memory that may be swapped.
pub(crate) const STACK_BYTES: usize = 72 << 20;

/// Why joining one cannot fail.
pub(crate) const ENDS_WELL: &str = "a thread that panics ends the process";

/// Starts a thread of the engine. `what` it is called where it cannot be started.
pub(crate) fn start(
    name: String,
    what: &'static str,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    // Those of an engine over a whole process note themselves; nobody asks about the others.
    own::expect_thread();
    // It has the same mask from its start on: by that it is known before it has noted itself.
    let _blocked = Blocked::but_libcs();
    std::thread::Builder::new()
        .name(name)
        .stack_size(STACK_BYTES)
        .spawn(|| run(body))
        .map_err(|error| {
            own::expect_no_thread();
            Error::System {
                what,
                errno: Errno::from_io_error(&error).unwrap_or(Errno::AGAIN),
            }
        })
}

/// Runs a thread's body. A panic in it ends the process: whatever the thread had in hand (a page it had pinned, a fault
/// it had read) nobody else would finish, and threads of the program would wait for it without end and without a word.
pub(crate) fn run(body: impl FnOnce()) {
    struct Last;
    impl Drop for Last {
        fn drop(&mut self) {
            if std::thread::panicking() {
                let thread = std::thread::current();
                stderr_line(format_args!(
                    "userswap: the thread {} panicked, which is a bug; pages that it was working on would never come: \
                     ending the process",
                    thread.name().unwrap_or("of a page-out")
                ));
                std::process::abort();
            }
        }
    }
    let _last = Last;
    Blocked::forever();
    body();
}
