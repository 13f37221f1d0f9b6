//! One execution of a program: how long it took, what it printed, how much memory it had.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::hash::Hasher;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use userswap_preload::config::names;

use super::Settings;
use crate::kernel_zram::{Algorithm, KernelZram};
use crate::memory_cgroup::MemoryCgroup;
use crate::{interrupt, os};

/// What a program printed: a hash of it, and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Printed {
    pub(super) hash: u64,
    pub(super) bytes: u64,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Status(ExitStatus),
    /// It was ended: it took longer than it may.
    TooLong,
}

#[derive(Clone, Debug)]
pub(super) struct Execution {
    pub(super) seconds: f64,
    pub(super) end: End,
    pub(super) printed: Printed,
    /// The most bytes that one process of it had in memory at a time.
    pub(super) most_bytes: u64,
    /// The end of what it said on standard error.
    pub(super) said: String,
}

impl Execution {
    /// Whether it did what `other` did.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (self.end, self.printed) == (other.end, other.printed)
    }
}

/// What `userswap run` says about the processes of a program, summed up.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(super) struct Swapped {
    pub(super) swapping_processes: usize,
    pub(super) out_bytes: u64,
    pub(super) in_bytes: u64,
    pub(super) faults: u64,
    pub(super) refaults: u64,
    pub(super) stalled_seconds: f64,
}

/// What the kernel's side took.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(super) struct KernelSide {
    /// The cgroup's limit.
    pub(super) cgroup_bytes: u64,
    /// The most that the program had in memory, pages of files that other cgroups are charged for included.
    pub(super) most_program_bytes: u64,
    /// The most that the zram device took beside it.
    pub(super) most_zram_bytes: u64,
    /// Whether the kernel killed a process of it for want of memory.
    pub(super) killed: bool,
}

impl KernelSide {
    /// Program and device together.
    pub(super) fn bytes(self) -> u64 {
        self.most_program_bytes + self.most_zram_bytes
    }
}

/// Where and for how long programs run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// Where they run.
    pub(super) folder: &'a Path,
    /// Where what is only ours goes.
    pub(super) scratch: &'a Path,
    pub(super) longest: Duration,
}

impl Place<'_> {
    pub(super) fn natively(self, program: &[OsString]) -> anyhow::Result<Execution> {
        let mut command = Command::new(&program[0]);
        command.args(&program[1..]);
        self.execute(command)
    }

    /// Under `userswap run`.
    pub(super) fn under_run(
        self,
        program: &[OsString],
        limit: u64,
        settings: Settings,
    ) -> anyhow::Result<(Execution, Swapped)> {
        let userswap = std::env::current_exe().context("cannot tell where this program is")?;
        let stats = self.scratch.join("stats.json");
        let mut command = Command::new(userswap);
        command
            .args(["run", "--limit", &limit.to_string()])
            .args(["--faults", settings.faults.name(), "--stats"])
            .arg(&stats)
            .arg("--")
            .args(program)
            .env(names::POLICY, settings.policy.name());
        let execution = self.execute(command)?;
        // Of a program that was ended there may be none.
        let lines = std::fs::read_to_string(&stats).unwrap_or_default();
        Ok((execution, sum(&lines)))
    }

    /// In a memory cgroup of `limit` bytes with the kernel's zram, which counts in no cgroup.
    pub(super) fn under_kernel(
        self,
        program: &[OsString],
        limit: u64,
        algorithm: Algorithm,
        area: u64,
    ) -> anyhow::Result<(Execution, KernelSide)> {
        let zram = KernelZram::set_up(algorithm, area)?;
        let cgroup = MemoryCgroup::set_up()?;
        cgroup
            .set_limit(limit)
            .context("cannot limit the memory of a cgroup")?;
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ >\"$0\" && exec \"$@\""])
            .arg(cgroup.entrance())
            .args(program);
        let execution = self.execute(command)?;
        let side = KernelSide {
            cgroup_bytes: limit,
            most_program_bytes: execution.most_bytes,
            most_zram_bytes: zram.usage()?.most_memory_bytes,
            killed: cgroup
                .has_killed()
                .context("cannot tell what a cgroup has killed")?,
        };
        Ok((execution, side))
    }

    fn execute(self, mut command: Command) -> anyhow::Result<Execution> {
        interrupt::check()?;
        command
            .current_dir(self.folder)
            // The order of sort, and the language of messages.
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let start = Instant::now();
        let mut child = command.spawn().with_context(|| {
            let program = command.get_program();
            format!("cannot run {}", program.display())
        })?;
        let number = child.id() as i32;
        let stdout = child.stdout.take().context("no standard output")?;
        let stderr = child.stderr.take().context("no standard error")?;
        thread::scope(|scope| {
            let printed = scope.spawn(|| hash(stdout));
            let said = scope.spawn(|| tail(stderr));
            let in_time = wait(number, start + self.longest);
            let seconds = start.elapsed().as_secs_f64();
            // All of its group, also what it left behind: nothing else ends the two pipes.
            os::send_signal(-number, libc::SIGKILL);
            let (status, most_bytes) =
                os::wait_with_most(number).context("cannot wait for a program")?;
            let end = if in_time? {
                End::Status(ExitStatus::from_raw(status))
            } else {
                End::TooLong
            };
            Ok(Execution {
                seconds,
                end,
                printed: printed.join().expect("it does not panic"),
                most_bytes,
                said: said.join().expect("it does not panic"),
            })
        })
    }
}

