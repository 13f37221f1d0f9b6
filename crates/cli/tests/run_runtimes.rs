//! `userswap run` over language runtimes: their own memory management, signal handlers and threads; and what such
//! programs ask of memory that others do not.

mod support;

use std::path::Path;
use std::process::{Command, Output};

use support::limited::{compiled, folder, possible, possible_with, same_within};
use support::outcome;

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
}

#[test]
fn node_builds_maps_and_starts_workers_and_programs() {
    let test = "node_builds_maps_and_starts_workers_and_programs";
    if !possible_with(test, &["node"]) {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/maps.js");
    let program = ["node", script.to_str().expect("a name"), "150000"];
    // It needs about 175 MiB, half of which is its file and code.
    same_within(test, &folder(test), &[135], &program);
}

/// Builds a Go program; nothing of the user's is used or left.
fn go_build(folder: &Path, name: &str, options: &[&str]) -> Output {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/heap.go");
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-cache");
    Command::new("go")
        .args(["build", "-o", name])
        .args(options)
        .arg(source)
        .env("GOCACHE", cache)
        .env("GOFLAGS", "")
        .env("GO111MODULE", "off")
        .current_dir(folder)
        .output()
        .expect("go runs")
}

#[test]
fn go_collects_garbage_where_it_is_linked_with_libc_and_runs_as_it_is_where_not() {
    let test = "go_collects_garbage_where_it_is_linked_with_libc_and_runs_as_it_is_where_not";
    if !possible_with(test, &["go", "gcc"]) {
        return;
    }
    let folder = folder(test);
    let built = go_build(
        &folder,
        "dynamic",
        &["-buildmode=pie", "-ldflags=-linkmode=external"],
    );
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    // It needs 90 MiB, much of it in huge pages.
    same_within(test, &folder, &[68, 55], &["./dynamic", "200000"]);

    assert!(go_build(&folder, "static", &[]).status.success());
    let program = folder.join("static");
    let program = program.to_str().expect("a name");
    let (status, stdout, stderr) = outcome(&["run", "--limit", "32M", "--", program, "1000"]);
    assert_eq!(status, Some(0), "{stderr}");
    assert!(stdout.starts_with("map 1000 "), "{stdout}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("statically linked"), "{stderr}");
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
