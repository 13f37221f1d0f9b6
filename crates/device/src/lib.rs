//! Swap devices: where the pages of a swapped area go.
//!
//! A device is a row of page-sized slots behind [`userswap_core::device::Device`]. Those in memory are
//! *synchronous*: a read answers at once, in the thread that faulted.
//!
//! | device | keeps | for |
//! |---|---|---|
//! | [`Ram`] | plain pages, never dropped, with an optional delay on reads | tests and demonstrations of the swap-in race |
//! | [`Zram`] | compressed pages in a packed store | real use |
//! | [`File`] | sealed pages in a file or on a block device | more than fits into memory |
//! | [`Tiered`] | as `Zram`, and as `File` what is old or does not compress | both at once |
//!
//! # Rules of the house
//! Reads, writes and discards run inside a signal handler, on a thread that may have been inside
//! `malloc`. So everything they touch is mapped when the device is made, outside the process heap,
//! and they never allocate from it. Memory that grows later grows by populating pages of mappings
//! that already exist.
//!
//! The locks here are held for one bitmap search or one decompression, never across a system call
//! that can block on the caller (but for making space in a file). A thread inside a device must not be interrupted by a signal
//! handler that can fault on swapped memory, since that would enter the device a second time on
//! the same thread: the engine blocks signals around every call.
//!
//! # Modules, bottom-up
//! `arena` (mappings and raw bytes; unsafe), `cpu` (which CPU, counters per CPU), `same` (repeated
//! words), `slots` (a word and a lock for each slot), `store` (packed objects), `lz4` and `zstd` (the C libraries; unsafe),
//! `codec` (contexts for them), `seal` (encryption), `file`, `zram` and `ram` (the devices), `tiered` (one above the other). Each
//! uses only those before it.

mod arena;
mod codec;
mod cpu;
mod file;
mod lz4;
mod ram;
mod same;
mod seal;
mod slots;
mod store;
mod tiered;
mod zram;
mod zstd;

pub use codec::Codec;
pub use file::{File, FileError, FileOptions, io_uring_refused};
pub use ram::Ram;
pub use seal::key_refused;
pub use tiered::Tiered;
pub use zram::{Zram, ZramOptions};
