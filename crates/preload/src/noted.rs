//! Calls while there is no engine, in inline mode: most are only noted by their threads ([`userswap_hook::note_only`]), so that a
//! program far from its limit runs at native speed. Who starts the engine holds what those in flight use.

use std::ops::Range;

use libc::c_long;
use userswap::held;
use userswap_hook::{Call, Knowledge, Note, hear_of_all, memory_of, note_only};

use crate::memory;
use crate::stop::{Why, stop_inline};
use crate::threads::Thread;

/// Calls about which nothing matters but the memory that they use until they return, and of which that is always known: from
/// their arguments and from what these point to when the call begins, which nobody may change before it has returned.
#[rustfmt::skip]
const ONLY_NOTED: [c_long; 132] = [
    // Reading, writing
    libc::SYS_read, libc::SYS_write, libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_readv, libc::SYS_writev,
    libc::SYS_preadv, libc::SYS_pwritev, libc::SYS_preadv2, libc::SYS_pwritev2, libc::SYS_sendfile,
    libc::SYS_copy_file_range, libc::SYS_splice, libc::SYS_pipe, libc::SYS_pipe2, libc::SYS_getdents,
    libc::SYS_getdents64, libc::SYS_getrandom,
    // Files by name, and what is known of them
    libc::SYS_stat, libc::SYS_lstat, libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_statfs,
    libc::SYS_fstatfs, libc::SYS_access, libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_readlink,
    libc::SYS_readlinkat, libc::SYS_getcwd, libc::SYS_chdir, libc::SYS_rename, libc::SYS_renameat, libc::SYS_renameat2,
    libc::SYS_mkdir, libc::SYS_mkdirat, libc::SYS_rmdir, libc::SYS_link, libc::SYS_linkat, libc::SYS_unlink,
    libc::SYS_unlinkat, libc::SYS_symlink, libc::SYS_symlinkat, libc::SYS_chmod, libc::SYS_fchmodat, libc::SYS_chown,
    libc::SYS_lchown, libc::SYS_fchownat, libc::SYS_truncate, libc::SYS_utime, libc::SYS_utimes, libc::SYS_futimesat,
    libc::SYS_utimensat, libc::SYS_getxattr, libc::SYS_lgetxattr, libc::SYS_fgetxattr, libc::SYS_listxattr,
    libc::SYS_llistxattr, libc::SYS_flistxattr, libc::SYS_setxattr, libc::SYS_lsetxattr, libc::SYS_fsetxattr,
    libc::SYS_memfd_create, libc::SYS_inotify_add_watch,
    // Waiting; not with a mask of signals
    libc::SYS_poll, libc::SYS_select, libc::SYS_epoll_wait, libc::SYS_epoll_ctl, libc::SYS_futex, libc::SYS_futex_waitv,
    libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_wait4, libc::SYS_waitid, libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigpending, libc::SYS_signalfd4,
    // Sockets and queues
    libc::SYS_socketpair, libc::SYS_bind, libc::SYS_connect, libc::SYS_accept, libc::SYS_accept4, libc::SYS_getsockname,
    libc::SYS_getpeername, libc::SYS_getsockopt, libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_sendmsg,
    libc::SYS_recvmsg, libc::SYS_sendmmsg, libc::SYS_recvmmsg, libc::SYS_mq_timedsend, libc::SYS_mq_timedreceive,
    libc::SYS_msgsnd, libc::SYS_msgrcv, libc::SYS_semop, libc::SYS_semtimedop,
    // Time
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_gettimeofday, libc::SYS_time, libc::SYS_times,
    libc::SYS_getitimer, libc::SYS_setitimer, libc::SYS_timer_settime, libc::SYS_timer_gettime, libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime, libc::SYS_adjtimex,
    // The process and the system
    libc::SYS_getcpu, libc::SYS_getrusage, libc::SYS_getrlimit, libc::SYS_setrlimit, libc::SYS_prlimit64,
    libc::SYS_getgroups, libc::SYS_getresuid, libc::SYS_getresgid, libc::SYS_capget, libc::SYS_uname, libc::SYS_sysinfo,
    libc::SYS_sched_getaffinity, libc::SYS_sched_setaffinity, libc::SYS_sched_getparam, libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler, libc::SYS_sched_getattr, libc::SYS_sched_rr_get_interval,
    libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo, libc::SYS_mincore, libc::SYS_get_mempolicy,
];

