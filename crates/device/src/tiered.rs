//! Two tiers: compressed memory, and a file below it for what does not fit or does not compress.
//!
//! # Where a slot's page is
//! Above or below, or nowhere (zeros). Pages move down only, and each in one step: under the lock of its slot in the
//! store it is put below first and dropped above afterwards. So whoever looks above first, and finds nothing there, finds
//! it below. Pages come up by being read into memory: the slot is free then, and the next time it is written the
//! page starts above again.
//!
//! A fault waits for a move of its own page, a few microseconds, and never for the file to be written: who moves
//! has a place in a segment before it locks the slot, and writes the segment afterwards.
//!
//! # Which pages move
//! Those that were written longest ago, when the store takes more than its share of the limit: [`Device::tend`] brings
//! it down in the background. Until it has, what is written goes below directly, and so does at any time
//! what does not compress.
//!
//! An adaptive codec stays with LZ4 here. Zstandard between a quarter and a third of the limit was measured with three programs at
//! 25 % of their memory: 2-3 % fewer pages moved, and no less time, for a tenth to a third more of the processor's.
//!
//! Lock order: the sweep; a slot of the store; a slot of the file.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use userswap_core::device::{
    Content, Device, DeviceError, Overdue, PAGE_SIZE, PageBytes, Properties, Side, SlotRead, Usage,
};

use crate::arena::Table;
use crate::file::File;
use crate::same;
use crate::zram::Zram;

/// Of the limit, the store takes at most one part in so many.
const STORE_SHARE: u64 = 3;

/// The store is brought down to its share less one part in so many, so that there is room for what comes.
const STORE_SLACK: u64 = 8;

/// Slots that have one age: slots are handed out and written by neighbours.
const GROUP: u64 = 64;

/// Pages moved in one step: about a segment.
const PAGES_A_STEP: usize = 64;

/// Reads that are looked at together.
const BATCH: usize = 64;

/// Compressed memory above a file.
pub struct Tiered {
    name: String,
    above: Zram,
    below: File,
    /// Bytes the store may take.
    share: AtomicU64,
    /// Pages written above so far: what age is measured in.
    clock: AtomicU64,
    /// For each group, what the clock said when one of its slots was last written above; 0: never.
    stamps: Table<AtomicU64>,
    /// The highest group that was ever written.
    highest: AtomicU64,
    sweep: Mutex<Sweep>,
}

/// Where the search for old pages is.
struct Sweep {
    group: u64,
    /// How old a group must be to be moved.
    age: Option<u64>,
    page: Box<PageBytes>,
}

impl Tiered {
    /// `above` and `below` have the same number of slots.
    ///
    /// # Errors
    /// The system refuses the address space.
    pub fn new(above: Zram, below: File) -> Result<Self, DeviceError> {
        debug_assert_eq!(above.slots(), below.slots());
        let groups = above.slots().div_ceil(GROUP) as usize;
        Ok(Self {
            name: format!("{},{}", above.name(), below.name()),
            share: AtomicU64::new(u64::MAX),
            clock: AtomicU64::new(0),
            stamps: Table::zeroed(groups)?,
            highest: AtomicU64::new(0),
            sweep: Mutex::new(Sweep {
                group: 0,
                age: None,
                page: Box::new([0; PAGE_SIZE]),
            }),
            above,
            below,
        })
    }

    fn store_is_over(&self, bytes: u64) -> bool {
        self.above.memory_bytes() > bytes
    }

    fn write_above(&self, slot: u64, page: &PageBytes) -> Result<(), DeviceError> {
        // Relaxed: ages are estimates.
        let now = self.clock.fetch_add(1, Relaxed) + 1;
        let group = slot / GROUP;
        if let Some(stamp) = self.stamps.get(group as usize) {
            stamp.store(now, Relaxed);
        }
        self.highest.fetch_max(group, Relaxed);
        self.above.write(slot, page)
    }

    /// Moves old pages down. Returns whether it is worth going on.
    fn move_some(&self, sweep: &mut Sweep) -> bool {
        let groups = self.highest.load(Relaxed) + 1;
        let now = self.clock.load(Relaxed);
        // At first the older half of what is there.
        let age = sweep.age.unwrap_or(self.above.usage().compressed_pages / 2);
        let mut moved = 0;
        let mut place = None;
        for _ in 0..groups {
            if moved >= PAGES_A_STEP {
                break;
            }
            let group = sweep.group % groups;
            sweep.group = group + 1;
            let stamp = self.stamps[group as usize].load(Relaxed);
            if stamp == 0 || now.saturating_sub(stamp) < age {
                continue;
            }
            for slot in group * GROUP..((group + 1) * GROUP).min(self.slots()) {
                let mut here = match place.take() {
                    Some(place) => place,
                    None => match self.below.reserve() {
                        Ok(place) => place,
                        // Nothing can go there now.
                        Err(_) => return false,
                    },
                };
                let is_moved = self.above.move_out(slot, &mut sweep.page, |page| {
                    self.below.fill(&mut here, slot, page);
                });
                if is_moved {
                    self.below.finish(here);
                    moved += 1;
                } else {
                    place = Some(here);
                }
            }
        }
        if let Some(place) = place {
            self.below.leave(place);
        }
        sweep.age = Some(if moved < PAGES_A_STEP { age / 2 } else { age });
        moved > 0 || age > 0
    }
}

