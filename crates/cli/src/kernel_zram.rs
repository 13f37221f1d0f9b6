//! A zram swap device of the kernel, set up for a measurement and taken away again.
//!
//! The device's swap header carries the label `userswap:PID`. Whatever ends the process short of SIGKILL runs the
//! guard's `drop`; what a killed process left behind is recognised by its label and taken away by the next one.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::interrupt::{self, Hold};
use crate::os;
use crate::report::note;
use crate::size::{PAGE, human};
use userswap_sys::host;

const CONTROL: &str = "/sys/class/zram-control";
const LABEL: &str = "userswap:";

/// Above every other swap area, so that what is paged out goes here.
const PRIORITY: i16 = i16::MAX;

/// The kernel's compressors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Algorithm {
    /// The kernel's default
    LzoRle,
    /// The engine's own default
    Lz4,
}

impl Algorithm {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Algorithm::LzoRle => "lzo-rle",
            Algorithm::Lz4 => "lz4",
        }
    }
}

/// What the device holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Compressed bytes.
    pub(crate) stored_bytes: u64,
    /// Memory that holds them.
    pub(crate) memory_bytes: u64,
    /// The most that it ever was.
    pub(crate) most_memory_bytes: u64,
}

/// An active zram swap device; gone when dropped.
///
/// What was paged out to it comes back into memory then, which takes long: unmap first.
#[derive(Debug)]
pub(crate) struct KernelZram {
    number: u32,
    swapped_on: bool,
    // Both are released after `drop`, when nothing is left to clean up.
    _turn: Option<Turn>,
    _hold: Hold,
}

/// One device at a time on the whole host: with two of the same priority the kernel deals pages out to both.
#[derive(Debug)]
struct Turn {
    _locked: File,
}

impl Turn {
    /// Waits for it.
    fn take() -> anyhow::Result<Self> {
        let directory = File::open(CONTROL).with_context(|| format!("cannot open {CONTROL}"))?;
        loop {
            interrupt::check()?;
            match directory.try_lock() {
                Ok(()) => return Ok(Self { _locked: directory }),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("cannot lock {CONTROL}"));
                }
            }
        }
    }
}

impl KernelZram {
    /// Makes a device of `bytes`, compressing with `algorithm`, and switches swap on there.
    pub(crate) fn set_up(algorithm: Algorithm, bytes: u64) -> anyhow::Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "only root can set up a zram device"
        );
        ensure!(
            Path::new(CONTROL).exists(),
            "there is no {CONTROL}; try `modprobe zram`"
        );
        let turn = Turn::take()?;
        take_away_leftovers();
        let hold = Hold::new();
        let added =
            fs::read_to_string(format!("{CONTROL}/hot_add")).context("cannot add a zram device")?;
        let number = added
            .trim()
            .parse()
            .with_context(|| format!("cannot add a zram device: got {added:?}"))?;
        // From here on whatever fails takes the device away again.
        let mut zram = Self {
            number,
            swapped_on: false,
            _turn: Some(turn),
            _hold: hold,
        };
        zram.configure(algorithm, bytes)?;
        let device = zram.device();
        write_swap_header(&device, bytes)
            .with_context(|| format!("cannot write to {}", device.display()))?;
        os::swapon(&device, PRIORITY)
            .with_context(|| format!("cannot switch swap on at {}", device.display()))?;
        zram.swapped_on = true;
        Ok(zram)
    }

    /// What the device holds now.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        let path = self.attribute("mm_stat");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        parse_mm_stat(&text).with_context(|| format!("{} holds {text:?}", path.display()))
    }

    fn configure(&self, algorithm: Algorithm, bytes: u64) -> anyhow::Result<()> {
        let path = self.attribute("comp_algorithm");
        let known =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let known = known.replace(['[', ']'], "");
        let known: Vec<&str> = known.split_whitespace().collect();
        if !known.contains(&algorithm.name()) {
            bail!(
                "this kernel's zram has no {}; --kernel-algo can be one of: {}",
                algorithm.name(),
                known.join(" ")
            );
        }
        for (name, value) in [
            ("comp_algorithm", algorithm.name().to_owned()),
            ("disksize", bytes.to_string()),
        ] {
            fs::write(self.attribute(name), &value).with_context(|| {
                format!("cannot set {name} of /dev/zram{} to {value}", self.number)
            })?;
        }
        Ok(())
    }

    fn device(&self) -> PathBuf {
        PathBuf::from(format!("/dev/zram{}", self.number))
    }

    fn attribute(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/sys/block/zram{}/{name}", self.number))
    }

    fn take_away(&mut self) -> io::Result<()> {
        if self.swapped_on {
            patiently(|| os::swapoff(&self.device()))?;
            self.swapped_on = false;
        }
        patiently(|| fs::write(self.attribute("reset"), "1"))?;
        patiently(|| fs::write(format!("{CONTROL}/hot_remove"), self.number.to_string()))
    }
}

