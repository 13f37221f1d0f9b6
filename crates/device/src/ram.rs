//! Plain pages in memory: the device that shows the swap-in race at its clearest.
//!
//! Nothing is compressed and nothing is ever dropped, so a read may find what an earlier owner of
//! the slot left, and a read that meets a write may find a mix of both. A delay on reads widens the
//! window in which that matters.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use userswap_core::device::{
    Content, Device, DeviceError, PAGE_SIZE, PageBytes, Properties, Usage,
};

use crate::arena::{Table, refused};

const WORD: usize = size_of::<u64>();
const PAGE_WORDS: usize = PAGE_SIZE / WORD;
/// From here on a delay sleeps; a shorter one would be lost in the sleep's own inaccuracy.
const SLEEP_FROM: Duration = Duration::from_micros(50);

/// A RAM disk of plain pages.
///
/// A page is copied word by word, each word atomically: a read that meets a write of the same slot
/// gets some words of each, never an undefined one. Data stay after a discard.
#[derive(Debug)]
pub struct Ram {
    pages: Table<AtomicU64>,
    /// One bit a slot: it was written, so its page takes memory.
    written: Table<AtomicU64>,
    written_pages: AtomicU64,
    slots: u64,
    read_delay: Duration,
}

impl Ram {
    /// A device of `slots` pages whose reads take `read_delay` longer.
    ///
    /// # Errors
    /// [`DeviceError::Io`] when the system refuses the address space.
    pub fn new(slots: u64, read_delay: Duration) -> Result<Self, DeviceError> {
        let too_large = |_| refused(Errno::NOMEM);
        let count = usize::try_from(slots).map_err(too_large)?;
        let words = count.checked_mul(PAGE_WORDS).ok_or(refused(Errno::NOMEM))?;
        Ok(Self {
            pages: Table::zeroed(words)?,
            written: Table::zeroed(count.div_ceil(64))?,
            written_pages: AtomicU64::new(0),
            slots,
            read_delay,
        })
    }

    fn words(&self, slot: u64) -> Result<&[AtomicU64], DeviceError> {
        if slot >= self.slots {
            return Err(refused(Errno::INVAL));
        }
        let start = slot as usize * PAGE_WORDS;
        Ok(&self.pages[start..start + PAGE_WORDS])
    }

    fn note_written(&self, slot: u64) {
        let (word, bit) = (&self.written[slot as usize / 64], 1 << (slot % 64));
        // Relaxed: the bit only keeps the count right, and the pages carry no order of their own.
        if word.load(Relaxed) & bit == 0 && word.fetch_or(bit, Relaxed) & bit == 0 {
            self.written_pages.fetch_add(1, Relaxed);
        }
    }
}

fn wait(delay: Duration) {
    if delay >= SLEEP_FROM {
        thread::sleep(delay);
    } else if !delay.is_zero() {
        let end = Instant::now() + delay;
        while Instant::now() < end {
            spin_loop();
        }
    }
}

impl Device for Ram {
    fn name(&self) -> &str {
        "ram"
    }

    fn slots(&self) -> u64 {
        self.slots
    }

    fn properties(&self) -> Properties {
        Properties {
            synchronous: true,
            stable_pages: false,
            discards: false,
        }
    }

    /// Copies, then waits: the copy is as old as the delay when the caller gets it, which is what
    /// makes a stale copy likely.
    fn read(&self, slot: u64, page: &mut PageBytes) -> Result<Content, DeviceError> {
        for (bytes, word) in page.chunks_exact_mut(WORD).zip(self.words(slot)?) {
            // Relaxed: whoever may read a slot was told so by the engine, through an operation
            // that orders; a reader that was not told may see any mix.
            bytes.copy_from_slice(&word.load(Relaxed).to_ne_bytes());
        }
        wait(self.read_delay);
        Ok(Content::Bytes)
    }

    fn write(&self, slot: u64, page: &PageBytes) -> Result<(), DeviceError> {
        for (bytes, word) in page.chunks_exact(WORD).zip(self.words(slot)?) {
            // Relaxed: as in `read`.
            word.store(
                u64::from_ne_bytes(bytes.try_into().expect("eight bytes")),
                Relaxed,
            );
        }
        self.note_written(slot);
        Ok(())
    }

    fn discard(&self, _slot: u64) {}

    fn retire(&self) {
        self.pages.clear();
        self.written.clear();
        self.written_pages.store(0, Relaxed);
    }

    fn usage(&self) -> Usage {
        let pages = self.written_pages.load(Relaxed);
        let bytes = pages * PAGE_SIZE as u64;
        Usage {
            raw_pages: pages,
            stored_bytes: bytes,
            memory_bytes: bytes,
            metadata_bytes: self.written.reserved_bytes() as u64,
            ..Usage::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_back_and_stay_after_discard() {
        let ram = Ram::new(10, Duration::ZERO).unwrap();
        let mut page = [9; PAGE_SIZE];
        assert_eq!(ram.read(3, &mut page), Ok(Content::Bytes));
        assert_eq!(page, [0; PAGE_SIZE], "never written");
        page[17] = 1;
        ram.write(9, &page).unwrap();
        ram.write(9, &page).unwrap();
        ram.discard(9);
        let mut back = [2; PAGE_SIZE];
        assert_eq!(ram.read(9, &mut back), Ok(Content::Bytes));
        assert_eq!(back, page);
        let usage = ram.usage();
        assert_eq!((usage.raw_pages, usage.memory_bytes), (1, 4096));
        ram.retire();
        assert_eq!(ram.usage().memory_bytes, 0);
        assert!(!ram.properties().discards && ram.properties().synchronous);
        assert_eq!(ram.slots(), 10);
    }

    #[test]
    fn a_slot_outside_is_an_error() {
        let ram = Ram::new(10, Duration::ZERO).unwrap();
        let mut page = [0; PAGE_SIZE];
        assert_eq!(ram.read(10, &mut page), Err(DeviceError::Io(22)));
        assert_eq!(ram.write(u64::MAX, &page), Err(DeviceError::Io(22)));
    }

    #[test]
    fn reads_take_at_least_the_delay() {
        for delay in [Duration::from_micros(20), Duration::from_millis(2)] {
            let ram = Ram::new(1, delay).unwrap();
            let start = Instant::now();
            let _ = ram.read(0, &mut [0; PAGE_SIZE]).unwrap();
            assert!(start.elapsed() >= delay);
        }
    }
}
