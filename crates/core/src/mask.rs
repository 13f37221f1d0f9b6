//! Sets of a chunk's pages as 64-bit masks.

use crate::page_table::CHUNK_PAGES;

/// The indices in `mask`, ascending.
pub fn indices(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (mask != 0).then(|| {
            let index = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            index
        })
    })
}

/// The maximal runs of consecutive indices in `mask`, ascending: (first, length).
pub fn runs(mut mask: u64) -> impl Iterator<Item = (usize, usize)> {
    std::iter::from_fn(move || {
        (mask != 0).then(|| {
            let first = mask.trailing_zeros() as usize;
            let length = (mask >> first).trailing_ones() as usize;
            mask &= !run(first, length);
            (first, length)
        })
    })
}

/// The mask of `length` indices from `first`.
#[must_use]
pub fn run(first: usize, length: usize) -> u64 {
    debug_assert!(first + length <= CHUNK_PAGES);
    match length {
        0 => 0,
        CHUNK_PAGES => u64::MAX,
        _ => ((1 << length) - 1) << first,
    }
}

/// The mask of index `index`.
#[must_use]
pub fn bit(index: usize) -> u64 {
    1 << index
}

/// Those indices of `mask` that `keep` keeps.
pub fn filter(mask: u64, mut keep: impl FnMut(usize) -> bool) -> u64 {
    indices(mask)
        .filter(|&index| keep(index))
        .fold(0, |all, index| all | bit(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_indices_take_a_mask_apart() {
        for mask in [0, 1, u64::MAX, 0xf0f0_0000_0000_00ff, 1 << 63, 0b1011_0111] {
            assert_eq!(indices(mask).fold(0, |all, index| all | bit(index)), mask);
            let mut all = 0;
            let mut end = None;
            for (first, length) in runs(mask) {
                assert!(
                    end.is_none_or(|end| first > end),
                    "runs are maximal and ascending"
                );
                all |= run(first, length);
                end = Some(first + length);
            }
            assert_eq!(all, mask);
        }
    }
}
