//! Anonymous memory: reserving address space, advising the kernel about it, giving frames back, filling in advance.

use std::ops::Range;

use rustix::mm::{
    Advice, MapFlags, MprotectFlags, MsyncFlags, ProtFlags, madvise, mmap_anonymous, mprotect,
    msync, munmap,
};
use thiserror::Error;

use crate::inject::{self, Call};
use crate::{Errno, PAGE_SIZE, own, place};

/// Why a mapping could not be made or changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MappingError {
    /// The kernel gave no address space.
    #[error(
        "cannot reserve {len} bytes of address space: {errno}; see `ulimit -v` and vm.max_map_count"
    )]
    Reserve {
        /// Bytes asked for.
        len: usize,
        /// The kernel's reason.
        errno: Errno,
    },
    /// A length of 0, one that is not whole pages, or an alignment that is no power of two of at least a page.
    #[error(
        "cannot reserve {len} bytes aligned to {align}: both must be whole pages, the alignment a power of two"
    )]
    Shape {
        /// Bytes asked for.
        len: usize,
        /// Alignment asked for.
        align: usize,
    },
    /// A range that is not inside the mapping, or not whole pages.
    #[error("range {start:#x}..{end:#x} is not whole pages inside a mapping of {len:#x} bytes")]
    Range {
        /// First byte, from the start of the mapping.
        start: usize,
        /// One past the last byte.
        end: usize,
        /// Length of the mapping.
        len: usize,
    },
    /// The kernel refused the advice, or the access.
    #[error("{advice} on {len} bytes at {addr:#x} refused: {errno}")]
    Advise {
        /// The advice, by its constant's name; or the call.
        advice: &'static str,
        /// First address.
        addr: usize,
        /// Bytes.
        len: usize,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The kernel did not say which pages are present.
    #[error("cannot read which of {len} bytes at {addr:#x} are resident: {errno}")]
    Residency {
        /// First address.
        addr: usize,
        /// Bytes.
        len: usize,
        /// The kernel's reason.
        errno: Errno,
    },
}

/// A private anonymous mapping, unmapped when dropped.
///
/// The mapping hands out addresses, not references: who makes references from them vouches that nothing discards, moves
/// or unmaps the memory under them. That is why its own operations are safe to call.
#[derive(Debug)]
pub struct Mapping {
    base: usize,
    len: usize,
}

