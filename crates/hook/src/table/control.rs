//! Calls where one argument says what another is.

use super::nested;
use super::{Access, PAGE, Walk};

/// What a command's argument is.
#[derive(Clone, Copy)]
enum Argument {
    /// Not a pointer.
    Value,
    In(usize),
    Out(usize),
}

fn by_command(walk: &mut Walk<'_>, at: usize, command: usize, table: &[(usize, Argument)]) {
    match table.iter().find(|(number, _)| *number == command) {
        Some((_, Argument::Value)) => {}
        Some((_, Argument::In(len))) => walk.reads(at, *len),
        Some((_, Argument::Out(len))) => walk.writes(at, *len),
        None => walk.unknown(),
    }
}

pub(crate) fn fcntl(walk: &mut Walk<'_>, at: usize) {
    const LOCK: usize = 32;
    match walk.call.args[1] as u32 as i32 {
        // Asking and changing, for the process and for the open file.
        libc::F_GETLK
        | libc::F_SETLK
        | libc::F_SETLKW
        | libc::F_OFD_GETLK
        | libc::F_OFD_SETLK
        | libc::F_OFD_SETLKW => {
            walk.both(at, LOCK);
        }
        // F_SETOWN_EX, F_GETOWN_EX
        15 | 16 => walk.both(at, 8),
        // F_GETOWNER_UIDS
        17 => walk.writes(at, 8),
        // F_GET_RW_HINT and the three that follow
        1035..=1038 => walk.both(at, 8),
        // F_NOTIFY, leases, pipe sizes, seals, duplicates, flags: values.
        0..=4 | 8..=11 | 1024..=1034 => {}
        _ => walk.unknown(),
    }
}

pub(crate) fn mlock2(walk: &mut Walk<'_>, at: usize) {
    // Filled when it is touched.
    if walk.call.args[2] & libc::MLOCK_ONFAULT as usize == 0 {
        walk.both(at, walk.call.args[1]);
    }
}

pub(crate) fn clone_parent(walk: &mut Walk<'_>, at: usize) {
    // Without its own place the descriptor is written to the parent's word.
    nested::clone_words(walk, walk.call.args[0] & !(CHILD_WORD), at, at, 0);
}

pub(crate) fn clone_child(walk: &mut Walk<'_>, at: usize) {
    nested::clone_words(walk, walk.call.args[0] & CHILD_WORD, 0, 0, at);
}

const CHILD_WORD: usize = (libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID) as usize;

pub(crate) fn arch_prctl(walk: &mut Walk<'_>, at: usize) {
    // Set GS, set FS, get FS, get GS; cpuid; tile permissions.
    const TABLE: &[(usize, Argument)] = &[
        (0x1001, Argument::Value),
        (0x1002, Argument::Value),
        (0x1003, Argument::Out(8)),
        (0x1004, Argument::Out(8)),
        (0x1011, Argument::Value),
        (0x1012, Argument::Value),
        (0x1021, Argument::Out(8)),
        (0x1022, Argument::Out(8)),
        (0x1023, Argument::Value),
        (0x1024, Argument::Out(8)),
        (0x1025, Argument::Value),
    ];
    by_command(walk, at, walk.call.args[0], TABLE);
}

pub(crate) fn prctl(walk: &mut Walk<'_>, at: usize) {
    let [option, _, third, fourth, ..] = walk.call.args;
    match option as u32 as i32 {
        // Words that are filled: death signal, alignment and FP controls, endianness, time stamp counter, reaper.
        2 | 5 | 9 | 11 | 19 | 25 | 37 => walk.writes(at, 4),
        libc::PR_SET_NAME => walk.text_up_to(at, 16),
        libc::PR_GET_NAME => walk.writes(at, 16),
        // The address of the exit word.
        40 => walk.writes(at, 8),
        libc::PR_SET_SECCOMP => program(walk, third),
        libc::PR_SET_MM => match at {
            // The whole map, and its size.
            14 => walk.reads(third, fourth.min(PAGE)),
            15 => walk.writes(third, 4),
            12 => walk.reads(third, fourth.min(PAGE)),
            _ => {}
        },
        // The name of a mapping.
        0x5356_4d41 => walk.text_up_to(walk.call.args[4], 80),
        // The selector byte of dispatched calls is read at every call from then on.
        59 => walk.tell(walk.call.args[4], 1, Access::Read, true),
        // Core scheduling writes its cookie.
        62 => walk.writes(walk.call.args[4], 8),
        // Auxiliary vector.
        0x4155_5856 => walk.writes(at, third),
        1
        | 3
        | 4
        | 6
        | 7
        | 8
        | 10
        | 12
        | 13
        | 14
        | 20..=24
        | 26..=34
        | 36
        | 38
        | 39
        | 41..=58
        | 60
        | 61
        | 63..=78 => {}
        0x5961_6d61 => {}
        _ => walk.unknown(),
    }
}

