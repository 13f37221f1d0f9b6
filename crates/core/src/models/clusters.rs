//! The slot allocator: swapoff stops it, and no slot is handed out twice or lost.

use loom::sync::Arc;
use loom::thread;

use super::{Model, area};
use crate::rule::{Kept, Rule};

/// swapoff begins while slots are handed out.
pub(super) const STOPPING: Model = Model {
    name: "a stopped area hands out nothing",
    preemptions: None,
    run: stopping,
    rests_on: &[
        Rule::SwapoffStopsAllocation,
        Rule::SwapoffWaitsForAllocators,
    ],
};

/// Two threads take and give back slots of an area that has few.
pub(super) const HANDING_OUT: Model = Model {
    name: "a slot has one taker, and none is lost",
    preemptions: None,
    run: handing_out,
    rests_on: &[],
};

fn stopping(kept: Kept) {
    let area = Arc::new(area(2, kept));
    let allocator = {
        let area = Arc::clone(&area);
        thread::spawn(move || area.allocate(&mut [0]))
    };
    area.clusters().stop();
    let used = area.used();
    allocator.join().expect("allocator");
    assert_eq!(area.used(), used, "a slot was handed out after the stop");
}

fn handing_out(kept: Kept) {
    let area = Arc::new(area(2, kept));
    let other = {
        let area = Arc::clone(&area);
        thread::spawn(move || {
            let mut slots = [0];
            let got = area.allocate(&mut slots);
            area.release(slots[..got].iter().map(|&slot| area.entry(slot)));
        })
    };
    let mut slots = [9, 9];
    let got = area.allocate(&mut slots);
    assert!(got >= 1, "one slot at least is nobody else's");
    assert!(got < 2 || slots[0] != slots[1]);
    other.join().expect("other");
    assert_eq!(area.used(), got as u64);
    let mut rest = [9, 9];
    let more = area.allocate(&mut rest);
    assert_eq!(got + more, 2, "a slot got lost");
    let mut all = [&slots[..got], &rest[..more]].concat();
    all.sort_unstable();
    assert_eq!(all, [0, 1], "a slot has two takers");
}
