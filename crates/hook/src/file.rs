//! A file that code was mapped from: which one it is, and its bytes.

use rustix::fs::{Mode, OFlags, Stat};
use rustix::mm::{MapFlags, ProtFlags};
use std::os::fd::OwnedFd;
use std::path::Path;

/// A file, open.
pub(crate) struct CodeFile {
    fd: OwnedFd,
    stat: Stat,
}

/// What tells a file, as it is now, from every other and from what it was before: device, inode, size, both times, and what
/// its first page says (which holds the build-id).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity(pub(crate) [u64; 8]);

/// Bytes of the first page.
const HEAD: usize = 4096;

/// How long ago a file must have been changed at least, in seconds, for a later change to show in its times: file systems count
/// in steps of up to two seconds.
const SETTLED: i64 = 3;

impl CodeFile {
    pub(crate) fn open(path: &Path) -> rustix::io::Result<Self> {
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Self { fd, stat })
    }

    pub(crate) fn inode(&self) -> u64 {
        self.stat.st_ino
    }

    /// Which file it is.
    pub(crate) fn identity(&self) -> rustix::io::Result<Identity> {
        let stat = rustix::fs::fstat(&self.fd)?;
        // Not on the stack, which may be a small one.
        let mut head = vec![0; HEAD];
        let len = rustix::io::pread(&self.fd, &mut head, 0)?;
        Ok(Identity([
            stat.st_dev,
            stat.st_ino,
            stat.st_size.cast_unsigned(),
            stat.st_mtime.cast_unsigned(),
            stat.st_mtime_nsec,
            stat.st_ctime.cast_unsigned(),
            stat.st_ctime_nsec,
            xxhash_rust::xxh3::xxh3_64(&head[..len]),
        ]))
    }

    /// Whether a change from now on would change its identity.
    pub(crate) fn is_settled(&self) -> bool {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
        self.stat.st_mtime.max(self.stat.st_ctime) < now - SETTLED
    }

    /// As if it had been changed long ago.
    #[cfg(test)]
    pub(crate) fn settle(&mut self) {
        self.stat.st_mtime = 0;
        self.stat.st_ctime = 0;
    }

    /// Its bytes.
    pub(crate) fn map(&self) -> rustix::io::Result<MappedFile> {
        let len = usize::try_from(self.stat.st_size).map_err(|_| rustix::io::Errno::INVAL)?;
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::PRIVATE,
                &self.fd,
                0,
            )?
        };
        Ok(MappedFile { at, len })
    }
}

/// A file's bytes, as a mapping.
pub(crate) struct MappedFile {
    at: *mut std::ffi::c_void,
    len: usize,
}

impl MappedFile {
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: mapped readable for as long as self; a library in use is not written to or truncated (its own code
        // would break too).
        unsafe { std::slice::from_raw_parts(self.at.cast(), self.len) }
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // SAFETY: our own mapping, to which no reference is left.
        let _ = unsafe { rustix::mm::munmap(self.at, self.len) };
    }
}
