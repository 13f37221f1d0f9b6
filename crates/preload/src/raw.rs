//! System calls made as the program asked for them, past the hook.

use std::time::Duration;

use userswap_hook::Call;

/// Makes `call`; returns the kernel's answer, an error as its negated number.
///
/// # Safety
/// The call is the program's own: whatever it does to memory, the program wants.
pub(crate) unsafe fn make(call: &Call) -> isize {
    let [first, second, third, fourth, fifth, sixth] = call.args;
    let result;
    // SAFETY: the caller's part; the kernel overwrites rcx and r11 beside the result.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") call.nr as isize => result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            in("r10") fourth,
            in("r8") fifth,
            in("r9") sixth,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Sleeps for `long`, or until a signal comes: past libc, where the end of a thread (pthread_cancel) could come in between.
pub(crate) fn sleep(long: Duration) {
    let wanted = libc::timespec {
        tv_sec: long.as_secs() as libc::time_t,
        tv_nsec: long.subsec_nanos().into(),
    };
    let arguments = [std::ptr::from_ref(&wanted) as usize, 0, 0, 0, 0, 0];
    // SAFETY: only waits; the time is there meanwhile.
    unsafe { make(&Call::new(libc::SYS_nanosleep as usize, arguments)) };
}

/// The end of the heap.
pub(crate) fn program_break() -> usize {
    // SAFETY: asks only.
    unsafe { make(&Call::new(libc::SYS_brk as usize, [0; 6])) as usize }
}

/// Of whom [`usage`] is asked.
#[derive(Clone, Copy)]
pub(crate) enum Whose {
    Process,
    /// The calling one.
    Thread,
}

/// What was used so far.
pub(crate) struct Usage {
    /// Faults that were answered without reading anything.
    pub(crate) minor_faults: u64,
    /// How often a CPU was taken away.
    pub(crate) preempted: u64,
}

/// Asks the system.
pub(crate) fn usage(whose: Whose) -> Usage {
    let whose = match whose {
        Whose::Process => libc::RUSAGE_SELF,
        Whose::Thread => libc::RUSAGE_THREAD,
    };
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    let args = [whose as usize, usage.as_mut_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: writes to `usage`, which is large enough.
    unsafe { make(&Call::new(libc::SYS_getrusage as usize, args)) };
    // SAFETY: numbers, for which zeros are values, too.
    let usage = unsafe { usage.assume_init() };
    Usage {
        minor_faults: usage.ru_minflt as u64,
        preempted: usage.ru_nivcsw as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_touched_is_a_fault() {
        let before = usage(Whose::Process).minor_faults;
        let pages = vec![1_u8; 4 << 20];
        assert!(
            usage(Whose::Process).minor_faults > before,
            "{}",
            pages.len()
        );
    }
}
