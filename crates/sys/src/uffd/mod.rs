//! userfaultfd: learning of page faults, and filling, moving and marking pages.
//!
//! Addresses and lengths are whole pages. Operations on runs return a [`Progress`], since they may stop anywhere.
//! Everything but opening is *fault path*.
//!
//! Two hazards no type can carry:
//! - **Closing** a userfaultfd ends its registrations: pages that were missing then read as zeros. Whoever registers keeps
//!   it open while anything is missing.
//! - After **fork** the child's copy of the descriptor still acts on the *parent's* memory. A child must close it and open
//!   its own.

mod abi;
mod event;
mod features;
mod open;
mod progress;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use linux_raw_sys::general as raw;

pub use event::{Doorbell, Event, PageFault, RawEvent};
pub use features::Features;
pub use open::{DEVICE, Open, OpenError, Way, open_by};
pub use progress::{Outcome, Progress};

use crate::inject::{self, Call};
use crate::mapping::present_mask;
use crate::{Errno, PAGE_SIZE};

/// An open userfaultfd.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
    way: Way,
    available: Features,
    enabled: Features,
}

impl Uffd {
    /// Every feature the kernel has.
    pub fn features(&self) -> Features {
        self.available
    }

    /// The features in force on this descriptor.
    pub fn enabled(&self) -> Features {
        self.enabled
    }

