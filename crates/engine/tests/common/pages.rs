//! A region's pages as threads use them: each page carries its region's name, its number, a version and a checksum.

use userswap::{PAGE_SIZE, PageBytes, Region};
use userswap_core::stamp::{Found, Stamp};

pub(crate) use userswap_core::stamp::Content;

/// The pages of a region, for use from many threads. Who uses it sees to it that one thread at a time
/// is on a page.
#[derive(Clone, Copy)]
pub(crate) struct Pages {
    base: *mut u8,
    count: usize,
    /// What the region is called in its pages.
    name: u64,
}

// SAFETY: raw addresses; every access is an unsafe block of its own that vouches for itself.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// The pages of `region`, which outlives every use of them.
    pub(crate) fn of(region: &Region) -> Self {
        Self::named(region, 0)
    }

    /// The same, where pages of several regions must be told apart. A fork's pages keep their old name until they are
    /// written.
    pub(crate) fn named(region: &Region, name: u64) -> Self {
        Self {
            base: region.as_mut_ptr(),
            count: region.len() / PAGE_SIZE,
            name,
        }
    }

    pub(crate) fn stamp(self, page: usize, version: u64, content: Content) -> Stamp {
        Stamp {
            region: self.name,
            page: page as u64,
            version,
            content,
        }
    }

    pub(crate) fn count(self) -> usize {
        self.count
    }

    pub(crate) fn address(self, page: usize) -> *mut u8 {
        assert!(page < self.count);
        // SAFETY: inside the region.
        unsafe { self.base.add(page * PAGE_SIZE) }
    }

    /// One byte of a page, read by one instruction.
    pub(crate) fn peek(self, page: usize, offset: usize) -> u8 {
        assert!(offset < PAGE_SIZE);
        // SAFETY: inside the region, which lives; no reference to these bytes exists.
        unsafe { self.address(page).add(offset).read_volatile() }
    }

    pub(crate) fn poke(self, page: usize, offset: usize, value: u8) {
        assert!(offset < PAGE_SIZE);
        // SAFETY: as for `peek`, and no other thread is on this byte.
        unsafe { self.address(page).add(offset).write_volatile(value) };
    }

    /// The first word of a page, to be changed by many threads at once.
    pub(crate) fn word(&self, page: usize) -> &std::sync::atomic::AtomicU64 {
        // SAFETY: aligned, inside the region, which lives; all who use the word use atomics.
        unsafe { &*self.address(page).cast() }
    }

    /// Fills a page with what only this page and `version` have.
    pub(crate) fn write(self, page: usize, version: u64, content: Content) {
        let bytes = self.stamp(page, version, content).bytes();
        // SAFETY: the caller is the only one on the page; source and destination are a page long.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address(page), PAGE_SIZE);
        }
    }

    /// A copy of a page, as it is now.
    pub(crate) fn read(self, page: usize) -> PageBytes {
        let mut found = [0; PAGE_SIZE];
        // SAFETY: the caller is the only one on the page; source and destination are a page long.
        unsafe {
            std::ptr::copy_nonoverlapping(self.address(page), found.as_mut_ptr(), PAGE_SIZE);
        }
        found
    }

    /// Whether a page holds what `write` wrote.
    #[track_caller]
    pub(crate) fn verify(self, page: usize, version: u64, content: Content) {
        let wanted = self.stamp(page, version, content);
        if let Err(wrong) = Found::of(&self.read(page)).expect(self.name, page as u64, Some(wanted))
        {
            panic!("{wrong}");
        }
    }
}
