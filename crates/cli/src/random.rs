//! Seeded pseudo-random numbers: the same seed gives the same pages and the same order everywhere.

/// Mixes 64 bits so that neighbouring inputs give unrelated outputs (splitmix64's finisher).
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A splitmix64 generator.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    /// A generator whose whole output follows from `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            state: mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)),
        }
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// A number below `bound`, which must not be 0. The bias of the multiplication is below 2^-32 for the bounds used.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

/// All numbers below `count` in random order (Fisher and Yates).
pub(crate) fn permutation(count: usize, seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..u32::try_from(count).expect("fewer than 2^32 pages")).collect();
    let mut random = Random::new(seed);
    for end in (1..count).rev() {
        order.swap(end, random.below(end + 1));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_holds_every_number_once_and_is_not_the_identity() {
        let mut order = permutation(10_000, 7);
        assert_ne!(order, (0..10_000).collect::<Vec<_>>());
        assert_eq!(
            order,
            permutation(10_000, 7),
            "the same seed gives the same order"
        );
        assert_ne!(order, permutation(10_000, 8));
        let neighbours = order
            .windows(2)
            .filter(|pair| pair[0] + 1 == pair[1])
            .count();
        assert!(
            neighbours < 10,
            "{neighbours} pages follow their predecessor"
        );
        order.sort_unstable();
        assert_eq!(order, (0..10_000).collect::<Vec<_>>());
    }

    #[test]
    fn tiny_permutations() {
        assert!(permutation(0, 1).is_empty());
        assert_eq!(permutation(1, 1), [0]);
    }

    #[test]
    fn below_stays_below_and_reaches_all() {
        let mut random = Random::new(3);
        let mut seen = [false; 7];
        for _ in 0..1000 {
            seen[random.below(7)] = true;
        }
        assert!(seen.iter().all(|&hit| hit));
    }
}
