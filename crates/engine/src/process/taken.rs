//! Which ranges are taken on: the list, and the marks in the windows for those who look without a lock.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::MutexGuard;

use userswap_core::device::PAGE_SIZE;
use userswap_core::mask;
use userswap_core::page_table::{CHUNK_PAGES, PteState};
use userswap_sys::own::Within;
use userswap_sys::signals::Blocked;

use super::{Process, lock};
use crate::reclaim::chunk_mask;
use crate::windows::{self, WINDOW_BYTES};

impl Process {
    /// Whether any of `range` is taken on.
    #[must_use]
    pub fn is_taken_on(&self, range: &Range<usize>) -> bool {
        let _blocked = Blocked::new();
        let _within = Within::new();
        let _changes = self.changes_read();
        self.is_taken(range)
    }

    /// Whether the page at `address` is taken on. Takes no lock.
    #[must_use]
    pub fn has_taken(&self, address: usize) -> bool {
        windows::is_taken(address)
    }

    /// Bytes of address space taken on.
    #[must_use]
    pub fn taken_bytes(&self) -> u64 {
        let taken = self.taken();
        taken.iter().map(|(start, end)| (end - start) as u64).sum()
    }

    pub(super) fn is_taken(&self, range: &Range<usize>) -> bool {
        let taken = self.taken();
        taken
            .range(..range.end)
            .next_back()
            .is_some_and(|(_, &end)| end > range.start)
    }

    /// The parts of `range` that are taken on.
    pub(super) fn taken_parts(&self, range: &Range<usize>) -> Vec<Range<usize>> {
        let taken = self.taken();
        let mut parts: Vec<_> = taken
            .range(..range.end)
            .rev()
            .take_while(|&(_, &end)| end > range.start)
            .map(|(&start, &end)| start.max(range.start)..end.min(range.end))
            .collect();
        parts.reverse();
        parts
    }

    pub(super) fn not_taken(&self, range: Range<usize>) -> Vec<Range<usize>> {
        let taken = self.taken_parts(&range);
        without(range, &taken)
    }

    /// `range` is taken on from now on.
    pub(super) fn record(&self, range: &Range<usize>) {
        note_taken(range, true);
        let mut taken = self.taken();
        let (mut start, mut end) = (range.start, range.end);
        // Joined with its neighbours.
        if let Some((&before, &until)) = taken.range(..=start).next_back()
            && until >= start
        {
            start = before;
            end = end.max(until);
        }
        while let Some((&next, &until)) = taken.range(start..).next()
            && next <= end
        {
            end = end.max(until);
            taken.remove(&next);
        }
        taken.insert(start, end);
    }

    /// `range` is not taken on any more.
    pub(super) fn give_up(&self, range: &Range<usize>) {
        let parts = self.taken_parts(range);
        for part in &parts {
            note_taken(part, false);
        }
        let mut taken = self.taken();
        for part in parts {
            let (&start, &end) = taken
                .range(..=part.start)
                .next_back()
                .expect("a part of something taken on");
            taken.remove(&start);
            if start < part.start {
                taken.insert(start, part.start);
            }
            if part.end < end {
                taken.insert(part.end, end);
            }
        }
    }

    pub(super) fn taken(&self) -> MutexGuard<'_, BTreeMap<usize, usize>> {
        lock(&self.taken)
    }
}

/// The windows that `range` touches: an address in each, and which pages of the window are in the range.
pub(super) fn windows_of(
    range: &Range<usize>,
) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
    let (start, end) = (range.start, range.end);
    let first = start / WINDOW_BYTES * WINDOW_BYTES;
    (first..end).step_by(WINDOW_BYTES).map(move |base| {
        let from = start.max(base);
        let to = end.min(base + WINDOW_BYTES);
        (
            base,
            (from - base) / PAGE_SIZE..(to - base).div_ceil(PAGE_SIZE),
        )
    })
}

/// Says to whoever makes system calls that `range` is, or is not, taken on.
pub(super) fn note_taken(range: &Range<usize>, taken: bool) {
    for (at, part) in windows_of(range) {
        let Some(window) = windows::find(at) else {
            continue;
        };
        for chunk in part.start / CHUNK_PAGES..part.end.div_ceil(CHUNK_PAGES) {
            let mask = chunk_mask(&part, chunk);
            window.mm.space.note_taken(chunk, mask, taken);
        }
    }
}

/// Whether all of `range` that is taken on is in memory and, to `write`, not guarded. Takes no lock; where the range is held, it
/// stays so.
pub(super) fn is_there(range: &Range<usize>, write: bool) -> bool {
    windows_of(range).all(|(at, part)| {
        let Some(window) = windows::find(at) else {
            return true;
        };
        let (space, table) = (&window.mm.space, &window.mm.table);
        (part.start / CHUNK_PAGES..part.end.div_ceil(CHUNK_PAGES)).all(|chunk| {
            let taken = space.taken(chunk) & chunk_mask(&part, chunk);
            taken == 0
                || !(space.is_leaving(chunk) || write && space.is_guarded(chunk))
                    && mask::filter(taken, |index| {
                        let word = table.load(chunk * CHUNK_PAGES + index);
                        word.state() == PteState::Present
                    }) == taken
        })
    })
}

/// `range` without those in `holes`, which are sorted and need not be whole pages.
pub(super) fn without(range: Range<usize>, holes: &[Range<usize>]) -> Vec<Range<usize>> {
    let (mut at, mut parts) = (range.start, Vec::new());
    for hole in holes {
        let hole = hole.start & !(PAGE_SIZE - 1)..hole.end.next_multiple_of(PAGE_SIZE);
        if hole.end <= at || hole.start >= range.end {
            continue;
        }
        if hole.start > at {
            parts.push(at..hole.start);
        }
        at = hole.end;
    }
    if at < range.end {
        parts.push(at..range.end);
    }
    parts
}