impl Drop for KernelZram {
    fn drop(&mut self) {
        if let Err(error) = self.take_away() {
            let number = self.number;
            note(format_args!(
                "cannot take /dev/zram{number} away: {error}; do it by hand: swapoff /dev/zram{number}; \
                 echo 1 >/sys/block/zram{number}/reset; echo {number} >{CONTROL}/hot_remove"
            ));
        }
    }
}

/// A remark when other swap is active, which takes what does not fit and disturbs.
pub(crate) fn note_other_swap() -> anyhow::Result<()> {
    for swap in host::swap_areas()? {
        note(format_args!(
            "other swap is active ({}, {}): the zram set up here gets the highest priority and is used first, but \
             figures are cleaner after `swapoff {0}`",
            swap.path,
            human(swap.size),
        ));
    }
    Ok(())
}

/// Repeats what a signal interrupts, and for two seconds what meets a device that somebody (udev, say) is looking at.
fn patiently(mut operation: impl FnMut() -> io::Result<()>) -> io::Result<()> {
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

fn write_swap_header(device: &Path, bytes: u64) -> anyhow::Result<()> {
    let last_page =
        u32::try_from(bytes / PAGE as u64 - 1).context("a swap area has less than 16T")?;
    let mut page = [0_u8; PAGE];
    page[header::VERSION..][..4].copy_from_slice(&1_u32.to_ne_bytes());
    page[header::LAST_PAGE..][..4].copy_from_slice(&last_page.to_ne_bytes());
    let label = format!("{LABEL}{}", std::process::id());
    page[header::LABEL][..label.len()].copy_from_slice(label.as_bytes());
    page[header::MAGIC].copy_from_slice(header::MAGIC_BYTES);
    let file = OpenOptions::new().write(true).open(device)?;
    file.write_all_at(&page, 0)?;
    Ok(file.sync_all()?)
}

/// The process whose label is on `device`.
fn owner(device: &Path) -> Option<u32> {
    let mut page = [0; PAGE];
    File::open(device).ok()?.read_exact_at(&mut page, 0).ok()?;
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

/// Takes away the devices of processes that were killed.
fn take_away_leftovers() {
    let Ok(blocks) = fs::read_dir("/sys/block") else {
        return;
    };
    for block in blocks.flatten() {
        let name = block.file_name();
        let Some(number) = name
            .to_str()
            .and_then(|name| name.strip_prefix("zram")?.parse().ok())
        else {
            continue;
        };
        let device = PathBuf::from(format!("/dev/zram{number}"));
        let Some(pid) = owner(&device) else { continue };
        if Path::new(&format!("/proc/{pid}")).exists() {
            continue;
        }
        let swapped_on = host::swap_areas()
            .is_ok_and(|areas| areas.iter().any(|area| device == Path::new(&area.path)));
        note(format_args!(
            "taking {} away, which a killed run (process {pid}) left behind",
            device.display()
        ));
        drop(KernelZram {
            number,
            swapped_on,
            _turn: None,
            _hold: Hold::new(),
        });
    }
}

fn parse_mm_stat(text: &str) -> Option<Usage> {
    let mut fields = text.split_whitespace().skip(1).map(str::parse);
    let mut next = || fields.next()?.ok();
    Some(Usage {
        stored_bytes: next()?,
        memory_bytes: next()?,
        most_memory_bytes: {
            let _limit = next()?;
            next()?
        },
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::*;
    use crate::content::{Content, Kind};
    use crate::memory::Memory;
    use crate::skip::skip;

    static SERIAL: Mutex<()> = Mutex::new(());

    /// A device, where this host lets us have one. While the guard lives no other test here makes one, so that numbers
    /// are not used again.
    pub(crate) fn device(test: &str) -> Option<(KernelZram, MutexGuard<'static, ()>)> {
        let serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
        match KernelZram::set_up(Algorithm::LzoRle, 16 << 20) {
            Ok(zram) => Some((zram, serial)),
            Err(error) if rustix::process::geteuid().is_root() && Path::new(CONTROL).exists() => {
                panic!("{error:#}")
            }
            Err(error) => {
                skip(test, &error.to_string());
                None
            }
        }
    }

    fn exists(number: u32) -> bool {
        Path::new(&format!("/sys/block/zram{number}")).exists()
    }

    fn swapped_on(number: u32) -> bool {
        let path = format!("/dev/zram{number}");
        host::swap_areas()
            .expect("swaps")
            .iter()
            .any(|area| area.path == path)
    }

    #[test]
    fn a_device_holds_what_is_paged_out_and_goes_when_dropped() {
        let Some((zram, _serial)) =
            device("a_device_holds_what_is_paged_out_and_goes_when_dropped")
        else {
            return;
        };
        let number = zram.number;
        assert!(exists(number) && swapped_on(number));
        assert_eq!(owner(&zram.device()), Some(std::process::id()));
        {
            let mut memory = Memory::kernel(4 << 20).expect("memory");
            Content::new(Kind::Text, 1).fill(0, memory.bytes());
            memory.page_out(0..memory.len()).expect("paged out");
            assert!(memory.resident_pages().expect("residency") < memory.pages() / 2);
        }
        let usage = zram.usage().expect("usage");
        assert!(usage.memory_bytes >= usage.stored_bytes, "{usage:?}");
        drop(zram);
        assert!(!exists(number) && !swapped_on(number));
    }

    #[test]
    fn a_panic_takes_the_device_away() {
        let Some((zram, _serial)) = device("a_panic_takes_the_device_away") else {
            return;
        };
        let number = zram.number;
        let panicked = std::panic::catch_unwind(move || {
            let _zram = zram;
            panic!("on purpose");
        });
        assert!(panicked.is_err() && !exists(number) && !swapped_on(number));
    }

    #[test]
    fn a_set_up_that_fails_leaves_nothing() {
        let test = "a_set_up_that_fails_leaves_nothing";
        let Some((zram, _serial)) = device(test) else {
            return;
        };
        drop(zram);
        // One page is no swap area: the kernel refuses it after the device has been made.
        let error = KernelZram::set_up(Algorithm::LzoRle, PAGE as u64).expect_err("no swap area");
        let said = format!("{error:#}");
        let (_, device) = said
            .split_once("cannot switch swap on at /dev/zram")
            .expect(&said);
        let (number, _) = device.split_once(':').expect(&said);
        let number = number.parse().expect(&said);
        assert!(!exists(number) && !swapped_on(number), "{said}");
    }

    #[test]
    fn mm_stat() {
        let text = "  8192  1024  4096  0  8192  0  0  0  0\n";
        assert_eq!(
            parse_mm_stat(text),
            Some(Usage {
                stored_bytes: 1024,
                memory_bytes: 4096,
                most_memory_bytes: 8192
            })
        );
        assert_eq!(parse_mm_stat("1 2"), None);
    }
}
