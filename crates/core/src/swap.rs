//! The swap subsystem: areas, frames, cache and waiters together, and the address spaces over them.
//!
//! **Lock order**, outermost first. A thread that holds one takes only locks further down:
//!
//! 1. a cached page's lock ([`crate::cache`])
//! 2. a chunk's lock, the PTE lock ([`crate::page_table`]); of two, the parent's before the child's.
//!    Under it page locks are only *tried*, or taken on frames no entry leads to yet.
//! 3. a shard of the slot allocator, then its lists ([`crate::cluster`])
//! 4. whatever a device or the frame pool locks inside itself
//!
//! Waiting on an entry ([`crate::waiters`]) happens with none of them held, and so does device I/O,
//! except that its caller owns the cache flags of the slots concerned.

use std::sync::{Arc, OnceLock};

use crate::area::SwapArea;
use crate::around::Around;
use crate::cache::SwapCache;
use crate::device::{Device, DeviceError};
use crate::entry::{MAX_AREAS, SwapEntry};
use crate::page_table::{PageTable, PteState};
use crate::rule::Kept;
use crate::space::{AddressSpace, Frames, SpaceError};
use crate::waiters::Waiters;

/// The three ways in (section 4 of the protocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Way {
    /// Read into a private page with the slot pinned. Shared slots and asynchronous devices go
    /// through the cache all the same.
    #[default]
    Direct,
    /// Always through the swap cache.
    Cached,
    /// Direct without the pin. **Loses data**: exists to show that it does.
    Unpinned,
}

/// An address space as the protocol sees it: page-table words and the memory behind them.
pub struct Mm<S> {
    /// The page-table words.
    pub table: PageTable,
    /// The memory.
    pub space: S,
    pub(crate) around: Arc<Around>,
}

impl<S: AddressSpace> Mm<S> {
    /// An address space of `pages` pages, none of them written yet. `fault_around`: how many pages a
    /// fault brings in, or `None` to adapt.
    pub fn new(space: S, pages: usize, fault_around: Option<usize>) -> Self {
        Self::with(space, pages, Arc::new(Around::new(fault_around)))
    }

    /// As [`Self::new`], for another part of the same memory as `other`: what is learned in one, whether neighbours of faulting
    /// pages are used, holds in both.
    pub fn beside(other: &Self, space: S, pages: usize) -> Self {
        Self::with(space, pages, Arc::clone(&other.around))
    }

    fn with(space: S, pages: usize, around: Arc<Around>) -> Self {
        Self {
            table: PageTable::new(pages),
            space,
            around,
        }
    }

    /// Memory holds `pages` pages now: neighbours of faulting pages are worth bringing in where they are used before a part of
    /// that has come in.
    pub fn note_room(&self, pages: usize) {
        self.around.note_room(pages);
    }

    /// Sequential access is coming.
    pub fn expect_sequential(&self) {
        self.around.widen();
    }

    /// Random access is coming.
    pub fn expect_random(&self) {
        self.around.narrow();
    }
}

/// Why a fault could not be resolved. The page-table word is as before: nothing is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// The device could not read the page.
    #[error("reading swap entry {entry} failed: {error}")]
    Read {
        /// Where the page is.
        entry: SwapEntry,
        /// What the device said.
        error: DeviceError,
    },
    /// The page could not be mapped.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// No frame is free; some are in use by other faults and will come free.
    #[error("no frame is free")]
    NoFrames,
}

/// Where a fault finds its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It is mapped already.
    Present,
    /// Nowhere: it has not been written yet.
    Fresh,
    /// In the swap cache: it has not left memory.
    Staged,
    /// In a device only.
    Device,
}

impl Source {
    /// Whether the page was swapped out, and has its contents from there.
    #[must_use]
    pub fn is_swapped(self) -> bool {
        matches!(self, Self::Staged | Self::Device)
    }
}

/// The swap subsystem.
pub struct Swap<F> {
    areas: [OnceLock<SwapArea>; MAX_AREAS],
    frames: F,
    pub(crate) cache: SwapCache,
    pub(crate) waiters: Waiters,
    way: Way,
    pub(crate) kept: Kept,
}

impl<F: Frames> Swap<F> {
    /// A subsystem without areas.
    pub fn new(frames: F, way: Way) -> Self {
        Self::keeping(frames, way, Kept::default())
    }

