//! Compaction: emptying sparse blocks into dense ones of the same class.
//!
//! A page goes back to the system only when its last object goes, so after many frees in random
//! order a class can hold far more memory than its objects need. Each object names its owner;
//! compaction asks the owner to move it, since the owner alone can say whether it still holds the
//! object and can keep readers away for the moment it takes.

use std::sync::atomic::Ordering::Relaxed;

use userswap_core::device::DeviceError;

use super::block::{self, BLOCK_BYTES, Pages};
use super::class::{self, UNIT};
use super::release::{Batch, Release};
use super::{Handle, OWNER_BYTES, Store, lock};

impl Store {
    /// Moves objects out of blocks less than three quarters full while others have room for them.
    ///
    /// `relocate` is given an owner and one of its objects, perhaps: it checks, under the lock by
    /// which it reads and frees that object, whether the owner holds it, and if so gets a place by
    /// [`Self::duplicate`], puts the new handle in the old one's stead and frees the old one. It
    /// returns false to end the compaction of this class.
    pub(crate) fn compact(&self, mut relocate: impl FnMut(u32, Handle) -> bool) {
        // Whole pages need none: each goes back as it is freed.
        for index in 0..class::PAGES * self.shards_per_class {
            while self.compact_one(index, &mut relocate) {}
        }
        self.trim();
    }

    /// Empties one block of shard `index`; false when there is no more to gain.
    fn compact_one(&self, index: usize, relocate: &mut impl FnMut(u32, Handle) -> bool) -> bool {
        let (id, class) = {
            let mut shard = self.shard(index);
            let Some(id) = shard.sparsest() else {
                return false;
            };
            if self.blocks[id as usize].populating() != 0 {
                return false;
            }
            shard.drop_idle(&self.blocks, id, Pages::MAX);
            shard.detach(&self.blocks, id);
            (id, shard.class)
        };
        let (block, bitmap) = (&self.blocks[id as usize], &self.bitmaps[id as usize]);
        let before = block.used();
        let mut more = true;
        for object in 0..class.objects {
            // Without the lock: an object that goes meanwhile fails the owner's check, and none
            // can come while the block is in no list.
            if !block::is_used(bitmap, object) {
                continue;
            }
            let offset = id as usize * BLOCK_BYTES + object * class.size;
            // SAFETY: objects begin with the owner's number, accessed atomically by everyone; the
            // block's pages are released only by us, later. Pages of objects freed by now are
            // mapped all the same and read as some number.
            let owner = unsafe { self.arena.atomic_u32(offset) }.load(Relaxed);
            more = relocate(owner, Handle((offset / UNIT) as u64));
            if !more {
                break;
            }
        }
        let (pages, after) = {
            let _shard = lock(&self.shards[index]);
            (
                block::free_pages(bitmap, class, block.resident()),
                block.used(),
            )
        };
        let mut batch = Batch::default();
        batch.push(Release { block: id, pages });
        self.release(&batch);
        // An object may not be movable yet, because its owner does not name it yet.
        more && after < before
    }

    /// Copies an object of `len` bytes to another block with room.
    ///
    /// # Errors
    /// [`DeviceError::Full`] where that would take a new block.
    ///
    /// # Safety
    /// The object must not be freed during the call.
    pub(crate) unsafe fn duplicate(
        &self,
        owner: u32,
        handle: Handle,
        len: usize,
    ) -> Result<Handle, DeviceError> {
        let shard = self.blocks[handle.block() as usize].shard() as usize;
        // Of its own class: it may have filled a larger hole.
        let class = class::index_of(len + OWNER_BYTES);
        let shard = class * self.shards_per_class + shard % self.shards_per_class;
        let copy = self.try_allocate(shard, false)?;
        // SAFETY: the old object is not freed during the call, says the caller; the new one is
        // ours alone, except for the owner's number, which everyone accesses atomically.
        unsafe {
            self.arena.atomic_u32(copy.offset()).store(owner, Relaxed);
            let bytes = self.bytes(handle, len);
            self.arena.write(copy.offset() + OWNER_BYTES, bytes);
        }
        Ok(copy)
    }
}
