//! Making room: which pages leave memory, and when.
//!
//! The clock hand ([`crate::hand`]) stages what is present. Staged blocks queue
//! up as the inactive list; a page that is touched there goes back for the price of a move. When the
//! list is as long as it should be, its oldest block is written out and its frames come free.
//!
//! Room is made by the reclaimer thread, between the marks of the budget, and by whoever needs it
//! when it is used up: a thread that faults then writes pages out itself before it takes one in.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use userswap_core::device::{DeviceError, PAGE_SIZE};
use userswap_core::page_table::CHUNK_PAGES;
use userswap_core::space::Frames;
use userswap_core::{StageError, Staged};
use userswap_sys::inject;
use userswap_sys::signals::stderr_line;
use userswap_sys::timing::now_ns;

use crate::budget::Level;
use crate::density::Use;
use crate::effort::Step;
use crate::engine::blocks_for;
use crate::hand::SKIPS;
use crate::moving::Moving;
use crate::shared::{RegionMemory, Shared};
use crate::spec::Policy;

/// Pieces of other work between steps that gain nothing.
const PIECES: usize = 16;

/// After one part in so many of what memory holds has left the inactive list, it is looked at anew what is better.
const DENSITY_PERIOD: u64 = 4;

/// Bytes of holes in the store that are not worth moving anything for.
const COMPACT_FROM: u64 = 1 << 20;

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
    /// How long the list should be under a limit, in blocks.
    pub(crate) fn target_for(limit: Option<u64>) -> usize {
        (blocks_for(limit) / 16).clamp(1, 1024)
    }

    fn is_long(&self) -> bool {
        self.blocks.len() >= self.target
    }

    pub(crate) fn new(capacity: usize, target: usize) -> Self {
        Self {
            blocks: VecDeque::with_capacity(capacity),
            target,
        }
    }
}

