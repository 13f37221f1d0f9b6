//! Getting a userfaultfd, which hosts refuse in several ways, and agreeing on features.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use linux_raw_sys::general as raw;
use rustix::fs::{Mode, OFlags};
use rustix::mm::UserfaultfdFlags;
use thiserror::Error;

use super::{Features, Uffd, abi};
use crate::Errno;
use crate::descriptor::{close_in_place, move_up};

/// The device that hands out userfaultfds to whoever may open it.
pub const DEVICE: &str = "/dev/userfaultfd";

/// What kind of userfaultfd is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Open {
    /// Faults inside system calls are reported too, instead of failing the call with EFAULT. Needs `CAP_SYS_PTRACE`,
    /// vm.unprivileged_userfaultfd=1, or access to /dev/userfaultfd.
    pub kernel_faults: bool,
    /// Deliver faults as SIGBUS to the faulting thread, instead of queueing events and letting it wait.
    pub sigbus: bool,
    /// Reading events returns at once when there are none; also needed to wait with poll.
    pub nonblock: bool,
}

/// A way to a userfaultfd, which the host may close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The system call.
    Syscall,
    /// The ioctl on [`DEVICE`].
    Device,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Syscall => "userfaultfd()",
            Way::Device => DEVICE,
        })
    }
}

/// Why there is no userfaultfd.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OpenError {
    /// Both ways are closed.
    #[error(
        "cannot open userfaultfd for faults {}: userfaultfd() says {syscall}, {DEVICE} says {device}; run `userswap doctor`",
        if *kernel_faults { "in system calls" } else { "of the program itself" }
    )]
    Refused {
        /// Whether faults in system calls were asked for.
        kernel_faults: bool,
        /// What the system call failed with.
        syscall: Errno,
        /// What the device failed with.
        device: Errno,
    },
    /// The kernel and this program do not agree on the interface.
    #[error("the kernel refused the userfaultfd handshake: {0}; run `userswap doctor`")]
    Handshake(Errno),
    /// The kernel lacks a feature without which this kind of userfaultfd cannot work.
    #[error(
        "the kernel's userfaultfd lacks {feature} (Linux {since} has it); run `userswap doctor`"
    )]
    Missing {
        /// The feature's name.
        feature: &'static str,
        /// The kernel that brought it.
        since: &'static str,
    },
}

impl Uffd {
    /// Opens a userfaultfd: by the system call, else by [`DEVICE`].
    ///
    /// It comes with what of [`Features`] has to be asked for and the kernel has; [`Uffd::features`] tells what that is. None of the
    /// events about address-space changes is asked for.
    pub fn open(want: Open) -> Result<Uffd, OpenError> {
        let (fd, way) = open_by_any_way(want)?;
        // A handshake decides for good, so what there is to ask for is found out on a descriptor of the same kind.
        let available = {
            let (scratch, _) = open_by_any_way(want)?;
            handshake(&scratch, Features::default()).map_err(OpenError::Handshake)?
        };
        let mut ask = Features::MOVE.or(Features::POISON);
        if want.sigbus {
            if !available.sigbus() {
                return Err(OpenError::Missing {
                    feature: "SIGBUS",
                    since: "4.14",
                });
            }
            ask = ask.or(Features::SIGBUS);
        } else {
            ask = ask.or(Features::THREAD_ID);
        }
        let ask = ask.and(available);
        handshake(&fd, ask).map_err(OpenError::Handshake)?;
        Ok(Uffd {
            fd: move_up(fd),
            way,
            available,
            enabled: ask,
        })
    }
}

impl Uffd {
    /// Opens another userfaultfd in this one's place, under the same descriptor: in a child of fork, whose inherited one
    /// acts on the parent's memory. Nothing is registered with it yet.
    ///
    /// [`Uffd::enabled`] goes on telling what was agreed on first.
    pub fn reopen(&self, want: Open) -> Result<(), OpenError> {
        let new = Uffd::open(want)?;
        rustix::io::retry_on_intr(|| {
            // SAFETY: the number goes on being this descriptor's, which nobody else closes.
            let mut place =
                std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(self.fd.as_raw_fd()) });
            rustix::io::dup3(&new.fd, &mut place, rustix::io::DupFlags::CLOEXEC)
        })
        .map_err(OpenError::Handshake)
    }

    /// Opens another userfaultfd in this one's place, under the same descriptor, and returns this one under another: what is
    /// registered with it stays so.
    pub fn succeed(&self, want: Open) -> Result<Uffd, OpenError> {
        let fd = self.fd.try_clone().map_err(|error| {
            OpenError::Handshake(Errno::from_io_error(&error).unwrap_or(Errno::MFILE))
        })?;
        let former = Uffd {
            fd: move_up(fd),
            way: self.way,
            available: self.available,
            enabled: self.enabled,
        };
        self.reopen(want)?;
        Ok(former)
    }

    /// Closes it while others may still have a reference: its number stands for `/dev/null` then.
    ///
    /// # Errors
    /// See [`close_in_place`].
    pub fn close_in_place(&self) -> Result<(), Errno> {
        close_in_place(&self.fd)
    }
}

fn open_by_any_way(want: Open) -> Result<(OwnedFd, Way), OpenError> {
    let syscall = match open_by(Way::Syscall, want) {
        Ok(fd) => return Ok((fd, Way::Syscall)),
        Err(errno) => errno,
    };
    match open_by(Way::Device, want) {
        Ok(fd) => Ok((fd, Way::Device)),
        Err(device) => Err(OpenError::Refused {
            kernel_faults: want.kernel_faults,
            syscall,
            device,
        }),
    }
}

/// Opens by one way, without the handshake: what `doctor` reports about each.
pub fn open_by(way: Way, want: Open) -> Result<OwnedFd, Errno> {
    // Never inherited by a program that is executed: it would stay open there and hold nothing.
    let mut flags = UserfaultfdFlags::CLOEXEC;
    if want.nonblock {
        flags |= UserfaultfdFlags::NONBLOCK;
    }
    let mut bits = flags.bits();
    if !want.kernel_faults {
        bits |= raw::UFFD_USER_MODE_ONLY;
    }
    match way {
        // SAFETY: opening registers nothing yet; what is done with the descriptor has contracts of its own.
        Way::Syscall => unsafe {
            rustix::mm::userfaultfd(UserfaultfdFlags::from_bits_retain(bits))
        },
        Way::Device => {
            let device = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            // SAFETY: the ioctl that this device is for; it makes a descriptor and touches no memory.
            unsafe { rustix::ioctl::ioctl(&device, abi::NewFromDevice { flags: bits }) }
        }
    }
}

/// Agrees on `ask`, and returns every feature the kernel has. Once for each descriptor.
fn handshake(fd: impl AsFd, ask: Features) -> Result<Features, Errno> {
    let mut api = raw::uffdio_api {
        api: u64::from(raw::UFFD_API),
        features: ask.bits(),
        ioctls: 0,
    };
    // SAFETY: number and structure belong together; the structure holds no addresses.
    unsafe { abi::call::<{ abi::API }, _>(fd, &mut api) }?;
    Ok(Features::from_bits(api.features))
}
