//! Giving idle pages back to the system.
//!
//! Pages of many blocks go with one system call: each call interrupts every CPU that runs a thread
//! of the process, which costs more than all else about a few pages.

use std::sync::atomic::Ordering::Relaxed;

use userswap_core::device::PAGE_SIZE;
use userswap_sys::together::Together;

use super::block::{self, BLOCK_BYTES, NONE, Pages};
use super::shard::Shard;
use super::{Store, bytes_of};

/// More pages are idle than are to be kept.
#[derive(Debug)]
#[must_use = "idle pages stay until they are given back"]
pub(crate) struct Excess {
    /// The shard where the last became idle.
    pub(super) shard: u32,
}

/// Pages of a block that are to be given back. Until [`Store::release`] has, the block is out of use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Release {
    pub(super) block: u32,
    pub(super) pages: Pages,
}

/// Blocks whose pages go together.
#[derive(Debug)]
#[must_use = "the blocks stay out of use until they are released"]
pub(super) struct Batch {
    releases: [Release; Self::MOST],
    count: usize,
}

impl Default for Batch {
    fn default() -> Self {
        let nothing = Release {
            block: NONE,
            pages: 0,
        };
        Self {
            releases: [nothing; Self::MOST],
            count: 0,
        }
    }
}

impl Batch {
    const MOST: usize = 32;

    pub(super) fn push(&mut self, release: Release) {
        self.releases[self.count] = release;
        self.count += 1;
    }

    fn is_full(&self) -> bool {
        self.count == Self::MOST
    }

    fn releases(&self) -> &[Release] {
        &self.releases[..self.count]
    }
}

impl Store {
    /// Gives idle pages back to the system until half of those are left that are kept, or until that
    /// is enough for once.
    pub(crate) fn give_back(&self, excess: Excess) {
        let mut batch = Batch::default();
        let first = excess.shard as usize;
        for index in (first..self.shards.len()).chain(0..first) {
            self.take_idle(index, self.keep() / 2, &mut batch);
        }
        self.release(&batch);
    }

    /// Gives every idle page back to the system.
    pub(crate) fn trim(&self) {
        for index in 0..self.shards.len() {
            loop {
                let mut batch = Batch::default();
                self.take_idle(index, 0, &mut batch);
                self.release(&batch);
                if !batch.is_full() {
                    break;
                }
            }
        }
    }

    /// Takes blocks of a shard that have idle pages out of use, into `batch`, while it has room and
    /// more than `keep` pages of all shards are idle.
    fn take_idle(&self, index: usize, keep: u32, batch: &mut Batch) {
        while !batch.is_full() && self.idle.load(Relaxed) > keep {
            let Some(release) = self.start_release(&mut self.shard(index)) else {
                break;
            };
            batch.push(release);
        }
    }

    /// Picks the block that has had idle pages longest and takes it out of use for their release.
    fn start_release(&self, shard: &mut Shard) -> Option<Release> {
        let id = shard.longest_idle()?;
        let block = &self.blocks[id as usize];
        if block.populating() != 0 {
            // Pages released now could come back uncounted; they go with the next release.
            return None;
        }
        // All that can go, goes: populated ahead but never used counts too.
        let pages = block::free_pages(&self.bitmaps[id as usize], shard.class, block.resident());
        shard.drop_idle(&self.blocks, id, Pages::MAX);
        shard.detach(&self.blocks, id);
        Some(Release { block: id, pages })
    }

    /// Gives pages back to the system, and their blocks back to their shards or, where they hold no
    /// object, to the pool.
    pub(super) fn release(&self, batch: &Batch) {
        let together = self.discard_together(batch);
        for &release in batch.releases() {
            let gone = if together {
                release.pages
            } else {
                self.discard(release)
            };
            self.put_back(release, gone);
        }
    }

    /// Discards the pages of a batch with few calls; `false`: perhaps not all, or it does not pay.
    fn discard_together(&self, batch: &Batch) -> bool {
        let all = || batch.releases().iter().flat_map(ranges);
        if all().nth(1).is_none() {
            return false;
        }
        let mut parts = Together::default();
        for (start, len) in all() {
            // SAFETY: as in `discard`, for each part.
            if parts.is_full() && !unsafe { self.arena.release_together(&mut parts) } {
                return false;
            }
            self.arena.add_to(&mut parts, start, len);
        }
        // SAFETY: as above.
        unsafe { self.arena.release_together(&mut parts) }
    }

    /// Discards the pages of one block run by run, and says which are gone.
    fn discard(&self, release: Release) -> Pages {
        let mut gone = 0;
        for (start, len) in ranges(&release) {
            // SAFETY: no object was on these pages when the release began, under the lock, and none
            // can have been put there since, because the block is in no list.
            if unsafe { self.arena.release(start, len) } {
                gone |= block::run(start % BLOCK_BYTES / PAGE_SIZE, len / PAGE_SIZE);
            }
        }
        gone
    }

    fn put_back(&self, release: Release, gone: Pages) {
        let id = release.block;
        let block = &self.blocks[id as usize];
        let mut shard = self.shard(block.shard() as usize);
        block.set_resident(block.resident() & !gone);
        self.resident.fetch_sub(bytes_of(gone), Relaxed);
        if block.used() == 0 && block.resident() == 0 {
            shard.blocks -= 1;
            self.give_to_pool(id);
            return;
        }
        // Pages that lost their last object during the release. Pages the system would not take
        // (locked memory) are not tried again until an object on them is freed.
        let idle = block::free_pages(
            &self.bitmaps[id as usize],
            shard.class,
            block.resident() & !release.pages,
        );
        shard.add_idle(&self.blocks, id, idle);
        shard.insert(&self.blocks, id);
    }
}

/// Where the pages of a release are in the arena: first byte and length of each run.
fn ranges(release: &Release) -> impl Iterator<Item = (usize, usize)> + use<> {
    let start = release.block as usize * BLOCK_BYTES;
    block::runs_in(release.pages)
        .map(move |(first, len)| (start + first * PAGE_SIZE, len * PAGE_SIZE))
}