impl Mapping {
    /// Reserves `len` bytes, readable and writable, at a multiple of `align`.
    ///
    /// Address space only: frames come with the first touch, and no swap or commit limit is charged (`MAP_NORESERVE`),
    /// since the point is to reserve more than there is memory.
    pub fn reserve(len: usize, align: usize) -> Result<Self, MappingError> {
        let shape = MappingError::Shape { len, align };
        if len == 0
            || !len.is_multiple_of(PAGE_SIZE)
            || !align.is_power_of_two()
            || align < PAGE_SIZE
        {
            return Err(shape);
        }
        // mmap aligns to a page by itself; beyond that, ask for more and give back both ends.
        let asked = len.checked_add(align - PAGE_SIZE).ok_or(shape)?;
        // SAFETY: a hint without MAP_FIXED: the kernel picks addresses that nothing uses.
        let got = unsafe {
            mmap_anonymous(
                place::hint(asked),
                asked,
                // Until it is noted: somebody may be looking for memory of the program's, which can be written.
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .map_err(|errno| MappingError::Reserve { len: asked, errno })? as usize;
        let base = got.next_multiple_of(align);
        let whole = Mapping { base, len };
        for (start, end) in [(got, base), (base + len, got + asked)] {
            if start < end {
                // SAFETY: a part of the mapping just made, outside what is handed out; nobody knows of it.
                let unmapped = unsafe { munmap(start as *mut _, end - start) };
                unmapped.map_err(|errno| MappingError::Reserve { len: asked, errno })?;
            }
        }
        own::note(&whole.addresses());
        let usable = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the mapping just made, which nobody uses yet.
        unsafe { mprotect(base as *mut _, len, usable) }
            .map_err(|errno| MappingError::Reserve { len: asked, errno })?;
        Ok(whole)
    }

    /// The first address.
    #[inline]
    pub fn base(&self) -> usize {
        self.base
    }

    /// The first address, as a pointer.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base as *mut u8
    }

    /// Bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The addresses it covers.
    #[inline]
    pub fn addresses(&self) -> Range<usize> {
        self.base..self.base + self.len
    }

    /// Whether `addr` is inside.
    #[inline]
    pub fn contains(&self, addr: usize) -> bool {
        // One comparison: an address below the base wraps to something huge.
        addr.wrapping_sub(self.base) < self.len
    }

    /// Base pages only: a huge page would have to be split by the first page taken out of it.
    pub fn advise_no_huge(&self) -> Result<(), MappingError> {
        self.advise(0..self.len, Advice::LinuxNoHugepage, "MADV_NOHUGEPAGE")
    }

    /// Huge pages where the kernel has them.
    pub fn advise_huge(&self) -> Result<(), MappingError> {
        self.advise(0..self.len, Advice::LinuxHugepage, "MADV_HUGEPAGE")
    }

    /// Not copied by fork: a child finds these addresses unmapped instead of sharing the frames, which MOVE would refuse.
    pub fn dont_fork(&self) -> Result<(), MappingError> {
        self.advise(0..self.len, Advice::LinuxDontFork, "MADV_DONTFORK")
    }

    /// Gives the frames of `range` back (offsets from the base). What was there is gone: the next touch finds a zero page
    /// or, where registered with userfaultfd, faults.
    ///
    /// *Fault path.*
    pub fn discard(&self, range: Range<usize>) -> Result<(), MappingError> {
        self.advise(range, Advice::LinuxDontNeed, "MADV_DONTNEED")
    }

    /// Lets `range` (offsets from the base) be executed beside being read and written, or no longer. What is there stays.
    ///
    /// *Fault path.*
    pub fn set_executable(
        &self,
        range: Range<usize>,
        executable: bool,
    ) -> Result<(), MappingError> {
        self.check(&range)?;
        let (addr, len) = (self.base + range.start, range.len());
        let mut access = MprotectFlags::READ | MprotectFlags::WRITE;
        access.set(MprotectFlags::EXEC, executable);
        // SAFETY: inside this mapping; it can be read and written before and after.
        unsafe { mprotect(addr as *mut _, len, access) }.map_err(|errno| MappingError::Advise {
            advice: "mprotect",
            addr,
            len,
            errno,
        })
    }

    /// Gives every page of `range` (offsets from the base) a frame of its own, keeping what is there.
    ///
    /// Where registered with userfaultfd this *faults* like a system call would: do it before.
    pub fn populate(&self, range: Range<usize>) -> Result<(), MappingError> {
        self.advise(range, Advice::LinuxPopulateWrite, "MADV_POPULATE_WRITE")
    }

    /// How many pages of `range` (offsets from the base) are present. For tests and statistics: it allocates.
    pub fn resident_pages(&self, range: Range<usize>) -> Result<usize, MappingError> {
        self.check(&range)?;
        resident_pages(self.base + range.start, range.len())
    }

    fn check(&self, range: &Range<usize>) -> Result<(), MappingError> {
        let aligned = range.start.is_multiple_of(PAGE_SIZE) && range.end.is_multiple_of(PAGE_SIZE);
        if aligned && range.start <= range.end && range.end <= self.len {
            return Ok(());
        }
        Err(MappingError::Range {
            start: range.start,
            end: range.end,
            len: self.len,
        })
    }

    fn advise(
        &self,
        range: Range<usize>,
        advice: Advice,
        name: &'static str,
    ) -> Result<(), MappingError> {
        self.check(&range)?;
        let (addr, len) = (self.base + range.start, range.len());
        let call = match advice {
            Advice::LinuxDontNeed => Call::Discard,
            _ => Call::Advise,
        };
        inject::whole(call)
            // SAFETY: inside this mapping, which only hands out addresses (see the type): no reference of ours is
            // invalidated.
            .and_then(|()| unsafe { madvise(addr as *mut _, len, advice) })
            .map_err(|errno| MappingError::Advise {
                advice: name,
                addr,
                len,
                errno,
            })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Not to be taken for the program's once it is forgotten. Refused only where the table of mappings is full.
        // SAFETY: made by `reserve`; whoever kept an address vouched to stop using it.
        let _ = unsafe { mprotect(self.base as *mut _, self.len, MprotectFlags::empty()) };
        own::forget(&self.addresses());
        // SAFETY: as above, and unmapped nowhere else.
        let unmapped = unsafe { munmap(self.base as *mut _, self.len) };
        // Only a full map table (vm.max_map_count) refuses, when a neighbour had merged with it: the range leaks then.
        debug_assert!(unmapped.is_ok(), "munmap: {unmapped:?}");
    }
}

/// Gives the frames of a range back that some [`Mapping`] or the program itself mapped, as [`Mapping::discard`] does.
///
/// *Fault path.*
///
/// # Safety
/// What the range holds is needed by nobody: it is the caller's, or its owner has asked for this.
pub unsafe fn discard(addr: usize, len: usize) -> Result<(), Errno> {
    // SAFETY: that nobody needs the contents is the caller's part.
    unsafe { madvise(addr as *mut _, len, Advice::LinuxDontNeed) }
}

/// Keeps the system from joining `range`, whole pages of private anonymous memory, with neighbours, where it is or where
/// it moves: with what moves next to it the system joins a mapping that is registered with a userfaultfd, and then takes
/// both for not registered. Until [`rejoin`]; both do as much of the range as is mapped.
pub fn set_apart(range: &Range<usize>) {
    advise_reading(range, Advice::Random);
}

/// Ends [`set_apart`].
pub fn rejoin(range: &Range<usize>) {
    advise_reading(range, Advice::Normal);
}

/// How a file should be read ahead, of memory that is no file's: it only tells mappings apart.
fn advise_reading(range: &Range<usize>, advice: Advice) {
    // SAFETY: changes no contents. Refused where some of the range is not mapped, when the rest is done nevertheless, and
    // without room for one more mapping, when nothing can be moved either.
    let _ = unsafe { madvise(range.start as *mut _, range.len(), advice) };
}

/// Gives back what the calling thread's stack has in memory further down than it is in use now: what took it is over.
///
/// # Safety
/// The stack goes on for `bytes`, more than 32 KiB, below where it is in use.
// Inlined, its variable would lie among its caller's, which may be large.
#[inline(never)]
pub unsafe fn trim_stack(bytes: usize) {
    // What this call itself takes, and what signal handlers and the compiler may keep below it.
    const KEPT: usize = 32 << 10;
    assert!(bytes > KEPT, "nothing to give back");
    let here = 0_u8;
    let end = (std::ptr::from_ref(&here) as usize - KEPT) & !(PAGE_SIZE - 1);
    let start = (end + KEPT - bytes).next_multiple_of(PAGE_SIZE);
    // SAFETY: stack, as the caller says; below the frame of this call, which is its own, nothing lives. Where it fails the
    // memory just stays.
    let _ = unsafe { discard(start, end - start) };
}

/// Whether all of a range of whole pages is mapped, whatever its protection.
#[must_use]
pub fn is_mapped(range: &Range<usize>) -> bool {
    // SAFETY: has nothing written that is not a file's, and waits for nothing: it only finds the mappings.
    unsafe { msync(range.start as *mut _, range.len(), MsyncFlags::ASYNC) }.is_ok()
}

/// Gives `pages` present pages (at most 64) from `addr` frames of their own where they share them with a process made
/// by fork; what they hold stays. Not where one of them is missing, and none may be write-protected: that would be a fault, which
/// the caller may be the one to handle.
///
/// *Fault path.*
///
/// # Errors
/// What the system said; [`Errno::FAULT`]: a page is missing.
pub fn unshare(addr: usize, pages: usize) -> Result<(), Errno> {
    let all = u64::MAX >> (64 - pages);
    if present_mask(addr, pages) != Some(all) {
        return Err(Errno::FAULT);
    }
    // SAFETY: changes no byte of the range: it does what a write of what is there already would do.
    unsafe {
        madvise(
            addr as *mut _,
            pages * PAGE_SIZE,
            Advice::LinuxPopulateWrite,
        )
    }
}

/// Has the page at `addr` be there, as a read would. `false`: a read would end in a signal.
///
/// *Fault path.*
#[must_use]
pub fn can_be_read(addr: usize) -> bool {
    let page = addr & !(PAGE_SIZE - 1);
    // SAFETY: changes no byte of the page: it does what a read would do.
    unsafe { madvise(page as *mut _, PAGE_SIZE, Advice::LinuxPopulateRead) }.is_ok()
}

/// The same for a write, which changes nothing that a write would not: a page of the program's own comes in the place of one that is
/// shared or missing.
///
/// *Fault path.*
#[must_use]
pub fn can_be_written(addr: usize) -> bool {
    let page = addr & !(PAGE_SIZE - 1);
    // SAFETY: changes no byte of the page: it does what a write would do, but for the write.
    unsafe { madvise(page as *mut _, PAGE_SIZE, Advice::LinuxPopulateWrite) }.is_ok()
}

/// Which of `pages` pages (at most 64) from `addr` are present; bit *i* is page *i*. `None`: some of the range is not
/// mapped.
///
/// *Fault path.*
pub fn present_mask(addr: usize, pages: usize) -> Option<u64> {
    let mut present = [0u8; 64];
    assert!(pages <= present.len());
    let result: isize;
    // SAFETY: mincore only looks; it writes one byte for each page, for which there is room. The raw call leaves errno.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") libc::SYS_mincore as isize => result,
            in("rdi") addr,
            in("rsi") pages * PAGE_SIZE,
            in("rdx") present.as_mut_ptr(),
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    // Bit 0: present. The others are not defined.
    let bits = present[..pages].iter().rev();
    (result == 0).then(|| bits.fold(0, |mask, &page| mask << 1 | u64::from(page & 1)))
}

/// How many pages of any mapped range are present. `addr` and `len` are whole pages. It allocates a byte a page.
pub fn resident_pages(addr: usize, len: usize) -> Result<usize, MappingError> {
    let mut present = vec![0u8; len.div_ceil(PAGE_SIZE)];
    // SAFETY: mincore only looks; it writes one byte for each page of `len`, which is what `present` holds.
    let failed = unsafe { libc::mincore(addr as *mut _, len, present.as_mut_ptr()) } != 0;
    if failed {
        let errno = std::io::Error::last_os_error();
        let errno = Errno::from_io_error(&errno).unwrap_or(Errno::INVAL);
        return Err(MappingError::Residency { addr, len, errno });
    }
    // Bit 0: present. The others are not defined.
    Ok(present.iter().filter(|&&page| page & 1 != 0).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn reserves_aligned_and_gives_the_ends_back() {
        for align in [PAGE_SIZE, 2 * MIB, 64 * MIB] {
            let mapping = Mapping::reserve(3 * MIB, align).expect("reserve");
            assert_eq!(mapping.base() % align, 0);
            assert_eq!(mapping.len(), 3 * MIB);
            assert!(mapping.contains(mapping.base()));
            assert!(mapping.contains(mapping.addresses().end - 1));
            assert!(!mapping.contains(mapping.addresses().end));
            assert!(!mapping.contains(mapping.base().wrapping_sub(1)));
        }
    }

    #[test]
    fn refuses_odd_shapes() {
        for (len, align) in [
            (0, 4096),
            (100, 4096),
            (4096, 3),
            (4096, 2048),
            (usize::MAX - 4095, 1 << 30),
        ] {
            assert_eq!(
                Mapping::reserve(len, align).err(),
                Some(MappingError::Shape { len, align })
            );
        }
        assert!(matches!(
            Mapping::reserve(1 << 60, PAGE_SIZE),
            Err(MappingError::Reserve {
                errno: Errno::NOMEM,
                ..
            })
        ));
    }

    #[test]
    fn populate_and_discard_show_in_residency() {
        let mapping = Mapping::reserve(64 * PAGE_SIZE, PAGE_SIZE).expect("reserve");
        mapping.advise_no_huge().expect("no huge");
        mapping.dont_fork().expect("no fork");
        assert_eq!(
            mapping.resident_pages(0..mapping.len()).expect("resident"),
            0
        );
        mapping
            .populate(8 * PAGE_SIZE..24 * PAGE_SIZE)
            .expect("populate");
        assert_eq!(
            mapping.resident_pages(0..mapping.len()).expect("resident"),
            16
        );
        mapping
            .discard(8 * PAGE_SIZE..20 * PAGE_SIZE)
            .expect("discard");
        assert_eq!(
            mapping.resident_pages(0..mapping.len()).expect("resident"),
            4
        );
    }

    #[test]
    fn the_mask_says_which_pages_are_present() {
        let mapping = Mapping::reserve(64 * PAGE_SIZE, PAGE_SIZE).expect("reserve");
        mapping.advise_no_huge().expect("no huge");
        mapping
            .populate(3 * PAGE_SIZE..5 * PAGE_SIZE)
            .expect("populate");
        assert_eq!(present_mask(mapping.base(), 64), Some(0b11000));
        assert_eq!(present_mask(mapping.base() + 4 * PAGE_SIZE, 8), Some(1));
        // SAFETY: nobody needs what this test's mapping holds.
        unsafe { discard(mapping.base() + 3 * PAGE_SIZE, PAGE_SIZE) }.expect("discard");
        assert_eq!(present_mask(mapping.base(), 64), Some(0b10000));
        let gone = mapping.base();
        drop(mapping);
        assert_eq!(present_mask(gone, 64), None);
    }

    #[test]
    fn a_hole_anywhere_is_not_mapped() {
        let mapping = Mapping::reserve(64 * PAGE_SIZE, PAGE_SIZE).expect("reserve");
        let (start, end) = (mapping.base(), mapping.base() + mapping.len());
        assert!(is_mapped(&(start..end)));
        let hole = start + 10 * PAGE_SIZE;
        // SAFETY: nobody uses this page of the test's own mapping.
        unsafe { munmap(hole as *mut _, PAGE_SIZE) }.expect("unmap");
        assert!(!is_mapped(&(start..end)));
        assert!(is_mapped(&(start..hole)) && is_mapped(&(hole + PAGE_SIZE..end)));
        assert!(!is_mapped(&(hole..hole + PAGE_SIZE)));
    }

    #[test]
    fn what_is_missing_is_not_unshared() {
        let mapping = Mapping::reserve(64 * PAGE_SIZE, PAGE_SIZE).expect("reserve");
        mapping.advise_no_huge().expect("no huge");
        mapping.populate(0..64 * PAGE_SIZE).expect("populate");
        assert_eq!(unshare(mapping.base(), 64), Ok(()));
        mapping
            .discard(7 * PAGE_SIZE..8 * PAGE_SIZE)
            .expect("discard");
        assert_eq!(unshare(mapping.base(), 64), Err(Errno::FAULT));
        assert_eq!(present_mask(mapping.base() + 7 * PAGE_SIZE, 1), Some(0));
    }

    #[test]
    #[allow(clippy::reversed_empty_ranges, reason = "a refused case")]
    fn refuses_ranges_outside() {
        let mapping = Mapping::reserve(4 * PAGE_SIZE, PAGE_SIZE).expect("reserve");
        for range in [0..5 * PAGE_SIZE, 1..PAGE_SIZE, PAGE_SIZE..0, 0..100] {
            assert!(
                matches!(
                    mapping.discard(range.clone()),
                    Err(MappingError::Range { .. })
                ),
                "{range:?}"
            );
        }
    }
}
