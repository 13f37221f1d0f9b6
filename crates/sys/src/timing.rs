//! The monotonic clock.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of the monotonic clock; only differences mean something.
///
/// *Fault path.* Read through the vDSO, without entering the kernel. The first call of a process looks the vDSO up;
/// [`crate::signals::install`] makes that call, so that no fault has to.
#[inline]
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // The monotonic clock counts from boot: neither part is negative, and 64 bits of nanoseconds last 584 years.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::now_ns;

    #[test]
    fn does_not_run_backwards_and_does_run() {
        let start = now_ns();
        let mut last = start;
        while last - start < 1_000_000 {
            let now = now_ns();
            assert!(now >= last);
            last = now;
        }
    }
}
