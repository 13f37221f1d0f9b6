//! How many workers this process can start.

use userswap_sys::host;

use crate::os::threads::MAPPINGS_PER_THREAD;

/// Stack of a worker. The engine's signal handler runs on it, too.
pub(super) const STACK: usize = 64 << 10;

/// Mappings left for everything else: the engine's, and the allocator's, which ends the process when it gets none.
const MAPPINGS_RESERVED: u64 = 1024;

/// Tasks left for the rest of the host: where the last one is taken nobody can log in to stop this.
const TASKS_RESERVED: u64 = 256;

/// How many threads of `wanted` fit below the host's limits. Others may be lower: starting one can still fail.
pub(super) fn room_for(wanted: usize) -> usize {
    wanted
        .min(by_mappings().unwrap_or(usize::MAX))
        .min(by_tasks().unwrap_or(usize::MAX))
        .max(1)
}

fn by_mappings() -> Option<usize> {
    let taken = host::map_count().ok()? + MAPPINGS_RESERVED;
    Some((host::max_map_count().ok()?.saturating_sub(taken) / MAPPINGS_PER_THREAD) as usize)
}

fn by_tasks() -> Option<usize> {
    let limit = host::pid_max().ok()?.min(host::threads_max().ok()?);
    let loadavg = std::fs::read_to_string("/proc/loadavg").ok()?;
    // The fourth field is "runnable/all".
    let tasks: u64 = loadavg
        .split_whitespace()
        .nth(3)?
        .split_once('/')?
        .1
        .parse()
        .ok()?;
    Some(limit.saturating_sub(tasks + TASKS_RESERVED) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_what_is_wanted_or_less() {
        assert_eq!(room_for(8), 8);
        let most = room_for(usize::MAX);
        assert!(most > 100 && most < usize::MAX, "{most}");
    }
}
