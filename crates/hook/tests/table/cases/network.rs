//! Sockets, queues, semaphores.

use super::{case, ints, out, text, v, words, zero};
use crate::place::{Arg, Block, Case, State};
use libc::*;

/// A datagram socket on the loopback address, with its address.
fn socket_bound(state: &mut State) -> (i32, Vec<u8>) {
    // SAFETY: plain calls on structures of ours.
    unsafe {
        let fd = state.file(socket(
            AF_INET,
            SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
            0,
        ));
        let mut address: sockaddr_in = std::mem::zeroed();
        address.sin_family = AF_INET as u16;
        address.sin_addr.s_addr = u32::to_be(0x7f00_0001);
        let mut len = 16u32;
        let at = (&raw mut address).cast::<sockaddr>();
        assert_eq!(bind(fd, at, 16), 0);
        assert_eq!(getsockname(fd, at, &mut len), 0);
        (fd, std::slice::from_raw_parts(at.cast::<u8>(), 16).to_vec())
    }
}

/// One with two datagrams of 32 bytes waiting.
fn socket_with_datagrams(state: &mut State) -> i32 {
    let (fd, address) = socket_bound(state);
    for _ in 0..2 {
        // SAFETY: bytes of ours.
        let sent = unsafe {
            sendto(
                fd,
                [9u8; 32].as_ptr().cast(),
                32,
                0,
                address.as_ptr().cast(),
                16,
            )
        };
        assert_eq!(sent, 32);
    }
    fd
}

/// A message to or from somebody, in two buffers.
fn message(name: Block, len: usize) -> Block {
    let mut bytes = vec![0u8; len];
    bytes[8] = 16;
    bytes[24] = 2;
    Block::new(bytes).link(0, name).link(
        16,
        words(&[0, 16, 0, 16]).link(0, out(16)).link(16, out(16)),
    )
}

fn address_and_len() -> [Arg; 2] {
    [out(16).into(), ints(&[16]).into()]
}

fn queue(state: &mut State) -> i32 {
    // SAFETY: a name with its end; the queue is removed at once, and lives as long as its descriptor.
    unsafe {
        let mut attributes: mq_attr = std::mem::zeroed();
        attributes.mq_maxmsg = 4;
        attributes.mq_msgsize = 64;
        let name = c"/userswap-hook-test";
        let fd = state.file(mq_open(
            name.as_ptr(),
            O_RDWR | O_CREAT | O_NONBLOCK,
            0o600,
            &attributes,
        ));
        mq_unlink(name.as_ptr());
        assert_eq!(mq_send(fd, [1; 64].as_ptr(), 64, 0), 0);
        fd
    }
}

/// A message queue of the old kind, made once, with as many messages as are needed.
fn old_queue() -> i32 {
    static ID: std::sync::OnceLock<i32> = std::sync::OnceLock::new();
    // SAFETY: a private queue and 24 bytes of ours. It is removed when the process ends (atexit).
    unsafe {
        let id = *ID.get_or_init(|| {
            let id = msgget(IPC_PRIVATE, 0o600);
            assert!(id >= 0);
            ipc_gone(move || msgctl(id, IPC_RMID, std::ptr::null_mut()));
            id
        });
        assert_eq!(msgsnd(id, [1i64, 2, 3].as_ptr().cast(), 16, IPC_NOWAIT), 0);
        id
    }
}

/// A set of two semaphores.
fn semaphores() -> i32 {
    static ID: std::sync::OnceLock<i32> = std::sync::OnceLock::new();
    *ID.get_or_init(|| {
        // SAFETY: a private set.
        let id = unsafe { semget(IPC_PRIVATE, 2, 0o600) };
        assert!(id >= 0);
        // SAFETY: removes it.
        ipc_gone(move || unsafe { semctl(id, 0, IPC_RMID) });
        id
    })
}

fn shared() -> i32 {
    static ID: std::sync::OnceLock<i32> = std::sync::OnceLock::new();
    *ID.get_or_init(|| {
        // SAFETY: a private segment.
        let id = unsafe { shmget(IPC_PRIVATE, 4096, 0o600) };
        assert!(id >= 0);
        // SAFETY: removes it.
        ipc_gone(move || unsafe { shmctl(id, IPC_RMID, std::ptr::null_mut()) });
        id
    })
}

