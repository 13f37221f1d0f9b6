//! User-space swap for Linux: memory regions larger than RAM, swapped by the process itself to
//! compressed memory. No kernel swap, no root, no patched kernel.
//!
//! ```no_run
//! use userswap::Engine;
//!
//! let engine = Engine::builder().limit(64 << 20).build()?;
//! let mut table = engine.region(256 << 20)?; // 256 MiB of zeros under a limit of 64 MiB
//! for (number, page) in table.chunks_mut(4096).enumerate() {
//!     page[..8].copy_from_slice(&(number as u64).to_le_bytes());
//! }
//! assert_eq!(table[4096 * 1000..][..8], 1000_u64.to_le_bytes());
//! # Ok::<(), userswap::Error>(())
//! ```
//!
//! A touch of a page that is swapped out is a fault that the engine resolves, in the thread that
//! touched it ([`FaultMode::Inline`]) or in a thread of its own ([`FaultMode::Thread`]). In inline
//! mode a *system call* on such a page fails instead: [`Region::pin`] what system calls use.
//!
//! A SIGBUS handler that the program installs *before* it builds an engine goes on getting its own
//! signals. One installed later replaces the engine's and must call the one it found.
//!
//! Modules, bottom-up: `spec`, `error`, `stats`, `budget`, `density`, `stream` (what an engine is made of and counts), `thread`
//! (its own threads), `held` (what system calls use), `registrar`, `frames`, `space` (memory), `effort`, `hand`, `reclaim`,
//! `room`, `guard`, `crew` and `shared` (what leaves memory, what copies after a fork take, who helps to bring it back, and the
//! state all parts share), `resolve` (one fault), `registry`, `fault`, `spare` (where faults come in), `engine`, `watch`,
//! `swapoff` and `region` (what users hold).

mod budget;
mod crew;
mod cyclic;
mod density;
mod effort;
mod engine;
mod error;
mod fault;
mod frames;
mod guard;
mod hand;
#[doc(hidden)]
pub mod held;
mod moving;
mod process;
mod reclaim;
mod region;
mod registrar;
mod registry;
mod resolve;
mod room;
mod shared;
mod space;
mod spare;
mod spec;
mod stats;
mod stream;
mod swapoff;
#[cfg(test)]
mod testing;
mod thread;
mod watch;
mod windows;

pub use engine::{Engine, EngineBuilder};
pub use error::Error;
#[doc(hidden)]
pub use process::Process;
pub use region::{Advice, Pin, Region};
#[doc(hidden)]
pub use spec::Policy;
pub use spec::{Codec, DeviceSpec, FaultAround, FaultMode, FileOptions, FileSpec};
pub use stats::Stats;
pub use swapoff::{DeviceStatus, SwapDevice, SwapoffProgress};
pub use userswap_core::device::{
    Content, Device, DeviceError, Overdue, PAGE_SIZE, PageBytes, Properties, Side, SlotRead, Usage,
};
pub use userswap_core::{FaultError, ForkError, Way};
