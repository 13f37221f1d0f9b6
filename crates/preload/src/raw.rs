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
