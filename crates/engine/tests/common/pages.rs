//! A region's pages as threads use them: each page carries its number, a version and a checksum.

use userswap::{PAGE_SIZE, Region};

use super::Random;

/// What a page is filled with behind its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Compresses to a small part.
    Text,
    /// Does not compress.
    Noise,
}

const HEADER: usize = 24;

/// The pages of a region, for use from many threads. Who uses it sees to it that one thread at a time
/// is on a page.
#[derive(Clone, Copy)]
pub(crate) struct Pages {
    base: *mut u8,
    count: usize,
}

// SAFETY: raw addresses; every access is an unsafe block of its own that vouches for itself.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// The pages of `region`, which outlives every use of them.
    pub(crate) fn of(region: &Region) -> Self {
        Self {
            base: region.as_mut_ptr(),
            count: region.len() / PAGE_SIZE,
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
        let bytes = image(page, version, content);
        // SAFETY: the caller is the only one on the page; source and destination are a page long.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address(page), PAGE_SIZE);
        }
    }

    /// Whether a page holds what `write` wrote.
    #[track_caller]
    pub(crate) fn verify(self, page: usize, version: u64, content: Content) {
        let mut found = [0; PAGE_SIZE];
        // SAFETY: the caller is the only one on the page; source and destination are a page long.
        unsafe {
            std::ptr::copy_nonoverlapping(self.address(page), found.as_mut_ptr(), PAGE_SIZE);
        }
        let wanted = image(page, version, content);
        if found != wanted {
            let at = (0..PAGE_SIZE).find(|&at| found[at] != wanted[at]);
            panic!(
                "page {page}: header {:?}, should be version {version}; differs from byte {at:?} on",
                header(&found)
            );
        }
    }
}

/// Number, version and checksum.
fn header(bytes: &[u8; PAGE_SIZE]) -> [u64; 3] {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    [word(0), word(8), word(16)]
}

fn image(page: usize, version: u64, content: Content) -> [u8; PAGE_SIZE] {
    let mut bytes = [0; PAGE_SIZE];
    let mut random = Random::new((page as u64) << 20 ^ version ^ 0x5eed);
    // Text repeats 64 bytes, so it compresses about fifty-fold.
    let period = match content {
        Content::Text => 64,
        Content::Noise => PAGE_SIZE - HEADER,
    };
    for chunk in bytes[HEADER..HEADER + period].chunks_mut(8) {
        chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
    }
    for at in HEADER + period..PAGE_SIZE {
        bytes[at] = bytes[at - period];
    }
    bytes[..8].copy_from_slice(&(page as u64).to_le_bytes());
    bytes[8..16].copy_from_slice(&version.to_le_bytes());
    let checksum = bytes[HEADER..].chunks(8).fold(version, |sum, chunk| {
        sum.rotate_left(5)
            ^ chunk
                .iter()
                .fold(0, |word, &byte| word << 8 | u64::from(byte))
    });
    bytes[16..24].copy_from_slice(&checksum.to_le_bytes());
    bytes
}
