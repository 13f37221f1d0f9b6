//! Whether pages are better stored small or fast.
//!
//! Pages that are stored smaller leave room for others, which then stay in memory longer. What that would save is told by the
//! inactive list: of the pages that wait there, some are touched before they are written. Were the list longer by what denser
//! storing frees, about as many again would be, in proportion. A program that goes round all it has touches none of them, and
//! has nothing from denser storing but its time.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

/// The unit of shares and scores.
const ONE: u64 = 1024;

/// One part in so many of the store's memory comes free for pages where it is stored denser: two fifths of what LZ4 takes, and
/// what then stays in memory is not stored.
const FREED: u64 = 2;

/// The expected share of pages that would be touched before they are written, from which on denser storing pays, and below which
/// it no longer does. A page that need not go and come costs 10 to 15 us less, one that goes and comes 3 to 8 us more.
const PAYS_FROM: u64 = ONE * 2 / 5;
const PAYS_NOT: u64 = ONE / 5;

/// Periods that the score averages.
const AVERAGED: u64 = 4;

/// Counts what becomes of the pages on the inactive list. Every field is a hint: a period that two threads end at once counts
/// twice, or pages in the wrong one.
#[derive(Debug, Default)]
pub(crate) struct Density {
    /// Pages that were touched, and that were written, in this period.
    touched: AtomicU64,
    written: AtomicU64,
    /// The expected share, averaged.
    score: AtomicU32,
    small: AtomicBool,
}

/// What memory is used for, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Use {
    /// By stored pages.
    pub(crate) store: u64,
    /// By pages on the inactive list.
    pub(crate) inactive: u64,
}

impl Density {
    /// Whether pages are better stored small, as was last said.
    pub(crate) fn is_small(&self) -> bool {
        self.small.load(Relaxed)
    }

    /// Pages left the inactive list: `touched` back to where they came from, `written` to the device. `period`: after how many
    /// pages to look anew. Says what is better from now on, where that has changed: small, or fast.
    pub(crate) fn note(&self, touched: u64, written: u64, period: u64, used: Use) -> Option<bool> {
        let all = self.touched.fetch_add(touched, Relaxed)
            + self.written.fetch_add(written, Relaxed)
            + touched
            + written;
        if all < period {
            return None;
        }
        let (touched, written) = (self.touched.swap(0, Relaxed), self.written.swap(0, Relaxed));
        let share = touched * ONE / (touched + written).max(1);
        let longer = (used.store / FREED).saturating_mul(ONE) / used.inactive.max(1);
        let expected = (share * longer / ONE).min(ONE);
        let before = u64::from(self.score.load(Relaxed));
        let score = (before * (AVERAGED - 1) + expected) / AVERAGED;
        self.score.store(score as u32, Relaxed);
        let was_small = self.small.load(Relaxed);
        let small = score >= if was_small { PAYS_NOT } else { PAYS_FROM };
        self.small.store(small, Relaxed);
        (small != was_small).then_some(small)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: u64 = 1000;
    const USED: Use = Use {
        store: 20 << 20,
        inactive: 4 << 20,
    };

    /// What is said in so many periods in which `touched` of 1000 pages are.
    fn said(density: &Density, periods: usize, touched: u64) -> Vec<bool> {
        let pages = (0..periods * 10)
            .map(|_| density.note(touched / 10, (PERIOD - touched) / 10, PERIOD, USED));
        pages.flatten().collect()
    }

    #[test]
    fn small_where_the_inactive_list_is_touched_and_fast_again_where_it_is_not() {
        let density = Density::default();
        assert_eq!(said(&density, 20, 60), [], "a dict in random order");
        assert_eq!(said(&density, 2, 240), [], "not at once");
        assert_eq!(said(&density, 20, 240), [true]);
        assert_eq!(said(&density, 20, 120), [], "neither here nor there");
        assert_eq!(said(&density, 20, 0), [false], "a walk through all of it");
    }

    #[test]
    fn a_small_store_has_nothing_to_give() {
        let density = Density::default();
        let used = Use {
            store: 1 << 20,
            ..USED
        };
        assert!((0..100).all(|_| density.note(500, 500, PERIOD, used).is_none()));
    }
}
