//! How many threads the program sees that it has: its own. Some count them, and end themselves where they have more than they
//! started (the process that Chromium forks others from).
//!
//! They count by how many folders are in `/proc/self/task`, which `stat` tells of a path; that is set right. What else tells of threads
//! (a list of the folder, `fstat`, `/proc/self/status`) is not. Programs that open nothing that leads there are left alone: `stat` is
//! a frequent call.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use libc::c_long;
use rustix::fs::{AtFlags, CWD};
use userswap_hook::Call;
use userswap_sys::own;

use crate::{kept, memory, raw};

/// The calls that tell how many.
const CALLS: [c_long; 3] = [libc::SYS_stat, libc::SYS_newfstatat, libc::SYS_statx];

/// How often the folder of a process with one thread is linked.
const LEAST: u64 = 3;

/// The program has opened what may lead there.
static COUNTS: AtomicBool = AtomicBool::new(false);

/// Whether a path leads to the threads of a process: `/proc`, or where they are.
pub(crate) fn may_lead_to_threads(path: &[u8]) -> bool {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    path == b"/proc" || path == b"/proc/self" || path.ends_with(b"/task")
}

/// From now on what the program learns of its threads is set right.
pub(crate) fn begin() {
    // Relaxed: who opens it on another thread learns of this no sooner than of the descriptor.
    if !COUNTS.swap(true, Ordering::Relaxed) {
        userswap_hook::look_again();
    }
}

/// Whether such calls are looked at.
pub(crate) fn is_counted(nr: usize) -> bool {
    CALLS.contains(&(nr as c_long)) && COUNTS.load(Ordering::Relaxed)
}

/// Has `make` make such a call.
pub(crate) fn make_counted(call: &Call, make: impl Fn() -> isize) -> isize {
    let [first, second, third, _, fifth, _] = call.args;
    let (path, buffer, is_extended) = match call.nr as c_long {
        libc::SYS_stat => (first, second, false),
        libc::SYS_newfstatat => (second, third, false),
        _ => (second, fifth, true),
    };
    let is_folder = |path: &[u8]| path.ends_with(b"task") || path.ends_with(b"task/");
    if !memory::is_path(path, &(0..0), is_folder) {
        return make();
    }
    let (result, ours) = with_own_threads(make);
    if result != 0 {
        return result;
    }
    // Where the number of the file is in what the call tells, and how often it is linked: once more for each thread.
    let (number_at, links_at) = if is_extended { (32, 16) } else { (8, 16) };
    let number = memory::words::<1>(buffer + number_at, &(0..0));
    if let Some([links]) = memory::words::<1>(buffer + links_at, &(0..0))
        && number.is_some_and(|[number]| is_own_folder(number))
    {
        // Of an extended answer the upper half is something else.
        let count = links & 0xffff_ffff;
        let ours = ours.min(count.saturating_sub(LEAST));
        let _ = memory::write_words(buffer + links_at, [links - ours]);
    }
    result
}

/// What `make` answers while there are as many threads of ours as it says.
fn with_own_threads(make: impl Fn() -> isize) -> (isize, u64) {
    // One that is started soon notes itself: as soon as it gets a processor, of which others may have all for long.
    const WAIT: Duration = Duration::from_secs(10);
    const LOOK: Duration = Duration::from_micros(100);
    let since = Instant::now();
    loop {
        let before = own::threads();
        let result = make();
        match before {
            _ if result != 0 => return (result, 0),
            Some(ours) if own::threads() == before => return (result, ours as u64),
            _ if since.elapsed() > WAIT => return (result, 0),
            _ => raw::sleep(LOOK),
        }
    }
}

/// Whether that is the number of the folder that this process's threads are in: as it was found at first, behind another root, too,
/// or where it is by now.
fn is_own_folder(number: u64) -> bool {
    let number_of = |folder: BorrowedFd<'_>, path: &str| {
        let found = rustix::fs::statat(folder, path, AtFlags::empty());
        found.ok().map(|found| found.st_ino)
    };
    let kept = kept::with_proc(|proc| number_of(proc.as_fd(), "self/task"));
    kept.flatten() == Some(number) || number_of(CWD, "/proc/self/task") == Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_long_in_coming_is_waited_for() {
        own::expect_thread();
        let long = Duration::from_millis(200);
        let thread = std::thread::spawn(move || {
            std::thread::sleep(long);
            own::note_thread();
        });
        let (_, ours) = with_own_threads(|| 0);
        assert_eq!(own::threads(), Some(ours as usize));
        assert_ne!(ours, 0);
        thread.join().expect("thread");
    }

    #[test]
    fn what_leads_to_threads_is_known() {
        for (path, leads) in [
            ("/proc", true),
            ("/proc/", true),
            ("/proc/self/task/", true),
            ("/proc/17/task", true),
            ("self/task", true),
            ("/proc/self/maps", false),
            ("/proc/cpuinfo", false),
            ("/", false),
            ("", false),
        ] {
            assert_eq!(may_lead_to_threads(path.as_bytes()), leads, "{path}");
        }
    }
}
