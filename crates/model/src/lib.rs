//! An exhaustive explorer of the protocol's schedules: what `userswap race` runs.
//!
//! Every order in which a few threads can take the steps of [`userswap_core::step`] is tried, from one
//! initial state, and every state is looked at. What ties it to the engine: the slot words and their
//! transitions are the engine's own ([`userswap_core::SlotWord`]); the steps are the engine's own list; and
//! `tests/replay.rs` drives the engine's real code, over software memory, through explored schedules,
//! thread by thread and step by step, and compares after each step.
//!
//! | module | what |
//! |---|---|
//! | [`state`], [`config`] | a moment of the system; what is explored |
//! | [`violation`], [`check`] | what can go wrong, and where it is looked for |
//! | [`machine`] | one step of one thread; what is one step, and why that is sound |
//! | `fault`, `swap_out`, `rest` | what each step does |
//! | [`explore`] | all schedules, the shortest that breaks something, cycles |
//! | [`suite`] | the configurations explored by default, the four losses |
//! | [`timeline`], [`svg`] | a schedule as text and as a picture |
#![forbid(unsafe_code)]

pub mod check;
pub mod config;
pub mod explore;
mod fault;
pub mod machine;
mod rest;
pub mod state;
pub mod suite;
pub mod svg;
mod swap_out;
pub mod timeline;
pub mod violation;
