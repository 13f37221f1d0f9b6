//! What is kept once per CPU, so that threads on different CPUs do not pull at one cache line.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::thread::available_parallelism;

use userswap_core::device::DeviceError;

use crate::arena::Table;

/// The CPU this thread runs on: a hint, it may move at any time.
pub(crate) fn current() -> usize {
    rustix::thread::sched_getcpu()
}

/// How many CPUs this process may use; at least one.
pub(crate) fn count() -> usize {
    available_parallelism().map_or(1, |n| n.get())
}

/// `N` sums, each spread over the CPUs.
///
/// Guarantee: every addition is in every later total, exactly once. Totals taken while others add
/// may mix moments; a single CPU's share may be negative when a page is counted on one CPU and
/// dropped on another.
#[derive(Debug)]
pub(crate) struct Counters<const N: usize> {
    cells: Table<Cell<N>>,
}

/// Two cache lines apart: the neighbouring line is fetched along.
#[derive(Debug)]
#[repr(align(128))]
struct Cell<const N: usize>([AtomicI64; N]);

impl<const N: usize> Counters<N> {
    pub(crate) fn new() -> Result<Self, DeviceError> {
        let cells = Table::from_fn(count().min(16), |_| Cell([const { AtomicI64::new(0) }; N]))?;
        Ok(Self { cells })
    }

    /// Adds `delta` to sum `index`, in the share of `cpu`.
    pub(crate) fn add(&self, cpu: usize, index: usize, delta: i64) {
        // Relaxed: a sum orders nothing else.
        self.cells[cpu % self.cells.len()].0[index].fetch_add(delta, Relaxed);
    }

    /// Sum `index`.
    pub(crate) fn total(&self, index: usize) -> u64 {
        let total: i64 = self
            .cells
            .iter()
            .map(|cell| cell.0[index].load(Relaxed))
            .sum();
        total.max(0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_add_up_over_cpus() {
        let counters = Counters::<2>::new().unwrap();
        for cpu in 0..100 {
            counters.add(cpu, 1, 3);
        }
        counters.add(5, 1, -200);
        assert_eq!((counters.total(0), counters.total(1)), (0, 100));
    }
}
