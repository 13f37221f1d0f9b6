//! The memory limit of the cgroup this process is in, and of every one above it.
//!
//! In a container the path that /proc/self/cgroup gives may lie outside what is mounted; then the mount's own root is the
//! nearest level that can be seen.

use std::path::{Path, PathBuf};

use super::files::{HostError, Reading, read, unforeseen};
use crate::Errno;

/// Which interface a cgroup is seen through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// One tree for each controller.
    V1,
    /// The unified tree.
    V2,
}

/// One cgroup on the way from this process's own to the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupLevel {
    /// Its directory.
    pub path: PathBuf,
    /// Bytes at which the kernel starts killing; `None` is unlimited.
    pub limit: Option<u64>,
    /// Bytes above which the kernel reclaims and slows down (version 2 only); `None` is unlimited.
    pub high: Option<u64>,
    /// Bytes in use.
    pub used: u64,
}

impl CgroupLevel {
    /// Bytes left before the limit.
    pub fn headroom(&self) -> Option<u64> {
        self.limit.map(|limit| limit.saturating_sub(self.used))
    }
}

/// The memory cgroups of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupMemory {
    /// Which interface.
    pub version: CgroupVersion,
    /// From this process's own up to the highest that can be seen and accounts memory.
    pub levels: Vec<CgroupLevel>,
}

impl CgroupMemory {
    /// The level with the lowest limit; `None` if nothing is limited.
    pub fn tightest(&self) -> Option<&CgroupLevel> {
        self.levels
            .iter()
            .filter(|level| level.limit.is_some())
            .min_by_key(|level| level.limit)
    }

    /// The level that will be full first: an ancestor may be nearly full with others' memory.
    pub fn fullest(&self) -> Option<&CgroupLevel> {
        self.levels
            .iter()
            .filter(|level| level.limit.is_some())
            .min_by_key(|level| level.headroom())
    }
}

/// Reads this process's memory cgroups; `None` where none accounts memory.
pub fn cgroup_memory() -> Reading<Option<CgroupMemory>> {
    const CGROUP: &str = "/proc/self/cgroup";
    let cgroups = read(CGROUP)?;
    let mounts = read("/proc/self/mountinfo")?;
    // With both interfaces mounted, the memory controller is on the one that names it.
    for (version, files) in [(CgroupVersion::V1, &V1), (CgroupVersion::V2, &V2)] {
        let (Some(path), Some(mount)) = (own_path(&cgroups, version), find_mount(&mounts, version))
        else {
            continue;
        };
        let levels = walk(&mount.directory(path), &mount.point, files)?;
        if !levels.is_empty() {
            return Ok(Some(CgroupMemory { version, levels }));
        }
    }
    Ok(None)
}

/// The file names of an interface.
struct Files {
    limit: &'static str,
    high: Option<&'static str>,
    used: &'static str,
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    high: None,
    used: "memory.usage_in_bytes",
};
const V2: Files = Files {
    limit: "memory.max",
    high: Some("memory.high"),
    used: "memory.current",
};

/// The path in a line `id:controllers:path`; version 2 is the one with id 0 and no controllers.
fn own_path(cgroups: &str, version: CgroupVersion) -> Option<&str> {
    cgroups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let found = match version {
            CgroupVersion::V1 => controllers
                .split(',')
                .any(|controller| controller == "memory"),
            CgroupVersion::V2 => id == "0" && controllers.is_empty(),
        };
        found.then_some(path)
    })
}

/// Where a cgroup tree is mounted.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// The part of the tree that is mounted.
    root: String,
    /// Where.
    point: PathBuf,
}

impl Mount {
    /// The directory of the cgroup at `path`, or the mount point where that is not visible.
    fn directory(&self, path: &str) -> PathBuf {
        let inside = match self.root.as_str() {
            "/" => Some(path),
            root => path
                .strip_prefix(root)
                .filter(|rest| rest.is_empty() || rest.starts_with('/')),
        };
        let directory = inside.map(|inside| self.point.join(inside.trim_start_matches('/')));
        directory
            .filter(|directory| directory.is_dir())
            .unwrap_or_else(|| self.point.clone())
    }
}

/// From a line `id parent device root point options ... - type source super-options`.
fn find_mount(mounts: &str, version: CgroupVersion) -> Option<Mount> {
    mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let (name, options) = (kind.next()?, kind.nth(1)?);
        let found = match version {
            CgroupVersion::V1 => {
                name == "cgroup" && options.split(',').any(|option| option == "memory")
            }
            CgroupVersion::V2 => name == "cgroup2",
        };
        let mut place = place.split(' ').skip(3);
        let (root, point) = (place.next()?, place.next()?);
        found.then(|| Mount {
            root: unescape(root),
            point: unescape(point).into(),
        })
    })
}

/// mountinfo writes a space as `\040`, and a backslash as `\134`.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\134", "\\")
}

