//! Swap areas of the kernel for measurements: what a killed process left behind is known for what it is.
//!
//! No process is asked for by its number: a number is used again, and means nothing in another PID namespace. Who has an area
//! holds a lock that ends with it, whatever ends it:
//!
//! | area | the lock | left behind |
//! |---|---|---|
//! | file | on the file | by its name one of ours, and not locked |
//! | block device | [`Turn`] | its first page names the lock that whoever looks holds itself |
//!
//! A container may have a sysfs of its own, hence another lock: what was made under one is left alone by who has the other.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fs::{FallocateFlags, fallocate};

use crate::interrupt;
use crate::os;
use crate::report::note;
use crate::size::PAGE;
use userswap_sys::host;

/// What people see, before the process's number.
const LABEL: &str = "userswap:";

/// What files that the kernel swaps to are called, before a number.
const FILE_NAME: &str = ".userswap-kernel-";

/// Above every other swap area, so that what is paged out goes here.
const PRIORITY: i16 = i16::MAX;

/// Locked by who has an area: there wherever there is anything to swap to.
const BLOCKS: &str = "/sys/block";

/// How long another's turn is waited for without a word.
const PATIENCE: Duration = Duration::from_secs(1);

/// One swap area at a time among all who see the same sysfs: with two of the same priority the kernel deals pages out to both.
/// Each network namespace may have a sysfs of its own; measurements in several of them disturb each other.
#[derive(Debug)]
pub(crate) struct Turn {
    locked: File,
}

