//! A swap area of the kernel on storage, set up for a measurement and taken away again: on a block device, or a file in a
//! folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rustix::fs::statfs;
use userswap::FileSpec;
use userswap_sys::host;

use crate::interrupt::Hold;
use crate::kernel_zram;
use crate::ram_disk::RamDisk;
use crate::report::note;
use crate::size::{PAGE, human};
use crate::swap_area::{self, Turn, has_our_name, open_alone, patiently};

/// File systems in memory, by their numbers for statfs: tmpfs and ramfs.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// How the numbers of loop devices begin.
const LOOP: &str = "7:";

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
                !is_on_loop(&sysfs(device.rdev())),
                "{} is a loop device or on one, where the kernel may wait for the memory that it is to free; name a folder \
                 in memory (such as /dev/shm), and both swap to a device in memory",
                path.display()
            );
            ensure!(
                file.options.overwrite,
                "swapping to {} destroys its content: add overwrite=on",
                path.display()
            );
            take_away_leftovers(&Turn::take()?, None);
            let has = patiently(|| open_alone(path, OpenOptions::new().read(true)))
                .and_then(|mut device| device.seek(io::SeekFrom::End(0)))
                .map_err(|error| match error.kind() {
                    io::ErrorKind::ResourceBusy => anyhow::anyhow!(
                        "{} is in use: it is mounted or swapped to, or somebody has it for itself",
                        path.display()
                    ),
                    _ => anyhow::Error::new(error)
                        .context(format!("cannot look at {}", path.display())),
                })?;
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
        crate::memory::must_fit_with(bytes, area(bytes))?;
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
        let stat = sysfs(fs::metadata(path)?.rdev()).join("stat");
        let text =
            fs::read_to_string(&stat).with_context(|| format!("cannot read {}", stat.display()))?;
        sectors_written(&text)
            .map(|sectors| Some(sectors * 512))
            .with_context(|| format!("{} holds {text:?}", stat.display()))
    }
}

/// Where the kernel tells about a block device.
fn sysfs(device: u64) -> PathBuf {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

/// Whether what is written to the block device at `sysfs` goes to a loop device.
fn is_on_loop(sysfs: &Path) -> bool {
    // What sysfs does not show is none of a loop device.
    let Ok(device) = sysfs.canonicalize() else {
        return false;
    };
    if device.join("partition").exists() {
        return device.parent().is_some_and(is_on_loop);
    }
    let number = fs::read_to_string(device.join("dev")).unwrap_or_default();
    let below = fs::read_dir(device.join("slaves"));
    number.starts_with(LOOP)
        || below.is_ok_and(|below| below.flatten().any(|below| is_on_loop(&below.path())))
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
    whose: swap_area::Storage,
    is_file: bool,
    is_on: bool,
    // All are released after `drop`, when nothing is left to clean up.
    _file: Option<File>,
    _turn: Option<Turn>,
    _hold: Hold,
}

impl KernelSwap {
    /// Makes an area for `bytes` of pages on `storage`, and switches swap on there.
    pub(crate) fn set_up(storage: &Storage, bytes: u64) -> anyhow::Result<Self> {
        let turn = Turn::take()?;
        take_away_leftovers(
            &turn,
            match storage {
                Storage::Folder(folder) => Some(folder),
                _ => None,
            },
        );
        let hold = Hold::new();
        let (path, file, whose) = match storage {
            Storage::Device(path) => (path.clone(), None, swap_area::Storage::Given),
            Storage::Memory(disk) => (disk.path().to_path_buf(), None, swap_area::Storage::Made),
            Storage::Folder(folder) => {
                let made = swap_area::make_file(&folder.canonicalize()?, area(bytes));
                let (path, file) =
                    made.with_context(|| format!("cannot make a file in {}", folder.display()))?;
                (path, Some(file), swap_area::Storage::Made)
            }
        };
        // From here on whatever fails takes away what is there by then.
        let mut swap = Self {
            path,
            whose,
            is_file: file.is_some(),
            is_on: false,
            _file: file,
            _turn: None,
            _hold: hold,
        };
        swap_area::switch_on(&turn, &swap.path, area(bytes), whose)?;
        swap.is_on = true;
        swap._turn = Some(turn);
        Ok(swap)
    }

    fn take_away(&mut self) -> io::Result<()> {
        if self.is_on {
            swap_area::switch_off(&self.path)?;
            self.is_on = false;
            if self.whose == swap_area::Storage::Given && !self.is_file {
                swap_area::give_back(&self.path)?;
            }
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
            let by_hand = match (self.is_on, self.is_file) {
                (true, _) => "swapoff",
                (false, true) => "rm",
                (false, false) => "wipefs --all",
            };
            note(format_args!(
                "cannot take the swap area {path} away: {error}; do it by hand: {by_hand} {path}"
            ));
        }
    }
}

/// Takes away the areas of processes that were killed, wherever they are on, and what they left in `folder`.
fn take_away_leftovers(turn: &Turn, folder: Option<&Path>) {
    let on = host::swap_areas().unwrap_or_default();
    let on: Vec<PathBuf> = on.into_iter().map(|area| area.path.into()).collect();
    let take_away = |areas: Vec<PathBuf>, whose| {
        swap_area::take_away_leftovers(turn, areas, whose, |path, is_on| KernelSwap {
            is_file: has_our_name(&path),
            path,
            whose,
            is_on,
            _file: None,
            _turn: None,
            _hold: Hold::new(),
        });
    };
    // On a device of the user's, which stays.
    take_away(on.clone(), swap_area::Storage::Given);
    let mut areas = on;
    if let Some(Ok(entries)) = folder.map(fs::read_dir) {
        let entries = entries.flatten().map(|entry| entry.path());
        areas.extend(entries.filter(|path| has_our_name(path)));
    }
    // A zram device that was made has more to it.
    areas.retain(|path| kernel_zram::number(path).is_none());
    areas.sort();
    areas.dedup();
    take_away(areas, swap_area::Storage::Made);
}
