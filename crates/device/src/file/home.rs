//! A file that pages go to: found or made, and never left behind.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::fs::{
    self, AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Mode, OFlags, fallocate, fstat,
    ftruncate, openat, statat, unlinkat,
};
use rustix::io::Errno;
use userswap_core::device::{DeviceError, PAGE_SIZE};
use userswap_sys::descriptor::move_up;

use super::blocks::{Blocks, CLUSTER};
use super::disk::Disk;
use crate::seal::Seal;

/// Blocks by which a file of ours grows: space is there before it is written to.
const GROW_BY: u32 = (64 << 20) / PAGE_SIZE as u32;

/// A file or block device that holds less than this is no use.
const LEAST_BYTES: u64 = 1 << 20;

/// How a [`super::File`] is to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// Encrypt what goes there, with a key that only this process has. Without it, pages can be read by whoever can read
    /// the file; a checksum still finds what was changed by accident.
    pub encrypt: bool,
    /// The most bytes of the file to use; for a file of ours, how long it may become.
    pub size: Option<u64>,
    /// Use a file that exists, or a block device, whose content is lost.
    pub overwrite: bool,
    /// Several requests in one system call, where the host permits it.
    pub io_uring: bool,
    /// How long the storage may take to answer a request before it is said to hang. Nothing is given up then.
    pub timeout: Duration,
}

impl Default for FileOptions {
    fn default() -> Self {
        Self {
            encrypt: true,
            size: None,
            overwrite: false,
            io_uring: true,
            timeout: Duration::from_secs(10),
        }
    }
}

/// Why a file cannot be used: what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileError {
    path: PathBuf,
    why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    Open(Errno),
    Exists(u64),
    Kind,
    Small(u64),
    InUse,
    Device(DeviceError),
    Lock(DeviceError),
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.why {
            Why::Open(errno) => write!(f, "cannot swap to {path}: {errno}"),
            Why::Exists(bytes) => write!(
                f,
                "{path} exists ({bytes} bytes), and swapping there destroys its content: name a folder, a new file, or \
                 add overwrite=on"
            ),
            Why::Kind => write!(
                f,
                "cannot swap to {path}: it is no folder, file or block device"
            ),
            Why::Small(bytes) => write!(
                f,
                "cannot swap to {path}: {bytes} bytes are too few, at least {LEAST_BYTES} are needed"
            ),
            Why::InUse => write!(f, "cannot swap to {path}: another process does"),
            Why::Device(error) => write!(f, "cannot swap to {path}: {error}"),
            Why::Lock(error) => write!(
                f,
                "cannot keep the key for {path} in locked memory: {error}; raise RLIMIT_MEMLOCK (ulimit -l) or add \
                 encrypt=off"
            ),
        }
    }
}

impl std::error::Error for FileError {}

impl FileError {
    pub(super) fn device(path: &Path, error: DeviceError) -> Self {
        Self {
            path: path.to_path_buf(),
            why: Why::Device(error),
        }
    }
}

/// Where files come from.
pub(super) enum Origin {
    /// A folder that gets files without a name.
    Folder(OwnedFd),
    /// The one file there is.
    Fixed,
}

/// A file with its key and its blocks.
pub(super) struct Home {
    pub(super) disk: Disk,
    pub(super) seal: Seal,
    pub(super) blocks: Blocks,
    /// Grows as it is used.
    grows: bool,
    /// Held by a process that was forked by the owner of this home, and has its pages.
    pub(super) lease: OnceLock<OwnedFd>,
}

