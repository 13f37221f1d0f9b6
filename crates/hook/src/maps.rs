//! The process's address space, as the kernel lists it.

use rustix::fs::{Mode, OFlags};
use std::ops::Range;
use std::path::PathBuf;

/// One line of `/proc/self/maps`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) range: Range<usize>,
    pub(crate) executable: bool,
    /// What is written there others have, too, or the file.
    pub(crate) shared: bool,
    /// Where in the file it begins.
    pub(crate) offset: u64,
    /// Inode; 0 for memory without a file.
    pub(crate) inode: u64,
    /// The file, or a name in brackets.
    pub(crate) path: PathBuf,
}

impl Mapping {
    /// Memory of ours, made since the list was read.
    pub(crate) fn anonymous(range: Range<usize>) -> Self {
        Self {
            range,
            executable: false,
            shared: false,
            offset: 0,
            inode: 0,
            path: PathBuf::new(),
        }
    }
}

/// Reads the list.
///
/// # Errors
/// What opening or reading `/proc/self/maps` gave.
pub(crate) fn read() -> rustix::io::Result<Vec<Mapping>> {
    let text = read_file("/proc/self/maps")?;
    Ok(text.split(|&b| b == b'\n').filter_map(parse).collect())
}

/// The number of threads of this process.
pub(crate) fn threads() -> rustix::io::Result<usize> {
    let text = read_file("/proc/self/stat")?;
    // The name, in parentheses, may hold anything; the count is the 18th field after it.
    let after = text.rsplit(|&b| b == b')').next().unwrap_or(&[]);
    let field = after.split(|&b| b == b' ').nth(18).unwrap_or(&[]);
    Ok(std::str::from_utf8(field)
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(0))
}

pub(crate) fn read_file(path: &str) -> rustix::io::Result<Vec<u8>> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = Vec::with_capacity(64 << 10);
    loop {
        if text.len() == text.capacity() {
            text.reserve(text.len());
        }
        if rustix::io::read(&file, rustix::buffer::spare_capacity(&mut text))? == 0 {
            return Ok(text);
        }
    }
}

fn parse(line: &[u8]) -> Option<Mapping> {
    let line = std::str::from_utf8(line).ok()?;
    let mut rest = line;
    let mut field = || {
        let (head, tail) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = tail;
        head
    };
    let (start, end) = field().split_once('-')?;
    let permissions = field();
    let offset = field();
    let _device = field();
    let inode = field();
    Some(Mapping {
        range: usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?,
        executable: permissions.as_bytes().get(2) == Some(&b'x'),
        shared: permissions.ends_with('s'),
        offset: u64::from_str_radix(offset, 16).ok()?,
        inode: inode.parse().ok()?,
        path: PathBuf::from(rest.trim_start()),
    })
}

/// Addresses where `len` bytes are free, nearest to `around` first, all of them less than `reach` away from all of it.
pub(crate) fn gaps(
    maps: &[Mapping],
    around: &Range<usize>,
    len: usize,
    reach: usize,
) -> Vec<usize> {
    /// Below this the kernel gives nothing out.
    const LOWEST: usize = 1 << 16;
    /// The end of what a program may use.
    const HIGHEST: usize = 0x7fff_ffff_f000;
    let mut found = Vec::new();
    let mut below = LOWEST;
    let mut after_heap = false;
    for (start, end, heap) in maps
        .iter()
        .filter(|m| m.range.start < HIGHEST)
        .map(|m| (m.range.start, m.range.end, m.path.as_os_str() == "[heap]"))
        .chain([(HIGHEST, HIGHEST, false)])
    {
        if start >= below + len {
            found.push(start - len);
            // The heap grows upwards, into the gap above it.
            if !after_heap {
                found.push(below);
            }
        }
        below = end;
        after_heap = heap;
    }
    let furthest = |at: &usize| (at + len).max(around.end) - around.start.min(*at);
    found.retain(|at| furthest(at) < reach);
    found.sort_by_key(furthest);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_a_name_that_has_blanks() {
        let line =
            b"7f00-7f10 r-xp 00001000 08:02 123                        /opt/my lib/a.so (deleted)";
        let mapping = parse(line).expect("parsed");
        assert_eq!(mapping.range, 0x7f00..0x7f10);
        assert!(mapping.executable);
        assert_eq!((mapping.offset, mapping.inode), (0x1000, 123));
        assert_eq!(mapping.path, PathBuf::from("/opt/my lib/a.so (deleted)"));
    }

    #[test]
    fn this_process_is_listed() {
        let here = this_process_is_listed as fn() as usize;
        let maps = read().expect("readable");
        assert!(
            maps.iter()
                .any(|m| m.executable && m.inode != 0 && m.range.contains(&here))
        );
        assert!(threads().expect("readable") >= 1);
    }

    #[test]
    fn gaps_do_not_overlap_and_are_near() {
        let maps = read().expect("readable");
        let here = maps
            .iter()
            .find(|m| m.executable)
            .expect("some code")
            .range
            .clone();
        let found = gaps(&maps, &here, 1 << 16, 1 << 31);
        assert!(!found.is_empty());
        for at in found {
            assert!(
                maps.iter()
                    .all(|m| m.range.end <= at || m.range.start >= at + (1 << 16))
            );
            assert!((at + (1 << 16)).max(here.end) - at.min(here.start) < 1 << 31);
        }
    }
}
