//! The steps of the protocol, by name.
//!
//! The explorer of schedules (`userswap race`) moves its threads by these steps. In builds with the feature
//! `steps` the engine reports each one just before it takes it, so that a test can hold real threads there,
//! let them go on in an explored order, and compare what came of it. In all other builds nothing of that
//! is left.

/// A step: what a thread does between two moments at which another one may come in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// The access itself: reads or writes memory if the page is there, faults otherwise.
    Touch,
    /// 1: reads the PTE, without a lock.
    ReadPte,
    /// PTE lock; still none? The page that never held anything, or was dropped, is mapped as zeros.
    FillZeros,
    /// Takes the PTE lock, to look again when whoever has it is done.
    AwaitPte,
    /// 2: takes a device reference.
    EnterDevice,
    /// 3: looks in the swap cache.
    LookUpCache,
    /// 4: counts the entry's PTEs, to choose between direct and cached.
    ChooseWay,
    /// 4: looks whether the entry is pinned, before anything is taken.
    LookPinned,
    /// 4: allocates a frame, for a read or to unmap into.
    TakeFrame,
    /// 4, 5: PTE lock; same entry? `swapcache_prepare`.
    Pin,
    /// 5: the page is in the cache, locked.
    InsertCache,
    /// Reads the slot.
    ReadDevice,
    /// Reads its second half, where slot data are plain memory.
    ReadRest,
    /// 7, after a failed read: does anybody still want the page?
    LookWanted,
    /// 6, where pages must stand still: is the page being written?
    LookWriteback,
    /// 6: tries the page lock.
    LockPage,
    /// 6: looks whether the locked page is still the entry's.
    RecheckPage,
    /// 7: PTE lock; same entry? For a page found in the cache.
    Compare,
    /// 8: maps the page; for a page that was read, step 7 is the same step.
    Map,
    /// 8: `swap_free`.
    SwapFree,
    /// The device drops the data of a freed slot.
    Discard,
    /// (0,1) -> free.
    FinishFree,
    /// 8, 9: PTE := present; PTE unlock.
    SetPte,
    /// The page lock is let go.
    UnlockPage,
    /// 10: the page is deleted from the cache.
    DeleteCached,
    /// 10: `swapcache_clear`.
    ReleasePin,
    /// A hold on a frame is dropped.
    ReleaseFrame,
    /// Looks whether anybody waits.
    LookWaiters,
    /// Wakes those who wait for the entry.
    Notify,
    /// A waiter says that it waits.
    Announce,
    /// A waiter looks once more, and parks.
    LookAgain,
    /// A waiter has looked and parks. Part of the step before, which still has the bucket's lock: it is
    /// reported so that a test can tell a parked thread from one that is on its way.
    Park,
    /// A waiter was woken.
    Wake,
    /// 11: drops the device reference.
    LeaveDevice,
    /// Swap-out: is the page there?
    LookPresent,
    /// Swap-out: allocates a slot.
    AllocateSlot,
    /// Swap-out: PTE lock; the page leaves the address space.
    Unmap,
    /// Swap-out: the entry is counted.
    CountPte,
    /// Swap-out: PTE := entry.
    PutEntry,
    /// PTE unlock.
    UnlockPte,
    /// Writing: whose page does the frame hold?
    FindOwner,
    /// Writing: does any PTE still hold the entry?
    LookCounted,
    /// Writes the slot.
    WriteDevice,
    /// Writes its second half, where slot data are plain memory.
    WriteRest,
    /// Writing: takes the page lock again.
    Relock,
    /// Fork: `swap_duplicate`, and the child's PTE.
    Duplicate,
    /// Fork: a page that could not be staged is copied.
    CopyPresent,
    /// Discard: PTE := none.
    ClearPte,
    /// swapoff: no slot is handed out any more.
    StopAllocation,
    /// swapoff: does this PTE hold an entry?
    ScanPte,
    /// swapoff: is any slot still used?
    LookUsed,
    /// swapoff: no reference is handed out any more.
    CloseDevice,
    /// swapoff: the last user has left; the device goes.
    AwaitUsers,
}

