//! The stacks of the program's threads: they stay in memory.
//!
//! When a thread ends, the kernel writes to its stack, where nobody could bring a page in any more; and libc keeps there
//! what every thread runs on.

use std::ops::Range;

use userswap_sys::ranges::Ranges;

/// Mappings made for stacks. More of them than this are treated as other memory is.
static STACKS: Ranges<4096> = Ranges::new();

/// A stack was mapped.
pub(crate) fn note(range: &Range<usize>) {
    // Without room it is as if it were none.
    STACKS.note(range);
}

/// `range` is unmapped: what is left of a stack in it is no stack any more.
pub(crate) fn forget(range: &Range<usize>) {
    STACKS.forget(|stack| stack.start < range.end && stack.end > range.start);
}

/// All of them, ascending.
pub(crate) fn ranges() -> Vec<Range<usize>> {
    let mut ranges: Vec<_> = STACKS.iter().collect();
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
