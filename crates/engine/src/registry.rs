//! Which region an address belongs to: a table that a signal handler can read.
//!
//! Guarantee: while a thread accesses a region, [`find`] on that thread returns it. Mechanism: each row
//! is guarded by a sequence number, odd while the row changes, so a reader never mixes two regions;
//! and a region is alive while it is being accessed, since an access needs a reference to it.

use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, PoisonError};

use crate::shared::RegionMemory;

/// Regions there can be in a process at once.
pub(crate) const ROWS: usize = 4096;

struct Row {
    sequence: AtomicU64,
    start: AtomicUsize,
    len: AtomicUsize,
    region: AtomicPtr<RegionMemory>,
}

static TABLE: [Row; ROWS] = [const {
    Row {
        sequence: AtomicU64::new(0),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        region: AtomicPtr::new(std::ptr::null_mut()),
    }
}; ROWS];

/// Rows that were ever used: readers look no further.
static USED: AtomicUsize = AtomicUsize::new(0);

/// The rows in use. Writers only.
static WRITERS: Mutex<[bool; ROWS]> = Mutex::new([false; ROWS]);

/// A region's row; leaves the table when dropped.
#[derive(Debug)]
pub(crate) struct Registration(usize);

/// Adds a region. `None`: the table is full.
///
/// # Safety
/// `region` stays valid until the registration is dropped, and it is dropped only when no thread can
/// access the region's memory any more.
pub(crate) unsafe fn register(
    region: *const RegionMemory,
    start: usize,
    len: usize,
) -> Option<Registration> {
    let mut rows = WRITERS.lock().unwrap_or_else(PoisonError::into_inner);
    let row = rows.iter().position(|used| !used)?;
    rows[row] = true;
    write(row, region.cast_mut(), start, len);
    USED.fetch_max(row + 1, Ordering::Release);
    Some(Registration(row))
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut rows = WRITERS.lock().unwrap_or_else(PoisonError::into_inner);
        write(self.0, std::ptr::null_mut(), 0, 0);
        rows[self.0] = false;
    }
}

/// Changes a row; the caller holds the writers' lock.
fn write(row: usize, region: *mut RegionMemory, start: usize, len: usize) {
    let row = &TABLE[row];
    let sequence = row.sequence.load(Ordering::Relaxed);
    row.sequence.store(sequence + 1, Ordering::Relaxed);
    // Release fence: whoever reads one of the new values sees the odd sequence number.
    fence(Ordering::Release);
    row.start.store(start, Ordering::Relaxed);
    row.len.store(len, Ordering::Relaxed);
    row.region.store(region, Ordering::Relaxed);
    row.sequence.store(sequence + 2, Ordering::Release);
}

/// The region that `address` belongs to.
///
/// # Safety
/// The calling thread is in the middle of an access to `address`, or acts for a thread that is: so a
/// region found there is alive until the reference is dropped.
pub(crate) unsafe fn find<'a>(address: usize) -> Option<&'a RegionMemory> {
    for row in &TABLE[..USED.load(Ordering::Acquire)] {
        let (start, len, region) = loop {
            let sequence = row.sequence.load(Ordering::Acquire);
            let start = row.start.load(Ordering::Relaxed);
            let len = row.len.load(Ordering::Relaxed);
            let region = row.region.load(Ordering::Relaxed);
            // Acquire fence: the values were read before the sequence number is read again.
            fence(Ordering::Acquire);
            if sequence.is_multiple_of(2) && row.sequence.load(Ordering::Relaxed) == sequence {
                break (start, len, region);
            }
            // The row is changing, so it is not the one being accessed: but look again, its new
            // region may be.
            std::hint::spin_loop();
        };
        if address.wrapping_sub(start) < len {
            // SAFETY: the row is whole, and its region contains an address that is being accessed.
            return Some(unsafe { &*region });
        }
    }
    None
}
