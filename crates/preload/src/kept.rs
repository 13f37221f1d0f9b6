//! Files about this process that are read again and again: kept open, with high numbers. Opening them anew each time
//! would take the lowest free number from under the program, which may count on getting it.

use std::fs::File;
use std::ops::Deref;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::fs::{Mode, OFlags};
use userswap_sys::{PAGE_SIZE, descriptor};

/// A file, open for as long as the process lives.
pub(crate) struct Kept {
    path: &'static str,
    /// -1: not open.
    number: AtomicI32,
}

/// Bytes of address space for a text: for as many mappings as the system lets a process have.
const LONGEST_TEXT: usize = 16 << 20;

/// The folder that they are in.
static PROC: Kept = Kept::new("");
/// Sizes in pages.
pub(crate) static SIZES: Kept = Kept::new("self/statm");
/// The mappings.
pub(crate) static MAPS: Kept = Kept::new("self/maps");
/// What each page is.
pub(crate) static PAGES: Kept = Kept::new("self/pagemap");
/// Sums over all mappings.
pub(crate) static SUMS: Kept = Kept::new("self/smaps_rollup");

const ALL: [&Kept; 4] = [&SIZES, &MAPS, &PAGES, &SUMS];

/// What `look` does with the folder of all processes; `None`: it is not open.
pub(crate) fn with_proc<R>(look: impl FnOnce(&File) -> R) -> Option<R> {
    PROC.with(look)
}

impl Kept {
    const fn new(path: &'static str) -> Self {
        Self {
            path,
            number: AtomicI32::new(-1),
        }
    }

    /// Opens it, behind a change of the root folder, too. In a child of fork once more: what was inherited is about the parent.
    fn open(&self) {
        let file = PROC.with(|proc| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            rustix::fs::openat(proc, self.path, flags, Mode::empty()).ok()
        });
        let number = file
            .flatten()
            .map_or(-1, |file| descriptor::move_up(file).into_raw_fd());
        // Relaxed, throughout: a number; the thread that reads is started later.
        let before = self.number.swap(number, Ordering::Relaxed);
        if before >= 0 {
            // SAFETY: ours, and nobody uses it any more: the thread that did is the parent's.
            drop(unsafe { File::from_raw_fd(before) });
        }
    }

    /// What `look` finds in it; `None`: it is not open.
    pub(crate) fn with<R>(&self, look: impl FnOnce(&File) -> R) -> Option<R> {
        let number = self.number.load(Ordering::Relaxed);
        if number < 0 {
            return None;
        }
        // SAFETY: open, and only looked at here: it is not closed when this goes.
        let file = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(number) });
        debug_assert_eq!(file.as_raw_fd(), number);
        Some(look(&file))
    }

    /// All of what it says now, however long.
    pub(crate) fn read_all(&self) -> Option<Text> {
        let text = self.with(|file| {
            // One mapping from the first line to the last: a smaller one, outgrown by a long text, would stand in it and be gone.
            let spare = SPARE.try_lock().ok().and_then(|mut spare| spare.take());
            let mut text = spare.unwrap_or_else(|| Vec::with_capacity(LONGEST_TEXT));
            let mut part = [0; PAGE_SIZE];
            loop {
                let len = file.read_at(&mut part, text.len() as u64).ok()?;
                if len == 0 {
                    return Some(text);
                }
                text.extend_from_slice(&part[..len]);
            }
        })??;
        String::from_utf8(text).ok().map(Text)
    }

    /// What it says now, in a page at most.
    pub(crate) fn read(&self) -> Option<String> {
        let mut text = [0; PAGE_SIZE];
        let len = self.with(|file| file.read_at(&mut text, 0))?.ok()?;
        String::from_utf8(text[..len].to_vec()).ok()
    }
}

/// Memory for the next text. Addresses for our memory are not used twice, so there is none for each.
static SPARE: Mutex<Option<Vec<u8>>> = Mutex::new(None);

/// A text of as many bytes keeps its memory, for the next.
const SPARED: usize = 1 << 20;

/// A text that was read.
#[derive(Default)]
pub(crate) struct Text(String);

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        let mut text = std::mem::take(&mut self.0).into_bytes();
        if text.len() <= SPARED
            && text.capacity() == LONGEST_TEXT
            && let Ok(mut spare) = SPARE.try_lock()
        {
            text.clear();
            *spare = Some(text);
        }
    }
}

/// Opens all of them.
pub(crate) fn open_all() {
    if PROC.number.load(Ordering::Relaxed) < 0
        && let Ok(proc) = File::open("/proc")
    {
        let number = descriptor::move_up(proc.into()).into_raw_fd();
        PROC.number.store(number, Ordering::Relaxed);
    }
    for kept in ALL {
        kept.open();
    }
}

/// The numbers in use.
pub(crate) fn numbers() -> [i32; ALL.len() + 1] {
    [&PROC, &SIZES, &MAPS, &PAGES, &SUMS].map(|kept| kept.number.load(Ordering::Relaxed))
}

/// What the process has in memory, in bytes.
pub(crate) fn resident_bytes() -> Option<u64> {
    resident_and_file_bytes().map(|(resident, _)| resident)
}

/// What the process has in memory, and what of it belongs to files or is shared memory, in bytes.
pub(crate) fn resident_and_file_bytes() -> Option<(u64, u64)> {
    let text = SIZES.read()?;
    let mut pages = text.split(' ').skip(1).map(|pages| pages.parse::<u64>());
    let (resident, of_files) = (pages.next()?.ok()?, pages.next()?.ok()?);
    Some((resident * PAGE_SIZE as u64, of_files * PAGE_SIZE as u64))
}

/// What the process has in memory, pages that it shares counted by parts, and what of it belongs to files or is shared memory, in
/// bytes.
pub(crate) fn proportional_bytes() -> Option<(u64, u64)> {
    let text = SUMS.read()?;
    let bytes = |name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().split(' ').next()?.parse().ok()?;
        Some(kib << 10)
    };
    let (all, anonymous) = (bytes("Pss:")?, bytes("Pss_Anon:")?);
    Some((all, all.saturating_sub(anonymous)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_open_tells_the_truth_each_time() {
        open_all();
        let before = resident_bytes().expect("a number");
        // Far more than the tests beside this one have and give back meanwhile.
        let more = vec![1_u8; 128 << 20];
        let after = resident_bytes().expect("a number");
        assert!(after >= before + (64 << 20), "{before} {after}");
        let (all, files) = proportional_bytes().expect("numbers");
        assert!(all > (30 << 20) + files && files > 0, "{all} {files}");
        drop(more);
        let first = numbers();
        open_all();
        assert!(first.iter().chain(&numbers()).all(|&number| number >= 0));
        assert!(resident_bytes().is_some());
        let maps = MAPS.read_all().expect("all lines");
        assert!(maps.len() > PAGE_SIZE && maps.ends_with('\n'), "{}", &*maps);
        assert!(maps.contains("[stack]") && maps.contains("-"));
    }
}
