//! Swap areas of the kernel for measurements: switched on with a label, `userswap:PID`, so that what a killed process left
//! behind is known for what it is.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::interrupt;
use crate::os;
use crate::report::note;
use crate::size::PAGE;
use userswap_sys::host;

const LABEL: &str = "userswap:";

/// What files that the kernel swaps to are called, before the process's number.
const FILE_NAME: &str = ".userswap-kernel-";

/// Above every other swap area, so that what is paged out goes here.
const PRIORITY: i16 = i16::MAX;

/// Locked by who has an area: there wherever there is anything to swap to.
const BLOCKS: &str = "/sys/block";

/// One swap area at a time on the whole host: with two of the same priority the kernel deals pages out to both.
#[derive(Debug)]
pub(crate) struct Turn {
    _locked: File,
}

impl Turn {
    /// Waits for it.
    pub(crate) fn take() -> anyhow::Result<Self> {
        let directory = File::open(BLOCKS).with_context(|| format!("cannot open {BLOCKS}"))?;
        loop {
            interrupt::check()?;
            match directory.try_lock() {
                Ok(()) => return Ok(Self { _locked: directory }),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("cannot lock {BLOCKS}"));
                }
            }
        }
    }
}

/// Makes the `bytes` bytes at `path`, a block device or a file, a swap area, and switches it on.
pub(crate) fn switch_on(path: &Path, bytes: u64) -> anyhow::Result<()> {
    write_swap_header(path, bytes)
        .with_context(|| format!("cannot write to {}", path.display()))?;
    // Who used the device before may still be letting go of it.
    patiently(|| os::swapon(path, PRIORITY))
        .with_context(|| format!("cannot switch swap on at {}", path.display()))
}

/// Switches swap off at `path`.
pub(crate) fn switch_off(path: &Path) -> io::Result<()> {
    patiently(|| os::swapoff(path))
}

/// Whether swap is on at `path`.
pub(crate) fn is_on(path: &Path) -> bool {
    host::swap_areas().is_ok_and(|areas| areas.iter().any(|area| path == Path::new(&area.path)))
}

/// The name of the file that this process makes a swap area.
pub(crate) fn file_name() -> String {
    format!("{FILE_NAME}{}", std::process::id())
}

/// The process whose file for a swap area is called as `path` is.
pub(crate) fn named_after(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix(FILE_NAME)?.parse().ok()
}

/// Takes away those of `areas` whose process is gone: drops what `guard` makes of an area, and of whether it is on.
pub(crate) fn take_away_leftovers<G>(
    areas: impl IntoIterator<Item = PathBuf>,
    guard: impl Fn(PathBuf, bool) -> G,
) {
    for path in areas {
        // A file has its name before it has a label.
        let Some(pid) = named_after(&path).or_else(|| owner(&path)) else {
            continue;
        };
        if Path::new(&format!("/proc/{pid}")).exists() {
            continue;
        }
        note(format_args!(
            "taking {} away, which a killed run (process {pid}) left behind",
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
    pub(super) const MAGIC: std::ops::Range<usize> = 4086..4096;
    pub(super) const MAGIC_BYTES: &[u8] = b"SWAPSPACE2";
}

fn write_swap_header(path: &Path, bytes: u64) -> anyhow::Result<()> {
    let last_page =
        u32::try_from(bytes / PAGE as u64 - 1).context("a swap area has less than 16T")?;
    let mut page = [0_u8; PAGE];
    page[header::VERSION..][..4].copy_from_slice(&1_u32.to_ne_bytes());
    page[header::LAST_PAGE..][..4].copy_from_slice(&last_page.to_ne_bytes());
    let label = format!("{LABEL}{}", std::process::id());
    page[header::LABEL][..label.len()].copy_from_slice(label.as_bytes());
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

/// The process whose label is on the swap area at `path`.
pub(crate) fn owner(path: &Path) -> Option<u32> {
    let mut page = [0; PAGE];
    File::open(path).ok()?.read_exact_at(&mut page, 0).ok()?;
    if &page[header::MAGIC] != header::MAGIC_BYTES {
        return None;
    }
    let label = std::str::from_utf8(&page[header::LABEL]).ok()?;
    label
        .trim_end_matches('\0')
        .strip_prefix(LABEL)?
        .parse()
        .ok()
}
