//! The stacks of the program's threads: they stay in memory.
//!
//! When a thread ends, the kernel writes to its stack, where nobody could bring a page in any more; and libc keeps there
//! what every thread runs on.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// More stacks than this are treated as other memory is.
const ROWS: usize = 4096;

/// A start of 0: free; of 1: being written. No lock: a fork may come at any moment.
struct Row {
    start: AtomicUsize,
    end: AtomicUsize,
}

static TABLE: [Row; ROWS] = [const {
    Row {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
    }
}; ROWS];

/// Rows that were ever used: readers look no further.
static USED: AtomicUsize = AtomicUsize::new(0);

/// A stack was mapped.
pub(crate) fn note(range: &Range<usize>) {
    let mut rows = TABLE.iter().enumerate();
    let free = rows.find(|(_, row)| {
        let claimed = row
            .start
            .compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed);
        claimed.is_ok()
    });
    if let Some((at, row)) = free {
        row.end.store(range.end, Ordering::Relaxed);
        // Release: whoever sees the start sees the end.
        row.start.store(range.start, Ordering::Release);
        USED.fetch_max(at + 1, Ordering::Release);
    }
}

/// `range` is unmapped: what is left of a stack in it is no stack any more.
pub(crate) fn forget(range: &Range<usize>) {
    for row in &TABLE[..USED.load(Ordering::Acquire)] {
        let start = row.start.load(Ordering::Acquire);
        if start > 1 && start < range.end && row.end.load(Ordering::Relaxed) > range.start {
            row.start.store(0, Ordering::Relaxed);
        }
    }
}

/// All of them, ascending.
pub(crate) fn ranges() -> Vec<Range<usize>> {
    let rows = TABLE[..USED.load(Ordering::Acquire)].iter();
    let mut ranges: Vec<_> = rows
        .filter_map(|row| {
            let start = row.start.load(Ordering::Acquire);
            (start > 1).then(|| start..row.end.load(Ordering::Relaxed))
        })
        .collect();
    ranges.sort_unstable_by_key(|range| range.start);
    ranges
}

/// Tells `found` the parts of `range` that are in none of `stacks`.
pub(crate) fn without(
    range: Range<usize>,
    stacks: &[Range<usize>],
    found: &mut dyn FnMut(Range<usize>),
) {
    let mut at = range.start;
    for stack in stacks {
        if stack.end <= at || stack.start >= range.end {
            continue;
        }
        if stack.start > at {
            found(at..stack.start);
        }
        at = stack.end;
    }
    if at < range.end {
        found(at..range.end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_left_out_until_they_are_unmapped() {
        let left = |range: Range<usize>| {
            let mut parts = Vec::new();
            without(range, &ranges(), &mut |part| parts.push(part));
            parts
        };
        note(&(0x1000..0x5000));
        note(&(0x8000..0x9000));
        assert_eq!(left(0..0xa000), [0..0x1000, 0x5000..0x8000, 0x9000..0xa000]);
        forget(&(0x2000..0x3000));
        assert_eq!(left(0..0xa000), [0..0x8000, 0x9000..0xa000]);
        forget(&(0..0x10_0000));
        assert!(ranges().is_empty());
    }
}
