//! A packed store of byte strings: compressed pages, and pages that do not compress.
//!
//! # Layout
//! One arena of address space is cut into *blocks* of 128 KiB. A block in use is cut into *objects*
//! of one size *class*; blocks of a class belong to one of its *shards*. Bookkeeping lies apart
//! from the arena, so that a released page loses nothing.
//!
//! # Who may touch what
//! - An object's bytes belong to whoever [`Store::put`] gave the handle to, until it is passed to
//!   [`Store::free`]. The store itself reads only the owner's number in front of it.
//! - A block's bookkeeping belongs to the lock of its shard, a pooled block's to the pool's lock.
//! - Locks are taken in the order shard, pool; nothing is called out to under either.
//! - Resident memory is counted when a page is claimed, under the shard's lock, *before* it is
//!   populated outside of it; and is no longer counted after it was released, outside the lock
//!   too. A block whose pages are being released is in no list, so that nobody can be given an
//!   object there meanwhile.
//!
//! # Memory
//! A page on which no object is left becomes *idle*. Some are kept, since the next object may want
//! them; where they are too many, half of them are given back to the system at once: each time
//! interrupts every CPU that runs a thread of the process. A block without objects returns to the
//! pool and can then be cut for another class.
//!
//! Objects that are freed in no order leave *holes*: room on pages that others keep in memory. Where
//! there are many, an object goes into one of its own class or of one a little larger, and takes no new page.

mod block;
mod class;
mod compact;
mod release;
mod shard;
#[cfg(test)]
mod tests;

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use userswap_core::device::{DeviceError, PAGE_SIZE};

use crate::arena::{Mapping, Table, refused};
use crate::cpu;
use block::{BLOCK_BYTES, BLOCK_PAGES, Bitmap, Block, NONE, POOLED, Pages, RELEASING};
use class::UNIT;
pub(crate) use release::Excess;
use shard::Shard;

/// The most bytes an object holds, whole pages aside; what takes more is stored as a page.
pub(crate) const MAX_PACKED: usize = class::MAX_OBJECT - OWNER_BYTES;

/// In front of each object's bytes: whose it is, so that compaction can ask. Pages go without.
const OWNER_BYTES: usize = size_of::<u32>();

/// Address space per slot. Four pages: a block would have to be three quarters empty, all over, for
/// the arena to run out; that takes no memory, only addresses.
const RESERVE_PER_SLOT: usize = 4 * PAGE_SIZE;
/// Pages populated together, where there are few holes: a few, and more the more blocks a shard has, up to half a block.
/// Four together save most of what there is to save; more would be wasted on a shard that stays small.
const FEW_PAGES: usize = 2;
/// The most idle pages that are kept: with half of them given back at once, what an
/// interruption costs is small beside it; and it is done in some 20 us, by whoever freed the last.
const MOST_IDLE: u32 = 128;
/// The fewest, and one in so many resident pages in between: a small store has few to spare.
const LEAST_IDLE: u32 = 8;
const IDLE_PART: u64 = 64;
/// There are many holes where more than one in so many bytes of objects lie beside them.
const LOOSE: u64 = 32;
/// An object may take a hole that is larger than its class by one part in so many at most.
const LARGER: usize = 8;
/// Slots from which on each CPU gets shards of its own: below, half-filled blocks would cost more
/// than waiting for a lock does.
const SLOTS_PER_SHARD: u64 = 64 * 1024;
const MAX_SHARDS_PER_CLASS: usize = 8;

/// Where an object is: its distance from the start of the arena, in units of 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Handle(pub(crate) u64);

impl Handle {
    fn offset(self) -> usize {
        self.0 as usize * UNIT
    }

    fn block(self) -> u32 {
        (self.offset() / BLOCK_BYTES) as u32
    }
}

/// Blocks that belong to no shard.
#[derive(Debug)]
struct Pool {
    /// Used before and empty again, linked through `next`.
    returned: u32,
}

