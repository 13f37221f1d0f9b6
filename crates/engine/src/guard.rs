//! Copies that writes make after a fork are charged before they are made.
//!
//! After a fork two processes share their pages until one of them writes; then the system copies the page, as fast as the
//! program writes, and asks nobody. So what a fork has shared is *guarded*: write-protected, a bit a chunk says so, and the
//! first write to a chunk is a fault of ours, which is charged for the pages of the chunk and ends its protection.
//!
//! Guarantee: a page of a chunk whose bit is not set is not protected. Mechanism: the bit is set before the protection begins,
//! and cleared after it has ended. A bit without protection does no harm.
//!
//! In inline mode a system call that writes to a protected page fails, so [`crate::Process::bring_in`] ends the protection
//! before; what calls that have begun use is not protected at all. Who guards and who calls see each other as in [`crate::held`].

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use userswap_core::device::PAGE_SIZE;
use userswap_core::mask;
use userswap_core::page_table::CHUNK_PAGES;
use userswap_sys::Errno;

use crate::budget::Whole;
use crate::shared::{RegionMemory, Shared};
use crate::space::RealSpace;

/// How often a child of fork looks whether it is known what it has, and the pause between two looks: its monitor has just
/// been started.
const LOOKS: u32 = 200;
const PAUSE: Duration = Duration::from_micros(100);

impl RegionMemory {
    /// `chunk` is about to be protected, as far as it is in memory; `false`: nothing of it is.
    pub(crate) fn announce_guard(&self, chunk: usize) -> bool {
        let is_there = self.shared.swap.present(&self.mm, chunk) != 0;
        if is_there {
            self.mm.space.note_guarded(chunk, true);
        }
        is_there
    }

    /// Makes room for the copies of `chunk` that writes will make, and ends its protection; `false`: there was none.
    pub(crate) fn charge_and_unguard(&self, chunk: usize) -> bool {
        let (space, shared) = (&self.mm.space, &self.shared);
        if !space.is_guarded(chunk) {
            return false;
        }
        let present = shared.swap.present(&self.mm, chunk);
        let own = shared.own_pages(space.address(chunk * CHUNK_PAGES));
        let copies = (present & !own.unwrap_or(0)).count_ones();
        shared.charge_copies(u64::from(copies));
        // First: who has the chunk locked may be about to unshare its pages, and wait for this.
        if space.unguard(chunk) {
            // What was left alone because others shared it.
            shared.swap.leave_alone(&self.mm, chunk, present, 0);
        }
        true
    }
}

impl RealSpace {
    /// Protects `count` pages from `page`, whose chunks have been announced. What is refused stays as it is.
    pub(crate) fn guard(&self, page: usize, count: usize) {
        let _ = self.protect(page, count, true);
    }

    /// Ends the protection of `chunk`, if there is any; `false`: it has not ended, and whoever writes comes back here.
    pub(crate) fn unguard(&self, chunk: usize) -> bool {
        let first = chunk * CHUNK_PAGES;
        let is_over = self.protect(first, CHUNK_PAGES, false).is_ok()
            // Not all of it is mapped, or was when it was guarded. Where a page is not, there is nothing to end.
            || mask::indices(self.taken(chunk)).all(|index| {
                let single = self.protect(first + index, 1, false);
                matches!(single, Ok(()) | Err(Errno::NOENT | Errno::INVAL))
            });
        if is_over {
            self.note_guarded(chunk, false);
        }
        is_over
    }

    /// Ends the protection of the chunks of `pages`, as far as they have any.
    pub(crate) fn unguard_all(&self, pages: &Range<usize>) {
        for chunk in pages.start / CHUNK_PAGES..pages.end.div_ceil(CHUNK_PAGES) {
            if self.is_guarded(chunk) {
                self.unguard(chunk);
            }
        }
    }

    /// Ends the protection of `page`, which should have none by its chunk's bit.
    pub(crate) fn unguard_unsaid(&self, page: usize) {
        if self.guards() && !self.is_guarded(page / CHUNK_PAGES) {
            let _ = self.protect(page, 1, false);
        }
    }

    fn protect(&self, page: usize, count: usize, protect: bool) -> Result<(), Errno> {
        let (address, len) = (self.address(page), count * PAGE_SIZE);
        self.uffd(page).write_protect(address, len, protect)
    }
}

impl Shared {
    /// Makes room for copies of `pages`, which count until the system is next asked what this process has. Not where nobody asks.
    fn charge_copies(&self, pages: u64) {
        if pages == 0 || !self.known.wait() {
            return;
        }
        let written = || self.counters.pages_out.load(Ordering::Relaxed) * PAGE_SIZE as u64;
        let (before, store) = (written(), self.store_bytes());
        let gone = || (written() - before) as i64 - (self.store_bytes() as i64 - store as i64);
        self.counters.stalled(self.charge(pages));
        if let Some(whole) = &self.whole {
            self.count_copies(whole, (pages * PAGE_SIZE as u64) as i64, gone);
        }
        self.budget.leave_to_rest(pages);
    }

    /// Counts `bytes` of copies where the processes that share the limit see them, who may be making copies at the same time.
    /// Where all of it is in use as much leaves this process first, if it can; `gone` says how much has.
    fn count_copies(&self, whole: &Whole, bytes: i64, gone: impl Fn() -> i64) {
        if (whole.count)(bytes, false) {
            return;
        }
        let holds = !self.budget.is_exceeded() && self.budget.limit() <= Some(whole.bytes);
        if holds && gone() < bytes {
            self.reclaim_until(|| gone() >= bytes);
        }
        (whole.count)(bytes - gone(), true);
    }

    /// Those of the pages of the chunk at `address` that no other process has, where that is known.
    pub(crate) fn own_pages(&self, address: usize) -> Option<u64> {
        (self.whole.as_ref()?.own_pages)(address)
    }
}

/// Whether it is known what of this process's memory counts as its own, which changes with a fork.
#[derive(Debug, Default)]
pub(crate) struct Known(AtomicU32);

impl Known {
    const KNOWN: u32 = 0;
    /// It is, as soon as somebody looks, who has been started.
    const AWAITED: u32 = 1;
    /// Nobody has been started yet: who would wait for it may be the one to start him. A few pages of libc's and the program's are
    /// written by then.
    const UNKNOWN: u32 = 2;

    // Relaxed, throughout: nothing else is said with it.

    /// In a child of fork.
    pub(crate) fn forget(&self) {
        self.0.store(Self::UNKNOWN, Ordering::Relaxed);
    }

    /// Somebody is about to look.
    pub(crate) fn expect(&self) {
        let (from, to) = (Self::UNKNOWN, Self::AWAITED);
        // He may have looked by now.
        let _ = (self.0).compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Somebody has looked.
    pub(crate) fn set(&self) {
        self.0.store(Self::KNOWN, Ordering::Relaxed);
    }

    /// Waits until it is, for a moment at most; `false`: nobody is going to look.
    fn wait(&self) -> bool {
        for _ in 0..LOOKS {
            match self.0.load(Ordering::Relaxed) {
                Self::KNOWN => return true,
                Self::AWAITED => std::thread::sleep(PAUSE),
                _ => return false,
            }
        }
        self.set();
        true
    }
}
