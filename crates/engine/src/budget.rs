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
//!
//! The *floor*: where what else is in use leaves less than a part of the limit for resident pages, and that does not pass, they
//! may take that part all the same. With next to nothing resident each step of a program is a fault: it would hold its limit, and
//! stand still.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use userswap_core::device::PAGE_SIZE;

/// Nanoseconds after which an allowance becomes smaller.
const EASE_NS: u64 = 100_000_000;

const NOT_ASKED: i64 = i64::MIN;

/// One part in so many of the limit is for resident pages, whatever else is in use.
const FLOOR: u64 = 8;

/// Nanoseconds after which resident pages get it. Before, the store may still become smaller.
const LOW_NS: u64 = 1_000_000_000;

/// A limit that is exceeded by one part in so many is not held.
const NEWS: u64 = 20;

/// Nanoseconds between two looks at whether that is to be told: where processes share a limit it takes some time to see.
const NEWS_NS: u64 = 10_000_000;

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
    /// When somebody was last told that this is news, in nanoseconds.
    news_ns: AtomicU64,
    /// The limit is kept whatever it costs: there is no floor.
    strict: bool,
    /// Since when charges have been refused with fewer pages resident than the floor, and when the last one was, in nanoseconds;
    /// 0: none.
    low_since_ns: AtomicU64,
    refused_ns: AtomicU64,
    /// The floor is in force.
    floored: AtomicBool,
}