/// A filter program: count of instructions, pointer to them.
fn program(walk: &mut Walk<'_>, at: usize) {
    if !super::is_user(at) {
        return;
    }
    walk.reads(at, 16);
    if let (Some(count), Some(code)) = (walk.word(at), walk.word(at + 8)) {
        walk.reads(code, usize::from(count as u16) * 8);
    }
}

pub(crate) fn seccomp(walk: &mut Walk<'_>, at: usize) {
    match walk.call.args[0] {
        1 => program(walk, at),
        2 => walk.reads(at, 4),
        3 => walk.writes(at, 6),
        _ => {}
    }
}

pub(crate) fn ptrace(walk: &mut Walk<'_>, at: usize) {
    match walk.call.args[0] as u32 {
        // Peeked words.
        1..=3 => walk.writes(at, 8),
        // Values: traceme, poked words, continue, kill, step, attach, detach, options and their like.
        0 | 4..=9 | 16 | 17 | 24 | 31..=33 | 0x4200 | 0x4206..=0x4208 => {}
        // Registers and floating point, read and written.
        12 => walk.writes(at, 216),
        13 => walk.reads(at, 216),
        14 => walk.writes(at, 512),
        15 => walk.reads(at, 512),
        0x4201 => walk.writes(at, 8),
        0x4202 => walk.writes(at, 128),
        0x4203 => walk.reads(at, 128),
        // A register set, named by a buffer.
        0x4204 | 0x4205 => nested::vector(walk, at, 1, Access::ReadWrite, false),
        0x420a | 0x420b => walk.both(at, walk.call.args[2].min(PAGE)),
        0x420e => walk.writes(at, walk.call.args[2].min(PAGE)),
        _ => walk.unknown(),
    }
}

pub(crate) fn futex(walk: &mut Walk<'_>, at: usize) {
    let [_, operation, _, timeout, second, _] = walk.call.args;
    walk.both(at, 4);
    // Without the flags for private words and the real-time clock.
    match operation & 0x7f {
        // Wait, lock, wait on bits, lock again: with a time.
        0 | 6 | 9 | 13 => walk.reads(timeout, 16),
        // Requeue, compare and requeue, wake one of two: the second word; the fourth argument is a count.
        3 | 4 | 5 | 12 => walk.both(second, 4),
        11 => {
            walk.reads(timeout, 16);
            walk.both(second, 4);
        }
        _ => {}
    }
}

pub(crate) fn mincore(walk: &mut Walk<'_>, at: usize) {
    walk.writes(at, walk.call.args[1].div_ceil(PAGE));
}

pub(crate) fn shmctl(walk: &mut Walk<'_>, at: usize) {
    const TABLE: &[(usize, Argument)] = &[
        (0, Argument::Value),
        (1, Argument::In(112)),
        (2, Argument::Out(112)),
        (3, Argument::Out(72)),
        (11, Argument::Value),
        (12, Argument::Value),
        (13, Argument::Out(112)),
        (14, Argument::Out(48)),
        (15, Argument::Out(112)),
    ];
    by_command(walk, at, walk.call.args[1] as u32 as usize, TABLE);
}

pub(crate) fn msgctl(walk: &mut Walk<'_>, at: usize) {
    const TABLE: &[(usize, Argument)] = &[
        (0, Argument::Value),
        (1, Argument::In(120)),
        (2, Argument::Out(120)),
        (3, Argument::Out(32)),
        (11, Argument::Out(120)),
        (12, Argument::Out(32)),
        (13, Argument::Out(120)),
    ];
    by_command(walk, at, walk.call.args[1] as u32 as usize, TABLE);
}

pub(crate) fn semctl(walk: &mut Walk<'_>, at: usize) {
    /// Only the kernel knows how many there are; not more than this many have ever been allowed.
    const ALL: usize = 32_000 * 2;
    const TABLE: &[(usize, Argument)] = &[
        (0, Argument::Value),
        (1, Argument::In(104)),
        (2, Argument::Out(104)),
        (3, Argument::Out(40)),
        (11, Argument::Value),
        (12, Argument::Value),
        (13, Argument::Out(ALL)),
        (14, Argument::Value),
        (15, Argument::Value),
        (16, Argument::Value),
        (17, Argument::In(ALL)),
        (18, Argument::Out(104)),
        (19, Argument::Out(40)),
        (20, Argument::Out(104)),
    ];
    by_command(walk, at, walk.call.args[2] as u32 as usize, TABLE);
}

