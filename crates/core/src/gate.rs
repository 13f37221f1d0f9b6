//! References that hold off a shutdown: users enter and leave, the closer waits for all to leave.
//!
//! Guarantee: once [`Gate::close`] returns, nobody is inside and nobody enters until
//! [`Gate::reopen`]. Entering costs one locked instruction on a cache line that few threads share.

use crate::rule::{Kept, Rule};
use crate::step::{self, Step};
use crate::sync::{
    AtomicBool, AtomicU64, CachePadded, Ordering, SHARDS, pause, store_load_order, thread_hint,
};

/// A device reference is a [`Pass`] through the area's gate (protocol step 2 and step 11).
#[derive(Debug, Default)]
pub struct Gate {
    inside: [CachePadded<AtomicU64>; SHARDS],
    closed: AtomicBool,
    kept: Kept,
}

/// Being inside a [`Gate`]; leaving is dropping it.
#[derive(Debug)]
#[must_use]
pub struct Pass<'a>(&'a AtomicU64);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        step::at(Step::LeaveDevice);
        // Release: what was done inside happens before the closer sees zero.
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl Gate {
    pub(crate) fn keeping(kept: Kept) -> Self {
        Self {
            kept,
            ..Self::default()
        }
    }

    /// Enters, unless the gate is closed.
    pub fn enter(&self) -> Option<Pass<'_>> {
        step::at(Step::EnterDevice);
        let shard = &self.inside[thread_hint() % SHARDS].0;
        // SeqCst on both sides: either this sees `closed`, or the closer sees the count.
        shard.fetch_add(1, Ordering::SeqCst);
        store_load_order();
        let pass = Pass(shard);
        (!self.closed.load(Ordering::SeqCst)).then_some(pass)
    }

    /// Refuses new users and waits until those inside have left.
    pub fn close(&self) {
        step::at(Step::CloseDevice);
        self.closed.store(true, Ordering::SeqCst);
        store_load_order();
        step::at(Step::AwaitUsers);
        if !self.kept.keeps(Rule::DeviceReference) {
            return;
        }
        for shard in &self.inside {
            // A shard that was zero once after `closed` is only touched by users who leave at once.
            while shard.0.load(Ordering::SeqCst) != 0 {
                pause();
            }
        }
    }

    /// Whether it is closed, or being closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// In a child of fork, while the gate is closed: whoever was about to enter or leave in the parent is not here.
    pub fn forget_users(&self) {
        for shard in &self.inside {
            shard.0.store(0, Ordering::SeqCst);
        }
    }

    /// Lets users in again.
    pub fn reopen(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool as Flag;

    #[test]
    fn a_closed_gate_lets_nobody_in() {
        let gate = Gate::default();
        drop(gate.enter().expect("open"));
        gate.close();
        assert!(gate.enter().is_none());
        gate.reopen();
        assert!(gate.enter().is_some());
    }

    #[test]
    fn closing_waits_for_those_inside() {
        let (gate, left) = (Gate::default(), Flag::new(false));
        std::thread::scope(|scope| {
            let pass = gate.enter().expect("open");
            let (gate, left) = (&gate, &left);
            let closer = scope.spawn(move || {
                gate.close();
                left.load(Ordering::SeqCst)
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
            left.store(true, Ordering::SeqCst);
            drop(pass);
            assert!(
                closer.join().expect("closer"),
                "close returned with a user inside"
            );
        });
    }
}
