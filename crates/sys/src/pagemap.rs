//! What pages of a process are, by its `/proc/PID/pagemap`: a file's (`PAGEMAP_SCAN`, Linux 6.7), or its alone.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

use crate::{Errno, PAGE_SIZE};

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug, Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    /// Where the walk ended: told by the system.
    walk_end: u64,
    regions: u64,
    regions_len: u64,
    max_pages: u64,
    inverted: u64,
    all_of: u64,
    any_of: u64,
    told: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

const SCAN: Opcode = opcode::read_write::<Scan>(b'f', 16);

/// A page of a file, or of shared memory; not one that the process has changed in a private mapping.
const IS_FILE: u64 = 1 << 2;
const IS_PRESENT: u64 = 1 << 3;
const IS_SWAPPED: u64 = 1 << 4;

/// Runs of changed pages looked up at a time.
const RUNS: usize = 64;

/// Tells `found` the parts of `range`, a mapping of a file, in which the process has changed nothing: what is in memory there is
/// the file's. They are few, as changed pages are. `pagemap`: the process's own.
///
/// # Errors
/// What the system said: [`Errno::NOTTY`] before Linux 6.7.
pub fn unchanged(
    pagemap: BorrowedFd<'_>,
    range: &Range<usize>,
    mut found: impl FnMut(Range<usize>),
) -> Result<(), Errno> {
    let mut at = range.start;
    while at < range.end {
        let mut regions = [Region::default(); RUNS];
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            start: at as u64,
            end: range.end as u64,
            regions: regions.as_mut_ptr() as u64,
            regions_len: RUNS as u64,
            inverted: IS_FILE,
            all_of: IS_FILE,
            any_of: IS_PRESENT | IS_SWAPPED,
            ..Scan::default()
        };
        // SAFETY: the request is for this structure, and the regions it points to are as many as it says.
        unsafe { ioctl(pagemap, Updater::<SCAN, Scan>::new(&mut scan)) }?;
        let end = scan.walk_end as usize;
        if end <= at {
            break;
        }
        // Those that were not filled in are empty.
        for changed in regions.iter().take_while(|region| region.end > 0) {
            if at < changed.start as usize {
                found(at..changed.start as usize);
            }
            at = changed.end as usize;
        }
        if at < end {
            found(at..end);
        }
        at = end;
    }
    Ok(())
}

/// Bits of an entry: a page in memory, and one that is mapped nowhere else (Linux 4.2).
const ENTRY_PRESENT: u64 = 1 << 63;
const ENTRY_EXCLUSIVE: u64 = 1 << 56;

/// Which of 64 pages from `addr` on are in memory and in no other process's, as a mask. `pagemap`: the process's own.
///
/// *Fault path.*
///
/// # Errors
/// What the system said.
pub fn own_pages(pagemap: BorrowedFd<'_>, addr: usize) -> Result<u64, Errno> {
    const ENTRY: usize = size_of::<u64>();
    let mut entries = [0; 64 * ENTRY];
    let got = rustix::io::pread(pagemap, &mut entries, (addr / PAGE_SIZE * ENTRY) as u64)?;
    let own = ENTRY_PRESENT | ENTRY_EXCLUSIVE;
    let (whole, _) = entries[..got].as_chunks::<ENTRY>();
    Ok(whole.iter().enumerate().fold(0, |mask, (index, entry)| {
        let is_own = u64::from_ne_bytes(*entry) & own == own;
        mask | u64::from(is_own) << index
    }))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

    use super::*;

    #[test]
    fn what_a_child_of_fork_has_too_is_not_own() {
        let pagemap = File::open("/proc/self/pagemap").expect("it is there");
        let len = 64 * PAGE_SIZE;
        let flags = MapFlags::PRIVATE;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping, at addresses of the kernel's choice.
        let start = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, access, flags) };
        let start = start.expect("a mapping").cast::<u8>();
        let touch = |page: usize| {
            // SAFETY: in the mapping, which this test alone uses.
            unsafe { start.add(page * PAGE_SIZE).write_volatile(1) };
        };
        let own = || own_pages(pagemap.as_fd(), start as usize);
        [0, 5, 63].into_iter().for_each(touch);
        assert_eq!(own(), Ok(1 << 63 | 1 << 5 | 1));
        // SAFETY: the child only waits for its end.
        let child = unsafe { libc::fork() };
        if child == 0 {
            loop {
                // SAFETY: waits for a signal.
                unsafe { libc::pause() };
            }
        }
        let shared = own();
        touch(5);
        let copied = own();
        let mut status = 0;
        // SAFETY: ends the child just made, and waits for it.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, &mut status, 0);
        }
        assert_eq!((shared, copied), (Ok(0), Ok(1 << 5)));
        assert_eq!(own(), Ok(1 << 63 | 1 << 5 | 1), "nobody else's again");
        // SAFETY: nobody uses it any more.
        unsafe { munmap(start.cast(), len) }.expect("unmapped");
    }

    /// More pages than are looked up at a time, changed ones and others in turn.
    #[test]
    fn changed_pages_of_a_private_mapping_are_not_the_files() {
        const PAGES: usize = 6 * RUNS + 3;
        let pagemap = File::open("/proc/self/pagemap").expect("it is there");
        let program = File::open("/proc/self/exe").expect("it is there");
        let len = PAGES * PAGE_SIZE;
        // SAFETY: a fresh mapping of at least as many bytes of a file as this program has.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
                &program,
                0,
            )
        }
        .expect("a mapping");
        let range = start as usize..start as usize + len;
        let is_changed = |page: &usize| page % 3 == 1;
        for page in 0..PAGES {
            // SAFETY: in the mapping, which this test alone uses.
            let at = unsafe { start.cast::<u8>().add(page * PAGE_SIZE) };
            if is_changed(&page) {
                // SAFETY: as above.
                unsafe { at.write_volatile(1) };
            } else if page % 2 == 0 {
                // SAFETY: as above.
                let _ = unsafe { at.read_volatile() };
            }
        }
        let mut parts = Vec::new();
        let walked = unchanged(pagemap.as_fd(), &range, |run| {
            parts
                .extend((run.start - range.start) / PAGE_SIZE..(run.end - range.start) / PAGE_SIZE);
        });
        if walked == Err(Errno::NOTTY) {
            println!("SKIPPED: PAGEMAP_SCAN is not there before Linux 6.7");
            assert!(std::env::var_os("CI").is_none(), "needed by .ci/run");
            return;
        }
        assert_eq!(walked, Ok(()));
        let unchanged: Vec<_> = (0..PAGES).filter(|page| !is_changed(page)).collect();
        assert_eq!(parts, unchanged);
        // SAFETY: nobody uses it any more.
        unsafe { munmap(start, len) }.expect("unmapped");
    }
}
