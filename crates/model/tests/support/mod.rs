//! Driving the engine's real code through a schedule, one step of one thread at a time.
#![allow(dead_code, reason = "each test program uses a part")]

mod device;
mod rig;
pub(crate) mod walk;

pub(crate) use rig::replay;
