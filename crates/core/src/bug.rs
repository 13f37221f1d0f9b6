//! Broken invariants: counted, so that tests and statistics can show them.

use crate::entry::SwapEntry;
use crate::slot_word::SlotError;
use std::sync::atomic::{AtomicU64, Ordering};

static BUGS: AtomicU64 = AtomicU64::new(0);

/// How many broken invariants were met in this process. Anything but 0 is a bug in userswap.
#[must_use]
pub fn count() -> u64 {
    // Relaxed: a plain counter.
    BUGS.load(Ordering::Relaxed)
}

/// `what` found a slot in a state the protocol rules out; nothing was changed.
#[cold]
pub(crate) fn report(what: &str, entry: SwapEntry, error: SlotError) {
    BUGS.fetch_add(1, Ordering::Relaxed);
    debug_assert!(false, "userswap bug: {what} of {entry}: {error}");
}

/// `what` was asked for a page in a state that rules it out; nothing was changed.
#[cold]
pub(crate) fn report_page(what: &str, page: usize) {
    BUGS.fetch_add(1, Ordering::Relaxed);
    debug_assert!(false, "userswap bug: {what} of page {page}");
}
