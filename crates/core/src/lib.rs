//! The swap-in protocol of userswap: no OS, no unsafe.
//!
//! What is here, bottom-up; each module uses only those above it:
//!
//! | module | what |
//! |---|---|
//! | [`entry`], [`rule`], [`step`], [`device`], [`space`] | the swap entry; the protocol's rules and steps; what is needed of a device and of memory |
//! | `sync`, `gate`, `mask`, `bug` | primitives: locks, device references, page sets, broken invariants |
//! | `slot_word`, `slot_map`, `cluster` | the state of every slot, and where free ones are found |
//! | `cache`, `waiters`, `page_table`, `around` | cached pages, parking, PTE words, fault-around |
//! | `area`, `swap` | a swap area; the subsystem that ties all together, and its lock order |
//! | `swap_in`, `take_back`, `swap_out`, `fork`, `pin`, `swapoff` | the operations, step by step |
//! | `adopt`, `missing` | what programs do to their memory behind the protocol's back |
//! | [`soft`], [`script`], [`stamp`] | memory in software, a scripted device, pages that say whose they are: the protocol on any platform, for tests |
#![forbid(unsafe_code)]

mod adopt;
mod area;
mod around;
pub mod bug;
mod cache;
mod cluster;
pub mod device;
pub mod entry;
mod fork;
mod gate;
mod guarded;
pub mod mask;
mod missing;
#[cfg(all(test, feature = "loom"))]
mod models;
pub mod page_table;
mod pin;
pub mod rule;
pub mod script;
mod slot_map;
mod slot_word;
pub mod soft;
pub mod space;
pub mod stamp;
pub mod step;
mod swap;
mod swap_in;
mod swap_out;
mod swapoff;
mod sync;
mod take_back;
mod waiters;

pub use area::SwapArea;
pub use fork::ForkError;
pub use gate::{Gate, Pass};
pub use pin::PinResult;
pub use slot_word::{COUNT_MAX, Dropped, SlotError, SlotState, SlotWord};
pub use swap::{FaultError, Mm, Source, Swap, Way};
pub use swap_in::Access;
pub use swap_out::{Discarded, StageError, Staged, Written};
