//! Storage of the host's that a test can fill, take away and harm.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::path::{Path, PathBuf};
use std::process::Command;

use userswap_core::device::PageBytes;

/// A page that does not compress.
pub(crate) fn noise(seed: u64) -> PageBytes {
    let mut state = seed << 1 | 1;
    std::array::from_fn(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    })
}

/// Says that a test cannot run, which is a failure where all must.
fn skip(reason: &str) {
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{reason}");
    eprintln!("SKIPPED: {reason}");
}

/// Runs a command; what it printed, if it went well.
fn run(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(printed)
}

/// A file system in memory.
pub(crate) struct Mounted(tempfile::TempDir);

impl Mounted {
    pub(crate) fn tmpfs(bytes: usize) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(folder.path())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(folder));
        }
        skip("nothing can be mounted here (not root)");
        None
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

/// A block device whose content is a file.
pub(crate) struct Loop {
    pub(crate) device: PathBuf,
    pub(crate) content: PathBuf,
}

impl Loop {
    /// A device of `bytes`, over a file in `folder` that takes no space yet.
    pub(crate) fn new(folder: &Path, bytes: u64) -> Option<Self> {
        let content = folder.join("content");
        let made = std::fs::File::create(&content).and_then(|file| file.set_len(bytes));
        made.expect("a file");
        let name = content.to_str().expect("a name");
        let Some(device) = run("losetup", &["--find", "--show", name]) else {
            skip("no loop device is to be had here");
            return None;
        };
        Some(Self {
            device: device.into(),
            content,
        })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = run(
            "losetup",
            &["--detach", self.device.to_str().expect("a name")],
        );
    }
}
