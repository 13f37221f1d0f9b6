//! Memory that calls back, to put steps of one thread between those of another.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use userswap_core::device::PageBytes;
use userswap_core::page_table::CHUNK_PAGES;
use userswap_core::soft::{SoftFrames, SoftSpace};
use userswap_core::space::{AddressSpace, Block, Frame, Frames, Purpose, SpaceError};
use userswap_core::{Mm, Swap};

pub(crate) type Hook = Mutex<Option<Box<dyn FnOnce() + Send>>>;

fn call(hook: &Hook) {
    let hook = hook.lock().expect("hook").take();
    if let Some(hook) = hook {
        hook();
    }
}

/// Software frames that call back once, before a block to read into is taken.
#[derive(Clone)]
pub(crate) struct HookedFrames {
    pub(crate) frames: Arc<SoftFrames>,
    pub(crate) before_take: Arc<Hook>,
}

impl Frames for HookedFrames {
    fn blocks(&self) -> usize {
        self.frames.blocks()
    }

    fn take(&self, purpose: Purpose) -> Option<Block> {
        if matches!(purpose, Purpose::Read(_)) {
            call(&self.before_take);
        }
        self.frames.take(purpose)
    }

    fn hold(&self, block: Block, holds: u32) {
        self.frames.hold(block, holds);
    }

    fn release(&self, block: Block, holds: u32) {
        self.frames.release(block, holds);
    }

    fn read<R>(&self, frame: Frame, read: impl FnOnce(&PageBytes) -> R) -> R {
        self.frames.read(frame, read)
    }

    fn fill<R>(&self, frame: Frame, fill: impl FnOnce(&mut PageBytes) -> R) -> R {
        self.frames.fill(frame, fill)
    }

    fn fill_all<R>(
        &self,
        block: Block,
        mask: u64,
        fill: impl FnOnce([Option<&mut PageBytes>; CHUNK_PAGES]) -> R,
    ) -> R {
        self.frames.fill_all(block, mask, fill)
    }
}

/// A software address space that calls back once, before a copy of a cached page is mapped, and
/// refuses to map the pages in a set.
pub(crate) struct HookedSpace {
    pub(crate) space: SoftSpace,
    pub(crate) before_copy: Hook,
    pub(crate) refused: AtomicU64,
    pub(crate) unmapped: AtomicU64,
}

impl HookedSpace {
    fn allowed(&self, page: usize, count: usize) -> Result<(), usize> {
        let refused = self.refused.load(Ordering::SeqCst) >> page;
        let free = refused.trailing_zeros() as usize;
        if free < count { Err(free) } else { Ok(()) }
    }
}

impl AddressSpace for HookedSpace {
    type Frames = HookedFrames;

    fn unmap(&self, page: usize, frame: Frame, count: usize) -> usize {
        self.unmapped.fetch_add(1, Ordering::SeqCst);
        self.space.unmap(page, frame, count)
    }

    fn map(&self, page: usize, frame: Frame, count: usize) -> Result<(), (usize, SpaceError)> {
        let allowed = self.allowed(page, count);
        self.space
            .map(page, frame, allowed.err().unwrap_or(count))?;
        allowed.map_err(|free| (free, SpaceError::Refused(17)))
    }

    fn map_copy(&self, page: usize, frame: Frame) -> Result<(), SpaceError> {
        call(&self.before_copy);
        self.space.map_copy(page, frame)
    }

    fn map_copy_of(&self, other: &Self, page: usize) -> Result<(), SpaceError> {
        self.space.map_copy_of(&other.space, page)
    }

    fn map_zeros(&self, page: usize, count: usize, write: bool) -> Result<(), (usize, SpaceError)> {
        let allowed = self.allowed(page, count);
        self.space
            .map_zeros(page, allowed.err().unwrap_or(count), write)?;
        allowed.map_err(|free| (free, SpaceError::Refused(17)))
    }

    fn discard(&self, page: usize, count: usize) -> bool {
        self.space.discard(page, count)
    }
}

/// A hooked address space for `swap`.
pub(crate) fn space(swap: &Swap<HookedFrames>, pages: usize, around: usize) -> Mm<HookedSpace> {
    let space = HookedSpace {
        space: SoftSpace::new(Arc::clone(&swap.frames().frames), pages),
        before_copy: Hook::default(),
        refused: AtomicU64::new(0),
        unmapped: AtomicU64::new(0),
    };
    Mm::new(space, pages, Some(around))
}

/// Hooked frames.
pub(crate) fn frames() -> HookedFrames {
    HookedFrames {
        frames: Arc::new(SoftFrames::new(8)),
        before_take: Arc::default(),
    }
}