/// Every level from `own` up to `top` that accounts memory (the root of version 2 does not).
fn walk(own: &Path, top: &Path, files: &Files) -> Reading<Vec<CgroupLevel>> {
    let mut levels = Vec::new();
    for path in own.ancestors().take_while(|path| path.starts_with(top)) {
        match level(path, files) {
            Ok(level) => levels.push(level),
            Err(HostError::Unreadable {
                errno: Errno::NOENT,
                ..
            }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(levels)
}

fn level(path: &Path, files: &Files) -> Reading<CgroupLevel> {
    let limit = |name: &str| {
        let file = path.join(name);
        let text = read(&file)?;
        parse_limit(text.trim()).ok_or_else(|| unforeseen(file, text.trim()))
    };
    Ok(CgroupLevel {
        path: path.to_owned(),
        limit: limit(files.limit)?,
        high: files.high.map(limit).transpose()?.flatten(),
        used: super::files::read_number(path.join(files.used))?,
    })
}

/// `max` (version 2), or a number that no machine has (version 1), is unlimited.
fn parse_limit(text: &str) -> Option<Option<u64>> {
    const UNLIMITED: u64 = 1 << 62;
    if text == "max" {
        return Some(None);
    }
    let limit = text.parse::<u64>().ok()?;
    Some((limit < UNLIMITED).then_some(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "5:devices:/\n4:memory,cpu:/jobs/a\n0::/init\n";
    const MOUNTS: &str = "\
22 27 0:21 / /proc rw - proc proc rw
36 31 0:35 / /sys/fs/cgroup/my\\040memory rw,relatime - cgroup cgroup rw,memory,cpu
41 31 0:38 /slice /sys/fs/cgroup/unified rw shared:5 - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn finds_the_own_cgroup_and_its_mount() {
        assert_eq!(own_path(HYBRID, CgroupVersion::V1), Some("/jobs/a"));
        assert_eq!(own_path(HYBRID, CgroupVersion::V2), Some("/init"));
        assert_eq!(own_path("0::/\n", CgroupVersion::V1), None);
        let v1 = Mount {
            root: "/".into(),
            point: "/sys/fs/cgroup/my memory".into(),
        };
        assert_eq!(find_mount(MOUNTS, CgroupVersion::V1), Some(v1));
        let v2 = Mount {
            root: "/slice".into(),
            point: "/sys/fs/cgroup/unified".into(),
        };
        assert_eq!(find_mount(MOUNTS, CgroupVersion::V2), Some(v2));
    }

    #[test]
    fn a_path_that_is_not_mounted_falls_back_to_the_mount() {
        let tree = std::env::temp_dir().join(format!("userswap-cgroup-{}", std::process::id()));
        let own = tree.join("jobs/a");
        std::fs::create_dir_all(&own).expect("create");
        let whole = Mount {
            root: "/".into(),
            point: tree.clone(),
        };
        assert_eq!(whole.directory("/jobs/a"), own);
        assert_eq!(whole.directory("/elsewhere"), tree);
        assert_eq!(whole.directory("/"), tree);
        let part = Mount {
            root: "/docker/x".into(),
            point: tree.clone(),
        };
        assert_eq!(part.directory("/docker/x/jobs/a"), own);
        assert_eq!(part.directory("/docker/xy/jobs/a"), tree);

        // The walk takes every level that accounts memory, and the tightest need not be the own one.
        std::fs::write(own.join(V2.limit), "max\n").expect("write");
        std::fs::write(own.join("memory.high"), "4096\n").expect("write");
        std::fs::write(own.join(V2.used), "100\n").expect("write");
        std::fs::write(tree.join("jobs").join(V2.limit), "1000\n").expect("write");
        std::fs::write(tree.join("jobs/memory.high"), "max\n").expect("write");
        std::fs::write(tree.join("jobs").join(V2.used), "900\n").expect("write");
        let levels = walk(&own, &tree, &V2).expect("walk");
        std::fs::remove_dir_all(&tree).expect("remove");
        assert_eq!(levels.len(), 2);
        assert_eq!(
            (levels[0].limit, levels[0].high, levels[0].used),
            (None, Some(4096), 100)
        );
        let memory = CgroupMemory {
            version: CgroupVersion::V2,
            levels,
        };
        assert_eq!(memory.tightest().and_then(|level| level.limit), Some(1000));
        assert_eq!(memory.fullest().and_then(CgroupLevel::headroom), Some(100));
    }

    #[test]
    fn limits() {
        assert_eq!(parse_limit("max"), Some(None));
        assert_eq!(parse_limit("9223372036854771712"), Some(None));
        assert_eq!(parse_limit("1073741824"), Some(Some(1 << 30)));
        assert_eq!(parse_limit("many"), None);
    }

    #[test]
    fn this_process() {
        if let Some(memory) = cgroup_memory().expect("cgroups") {
            assert!(!memory.levels.is_empty());
        }
    }
}
