//! Sealed pages on their way to a file, gathered so that they are written many at a time, one behind the other.
//!
//! A segment is memory for as many pages as a cluster has blocks. Its *places* are handed out one by one, each filled by
//! whoever got it; who fills the last one writes the segment. Its pages can be read here until they can be read from the
//! file: what could not be written stays, and is tried again.
//!
//! | a segment is | and becomes |
//! |---|---|
//! | free | open, with blocks to go to |
//! | open | full, when its last place is handed out |
//! | full: filled, or being written | free, or failed |
//! | failed | full, when it is tried again |
//! | kept, in a child of fork: its parent writes it | |

use std::sync::atomic::{
    AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed},
};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use userswap_core::device::{DeviceError, PAGE_SIZE, PageBytes};

use super::blocks::CLUSTER;
use crate::arena::Mapping;

/// How many there are: one being filled, one being written, and two for who comes meanwhile.
pub(super) const SEGMENTS: usize = 4;

const SEGMENT_BYTES: usize = CLUSTER * PAGE_SIZE;

/// In a place that stayed empty.
pub(super) const NOBODY: u64 = u64::MAX;

/// A place in a segment, of whoever got it.
#[derive(Debug)]
#[must_use = "a place that is not finished keeps its segment from being written"]
pub(crate) struct Place {
    pub(super) segment: usize,
    pub(super) index: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Free,
    Open,
    Full,
    Failed(DeviceError),
    Kept,
}

pub(super) struct State {
    kinds: [Kind; SEGMENTS],
    open: Option<usize>,
    /// Places of the open segment that were handed out.
    taken: u32,
}

impl State {
    /// The first segment that `is`.
    pub(super) fn find(&self, is: impl Fn(Kind) -> bool) -> Option<usize> {
        self.kinds.iter().position(|&kind| is(kind))
    }

    pub(super) fn set(&mut self, segment: usize, kind: Kind) {
        self.kinds[segment] = kind;
    }
}

/// What belongs to a segment's places. Changed by who opens it and who fills a place; read by who writes it, after the
/// last place was counted.
struct Row {
    home: AtomicUsize,
    places: AtomicU32,
    filled: AtomicU32,
    blocks: [AtomicU32; CLUSTER],
    slots: [AtomicU64; CLUSTER],
}

pub(super) struct Segments {
    memory: Mapping,
    rows: [Row; SEGMENTS],
    state: Mutex<State>,
    freed: Condvar,
    /// Segments that were ever used: those that take memory.
    most: AtomicUsize,
}

impl Segments {
    pub(super) fn new() -> Result<Self, DeviceError> {
        Ok(Self {
            memory: Mapping::new(SEGMENTS * SEGMENT_BYTES)?,
            rows: [const {
                Row {
                    home: AtomicUsize::new(0),
                    places: AtomicU32::new(0),
                    filled: AtomicU32::new(0),
                    blocks: [const { AtomicU32::new(0) }; CLUSTER],
                    slots: [const { AtomicU64::new(NOBODY) }; CLUSTER],
                }
            }; SEGMENTS],
            state: Mutex::new(State {
                kinds: [Kind::Free; SEGMENTS],
                open: None,
                taken: 0,
            }),
            freed: Condvar::new(),
            most: AtomicUsize::new(0),
        })
    }

    pub(super) fn resident_bytes(&self) -> u64 {
        (self.most.load(Relaxed) * SEGMENT_BYTES) as u64
    }

