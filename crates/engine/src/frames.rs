//! The frame pool: memory that belongs to no region for the moment.
//!
//! One mapping, in blocks of 64 frames:
//!
//! | blocks | memory | used for |
//! |---|---|---|
//! | staging | comes with a page that is moved out of a region, goes with one that is moved in | swap-out; swap-in of runs |
//! | scratch | always there | reading pages that are then copied in |
//! | zeros (one) | never written | filling pages with zeros for a writer |
//!
//! Staging is registered with a userfaultfd of its own, in SIGBUS mode, so that pages can be moved
//! there and a stray touch of an empty frame is a crash and not a silent zero page. Blocks whose
//! frames still have memory are kept for the next swap-in, up to a reserve; moving such frames in is
//! several times cheaper than having the kernel allocate and copy.
//!
//! Guarantee: a block is handed out to one taker at a time, and its frames' bytes are touched only
//! by whom the protocol says (see [`Frames`]). Mechanism: free blocks are on exactly one list, and a
//! block goes back to its list when its last hold is dropped.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use userswap_core::device::{PAGE_SIZE, PageBytes};
use userswap_core::mask;
use userswap_core::page_table::CHUNK_PAGES;
use userswap_core::space::{Block, Frame, Frames, Purpose};
use userswap_sys::mapping::Mapping;
use userswap_sys::uffd::{Open, Uffd};

use crate::Error;

/// Bytes of a block.
pub(crate) const BLOCK_BYTES: usize = CHUNK_PAGES * PAGE_SIZE;

/// Moving fewer pages than this in costs more than copying them, as soon as other threads run: each
/// move interrupts their CPUs (12-14 us a call, against 2.4 us for a copied page).
pub(crate) const MOVE_AT_LEAST: usize = 4;

/// A block with fewer frames that have memory is not worth keeping for reuse.
const REUSE_AT_LEAST: u32 = 32;

#[derive(Debug, Default)]
struct Block_ {
    holds: AtomicU32,
    /// The frames that have memory. Of a staging block: changed by who moves pages there or away,
    /// each on bits of his own.
    filled: AtomicU64,
    /// Its memory may be executed, as that of pages of code that is written.
    executable: AtomicBool,
    /// It was changed in vain since it was taken.
    keeps_access: AtomicBool,
}

/// Free blocks. The lists have room for all blocks from the start: pushing does not allocate.
#[derive(Debug)]
struct Lists {
    empty: Vec<Block>,
    reusable: Vec<Block>,
    scratch: Vec<Block>,
    /// Threads that wait for a block: waking nobody costs a system call, too.
    waiting: usize,
}

#[derive(Debug)]
pub(crate) struct FramePool {
    mapping: Mapping,
    /// For moving pages into staging.
    uffd: Uffd,
    blocks: Box<[Block_]>,
    staging: usize,
    /// How many blocks with memory are kept for reuse.
    reserve: AtomicUsize,
    lists: Mutex<Lists>,
    scratch_freed: Condvar,
    staging_freed: Condvar,
    /// The most scratch blocks that were ever in use at once: those that have memory.
    scratch_most: AtomicUsize,
    /// Staging frames that have memory.
    filled: AtomicU64,
    /// Staging may be executed where what leaves may.
    may_be_executed: AtomicBool,
}

/// How the userfaultfd of staging is opened.
pub(crate) const STAGING_FAULTS: Open = Open {
    kernel_faults: false,
    sigbus: true,
    nonblock: true,
};

fn register(uffd: &Uffd, mapping: &Mapping, staging: usize) -> Result<(), Error> {
    // SAFETY: the mapping is ours alone; frames are touched only where they have memory, and the
    // descriptor lives as long as the mapping does.
    unsafe { uffd.register(mapping.base(), staging * BLOCK_BYTES) }.map_err(|errno| Error::System {
        what: "register the staging area",
        errno,
    })
}

