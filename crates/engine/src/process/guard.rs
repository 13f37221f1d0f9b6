//! What a fork has shared is guarded, on both sides: see [`crate::guard`].

use std::ops::Range;
use std::sync::atomic::Ordering;

use userswap_core::device::PAGE_SIZE;
use userswap_core::page_table::CHUNK_PAGES;
use userswap_sys::own::{self, Within};
use userswap_sys::signals::Blocked;

use super::Process;
use super::taken::windows_of;
use crate::held;
use crate::shared::RegionMemory;
use crate::windows;

/// Memory that is a smaller part of the limit is not worth it: the copies are made room for when they have been seen.
const WORTH: u64 = 16;

impl Process {
    /// In a child of fork: somebody has been started who tells it what it has, by [`Process::note_resident`]. Writes to what is shared
    /// wait until then; before this call they do not.
    pub fn expect_look(&self) {
        self.shared.known.expect();
    }

    /// Has writes to memory that may be shared since a fork make room for what they copy, each the first time.
    /// Not where that is a small part of the limit, or the system cannot do it.
    pub fn guard(&self) {
        let _blocked = Blocked::new();
        let _within = Within::new();
        let _changes = self.changes_write();
        let shared = &*self.shared;
        let limit = shared.budget.limit().unwrap_or(u64::MAX);
        if self.retired.load(Ordering::SeqCst)
            || shared.budget.resident_bytes() < limit / WORTH
            || !shared.uffd.begin_to_guard()
        {
            return;
        }
        let change = shared.moving.close();
        let taken: Vec<_> = {
            let taken = self.taken();
            taken.iter().map(|(&start, &end)| start..end).collect()
        };
        for (at, part) in taken.iter().flat_map(windows_of) {
            if let Some(window) = windows::find(at) {
                guard_part(window, &part);
            }
        }
        self.end(change);
    }
}

/// Guards what is in memory of `part` of a window, which is taken on, and nobody uses.
fn guard_part(window: &RegionMemory, part: &Range<usize>) {
    let space = &window.mm.space;
    let bytes = space.base() + part.start * PAGE_SIZE..space.base() + part.end * PAGE_SIZE;
    if space.register(&bytes).is_err() {
        // Registered as it was.
        return;
    }
    let chunks = part.start / CHUNK_PAGES..part.end.div_ceil(CHUNK_PAGES);
    let mut any = false;
    for chunk in chunks.clone() {
        any |= window.announce_guard(chunk);
    }
    if !any {
        return;
    }
    let leave_out = |range: Range<usize>| {
        let from = range.start.max(bytes.start) - space.base();
        let to = range.end.min(bytes.end).saturating_sub(space.base());
        // What an earlier fork has guarded, too.
        space.unguard_all(&(from / PAGE_SIZE..to.div_ceil(PAGE_SIZE)));
    };
    held::within(&bytes, leave_out);
    // Threads of ours write there whatever they hold.
    own::thread_ranges().for_each(leave_out);
    // A run at a time: each call interrupts the other CPUs.
    let mut at = chunks.start;
    while at < chunks.end {
        let rest = at..chunks.end;
        let run = rest.take_while(|&chunk| space.is_guarded(chunk)).count();
        if run > 0 {
            let pages =
                (at * CHUNK_PAGES).max(part.start)..((at + run) * CHUNK_PAGES).min(part.end);
            space.guard(pages.start, pages.len());
        }
        at += run + 1;
    }
}
