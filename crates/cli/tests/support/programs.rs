//! Tests that are a C program in `tests/programs` and the limits it is run under.

use std::process::Output;

use super::limited::{User, compiled, folder, possible_unprivileged, possible_with, same_for};
use super::records;

/// Runs the program `name` natively and under each of `limits` (in MiB) as `user`: it does the same. Returns how many
/// processes swapped under each; `None`: it was not run.
pub(crate) fn check(
    user: User,
    name: &str,
    limits: &[u64],
    arguments: &[&str],
) -> Option<Vec<usize>> {
    let test = format!("{name}_{}", user.name());
    if !possible_for(user, &test, &["gcc", "timeout"]) {
        return None;
    }
    let program = compiled(name);
    let mut command = vec![program.as_str()];
    command.extend(arguments);
    Some(same_for(user, &test, &folder(&test), limits, &command))
}

/// Whether programs can be swapped here for `user`, and all of `programs` are installed.
pub(crate) fn possible_for(user: User, test: &str, programs: &[&str]) -> bool {
    match user {
        User::Any | User::InThreads => possible_with(test, programs),
        User::Unprivileged => possible_unprivileged(test, programs),
    }
}

/// Runs a program that filters its system calls, all its threads', or has children that do or have children.
pub(crate) fn check_filtering(user: User) {
    let whose = [
        ("thread", 1),
        ("all", 1),
        ("forks", 1),
        ("vfork", 1),
        ("clone", 2),
    ];
    for (who, processes) in whose {
        let Some(swapping) = check(user, "confined", &[38], &["48", who]) else {
            return;
        };
        assert_eq!(swapping, [processes], "{who}");
    }
}

/// Runs the program `name` under a limit of `limit` MiB that it cannot be held to: it does as natively, nothing is swapped at its
/// end, and one line tells why, which contains `said`. `told`: it still tells how it was.
pub(crate) fn check_stops(
    user: User,
    name: &str,
    limit: u64,
    arguments: &[&str],
    said: &str,
    told: bool,
) {
    let what = format!("{name} {arguments:?}");
    let program = compiled(name);
    let stats = folder(&format!("{name}_{}_{}", arguments.join("_"), user.name())).join("stats");
    let output: Output = user
        .userswap()
        .args(["run", "--limit", &format!("{limit}M"), "--stats"])
        .arg(&stats)
        .args(["--", &program])
        .args(arguments)
        .output()
        .expect("userswap runs");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {complaints}");
    let native = std::process::Command::new(&program)
        .args(arguments)
        .output()
        .expect("it runs");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&native.stdout),
        "{what}: {complaints}"
    );
    assert_eq!(complaints.lines().count(), 1, "{what}: {complaints}");
    assert!(
        complaints.contains(said) && complaints.contains("limit is not held"),
        "{what}: {complaints}"
    );
    if told {
        let text = std::fs::read_to_string(&stats).expect("statistics");
        assert_eq!(records(&text)[0]["faults_mode"], "none", "{text}");
    }
}

/// Tests named after what they show: a program, its limits in MiB and its arguments; where it is known, how many
/// processes swap.
macro_rules! programs {
    ($user:expr; $($(#[$about:meta])* $test:ident: $name:literal, $limits:expr, $arguments:expr $(, $swapping:expr)?;)*) => {
        $(
            $(#[$about])*
            #[test]
            fn $test() {
                let _swapping = $crate::support::programs::check($user, $name, &$limits, &$arguments);
                $(
                    if let Some(swapping) = _swapping {
                        assert!(swapping.iter().all(|&count| count == $swapping), "{swapping:?}");
                    }
                )?
            }
        )*
    };
}
pub(crate) use programs;

/// Those that any user can run, whoever handles faults.
macro_rules! programs_of_every_user {
    ($user:expr) => {
        $crate::support::programs::programs! { $user;
            the_system_reads_and_writes_swapped_memory_by_every_way: "transfers", [38, 26], ["48"];
            threads_change_mappings_under_each_other: "mappings", [32], ["16"];
            /// The program, a dozen children, and three children of theirs: each tells what it did, the program too, though
            /// others that borrowed its memory ended before it.
            children_of_every_kind: "forks", [40], ["24"], 16;
            handlers_for_faults_of_the_programs_own: "handlers", [38], ["48"];
            descriptors_are_all_closed_and_all_used: "descriptors", [38, 26], ["48"];
            threads_start_and_end: "threads", [40], ["48"];
            advice_and_places_asked_for: "advice", [38, 30], ["40"];
            what_is_locked_stays: "locked", [38], ["48"];
            threads_that_are_counted_are_the_programs: "counts", [38], ["48"];
            memory_that_is_executed: "executed", [38, 28], ["40"], 2;
            /// What the program has put in libc's place is not called by us.
            functions_in_the_place_of_libcs: "interposed", [38], ["48"], 1;
        }
    };
}
pub(crate) use programs_of_every_user;
