//! The limit: who may take memory, and when room must be made.
//!
//! ```text
//! used = resident pages + frames with memory + the store's memory + tables and scratch
//! ```
//!
//! An engine over a whole process counts instead of its tables all that the process has in memory
//! otherwise, as the system said when it was last asked: the *rest*.
//!
//! Guarantee: pages are charged before they are mapped, and a charge that would bring `used` over
//! the limit waits until the reclaimer has made room. Only where no room can be made (pages that
//! do not compress, a full area, memory in use all over) the charge is granted all the same: nothing is
//! lost, the limit is exceeded, and that is said once. Then an *allowance* comes on top of the limit, and goes
//! again little by little: who is at work must not be held up at every page by what cannot be done.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use userswap_core::device::PAGE_SIZE;

/// Nanoseconds after which an allowance becomes smaller.
const EASE_NS: u64 = 100_000_000;

const NOT_ASKED: i64 = i64::MIN;

/// Bytes that the low mark keeps free where that is not a large part of the limit: two of the widest faults. What is kept free
/// is nobody's: the marks are as low as the reclaimer can keep up with.
const LEAST_FREE: u64 = 512 << 10;

#[derive(Debug)]
pub(crate) struct Budget {
    /// Bytes; `u64::MAX`: none.
    limit: AtomicU64,
    /// Pages mapped in regions, and pages charged that are about to be.
    resident: AtomicU64,
    /// Bytes of the regions' page-table words.
    tables: AtomicU64,
    /// Bytes the process has in memory beside what is counted here; negative where pages are counted that
    /// take none (zeros nobody has written). [`NOT_ASKED`]: this is no engine over a process.
    rest: AtomicI64,
    /// The allowance: bytes by which the limit may be exceeded because it cannot be held.
    exceeded: AtomicU64,
    /// When that last changed, in nanoseconds.
    changed_ns: AtomicU64,
    warned: AtomicBool,
}

/// How full the budget is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// Above the high mark of free memory.
    Roomy,
    /// Between the marks.
    Low,
    /// Below the low mark: the reclaimer runs.
    Tight,
}

impl Budget {
    pub(crate) fn new(limit: Option<u64>) -> Self {
        Self {
            limit: AtomicU64::new(limit.unwrap_or(u64::MAX)),
            resident: AtomicU64::new(0),
            tables: AtomicU64::new(0),
            rest: AtomicI64::new(NOT_ASKED),
            exceeded: AtomicU64::new(0),
            changed_ns: AtomicU64::new(0),
            warned: AtomicBool::new(false),
        }
    }

    /// The limit in bytes.
    pub(crate) fn limit(&self) -> Option<u64> {
        let limit = self.limit_bytes();
        (limit != u64::MAX).then_some(limit)
    }

    fn limit_bytes(&self) -> u64 {
        // Relaxed, here and below: sums that are only compared with a limit.
        self.limit.load(Ordering::Relaxed)
    }

    /// From now on charges are held against `limit`, in bytes. An allowance stays: a limit that is shared changes all the
    /// time, and what could not be held before cannot be held now.
    pub(crate) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Bytes that may be in use: the limit and the allowance.
    pub(crate) fn allowed(&self) -> u64 {
        self.limit_bytes()
            .saturating_add(self.exceeded.load(Ordering::Relaxed))
    }

    /// Pages mapped in regions.
    pub(crate) fn resident_pages(&self) -> u64 {
        self.resident.load(Ordering::Relaxed)
    }

