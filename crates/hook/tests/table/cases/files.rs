//! Files, directories, attributes, terminals, waiting.

use super::{case, ints, open, out, pipe, text, v, words, zero};
use crate::place::{Block, Case, State};
use libc::*;

pub(super) const FILE_LEN: i64 = 64 << 10;

/// Two buffers of so many bytes, each of which may be cut.
fn two_buffers() -> Block {
    words(&[0, 30, 0, 50])
        .link(0, out(30).short())
        .link(16, out(50).short())
}

/// A terminal's two sides; the second is a terminal of its own.
fn terminal(state: &mut State) -> [i32; 2] {
    let master = open(state, "/dev/ptmx", O_RDWR | O_NOCTTY);
    let mut number = 0i32;
    // SAFETY: integers of ours.
    unsafe {
        assert_eq!(ioctl(master, TIOCSPTLCK, &0i32), 0);
        assert_eq!(ioctl(master, TIOCGPTN, &mut number), 0);
    }
    [
        master,
        open(state, &format!("/dev/pts/{number}"), O_RDWR | O_NOCTTY),
    ]
}

fn terminal_request(name: &'static str, request: u64, block: impl Fn() -> Block + 'static) -> Case {
    case(name, SYS_ioctl, move |s| {
        vec![v(terminal(s)[1]), v(request as i64), block().into()]
    })
}

fn epoll(state: &mut State) -> [i32; 2] {
    // SAFETY: descriptors and an event of ours.
    unsafe {
        let set = state.file(epoll_create1(0));
        let ends = pipe(state);
        let mut event = epoll_event {
            events: EPOLLIN as u32,
            u64: 7,
        };
        assert_eq!(epoll_ctl(set, EPOLL_CTL_ADD, ends[0], &mut event), 0);
        [set, ends[1]]
    }
}

fn watcher(state: &mut State) -> i32 {
    // SAFETY: makes a descriptor.
    state.file(unsafe { inotify_init1(0) })
}

fn timer(state: &mut State) -> i32 {
    // SAFETY: makes a descriptor.
    state.file(unsafe { timerfd_create(0, 0) })
}

