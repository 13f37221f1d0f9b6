//! What this process may do.

use super::files::{Reading, field, read, unforeseen};
use crate::Errno;
use crate::uffd::{Features, Open, OpenError, Uffd, Way, open_by};

const STATUS: &str = "/proc/self/status";

/// The effective capabilities that open doors here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// CAP_SYS_PTRACE: faults inside system calls may be reported to us.
    pub sys_ptrace: bool,
    /// CAP_SYS_ADMIN: the machine's swap may be set up.
    pub sys_admin: bool,
}

/// Reads the effective capabilities.
pub fn capabilities() -> Reading<Capabilities> {
    let status = read(STATUS)?;
    field(&status, "CapEff")
        .and_then(parse_capabilities)
        .ok_or_else(|| unforeseen(STATUS, "CapEff"))
}

/// From the kernel's mask in hexadecimal, one bit a capability.
fn parse_capabilities(mask: &str) -> Option<Capabilities> {
    const SYS_PTRACE: u32 = 19;
    const SYS_ADMIN: u32 = 21;
    let mask = u64::from_str_radix(mask, 16).ok()?;
    Some(Capabilities {
        sys_ptrace: mask >> SYS_PTRACE & 1 != 0,
        sys_admin: mask >> SYS_ADMIN & 1 != 0,
    })
}

/// Whether system calls are filtered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seccomp {
    /// Not at all.
    Off,
    /// Only read, write and exit.
    Strict,
    /// By a program, as container runtimes do.
    Filter,
}

/// Reads whether this process's system calls are filtered.
pub fn seccomp() -> Reading<Seccomp> {
    let status = read(STATUS)?;
    match field(&status, "Seccomp") {
        // A kernel without seccomp has no such line.
        None | Some("0") => Ok(Seccomp::Off),
        Some("1") => Ok(Seccomp::Strict),
        Some("2") => Ok(Seccomp::Filter),
        Some(other) => Err(unforeseen(STATUS, other)),
    }
}

/// How many programs filter this process's system calls; 0 also where the kernel does not tell (before Linux 5.9).
#[must_use]
pub fn seccomp_filters() -> u32 {
    let status = read(STATUS).unwrap_or_default();
    let filters = field(&status, "Seccomp_filters");
    filters.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// What of userfaultfd this process can get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserfaultfdAccess {
    /// The system call, for faults of the program itself (enough for inline mode).
    pub syscall_user_only: Result<(), Errno>,
    /// The system call, also for faults inside system calls (thread mode).
    pub syscall_full: Result<(), Errno>,
    /// The same by /dev/userfaultfd.
    pub device: Result<(), Errno>,
    /// What the kernel's userfaultfd can do, or why not even that is known.
    pub features: Result<Features, OpenError>,
}

impl UserfaultfdAccess {
    /// Faults of the program itself can be had.
    pub fn user_only(&self) -> bool {
        self.syscall_user_only.is_ok() || self.device.is_ok()
    }

    /// Faults inside system calls can be had too.
    pub fn full(&self) -> bool {
        self.syscall_full.is_ok() || self.device.is_ok()
    }
}

/// Tries each way to a userfaultfd; what opens is closed again.
pub fn userfaultfd_access() -> UserfaultfdAccess {
    let try_way = |way, kernel_faults| {
        let want = Open {
            kernel_faults,
            ..Open::default()
        };
        open_by(way, want).map(drop)
    };
    UserfaultfdAccess {
        syscall_user_only: try_way(Way::Syscall, false),
        syscall_full: try_way(Way::Syscall, true),
        device: try_way(Way::Device, true),
        features: Uffd::open(Open::default()).map(|uffd| uffd.features()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_masks() {
        let none = Capabilities {
            sys_ptrace: false,
            sys_admin: false,
        };
        assert_eq!(parse_capabilities("0000000000000000"), Some(none));
        let both = Capabilities {
            sys_ptrace: true,
            sys_admin: true,
        };
        assert_eq!(parse_capabilities("000001ffffffffff"), Some(both));
        let trace = Capabilities {
            sys_ptrace: true,
            sys_admin: false,
        };
        assert_eq!(parse_capabilities("0000000000080000"), Some(trace));
        assert_eq!(parse_capabilities("xyz"), None);
    }

    #[test]
    fn this_process() {
        let capabilities = capabilities().expect("capabilities");
        seccomp().expect("seccomp");
        let access = userfaultfd_access();
        if access.syscall_full.is_ok() {
            // What is permitted in full is permitted in part.
            assert!(access.syscall_user_only.is_ok() && access.full() && access.user_only());
        } else {
            assert!(
                !capabilities.sys_ptrace
                    || access.syscall_full != Err(Errno::PERM)
                    || seccomp() != Ok(Seccomp::Off)
            );
        }
        assert_eq!(access.features.is_ok(), access.user_only());
    }
}