impl Turn {
    /// Waits for it.
    pub(crate) fn take() -> anyhow::Result<Self> {
        let directory = File::open(BLOCKS).with_context(|| format!("cannot open {BLOCKS}"))?;
        let (start, mut said) = (Instant::now(), false);
        while !is_locked(&directory).with_context(|| format!("cannot lock {BLOCKS}"))? {
            interrupt::check()?;
            if !said && start.elapsed() >= PATIENCE {
                said = true;
                note(format_args!(
                    "waiting for another measurement of the kernel's swap, which has {BLOCKS} locked"
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { locked: directory })
    }
}

/// Locks `file`, unless somebody else has; gives whether it did.
fn is_locked(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whose the storage is that an area lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    /// Made for the measurement: it is taken away with the area.
    Made,
    /// The user's.
    Given,
}

impl Storage {
    fn name(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Given => "given",
        }
    }
}

/// What the first page of an area is to say of whose it is.
fn claim(turn: &Turn, storage: Storage) -> io::Result<String> {
    // A file system that somebody has a file of keeps its number, so nobody else's lock has the same name.
    let lock = turn.locked.metadata()?;
    Ok(format!(
        "userswap {} under {}:{}",
        storage.name(),
        lock.dev(),
        lock.ino()
    ))
}

/// Makes the `bytes` bytes at `path`, a block device or a file, a swap area, and switches it on.
pub(crate) fn switch_on(
    turn: &Turn,
    path: &Path,
    bytes: u64,
    storage: Storage,
) -> anyhow::Result<()> {
    let claim = claim(turn, storage)?;
    write_swap_header(path, bytes, &claim)
        .with_context(|| format!("cannot write to {}", path.display()))?;
    // Who used the device before may still be letting go of it.
    let on = patiently(|| os::swapon(path, PRIORITY));
    if on.is_err() && storage == Storage::Given {
        // What is told of is why it is not on.
        let _ = give_back(path);
    }
    on.with_context(|| format!("cannot switch swap on at {}", path.display()))
}

/// Switches swap off at `path`.
pub(crate) fn switch_off(path: &Path) -> io::Result<()> {
    patiently(|| os::swapoff(path))
}

/// Clears the first page of what was given, where swap is off: should its owner swap there, that would pass for left behind.
pub(crate) fn give_back(path: &Path) -> io::Result<()> {
    let file = patiently(|| open_alone(path, OpenOptions::new().write(true)))?;
    file.write_all_at(&[0; PAGE], 0)?;
    file.sync_all()
}

/// Whether swap is on at `path`.
pub(crate) fn is_on(path: &Path) -> bool {
    host::swap_areas().is_ok_and(|areas| areas.iter().any(|area| path == Path::new(&area.path)))
}

/// A file for a swap area, in `folder`; locked while it is open.
pub(crate) fn make_file(folder: &Path, bytes: u64) -> io::Result<(PathBuf, File)> {
    make_file_with(is_ours, folder, bytes)
}

/// The same, where `is_ours` locks it.
fn make_file_with(
    mut is_ours: impl FnMut(&File, &Path) -> io::Result<bool>,
    folder: &Path,
    bytes: u64,
) -> io::Result<(PathBuf, File)> {
    for number in 0_u32.. {
        let path = folder.join(format!("{FILE_NAME}{number}"));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let file = match options.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            opened => opened?,
        };
        let made = is_ours(&file, &path).and_then(|is_ours| {
            if is_ours {
                fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
            }
            Ok(is_ours)
        });
        match made {
            Ok(true) => return Ok((path, file)),
            // Before it was locked somebody took it for left behind, and takes it away.
            Ok(false) => {}
            // Not every file system has locks, or room.
            Err(error) => {
                fs::remove_file(&path)?;
                return Err(error);
            }
        }
    }
    unreachable!("a folder has fewer files")
}

/// Locks `file`, opened at `path`; gives whether it did, and the file is still there. Then it stays there: only who has it
/// locked takes it away.
fn is_ours(file: &File, path: &Path) -> io::Result<bool> {
    if !is_locked(file)? {
        return Ok(false);
    }
    // Who had it before may have taken it away, and another may have made one of that name since.
    let identity = |found: fs::Metadata| (found.dev(), found.ino());
    match fs::symlink_metadata(path) {
        Ok(there) => Ok(identity(there) == identity(file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether `path` is called as the files that are made for swap areas.
pub(crate) fn has_our_name(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str);
    let number = name.and_then(|name| name.strip_prefix(FILE_NAME));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

/// The area at `path`, if it was left by a process that is gone, on `storage`. As long as this is open nobody else has it.
fn left_behind(turn: &Turn, path: &Path, storage: Storage) -> Option<File> {
    let area = File::open(path).ok()?;
    let is_left = if has_our_name(path) {
        is_ours(&area, path).ok()?
    } else {
        // Who made this claim had the turn that we have now.
        claim_of(&area)? == claim(turn, storage).ok()?
    };
    is_left.then_some(area)
}

/// Takes away those of `areas` that were left behind on `storage`: drops what `guard` makes of an area, and of whether it is
/// on.
pub(crate) fn take_away_leftovers<G>(
    turn: &Turn,
    areas: impl IntoIterator<Item = PathBuf>,
    storage: Storage,
    guard: impl Fn(PathBuf, bool) -> G,
) {
    for path in areas {
        let Some(locked) = left_behind(turn, &path, storage) else {
            continue;
        };
        // A device that is open cannot be taken away.
        let _locked = has_our_name(&path).then_some(locked);
        note(format_args!(
            "taking {} away, which a killed run left behind",
            path.display()
        ));
        let is_on = is_on(&path);
        drop(guard(path, is_on));
    }
}

/// Repeats what a signal interrupts, and for two seconds what meets a device that somebody (udev, say) is looking at.
pub(crate) fn patiently<T>(mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut tries = 0;
    loop {
        match operation() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < 100 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

/// Where things are in the first page of a swap area (version 1).
mod header {
    pub(super) const VERSION: usize = 1024;
    pub(super) const LAST_PAGE: usize = 1028;
    pub(super) const LABEL: std::ops::Range<usize> = 1052..1068;
    /// Of no meaning to the kernel.
    pub(super) const PADDING: std::ops::Range<usize> = 1068..1536;
    pub(super) const MAGIC: std::ops::Range<usize> = 4086..4096;
    pub(super) const MAGIC_BYTES: &[u8] = b"SWAPSPACE2";
}

fn write_swap_header(path: &Path, bytes: u64, claim: &str) -> anyhow::Result<()> {
    let last_page =
        u32::try_from(bytes / PAGE as u64 - 1).context("a swap area has less than 16T")?;
    let mut page = [0_u8; PAGE];
    page[header::VERSION..][..4].copy_from_slice(&1_u32.to_ne_bytes());
    page[header::LAST_PAGE..][..4].copy_from_slice(&last_page.to_ne_bytes());
    let label = format!("{LABEL}{}", std::process::id());
    page[header::LABEL][..label.len()].copy_from_slice(label.as_bytes());
    page[header::PADDING][..claim.len()].copy_from_slice(claim.as_bytes());
    page[header::MAGIC].copy_from_slice(header::MAGIC_BYTES);
    let file = patiently(|| open_alone(path, OpenOptions::new().write(true)))?;
    file.write_all_at(&page, 0)?;
    Ok(file.sync_all()?)
}

/// Opens `path`; a block device only if nothing is mounted there, and nobody swaps there or has it for itself.
pub(crate) fn open_alone(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    if fs::metadata(path)?.file_type().is_block_device() {
        options.custom_flags(libc::O_EXCL);
    }
    options.open(path)
}

/// What the first page of an area says of whose it is.
fn claim_of(area: &File) -> Option<String> {
    let mut page = [0; PAGE];
    area.read_exact_at(&mut page, 0).ok()?;
    if &page[header::MAGIC] != header::MAGIC_BYTES {
        return None;
    }
    let claim = std::str::from_utf8(&page[header::PADDING]).ok()?;
    Some(claim.trim_end_matches('\0').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_is_left_when_nobody_has_it_and_never_another_locks() {
        let folder = tempfile::tempdir().expect("a folder");
        // Not `Turn::take`: other tests hold that.
        let turn = |name: &str| Turn {
            locked: File::create(folder.path().join(name)).expect("a file"),
        };
        let (ours, another) = (turn("ours"), turn("another"));
        let is_left =
            |turn: &Turn, path: &Path, storage| left_behind(turn, path, storage).is_some();
        let device = folder.path().join("device");
        fs::write(&device, vec![0; 4 * PAGE]).expect("written");
        assert!(!is_left(&ours, &device, Storage::Given), "no area");
        let of = claim(&ours, Storage::Given).expect("a claim");
        write_swap_header(&device, 4 * PAGE as u64, &of).expect("written");
        assert!(is_left(&ours, &device, Storage::Given));
        assert!(!is_left(&ours, &device, Storage::Made), "the user's");
        assert!(!is_left(&another, &device, Storage::Given));

        let (path, file) = make_file(folder.path(), 1 << 20).expect("a file");
        assert!(has_our_name(&path) && !has_our_name(&device));
        assert!(!is_left(&another, &path, Storage::Made), "in use");
        let (second, _) = make_file(folder.path(), 1 << 20).expect("a file");
        assert_ne!(path, second);
        drop(file);
        assert!(is_left(&another, &path, Storage::Made), "let go of");
        give_back(&device).expect("cleared");
        assert!(!is_left(&ours, &device, Storage::Given), "given back");
    }

    #[test]
    fn a_file_that_was_taken_away_is_not_ours_when_it_is_locked() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(format!("{FILE_NAME}0"));
        fs::write(&path, "").expect("a file");
        let opened = || File::open(&path).expect("opened");
        let (first, second) = (opened(), opened());
        assert!(is_ours(&first, &path).expect("a lock"));
        assert!(!is_ours(&second, &path).expect("a lock"), "locked");
        fs::remove_file(&path).expect("removed");
        drop(first);
        assert!(!is_ours(&second, &path).expect("a lock"), "not there");
        fs::write(&path, "").expect("a file");
        assert!(!is_ours(&second, &path).expect("a lock"), "another's");
    }

    #[test]
    fn where_files_have_no_locks_none_is_made() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut tries = 0;
        let no_locks = |_: &File, _: &Path| {
            tries += 1;
            assert_eq!(tries, 1, "another file");
            Err(io::Error::from_raw_os_error(libc::ENOLCK))
        };
        let error = make_file_with(no_locks, folder.path(), 1 << 20).expect_err("no locks");
        assert_eq!(error.raw_os_error(), Some(libc::ENOLCK));
        assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 0);
        // What cannot be locked at all: a descriptor for nothing but its path.
        let path = folder.path().join("file");
        fs::write(&path, "").expect("a file");
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_PATH);
        let file = options.open(&path).expect("opened");
        let error = is_ours(&file, &path).expect_err("no lock");
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}
