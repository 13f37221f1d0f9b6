//! Processes, signals, time, scheduling, memory, the system.

use super::{case, ints, open, out, text, v, words, zero};
use crate::place::{Arg, Block, Case, State};
use libc::*;

/// A call without set-up.
fn plain(name: &'static str, nr: i64, make: impl Fn() -> Vec<Arg> + 'static) -> Case {
    case(name, nr, move |_| make())
}

/// A child that has ended.
fn dead_child(state: &mut State) -> i32 {
    // SAFETY: the child ends at once.
    unsafe {
        match fork() {
            0 => _exit(3),
            child => state.child(child),
        }
    }
}

/// A signal that waits to be taken.
fn pending_signal() -> Block {
    // SAFETY: a signal set of ours; the signal is blocked before it is raised.
    unsafe {
        let mut set: sigset_t = std::mem::zeroed();
        sigaddset(&mut set, SIGUSR1);
        pthread_sigmask(SIG_BLOCK, &set, std::ptr::null_mut());
        syscall(SYS_tgkill, getpid(), gettid(), SIGUSR1);
    }
    words(&[1 << (SIGUSR1 - 1), 0])
}

fn timer() -> i32 {
    let mut id = 0i32;
    // SAFETY: an integer of ours. Timers of cases that are over do nothing.
    let made = unsafe { syscall(SYS_timer_create, CLOCK_MONOTONIC, 0, &mut id) };
    assert_eq!(made, 0);
    id
}

fn siginfo() -> Block {
    let mut bytes = vec![0; 140];
    bytes[8..12].copy_from_slice(&SI_QUEUE.to_ne_bytes());
    Block::new(bytes)
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = processes();
    all.extend(signals_and_time());
    all.extend(scheduling_and_system());
    all
}

fn processes() -> Vec<Case> {
    let me = std::process::id();
    vec![
        case("wait4", SYS_wait4, |s| {
            vec![v(dead_child(s)), out(8).into(), v(0), out(200).into()]
        }),
        case("waitid", SYS_waitid, |s| {
            vec![
                v(P_PID as i32),
                v(dead_child(s)),
                out(160).bound().into(),
                v(WEXITED),
                out(200).into(),
            ]
        }),
        plain("getresuid", SYS_getresuid, || {
            vec![out(8).into(), out(8).into(), out(8).into()]
        }),
        plain("getresgid", SYS_getresgid, || {
            vec![out(8).into(), out(8).into(), out(8).into()]
        }),
        plain("getgroups", SYS_getgroups, || {
            vec![v(100), out(500).bound().into()]
        }),
        plain("setgroups", SYS_setgroups, || {
            vec![v(2), ints(&[0, 0, 0]).into()]
        })
        .may_fail()
        .in_child(),
        plain("capget", SYS_capget, || {
            vec![ints(&[0x2008_0522, 0, 0]).into(), out(40).into()]
        }),
        plain("capset", SYS_capset, || {
            vec![ints(&[0x2008_0522, 0, 0]).into(), zero(40).into()]
        })
        .in_child(),
        plain("get_robust_list", SYS_get_robust_list, || {
            vec![v(0), out(16).into(), out(16).into()]
        }),
        plain("arch_prctl ARCH_GET_FS", SYS_arch_prctl, || {
            vec![v(0x1003), out(16).into()]
        }),
        plain("arch_prctl ARCH_GET_XCOMP_SUPP", SYS_arch_prctl, || {
            vec![v(0x1021), out(16).into()]
        }),
        plain("arch_prctl ARCH_GET_CPUID", SYS_arch_prctl, || {
            vec![v(0x1011), out(16).into()]
        }),
        plain("prctl PR_SET_NAME", SYS_prctl, || {
            vec![v(PR_SET_NAME), text("short").into()]
        }),
        plain("prctl PR_SET_NAME long", SYS_prctl, || {
            vec![
                v(PR_SET_NAME),
                text("a name that is far too long").bound().into(),
            ]
        }),
        plain("prctl PR_GET_NAME", SYS_prctl, || {
            vec![v(PR_GET_NAME), out(20).into()]
        }),
        plain("prctl PR_GET_PDEATHSIG", SYS_prctl, || {
            vec![v(PR_GET_PDEATHSIG), out(20).into()]
        }),
        plain("prctl PR_GET_TSC", SYS_prctl, || {
            vec![v(PR_GET_TSC), out(20).into()]
        }),
        plain("prctl PR_GET_CHILD_SUBREAPER", SYS_prctl, || {
            vec![v(PR_GET_CHILD_SUBREAPER), out(20).into()]
        }),
        plain("prctl PR_GET_TID_ADDRESS", SYS_prctl, || {
            vec![v(40), out(20).into()]
        })
        .may_fail(),
        plain("prctl PR_GET_DUMPABLE", SYS_prctl, || {
            vec![v(PR_GET_DUMPABLE), out(20).into()]
        }),
        plain("prctl PR_GET_AUXV", SYS_prctl, || {
            vec![v(0x4155_5856), out(64).into(), v(64), v(0), v(0)]
        }),
        plain("clone3", SYS_clone3, || {
            vec![
                words(&[0, 0, 0, 0, i64::from(SIGCHLD), 0, 0, 0, 0, 0, 0]).into(),
                v(64),
            ]
        })
        .in_child(),
        plain("kcmp", SYS_kcmp, move || {
            vec![v(me), v(me), v(0), v(0), v(0)]
        })
        .may_fail(),
        plain("process_vm_readv", SYS_process_vm_readv, move || {
            let from = [7u8; 64].to_vec().leak();
            let remote = words(&[from.as_ptr() as i64, 64, 0]);
            vec![
                v(me),
                words(&[0, 64, 0]).link(0, out(64).short()).into(),
                v(1),
                remote.into(),
                v(1),
                v(0),
            ]
        }),
        plain("futex wake", SYS_futex, || {
            vec![ints(&[0]).bound().into(), v(FUTEX_WAKE), v(1)]
        }),
        plain("futex wait", SYS_futex, || {
            vec![
                ints(&[1, 0]).bound().into(),
                v(FUTEX_WAIT),
                v(0),
                words(&[0, 1, 0]).into(),
            ]
        })
        .may_fail(),
        plain("futex cmp_requeue", SYS_futex, || {
            vec![
                ints(&[1, 0]).bound().into(),
                v(FUTEX_CMP_REQUEUE),
                v(1),
                v(1),
                ints(&[0, 0]).bound().into(),
                v(1),
            ]
        }),
        plain("futex wake_op", SYS_futex, || {
            vec![
                ints(&[1, 0]).bound().into(),
                v(FUTEX_WAKE_OP),
                v(1),
                v(1),
                ints(&[0, 0]).bound().into(),
                v(0),
            ]
        }),
        plain("futex_waitv", SYS_futex_waitv, || {
            let one = words(&[5, 0, 2, 0]).link(8, ints(&[1, 0]).bound());
            vec![one.into(), v(1), v(0), words(&[0, 1, 0]).into(), v(1)]
        })
        .may_fail(),
    ]
}