    /// The descriptor's number.
    pub fn number(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// How it was obtained.
    pub fn way(&self) -> Way {
        self.way
    }

    /// Registers a range: from now on a touch of a *missing* page in it is a fault of ours.
    ///
    /// Present pages stay as they are. Registering again is allowed. `BUSY`: the range belongs to another userfaultfd.
    /// `INVAL`: nothing is mapped there, or memory of a kind that cannot be registered.
    ///
    /// # Safety
    /// The caller owns the range, fills every page missing in it before anyone relies on its contents, and keeps this
    /// descriptor open while any is missing (see the [module](self)).
    pub unsafe fn register(&self, addr: usize, len: usize) -> Result<(), Errno> {
        // MISSING: report pages that are not there. Not MINOR (page cache only).
        let mode = raw::UFFDIO_REGISTER_MODE_MISSING;
        // SAFETY: the caller's part.
        unsafe { self.register_as(addr, len, mode) }
    }

    /// As [`Uffd::register`], and pages can be write-protected ([`Uffd::write_protect`]). Where [`Features::write_protect`] is.
    ///
    /// # Safety
    /// As for [`Uffd::register`].
    pub unsafe fn register_guarding(&self, addr: usize, len: usize) -> Result<(), Errno> {
        let mode = raw::UFFDIO_REGISTER_MODE_MISSING | raw::UFFDIO_REGISTER_MODE_WP;
        // SAFETY: the caller's part.
        unsafe { self.register_as(addr, len, mode) }
    }

    /// # Safety
    /// As for [`Uffd::register`].
    unsafe fn register_as(&self, addr: usize, len: usize, mode: u32) -> Result<(), Errno> {
        let mut argument = raw::uffdio_register {
            range: range(addr, len),
            mode: u64::from(mode),
            ioctls: 0,
        };
        inject::whole(Call::Register)?;
        // SAFETY: number and structure belong together; the range is the caller's.
        unsafe { abi::call::<{ abi::REGISTER }, _>(self, &mut argument) }
    }

    /// Ends the registration of a range and wakes who waits in it. Pages still missing read as zeros from now on.
    ///
    /// # Safety
    /// No page of the range may be missing whose contents anyone still relies on.
    pub unsafe fn unregister(&self, addr: usize, len: usize) -> Result<(), Errno> {
        inject::whole(Call::Unregister)?;
        // SAFETY: number and structure belong together; that nothing is lost is the caller's part.
        unsafe { abi::call::<{ abi::UNREGISTER }, _>(self, &mut range(addr, len)) }
    }

    /// Fills missing pages at `dst` with copies of the bytes at `src`, and wakes who waits for them.
    ///
    /// `src` need not be registered nor aligned. `EXIST`: the page is there already; whoever waited for it is *not* woken
    /// then. `NOENT`: `dst` is not mapped and registered any more, or the run spans two mappings. `FAULT`: `src` cannot be
    /// read. A page becomes visible whole or not at all.
    ///
    /// # Safety
    /// `dst` is registered by the caller's protocol, and these bytes are what its missing pages must hold; `len` bytes at
    /// `src` are readable, and not being written.
    #[inline]
    pub unsafe fn copy(&self, dst: usize, src: usize, len: usize) -> Progress {
        Progress::of(Call::Copy, len, |len| {
            let mut argument = raw::uffdio_copy {
                dst: dst as u64,
                src: src as u64,
                len: len as u64,
                mode: 0,
                copy: 0,
            };
            // SAFETY: number and structure belong together; the addresses are the caller's part.
            let returned = unsafe { abi::call::<{ abi::COPY }, _>(self, &mut argument) };
            Progress::new(returned, argument.copy, len)
        })
    }

    /// Maps zeros at missing pages, and wakes who waits for them. Errors as for [`Uffd::copy`].
    ///
    /// # Safety
    /// `dst` is registered by the caller's protocol, and zeros are what its missing pages must hold.
    #[inline]
    pub unsafe fn zeropage(&self, dst: usize, len: usize) -> Progress {
        Progress::of(Call::Zeropage, len, |len| {
            let mut argument = raw::uffdio_zeropage {
                range: range(dst, len),
                mode: 0,
                zeropage: 0,
            };
            // SAFETY: number and structure belong together; the addresses are the caller's part.
            let returned = unsafe { abi::call::<{ abi::ZEROPAGE }, _>(self, &mut argument) };
            Progress::new(returned, argument.zeropage, len)
        })
    }

    /// Moves the pages at `src` to missing pages at `dst`, frames and all, in one step for all threads, and wakes who
    /// waits at `dst`.
    ///
    /// The source is missing afterwards: register it *before*, and a touch is a fault of ours with no window in between.
    /// `dst` must be registered with this userfaultfd. With `allow_src_holes` missing source pages count as moved and leave
    /// `dst` missing too.
    ///
    /// Refusals, for the first page: `BUSY`: shared after fork, KSM or pinned for I/O, so it stays where it is. `EXIST`: a
    /// page is at `dst`. `NOENT`: a hole in the source, or `dst` is not registered here. `INVAL`: not private anonymous
    /// memory on both sides with the same protection and locking, or across two mappings. `AGAIN`: look anew.
    ///
    /// # Safety
    /// Both ranges are the caller's. No reference of Rust's to the source may be used during the move unless a fault there
    /// brings the same contents back; what arrives at `dst` is what its missing pages must hold.
    #[inline]
    pub unsafe fn move_pages(
        &self,
        dst: usize,
        src: usize,
        len: usize,
        allow_src_holes: bool,
    ) -> Progress {
        Progress::of(Call::Move, len, |len| {
            let mode = if allow_src_holes {
                abi::MOVE_ALLOW_SRC_HOLES
            } else {
                0
            };
            let mut argument = raw::uffdio_move {
                dst: dst as u64,
                src: src as u64,
                len: len as u64,
                mode,
                move_: 0,
            };
            // SAFETY: number and structure belong together; the addresses are the caller's part.
            let returned = unsafe { abi::call::<{ abi::MOVE }, _>(self, &mut argument) };
            let told = Progress::new(returned, argument.move_, len);
            if told.outcome() == Outcome::Refused(Errno::EXIST) && !allow_src_holes {
                return self.moved_all_the_same(dst, src, len);
            }
            told
        })
    }

    /// What a move came to that refused a page at `dst`.
    ///
    /// Where two moves from one huge page meet (each has it split), Linux 6.18 moves the pages, comes to them a second time,
    /// and answers that they are there. A page that came with this move is at `dst` and no longer at `src`.
    #[cold]
    fn moved_all_the_same(&self, dst: usize, src: usize, len: usize) -> Progress {
        const AT_ONCE: usize = 64 * PAGE_SIZE;
        let mut done = 0;
        while done < len {
            let pages = (len - done).min(AT_ONCE) / PAGE_SIZE;
            let arrived = present_mask(dst + done, pages).unwrap_or(0)
                & !present_mask(src + done, pages).unwrap_or(u64::MAX);
            let moved = (arrived.trailing_ones() as usize).min(pages);
            done += moved * PAGE_SIZE;
            if moved < pages {
                break;
            }
        }
        if done > 0 {
            // The move left this out. Refused where the range is not registered any more: then nobody waits.
            let _ = self.wake(dst, done);
        }
        Progress {
            done,
            error: (done < len).then_some(Errno::EXIST),
        }
    }

    /// Wakes threads that wait for pages in the range; each repeats its access and faults again if the page is missing.
    #[inline]
    pub fn wake(&self, addr: usize, len: usize) -> Result<(), Errno> {
        inject::whole(Call::Wake)?;
        // SAFETY: number and structure belong together; waking changes no memory, a woken access only repeats.
        unsafe { abi::call::<{ abi::WAKE }, _>(self, &mut range(addr, len)) }
    }

    /// Write-protects the pages of a range that are in memory, or ends that and wakes who waits there: a write to a protected
    /// page is a fault of ours. Pages that are missing, or come, are not protected; fork, mremap and [`Uffd::unregister`]
    /// end it.
    ///
    /// A refusal may leave a part done. `NOENT`: a mapping in the range is not registered by [`Uffd::register_guarding`], or
    /// there is none. `AGAIN`: look anew.
    ///
    /// Safe: no byte changes, and a write that meets the protection waits, or fails as one that meets a missing page.
    pub fn write_protect(&self, addr: usize, len: usize, protect: bool) -> Result<(), Errno> {
        inject::whole(Call::WriteProtect)?;
        let mut argument = raw::uffdio_writeprotect {
            range: range(addr, len),
            mode: if protect { abi::WRITEPROTECT_BEGIN } else { 0 },
        };
        // SAFETY: number and structure belong together; protection changes no contents.
        unsafe { abi::call::<{ abi::WRITEPROTECT }, _>(self, &mut argument) }
    }

    /// Marks missing pages so that every access gets SIGBUS until they are discarded: how an unreadable page fails closed.
    /// A system call that touches one fails with EFAULT. Wakes who waits for them.
    ///
    /// Keep a record of what is poisoned: the signal may look like that of a missing page (see
    /// [`crate::signals::Fault::CODE_FAILED_MEMORY`]), and filling a marked page is refused with `EXIST`, so a handler that
    /// takes `EXIST` for "another thread was faster" would go round for ever.
    ///
    /// Safe: an access then ends, it never sees wrong bytes.
    #[inline]
    pub fn poison(&self, addr: usize, len: usize) -> Progress {
        Progress::of(Call::Poison, len, |len| {
            let mut argument = raw::uffdio_poison {
                range: range(addr, len),
                mode: 0,
                updated: 0,
            };
            // SAFETY: number and structure belong together; the marker makes accesses fail, it gives them no contents.
            let returned = unsafe { abi::call::<{ abi::POISON }, _>(self, &mut argument) };
            Progress::new(returned, argument.updated, len)
        })
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn range(addr: usize, len: usize) -> raw::uffdio_range {
    raw::uffdio_range {
        start: addr as u64,
        len: len as u64,
    }
}