/// A limit that processes share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whole {
    pub(crate) bytes: u64,
    /// Whether it can be held with so many bytes in use here.
    pub(crate) can_be_held: fn(u64) -> bool,
    /// Whether this process is to end since it cannot; the others then count without it.
    pub(crate) ends: fn(u64) -> bool,
    /// Counts so many more bytes as this process's, until it next says what it has; not, unless `always`, where the whole would
    /// be more than the limit then (`false`).
    pub(crate) count: fn(bytes: i64, always: bool) -> bool,
    /// Which of 64 pages from an address on no other process has, where that can be seen.
    pub(crate) own_pages: fn(usize) -> Option<u64>,
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
    pub(crate) fn new(limit: Option<u64>, strict: bool) -> Self {
        Self {
            strict,
            low_since_ns: AtomicU64::new(0),
            refused_ns: AtomicU64::new(0),
            floored: AtomicBool::new(false),
            limit: AtomicU64::new(limit.unwrap_or(u64::MAX)),
            resident: AtomicU64::new(0),
            tables: AtomicU64::new(0),
            rest: AtomicI64::new(NOT_ASKED),
            exceeded: AtomicU64::new(0),
            changed_ns: AtomicU64::new(0),
            warned: AtomicBool::new(false),
            news_ns: AtomicU64::new(0),
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

    /// Bytes that may be in use, `others` of them not by resident pages: the limit and the allowance, or what the floor asks for.
    pub(crate) fn allowed(&self, others: u64) -> u64 {
        let limit = self.limit_bytes();
        let allowed = limit.saturating_add(self.exceeded.load(Ordering::Relaxed));
        if self.floored.load(Ordering::Relaxed) {
            allowed.max(others.saturating_add(limit / FLOOR))
        } else {
            allowed
        }
    }

    /// A charge was refused at `now_ns`: the floor comes in force where few pages have been resident for long.
    pub(crate) fn note_refused(&self, now_ns: u64) {
        let now_ns = now_ns.max(1);
        let since = self.low_since_ns.load(Ordering::Relaxed);
        let last = self.refused_ns.swap(now_ns, Ordering::Relaxed);
        if self.strict || self.resident_bytes() >= self.limit_bytes() / FLOOR {
            if since != 0 {
                self.low_since_ns.store(0, Ordering::Relaxed);
            }
        } else if since == 0 || now_ns.saturating_sub(last) >= LOW_NS / 4 {
            // For the first time, or it had passed.
            self.low_since_ns.store(now_ns, Ordering::Relaxed);
        } else if now_ns.saturating_sub(since) >= LOW_NS {
            self.floored.store(true, Ordering::Relaxed);
        }
    }

    /// Pages mapped in regions.
    pub(crate) fn resident_pages(&self) -> u64 {
        self.resident.load(Ordering::Relaxed)
    }

    /// The same, in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.resident_pages() * PAGE_SIZE as u64
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

    /// `pages` that were charged are part of the rest from now on, until the system is next asked.
    pub(crate) fn leave_to_rest(&self, pages: u64) {
        if self.rest().is_some() {
            self.rest
                .fetch_add((pages * PAGE_SIZE as u64) as i64, Ordering::Relaxed);
        }
        self.uncharge(pages);
    }

    /// Counts `pages` as mapped if that stays within the limit; `others` is what else is in use.
    pub(crate) fn charge(&self, pages: u64, others: u64) -> bool {
        let resident = self.resident.fetch_add(pages, Ordering::Relaxed) + pages;
        if resident * PAGE_SIZE as u64 + others <= self.allowed(others) {
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

    /// How full it is, with `others` bytes in use beside resident pages.
    pub(crate) fn level(&self, others: u64) -> Level {
        let Some(limit) = self.limit() else {
            return Level::Roomy;
        };
        let low = (limit / 128).max(LEAST_FREE.min(limit / 32));
        let used = self.resident_bytes() + others;
        match self.allowed(others).saturating_sub(used) {
            free if free < low => Level::Tight,
            free if free < low * 2 => Level::Low,
            _ => Level::Roomy,
        }
    }

    /// No room can be made with `used` bytes in use, at `now_ns`: lets the limit be exceeded, in steps, so that
    /// not every charge has to find that out anew.
    pub(crate) fn exceed(&self, used: u64, now_ns: u64) {
        let limit = self.limit_bytes();
        // Beyond the marks, so that the reclaimer need not try at once what has just failed.
        let over = used.saturating_sub(limit) + limit / 16 + 64 * PAGE_SIZE as u64;
        self.exceeded.store(over, Ordering::Relaxed);
        self.changed_ns.store(now_ns, Ordering::Relaxed);
    }

    /// Whether `used` bytes are far enough over the limit to be told of, which they have not been yet.
    /// From then on not for a moment.
    pub(crate) fn is_news(&self, used: u64, now_ns: impl FnOnce() -> u64) -> bool {
        let limit = self.limit_bytes();
        if used <= limit.saturating_add(limit / NEWS) || self.is_warned() {
            return false;
        }
        let (now, last) = (now_ns(), self.news_ns.load(Ordering::Relaxed));
        let is_news = last == 0 || now.saturating_sub(last) >= NEWS_NS;
        if is_news {
            self.news_ns.store(now.max(1), Ordering::Relaxed);
        }
        is_news
    }

    /// Whether that has been told.
    pub(crate) fn is_warned(&self) -> bool {
        self.warned.load(Ordering::Relaxed)
    }

    /// It is going to be told that the limit is exceeded; `true`: for the first time.
    pub(crate) fn warn(&self) -> bool {
        !self.warned.swap(true, Ordering::Relaxed)
    }

    /// Whether more than the limit may be in use.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.exceeded.load(Ordering::Relaxed) > 0 || self.floored.load(Ordering::Relaxed)
    }

    /// `used` bytes are in use at `now_ns`: the limit holds again where it can. An allowance that has stood for a while is made
    /// smaller, so that what can leave by now does. `true`: it was.
    pub(crate) fn ease(&self, used: u64, now_ns: u64) -> bool {
        let limit = self.limit_bytes();
        if used < limit && self.floored.swap(false, Ordering::Relaxed) {
            self.low_since_ns.store(0, Ordering::Relaxed);
        }
        let over = self.exceeded.load(Ordering::Relaxed);
        if over == 0 {
            return false;
        }
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
        let budget = Budget::new(Some(10 * PAGE), false);
        assert!(budget.charge(6, 2 * PAGE));
        assert!(!budget.charge(3, 2 * PAGE));
        assert_eq!(budget.resident_pages(), 6);
        assert!(budget.charge(2, 2 * PAGE));
        budget.uncharge(8);
        assert_eq!(budget.resident_pages(), 0);
    }

    #[test]
    fn an_exceeded_limit_is_said_once_and_holds_again_later() {
        let budget = Budget::new(Some(1024 * PAGE), false);
        assert!(budget.charge(1024, 0));
        assert!(!budget.charge(1, 0));
        budget.exceed(1024 * PAGE, 0);
        assert!(budget.charge(1, 0));
        assert!(!budget.is_news(1025 * PAGE, || 1), "hardly");
        assert!(budget.is_news(1200 * PAGE, || 1));
        assert!(!budget.is_news(1200 * PAGE, || NEWS_NS), "just told");
        assert!(budget.is_news(1200 * PAGE, || NEWS_NS + 1));
        assert!(budget.warn());
        assert!(!budget.is_news(1200 * PAGE, || 9 * NEWS_NS), "said before");
        assert!(!budget.warn());
        budget.uncharge(1000);
        assert!(budget.ease(25 * PAGE, 1));
        assert!(!budget.charge(1100, 0));
    }

    #[test]
    fn an_allowance_stays_for_a_while_and_goes_little_by_little() {
        let budget = Budget::new(Some(1024 * PAGE), false);
        assert!(!budget.ease(2000 * PAGE, EASE_NS), "there is none");
        budget.exceed(2000 * PAGE, 0);
        let allowed = budget.allowed(0);
        budget.force(2000);
        assert!(allowed >= 2000 * PAGE);
        assert_eq!(budget.level(0), Level::Roomy, "no use trying now");
        // As the others of a tree come and go.
        budget.set_limit(1000 * PAGE);
        budget.set_limit(1024 * PAGE);
        assert_eq!(budget.allowed(0), allowed);
        assert!(!budget.ease(2000 * PAGE, EASE_NS - 1));
        let mut now = 0;
        let mut before = allowed;
        while budget.allowed(0) > 1024 * PAGE {
            now += EASE_NS;
            assert!(budget.ease(2000 * PAGE, now));
            assert!(!budget.ease(2000 * PAGE, now), "once at a time");
            assert!(budget.allowed(0) < before);
            before = budget.allowed(0);
        }
        assert_eq!(budget.level(0), Level::Tight);
    }

    #[test]
    fn a_part_of_the_limit_is_for_resident_pages_but_where_it_is_strict() {
        let all = 800 * PAGE;
        for (strict, granted) in [(false, 100), (true, 0)] {
            let budget = Budget::new(Some(all), strict);
            assert!(budget.charge(100, 700 * PAGE));
            assert!(!budget.charge(1, 700 * PAGE));
            let refused = |from: u64, to: u64| {
                let step = LOW_NS as usize / 10;
                (from..=to)
                    .step_by(step)
                    .for_each(|now| budget.note_refused(now));
            };
            refused(0, 2 * LOW_NS);
            assert!(!budget.charge(1, 700 * PAGE), "as many as the floor");
            budget.uncharge(100);
            // What else is in use has grown over the limit.
            let others = all + PAGE;
            let charged = || (0..200).filter(|_| budget.charge(1, others)).count();
            refused(3 * LOW_NS, 4 * LOW_NS - 1);
            assert_eq!(charged(), 0, "it may pass");
            refused(5 * LOW_NS, 5 * LOW_NS);
            refused(7 * LOW_NS, 7 * LOW_NS);
            assert_eq!(charged(), 0, "it had passed each time");
            refused(8 * LOW_NS, 9 * LOW_NS);
            assert_eq!(charged(), granted);
            assert_eq!(budget.level(others), Level::Tight);
            budget.ease(others, 10 * LOW_NS);
            budget.uncharge(granted as u64);
            assert_eq!(charged(), granted, "it has not passed");
            budget.uncharge(granted as u64);
            budget.ease(all / 2, 10 * LOW_NS);
            assert_eq!(charged(), 0, "it has");
        }
    }

    #[test]
    fn a_new_limit_holds_from_the_next_charge() {
        let budget = Budget::new(Some(10 * PAGE), false);
        assert!(budget.charge(8, 0));
        budget.set_limit(4 * PAGE);
        assert!(!budget.charge(1, 0));
        assert_eq!(budget.level(0), Level::Tight);
        budget.set_limit(100 * PAGE);
        assert!(budget.charge(50, 0));
    }

    #[test]
    fn without_a_limit_everything_fits() {
        let budget = Budget::new(None, false);
        assert!(budget.charge(1 << 40, 0));
        assert_eq!(budget.level(1 << 40), Level::Roomy);
        assert_eq!(budget.limit(), None);
    }
}
