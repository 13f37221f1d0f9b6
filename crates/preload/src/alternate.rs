//! The alternate signal stack of each thread, in inline mode: ours, on which faults are resolved even where the stack of the
//! thread is missing itself. What the program asks for is noted, and told when it asks back; its handlers run on ours.
//!
//! Once made they stay, for threads to come: to whoever looks for memory to swap they are stacks from before they can be
//! written to until the end.

use std::cell::Cell;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect};
use userswap_hook::{Call, Decision};
use userswap_sys::{PAGE_SIZE, place};

use crate::memory::{words, write_words};
use crate::{raw, stacks};

/// Bytes for what resolves a fault, and a handler of the program's that faults.
const BYTES: usize = 256 << 10;

/// The least that the kernel takes for a stack, in bytes.
const LEAST: u64 = 2048;

const DISABLE: u32 = libc::SS_DISABLE as u32;
const ON_STACK: u32 = libc::SS_ONSTACK as u32;
const AUTODISARM: u32 = 1 << 31;

/// A thread's.
pub(crate) struct Alternate {
    /// Ours: first address and end; equal: there is none.
    ours: Cell<(usize, usize)>,
    /// The program's: address, flags, bytes.
    theirs: Cell<(u64, u32, u64)>,
}

impl Alternate {
    /// None yet.
    pub(crate) const fn new() -> Self {
        Self {
            ours: Cell::new((0, 0)),
            theirs: Cell::new((0, DISABLE, 0)),
        }
    }

    /// Gives it to the calling thread. `false`: there is no memory or no room for another.
    pub(crate) fn begin(&self) -> bool {
        let Some([address, flags, bytes]) = exchange(None) else {
            return false;
        };
        self.theirs.set((address, flags as u32, bytes));
        let (start, end) = self.ours.get();
        if end - start >= BYTES + bytes as usize {
            self.install()
        } else {
            self.make(BYTES + bytes as usize)
        }
    }

    fn install(&self) -> bool {
        let (start, end) = self.ours.get();
        // The first page is closed.
        let (start, len) = (start + PAGE_SIZE, end - start - PAGE_SIZE);
        exchange(Some([start as u64, 0, len as u64])).is_some()
    }

    /// Makes a stack of `bytes` and has the kernel use it.
    fn make(&self, bytes: usize) -> bool {
        let len = bytes.next_multiple_of(PAGE_SIZE) + PAGE_SIZE;
        // SAFETY: a fresh mapping, at addresses of the kernel's choice.
        let mapped = unsafe {
            mmap_anonymous(
                place::hint(len),
                len,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::STACK,
            )
        };
        let Ok(start) = mapped else { return false };
        let range = start as usize..start as usize + len;
        if !stacks::note(&range) {
            return false;
        }
        // Its first page stays closed: a handler that needs more ends there.
        // SAFETY: all but the first page of what was just mapped.
        let opened = unsafe {
            mprotect(
                start.cast::<u8>().add(PAGE_SIZE).cast(),
                len - PAGE_SIZE,
                MprotectFlags::READ | MprotectFlags::WRITE,
            )
        };
        // One that was too small stays as it is, and is a stack for ever: few programs ask for larger ones.
        self.ours.set((range.start, range.end));
        opened.is_ok() && self.install()
    }

    /// The thread ends: another can have it.
    pub(crate) fn end(&self) {
        let (start, end) = self.ours.get();
        if start != end && exchange(Some([0, u64::from(DISABLE), 0])).is_some() {
            // SAFETY: nobody runs there any more, and nothing there is needed.
            let _ = unsafe {
                madvise(
                    start as *mut _,
                    end - start,
                    rustix::mm::Advice::LinuxDontNeed,
                )
            };
        }
    }

