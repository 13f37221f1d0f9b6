//! Memory is taken on: registered, and each page in memory gets its word.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use userswap_core::device::PAGE_SIZE;
use userswap_core::page_table::CHUNK_PAGES;
use userswap_sys::mapping::{self, present_mask};
use userswap_sys::own::{self, Within};
use userswap_sys::signals::Blocked;

use super::Process;
use super::taken::{note_taken, windows_of, without};
use crate::held;
use crate::reclaim::chunk_mask;
use crate::shared::RegionMemory;
use crate::windows::{self, WINDOW_BYTES};

impl Process {
    /// Takes memory on: `find` names ranges of private anonymous memory that can be read and written,
    /// whole pages, ascending, as they are now. What is ours among them is left out. Returns how many pages
    /// were found in memory.
    ///
    /// No change of the address space that goes through here happens meanwhile.
    pub fn take_on(&self, find: impl FnOnce(&mut dyn FnMut(Range<usize>))) -> u64 {
        let _blocked = Blocked::new();
        let _within = Within::new();
        let _changes = self.changes_write();
        // Relaxed: the lock orders it.
        if self.retired.load(Ordering::Relaxed) {
            return 0;
        }
        let sorted = || {
            let mut ours: Vec<_> = own::ranges()?.collect();
            ours.sort_unstable_by_key(|range| range.start);
            Some(ours)
        };
        let (mut ours, mut pages) = (None, 0);
        find(&mut |range| {
            // Told only now: what `find` has made for itself to look with is ours, too, and gone soon.
            let Some(ours) = ours.get_or_insert_with(sorted) else {
                // Not to be told apart: nothing more is taken on.
                return;
            };
            for part in without(range, ours) {
                for part in self.not_taken(part) {
                    for part in self.not_in_use(part) {
                        pages += self.take_on_range(&part);
                    }
                }
            }
        });
        pages
    }

    fn take_on_range(&self, range: &Range<usize>) -> u64 {
        let mut pages = 0;
        for (at, part) in windows_of(range) {
            let _inside = self.shared.moving.enter();
            let window = self.window_at(at);
            let space = &window.mm.space;
            let bytes = space.base() + part.start * PAGE_SIZE..space.base() + part.end * PAGE_SIZE;
            // The program may have had it told apart, as `remap` does with what moves next to it.
            mapping::rejoin(&bytes);
            if space.register(&bytes).is_err() {
                // Gone or changed meanwhile, or of a kind that cannot be: it stays as it is.
                note_taken(&bytes, false);
                continue;
            }
            self.record(&bytes);
            pages += self.adopt(window, &part);
        }
        pages
    }

    /// Gives each page of `part` that is in memory and has no word yet its word; returns how many those were.
    pub(super) fn adopt(&self, window: &RegionMemory, part: &Range<usize>) -> u64 {
        let mut pages = 0;
        for chunk in part.start / CHUNK_PAGES..part.end.div_ceil(CHUNK_PAGES) {
            let wanted = chunk_mask(part, chunk);
            let (first, count) = (
                wanted.trailing_zeros() as usize,
                wanted.count_ones() as usize,
            );
            let address = window.mm.space.address(chunk * CHUNK_PAGES + first);
            let new = self.shared.swap.adopt(&window.mm, chunk, || {
                present_mask(address, count).map_or(0, |present| present << first)
            });
            self.shared.budget.take_over(u64::from(new.count_ones()));
            pages += u64::from(new.count_ones());
        }
        pages
    }

    /// `range`, about to be taken on, without what a call in flight uses: a page missing there, which the kernel fills now,
    /// only we could fill then.
    fn not_in_use(&self, range: Range<usize>) -> Vec<Range<usize>> {
        for (at, _) in windows_of(&range) {
            self.window_at(at);
        }
        note_taken(&range, true);
        let mut used = Vec::new();
        held::within(&range, |held| used.push(held));
        used.sort_unstable_by_key(|held| held.start);
        for held in &used {
            note_taken(held, false);
        }
        without(range, &used)
    }

    /// The window at `address`, made if need be. Called with `changes` written.
    pub(super) fn window_at(&self, address: usize) -> &'static RegionMemory {
        if let Some(window) = windows::find(address) {
            return window;
        }
        let base = address / WINDOW_BYTES * WINDOW_BYTES;
        let beside = windows::near(base);
        let window = RegionMemory::window(base, WINDOW_BYTES, beside, &self.shared);
        let window = Arc::new(window);
        windows::publish(Arc::clone(&window));
        self.shared.list(window);
        windows::find(address).expect("just made")
    }
}