impl Step {
    /// A few words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Touch => "touch the page",
            Self::ReadPte => "read PTE",
            Self::FillZeros => "map zeros",
            Self::AwaitPte => "take PTE lock",
            Self::EnterDevice => "device reference",
            Self::LookUpCache => "cache lookup",
            Self::ChooseWay => "choose the way",
            Self::LookPinned => "pinned?",
            Self::TakeFrame => "allocate frame",
            Self::Pin => "compare PTE, pin",
            Self::InsertCache => "insert in cache",
            Self::ReadDevice => "read slot",
            Self::ReadRest => "read slot, 2nd half",
            Self::LookWanted => "still wanted?",
            Self::LookWriteback => "being written?",
            Self::LockPage => "lock page",
            Self::RecheckPage => "re-check page",
            Self::Compare => "compare PTE",
            Self::Map => "map",
            Self::SwapFree => "swap_free",
            Self::Discard => "discard slot",
            Self::FinishFree => "slot is free",
            Self::SetPte => "PTE := present",
            Self::UnlockPage => "unlock page",
            Self::DeleteCached => "delete from cache",
            Self::ReleasePin => "swapcache_clear",
            Self::ReleaseFrame => "drop frame",
            Self::LookWaiters => "anybody waiting?",
            Self::Notify => "wake waiters",
            Self::Announce => "announce a wait",
            Self::LookAgain => "look again, park",
            Self::Park => "park",
            Self::Wake => "woken",
            Self::LeaveDevice => "drop reference",
            Self::LookPresent => "page there?",
            Self::AllocateSlot => "allocate slot",
            Self::Unmap => "unmap",
            Self::CountPte => "count the PTE",
            Self::PutEntry => "PTE := entry",
            Self::UnlockPte => "PTE unlock",
            Self::FindOwner => "whose page?",
            Self::LookCounted => "still counted?",
            Self::WriteDevice => "write slot",
            Self::WriteRest => "write slot, 2nd half",
            Self::Relock => "lock page again",
            Self::Duplicate => "swap_duplicate",
            Self::CopyPresent => "copy page to child",
            Self::ClearPte => "PTE := none",
            Self::StopAllocation => "stop allocation",
            Self::ScanPte => "scan PTE",
            Self::LookUsed => "slots in use?",
            Self::CloseDevice => "close device",
            Self::AwaitUsers => "users are gone",
        }
    }

    /// The number in the protocol's section 3; `None` for what is not part of the fault.
    #[must_use]
    pub const fn number(self) -> Option<u8> {
        Some(match self {
            Self::ReadPte => 1,
            Self::EnterDevice => 2,
            Self::LookUpCache => 3,
            Self::ChooseWay | Self::LookPinned | Self::Pin => 4,
            Self::LookWriteback | Self::LockPage | Self::RecheckPage => 6,
            Self::LookWanted | Self::Compare => 7,
            Self::Map | Self::SwapFree => 8,
            Self::SetPte => 9,
            Self::DeleteCached | Self::ReleasePin => 10,
            Self::LeaveDevice => 11,
            _ => return None,
        })
    }
}

#[cfg(feature = "steps")]
mod report {
    use super::Step;
    use std::cell::Cell;
    use std::sync::atomic::{AtomicBool, Ordering};

    std::thread_local!(static HOOK: Cell<Option<fn(Step)>> = const { Cell::new(None) });

    /// Somebody has asked for reports. Looked at first: in a process that swaps its own memory, a library's thread-local
    /// variables may be swapped out while a fault is resolved.
    static ASKED: AtomicBool = AtomicBool::new(false);

    /// Has this thread's steps reported to `hook`, or to nobody.
    pub fn report_to(hook: Option<fn(Step)>) {
        // Relaxed: who asks is the thread that reports.
        ASKED.store(true, Ordering::Relaxed);
        HOOK.with(|cell| cell.set(hook));
    }

    /// This thread is about to take `step`. For drivers and devices that are part of a test.
    #[inline]
    pub fn at(step: Step) {
        if ASKED.load(Ordering::Relaxed)
            && let Some(hook) = HOOK.with(Cell::get)
        {
            hook(step);
        }
    }
}

#[cfg(feature = "steps")]
pub use report::{at, report_to};

#[cfg(not(feature = "steps"))]
#[inline(always)]
pub(crate) fn at(_step: Step) {}
