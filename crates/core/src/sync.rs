//! Atomics, locks and threads: one place to swap them for a model checker's.
//!
//! Nothing here allocates after construction, so all of it may be used in a signal handler that
//! interrupts code outside this crate.
//!
//! With the feature `loom` or `shuttle` these are the checker's, which work inside its models only.
//! Neither checker's atomics are zeroes in memory, and both need a thread of theirs to ask who it is.

#[cfg(feature = "loom")]
use loom as primitive;
#[cfg(all(feature = "shuttle", not(feature = "loom")))]
use shuttle as primitive;
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
use std as primitive;

use std::sync::PoisonError;

pub(crate) use primitive::hint::spin_loop;
pub(crate) use primitive::sync::atomic::{
    AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
pub(crate) use primitive::sync::{MutexGuard, RwLock};
pub(crate) use primitive::thread::yield_now;

/// Whether a model checker runs the code: then tables are small and nobody spins, since it counts steps.
pub(crate) const MODELLED: bool = cfg!(any(feature = "loom", feature = "shuttle"));

/// Over how many places threads are spread, by [`thread_hint`].
pub(crate) const SHARDS: usize = if MODELLED { 2 } else { 16 };

/// A mutex that ignores poison: what it guards is consistent at every point that can panic.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(primitive::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(primitive::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A condition variable for [`Mutex`].
#[derive(Debug, Default)]
pub(crate) struct Condvar(primitive::sync::Condvar);

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
    #[cfg(not(any(feature = "loom", feature = "shuttle")))]
    return bytemuck::allocation::zeroed_slice_box(len);
    #[cfg(any(feature = "loom", feature = "shuttle"))]
    return (0..len).map(|_| AtomicU32::new(0)).collect();
}

/// A zeroed table of 64-bit words. Large tables take memory only where they are touched.
pub(crate) fn zeroed_u64(len: usize) -> Box<[AtomicU64]> {
    #[cfg(not(any(feature = "loom", feature = "shuttle")))]
    return bytemuck::allocation::zeroed_slice_box(len);
    #[cfg(any(feature = "loom", feature = "shuttle"))]
    return (0..len).map(|_| AtomicU64::new(0)).collect();
}

/// Stands between a SeqCst store and a SeqCst load of another word, which are in order without it: loom
/// takes both for AcqRel, and has to be told.
#[inline(always)]
pub(crate) fn store_load_order() {
    #[cfg(feature = "loom")]
    fence(Ordering::SeqCst);
}

/// A store to a word that others update meanwhile. loom loses the order of the two, so there it is a swap.
#[inline(always)]
pub(crate) fn store_among_updates(word: &AtomicU32, value: u32, order: Ordering) {
    #[cfg(not(feature = "loom"))]
    word.store(value, order);
    #[cfg(feature = "loom")]
    let _ = word.swap(value, order);
}

/// Gives others the time to do something.
pub(crate) fn pause() {
    #[cfg(not(any(feature = "loom", feature = "shuttle")))]
    std::thread::sleep(std::time::Duration::from_micros(50));
    #[cfg(any(feature = "loom", feature = "shuttle"))]
    yield_now();
}

/// A small number that mostly stays the same for a thread and differs between threads: spreads threads over per-CPU state
/// without asking the OS.
///
/// From where its stack lies, since thread-local variables of a library are found through a table in the program's heap,
/// which may be swapped out when a fault asks.
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
pub(crate) fn thread_hint() -> usize {
    const MIB_SHIFT: u32 = 20;
    let on_stack = 0_u8;
    let stack = std::ptr::from_ref(&on_stack) as usize >> MIB_SHIFT;
    // Stacks lie at regular distances: all bits count.
    stack.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

/// The same, numbered anew in each execution of a model.
#[cfg(any(feature = "loom", feature = "shuttle"))]
pub(crate) fn thread_hint() -> usize {
    use std::sync::atomic::AtomicUsize as Counter;
    primitive::lazy_static! {
        static ref NEXT: Counter = Counter::new(0);
    }
    primitive::thread_local! {
        static HINT: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    HINT.with(|&hint| hint)
}
