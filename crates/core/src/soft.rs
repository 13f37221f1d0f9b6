//! Memory in software: pages are boxes in a table, an access that finds none faults.
//!
//! The protocol runs over it unchanged, on any platform, with every step under the test's control.

use std::sync::{Arc, PoisonError, TryLockError};

use crate::device::{PAGE_SIZE, PageBytes};
use crate::mask::bit;
use crate::page_table::CHUNK_PAGES;
use crate::space::{AddressSpace, Block, Frame, Frames, Purpose, SpaceError};
use crate::swap::{FaultError, Mm, Swap, Way};
use crate::swap_in::Access;
use crate::sync::{AtomicBool, AtomicU32, Mutex, Ordering, RwLock, yield_now};

/// What is in a frame whose page has been moved out: nothing anybody may see.
const USED_UP: u8 = 0xdd;

/// Frames in software.
#[derive(Debug)]
pub struct SoftFrames {
    /// Read by several at once: a fault copies a frame while the device writes it out.
    pages: Box<[RwLock<PageBytes>]>,
    holds: Box<[AtomicU32]>,
    /// While set, [`Frames::take`] finds nothing: an allocation failure.
    pub exhausted: AtomicBool,
}

impl SoftFrames {
    /// `blocks` blocks of frames.
    #[must_use]
    pub fn new(blocks: usize) -> Self {
        Self {
            pages: (0..blocks * CHUNK_PAGES)
                .map(|_| RwLock::new([0; PAGE_SIZE]))
                .collect(),
            holds: (0..blocks).map(|_| AtomicU32::new(0)).collect(),
            exhausted: AtomicBool::new(false),
        }
    }

    /// Blocks in use.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.holds
            .iter()
            .filter(|holds| holds.load(Ordering::SeqCst) > 0)
            .count()
    }

    fn get(&self, frame: Frame) -> PageBytes {
        *self
            .page(frame)
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, frame: Frame, bytes: &PageBytes) {
        *self
            .page(frame)
            .write()
            .unwrap_or_else(PoisonError::into_inner) = *bytes;
    }

    /// The page and what was in it part: nothing of it is left in the frame.
    fn use_up(&self, frame: Frame) -> PageBytes {
        let mut page = match self.page(frame).try_write() {
            Ok(page) => page,
            Err(TryLockError::Poisoned(page)) => page.into_inner(),
            Err(TryLockError::WouldBlock) => panic!("a frame is moved while it is read"),
        };
        std::mem::replace(&mut *page, [USED_UP; PAGE_SIZE])
    }

    fn page(&self, frame: Frame) -> &RwLock<PageBytes> {
        assert!(
            self.holds[frame.block as usize].load(Ordering::SeqCst) > 0,
            "a free frame is used"
        );
        &self.pages[frame.block as usize * CHUNK_PAGES + frame.index]
    }
}

impl Frames for SoftFrames {
    fn blocks(&self) -> usize {
        self.holds.len()
    }

    fn take(&self, _purpose: Purpose) -> Option<Block> {
        if self.exhausted.load(Ordering::SeqCst) {
            return None;
        }
        let free = |holds: &AtomicU32| {
            holds
                .compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        };
        self.holds.iter().position(free).map(|block| block as Block)
    }

    fn hold(&self, block: Block, holds: u32) {
        let before = self.holds[block as usize].fetch_add(holds, Ordering::SeqCst);
        assert!(before > 0, "a free block is held");
    }

    fn release(&self, block: Block, holds: u32) {
        let before = self.holds[block as usize].fetch_sub(holds, Ordering::SeqCst);
        assert!(before >= holds, "a block is released more often than held");
    }