/// The packed store.
#[derive(Debug)]
pub(crate) struct Store {
    arena: Mapping,
    blocks: Table<Block>,
    bitmaps: Table<Bitmap>,
    shards: Table<Mutex<Shard>>,
    shards_per_class: usize,
    pool: Mutex<Pool>,
    /// How many blocks were ever used: the rest of the pool. Changed under the pool's lock.
    fresh: AtomicU32,
    /// Idle pages, of all shards.
    idle: AtomicU32,
    /// Bytes of the arena that are resident.
    resident: AtomicU64,
    /// Bytes of all objects, rounding included.
    used: AtomicU64,
    /// What `resident` must not exceed.
    limit: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under one of these locks is a failed bounds check, before anything was changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A locked shard, whose idle pages are counted anew when it is unlocked.
struct Held<'a> {
    shard: MutexGuard<'a, Shard>,
    before: u32,
    idle: &'a AtomicU32,
}

impl Deref for Held<'_> {
    type Target = Shard;

    fn deref(&self) -> &Shard {
        &self.shard
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Shard {
        &mut self.shard
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let change = self.shard.idle_pages.wrapping_sub(self.before);
        if change != 0 {
            // Relaxed: the number guards no data. It wraps, as a change may be negative.
            self.idle.fetch_add(change, Relaxed);
        }
    }
}

impl Store {
    /// A store for up to `slots` objects, in at most `limit` bytes of resident memory.
    pub(crate) fn new(slots: u64, limit: Option<u64>) -> Result<Self, DeviceError> {
        let too_large = refused(Errno::NOMEM);
        let shards_per_class = (slots.div_ceil(SLOTS_PER_SHARD) as usize)
            .min(cpu::count())
            .clamp(1, MAX_SHARDS_PER_CLASS);
        let shards = class::COUNT * shards_per_class;
        let bytes = usize::try_from(slots)
            .ok()
            .and_then(|slots| slots.checked_mul(RESERVE_PER_SLOT))
            .ok_or(too_large)?;
        let count = bytes / BLOCK_BYTES + shards;
        if count >= NONE as usize {
            return Err(too_large);
        }
        Ok(Self {
            arena: Mapping::new(count * BLOCK_BYTES)?,
            blocks: Table::zeroed(count)?,
            bitmaps: Table::zeroed(count)?,
            shards: Table::from_fn(shards, |index| {
                Mutex::new(Shard::new(class::class(index / shards_per_class)))
            })?,
            shards_per_class,
            pool: Mutex::new(Pool { returned: NONE }),
            fresh: AtomicU32::new(0),
            idle: AtomicU32::new(0),
            resident: AtomicU64::new(0),
            used: AtomicU64::new(0),
            limit: limit.unwrap_or(u64::MAX),
        })
    }

    /// Stores up to [`MAX_PACKED`] bytes for slot `owner`.
    pub(crate) fn put(&self, cpu: usize, owner: u32, bytes: &[u8]) -> Result<Handle, DeviceError> {
        let handle = self.allocate(cpu, class::index_of(bytes.len() + OWNER_BYTES))?;
        // SAFETY: the object was just handed out, so nobody else uses its bytes but the
        // compaction, which reads the owner's number only, and atomically.
        unsafe {
            self.arena.atomic_u32(handle.offset()).store(owner, Relaxed);
            self.arena.write(handle.offset() + OWNER_BYTES, bytes);
        }
        Ok(handle)
    }

    /// Stores a whole page.
    pub(crate) fn put_page(
        &self,
        cpu: usize,
        bytes: &[u8; PAGE_SIZE],
    ) -> Result<Handle, DeviceError> {
        let handle = self.allocate(cpu, class::PAGES)?;
        // SAFETY: the object was just handed out, so nobody else uses its bytes.
        unsafe { self.arena.write(handle.offset(), bytes) };
        Ok(handle)
    }

    /// The `len` bytes that [`Self::put`] stored.
    ///
    /// # Safety
    /// The object must not be freed while the slice lives.
    pub(crate) unsafe fn bytes(&self, handle: Handle, len: usize) -> &[u8] {
        // SAFETY: an object that is not freed is written by nobody after `put`, and its pages are
        // not released.
        unsafe { self.arena.bytes(handle.offset() + OWNER_BYTES, len) }
    }

