//! The engine over the process's own memory, in thread mode.

mod common;

const FAULTS: userswap::FaultMode = userswap::FaultMode::Thread;

fn ready(_: &userswap::Process) -> bool {
    true
}

#[path = "process/cases.rs"]
mod cases;

#[path = "process/guard.rs"]
mod guard;

#[path = "process/half.rs"]
mod half;