/// A thread making room; it is not when this is dropped.
struct Working<'a>(&'a AtomicUsize);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    fn inactive(&self) -> MutexGuard<'_, Inactive> {
        self.inactive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The list of pages that may leave is as long as `limit` wants it from now on.
    pub(crate) fn fit_inactive(&self, limit: u64) {
        if self.policy == Policy::Recency {
            let mut inactive = self.inactive();
            let most = inactive.blocks.capacity() / 2;
            inactive.target = Inactive::target_for(Some(limit)).min(most.max(1));
        }
    }

    /// Does a bounded piece of work towards free memory.
    pub(crate) fn reclaim_step(&self) -> Step {
        // Announced first: whoever finds nothing to do meanwhile knows that somebody is at it. The bound:
        // a block being written takes memory in the store before its frames come free.
        let Some(_working) = self.start_work() else {
            return Step::OthersAtWork;
        };
        let was_long = self.inactive().is_long();
        let staged = !was_long && self.stage_next();
        let (oldest, is_long) = {
            let mut inactive = self.inactive();
            let is_long = inactive.is_long();
            let take = is_long || !staged;
            let oldest = take.then(|| inactive.blocks.pop_front()).flatten();
            (oldest, is_long)
        };
        match oldest {
            Some(block) if self.write_out(block) == 0 => Step::InVain,
            Some(_) if !was_long && !staged => Step::Barren,
            Some(_) => Step::Worked,
            None if staged || is_long => Step::Worked,
            None if self.working.load(Ordering::Relaxed) > 1 => Step::OthersAtWork,
            None => Step::Nothing,
        }
    }

    fn start_work(&self) -> Option<Working<'_>> {
        let working = Working(&self.working);
        // Relaxed: a hint to others, and a bound that one more or less does not hurt.
        let before = self.working.fetch_add(1, Ordering::Relaxed);
        // What they have in hand stays within a fortieth of the limit.
        let fit = blocks_for(self.budget.limit()) / 40;
        (before < fit.clamp(1, self.most_working)).then_some(working)
    }

    /// Stages pages of a chunk onto the inactive list.
    pub(crate) fn stage(
        &self,
        region: &RegionMemory,
        chunk: usize,
        wanted: u64,
    ) -> Result<usize, StageError> {
        debug_assert!(!region.mm.space.is_window() || Moving::is_mover());
        let staged = self.swap.stage(&region.mm, chunk, wanted)?;
        self.budget.uncharge(u64::from(staged.mask.count_ones()));
        let left = self.counters.pages_out.load(Ordering::Relaxed);
        region.departures.note(chunk, staged.mask, left);
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
        let vain = mask & !done.written & !done.failed & !done.dropped;
        self.counters
            .refaults
            .fetch_add(u64::from(vain.count_ones()), Ordering::Relaxed);
        self.note_density(vain.count_ones().into(), written as u64);
        let mut left = 0;
        if let Some(error) = done.error
            && error != DeviceError::Incompressible
            && !self.warned_write.swap(true, Ordering::Relaxed)
        {
            let area = self.swap.area_number(done.failed_area);
            stderr_line(format_args!(
                "userswap: pages cannot be written to {}: {error}; they stay in memory",
                area.map_or("the device", |area| area.device().name())
            ));
        }
        if done.failed != 0 {
            let skips = if done.error == Some(DeviceError::Incompressible) {
                SKIPS
            } else {
                1
            };
            // Every region that holds one of the pages takes it back; one that is gone has no use for it,
            // and the next turn drops it.
            for holder in self.regions().iter() {
                if chunk >= holder.mm.table.chunks() {
                    continue;
                }
                // Counted before they are mapped: they can be dropped, and uncounted, as soon as they are.
                let most = u64::from(done.failed.count_ones());
                self.budget.force(most);
                let back = self
                    .swap
                    .put_back(&holder.mm, chunk, frames, done.failed, skips);
                self.budget.uncharge(most - u64::from(back.count_ones()));
            }
            left = self.swap.still_staged(frames, done.failed);
        }
        if left == 0 {
            self.swap.frames().release(frames, 1);
        } else {
            // Somebody is working on them, or cannot take them now: they stay here, where he finds them.
            self.queue(
                region,
                chunk,
                Staged {
                    block: frames,
                    mask: left,
                },
            );
        }
        (mask & !done.failed).count_ones() as usize
    }

    /// Pages left the inactive list. The devices hear of it where that shows them better stored otherwise.
    fn note_density(&self, touched: u64, written: u64) {
        let Some(limit) = self.budget.limit() else {
            return;
        };
        let period = limit / PAGE_SIZE as u64 / DENSITY_PERIOD;
        let used = Use {
            store: self.store_bytes(),
            inactive: self.swap.frames().staged_bytes(),
        };
        if let Some(small) = self.density.note(touched, written, period, used) {
            for area in self.swap.open_areas() {
                area.device().prefer_small(small);
            }
        }
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
        // Bounded: blocks that cannot be written come back to the end of the list.
        let blocks = self.inactive().blocks.len();
        for _ in 0..blocks {
            if !too_many() || !self.write_out_oldest() {
                break;
            }
        }
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
        self.write_out_those(|_, block| block.region == region && block.chunk == chunk)
    }

    /// Gives back what is staged from a region that is gone, this one or an earlier one: pages that nobody
    /// shares are dropped, the others written.
    pub(crate) fn write_out_region(&self, region: u64) {
        self.write_out_those(|regions, block| {
            block.region == region || regions.iter().all(|other| other.number != block.region)
        });
    }

    fn write_out_those(
        &self,
        wanted: impl Fn(&[Arc<RegionMemory>], &InactiveBlock) -> bool,
    ) -> usize {
        let mut done = 0;
        let count = {
            let (regions, inactive) = (self.regions(), self.inactive());
            let those = inactive.blocks.iter();
            those.filter(|block| wanted(&regions, block)).count()
        };
        // Each block once: one that cannot be written comes back to the end of the list.
        for _ in 0..count {
            let block = {
                let (regions, mut inactive) = (self.regions(), self.inactive());
                let mut those = inactive.blocks.iter();
                let at = those.position(|block| wanted(&regions, block));
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
            inject::pass(inject::Thread::Reclaimer);
            // Room first, and again as soon as it is short: what nobody waits for may take long.
            while self.reclaim_until_roomy() && !self.reclaimer.is_stopped() && self.tend() {}
            let _inside = self.moving.enter();
            self.budget.ease(self.used_bytes(), now_ns());
            self.compact_store();
        }
    }

    /// Makes room up to the high mark; `false`: no more can be made now.
    fn reclaim_until_roomy(&self) -> bool {
        let is_roomy = || self.budget.level(self.other_bytes()) == Level::Roomy;
        while !is_roomy() {
            let step = {
                let _inside = self.moving.enter();
                self.reclaim_step()
            };
            // A store that grows passes pages on in the same measure.
            let tended = self.tend();
            match step {
                Step::Worked | Step::Barren => {}
                Step::OthersAtWork if tended => {}
                Step::InVain | Step::Nothing if tended => {
                    // What has just been in vain is not repeated after each piece.
                    let mut more = (1..PIECES).map(|_| self.tend());
                    while !is_roomy() && !self.reclaimer.is_stopped() && more.next() == Some(true) {
                    }
                }
                Step::InVain | Step::OthersAtWork | Step::Nothing => return false,
            }
            if self.reclaimer.is_stopped() {
                return false;
            }
        }
        true
    }

    /// Has the devices do a piece of what nobody waits for; `true`: there is more. Not in a signal handler.
    pub(crate) fn tend(&self) -> bool {
        // Piece by piece: a change of the address space may be waiting.
        let _inside = self.moving.enter();
        let tended = self.swap.open_areas().map(|area| {
            let reference = area.enter();
            reference.is_some() && area.device().tend()
        });
        tended.fold(false, |more, one| more | one)
    }

    /// Has the store give memory back if much of it holds nothing: pages that were freed here and there
    /// leave holes. Not in a signal handler.
    pub(crate) fn compact_store(&self) {
        for area in self.swap.open_areas() {
            let Some(_reference) = area.enter() else {
                continue;
            };
            let usage = area.device().usage();
            if usage.memory_bytes > usage.stored_bytes + usage.stored_bytes / 8 + COMPACT_FROM {
                area.device().compact();
            }
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
