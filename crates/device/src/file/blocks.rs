//! Which blocks of a file are free.
//!
//! A block that was in use when the process forked may be all that the child has of a page, whatever this process does
//! with it later: it is not used again while the child, or somebody forked from it, lives. Forks are counted; a
//! block's word says at which count it was taken and at which it was given back, so a fork itself costs nothing here.
//!
//! ```text
//!  63    62   61        31 30        0
//! +-----+----+------------+-----------+
//! | used|gone| given back | taken     |   0: free
//! +-----+----+------------+-----------+
//! ```
//!
//! One thread takes blocks at a time (the caller holds a lock); any may give back blocks it owns.

use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use userswap_core::device::DeviceError;

use crate::arena::Table;

/// Blocks that are looked for together: what a segment takes.
pub(super) const CLUSTER: usize = 64;

const USED: u64 = 1 << 63;
const GONE: u64 = 1 << 62;
const COUNT_BITS: u32 = 31;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

pub(super) struct Blocks {
    words: Table<AtomicU64>,
    /// For each cluster, how many of its blocks are not free.
    taken: Table<AtomicU64>,
    /// Blocks the file has space for by now.
    ready: AtomicU32,
    /// Where to look next, in clusters.
    hand: AtomicU32,
    /// Forks so far.
    forks: AtomicU64,
    /// Blocks that are free but for somebody forked.
    waiting: AtomicU64,
}

impl Blocks {
    pub(super) fn new(total: u32, ready: u32) -> Result<Self, DeviceError> {
        let total = total as usize;
        Ok(Self {
            words: Table::zeroed(total)?,
            taken: Table::zeroed(total.div_ceil(CLUSTER))?,
            ready: AtomicU32::new(ready),
            hand: AtomicU32::new(0),
            forks: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
        })
    }

    pub(super) fn total(&self) -> u32 {
        self.words.len() as u32
    }

    /// Bytes of tables that take memory.
    pub(super) fn resident_bytes(&self) -> u64 {
        u64::from(self.ready.load(Relaxed)) * size_of::<u64>() as u64
    }

    /// The file is closed: gives the tables' memory back. No block is taken or given back from now on.
    pub(super) fn retire(&self) {
        self.ready.store(0, Relaxed);
        self.waiting.store(0, Relaxed);
        self.words.clear();
        self.taken.clear();
    }

    /// Blocks that only somebody forked may need.
    pub(super) fn waiting(&self) -> u64 {
        self.waiting.load(Relaxed)
    }

    /// Takes blocks, neighbours if it can; returns how many. `extend` makes space behind the blocks there are, and says
    /// how many there are then. The caller holds the lock for this.
    pub(super) fn take(
        &self,
        out: &mut [u32; CLUSTER],
        extend: impl FnOnce(u32) -> Option<u32>,
    ) -> usize {
        let ready = self.ready.load(Relaxed);
        let clusters = (ready as usize).div_ceil(CLUSTER);
        let hand = self.hand.load(Relaxed) as usize % clusters.max(1);
        let round = || (hand..clusters).chain(0..hand);
        if let Some(cluster) = round().find(|&cluster| self.taken[cluster].load(Relaxed) == 0) {
            return self.take_from([cluster], ready, out);
        }
        if let Some(more) = extend(ready)
            && more > ready
        {
            self.ready.store(more, Relaxed);
            return self.take_from([ready as usize / CLUSTER], more, out);
        }
        let with_room =
            round().filter(|&cluster| self.taken[cluster].load(Relaxed) < CLUSTER as u64);
        self.take_from(with_room, ready, out)
    }

