//! The word that says what a slot holds.
//!
//! ```text
//!  63                              16 15        4 3   1  0
//! +----------------------------------+-----------+-----+---+
//! | handle: where in the store (48)  | bytes (12)|state| L |  packed, page, wide
//! +----------------------------------+-----------+-----+---+
//! | value (60)                                   |state| L |  low, high, half
//! +----------------------------------------------+-----+---+
//! ```
//!
//! | state | the page is | takes memory |
//! |---|---|---|
//! | [`EMPTY`] | zeros: never written, or discarded | no |
//! | [`LOW`] | one word repeated, whose four highest bits are 0 (so also a page of zeros) | no |
//! | [`HIGH`] | one word repeated, whose four lowest bits are 0 (a round floating-point number) | no |
//! | [`HALF`] | half a word repeated (poisoned memory, -1) | no |
//! | [`WIDE`] | any other word repeated | an object with the word |
//! | [`LZ4`], [`ZSTD`] | compressed so | an object of `bytes` |
//! | [`PAGE`] | not compressible | a page |
//!
//! L is the slot's lock. Whoever holds it may change the word and free or move the object; nobody
//! else may do either. To read an object, hold it; to read a word without an object, one load does.

use crate::codec::Format;
use crate::slots::SlotWord;
use crate::store::Handle;

const STATE_SHIFT: u32 = 1;
const STATE_MASK: u64 = 7;
const VALUE_SHIFT: u32 = 4;
const LEN_MASK: u64 = 0xfff;
const HANDLE_SHIFT: u32 = 16;

const EMPTY: u64 = 0;
const LOW: u64 = 1;
const HIGH: u64 = 2;
const HALF: u64 = 3;
const WIDE: u64 = 4;
const LZ4: u64 = 5;
const PAGE: u64 = 6;
const ZSTD: u64 = 7;

/// Bytes a [`WIDE`] object holds.
pub(super) const WIDE_BYTES: usize = size_of::<u64>();

/// A table word without its lock bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(u64);

/// What a word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// Nothing: zeros.
    Empty,
    /// This word, repeated.
    Same(u64),
    /// The word in this object, repeated.
    Wide(Handle),
    /// This object, of this many bytes, compressed so.
    Packed(Handle, usize, Format),
    /// This page.
    Page(Handle),
}

impl Word {
    pub(super) const EMPTY: Self = Self(EMPTY);

    /// The word for a page that repeats `value`, where no object is needed.
    pub(super) fn same(value: u64) -> Option<Self> {
        let word = |state, payload| Some(Self(state << STATE_SHIFT | payload << VALUE_SHIFT));
        if value >> (u64::BITS - VALUE_SHIFT) == 0 {
            word(LOW, value)
        } else if value.trailing_zeros() >= VALUE_SHIFT {
            word(HIGH, value >> VALUE_SHIFT)
        } else if value >> 32 == value & 0xffff_ffff {
            word(HALF, value & 0xffff_ffff)
        } else {
            None
        }
    }

    /// The word for an object that holds a repeated word.
    pub(super) fn wide(handle: Handle) -> Self {
        Self::object(WIDE, handle, WIDE_BYTES)
    }

    /// The word for a compressed object of `len` bytes.
    pub(super) fn packed(handle: Handle, len: usize, format: Format) -> Self {
        let state = match format {
            Format::Lz4 => LZ4,
            Format::Zstd => ZSTD,
        };
        Self::object(state, handle, len)
    }

    /// The word for a page stored as it is.
    pub(super) fn page(handle: Handle) -> Self {
        Self::object(PAGE, handle, 0)
    }

    fn object(state: u64, handle: Handle, len: usize) -> Self {
        let len = len as u64;
        debug_assert!(len <= LEN_MASK && handle.0 >> (u64::BITS - HANDLE_SHIFT) == 0);
        Self(handle.0 << HANDLE_SHIFT | len << VALUE_SHIFT | state << STATE_SHIFT)
    }

    /// What the word says.
    pub(super) fn stored(self) -> Stored {
        let value = self.0 >> VALUE_SHIFT;
        let handle = Handle(self.0 >> HANDLE_SHIFT);
        match self.0 >> STATE_SHIFT & STATE_MASK {
            EMPTY => Stored::Empty,
            LOW => Stored::Same(value),
            HIGH => Stored::Same(value << VALUE_SHIFT),
            HALF => Stored::Same(value << 32 | value),
            WIDE => Stored::Wide(handle),
            LZ4 => Stored::Packed(handle, (value & LEN_MASK) as usize, Format::Lz4),
            ZSTD => Stored::Packed(handle, (value & LEN_MASK) as usize, Format::Zstd),
            PAGE => Stored::Page(handle),
            _ => unreachable!("three bits have eight values"),
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
    fn values_come_back() {
        for value in [
            0,
            1,
            u64::MAX >> 4,
            1 << 60,
            0x3ff0_0000_0000_0000,
            u64::MAX,
            0xdead_beef_dead_beef,
        ] {
            assert_eq!(Word::same(value).unwrap().stored(), Stored::Same(value));
        }
        for value in [0xf000_0000_0000_0001, u64::MAX - 1] {
            assert_eq!(Word::same(value), None);
        }
    }

    #[test]
    fn objects_come_back() {
        let handle = Handle((1 << 48) - 1);
        for format in [Format::Lz4, Format::Zstd] {
            let word = Word::packed(handle, 4095, format);
            assert_eq!(word.stored(), Stored::Packed(handle, 4095, format));
        }
        assert_eq!(Word::wide(Handle(0)).stored(), Stored::Wide(Handle(0)));
        assert_eq!(Word::page(handle).stored(), Stored::Page(handle));
        assert_eq!(Word::EMPTY.stored(), Stored::Empty);
        assert_eq!(
            Word::EMPTY.raw(),
            0,
            "a fresh table is a table of empty slots"
        );
        assert_eq!(Word::page(handle).raw() & 1, 0, "the lock's bit");
    }
}