    /// A subsystem without areas that breaks the protocol where `rules` says so. **Loses data.**
    #[cfg(feature = "break-rules")]
    pub fn with_rules(frames: F, way: Way, rules: crate::rule::Rules) -> Self {
        Self::keeping(frames, way, Kept::by(rules))
    }

    pub(crate) fn keeping(frames: F, way: Way, kept: Kept) -> Self {
        let cache = SwapCache::new(frames.blocks(), kept);
        Self {
            areas: [const { OnceLock::new() }; MAX_AREAS],
            frames,
            cache,
            waiters: Waiters::new(kept),
            way,
            kept,
        }
    }

    /// swapon: adds an area on `device`, of priority 0. `None`: all numbers are taken; they are not used again.
    pub fn add_area(&self, device: Box<dyn Device>) -> Option<&SwapArea> {
        self.add_area_at(device, 0)
    }

    /// [`Swap::add_area`] with a priority: slots come from the area of the highest that has any, and among equals from
    /// the one that was added first.
    pub fn add_area_at(&self, device: Box<dyn Device>, priority: i32) -> Option<&SwapArea> {
        let mut device = Some(device);
        self.areas.iter().enumerate().find_map(|(number, area)| {
            if area.get().is_some() {
                return None;
            }
            let area = area.get_or_init(|| {
                let device = device.take().expect("used once");
                SwapArea::keeping(number, device, priority, self.kept)
            });
            // Somebody else's swapon may have come first.
            device.is_none().then_some(area)
        })
    }

    /// The areas there are or were; those that were are empty.
    pub fn areas(&self) -> impl Iterator<Item = &SwapArea> {
        self.areas.iter().map_while(OnceLock::get)
    }

    /// The areas there are: those that swapoff has not closed.
    pub fn open_areas(&self) -> impl Iterator<Item = &SwapArea> {
        self.areas().filter(|area| !area.gate().is_closed())
    }

    /// The area with this number, if there is or was one.
    #[must_use]
    pub fn area_number(&self, number: usize) -> Option<&SwapArea> {
        self.areas.get(number)?.get()
    }

    /// The frame pool.
    pub fn frames(&self) -> &F {
        &self.frames
    }

    /// The way in that was chosen.
    #[must_use]
    pub fn way(&self) -> Way {
        self.way
    }

    /// Bytes the tables over the frames take when every frame is in use.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.cache.memory_bytes()
    }

    /// The state of a frame's page, for a test that compares it: its entry, and whether it is locked, being
    /// written, dirty.
    #[cfg(feature = "steps")]
    pub fn page_state(&self, frame: crate::space::Frame) -> (Option<SwapEntry>, [bool; 3]) {
        let cache = &self.cache;
        let bits = [
            cache.is_locked(frame),
            cache.is_writeback(frame),
            cache.is_dirty(frame),
        ];
        (cache.owner(frame), bits)
    }

    pub(crate) fn area(&self, entry: SwapEntry) -> Option<&SwapArea> {
        self.areas[entry.area()].get()
    }

    /// Where a fault would find `page` now: a hint, as it may be elsewhere by then.
    pub fn source<S: AddressSpace<Frames = F>>(&self, mm: &Mm<S>, page: usize) -> Source {
        match mm.table.load(page).state() {
            PteState::Present => Source::Present,
            PteState::None => Source::Fresh,
            PteState::Swapped(entry) => {
                let area = self.area(entry);
                match area.and_then(|area| area.cache.lookup(entry.offset())) {
                    Some(_) => Source::Staged,
                    None => Source::Device,
                }
            }
        }
    }

    /// How many pages a fault on `page` may bring in now: a hint.
    pub fn fault_around<S: AddressSpace<Frames = F>>(&self, mm: &Mm<S>, page: usize) -> usize {
        match self.source(mm, page) {
            Source::Present => 1,
            Source::Fresh => mm.around.most_fresh(page),
            Source::Staged => mm.around.most_back(),
            Source::Device => mm.around.most_read(),
        }
    }

    /// The area of an entry that was found in a PTE.
    pub(crate) fn area_of(&self, entry: SwapEntry) -> &SwapArea {
        self.area(entry).expect("an entry in a PTE names an area")
    }
}
