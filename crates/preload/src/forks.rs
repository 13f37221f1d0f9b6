//! Which side of a fork a thread is on.
//!
//! The return of a call that made a process or a thread comes here on both sides, and its arguments may be gone by then. One
//! fork at a time is noted before it is made. A page that the kernel wipes in a child tells the child from everybody who
//! still has the parent's memory: its other threads, new ones, and children of vfork.

use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use userswap_sys::{PAGE_SIZE, cpu, own, place};

/// The thread that forks; 0: none does.
static FORKER: AtomicU32 = AtomicU32::new(0);

/// A word that is 1 in this process and 0 in a child of fork, until the child sets it.
static MARK: AtomicPtr<AtomicU32> = AtomicPtr::new(std::ptr::null_mut());

/// Makes the page. `false`: forks cannot be told.
pub(crate) fn prepare() -> bool {
    // SAFETY: a fresh mapping, at addresses of the kernel's choice.
    let mapped = unsafe {
        mmap_anonymous(
            place::hint(PAGE_SIZE),
            PAGE_SIZE,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    };
    let Ok(page) = mapped else { return false };
    own::note(&(page as usize..page as usize + PAGE_SIZE));
    // SAFETY: the page just made; what a child finds there is the point.
    if unsafe { madvise(page, PAGE_SIZE, Advice::LinuxWipeOnFork) }.is_err() {
        return false;
    }
    MARK.store(page.cast(), Ordering::Release);
    mark().store(1, Ordering::Relaxed);
    true
}

fn mark() -> &'static AtomicU32 {
    // SAFETY: from `prepare`: a page that stays, zeros or a number of ours.
    unsafe { &*MARK.load(Ordering::Acquire) }
}

/// This thread is about to fork. Forks are made one at a time.
pub(crate) fn begin() {
    FORKER.store(cpu::thread(), Ordering::Relaxed);
}

/// Whether this thread comes back from a fork: on the child's side (`Some(true)`), on the parent's, or not at all.
pub(crate) fn side() -> Option<bool> {
    let forker = FORKER.load(Ordering::Relaxed);
    if forker == 0 {
        return None;
    }
    let child = mark().load(Ordering::Relaxed) == 0;
    if !child && forker != cpu::thread() {
        return None;
    }
    mark().store(1, Ordering::Relaxed);
    FORKER.store(0, Ordering::Relaxed);
    Some(child)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_side_knows_which_it_is() {
        assert!(prepare());
        assert_eq!(side(), None, "nobody forks");
        begin();
        std::thread::spawn(|| assert_eq!(side(), None, "another thread"))
            .join()
            .expect("the other thread");
        // SAFETY: the child only looks at its own memory, and leaves by _exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let right = side() == Some(true) && side().is_none();
            // SAFETY: ends the child without this process's exit handlers.
            unsafe { libc::_exit(i32::from(!right)) };
        }
        assert_eq!(side(), Some(false));
        assert_eq!(side(), None);
        let mut status = 0;
        // SAFETY: waits for the child just made.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0);
    }
}
