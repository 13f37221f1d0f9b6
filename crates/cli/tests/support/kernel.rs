//! Measurements of the kernel's side: whether there can be any, and how to find one at work.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{skip, userswap};

/// Whether the kernel's zram can be used here; says so where not.
///
/// The tests take turns: each would otherwise clean up what another is looking at.
pub(crate) fn usable(test: &str) -> Option<MutexGuard<'static, ()>> {
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
pub(crate) fn devices_of(pid: u32) -> Vec<PathBuf> {
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

pub(crate) fn is_swap(device: &Path) -> bool {
    let swaps = fs::read_to_string("/proc/swaps").expect("swaps");
    swaps
        .lines()
        .any(|line| line.split_whitespace().next() == device.to_str())
}

pub(crate) const ZRAM: &[&str] = &["--device", "zram", "--size", "256M"];
pub(crate) const MEMORY: &[&str] = &["--device", "file:/dev/shm", "--size", "128M"];

/// Whether something is swapped to `device`: then the measurement is under way.
pub(crate) fn has_pages(device: &Path) -> bool {
    let swaps = fs::read_to_string("/proc/swaps").expect("swaps");
    let mut lines = swaps.lines().map(|line| line.split_whitespace());
    let found = lines.find_map(|mut line| (line.next() == device.to_str()).then(|| line.nth(2)));
    found.flatten().is_some_and(|used| used != "0")
}

/// Starts a long kernel measurement and waits until it has swapped to its device.
pub(crate) fn start_long_run(of: &[&str]) -> (Child, PathBuf) {
    start_long_run_on(of, |pid| {
        devices_of(pid).into_iter().find(|device| has_pages(device))
    })
}

/// The same, where `device` finds its device.
pub(crate) fn start_long_run_on(
    of: &[&str],
    device: impl Fn(u32) -> Option<PathBuf>,
) -> (Child, PathBuf) {
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

pub(crate) fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).expect("a signal sent");
}
