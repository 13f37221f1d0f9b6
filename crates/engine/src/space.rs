//! Memory whose pages come and go through userfaultfd: a region's own mapping, or a window on memory
//! that the program mapped itself.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use userswap_core::device::PAGE_SIZE;
use userswap_core::mask;
use userswap_core::page_table::CHUNK_PAGES;
use userswap_core::space::{AddressSpace, Frame, SpaceError};
use userswap_sys::Errno;
use userswap_sys::mapping::{self, Mapping};
use userswap_sys::uffd::{Outcome, Progress, Uffd};

use crate::Error;
use crate::frames::{BLOCK_BYTES, FramePool, MOVE_AT_LEAST};
use crate::held;
use crate::registrar::Registrar;

/// How often an operation is tried that the kernel puts off (the mapping is changing, a page is
/// locked for a moment).
const TRIES: usize = 64;

/// Pages in memory.
#[derive(Debug)]
pub(crate) struct RealSpace {
    base: usize,
    len: usize,
    /// What a region's pages are in; `None`: a window on the program's own mappings.
    mapping: Option<Mapping>,
    uffd: Arc<Registrar>,
    frames: Arc<FramePool>,
    /// A page that is missing by its word and there by the system's is a page that could not be
    /// brought in and was marked (thread mode). In a window it may as well be the program's.
    marks: bool,
    /// Of a window: what whoever makes system calls looks at.
    watch: Option<Watch>,
}

/// What of a window may be missing or write-protected, to be read without a lock: see [`held`].
#[derive(Debug)]
struct Watch {
    /// A bit a page: taken on.
    taken: Box<[AtomicU64]>,
    /// A bit a chunk: pages of it are just being taken out.
    leaving: Box<[AtomicU64]>,
    /// A bit a chunk: pages of it may be write-protected.
    guarded: Box<[AtomicU64]>,
}

impl Watch {
    fn new(pages: usize) -> Self {
        let bits = |count: usize| (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self {
            taken: bits(pages),
            leaving: bits(pages.div_ceil(CHUNK_PAGES)),
            guarded: bits(pages.div_ceil(CHUNK_PAGES)),
        }
    }
}

impl RealSpace {
    pub(crate) fn new(
        len: usize,
        uffd: Arc<Registrar>,
        frames: Arc<FramePool>,
    ) -> Result<Self, Error> {
        // Aligned to blocks, so that a run of a chunk's pages never spans two page tables.
        let mapping = Mapping::reserve(len, BLOCK_BYTES)?;
        // A huge page would have to be split by the first page taken out of it.
        mapping.advise_no_huge()?;
        // A child of fork would find zeros in place of swapped pages: better nothing at all.
        mapping.dont_fork()?;
        // SAFETY: the mapping is fresh, so every page of it is missing and stands for zeros, which is
        // what the fault handler puts there; the descriptor is closed after the mapping is gone.
        unsafe { uffd.register(mapping.base(), len) }.map_err(|errno| Error::System {
            what: "register the region",
            errno,
        })?;
        Ok(Self {
            base: mapping.base(),
            len,
            mapping: Some(mapping),
            // In SIGBUS mode the access itself fails: nothing needs a mark.
            marks: !uffd.enabled().sigbus(),
            uffd,
            frames,
            watch: None,
        })
    }

    /// A window on whatever the program maps in `len` bytes from `base`: its parts are registered one by
    /// one, by [`RealSpace::register`].
    pub(crate) fn window(
        base: usize,
        len: usize,
        uffd: Arc<Registrar>,
        frames: Arc<FramePool>,
    ) -> Self {
        Self {
            base,
            len,
            mapping: None,
            uffd,
            frames,
            marks: false,
            watch: Some(Watch::new(len / PAGE_SIZE)),
        }
    }

    /// From now on a touch of a missing page of the range, within a window, is a fault of ours.
    pub(crate) fn register(&self, range: &Range<usize>) -> Result<(), Errno> {
        debug_assert!(self.is_window() && range.start >= self.base);
        // SAFETY: the program's own private anonymous memory, in which a page that is missing stands for
        // zeros, or for what its word says: the fault handler puts there the one or the other.
        unsafe { self.uffd.register(range.start, range.len()) }
    }