    /// The page that [`Self::put_page`] stored.
    ///
    /// # Safety
    /// As for [`Self::bytes`].
    pub(crate) unsafe fn page(&self, handle: Handle) -> &[u8] {
        // SAFETY: as in `bytes`.
        unsafe { self.arena.bytes(handle.offset(), PAGE_SIZE) }
    }

    /// Frees an object. What it returns is to be passed to [`Self::give_back`], under no lock.
    pub(crate) fn free(&self, handle: Handle) -> Option<Excess> {
        let id = handle.block();
        let block = &self.blocks[id as usize];
        let index = block.shard();
        let mut shard = self.shard(index as usize);
        let class = shard.class;
        let bitmap = &self.bitmaps[id as usize];
        let object = handle.offset() % BLOCK_BYTES / class.size;
        let was_used = block::mark(bitmap, object, false);
        assert!(was_used, "an object was freed twice");
        block.set_used(block.used() - 1);
        self.used.fetch_sub(class.size as u64, Relaxed);
        if block.list() == RELEASING {
            // Whoever releases looks at everything again afterwards.
            return None;
        }
        let idle = block::free_pages(bitmap, class, class.pages_of(object) & block.resident());
        shard.add_idle(&self.blocks, id, idle);
        shard.resort(&self.blocks, id);
        drop(shard);
        (self.idle.load(Relaxed) > self.keep()).then_some(Excess { shard: index })
    }

