//! The stacks of the program's threads: they stay in memory.
//!
//! When a thread ends, the kernel writes to its stack, where nobody could bring a page in any more; and libc keeps there
//! what every thread runs on.

use std::ops::Range;

use userswap_sys::ranges::Ranges;

/// Mappings made for stacks. More of them than this are treated as other memory is.
static STACKS: Ranges<8192> = Ranges::new();

/// A stack was mapped. `false`: there is no room for it; it is as if it were none.
pub(crate) fn note(range: &Range<usize>) -> bool {
    STACKS.covers(range) || STACKS.note(range)
}

/// The stack that `address` is in.
pub(crate) fn containing(address: usize) -> Option<Range<usize>> {
    STACKS.iter().find(|stack| stack.contains(&address))
}

/// Runs `unmap`, which unmaps `range` and says whether it did: what is left of a stack in it is no stack any more. Forgotten
/// before: another stack may be mapped and noted there as soon as there is room.
pub(crate) fn unmapped(range: &Range<usize>, unmap: impl FnOnce() -> bool) {
    let overlaps = |stack: &Range<usize>| stack.start < range.end && stack.end > range.start;
    let gone: Vec<_> = STACKS.iter().filter(overlaps).collect();
    if !gone.is_empty() {
        STACKS.forget(overlaps);
    }
    if !unmap() {
        for stack in &gone {
            note(stack);
        }
    }
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
        unmapped(&(0x2000..0x3000), || false);
        assert!(containing(0x2000).is_some());
        unmapped(&(0x2000..0x3000), || true);
        assert_eq!(left(0..0xa000), [0..0x8000, 0x9000..0xa000]);
        unmapped(&(0..0x10_0000), || true);
        assert!(ranges().iter().all(|stack| stack.start >= 0x10_0000));
    }
}
