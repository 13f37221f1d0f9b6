//! The engine over the process's own memory, in inline mode.

mod common;

const FAULTS: userswap::FaultMode = userswap::FaultMode::Inline;

#[path = "process/cases.rs"]
mod cases;

#[path = "process/half.rs"]
mod half;