fn signals_and_time() -> Vec<Case> {
    let me = std::process::id();
    vec![
        plain("rt_sigaction set", SYS_rt_sigaction, || {
            vec![v(SIGUSR2), words(&[1, 0, 0, 0, 9]).into(), v(0), v(8)]
        }),
        plain("rt_sigaction get", SYS_rt_sigaction, || {
            vec![v(SIGUSR2), v(0), out(50).into(), v(8)]
        }),
        plain("rt_sigprocmask", SYS_rt_sigprocmask, || {
            vec![v(SIG_BLOCK), words(&[0, 9]).into(), out(16).into(), v(8)]
        }),
        plain("rt_sigpending", SYS_rt_sigpending, || {
            vec![out(16).into(), v(8)]
        }),
        plain("rt_sigtimedwait", SYS_rt_sigtimedwait, || {
            vec![
                pending_signal().into(),
                out(140).bound().into(),
                words(&[1, 0, 0]).into(),
                v(8),
            ]
        }),
        plain("rt_sigqueueinfo", SYS_rt_sigqueueinfo, move || {
            vec![v(me), v(0), siginfo().bound().into()]
        }),
        plain("rt_tgsigqueueinfo", SYS_rt_tgsigqueueinfo, move || {
            vec![v(me), v(me), v(0), siginfo().bound().into()]
        })
        .may_fail(),
        case("pidfd_send_signal", SYS_pidfd_send_signal, move |s| {
            // SAFETY: makes a descriptor.
            let fd = s.file(unsafe { syscall(SYS_pidfd_open, me, 0) } as i32);
            vec![v(fd), v(0), siginfo().bound().into(), v(0)]
        }),
        plain("sigaltstack get", SYS_sigaltstack, || {
            vec![v(0), out(30).into()]
        }),
        plain("sigaltstack set", SYS_sigaltstack, || {
            vec![words(&[0, i64::from(SS_DISABLE), 0, 0]).into(), v(0)]
        })
        .in_child(),
        plain("nanosleep", SYS_nanosleep, || {
            vec![words(&[0, 1, 0]).into(), out(20).bound().into()]
        }),
        plain("clock_nanosleep", SYS_clock_nanosleep, || {
            vec![v(CLOCK_MONOTONIC), v(0), words(&[0, 1, 0]).into(), v(0)]
        }),
        plain("clock_gettime", SYS_clock_gettime, || {
            vec![v(CLOCK_MONOTONIC), out(20).into()]
        }),
        plain("clock_getres", SYS_clock_getres, || {
            vec![v(CLOCK_MONOTONIC), out(20).into()]
        }),
        plain("clock_settime", SYS_clock_settime, || {
            vec![v(CLOCK_REALTIME), words(&[0, -1, 0]).into()]
        })
        .may_fail(),
        plain("clock_adjtime", SYS_clock_adjtime, || {
            vec![v(CLOCK_REALTIME), zero(220).into()]
        }),
        plain("adjtimex", SYS_adjtimex, || vec![zero(220).into()]),
        plain("gettimeofday", SYS_gettimeofday, || {
            vec![out(20).into(), out(20).into()]
        }),
        plain("time", SYS_time, || vec![out(20).into()]),
        plain("times", SYS_times, || vec![out(50).into()]),
        plain("getitimer", SYS_getitimer, || {
            vec![v(ITIMER_VIRTUAL), out(50).into()]
        }),
        plain("setitimer", SYS_setitimer, || {
            vec![v(ITIMER_VIRTUAL), zero(50).into(), out(50).into()]
        }),
        plain("timer_create", SYS_timer_create, || {
            let mut event = vec![0; 80];
            event[12..16].copy_from_slice(&SIGEV_NONE.to_ne_bytes());
            vec![v(CLOCK_MONOTONIC), Block::new(event).into(), out(8).into()]
        }),
        plain("timer_settime", SYS_timer_settime, || {
            vec![v(timer()), v(0), zero(50).into(), out(50).into()]
        }),
        plain("timer_gettime", SYS_timer_gettime, || {
            vec![v(timer()), out(50).into()]
        }),
    ]
}

