//! Which memory of the program can be swapped: its private anonymous mappings that it reads and writes.

use std::ops::Range;

/// Mappings shorter than this are not worth a registration, in bytes: libc keeps what threads need to run in
/// some of them.
pub(crate) const LEAST: usize = 128 << 10;

/// One line of `/proc/self/maps`.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    range: Range<usize>,
    permissions: &'a str,
    inode: &'a str,
    /// Its device, inode and path, as they stand there: what tells a file from every other.
    file: &'a str,
    path: &'a str,
}

fn parse(line: &str) -> Option<Line<'_>> {
    let file = line.splitn(4, ' ').nth(3)?;
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let (_offset, _device) = (fields.next()?, fields.next()?);
    let inode = fields.next()?;
    let path = fields.next().unwrap_or("").trim_start();
    let hex = |text| usize::from_str_radix(text, 16).ok();
    Some(Line {
        range: hex(start)?..hex(end)?,
        permissions,
        inode,
        file,
        path,
    })
}

/// Every mapping of `maps` but the kernel's own.
pub(crate) fn all(maps: &str, mut found: impl FnMut(Range<usize>)) {
    let lines = maps.lines().filter_map(parse);
    for line in lines.filter(|line| !line.path.starts_with("[v")) {
        found(line.range);
    }
}

/// The mapping that `address` is in.
pub(crate) fn containing(maps: &str, address: usize) -> Option<Range<usize>> {
    let mut lines = maps.lines().filter_map(parse);
    let found = lines.find(|line| line.range.contains(&address))?;
    Some(found.range)
}

/// What may be done with memory that can be swapped: in heaps of runtimes that hold code, too (SBCL, Chez Scheme), all.
const WRITABLE: &str = "rw-p";
const EXECUTABLE: &str = "rwxp";

/// Whether some memory may be both written and executed.
pub(crate) fn has_executable(maps: &str) -> bool {
    maps.contains(EXECUTABLE)
}

/// The ranges of `maps`, the content of `/proc/self/maps`, that can be swapped. `program`: the path of the program
/// itself. `stacks`: addresses in stacks that must stay.
pub(crate) fn swappable(
    maps: &str,
    program: &str,
    stacks: &[usize],
    mut found: impl FnMut(Range<usize>),
) {
    // The file whose mapping ends where the next one begins: what follows a library's data is its zeroed data, which
    // libc and we run on.
    let (mut file, mut file_end) = ("", 0);
    for line in maps.lines().filter_map(parse) {
        let zeroed_data = line.inode == "0" && line.range.start == file_end;
        if line.inode != "0" || zeroed_data {
            file_end = line.range.end;
        }
        if line.inode != "0" {
            file = line.path;
        }
        let kind = line.path.is_empty() || line.path == "[heap]" || line.path.starts_with("[anon");
        let writable = [WRITABLE, EXECUTABLE]
            .iter()
            .any(|access| line.permissions.starts_with(access));
        if !writable || line.inode != "0" || !kind {
            continue;
        }
        if zeroed_data && file != program && line.path != "[heap]" {
            continue;
        }
        if line.range.len() < LEAST || stacks.iter().any(|stack| line.range.contains(stack)) {
            continue;
        }
        found(line.range);
    }
}

/// Mappings of files whose pages hold what the file holds, or tell that they do not: private ones that cannot be written,
/// and shared ones. `is_on_disk` is asked about their files, as [`path_and_inode`] takes them apart.
pub(crate) fn of_files(
    maps: &str,
    mut is_on_disk: impl FnMut(&str) -> bool,
    mut found: impl FnMut(Range<usize>),
) {
    for line in maps.lines().filter_map(parse) {
        let special =
            !line.path.starts_with('/') || SPECIAL.iter().any(|s| line.path.starts_with(s));
        if line.inode == "0" || special || line.range.len() < LEAST_OF_FILE {
            continue;
        }
        let unwritable = line.permissions.as_bytes()[1] == b'-';
        let shared = line.permissions.ends_with('s');
        if (unwritable || shared) && is_on_disk(line.file) {
            found(line.range);
        }
    }
}

