//! The engine through the binary: small runs of what users run.

mod support;

use support::{outcome, records, skip};

/// Whether the engine works here at all; says so where not.
fn usable(test: &str) -> bool {
    let (status, stdout, _) = outcome(&["doctor"]);
    if status != Some(0) {
        skip(test, stdout.lines().last().unwrap_or("doctor fails"));
    }
    status == Some(0)
}

#[test]
fn stress_finds_nothing_lost_in_the_safe_ways() {
    if !usable("stress_finds_nothing_lost_in_the_safe_ways") {
        return;
    }
    for way in ["direct", "cached"] {
        let (status, stdout, stderr) = outcome(&[
            "stress",
            "--way",
            way,
            "--size",
            "1M",
            "--area",
            "1M",
            "--workers",
            "8",
        ]);
        assert_eq!(status, Some(0), "{way}: {stdout}{stderr}");
        assert_eq!(
            stdout,
            "Populating 1MB of memory region...\n\
             Keep swapping out...\n\
             Starting round 0...\n\
             Spawning 8 workers...\n\
             8 workers spawned, wait for done...\n\
             Round 0 Good, 0 data loss, 0 misload!\n"
        );
    }
}

#[test]
fn stress_shows_the_loss_of_the_unpinned_way() {
    if !usable("stress_shows_the_loss_of_the_unpinned_way") {
        return;
    }
    let args = [
        "stress",
        "--way",
        "unpinned",
        "--size",
        "1M",
        "--area",
        "1M",
        "--workers",
        "16",
        "--rounds",
        "20",
    ];
    let (status, stdout, stderr) = outcome(&args);
    assert_eq!(status, Some(1), "{stdout}{stderr}");
    assert!(
        stdout.contains(" data loss!\n") && stdout.contains("Failed, "),
        "{stdout}"
    );
}

#[test]
fn stress_exchanges_devices_and_loses_nothing() {
    if !usable("stress_exchanges_devices_and_loses_nothing") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = format!("file:{}", folder.path().display());
    for device in ["ram", "zram", &file] {
        let line = "stress --swapoff --size 4M --area 8M --workers 32 --rounds 2 --json --device";
        let args: Vec<_> = line.split(' ').chain([device]).collect();
        let (status, stdout, stderr) = outcome(&args);
        assert_eq!(status, Some(0), "{device}: {stdout}{stderr}");
        assert_eq!(stderr, "", "no progress where there is no terminal");
        for record in records(&stdout) {
            assert!(record["swapoffs"].as_u64() > Some(0), "{device}: {record}");
            assert_eq!(
                (&record["lost"], &record["misloads"]),
                (&0.into(), &0.into())
            );
        }
    }
    let (status, _, stderr) = outcome(&["stress", "--swapoff", "--target", "kernel"]);
    assert_eq!(status, Some(2));
    assert!(stderr.contains("--swapoff is the engine's"), "{stderr}");
}

#[test]
fn stress_prints_a_record_a_round() {
    if !usable("stress_prints_a_record_a_round") {
        return;
    }
    let args = [
        "stress",
        "--size",
        "256K",
        "--area",
        "256K",
        "--workers",
        "4",
        "--rounds",
        "3",
        "--json",
    ];
    let (status, stdout, stderr) = outcome(&args);
    assert_eq!(status, Some(0), "{stderr}");
    for (round, record) in records(&stdout).iter().enumerate() {
        let expected = serde_json::json!({"round": round, "workers": 4, "lost": 0, "misloads": 0});
        for (field, value) in expected.as_object().expect("an object") {
            assert_eq!(&record[field], value, "{record}");
        }
    }
    assert_eq!(stdout.lines().count(), 3);
}

