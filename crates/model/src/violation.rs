//! What can go wrong.

use userswap_core::SlotError;

use crate::state::{Content, Version};

/// A broken invariant, or lost data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// An access finds, or a fault maps, something else than what was stored last.
    Lost {
        /// What is there.
        found: Content,
        /// What should be.
        stored: Version,
        /// Somebody brought the page in through the cache meanwhile.
        mixed: bool,
    },
    /// A slot's transition was refused that must never be: the engine reports a bug.
    Refused(SlotError),
    /// A page is mapped where one is mapped already.
    MappedTwice,
    /// I1: the count is not the number of PTEs with the entry.
    Count,
    /// I2: two owners of h, or h released by somebody else than its owner.
    Owner,
    /// I3: what a PTE leads to is not what was stored last.
    Unreachable,
    /// A PTE holds the entry of a slot that can be handed out.
    FreeEntry,
    /// A page is deleted from the cache that is not there, or that the device still reads.
    NotCached,
    /// The device is used after swapoff took it away, or taken away while it holds pages.
    DeviceGone,
    /// I6: something is still held at the end: h, a page lock, a frame, a reference.
    Leaked,
    /// Nobody can go on, and somebody is not done.
    Deadlock,
    /// A thread goes round for ever while all others stand still, instead of waiting.
    Spins,
    /// A run without end in which every thread that can go on does: somebody starves.
    Starves,
}

impl Violation {
    /// Which check this is, in a few words.
    #[must_use]
    pub fn check(&self) -> &'static str {
        match self {
            Self::Lost { .. } => "lost data (I5)",
            Self::Refused(_) => "refused slot transition",
            Self::MappedTwice => "mapped twice",
            Self::Count => "count of PTEs (I1)",
            Self::Owner => "owner of h (I2)",
            Self::Unreachable => "slot data (I3)",
            Self::FreeEntry => "entry of a free slot",
            Self::NotCached => "cache deletion",
            Self::DeviceGone => "device after swapoff",
            Self::Leaked => "leak (I6)",
            Self::Deadlock => "deadlock",
            Self::Spins => "retry without waiting",
            Self::Starves => "starvation",
        }
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |version: Version| Content::whole(version);
        match *self {
            Self::Lost { found, stored, .. } if found == Content::ZEROS => {
                write!(f, "zeros are mapped, {} is lost", name(stored))
            }
            Self::Lost { found, stored, .. } if found.low != found.high => {
                write!(
                    f,
                    "{found} is mapped: halves of two versions; {} is lost",
                    name(stored)
                )
            }
            Self::Lost { found, stored, .. } => {
                write!(f, "{found} is mapped, {} is lost", name(stored))
            }
            Self::Refused(error) => write!(f, "a step of a slot was refused: {error}"),
            _ => f.write_str(self.check()),
        }
    }
}
