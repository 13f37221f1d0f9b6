//! The kernel's own signal calls, past libc: a program, or we, may have put something in between.

use std::ffi::c_int;
use std::mem;

use crate::Errno;

/// The length of the kernel's signal mask, which the calls ask for.
const MASK_LEN: usize = 8;

/// A signal's action as the kernel has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    /// The handler's address, or one of the special values.
    pub handler: usize,
    /// `SA_` flags.
    pub flags: u64,
    /// What the handler returns to.
    pub restorer: usize,
    /// The signals blocked while it runs; bit N is signal N + 1.
    pub mask: u64,
}

impl Action {
    /// The default action.
    pub const DEFAULT: Self = Self {
        handler: libc::SIG_DFL,
        flags: 0,
        restorer: 0,
        mask: 0,
    };

    pub(super) fn from_libc(action: &libc::sigaction) -> Self {
        Self {
            handler: action.sa_sigaction,
            flags: action.sa_flags as u32 as u64,
            restorer: action.sa_restorer.map_or(0, |restorer| restorer as usize),
            mask: first_word(&action.sa_mask),
        }
    }

    pub(super) fn to_libc(self) -> libc::sigaction {
        // SAFETY: `sigaction` is plain data, for which zeros are a value.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = self.handler;
        action.sa_flags = self.flags as c_int;
        // SAFETY: null is none; else an address that is only handed on.
        action.sa_restorer =
            unsafe { mem::transmute::<usize, Option<extern "C" fn()>>(self.restorer) };
        // SAFETY: long enough and aligned, as `first_word` asserts; plain integers.
        unsafe { (&raw mut action.sa_mask).cast::<u64>().write(self.mask) };
        action
    }
}

/// Signals 1 to 64 of libc's longer set, which is all that Linux has.
pub(super) fn first_word(set: &libc::sigset_t) -> u64 {
    const {
        assert!(
            mem::size_of::<libc::sigset_t>() >= MASK_LEN
                && mem::align_of::<libc::sigset_t>() >= MASK_LEN
        )
    };
    // SAFETY: long enough and aligned, as asserted; plain integers.
    unsafe { std::ptr::from_ref(set).cast::<u64>().read() }
}

/// # Safety
/// The arguments are right for the call.
unsafe fn call(nr: libc::c_long, arguments: [usize; 4]) -> isize {
    let result;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's part; the kernel overwrites rcx and r11 beside the result.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") nr as isize => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller's part.
    unsafe {
        result = libc::syscall(nr, arguments[0], arguments[1], arguments[2], arguments[3]) as isize;
    }
    result
}

fn change_mask(how: c_int, set: Option<&u64>) -> u64 {
    let mut old = 0u64;
    let set = set.map_or(0, |set| std::ptr::from_ref(set) as usize);
    // SAFETY: both masks have the length given; a null new one only asks.
    unsafe {
        call(
            libc::SYS_rt_sigprocmask,
            [how as usize, set, &raw mut old as usize, MASK_LEN],
        )
    };
    old
}

/// Sets this thread's signal mask, and returns what it was.
pub fn set_mask(mask: u64) -> u64 {
    change_mask(libc::SIG_SETMASK, Some(&mask))
}

/// This thread's signal mask.
pub fn mask() -> u64 {
    change_mask(libc::SIG_BLOCK, None)
}

/// A signal's action; that of a number which is no signal's is the default.
pub fn action(signal: c_int) -> Action {
    let mut found = Action::DEFAULT;
    // SAFETY: a null new action only asks; the other has the kernel's layout.
    unsafe {
        call(
            libc::SYS_rt_sigaction,
            [signal as usize, 0, &raw mut found as usize, MASK_LEN],
        )
    };
    found
}

/// Sets a signal's action. Returns the one before.
///
/// # Errors
/// What the kernel said.
///
/// # Safety
/// Its handler, if it has one, is good for that signal.
pub unsafe fn set_action(signal: c_int, action: &Action) -> Result<Action, Errno> {
    let mut before = Action::DEFAULT;
    let new = std::ptr::from_ref(action) as usize;
    // SAFETY: the caller's part; both have the kernel's layout.
    let answer = unsafe {
        call(
            libc::SYS_rt_sigaction,
            [signal as usize, new, &raw mut before as usize, MASK_LEN],
        )
    };
    match answer {
        0 => Ok(before),
        error => Err(Errno::from_raw_os_error(-error as i32)),
    }
}

/// What a handler of ours returns to: the call that ends a signal. The kernel of x86-64 wants it from whoever sets an action, as libc
/// does.
#[cfg(target_arch = "x86_64")]
pub(super) fn with_restorer(action: Action) -> Action {
    unsafe extern "C" {
        fn userswap_signal_return();
    }
    Action {
        flags: action.flags | SA_RESTORER,
        restorer: userswap_signal_return as *const () as usize,
        ..action
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn with_restorer(action: Action) -> Action {
    action
}

#[cfg(target_arch = "x86_64")]
const SA_RESTORER: u64 = 0x0400_0000;

// Debuggers and unwinders know the frame of a signal by these very instructions where nothing describes them; they look at the byte
// before, too.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".text",
    ".p2align 4",
    "nop",
    ".globl userswap_signal_return",
    ".hidden userswap_signal_return",
    ".type userswap_signal_return, @function",
    "userswap_signal_return:",
    "mov rax, {call}",
    "syscall",
    ".size userswap_signal_return, . - userswap_signal_return",
    call = const libc::SYS_rt_sigreturn,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_is_the_same_in_both_layouts() {
        let action = Action {
            handler: 0x1234,
            flags: (libc::SA_SIGINFO | libc::SA_RESETHAND) as u32 as u64,
            restorer: 0x5678,
            mask: 1 << 9,
        };
        assert_eq!(Action::from_libc(&action.to_libc()), action);
    }
}