impl FramePool {
    /// A pool of `staging` and `scratch` blocks that keeps up to `reserve` blocks with memory. `uffd`
    /// is in SIGBUS mode. `inherited`: a child of fork gets it too.
    pub(crate) fn new(
        uffd: Uffd,
        staging: usize,
        scratch: usize,
        reserve: usize,
        inherited: bool,
    ) -> Result<Self, Error> {
        let count = staging + scratch;
        let mapping = Mapping::reserve((count + 1) * BLOCK_BYTES, BLOCK_BYTES)?;
        mapping.advise_no_huge()?;
        if !inherited {
            mapping.dont_fork()?;
        }
        register(&uffd, &mapping, staging)?;
        let (staged, scratched) = (0..staging as Block, staging as Block..count as Block);
        let mut lists = Lists {
            empty: Vec::with_capacity(staging),
            reusable: Vec::with_capacity(reserve),
            scratch: Vec::with_capacity(scratch),
            waiting: 0,
        };
        lists.empty.extend(staged.rev());
        lists.scratch.extend(scratched.rev());
        Ok(Self {
            mapping,
            uffd,
            blocks: (0..count).map(|_| Block_::default()).collect(),
            staging,
            reserve: AtomicUsize::new(reserve),
            lists: Mutex::new(lists),
            scratch_freed: Condvar::new(),
            staging_freed: Condvar::new(),
            scratch_most: AtomicUsize::new(0),
            filled: AtomicU64::new(0),
            may_be_executed: AtomicBool::new(false),
        })
    }

    /// Pages that may be executed are to leave, too. Relaxed: one that tries before stays in memory for now.
    pub(crate) fn allow_executable(&self) {
        self.may_be_executed.store(true, Ordering::Relaxed);
    }

    /// Keeps no block for reuse from now on. Relaxed: whoever asks for this has not yet made the call that matters.
    pub(crate) fn stop_recycling(&self) {
        self.reserve.store(0, Ordering::Relaxed);
        self.empty_reserve();
    }

    /// In a child of fork: gives the inherited frames a userfaultfd of the child's own.
    pub(crate) fn become_child(&self) -> Result<(), Error> {
        self.uffd.reopen(STAGING_FAULTS)?;
        // Those who waited are not here.
        self.lists().waiting = 0;
        register(&self.uffd, &self.mapping, self.staging)
    }

    /// Bytes of memory in staging.
    pub(crate) fn staged_bytes(&self) -> u64 {
        // Relaxed: a hint for accounting.
        self.filled.load(Ordering::Relaxed) * PAGE_SIZE as u64
    }

    /// Bytes of memory in scratch blocks and the pool's tables.
    pub(crate) fn fixed_bytes(&self) -> u64 {
        let scratch = self.scratch_most.load(Ordering::Relaxed) * BLOCK_BYTES;
        (scratch + self.blocks.len() * (size_of::<Block_>() + CHUNK_PAGES * 12)) as u64
    }

    /// Waits until a block to read into may be free.
    pub(crate) fn wait_for_scratch(&self) {
        self.wait(&self.scratch_freed, |lists| lists.scratch.is_empty());
    }

    /// Waits until a block to unmap into may be free.
    pub(crate) fn wait_for_staging(&self) {
        self.wait(&self.staging_freed, |lists| {
            lists.empty.is_empty() && lists.reusable.is_empty()
        });
    }

    fn wait(&self, freed: &Condvar, used_up: impl Fn(&Lists) -> bool) {
        let mut lists = self.lists();
        if used_up(&lists) {
            lists.waiting += 1;
            // The bound is for a wake-up that went to somebody who did not need it.
            let woken = freed.wait_timeout(lists, Duration::from_millis(20));
            woken.unwrap_or_else(PoisonError::into_inner).0.waiting -= 1;
        }
    }

    pub(crate) fn is_scratch(&self, block: Block) -> bool {
        block as usize >= self.staging
    }

    pub(crate) fn address(&self, frame: Frame) -> usize {
        debug_assert!(frame.index < CHUNK_PAGES);
        self.mapping.base() + frame.block as usize * BLOCK_BYTES + frame.index * PAGE_SIZE
    }

    /// A block's worth of zeros to copy from.
    pub(crate) fn zeros(&self) -> usize {
        self.mapping.base() + self.blocks.len() * BLOCK_BYTES
    }

