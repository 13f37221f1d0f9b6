//! Memory of our own: anonymous mappings outside the process heap, filled in lazily.
//!
//! A [`Mapping`] reserves address space only; the system gives it zeroed pages when they are first
//! written. A [`Table`] is a typed slice in a mapping. Transparent huge pages are turned off, so
//! that one byte written takes one page and the counts we keep of resident pages are true.

use std::mem::{align_of, needs_drop, size_of};
use std::ops::{Deref, Range};
use std::ptr::{NonNull, slice_from_raw_parts_mut};
use std::slice;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, MprotectFlags, ProtFlags};
use userswap_core::device::{DeviceError, PAGE_SIZE, PageBytes};
use userswap_sys::together::Together;
use userswap_sys::{own, place};

/// An anonymous, private mapping that takes no memory until it is written.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is only an address range that lives until drop; every access to its bytes is
// an unsafe call whose caller argues for the absence of races.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves at least `len` bytes, rounded up to pages, all zero.
    pub(crate) fn new(len: usize) -> Result<Self, DeviceError> {
        let len = len
            .max(1)
            .checked_next_multiple_of(PAGE_SIZE)
            .ok_or(refused(Errno::NOMEM))?;
        // SAFETY: a new mapping at an address of the system's choice aliases nothing.
        let base = unsafe {
            mm::mmap_anonymous(
                place::hint(len),
                len,
                // Until it is noted: somebody may be looking for memory of the program's, which can be written.
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .map_err(refused)?;
        for advice in [Advice::LinuxNoHugepage, Advice::LinuxDontDump] {
            // SAFETY: neither advice changes what the bytes read as. Both only tune, and a kernel
            // without them works too, so a refusal is of no interest.
            let _ = unsafe { mm::madvise(base, len, advice) };
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or(refused(Errno::NOMEM))?;
        let mapping = Self { base, len };
        own::note(&mapping.addresses());
        let usable = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the mapping just made, which nobody uses yet.
        unsafe { mm::mprotect(mapping.base.as_ptr().cast(), len, usable) }.map_err(refused)?;
        Ok(mapping)
    }

    fn addresses(&self) -> Range<usize> {
        let start = self.base.as_ptr() as usize;
        start..start + self.len
    }

    /// Bytes reserved.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where the mapping starts.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The address of byte `offset`; panics outside the mapping.
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "access outside a mapping"
        );
        // SAFETY: just checked to lie within the mapping (or one past its end).
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// Makes the pages of a range resident in one go: two thirds of the cost of faulting on each.
    /// What the bytes read as does not change; where the kernel cannot, the pages fault in later.
    pub(crate) fn populate(&self, offset: usize, len: usize) {
        // SAFETY: populating leaves the bytes as they are, whoever uses them meanwhile.
        let _ =
            unsafe { mm::madvise(self.at(offset, len).cast(), len, Advice::LinuxPopulateWrite) };
    }

    /// Gives the pages of a range back to the system; says whether it took them.
    ///
    /// # Safety
    /// Nothing may hold a reference to the bytes of the range, and nobody may rely on them: they
    /// read as zeros afterwards.
    pub(crate) unsafe fn release(&self, offset: usize, len: usize) -> bool {
        // SAFETY: the caller gave up the bytes; the range lies in our private anonymous mapping,
        // so this zeroes these bytes and nothing else.
        unsafe { mm::madvise(self.at(offset, len).cast(), len, Advice::LinuxDontNeed) }.is_ok()
    }

    /// Adds the pages of a range to those that are to go together.
    pub(crate) fn add_to(&self, parts: &mut Together, offset: usize, len: usize) {
        parts.add(self.at(offset, len) as usize, len);
    }

    /// Gives the pages of the ranges that were added back to the system; `false`: perhaps not all.
    ///
    /// # Safety
    /// As for [`Self::release`], for each of them.
    pub(crate) unsafe fn release_together(&self, parts: &mut Together) -> bool {
        // SAFETY: the caller gave up the bytes; `add_to` checked that the ranges lie in the mapping.
        unsafe { parts.discard() }
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Safety
    /// Nobody else may read or write the range during the call.
    pub(crate) unsafe fn write(&self, offset: usize, bytes: &[u8]) {
        let target = self.at(offset, bytes.len());
        // SAFETY: `at` checked the range, and the caller alone uses it, so it cannot overlap
        // `bytes`, which others may read.
        unsafe { target.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// The page at `offset`, to change.
    ///
    /// # Safety
    /// Nobody else may use the page while the reference lives.
    #[expect(clippy::mut_from_ref, reason = "the caller keeps others away")]
    pub(crate) unsafe fn page_mut(&self, offset: usize) -> &mut PageBytes {
        let page = self.at(offset, PAGE_SIZE).cast::<PageBytes>();
        // SAFETY: `at` checked the range; any bytes are a page, and mapped memory is always initialised; the
        // caller alone uses it.
        unsafe { &mut *page }
    }

    /// Keeps the mapping in memory: the system never writes it to its own swap.
    fn lock(&self) -> Result<(), DeviceError> {
        // SAFETY: locking changes neither what the bytes are nor where.
        unsafe { mm::mlock(self.base.as_ptr().cast(), self.len) }.map_err(refused)
    }

    /// The bytes of a range.
    ///
    /// # Safety
    /// Nobody may write or release the range while the slice lives.
    pub(crate) unsafe fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        // SAFETY: `at` checked the range; mapped memory is always initialised; the caller keeps
        // writers away.
        unsafe { slice::from_raw_parts(self.at(offset, len), len) }
    }

    /// The word at `offset`, as an atomic.
    ///
    /// # Safety
    /// While the reference lives, nobody may access these bytes other than atomically, and the
    /// range must not be released.
    pub(crate) unsafe fn atomic_u32(&self, offset: usize) -> &AtomicU32 {
        assert!(
            offset.is_multiple_of(align_of::<AtomicU32>()),
            "misaligned word"
        );
        // SAFETY: in range (checked by `at`), aligned (checked above, the base is page-aligned).
        unsafe { AtomicU32::from_ptr(self.at(offset, size_of::<AtomicU32>()).cast()) }
    }
}

/// The error for a refusal by the system, or by us in its terms.
pub(crate) fn refused(errno: Errno) -> DeviceError {
    DeviceError::Io(errno.raw_os_error())
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Not to be taken for the program's once it is forgotten.
        // SAFETY: the range is ours and nothing borrows from it any more.
        let _ =
            unsafe { mm::mprotect(self.base.as_ptr().cast(), self.len, MprotectFlags::empty()) };
        own::forget(&self.addresses());
        // SAFETY: as above. Unmapping a range that
        // was mapped as one cannot fail in a way we could act upon.
        let _ = unsafe { mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Types for which zeroed memory is a valid value.
///
/// # Safety
/// All-zero bytes must be a valid value, and dropping a value must do nothing.
pub(crate) unsafe trait Zeroed {}

// SAFETY: an integer without a destructor.
unsafe impl Zeroed for AtomicU64 {}
// SAFETY: an array of such.
unsafe impl<const N: usize> Zeroed for [AtomicU64; N] {}

/// Types that are nothing but atomics: other threads may see them change at any time.
///
/// # Safety
/// Every byte of a value must be part of an atomic.
pub(crate) unsafe trait Atomics: Zeroed {}

// SAFETY: it is one.
unsafe impl Atomics for AtomicU64 {}
// SAFETY: an array of such.
unsafe impl<const N: usize> Atomics for [AtomicU64; N] {}

/// A slice in a mapping of its own.
#[derive(Debug)]
pub(crate) struct Table<T> {
    mapping: Mapping,
    len: usize,
    items: NonNull<T>,
}

// SAFETY: a table owns its items, as a boxed slice does.
unsafe impl<T: Send> Send for Table<T> {}
// SAFETY: sharing a table shares its items and nothing else.
unsafe impl<T: Sync> Sync for Table<T> {}

impl<T> Table<T> {
    fn reserve(len: usize) -> Result<Self, DeviceError> {
        assert!(align_of::<T>() <= PAGE_SIZE);
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or(refused(Errno::NOMEM))?;
        let mapping = Mapping::new(bytes)?;
        let items = mapping.base().cast();
        Ok(Self {
            mapping,
            len: 0,
            items,
        })
    }

    /// `len` items of zero bytes. They take memory only where they are written.
    pub(crate) fn zeroed(len: usize) -> Result<Self, DeviceError>
    where
        T: Zeroed,
    {
        let mut table = Self::reserve(len)?;
        table.len = len;
        Ok(table)
    }

    /// `len` items made by `make`.
    pub(crate) fn from_fn(
        len: usize,
        mut make: impl FnMut(usize) -> T,
    ) -> Result<Self, DeviceError> {
        Self::try_from_fn(len, |index| Ok(make(index)))
    }

    /// `len` items made by `make`, or its first error.
    pub(crate) fn try_from_fn(
        len: usize,
        mut make: impl FnMut(usize) -> Result<T, DeviceError>,
    ) -> Result<Self, DeviceError> {
        let mut table = Self::reserve(len)?;
        for index in 0..len {
            let item = make(index)?;
            // SAFETY: the mapping has room for `len` items, is aligned for them, and item `index`
            // holds no value yet.
            unsafe { table.items.add(index).write(item) };
            // Counted one by one: should `make` fail, exactly the items made are dropped.
            table.len = index + 1;
        }
        Ok(table)
    }

    /// Makes all items zero, and gives their memory back to the system.
    pub(crate) fn clear(&self)
    where
        T: Atomics,
    {
        // SAFETY: whoever has a reference to an item sees its atomics become zero, as if somebody had stored that; the
        // addresses stay ours.
        let cleared = unsafe { self.mapping.release(0, self.mapping.len()) };
        debug_assert!(cleared, "the mapping is ours");
    }

    /// Bytes reserved, resident or not.
    pub(crate) fn reserved_bytes(&self) -> usize {
        self.mapping.len()
    }
}

impl<T> Deref for Table<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the first `len` items hold values, by construction, until the table drops.
        unsafe { slice::from_raw_parts(self.items.as_ptr(), self.len) }
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        if needs_drop::<T>() {
            // SAFETY: the first `len` items hold values and are dropped once, here.
            unsafe { slice_from_raw_parts_mut(self.items.as_ptr(), self.len).drop_in_place() };
        }
    }
}

/// A value in memory that is locked, left out of core dumps, and overwritten when it goes.
#[derive(Debug)]
pub(crate) struct Secret<T>(Table<T>);

impl<T> Secret<T> {
    /// Puts what `make` makes there. A copy may stay below the stack pointer: see [`scrub_stack`].
    pub(crate) fn new(make: impl FnOnce() -> T) -> Result<Self, DeviceError> {
        const { assert!(!needs_drop::<T>()) };
        let mut table = Table::reserve(1)?;
        table.mapping.lock()?;
        // SAFETY: the mapping has room for one item, is aligned for it, and holds none yet.
        unsafe { table.items.write(make()) };
        table.len = 1;
        scrub_stack();
        Ok(Self(table))
    }

    /// Locks it in memory again: a child of fork gets a copy that is not locked.
    pub(crate) fn lock_again(&self) -> Result<(), DeviceError> {
        self.0.mapping.lock()
    }
}

impl<T> Deref for Secret<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0[0]
    }
}

impl<T> Drop for Secret<T> {
    fn drop(&mut self) {
        let bytes = self.0.mapping.base().as_ptr();
        for offset in 0..self.0.mapping.len() {
            // SAFETY: within the mapping, which nobody uses any more; volatile, so that it is done although nobody
            // reads it.
            unsafe { bytes.add(offset).write_volatile(0) };
        }
    }
}

/// Overwrites the stack below the caller, where copies of a secret may lie.
#[inline(never)]
pub(crate) fn scrub_stack() {
    std::hint::black_box(&mut [0u8; 16 << 10]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn a_mapping_reads_zero_until_written_and_after_release() {
        let mapping = Mapping::new(3 * PAGE_SIZE).unwrap();
        mapping.populate(0, mapping.len());
        // SAFETY: this thread alone uses the mapping, and each borrow ends in its statement.
        unsafe {
            assert!(mapping.bytes(0, mapping.len()).iter().all(|&b| b == 0));
            mapping.write(PAGE_SIZE - 2, b"four");
            assert_eq!(mapping.bytes(PAGE_SIZE - 2, 4), b"four");
            assert!(mapping.release(0, PAGE_SIZE));
            assert_eq!(mapping.bytes(PAGE_SIZE - 2, 4), b"\0\0ur");
        }
    }

    #[test]
    fn a_large_table_is_lazy() {
        let table = Table::<AtomicU64>::zeroed(1 << 30).unwrap();
        table[1 << 29].store(7, Relaxed);
        assert_eq!(table[1 << 29].load(Relaxed), 7);
        assert_eq!(table[12345].load(Relaxed), 0);
    }

    #[test]
    fn a_cleared_table_is_zero_and_can_be_written() {
        let table = Table::<[AtomicU64; 3]>::zeroed(1 << 20).unwrap();
        for item in [0, 5, 1 << 19] {
            table[item][2].store(7, Relaxed);
        }
        table.clear();
        assert_eq!(table[5][2].load(Relaxed), 0);
        table[5][2].store(8, Relaxed);
        assert_eq!(table[5][2].load(Relaxed), 8);
    }

    #[test]
    fn a_made_table_drops_its_items() {
        let item = std::sync::Arc::new(());
        let table = Table::from_fn(10, |_| item.clone()).unwrap();
        assert_eq!(std::sync::Arc::strong_count(&item), 11);
        drop(table);
        assert_eq!(std::sync::Arc::strong_count(&item), 1);
    }

    #[test]
    fn a_secret_is_locked_and_goes_with_its_mapping() {
        let secret = Secret::new(|| [7u64; 4]).unwrap();
        assert_eq!(*secret, [7; 4]);
        let at = format!("{:x}-", secret.0.mapping.base().as_ptr() as usize);
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let entry = smaps.split(&at).nth(1).expect("the mapping is listed");
        let flags = entry
            .lines()
            .find(|line| line.starts_with("VmFlags:"))
            .unwrap();
        assert!(flags.contains(" lo ") && flags.contains(" dd "), "{flags}");
    }

    #[test]
    #[should_panic(expected = "outside a mapping")]
    fn access_outside_is_refused() {
        let mapping = Mapping::new(PAGE_SIZE).unwrap();
        mapping.populate(PAGE_SIZE, PAGE_SIZE);
    }
}