    fn read<R>(&self, frame: Frame, read: impl FnOnce(&PageBytes) -> R) -> R {
        read(
            &self
                .page(frame)
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    fn fill<R>(&self, frame: Frame, fill: impl FnOnce(&mut PageBytes) -> R) -> R {
        fill(
            &mut self
                .page(frame)
                .write()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    fn fill_all<R>(
        &self,
        block: Block,
        mask: u64,
        fill: impl FnOnce([Option<&mut PageBytes>; CHUNK_PAGES]) -> R,
    ) -> R {
        let mut pages: [_; CHUNK_PAGES] = std::array::from_fn(|index| {
            (mask & bit(index) != 0).then(|| {
                self.page(Frame { block, index })
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
            })
        });
        fill(pages.each_mut().map(|page| page.as_deref_mut()))
    }
}

/// An address space in software.
#[derive(Debug)]
pub struct SoftSpace {
    frames: Arc<SoftFrames>,
    pages: Box<[Mutex<Option<Box<PageBytes>>>]>,
    /// While set, no page can leave: as if the system were using them all.
    pub busy: AtomicBool,
    /// While set, no page can be mapped: as if memory were used up.
    pub full: AtomicBool,
}

impl SoftSpace {
    /// An address space of `pages` pages, none present.
    #[must_use]
    pub fn new(frames: Arc<SoftFrames>, pages: usize) -> Self {
        Self {
            frames,
            pages: (0..pages).map(|_| Mutex::new(None)).collect(),
            busy: AtomicBool::new(false),
            full: AtomicBool::new(false),
        }
    }

    /// The page's content, if it is present.
    #[must_use]
    pub fn peek(&self, page: usize) -> Option<PageBytes> {
        self.pages[page].lock().as_deref().copied()
    }

    fn has_room(&self) -> Result<(), SpaceError> {
        let full = self.full.load(Ordering::SeqCst);
        if full {
            Err(SpaceError::NoMemory)
        } else {
            Ok(())
        }
    }

    fn put(&self, page: usize, bytes: PageBytes) -> Result<(), SpaceError> {
        self.has_room()?;
        let before = self.pages[page].lock().replace(Box::new(bytes));
        assert!(before.is_none(), "page {page} is mapped twice");
        Ok(())
    }
}

impl AddressSpace for SoftSpace {
    type Frames = Arc<SoftFrames>;

    fn unmap(&self, page: usize, frame: Frame, count: usize) -> usize {
        if self.busy.load(Ordering::SeqCst) {
            return 0;
        }
        for i in 0..count {
            let bytes = self.pages[page + i]
                .lock()
                .take()
                .expect("unmapping a page that is not there");
            let frame = Frame {
                index: frame.index + i,
                ..frame
            };
            self.frames.set(frame, &bytes);
        }
        count
    }

    fn map(&self, page: usize, frame: Frame, count: usize) -> Result<(), (usize, SpaceError)> {
        for i in 0..count {
            self.has_room().map_err(|error| (i, error))?;
            let bytes = self.frames.use_up(Frame {
                index: frame.index + i,
                ..frame
            });
            self.put(page + i, bytes).map_err(|error| (i, error))?;
        }
        Ok(())
    }

    fn map_copy(&self, page: usize, frame: Frame) -> Result<(), SpaceError> {
        let bytes = self.frames.get(frame);
        self.put(page, bytes)
    }

    fn map_copy_of(&self, other: &Self, page: usize) -> Result<(), SpaceError> {
        let bytes = other.pages[page]
            .lock()
            .as_deref()
            .copied()
            .expect("copying a page that is not there");
        self.put(page, bytes)
    }

    fn map_zeros(
        &self,
        page: usize,
        count: usize,
        _write: bool,
    ) -> Result<(), (usize, SpaceError)> {
        (0..count).try_for_each(|i| {
            self.put(page + i, [0; PAGE_SIZE])
                .map_err(|error| (i, error))
        })
    }

    fn discard(&self, page: usize, count: usize) -> bool {
        for page in &self.pages[page..page + count] {
            *page.lock() = None;
        }
        true
    }
}

/// A swap subsystem over software memory.
pub type SoftSwap = Swap<Arc<SoftFrames>>;

/// An address space over software memory.
pub type SoftMm = Mm<SoftSpace>;

/// A swap subsystem with `blocks` blocks of frames and no area yet.
#[must_use]
pub fn swap(blocks: usize, way: Way) -> SoftSwap {
    Swap::new(Arc::new(SoftFrames::new(blocks)), way)
}

/// The same, breaking the protocol where `rules` says so.
#[cfg(feature = "break-rules")]
#[must_use]
pub fn swap_with_rules(blocks: usize, way: Way, rules: crate::rule::Rules) -> SoftSwap {
    Swap::with_rules(Arc::new(SoftFrames::new(blocks)), way, rules)
}

/// An address space of `pages` pages for `swap`.
#[must_use]
pub fn mm(swap: &SoftSwap, pages: usize, fault_around: Option<usize>) -> SoftMm {
    Mm::new(
        SoftSpace::new(Arc::clone(swap.frames()), pages),
        pages,
        fault_around,
    )
}

/// Lets `access` see and change a page, faulting it in as often as it takes.
///
/// # Errors
/// The access gets what would be a SIGBUS.
pub fn access<R>(
    swap: &SoftSwap,
    mm: &SoftMm,
    page: usize,
    access: impl FnOnce(&mut PageBytes) -> R,
) -> Result<R, FaultError> {
    loop {
        if let Some(bytes) = mm.space.pages[page].lock().as_deref_mut() {
            return Ok(access(bytes));
        }
        match swap.fault(
            mm,
            Access {
                page,
                write: true,
                max_pages: CHUNK_PAGES,
                wait: true,
            },
        ) {
            Ok(_) => {}
            Err(FaultError::NoFrames) if !swap.frames().exhausted.load(Ordering::SeqCst) => {
                yield_now();
            }
            Err(error) => return Err(error),
        }
    }
}
