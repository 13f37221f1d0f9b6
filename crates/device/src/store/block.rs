//! Blocks: 128 KiB of the arena, cut into objects of one class. Their bookkeeping is kept apart.
//!
//! | field | means | legal values |
//! |---|---|---|
//! | `shard` | the shard the block belongs to | set while it is in none, else constant |
//! | `used` | objects handed out | 0 to the class's number; equals the bits set in the bitmap |
//! | `resident` | pages that hold memory, as a mask | contains every page of a used object |
//! | `idle` | resident pages on which an object was freed and none is used | part of `resident` |
//! | `populating` | threads that are populating pages of it | its pages are not released while there are any |
//! | `list` | where the block is | [`POOLED`], a density 0 to 3, [`FULL`], [`RELEASING`] |
//!
//! All of it belongs to whoever holds the lock of the block's shard (of the pool, for a pooled
//! block). The fields are atomics only so that this needs no unsafe code; every access is relaxed
//! because the lock orders them. Exception: `shard` may be read by whoever owns an object in the
//! block, since it cannot change then.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::class::{Class, MAX_OBJECTS};
use crate::arena::Zeroed;
use userswap_core::device::PAGE_SIZE;

/// Bytes in a block.
pub(super) const BLOCK_BYTES: usize = 128 * 1024;
/// Pages in a block.
pub(super) const BLOCK_PAGES: usize = BLOCK_BYTES / PAGE_SIZE;

/// Pages of a block, as a mask.
pub(super) type Pages = u32;

/// In the pool of blocks without a class.
pub(super) const POOLED: u8 = u8::MAX;
/// How many densities there are.
pub(super) const DENSITIES: u8 = 4;
/// Every object is used: in no list.
pub(super) const FULL: u8 = DENSITIES;
/// Someone gives its pages back: in no list, and nobody may allocate from it.
pub(super) const RELEASING: u8 = DENSITIES + 1;

/// The list a block is in for its density.
pub(super) const BY_DENSITY: usize = 0;
/// The list of blocks with idle pages.
pub(super) const BY_IDLE: usize = 1;

/// No block.
pub(super) const NONE: u32 = u32::MAX;

/// Neighbours in a list.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) next: AtomicU32,
    pub(super) previous: AtomicU32,
}

/// One block's bookkeeping, beside its bitmap.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) links: [Link; 2],
    shard: AtomicU32,
    used: AtomicU16,
    resident: AtomicU32,
    idle: AtomicU32,
    populating: AtomicU16,
    list: AtomicU8,
}

// SAFETY: integers without a destructor.
unsafe impl Zeroed for Block {}

/// One bit an object, set while it is used.
pub(super) type Bitmap = [AtomicU64; MAX_OBJECTS / 64];

macro_rules! field {
    ($name:ident, $set:ident, $type:ty) => {
        pub(super) fn $name(&self) -> $type {
            self.$name.load(Relaxed)
        }
        pub(super) fn $set(&self, value: $type) {
            self.$name.store(value, Relaxed);
        }
    };
}

impl Block {
    field!(shard, set_shard, u32);
    field!(used, set_used, u16);
    field!(resident, set_resident, Pages);
    field!(idle, set_idle, Pages);
    field!(populating, set_populating, u16);
    field!(list, set_list, u8);

    /// The list this block belongs in by its number of used objects.
    pub(super) fn density(&self, class: Class) -> u8 {
        let used = usize::from(self.used());
        if used == class.objects {
            FULL
        } else {
            (used * usize::from(DENSITIES) / class.objects) as u8
        }
    }
}

/// The first object that is not used.
pub(super) fn first_free(bitmap: &Bitmap, class: Class) -> Option<usize> {
    first_free_of(bitmap, 0..class.objects)
}

/// The first object that is not used, of those whose pages are all in `resident`.
pub(super) fn first_hole(bitmap: &Bitmap, class: Class, resident: Pages) -> Option<usize> {
    runs_in(resident).find_map(|(first, len)| {
        let (start, end) = (first * PAGE_SIZE, (first + len) * PAGE_SIZE);
        let within = start.div_ceil(class.size)..(end / class.size).min(class.objects);
        first_free_of(bitmap, within)
    })
}

/// The first of `objects` that is not used.
fn first_free_of(bitmap: &Bitmap, objects: Range<usize>) -> Option<usize> {
    let (mut start, end) = (objects.start, objects.end);
    while start < end {
        let free = !bitmap[start / 64].load(Relaxed) >> (start % 64);
        if free != 0 {
            let object = start + free.trailing_zeros() as usize;
            return (object < end).then_some(object);
        }
        start = (start / 64 + 1) * 64;
    }
    None
}

