//! Calls that a process may make only while it has one thread: into another namespace for users, or for what is mounted.
//!
//! A program with one thread has two under `run`. Where that is why the system refuses, and no engine runs that could not do
//! without its threads, the monitor ends, the call is made again, and another monitor starts.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use libc::{c_int, c_long};
use userswap_hook::{Bypass, Call};
use userswap_sys::own;
use userswap_sys::signals::Blocked;

use crate::{exit, monitor, owner, privileges, state};

/// The calls.
pub(crate) const CALLS: [c_long; 2] = [libc::SYS_unshare, libc::SYS_setns];

/// How long a thread may take to end, which has nothing to do but that; and how long to go by the last look.
const END_WAIT: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_micros(100);

/// Has `make` make such a call.
pub(crate) fn make_alone(call: &Call, make: impl Fn() -> isize) -> isize {
    const WANT_ONE: c_int =
        libc::CLONE_NEWUSER | libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_VM;
    let result = make();
    let refusals = [libc::EINVAL, libc::EUSERS].map(|errno| -(errno as isize));
    let may_want_one =
        call.nr as c_long == libc::SYS_setns || call.args[0] as c_int & WANT_ONE != 0;
    if !may_want_one
        || !refusals.contains(&result)
        || !owner::is_this_process()
        || state::engine().is_some()
    {
        return result;
    }
    let (_bypass, _blocked) = (Bypass::new(), Blocked::new());
    let Some(config) = exit::config() else {
        return result;
    };
    if threads() != Some(2) || !monitor::end() {
        return result;
    }
    let since = Instant::now();
    while threads() != Some(1) {
        if since.elapsed() > END_WAIT {
            monitor::refuse("a thread of ours does not end");
            return result;
        }
        std::thread::sleep(LOOK);
    }
    // They are all that was noted; the next one may get the same number.
    own::forget_threads();
    let result = make();
    // Its own are all there are, and another namespace may have changed them.
    privileges::only_this_thread();
    monitor::start(config);
    result
}

/// How many threads the process has.
fn threads() -> Option<u64> {
    // Each is a folder, and names this one.
    let folder = std::fs::metadata("/proc/self/task").ok()?;
    folder.nlink().checked_sub(2)
}
