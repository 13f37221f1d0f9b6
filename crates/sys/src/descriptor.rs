//! Descriptors out of the way of the program's: it may count on getting the lowest free number.

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{DupFlags, Errno, dup3, fcntl_dupfd_cloexec, retry_on_intr};
use rustix::process::{Resource, getrlimit};

/// How many numbers below the highest are ours to choose from.
const NUMBERS: u64 = 64;

/// Programs that close "all" descriptors, or number their own, do it below this, too; with a higher number the system's
/// table would have to grow.
const HIGHEST: u64 = 1024;

/// Gives `fd` one of the highest numbers there are; where that is refused it stays what it is.
#[must_use]
pub fn move_up(fd: OwnedFd) -> OwnedFd {
    let most = getrlimit(Resource::Nofile).current.unwrap_or(HIGHEST);
    let least = most.min(HIGHEST).saturating_sub(NUMBERS);
    fcntl_dupfd_cloexec(&fd, least as i32).unwrap_or(fd)
}

/// Closes what `fd` stands for while others may still have a reference to it: its number stands for `/dev/null` then.
///
/// # Errors
/// The system has no descriptor left for a moment: nothing was closed.
pub fn close_in_place(fd: &OwnedFd) -> Result<(), Errno> {
    let null = openat(
        CWD,
        c"/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // SAFETY: the number goes on being a descriptor that `fd` owns; this copy does not close it.
    let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(fd.as_raw_fd()) });
    retry_on_intr(|| dup3(&null, &mut place, DupFlags::CLOEXEC))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_is_closed_in_place_is_closed_and_its_number_taken() {
        let (mut read, write) = std::io::pipe().expect("a pipe");
        let write = OwnedFd::from(write);
        close_in_place(&write).expect("closed");
        let end = read.read(&mut [0]).expect("nobody writes any more");
        assert_eq!(end, 0);
        assert_eq!(rustix::io::write(&write, b"x"), Ok(1), "the null device");
    }

    #[test]
    fn low_numbers_are_left_to_the_program() {
        let low = std::fs::File::open("/dev/null").expect("it is there");
        let (before, high) = (low.as_raw_fd(), move_up(low.into()));
        assert!(high.as_raw_fd() > before);
        // SAFETY: asks only.
        assert_eq!(unsafe { libc::fcntl(before, libc::F_GETFD) }, -1, "closed");
    }
}
