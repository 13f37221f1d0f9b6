//! Memory of the library's own, apart from the program's heap: that may be swapped out, and its locks may be
//! held by whoever is waiting for us.
//!
//! Large pieces are mappings of their own, which come as zeros and take memory where they are touched; small ones
//! come from an allocator over such pieces.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use dlmalloc::Dlmalloc;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use userswap_sys::signals::Blocked;
use userswap_sys::{PAGE_SIZE, futex, own, place};

/// Bytes from which on a piece is a mapping of its own.
const LARGE: usize = 64 << 10;

/// Values of [`Own::busy`]: nobody uses it; somebody does; somebody does and others may wait to be woken.
const FREE: u32 = 0;
const USED: u32 = 1;
const AWAITED: u32 = 2;

/// What small pieces are cut from.
struct Pieces;

// SAFETY: memory from `map` is whole pages that nobody else has, and stays until it is given to `unmap`.
unsafe impl dlmalloc::Allocator for Pieces {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let piece = map(size);
        (piece, if piece.is_null() { 0 } else { size }, 0)
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        std::ptr::null_mut()
    }

    fn free_part(&self, _: *mut u8, _: usize, _: usize) -> bool {
        false
    }

    fn free(&self, piece: *mut u8, size: usize) -> bool {
        // SAFETY: the allocator gives back what `alloc` gave it, whole.
        unsafe { unmap(piece, size) };
        true
    }

    fn can_release_part(&self, _: u32) -> bool {
        false
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        PAGE_SIZE
    }
}

/// The library's allocator.
pub(crate) struct Own {
    /// [`USED`] or [`AWAITED`] while somebody uses `small`, or forks. Not a mutex: a fork takes it in one call and gives it
    /// back in another, on both sides.
    busy: AtomicU32,
    /// A signal handler may come here: see [`Own::guard`].
    guarded: AtomicBool,
    small: UnsafeCell<Dlmalloc<Pieces>>,
}

// SAFETY: `small` is used only while `busy` is held.
unsafe impl Sync for Own {}

impl Own {
    pub(crate) const fn new() -> Self {
        Self {
            busy: AtomicU32::new(FREE),
            guarded: AtomicBool::new(false),
            small: UnsafeCell::new(Dlmalloc::new_with_allocator(Pieces)),
        }
    }

    /// Waits until nobody allocates, and keeps it so until [`Own::release`].
    pub(crate) fn hold(&self) {
        // Acquire: what the last user did is seen.
        let free = self
            .busy
            .compare_exchange(FREE, USED, Ordering::Acquire, Ordering::Relaxed);
        if free.is_ok() {
            return;
        }
        // Who has waited cannot know whether others still do.
        while self.busy.swap(AWAITED, Ordering::Acquire) != FREE {
            futex::wait(&self.busy, AWAITED);
        }
    }

    /// Ends [`Own::hold`].
    pub(crate) fn release(&self) {
        if self.busy.swap(FREE, Ordering::Release) == AWAITED {
            futex::wake_all(&self.busy);
        }
    }

    /// From here on handlers of the program's, whose system calls are looked at, may come here. Before, no signals are blocked
    /// for each piece: that takes two system calls, and would be most of the time in which a process starts.
    ///
    /// To be called with signals blocked, while this is the only thread that comes here.
    pub(crate) fn guard(&self) {
        // Relaxed: threads that come here are started later.
        self.guarded.store(true, Ordering::Relaxed);
    }

    fn with_small<R>(&self, use_it: impl FnOnce(&mut Dlmalloc<Pieces>) -> R) -> R {
        // A handler of the program's could come back here, and wait for its own thread.
        let _blocked = self.guarded.load(Ordering::Relaxed).then(Blocked::new);
        self.hold();
        // SAFETY: held, so this is the only reference; `use_it` does not come back here.
        let result = use_it(unsafe { &mut *self.small.get() });
        self.release();
        result
    }
}

// SAFETY: both kinds of pieces are as long and as aligned as asked for, and are nobody else's until freed: mappings are
// aligned to pages, which is all that `LARGE` ones may ask for here, and the rest is dlmalloc's promise.
unsafe impl GlobalAlloc for Own {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return map(layout.size());
        }
        // SAFETY: dlmalloc takes any size and any power of two as alignment.
        unsafe { self.with_small(|small| small.malloc(layout.size(), layout.align())) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            // A fresh mapping is zeros already.
            return map(layout.size());
        }
        // SAFETY: as above.
        unsafe { self.with_small(|small| small.calloc(layout.size(), layout.align())) }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        if is_large(layout) {
            // SAFETY: a large piece with this layout is a mapping of this size.
            unsafe { unmap(piece, layout.size()) };
        } else {
            // SAFETY: the caller gives back a piece with the layout it was made with.
            unsafe { self.with_small(|small| small.free(piece, layout.size(), layout.align())) };
        }
    }
}

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= PAGE_SIZE
}

