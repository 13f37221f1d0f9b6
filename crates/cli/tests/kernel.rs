//! The kernel's side of the benchmarks, and that nothing of it stays behind.

mod support;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::kernel::{
    MEMORY, ZRAM, devices_of, is_swap, signal, start_long_run, start_long_run_on, usable,
};
use support::{outcome, records, skip, userswap};

#[test]
fn measures_the_kernel_and_leaves_nothing_behind() {
    let Some(_turn) = usable("measures_the_kernel_and_leaves_nothing_behind") else {
        return;
    };
    let child = userswap(&[
        "bench",
        "swapin",
        "--way",
        "none",
        "--kernel",
        "--kernel-algo",
        "lzo-rle,lz4",
    ])
    .args([
        "--size",
        "16M",
        "--area",
        "16M",
        "--repeat",
        "2",
        "--order",
        "random",
        "--threads",
        "2",
        "--json",
    ])
    .stdout(Stdio::piped())
    .spawn()
    .expect("the binary runs");
    let pid = child.id();
    let output = child.wait_with_output().expect("an end");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(devices_of(pid), Vec::<PathBuf>::new());
    let rows = records(&String::from_utf8(output.stdout).expect("UTF-8"));
    assert_eq!(rows.len(), 5);
    for (index, row) in rows[..4].iter().enumerate() {
        assert_eq!(row["bench"], "swapin");
        assert_eq!(
            (&row["engine"], &row["way"]),
            (&"kernel-zram".into(), &"kernel".into())
        );
        assert_eq!(
            row["algorithm"],
            ["lzo-rle", "lz4"][index % 2],
            "interleaved"
        );
        assert_eq!(
            (&row["content"], &row["order"]),
            (&"mixed".into(), &"random".into())
        );
        assert_eq!(
            (row["threads"].as_u64(), row["pages"].as_u64()),
            (Some(2), Some(4096))
        );
        assert_eq!(row["verified"], true);
        // The kernel leaves a page that it finds in use, now and then.
        assert!(
            row["stayed_pages"]
                .as_u64()
                .is_some_and(|stayed| stayed < 16),
            "{row}"
        );
        for field in [
            "out_seconds",
            "in_seconds",
            "out_us_per_page",
            "in_us_per_page",
        ] {
            assert!(
                row[field].as_f64().is_some_and(|value| value > 0.0),
                "{field}: {row}"
            );
        }
        let stored = row["stored_bytes"].as_u64().expect("stored_bytes");
        assert!((4 << 20..12 << 20).contains(&stored), "{row}");
        assert!(row["resident_overhead_bytes"].is_u64());
    }
    assert_eq!(rows[4]["bench"], "summary");
    assert_eq!(rows[4]["medians"].as_array().map(Vec::len), Some(2));
}

#[test]
fn latencies_of_the_kernel() {
    let Some(_turn) = usable("latencies_of_the_kernel") else {
        return;
    };
    for bench in ["contend", "fault"] {
        let args = [
            "bench", bench, "--way", "none", "--kernel", "--size", "4M", "--repeat", "1", "--json",
        ];
        let (status, stdout, stderr) = outcome(&args);
        assert_eq!(status, Some(0), "{stderr}");
        let rows = records(&stdout);
        let row = rows
            .iter()
            .find(|row| row["bench"] == bench)
            .expect("a row");
        let figure = |name: &str| {
            row[name]
                .as_u64()
                .unwrap_or_else(|| panic!("{name}: {row}"))
        };
        assert!(
            figure("p50_ns") <= figure("p90_ns") && figure("p99_ns") <= figure("max_ns"),
            "{row}"
        );
        assert!(figure("max_ns") > 1000, "{row}");
        assert_eq!(rows.last().expect("a summary")["bench"], "summary");
    }
}

#[test]
fn an_interrupted_run_takes_its_device_away() {
    let Some(_turn) = usable("an_interrupted_run_takes_its_device_away") else {
        return;
    };
    let (int, term) = (rustix::process::Signal::INT, rustix::process::Signal::TERM);
    for (sent, of) in [(int, ZRAM), (term, ZRAM), (int, MEMORY), (term, MEMORY)] {
        let (mut child, device) = start_long_run(of);
        signal(&child, sent);
        // More of them while it cleans up change nothing.
        std::thread::sleep(Duration::from_millis(1));
        signal(&child, sent);
        let status = child.wait().expect("an end");
        assert_eq!(status.code(), Some(128 + sent.as_raw()));
        assert_eq!(devices_of(child.id()), Vec::<PathBuf>::new());
        assert!(!is_swap(&device));
    }
}

