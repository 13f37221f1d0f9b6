//! The ioctl numbers of userfaultfd, and how one is issued.
//!
//! The argument structures come from `linux-raw-sys`. The numbers are put together here from direction, group, index and
//! size, since that crate lacks some of them (MOVE, POISON).

use std::os::fd::{AsFd, OwnedFd};

use linux_raw_sys::general as raw;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Updater, opcode};

use crate::Errno;

/// The group of all userfaultfd ioctls.
const GROUP: u8 = raw::UFFDIO as u8;

const fn update<T>(index: u32) -> Opcode {
    opcode::read_write::<T>(GROUP, index as u8)
}

pub(super) const API: Opcode = update::<raw::uffdio_api>(raw::_UFFDIO_API);
pub(super) const REGISTER: Opcode = update::<raw::uffdio_register>(raw::_UFFDIO_REGISTER);
pub(super) const COPY: Opcode = update::<raw::uffdio_copy>(raw::_UFFDIO_COPY);
pub(super) const ZEROPAGE: Opcode = update::<raw::uffdio_zeropage>(raw::_UFFDIO_ZEROPAGE);
pub(super) const MOVE: Opcode = update::<raw::uffdio_move>(raw::_UFFDIO_MOVE);
pub(super) const WRITEPROTECT: Opcode =
    update::<raw::uffdio_writeprotect>(raw::_UFFDIO_WRITEPROTECT);
pub(super) const POISON: Opcode = update::<raw::uffdio_poison>(raw::_UFFDIO_POISON);
// These two are declared the other way round from the rest: "read", although the kernel only reads the argument.
pub(super) const UNREGISTER: Opcode =
    opcode::read::<raw::uffdio_range>(GROUP, raw::_UFFDIO_UNREGISTER as u8);
pub(super) const WAKE: Opcode = opcode::read::<raw::uffdio_range>(GROUP, raw::_UFFDIO_WAKE as u8);

/// MOVE: a page missing in the source is passed over instead of ending the move with ENOENT.
pub(super) const MOVE_ALLOW_SRC_HOLES: u64 = 2;

/// WRITEPROTECT: begins the protection; without it, it ends.
pub(super) const WRITEPROTECT_BEGIN: u64 = 1;

const _: () = {
    // Where linux-raw-sys has the number, it must agree.
    assert!(API == linux_raw_sys::ioctl::UFFDIO_API as Opcode);
    assert!(REGISTER == linux_raw_sys::ioctl::UFFDIO_REGISTER as Opcode);
    assert!(UNREGISTER == linux_raw_sys::ioctl::UFFDIO_UNREGISTER as Opcode);
    assert!(WAKE == linux_raw_sys::ioctl::UFFDIO_WAKE as Opcode);
    assert!(COPY == linux_raw_sys::ioctl::UFFDIO_COPY as Opcode);
    assert!(WRITEPROTECT == linux_raw_sys::ioctl::UFFDIO_WRITEPROTECT as Opcode);
    assert!(ZEROPAGE == linux_raw_sys::ioctl::UFFDIO_ZEROPAGE as Opcode);
};

/// Issues a userfaultfd ioctl. The kernel may write into `argument` whether it succeeds or fails.
///
/// # Safety
/// `OP` must be one of this module's and `T` the structure it is declared with; addresses in `argument` are subject to
/// the contract of the operation (see [`super::Uffd`]).
pub(super) unsafe fn call<const OP: Opcode, T>(
    fd: impl AsFd,
    argument: &mut T,
) -> Result<(), Errno> {
    // SAFETY: the caller pairs number and structure; the structure is borrowed mutably for the length of the call.
    unsafe { rustix::ioctl::ioctl(fd, Updater::<OP, T>::new(argument)) }
}

/// The ioctl on /dev/userfaultfd that returns a new userfaultfd; its argument is the flag word itself.
pub(super) struct NewFromDevice {
    pub(super) flags: u32,
}

// SAFETY: USERFAULTFD_IOC_NEW takes an integer, touches no memory of ours, and returns a descriptor nobody else owns.
unsafe impl Ioctl for NewFromDevice {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::none(raw::USERFAULTFD_IOC as u8, 0)
    }

    fn as_ptr(&mut self) -> *mut core::ffi::c_void {
        std::ptr::without_provenance_mut(self.flags as usize)
    }

    unsafe fn output_from_ptr(
        out: IoctlOutput,
        _: *mut core::ffi::c_void,
    ) -> Result<OwnedFd, Errno> {
        use std::os::fd::FromRawFd;
        // SAFETY: `out` is what the successful call returned: a fresh descriptor, ours alone.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}
