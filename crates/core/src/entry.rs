//! The swap entry: which slot of which area holds a page.

/// How many swap areas an engine can have.
pub const MAX_AREAS: usize = 64;

/// Slots an area can have: offsets are 56 bits wide.
pub const MAX_SLOTS: u64 = 1 << OFFSET_BITS;

const OFFSET_BITS: u32 = 56;

/// A slot of a swap area.
///
/// ```text
/// 61      56 55                                    0
/// +---------+--------------------------------------+
/// |  area   |            offset (slot)             |
/// +---------+--------------------------------------+
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SwapEntry(u64);

impl SwapEntry {
    /// The entry for slot `offset` of area `area`.
    ///
    /// # Panics
    /// If `area` is not below [`MAX_AREAS`] or `offset` not below [`MAX_SLOTS`].
    #[must_use]
    pub fn new(area: usize, offset: u64) -> Self {
        assert!(
            area < MAX_AREAS && offset < MAX_SLOTS,
            "swap entry out of range"
        );
        Self((area as u64) << OFFSET_BITS | offset)
    }

    /// The area's number.
    #[must_use]
    pub fn area(self) -> usize {
        (self.0 >> OFFSET_BITS) as usize
    }

    /// The slot's number in its area.
    #[must_use]
    pub fn offset(self) -> u64 {
        self.0 & (MAX_SLOTS - 1)
    }

    pub(crate) fn raw(self) -> u64 {
        self.0
    }

    pub(crate) fn from_raw(raw: u64) -> Self {
        Self(raw)
    }
}

impl std::fmt::Display for SwapEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{:#x}", self.area(), self.offset())
    }
}

impl std::fmt::Debug for SwapEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SwapEntry({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn area_and_offset_survive_at_the_limits() {
        for area in [0, 1, MAX_AREAS - 1] {
            for offset in [0, 1, 1 << 40, MAX_SLOTS - 1] {
                let entry = SwapEntry::new(area, offset);
                assert_eq!((entry.area(), entry.offset()), (area, offset));
                assert_eq!(SwapEntry::from_raw(entry.raw()), entry);
            }
        }
    }

    #[test]
    #[should_panic(expected = "out of range")]
    fn an_offset_that_does_not_fit_is_refused() {
        let _ = SwapEntry::new(0, MAX_SLOTS);
    }
}
