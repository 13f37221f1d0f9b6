//! Clusters: where free slots are found.
//!
//! An area is cut into clusters of [`CLUSTER_SLOTS`] slots. A thread allocates from the cluster its
//! shard holds and moves on when that is used up, so threads rarely meet and neighbouring pages get
//! neighbouring slots. An allocation looks at no more than each cluster once.
//!
//! Guarantee: only the holder of a cluster turns its slots from free to used, under its shard's
//! lock. Freed slots stay where they are and are found by the next holder.
//!
//! | place | meaning |
//! |---|---|
//! | fresh | never held; clusters at or above `Lists::fresh` |
//! | partial | on the list; had a free slot when it was put there |
//! | held | some shard's current cluster |
//! | full | on no list; the free that takes it below its size lists it |

use crate::rule::{Kept, Rule};
use crate::slot_map::SlotMap;
use crate::sync::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64, CachePadded, Mutex, Ordering, SHARDS, thread_hint,
};

/// Slots in a cluster: 2 MiB of pages.
pub(crate) const CLUSTER_SLOTS: u64 = 512;

const HELD: u8 = 0;
const PARTIAL: u8 = 1;
const FULL: u8 = 2;

#[derive(Debug, Default)]
struct Cluster {
    /// Slots in use. Raised by the holder before the slots are handed out, so it never underflows.
    used: AtomicU32,
    /// One of the places above; changed under the lock of [`Lists`] only.
    place: AtomicU8,
}

#[derive(Debug)]
struct Lists {
    fresh: usize,
    /// Never longer than the number of clusters: pushing does not allocate.
    partial: Vec<u32>,
}

#[derive(Debug, Default)]
struct Held {
    cluster: Option<usize>,
    /// Where to go on looking in the cluster.
    next: u64,
}

#[derive(Debug)]
pub(crate) struct Clusters {
    slots: u64,
    clusters: Box<[Cluster]>,
    lists: Mutex<Lists>,
    /// Lock order: a shard, then the lists. Two shards are never locked at once.
    shards: [CachePadded<Mutex<Held>>; SHARDS],
    used: AtomicU64,
    touched: AtomicU64,
    stopped: AtomicBool,
    kept: Kept,
}

impl Clusters {
    pub(crate) fn new(slots: u64, kept: Kept) -> Self {
        let count = slots.div_ceil(CLUSTER_SLOTS) as usize;
        Self {
            slots,
            clusters: (0..count).map(|_| Cluster::default()).collect(),
            lists: Mutex::new(Lists {
                fresh: 0,
                partial: Vec::with_capacity(count),
            }),
            shards: Default::default(),
            used: AtomicU64::new(0),
            touched: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            kept,
        }
    }

    /// Slots in use.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// Slots of clusters that were ever held: those whose words take memory.
    pub(crate) fn touched(&self) -> u64 {
        self.touched.load(Ordering::Relaxed).min(self.slots)
    }

    /// Allocates up to `out.len()` slots, each then (0,1); returns how many. Fewer than asked for
    /// means that the area is full (or stopped).
    pub(crate) fn allocate(&self, map: &SlotMap, out: &mut [u64]) -> usize {
        let own = thread_hint() % SHARDS;
        let mut got = 0;
        // Other shards hold clusters with free slots too: an area is full only after all were asked.
        for turn in 0..SHARDS {
            got += self.allocate_in_shard((own + turn) % SHARDS, map, &mut out[got..]);
            if got == out.len() {
                break;
            }
        }
        got
    }

