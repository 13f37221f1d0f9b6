//! `userswap run`: programs that know nothing of it, under a limit, doing what they do without one.

mod support;

use std::path::PathBuf;
use std::process::{Command, Output};

use support::limited::{User, assert_mode, compiled, possible};
use support::{outcome, records, userswap};

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a program natively and under `limit`; both must print the same and end alike. Returns the statistics of the
/// processes that swapped.
fn same(test: &str, limit: &str, program: &[&str]) -> Vec<serde_json::Value> {
    let native = Command::new(program[0])
        .args(&program[1..])
        .output()
        .expect("the program runs");
    let stats = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}.json"));
    let limited = userswap(&["run", "--limit", limit, "--stats"])
        .arg(&stats)
        .arg("--")
        .args(program)
        .output()
        .expect("userswap runs");
    let complaints = String::from_utf8_lossy(&limited.stderr);
    assert_eq!(text(&native), text(&limited), "{complaints}");
    assert_eq!(native.status, limited.status, "{complaints}");
    let lines = std::fs::read_to_string(stats).expect("statistics");
    let mut swapping = records(&lines);
    swapping.retain(|record| record["faults_mode"] != "none");
    for record in &swapping {
        assert_eq!(record["bugs"], 0, "{record}");
        assert_mode(User::Any, record);
    }
    swapping
}

#[test]
fn a_program_that_uses_memory_in_every_way() {
    let test = "a_program_that_uses_memory_in_every_way";
    if !possible(test) {
        return;
    }
    let program = compiled("memory");
    for (limit, bytes) in [("96M", 96_u64 << 20), ("80M", 80 << 20)] {
        let swapping = same(test, limit, &[&program, "96"]);
        assert_eq!(swapping.len(), 2, "the program and its child");
        for record in &swapping {
            let most = record["most_resident_bytes"].as_u64().expect("a number");
            println!("{limit}: at most {most} bytes in memory");
            // On a host with nothing to spare, the thread that watches comes late.
            assert!(most <= bytes / 2 * 3, "{limit}: {most} bytes in memory");
            assert!(record["out_bytes"].as_u64() > Some(8 << 20), "{record}");
        }
    }
}

#[test]
fn sort_sorts() {
    let test = "sort_sorts";
    if !possible(test) {
        return;
    }
    let numbers = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("numbers");
    let mut state = 1_u64;
    let lines: Vec<String> = (0..600_000)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40).to_string()
        })
        .collect();
    std::fs::write(&numbers, lines.join("\n")).expect("a file");
    let numbers = numbers.to_str().expect("a name");
    let swapping = same(test, "32M", &["sort", "-S", "100M", numbers]);
    assert_eq!(swapping.len(), 1);
}

#[test]
fn a_program_far_from_its_limit_is_left_alone() {
    let test = "a_program_far_from_its_limit_is_left_alone";
    if !possible(test) {
        return;
    }
    let swapping = same(
        test,
        "1G",
        &["sh", "-c", "echo one; (echo two) | cat; exit 7"],
    );
    assert!(swapping.is_empty());
}

#[test]
fn it_ends_as_the_program_does() {
    let status = |program: &[&str]| {
        let mut args = vec!["run", "--limit", "1G", "--"];
        args.extend(program);
        outcome(&args).0
    };
    assert_eq!(status(&["true"]), Some(0));
    assert_eq!(status(&["sh", "-c", "exit 41"]), Some(41));
    assert_eq!(status(&["sh", "-c", "kill -TERM $$"]), Some(128 + 15));
    assert_eq!(status(&["/nonexistent/program"]), Some(127));
    assert_eq!(status(&["/etc/passwd"]), Some(126));
}

#[test]
fn bad_input_gets_one_line() {
    for (args, said) in [
        (
            &["run", "--limit", "0", "--", "true"][..],
            "0 holds nothing",
        ),
        (&["run", "--limit", "1M", "--", "true"], "too small"),
        (
            &["run", "--limit", "64M", "--device", "tape", "--", "true"],
            "tape",
        ),
        (&["run", "--limit", "64M"], "PROGRAM"),
        (
            &["run", "--limit", "64M", "--faults", "kernel", "--", "true"],
            "kernel",
        ),
        (
            &[
                "run",
                "--limit",
                "64M",
                "--stats",
                "/nonexistent/x",
                "--",
                "true",
            ],
            "/nonexistent/x",
        ),
    ] {
        let (status, stdout, stderr) = outcome(args);
        assert_eq!(status, Some(2), "{args:?}: {stderr}");
        assert!(
            stdout.is_empty() && stderr.lines().count() == 1,
            "{args:?}: {stderr}"
        );
        assert!(stderr.contains(said), "{args:?}: {stderr}");
    }
}

#[test]
fn a_limit_that_cannot_be_held_is_said_and_strict_ends_the_program() {
    let test = "a_limit_that_cannot_be_held_is_said_and_strict_ends_the_program";
    if !possible(test) {
        return;
    }
    // Random bytes do not compress.
    let program = [
        "dd",
        "if=/dev/urandom",
        "of=/dev/null",
        "bs=64M",
        "count=1",
        "status=none",
    ];
    let mut args = vec!["run", "--limit", "32M", "--"];
    args.extend(program);
    let (status, _, stderr) = outcome(&args);
    assert_eq!(status, Some(0), "{stderr}");
    assert!(stderr.contains("cannot be held"), "{stderr}");
    args.insert(1, "--strict");
    let (status, _, stderr) = outcome(&args);
    assert_eq!(status, Some(128 + 9), "{stderr}");
    assert!(stderr.contains("is strict"), "{stderr}");
}