    fn take_from(
        &self,
        clusters: impl IntoIterator<Item = usize>,
        ready: u32,
        out: &mut [u32; CLUSTER],
    ) -> usize {
        let forks = self.forks.load(Relaxed);
        let mut got = 0;
        for cluster in clusters {
            self.hand.store(cluster as u32, Relaxed);
            let end = ((cluster + 1) * CLUSTER).min(ready as usize);
            for block in cluster * CLUSTER..end {
                if got == out.len() {
                    return got;
                }
                // Acquire: whoever gave the block back has done with it.
                if self.words[block].load(Acquire) == 0 {
                    self.words[block].store(USED | forks, Relaxed);
                    self.taken[cluster].fetch_add(1, Relaxed);
                    out[got] = block as u32;
                    got += 1;
                }
            }
        }
        got
    }

    /// Gives a block back that the caller owns.
    pub(super) fn give_back(&self, block: u32) {
        let word = &self.words[block as usize];
        let taken = word.load(Relaxed);
        debug_assert!(taken & USED != 0, "a block is given back that is not used");
        let forks = self.forks.load(Relaxed);
        if taken & COUNT_MASK == forks {
            self.free(block);
        } else {
            self.waiting.fetch_add(1, Relaxed);
            word.store(GONE | forks << COUNT_BITS | taken & COUNT_MASK, Release);
        }
    }

    fn free(&self, block: u32) {
        // Release: pairs with the load of the next taker.
        self.words[block as usize].store(0, Release);
        self.taken[block as usize / CLUSTER].fetch_sub(1, Relaxed);
    }

    /// A fork is made now: returns its number. Nobody else uses this.
    pub(super) fn count_fork(&self) -> u64 {
        self.forks.fetch_add(1, Relaxed) + 1
    }

    /// Frees what waits and is not needed by any fork; `needed` is asked for the forks after the first number, up to the
    /// second. The caller holds the lock for taking.
    pub(super) fn reap(&self, needed: impl Fn(u64, u64) -> bool) {
        for block in 0..self.ready.load(Relaxed) {
            // Acquire: as in `take_from`.
            let word = self.words[block as usize].load(Acquire);
            if word & GONE != 0 && !needed(word & COUNT_MASK, word >> COUNT_BITS & COUNT_MASK) {
                self.waiting.fetch_sub(1, Relaxed);
                self.free(block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(blocks: &Blocks) -> Vec<u32> {
        let mut out = [0; CLUSTER];
        let got = blocks.take(&mut out, |ready| {
            (ready < blocks.total()).then(|| (ready + 64).min(blocks.total()))
        });
        out[..got].to_vec()
    }

    #[test]
    fn blocks_are_neighbours_while_they_can_be_and_used_again() {
        let blocks = Blocks::new(150, 0).unwrap();
        assert_eq!(take(&blocks), (0..64).collect::<Vec<_>>());
        assert_eq!(take(&blocks), (64..128).collect::<Vec<_>>());
        for block in 0..64 {
            blocks.give_back(block);
        }
        assert_eq!(
            take(&blocks),
            (0..64).collect::<Vec<_>>(),
            "before the file grows"
        );
        assert_eq!(take(&blocks), (128..150).collect::<Vec<_>>());
        assert_eq!(take(&blocks), []);
        for block in [3, 70, 149] {
            blocks.give_back(block);
        }
        let mut rest = take(&blocks);
        rest.sort_unstable();
        assert_eq!(rest, [3, 70, 149]);
    }

    #[test]
    fn a_block_in_use_at_a_fork_waits_for_the_child() {
        let blocks = Blocks::new(128, 128).unwrap();
        assert_eq!(take(&blocks).len(), 64);
        assert_eq!(blocks.count_fork(), 1);
        let later = take(&blocks);
        for block in (0..64).chain(later.iter().copied()) {
            blocks.give_back(block);
        }
        assert_eq!(blocks.waiting(), 64);
        assert_eq!(take(&blocks), later, "these the child never had");
        assert_eq!(take(&blocks), []);
        let lives = |fork: u64| move |after: u64, to: u64| after < fork && fork <= to;
        blocks.reap(lives(1));
        assert_eq!(take(&blocks), []);
        blocks.reap(lives(2));
        assert_eq!(blocks.waiting(), 0);
        assert_eq!(take(&blocks).len(), 64);
    }
}
