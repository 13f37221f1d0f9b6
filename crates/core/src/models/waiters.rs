//! Parking: no wake-up is lost.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::Model;
use crate::entry::SwapEntry;
use crate::rule::{Kept, Rule};
use crate::waiters::Waiters;

/// Two threads wait for an entry that a third releases: loom reports a deadlock if one of them sleeps on,
/// and a model without end if one of them comes back at once for ever.
pub(super) const PARKING: Model = Model {
    name: "no wake-up is lost",
    preemptions: Some(3),
    run: parking,
    rests_on: &[
        Rule::WaitForRelease,
        Rule::WakeOnRelease,
        Rule::AnnounceThenLook,
    ],
};

fn parking(kept: Kept) {
    let shared = Arc::new((Waiters::new(kept), AtomicBool::new(true)));
    let entry = SwapEntry::new(0, 3);
    let racers = [(); 2].map(|()| {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let (waiters, busy) = &*shared;
            while busy.load(Ordering::Acquire) {
                waiters.wait(entry, || busy.load(Ordering::Acquire));
            }
        })
    });
    // As `SwapArea::release` does it.
    shared.1.store(false, Ordering::Release);
    shared.0.wake([entry]);
    for racer in racers {
        racer.join().expect("racer");
    }
}