fn lock() -> Block {
    let mut bytes = vec![0; 32];
    bytes[0] = F_RDLCK as u8;
    Block::new(bytes)
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = vec![
        case("read", SYS_read, |s| {
            vec![
                v(open(s, "/dev/zero", O_RDONLY)),
                out(100).short().into(),
                v(100),
            ]
        }),
        case("read pipe", SYS_read, |s| {
            vec![v(pipe(s)[0]), out(8).short().into(), v(8)]
        }),
        case("write", SYS_write, |s| {
            vec![v(pipe(s)[1]), out(100).short().into(), v(100)]
        }),
        case("pread64", SYS_pread64, |s| {
            vec![
                v(open(s, "file", O_RDONLY)),
                out(100).short().into(),
                v(100),
                v(5),
            ]
        }),
        case("pwrite64", SYS_pwrite64, |s| {
            vec![
                v(open(s, "other", O_RDWR | O_CREAT)),
                out(100).short().into(),
                v(100),
                v(5),
            ]
        }),
        case("readv", SYS_readv, |s| {
            vec![v(open(s, "file", O_RDONLY)), two_buffers().into(), v(2)]
        }),
        case("writev", SYS_writev, |s| {
            vec![v(pipe(s)[1]), two_buffers().into(), v(2)]
        }),
        case("preadv", SYS_preadv, |s| {
            vec![
                v(open(s, "file", O_RDONLY)),
                two_buffers().into(),
                v(2),
                v(0),
                v(0),
            ]
        }),
        case("pwritev", SYS_pwritev, |s| {
            vec![
                v(open(s, "other", O_RDWR | O_CREAT)),
                two_buffers().into(),
                v(2),
                v(0),
                v(0),
            ]
        }),
        case("preadv2", SYS_preadv2, |s| {
            vec![
                v(open(s, "file", O_RDONLY)),
                two_buffers().into(),
                v(2),
                v(0),
                v(0),
                v(0),
            ]
        }),
        case("pwritev2", SYS_pwritev2, |s| {
            vec![
                v(open(s, "other", O_RDWR | O_CREAT)),
                two_buffers().into(),
                v(2),
                v(0),
                v(0),
                v(0),
            ]
        }),
        case("sendfile", SYS_sendfile, |s| {
            vec![
                v(pipe(s)[1]),
                v(open(s, "file", O_RDONLY)),
                words(&[3]).into(),
                v(10),
            ]
        }),
        case("splice from", SYS_splice, |s| {
            vec![
                v(open(s, "file", O_RDONLY)),
                words(&[3]).into(),
                v(pipe(s)[1]),
                v(0),
                v(10),
                v(0),
            ]
        }),
        case("splice to", SYS_splice, |s| {
            vec![
                v(pipe(s)[0]),
                v(0),
                v(open(s, "other", O_RDWR | O_CREAT)),
                words(&[3]).into(),
                v(5),
                v(0),
            ]
        }),
        case("copy_file_range", SYS_copy_file_range, |s| {
            vec![
                v(open(s, "file", O_RDONLY)),
                words(&[3]).into(),
                v(open(s, "other", O_RDWR | O_CREAT)),
                words(&[9]).into(),
                v(5),
                v(0),
            ]
        }),
        case("getcwd", SYS_getcwd, |_| {
            vec![out(300).bound().into(), v(300)]
        }),
        case("getdents", SYS_getdents, |s| {
            vec![v(open(s, ".", O_RDONLY)), out(900).bound().into(), v(900)]
        }),
        case("getdents64", SYS_getdents64, |s| {
            vec![v(open(s, ".", O_RDONLY)), out(900).bound().into(), v(900)]
        }),
        case("fstat", SYS_fstat, |s| {
            vec![v(open(s, "file", O_RDONLY)), out(200).into()]
        }),
        case("fstatfs", SYS_fstatfs, |s| {
            vec![v(open(s, "file", O_RDONLY)), out(200).into()]
        }),
        case("ustat", SYS_ustat, |_| {
            let device =
                std::os::unix::fs::MetadataExt::dev(&std::fs::metadata(".").expect("a directory"));
            vec![v(device as i64), out(40).into()]
        }),
        case("fsetxattr", SYS_fsetxattr, |s| {
            vec![
                v(open(s, "file", O_RDWR)),
                text("user.a").into(),
                out(10).into(),
                v(10),
                v(0),
            ]
        }),
        case("fgetxattr", SYS_fgetxattr, |s| {
            vec![
                v(open(s, "file", O_RDWR)),
                text("user.a").into(),
                out(10).into(),
                v(10),
            ]
        }),
        case("flistxattr", SYS_flistxattr, |s| {
            vec![v(open(s, "file", O_RDWR)), out(100).bound().into(), v(100)]
        }),
        case("fremovexattr", SYS_fremovexattr, |s| {
            vec![v(open(s, "file", O_RDWR)), text("user.none").into()]
        })
        .may_fail(),
        case("memfd_create", SYS_memfd_create, |_| {
            vec![text("name").into(), v(0)]
        }),
        case("cachestat", 451, |s| {
            vec![
                v(open(s, "file", O_RDONLY)),
                words(&[0, FILE_LEN]).into(),
                out(60).into(),
                v(0),
            ]
        }),
        case("inotify_add_watch", SYS_inotify_add_watch, |s| {
            vec![v(watcher(s)), text("file").into(), v(1)]
        }),
        // Locks and owners
        case("fcntl F_GETLK", SYS_fcntl, |s| {
            vec![v(open(s, "file", O_RDWR)), v(F_GETLK), lock().into()]
        }),
        case("fcntl F_SETLK", SYS_fcntl, |s| {
            vec![v(open(s, "file", O_RDWR)), v(F_SETLK), lock().into()]
        }),
        case("fcntl F_OFD_GETLK", SYS_fcntl, |s| {
            vec![v(open(s, "file", O_RDWR)), v(F_OFD_GETLK), lock().into()]
        }),
        case("fcntl F_OFD_SETLK", SYS_fcntl, |s| {
            vec![v(open(s, "file", O_RDWR)), v(F_OFD_SETLK), lock().into()]
        }),
        case("fcntl F_GETOWN_EX", SYS_fcntl, |s| {
            vec![v(pipe(s)[0]), v(16), out(20).into()]
        }),
        case("fcntl F_SETOWN_EX", SYS_fcntl, |s| {
            vec![v(pipe(s)[0]), v(15), zero(8).into()]
        }),
        case("fcntl F_GETOWNER_UIDS", SYS_fcntl, |s| {
            vec![v(pipe(s)[0]), v(17), out(20).into()]
        })
        .may_fail(),
        case("fcntl F_GET_RW_HINT", SYS_fcntl, |s| {
            vec![v(open(s, "file", O_RDWR)), v(1035), out(20).into()]
        }),
        case("fcntl F_SET_RW_HINT", SYS_fcntl, |s| {
            vec![v(open(s, "file", O_RDWR)), v(1036), zero(8).into()]
        }),
        case("fcntl F_SETFL", SYS_fcntl, |s| {
            vec![v(pipe(s)[0]), v(F_SETFL), out(1).into()]
        })
        .may_fail(),
        // Requests to files and terminals
        case("ioctl FIONREAD", SYS_ioctl, |s| {
            vec![v(pipe(s)[0]), v(FIONREAD as i64), out(20).into()]
        }),
        case("ioctl FIONBIO", SYS_ioctl, |s| {
            vec![v(pipe(s)[0]), v(FIONBIO as i64), ints(&[1, 0]).into()]
        }),
        case("ioctl FIOASYNC", SYS_ioctl, |s| {
            vec![v(pipe(s)[0]), v(0x5452), ints(&[0, 0]).into()]
        }),
        case("ioctl FIGETBSZ", SYS_ioctl, |s| {
            vec![v(open(s, "file", O_RDWR)), v(2), out(20).into()]
        }),
        case("ioctl FIOQSIZE", SYS_ioctl, |s| {
            vec![v(open(s, "file", O_RDWR)), v(0x5460), out(20).into()]
        }),
        case("ioctl FS_IOC_FSGETXATTR", SYS_ioctl, |s| {
            vec![
                v(open(s, "file", O_RDWR)),
                v(0x801c_581fu32),
                out(40).into(),
            ]
        })
        .may_fail(),
        terminal_request("ioctl TCGETS", TCGETS, || out(60)),
        terminal_request("ioctl TCSETS", TCSETS, || zero(60)),
        terminal_request("ioctl TCSETSW", TCSETSW, || zero(60)),
        terminal_request("ioctl TCGETA", TCGETA, || out(60)),
        terminal_request("ioctl TCGETS2", 0x802c_542a, || out(60)),
        terminal_request("ioctl TIOCGWINSZ", TIOCGWINSZ, || out(20)),
        terminal_request("ioctl TIOCSWINSZ", TIOCSWINSZ, || zero(20)),
        terminal_request("ioctl TIOCOUTQ", TIOCOUTQ, || out(20)),
        terminal_request("ioctl TIOCINQ", FIONREAD, || out(20)),
        terminal_request("ioctl TIOCGETD", TIOCGETD, || out(20)),
        terminal_request("ioctl TIOCSETD", TIOCSETD, || zero(20)),
        case("ioctl TIOCGPTN", SYS_ioctl, |s| {
            vec![v(terminal(s)[0]), v(TIOCGPTN as i64), out(20).into()]
        }),
        case("ioctl TIOCSPTLCK", SYS_ioctl, |s| {
            vec![v(terminal(s)[0]), v(TIOCSPTLCK as i64), zero(20).into()]
        }),
        case("ioctl TIOCPKT", SYS_ioctl, |s| {
            vec![v(terminal(s)[0]), v(0x5420), zero(20).into()]
        }),
        // Waiting
        case("poll", SYS_poll, |s| {
            vec![ints(&[pipe(s)[0], 1, -1, 0, 0, 0]).into(), v(2), v(0)]
        }),
        case("ppoll", SYS_ppoll, |s| {
            vec![
                ints(&[pipe(s)[0], 1]).into(),
                v(1),
                words(&[0, 0, 0]).into(),
                words(&[0, 0]).into(),
                v(8),
            ]
        }),
        case("select", SYS_select, |_| {
            vec![
                v(70),
                zero(32).into(),
                zero(32).into(),
                zero(32).into(),
                words(&[0, 0, 0]).into(),
            ]
        }),
        case("select few", SYS_select, |_| {
            vec![v(3), zero(32).into(), v(0), v(0), words(&[0, 0, 0]).into()]
        }),
        case("pselect6", SYS_pselect6, |_| {
            vec![
                v(5),
                zero(32).into(),
                v(0),
                v(0),
                words(&[0, 0, 0]).into(),
                words(&[0, 8, 0]).link(0, zero(16)).into(),
            ]
        }),
        case("epoll_ctl", SYS_epoll_ctl, |s| {
            vec![
                v(epoll(s)[0]),
                v(EPOLL_CTL_ADD),
                v(epoll(s)[1]),
                zero(20).into(),
            ]
        }),
        case("epoll_wait", SYS_epoll_wait, |s| {
            vec![v(epoll(s)[0]), out(20).into(), v(1), v(0)]
        }),
        case("epoll_pwait", SYS_epoll_pwait, |s| {
            vec![
                v(epoll(s)[0]),
                out(20).into(),
                v(1),
                v(0),
                zero(16).into(),
                v(8),
            ]
        }),
        case("epoll_pwait2", SYS_epoll_pwait2, |s| {
            vec![
                v(epoll(s)[0]),
                out(20).into(),
                v(1),
                words(&[0, 0, 0]).into(),
                zero(16).into(),
                v(8),
            ]
        }),
        case("signalfd4", SYS_signalfd4, |_| {
            vec![v(-1), zero(16).into(), v(8), v(0)]
        }),
        case("timerfd_settime", SYS_timerfd_settime, |s| {
            vec![
                v(timer(s)),
                v(0),
                words(&[0, 0, 9, 0]).into(),
                out(40).into(),
            ]
        }),
        case("timerfd_gettime", SYS_timerfd_gettime, |s| {
            vec![v(timer(s)), out(40).into()]
        }),
    ];
    all.extend(super::paths::cases());
    all
}