impl Device for Tiered {
    fn name(&self) -> &str {
        &self.name
    }

    fn slots(&self) -> u64 {
        self.above.slots()
    }

    fn properties(&self) -> Properties {
        self.above.properties()
    }

    fn read(&self, slot: u64, page: &mut PageBytes) -> Result<Content, DeviceError> {
        let above = self.above.read_held(slot, page);
        above.unwrap_or_else(|| self.below.read(slot, page))
    }

    fn batches(&self) -> bool {
        true
    }

    fn read_batch(&self, reads: &mut [Option<SlotRead<'_>>]) {
        for reads in reads.chunks_mut(BATCH) {
            let mut rest: [_; BATCH] = std::array::from_fn(|_| None);
            let mut any = false;
            for (read, rest) in reads.iter_mut().zip(&mut rest) {
                let Some(read) = read else { continue };
                match self.above.read_held(read.slot, read.page) {
                    Some(result) => read.result = result,
                    None => {
                        *rest = Some(SlotRead::new(read.slot, &mut *read.page));
                        any = true;
                    }
                }
            }
            if !any {
                continue;
            }
            self.below.read_batch(&mut rest);
            let results = rest.map(|read| read.map(|read| read.result));
            for (read, result) in reads.iter_mut().zip(results) {
                if let (Some(read), Some(result)) = (read, result) {
                    read.result = result;
                }
            }
        }
    }

    fn write(&self, slot: u64, page: &PageBytes) -> Result<(), DeviceError> {
        // Nothing of an earlier page may be left on either side, for a move to bring down later.
        self.discard(slot);
        let is_over = self.store_is_over(self.share.load(Relaxed));
        if is_over && same::repeated_word(page).is_none() && self.below.write(slot, page).is_ok() {
            return Ok(());
        }
        match self.write_above(slot, page) {
            Err(DeviceError::Full | DeviceError::Incompressible) => self.below.write(slot, page),
            result => result,
        }
    }

    /// Above first: then nothing is left that could be moved down.
    fn discard(&self, slot: u64) {
        self.above.discard(slot);
        self.below.discard(slot);
    }

    fn usage(&self) -> Usage {
        let (above, below) = (self.above.usage(), self.below.usage());
        Usage {
            metadata_bytes: self.memory_bytes() - above.memory_bytes,
            file_pages: below.file_pages,
            file_read_bytes: below.file_read_bytes,
            file_written_bytes: below.file_written_bytes,
            ..above
        }
    }

    fn memory_bytes(&self) -> u64 {
        let stamps = (self.highest.load(Relaxed) + 1) * size_of::<AtomicU64>() as u64;
        self.above.memory_bytes() + self.below.memory_bytes() + stamps
    }

    fn compact(&self) {
        self.above.compact();
    }

    fn tend(&self) -> bool {
        self.below.tend();
        let share = self.share.load(Relaxed);
        // Somebody else is at it, or this is a fork's child and somebody was.
        let Ok(mut sweep) = self.sweep.try_lock() else {
            return false;
        };
        if !self.store_is_over(share - share / STORE_SLACK) {
            sweep.age = None;
            return false;
        }
        self.move_some(&mut sweep)
    }

    fn leaves_memory(&self) -> bool {
        true
    }

    fn note_limit(&self, bytes: u64) {
        self.share.store(bytes / STORE_SHARE, Relaxed);
    }

    fn overdue(&self, now_ns: u64) -> Option<Overdue> {
        self.below.overdue(now_ns)
    }

    fn retire(&self) {
        self.above.retire();
        self.below.retire();
        self.stamps.clear();
        self.highest.store(0, Relaxed);
    }

    fn fork_begin(&self) {
        self.below.fork_begin();
    }

    fn fork_end(&self, side: Side) -> Result<(), DeviceError> {
        self.below.fork_end(side)
    }

    fn descriptors(&self, name: &mut dyn FnMut(i32)) {
        self.below.descriptors(name);
    }
}
