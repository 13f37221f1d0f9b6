//! A memory cgroup, set up for a measurement and taken away again, with whatever still runs in it.
//!
//! Its name carries the process that made it: what a killed process left behind, the next one takes away.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use userswap_sys::host::{self, CgroupVersion};

use crate::interrupt::Hold;
use crate::os;
use crate::report::note;

const NAME: &str = "userswap-";

/// Where version 2 is mounted; it does not tell where nothing but its root is in use.
const UNIFIED: &str = "/sys/fs/cgroup";

/// An empty cgroup that accounts memory.
#[derive(Debug)]
pub(crate) struct MemoryCgroup {
    path: PathBuf,
    files: &'static Files,
    _hold: Hold,
}

#[derive(Debug)]
struct Files {
    limit: &'static str,
    /// Where a line says how many processes the kernel has killed for want of memory.
    events: &'static str,
    #[cfg(test)]
    used: &'static str,
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    events: "memory.oom_control",
    #[cfg(test)]
    used: "memory.usage_in_bytes",
};
const V2: Files = Files {
    limit: "memory.max",
    events: "memory.events",
    #[cfg(test)]
    used: "memory.current",
};

impl MemoryCgroup {
    /// Makes one below this process's own, or as near the root as this host hands memory on (version 2).
    pub(crate) fn set_up() -> anyhow::Result<Self> {
        let memory = host::cgroup_memory().context("cannot read this process's cgroups")?;
        let (files, parents) = match memory {
            Some(memory) if memory.version == CgroupVersion::V1 => {
                let own = memory.levels.into_iter().next();
                (&V1, own.map(|level| level.path).into_iter().collect())
            }
            Some(memory) => {
                let mut parents = vec![PathBuf::from(UNIFIED)];
                parents.extend(memory.levels.into_iter().rev().map(|level| level.path));
                (&V2, parents)
            }
            None => (&V2, vec![PathBuf::from(UNIFIED)]),
        };
        let mut refused = String::from("no cgroup accounts memory");
        for parent in parents {
            take_away_leftovers(&parent);
            let path = parent.join(format!("{NAME}{}", std::process::id()));
            if let Err(error) = fs::create_dir(&path) {
                refused = format!("cannot make a cgroup in {}: {error}", parent.display());
                continue;
            }
            let cgroup = Self {
                path,
                files,
                _hold: Hold::new(),
            };
            if cgroup.file(files.limit).exists() {
                return Ok(cgroup);
            }
            refused = format!(
                "{} does not hand memory on to its children",
                parent.display()
            );
        }
        bail!("{refused}")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where a process writes its number to come in.
    pub(crate) fn entrance(&self) -> PathBuf {
        self.file("cgroup.procs")
    }

    /// Sets the limit in bytes.
    pub(crate) fn set_limit(&self, bytes: u64) -> io::Result<()> {
        fs::write(self.file(self.files.limit), bytes.to_string())
    }

    /// Whether the kernel has killed a process in it for want of memory.
    pub(crate) fn has_killed(&self) -> io::Result<bool> {
        let text = fs::read_to_string(self.file(self.files.events))?;
        let killed = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(killed.is_some_and(|count| count.trim() != "0"))
    }

    /// Bytes in use, page cache included.
    #[cfg(test)]
    pub(crate) fn used(&self) -> io::Result<u64> {
        let text = fs::read_to_string(self.file(self.files.used))?;
        text.trim().parse().map_err(io::Error::other)
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        if let Err(error) = take_away(&self.path) {
            note(format_args!(
                "cannot take {} away: {error}; do it by hand: rmdir",
                self.path.display()
            ));
        }
    }
}

/// Ends what runs there and removes the cgroup, for a second: processes take a while to end.
fn take_away(path: &Path) -> io::Result<()> {
    let mut tries = 0;
    loop {
        let processes = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        // 0 stands for a process of another container: it is not ours to end.
        let numbers = processes.lines().filter_map(|line| line.parse().ok());
        for process in numbers.filter(|&process: &i32| process > 0) {
            os::send_signal(process, libc::SIGKILL);
        }
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < 100 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

/// Takes away the cgroups of processes that were killed.
fn take_away_leftovers(parent: &Path) {
    for child in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = child.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(NAME));
        let Some(owner) = owner.and_then(|owner| owner.parse::<u32>().ok()) else {
            continue;
        };
        if !Path::new(&format!("/proc/{owner}")).exists() {
            // Somebody else may be at it.
            let _ = take_away(&child.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::skip::skip;

    #[test]
    fn it_accounts_what_runs_there_and_goes_with_it() {
        let cgroup = match MemoryCgroup::set_up() {
            Ok(cgroup) => cgroup,
            Err(error) => {
                return skip(
                    "it_accounts_what_runs_there_and_goes_with_it",
                    &error.to_string(),
                );
            }
        };
        cgroup.set_limit(64 << 20).expect("a limit");
        let mut child = Command::new("sh")
            .args(["-c", "echo $$ > \"$0\"; exec sleep 100"])
            .arg(cgroup.entrance())
            .spawn()
            .expect("sh runs");
        while cgroup.used().expect("a number") == 0 {
            assert!(child.try_wait().expect("a child").is_none());
            std::thread::sleep(Duration::from_millis(1));
        }
        let path = cgroup.path.clone();
        drop(cgroup);
        assert!(!path.exists());
        assert!(!child.wait().expect("an end").success(), "it was killed");
    }
}
