//! The fault modes, and what they stand on.

use userswap_sys::Errno;
use userswap_sys::host::{self, ProbeError, Seccomp, UserfaultfdAccess};
use userswap_sys::uffd::DEVICE;

use super::Reading;
use crate::size::PAGE;

/// What was found about the fault modes.
pub(super) struct Modes {
    access: UserfaultfdAccess,
    moves: Result<(), ProbeError>,
    page_size: usize,
}

impl Modes {
    /// Tries everything out.
    pub(super) fn look() -> Self {
        Self {
            access: host::userfaultfd_access(),
            moves: host::probe_move(),
            page_size: host::page_size(),
        }
    }

    /// Whether pages can be taken out and given back at all.
    fn pages_move(&self) -> bool {
        self.moves.is_ok() && self.page_size == PAGE
    }

    fn inline(&self) -> bool {
        let sigbus = self
            .access
            .features
            .as_ref()
            .is_ok_and(|features| features.sigbus());
        self.pages_move() && self.access.user_only() && sigbus
    }

    fn thread(&self) -> bool {
        self.pages_move() && self.access.full()
    }

    /// Whether anything can be swapped here.
    pub(super) fn any(&self) -> bool {
        self.inline() || self.thread()
    }

    /// The line at the end.
    pub(super) fn verdict(&self) -> &'static str {
        match (self.inline(), self.thread()) {
            (true, true) => {
                "Everything works here: inline and thread mode. `run` begins inline, and a program that needs it goes over to \
                 handler threads."
            }
            (true, false) => {
                "Inline mode works here: programs can be run under a limit, but for those that need handler threads \
                 (io_uring, aio); memory regions can be swapped, and system calls on what is out fail unless it is pinned."
            }
            (false, true) => "Thread mode works here.",
            (false, false) => "Nothing can be swapped on this host.",
        }
    }

    pub(super) fn readings(&self) -> Vec<Reading> {
        vec![
            self.inline_reading(),
            self.thread_reading(),
            self.syscall_reading(),
            self.device_reading(),
            self.features_reading(),
            self.move_reading(),
            self.page_size_reading(),
            sysctl_reading(),
            capability_reading(),
            seccomp_reading(),
        ]
    }

    fn inline_reading(&self) -> Reading {
        const NAME: &str = "inline mode";
        if self.inline() {
            return Reading::ok(
                NAME,
                "the faulting thread resolves its own fault (SIGBUS); needs no privilege",
            );
        }
        Reading::missing(
            NAME,
            self.why_not(self.access.user_only()),
            self.cure(false),
        )
    }

    fn thread_reading(&self) -> Reading {
        const NAME: &str = "thread mode";
        if self.thread() {
            return Reading::ok(
                NAME,
                "handler threads resolve faults; system calls on swapped-out memory work",
            );
        }
        let found = self.why_not(self.access.full());
        let advice = self.cure(true);
        // Regions do without, and most programs.
        if self.inline() {
            Reading::limited(NAME, found, advice)
        } else {
            Reading::missing(NAME, found, advice)
        }
    }

    fn why_not(&self, opens: bool) -> &'static str {
        match () {
            () if !opens => "userfaultfd is not permitted",
            () if !self.pages_move() => "pages cannot be moved (see UFFDIO_MOVE, page size)",
            () => "this kernel's userfaultfd has no SIGBUS feature",
        }
    }

    fn cure(&self, full: bool) -> String {
        if !self.pages_move() && self.access.user_only() {
            return "use a kernel of 6.8 or later with pages of 4 KiB".into();
        }
        let for_system_calls =
            "grant CAP_SYS_PTRACE, or sysctl vm.unprivileged_userfaultfd=1, or access to ";
        if full {
            return format!("{for_system_calls}{DEVICE} (in a container: --device {DEVICE})");
        }
        format!(
            "let the container's seccomp profile pass userfaultfd(), or hand it the device (--device {DEVICE})"
        )
    }

    fn syscall_reading(&self) -> Reading {
        const NAME: &str = "userfaultfd()";
        match (self.access.syscall_user_only, self.access.syscall_full) {
            (Ok(()), Ok(())) => Reading::ok(NAME, "permitted, also for faults in system calls"),
            (Ok(()), Err(errno)) => Reading::limited(
                NAME,
                format!("permitted for faults of the program itself; in system calls: {errno}"),
                "see thread mode",
            ),
            (Err(Errno::NOSYS), _) => Reading::missing(
                NAME,
                "this kernel has none, or a filter hides it",
                "use a kernel with CONFIG_USERFAULTFD",
            ),
            (Err(errno), _) => {
                Reading::missing(NAME, format!("refused: {errno}"), "see inline mode")
            }
        }
    }

    fn device_reading(&self) -> Reading {
        match self.access.device {
            Ok(()) => Reading::ok(DEVICE, "opens"),
            Err(errno) if self.access.syscall_full.is_ok() => Reading::ok(
                DEVICE,
                format!("not needed, the system call is permitted ({errno})"),
            ),
            Err(Errno::NOENT) => Reading::limited(
                DEVICE,
                "not there",
                format!(
                    "as root: modprobe or mknod it (its number is in /proc/misc), or --device {DEVICE}"
                ),
            ),
            Err(errno) => Reading::limited(
                DEVICE,
                format!("does not open: {errno}"),
                format!("as root: setfacl -m u:USER:rw {DEVICE}"),
            ),
        }
    }

    fn features_reading(&self) -> Reading {
        const NAME: &str = "features";
        match &self.access.features {
            Err(error) => Reading::missing(NAME, error.to_string(), "see inline mode"),
            Ok(features) => {
                let missing: Vec<String> = features
                    .missing()
                    .map(|(name, since)| format!("{name} (Linux {since})"))
                    .collect();
                if missing.is_empty() {
                    Reading::ok(NAME, features.to_string())
                } else {
                    let found = format!("{features}; without {}", missing.join(", "));
                    Reading::limited(NAME, found, "a later kernel has them")
                }
            }
        }
    }

    fn move_reading(&self) -> Reading {
        const NAME: &str = "UFFDIO_MOVE";
        match &self.moves {
            Ok(()) => Reading::ok(NAME, "pages moved out and back, contents right"),
            Err(ProbeError::Open(_)) => Reading::missing(
                NAME,
                "could not be tried without userfaultfd",
                "see inline mode",
            ),
            Err(error) => Reading::missing(NAME, error.to_string(), "use a kernel of 6.8 or later"),
        }
    }

    fn page_size_reading(&self) -> Reading {
        const NAME: &str = "page size";
        let size = self.page_size;
        if size == PAGE {
            Reading::ok(NAME, format!("{size} bytes"))
        } else {
            let advice = format!("use a kernel with pages of {PAGE} bytes");
            Reading::missing(NAME, format!("{size} bytes"), advice)
        }
    }
}

