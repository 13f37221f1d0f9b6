//! A zram swap device of the kernel, set up for a measurement and taken away again.
//!
//! Whatever ends the process short of SIGKILL runs the guard's `drop`; what a killed process left behind is recognised by
//! its swap header (see `swap_area`) and taken away by the next one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use crate::interrupt::Hold;
use crate::report::note;
use crate::size::human;
use crate::swap_area::{self, Storage, Turn, patiently};
use userswap_sys::host;

const CONTROL: &str = "/sys/class/zram-control";

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
        take_away_leftovers(&turn);
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
            _turn: None,
            _hold: hold,
        };
        zram.configure(algorithm, bytes)?;
        let device = zram.device();
        swap_area::switch_on(&turn, &device, bytes, Storage::Made)?;
        zram.swapped_on = true;
        zram._turn = Some(turn);
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
            swap_area::switch_off(&self.device())?;
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
            "other swap is active ({}, {}): the area set up here gets the highest priority and is used first, but \
             figures are cleaner after `swapoff {0}`",
            swap.path,
            human(swap.size),
        ));
    }
    Ok(())
}

/// Takes away the devices that were made by processes that were killed.
fn take_away_leftovers(turn: &Turn) {
    let Ok(blocks) = fs::read_dir("/sys/block") else {
        return;
    };
    let devices = blocks
        .flatten()
        .map(|block| Path::new("/dev").join(block.file_name()));
    swap_area::take_away_leftovers(
        turn,
        devices.filter(|device| number(device).is_some()),
        Storage::Made,
        |device, swapped_on| KernelZram {
            number: number(&device).expect("a zram device"),
            swapped_on,
            _turn: None,
            _hold: Hold::new(),
        },
    );
}

/// The number of a zram device.
pub(crate) fn number(device: &Path) -> Option<u32> {
    let number = device.to_str()?.strip_prefix("/dev/zram")?;
    number.parse().ok()
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
    use crate::size::PAGE;
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
