//! Making room: which pages leave memory, and when.
//!
//! A clock hand goes round the chunks of all regions and stages what is present. Staged blocks queue
//! up as the inactive list; a page that is touched there goes back for the price of a move. When the
//! list is as long as it should be, its oldest block is written out and its frames come free.
//!
//! Room is made by the reclaimer thread, between the marks of the budget, and by whoever needs it
//! when it is used up: a thread that faults then writes pages out itself before it takes one in.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use userswap_core::device::{DeviceError, PAGE_SIZE};
use userswap_core::page_table::CHUNK_PAGES;
use userswap_core::space::Frames;
use userswap_core::{StageError, Staged};
use userswap_sys::signals::stderr_line;

use crate::budget::Level;
use crate::shared::{RegionMemory, Shared};

/// Passes of the clock hand for which a page that did not compress is left alone.
const SKIPS: u64 = 15;

/// Where the clock hand is.
#[derive(Debug, Default)]
pub(crate) struct Hand {
    region: usize,
    chunk: usize,
}

/// A staged block and where its pages came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InactiveBlock {
    pub(crate) staged: Staged,
    /// The region's number: a reference would keep a dropped region's memory, and the fault handler
    /// cannot free it.
    pub(crate) region: u64,
    pub(crate) chunk: usize,
}

/// The inactive list, oldest first.
pub(crate) struct Inactive {
    /// Has room for every staging block: pushing does not allocate.
    blocks: VecDeque<InactiveBlock>,
    /// How long the list should be, in blocks.
    target: usize,
}

impl Inactive {
    pub(crate) fn new(capacity: usize, target: usize) -> Self {
        Self {
            blocks: VecDeque::with_capacity(capacity),
            target,
        }
    }
}

/// What a step of the reclaimer came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Pages were staged or written.
    Worked,
    /// Pages were written in vain: they are back where they were.
    InVain,
    /// There is nothing to do but wait for other threads' writes.
    OthersAtWork,
    /// Nothing can be staged and nothing is staged.
    Nothing,
}

impl Shared {
    fn inactive(&self) -> MutexGuard<'_, Inactive> {
        self.inactive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for `pages` and charges them; where no room can be made they are charged all the
    /// same, and that is said once.
    pub(crate) fn make_room(&self, pages: u64) {
        // Twice round every chunk: the first may only have given second chances.
        let most = 64
            + 2 * self
                .regions()
                .iter()
                .map(|region| region.mm.table.chunks())
                .sum::<usize>();
        for _ in 0..most {
            let step = self.reclaim_step();
            let used = self.used_bytes();
            self.budget.made_room(used);
            if self.budget.charge(
                pages,
                used - self.budget.resident_pages() * PAGE_SIZE as u64,
            ) {
                return;
            }
            match step {
                Step::Worked | Step::InVain => {}
                Step::OthersAtWork => std::thread::sleep(Duration::from_micros(20)),
                Step::Nothing => break,
            }
        }
        let first = self.budget.exceed(self.used_bytes());
        self.budget.force(pages);
        if first {
            let limit = self.budget.limit().unwrap_or(u64::MAX);
            stderr_line(format_args!(
                "userswap: the limit of {limit} bytes cannot be held: what is in memory does not compress, is pinned, or \
                 the swap area is full; nothing is lost, memory use goes over the limit"
            ));
        }
    }

    /// Does a bounded piece of work towards free memory.
    pub(crate) fn reclaim_step(&self) -> Step {
        let is_long = {
            let inactive = self.inactive();
            inactive.blocks.len() >= inactive.target
        };
        let staged = !is_long && self.stage_next();
        let (oldest, is_long) = {
            let mut inactive = self.inactive();
            let is_long = inactive.blocks.len() >= inactive.target;
            let oldest = if is_long || !staged {
                inactive.blocks.pop_front()
            } else {
                None
            };
            (oldest, is_long)
        };
        match oldest {
            Some(block) if self.write_out(block) > 0 => Step::Worked,
            Some(_) => Step::InVain,
            None if staged || is_long => Step::Worked,
            None if self.writing.load(Ordering::Relaxed) > 0 => Step::OthersAtWork,
            None => Step::Nothing,
        }
    }

    /// Stages the next chunk that has something to stage. `false`: none has, or there is no room.
    fn stage_next(&self) -> bool {
        let regions = self.regions();
        let chunks: usize = regions.iter().map(|region| region.mm.table.chunks()).sum();
        for _ in 0..chunks {
            let Some((region, chunk)) = self.advance(&regions) else {
                return false;
            };
            let present = self.swap.present(&region.mm, chunk);
            if present == 0 {
                continue;
            }
            let wanted = self.swap.pass_over(&region.mm, chunk, present);
            match self.stage(region, chunk, wanted) {
                Ok(_) => return true,
                Err(StageError::NothingToDo) => {}
                Err(StageError::AreaFull | StageError::NoFrames) => return false,
            }
        }
        false
    }

