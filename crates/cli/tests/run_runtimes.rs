//! `userswap run` over language runtimes: their own memory management, signal handlers and threads; and what such
//! programs ask of memory that others do not.

mod support;

use std::path::Path;
use std::process::{Command, Output};

use support::limited::{User, compiled, folder, possible, possible_with, same_for, same_within};
use support::programs::possible_for;
use support::{outcome, records};

#[test]
fn java_collects_garbage_throws_and_starts_programs() {
    let test = "java_collects_garbage_throws_and_starts_programs";
    if !possible_with(test, &["java", "javac"]) {
        return;
    }
    let folder = folder(test);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/Heap.java");
    let built = Command::new("javac")
        .args(["-d", "."])
        .arg(source)
        .current_dir(&folder)
        .status()
        .expect("javac runs");
    assert!(built.success());
    // It needs about 200 MiB, a third of which is mapped files and code.
    let program = ["java", "-Xmx512m", "-Xshare:auto", "Heap", "400000"];
    same_within(test, &folder, &[120], &program);
    if possible_for(User::Unprivileged, test, &[]) {
        same_for(User::Unprivileged, test, &folder, &[120], &program);
    }
}

#[test]
fn node_builds_maps_and_starts_workers_and_programs() {
    let test = "node_builds_maps_and_starts_workers_and_programs";
    if !possible_with(test, &["node"]) {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/maps.js");
    let program = ["node", script.to_str().expect("a name"), "150000"];
    // It needs about 150 MiB, nearly half of which is its file and code.
    let folder = folder(test);
    same_within(test, &folder, &[100], &program);
    if possible_for(User::Unprivileged, test, &[]) {
        same_for(User::Unprivileged, test, &folder, &[100], &program);
    }
}

/// Builds a Go program; nothing of the user's is used or left.
fn go_build(folder: &Path, source: &str, name: &str, options: &[&str]) -> Output {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-cache");
    Command::new("go")
        .args(["build", "-o", name])
        .args(options)
        .arg(programs.join(source))
        .env("GOCACHE", cache)
        .env("GOFLAGS", "")
        .env("GO111MODULE", "off")
        .current_dir(folder)
        .output()
        .expect("go runs")
}

/// Go's own code makes system calls on stacks with no room for whoever looks at them: nobody does, and so nothing is swapped.
#[test]
fn go_runs_as_it_is_and_a_line_says_so() {
    let test = "go_runs_as_it_is_and_a_line_says_so";
    if !possible_with(test, &["go", "gcc", "timeout"]) {
        return;
    }
    let folder = folder(test);
    let with_libc = ["-buildmode=pie", "-ldflags=-linkmode=external"];
    for (source, name, options) in [
        ("heap.go", "dynamic", &with_libc[..]),
        ("stacks.go", "stacks", &[]),
    ] {
        let built = go_build(&folder, source, name, options);
        let complaints = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{complaints}");
    }
    assert!(go_build(&folder, "heap.go", "static", &[]).status.success());
    for user in [User::Any, User::Unprivileged] {
        if !possible_for(user, test, &[]) {
            continue;
        }
        for (program, limit, arguments, said) in [
            ("dynamic", "68M", &["200000"][..], "cannot be seen"),
            ("stacks", "1G", &[], ""),
            ("static", "32M", &["1000"], "statically linked"),
        ] {
            let program = folder.join(program);
            let native = Command::new(&program).args(arguments).output();
            let native = native.expect("it runs");
            let run = |command: &mut Command| {
                let command = command.args(["run", "--limit", limit, "--"]);
                command.arg(&program).args(arguments).output()
            };
            let limited = run(&mut user.userswap()).expect("userswap runs");
            let complaints = String::from_utf8_lossy(&limited.stderr);
            assert!(limited.status.success(), "{program:?}: {complaints}");
            assert!(native.stdout == limited.stdout, "{program:?}");
            let lines = usize::from(!said.is_empty());
            assert_eq!(complaints.lines().count(), lines, "{complaints}");
            assert!(complaints.contains(said), "{complaints}");
        }
    }
}

#[test]
fn memory_that_children_do_not_get_is_new_to_them() {
    let test = "memory_that_children_do_not_get_is_new_to_them";
    if !possible(test) {
        return;
    }
    same_within(test, &folder(test), &[96, 72], &[&compiled("unforked")]);
}

#[test]
fn memory_shared_with_a_child_leaves_memory() {
    let test = "memory_shared_with_a_child_leaves_memory";
    if !possible(test) {
        return;
    }
    let program = compiled("shared");
    let (status, stdout, stderr) = outcome(&["run", "--limit", "48M", "--", &program]);
    assert_eq!(status, Some(0), "{stderr}");
    let native = Command::new(&program).output().expect("it runs");
    assert_eq!(stdout, String::from_utf8_lossy(&native.stdout));
    for who in ["child", "parent"] {
        assert!(stderr.contains(&format!("{who}: 0 eighths")), "{stderr}");
    }
}

/// The tables of memory that lies in many places count, too, and are small.
#[test]
fn memory_in_many_places_stays_within_the_limit() {
    const LIMIT: u64 = 80;
    let test = "memory_in_many_places_stays_within_the_limit";
    if !possible(test) {
        return;
    }
    let folder = folder(test);
    // It needs 237 MiB; the tables take 24 KiB for each of 1500 places, and 15 for each of 800 in the large mapping.
    same_within(test, &folder, &[LIMIT], &[&compiled("scattered")]);
    let lines = folder.join(format!("{test}.{}.{LIMIT}.json", User::Any.name()));
    let lines = std::fs::read_to_string(lines).expect("statistics");
    for record in records(&lines) {
        let most = record["most_resident_bytes"].as_u64().expect("a number");
        assert!(most <= (LIMIT + 8) << 20, "{record}");
    }
}