/// A mapping of at least `size` bytes; null: there is none to be had.
///
/// It is noted as ours before it looks like memory of the program's (and until it no longer does): somebody may be
/// reading the list of mappings.
fn map(size: usize) -> *mut u8 {
    let len = size.next_multiple_of(PAGE_SIZE);
    // SAFETY: a fresh mapping, at addresses of the kernel's choice.
    let mapped = unsafe {
        mmap_anonymous(
            place::hint(len),
            len,
            ProtFlags::empty(),
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )
    };
    let Ok(start) = mapped else {
        return std::ptr::null_mut();
    };
    own::note(&(start as usize..start as usize + len));
    // SAFETY: the mapping made above, which nobody uses yet.
    if unsafe { mprotect(start, len, MprotectFlags::READ | MprotectFlags::WRITE) }.is_err() {
        // SAFETY: as above.
        unsafe { unmap(start.cast(), size) };
        return std::ptr::null_mut();
    }
    start.cast()
}

/// # Safety
/// `piece` is from [`map`] with the same size, and nobody uses it any more.
unsafe fn unmap(piece: *mut u8, size: usize) {
    let len = size.next_multiple_of(PAGE_SIZE);
    // SAFETY: the caller's part. Refused where the system's table of mappings is full: it stays noted as ours, then.
    if unsafe { mprotect(piece.cast(), len, MprotectFlags::empty()) }.is_err() {
        return;
    }
    own::forget(&(piece as usize..piece as usize + len));
    // SAFETY: the caller's part. Refused only where the system's table of mappings is full: then it is lost.
    let _ = unsafe { munmap(piece.cast(), len) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_every_size_are_apart_aligned_and_zeroed() {
        let own = Own::new();
        let layouts = [1, 24, 4096, 65_535, LARGE, 1 << 20]
            .map(|size| Layout::from_size_align(size, 64).expect("a layout"));
        let mut pieces = Vec::new();
        for round in 0..50_u8 {
            for layout in layouts {
                // SAFETY: sizes are not 0; each piece is used within its layout and freed with it.
                unsafe {
                    let piece = own.alloc_zeroed(layout);
                    assert!(!piece.is_null() && (piece as usize).is_multiple_of(64));
                    let bytes = std::slice::from_raw_parts_mut(piece, layout.size());
                    assert!(bytes.iter().all(|&byte| byte == 0));
                    bytes.fill(round + 1);
                    pieces.push((piece, layout, round + 1));
                }
            }
            if round % 3 == 0 {
                let (piece, layout, _) = pieces.swap_remove(pieces.len() / 2);
                // SAFETY: as above.
                unsafe { own.dealloc(piece, layout) };
            }
        }
        for (piece, layout, value) in pieces {
            // SAFETY: as above.
            unsafe {
                let bytes = std::slice::from_raw_parts(piece, layout.size());
                assert!(bytes.iter().all(|&byte| byte == value));
                own.dealloc(piece, layout);
            }
        }
    }

    #[test]
    fn who_waits_is_woken() {
        static OWN: Own = Own::new();
        let waits = || {
            std::thread::spawn(|| {
                OWN.hold();
                OWN.release();
            })
        };
        OWN.hold();
        let waiting = [waits(), waits(), waits()];
        while OWN.busy.load(Ordering::Relaxed) != AWAITED {
            std::thread::yield_now();
        }
        // So that they sleep.
        std::thread::sleep(std::time::Duration::from_millis(50));
        OWN.release();
        for _ in 0..1000 {
            if waiting.iter().all(std::thread::JoinHandle::is_finished) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("nobody wakes them");
    }

    /// A handler of the program's that makes a call comes back here, on a thread that is at it already.
    #[test]
    fn handlers_do_not_interrupt_it() {
        static OWN: Own = Own::new();
        static HANDLED: AtomicU32 = AtomicU32::new(0);
        const LAYOUT: Layout = Layout::new::<[u64; 9]>();
        fn use_it() {
            // SAFETY: the size is not 0; the piece is freed with the layout it was made with.
            unsafe {
                let piece = OWN.alloc(LAYOUT);
                assert!(!piece.is_null());
                OWN.dealloc(piece, LAYOUT);
            }
        }
        extern "C" fn handle(_: libc::c_int) {
            use_it();
            HANDLED.fetch_add(1, Ordering::Relaxed);
        }
        OWN.guard();
        // In a process of its own: signals come to any thread, and its end is seen if it never comes back.
        // SAFETY: the child uses what it has made itself, and leaves by _exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let often = libc::timeval {
                tv_sec: 0,
                tv_usec: 50,
            };
            let timer = libc::itimerval {
                it_interval: often,
                it_value: often,
            };
            // SAFETY: a handler that takes a signal's number; a timer of this process; its end should it hang.
            unsafe {
                libc::signal(libc::SIGALRM, handle as *const () as usize);
                libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut());
            }
            while HANDLED.load(Ordering::Relaxed) < 300 {
                for _ in 0..1000 {
                    use_it();
                }
            }
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) };
        }
        for _ in 0..6000 {
            let mut status = 0;
            // SAFETY: looks whether the child has ended.
            if unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == child {
                assert_eq!(status, 0);
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        // SAFETY: the child made above, which has not been waited for.
        unsafe { libc::kill(child, libc::SIGKILL) };
        panic!("it waits for its own thread");
    }
}