fn sysctl_reading() -> Reading {
    const NAME: &str = "sysctl";
    match host::unprivileged_userfaultfd() {
        Ok(true) => Reading::ok(
            NAME,
            "vm.unprivileged_userfaultfd=1: thread mode for everyone",
        ),
        Ok(false) => Reading::ok(
            NAME,
            "vm.unprivileged_userfaultfd=0: thread mode by capability or device only",
        ),
        Err(error) => Reading::unknown(NAME, &error),
    }
}

fn capability_reading() -> Reading {
    const NAME: &str = "privileges";
    match host::capabilities() {
        Ok(has) => {
            let with = |have: bool| if have { "with" } else { "without" };
            Reading::ok(
                NAME,
                format!(
                    "uid {}, {} CAP_SYS_PTRACE (thread mode), {} CAP_SYS_ADMIN (bench --kernel)",
                    rustix::process::geteuid().as_raw(),
                    with(has.sys_ptrace),
                    with(has.sys_admin)
                ),
            )
        }
        Err(error) => Reading::unknown(NAME, &error),
    }
}

fn seccomp_reading() -> Reading {
    const NAME: &str = "seccomp";
    match host::seccomp() {
        Ok(Seccomp::Off) => Reading::ok(NAME, "no filter"),
        Ok(Seccomp::Filter | Seccomp::Strict) => Reading::ok(
            NAME,
            "system calls are filtered (see userfaultfd() for whether it passes)",
        ),
        Err(error) => Reading::unknown(NAME, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;
    use userswap_sys::uffd::OpenError;

    fn refused() -> OpenError {
        OpenError::Refused {
            kernel_faults: false,
            syscall: Errno::PERM,
            device: Errno::NOENT,
        }
    }

    fn nothing_permitted() -> Modes {
        Modes {
            access: UserfaultfdAccess {
                syscall_user_only: Err(Errno::PERM),
                syscall_full: Err(Errno::PERM),
                device: Err(Errno::NOENT),
                features: Err(refused()),
            },
            moves: Err(ProbeError::Open(refused())),
            page_size: PAGE,
        }
    }

    #[test]
    fn where_nothing_is_permitted_every_mode_is_missing_and_has_a_cure() {
        let modes = nothing_permitted();
        assert!(!modes.any());
        for reading in modes
            .readings()
            .iter()
            .filter(|reading| reading.state != State::Ok)
        {
            assert!(!reading.advice.is_empty(), "{reading:?}");
        }
        let missing = |name| {
            modes
                .readings()
                .iter()
                .any(|r| r.reading == name && r.state == State::Missing)
        };
        assert!(missing("inline mode") && missing("thread mode") && missing("UFFDIO_MOVE"));
        assert_eq!(modes.verdict(), "Nothing can be swapped on this host.");
    }

    #[test]
    fn the_device_alone_is_enough_for_thread_mode() {
        let mut modes = nothing_permitted();
        modes.access.device = Ok(());
        modes.moves = Ok(());
        assert!(modes.thread() && modes.any());
        assert!(modes.verdict().starts_with("Thread mode"));
    }

    #[test]
    fn other_page_sizes_work_in_no_mode() {
        let mut modes = nothing_permitted();
        modes.access.syscall_user_only = Ok(());
        modes.access.syscall_full = Ok(());
        modes.moves = Ok(());
        assert!(modes.any());
        modes.page_size = 65536;
        assert!(!modes.any());
    }
}
