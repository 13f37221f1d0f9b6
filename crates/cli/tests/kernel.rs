//! The kernel's side of the benchmarks, and that nothing of it stays behind.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use support::{outcome, records, skip, userswap};

/// Whether the kernel's zram can be used here; says so where not.
///
/// The tests take turns: each would otherwise clean up what another is looking at.
fn usable(test: &str) -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    let reason = if !rustix::process::geteuid().is_root() {
        "not root"
    } else if !Path::new("/sys/class/zram-control").exists() {
        "the kernel has no zram"
    } else {
        return Some(TURN.lock().unwrap_or_else(PoisonError::into_inner));
    };
    skip(test, reason);
    None
}

/// The devices whose swap header names this process.
fn devices_of(pid: u32) -> Vec<PathBuf> {
    let label = format!("userswap:{pid}\0");
    let ours = |device: &PathBuf| {
        let mut header = [0; 4096];
        let read = File::open(device).and_then(|file| file.read_exact_at(&mut header, 0));
        read.is_ok() && header[1052..].starts_with(label.as_bytes())
    };
    let blocks = fs::read_dir("/sys/block").expect("block devices");
    let devices = blocks
        .flatten()
        .map(|block| Path::new("/dev").join(block.file_name()));
    devices
        .filter(|device| {
            let device = device.to_string_lossy();
            device.starts_with("/dev/zram") || device.starts_with("/dev/loop")
        })
        .filter(ours)
        .collect()
}

fn is_swap(device: &Path) -> bool {
    let swaps = fs::read_to_string("/proc/swaps").expect("swaps");
    swaps
        .lines()
        .any(|line| line.split_whitespace().next() == device.to_str())
}

const ZRAM: &[&str] = &["--device", "zram", "--size", "256M"];
const MEMORY: &[&str] = &["--device", "file:/dev/shm", "--size", "128M"];

/// Whether something is swapped to `device`: then the measurement is under way.
fn has_pages(device: &Path) -> bool {
    let swaps = fs::read_to_string("/proc/swaps").expect("swaps");
    let mut lines = swaps.lines().map(|line| line.split_whitespace());
    let found = lines.find_map(|mut line| (line.next() == device.to_str()).then(|| line.nth(2)));
    found.flatten().is_some_and(|used| used != "0")
}

/// Starts a long kernel measurement and waits until it has swapped to its device.
fn start_long_run(of: &[&str]) -> (Child, PathBuf) {
    start_long_run_on(of, |pid| {
        devices_of(pid).into_iter().find(|device| has_pages(device))
    })
}

