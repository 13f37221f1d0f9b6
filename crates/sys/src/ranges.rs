//! A table of address ranges that takes no lock and allocates nothing: for what a fork, or a signal, may interrupt at any
//! moment.
//!
//! Guarantee: a range noted before [`Ranges::iter`] is called is told, until it is forgotten. Mechanism: a row is
//! written end first, and is valid from the moment its start is there.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Debug)]
struct Row {
    /// 0: free; [`CLAIMED`]: being written.
    start: AtomicUsize,
    end: AtomicUsize,
}

const CLAIMED: usize = 1;

/// At most `N` ranges of addresses.
#[derive(Debug)]
pub struct Ranges<const N: usize> {
    rows: [Row; N],
    /// Rows that were ever used: readers look no further.
    used: AtomicUsize,
}

impl<const N: usize> Ranges<N> {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            rows: [const {
                Row {
                    start: AtomicUsize::new(0),
                    end: AtomicUsize::new(0),
                }
            }; N],
            used: AtomicUsize::new(0),
        }
    }

    /// Notes a range. `false`: there is no room.
    pub fn note(&self, range: &Range<usize>) -> bool {
        let free = self.rows.iter().position(|row| {
            row.start
                .compare_exchange(0, CLAIMED, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        });
        let Some(at) = free else { return false };
        let row = &self.rows[at];
        row.end.store(range.end, Ordering::Relaxed);
        // Release: whoever sees the start sees the end.
        row.start.store(range.start, Ordering::Release);
        self.used.fetch_max(at + 1, Ordering::Release);
        true
    }

    /// Forgets every range for which `is_gone`.
    pub fn forget(&self, is_gone: impl Fn(&Range<usize>) -> bool) {
        for row in self.used_rows() {
            if row.range().is_some_and(|range| is_gone(&range)) {
                row.start.store(0, Ordering::Release);
            }
        }
    }

    /// Takes `cut` out of every range: what is left of one goes on being noted, as far as there is room.
    pub fn cut(&self, cut: &Range<usize>) {
        for row in self.used_rows() {
            let Some(range) = row.range() else { continue };
            if range.end <= cut.start || range.start >= cut.end {
                continue;
            }
            row.start.store(0, Ordering::Release);
            for rest in [range.start..cut.start, cut.end..range.end] {
                if rest.start < rest.end {
                    self.note(&rest);
                }
            }
        }
    }

    /// Whether `range` lies in one that is noted.
    pub fn covers(&self, range: &Range<usize>) -> bool {
        self.iter()
            .any(|noted| noted.start <= range.start && range.end <= noted.end)
    }

    /// What is noted, in no order.
    pub fn iter(&self) -> impl Iterator<Item = Range<usize>> {
        self.used_rows().iter().filter_map(Row::range)
    }

    fn used_rows(&self) -> &[Row] {
        &self.rows[..self.used.load(Ordering::Acquire)]
    }
}

impl<const N: usize> Default for Ranges<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl Row {
    fn range(&self) -> Option<Range<usize>> {
        let start = self.start.load(Ordering::Acquire);
        (start > CLAIMED).then(|| start..self.end.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_leaves_the_rest() {
        let ranges = Ranges::<4>::new();
        ranges.note(&(0x1000..0x9000));
        ranges.cut(&(0x3000..0x4000));
        assert!(ranges.covers(&(0x1000..0x3000)) && ranges.covers(&(0x4000..0x9000)));
        assert!(!ranges.covers(&(0x2000..0x3001)));
        ranges.cut(&(0..0x5000));
        ranges.cut(&(0x8000..0xf000));
        assert_eq!(ranges.iter().count(), 1);
        assert!(ranges.covers(&(0x5000..0x8000)));
    }

    #[test]
    fn what_is_noted_is_told_until_it_is_forgotten() {
        let ranges = Ranges::<2>::new();
        assert!(ranges.note(&(0x1000..0x2000)) && ranges.note(&(0x5000..0x6000)));
        assert!(!ranges.note(&(0x7000..0x8000)), "there is no room");
        ranges.forget(|range| range.contains(&0x1800));
        assert_eq!(ranges.iter().count(), 1);
        assert!(ranges.note(&(0x7000..0x8000)));
        assert!(ranges.covers(&(0x7100..0x8000)) && !ranges.covers(&(0x7100..0x8001)));
        let told: Vec<_> = ranges.iter().map(|range| range.start).collect();
        assert_eq!(told, [0x7000, 0x5000]);
    }
}
