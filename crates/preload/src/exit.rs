//! What a process leaves when it ends: a line of statistics, and its row in the tree.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write as _};
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use rustix::fs::OFlags;
use userswap::{FaultMode, Process};
use userswap_hook::Bypass;
use userswap_sys::host::resident_set_bytes;
use userswap_sys::own::Within;
use userswap_sys::signals::{Blocked, stderr_line};
use userswap_sys::{PAGE_SIZE, descriptor};

use crate::config::{Config, StatsFile};
use crate::tree::Tree;
use crate::{owner, state};

static CONFIG: OnceLock<&'static Config> = OnceLock::new();

/// The file for statistics, open with a high number: at the end the process may not be allowed to open it any more. -1: there is
/// none, or it could not be opened so far.
static STATS: AtomicI32 = AtomicI32::new(-1);

/// Which it is: its device and number there.
static WHICH: OnceLock<(u64, u64)> = OnceLock::new();

/// What [`finish`] shall do.
pub(crate) fn prepare(config: &'static Config) {
    owner::belongs_to_this_process();
    let _ = CONFIG.set(config);
    // Who reads from a pipe waits for its writers to be gone; and opening alone does something to some files.
    let may_be_kept = |file: &&StatsFile| match file {
        StatsFile::Ours(_) => true,
        StatsFile::Named(path) => fs::metadata(path).map_or(true, |about| about.is_file()),
    };
    let opened = config.stats.as_ref().filter(may_be_kept).map(open);
    if let Some(Ok(file)) = opened
        && let Ok(about) = rustix::fs::fstat(&file)
        && WHICH.set((about.st_dev, about.st_ino)).is_ok()
    {
        // Relaxed: there is only this thread.
        STATS.store(descriptor::move_up(file).into_raw_fd(), Ordering::Relaxed);
    }
}

/// The number of a descriptor that must stay open; -1: none.
pub(crate) fn descriptor() -> i32 {
    STATS.load(Ordering::Relaxed)
}

/// What was asked for, once the library has started.
pub(crate) fn config() -> Option<&'static Config> {
    CONFIG.get().copied()
}

/// The process ends: writes its statistics and leaves the tree. Once.
pub(crate) fn finish() {
    static DONE: AtomicBool = AtomicBool::new(false);
    let Some(config) = CONFIG.get() else { return };
    // The end of a child that borrows this memory is not this process's.
    if !owner::is_this_process() || DONE.swap(true, Ordering::Relaxed) {
        return;
    }
    let (_bypass, _blocked, _within) = (Bypass::new(), Blocked::new(), Within::new());
    if let Some(file) = &config.stats {
        append(file, &statistics(config));
    }
    if let Some(tree) = config.tree.as_ref().and_then(Tree::open) {
        tree.leave();
    }
}

/// A line of JSON. Written in one piece: for each piece that is allocated signals are blocked, which takes two system calls.
fn statistics(config: &Config) -> String {
    let engine = state::engine();
    let stats = engine.map(Process::stats).unwrap_or_default();
    let mode = match engine.map(Process::fault_mode) {
        None => "none",
        Some(FaultMode::Thread) => "thread",
        Some(FaultMode::Inline | FaultMode::Auto) => "inline",
    };
    let [p50, p90, p99, max] = stats.fault_ns.map(|ns| ns as f64 / 1e3);
    let mut line = String::with_capacity(2 << 10);
    let name = serde_json::Value::from(program_name());
    // Writing to a string does not fail.
    let _ = write!(
        line,
        "{{\"process\":{},\"program\":{name},\"faults_mode\":\"{mode}\",\"limit_bytes\":{}",
        std::process::id(),
        config.limit,
    );
    let counts = [
        ("resident_bytes", resident_set_bytes().unwrap_or(0)),
        ("most_resident_bytes", most_resident_bytes()),
        ("swapped_bytes", stats.swapped_bytes),
        ("stored_bytes", stats.stored_bytes),
        ("store_memory_bytes", stats.store_memory_bytes),
        ("dense_bytes", stats.dense_bytes),
        ("file_bytes", stats.file_bytes),
        ("file_read_bytes", stats.file_read_bytes),
        ("file_written_bytes", stats.file_written_bytes),
        ("faults", stats.faults),
        ("refaults", stats.refaults),
        ("in_bytes", stats.pages_in * PAGE_SIZE as u64),
        ("out_bytes", stats.pages_out * PAGE_SIZE as u64),
        ("bugs", stats.bugs),
    ];
    for (name, count) in counts {
        let _ = write!(line, ",\"{name}\":{count}");
    }
    let _ = write!(
        line,
        ",\"went_over\":{},\"ratio\":{},\"stalled_seconds\":{}",
        engine.is_some_and(Process::has_gone_over),
        ratio(stats.swapped_bytes, stats.store_memory_bytes),
        stats.stalled_ns as f64 / 1e9,
    );
    let _ = writeln!(
        line,
        ",\"fault_us\":{{\"p50\":{p50},\"p90\":{p90},\"p99\":{p99},\"max\":{max}}}}}"
    );
    line
}

/// The most this process ever had in memory.
fn most_resident_bytes() -> u64 {
    // Room for all of it: read piece by piece it would grow piece by piece.
    let mut status = String::with_capacity(8 << 10);
    let read =
        File::open("/proc/self/status").and_then(|mut file| file.read_to_string(&mut status));
    if read.is_err() {
        return 0;
    }
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

fn ratio(swapped: u64, memory: u64) -> f64 {
    if memory == 0 {
        return 0.0;
    }
    swapped as f64 / memory as f64
}

fn program_name() -> String {
    let name = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    name.trim_end().to_owned()
}

/// One line, written whole: other processes write to the same file.
fn append(file: &StatsFile, line: &str) {
    let written = match kept() {
        Some(mut kept) => kept.write_all(line.as_bytes()),
        None => open(file).and_then(|opened| File::from(opened).write_all(line.as_bytes())),
    };
    // Nobody asked for the file of `run` itself.
    if let (Err(error), StatsFile::Named(_)) = (written, file) {
        stderr_line(format_args!(
            "userswap: cannot write statistics to {file}: {error}"
        ));
    }
}

/// The file that was opened at the start, where it is still that and not removed.
fn kept() -> Option<ManuallyDrop<File>> {
    let number = descriptor();
    if number < 0 {
        return None;
    }
    // SAFETY: ours, protected from the program's calls as far as they are seen, and not closed when this goes. What stands for
    // another file by now is told below.
    let file = ManuallyDrop::new(unsafe { File::from_raw_fd(number) });
    let about = rustix::fs::fstat(&*file).ok()?;
    let same = WHICH.get() == Some(&(about.st_dev, about.st_ino));
    (same && about.st_nlink > 0).then_some(file)
}

fn open(file: &StatsFile) -> std::io::Result<OwnedFd> {
    match file {
        StatsFile::Ours(file) => Ok(file.open(OFlags::WRONLY | OFlags::APPEND)?),
        StatsFile::Named(path) => {
            let file = OpenOptions::new().append(true).create(true).open(path)?;
            Ok(file.into())
        }
    }
}
