//! The clock hand: it goes round the chunks of all regions, and stages what is present and not passed over.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use userswap_core::StageError;
use userswap_core::page_table::CHUNK_PAGES;

use crate::cyclic::{Arrival, HAND_EVERY};
use crate::shared::{RegionMemory, Shared};
use crate::spec::Policy;

/// How often a page that did not compress is passed over.
pub(crate) const SKIPS: u64 = 15;

/// One chunk in so many may be one that other processes share since a fork, as long as there are others. To take it out it is
/// copied first: that gains little, or nothing where several share it. But what is shared and not used must not stay for ever.
const UNSHARE_EVERY: u32 = 8;

/// Where the clock hand is.
#[derive(Debug, Default)]
pub(crate) struct Hand {
    region: usize,
    chunk: usize,
    /// What the next random place follows from.
    seed: u64,
}

impl Hand {
    /// Goes to a random chunk that may have a present page, if a few hundred tries find one.
    fn jump(&mut self, regions: &[Arc<RegionMemory>]) {
        const TRIES: usize = 500;
        for _ in 0..TRIES {
            // A linear congruential generator: its upper bits are good enough.
            self.seed = self
                .seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let random = (self.seed >> 33) as usize;
            let region = random % regions.len().max(1);
            let Some(table) = regions.get(region).map(|region| &region.mm.table) else {
                return;
            };
            let chunk = random / regions.len() % table.chunks().max(1);
            if table.next_occupied(chunk) == Some(chunk) {
                (self.region, self.chunk) = (region, chunk);
                return;
            }
        }
    }
}

impl Shared {
    /// Chunks of all regions that may have something in memory.
    pub(crate) fn occupied(&self) -> usize {
        let regions = self.regions();
        let tables = regions.iter().map(|region| &region.mm.table);
        tables.map(|table| table.occupied()).sum()
    }

    /// Stages the next chunk that has something to stage. `false`: none has, or there is no room.
    pub(crate) fn stage_next(&self) -> bool {
        // Relaxed: only how often matters.
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        if self.cyclic.is_on()
            && let Some(is_staged) = self.stage_arrival(turn)
        {
            return is_staged;
        }
        let unshares = turn.is_multiple_of(UNSHARE_EVERY);
        // Once round: pages that are passed over now may be asked the next time.
        self.stage_one(unshares).unwrap_or_else(|| {
            // But for those that would have to be copied first.
            !unshares && self.uffd.guards() && self.stage_one(true) == Some(true)
        })
    }

    /// Stages what has come in first of what came in last; as [`Self::stage_one`]. `None`, too, where it is the clock hand's turn:
    /// then what would have left stays.
    fn stage_arrival(&self, turn: u32) -> Option<bool> {
        let room = self.room_pages();
        while let Some(Arrival {
            region,
            chunk,
            pages,
        }) = self.cyclic.next(room)
        {
            if turn.is_multiple_of(HAND_EVERY) {
                return None;
            }
            let regions = self.regions();
            let region = regions.iter().find(|listed| listed.number == region);
            let staged = region.and_then(|region| {
                let pages = pages & self.swap.present(&region.mm, chunk);
                self.stage_of(region, chunk, pages, false)
            });
            if staged.is_some() {
                return staged;
            }
        }
        None
    }

    /// Stages the next chunk, once round; `Some(false)`: there is no room, `None`: there is none. `unshares`: also one that other
    /// processes share.
    fn stage_one(&self, unshares: bool) -> Option<bool> {
        let occupied = self.occupied();
        let regions = self.regions();
        for _ in 0..occupied {
            let (region, chunk) = self.advance(&regions)?;
            let present = self.swap.present(&region.mm, chunk);
            if present == 0 {
                region.mm.table.note_empty(chunk);
                continue;
            }
            let staged = self.stage_of(region, chunk, present, unshares);
            if staged.is_some() {
                return staged;
            }
        }
        None
    }

    /// Stages what may leave of the `present` pages of a chunk; `None`: nothing may.
    fn stage_of(
        &self,
        region: &RegionMemory,
        chunk: usize,
        present: u64,
        unshares: bool,
    ) -> Option<bool> {
        let wanted = self.swap.pass_over(&region.mm, chunk, present);
        let wanted = if region.mm.space.is_guarded(chunk) {
            let wanted = if unshares { present } else { wanted };
            self.of_guarded(region, chunk, wanted, unshares)
        } else {
            wanted
        };
        if wanted == 0 {
            return None;
        }
        let staged = self.stage(region, chunk, wanted);
        // What would not go, since the system uses it, is not asked again at once.
        let refused = wanted & self.swap.present(&region.mm, chunk);
        if refused != 0 && staged != Err(StageError::AreaFull) {
            self.swap.leave_alone(&region.mm, chunk, refused, SKIPS);
        }
        match staged {
            Ok(_) => Some(true),
            Err(StageError::NothingToDo) => None,
            Err(StageError::AreaFull | StageError::NoFrames) => Some(false),
        }
    }

    /// What of the `wanted` pages of a guarded chunk may leave: all, if `unshares`, or those that nobody else has any more, where
    /// they are most of them.
    fn of_guarded(&self, region: &RegionMemory, chunk: usize, wanted: u64, unshares: bool) -> u64 {
        let own = if unshares || wanted == 0 {
            wanted
        } else {
            let own = self.own_pages(region.mm.space.address(chunk * CHUNK_PAGES));
            wanted & own.unwrap_or(u64::MAX)
        };
        let shared = wanted & !own;
        if shared != 0 {
            self.swap.leave_alone(&region.mm, chunk, shared, SKIPS);
        }
        if own.count_ones() <= shared.count_ones() {
            return 0;
        }
        if region.mm.space.unguard(chunk) {
            own
        } else {
            0
        }
    }

    /// Moves the hand on and returns where it was.
    fn advance<'a>(
        &self,
        regions: &'a [Arc<RegionMemory>],
    ) -> Option<(&'a Arc<RegionMemory>, usize)> {
        let mut hand = self.hand.lock().unwrap_or_else(PoisonError::into_inner);
        if self.policy == Policy::Random {
            hand.jump(regions);
        }
        // Every region once, and the first one from its start.
        for _ in 0..=regions.len() {
            if hand.region >= regions.len() {
                (hand.region, hand.chunk) = (0, 0);
            }
            let region = regions.get(hand.region)?;
            if let Some(chunk) = region.mm.table.next_occupied(hand.chunk) {
                hand.chunk = chunk + 1;
                return Some((region, chunk));
            }
            (hand.region, hand.chunk) = (hand.region + 1, 0);
        }
        None
    }
}
