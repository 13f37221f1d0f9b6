//! Which CPU a thread runs on, pinning it to one, and which thread this is.

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

use crate::Errno;

/// The CPU the calling thread runs on now; it may have moved by the time the caller looks.
///
/// *Fault path.* Through the vDSO, without entering the kernel. Ids run from 0 to [`possible`] - 1 and may have gaps, so
/// a table indexed by this needs [`possible`] rows, not [`count`].
#[inline]
pub fn current() -> usize {
    sched_getcpu()
}

/// The calling thread's number, as the kernel gives it in events. Never 0.
///
/// *Fault path.*
pub fn thread() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}

/// How many CPUs the calling thread may run on: what a container or a batch job was given, not what the machine has.
pub fn count() -> usize {
    allowed().len().max(1)
}

/// The ids of the CPUs the calling thread may run on, ascending. Empty when the kernel does not tell.
pub fn allowed() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU)
            .filter(|&cpu| set.is_set(cpu))
            .collect(),
        Err(_) => Vec::new(),
    }
}

/// One more than the highest CPU id that [`current`] can return on this machine, CPUs not yet plugged in included.
pub fn possible() -> usize {
    let listed = std::fs::read_to_string("/sys/devices/system/cpu/possible").ok();
    listed
        .as_deref()
        .and_then(highest_in_list)
        .or_else(|| allowed().last().copied())
        .map_or(1, |highest| highest + 1)
}

/// Pins the calling thread to one CPU.
///
/// Refused with `EINVAL` for a CPU that this thread's cpuset does not hold.
pub fn pin_to(cpu: usize) -> Result<(), Errno> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(Errno::INVAL);
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)
}

/// Lets the calling thread run on each of these CPUs: what [`allowed`] returned before [`pin_to`] undoes it.
pub fn allow(cpus: &[usize]) -> Result<(), Errno> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            return Err(Errno::INVAL);
        }
        set.set(cpu);
    }
    sched_setaffinity(None, &set)
}

/// Has the calling thread get a CPU soon when it wakes, where others have all: it runs for 100 us at a time. For threads that have
/// little to do, and whose delay others feel. Since Linux 6.12; before, and under real-time policies, it changes nothing.
pub fn take_short_turns() {
    /// The shortest that there is, in nanoseconds.
    const TURN: u64 = 100_000;
    // SAFETY: all zeros is a value of it.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of_val(&attributes) as u32;
    // SAFETY: of the calling thread, into memory of that size; or EINVAL.
    let known = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    let policy = attributes.sched_policy as i32;
    if known == 0 && matches!(policy, libc::SCHED_OTHER | libc::SCHED_BATCH) {
        attributes.sched_runtime = TURN;
        // Refused where the system does not let a thread change what it is: then it waits as the others do.
        // SAFETY: the calling thread stays what it is but for its turns.
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    }
}

/// The highest id of a kernel CPU list such as `0-3,8`.
fn highest_in_list(list: &str) -> Option<usize> {
    let last = list.trim().rsplit([',', '-']).next()?;
    last.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists() {
        assert_eq!(highest_in_list("0\n"), Some(0));
        assert_eq!(highest_in_list("0-3\n"), Some(3));
        assert_eq!(highest_in_list("0-3,8\n"), Some(8));
        assert_eq!(highest_in_list("0,2-127"), Some(127));
        assert_eq!(highest_in_list(""), None);
    }

    #[test]
    fn pinned_threads_stay_where_they_were_put() {
        let before = allowed();
        assert_eq!(before.len(), count());
        for &cpu in &before {
            assert!(cpu < possible());
            pin_to(cpu).expect("pin to an allowed CPU");
            assert_eq!(current(), cpu);
            assert_eq!(count(), 1);
        }
        allow(&before).expect("back to all CPUs");
        assert_eq!(allowed(), before);
        assert_eq!(pin_to(CpuSet::MAX_CPU), Err(Errno::INVAL));
        assert_eq!(allow(&[CpuSet::MAX_CPU]), Err(Errno::INVAL));
    }
}
