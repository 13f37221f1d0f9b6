//! The engine over the process's own memory, in inline mode.

mod common;

const FAULTS: userswap::FaultMode = userswap::FaultMode::Inline;

fn ready(_: &userswap::Process) -> bool {
    true
}

#[path = "process/cases.rs"]
mod cases;

#[path = "process/guard.rs"]
mod guard;

#[path = "process/half.rs"]
mod half;