    /// A region with this many bytes of page-table words comes.
    pub(crate) fn add_tables(&self, bytes: u64) {
        self.tables.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A region with this many bytes of page-table words goes.
    pub(crate) fn drop_tables(&self, bytes: u64) {
        self.tables.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes of page-table words.
    pub(crate) fn table_bytes(&self) -> u64 {
        self.tables.load(Ordering::Relaxed)
    }

    /// Bytes the process has in memory beside what is counted here, where that is known.
    pub(crate) fn rest(&self) -> Option<i64> {
        let rest = self.rest.load(Ordering::Relaxed);
        (rest != NOT_ASKED).then_some(rest)
    }

    /// The process has `rest` bytes in memory beside what is counted here.
    pub(crate) fn set_rest(&self, rest: i64) {
        self.rest.store(rest, Ordering::Relaxed);
    }

    /// `pages` that were part of the rest are counted as resident from now on.
    pub(crate) fn take_over(&self, pages: u64) {
        self.force(pages);
        if self.rest().is_some() {
            self.rest
                .fetch_sub((pages * PAGE_SIZE as u64) as i64, Ordering::Relaxed);
        }
    }

    /// Counts `pages` as mapped if that stays within the limit; `others` is what else is in use.
    pub(crate) fn charge(&self, pages: u64, others: u64) -> bool {
        let resident = self.resident.fetch_add(pages, Ordering::Relaxed) + pages;
        if resident * PAGE_SIZE as u64 + others <= self.allowed() {
            return true;
        }
        self.uncharge(pages);
        false
    }

    /// Counts `pages` as mapped, whatever the limit says.
    pub(crate) fn force(&self, pages: u64) {
        self.resident.fetch_add(pages, Ordering::Relaxed);
    }

    /// Pages were unmapped, or charged in vain.
    pub(crate) fn uncharge(&self, pages: u64) {
        let before = self.resident.fetch_sub(pages, Ordering::Relaxed);
        debug_assert!(before >= pages, "more pages leave than were there");
    }

    /// How full it is, with `used` bytes in use.
    pub(crate) fn level(&self, used: u64) -> Level {
        let Some(limit) = self.limit() else {
            return Level::Roomy;
        };
        let low = (limit / 128).max(LEAST_FREE.min(limit / 32));
        match self.allowed().saturating_sub(used) {
            free if free < low => Level::Tight,
            free if free < low * 2 => Level::Low,
            _ => Level::Roomy,
        }
    }

    /// No room can be made with `used` bytes in use, at `now_ns`: lets the limit be exceeded, in steps, so that
    /// not every charge has to find that out anew. `true` the first time.
    pub(crate) fn exceed(&self, used: u64, now_ns: u64) -> bool {
        let limit = self.limit_bytes();
        // Beyond the marks, so that the reclaimer need not try at once what has just failed.
        let over = used.saturating_sub(limit) + limit / 16 + 64 * PAGE_SIZE as u64;
        self.exceeded.store(over, Ordering::Relaxed);
        self.changed_ns.store(now_ns, Ordering::Relaxed);
        !self.warned.swap(true, Ordering::Relaxed)
    }

    /// Whether there is an allowance.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.exceeded.load(Ordering::Relaxed) > 0
    }

    /// `used` bytes are in use at `now_ns`: the limit holds again where it can. An allowance that has stood for a while is made
    /// smaller, so that what can leave by now does. `true`: it was.
    pub(crate) fn ease(&self, used: u64, now_ns: u64) -> bool {
        let over = self.exceeded.load(Ordering::Relaxed);
        if over == 0 {
            return false;
        }
        let limit = self.limit_bytes();
        let less = if used < limit {
            0
        } else if now_ns.saturating_sub(self.changed_ns.load(Ordering::Relaxed)) < EASE_NS {
            return false;
        } else {
            over.saturating_sub((over / 8).max(limit / 64))
        };
        self.changed_ns.store(now_ns, Ordering::Relaxed);
        // Not over what somebody has just allowed.
        self.exceeded
            .compare_exchange(over, less, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = PAGE_SIZE as u64;

    #[test]
    fn a_charge_counts_only_when_it_fits() {
        let budget = Budget::new(Some(10 * PAGE));
        assert!(budget.charge(6, 2 * PAGE));
        assert!(!budget.charge(3, 2 * PAGE));
        assert_eq!(budget.resident_pages(), 6);
        assert!(budget.charge(2, 2 * PAGE));
        budget.uncharge(8);
        assert_eq!(budget.resident_pages(), 0);
    }

    #[test]
    fn an_exceeded_limit_is_said_once_and_holds_again_later() {
        let budget = Budget::new(Some(1024 * PAGE));
        assert!(budget.charge(1024, 0));
        assert!(!budget.charge(1, 0));
        assert!(budget.exceed(1024 * PAGE, 0));
        assert!(budget.charge(1, 0));
        assert!(!budget.exceed(1025 * PAGE, 0), "said before");
        budget.uncharge(1000);
        assert!(budget.ease(25 * PAGE, 1));
        assert!(!budget.charge(1100, 0));
    }

    #[test]
    fn an_allowance_stays_for_a_while_and_goes_little_by_little() {
        let budget = Budget::new(Some(1024 * PAGE));
        assert!(!budget.ease(2000 * PAGE, EASE_NS), "there is none");
        budget.exceed(2000 * PAGE, 0);
        let allowed = budget.allowed();
        assert!(allowed >= 2000 * PAGE);
        assert_eq!(budget.level(2000 * PAGE), Level::Roomy, "no use trying now");
        // As the others of a tree come and go.
        budget.set_limit(1000 * PAGE);
        budget.set_limit(1024 * PAGE);
        assert_eq!(budget.allowed(), allowed);
        assert!(!budget.ease(2000 * PAGE, EASE_NS - 1));
        let mut now = 0;
        let mut before = allowed;
        while budget.allowed() > 1024 * PAGE {
            now += EASE_NS;
            assert!(budget.ease(2000 * PAGE, now));
            assert!(!budget.ease(2000 * PAGE, now), "once at a time");
            assert!(budget.allowed() < before);
            before = budget.allowed();
        }
        assert_eq!(budget.level(1024 * PAGE), Level::Tight);
    }

    #[test]
    fn a_new_limit_holds_from_the_next_charge() {
        let budget = Budget::new(Some(10 * PAGE));
        assert!(budget.charge(8, 0));
        budget.set_limit(4 * PAGE);
        assert!(!budget.charge(1, 0));
        assert_eq!(budget.level(8 * PAGE), Level::Tight);
        budget.set_limit(100 * PAGE);
        assert!(budget.charge(50, 0));
    }

    #[test]
    fn without_a_limit_everything_fits() {
        let budget = Budget::new(None);
        assert!(budget.charge(1 << 40, 0));
        assert_eq!(budget.level(u64::MAX / 2), Level::Roomy);
        assert_eq!(budget.limit(), None);
    }
}
