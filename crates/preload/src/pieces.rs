//! Large reads, and writes at a place, in inline mode: all that a call uses is in memory while it is made, and that may be more than
//! the limit. Of a file they are made a piece at a time; of a pipe only so much is asked for as it can hold.
//!
//! The program sees one call. Reads that go on where the last one ended keep out of each other's way, as in the kernel, so that
//! each gets what is together in the file. Writes that do are left whole: another process may be writing there, too, and nobody
//! can keep it out.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libc::c_long;
use userswap_hook::{Bypass, Call};

use crate::threads::Thread;
use crate::{memory, raw, state};

/// Bytes of one piece, which divides every length that reading past the page cache asks for.
pub(crate) const PIECE: usize = 1 << 20;

/// The most that the kernel reads or writes at once.
const MOST: usize = 0x7fff_f000;

/// Somebody makes a read that goes on where the last one ended. Such reads of different files wait for each other, too: they are
/// large.
static GOES_ON: AtomicBool = AtomicBool::new(false);

/// How often, and how long, such a read waits for another. Then it goes on all the same: the other one may be interrupted by a
/// signal whose handler makes this one, or may have been left by a jump.
const WAITS: usize = 2_000;
const WAIT: Duration = Duration::from_micros(500);

/// The turn of one such read.
struct Turn;

impl Turn {
    fn wait() -> Self {
        for _ in 0..WAITS {
            // Acquire: with the release in `drop`, the file's position is where that read left it.
            if !GOES_ON.swap(true, Ordering::Acquire) {
                break;
            }
            let _bypass = Bypass::new();
            std::thread::sleep(WAIT);
        }
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        GOES_ON.store(false, Ordering::Release);
    }
}

/// In a child of fork: nobody else is here.
pub(crate) fn become_child() {
    GOES_ON.store(false, Ordering::Relaxed);
}

/// Makes the call, if it is one of these and so large that it matters; or makes it smaller.
pub(crate) fn make(thread: &'static Thread, call: &mut Call) -> Option<isize> {
    let [file, _, len, offset, ..] = call.args;
    let number = call.nr as c_long;
    let is_read = [libc::SYS_read, libc::SYS_pread64].contains(&number);
    let matters = len > PIECE && (is_read || number == libc::SYS_pwrite64);
    if !matters || state::engine().is_none() || !state::follows_calls() {
        return None;
    }
    match kind(file) {
        Some(libc::S_IFREG) if is_read => {
            let goes_on = number == libc::SYS_read;
            let _turn = goes_on.then(Turn::wait);
            Some(one_by_one(thread, call, len))
        }
        Some(libc::S_IFREG) => {
            // A write that meets the longest that files may get comes short; one that begins there brings a signal.
            let room = longest().saturating_sub(offset);
            (room > 0).then(|| one_by_one(thread, call, len.min(room)))
        }
        Some(libc::S_IFIFO) if is_read => {
            call.args[2] = len.min(PIECE.max(pipe_bytes(file)));
            None
        }
        // No file: the kernel says so whatever the length.
        None => {
            call.args[2] = PIECE;
            None
        }
        Some(_) => None,
    }
}

/// Makes the call for the first `len` bytes.
fn one_by_one(thread: &'static Thread, call: &Call, len: usize) -> isize {
    let [file, start, _, offset, ..] = call.args;
    let len = len.min(MOST);
    let mut done = 0;
    while done < len {
        let piece = (len - done).min(PIECE);
        let (at, offset) = (start.wrapping_add(done), offset.wrapping_add(done));
        let mut now = Call::new(call.nr, [file, at, piece, offset, 0, 0]);
        now.stack = call.stack;
        let _ = memory::begin(thread, &mut now);
        // SAFETY: a part of what the program asks for.
        let result = unsafe { raw::make(&now) };
        memory::end(thread, &now);
        match usize::try_from(result) {
            Ok(bytes) if bytes == piece => done += bytes,
            Ok(bytes) => return (done + bytes) as isize,
            // The next call would meet it again.
            Err(_) if done > 0 => break,
            Err(_) => return result,
        }
    }
    done as isize
}

/// What kind of file a descriptor is.
fn kind(file: usize) -> Option<libc::mode_t> {
    let mut known = MaybeUninit::<libc::stat>::uninit();
    let arguments = [file, known.as_mut_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: it writes `known` and nothing else.
    let result = unsafe { raw::make(&Call::new(libc::SYS_fstat as usize, arguments)) };
    // SAFETY: written, where the call did not fail.
    (result == 0).then(|| unsafe { known.assume_init() }.st_mode & libc::S_IFMT)
}

fn pipe_bytes(file: usize) -> usize {
    let arguments = [file, libc::F_GETPIPE_SZ as usize, 0, 0, 0, 0];
    // SAFETY: asks only.
    let result = unsafe { raw::make(&Call::new(libc::SYS_fcntl as usize, arguments)) };
    usize::try_from(result).unwrap_or(MOST)
}

/// How long the program's files may get, in bytes.
fn longest() -> usize {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    let which = libc::RLIMIT_FSIZE as usize;
    let arguments = [which, limit.as_mut_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: it writes `limit` and nothing else.
    let result = unsafe { raw::make(&Call::new(libc::SYS_getrlimit as usize, arguments)) };
    // SAFETY: written, where the call did not fail.
    (result == 0)
        .then(|| unsafe { limit.assume_init() }.rlim_cur as usize)
        .unwrap_or(usize::MAX)
}