    /// No slot is handed out after this returns, until [`Clusters::resume`].
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        if !self.kept.keeps(Rule::SwapoffWaitsForAllocators) {
            return;
        }
        for shard in &self.shards {
            // Whoever was allocating has left; whoever comes next sees the flag.
            drop(shard.0.lock());
        }
    }

    pub(crate) fn resume(&self) {
        self.stopped.store(false, Ordering::SeqCst);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// `count` slots of the cluster that holds `slot` are free again (their words are 0 already).
    pub(crate) fn freed(&self, slot: u64, count: u32) {
        let index = (slot / CLUSTER_SLOTS) as usize;
        let cluster = &self.clusters[index];
        self.used.fetch_sub(u64::from(count), Ordering::AcqRel);
        // AcqRel: the holder that sees the lower count sees the words as free.
        let before = cluster.used.fetch_sub(count, Ordering::AcqRel);
        debug_assert!(before >= count, "more slots freed than used");
        // A slot can be reused before its free is counted here, so `before` may be above the size, and
        // a batch may pass it.
        let size = self.size(index);
        if u64::from(before) >= size && u64::from(before - count) < size {
            let mut lists = self.lists.lock();
            if cluster.place.load(Ordering::Relaxed) == FULL {
                cluster.place.store(PARTIAL, Ordering::Relaxed);
                lists.partial.push(index as u32);
            }
        }
    }

    fn allocate_in_shard(&self, shard: usize, map: &SlotMap, out: &mut [u64]) -> usize {
        let mut held = self.shards[shard].0.lock();
        if self.is_stopped() && self.kept.keeps(Rule::SwapoffStopsAllocation) {
            return 0;
        }
        let mut got = 0;
        // The bound: every cluster once, plus the one held at the start.
        for _ in 0..=self.clusters.len() {
            if let Some(index) = held.cluster {
                got += self.scan(index, &mut held.next, map, &mut out[got..]);
                if got == out.len() {
                    break;
                }
                self.put_back(index);
                held.cluster = None;
            }
            let Some(index) = self.take() else { break };
            held.cluster = Some(index);
            held.next = index as u64 * CLUSTER_SLOTS;
        }
        got
    }

    /// Looks from `next` to the end of the cluster.
    fn scan(&self, index: usize, next: &mut u64, map: &SlotMap, out: &mut [u64]) -> usize {
        let end = index as u64 * CLUSTER_SLOTS + self.size(index);
        let mut got = 0;
        while *next < end && got < out.len() {
            if map.is_free(*next) {
                map.allocate(*next);
                out[got] = *next;
                got += 1;
            }
            *next += 1;
        }
        // Before the slots are handed out, so that no free comes first.
        self.clusters[index]
            .used
            .fetch_add(got as u32, Ordering::AcqRel);
        self.used.fetch_add(got as u64, Ordering::AcqRel);
        got
    }

    fn take(&self) -> Option<usize> {
        let mut lists = self.lists.lock();
        let index = match lists.partial.pop() {
            Some(index) => index as usize,
            None if lists.fresh < self.clusters.len() => {
                lists.fresh += 1;
                self.touched.fetch_add(CLUSTER_SLOTS, Ordering::Relaxed);
                lists.fresh - 1
            }
            None => return None,
        };
        self.clusters[index].place.store(HELD, Ordering::Relaxed);
        Some(index)
    }

    fn put_back(&self, index: usize) {
        let mut lists = self.lists.lock();
        let cluster = &self.clusters[index];
        // Acquire: pairs with `freed`. A free after this load finds the place FULL and lists it.
        if u64::from(cluster.used.load(Ordering::Acquire)) < self.size(index) {
            cluster.place.store(PARTIAL, Ordering::Relaxed);
            lists.partial.push(index as u32);
        } else {
            cluster.place.store(FULL, Ordering::Relaxed);
        }
    }

    fn size(&self, index: usize) -> u64 {
        CLUSTER_SLOTS.min(self.slots - index as u64 * CLUSTER_SLOTS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot_word::Dropped;

    fn area(slots: u64) -> (Clusters, SlotMap) {
        (
            Clusters::new(slots, Kept::default()),
            SlotMap::new(slots as usize),
        )
    }

    fn free(clusters: &Clusters, map: &SlotMap, slot: u64) {
        assert_eq!(map.release(slot), Ok(Dropped::Last));
        map.finish_free(slot);
        clusters.freed(slot, 1);
    }

    #[test]
    fn every_slot_is_handed_out_once_and_neighbours_are_neighbours() {
        let (clusters, map) = area(3 * CLUSTER_SLOTS + 5);
        let mut out = vec![0; 3 * CLUSTER_SLOTS as usize + 50];
        let got = clusters.allocate(&map, &mut out);
        assert_eq!(got as u64, 3 * CLUSTER_SLOTS + 5);
        assert!(
            out[..got]
                .iter()
                .enumerate()
                .all(|(i, &slot)| slot == i as u64)
        );
        assert_eq!(clusters.used(), got as u64);
        assert_eq!(clusters.allocate(&map, &mut out), 0, "full");
    }

    #[test]
    fn the_only_free_slot_is_found_wherever_it_is() {
        let (clusters, map) = area(2 * CLUSTER_SLOTS);
        let mut all = vec![0; 2 * CLUSTER_SLOTS as usize];
        assert_eq!(clusters.allocate(&map, &mut all), all.len());
        for slot in [0, 511, 512, 1023, 700] {
            free(&clusters, &map, slot);
            let mut one = [0];
            assert_eq!(clusters.allocate(&map, &mut one), 1);
            assert_eq!(one, [slot]);
        }
    }

    #[test]
    fn slots_reused_before_their_free_is_counted_do_not_hide_their_cluster() {
        let (clusters, map) = area(3);
        assert_eq!(clusters.allocate(&map, &mut [0; 3]), 3);
        free(&clusters, &map, 0);
        assert_eq!(clusters.allocate(&map, &mut [0; 1]), 1);
        // A batch of two is free already, but not counted yet, when one of the two is reused.
        for slot in [1, 0] {
            assert_eq!(map.release(slot), Ok(Dropped::Last));
            map.finish_free(slot);
        }
        let mut out = [0; 2];
        assert_eq!(clusters.allocate(&map, &mut out), 1);
        assert_eq!(out[0], 1);
        clusters.freed(1, 2);
        assert_eq!(clusters.used(), 2);
        assert_eq!(
            clusters.allocate(&map, &mut out),
            1,
            "the free slot is found"
        );
    }

    #[test]
    fn a_stopped_area_hands_out_nothing() {
        let (clusters, map) = area(8);
        clusters.stop();
        assert_eq!(clusters.allocate(&map, &mut [0; 4]), 0);
        clusters.resume();
        assert_eq!(clusters.allocate(&map, &mut [0; 4]), 4);
    }

    #[test]
    fn threads_never_share_a_slot() {
        let (clusters, map) = area(2 * CLUSTER_SLOTS);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..2_000_usize {
                        let mut out = [0; 37];
                        let got = clusters.allocate(&map, &mut out[..1 + round % 37]);
                        for &slot in &out[..got] {
                            assert_eq!(
                                (map.state(slot).count, map.state(slot).has_cache),
                                (0, true)
                            );
                            free(&clusters, &map, slot);
                        }
                    }
                });
            }
        });
        assert_eq!(clusters.used(), 0);
        let mut all = vec![0; 2 * CLUSTER_SLOTS as usize];
        assert_eq!(
            clusters.allocate(&map, &mut all),
            all.len(),
            "no slot got lost"
        );
    }
}
