//! `userswap doctor` through the binary.

mod support;

use support::{outcome, records};

#[test]
fn each_reading_has_a_state_and_what_is_not_ok_a_cure() {
    let (status, stdout, stderr) = outcome(&["doctor", "--json"]);
    assert_eq!(stderr, "");
    let readings = records(&stdout);
    let state = |name: &str| {
        let reading = readings.iter().find(|reading| reading["reading"] == name);
        reading.unwrap_or_else(|| panic!("no {name}: {stdout}"))["state"]
            .as_str()
            .map(str::to_owned)
    };
    for reading in &readings {
        assert!(
            reading["found"]
                .as_str()
                .is_some_and(|found| !found.is_empty()),
            "{reading}"
        );
        match reading["state"].as_str() {
            Some("ok") => {}
            Some("limited" | "missing") => assert!(reading["do"].is_string(), "{reading}"),
            _ => panic!("{reading}"),
        }
    }
    for name in [
        "UFFDIO_MOVE",
        "privileges",
        "max_map_count",
        "memlock",
        "memory cgroup",
        "threads",
    ] {
        state(name);
    }
    let works = ["inline mode", "thread mode"]
        .iter()
        .any(|mode| state(mode).as_deref() == Some("ok"));
    assert_eq!(status, Some(if works { 0 } else { 2 }));
}

#[test]
fn people_get_one_line_a_reading_and_a_verdict() {
    let (_, stdout, _) = outcome(&["doctor"]);
    assert!(stdout.starts_with("userswap "), "{stdout}");
    assert!(
        stdout.contains("inline mode") && stdout.contains("kernel swap"),
        "{stdout}"
    );
    assert!(
        stdout
            .lines()
            .last()
            .is_some_and(|line| line.contains("work") || line.contains("Nothing")),
        "{stdout}"
    );
}
