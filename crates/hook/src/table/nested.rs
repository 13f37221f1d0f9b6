//! Structures that hold pointers of their own, by the kernel's layout on x86-64.

use super::{Access, Walk};

/// More buffers than that the kernel refuses (`UIO_MAXIOV`).
const MOST_BUFFERS: usize = 1024;
const BUFFER: usize = 16;
/// More than this many arguments and environment strings do not fit the room the kernel gives them.
const MOST_TEXTS: usize = 1 << 20;
/// One argument or environment string (`MAX_ARG_STRLEN`).
const LONGEST_TEXT: usize = 32 * super::PAGE;

pub(crate) fn vector_read(walk: &mut Walk<'_>, at: usize) {
    vector(walk, at, walk.call.args[2], Access::Read, false);
}

pub(crate) fn vector_written(walk: &mut Walk<'_>, at: usize) {
    vector(walk, at, walk.call.args[2], Access::Write, false);
}

/// Pages that a pipe goes on holding.
pub(crate) fn vector_kept(walk: &mut Walk<'_>, at: usize) {
    vector(walk, at, walk.call.args[2], Access::ReadWrite, true);
}

/// An array of buffers.
pub(crate) fn vector(walk: &mut Walk<'_>, at: usize, count: usize, access: Access, kept: bool) {
    if !super::is_user(at) || count > MOST_BUFFERS {
        return;
    }
    walk.reads(at, count * BUFFER);
    for first in (0..count).step_by(AT_ONCE) {
        let here = (count - first).min(AT_ONCE);
        let mut words = [0; AT_ONCE * 2];
        if !walk.words(at + first * BUFFER, &mut words[..here * 2]) {
            return;
        }
        for buffer in words[..here * 2].chunks_exact(2) {
            walk.tell(buffer[0], buffer[1], access, kept);
        }
    }
}

/// Buffers that are read at once: each reading takes as long as a system call.
const AT_ONCE: usize = 16;

pub(crate) fn message_read(walk: &mut Walk<'_>, at: usize) {
    message(walk, at, Access::Read);
}

pub(crate) fn message_written(walk: &mut Walk<'_>, at: usize) {
    message(walk, at, Access::Write);
}

const MESSAGE: usize = 56;
/// A message and the count of what was moved.
const COUNTED_MESSAGE: usize = 64;

/// `msghdr`: name, its length, buffers, their count, control data, their length, flags.
fn message(walk: &mut Walk<'_>, at: usize, access: Access) {
    let own = if access == Access::Read {
        Access::Read
    } else {
        Access::ReadWrite
    };
    walk.tell(at, MESSAGE, own, false);
    let mut words = [0; MESSAGE / 8];
    if !walk.words(at, &mut words) {
        return;
    }
    let [name, name_len, buffers, count, control, control_len, _] = words;
    walk.tell(name, name_len as u32 as usize, access, false);
    walk.tell(control, control_len, access, false);
    vector(walk, buffers, count, access, false);
}

pub(crate) fn messages_read(walk: &mut Walk<'_>, at: usize) {
    messages(walk, at, Access::Read);
}

pub(crate) fn messages_written(walk: &mut Walk<'_>, at: usize) {
    messages(walk, at, Access::Write);
}

fn messages(walk: &mut Walk<'_>, at: usize, access: Access) {
    let count = (walk.call.args[2] as u32 as usize).min(MOST_BUFFERS);
    walk.both(at, count * COUNTED_MESSAGE);
    for i in 0..count {
        message(walk, at + i * COUNTED_MESSAGE, access);
    }
}

/// A list of strings that a null pointer ends.
pub(crate) fn texts(walk: &mut Walk<'_>, at: usize) {
    for i in 0..MOST_TEXTS {
        let entry = at.wrapping_add(i * 8);
        walk.reads(entry, 8);
        match walk.word(entry) {
            None | Some(0) => return,
            Some(text) => walk.text_up_to(text, LONGEST_TEXT),
        }
    }
}

/// `select`'s sets: whole words for as many descriptors as the first argument says.
pub(crate) fn file_set(walk: &mut Walk<'_>, at: usize) {
    let count = (walk.call.args[0] as i32).max(0) as usize;
    // More descriptors than can be open are cut off.
    walk.both(at, count.min(1 << 20).div_ceil(64) * 8);
}

/// A pointer to a signal set, and its length.
pub(crate) fn sized_mask(walk: &mut Walk<'_>, at: usize) {
    walk.reads(at, 16);
    let mut words = [0; 2];
    if walk.words(at, &mut words) {
        let [set, len] = words;
        walk.reads(set, len.min(super::PAGE));
    }
}

/// A structure that begins with its own length in 32 bits.
pub(crate) fn sized_structure(walk: &mut Walk<'_>, at: usize) {
    if let Some(len) = walk.word32(at) {
        walk.both(at, (len as usize).clamp(4, super::PAGE));
    }
}

/// Room for a handle: its length and type, and as many bytes.
pub(crate) fn file_handle(walk: &mut Walk<'_>, at: usize) {
    if let Some(len) = walk.word32(at) {
        walk.both(at, 8 + (len as usize).min(super::PAGE));
    }
}

