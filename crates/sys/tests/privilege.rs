//! Opening a userfaultfd with and without privilege.

mod common;

use std::os::unix::process::CommandExt;
use std::process::Command;

use common::{case, child, said, skip};
use userswap_sys::host;
use userswap_sys::uffd::{DEVICE, Open, OpenError, Uffd, Way, open_by};

/// The user and group that own nothing.
const NOBODY: u32 = 65534;

const MODES: [Open; 4] = [
    Open {
        kernel_faults: false,
        sigbus: true,
        nonblock: false,
    },
    Open {
        kernel_faults: false,
        sigbus: false,
        nonblock: true,
    },
    Open {
        kernel_faults: true,
        sigbus: true,
        nonblock: false,
    },
    Open {
        kernel_faults: true,
        sigbus: false,
        nonblock: true,
    },
];

#[test]
fn with_cap_sys_ptrace_every_mode_opens() {
    const NAME: &str = "with_cap_sys_ptrace_every_mode_opens";
    if !host::capabilities().expect("capabilities").sys_ptrace {
        return skip(NAME, "no CAP_SYS_PTRACE");
    }
    for want in MODES {
        match Uffd::open(want) {
            Ok(uffd) => {
                assert_eq!(uffd.enabled().sigbus(), want.sigbus);
                assert_eq!(uffd.enabled().bits() & !uffd.features().bits(), 0);
            }
            Err(refused @ OpenError::Refused { .. }) => return skip(NAME, refused),
            Err(error) => panic!("{want:?}: {error}"),
        }
    }
}

#[test]
fn the_device_gives_full_userfaultfds_to_who_may_open_it() {
    const NAME: &str = "the_device_gives_full_userfaultfds_to_who_may_open_it";
    for kernel_faults in [false, true] {
        if let Err(errno) = open_by(
            Way::Device,
            Open {
                kernel_faults,
                ..Open::default()
            },
        ) {
            return skip(NAME, format!("{DEVICE}: {errno}"));
        }
    }
}

/// A process with all capabilities dropped and the uid of nobody.
#[test]
fn without_privilege_only_user_faults_open() {
    const NAME: &str = "without_privilege_only_user_faults_open";
    if !rustix::process::geteuid().is_root() {
        return skip(NAME, "only root can become nobody");
    }
    // The build directory may be closed to nobody: run a copy.
    let copy = std::env::temp_dir().join(format!("userswap-privilege-{}", std::process::id()));
    let own = std::env::current_exe().expect("own path");
    std::fs::copy(own, &copy).expect("copy");
    let there = child("unprivileged", NAME);
    let mut command = Command::new(&copy);
    command
        .args(there.get_args())
        .env("CASE", NAME)
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY);
    let output = command.output();
    std::fs::remove_file(&copy).expect("remove");
    let output = output.expect("run as nobody");
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
#[ignore = "run by without_privilege_only_user_faults_open as nobody"]
fn unprivileged() {
    let name = case();
    let capabilities = host::capabilities().expect("capabilities");
    assert!(
        !capabilities.sys_ptrace && !capabilities.sys_admin,
        "{capabilities:?}"
    );
    let access = host::userfaultfd_access();
    if let Err(errno) = access.syscall_user_only {
        return skip(&name, format!("userfaultfd() without privilege: {errno}"));
    }
    assert!(access.user_only());
    let permitted = host::unprivileged_userfaultfd().expect("sysctl") || access.device.is_ok();
    assert_eq!(access.full(), permitted);
    for want in MODES {
        let opened = Uffd::open(want);
        if want.kernel_faults && !permitted {
            let refused = opened.expect_err("refused");
            let text = refused.to_string();
            assert!(
                matches!(
                    refused,
                    OpenError::Refused {
                        kernel_faults: true,
                        ..
                    }
                ),
                "{refused:?}"
            );
            assert!(
                text.contains("userswap doctor") && text.contains(DEVICE),
                "{text}"
            );
        } else {
            opened.unwrap_or_else(|error| panic!("{want:?}: {error}"));
        }
    }
    if access.features.expect("features").move_pages() {
        host::probe_move().expect("pages move without privilege");
    }
}