#[test]
fn swapin_prints_the_ways_interleaved_and_a_summary() {
    if !usable("swapin_prints_the_ways_interleaved_and_a_summary") {
        return;
    }
    for (content, order) in [("mixed", "seq"), ("zero", "random")] {
        let args = [
            "bench", "swapin", "--size", "16M", "--area", "64M", "--repeat", "2", "--json",
        ];
        let (status, stdout, stderr) =
            outcome(&[&args[..], &["--content", content, "--order", order]].concat());
        assert_eq!(status, Some(0), "{stderr}");
        let rows = records(&stdout);
        let ways: Vec<_> = rows.iter().filter_map(|row| row["way"].as_str()).collect();
        assert_eq!(
            ways,
            [
                "unpinned", "direct", "cached", "unpinned", "direct", "cached"
            ]
        );
        for row in &rows[..6] {
            assert_eq!(
                (&row["engine"], &row["verified"]),
                (&"userswap".into(), &true.into()),
                "{row}"
            );
            assert_eq!(
                (&row["content"], &row["order"]),
                (&content.into(), &order.into())
            );
            assert_eq!(
                (row["pages"].as_u64(), row["stayed_pages"].as_u64()),
                (Some(4096), Some(0)),
                "{row}"
            );
            for field in ["out_us_per_page", "in_us_per_page"] {
                assert!(
                    row[field].as_f64().is_some_and(|value| value > 0.0),
                    "{field}: {row}"
                );
            }
        }
        let summary = &rows[6];
        assert_eq!(summary["bench"], "summary");
        let floor = summary["floor_page_us"].as_f64().expect("a floor");
        assert_eq!(floor > 0.0, content != "zero", "{summary}");
        for ratio in [
            "direct_over_unpinned",
            "cached_over_direct",
            "floor_decode_us",
        ] {
            assert!(
                summary[ratio].as_f64().is_some_and(|value| value > 0.0),
                "{ratio}: {summary}"
            );
        }
        assert!(summary["kernel_over_direct_in"].is_null());
    }
}

#[test]
fn latencies_are_measured_for_each_way() {
    if !usable("latencies_are_measured_for_each_way") {
        return;
    }
    for bench in ["contend", "fault"] {
        let (status, stdout, stderr) =
            outcome(&["bench", bench, "--size", "4M", "--repeat", "1", "--json"]);
        assert_eq!(status, Some(0), "{stderr}");
        let rows = records(&stdout);
        for way in ["unpinned", "direct", "cached"] {
            let row = rows
                .iter()
                .find(|row| row["way"] == way)
                .unwrap_or_else(|| panic!("{way}: {stdout}"));
            assert!(
                row["p50_ns"].as_u64() <= row["max_ns"].as_u64() && row["verified"] == true,
                "{row}"
            );
        }
    }
}

#[test]
fn faults_are_measured_alone_and_beside_writeback() {
    if !usable("faults_are_measured_alone_and_beside_writeback") {
        return;
    }
    let folder = env!("CARGO_TARGET_TMPDIR");
    for device in [
        "zram".to_owned(),
        format!("file:{folder}"),
        format!("zram,file:{folder}"),
    ] {
        let (status, stdout, stderr) = outcome(&[
            "bench",
            "fault",
            "--writeback",
            "--size",
            "4M",
            "--repeat",
            "2",
            "--way",
            "direct",
            "--content",
            "text",
            "--device",
            &device,
            "--json",
        ]);
        assert_eq!(status, Some(0), "{stderr}");
        let rows = records(&stdout);
        let rows: Vec<_> = rows.iter().filter(|row| row["bench"] == "fault").collect();
        assert_eq!(rows.len(), 4, "{stdout}");
        for (index, row) in rows.into_iter().enumerate() {
            assert_eq!(row["verified"], true, "{device}: {row}");
            assert_eq!(
                (row["count"].as_u64(), &row["stayed_pages"]),
                (Some(1024), &0.into())
            );
            let rate = row["writeback_bytes_per_second"].as_f64();
            assert_eq!(rate.is_some(), index % 2 == 1, "{row}");
            assert!(rate.is_none_or(|rate| rate > 0.0), "{row}");
            // Each page was out: a touch that meets it in memory takes less.
            assert!(row["faulted_share"].as_f64() > Some(0.9), "{device}: {row}");
        }
    }
}