#[test]
fn what_a_killed_run_left_is_taken_away_by_the_next() {
    let Some(_turn) = usable("what_a_killed_run_left_is_taken_away_by_the_next") else {
        return;
    };
    for of in [ZRAM, MEMORY] {
        let (mut child, device) = start_long_run(of);
        child.kill().expect("killed");
        child.wait().expect("an end");
        assert_eq!(devices_of(child.id()), std::slice::from_ref(&device));
        let args = [
            "bench", "swapin", "--way", "none", "--kernel", "--repeat", "1",
        ];
        // The last size counts.
        let (status, _, stderr) = outcome(&[&args, &of[..2], &["--size", "1M"]].concat());
        assert_eq!(status, Some(0), "{stderr}");
        assert!(
            stderr.contains(&format!("taking {} away", device.display())),
            "{stderr}"
        );
        assert_eq!(devices_of(child.id()), Vec::<PathBuf>::new());
        assert!(!is_swap(&device));
    }
}

#[test]
fn who_waits_for_another_measurement_says_so_once_and_can_be_interrupted() {
    let test = "who_waits_for_another_measurement_says_so_once_and_can_be_interrupted";
    let Some(_turn) = usable(test) else {
        return;
    };
    let another = File::open("/sys/block").expect("opened");
    another.lock().expect("locked");
    let said = tempfile::NamedTempFile::new().expect("a file");
    let waiting = || {
        let said = fs::read_to_string(said.path()).expect("UTF-8");
        said.matches("waiting for another measurement").count()
    };
    let mut child = userswap(&["bench", "swapin", "--way", "none", "--kernel"])
        .args(ZRAM)
        .stdout(Stdio::null())
        .stderr(said.reopen().expect("a file"))
        .spawn()
        .expect("the binary runs");
    let deadline = Instant::now() + Duration::from_secs(60);
    while waiting() == 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    // Long enough for a second.
    std::thread::sleep(Duration::from_millis(1500));
    let times = waiting();
    signal(&child, rustix::process::Signal::TERM);
    let status = child.wait().expect("an end");
    assert_eq!((times, status.code()), (1, Some(143)));
}

/// A run in namespaces of its own, as in a container: numbers of processes mean nothing there.
fn in_a_container(args: &[&str]) -> Option<std::process::Output> {
    let script = "mount -t proc proc /proc && mount -t sysfs sysfs /sys && exec \"$@\"";
    let unshare = ["--pid", "--net", "--mount", "--fork", "sh", "-c"];
    let container = |what: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(unshare).args([script, "sh"]).args(what);
        command.output().ok()
    };
    if !container(&["true"])?.status.success() {
        return None;
    }
    container(&[&[env!("CARGO_BIN_EXE_userswap")], args].concat())
}

#[test]
fn what_a_run_in_another_container_uses_is_left_alone() {
    let test = "what_a_run_in_another_container_uses_is_left_alone";
    let Some(_turn) = usable(test) else {
        return;
    };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let files = format!("file:{}", folder.path().display());
    let to_files = ["--device", &files, "--size", "16M"];
    let file = folder.path().canonicalize().expect("a folder");
    let file = file.join(".userswap-kernel-0");
    for of in [ZRAM, &to_files] {
        let (mut child, device) = if of == ZRAM {
            start_long_run(of)
        } else {
            start_long_run_on(of, |_| Some(file.clone()))
        };
        let args = [
            "bench", "swapin", "--way", "none", "--kernel", "--repeat", "1",
        ];
        let came = in_a_container(&[&args, &of[..2], &["--size", "1M"]].concat());
        let (stays, runs) = (is_swap(&device), child.try_wait().expect("a state"));
        signal(&child, rustix::process::Signal::TERM);
        child.wait().expect("an end");
        let Some(came) = came else {
            return skip(test, "no namespaces can be made");
        };
        let said = String::from_utf8_lossy(&came.stderr);
        assert!(stays && runs.is_none(), "{said}");
        assert_eq!(came.status.code(), Some(0), "{said}");
        assert!(!said.contains("taking"), "{said}");
    }
    assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 0);
}

#[test]
fn without_root_it_is_refused_in_one_line() {
    let Some(_turn) = usable("without_root_it_is_refused_in_one_line") else {
        return;
    };
    use std::os::unix::process::CommandExt;
    // Where an ordinary user may not reach the binary in its build directory, a copy does.
    let copy = std::env::temp_dir().join(format!("userswap-test-{}", std::process::id()));
    fs::copy(env!("CARGO_BIN_EXE_userswap"), &copy).expect("a copy");
    for device in ["zram", "file:/dev/shm"] {
        let output = std::process::Command::new(&copy)
            .args([
                "bench", "swapin", "--kernel", "--size", "1M", "--device", device,
            ])
            .uid(65534)
            .gid(65534)
            .output()
            .expect("the copy runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(
            stderr.contains("--kernel is not possible here: leave it out: only root"),
            "{stderr}"
        );
    }
    fs::remove_file(&copy).expect("removed");
}