    /// Says which pages of a window are taken on; `true` before they are, `false` after they were. `pages` are those of
    /// `chunk` in the mask.
    pub(crate) fn note_taken(&self, chunk: usize, mask: u64, taken: bool) {
        let Some(watch) = &self.watch else { return };
        // Relaxed: whoever takes memory on has a fence before it looks at what is held.
        if taken {
            watch.taken[chunk].fetch_or(mask, Ordering::Relaxed);
        } else if watch.taken[chunk].fetch_and(!mask, Ordering::Relaxed) & !mask == 0 {
            self.note_guarded(chunk, false);
        }
    }

    /// The pages of `chunk` that are taken on.
    pub(crate) fn taken(&self, chunk: usize) -> u64 {
        // Acquire: with what was done before the page was given up.
        self.watch
            .as_ref()
            .map_or(0, |watch| watch.taken[chunk].load(Ordering::Acquire))
    }

    /// Whether pages of `chunk` are just being taken out: its words say nothing for sure.
    pub(crate) fn is_leaving(&self, chunk: usize) -> bool {
        // Acquire: the words, once they tell the truth again.
        self.watch.as_ref().is_some_and(|watch| {
            watch.leaving[chunk / 64].load(Ordering::Acquire) >> (chunk % 64) & 1 != 0
        })
    }

    /// Whether pages of `chunk` may be write-protected: see [`crate::guard`].
    pub(crate) fn is_guarded(&self, chunk: usize) -> bool {
        // Acquire: with the end of the protection.
        self.watch.as_ref().is_some_and(|watch| {
            watch.guarded[chunk / 64].load(Ordering::Acquire) >> (chunk % 64) & 1 != 0
        })
    }

    /// Says whether they may be.
    pub(crate) fn note_guarded(&self, chunk: usize, guarded: bool) {
        let Some(watch) = &self.watch else { return };
        let (word, bit) = (&watch.guarded[chunk / 64], 1 << (chunk % 64));
        if guarded {
            // Relaxed: whoever guards memory has a fence before it looks at what is held.
            word.fetch_or(bit, Ordering::Relaxed);
        } else if word.load(Ordering::Relaxed) & bit != 0 {
            // Release: the protection ended before.
            word.fetch_and(!bit, Ordering::Release);
        }
    }

    /// Whether memory may be write-protected at all.
    pub(crate) fn guards(&self) -> bool {
        self.is_window() && self.uffd.guards()
    }

