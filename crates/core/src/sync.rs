//! Atomics, locks and threads: one place to swap them for a model checker's.
//!
//! Nothing here allocates after construction, so all of it may be used in a signal handler that
//! interrupts code outside this crate.

use std::sync::PoisonError;

pub(crate) use std::sync::MutexGuard;
pub(crate) use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

/// A mutex that ignores poison: what it guards is consistent at every point that can panic.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A condition variable for [`Mutex`].
#[derive(Debug, Default)]
pub(crate) struct Condvar(std::sync::Condvar);

impl Condvar {
    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// Keeps a value on cache lines of its own, so that threads writing neighbours do not slow each other.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct CachePadded<T>(pub(crate) T);

/// A zeroed table of 32-bit words. Large tables take memory only where they are touched.
pub(crate) fn zeroed_u32(len: usize) -> Box<[AtomicU32]> {
    bytemuck::allocation::zeroed_slice_box(len)
}

/// A zeroed table of 64-bit words. Large tables take memory only where they are touched.
pub(crate) fn zeroed_u64(len: usize) -> Box<[AtomicU64]> {
    bytemuck::allocation::zeroed_slice_box(len)
}

/// A small number that stays the same for a thread and differs between threads: spreads threads
/// over per-CPU state without asking the OS.
pub(crate) fn thread_hint() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    // A const-initialised cell has no destructor and needs no allocation: safe in a signal handler.
    std::thread_local!(static HINT: std::cell::Cell<usize> = const { std::cell::Cell::new(usize::MAX) });
    HINT.with(|hint| {
        if hint.get() == usize::MAX {
            // Relaxed: only distinctness matters.
            hint.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        hint.get()
    })
}
