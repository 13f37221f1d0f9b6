//! The OS boundary of userswap: everything the project asks of Linux is asked here, and the `unsafe` that this takes
//! lives here. Nothing above this crate makes a system call on the fault path by another way.
//!
//! | module | owns |
//! |---|---|
//! | [`timing`] | the monotonic clock |
//! | [`cpu`] | which CPU a thread runs on, and pinning |
//! | [`ranges`] | a table of address ranges without a lock |
//! | [`descriptor`] | numbers out of the program's way |
//! | [`file_ref`] | files that another process is told of, and that are still what they were |
//! | [`own`] | what in this process is ours and must stay in memory |
//! | [`futex`] | sleeping on a word |
//! | [`mapping`] | anonymous memory: reserve, advise, discard, populate |
//! | [`together`] | giving the frames of many ranges back at once |
//! | [`pagemap`] | which pages are a file's |
//! | [`uffd`] | userfaultfd: register, copy, move, wake, poison, read events |
//! | [`signals`] | the one SIGBUS handler, and the chain to an earlier one |
//! | [`host`] | what this machine permits and how full it is |
//! | [`inject`] | refusals and delays on purpose, for tests (feature `inject`; empty without) |
//!
//! # On the fault path
//! A fault may be resolved inside a synchronous SIGBUS handler, at any instruction of any thread: inside `malloc`, with
//! `errno` about to be read. What is marked *fault path* in its documentation allocates nothing, takes no lock and leaves
//! `errno` alone: it issues its system calls directly, and errors come back as values ([`Errno`]).

pub mod cpu;
pub mod descriptor;
pub mod file_ref;
pub mod futex;
pub mod host;
pub mod inject;
pub mod mapping;
pub mod own;
pub mod pagemap;
pub mod place;
pub mod ranges;
pub mod signals;
pub mod timing;
pub mod together;
pub mod uffd;

/// Ends the process as the kernel does where memory has run out: at once, without its exit handlers.
pub fn kill_process() -> ! {
    // Refused by nobody, and nothing comes after it.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort();
}

/// An error number as the kernel gave it; a plain integer, fit for the fault path.
pub use rustix::io::Errno;

/// The only base page size the engine runs on: slots, page-table words and devices are all this long.
///
/// [`host::page_size`] tells the machine's own; where they differ nothing can be swapped.
pub const PAGE_SIZE: usize = 4096;
