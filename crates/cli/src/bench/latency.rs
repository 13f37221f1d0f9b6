//! Latencies of single touches.

use std::time::Instant;

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::memory::Memory;

/// Latencies in nanoseconds, to three figures.
#[derive(Clone, Debug)]
pub(super) struct Latencies(Histogram<u64>);

/// What is printed of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Figures {
    pub(super) count: u64,
    pub(super) mean_ns: f64,
    pub(super) p50_ns: u64,
    pub(super) p90_ns: u64,
    pub(super) p99_ns: u64,
    pub(super) max_ns: u64,
    /// The share of touches that took longer than any touch of a page in memory: those that faulted. Of threads in
    /// lockstep it is near 1 where they met, and one in so many where they only followed one another.
    pub(super) faulted_share: f64,
}

/// A touch that takes longer than this has faulted.
const FAULTED_NS: u64 = 1_000;

/// Longest latency that is told apart.
const LONGEST_NS: u64 = 60_000_000_000;

impl Latencies {
    pub(super) fn new() -> anyhow::Result<Self> {
        // With fixed bounds it allocates now and never while measuring.
        Ok(Self(
            Histogram::new_with_bounds(1, LONGEST_NS, 3).context("cannot make a histogram")?,
        ))
    }

    /// Touches `page` and records how long it took, the reading of the clock included.
    pub(super) fn touch(&mut self, memory: &Memory, page: usize) {
        let start = Instant::now();
        memory.touch(page);
        self.record(start);
    }

    /// Records the time since `start`.
    pub(super) fn record(&mut self, start: Instant) {
        self.record_ns(u64::try_from(start.elapsed().as_nanos()).unwrap_or(LONGEST_NS));
    }

    pub(super) fn record_ns(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    pub(super) fn add(&mut self, other: &Latencies) -> anyhow::Result<()> {
        self.0
            .add(&other.0)
            .context("histograms have the same bounds")
    }

    pub(super) fn figures(&self) -> Figures {
        let faulted = self.0.len() - self.0.count_between(0, FAULTED_NS);
        Figures {
            faulted_share: faulted as f64 / self.0.len().max(1) as f64,
            count: self.0.len(),
            mean_ns: self.0.mean(),
            p50_ns: self.0.value_at_quantile(0.5),
            p90_ns: self.0.value_at_quantile(0.9),
            p99_ns: self.0.value_at_quantile(0.99),
            max_ns: self.0.max(),
        }
    }
}

impl Figures {
    /// The table's columns after the name.
    pub(super) const HEAD: [&str; 5] = ["p50 us", "p90 us", "p99 us", "max us", "mean us"];

    /// Cells for [`Figures::HEAD`].
    pub(super) fn cells(&self) -> Vec<String> {
        let us = |ns: f64| format!("{:.2}", ns / 1e3);
        let whole = [self.p50_ns, self.p90_ns, self.p99_ns, self.max_ns].map(|ns| us(ns as f64));
        whole.into_iter().chain([us(self.mean_ns)]).collect()
    }

    /// Of several repeats: the median of each figure, except that the maximum stays the greatest.
    pub(super) fn median_of(repeats: impl IntoIterator<Item = Figures>) -> Figures {
        let repeats: Vec<Figures> = repeats.into_iter().collect();
        let median = |value: fn(&Figures) -> f64| {
            super::stat::median(repeats.iter().map(value)).unwrap_or(0.0)
        };
        Figures {
            count: repeats.iter().map(|figures| figures.count).sum(),
            mean_ns: median(|figures| figures.mean_ns),
            p50_ns: median(|figures| figures.p50_ns as f64) as u64,
            p90_ns: median(|figures| figures.p90_ns as f64) as u64,
            p99_ns: median(|figures| figures.p99_ns as f64) as u64,
            faulted_share: median(|figures| figures.faulted_share),
            max_ns: repeats
                .iter()
                .map(|figures| figures.max_ns)
                .max()
                .unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_known_values() {
        let mut latencies = Latencies::new().expect("a histogram");
        for ns in 1..=1000 {
            latencies.record_ns(ns);
        }
        let figures = latencies.figures();
        assert_eq!(
            (figures.count, figures.p50_ns, figures.p90_ns),
            (1000, 500, 900)
        );
        assert_eq!((figures.p99_ns, figures.max_ns), (990, 1000));
        assert_eq!(figures.faulted_share, 0.0);
        latencies.record_ns(5_000);
        assert!((latencies.figures().faulted_share - 1.0 / 1001.0).abs() < 1e-9);
        let mut sum = latencies.clone();
        sum.add(&latencies).expect("the same bounds");
        assert_eq!(sum.figures().count, 2002);
    }

    #[test]
    fn the_maximum_of_repeats_is_the_greatest() {
        let repeat = |p50_ns, max_ns| Figures {
            p50_ns,
            max_ns,
            count: 1,
            ..Figures::default()
        };
        let all = Figures::median_of([repeat(5, 100), repeat(7, 900), repeat(6, 300)]);
        assert_eq!((all.p50_ns, all.max_ns, all.count), (6, 900, 3));
    }
}
