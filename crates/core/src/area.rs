//! A swap area: a device, the map of its slots, and the cache index over them.
//!
//! The only way a slot comes free is [`SwapArea::finish`]: discard the data, then clear the word,
//! then tell the cluster. No lock is held while the device discards.

use crate::bug;
use crate::cache::CacheIndex;
use crate::cluster::Clusters;
use crate::device::{Device, Properties};
use crate::entry::{MAX_SLOTS, SwapEntry};
use crate::gate::{Gate, Pass};
use crate::guarded::Guarded;
use crate::rule::{Kept, Rule};
use crate::slot_map::SlotMap;
use crate::slot_word::{Dropped, SlotError, SlotState};
use crate::step::{self, Step};

/// The word of the slot map and that of the cache index.
const BYTES_PER_SLOT: u64 = 8;

/// A swap area.
pub struct SwapArea {
    number: usize,
    /// Which of several areas slots come from first: the highest.
    priority: i32,
    device: Guarded,
    properties: Properties,
    map: SlotMap,
    clusters: Clusters,
    pub(crate) cache: CacheIndex,
    /// Held off while somebody uses the device; closed by swapoff.
    gate: Gate,
    kept: Kept,
}

impl SwapArea {
    /// An area on `device`, with number `number` in its entries.
    #[must_use]
    pub fn new(number: usize, device: Box<dyn Device>) -> Self {
        Self::keeping(number, device, 0, Kept::default())
    }

    pub(crate) fn keeping(
        number: usize,
        device: Box<dyn Device>,
        priority: i32,
        kept: Kept,
    ) -> Self {
        let slots = device.slots().min(MAX_SLOTS);
        Self {
            number,
            priority,
            properties: device.properties(),
            map: SlotMap::new(slots as usize),
            clusters: Clusters::new(slots, kept),
            cache: CacheIndex::new(slots as usize),
            gate: Gate::keeping(kept),
            kept,
            device: Guarded(device),
        }
    }

    /// The number in its entries.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }

    /// Which of several areas slots come from first: the highest.
    #[must_use]
    pub fn priority(&self) -> i32 {
        self.priority
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &dyn Device {
        &self.device
    }

    /// What the device is like.
    #[must_use]
    pub fn properties(&self) -> Properties {
        self.properties
    }

    /// Slots there are.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.device.slots()
    }

    /// Slots in use.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.clusters.used()
    }

    /// Bytes of memory that the slots' tables take: 8 for each slot that was ever near one in use.
    #[must_use]
    pub fn metadata_bytes(&self) -> u64 {
        self.clusters.touched() * BYTES_PER_SLOT
    }

    /// The state of a slot at one moment.
    #[must_use]
    pub fn slot(&self, entry: SwapEntry) -> SlotState {
        self.map.state(entry.offset())
    }

    /// The frame in the cache index, for a test that compares it.
    #[cfg(feature = "steps")]
    #[must_use]
    pub fn cached(&self, entry: SwapEntry) -> Option<crate::space::Frame> {
        self.cache.lookup(entry.offset())
    }

    /// A device reference: holds off swapoff (step 2). `None`: the device is gone.
    pub fn enter(&self) -> Option<Pass<'_>> {
        self.gate.enter()
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    pub(crate) fn clusters(&self) -> &Clusters {
        &self.clusters
    }

    pub(crate) fn entry(&self, slot: u64) -> SwapEntry {
        SwapEntry::new(self.number, slot)
    }

    /// Allocates slots for swap-out, each (0,1); returns how many. The caller holds a reference.
    pub(crate) fn allocate(&self, out: &mut [u64]) -> usize {
        self.clusters.allocate(&self.map, out)
    }

    /// Swap-out puts the entry in a PTE.
    pub(crate) fn put_in_pte(&self, entry: SwapEntry) -> Result<(), SlotError> {
        self.map.put_in_pte(entry.offset())
    }

    /// `swap_duplicate`: another PTE holds the entry.
    pub(crate) fn duplicate(&self, entry: SwapEntry) -> Result<(), SlotError> {
        self.map.duplicate(entry.offset())
    }

    /// `swapcache_prepare`: takes the cache flag.
    pub(crate) fn prepare(&self, entry: SwapEntry) -> Result<(), SlotError> {
        match self.map.prepare(entry.offset()) {
            Err(SlotError::Busy) if !self.kept.keeps(Rule::OneOwner) => Ok(()),
            result => result,
        }
    }

    /// `swap_free` by somebody who does not own the cache flag.
    pub(crate) fn free(&self, entry: SwapEntry) {
        step::at(Step::SwapFree);
        match self.map.free(entry.offset()) {
            Ok(Dropped::InUse) => {}
            Ok(Dropped::Last) => self.finish([entry.offset()]),
            Err(error) => bug::report("swap_free", entry, error),
        }
    }

    /// `swap_free` by the owner of the cache flag, who holds the PTE lock too.
    pub(crate) fn free_owned(&self, entry: SwapEntry) {
        step::at(Step::SwapFree);
        if let Err(error) = self.map.free_owned(entry.offset()) {
            bug::report("swap_free", entry, error);
        }
    }

    /// `swapcache_clear` and the end of a cache deletion: gives up the cache flag of each entry, once.
    /// Waiters are not woken here.
    pub(crate) fn release(&self, entries: impl IntoIterator<Item = SwapEntry>) {
        self.finish(entries.into_iter().filter_map(|entry| {
            step::at(Step::ReleasePin);
            match self.map.release(entry.offset()) {
                Ok(Dropped::InUse) => None,
                Ok(Dropped::Last) => Some(entry.offset()),
                Err(error) => {
                    bug::report("swapcache_clear", entry, error);
                    None
                }
            }
        }));
    }

    /// (0,1) -> free for slots nobody uses any more.
    fn finish(&self, slots: impl IntoIterator<Item = u64>) {
        // Neighbours are often freed together: tell their cluster once.
        let mut batch: Option<(u64, u32)> = None;
        for slot in slots {
            let first = self.kept.keeps(Rule::DiscardBeforeReuse);
            if self.properties.discards && first {
                step::at(Step::Discard);
                self.device.discard(slot);
            }
            step::at(Step::FinishFree);
            self.map.finish_free(slot);
            if self.properties.discards && !first {
                step::at(Step::Discard);
                self.device.discard(slot);
            }
            batch = match batch {
                Some((first, count)) if same_cluster(first, slot) => Some((first, count + 1)),
                full => {
                    self.flush(full);
                    Some((slot, 1))
                }
            };
        }
        self.flush(batch);
    }

    fn flush(&self, batch: Option<(u64, u32)>) {
        if let Some((slot, count)) = batch {
            self.clusters.freed(slot, count);
        }
    }
}

fn same_cluster(a: u64, b: u64) -> bool {
    a / crate::cluster::CLUSTER_SLOTS == b / crate::cluster::CLUSTER_SLOTS
}
