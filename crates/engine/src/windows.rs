//! Windows on the program's own memory: fixed parts of the address space, each with page-table words of
//! its own, found by address without a lock.
//!
//! Guarantee: a window once made stays, at its place, until the process ends. So a reference to one
//! is good for ever, in signal handlers too.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use userswap_core::device::PAGE_SIZE;
use userswap_core::page_table::CHUNK_PAGES;

use crate::shared::RegionMemory;

/// Bytes of a window; windows lie at its multiples. One takes some 20 KiB for its first page, of which 10 KiB are locks and bits
/// for each of its chunks: programs that map their memory in many places (V8 draws each 256 KiB at random) have hundreds. The
/// words, 256 KiB, are so many that they are a mapping of their own, which takes memory only where it is touched.
pub(crate) const WINDOW_BYTES: usize = 128 << 20;

/// Bytes within which windows share what is learned about faults.
const SHARED_BYTES: usize = 1 << 30;

/// User addresses are below this.
const ADDRESSES: usize = 1 << 47;

/// Windows that are looked up together.
const TOGETHER: usize = 512;

/// One page; never freed, as windows are.
type Leaf = [AtomicPtr<RegionMemory>; TOGETHER];

/// In two levels: one of a size that a huge page, or a lock of all memory, makes little of.
static TABLE: [AtomicPtr<Leaf>; ADDRESSES / WINDOW_BYTES / TOGETHER] =
    [const { AtomicPtr::new(ptr::null_mut()) }; ADDRESSES / WINDOW_BYTES / TOGETHER];

/// The window that `address` is in, if there is one.
pub(crate) fn find(address: usize) -> Option<&'static RegionMemory> {
    let number = address / WINDOW_BYTES;
    // Acquire, twice: pairs with `publish`.
    let leaf = TABLE.get(number / TOGETHER)?.load(Ordering::Acquire);
    // SAFETY: null, or from `publish`: a leaf that is never freed.
    let leaf = unsafe { leaf.as_ref() }?;
    let window = leaf[number % TOGETHER].load(Ordering::Acquire);
    // SAFETY: null, or from `publish`: a window that is never freed.
    unsafe { window.as_ref() }
}

/// A window near `address`, where there is one, of memory that is likely used alike.
pub(crate) fn near(address: usize) -> Option<&'static RegionMemory> {
    let first = address / SHARED_BYTES * SHARED_BYTES;
    let mut bases = (first..first + SHARED_BYTES).step_by(WINDOW_BYTES);
    bases.find_map(find)
}

/// Whether the page at `address` is taken on.
pub(crate) fn is_taken(address: usize) -> bool {
    find(address).is_some_and(|window| {
        let page = (address - window.mm.space.base()) / PAGE_SIZE;
        window.mm.space.taken(page / CHUNK_PAGES) >> (page % CHUNK_PAGES) & 1 != 0
    })
}

/// Makes `window` the one at its base, where there is none yet. Nobody else does at the same time.
pub(crate) fn publish(window: std::sync::Arc<RegionMemory>) {
    let number = window.mm.space.base() / WINDOW_BYTES;
    let place = &TABLE[number / TOGETHER];
    if place.load(Ordering::Relaxed).is_null() {
        let leaf: Box<Leaf> = Box::new([const { AtomicPtr::new(ptr::null_mut()) }; TOGETHER]);
        // Release: whoever finds it sees it empty.
        place.store(Box::into_raw(leaf), Ordering::Release);
    }
    // SAFETY: made above or before, and never freed.
    let leaf = unsafe { &*place.load(Ordering::Relaxed) };
    let row = &leaf[number % TOGETHER];
    let window = std::sync::Arc::into_raw(window).cast_mut();
    // Release: whoever finds it sees it whole.
    let before = row.swap(window, Ordering::Release);
    debug_assert!(before.is_null(), "two windows at one place");
}