    /// Moves the hand on and returns where it was.
    fn advance<'a>(
        &self,
        regions: &'a [Arc<RegionMemory>],
    ) -> Option<(&'a Arc<RegionMemory>, usize)> {
        let mut hand = self.hand.lock().unwrap_or_else(PoisonError::into_inner);
        if hand.region >= regions.len() {
            *hand = Hand::default();
        }
        let region = regions.get(hand.region)?;
        let chunk = hand.chunk;
        hand.chunk += 1;
        if hand.chunk >= region.mm.table.chunks() {
            *hand = Hand {
                region: hand.region + 1,
                chunk: 0,
            };
        }
        // A region with fewer chunks may have taken the place of a longer one.
        Some((region, chunk.min(region.mm.table.chunks() - 1)))
    }

    /// Stages pages of a chunk onto the inactive list.
    pub(crate) fn stage(
        &self,
        region: &Arc<RegionMemory>,
        chunk: usize,
        wanted: u64,
    ) -> Result<usize, StageError> {
        let staged = self.swap.stage(&region.mm, chunk, wanted)?;
        self.budget.uncharge(u64::from(staged.mask.count_ones()));
        self.queue(region.number, chunk, staged);
        Ok(staged.mask.count_ones() as usize)
    }

    /// Puts a staged block on the inactive list.
    pub(crate) fn queue(&self, region: u64, chunk: usize, staged: Staged) {
        let block = InactiveBlock {
            staged,
            region,
            chunk,
        };
        self.inactive().blocks.push_back(block);
    }

    /// Writes a block out and frees its frames. Returns how many pages' memory came free.
    pub(crate) fn write_out(&self, block: InactiveBlock) -> usize {
        self.writing.fetch_add(1, Ordering::Relaxed);
        let InactiveBlock {
            staged: Staged {
                block: frames,
                mask,
            },
            region,
            chunk,
        } = block;
        let done = self.swap.write_back(frames, mask);
        let written = done.written.count_ones() as usize;
        self.counters
            .pages_out
            .fetch_add(written as u64, Ordering::Relaxed);
        let vain = mask & !done.written & !done.failed;
        self.counters
            .refaults
            .fetch_add(u64::from(vain.count_ones()), Ordering::Relaxed);
        let mut left = 0;
        if done.failed != 0 {
            let skips = if done.error == Some(DeviceError::Incompressible) {
                SKIPS
            } else {
                1
            };
            let regions = self.regions();
            // A region that is gone has no use for its pages: the next turn drops them.
            let region = regions.iter().find(|candidate| candidate.number == region);
            let back = region.map_or(0, |region| {
                self.swap
                    .put_back(&region.mm, chunk, frames, done.failed, skips)
            });
            self.budget.force(u64::from(back.count_ones()));
            left = done.failed & !back;
        }
        if left == 0 {
            self.swap.frames().release(frames, 1);
        } else {
            // Shared pages that could not be written: they stay here, where every holder finds them.
            self.queue(
                region,
                chunk,
                Staged {
                    block: frames,
                    mask: left,
                },
            );
        }
        self.writing.fetch_sub(1, Ordering::Relaxed);
        (mask & !done.failed).count_ones() as usize
    }

    /// Writes out the oldest staged block, if there is one.
    pub(crate) fn write_out_oldest(&self) -> bool {
        let oldest = self.inactive().blocks.pop_front();
        oldest.map(|block| self.write_out(block)).is_some()
    }

    /// Writes out what is staged beyond the inactive list's target.
    pub(crate) fn trim_inactive(&self) {
        let too_many = || {
            let inactive = self.inactive();
            inactive.blocks.len() > inactive.target
        };
        while too_many() && self.write_out_oldest() {}
    }

    /// Writes out everything that is staged now.
    pub(crate) fn write_out_all(&self) {
        // Bounded: blocks that cannot be written come back to the end of the list.
        let blocks = self.inactive().blocks.len();
        for _ in 0..blocks {
            self.write_out_oldest();
        }
    }

    /// Writes out what is staged from `chunk` of a region. Returns how many pages left memory.
    pub(crate) fn write_out_chunk(&self, region: u64, chunk: usize) -> usize {
        self.write_out_those(|block| block.region == region && block.chunk == chunk)
    }

    /// Writes out what is staged from a region, or drops it if the region is gone.
    pub(crate) fn write_out_region(&self, region: u64) {
        self.write_out_those(|block| block.region == region);
    }

    fn write_out_those(&self, mut wanted: impl FnMut(&InactiveBlock) -> bool) -> usize {
        let mut done = 0;
        // Each block once: one that cannot be written comes back to the end of the list.
        let blocks = self.inactive().blocks.len();
        for _ in 0..blocks {
            let block = {
                let mut inactive = self.inactive();
                // The latest is the likeliest.
                let at = inactive.blocks.iter().rposition(&mut wanted);
                at.and_then(|at| inactive.blocks.remove(at))
            };
            let Some(block) = block else { break };
            done += self.write_out(block);
        }
        done
    }

    /// The reclaimer thread: keeps memory free between the marks, so that faults seldom have to.
    pub(crate) fn run_reclaimer(&self) {
        while self.reclaimer.wait() {
            while self.budget.level(self.used_bytes()) != Level::Roomy {
                match self.reclaim_step() {
                    Step::Worked => {}
                    Step::InVain | Step::OthersAtWork | Step::Nothing => break,
                }
            }
            self.budget.made_room(self.used_bytes());
        }
    }
}

/// The pages of `chunk` that are in `pages`, as a mask.
pub(crate) fn chunk_mask(pages: &std::ops::Range<usize>, chunk: usize) -> u64 {
    let first = chunk * CHUNK_PAGES;
    let start = pages.start.clamp(first, first + CHUNK_PAGES) - first;
    let end = pages.end.clamp(first, first + CHUNK_PAGES) - first;
    userswap_core::mask::run(start, end - start)
}
