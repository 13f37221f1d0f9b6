//! A SIGBUS as the handler sees it.

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;

/// A SIGBUS being delivered; it cannot outlive its delivery.
#[derive(Debug, Clone, Copy)]
pub struct Fault<'a> {
    pub(super) signal: c_int,
    pub(super) info: *mut libc::siginfo_t,
    pub(super) context: *mut c_void,
    delivery: PhantomData<&'a ()>,
}

/// Codes of a SIGBUS that Linux gives for an access, beside those that mean "somebody sent it" (0 and below).
impl Fault<'_> {
    /// The address does not exist in the object mapped there, or userfaultfd reports a missing page.
    pub const CODE_ADDRESS: c_int = 2;
    /// Failed memory was accessed. A page marked by [`crate::uffd::Uffd::poison`] gives this code only where the kernel was
    /// built with `CONFIG_MEMORY_FAILURE`; elsewhere [`Fault::CODE_ADDRESS`], as a missing page does. So the code does not
    /// tell one from the other: who poisons keeps a record.
    pub const CODE_FAILED_MEMORY: c_int = 4;
    /// Failed memory was found somewhere; no access of this thread needs it.
    pub const CODE_FAILED_MEMORY_ELSEWHERE: c_int = 5;

    /// # Safety
    /// `info` and `context` are what the kernel passed to a SA_SIGINFO handler, and that handler outlives `'a`.
    pub(super) unsafe fn new(
        signal: c_int,
        info: *mut libc::siginfo_t,
        context: *mut c_void,
    ) -> Self {
        Fault {
            signal,
            info,
            context,
            delivery: PhantomData,
        }
    }

    /// The address that was touched. Meaningless unless [`Fault::is_synchronous`].
    #[inline]
    pub fn address(&self) -> usize {
        // SAFETY: `info` is valid for this delivery; the kernel fills the address in for every SIGBUS of an access.
        unsafe { (*self.info).si_addr() as usize }
    }

    /// Why: one of the `CODE_` constants, or another of the kernel's.
    #[inline]
    pub fn code(&self) -> c_int {
        // SAFETY: `info` is valid for this delivery.
        unsafe { (*self.info).si_code }
    }

    /// An access of this thread caused it and will repeat; else somebody sent it, or it is news of no access.
    #[inline]
    pub fn is_synchronous(&self) -> bool {
        self.code() > 0 && self.code() != Self::CODE_FAILED_MEMORY_ELSEWHERE
    }

    /// Whether the access was a write; `None` where the machine does not tell.
    #[inline]
    pub fn write(&self) -> Option<bool> {
        #[cfg(target_arch = "x86_64")]
        {
            /// The exception number of a page fault, for which the error code below is defined.
            const PAGE_FAULT: i64 = 14;
            /// Error code of a page fault: bit 0 present, bit 1 write, bit 2 user mode, bit 4 instruction fetch.
            const WRITE: i64 = 1 << 1;
            // SAFETY: `context` is this delivery's ucontext.
            let registers =
                unsafe { &(*self.context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
            if registers[libc::REG_TRAPNO as usize] != PAGE_FAULT {
                return None;
            }
            Some(registers[libc::REG_ERR as usize] & WRITE != 0)
        }
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// The stack pointer where the fault happened; `None` where the machine does not tell.
    #[inline]
    pub fn stack_pointer(&self) -> Option<usize> {
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY: `context` is this delivery's ucontext.
            let registers =
                unsafe { &(*self.context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
            Some(registers[libc::REG_RSP as usize] as usize)
        }
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// The signals that were blocked where the fault happened; bit N is signal N + 1.
    pub(super) fn blocked_before(&self) -> u64 {
        // SAFETY: `context` is this delivery's ucontext. The kernel writes 8 bytes of mask there, fewer than libc's type
        // has, so only those are read.
        unsafe {
            let mask = &raw const (*self.context.cast::<libc::ucontext_t>()).uc_sigmask;
            mask.cast::<u64>().read()
        }
    }
}