    /// Bytes of the arena that are resident.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.resident.load(Relaxed)
    }

    /// Bytes of bookkeeping that are in use.
    pub(crate) fn metadata_bytes(&self) -> u64 {
        let fresh = self.fresh.load(Relaxed) as usize;
        (fresh * (size_of::<Block>() + size_of::<Bitmap>()) + self.shards.reserved_bytes()) as u64
    }

    fn shard(&self, index: usize) -> Held<'_> {
        let shard = lock(&self.shards[index]);
        Held {
            before: shard.idle_pages,
            shard,
            idle: &self.idle,
        }
    }

    /// How many idle pages are kept.
    fn keep(&self) -> u32 {
        let part = self.resident.load(Relaxed) / PAGE_SIZE as u64 / IDLE_PART;
        part.clamp(LEAST_IDLE.into(), MOST_IDLE.into()) as u32
    }

    /// Whether there are many holes. Relaxed: a hint.
    fn is_loose(&self) -> bool {
        let used = self.used.load(Relaxed);
        self.resident.load(Relaxed) > used + used / LOOSE
    }

    /// Hands out an object of class `class`, or a little larger; where memory is short, idle pages are given up first.
    fn allocate(&self, cpu: usize, class: usize) -> Result<Handle, DeviceError> {
        let shard_of = |class| class * self.shards_per_class + cpu % self.shards_per_class;
        if class < class::PAGES && self.is_loose() {
            let size = class::class(class).size;
            let is_near = |&near: &usize| class::class(near).size <= size + size / LARGER;
            let mut near = (class..class::PAGES).take_while(is_near);
            if let Some(handle) = near.find_map(|class| self.fill_hole(shard_of(class))) {
                return Ok(handle);
            }
        }
        let shard = shard_of(class);
        self.try_allocate(shard, true).or_else(|_| {
            self.trim();
            self.try_allocate(shard, true)
        })
    }

    /// Hands out an object of a shard that lies on resident pages, if one is found at once.
    fn fill_hole(&self, index: usize) -> Option<Handle> {
        let mut guard = self.shard(index);
        let shard = &mut *guard;
        let (id, object) = shard.candidates().find_map(|id| {
            let resident = self.blocks[id as usize].resident();
            let hole = block::first_hole(&self.bitmaps[id as usize], shard.class, resident);
            hole.map(|object| (id, object))
        })?;
        Some(self.hand_out(shard, id, object))
    }

    /// Hands out an object whose pages are resident.
    fn hand_out(&self, shard: &mut Shard, id: u32, object: usize) -> Handle {
        let (block, class) = (&self.blocks[id as usize], shard.class);
        shard.drop_idle(&self.blocks, id, class.pages_of(object));
        block::mark(&self.bitmaps[id as usize], object, true);
        block.set_used(block.used() + 1);
        self.used.fetch_add(class.size as u64, Relaxed);
        shard.resort(&self.blocks, id);
        let offset = id as usize * BLOCK_BYTES + object * class.size;
        Handle((offset / UNIT) as u64)
    }

    fn try_allocate(&self, index: usize, may_add_block: bool) -> Result<Handle, DeviceError> {
        let mut guard = self.shard(index);
        let shard = &mut *guard;
        let id = match shard.densest() {
            Some(id) => id,
            None if may_add_block => self.add_block(shard, index)?,
            None => return Err(DeviceError::Full),
        };
        let (block, bitmap) = (&self.blocks[id as usize], &self.bitmaps[id as usize]);
        let object =
            block::first_free(bitmap, shard.class).expect("a block in a density list has room");
        let claimed = self.claim(shard, block, shard.class.pages_of(object))?;
        let handle = self.hand_out(shard, id, object);
        drop(guard);
        if claimed != 0 {
            self.populate(index, id, claimed);
        }
        Ok(handle)
    }

    /// Counts those of `pages` that hold no memory yet, and some after them, as resident.
    /// Whoever gets some must [`Self::populate`] them.
    fn claim(&self, shard: &Shard, block: &Block, pages: Pages) -> Result<Pages, DeviceError> {
        let missing = pages & !block.resident();
        if missing == 0 {
            return Ok(0);
        }
        let ahead = match self.is_loose() {
            true => 1,
            false => (shard.blocks as usize / 2).clamp(FEW_PAGES, BLOCK_PAGES / 2),
        };
        let run = block::run(missing.trailing_zeros() as usize, ahead);
        let wanted = (missing | run) & !block.resident();
        let claimed = [wanted, missing]
            .into_iter()
            .find(|&pages| self.charge(bytes_of(pages)));
        let claimed = claimed.ok_or(DeviceError::Full)?;
        block.set_resident(block.resident() | claimed);
        block.set_populating(block.populating() + 1);
        Ok(claimed)
    }

    /// Populates pages that were claimed, outside the lock.
    fn populate(&self, shard: usize, id: u32, pages: Pages) {
        let start = id as usize * BLOCK_BYTES;
        for (first, len) in block::runs_in(pages) {
            self.arena
                .populate(start + first * PAGE_SIZE, len * PAGE_SIZE);
        }
        let _shard = lock(&self.shards[shard]);
        let block = &self.blocks[id as usize];
        block.set_populating(block.populating() - 1);
    }

    fn charge(&self, bytes: u64) -> bool {
        // Added first and taken back if too much: two threads at the limit may then both fail, but
        // never both succeed. Relaxed: the number guards no data.
        let before = self.resident.fetch_add(bytes, Relaxed);
        let fits = before.saturating_add(bytes) <= self.limit;
        if !fits {
            self.resident.fetch_sub(bytes, Relaxed);
        }
        fits
    }

    fn add_block(&self, shard: &mut Shard, index: usize) -> Result<u32, DeviceError> {
        let id = self.take_from_pool().ok_or(DeviceError::Full)?;
        self.blocks[id as usize].set_shard(index as u32);
        shard.blocks += 1;
        shard.insert(&self.blocks, id);
        Ok(id)
    }

    fn take_from_pool(&self) -> Option<u32> {
        let mut pool = lock(&self.pool);
        let id = pool.returned;
        if id != NONE {
            pool.returned = self.blocks[id as usize].links[0].next.load(Relaxed);
            return Some(id);
        }
        let id = self.fresh.load(Relaxed);
        ((id as usize) < self.blocks.len()).then(|| {
            self.fresh.store(id + 1, Relaxed);
            id
        })
    }

    fn give_to_pool(&self, id: u32) {
        let block = &self.blocks[id as usize];
        block.set_list(POOLED);
        let mut pool = lock(&self.pool);
        block.links[0].next.store(pool.returned, Relaxed);
        pool.returned = id;
    }
}

fn bytes_of(pages: Pages) -> u64 {
    u64::from(pages.count_ones()) * PAGE_SIZE as u64
}
