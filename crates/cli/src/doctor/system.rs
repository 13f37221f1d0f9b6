//! The kernel around: huge pages, its own swap, zram.

use userswap_sys::host::{self, HugePages};

use super::Reading;
use crate::size::rounded;

/// The first line: kernel and memory.
pub(super) fn description() -> String {
    let cpus = userswap_sys::cpu::count();
    let memory = host::memory().map_or("memory not known".to_owned(), |memory| {
        format!(
            "{} of memory, {} available",
            rounded(memory.total),
            rounded(memory.available)
        )
    });
    format!("Linux {}, {cpus} CPUs, {memory}", host::kernel_release())
}

pub(super) fn readings() -> Vec<Reading> {
    vec![huge_pages(), swap(), zram(), io_uring(), encryption()]
}

fn io_uring() -> Reading {
    const NAME: &str = "io_uring";
    match userswap_device::io_uring_refused() {
        None => Reading::ok(NAME, "works: requests to files go many at a time"),
        Some(errno) => Reading::limited(
            NAME,
            format!("refused ({errno}): requests to files go one by one"),
            "look at the sysctl kernel.io_uring_disabled and at the container's seccomp profile",
        ),
    }
}

fn encryption() -> Reading {
    const NAME: &str = "encryption";
    match userswap_device::key_refused() {
        None => Reading::ok(
            NAME,
            "pages in files are encrypted, the key is in locked memory",
        ),
        Some(error) => Reading::missing(
            NAME,
            format!("no memory can be locked for a key: {error}"),
            "raise RLIMIT_MEMLOCK (ulimit -l), or use files with encrypt=off",
        ),
    }
}

fn huge_pages() -> Reading {
    const NAME: &str = "huge pages";
    match host::transparent_huge_pages() {
        Ok(HugePages::Never) => Reading::ok(NAME, "never"),
        Ok(HugePages::Madvise) => Reading::ok(NAME, "madvise: regions do not ask for them"),
        Ok(HugePages::Always) => Reading::ok(
            NAME,
            "always: regions decline them, since the first page taken out would split one",
        ),
        Err(error) => Reading::unknown(NAME, &error),
    }
}

fn swap() -> Reading {
    const NAME: &str = "kernel swap";
    match host::swap_areas() {
        Ok(areas) if areas.is_empty() => Reading::ok(NAME, "none, and none is needed"),
        Ok(areas) => {
            let listed: Vec<String> = areas
                .iter()
                .map(|area| {
                    let (used, size) = (rounded(area.used), rounded(area.size));
                    format!(
                        "{} ({used} of {size}, priority {})",
                        area.path, area.priority
                    )
                })
                .collect();
            Reading::limited(
                NAME,
                listed.join(", "),
                "it can swap out the store, too, which then is slow; for measurements swapoff",
            )
        }
        Err(error) => Reading::unknown(NAME, &error),
    }
}

fn zram() -> Reading {
    const NAME: &str = "kernel zram";
    match host::zram() {
        Ok(zram) if zram.control => Reading::ok(
            NAME,
            format!(
                "there, {} device(s): bench --kernel works as root",
                zram.devices
            ),
        ),
        Ok(_) => Reading::limited(
            NAME,
            "not there: only bench --kernel needs it",
            "as root: modprobe zram",
        ),
        Err(error) => Reading::unknown(NAME, &error),
    }
}