    /// Makes an empty staging block one for pages that may be executed, or no longer: the system moves pages only between memory
    /// of which the same may be done. `false`: it has pages, or the system does not let memory be both written and executed.
    pub(crate) fn exchange_access(&self, block: Block) -> bool {
        let state = &self.blocks[block as usize];
        // Acquire: nobody has pages there, and the caller has the block.
        let may_be = self.may_be_executed.load(Ordering::Relaxed);
        if !may_be
            || self.is_scratch(block)
            || state.keeps_access.load(Ordering::Relaxed)
            || state.filled.load(Ordering::Acquire) != 0
        {
            return false;
        }
        self.change_access(block)
    }

    /// What an exchange was for would not go all the same: undoes it, and makes none again for whoever has the block.
    pub(crate) fn keep_access(&self, block: Block) {
        self.blocks[block as usize]
            .keeps_access
            .store(true, Ordering::Relaxed);
        // If refused it is of the other kind still, for whoever takes it next.
        self.change_access(block);
    }

    /// Relaxed throughout: the caller has the block.
    fn change_access(&self, block: Block) -> bool {
        let state = &self.blocks[block as usize];
        let executable = !state.executable.load(Ordering::Relaxed);
        let start = block as usize * BLOCK_BYTES;
        let is_done = self
            .mapping
            .set_executable(start..start + BLOCK_BYTES, executable)
            .is_ok();
        if is_done {
            state.executable.store(executable, Ordering::Relaxed);
        }
        is_done
    }

    /// The userfaultfd of staging.
    pub(crate) fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    /// `count` pages were moved into the frames from `frame`.
    pub(crate) fn moved_in(&self, frame: Frame, count: usize) {
        // Release: pairs with the load in `take`, so that a reader finds the pages there.
        self.blocks[frame.block as usize]
            .filled
            .fetch_or(mask::run(frame.index, count), Ordering::Release);
        self.filled.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// `count` pages were moved away from the frames from `frame`.
    pub(crate) fn moved_out(&self, frame: Frame, count: usize) {
        self.blocks[frame.block as usize]
            .filled
            .fetch_and(!mask::run(frame.index, count), Ordering::Release);
        self.filled.fetch_sub(count as u64, Ordering::Relaxed);
    }

    fn lists(&self) -> MutexGuard<'_, Lists> {
        // Nothing in a critical section panics.
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the memory of a block nobody uses back to the system.
    fn empty(&self, block: Block) {
        // Acquire: pairs with `moved_in` by earlier users of the block.
        let filled = self.blocks[block as usize]
            .filled
            .swap(0, Ordering::Acquire);
        if filled == 0 {
            return;
        }
        // At once, whatever lies between: each call interrupts every CPU that runs a thread of the process.
        let (first, end) = (
            filled.trailing_zeros() as usize,
            64 - filled.leading_zeros() as usize,
        );
        let start = block as usize * BLOCK_BYTES;
        let range = start + first * PAGE_SIZE..start + end * PAGE_SIZE;
        if self.mapping.discard(range).is_err() {
            // The memory is still there and counted; the next user of the block inherits it.
            self.blocks[block as usize]
                .filled
                .fetch_or(filled, Ordering::Release);
            return;
        }
        self.filled
            .fetch_sub(u64::from(filled.count_ones()), Ordering::Relaxed);
    }

    /// Gives the memory of the blocks that are kept for reuse back to the system.
    pub(crate) fn empty_reserve(&self) {
        loop {
            let Some(block) = self.lists().reusable.pop() else {
                return;
            };
            self.empty(block);
            self.lists().empty.push(block);
        }
    }

    fn free(&self, block: Block) {
        let waiting = if self.is_scratch(block) {
            let mut lists = self.lists();
            lists.scratch.push(block);
            (lists.waiting > 0).then_some(&self.scratch_freed)
        } else {
            let state = &self.blocks[block as usize];
            let filled = state.filled.load(Ordering::Acquire).count_ones();
            // Most pages cannot be moved in from memory that may be executed.
            let executable = state.executable.load(Ordering::Relaxed);
            let keep = filled >= REUSE_AT_LEAST && !executable && {
                let mut lists = self.lists();
                let room = lists.reusable.len() < self.reserve.load(Ordering::Relaxed);
                if room {
                    lists.reusable.push(block);
                }
                room
            };
            if !keep {
                self.empty(block);
            }
            let mut lists = self.lists();
            if !keep {
                lists.empty.push(block);
            }
            (lists.waiting > 0).then_some(&self.staging_freed)
        };
        if let Some(freed) = waiting {
            freed.notify_one();
        }
    }

    /// The latest scratch block: its memory is still in the CPU's cache.
    fn take_scratch(&self, lists: &mut Lists) -> Option<Block> {
        let block = lists.scratch.pop()?;
        let in_use = self.blocks.len() - self.staging - lists.scratch.len();
        self.scratch_most.fetch_max(in_use, Ordering::Relaxed);
        Some(block)
    }

    /// A kept block whose frames cover `wanted`.
    fn take_reusable(&self, lists: &mut Lists, wanted: u64) -> Option<Block> {
        let covers = |&block: &Block| {
            self.blocks[block as usize].filled.load(Ordering::Acquire) & wanted == wanted
        };
        // The latest first: its memory is still in the CPU's cache.
        let at = lists.reusable.iter().rposition(covers)?;
        Some(lists.reusable.swap_remove(at))
    }
}

impl Frames for FramePool {
    fn blocks(&self) -> usize {
        self.blocks.len()
    }

