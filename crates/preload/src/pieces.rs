//! Large reads, and writes at a place, in inline mode: all that a call uses is in memory while it is made, and that may be more than
//! the limit. Of a file they are made a piece at a time; of a pipe only so much is asked for as it can hold.
//!
//! The program sees one call. A read that goes on where the last one ended claims its part of the file first, by moving the file's
//! position in one step that others see before or after, in whatever process, and then reads that part at its place. What the system
//! promises nobody is not kept up: that a write to the part that is just being read is seen whole or not at all.
//!
//! Writes that go on, and those that append, are left whole: nobody can claim what is not written yet.

use std::mem::MaybeUninit;

use libc::c_long;
use userswap_hook::Call;

use crate::threads::Thread;
use crate::{memory, raw, state};

/// Bytes of one piece: a multiple of what reading past the page cache asks for.
pub(crate) const PIECE: usize = 1 << 20;

/// The most that the kernel reads or writes at once.
const MOST: usize = 0x7fff_f000;

/// Where a program's addresses end.
const ADDRESSES: usize = 1 << 47;

/// Makes the call, if it is one of these and so large that it matters; or makes it smaller.
pub(crate) fn make(thread: &'static Thread, call: &mut Call) -> Option<isize> {
    let [file, start, len, offset, ..] = call.args;
    let number = call.nr as c_long;
    let is_read = [libc::SYS_read, libc::SYS_pread64].contains(&number);
    let matters = len > PIECE && (is_read || number == libc::SYS_pwrite64);
    // A length that leads out of the program's addresses is the kernel's to refuse.
    let is_possible = start.checked_add(len).is_some_and(|end| end <= ADDRESSES);
    if !matters || !is_possible || state::engine().is_none() || !state::follows_calls() {
        return None;
    }
    let len = len.min(MOST);
    match kind(file) {
        // Files of /proc and the like tell no length, and have no places.
        Ok((libc::S_IFREG, 0)) if is_read => None,
        Ok((libc::S_IFREG, _)) if number == libc::SYS_read => {
            let end = usize::try_from(ask(libc::SYS_lseek, file, len, libc::SEEK_CUR)).ok()?;
            let result = one_by_one(thread, call, libc::SYS_pread64, len, end - len);
            let missing = len - usize::try_from(result).unwrap_or(0);
            if missing > 0 {
                ask(
                    libc::SYS_lseek,
                    file,
                    missing.wrapping_neg(),
                    libc::SEEK_CUR,
                );
            }
            Some(result)
        }
        Ok((libc::S_IFREG, _)) if is_read => Some(one_by_one(thread, call, number, len, offset)),
        Ok((libc::S_IFREG, _)) if !appends(file) => {
            // A write that meets the longest that files may get comes short; one that begins there brings a signal.
            let room = longest().saturating_sub(offset);
            (room > 0).then(|| one_by_one(thread, call, number, len.min(room), offset))
        }
        Ok((libc::S_IFIFO, _)) if is_read => {
            let capacity = ask(libc::SYS_fcntl, file, libc::F_GETPIPE_SZ as usize, 0);
            call.args[2] = len.min(PIECE.max(usize::try_from(capacity).unwrap_or(len)));
            None
        }
        // The kernel says so whatever the length.
        Err(errno) if errno == -(libc::EBADF as isize) => {
            call.args[2] = PIECE;
            None
        }
        _ => None,
    }
}

/// Makes the call as `number`, which has a place, for the first `len` bytes from `offset` on.
fn one_by_one(
    thread: &'static Thread,
    call: &Call,
    number: c_long,
    len: usize,
    offset: usize,
) -> isize {
    let [file, start, ..] = call.args;
    let mut done = 0;
    while done < len {
        let piece = (len - done).min(PIECE);
        let arguments = [file, start + done, piece, offset.wrapping_add(done), 0, 0];
        let mut now = Call::new(number as usize, arguments);
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

/// What kind of file a descriptor is, and its bytes; or the kernel's answer.
fn kind(file: usize) -> Result<(libc::mode_t, usize), isize> {
    let mut known = MaybeUninit::<libc::stat>::uninit();
    let result = ask(libc::SYS_fstat, file, known.as_mut_ptr() as usize, 0);
    if result != 0 {
        return Err(result);
    }
    // SAFETY: the call has written it.
    let known = unsafe { known.assume_init() };
    Ok((known.st_mode & libc::S_IFMT, known.st_size as usize))
}

fn appends(file: usize) -> bool {
    let flags = ask(libc::SYS_fcntl, file, libc::F_GETFL as usize, 0);
    flags < 0 || flags & libc::O_APPEND as isize != 0
}

/// How long the program's files may get, in bytes.
fn longest() -> usize {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    let which = libc::RLIMIT_FSIZE as usize;
    let result = ask(libc::SYS_getrlimit, which, limit.as_mut_ptr() as usize, 0);
    if result != 0 {
        return 0;
    }
    // SAFETY: the call has written it.
    unsafe { limit.assume_init() }.rlim_cur as usize
}

/// A call about a file: `fstat`, `lseek`, `fcntl`; or about a limit.
fn ask(number: c_long, first: usize, second: usize, third: i32) -> isize {
    let arguments = [first, second, third as usize, 0, 0, 0];
    // SAFETY: none of them touches memory but what its caller gives it to be written.
    unsafe { raw::make(&Call::new(number as usize, arguments)) }
}
