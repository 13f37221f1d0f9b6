//! A swap area of the kernel on storage, set up for a measurement and taken away again: on a block device, or a file in a
//! folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rustix::fs::{FallocateFlags, fallocate, statfs};
use userswap::FileSpec;
use userswap_sys::host;

use crate::interrupt::Hold;
use crate::ram_disk::RamDisk;
use crate::report::note;
use crate::size::{PAGE, human};
use crate::swap_area::{self, Turn, left_by};

/// What files that the kernel swaps to are called, before the process's number.
const FILE_NAME: &str = ".userswap-kernel-";

/// File systems in memory, by their numbers for statfs: tmpfs and ramfs.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// The major number of loop devices.
const LOOP: u32 = 7;

/// Bytes of an area for `pages` bytes of pages. While it is not half full the kernel leaves a page its place when it is
/// read, and need not write it again.
fn area(pages: u64) -> u64 {
    2 * pages + (1 << 20)
}

/// Where both swap in turn, the engine and the kernel.
#[derive(Debug)]
pub(crate) enum Storage {
    /// A block device.
    Device(PathBuf),
    /// A block device in memory, made for this.
    Memory(RamDisk),
    /// Files in this folder.
    Folder(PathBuf),
}

impl Storage {
    /// Of the kind that `file` names, for `bytes` of pages. The kernel cannot swap to a file in memory: there both get a
    /// block device in memory.
    pub(crate) fn like(file: &FileSpec, bytes: u64) -> anyhow::Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "only root can switch swap on"
        );
        let path = &file.path;
        let found = fs::metadata(path).ok();
        if let Some(device) = found
            .as_ref()
            .filter(|found| found.file_type().is_block_device())
        {
            ensure!(
                rustix::fs::major(device.rdev()) != LOOP,
                "{} is a loop device, where the kernel may wait for the memory that it is to free; name a folder in memory \
                 (such as /dev/shm), and both swap to a device in memory",
                path.display()
            );
            ensure!(
                file.options.overwrite,
                "swapping to {} destroys its content: add overwrite=on",
                path.display()
            );
            let has = File::open(path)
                .and_then(|mut device| device.seek(io::SeekFrom::End(0)))
                .with_context(|| format!("cannot look at {}", path.display()))?;
            ensure!(
                has >= area(bytes),
                "{} has {}, and {} are needed; use a smaller --size",
                path.display(),
                human(has),
                human(area(bytes))
            );
            return Ok(Self::Device(path.clone()));
        }
        let folder = match path.parent() {
            _ if found.is_some_and(|found| found.is_dir()) => path,
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let system =
            statfs(folder).with_context(|| format!("cannot look at {}", folder.display()))?;
        if !IN_MEMORY.contains(&(system.f_type as u64)) {
            return Ok(Self::Folder(folder.to_path_buf()));
        }
        crate::memory::must_fit(bytes + area(bytes))?;
        RamDisk::new(area(bytes)).map(Self::Memory)
    }

    fn device(&self) -> Option<&Path> {
        match self {
            Self::Device(path) => Some(path),
            Self::Memory(disk) => Some(disk.path()),
            Self::Folder(_) => None,
        }
    }

    /// What the engine is to swap to, given what was asked for.
    pub(crate) fn for_engine(&self, file: &FileSpec) -> FileSpec {
        let mut file = file.clone();
        if let Some(device) = self.device() {
            file.path = device.to_path_buf();
            file.options.overwrite = true;
        }
        file
    }

    /// Bytes written so far to the device, by whoever; none for a folder, whose device is anybody's.
    pub(crate) fn written_bytes(&self) -> anyhow::Result<Option<u64>> {
        let Some(path) = self.device() else {
            return Ok(None);
        };
        let path = path.canonicalize()?;
        let name = path.file_name().context("a device has a name")?;
        let stat = Path::new("/sys/class/block").join(name).join("stat");
        let text =
            fs::read_to_string(&stat).with_context(|| format!("cannot read {}", stat.display()))?;
        sectors_written(&text)
            .map(|sectors| Some(sectors * 512))
            .with_context(|| format!("{} holds {text:?}", stat.display()))
    }
}

