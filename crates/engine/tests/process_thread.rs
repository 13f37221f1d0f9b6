//! The engine over the process's own memory, in thread mode.

mod common;

const FAULTS: userswap::FaultMode = userswap::FaultMode::Thread;

#[path = "process/cases.rs"]
mod cases;

#[path = "process/half.rs"]
mod half;
