//! Programs run natively and under a limit, which must do the same.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{CACHES, records, skip, userswap};

/// Longer than any of these programs takes: one that hangs must not hang the test.
const LONGEST_SECONDS: &str = "60";

/// Whether programs can be swapped on this host at all.
pub(crate) fn possible(test: &str) -> bool {
    let access = userswap_sys::host::userfaultfd_access();
    if !access.full() {
        skip(test, "faults in system calls may not be handled here");
    }
    access.full()
}

/// Whether programs can be swapped here and all of `programs` are installed.
pub(crate) fn possible_with(test: &str, programs: &[&str]) -> bool {
    are_installed(test, programs) && possible(test)
}

/// As whom `userswap run` is started, and how faults are to reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// Whoever runs the tests, in the mode that suits.
    Any,
    /// The same, with handler threads from the start.
    InThreads,
    /// Somebody without any privilege, for whom there is only inline mode.
    Unprivileged,
}

const NOBODY: &str = "65534";

impl User {
    /// The beginning of a command that runs `userswap`.
    pub(crate) fn userswap(self) -> Command {
        let program = userswap(&[]);
        let program = program.get_program();
        if self != User::Unprivileged || !rustix::process::geteuid().is_root() {
            let mut command = Command::new("timeout");
            command.env("XDG_CACHE_HOME", CACHES);
            command.args(["-k", "1", LONGEST_SECONDS]).arg(program);
            return command;
        }
        let mut command = Command::new("timeout");
        command
            .args(["-k", "1", LONGEST_SECONDS, "setpriv"])
            .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
            .args(["--bounding-set", "-all", "--no-new-privs"])
            .arg(program);
        command
    }

    /// For names of tests and folders.
    pub(crate) fn name(self) -> &'static str {
        match self {
            User::Any => "under_a_limit",
            User::InThreads => "in_threads",
            User::Unprivileged => "without_privilege",
        }
    }

    fn mode(self) -> &'static str {
        match self {
            User::Any => "auto",
            User::InThreads => "thread",
            User::Unprivileged => "inline",
        }
    }
}

/// Whether programs can be swapped here without privilege, and all of `programs` are installed.
pub(crate) fn possible_unprivileged(test: &str, programs: &[&str]) -> bool {
    let access = userswap_sys::host::userfaultfd_access();
    if !access.user_only() {
        skip(test, "faults may not be handled here at all");
        return false;
    }
    if !are_installed(test, &[programs, &["setpriv", "timeout"]].concat()) {
        return false;
    }
    // The folder of the tests may be closed to others.
    let starts = User::Unprivileged
        .userswap()
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success());
    if !starts {
        skip(test, "a user without privilege cannot start the binary");
    }
    starts
}

fn are_installed(test: &str, programs: &[&str]) -> bool {
    let installed = |program: &&str| {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&paths).any(|folder| folder.join(program).is_file())
    };
    if let Some(missing) = programs.iter().find(|program| !installed(program)) {
        skip(test, &format!("{missing} is not installed"));
        return false;
    }
    true
}

/// An empty folder for one test.
pub(crate) fn folder(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    // Whoever the program runs as writes there.
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&folder, everybody).expect("permissions");
    folder
}

/// Compiles one of the programs in `tests/programs`.
pub(crate) fn compiled(name: &str) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/programs")
        .join(name)
        .with_extension("c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // Other tests may be running it, or about to.
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let new = program.with_extension(format!("{}-{number}", std::process::id()));
    let built = Command::new("gcc")
        .args(["-O1", "-pthread", "-o"])
        .arg(&new)
        .arg(source)
        .status()
        .expect("gcc runs");
    assert!(built.success());
    std::fs::rename(&new, &program).expect("the same folder");
    program.to_str().expect("a name").to_owned()
}

/// What a program did under a limit.
pub(crate) struct Limited {
    /// The statistics of the processes that swapped.
    pub(crate) swapping: Vec<serde_json::Value>,
    /// All statistics, and what was written to standard error.
    told: String,
}