/// The same, where `device` finds its device.
fn start_long_run_on(of: &[&str], device: impl Fn(u32) -> Option<PathBuf>) -> (Child, PathBuf) {
    let mut child = userswap(&["bench", "swapin", "--way", "none", "--kernel"])
        .args(of)
        .args(["--repeat", "1000"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let deadline = Instant::now() + Duration::from_secs(60);
    let device = loop {
        let found = device(child.id()).filter(|device| has_pages(device));
        if found.is_some() || Instant::now() > deadline {
            break found;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    if device.is_none() {
        signal(&child, rustix::process::Signal::TERM);
        child.wait().expect("an end");
    }
    (child, device.expect("a swap device appears"))
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).expect("a signal sent");
}

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

/// Measures both on storage of the kind that `device` names; gives the process, and the line that says why not.
fn both_on(device: &str) -> (u32, Result<(), String>) {
    let child = userswap(&[
        "bench",
        "swapin",
        "--way",
        "direct",
        "--kernel",
        "--size",
        "8M",
        "--repeat",
        "2",
        "--device",
        device,
        "--content",
        "text",
        "--json",
    ])
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .expect("the binary runs");
    let pid = child.id();
    let output = child.wait_with_output().expect("an end");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    if output.status.code() == Some(2) {
        return (pid, Err(stderr));
    }
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let rows = records(&String::from_utf8(output.stdout).expect("UTF-8"));
    assert_eq!(rows.len(), 5);
    for (index, row) in rows[..4].iter().enumerate() {
        let engine = ["userswap", "kernel-swap"][index % 2];
        assert_eq!(row["engine"], engine, "interleaved");
        assert_eq!(
            (&row["verified"], &row["algorithm"]),
            (&true.into(), &serde_json::Value::Null)
        );
        let stayed = row["stayed_pages"].as_u64().expect("stayed_pages");
        assert!(stayed < 32, "{row}");
        // Each page once; what the engine gathers to write it together may not be full yet.
        let written = row["write_amplification"]
            .as_f64()
            .expect("write_amplification");
        assert!((0.85..1.1).contains(&written), "{row}");
        assert!(
            row["in_us_per_page"].as_f64().is_some_and(|us| us > 0.0),
            "{row}"
        );
    }
    assert!(rows[4]["kernel_over_direct_in"].is_f64(), "{}", rows[4]);
    (pid, Ok(()))
}

#[test]
fn both_swap_to_one_device_in_memory() {
    let Some(_turn) = usable("both_swap_to_one_device_in_memory") else {
        return;
    };
    let (pid, measured) = both_on("file:/dev/shm");
    measured.expect("possible wherever there are loop devices");
    // A loop device is let go of a moment after its last user.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !devices_of(pid).is_empty() {
        assert!(Instant::now() < deadline, "left: {:?}", devices_of(pid));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_kernel_swaps_to_a_file_in_the_same_folder() {
    let test = "the_kernel_swaps_to_a_file_in_the_same_folder";
    let Some(_turn) = usable(test) else {
        return;
    };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let device = format!("file:{}", folder.path().display());
    // Of a process that is gone, which got no further.
    let left = folder.path().join(".userswap-kernel-0");
    fs::write(&left, "").expect("a file");
    let (_, measured) = both_on(&device);
    assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 0);
    if let Err(why) = measured {
        assert!(
            why.contains("cannot switch swap on") && why.lines().count() == 1,
            "{why}"
        );
        skip(test, &why);
    }
}

/// A block device of the test's own; gone when dropped.
struct Zram {
    number: String,
    path: PathBuf,
}

impl Zram {
    fn new() -> Self {
        let added = fs::read_to_string("/sys/class/zram-control/hot_add").expect("a zram device");
        let number = added.trim().to_owned();
        let zram = Self {
            path: PathBuf::from(format!("/dev/zram{number}")),
            number,
        };
        let size = format!("/sys/block/zram{}/disksize", zram.number);
        fs::write(size, "64M").expect("a size");
        zram
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        let number = &self.number;
        let reset = fs::write(format!("/sys/block/zram{number}/reset"), "1");
        let removed = fs::write("/sys/class/zram-control/hot_remove", number);
        if !std::thread::panicking() {
            reset.and(removed).expect("removed");
        }
    }
}

/// What a command prints, where there is that command and it succeeds.
fn printed(command: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(command).args(args).output().ok()?;
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    output.status.success().then(|| printed.trim().to_owned())
}

/// What comes of letting the kernel swap to `device`: the exit status, and what is said.
fn swap_to(device: &str) -> (Option<i32>, String) {
    let device = format!("file:{device},overwrite=on");
    let (status, _, stderr) = outcome(&[
        "bench", "swapin", "--kernel", "--size", "1M", "--repeat", "1", "--device", &device,
    ]);
    (status, stderr)
}

fn assert_refused((status, said): &(Option<i32>, String), because: &str) {
    assert_eq!(*status, Some(2), "{said}");
    assert!(
        said.contains(because) && said.lines().count() == 1,
        "{said}"
    );
}

#[test]
fn a_device_that_is_mounted_is_refused_and_keeps_its_content() {
    let test = "a_device_that_is_mounted_is_refused_and_keeps_its_content";
    let Some(_turn) = usable(test) else {
        return;
    };
    let zram = Zram::new();
    let device = zram.path.to_str().expect("UTF-8");
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path().to_str().expect("UTF-8");
    if printed("mkfs.ext4", &["-q", device]).is_none()
        || printed("mount", &["-o", "ro", device, at]).is_none()
    {
        return skip(test, "no ext4 can be made and mounted");
    }
    let first = || {
        let mut page = vec![0; 4096];
        let file = File::open(&zram.path).expect("opened");
        file.read_exact_at(&mut page, 0).expect("read");
        page
    };
    let before = first();
    let came = swap_to(device);
    let after = first();
    assert!(printed("umount", &[at]).is_some());
    assert!(before == after, "overwritten");
    assert_refused(&came, &format!("{device} is in use"));
}

#[test]
fn what_a_killed_run_left_on_the_users_device_is_switched_off_and_the_device_stays() {
    let Some(_turn) = usable("what_a_killed_run_left_on_the_users_device") else {
        return;
    };
    let zram = Zram::new();
    // Under another name, too: what is called zram has rules of its own.
    let other = PathBuf::from(format!("/dev/userswap-test-{}", std::process::id()));
    let numbers = fs::metadata(&zram.path).expect("a device").rdev();
    let (major, minor) = (rustix::fs::major(numbers), rustix::fs::minor(numbers));
    let made = ["b", &major.to_string(), &minor.to_string()];
    assert!(
        printed(
            "mknod",
            &[&[other.to_str().expect("UTF-8")], &made[..]].concat()
        )
        .is_some()
    );
    let mut came = Vec::new();
    for device in [&other, &zram.path] {
        let named = format!("file:{},overwrite=on", device.display());
        let on_it = ["--device", &named, "--size", "16M"];
        // The next one, whatever it measures.
        for next in [&on_it[..], &["--device", "zram", "--size", "1M"]] {
            let (mut child, _) = start_long_run_on(&on_it, |_| Some(device.clone()));
            child.kill().expect("killed");
            child.wait().expect("an end");
            let left = is_swap(device);
            let args = [
                "bench", "swapin", "--way", "none", "--kernel", "--repeat", "1",
            ];
            let (status, _, said) = outcome(&[&args, next].concat());
            let again = outcome(&[&args, &on_it[..]].concat());
            let stays = is_swap(device) || has_swap_header(device);
            came.push((left, status, said, again.0, stays));
            printed("swapoff", &[device.to_str().expect("UTF-8")]);
        }
    }
    fs::remove_file(&other).expect("removed");
    for (index, (left, status, said, again, stays)) in came.iter().enumerate() {
        assert!(*left && !stays, "{index}: {said}");
        assert_eq!((*status, *again), (Some(0), Some(0)), "{index}: {said}");
        let said_so = said.contains("away, which a killed run left behind");
        assert_eq!(said_so, index % 2 == 0, "{index}: {said}");
    }
    let size = format!("/sys/block/zram{}/disksize", zram.number);
    assert_eq!(
        fs::read_to_string(size).expect("it is there").trim(),
        "67108864"
    );
}

/// Whether it could be swapped to as it is.
fn has_swap_header(device: &Path) -> bool {
    let mut magic = [0; 10];
    let file = File::open(device).expect("opened");
    file.read_exact_at(&mut magic, 4086).expect("read");
    &magic == b"SWAPSPACE2"
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
fn the_kernel_does_not_swap_to_loop_devices_of_others() {
    let test = "the_kernel_does_not_swap_to_loop_devices_of_others";
    let Some(_turn) = usable(test) else {
        return;
    };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let backing = folder.path().join("disk");
    let file = File::create(&backing).expect("a file");
    file.set_len(8 << 20).expect("a length");
    let backing = backing.to_str().expect("UTF-8");
    let Some(device) = printed("losetup", &["--find", "--show", backing]) else {
        return skip(test, "no loop device can be made");
    };
    let partition = format!("{device}p1");
    let mut came = vec![(&device, swap_to(&device))];
    // Its number, its first sector, its sectors.
    if printed("addpart", &[&device, "1", "2048", "14336"]).is_some() {
        came.push((&partition, swap_to(&partition)));
        assert!(printed("delpart", &[&device, "1"]).is_some());
    }
    assert!(printed("losetup", &["--detach", &device]).is_some());
    for (device, came) in &came {
        assert_refused(came, &format!("{device} is a loop device or on one"));
    }
    if came.len() == 1 {
        skip(test, "no partition can be added");
    }
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
