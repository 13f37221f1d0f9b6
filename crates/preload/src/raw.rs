//! System calls made as the program asked for them, past the hook.

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

/// The end of the heap.
pub(crate) fn program_break() -> usize {
    // SAFETY: asks only.
    unsafe { make(&Call::new(libc::SYS_brk as usize, [0; 6])) as usize }
}

/// Faults of the process that were answered without reading anything.
pub(crate) fn minor_faults() -> u64 {
    const OF_THE_PROCESS: usize = libc::RUSAGE_SELF as usize;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    let args = [OF_THE_PROCESS, usage.as_mut_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: writes to `usage`, which is large enough.
    unsafe { make(&Call::new(libc::SYS_getrusage as usize, args)) };
    // SAFETY: numbers, for which zeros are values, too.
    let usage = unsafe { usage.assume_init() };
    usage.ru_minflt as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_touched_is_a_fault() {
        let before = minor_faults();
        let pages = vec![1_u8; 4 << 20];
        assert!(minor_faults() > before, "{}", pages.len());
    }
}