pub(crate) fn setsockopt(walk: &mut Walk<'_>, at: usize) {
    let [_, level, option, _, len, _] = walk.call.args;
    walk.reads(at, len as u32 as usize);
    let programs = [libc::SO_ATTACH_FILTER, libc::SO_ATTACH_REUSEPORT_CBPF];
    if level as u32 as i32 == libc::SOL_SOCKET && programs.contains(&(option as u32 as i32)) {
        program(walk, at);
    } else if level as u32 as i32 == libc::IPPROTO_IP && (option as u32) >= 64 {
        // Packet filter tables hold pointers.
        walk.at_least();
    }
}

pub(crate) fn sysfs(walk: &mut Walk<'_>, at: usize) {
    if walk.call.args[0] == 1 {
        walk.text(at);
    }
}

pub(crate) fn sysfs_name(walk: &mut Walk<'_>, at: usize) {
    if walk.call.args[0] == 2 {
        walk.writes(at, PAGE);
    }
}

pub(crate) fn fsconfig(walk: &mut Walk<'_>, at: usize) {
    match walk.call.args[1] {
        1 | 3 | 4 => walk.text(at),
        2 => walk.reads(at, walk.call.args[4] as u32 as usize),
        _ => {}
    }
}

pub(crate) fn quotactl(walk: &mut Walk<'_>, at: usize) {
    quota(walk, at, walk.call.args[0]);
}

pub(crate) fn quotactl_fd(walk: &mut Walk<'_>, at: usize) {
    quota(walk, at, walk.call.args[1]);
}

fn quota(walk: &mut Walk<'_>, at: usize, command: usize) {
    match (command as u32) >> 8 {
        // Turned on with a file's name; old file systems only.
        0x80_0002 => walk.text(at),
        // No structure of theirs is longer than this.
        _ => walk.both(at, 512),
    }
}

pub(crate) fn keyctl_first(walk: &mut Walk<'_>, at: usize) {
    match walk.call.args[0] as u32 {
        // Join a session by name; parameters of Diffie-Hellman and public keys.
        1 => walk.text(at),
        23 => walk.reads(at, 12),
        24..=28 => {
            walk.reads(at, 56);
            walk.at_least();
        }
        31 => walk.writes(at, 8),
        _ => {}
    }
}

pub(crate) fn keyctl_second(walk: &mut Walk<'_>, at: usize) {
    let third = walk.call.args[3];
    match walk.call.args[0] as u32 {
        // Update.
        2 => walk.reads(at, third),
        // Describe, read, security label.
        6 | 11 | 17 => walk.writes(at, third),
        // Search, and restrictions: type, then name.
        10 | 29 => walk.text(at),
        // Instantiate; from buffers.
        12 => walk.reads(at, third),
        20 => nested::vector(walk, at, third, Access::Read, false),
        // Derived secrets.
        23 => walk.writes(at, third),
        24..=28 => walk.at_least(),
        _ => {}
    }
}

pub(crate) fn keyctl_third(walk: &mut Walk<'_>, at: usize) {
    match walk.call.args[0] as u32 {
        10 | 29 => walk.text(at),
        // Digest parameters behind the length.
        23..=28 => walk.at_least(),
        _ => {}
    }
}

/// The attributes of each command hold pointers to names, code, keys and logs.
pub(crate) fn bpf(walk: &mut Walk<'_>, at: usize) {
    walk.both(at, (walk.call.args[2] as u32 as usize).min(PAGE));
    walk.at_least();
}

pub(crate) fn perf_attributes(walk: &mut Walk<'_>, at: usize) {
    walk.reads(at, 64);
    if let Some(len) = walk.word32(at + 4) {
        walk.both(at, (len as usize).clamp(64, PAGE));
    }
}

/// A signal set, or, when the flags say so: set, its length, time.
pub(crate) fn io_uring_enter(walk: &mut Walk<'_>, at: usize) {
    /// The argument is a structure with a time.
    const EXTENDED: usize = 8;
    let [_, _, _, flags, _, len] = walk.call.args;
    walk.reads(at, len.min(PAGE));
    if flags & EXTENDED != 0 {
        if let (Some(set), Some(size)) = (walk.word(at), walk.word(at + 8)) {
            walk.reads(set, size as u32 as usize);
        }
        if let Some(time) = walk.word(at + 16) {
            walk.reads(time, 16);
        }
    }
}

pub(crate) fn io_uring_register(walk: &mut Walk<'_>, at: usize) {
    let count = walk.call.args[3] as u32 as usize;
    match walk.call.args[1] as u32 {
        // Buffers stay in use.
        0 => nested::vector(walk, at, count, Access::ReadWrite, true),
        // Descriptors.
        2 => walk.reads(at, count.saturating_mul(4)),
        // One event descriptor.
        4 | 7 => walk.reads(at, 4),
        _ => {
            walk.both(at, PAGE);
            walk.at_least();
        }
    }
}
