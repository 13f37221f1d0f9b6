//! Limits of this process and of the machine on things the engine uses.

use rustix::process::{Resource, getrlimit};

use super::files::{Reading, read_number};

/// A resource limit; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// In force.
    pub soft: Option<u64>,
    /// As far as the process may raise it.
    pub hard: Option<u64>,
}

/// RLIMIT_MEMLOCK, in bytes: how much memory may be locked.
pub fn locked_memory_limit() -> Limit {
    limit(Resource::Memlock)
}

/// RLIMIT_NPROC: how many processes and threads the user may have.
pub fn process_limit() -> Limit {
    limit(Resource::Nproc)
}

/// How many threads the machine may have.
pub fn threads_max() -> Reading<u64> {
    read_number("/proc/sys/kernel/threads-max")
}

/// One more than the highest process or thread id.
pub fn pid_max() -> Reading<u64> {
    read_number("/proc/sys/kernel/pid_max")
}

fn limit(resource: Resource) -> Limit {
    let limit = getrlimit(resource);
    Limit {
        soft: limit.current,
        hard: limit.maximum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_ordered() {
        for limit in [locked_memory_limit(), process_limit()] {
            assert!(limit.soft.unwrap_or(u64::MAX) <= limit.hard.unwrap_or(u64::MAX));
        }
        assert!(threads_max().expect("threads-max") > 0);
        assert!(pid_max().expect("pid_max") > 0);
    }
}
