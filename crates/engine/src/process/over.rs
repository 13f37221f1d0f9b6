//! From inline mode to handler threads, while the program runs: for one whose memory the kernel will use in ways that cannot be
//! followed.
//!
//! Memory belongs to one userfaultfd at a time, and whatever is missing between two reads as zeros. So it goes over a piece at
//! a time: the piece comes back, is registered with the other one while nothing moves, and may leave again. The limit holds all
//! along. Until the last piece has gone over the program's system calls are followed; from then on the kernel asks.

use std::ops::Range;
use std::sync::atomic::Ordering;

use userswap_core::device::PAGE_SIZE;
use userswap_sys::Errno;
use userswap_sys::own::Within;
use userswap_sys::signals::Blocked;

use super::Process;
use super::release::{pieces_of, swapped_pages};
use super::taken::windows_of;
use crate::Error;
use crate::engine::THREAD_FAULTS;
use crate::spare::Spare;
use crate::spec::FaultMode;

impl Process {
    /// Has handler threads resolve all faults from the return on, those in system calls, too. For an engine in
    /// [`FaultMode::Auto`], which begins inline. [`Process::start_handlers`] follows.
    ///
    /// # Errors
    /// The host does not permit it, or the system refused a part: the engine goes on inline, some of the memory belongs to
    /// handlers already, and [`Process::retire`] has to follow.
    pub fn go_over(&'static self) -> Result<(), Error> {
        let _blocked = Blocked::new();
        let _within = Within::new();
        let _changes = self.changes_write();
        let shared = &self.shared;
        if shared.mode() == FaultMode::Thread {
            return Ok(());
        }
        if !shared.spare.is_there() {
            return Err(Error::System {
                what: "find a thread to handle faults",
                errno: Errno::SRCH,
            });
        }
        self.keep_what_threads_need();
        let change = shared.moving.close();
        let opened = shared.uffd.succeed(THREAD_FAULTS);
        self.end(change);
        opened?;
        shared.spare.call();
        let taken: Vec<_> = {
            let taken = self.taken();
            taken.iter().map(|(&start, &end)| start..end).collect()
        };
        for piece in taken.iter().flat_map(pieces_of) {
            if let Err(error) = self.hand_over(&piece) {
                // Nobody takes on more, whose userfaultfd could not be told.
                self.retired.store(true, Ordering::SeqCst);
                return Err(error);
            }
        }
        let change = shared.moving.close();
        shared.uffd.close_former();
        // SeqCst: see `Shared::mode`.
        shared.in_threads.store(true, Ordering::SeqCst);
        self.end(change);
        Ok(())
    }

    /// Whether it began inline and handler threads resolve its faults now.
    #[must_use]
    pub fn has_gone_over(&self) -> bool {
        (self.shared.first_mode, self.shared.mode()) == (FaultMode::Inline, FaultMode::Thread)
    }

    /// Registers a piece, and with it all that lies below, with the userfaultfd that handler threads read.
    fn hand_over(&self, piece: &Range<usize>) -> Result<(), Error> {
        let shared = &self.shared;
        let swapped = swapped_pages(piece).count() as u64;
        if swapped > 0 {
            let _inside = shared.moving.enter();
            // Room, which is taken page by page below.
            shared.charge(swapped);
            shared.budget.uncharge(swapped);
        }
        self.once_there(piece, false, || {
            self.unguard(piece);
            // SAFETY: nothing of the piece is swapped out, or what is fails for whoever touches it: what else is missing stands
            // for zeros, which the system may fill in until the piece is registered again.
            let given_up = unsafe {
                let former = shared.uffd.of(piece.start);
                former.unregister(piece.start, piece.len())
            };
            given_up.map_err(|errno| Error::System {
                what: "take memory from one userfaultfd to another",
                errno,
            })?;
            for (at, part) in windows_of(piece) {
                let window = self.window_at(at);
                let space = &window.mm.space;
                let bytes =
                    space.base() + part.start * PAGE_SIZE..space.base() + part.end * PAGE_SIZE;
                if space.register(&bytes).is_ok() {
                    self.adopt(window, &part);
                } else {
                    // All there: the system may have it.
                    self.forget(&bytes);
                    self.give_up(&bytes);
                }
            }
            shared.uffd.advance(piece.end);
            Ok(())
        })
    }

    /// Starts the handler threads that [`Process::go_over`] has left to be started, if it has. Nobody may be waiting for the
    /// caller, since libc allocates for them, nor fork meanwhile.
    pub fn start_handlers(&'static self) {
        let shared = &self.shared;
        if shared.mode() != FaultMode::Thread || !shared.spare.is_alone() {
            return;
        }
        shared.spare.wait_until_it_serves();
        shared.start.close();
        if let Some(handlers) = Spare::start_others(shared) {
            shared.start.wait_for(handlers.count() as u32);
            self.keep_what_threads_need();
            // They run until the process ends.
            std::mem::forget(handlers);
        }
        shared.start.open();
    }
}
