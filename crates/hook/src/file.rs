//! A file that code was mapped from: which one it is, and its bytes.

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::mm::{MapFlags, ProtFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use userswap_sys::PAGE_SIZE;

/// A file, open.
pub(crate) struct CodeFile {
    fd: Descriptor,
    stat: Stat,
}

enum Descriptor {
    Own(OwnedFd),
    /// Of the program, in a call of which we are; not negative.
    Program(i32),
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(fd) => fd.as_fd(),
            // SAFETY: not negative. A program that closes it meanwhile, in another thread, races with its own call just as well;
            // we only read from whatever file it is then.
            Self::Program(fd) => unsafe { BorrowedFd::borrow_raw(*fd) },
        }
    }
}

/// What tells a file, as it is now, from every other and from what it was before: device, inode, size, both times, and what
/// its first page says (which holds the build-id).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity(pub(crate) [u64; 8]);

impl Identity {
    /// Of what is in memory and in no file: all of its bytes.
    pub(crate) fn of_content(bytes: &[u8]) -> Self {
        let len = bytes.len() as u64;
        Self([0, 0, len, 0, 0, 0, 0, xxhash_rust::xxh3::xxh3_64(bytes)])
    }
}

/// Bytes of the first page.
const HEAD: usize = 4096;

/// How long ago a file must have been changed at least, in seconds, for a later change to show in its times: file systems count
/// in steps of up to two seconds.
const SETTLED: i64 = 3;

impl CodeFile {
    pub(crate) fn open(path: &Path) -> rustix::io::Result<Self> {
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Self::with(Descriptor::Own(fd))
    }

    /// The file that the program has just mapped code from, by its descriptor `fd`; to be used before that call ends.
    pub(crate) fn of_call(fd: i32) -> rustix::io::Result<Self> {
        if fd < 0 {
            return Err(rustix::io::Errno::BADF);
        }
        let file = Self::with(Descriptor::Program(fd))?;
        // Reading from anything else may wait, or take what the program is to read.
        let is_regular = FileType::from_raw_mode(file.stat.st_mode) == FileType::RegularFile;
        is_regular.then_some(file).ok_or(rustix::io::Errno::INVAL)
    }

    fn with(fd: Descriptor) -> rustix::io::Result<Self> {
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

    /// Whether a change from now on would change its identity. Not where times are whole seconds: file systems that have no
    /// others make some up.
    pub(crate) fn is_settled(&self) -> bool {
        if self.stat.st_ctime_nsec == 0 {
            return false;
        }
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
        self.stat.st_mtime.max(self.stat.st_ctime) < now - SETTLED
    }

    /// As if it had been changed long ago.
    #[cfg(test)]
    pub(crate) fn settle(&mut self) {
        self.stat.st_mtime = 0;
        self.stat.st_ctime = 0;
        self.stat.st_ctime_nsec = 1;
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

    /// The process gives back the pages of these bytes, which are of this file; they come again when they are read.
    pub(crate) fn give_back(&self, bytes: &[u8]) {
        let all = self.at as usize..self.at as usize + self.len;
        let start = (bytes.as_ptr() as usize).next_multiple_of(PAGE_SIZE);
        let end = (bytes.as_ptr() as usize + bytes.len()) / PAGE_SIZE * PAGE_SIZE;
        if start < end && all.contains(&start) && end <= all.end {
            // SAFETY: of our own mapping, which is private and cannot be written: what is read there is the file's, as before.
            let _ = unsafe {
                rustix::mm::madvise(
                    std::ptr::with_exposed_provenance_mut(start),
                    end - start,
                    rustix::mm::Advice::LinuxDontNeed,
                )
            };
        }
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // SAFETY: our own mapping, to which no reference is left.
        let _ = unsafe { rustix::mm::munmap(self.at, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the mapping that are in memory of this process.
    fn resident(file: &MappedFile) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("readable");
        let start = format!("{:x}-", file.at as usize);
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
        let line = lines.find_map(|line| line.strip_prefix("Rss:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.parse::<usize>().ok())
            .expect("it is mapped")
            << 10
    }

    #[test]
    fn only_what_changed_long_ago_at_a_time_of_its_own_is_settled() {
        let own = std::env::current_exe().expect("it has a name");
        let mut file = CodeFile::open(&own).expect("a file");
        file.settle();
        assert!(file.is_settled());
        file.stat.st_ctime_nsec = 0;
        assert!(!file.is_settled());
    }

    #[test]
    fn what_is_given_back_comes_again() {
        let path = std::env::temp_dir().join(format!("userswap-file-{}", std::process::id()));
        let content: Vec<u8> = (0..4 << 20).map(|i: u32| (i / 7) as u8).collect();
        std::fs::write(&path, &content).expect("writable");
        let file = CodeFile::open(&path).and_then(|file| file.map());
        let file = file.expect("a file");
        std::fs::remove_file(&path).expect("there");
        assert!(file.bytes() == content);
        assert!(resident(&file) >= content.len());
        // Whole pages only, and of what is not of the file nothing. The system may give back more: what is mapped as one.
        file.give_back(&file.bytes()[1..content.len() / 2 + 1]);
        let left = resident(&file);
        assert!(left <= content.len() / 2 + PAGE_SIZE, "{left}");
        file.give_back(&content);
        assert_eq!(resident(&file), left);
        assert!(file.bytes() == content);
        file.give_back(file.bytes());
        assert_eq!(resident(&file), 0);
        assert!(file.bytes() == content);
    }
}
