//! A stack to look at code on: what that takes is more than a thread with a small stack may have left.

use std::arch::asm;
use std::ptr;

use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect};
use userswap_sys::{PAGE_SIZE, own, place};

/// Bytes of the stack: many times what is used of it.
const BYTES: usize = 512 << 10;

/// The stack; below it a page is closed.
pub(crate) struct Room {
    start: usize,
}

impl Room {
    /// Makes it; `None`: there is no memory.
    pub(crate) fn make() -> Option<Self> {
        let len = PAGE_SIZE + BYTES;
        // SAFETY: a fresh mapping, at addresses of the kernel's choice.
        let mapped = unsafe {
            mmap_anonymous(
                place::hint(len),
                len,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        };
        let start = mapped.ok()? as usize;
        own::note(&(start..start + len));
        let start = start + PAGE_SIZE;
        // SAFETY: all but the first page of what was just mapped.
        let opened = unsafe {
            mprotect(
                ptr::with_exposed_provenance_mut(start),
                BYTES,
                MprotectFlags::READ | MprotectFlags::WRITE,
            )
        };
        opened.ok().map(|()| Self { start })
    }

    /// Runs `run` there. A panic in it ends the process.
    pub(crate) fn run<F: FnOnce()>(&mut self, run: F) {
        extern "C" fn begin<F: FnOnce()>(run: &mut Option<F>) {
            if let Some(run) = run.take() {
                run();
            }
        }
        let mut run = Some(run);
        // SAFETY: the stack is ours alone (`self` is borrowed exclusively), aligned as calls want it, and large enough; no
        // unwinding leaves `begin`, which has C's rules. r12 is kept by it, so that the old stack pointer comes back.
        unsafe {
            asm!(
                "xchg rsp, r12",
                "call {begin}",
                "mov rsp, r12",
                begin = sym begin::<F>,
                in("rdi") &raw mut run,
                inout("r12") self.start + BYTES => _,
                clobber_abi("C"),
            );
        }
        // SAFETY: nobody runs there, and nothing there is needed.
        let _ = unsafe {
            madvise(
                ptr::with_exposed_provenance_mut(self.start),
                BYTES,
                Advice::LinuxDontNeed,
            )
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_run_there_has_the_room_and_comes_back() {
        let mut room = Room::make().expect("memory");
        let stack = room.start..room.start + BYTES;
        for round in 0..3_usize {
            let mut sum = 0;
            room.run(|| {
                let bytes = [round as u8; BYTES / 2];
                assert!(stack.contains(&(bytes.as_ptr() as usize)));
                sum = std::hint::black_box(&bytes)
                    .iter()
                    .map(|&byte| usize::from(byte))
                    .sum();
            });
            assert_eq!(sum, round * BYTES / 2);
        }
    }
}
