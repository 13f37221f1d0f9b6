//! The word that says where a slot's page is.
//!
//! ```text
//!  63            48 47         16 15      8 7     3 2   1  0
//! +----------------+-------------+---------+-------+-----+---+
//! | 0              | block (32)  | home (8)| 0     |state| L |  stored
//! | 0              | index       | segment | 0     |state| L |  buffered
//! +----------------+-------------+---------+-------+-----+---+
//! ```
//!
//! | state | the page is |
//! |---|---|
//! | empty | zeros: never written, or discarded |
//! | same | one word repeated, kept in the slot's proof |
//! | buffered | sealed, in a segment that is not written yet |
//! | stored | sealed, in a block of a home |

use crate::slots::SlotWord;

const STATE_SHIFT: u32 = 1;
const STATE_MASK: u64 = 3;
const HOME_SHIFT: u32 = 8;
const HOME_MASK: u64 = 0xff;
const BLOCK_SHIFT: u32 = 16;

const SAME: u64 = 1;
const BUFFERED: u64 = 2;
const STORED: u64 = 3;

/// A table word without its lock bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(u64);

/// What a word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    Empty,
    Same,
    /// A segment, and an index in it.
    Buffered(usize, usize),
    /// A home, and a block of it.
    Stored(usize, u32),
}

impl Word {
    pub(super) const EMPTY: Self = Self(0);
    pub(super) const SAME: Self = Self(SAME << STATE_SHIFT);

    pub(super) fn buffered(segment: usize, index: usize) -> Self {
        Self::of(BUFFERED, segment, index as u64)
    }

    pub(super) fn stored(home: usize, block: u32) -> Self {
        Self::of(STORED, home, u64::from(block))
    }

    fn of(state: u64, first: usize, second: u64) -> Self {
        debug_assert!(first as u64 <= HOME_MASK);
        Self(second << BLOCK_SHIFT | (first as u64) << HOME_SHIFT | state << STATE_SHIFT)
    }

    pub(super) fn place(self) -> Where {
        let first = (self.0 >> HOME_SHIFT & HOME_MASK) as usize;
        let second = self.0 >> BLOCK_SHIFT;
        match self.0 >> STATE_SHIFT & STATE_MASK {
            SAME => Where::Same,
            BUFFERED => Where::Buffered(first, second as usize),
            STORED => Where::Stored(first, second as u32),
            _ => Where::Empty,
        }
    }
}

impl SlotWord for Word {
    fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    fn raw(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back() {
        assert_eq!(Word::EMPTY.place(), Where::Empty);
        assert_eq!(Word::EMPTY.raw(), 0, "a fresh table is one of empty slots");
        assert_eq!(Word::SAME.place(), Where::Same);
        for (home, block) in [(0, 0), (255, u32::MAX), (3, 1 << 31)] {
            let word = Word::stored(home, block);
            assert_eq!(word.place(), Where::Stored(home, block));
            assert_eq!(word.raw() & 1, 0, "the lock's bit");
        }
        assert_eq!(Word::buffered(7, 63).place(), Where::Buffered(7, 63));
    }
}