pub(crate) fn attribute_read(walk: &mut Walk<'_>, at: usize) {
    attribute(walk, at, Access::Read);
}

pub(crate) fn attribute_written(walk: &mut Walk<'_>, at: usize) {
    attribute(walk, at, Access::Write);
}

/// Value, its length, flags.
fn attribute(walk: &mut Walk<'_>, at: usize, access: Access) {
    walk.reads(at, walk.call.args[5]);
    if let (Some(value), Some(len)) = (walk.word(at), walk.word(at + 8)) {
        walk.tell(value, len as u32 as usize, access, false);
    }
}

/// `io_submit`'s list of pointers to requests.
pub(crate) fn control_blocks(walk: &mut Walk<'_>, at: usize) {
    const READ: u16 = 0;
    const WRITE: u16 = 1;
    const READ_VECTOR: u16 = 7;
    const WRITE_VECTOR: u16 = 8;
    let count = walk.call.args[1];
    if count > 1 << 16 {
        walk.at_least();
        return;
    }
    walk.reads(at, count * 8);
    for i in 0..count {
        let Some(block) = walk.word(at + i * 8) else {
            return;
        };
        walk.both(block, 64);
        let Some(fields) = walk.copy::<64>(block) else {
            return;
        };
        let operation = u16::from_ne_bytes([fields[16], fields[17]]);
        let word =
            |from: usize| usize::from_ne_bytes(*fields[from..].first_chunk().expect("inside"));
        // The buffers are in use until the request is done.
        match operation {
            READ => walk.tell(word(24), word(32), Access::Write, true),
            WRITE => walk.tell(word(24), word(32), Access::Read, true),
            READ_VECTOR => vector(walk, word(24), word(32), Access::Write, true),
            WRITE_VECTOR => vector(walk, word(24), word(32), Access::Read, true),
            _ => {}
        }
    }
}

/// `clone3`: the words that the kernel writes at the start, and at the end of the thread.
pub(crate) fn clone_arguments(walk: &mut Walk<'_>, at: usize) {
    let len = walk.call.args[1];
    walk.reads(at, len.min(super::PAGE));
    // Flags, pidfd, child word, parent word.
    let words: [Option<usize>; 4] = std::array::from_fn(|i| walk.word(at + i * 8));
    let [Some(flags), pidfd, child, parent] = words else {
        return;
    };
    clone_words(
        walk,
        flags,
        pidfd.unwrap_or(0),
        parent.unwrap_or(0),
        child.unwrap_or(0),
    );
    // A list of process numbers, innermost first.
    if len >= 80 {
        let list = walk.word(at + 64).unwrap_or(0);
        let count = walk.word(at + 72).unwrap_or(0);
        walk.reads(list, count.min(64) * 4);
    }
}

/// The words of a new thread, where the flags say that they are used.
pub(crate) fn clone_words(
    walk: &mut Walk<'_>,
    flags: usize,
    pidfd: usize,
    parent: usize,
    child: usize,
) {
    let flag = |bit: i32| flags & bit as usize != 0;
    if flag(libc::CLONE_PIDFD) {
        walk.writes(pidfd, 4);
    }
    if flag(libc::CLONE_PARENT_SETTID) {
        walk.writes(parent, 4);
    }
    if flag(libc::CLONE_CHILD_SETTID) || flag(libc::CLONE_CHILD_CLEARTID) {
        walk.tell(child, 4, Access::Write, flag(libc::CLONE_CHILD_CLEARTID));
    }
}

/// `futex_waitv`: an array of value, address, flags.
pub(crate) fn waiters(walk: &mut Walk<'_>, at: usize) {
    waiters_of(walk, at, walk.call.args[1] as u32 as usize);
}

/// `futex_requeue`: two of the same.
pub(crate) fn two_waiters(walk: &mut Walk<'_>, at: usize) {
    waiters_of(walk, at, 2);
}

fn waiters_of(walk: &mut Walk<'_>, at: usize, count: usize) {
    const WAITER: usize = 24;
    let count = count.min(128);
    walk.reads(at, count * WAITER);
    for i in 0..count {
        let Some(word) = walk.word(at + i * WAITER + 8) else {
            return;
        };
        walk.both(word, 4);
    }
}

/// A signal stack: signals will be delivered there.
pub(crate) fn signal_stack(walk: &mut Walk<'_>, at: usize) {
    walk.reads(at, 24);
    let (Some(stack), Some(flags), Some(len)) =
        (walk.word(at), walk.word(at + 8), walk.word(at + 16))
    else {
        return;
    };
    if flags as u32 as i32 & libc::SS_DISABLE == 0 {
        walk.tell(stack, len, Access::ReadWrite, true);
    }
}

/// Segments of a new kernel: buffer, its length, where to, how long.
pub(crate) fn kexec_segments(walk: &mut Walk<'_>, at: usize) {
    let count = walk.call.args[1].min(16);
    walk.reads(at, count * 32);
    for i in 0..count {
        let (Some(buffer), Some(len)) = (walk.word(at + i * 32), walk.word(at + i * 32 + 8)) else {
            return;
        };
        walk.reads(buffer, len);
    }
}