impl Limited {
    pub(crate) fn sum(&self, field: &str) -> u64 {
        let fields = self.swapping.iter().map(|record| &record[field]);
        fields.filter_map(serde_json::Value::as_u64).sum()
    }
}

/// Runs a program in `folder` natively and under each of `limits` (in MiB); it must print the same and end alike, and
/// something must have been swapped. Returns how many processes of this program swapped under each limit.
pub(crate) fn same_within(
    test: &str,
    folder: &Path,
    limits: &[u64],
    program: &[&str],
) -> Vec<usize> {
    same_for(User::Any, test, folder, limits, program)
}

/// The same for a certain user.
pub(crate) fn same_for(
    user: User,
    test: &str,
    folder: &Path,
    limits: &[u64],
    program: &[&str],
) -> Vec<usize> {
    let native = Command::new(program[0])
        .args(&program[1..])
        .current_dir(folder)
        .output()
        .expect("the program runs");
    assert!(
        native.status.success(),
        "natively: {}",
        String::from_utf8_lossy(&native.stderr)
    );
    let mut counts = Vec::new();
    for &limit in limits {
        let limited = limited(user, test, folder, limit, program, &native);
        assert!(
            limited.sum("out_bytes") > 0,
            "{test}: {limit} MiB: nothing left memory\n{}",
            limited.told
        );
        // Told for whoever runs this with --nocapture.
        for record in &limited.swapping {
            println!(
                "{test}: {} of {limit} MiB: at most {} MiB",
                record["program"],
                record["most_resident_bytes"].as_u64().unwrap_or(0) >> 20
            );
        }
        // What it starts, a shell say, may come near what the others leave it of the limit, or not.
        let name = Path::new(program[0])
            .file_name()
            .and_then(|name| name.to_str());
        let its_own = limited.swapping.iter();
        counts.push(
            its_own
                .filter(|record| record["program"].as_str() == name)
                .count(),
        );
    }
    counts
}

fn limited(
    user: User,
    test: &str,
    folder: &Path,
    limit: u64,
    program: &[&str],
    native: &Output,
) -> Limited {
    let stats = folder.join(format!("{test}.{}.{limit}.json", user.name()));
    let limited = user
        .userswap()
        .args(["run", "--faults", user.mode()])
        .args(["--limit", &format!("{limit}M"), "--stats"])
        .arg(&stats)
        .arg("--")
        .args(program)
        .current_dir(folder)
        .output()
        .expect("userswap runs");
    let complaints = String::from_utf8_lossy(&limited.stderr);
    assert_eq!(
        native.status.code(),
        limited.status.code(),
        "{test}: {limit} MiB: {complaints}"
    );
    assert!(
        native.stdout == limited.stdout,
        "{test}: {limit} MiB: other output\n{}\n-- natively:\n{}\n{complaints}",
        String::from_utf8_lossy(&limited.stdout),
        String::from_utf8_lossy(&native.stdout)
    );
    let lines = std::fs::read_to_string(stats).expect("statistics");
    let mut swapping = records(&lines);
    swapping.retain(|record| record["faults_mode"] != "none");
    for record in &swapping {
        assert_eq!(record["bugs"], 0, "{record}");
        assert_mode(user, record);
    }
    Limited {
        swapping,
        told: format!("{lines}{complaints}"),
    }
}

/// Programs that do what inline mode cannot follow, and go over to handler threads where the host permits it.
const GO_OVER: [&str; 4] = ["rings", "faults", "over", "stops"];

/// Faults were handled as they should be: inline, unless the program is one of those that go over.
pub(crate) fn assert_mode(user: User, record: &serde_json::Value) {
    let goes_over = GO_OVER.iter().any(|name| record["program"] == *name);
    let over = user == User::Any && goes_over;
    let mode = if over || user == User::InThreads {
        "thread"
    } else {
        "inline"
    };
    assert!(
        record["faults_mode"] == mode && record["went_over"] == over,
        "{record}"
    );
}