    fn take(&self, purpose: Purpose) -> Option<Block> {
        let block = {
            let mut lists = self.lists();
            match purpose {
                Purpose::Read(wanted) => (wanted.count_ones() as usize >= MOVE_AT_LEAST)
                    .then(|| self.take_reusable(&mut lists, wanted))
                    .flatten()
                    .or_else(|| self.take_scratch(&mut lists)),
                Purpose::Unmap => lists.empty.pop().or_else(|| lists.reusable.pop()),
            }
        }?;
        if purpose == Purpose::Unmap {
            // A kept block, or one whose memory could not be given back.
            self.empty(block);
        }
        let state = &self.blocks[block as usize];
        state.holds.store(1, Ordering::Relaxed);
        state.keeps_access.store(false, Ordering::Relaxed);
        Some(block)
    }

    fn hold(&self, block: Block, holds: u32) {
        // Relaxed: the caller has a hold already.
        self.blocks[block as usize]
            .holds
            .fetch_add(holds, Ordering::Relaxed);
    }

    fn release(&self, block: Block, holds: u32) {
        if holds == 0 {
            return;
        }
        // AcqRel: all use of the block happens before it is handed out again.
        let before = self.blocks[block as usize]
            .holds
            .fetch_sub(holds, Ordering::AcqRel);
        debug_assert!(before >= holds, "a block is released more often than held");
        if before == holds {
            self.free(block);
        }
    }

    fn read<R>(&self, frame: Frame, read: impl FnOnce(&PageBytes) -> R) -> R {
        // SAFETY: the protocol reads a frame only while it owns it or writes it back; such a frame has
        // memory, is moved away by nobody (faults copy from it), and is written by nobody.
        read(unsafe { &*(self.address(frame) as *const PageBytes) })
    }

    fn fill<R>(&self, frame: Frame, fill: impl FnOnce(&mut PageBytes) -> R) -> R {
        // SAFETY: the caller took the block for reading this frame and has shown it to nobody who could
        // use it (in the cache it is locked), so the reference is the only one; `take` made sure that the
        // frame has memory.
        fill(unsafe { &mut *(self.address(frame) as *mut PageBytes) })
    }

    fn fill_all<R>(
        &self,
        block: Block,
        mask: u64,
        fill: impl FnOnce([Option<&mut PageBytes>; CHUNK_PAGES]) -> R,
    ) -> R {
        fill(std::array::from_fn(|index| {
            let address = self.address(Frame { block, index });
            // SAFETY: as in `fill`, for each frame in `mask`; they are different frames.
            (mask & mask::bit(index) != 0).then(|| unsafe { &mut *(address as *mut PageBytes) })
        }))
    }
}