    /// Gives the memory of free segments back.
    pub(super) fn release_free(&self) {
        let state = self.state();
        for segment in 0..SEGMENTS {
            if state.kinds[segment] == Kind::Free {
                // SAFETY: no word leads to a place of a free segment, and none is handed out before the segment is opened,
                // which takes the lock that we hold.
                unsafe { self.memory.release(offset(segment, 0), SEGMENT_BYTES) };
            }
        }
        if state.find(|kind| kind != Kind::Free).is_none() {
            self.most.store(0, Relaxed);
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in a critical section panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a segment has been written, or was tried.
    pub(super) fn wait(&self, state: MutexGuard<'_, State>) {
        // The bound is for a wake-up that went to somebody who did not need it.
        drop(self.freed.wait_timeout(state, Duration::from_millis(20)));
    }

    pub(super) fn notify(&self) {
        self.freed.notify_all();
    }

    /// The next place of the open segment, if there is one.
    pub(super) fn next_place(&self, state: &mut State) -> Option<Place> {
        let segment = state.open?;
        let index = state.taken;
        state.taken += 1;
        if state.taken == self.rows[segment].places.load(Relaxed) {
            state.kinds[segment] = Kind::Full;
            state.open = None;
        }
        Some(Place {
            segment,
            index: index as usize,
        })
    }

    /// Opens a free segment for `blocks` of `home`, at least one.
    pub(super) fn open(&self, state: &mut State, segment: usize, home: usize, blocks: &[u32]) {
        debug_assert!(state.open.is_none() && !blocks.is_empty());
        let row = &self.rows[segment];
        row.home.store(home, Relaxed);
        row.places.store(blocks.len() as u32, Relaxed);
        row.filled.store(0, Relaxed);
        for (place, &block) in row.blocks.iter().zip(blocks) {
            place.store(block, Relaxed);
        }
        for slot in &row.slots {
            slot.store(NOBODY, Relaxed);
        }
        state.kinds[segment] = Kind::Open;
        state.open = Some(segment);
        state.taken = 0;
        self.most.fetch_max(segment + 1, Relaxed);
    }

    /// Ends the open segment, if there is one, with the places it has handed out, which are all filled: nobody else
    /// uses this. Returns it, and the blocks it does not need.
    pub(super) fn end_open(&self, state: &mut State) -> Option<(usize, [Option<u32>; CLUSTER])> {
        let segment = state.open.take()?;
        let (row, taken) = (&self.rows[segment], state.taken as usize);
        let places = row.places.swap(state.taken, Relaxed) as usize;
        state.kinds[segment] = if taken == 0 { Kind::Free } else { Kind::Full };
        let unused = std::array::from_fn(|index| {
            (taken..places)
                .contains(&index)
                .then(|| row.blocks[index].load(Relaxed))
        });
        Some((segment, unused))
    }

    pub(super) fn home(&self, segment: usize) -> usize {
        self.rows[segment].home.load(Relaxed)
    }

    /// The memory of a place that the caller has not finished yet.
    pub(super) fn page<'a>(&'a self, place: &'a mut Place) -> &'a mut PageBytes {
        // SAFETY: a place is handed out once, is not copied, and nobody else looks at its memory before its slot's
        // word leads there; this one borrows it.
        unsafe { self.memory.page_mut(offset(place.segment, place.index)) }
    }

    /// Copies the page of a place out. The caller holds the lock of a slot whose word leads there.
    pub(super) fn copy(&self, segment: usize, index: usize, page: &mut PageBytes) {
        // SAFETY: a word that leads to a place is put there after the place was filled; the segment is used again only
        // after every such word was changed, under its lock.
        page.copy_from_slice(unsafe { self.memory.bytes(offset(segment, index), PAGE_SIZE) });
    }

    /// The caller has filled `place` for `slot`.
    pub(super) fn note(&self, place: &Place, slot: u64) {
        self.rows[place.segment].slots[place.index].store(slot, Relaxed);
    }

    /// Counts a place as filled. `true`: it was the last, and the caller writes the segment.
    pub(super) fn is_last(&self, place: Place) -> bool {
        let row = &self.rows[place.segment];
        // AcqRel: who writes the segment sees what every place's owner put there.
        row.filled.fetch_add(1, AcqRel) + 1 == row.places.load(Relaxed)
    }

    /// A full segment that is the caller's to write: its blocks, how many, and its bytes.
    pub(super) fn content(&self, segment: usize) -> ([u32; CLUSTER], usize, &[u8]) {
        let row = &self.rows[segment];
        // Acquire: as in `is_last`, where somebody else tried to write it before.
        row.filled.load(Acquire);
        let places = row.places.load(Relaxed) as usize;
        let blocks = std::array::from_fn(|index| row.blocks[index].load(Relaxed));
        // SAFETY: all places are filled, and are not filled again before the segment has been written.
        let bytes = unsafe { self.memory.bytes(offset(segment, 0), places * PAGE_SIZE) };
        (blocks, places, bytes)
    }

    /// The slot whose page was put in a place; [`NOBODY`]: none was.
    pub(super) fn slot(&self, segment: usize, index: usize) -> u64 {
        self.rows[segment].slots[index].load(Relaxed)
    }
}

fn offset(segment: usize, index: usize) -> usize {
    segment * SEGMENT_BYTES + index * PAGE_SIZE
}
