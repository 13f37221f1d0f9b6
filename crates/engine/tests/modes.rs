//! Both fault modes, as whoever runs the tests and as an unprivileged user without capabilities.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use common::child::{case, child, finish, said, succeeded, was_skipped};
use common::pages::{Content, Pages};
use common::{MIB, PAGE, build, skip};
use userswap::{Advice, Engine, FaultMode};

const NOBODY: u32 = 65534;

/// All that a mode must be able to do.
fn use_mode(mode: FaultMode) {
    let builder = Engine::builder().limit(6 * MIB as u64).faults(mode);
    let Some(engine) = build("use_mode", builder) else {
        return;
    };
    let wanted = if mode == FaultMode::Auto {
        FaultMode::Inline
    } else {
        mode
    };
    assert_eq!(engine.fault_mode(), wanted);
    let region = engine.region(20 * MIB).expect("a region");
    let pages = Pages::of(&region);
    std::thread::scope(|scope| {
        for worker in 0..3 {
            let region = &region;
            scope.spawn(move || {
                for page in (worker..pages.count()).step_by(3) {
                    pages.write(page, 1, Content::Text);
                }
                for page in (worker..pages.count()).step_by(3) {
                    pages.verify(page, 1, Content::Text);
                }
                let pin = region.pin(0..64 * PAGE).expect("a pin");
                assert!(region.is_resident(63 * PAGE));
                drop(pin);
            });
        }
    });
    region
        .advise(0..region.len(), Advice::PageOut)
        .expect("advice");
    let copy = region.fork().expect("fork");
    for page in (0..pages.count()).step_by(7) {
        Pages::of(&copy).verify(page, 1, Content::Text);
    }
    let stats = engine.stats();
    assert!(stats.pages_out > 0 && stats.bugs == 0, "{stats:?}");
}

#[test]
fn inline_thread_and_auto_work() {
    for mode in [FaultMode::Inline, FaultMode::Thread, FaultMode::Auto] {
        use_mode(mode);
    }
}

/// Each mode in a process that has never used another: no state of one may help the other.
#[test]
fn each_mode_works_alone() {
    for mode in ["inline", "thread", "auto"] {
        let output = child("child_mode", mode);
        if !was_skipped(&output) {
            succeeded(&output);
        }
    }
}

#[test]
fn each_mode_works_for_an_unprivileged_user() {
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 {
        // Then the tests above are this one.
        return;
    }
    // Another user may not be able to read what was built here.
    let copy = std::env::temp_dir().join(format!("userswap-modes-{}", std::process::id()));
    std::fs::copy(std::env::current_exe().expect("own path"), &copy).expect("a copy");
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).expect("permissions");
    let outputs = ["inline", "thread", "auto"].map(|mode| {
        let mut command = Command::new(&copy);
        command
            .args([
                "--exact",
                "child_mode",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env("USERSWAP_CASE", mode)
            .env("USERSWAP_UNPRIVILEGED", "1")
            .current_dir("/")
            // Giving up root gives up its capabilities too.
            .gid(NOBODY)
            .uid(NOBODY);
        finish(command)
    });
    std::fs::remove_file(&copy).expect("the copy goes");
    for output in outputs {
        if !was_skipped(&output) {
            succeeded(&output);
            assert!(said(&output).contains("unprivileged"), "{}", said(&output));
        }
    }
}

#[test]
#[ignore = "started by each_mode_works_alone and each_mode_works_for_an_unprivileged_user"]
fn child_mode() {
    let Some(mode) = case() else { return };
    if std::env::var_os("USERSWAP_UNPRIVILEGED").is_some() {
        // SAFETY: a plain system call.
        let user = unsafe { libc::geteuid() };
        let capabilities = userswap_sys::host::capabilities().expect("capabilities");
        assert!(user == NOBODY && !capabilities.sys_ptrace && !capabilities.sys_admin);
        let access = userswap_sys::host::userfaultfd_access();
        if !access.user_only() {
            skip(
                "unprivileged",
                "this host gives no userfaultfd to this user",
            );
            return;
        }
        println!(
            "unprivileged: faults in system calls permitted: {}",
            access.full()
        );
    }
    use_mode(mode.parse().expect("a mode"));
}
