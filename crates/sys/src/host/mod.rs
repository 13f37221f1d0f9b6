//! What this machine permits, and how full it is: for `doctor`, and for choosing how to run.
//!
//! Each fact is a [`Reading`] of its own, so that one unreadable file costs one line of a report. Nothing here belongs on
//! the fault path.

mod cgroup;
mod files;
mod kernel;
mod limits;
mod memory;
mod privilege;
mod probe;

pub use cgroup::{CgroupLevel, CgroupMemory, CgroupVersion, cgroup_memory};
pub use files::{HostError, Reading};
pub use kernel::{
    HugePages, kernel_release, map_count, max_map_count, page_size, transparent_huge_pages,
    unprivileged_userfaultfd,
};
pub use limits::{Limit, locked_memory_limit, pid_max, process_limit, threads_max};
pub use memory::{
    MemInfo, SwapArea, Zram, memory, resident_bytes, resident_set_bytes, swap_areas, zram,
};
pub use privilege::{
    Capabilities, Seccomp, UserfaultfdAccess, capabilities, seccomp, seccomp_filters,
    userfaultfd_access,
};
pub use probe::{ProbeError, probe_move};
