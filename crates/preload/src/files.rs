//! Pages of files that the process has mapped: the first to leave when memory is short.
//!
//! Code, and files that are read through mappings, count as memory of the process as long as its page tables name
//! them. Those it has not changed can be dropped from there: the system keeps them as long as it has room, and maps what
//! is touched again, many pages at a time, for a small part of what a swapped page costs. So everything of the kind is dropped
//! now and then; what comes back is what is used.
//!
//! Which files are such is asked of their file systems while nobody waits for us: one that does not answer (a network that
//! is gone) must hold up none of the program's calls.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::mm::{Advice, madvise};
use userswap::Process;
use userswap_hook::while_code_stays;
use userswap_sys::pagemap;

use crate::{kept, maps};

/// Fewer bytes are not worth looking for.
const LEAST: u64 = 1 << 20;

/// Between two looks while the process is over its limit.
const LEAST_PAUSE: Duration = Duration::from_millis(2);

/// The process is far over its limit by one part in so many of it: more than a twentieth is not held.
const FAR_OVER: u64 = 32;

/// How long it takes to drop what there is.
const SOON: Duration = Duration::from_millis(4);

const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);

/// More files than this are not kept in mind.
const MOST_KNOWN: usize = 4096;

/// Drops pages of files while memory is short.
pub(crate) struct Files {
    dropped_at: Option<Instant>,
    /// Until files are looked at again.
    pause: Duration,
    /// Bytes that were left, and that went, the last time.
    left: u64,
    went: u64,
    /// When it was last looked, and how many bytes there were.
    seen: Option<(Instant, u64)>,
    /// The process was over its limit after the last drop.
    in_vain: bool,
    /// The system cannot tell which pages are a file's.
    unable: bool,
    /// Files that have been asked about, as the list of mappings has them: whether each is on a disk.
    known: BTreeMap<String, bool>,
    /// Files that are still to be asked about.
    unknown: Vec<String>,
}

impl Files {
    pub(crate) fn new() -> Self {
        Self {
            dropped_at: None,
            pause: SHORTEST,
            left: 0,
            went: 0,
            seen: None,
            in_vain: false,
            unable: false,
            known: BTreeMap::new(),
            unknown: Vec::new(),
        }
    }

    /// Drops what can be, if the process is close to its `limit` and it is time. Returns whether it did.
    pub(crate) fn press(&mut self, process: &Process, limit: u64) -> bool {
        let Some((resident, files)) = kept::resident_and_file_bytes() else {
            return false;
        };
        let soon = resident + self.comes_soon(files);
        if self.unable || soon < limit - limit / 8 || files < self.left + LEAST {
            return false;
        }
        // Over the limit there is little time to lose, and none where it is soon no longer held.
        let rest = if resident > limit + limit / FAR_OVER && !self.in_vain {
            Duration::ZERO
        } else if soon > limit {
            LEAST_PAUSE
        } else {
            self.pause
        };
        let rested = self.dropped_at.is_none_or(|at| at.elapsed() >= rest);
        if !rested {
            return false;
        }
        let came_back = files.saturating_sub(self.left);
        self.pause = if came_back > self.went / 2 {
            (self.pause * 2).min(LONGEST)
        } else {
            (self.pause / 2).max(SHORTEST)
        };
        let able = process.while_steady(|| while_code_stays(|| self.drop_unchanged()));
        self.unable = !able;
        let (resident, left) = kept::resident_and_file_bytes().unwrap_or((resident, files));
        (self.left, self.in_vain) = (left, resident > limit);
        self.seen = Some((Instant::now(), self.left));
        self.went = files.saturating_sub(self.left);
        self.dropped_at = Some(Instant::now());
        true
    }

    /// Bytes that come at the pace of late until what is dropped now is gone. There are `files` now.
    fn comes_soon(&mut self, files: u64) -> u64 {
        let seen = self.seen.replace((Instant::now(), files));
        seen.map_or(0, |(at, before)| {
            growth(files.saturating_sub(before), at.elapsed(), SOON)
        })
    }

    /// Whether [`Files::press`] met files that it did not know, and left.
    pub(crate) fn has_to_learn(&self) -> bool {
        !self.unknown.is_empty()
    }

    /// Asks about them. Nobody waits for this.
    pub(crate) fn learn(&mut self) {
        if self.known.len() + self.unknown.len() > MOST_KNOWN {
            self.known.clear();
        }
        for file in self.unknown.drain(..) {
            let is = is_on_disk(&file);
            self.known.insert(file, is);
        }
        // They may go at once, and have not come back.
        (self.dropped_at, self.left, self.went) = (None, 0, u64::MAX);
    }

    /// Drops unchanged pages of files from the page tables. Nothing is unmapped, mapped over, made writable or rewritten
    /// meanwhile. `false`: it cannot be told which are unchanged.
    fn drop_unchanged(&mut self) -> bool {
        let Some(text) = kept::MAPS.read_all() else {
            return true;
        };
        let mut able = true;
        let Self { known, unknown, .. } = self;
        let is_known = |file: &str| {
            let is = known.get(file).copied();
            if is.is_none() && unknown.len() < MOST_KNOWN && !unknown.iter().any(|one| one == file)
            {
                unknown.push(file.to_owned());
            }
            is == Some(true)
        };
        kept::PAGES.with(|pagemap| {
            maps::of_files(&text, is_known, |range| {
                let looked = pagemap::unchanged(pagemap.as_fd(), &range, |pages| {
                    // SAFETY: none that is in memory has been changed, in a mapping that cannot be written or is shared with the
                    // file: they hold what the file holds, and the system reads them again. The caller keeps both from changing.
                    // Refused where the program has them locked.
                    let _ = unsafe {
                        madvise(pages.start as *mut _, pages.len(), Advice::LinuxDontNeed)
                    };
                });
                able &= looked.is_ok();
            });
        });
        able
    }
}

/// What comes in `soon`, where `grown` bytes came in `passed`: no more than a few times as much, as what comes at once may be all.
fn growth(grown: u64, passed: Duration, soon: Duration) -> u64 {
    const MOST: u32 = 4;
    let passed = passed.max(soon / MOST).as_nanos();
    (u128::from(grown) * soon.as_nanos() / passed) as u64
}

/// Whether `file` is a regular file on a disk, and still what its path leads to: one in memory would only seem to leave it, and
/// what a device maps may not come back.
fn is_on_disk(file: &str) -> bool {
    // tmpfs, ramfs, hugetlbfs.
    const IN_MEMORY: [i64; 3] = [0x0102_1994, 0x8584_58f6, 0x9584_58f6];
    let Some((path, inode)) = maps::path_and_inode(file) else {
        return false;
    };
    let path = Path::new(path);
    let is_the_file =
        std::fs::metadata(path).is_ok_and(|file| file.is_file() && inode == file.ino());
    is_the_file && rustix::fs::statfs(path).is_ok_and(|system| !IN_MEMORY.contains(&system.f_type))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_soon_is_what_came_of_late() {
        let ms = Duration::from_millis;
        assert_eq!(growth(8 << 20, ms(2), ms(4)), 16 << 20);
        assert_eq!(growth(800, ms(400), ms(4)), 8);
        assert_eq!(growth(8 << 20, Duration::ZERO, ms(4)), 32 << 20);
        assert_eq!(growth(0, ms(1), ms(4)), 0);
    }
}
