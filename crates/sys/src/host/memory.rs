//! How much memory there is, where it swaps to already, and how much of it this process holds.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::files::{HostError, Reading, field, read, unforeseen, unreadable};
use crate::{Errno, PAGE_SIZE};

/// The machine's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemInfo {
    /// All there is.
    pub total: u64,
    /// What could be had without swapping, by the kernel's estimate.
    pub available: u64,
}

/// Reads the machine's memory.
pub fn memory() -> Reading<MemInfo> {
    const PATH: &str = "/proc/meminfo";
    let text = read(PATH)?;
    let of = |key| {
        field(&text, key)
            .and_then(kib)
            .ok_or_else(|| unforeseen(PATH, key))
    };
    Ok(MemInfo {
        total: of("MemTotal")?,
        available: of("MemAvailable")?,
    })
}

/// Bytes of a value such as `1234 kB`.
fn kib(value: &str) -> Option<u64> {
    value
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// A swap area of the kernel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwapArea {
    /// The device or file.
    pub path: String,
    /// `partition` or `file`.
    pub kind: String,
    /// Bytes.
    pub size: u64,
    /// Bytes in use.
    pub used: u64,
    /// Higher is used first.
    pub priority: i32,
}

/// The kernel's swap areas in use.
pub fn swap_areas() -> Reading<Vec<SwapArea>> {
    const PATH: &str = "/proc/swaps";
    let text = read(PATH)?;
    // The first line names the columns.
    text.lines()
        .skip(1)
        .map(|line| parse_swap_area(line).ok_or_else(|| unforeseen(PATH, line)))
        .collect()
}

/// From the right, since a path may hold spaces.
fn parse_swap_area(line: &str) -> Option<SwapArea> {
    let (line, priority) = line.trim_end().rsplit_once(char::is_whitespace)?;
    let (line, used) = line.trim_end().rsplit_once(char::is_whitespace)?;
    let (line, size) = line.trim_end().rsplit_once(char::is_whitespace)?;
    let (path, kind) = line.trim_end().rsplit_once(char::is_whitespace)?;
    Some(SwapArea {
        path: path.trim_end().to_owned(),
        kind: kind.to_owned(),
        size: size.parse::<u64>().ok()?.checked_mul(1024)?,
        used: used.parse::<u64>().ok()?.checked_mul(1024)?,
        priority: priority.parse().ok()?,
    })
}

/// Whether the kernel has compressed RAM disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zram {
    /// The driver is there: more devices can be added by root.
    pub control: bool,
    /// How many devices there are.
    pub devices: usize,
}

/// Looks for the kernel's zram.
pub fn zram() -> Reading<Zram> {
    let blocks = Path::new("/sys/block");
    let entries = std::fs::read_dir(blocks).map_err(|error| unreadable(blocks, &error))?;
    let devices = entries
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"zram"))
        .count();
    Ok(Zram {
        control: Path::new("/sys/class/zram-control").exists(),
        devices,
    })
}

/// How much memory this process holds (its resident set), in bytes.
pub fn resident_set_bytes() -> Reading<u64> {
    const PATH: &str = "/proc/self/statm";
    let text = read(PATH)?;
    // Pages: size, resident, ...
    let pages = text
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages
        .map(|pages| pages * PAGE_SIZE as u64)
        .ok_or_else(|| unforeseen(PATH, &text))
}

/// How many bytes of `len` at `addr` have a frame now, by the page tables. Whole pages.
pub fn resident_bytes(addr: usize, len: usize) -> Reading<u64> {
    const PATH: &str = "/proc/self/pagemap";
    /// Bytes a page in the file.
    const ENTRY: usize = 8;
    /// Bit 63 of an entry: present. (62: swapped by the kernel. Anyone may read these of its own memory.)
    const PRESENT: u64 = 1 << 63;
    let failed = |error| unreadable(Path::new(PATH), &error);
    let pagemap = File::open(PATH).map_err(failed)?;
    let mut chunk = [0u8; 512 * ENTRY];
    let (mut page, end) = (addr / PAGE_SIZE, (addr + len).div_ceil(PAGE_SIZE));
    let mut present = 0;
    while page < end {
        let want = ((end - page) * ENTRY).min(chunk.len());
        let got = pagemap
            .read_at(&mut chunk[..want], (page * ENTRY) as u64)
            .map_err(failed)?;
        if got < ENTRY {
            return Err(HostError::Unreadable {
                path: PATH.to_owned(),
                errno: Errno::FAULT,
            });
        }
        let (entries, _) = chunk[..got].as_chunks::<ENTRY>();
        present += entries
            .iter()
            .filter(|entry| u64::from_ne_bytes(**entry) & PRESENT != 0)
            .count();
        page += entries.len();
    }
    Ok((present * PAGE_SIZE) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Mapping;

    #[test]
    fn swap_lines() {
        let line = "/dev/zram0                              partition\t8388604\t\t1024\t\t-2";
        let area = parse_swap_area(line).expect("parses");
        assert_eq!(
            (area.path.as_str(), area.kind.as_str()),
            ("/dev/zram0", "partition")
        );
        assert_eq!(
            (area.size, area.used, area.priority),
            (8388604 * 1024, 1024 * 1024, -2)
        );
        let spaced = parse_swap_area("/my swap file file 4 0 5").expect("parses");
        assert_eq!(spaced.path, "/my swap file");
        assert_eq!(parse_swap_area("/dev/zram0 partition"), None);
    }

    #[test]
    fn this_machine() {
        let memory = memory().expect("meminfo");
        assert!(memory.available <= memory.total && memory.total > 1 << 20);
        swap_areas().expect("swaps");
        zram().expect("block devices");
        assert_eq!(kib("12 kB"), Some(12288));
        assert_eq!(kib("12"), None);
    }

    #[test]
    fn residency_by_page_tables_agrees_with_mincore() {
        const PAGES: usize = 1200;
        let mapping = Mapping::reserve(PAGES * PAGE_SIZE, PAGE_SIZE).expect("reserve");
        mapping.advise_no_huge().expect("no huge");
        assert_eq!(resident_bytes(mapping.base(), mapping.len()), Ok(0));
        let before = resident_set_bytes().expect("statm");
        mapping
            .populate(100 * PAGE_SIZE..1100 * PAGE_SIZE)
            .expect("populate");
        assert_eq!(
            resident_bytes(mapping.base(), mapping.len()),
            Ok(1000 * PAGE_SIZE as u64)
        );
        assert_eq!(mapping.resident_pages(0..mapping.len()), Ok(1000));
        // The kernel counts in batches per CPU; half will have arrived.
        assert!(resident_set_bytes().expect("statm") >= before + 500 * PAGE_SIZE as u64);
    }
}
