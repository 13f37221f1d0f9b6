//! `userswap race`: what it prints, as text, JSON and a picture.

mod support;

use std::path::Path;

use support::{outcome, records};

fn good(args: &[&str]) -> String {
    let (status, stdout, stderr) = outcome(args);
    assert_eq!(status, Some(0), "{args:?}: {stderr}");
    assert_eq!(stderr, "", "{args:?}");
    stdout
}

#[test]
fn each_loss_has_a_timeline_in_the_protocols_letters() {
    let letters = [
        ("V1", "a c p e f1 f2 d", "v0 is mapped, v1 is lost"),
        ("V2", "a p c f1 f2 d", "zeros are mapped, v0 is lost"),
        ("V3", "a p e f1 f2 f3 c d", "halves of two versions"),
        ("V4", "a c p e f1 f2 d", "v0 is mapped, v1 is lost"),
    ];
    for (variant, order, lost) in letters {
        let stdout = good(&["race", "--variant", variant]);
        assert!(stdout.starts_with(variant), "{stdout}");
        let last = stdout.lines().last().expect("lines");
        assert!(last.starts_with("LOST: ") && last.contains(lost), "{last}");
        let records = records(&good(&["race", "--variant", variant, "--json"]));
        let [record] = &records[..] else {
            panic!("{records:?}");
        };
        assert_eq!(record["variant"], variant);
        let order: Vec<&str> = order.split(' ').collect();
        let shown = record["letters"].as_array().expect("letters");
        let shown: Vec<&str> = shown.iter().filter_map(|letter| letter.as_str()).collect();
        let mut rest = shown.iter();
        assert!(
            order.iter().all(|letter| rest.any(|shown| shown == letter)),
            "{variant}: {shown:?} does not go {order:?}"
        );
        let steps = record["steps"].as_array().expect("steps");
        assert_eq!(steps.last().expect("steps")["letter"], "d");
        for step in steps {
            assert!(step["after"]["PTE"].is_string(), "{step}");
        }
        // The text has a line for each step, after the head and the state at first.
        let head = stdout
            .lines()
            .position(|line| line.trim_start().starts_with("# "));
        let table = stdout.lines().count() - head.expect("a head") - 3;
        assert_eq!(table, steps.len());
    }
}

#[test]
fn without_arguments_all_losses_and_then_all_that_holds() {
    let records = records(&good(&["race", "--json"]));
    let of = |kind: &str| -> Vec<&serde_json::Value> {
        records
            .iter()
            .filter(|record| record["record"] == kind)
            .collect()
    };
    let losses = of("loss");
    let names: Vec<_> = losses
        .iter()
        .filter_map(|loss| loss["variant"].as_str())
        .collect();
    assert_eq!(names, ["V1", "V2", "V3", "V4"]);
    assert_eq!(of("way").len(), 2);
    for way in of("way") {
        assert_eq!(way["good"], true);
        let mut each = of("configuration");
        each.retain(|record| record["way"] == way["way"]);
        assert_eq!(way["configurations"], each.len());
        for name in ["states", "transitions"] {
            let numbers = each.iter().map(|record| record[name].as_u64());
            let sum: u64 = numbers.map(|number| number.expect("a number")).sum();
            assert_eq!(way[name], sum, "{name}");
        }
        assert!(each.iter().all(|record| record["broken"].is_null()));
        let has = |name: &str, wanted: serde_json::Value| {
            assert!(
                each.iter().any(|record| record[name] == wanted),
                "{name} {wanted}"
            );
        };
        for number in [1, 2] {
            has("pages", number.into());
            has("slots", number.into());
            has("failures", number.into());
        }
        for device in ["keeps", "discards", "halves"] {
            has("device", device.into());
        }
        for threads in [2, 3] {
            let count = |record: &&&serde_json::Value| {
                record["threads"].as_array().map(Vec::len) == Some(threads)
            };
            assert!(each.iter().filter(count).count() > 3);
        }
    }
}

#[test]
fn a_way_that_holds_says_so() {
    let stdout = good(&["race", "--way", "direct"]);
    let last = stdout.lines().last().expect("lines");
    assert!(last.starts_with("way direct: "), "{last}");
    assert!(
        last.ends_with("none loses data, leaks, deadlocks, spins or starves"),
        "{last}"
    );
    assert!(!stdout.contains("LOST"), "{stdout}");
}

#[test]
fn the_pictures_are_whole_and_need_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    for variant in ["V1", "V2", "V3", "V4"] {
        let file = dir.path().join(format!("{variant}.svg"));
        good(&[
            "race",
            "--variant",
            variant,
            "--svg",
            file.to_str().expect("UTF-8"),
        ]);
        let svg = std::fs::read_to_string(&file).expect("the picture");
        let document = roxmltree::Document::parse(&svg).expect("well-formed");
        assert_eq!(document.root_element().tag_name().name(), "svg");
        assert!(svg.contains("prefers-color-scheme:dark"));
        for outside in ["href", "<script", "url(", "@import", "<image"] {
            assert!(!svg.contains(outside), "{variant} has {outside}");
        }
        let lost = document
            .descendants()
            .filter(|node| node.attribute("class") == Some("lost"));
        assert_eq!(lost.count(), 1, "{variant}: one step loses");
    }
}

#[test]
fn the_picture_in_the_readme_is_the_commands() {
    let shown = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/race-v1.svg");
    let shown = std::fs::read_to_string(shown).expect("docs/race-v1.svg");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("now.svg");
    good(&[
        "race",
        "--variant",
        "V1",
        "--svg",
        file.to_str().expect("UTF-8"),
    ]);
    let now = std::fs::read_to_string(&file).expect("the picture");
    assert!(
        shown == now,
        "docs/race-v1.svg: userswap race --variant V1 --svg docs/race-v1.svg"
    );
}

#[test]
fn the_readme_shows_lines_that_the_command_prints() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = std::fs::read_to_string(readme).expect("README.md");
    let printed = good(&["race", "--variant", "V1"]);
    let block = readme
        .split("$ userswap race --variant V1\n")
        .nth(1)
        .expect("the command");
    let block = block.split("```").next().expect("the end of the block");
    let lines: Vec<&str> = block
        .lines()
        .filter(|line| !line.is_empty() && *line != "...")
        .collect();
    assert!(lines.len() > 8, "{lines:?}");
    let mut all = printed.lines();
    for line in lines {
        assert!(
            all.any(|printed| printed == line),
            "not printed, or not in this order: {line}"
        );
    }
}

#[test]
fn bad_input() {
    for (args, needle) in [
        (&["race", "--way", "sideways"][..], "--way"),
        (&["race", "--variant", "V5"], "--variant"),
        (
            &["race", "--way", "direct", "--variant", "V1"],
            "--variant names a loss",
        ),
        (&["race", "--svg", "x.svg"], "--variant V1"),
        (
            &["race", "--variant", "all", "--svg", "x.svg"],
            "--variant V1",
        ),
        (
            &["race", "--variant", "V1", "--svg", "/nowhere/x.svg"],
            "/nowhere/x.svg",
        ),
    ] {
        let (status, _, stderr) = outcome(args);
        assert_eq!(status, Some(2), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        assert!(stderr.contains(needle), "{args:?}: {stderr} lacks {needle}");
    }
}