fn sectors_written(stat: &str) -> Option<u64> {
    stat.split_whitespace().nth(6)?.parse().ok()
}

/// Bytes of pages that the kernel has written to any swap area so far.
pub(crate) fn swapped_out_bytes() -> anyhow::Result<u64> {
    const PATH: &str = "/proc/vmstat";
    let text = fs::read_to_string(PATH).with_context(|| format!("cannot read {PATH}"))?;
    let pages = text.lines().find_map(|line| line.strip_prefix("pswpout "));
    let pages: u64 = pages
        .and_then(|pages| pages.parse().ok())
        .with_context(|| format!("{PATH} has no pswpout"))?;
    Ok(pages * PAGE as u64)
}

/// An active swap area; gone when dropped.
///
/// What was paged out to it comes back into memory then, which takes long: unmap first.
#[derive(Debug)]
pub(crate) struct KernelSwap {
    path: PathBuf,
    is_file: bool,
    is_on: bool,
    // Both are released after `drop`, when nothing is left to clean up.
    _turn: Option<Turn>,
    _hold: Hold,
}

impl KernelSwap {
    /// Makes an area for `bytes` of pages on `storage`, and switches swap on there.
    pub(crate) fn set_up(storage: &Storage, bytes: u64) -> anyhow::Result<Self> {
        let turn = Turn::take()?;
        take_away_leftovers(storage);
        let (path, is_file) = match storage {
            Storage::Device(path) => (path.clone(), false),
            Storage::Memory(disk) => (disk.path().to_path_buf(), false),
            Storage::Folder(folder) => {
                let name = format!("{FILE_NAME}{}", std::process::id());
                (folder.canonicalize()?.join(name), true)
            }
        };
        // From here on whatever fails takes away what is there by then.
        let mut swap = Self {
            path,
            is_file,
            is_on: false,
            _turn: Some(turn),
            _hold: Hold::new(),
        };
        if is_file {
            swap.make_file(area(bytes))
                .with_context(|| format!("cannot make {}", swap.path.display()))?;
        }
        swap_area::switch_on(&swap.path, area(bytes))?;
        swap.is_on = true;
        Ok(swap)
    }

    fn make_file(&self, bytes: u64) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.path)?;
        Ok(fallocate(&file, FallocateFlags::empty(), 0, bytes)?)
    }

    fn take_away(&mut self) -> io::Result<()> {
        if self.is_on {
            swap_area::switch_off(&self.path)?;
            self.is_on = false;
        }
        if !self.is_file {
            return Ok(());
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

impl Drop for KernelSwap {
    fn drop(&mut self) {
        if let Err(error) = self.take_away() {
            let path = self.path.display();
            note(format_args!(
                "cannot take the swap area {path} away: {error}; do it by hand: swapoff {path}"
            ));
        }
    }
}

/// Takes away the areas of processes that were killed, wherever they are on, and what they left where this one will be.
fn take_away_leftovers(storage: &Storage) {
    let on = host::swap_areas().unwrap_or_default();
    let on = on.into_iter().map(|area| PathBuf::from(area.path));
    // A zram device has more to it, see `kernel_zram`.
    let mut left: Vec<PathBuf> = on
        .filter(|path| !path.starts_with("/dev") || path.to_string_lossy().starts_with("/dev/loop"))
        .collect();
    if let Storage::Folder(folder) = storage
        && let Ok(entries) = fs::read_dir(folder)
    {
        let entries = entries.flatten().map(|entry| entry.path());
        left.extend(entries.filter(|path| is_named_as_ours(path)));
    }
    left.sort();
    left.dedup();
    for path in left {
        let Some(pid) = left_by(&path) else { continue };
        note(format_args!(
            "taking {} away, which a killed run (process {pid}) left behind",
            path.display()
        ));
        drop(KernelSwap {
            is_on: swap_area::is_on(&path),
            is_file: is_named_as_ours(&path),
            path,
            _turn: None,
            _hold: Hold::new(),
        });
    }
}

fn is_named_as_ours(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(FILE_NAME.as_bytes()))
}