fn scheduling_and_system() -> Vec<Case> {
    vec![
        plain("sched_getparam", SYS_sched_getparam, || {
            vec![v(0), out(8).into()]
        }),
        plain("sched_setparam", SYS_sched_setparam, || {
            vec![v(0), zero(8).into()]
        }),
        plain("sched_setscheduler", SYS_sched_setscheduler, || {
            vec![v(0), v(SCHED_OTHER), zero(8).into()]
        }),
        plain("sched_rr_get_interval", SYS_sched_rr_get_interval, || {
            vec![v(0), out(20).into()]
        }),
        plain("sched_getattr", SYS_sched_getattr, || {
            vec![v(0), out(60).into(), v(48), v(0)]
        }),
        plain("sched_setattr", SYS_sched_setattr, || {
            vec![
                v(0),
                ints(&[48, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).into(),
                v(0),
            ]
        }),
        plain("sched_setaffinity", SYS_sched_setaffinity, || {
            vec![v(0), v(16), out(16).into()]
        }),
        plain("sched_getaffinity", SYS_sched_getaffinity, || {
            vec![v(0), v(128), out(128).bound().into()]
        }),
        plain("getcpu", SYS_getcpu, || {
            vec![out(8).into(), out(8).into(), v(0)]
        }),
        plain("getrlimit", SYS_getrlimit, || {
            vec![v(RLIMIT_NOFILE as i32), out(20).into()]
        }),
        plain("setrlimit", SYS_setrlimit, || {
            vec![v(RLIMIT_CORE as i32), words(&[0, 0, 0]).into()]
        }),
        plain("prlimit64", SYS_prlimit64, || {
            vec![
                v(0),
                v(RLIMIT_CORE as i32),
                words(&[0, 0, 0]).into(),
                out(20).into(),
            ]
        }),
        plain("getrusage", SYS_getrusage, || vec![v(0), out(200).into()]),
        plain("mincore", SYS_mincore, || {
            // SAFETY: asks where a mapping may be made, and makes it.
            let at = unsafe {
                mmap(
                    std::ptr::null_mut(),
                    8192,
                    PROT_READ,
                    MAP_PRIVATE | MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            vec![v(at as i64), v(8192), out(8).into()]
        }),
        plain("get_mempolicy", SYS_get_mempolicy, || {
            vec![out(8).into(), out(200).bound().into(), v(1024), v(0), v(0)]
        })
        .may_fail(),
        plain("set_mempolicy", SYS_set_mempolicy, || {
            vec![v(0), zero(16).into(), v(64)]
        })
        .may_fail(),
        plain("move_pages", SYS_move_pages, || {
            vec![v(0), v(1), zero(16).into(), v(0), out(8).into(), v(0)]
        })
        .may_fail(),
        plain("process_madvise", SYS_process_madvise, || {
            vec![v(-1), zero(16).into(), v(1), v(0), v(0)]
        })
        .may_fail(),
        plain("uname", SYS_uname, || vec![out(500).into()]),
        plain("sysinfo", SYS_sysinfo, || vec![out(200).into()]),
        plain("getrandom", SYS_getrandom, || {
            vec![out(100).short().into(), v(100), v(0)]
        }),
        plain("modify_ldt", SYS_modify_ldt, || {
            vec![v(0), out(100).bound().into(), v(100)]
        })
        .may_fail(),
        plain("sethostname", SYS_sethostname, || {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("readable");
            vec![text(name.trim()).into(), v(name.trim().len() as i64)]
        })
        .may_fail(),
        plain("syslog", SYS_syslog, || {
            vec![v(3), out(100).bound().into(), v(100)]
        })
        .may_fail(),
        plain("add_key", SYS_add_key, || {
            vec![
                text("user").into(),
                text("d").into(),
                out(10).into(),
                v(10),
                v(-2),
            ]
        })
        .may_fail(),
        plain("request_key", SYS_request_key, || {
            vec![text("user").into(), text("none").into(), v(0), v(-2)]
        })
        .may_fail(),
        plain("keyctl join", SYS_keyctl, || {
            vec![v(1), text("session").into()]
        })
        .may_fail()
        .in_child(),
        plain("seccomp action", SYS_seccomp, || {
            vec![v(2), v(0), ints(&[0x7fff_0000u32 as i32, 0]).into()]
        })
        .may_fail(),
        plain("seccomp sizes", SYS_seccomp, || {
            vec![v(3), v(0), out(20).into()]
        })
        .may_fail(),
        plain("seccomp filter", SYS_seccomp, || {
            // One instruction: allow.
            let code = Block::new([0x06, 0, 0, 0, 0, 0, 0xff, 0x7f]);
            vec![v(1), v(0), words(&[1, 0, 0]).link(8, code).into()]
        })
        .may_fail()
        .in_child(),
        plain(
            "landlock_create_ruleset",
            SYS_landlock_create_ruleset,
            || vec![words(&[1, 0]).into(), v(8), v(0)],
        )
        .may_fail(),
        plain("mount", SYS_mount, || {
            vec![
                text("none").into(),
                text("none/none").into(),
                text("none").into(),
                v(0),
                v(0),
            ]
        })
        .may_fail(),
        plain("pivot_root", SYS_pivot_root, || {
            vec![text("none").into(), text("none").bound().into()]
        })
        .may_fail(),
        plain("fsopen", SYS_fsopen, || vec![text("none").into(), v(0)]).may_fail(),
        plain("open_tree", SYS_open_tree, || {
            vec![v(AT_FDCWD), text("none").into(), v(0)]
        })
        .may_fail(),
        plain("delete_module", SYS_delete_module, || {
            vec![text("none").into(), v(0)]
        })
        .may_fail(),
        case("finit_module", SYS_finit_module, |s| {
            vec![
                v(open(s, "/dev/null", O_RDONLY)),
                text("").bound().into(),
                v(0),
            ]
        })
        .may_fail(),
        plain("io_setup", SYS_io_setup, || vec![v(1), zero(16).into()])
            .may_fail()
            .in_child(),
        plain("io_uring_setup", SYS_io_uring_setup, || {
            vec![v(4), zero(130).into()]
        })
        .may_fail()
        .in_child(),
        plain("perf_event_open", SYS_perf_event_open, || {
            // Type software, size, clock.
            let mut attributes = vec![0u8; 140];
            attributes[0] = 1;
            attributes[4] = 112;
            vec![Block::new(attributes).into(), v(0), v(-1), v(-1), v(0)]
        })
        .may_fail(),
    ]
}
