//! `userswap run` for a user without any privilege: the kernel cannot bring memory in for system calls, so what they use has
//! to be there before they are made.

mod support;

use std::path::PathBuf;

use support::limited::{User, compiled, folder, possible_unprivileged, same_for};
use support::records;

/// How many processes swapped under each limit; `None`: it was not run.
fn check(name: &str, limits: &[u64], arguments: &[&str]) -> Option<Vec<usize>> {
    let test = format!("{name}_without_privilege");
    if !possible_unprivileged(&test, &["gcc"]) {
        return None;
    }
    let program = compiled(name);
    let mut command = vec![program.as_str()];
    command.extend(arguments);
    let folder = folder(&test);
    Some(same_for(
        User::Unprivileged,
        &test,
        &folder,
        limits,
        &command,
    ))
}

#[test]
fn calls_find_all_they_use_and_those_that_wait_keep_it() {
    check("calls", &[38], &["48"]);
}

#[test]
fn the_program_has_sigbus_to_itself() {
    check("bus", &[38], &["48"]);
}

#[test]
fn the_system_reads_and_writes_swapped_memory_by_every_way() {
    check("transfers", &[38, 26], &["48"]);
}

#[test]
fn threads_change_mappings_under_each_other() {
    check("mappings", &[32], &["16"]);
}

#[test]
fn children_of_every_kind() {
    if let Some(swapping) = check("forks", &[40], &["24"]) {
        assert_eq!(swapping, [16]);
    }
}

#[test]
fn handlers_for_faults_of_the_programs_own() {
    check("handlers", &[38], &["48"]);
}

#[test]
fn descriptors_are_all_closed_and_all_used() {
    check("descriptors", &[38], &["48"]);
}

#[test]
fn threads_start_and_end() {
    check("threads", &[40], &["48"]);
}

#[test]
fn memory_is_used_in_every_way() {
    check("memory", &[96], &["96"]);
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
        &[52],
        &["python3", "-c", script],
    );
}

/// Where memory could be used behind our back nothing is swapped out, and that is said.
#[test]
fn what_cannot_be_followed_stops_it_with_a_line() {
    let test = "what_cannot_be_followed_stops_it_with_a_line";
    if !possible_unprivileged(test, &["gcc"]) {
        return;
    }
    let program = compiled("stops");
    let folder = folder(test);
    for (how, said) in [
        ("rings", "io_uring"),
        ("aio", "io_uring, aio"),
        ("filter", "filters its system calls"),
        ("memory", "/proc/PID/mem"),
        ("unknown", "not known"),
        ("stack", "stacks in its ordinary memory"),
        ("thread", "share their thread-local memory"),
        ("faults", "userfaultfd"),
    ] {
        // Before there is an engine, and after.
        for when in ["early", "late"] {
            let stats = folder.join(format!("{how}-{when}.json"));
            let output = User::Unprivileged
                .userswap()
                .args(["run", "--limit", "32M", "--stats"])
                .arg(&stats)
                .args(["--", &program, how, when])
                .output()
                .expect("userswap runs");
            let complaints = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{how} {when}: {complaints}");
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                format!("{how} right\n"),
                "{complaints}"
            );
            assert_eq!(complaints.lines().count(), 1, "{how} {when}: {complaints}");
            assert!(
                complaints.contains(said) && complaints.contains("limit is not held"),
                "{how} {when}: {complaints}"
            );
            if how == "filter" {
                // Its statistics are written while it can still write.
                continue;
            }
            let text = std::fs::read_to_string(PathBuf::from(&stats)).expect("statistics");
            assert_eq!(records(&text)[0]["faults_mode"], "none", "{text}");
        }
    }
}