    /// The program's `sigaltstack`.
    pub(crate) fn change(&self, call: &Call) -> Decision {
        let error = |number: i32| Decision::Return(-(number as isize));
        let [new, old, ..] = call.args;
        let (address, flags, bytes) = self.theirs.get();
        let (start, end) = self.ours.get();
        let on_it = flags & DISABLE == 0 && (start..end).contains(&call.stack);
        if new != 0 {
            let Some([address, flags, bytes]) = words::<3>(new, &(0..0)) else {
                return error(libc::EFAULT);
            };
            let (flags, mode) = (flags as u32, flags as u32 & !AUTODISARM);
            if on_it {
                return error(libc::EPERM);
            }
            if ![0, ON_STACK, DISABLE].contains(&mode) {
                return error(libc::EINVAL);
            }
            if mode == DISABLE {
                self.theirs.set((0, flags, 0));
            } else if bytes < LEAST
                || (bytes as usize + BYTES / 2 > end - start && !self.make(BYTES + bytes as usize))
            {
                return error(libc::ENOMEM);
            } else {
                self.theirs.set((address, flags & AUTODISARM, bytes));
            }
        }
        // A handler that asks where it runs finds itself there: Go's ends the program where it does not.
        let told = if on_it {
            let first = start + PAGE_SIZE;
            [
                first as u64,
                u64::from(flags | ON_STACK),
                (end - first) as u64,
            ]
        } else {
            [address, u64::from(flags), bytes]
        };
        if old != 0 && !write_words(old, told) {
            return error(libc::EFAULT);
        }
        Decision::Return(0)
    }
}

/// Sets the kernel's stack for handlers, if there is a new one; returns what it was: address, flags, bytes.
fn exchange(new: Option<[u64; 3]>) -> Option<[u64; 3]> {
    let mut old = [0_u64; 3];
    let new = new.as_ref().map_or(0, |new| new.as_ptr() as usize);
    let arguments = [new, old.as_mut_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: both have the kernel's layout; a new stack is memory of ours.
    let result = unsafe { raw::make(&Call::new(libc::SYS_sigaltstack as usize, arguments)) };
    (result == 0).then_some(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_told_what_it_set_and_the_kernel_has_ours() {
        std::thread::spawn(|| {
            let before = exchange(None).expect("asked");
            let alternate = Alternate::new();
            assert!(alternate.begin());
            let real = exchange(None).expect("asked");
            assert!(real[2] as usize >= BYTES - PAGE_SIZE && real[0] != before[0]);
            let set_at = |stack: u64, new: Option<[u64; 3]>| {
                let mut old = [9_u64; 3];
                let new = new.as_ref().map_or(0, |new| new.as_ptr() as usize);
                let arguments = [new, old.as_mut_ptr() as usize, 0, 0, 0, 0];
                let mut call = Call::new(libc::SYS_sigaltstack as usize, arguments);
                call.stack = stack as usize;
                (alternate.change(&call), old)
            };
            let set = |new| set_at(0, new);
            assert_eq!(set(None), (Decision::Return(0), before));
            let theirs = [0x1000, 0, 1 << 20];
            assert_eq!(set(Some(theirs)), (Decision::Return(0), before));
            assert_eq!(set(None), (Decision::Return(0), theirs));
            let real = exchange(None).expect("asked");
            assert!(real[2] > 1 << 20, "as large as theirs");
            // In a handler: it runs on ours, and is told so.
            let here = [real[0], u64::from(ON_STACK), real[2]];
            assert_eq!(set_at(real[0] + 5000, None), (Decision::Return(0), here));
            let busy = Decision::Return(-(libc::EPERM as isize));
            assert_eq!(set_at(real[0] + 5000, Some(theirs)).0, busy);
            let small = Decision::Return(-(libc::ENOMEM as isize));
            assert_eq!(set(Some([0x1000, 0, 100])).0, small);
            let odd = Decision::Return(-(libc::EINVAL as isize));
            assert_eq!(set(Some([0x1000, 77, 8192])).0, odd);
            assert_eq!(
                set(Some([7, u64::from(DISABLE), 8])),
                (Decision::Return(0), theirs)
            );
            assert_eq!(set(None).1, [0, u64::from(DISABLE), 0]);
            alternate.end();
            assert_eq!(exchange(None).expect("asked")[1], u64::from(DISABLE));
            assert!(alternate.begin(), "once more");
            assert!(exchange(None).expect("asked")[2] > 1 << 20);
            alternate.end();
        })
        .join()
        .expect("the thread");
    }
}
