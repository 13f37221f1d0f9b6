//! Device references: once the gate is closed, nobody is inside.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::Model;
use crate::gate::Gate;
use crate::rule::{Kept, Rule};

/// Two users, in different shards, and a closer.
pub(super) const CLOSING: Model = Model {
    name: "a closed gate has nobody inside",
    preemptions: None,
    run: closing,
    rests_on: &[Rule::DeviceReference],
};

struct Device {
    gate: Gate,
    gone: AtomicBool,
    used: [AtomicBool; 2],
}

fn closing(kept: Kept) {
    let device = Arc::new(Device {
        gate: Gate::keeping(kept),
        gone: AtomicBool::new(false),
        used: Default::default(),
    });
    let users = [0, 1].map(|user| {
        let device = Arc::clone(&device);
        thread::spawn(move || {
            let pass = device.gate.enter();
            if pass.is_some() {
                device.used[user].store(true, Ordering::Relaxed);
                let gone = device.gone.load(Ordering::Relaxed);
                assert!(!gone, "a closed device is used");
            }
            pass.is_some()
        })
    });
    device.gate.close();
    // What was done inside has been done, and is seen.
    let used = [0, 1].map(|user| device.used[user].load(Ordering::Relaxed));
    device.gone.store(true, Ordering::Relaxed);
    let entered = users.map(|user| user.join().expect("user"));
    assert_eq!(used, entered, "close returned with a user inside");
}
