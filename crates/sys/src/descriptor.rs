//! Descriptors out of the way of the program's: it may count on getting the lowest free number.

use std::os::fd::OwnedFd;

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
    rustix::io::fcntl_dupfd_cloexec(&fd, least as i32).unwrap_or(fd)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn low_numbers_are_left_to_the_program() {
        let low = std::fs::File::open("/dev/null").expect("it is there");
        let (before, high) = (low.as_raw_fd(), move_up(low.into()));
        assert!(high.as_raw_fd() > before);
        // SAFETY: asks only.
        assert_eq!(unsafe { libc::fcntl(before, libc::F_GETFD) }, -1, "closed");
    }
}
