//! Limits of this process and of the host that swapping can meet.

use userswap_sys::host;

use super::Reading;
use crate::size::rounded;

/// Below this, registering parts of mappings or starting many threads can hit the wall. It is the kernel's default.
const USUAL_MAP_COUNT: u64 = 65_530;

pub(super) fn readings() -> Vec<Reading> {
    vec![max_map_count(), memlock(), cgroup(), threads()]
}

fn max_map_count() -> Reading {
    const NAME: &str = "max_map_count";
    match (host::max_map_count(), host::map_count()) {
        (Ok(limit), Ok(taken)) => {
            let found = format!("{limit} mappings a process, {taken} here now");
            if limit < USUAL_MAP_COUNT {
                Reading::limited(
                    NAME,
                    found,
                    format!("as root: sysctl vm.max_map_count={USUAL_MAP_COUNT}"),
                )
            } else {
                Reading::ok(NAME, found)
            }
        }
        (Err(error), _) | (_, Err(error)) => Reading::unknown(NAME, &error),
    }
}

fn memlock() -> Reading {
    const NAME: &str = "memlock";
    match host::locked_memory_limit().soft {
        None => Reading::ok(NAME, "unlimited"),
        // The engine locks nothing; a program that does keeps that memory out of reach.
        Some(bytes) => Reading::ok(
            NAME,
            format!(
                "{} may be locked; locked memory is never swapped",
                rounded(bytes)
            ),
        ),
    }
}

fn cgroup() -> Reading {
    const NAME: &str = "memory cgroup";
    match host::cgroup_memory() {
        Ok(memory) => match memory.as_ref().and_then(|memory| memory.tightest()) {
            None => Reading::ok(NAME, "no limit"),
            Some(level) => Reading::limited(
                NAME,
                format!(
                    "{} in use of {} ({})",
                    rounded(level.used),
                    rounded(level.limit.unwrap_or(u64::MAX)),
                    level.path.display()
                ),
                "keep regions, store and everything else below it: give the engine a limit well under it",
            ),
        },
        Err(error) => Reading::unknown(NAME, &error),
    }
}

fn threads() -> Reading {
    const NAME: &str = "threads";
    let number =
        |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
    match (host::pid_max(), host::threads_max()) {
        (Ok(pid_max), Ok(threads_max)) => Reading::ok(
            NAME,
            format!(
                "pid_max {pid_max}, threads-max {threads_max}, ulimit -u {}; stress here starts up to {}",
                number(host::process_limit().soft),
                crate::stress::most_workers()
            ),
        ),
        (Err(error), _) | (_, Err(error)) => Reading::unknown(NAME, &error),
    }
}