impl Home {
    /// Finds or makes the file that `path` names; `slots` is how many pages may have to go there.
    pub(super) fn open(
        path: &Path,
        slots: u64,
        options: FileOptions,
    ) -> Result<(Origin, Self), FileError> {
        let error = |why| FileError {
            path: path.to_path_buf(),
            why,
        };
        let wanted = options.size.map_or(slots, |size| size / PAGE_SIZE as u64);
        match statat(CWD, path, AtFlags::empty()) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {
                let (fd, bytes) = existing(path, options).map_err(error)?;
                let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                let blocks = wanted.min(bytes / PAGE_SIZE as u64);
                let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
                let home = Self::with(fd, blocks, blocks, regular, options).map_err(error)?;
                home.disk.open_ring();
                Ok((Origin::Fixed, home))
            }
            Err(errno) if errno != Errno::NOENT => Err(error(Why::Open(errno))),
            found => {
                let folder = match (&found, path.parent()) {
                    (Ok(_), _) => path,
                    (Err(_), Some(parent)) if parent.as_os_str().is_empty() => Path::new("."),
                    (Err(_), Some(parent)) => parent,
                    (Err(_), None) => return Err(error(Why::Open(Errno::NOENT))),
                };
                let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
                let folder = openat(CWD, folder, flags, Mode::empty())
                    .map_err(|errno| error(Why::Open(errno)))?;
                let folder = move_up(folder);
                let home = Self::in_folder(&folder, wanted, options).map_err(error)?;
                home.disk.open_ring();
                Ok((Origin::Folder(folder), home))
            }
        }
    }

    /// A file without a name in `folder`, for a process that has none of its own. Does not allocate: its ring is opened
    /// later.
    pub(super) fn another(
        folder: &OwnedFd,
        blocks: u32,
        options: FileOptions,
    ) -> Result<Self, DeviceError> {
        Self::in_folder(folder, u64::from(blocks), options).map_err(|why| match why {
            Why::Device(error) | Why::Lock(error) => error,
            Why::Open(errno) => DeviceError::Io(errno.raw_os_error()),
            _ => DeviceError::Full,
        })
    }

    fn in_folder(folder: &OwnedFd, blocks: u64, options: FileOptions) -> Result<Self, Why> {
        let fd = nameless(folder).map_err(Why::Open)?;
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        let mut home = Self::with(fd, blocks, 0, true, options)?;
        home.grows = true;
        Ok(home)
    }

    fn with(
        fd: OwnedFd,
        total: u32,
        ready: u32,
        regular: bool,
        options: FileOptions,
    ) -> Result<Self, Why> {
        let seal = if options.encrypt {
            Seal::encrypting().map_err(Why::Lock)?
        } else {
            Seal::checking()
        };
        Ok(Self {
            disk: Disk::new(move_up(fd), regular, options.io_uring),
            seal,
            blocks: Blocks::new(total, ready).map_err(Why::Device)?,
            grows: false,
            lease: OnceLock::new(),
        })
    }

    /// Makes space behind the `ready` blocks there are; returns how many there are then.
    pub(super) fn extend(&self, ready: u32) -> Option<u32> {
        let room = self.blocks.total() - ready;
        let mut more = if self.grows { room.min(GROW_BY) } else { 0 };
        while more > 0 {
            let start = u64::from(ready) * PAGE_SIZE as u64;
            let len = u64::from(more) * PAGE_SIZE as u64;
            if self.disk.may_reach(start + len) {
                let _request = self.disk.awaited.begin(true);
                let fd = self.disk.fd();
                match fallocate(fd, FallocateFlags::empty(), start, len) {
                    Ok(()) => return Some(ready + more),
                    // Then a write finds out whether there is space.
                    Err(Errno::OPNOTSUPP) => {
                        return ftruncate(fd, start + len).is_ok().then_some(ready + more);
                    }
                    Err(Errno::INTR) => continue,
                    Err(_) => {}
                }
            }
            // Perhaps there is space for less.
            more = more / 4 / CLUSTER as u32 * CLUSTER as u32;
        }
        None
    }
}

/// Opens a file or block device of the user's. Returns its length, too.
fn existing(path: &Path, options: FileOptions) -> Result<(OwnedFd, u64), Why> {
    let stat = statat(CWD, path, AtFlags::empty()).map_err(Why::Open)?;
    let (flags, device) = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => (OFlags::empty(), false),
        // Refused while it is mounted, or used otherwise.
        FileType::BlockDevice => (OFlags::EXCL, true),
        _ => return Err(Why::Kind),
    };
    let flags = flags | OFlags::RDWR | OFlags::CLOEXEC;
    let fd = match openat(CWD, path, flags | OFlags::DIRECT, Mode::empty()) {
        Err(Errno::INVAL) => openat(CWD, path, flags, Mode::empty()),
        opened => opened,
    };
    let fd = fd.map_err(|errno| match errno {
        Errno::BUSY => Why::InUse,
        errno => Why::Open(errno),
    })?;
    let bytes = if device {
        fs::seek(&fd, fs::SeekFrom::End(0)).map_err(Why::Open)?
    } else {
        fstat(&fd).map_err(Why::Open)?.st_size as u64
    };
    if !options.overwrite {
        return Err(Why::Exists(bytes));
    }
    if bytes < LEAST_BYTES {
        return Err(Why::Small(bytes));
    }
    fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
        Errno::WOULDBLOCK => Why::InUse,
        errno => Why::Open(errno),
    })?;
    Ok((fd, bytes))
}

/// A new file in `folder` that has no name, so that nothing is left of it when the last process that has it is gone,
/// however it ends.
fn nameless(folder: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let open = |flags: OFlags| {
        match openat(&folder, c".", flags | OFlags::TMPFILE, mode) {
            // Made by a name that goes at once, where the file system knows no other way.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {}
            opened => return opened,
        }
        let name = c".userswap-being-made";
        // Somebody who was killed between the two steps.
        let _ = unlinkat(&folder, name, AtFlags::empty());
        let fd = openat(&folder, name, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
        match unlinkat(&folder, name, AtFlags::empty()) {
            // Another process has taken this one for somebody's who was killed.
            Ok(()) | Err(Errno::NOENT) => Ok(fd),
            Err(errno) => Err(errno),
        }
    };
    match open(flags | OFlags::DIRECT) {
        Err(Errno::INVAL) => open(flags),
        opened => opened,
    }
}
