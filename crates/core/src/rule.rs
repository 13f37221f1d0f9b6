//! The rules of the protocol, each with a name: tests break one at a time and see it caught.
//!
//! A rule that cannot be broken on purpose is a rule no checker has been seen to check. In builds
//! without the feature `break-rules` every rule is kept, and asking costs nothing.

/// A rule of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// Step 4: a direct swap-in pins the slot before it reads (V1, V2, V3).
    PinBeforeRead,
    /// Step 4: an entry whose cache flag is set is refused (I2): one owner at a time.
    OneOwner,
    /// Step 4: the frame first, then the pin, so that a failed allocation has no pin to leak.
    AllocateBeforePin,
    /// I6: the pin is released also when the fault gives up: PTE changed, read failed.
    ReleaseWhenGivingUp,
    /// I6: the pin is released once, not twice.
    ReleaseOnce,
    /// Steps 9 and 10: the pin is released after the PTE is done, not before.
    ReleaseAfterPte,
    /// Step 7: the PTE is compared, under its lock, with what it was before the read.
    RecheckPte,
    /// Step 6: a page found in the cache is looked at again once it is locked (I4).
    RecheckCachedPage,
    /// Step 7: a failed read never maps the page.
    FailedReadMapsNothing,
    /// Swap-out: the page leaves the address space and the entry enters the PTE as one step.
    UnmapWithPte,
    /// Swap-out: a page that is pinned for system calls stays.
    PinnedPagesStay,
    /// Swap-out: the page is written before it is deleted from the cache (I3).
    WriteBeforeDelete,
    /// Swap-out: a failed write keeps the page.
    FailedWriteKeepsPage,
    /// A frame the device is reading keeps its content: a fault copies it, or waits.
    StableWhileWritten,
    /// A page that others still hold is copied, not moved, out of the cache.
    CopyWhatOthersHold,
    /// A freed slot is discarded before it can be handed out again, not after.
    DiscardBeforeReuse,
    /// Step 2: whoever uses a device holds a reference, so that swapoff waits.
    DeviceReference,
    /// swapoff: an allocator looks, under its lock, whether the area still hands out slots.
    SwapoffStopsAllocation,
    /// swapoff waits for the allocators that looked before.
    SwapoffWaitsForAllocators,
    /// Batches: each slot's own content decides whether it is read as zeros, not the first one's.
    EachSlotTested,
    /// Step 4: whoever meets a busy entry waits for it, and does not just try again.
    WaitForRelease,
    /// Step 10: releasing an entry wakes who waits for it.
    WakeOnRelease,
    /// Step 6: a page lock taken in vain wakes who met it.
    WakeAfterVainLock,
    /// Waiters announce themselves, then look once more, then park.
    AnnounceThenLook,
    /// Devices: a slot's old data are freed and the new ones set in one critical section.
    ReplaceInOneStep,
}

impl Rule {
    /// Every rule, in the protocol's order.
    pub const ALL: [Self; 25] = [
        Self::PinBeforeRead,
        Self::OneOwner,
        Self::AllocateBeforePin,
        Self::ReleaseWhenGivingUp,
        Self::ReleaseOnce,
        Self::ReleaseAfterPte,
        Self::RecheckPte,
        Self::RecheckCachedPage,
        Self::FailedReadMapsNothing,
        Self::UnmapWithPte,
        Self::PinnedPagesStay,
        Self::WriteBeforeDelete,
        Self::FailedWriteKeepsPage,
        Self::StableWhileWritten,
        Self::CopyWhatOthersHold,
        Self::DiscardBeforeReuse,
        Self::DeviceReference,
        Self::SwapoffStopsAllocation,
        Self::SwapoffWaitsForAllocators,
        Self::EachSlotTested,
        Self::WaitForRelease,
        Self::WakeOnRelease,
        Self::WakeAfterVainLock,
        Self::AnnounceThenLook,
        Self::ReplaceInOneStep,
    ];
}

/// Which rules are kept: all, except in tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rules {
    broken: u32,
}

impl Rules {
    /// Every rule is kept.
    pub const ALL_KEPT: Self = Self { broken: 0 };

    /// All but `rule`.
    #[must_use]
    pub const fn without(rule: Rule) -> Self {
        Self {
            broken: 1 << rule as u32,
        }
    }

    /// Whether `rule` is kept.
    #[must_use]
    pub const fn keep(self, rule: Rule) -> bool {
        self.broken & (1 << rule as u32) == 0
    }
}

/// The rules that a part of the engine keeps. Without the feature `break-rules` it takes no room, and
/// every question has the same answer at compile time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Kept {
    #[cfg(feature = "break-rules")]
    rules: Rules,
}

#[cfg(not(feature = "break-rules"))]
const _: () = assert!(size_of::<Kept>() == 0);

impl Kept {
    #[cfg(feature = "break-rules")]
    pub(crate) const fn by(rules: Rules) -> Self {
        Self { rules }
    }

    #[cfg(feature = "break-rules")]
    #[inline]
    pub(crate) const fn keeps(self, rule: Rule) -> bool {
        self.rules.keep(rule)
    }

    #[cfg(not(feature = "break-rules"))]
    #[inline(always)]
    pub(crate) const fn keeps(self, _rule: Rule) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_rule_is_broken_at_a_time() {
        for (at, &rule) in Rule::ALL.iter().enumerate() {
            assert_eq!(rule as usize, at, "the list follows the declaration");
            let rules = Rules::without(rule);
            let broken: Vec<_> = Rule::ALL.iter().filter(|&&r| !rules.keep(r)).collect();
            assert_eq!(broken, [&rule]);
        }
        assert!(Rule::ALL.iter().all(|&rule| Rules::ALL_KEPT.keep(rule)));
    }
}