/// Whether object `object` is used.
pub(super) fn is_used(bitmap: &Bitmap, object: usize) -> bool {
    bitmap[object / 64].load(Relaxed) & (1 << (object % 64)) != 0
}

/// Marks object `object` as used or free; says what it was.
pub(super) fn mark(bitmap: &Bitmap, object: usize, used: bool) -> bool {
    let (word, bit) = (&bitmap[object / 64], 1 << (object % 64));
    let old = word.load(Relaxed);
    word.store(if used { old | bit } else { old & !bit }, Relaxed);
    old & bit != 0
}

/// Those of `pages` on which no object is used.
pub(super) fn free_pages(bitmap: &Bitmap, class: Class, pages: Pages) -> Pages {
    let mut free = 0;
    for page in pages_in(pages) {
        let (first, end) = class.objects_on(page);
        if none_used(bitmap, first, end) {
            free |= 1 << page;
        }
    }
    free
}

fn none_used(bitmap: &Bitmap, first: usize, end: usize) -> bool {
    let mut start = first;
    while start < end {
        let stop = ((start / 64 + 1) * 64).min(end);
        let mask = u64::MAX >> (64 - (stop - start)) << (start % 64);
        if bitmap[start / 64].load(Relaxed) & mask != 0 {
            return false;
        }
        start = stop;
    }
    true
}

/// The pages of a mask, ascending.
pub(super) fn pages_in(mut mask: Pages) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let page = mask.trailing_zeros() as usize;
        mask &= mask.wrapping_sub(1);
        (page < BLOCK_PAGES).then_some(page)
    })
}

/// The mask of `len` pages from `first` on, as far as the block goes.
pub(super) fn run(first: usize, len: usize) -> Pages {
    (((1_u64 << len) - 1) << first) as Pages
}

/// The runs of a mask: first page and number of pages.
pub(super) fn runs_in(mut mask: Pages) -> impl Iterator<Item = (usize, usize)> {
    std::iter::from_fn(move || {
        let first = mask.trailing_zeros();
        if first >= BLOCK_PAGES as u32 {
            return None;
        }
        let len = (mask >> first).trailing_ones();
        mask &= !run(first as usize, len as usize);
        Some((first as usize, len as usize))
    })
}

#[cfg(test)]
mod tests {
    use super::super::class::{COUNT, class};
    use super::*;

    #[test]
    fn masks_split_into_pages_and_runs() {
        assert_eq!(
            pages_in(0b1000_0000_0000_0101).collect::<Vec<_>>(),
            [0, 2, 15]
        );
        assert_eq!(
            runs_in(0b1100_0000_0000_0111).collect::<Vec<_>>(),
            [(0, 3), (14, 2)]
        );
        assert_eq!(runs_in(Pages::MAX).collect::<Vec<_>>(), [(0, 32)]);
        assert_eq!(runs_in(0).count() + pages_in(0).count(), 0);
    }

    #[test]
    fn objects_are_found_lowest_first_until_full() {
        for index in 0..COUNT {
            let class = class(index);
            let bitmap: Bitmap = [const { AtomicU64::new(0) }; _];
            for object in 0..class.objects {
                assert_eq!(first_free(&bitmap, class), Some(object));
                assert!(!mark(&bitmap, object, true));
            }
            assert_eq!(first_free(&bitmap, class), None);
            assert!(mark(&bitmap, class.objects / 2, false));
            assert_eq!(first_free(&bitmap, class), Some(class.objects / 2));
        }
    }

    #[test]
    fn a_hole_is_a_free_object_on_resident_pages() {
        let masks = [0, 1, 0b110, 0x8000_0001, 0x00ff_f0f0, Pages::MAX];
        for index in 0..COUNT {
            let class = class(index);
            let bitmap: Bitmap = [const { AtomicU64::new(0) }; _];
            for object in 0..class.objects {
                mark(&bitmap, object, object % 3 == 0 || object % 7 == 2);
            }
            for resident in masks {
                let mut objects = 0..class.objects;
                let hole = objects.find(|&object| {
                    !is_used(&bitmap, object) && class.pages_of(object) & !resident == 0
                });
                assert_eq!(first_hole(&bitmap, class, resident), hole, "{resident:x}");
            }
        }
    }

    #[test]
    fn a_page_is_free_when_none_of_its_objects_is_used() {
        for index in 0..COUNT {
            let class = class(index);
            let bitmap: Bitmap = [const { AtomicU64::new(0) }; _];
            assert_eq!(free_pages(&bitmap, class, Pages::MAX), Pages::MAX);
            for object in 0..class.objects {
                mark(&bitmap, object, true);
                assert_eq!(
                    free_pages(&bitmap, class, Pages::MAX),
                    !class.pages_of(object)
                );
                assert!(is_used(&bitmap, object));
                mark(&bitmap, object, false);
            }
        }
    }
}
