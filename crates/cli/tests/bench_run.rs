//! `userswap bench run`: programs natively, under a limit, and under the kernel's.

mod support;

use support::limited::possible_with;
use support::{outcome, records};

/// Strings that are looked at again, in turn.
const SCRIPT: &str = "BEGIN {
    for (i = 0; i < 200000; i++) row[i] = i * 3 \" of these \" i
    for (i = 0; i < 200000; i++) sum += length(row[i])
    print sum, row[777]
}";

/// The rows of one way.
fn of<'a>(rows: &'a [serde_json::Value], way: &str) -> Vec<&'a serde_json::Value> {
    rows.iter().filter(|row| row["way"] == way).collect()
}

#[test]
fn a_program_is_measured_in_every_way_and_does_the_same() {
    let test = "a_program_is_measured_in_every_way_and_does_the_same";
    if !possible_with(test, &["awk"]) {
        return;
    }
    let (status, stdout, stderr) = outcome(&[
        "bench",
        "run",
        "--share",
        "70",
        "--repeat",
        "1",
        "--json",
        "--policy",
        "recency,random",
        "--faults",
        "auto,inline",
        "--",
        "awk",
        SCRIPT,
    ]);
    assert_eq!(status, Some(0), "{stderr}");
    let rows = records(&stdout);
    let (summary, rows) = rows.split_last().expect("records");
    assert_eq!(of(rows, "native").len(), 1, "{stdout}");
    let run = of(rows, "run");
    let settings: Vec<_> = run
        .iter()
        .map(|row| (row["faults_mode"].as_str(), row["policy"].as_str()))
        .collect();
    let both = |faults| [(faults, Some("recency")), (faults, Some("random"))];
    assert_eq!(
        settings,
        [both(Some("auto")), both(Some("inline"))].concat()
    );
    for row in rows {
        // The kernel may have killed it.
        if row["completed"] == true {
            assert_eq!(row["same"], true, "{row}");
            assert_eq!(row["output_hash"], rows[0]["output_hash"], "{row}");
        }
    }
    for row in run {
        assert_eq!(row["completed"], true, "{row}");
        assert!(row["out_bytes"].as_u64() > Some(1 << 20), "{row}");
        assert_eq!(row["limit"]["share"], 70);
    }
    for row in of(rows, "kernel") {
        let limit = row["limit"]["bytes"].as_u64().expect("a limit");
        // What the zram device takes is taken from the cgroup.
        let (cgroup, zram) = (&row["cgroup_bytes"], &row["most_zram_bytes"]);
        assert!(
            cgroup.as_u64() <= Some(limit) && zram.as_u64() > Some(0),
            "{row}"
        );
    }
    assert_eq!(
        (&summary["verified"], &summary["of"]),
        (&true.into(), &"run".into())
    );
    let median = &summary["medians"][0];
    assert!(median["run_over_native"].as_f64() > Some(0.0), "{summary}");
}

#[test]
fn what_prints_something_else_each_time_is_not_compared_and_what_ends_badly_is_told() {
    let test = "what_prints_something_else_each_time_is_not_compared_and_what_ends_badly_is_told";
    if !possible_with(test, &["sh"]) {
        return;
    }
    let bench = |script: &str| {
        outcome(&[
            "bench",
            "run",
            "--limit",
            "64M",
            "--repeat",
            "1",
            "--no-kernel",
            "--",
            "sh",
            "-c",
            script,
        ])
    };
    let (status, stdout, stderr) = bench("echo $$");
    assert_eq!(status, Some(0), "{stderr}");
    assert!(stdout.contains("not compared"), "{stdout}");
    // It does something else under `run`, which is what wrong data would look like.
    let (status, stdout, stderr) = bench("echo ${USERSWAP_LIMIT:-none}");
    assert_eq!(status, Some(1), "{stdout}{stderr}");
    assert!(stdout.contains("OTHER OUTPUT"), "{stdout}");
}

#[test]
fn bad_input_gets_one_line() {
    for (args, said) in [
        (&["--share", "200"][..], "--share"),
        (&["--share", "50", "--limit", "64M"], "--limit"),
        (&["--limit", "1M", "--", "true"], "too small"),
        (&["--policy", "luck"], "--policy"),
        (
            &["--no-kernel", "--", "/nonexistent/program"],
            "/nonexistent/program",
        ),
    ] {
        let (status, stdout, stderr) = outcome(&[&["bench", "run"], args].concat());
        assert_eq!(status, Some(2), "{args:?}: {stderr}");
        assert!(stdout.is_empty(), "{args:?}: {stdout}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        assert!(stderr.contains(said), "{args:?}: {stderr}");
    }
}
