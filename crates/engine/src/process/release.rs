//! Memory that was taken on goes back to the system, with all its contents in it.

use std::ops::Range;
use std::sync::atomic::Ordering;

use userswap_core::device::PAGE_SIZE;
use userswap_core::page_table::CHUNK_PAGES;
use userswap_sys::own::Within;
use userswap_sys::signals::Blocked;

use super::taken::windows_of;
use super::{NO_LIMIT, Process};
use crate::windows;

/// Bytes that are left to the system at a time.
const PIECE_BYTES: usize = 4 * CHUNK_PAGES * PAGE_SIZE;

impl Process {
    /// Leaves `range` to the system again, whatever was taken on of it: for memory that is to behave in ways that cannot
    /// be followed.
    pub fn leave_alone(&self, range: &Range<usize>) {
        let _blocked = Blocked::new();
        let _within = Within::new();
        let _changes = self.changes_write();
        if self.is_taken(range) {
            self.release(range);
        }
    }

    /// Nothing is taken on from here on: before [`Process::retire`], for good.
    pub fn take_no_more(&self) {
        let _blocked = Blocked::new();
        let _within = Within::new();
        let _changes = self.changes_write();
        self.retired.store(true, Ordering::SeqCst);
        // Who brings everything back must not have others take it out at the same time.
        self.shared.budget.set_limit(NO_LIMIT);
    }

    /// Brings everything back and leaves the program's memory to the system: where system calls on swapped-out memory
    /// cannot be made to work. The limit is not held any more.
    pub fn retire(&'static self) {
        let _blocked = Blocked::new();
        let _changes = self.changes_write();
        let taken: Vec<_> = {
            let taken = self.taken();
            taken.iter().map(|(&start, &end)| start..end).collect()
        };
        for range in taken {
            self.release(&range);
        }
    }

    /// Brings `range` back into memory and leaves it to the system, but what cannot be read. Called with `changes` held.
    fn release(&self, range: &Range<usize>) {
        // In pieces: all of it may be more than there is room for at once.
        for part in self.taken_parts(range) {
            let mut at = part.start;
            while at < part.end {
                let end = (at / PIECE_BYTES * PIECE_BYTES + PIECE_BYTES).min(part.end);
                self.release_piece(&(at..end));
                at = end;
            }
        }
    }

    fn release_piece(&self, range: &Range<usize>) {
        loop {
            let mut unreadable = false;
            for (at, pages) in windows_of(range) {
                let Some(window) = windows::find(at) else {
                    continue;
                };
                for page in pages.filter(|&page| window.is_swapped(page)) {
                    unreadable |= window.resolve_alone(page, true).is_err();
                }
            }
            let change = self.shared.moving.close();
            let left = windows_of(range).any(|(at, mut pages)| {
                windows::find(at).is_some_and(|window| pages.any(|page| window.is_swapped(page)))
            });
            if !left {
                self.forget(range);
                // SAFETY: nothing of the range is swapped out: what is missing stands for zeros.
                let _ = unsafe { self.shared.uffd.unregister(range.start, range.len()) };
                self.give_up(range);
            }
            self.end(change);
            // A page that cannot be read says so when it is touched.
            if !left || unreadable {
                return;
            }
        }
    }
}
