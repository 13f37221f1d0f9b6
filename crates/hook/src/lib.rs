//! Sees every system call that a process's libraries make, from inside the process and without privilege.
//!
//! Each `syscall` instruction of each mapped file is replaced by a jump to a stub near by; the stub asks [`Handlers`] and makes the
//! call. That is what memory that is swapped out needs where the kernel cannot fault it in: its pages must be there *before* a
//! call uses them ([`memory_of`] says which). Modules, bottom-up:
//!
//! | module | owns |
//! |---|---|
//! | `call` | what handlers see and decide |
//! | `maps` | `/proc/self/maps` |
//! | `file` | a file that code was mapped from, and what tells it from others |
//! | `allocator` | whose memory allocator libc uses |
//! | `scan` | bytes of interest in long code |
//! | `image`, `code` | an ELF file, its functions, their instructions and jump targets |
//! | `doubt` | bytes that look like a system call where no function is known |
//! | `piece` | the instructions around a site, as they are moved |
//! | `plan` | which bytes of a site are replaced |
//! | `packed`, `known` | plans kept for other processes |
//! | `look` | what is mapped, and its plan |
//! | `stub` | what a site jumps to |
//! | `frame`, `gate` | what lies on the stack while handlers run; whether and whom to ask |
//! | `note` | calls that are only noted |
//! | `entry` | saving registers, asking the gate, making the call (assembly) |
//! | `room` | a stack to look at code on |
//! | `patch` | writing stubs and jumps into the process |
//! | `install` | all of it, for the libraries there are and those that come |
//! | `table` | which memory each system call uses |

mod allocator;
mod bypass;
mod call;
mod code;
mod coverage;
mod doubt;
mod entry;
mod file;
mod frame;
mod gate;
mod image;
mod install;
mod known;
mod look;
mod maps;
mod note;
mod packed;
mod patch;
mod piece;
mod plan;
mod room;
mod scan;
mod stub;
mod table;

pub use allocator::allocates_for_one_thread;
pub use bypass::{Bypass, thread_word};
pub use call::{Call, Decision, Handlers};
pub use coverage::{Coverage, Library};
pub use install::{
    Error, Inspection, coverage, inspect, install, is_dynamic, look_again, set_active,
    while_code_stays,
};
pub use known::{PLANS_NAMES, Plans, has_room_for_plans};
pub use note::{Note, hear_of_all, note_only};
pub use table::{Access, Knowledge, Span, is_known, memory_of, uses_memory};
