//! The swap cache: a page found without a lock means nothing until it is locked and looked at again.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use super::{Model, Words, on_a_large_stack};
use crate::cache::{CacheIndex, Lock, SwapCache};
use crate::entry::SwapEntry;
use crate::rule::{Kept, Rule};
use crate::soft::SoftFrames;
use crate::space::Frame;
use crate::swap::{Swap, Way};

/// Lookups race with the reuse of the frame for another entry (I4).
pub(super) const RECHECK: Model = Model {
    name: "a locked page is the entry's",
    preemptions: None,
    run: recheck,
    rests_on: &[Rule::RecheckCachedPage],
};

/// Whoever met a lock that was taken in vain is woken.
pub(super) const VAIN_LOCK: Model = Model {
    name: "a lock taken in vain keeps nobody asleep",
    preemptions: None,
    run: vain_lock,
    rests_on: &[Rule::WakeAfterVainLock],
};

const FRAME: Frame = Frame { block: 0, index: 0 };

fn recheck(kept: Kept) {
    let first = SwapEntry::new(0, 0);
    let second = SwapEntry::new(0, 1);
    // The frame's content: the number of the entry whose page it holds, plus one.
    let shared = Arc::new((
        SwapCache::new(1, kept),
        CacheIndex::new(2),
        AtomicU64::new(1),
    ));
    shared.0.insert_locked(&shared.1, first, FRAME, true);
    shared.0.unlock(FRAME);
    let faults = [first, second].map(|entry| {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let (cache, index, content) = &*shared;
            if let Some(frame) = index.lookup(entry.offset())
                && cache.lock(index, entry, frame) == Lock::Locked
            {
                let found = content.load(Ordering::Relaxed);
                assert_eq!(found, entry.offset() + 1, "another entry's page");
                cache.unlock(frame);
            }
        })
    });
    // The page is taken back, and its frame is used for another.
    let (cache, index, content) = &*shared;
    if cache.lock(index, first, FRAME) == Lock::Locked {
        cache.delete_locked(index, first, FRAME);
        cache.insert_locked(index, second, FRAME, true);
        content.store(2, Ordering::Relaxed);
        cache.unlock(FRAME);
    }
    for fault in faults {
        fault.join().expect("fault");
    }
    assert!(!cache.is_locked(FRAME));
}

fn vain_lock(kept: Kept) {
    on_a_large_stack(move || vain_lock_in_engine(kept));
}

fn vain_lock_in_engine(kept: Kept) {
    let swap = Swap::keeping(SoftFrames::new(1), Way::Direct, kept);
    swap.add_area(Box::new(Words::new(2))).expect("an area");
    let area = swap.areas().next().expect("an area");
    let (stale, entry) = (area.entry(0), area.entry(1));
    swap.cache.insert_locked(&area.cache, entry, FRAME, true);
    swap.cache.unlock(FRAME);
    let swap = Arc::new(swap);
    let late = {
        let swap = Arc::clone(&swap);
        // It looked the frame up when it held another entry's page.
        thread::spawn(move || {
            let area = swap.area_of(stale);
            assert_ne!(swap.lock_page(area, stale, FRAME), Lock::Locked);
        })
    };
    let area = swap.area_of(entry);
    while swap.lock_page(area, entry, FRAME) != Lock::Locked {
        swap.wait_unlocked(area, entry, FRAME);
    }
    swap.unlock_pages(FRAME.block, 1, [entry]);
    late.join().expect("late");
}