/// The path and the inode of a file that [`of_files`] asked about.
pub(crate) fn path_and_inode(file: &str) -> Option<(&str, u64)> {
    let mut fields = file.splitn(3, ' ').skip(1);
    let inode = fields.next()?.parse().ok()?;
    Some((fields.next()?.trim_start(), inode))
}

/// Paths of what is no file on a disk.
const SPECIAL: [&str; 4] = ["/dev/", "/memfd:", "/SYSV", "/proc/"];

/// Shorter mappings of files are left, in bytes.
const LEAST_OF_FILE: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
555555554000-555555556000 r--p 00000000 fe:00 1234 /usr/bin/program
555555556000-555555560000 rw-p 00002000 fe:00 1234 /usr/bin/program
555555560000-555555660000 rw-p 00000000 00:00 0
555555700000-555555900000 rw-p 00000000 00:00 0 [heap]
7fff00000000-7fff00100000 rw-p 00000000 00:00 0
7fff00200000-7fff00201000 rw-p 00000000 00:00 0
7fff10000000-7fff10100000 ---p 00000000 00:00 0
7fff10100000-7fff10200000 rw-s 00000000 00:00 0 /dev/zero (deleted)
7fff10200000-7fff10300000 rw-p 00000000 fe:00 99 /tmp/private file
7fff20000000-7fff20100000 r-xp 00000000 fe:00 77 /usr/lib/libc.so.6
7fff20100000-7fff20200000 rw-p 00100000 fe:00 77 /usr/lib/libc.so.6
7fff20200000-7fff20300000 rw-p 00000000 00:00 0
7fff20400000-7fff20500000 rwxp 00000000 00:00 0
7fff30000000-7fff30100000 rw-p 00000000 00:00 0 [anon:arena]
7fff40000000-7fff40100000 rw-p 00000000 00:00 0
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0 [stack]
";

    #[test]
    fn only_anonymous_private_memory_is_found() {
        let mut found = Vec::new();
        swappable(MAPS, "/usr/bin/program", &[0x7fff_4000_1000], |range| {
            found.push(range);
        });
        assert_eq!(
            found,
            [
                // The program's own zeroed data, its heap, a mapping, one that may be executed, a named one.
                0x5555_5556_0000..0x5555_5566_0000,
                0x5555_5570_0000..0x5555_5590_0000,
                0x7fff_0000_0000..0x7fff_0010_0000,
                0x7fff_2040_0000..0x7fff_2050_0000,
                0x7fff_3000_0000..0x7fff_3010_0000,
            ]
        );
    }

    #[test]
    fn files_that_cannot_have_been_changed_are_found() {
        let maps = "\
555555554000-555555576000 r--p 00000000 fe:00 1234 /usr/bin/program
555555576000-555555596000 rw-p 00002000 fe:00 1234 /usr/bin/program
7fff10000000-7fff10100000 r--s 00000000 fe:00 9 /data/on a disk
7fff10100000-7fff10200000 rw-s 00000000 00:01 7 /tmp/in memory
7fff10200000-7fff10300000 rw-s 00000000 00:01 8 /dev/shm/in memory
7fff10300000-7fff10400000 r--p 00000000 00:01 8 /memfd:x (deleted)
7fff20000000-7fff20100000 r-xp 00000000 fe:00 77 /usr/lib/libc.so.6
7fff20100000-7fff20101000 r--p 00000000 fe:00 77 /usr/lib/libc.so.6
7fff30000000-7fff30100000 r--p 00000000 00:00 0
";
        let mut found = Vec::new();
        of_files(
            maps,
            |file| {
                let (path, inode) = path_and_inode(file).expect("a path and an inode");
                assert!(inode > 0, "{file}");
                !path.starts_with("/tmp")
            },
            |range| found.push(range),
        );
        assert_eq!(
            found,
            [
                0x5555_5555_4000..0x5555_5557_6000,
                0x7fff_1000_0000..0x7fff_1010_0000,
                0x7fff_2000_0000..0x7fff_2010_0000,
            ]
        );
    }

    #[test]
    fn lines_that_make_no_sense_are_passed_over() {
        for line in ["", "zz-11 rw-p 0 0 0", "1000-2000", "nonsense"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