/// Removes what would outlive the process.
fn ipc_gone(remove: impl Fn() -> i32 + Send + 'static) {
    type Removers = std::sync::Mutex<Vec<Box<dyn Fn() -> i32 + Send>>>;
    static REMOVERS: Removers = std::sync::Mutex::new(Vec::new());
    extern "C" fn run() {
        REMOVERS
            .lock()
            .expect("no panic inside")
            .iter()
            .for_each(|remove| {
                remove();
            });
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    REMOVERS
        .lock()
        .expect("no panic inside")
        .push(Box::new(remove));
    // SAFETY: the function uses only statics.
    ONCE.call_once(|| unsafe {
        atexit(run);
    });
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = sockets();
    all.extend(queues());
    all
}

fn sockets() -> Vec<Case> {
    vec![
        case("socketpair", SYS_socketpair, |_| {
            vec![v(AF_UNIX), v(SOCK_STREAM), v(0), out(12).into()]
        }),
        case("bind", SYS_bind, |s| {
            // SAFETY: makes a descriptor.
            let fd = s.file(unsafe { socket(AF_INET, SOCK_DGRAM, 0) });
            let mut address = vec![0; 16];
            address[0] = 2;
            vec![v(fd), Block::new(address).into(), v(16)]
        }),
        case("connect", SYS_connect, |s| {
            let (fd, address) = socket_bound(s);
            vec![v(fd), Block::new(address).into(), v(16)]
        }),
        case("getsockname", SYS_getsockname, |s| {
            let [address, len] = address_and_len();
            vec![v(socket_bound(s).0), address, len]
        }),
        case("getpeername", SYS_getpeername, |s| {
            let (fd, to) = socket_bound(s);
            // SAFETY: an address of ours.
            assert_eq!(unsafe { connect(fd, to.as_ptr().cast(), 16) }, 0);
            let [address, len] = address_and_len();
            vec![v(fd), address, len]
        }),
        case("accept4", SYS_accept4, |s| {
            // SAFETY: plain calls on structures of ours.
            let fd = unsafe {
                let fd = s.file(socket(AF_INET, SOCK_STREAM, 0));
                assert_eq!(listen(fd, 4), 0);
                let mut address = [0u8; 16];
                assert_eq!(getsockname(fd, address.as_mut_ptr().cast(), &mut 16), 0);
                let other = s.file(socket(AF_INET, SOCK_STREAM, 0));
                assert_eq!(connect(other, address.as_ptr().cast(), 16), 0);
                fd
            };
            let [address, len] = address_and_len();
            vec![v(fd), address, len, v(0)]
        }),
        case("sendto", SYS_sendto, |s| {
            let (fd, address) = socket_bound(s);
            vec![
                v(fd),
                out(50).into(),
                v(50),
                v(0),
                Block::new(address).into(),
                v(16),
            ]
        }),
        case("recvfrom", SYS_recvfrom, |s| {
            let [address, len] = address_and_len();
            vec![
                v(socket_with_datagrams(s)),
                out(32).into(),
                v(32),
                v(0),
                address,
                len,
            ]
        }),
        case("sendmsg", SYS_sendmsg, |s| {
            let (fd, address) = socket_bound(s);
            vec![v(fd), message(Block::new(address), 60).into(), v(0)]
        }),
        case("recvmsg", SYS_recvmsg, |s| {
            vec![
                v(socket_with_datagrams(s)),
                message(out(16), 60).bound().into(),
                v(0),
            ]
        }),
        case("sendmmsg", SYS_sendmmsg, |s| {
            let (fd, address) = socket_bound(s);
            vec![
                v(fd),
                message(Block::new(address), 64).bound().into(),
                v(1),
                v(0),
            ]
        }),
        case("recvmmsg", SYS_recvmmsg, |s| {
            vec![
                v(socket_with_datagrams(s)),
                message(out(16), 64).bound().into(),
                v(1),
                v(0),
                words(&[1, 0, 0]).into(),
            ]
        }),
        case("setsockopt", SYS_setsockopt, |s| {
            vec![
                v(socket_bound(s).0),
                v(SOL_SOCKET),
                v(SO_REUSEADDR),
                ints(&[1, 0]).into(),
                v(4),
            ]
        }),
        case("setsockopt filter", SYS_setsockopt, |s| {
            let code = Block::new([0x06, 0, 0, 0, 0, 0, 0xff, 0x7f]);
            vec![
                v(socket_bound(s).0),
                v(SOL_SOCKET),
                v(SO_ATTACH_FILTER),
                words(&[1, 0]).link(8, code).into(),
                v(16),
            ]
        }),
        case("getsockopt", SYS_getsockopt, |s| {
            vec![
                v(socket_bound(s).0),
                v(SOL_SOCKET),
                v(SO_TYPE),
                out(4).into(),
                ints(&[4]).into(),
            ]
        }),
        case("ioctl SIOCGIFCONF", SYS_ioctl, |s| {
            vec![
                v(socket_bound(s).0),
                v(0x8912),
                words(&[40, 0]).link(8, out(40).bound()).into(),
            ]
        })
        .may_fail(),
        case("ioctl SIOCGIFFLAGS", SYS_ioctl, |s| {
            let mut request = b"lo".to_vec();
            request.resize(50, 0);
            vec![v(socket_bound(s).0), v(0x8913), Block::new(request).into()]
        })
        .may_fail(),
        case("ioctl SIOCGIFHWADDR", SYS_ioctl, |s| {
            let mut request = b"lo".to_vec();
            request.resize(50, 0);
            vec![v(socket_bound(s).0), v(0x8927), Block::new(request).into()]
        })
        .may_fail(),
        case("ioctl SIOCINQ", SYS_ioctl, |s| {
            vec![
                v(socket_with_datagrams(s)),
                v(FIONREAD as i64),
                out(8).into(),
            ]
        }),
    ]
}

fn queues() -> Vec<Case> {
    vec![
        case("mq_open", SYS_mq_open, |_| {
            vec![
                text("userswap-hook-none").into(),
                v(O_RDWR | O_CREAT | O_EXCL),
                v(0o600),
                words(&[0, -1, 0, 0, 0, 0, 0, 0]).into(),
            ]
        })
        .may_fail(),
        case("mq_unlink", SYS_mq_unlink, |_| {
            vec![text("userswap-hook-none").into()]
        })
        .may_fail(),
        case("mq_timedsend", SYS_mq_timedsend, |s| {
            vec![
                v(queue(s)),
                out(64).into(),
                v(64),
                v(0),
                words(&[0, 0, 0]).into(),
            ]
        }),
        case("mq_timedreceive", SYS_mq_timedreceive, |s| {
            vec![
                v(queue(s)),
                out(64).into(),
                v(64),
                out(8).into(),
                words(&[0, 0, 0]).into(),
            ]
        }),
        case("mq_getsetattr", SYS_mq_getsetattr, |s| {
            vec![v(queue(s)), zero(70).into(), out(70).into()]
        }),
        case("msgsnd", SYS_msgsnd, |_| {
            vec![
                v(old_queue()),
                words(&[1, 2, 3]).into(),
                v(16),
                v(IPC_NOWAIT),
            ]
        }),
        case("msgrcv", SYS_msgrcv, |_| {
            vec![v(old_queue()), out(24).into(), v(16), v(0), v(IPC_NOWAIT)]
        }),
        case("msgctl", SYS_msgctl, |_| {
            vec![v(old_queue()), v(IPC_STAT), out(130).into()]
        }),
        case("semop", SYS_semop, |_| {
            vec![
                v(semaphores()),
                Block::new([0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0]).into(),
                v(2),
            ]
        }),
        case("semtimedop", SYS_semtimedop, |_| {
            vec![
                v(semaphores()),
                Block::new([0, 0, 1, 0, 0, 0]).into(),
                v(1),
                words(&[0, 0, 0]).into(),
            ]
        }),
        case("semctl IPC_STAT", SYS_semctl, |_| {
            vec![v(semaphores()), v(0), v(2), out(120).into()]
        }),
        case("semctl GETVAL", SYS_semctl, |_| {
            vec![v(semaphores()), v(0), v(12), out(8).into()]
        }),
        case("shmctl", SYS_shmctl, |_| {
            vec![v(shared()), v(IPC_STAT), out(130).into()]
        }),
        case("shmctl IPC_INFO", SYS_shmctl, |_| {
            vec![v(0), v(3), out(100).into()]
        }),
        case("shmctl SHM_INFO", SYS_shmctl, |_| {
            vec![v(0), v(14), out(100).into()]
        }),
    ]
}
