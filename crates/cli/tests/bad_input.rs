//! What bad input gets: one clear line and status 2.

mod support;

use support::outcome;

/// Runs with `args` and checks that the one line on standard error holds every needle.
fn refused(args: &[&str], needles: &[&str]) {
    let (status, stdout, stderr) = outcome(args);
    assert_eq!(status, Some(2), "{args:?}: {stderr}");
    assert_eq!(stdout, "", "{args:?}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.starts_with("userswap: "), "{args:?}: {stderr}");
    for needle in needles {
        assert!(stderr.contains(needle), "{args:?}: {stderr} lacks {needle}");
    }
}

#[test]
fn sizes() {
    for command in [
        &["stress"][..],
        &["bench", "swapin"],
        &["bench", "contend"],
        &["bench", "fault"],
    ] {
        let with = |size| [command, &["--size", size][..]].concat();
        refused(&with("0"), &["--size", "a size of 0"]);
        refused(
            &with("5000"),
            &["--size", "not a multiple of the page size"],
        );
        refused(&with("12Q"), &["--size", "is not a size"]);
        refused(
            &with("99999999999T"),
            &["--size", "larger than any address space"],
        );
        let over_area = [command, &["--size", "64M", "--area", "32M"][..]].concat();
        refused(
            &over_area,
            &["--size 64M is larger than --area 32M", "raise --area"],
        );
        let over_memory = [command, &["--size", "8000G", "--area", "8000G"][..]].concat();
        refused(
            &over_memory,
            &["--size 8000G does not fit", "use a smaller --size"],
        );
    }
}

#[test]
fn durations() {
    refused(
        &["stress", "--delay", "5"],
        &["--delay", "is not a duration", "such as 1ms"],
    );
    refused(
        &["stress", "--sleep", "2h"],
        &["--sleep", "is not a duration"],
    );
}

#[test]
fn counts() {
    refused(&["stress", "--workers", "0"], &["--workers"]);
    refused(&["bench", "swapin", "--threads", "0"], &["--threads"]);
    refused(&["bench", "swapin", "--repeat", "0"], &["--repeat"]);
    refused(&["bench", "contend", "--threads", "1"], &["--threads"]);
    refused(
        &["bench", "swapin", "--fault-around", "3"],
        &["--fault-around", "power of two"],
    );
}

#[test]
fn names() {
    refused(
        &["stress", "--way", "sideways"],
        &["--way", "direct", "cached", "unpinned"],
    );
    refused(
        &["stress", "--target", "moon"],
        &["--target", "engine", "kernel"],
    );
    refused(
        &["stress", "--faults", "never"],
        &["--faults", "inline", "thread"],
    );
    refused(&["stress", "--nope"], &["--nope"]);
    refused(&["frobnicate"], &["frobnicate"]);
    refused(
        &["bench", "swapin", "--content", "poetry"],
        &["--content", "mixed"],
    );
    refused(&["bench", "swapin", "--kernel-algo", "lz4"], &["--kernel"]);
    refused(
        &["bench", "swapin", "--kernel", "--kernel-algo", "snake-oil"],
        &["--kernel-algo", "lzo-rle"],
    );
    refused(
        &["bench", "swapin", "--way", "none"],
        &["--way none", "--kernel"],
    );
}

#[test]
fn devices() {
    refused(&["stress", "--device", "floppy"], &["--device"]);
    refused(
        &["stress", "--device", "file:/nonexistent/userswap"],
        &["cannot swap to", "/nonexistent/userswap"],
    );
    refused(
        &["stress", "--device", "zram", "--delay", "1ms"],
        &["--delay", "--device ram"],
    );
}

#[test]
fn no_arguments_show_the_help() {
    for args in [&[][..], &["bench"]] {
        let (status, _, stderr) = outcome(args);
        assert_eq!(status, Some(2));
        assert!(stderr.contains("Usage: userswap"), "{stderr}");
    }
    let (status, stdout, _) = outcome(&["--help"]);
    assert_eq!(status, Some(0));
    for command in ["run", "race", "stress", "bench", "doctor"] {
        assert!(
            stdout.contains(&format!("  {command} ")),
            "{command}: {stdout}"
        );
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_run_silently() {
    let mut child = support::userswap(&[
        "stress",
        "--target",
        "engine",
        "--size",
        "1M",
        "--workers",
        "2",
    ])
    .stdout(std::process::Stdio::piped())
    .stderr(std::process::Stdio::piped())
    .spawn()
    .expect("the binary runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("an end");
    assert_eq!(output.status.code(), Some(128 + 13));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
