//! The kernel's side of the benchmarks on a device or a file: what it may swap to, and what stays of it.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::kernel::{devices_of, is_swap, start_long_run_on, usable};
use support::{outcome, records, skip, userswap};

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
