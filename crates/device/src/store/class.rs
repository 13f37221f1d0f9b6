//! Size classes: which sizes objects are rounded up to.
//!
//! A block is cut into equal objects. Sizes go up in steps of [`STEP`]; where steps give the same
//! number of objects to a block they are one class, as large as that number allows. Above
//! [`MAX_OBJECT`] there is one class more: whole pages.

use super::block::{BLOCK_BYTES, BLOCK_PAGES, Pages};
use userswap_core::device::PAGE_SIZE;

/// Alignment of every object, and the unit of handles.
pub(super) const UNIT: usize = 16;
const STEP: usize = 32;
/// The smallest object. Smaller ones hardly occur, and would need a larger bitmap in every block.
pub(super) const MIN_OBJECT: usize = 64;
/// The largest object that is not a page. Forty fit in a block; the gain over a page (32 of which
/// do) is then worth a decompression.
pub(super) const MAX_OBJECT: usize = 3264;
/// The most objects a block holds.
pub(super) const MAX_OBJECTS: usize = BLOCK_BYTES / MIN_OBJECT;

const STEPS: usize = MAX_OBJECT / STEP + 1;

/// How blocks of one class are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class {
    /// Bytes per object.
    pub(super) size: usize,
    /// Objects per block.
    pub(super) objects: usize,
}

impl Class {
    const fn of_size(size: usize) -> Self {
        Self {
            size,
            objects: BLOCK_BYTES / size,
        }
    }

    /// The pages of a block that object `object` touches, as a mask.
    pub(super) fn pages_of(self, object: usize) -> Pages {
        let first = object * self.size / PAGE_SIZE;
        let last = (object * self.size + self.size - 1) / PAGE_SIZE;
        ((2_u64 << last) - (1 << first)) as Pages
    }

    /// The objects that touch page `page` of a block: the first, and one past the last.
    pub(super) fn objects_on(self, page: usize) -> (usize, usize) {
        let first = page * PAGE_SIZE / self.size;
        let end = (page * PAGE_SIZE + PAGE_SIZE - 1) / self.size + 1;
        (first.min(self.objects), end.min(self.objects))
    }
}

/// All classes, and the class of each step.
struct Classes {
    class: [Class; STEPS + 1],
    count: usize,
    of_step: [u8; STEPS],
}

const fn merge_steps() -> Classes {
    let mut all = Classes {
        class: [Class {
            size: 0,
            objects: 0,
        }; STEPS + 1],
        count: 0,
        of_step: [0; STEPS],
    };
    let mut step = 0;
    while step < STEPS {
        let size = if step * STEP < MIN_OBJECT {
            MIN_OBJECT
        } else {
            step * STEP
        };
        let objects = BLOCK_BYTES / size;
        if all.count == 0 || all.class[all.count - 1].objects != objects {
            let largest = BLOCK_BYTES / objects / UNIT * UNIT;
            all.class[all.count] = Class::of_size(largest);
            all.count += 1;
        }
        all.of_step[step] = (all.count - 1) as u8;
        step += 1;
    }
    all.class[all.count] = Class::of_size(PAGE_SIZE);
    all.count += 1;
    all
}

static CLASSES: Classes = merge_steps();

/// How many classes there are; the last is that of whole pages.
pub(super) const COUNT: usize = merge_steps().count;
/// The index of the class of whole pages.
pub(super) const PAGES: usize = COUNT - 1;

/// Class `index`.
pub(super) fn class(index: usize) -> Class {
    CLASSES.class[index]
}

/// The index of the class for objects of `size` bytes, at most [`MAX_OBJECT`].
pub(super) fn index_of(size: usize) -> usize {
    usize::from(CLASSES.of_step[size.div_ceil(STEP)])
}

const _: () = assert!(
    BLOCK_PAGES == Pages::BITS as usize
        && MAX_OBJECT.is_multiple_of(STEP)
        && STEP.is_multiple_of(UNIT)
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_fits_its_class_and_classes_ascend() {
        for size in 1..=MAX_OBJECT {
            let class = class(index_of(size));
            assert!(
                class.size >= size && class.size <= MAX_OBJECT + UNIT,
                "{size}: {class:?}"
            );
            assert!(class.size * class.objects <= BLOCK_BYTES);
            assert!(class.size.is_multiple_of(UNIT));
        }
        for index in 1..COUNT {
            assert!(
                class(index).size > class(index - 1).size
                    && class(index).objects < class(index - 1).objects
            );
        }
        assert_eq!(
            class(PAGES),
            Class {
                size: PAGE_SIZE,
                objects: 32
            }
        );
        assert_eq!(class(0).objects, MAX_OBJECTS);
    }

    #[test]
    fn pages_and_objects_agree() {
        for index in 0..COUNT {
            let class = class(index);
            for page in 0..BLOCK_PAGES {
                let (first, end) = class.objects_on(page);
                for object in 0..class.objects {
                    let touches = class.pages_of(object) & (1 << page) != 0;
                    assert_eq!(
                        touches,
                        (first..end).contains(&object),
                        "{class:?} {object} {page}"
                    );
                }
            }
        }
    }
}