/// Whether a number is among them.
pub(crate) fn is_only_noted(nr: usize) -> bool {
    static AMONG: [bool; 512] = {
        let mut among = [false; 512];
        let mut at = 0;
        while at < ONLY_NOTED.len() {
            among[ONLY_NOTED[at] as usize] = true;
            at += 1;
        }
        among
    };
    AMONG.get(nr).is_some_and(|&is| is)
}

/// From now on these calls are only noted: there is no engine. Without what that takes every call is looked at.
pub(crate) fn begin() {
    let _ = note_only();
}

/// An engine is about to start: from now on every call is looked at, and what those in flight use is held until they end.
/// `false`: what they use cannot be known.
#[must_use]
pub(crate) fn end() -> bool {
    if !hear_of_all() {
        return false;
    }
    Thread::notes().for_each(hold);
    true
}

/// Holds what the noted call uses, if there is one.
fn hold(note: &'static Note) {
    let Some((turn, call)) = note.call() else {
        return;
    };
    let (ranges, known) = used(&call);
    if !known {
        stop_inline(Why::UnknownCall);
    }
    held::hold_while(move || note.is_in(turn), ranges);
}

/// The memory that a call uses, and whether that is all of it.
fn used(call: &Call) -> (Vec<Range<usize>>, bool) {
    let (mut ranges, mut readable) = (Vec::new(), true);
    let mut read = |at: usize, bytes: &mut [u8]| {
        let done = memory::copy(at, bytes, &(0..0));
        readable &= done;
        done
    };
    let known = memory_of(call, &mut read, &mut |span| {
        let end = span.address.saturating_add(span.len).min(1 << 47);
        if span.address < end {
            ranges.push(span.address..end);
        }
    });
    // What cannot be read the kernel cannot read either.
    let all = known == Knowledge::Exact || known == Knowledge::AtLeast && !readable;
    (ranges, all)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use userswap_hook::uses_memory;

    use super::*;
    use crate::{masks, special};

    #[test]
    fn what_is_only_noted_uses_memory_and_nothing_else() {
        for nr in ONLY_NOTED {
            assert!(uses_memory(nr as usize), "{nr}");
            assert!(!masks::CALLS.contains(&nr), "{nr}");
            assert!(!special::CALLS.contains(&nr), "{nr}");
            assert!(!memory::REFUSED.contains(&nr), "{nr}");
            let times = ONLY_NOTED.iter().filter(|&&other| other == nr).count();
            assert_eq!(times, 1, "{nr}");
        }
    }

    /// With whatever arguments: numbers, and pointers to zeros.
    #[test]
    fn all_memory_of_what_is_only_noted_is_known_and_free_after_the_call() {
        let zeros = [0_u64; 1024];
        let kept = Cell::new(false);
        for nr in ONLY_NOTED {
            for value in [0, 1, 7, 64, usize::MAX, zeros.as_ptr() as usize] {
                for other in [0, 3, zeros.as_ptr() as usize] {
                    let arguments = [value, other, value, other, value, other];
                    for arguments in [arguments, [other, value, other, value, other, value]] {
                        let call = Call::new(nr as usize, arguments);
                        let mut read = |at, bytes: &mut [u8]| memory::copy(at, bytes, &(0..0));
                        memory_of(&call, &mut read, &mut |span| {
                            kept.set(kept.get() || span.kept)
                        });
                        assert!(used(&call).1, "{nr} {arguments:x?}");
                        assert!(!kept.get(), "{nr}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_nested_structures_name_is_used() {
        let mut buffers = [[0_u8; 100]; 2];
        let parts = buffers.each_mut().map(|buffer| libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        });
        let call = Call::new(
            libc::SYS_readv as usize,
            [0, parts.as_ptr() as usize, 2, 0, 0, 0],
        );
        let (ranges, known) = used(&call);
        assert!(known);
        for buffer in &buffers {
            let at = buffer.as_ptr() as usize;
            assert!(ranges.contains(&(at..at + 100)), "{ranges:x?}");
        }
    }
}
