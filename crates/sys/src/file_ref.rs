//! A file of one process that others find by a path, and that it still is.
//!
//! What `/proc/PID/fd/N` stands for depends on who asks and when: the process may be gone and its number another's, or be
//! another in the asker's namespace. Who is told the path only might write to a stranger's file.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::str::FromStr;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat, fstat, openat, statat};

use crate::Errno;

/// A path, and which file is meant; as text `DEVICE:INODE:PATH`, which is no absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRef {
    device: u64,
    inode: u64,
    path: PathBuf,
}

impl FileRef {
    /// `file`, which others find at `path`.
    ///
    /// # Errors
    /// What asking for its numbers gave.
    pub fn new(file: impl AsFd, path: PathBuf) -> Result<Self, Errno> {
        let stat = fstat(file)?;
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            path,
        })
    }

    /// Opens the file, never to become anybody's terminal or to wait.
    ///
    /// # Errors
    /// `STALE`: there is another file by now, which was left alone; else what opening it gave.
    pub fn open(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        // Opening alone does something to some files.
        self.check(&statat(CWD, &self.path, AtFlags::empty())?)?;
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = openat(CWD, &self.path, flags, Mode::empty())?;
        // And it may have changed just now.
        self.check(&fstat(&file)?)?;
        Ok(file)
    }

    fn check(&self, stat: &Stat) -> Result<(), Errno> {
        let same = (stat.st_dev, stat.st_ino) == (self.device, self.inode);
        same.then_some(()).ok_or(Errno::STALE)
    }
}

impl fmt::Display for FileRef {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (device, inode, path) = (self.device, self.inode, self.path.display());
        write!(out, "{device}:{inode}:{path}")
    }
}

/// The text is not that of a [`FileRef`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not of the form DEVICE:INODE:PATH")]
pub struct NoFileRef;

impl FromStr for FileRef {
    type Err = NoFileRef;

    fn from_str(text: &str) -> Result<Self, NoFileRef> {
        let mut fields = text.splitn(3, ':');
        let mut number = || fields.next()?.parse().ok();
        let (device, inode) = number().zip(number()).ok_or(NoFileRef)?;
        let path = fields.next().ok_or(NoFileRef)?.into();
        Ok(Self {
            device,
            inode,
            path,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn another_file_at_the_path_is_left_alone() {
        let name = format!("userswap-file-ref-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let file = File::create(&path).expect("a new file");
        let meant = FileRef::new(&file, path.clone()).expect("its numbers");
        let meant: FileRef = meant.to_string().parse().expect("as it is written");
        let mut same = File::from(meant.open(OFlags::RDWR).expect("the file"));
        same.write_all(b"x").expect("writable");
        let moved = path.with_extension("moved");
        std::fs::rename(&path, &moved).expect("renamed");
        assert_eq!(meant.open(OFlags::RDONLY).err(), Some(Errno::NOENT));
        // `file` is open, so that the new one cannot have its inode.
        std::fs::write(&path, "another's").expect("a new file");
        let opened = meant.open(OFlags::RDWR | OFlags::TRUNC);
        assert_eq!(opened.err(), Some(Errno::STALE));
        assert_eq!(std::fs::read(&path).expect("readable"), b"another's");
        let mut text = String::new();
        let moved_file = File::open(&moved).and_then(|mut f| f.read_to_string(&mut text));
        assert_eq!((moved_file.ok(), text.as_str()), (Some(1), "x"));
        std::fs::remove_file(path).expect("it is there");
        std::fs::remove_file(moved).expect("it is there");
    }

    #[test]
    fn a_path_is_no_reference() {
        for text in ["/proc/1/fd/3", "/1:2:3", "1:2", "1:x:/a", ""] {
            assert_eq!(text.parse::<FileRef>(), Err(NoFileRef), "{text}");
        }
        let odd: FileRef = "1:2:/a:b".parse().expect("a reference");
        assert_eq!(odd.path, PathBuf::from("/a:b"));
    }
}
