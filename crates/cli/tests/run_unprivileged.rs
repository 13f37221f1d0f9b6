//! `userswap run` for a user without any privilege: the kernel cannot bring memory in for system calls, so what they use has
//! to be there before they are made.

mod support;

use std::process::Command;

use support::limited::{User, compiled, folder, possible_unprivileged, same_for};
use support::programs::{check, check_stops, programs, programs_of_every_user};
use support::records;

programs_of_every_user!(User::Unprivileged);

programs! { User::Unprivileged;
    calls_find_all_they_use_and_those_that_wait_keep_it: "calls", [38], ["48"];
    calls_that_wait_since_before_the_engine_keep_their_memory: "waits", [38], ["48"];
    the_program_has_sigbus_to_itself: "bus", [38], ["48"];
    memory_is_used_in_every_way: "memory", [96], ["96"];
    /// What is swapped out cannot be looked at from outside: that is said, and nothing else is shown.
    a_process_looks_at_another: "peers", [38], ["what is there"];
}

/// All that a call uses is in memory while it is made: large ones are made piece by piece.
#[test]
fn calls_larger_than_the_limit_stay_within_it() {
    const LIMIT: u64 = 24;
    let test = "calls_larger_than_the_limit_stay_within_it";
    if !possible_unprivileged(test, &["gcc"]) {
        return;
    }
    let (program, folder) = (compiled("large"), folder(test));
    let user = User::Unprivileged;
    same_for(user, test, &folder, &[LIMIT], &[&program, "48"]);
    let stats = folder.join(format!("{test}.{}.{LIMIT}.json", user.name()));
    let most = records(&std::fs::read_to_string(stats).expect("statistics"))
        .iter()
        .filter_map(|record| record["most_resident_bytes"].as_u64())
        .max();
    // On a host with nothing to spare, the thread that watches comes late.
    assert!(
        most <= Some((LIMIT + 8) << 20),
        "{most:?} bytes of {LIMIT} MiB"
    );
}

#[test]
fn a_python_program_with_children() {
    let test = "a_python_program_with_children";
    if !possible_unprivileged(test, &["python3", "sha256sum"]) {
        return;
    }
    let script = r#"
import hashlib, json, subprocess, threading
table = {str(i): [i, i * i, "x" * (i % 40)] for i in range(60000)}
sums = []
def ask():
    text = json.dumps(sorted(table.items()))
    sums.append(subprocess.run(["sha256sum"], input=text.encode(), stdout=subprocess.PIPE).stdout)
threads = [threading.Thread(target=ask) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sums, hashlib.sha256(repr(table).encode()).hexdigest())
"#;
    let folder = folder(test);
    same_for(
        User::Unprivileged,
        test,
        &folder,
        &[42],
        &["python3", "-c", script],
    );
}

#[test]
fn children_that_filter_their_system_calls() {
    for (who, processes) in [("vfork", 1), ("clone", 2)] {
        let Some(swapping) = check(User::Unprivileged, "confined", &[38], &["48", who]) else {
            return;
        };
        assert_eq!(swapping, [processes], "{who}");
    }
}

/// A library that is loaded when memory is out already, and makes system calls of its own on that memory.
#[test]
fn code_that_comes_late_finds_all_its_calls_use() {
    let test = "code_that_comes_late_finds_all_its_calls_use";
    if !possible_unprivileged(test, &["gcc"]) {
        return;
    }
    let (program, folder) = (compiled("late"), folder(test));
    let library = folder.join("late.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/late.c");
    let built = Command::new("gcc")
        .args(["-O1", "-shared", "-fPIC", "-DLIBRARY", "-o"])
        .arg(&library)
        .arg(source)
        .status()
        .expect("gcc runs");
    assert!(built.success());
    let library = library.to_str().expect("a name");
    let command = [&program, "48", library];
    same_for(User::Unprivileged, test, &folder, &[38], &command);
}

/// Where memory could be used behind our back nothing is swapped out, and that is said.
#[test]
fn what_cannot_be_followed_stops_it_with_a_line() {
    let test = "what_cannot_be_followed_stops_it_with_a_line";
    if !possible_unprivileged(test, &["gcc"]) {
        return;
    }
    for (how, said) in [
        ("rings", "io_uring"),
        ("aio", "io_uring, aio"),
        ("filter", "filters its system calls"),
        ("memory", "/proc/PID/mem"),
        ("unknown", "not known"),
        ("stack", "stacks in its ordinary memory"),
        ("thread", "share their thread-local memory"),
        ("thread3", "share their thread-local memory"),
        ("faults", "userfaultfd"),
    ] {
        // Before there is an engine, and after.
        for when in ["early", "late"] {
            // With a filter its statistics are written while it can still write.
            let told = how != "filter";
            check_stops(User::Unprivileged, "stops", 32, &[how, when], said, told);
        }
    }
}
