//! A slot's word, (c, h) of the protocol's section 2, and its transitions as functions of it alone.
//!
//! ```text
//!  31  30  29                                   0
//! +---+---+--------------------------------------+
//! | h | 0 |  c: PTEs that hold the entry         |
//! +---+---+--------------------------------------+
//! ```
//!
//! These functions are the protocol's table. [`crate::slot_map`] applies them to shared memory, and
//! the explorer of schedules (`userswap race`) applies the same ones to its states.

const H: u32 = 1 << 31;

/// The largest count of PTEs a slot can have.
pub const COUNT_MAX: u32 = (1 << 30) - 1;

/// Why the map refused a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// EEXIST: somebody else owns the cache flag.
    #[error("the slot is cached, being written or pinned")]
    Busy,
    /// ENOENT: the slot is free, or holds nothing that could be read.
    #[error("the slot is not in use")]
    Free,
    /// The count of PTEs is at its limit.
    #[error("the slot is in as many page-table entries as can be counted")]
    CountFull,
    /// The cache flag was released twice.
    #[error("the slot's cache flag is not set")]
    NotOwned,
}

/// A slot's state, read at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotState {
    /// How many PTEs hold the entry.
    pub count: u32,
    /// The cache flag.
    pub has_cache: bool,
}

/// What a drop of a reference left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Dropped {
    /// The slot is still in use.
    InUse,
    /// Nobody uses the slot; the caller owns h and must discard the data and finish the free.
    Last,
}

/// The word of one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SlotWord(u32);

impl SlotWord {
    /// The slot can be handed out.
    pub const FREE: Self = Self(0);
    /// (0,1): being swapped out, or being freed.
    pub const OWNED: Self = Self(H);

    pub(crate) const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub(crate) const fn bits(self) -> u32 {
        self.0
    }

    /// (c, h).
    #[must_use]
    pub const fn state(self) -> SlotState {
        SlotState {
            count: self.0 & COUNT_MAX,
            has_cache: self.0 & H != 0,
        }
    }

    /// Whether the slot can be handed out.
    #[must_use]
    pub const fn is_free(self) -> bool {
        self.0 == 0
    }

    /// free -> (0,1): allocation for swap-out.
    ///
    /// # Errors
    /// The slot is in use.
    pub const fn allocated(self) -> Result<Self, SlotError> {
        match self.0 {
            0 => Ok(Self::OWNED),
            _ => Err(SlotError::Busy),
        }
    }

    /// (c,1) -> (c+1,1): the owner of h puts the entry in a PTE, whose lock is held.
    ///
    /// # Errors
    /// h is not set, or the count is full.
    pub const fn put_in_pte(self) -> Result<Self, SlotError> {
        match self.0 {
            H => Ok(Self(H | 1)),
            now if now & H == 0 => Err(SlotError::NotOwned),
            _ => self.duplicated(),
        }
    }

    /// (c>=1,h) -> (c+1,h): `swap_duplicate`, under the lock of a PTE with the entry.
    ///
    /// # Errors
    /// The slot is free, or its count full.
    pub const fn duplicated(self) -> Result<Self, SlotError> {
        match self.0 & COUNT_MAX {
            0 => Err(SlotError::Free),
            COUNT_MAX => Err(SlotError::CountFull),
            _ => Ok(Self(self.0 + 1)),
        }
    }

    /// (c>=1,0) -> (c,1): `swapcache_prepare`, for a cached read, a direct pin or a writeback.
    ///
    /// # Errors
    /// Somebody owns h, or the slot is free.
    pub const fn prepared(self) -> Result<Self, SlotError> {
        match self.0 {
            word if word & H != 0 => Err(SlotError::Busy),
            0 => Err(SlotError::Free),
            word => Ok(Self(word | H)),
        }
    }

    /// (c>=1,h) -> (c-1,h): `swap_free` by somebody who does not own h. The last drop of an unowned
    /// slot takes h itself, so that the slot cannot be reused before its data are discarded.
    ///
    /// # Errors
    /// No PTE is counted.
    pub const fn freed(self) -> Result<(Self, Dropped), SlotError> {
        match self.0 {
            word if word & COUNT_MAX == 0 => Err(SlotError::Free),
            1 => Ok((Self::OWNED, Dropped::Last)),
            word => Ok((Self(word - 1), Dropped::InUse)),
        }
    }

    /// (c>=1,1) -> (c-1,1): `swap_free` by the owner of h.
    ///
    /// # Errors
    /// h is not set, or no PTE is counted.
    pub const fn freed_by_owner(self) -> Result<Self, SlotError> {
        if self.0 & H == 0 {
            return Err(SlotError::NotOwned);
        }
        match self.freed() {
            Ok((word, _)) => Ok(word),
            Err(error) => Err(error),
        }
    }

    /// (c,1) -> (c,0), or the start of a free when c = 0: then h stays until [`SlotWord::finished`].
    /// `swapcache_clear`, by the owner of h.
    ///
    /// # Errors
    /// h is not set.
    pub const fn released(self) -> Result<(Self, Dropped), SlotError> {
        match self.0 {
            H => Ok((self, Dropped::Last)),
            word if word & H == 0 => Err(SlotError::NotOwned),
            word => Ok((Self(word & !H), Dropped::InUse)),
        }
    }

    /// (0,1) -> free, after the discard.
    ///
    /// # Errors
    /// The slot is not being freed.
    pub const fn finished(self) -> Result<Self, SlotError> {
        match self.0 {
            H => Ok(Self::FREE),
            _ => Err(SlotError::NotOwned),
        }
    }
}
