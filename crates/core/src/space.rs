//! What the protocol needs of memory: an address space whose pages come and go, and frames, which
//! hold a page's bytes while it is in no address space.
//!
//! Frames come in blocks of [`CHUNK_PAGES`], so that a chunk's page
//! number *i* is always held by frame *i* of a block, and moving a run of pages is one call.

use std::sync::Arc;

use crate::device::PageBytes;
use crate::page_table::CHUNK_PAGES;

/// A block of frames.
pub type Block = u32;

/// One frame: a block, and the index of the frame in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The block.
    pub block: Block,
    /// The index in the block; also the index of the page in its chunk.
    pub index: usize,
}

/// Why the address space could not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpaceError {
    /// The system has no memory for another page.
    #[error("no memory for another page")]
    NoMemory,
    /// The system cannot do it just now: look again.
    #[error("the mapping is changing")]
    Again,
    /// The system refused, with this `errno`.
    #[error("the system refused to map the page (errno {0})")]
    Refused(i32),
}

/// What a block is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To read the pages of this mask into: these frames have memory.
    Read(u64),
    /// To unmap pages into: no frame needs memory.
    Unmap,
}

/// The pool of frames.
///
/// A block is in use while it has holds. Whoever takes it gets one; the swap cache adds one for each
/// page it keeps in it. None of the methods may allocate from the process heap.
pub trait Frames: Sync {
    /// Blocks there are, in use or not.
    fn blocks(&self) -> usize;

    /// Takes a block, with one hold. `None`: all are in use, or there is no memory.
    fn take(&self, purpose: Purpose) -> Option<Block>;

    /// Adds `holds` to a block that has at least one.
    fn hold(&self, block: Block, holds: u32);

    /// Drops `holds`; with the last one the block is free.
    fn release(&self, block: Block, holds: u32);

    /// Lets `read` see the page in `frame`. The caller owns the frame: it took its block, or it is
    /// the writer of the page the swap cache keeps there.
    fn read<R>(&self, frame: Frame, read: impl FnOnce(&PageBytes) -> R) -> R;

    /// Lets `fill` write the page in `frame`. The caller took the block for [`Purpose::Read`] and has
    /// shown the frame to nobody who could use it (in the cache its page is locked).
    fn fill<R>(&self, frame: Frame, fill: impl FnOnce(&mut PageBytes) -> R) -> R;

    /// [`Frames::fill`] for the frames of `block` in `mask` together; the others are `None`.
    fn fill_all<R>(
        &self,
        block: Block,
        mask: u64,
        fill: impl FnOnce([Option<&mut PageBytes>; CHUNK_PAGES]) -> R,
    ) -> R;
}

/// A range of pages that programs access. All calls are made under the lock of the pages' chunk.
pub trait AddressSpace: Sync {
    /// The frames this address space exchanges pages with.
    type Frames: Frames;

    /// Takes `count` present pages from `page` out, into the frames from `frame`. Each page leaves in
    /// one step: an access either came before and is in the frame, or comes after and faults.
    /// Returns how many pages left; the page after them cannot leave now (it is in use by the system,
    /// say) and stays as it was.
    fn unmap(&self, page: usize, frame: Frame, count: usize) -> usize;

    /// Puts the pages in the `count` frames from `frame` in, from `page`. The frames' content is used
    /// up. On an error, fewer pages than asked for are in: their number is returned with it.
    ///
    /// # Errors
    /// Names why the page after the returned number could not be mapped.
    fn map(&self, page: usize, frame: Frame, count: usize) -> Result<(), (usize, SpaceError)>;

    /// Puts in a copy of the page in `frame`, which keeps it.
    ///
    /// # Errors
    /// The page is not mapped.
    fn map_copy(&self, page: usize, frame: Frame) -> Result<(), SpaceError>;

    /// Puts in a copy of `page` of `other`, where it is present and its chunk is locked. Writers may
    /// be changing it meanwhile.
    ///
    /// # Errors
    /// The page is not mapped.
    fn map_copy_of(&self, other: &Self, page: usize) -> Result<(), SpaceError>;

    /// Puts `count` pages of zeros in. `write`: the first access is going to be a write.
    ///
    /// # Errors
    /// As for [`AddressSpace::map`].
    fn map_zeros(&self, page: usize, count: usize, write: bool) -> Result<(), (usize, SpaceError)>;

    /// Pages from `page` on, those in `mask`, are about to be taken out: returns those that may leave. From here to
    /// [`AddressSpace::left`] whoever wants to be sure that a page stays has to wait for the chunk's lock.
    fn leaving(&self, page: usize, mask: u64) -> u64 {
        let _ = page;
        mask
    }

    /// The words of the pages last asked about say whether they have left.
    fn left(&self, page: usize) {
        let _ = page;
    }

    /// Drops `count` pages, whether present or not. `false`: the system refused (they are locked in
    /// memory), and they are as before.
    fn discard(&self, page: usize, count: usize) -> bool;
}

impl<F: Frames + Send> Frames for Arc<F> {
    fn blocks(&self) -> usize {
        (**self).blocks()
    }

    fn take(&self, purpose: Purpose) -> Option<Block> {
        (**self).take(purpose)
    }

    fn hold(&self, block: Block, holds: u32) {
        (**self).hold(block, holds);
    }

    fn release(&self, block: Block, holds: u32) {
        (**self).release(block, holds);
    }

    fn read<R>(&self, frame: Frame, read: impl FnOnce(&PageBytes) -> R) -> R {
        (**self).read(frame, read)
    }

    fn fill<R>(&self, frame: Frame, fill: impl FnOnce(&mut PageBytes) -> R) -> R {
        (**self).fill(frame, fill)
    }

    fn fill_all<R>(
        &self,
        block: Block,
        mask: u64,
        fill: impl FnOnce([Option<&mut PageBytes>; CHUNK_PAGES]) -> R,
    ) -> R {
        (**self).fill_all(block, mask, fill)
    }
}
