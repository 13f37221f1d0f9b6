//! Memory that was taken on goes back to the system, with all its contents in it.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use userswap_core::device::PAGE_SIZE;
use userswap_core::page_table::CHUNK_PAGES;
use userswap_sys::own::Within;
use userswap_sys::signals::Blocked;

use super::taken::windows_of;
use super::{NO_LIMIT, Process};
use crate::fault;
use crate::shared::RegionMemory;
use crate::windows;

/// How often what cannot be read is tried again before its memory is left to the system without it.
const MOST_ROUNDS: u32 = 3;

/// The pause between two rounds of which one failed.
const PAUSE: Duration = Duration::from_millis(10);

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
    /// cannot be made to work. The limit is not held any more. A page that cannot be read gets a line, and accesses to it
    /// SIGBUS from then on.
    pub fn retire(&'static self) {
        let _blocked = Blocked::new();
        let _within = Within::new();
        let _changes = self.changes_write();
        let taken: Vec<_> = {
            let taken = self.taken();
            taken.iter().map(|(&start, &end)| start..end).collect()
        };
        for range in taken {
            self.release(&range);
        }
    }

    /// Brings `range` back into memory and leaves it to the system. Called with `changes` held.
    fn release(&self, range: &Range<usize>) {
        // In pieces: all of it may be more than there is room for at once.
        for part in self.taken_parts(range) {
            pieces_of(&part).for_each(|piece| self.release_piece(&piece));
        }
    }

    fn release_piece(&self, range: &Range<usize>) {
        self.once_there(range, true, || {
            self.forget(range);
            // SAFETY: nothing of the range is swapped out: what is missing stands for zeros.
            let _ = unsafe {
                let uffd = self.shared.uffd.of(range.start);
                uffd.unregister(range.start, range.len())
            };
            self.give_up(range);
        });
    }

    /// Brings `range` back into memory and runs `then` while all of it is there and nothing moves. What cannot be read fails for
    /// whoever touches it. `write`: pages of zeros are the program's own. Called with `changes` held.
    pub(super) fn once_there<R>(
        &self,
        range: &Range<usize>,
        write: bool,
        then: impl FnOnce() -> R,
    ) -> R {
        let mut round = 0;
        loop {
            round += 1;
            let mut failed = Vec::new();
            for (window, page) in swapped_pages(range) {
                if let Err(error) = window.resolve_alone(page, write) {
                    failed.push((window.number, page, error));
                }
            }
            let error_of = |window: &RegionMemory, page| {
                let mut those = failed.iter();
                let this = those.find(|&&(of, at, _)| (of, at) == (window.number, page));
                this.map(|&(.., error)| error)
            };
            let change = self.shared.moving.close();
            // One that has left again, after it was brought in, is not to be given up.
            let is_decided = swapped_pages(range)
                .all(|(window, page)| round >= MOST_ROUNDS && error_of(window, page).is_some());
            if is_decided {
                // Nobody asks us about this memory meanwhile, or any more: what cannot be read must fail.
                for (window, page) in swapped_pages(range) {
                    if let Some(error) = error_of(window, page) {
                        fault::fail(window, page, error);
                    }
                }
                let result = then();
                self.end(change);
                return result;
            }
            self.end(change);
            if !failed.is_empty() {
                // What was in the way may pass: memory was short, or a device is slow to recover.
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// `range` in pieces, ascending.
pub(super) fn pieces_of(range: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let (start, end) = (range.start, range.end);
    let first = start / PIECE_BYTES * PIECE_BYTES;
    (first..end)
        .step_by(PIECE_BYTES)
        .map(move |at| at.max(start)..end.min(at + PIECE_BYTES))
}

/// The pages of `range` that are swapped out now.
pub(super) fn swapped_pages(
    range: &Range<usize>,
) -> impl Iterator<Item = (&'static RegionMemory, usize)> {
    windows_of(range).flat_map(|(at, pages)| {
        let window = windows::find(at);
        let swapped = move |&page: &usize| window.is_some_and(|window| window.is_swapped(page));
        pages
            .filter(swapped)
            .filter_map(move |page| Some((window?, page)))
    })
}