    /// Nothing is write-protected: in a child of fork.
    pub(crate) fn forget_guards(&self) {
        for word in self.watch.iter().flat_map(|watch| &watch.guarded) {
            word.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_window(&self) -> bool {
        self.mapping.is_none()
    }

    pub(crate) fn base(&self) -> usize {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The userfaultfd that `page` is registered with.
    pub(crate) fn uffd(&self, page: usize) -> &Uffd {
        self.uffd.of(self.address(page))
    }

    pub(crate) fn address(&self, page: usize) -> usize {
        debug_assert!(page < self.len / PAGE_SIZE);
        self.base + page * PAGE_SIZE
    }

    /// Forgets a poison mark, so that the next access faults again. The page is missing otherwise.
    pub(crate) fn forget_poison(&self, page: usize) {
        // Failing leaves the mark: the access then fails closed again.
        let _ = self.give_back(page, 1);
    }

    /// Gives the memory of pages back to the system.
    fn give_back(&self, page: usize, count: usize) -> Result<(), Errno> {
        // SAFETY: the pages are of this space, and whoever asks has no use for their contents.
        unsafe { mapping::discard(self.address(page), count * PAGE_SIZE) }
    }
}

/// Runs `step(done pages, pages to go)` until `count` pages are done or one is refused.
fn run(count: usize, mut step: impl FnMut(usize, usize) -> Progress) -> Result<(), (usize, Errno)> {
    let (mut done, mut tries) = (0, 0);
    while done < count {
        match step(done, count - done).outcome() {
            Outcome::Complete => return Ok(()),
            // Asking for the rest tells why it stopped there.
            Outcome::Partial(bytes) => done += bytes / PAGE_SIZE,
            Outcome::Again if tries < TRIES => {
                tries += 1;
                std::thread::yield_now();
            }
            Outcome::Again => return Err((done, Errno::AGAIN)),
            Outcome::Refused(errno) => return Err((done, errno)),
        }
    }
    Ok(())
}

/// Whether a run may have been refused because it does not lie in one mapping, as those of a program need not.
fn spans_mappings(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::INVAL)
}

fn space_error((done, errno): (usize, Errno)) -> (usize, SpaceError) {
    let error = match errno {
        Errno::NOMEM => SpaceError::NoMemory,
        Errno::AGAIN => SpaceError::Again,
        errno => SpaceError::Refused(errno.raw_os_error()),
    };
    (done, error)
}

impl RealSpace {
    /// Fills `count` missing pages from `page` by `step`, whose chunk is locked.
    fn fill(
        &self,
        page: usize,
        count: usize,
        mut step: impl FnMut(usize, usize) -> Progress,
    ) -> Result<(), (usize, SpaceError)> {
        let (mut start, mut unmarked) = (0, None);
        loop {
            let filled = run(count - start, |done, rest| step(start + done, rest));
            let Err((done, errno)) = filled else {
                return Ok(());
            };
            start += done;
            if self.is_window() && count - start > 1 && spans_mappings(errno) {
                // The part in the first mapping, page by page.
                let single = run(1, |_, rest| step(start, rest));
                single.map_err(|(_, errno)| space_error((start, errno)))?;
                start += 1;
                continue;
            }
            // A page that is missing by its word and there by the system's has a mark of ours: an access
            // failed, and nobody has asked again since.
            if errno != Errno::EXIST || !self.marks || unmarked == Some(start) {
                return Err(space_error((start, errno)));
            }
            self.forget_poison(page + start);
            unmarked = Some(start);
        }
    }

    fn put_zeros(&self, page: usize, count: usize, write: bool) -> Result<(), (usize, SpaceError)> {
        if write {
            // Pages of their own at once: a shared zero page would fault again on the write.
            return self.copy(page, self.frames.zeros(), count);
        }
        self.fill(page, count, |done, rest| {
            // SAFETY: the pages are missing, their chunk is locked, and zeros are what they hold.
            unsafe {
                self.uffd(page)
                    .zeropage(self.address(page + done), rest * PAGE_SIZE)
            }
        })
    }

    fn copy(&self, page: usize, source: usize, count: usize) -> Result<(), (usize, SpaceError)> {
        self.fill(page, count, |done, rest| {
            // SAFETY: the pages are missing and their chunk is locked, so these bytes are what the
            // protocol says they hold. The source is a frame that nobody writes, zeros, or a present page
            // whose chunk is locked: that one its program may be writing, which tears nothing that the
            // program does not tear itself.
            unsafe {
                self.uffd(page).copy(
                    self.address(page + done),
                    source + done * PAGE_SIZE,
                    rest * PAGE_SIZE,
                )
            }
        })
    }
}

impl AddressSpace for RealSpace {
    type Frames = Arc<FramePool>;

    fn unmap(&self, page: usize, frame: Frame, count: usize) -> usize {
        let step = |done, rest| {
            let to = self.frames.address(Frame {
                index: frame.index + done,
                ..frame
            });
            // SAFETY: the range is registered, so a touch of a page that has left faults to us; the
            // frames are empty and ours. What the page held stays findable: it is in the frame, and
            // its chunk is locked until its word says so.
            unsafe {
                self.frames.uffd().move_pages(
                    to,
                    self.address(page + done),
                    rest * PAGE_SIZE,
                    false,
                )
            }
        };
        // The page that would not go is in use by the system: it stays where it is.
        let (mut moved, mut unshared, mut exchanged) = (0, false, false);
        while moved < count {
            match run(count - moved, |done, rest| step(moved + done, rest)) {
                Ok(()) => moved = count,
                Err((done, errno)) => {
                    moved += done;
                    if self.is_window() && errno == Errno::BUSY && !unshared {
                        unshared = true;
                        // Shared with a process made by fork: left in memory, such pages would be all that the two
                        // have room for. What unshares them is a write.
                        let is_free = !self.guards() || self.unguard(page / CHUNK_PAGES);
                        if is_free
                            && mapping::unshare(self.address(page + moved), count - moved).is_ok()
                        {
                            continue;
                        }
                    }
                    let single = self.is_window()
                        && count - moved > 1
                        && spans_mappings(errno)
                        && run(1, |_, rest| step(moved, rest)).is_ok();
                    if single {
                        moved += 1;
                        continue;
                    }
                    // The block may be of the other kind; as long as it has no page, that can be changed.
                    let may_fit = moved == 0 && errno == Errno::INVAL && !exchanged;
                    if !(may_fit && self.is_window() && self.frames.exchange_access(frame.block)) {
                        break;
                    }
                    exchanged = true;
                }
            }
        }
        if exchanged && moved == 0 {
            self.frames.keep_access(frame.block);
        }
        if moved > 0 {
            self.frames.moved_in(frame, moved);
        }
        moved
    }

    fn map(&self, page: usize, frame: Frame, count: usize) -> Result<(), (usize, SpaceError)> {
        if count < MOVE_AT_LEAST || self.frames.is_scratch(frame.block) {
            return self.copy(page, self.frames.address(frame), count);
        }
        let moved = run(count, |done, rest| {
            let from = self.frames.address(Frame {
                index: frame.index + done,
                ..frame
            });
            // SAFETY: the frames are ours and nobody else touches them; the pages are missing, their
            // chunk is locked, and the frames hold what the protocol says the pages hold.
            unsafe {
                self.uffd(page)
                    .move_pages(self.address(page + done), from, rest * PAGE_SIZE, false)
            }
        });
        let done = moved.map_or_else(|(done, _)| done, |()| count);
        if done > 0 {
            self.frames.moved_out(frame, done);
        }
        if moved.is_ok() {
            return Ok(());
        }
        // What cannot be moved (the system is using the frame) can still be copied.
        let rest = self.frames.address(Frame {
            index: frame.index + done,
            ..frame
        });
        self.copy(page + done, rest, count - done)
            .map_err(|(more, error)| (done + more, error))
    }

    fn map_copy(&self, page: usize, frame: Frame) -> Result<(), SpaceError> {
        self.copy(page, self.frames.address(frame), 1)
            .map_err(|(_, error)| error)
    }

    fn map_copy_of(&self, other: &Self, page: usize) -> Result<(), SpaceError> {
        self.copy(page, other.address(page), 1)
            .map_err(|(_, error)| error)
    }

    fn map_zeros(&self, page: usize, count: usize, write: bool) -> Result<(), (usize, SpaceError)> {
        debug_assert!(count <= CHUNK_PAGES && mask::run(0, count) != 0);
        let mut start = 0;
        loop {
            match self.put_zeros(page + start, count - start, write) {
                // The program's own page, there before the window was registered: it stays.
                Err((done, SpaceError::Refused(errno)))
                    if self.is_window() && errno == Errno::EXIST.raw_os_error() =>
                {
                    start += done + 1;
                    if start == count {
                        return Ok(());
                    }
                }
                other => return other.map_err(|(done, error)| (start + done, error)),
            }
        }
    }

    fn leaving(&self, page: usize, mask: u64) -> u64 {
        let Some(watch) = &self.watch else {
            return mask;
        };
        let chunk = page / CHUNK_PAGES;
        // Relaxed: `held::within` begins with a fence.
        watch.leaving[chunk / 64].fetch_or(1 << (chunk % 64), Ordering::Relaxed);
        let start = self.address(page);
        let mut may_leave = mask;
        held::within(&(start..start + CHUNK_PAGES * PAGE_SIZE), |range| {
            let pages = (range.start - start) / PAGE_SIZE..(range.end - start) / PAGE_SIZE;
            may_leave &= !mask::run(pages.start, pages.len());
        });
        may_leave
    }

    fn left(&self, page: usize) {
        let Some(watch) = &self.watch else { return };
        let chunk = page / CHUNK_PAGES;
        // Release: the words of the chunk.
        watch.leaving[chunk / 64].fetch_and(!(1 << (chunk % 64)), Ordering::Release);
    }

    fn discard(&self, page: usize, count: usize) -> bool {
        self.give_back(page, count).is_ok()
    }
}
