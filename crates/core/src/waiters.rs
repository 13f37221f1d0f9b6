//! Waiting on an entry: park until its owner releases it.
//!
//! Guarantee: a thread that found an entry busy and then waits is woken by the next release of that
//! entry; no wake-up is lost. Mechanism: the waiter announces itself, then looks once more under its
//! bucket's lock; the releaser changes the entry, then looks for announcements. Both use a SeqCst
//! fence between their write and their read, so at least one of them sees the other.
//!
//! A releaser without waiters pays one fence for a whole batch.

use crate::entry::SwapEntry;
use crate::rule::{Kept, Rule};
use crate::step::{self, Step};
use crate::sync::{AtomicU32, Condvar, MODELLED, Mutex, Ordering, fence, spin_loop};

const BUCKETS: usize = if MODELLED { 2 } else { 256 };

/// How often a waiter looks before it parks: a single page is often ready within a microsecond or
/// two, less than parking and being woken costs.
const SPINS: u32 = 400;

#[derive(Debug, Default)]
struct Bucket {
    lock: Mutex<()>,
    released: Condvar,
}

#[derive(Debug)]
pub(crate) struct Waiters {
    buckets: Box<[Bucket]>,
    waiting: AtomicU32,
    kept: Kept,
}

impl Waiters {
    pub(crate) fn new(kept: Kept) -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| Bucket::default()).collect(),
            waiting: AtomicU32::new(0),
            kept,
        }
    }

    /// Waits until `entry` is released, or until it is not `busy` any more. May return early: the
    /// caller repeats the access in any case.
    pub(crate) fn wait(&self, entry: SwapEntry, busy: impl Fn() -> bool) {
        if !self.kept.keeps(Rule::WaitForRelease) {
            return;
        }
        let spins = if MODELLED { 0 } else { SPINS };
        for _ in 0..spins {
            if !busy() {
                return;
            }
            spin_loop();
        }
        let bucket = self.bucket(entry);
        step::at(Step::Announce);
        let guard = bucket.lock.lock();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        step::at(Step::LookAgain);
        if busy() || !self.kept.keeps(Rule::AnnounceThenLook) {
            step::at(Step::Park);
            drop(bucket.released.wait(guard));
            step::at(Step::Wake);
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// Wakes whoever waits on one of `entries`, which the caller has just released.
    pub(crate) fn wake(&self, entries: impl IntoIterator<Item = SwapEntry>) {
        if !self.kept.keeps(Rule::WakeOnRelease) {
            return;
        }
        step::at(Step::LookWaiters);
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return;
        }
        for entry in entries {
            let bucket = self.bucket(entry);
            step::at(Step::Notify);
            // The lock: a waiter that saw the entry busy is parked by the time it is ours.
            drop(bucket.lock.lock());
            bucket.released.notify_all();
        }
    }

    fn bucket(&self, entry: SwapEntry) -> &Bucket {
        // Neighbouring slots get different buckets.
        &self.buckets[(entry.raw() as usize) % BUCKETS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64};

    #[test]
    fn a_waiter_is_woken_by_the_release() {
        let (waiters, busy) = (Waiters::new(Kept::default()), AtomicBool::new(true));
        let entry = SwapEntry::new(0, 7);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| waiters.wait(entry, || busy.load(Ordering::SeqCst)));
            std::thread::sleep(std::time::Duration::from_millis(10));
            assert!(!waiter.is_finished());
            busy.store(false, Ordering::Release);
            waiters.wake([entry]);
        });
    }

    #[test]
    fn no_wakeup_is_lost_in_many_handovers() {
        let (waiters, turn) = (Waiters::new(Kept::default()), AtomicU64::new(0));
        let entry = SwapEntry::new(0, 1);
        std::thread::scope(|scope| {
            for me in 0..2 {
                let (waiters, turn) = (&waiters, &turn);
                scope.spawn(move || {
                    for round in 0..20_000_u64 {
                        let mine = round * 2 + me;
                        while turn.load(Ordering::Acquire) != mine {
                            waiters.wait(entry, || turn.load(Ordering::Acquire) != mine);
                        }
                        turn.store(mine + 1, Ordering::Release);
                        waiters.wake([entry]);
                    }
                });
            }
        });
        assert_eq!(turn.into_inner(), 40_000);
    }
}
