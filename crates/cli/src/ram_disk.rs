//! A block device in memory, for measurements: a loop device over a file of its own.
//!
//! The kernel may swap to it without waiting for itself: the file's pages are all there before the first request, so that
//! serving one takes no memory, and its file system is one that is never swapped. That file system is mounted nowhere, the
//! file has no name, and the loop device lets go of it when nobody has it open: nothing is left, however the process ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsmount, fsopen,
};

use crate::os;

const LOOP_CONTROL: &str = "/dev/loop-control";

/// How often a device that somebody else took meanwhile is given up for the next.
const TRIES: usize = 20;

/// A block device in memory; gone when dropped, and when swap there is off.
#[derive(Debug)]
pub(crate) struct RamDisk {
    path: PathBuf,
    _open: File,
}

impl RamDisk {
    /// A device of `bytes`.
    pub(crate) fn new(bytes: u64) -> anyhow::Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "only root can set up a loop device"
        );
        let backing = unswapped_file(bytes).context("cannot make a file in memory")?;
        let control = OpenOptions::new().read(true).write(true).open(LOOP_CONTROL);
        let control = control.with_context(|| format!("cannot open {LOOP_CONTROL}"))?;
        for _ in 0..TRIES {
            let number = os::free_loop_device(&control).context("there is no loop device")?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(true).open(&path);
            let device = device.with_context(|| format!("cannot open {}", path.display()))?;
            match os::attach_loop_device(&device, backing.as_fd()) {
                Ok(()) => {
                    return Ok(Self {
                        path,
                        _open: device,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot set up {}", path.display()));
                }
            }
        }
        anyhow::bail!("others take every loop device that is free")
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// A file without a name, of `bytes` that are all in memory and stay there.
fn unswapped_file(bytes: u64) -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_flag(context.as_fd(), "noswap")?;
    fsconfig_create(context.as_fd())?;
    let root = fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = openat(&root, ".", flags, Mode::RUSR | Mode::WUSR)?;
    fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skip::skip;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holds_what_is_written_and_goes_when_dropped() {
        let test = "holds_what_is_written_and_goes_when_dropped";
        if !rustix::process::geteuid().is_root() || !Path::new(LOOP_CONTROL).exists() {
            return skip(test, "no loop devices for who is not root");
        }
        let disk = RamDisk::new(1 << 20).expect("a device");
        let name = disk.path().file_name().expect("a name").to_owned();
        let size = Path::new("/sys/block").join(name).join("size");
        let sectors = |size: &Path| std::fs::read_to_string(size).expect("a size");
        assert_eq!(sectors(&size).trim(), "2048");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(disk.path())
            .expect("open");
        let mut back = [1; 5];
        file.read_exact_at(&mut back, 8192).expect("read");
        assert_eq!(back, [0; 5], "nothing of the memory's past");
        file.write_all_at(b"pages", 8192).expect("written");
        file.read_exact_at(&mut back, 8192).expect("read");
        assert_eq!(&back, b"pages");
        drop(file);
        drop(disk);
        assert_eq!(sectors(&size).trim(), "0", "let go of");
    }
}
