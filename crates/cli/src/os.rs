//! The system calls that have no safe wrapper.

pub(crate) mod threads;

use std::ffi::{CString, c_int};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicPtr, Ordering};

use rustix::mm::{Advice, madvise};

/// Asks the kernel to page out `len` bytes at `addr`, both whole pages.
pub(crate) fn page_out(addr: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: MADV_PAGEOUT changes where a page is kept, never what it reads as, so whatever is mapped there and
    // whoever holds references into it is not affected.
    unsafe { madvise(addr.cast(), len, Advice::LinuxPageOut) }.map_err(io::Error::from)
}

/// Switches swap on at `device`, before every area of a lower `priority`.
pub(crate) fn swapon(device: &Path, priority: i16) -> io::Result<()> {
    const SWAP_FLAG_PREFER: c_int = 0x8000;
    const SWAP_FLAG_PRIO_MASK: c_int = 0x7fff;
    let flags = SWAP_FLAG_PREFER | (c_int::from(priority) & SWAP_FLAG_PRIO_MASK);
    let path = CString::new(device.as_os_str().as_bytes())?;
    // SAFETY: swapon reads the path, which lives until after the call, and no other memory of ours.
    check(unsafe { libc::swapon(path.as_ptr(), flags) })
}

/// Switches swap off at `device`; what is there comes back into memory first.
pub(crate) fn swapoff(device: &Path) -> io::Result<()> {
    let path = CString::new(device.as_os_str().as_bytes())?;
    // SAFETY: as for swapon; the kernel moves the pages back itself and their contents stay.
    check(unsafe { libc::swapoff(path.as_ptr()) })
}

/// The number of a loop device that nobody has, made if need be; `control` is `/dev/loop-control`.
pub(crate) fn free_loop_device(control: &File) -> io::Result<c_int> {
    const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
    // SAFETY: the request takes no memory of ours.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(number)
}

/// Makes `backing` what the loop device `device` holds, until nobody has the device open.
pub(crate) fn attach_loop_device(device: &File, backing: BorrowedFd<'_>) -> io::Result<()> {
    const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
    const LO_FLAGS_AUTOCLEAR: u32 = 4;
    /// As the kernel lays out `struct loop_config`; what is not named here is zero.
    #[repr(C)]
    struct Config {
        backing: u32,
        block_bytes: u32,
        before_flags: [u8; 52],
        flags: u32,
        rest: [u8; 176],
        reserved: [u64; 8],
    }
    const _: () = assert!(size_of::<Config>() == 304);
    let config = Config {
        backing: backing.as_raw_fd() as u32,
        block_bytes: 0,
        before_flags: [0; 52],
        flags: LO_FLAGS_AUTOCLEAR,
        rest: [0; 176],
        reserved: [0; 8],
    };
    // SAFETY: the request reads a `loop_config`, which is what `config` is laid out as, and lives until after the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &config) })
}

/// Makes `handler` answer `signal` from now on. Interrupted system calls are not restarted.
///
/// `handler` must be async-signal-safe: it runs between any two instructions of any thread.
pub(crate) fn on_signal(signal: c_int, handler: extern "C" fn(c_int)) -> io::Result<()> {
    // SAFETY: a zeroed sigaction is a valid one (no flags, empty mask); the handler has the signature that a
    // sigaction without SA_SIGINFO calls; a null old action is allowed.
    check(unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as libc::sighandler_t;
        libc::sigaction(signal, &action, std::ptr::null_mut())
    })
}

/// Sends a signal to a process, from a signal handler.
pub(crate) fn send_signal(process: c_int, signal: c_int) {
    // SAFETY: kill is async-signal-safe and touches no memory. Refused where the process is gone: nobody misses it.
    unsafe { libc::kill(process, signal) };
}

/// Waits for a child that has ended, or soon will; returns its status as wait gives it, and the most bytes that it, or
/// one of its children it waited for, had in memory.
pub(crate) fn wait_with_most(child: c_int) -> io::Result<(c_int, u64)> {
    let mut status = 0;
    // SAFETY: a zeroed rusage is a valid one; wait4 writes to the two, which live until after it.
    let (waited, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        (libc::wait4(child, &mut status, 0, &mut usage), usage)
    };
    if waited == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok((status, (usage.ru_maxrss as u64) << 10))
}

/// Ends the process at once, from a signal handler.
pub(crate) fn exit_now(status: c_int) -> ! {
    // SAFETY: _exit runs no destructors and is async-signal-safe.
    unsafe { libc::_exit(status) }
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// While it lives, a SIGBUS of an access is answered by a function; then what answered before answers again.
///
/// For the time in which no engine runs: the engine installs a handler of its own, for good.
pub(crate) struct SigbusHandler {
    before: libc::sigaction,
}

/// Answers a fault at an address: whether the access can be repeated. Async-signal-safe.
pub(crate) type AnswerFault = fn(usize) -> bool;

static ANSWER: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());

impl SigbusHandler {
    pub(crate) fn install(answer: AnswerFault) -> io::Result<Self> {
        ANSWER.store(answer as *mut (), Ordering::Release);
        // SAFETY: zeroed sigactions are valid; the handler has the signature that SA_SIGINFO asks for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let mut before: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_sigbus as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO;
            check(libc::sigaction(libc::SIGBUS, &action, &mut before))?;
            Ok(Self { before })
        }
    }
}

impl Drop for SigbusHandler {
    fn drop(&mut self) {
        // SAFETY: puts back what sigaction gave out. It cannot fail with a valid signal and action.
        unsafe { libc::sigaction(libc::SIGBUS, &self.before, std::ptr::null_mut()) };
    }
}

extern "C" fn on_sigbus(_: c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo; only `install` writes ANSWER, from an `AnswerFault`,
    // before this handler is in force.
    let answered = unsafe {
        let answer: AnswerFault = std::mem::transmute(ANSWER.load(Ordering::Acquire));
        answer((*info).si_addr() as usize)
    };
    if !answered {
        // The access would repeat for ever.
        exit_now(128 + libc::SIGBUS);
    }
}

/// Reads a byte that a fault may have to bring in.
///
/// # Safety
/// `address` is mapped and readable, by way of a fault at most, and no thread writes there meanwhile.
pub(crate) unsafe fn read_byte(address: *const u8) -> u8 {
    // SAFETY: the same contract. Volatile, since the access itself is what matters.
    unsafe { address.read_volatile() }
}