/// Waits until a process has ended, or for so long; an error once somebody wants an end. Whether it has ended.
fn wait(process: i32, until: Instant) -> anyhow::Result<bool> {
    let process = Pid::from_raw(process).context("a process has a number")?;
    let file = pidfd_open(process, PidfdFlags::empty()).context("cannot wait for a program")?;
    let look_every = Timespec {
        tv_sec: 0,
        tv_nsec: 50_000_000,
    };
    while Instant::now() < until {
        interrupt::check()?;
        let mut files = [PollFd::new(&file, PollFlags::IN)];
        match poll(&mut files, Some(&look_every)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error).context("cannot wait for a program"),
        }
    }
    Ok(false)
}

fn hash(mut output: impl Read) -> Printed {
    let (mut hasher, mut bytes) = (DefaultHasher::new(), 0);
    let mut buffer = vec![0; 1 << 16];
    while let Some(count) = some(&mut output, &mut buffer) {
        hasher.write(&buffer[..count]);
        bytes += count as u64;
    }
    Printed {
        hash: hasher.finish(),
        bytes,
    }
}

/// Reads some bytes; `None`: there are no more.
fn some(output: &mut impl Read, buffer: &mut [u8]) -> Option<usize> {
    loop {
        match output.read(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => return result.ok().filter(|&count| count > 0),
        }
    }
}

/// As much as is worth showing of the end of what comes.
fn tail(mut output: impl Read) -> String {
    const SHOWN: usize = 600;
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Some(count) = some(&mut output, &mut buffer) {
        kept.extend_from_slice(&buffer[..count]);
        let surplus = kept.len().saturating_sub(SHOWN);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

fn sum(lines: &str) -> Swapped {
    let mut all = Swapped::default();
    for line in lines.lines() {
        let Ok(record) = serde_json::from_str::<serde_json::Value>(line) else {
            continue;
        };
        let number = |field: &str| record[field].as_u64().unwrap_or(0);
        all.swapping_processes += usize::from(record["faults_mode"] != "none");
        all.out_bytes += number("out_bytes");
        all.in_bytes += number("in_bytes");
        all.faults += number("faults");
        all.refaults += number("refaults");
        all.stalled_seconds += record["stalled_seconds"].as_f64().unwrap_or(0.0);
    }
    all
}

/// A folder for programs' files, gone when dropped.
pub(super) struct Scratch(std::path::PathBuf);

impl Scratch {
    pub(super) fn new() -> anyhow::Result<Self> {
        let name = format!("userswap-bench-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is in a folder for what may be deleted.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(folder: &Path, longest: Duration) -> Place<'_> {
        Place {
            folder,
            scratch: folder,
            longest,
        }
    }

    fn sh(script: &str) -> [OsString; 3] {
        ["sh".into(), "-c".into(), script.into()]
    }

    #[test]
    fn output_status_and_memory_are_seen() {
        let folder = std::env::temp_dir();
        let place = place(&folder, Duration::from_secs(60));
        let one = place.natively(&sh("echo one; echo two >&2; exit 3"));
        let one = one.expect("it runs");
        assert_eq!((one.printed.bytes, one.said.as_str()), (4, "two"));
        assert!(matches!(one.end, End::Status(status) if status.code() == Some(3)));
        assert!(one.most_bytes > 100_000);
        let other = place.natively(&sh("echo two; exit 3")).expect("it runs");
        assert!(one.is_like(&one) && !one.is_like(&other));
        let other = place.natively(&sh("echo one; exit 4")).expect("it runs");
        assert!(!one.is_like(&other));
    }

    #[test]
    fn what_takes_too_long_is_ended_with_its_children() {
        let folder = std::env::temp_dir();
        let place = place(&folder, Duration::from_millis(50));
        let execution = place.natively(&sh("sleep 100 & sleep 100"));
        assert_eq!(execution.expect("it runs").end, End::TooLong);
    }
}
