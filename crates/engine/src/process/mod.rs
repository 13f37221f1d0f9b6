//! An engine over the process's own memory: mappings that the program made and changes itself.
//!
//! Ranges of the program's private anonymous memory are *taken on*: registered, so that whatever is
//! missing there is asked of us, and what is in memory gets its word. From then on they are swapped like
//! a region. The program's system calls that change them go through here ([`Process::unmap`],
//! [`Process::remap`], [`Process::discard`], [`Process::fork_begin`]), so that the words tell the truth
//! when the call returns. What is not taken on is left alone.
//!
//! Modules, bottom-up: `taken` (which ranges are taken on), `take_on`, `release` (memory comes and goes), `change` (the
//! program changes its mappings), `guard` (copies after a fork are charged), `fork`, `over` (from inline mode to handler threads).
//!
//! Used by the preloaded library of `userswap run`; not part of the stable interface.

mod change;
mod fork;
mod guard;
mod over;
mod release;
mod take_on;
mod taken;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use userswap_core::device::PAGE_SIZE;
use userswap_core::page_table::CHUNK_PAGES;
use userswap_sys::own::Within;
use userswap_sys::signals::Blocked;

use crate::engine::Owner;
use crate::fault;
use crate::moving::Change;
use crate::reclaim::chunk_mask;
use crate::shared::Shared;
use crate::spec::FaultMode;
use crate::stats::Stats;
use crate::windows;
use crate::{EngineBuilder, Error};

use fork::Forking;
use taken::{is_there, windows_of};

/// A limit, in bytes, that is never reached.
const NO_LIMIT: u64 = 1 << 50;

/// An engine over the process's own memory. It lives until the process ends.
pub struct Process {
    shared: Arc<Shared>,
    /// Read by whoever changes memory that is not taken on; written to take memory on, and to fork.
    changes: RwLock<()>,
    /// The ranges taken on: start to end, none touching the next. Taken after `changes`.
    taken: Mutex<BTreeMap<usize, usize>>,
    /// What a fork holds, between its two halves.
    forking: Mutex<Option<Forking>>,
    /// Nothing is taken on any more. Written with `changes` written.
    retired: AtomicBool,
}

impl Process {
    /// Starts an engine over this process. Once in a process.
    ///
    /// # Errors
    /// As for [`EngineBuilder::build`].
    pub fn start(builder: EngineBuilder) -> Result<&'static Self, Error> {
        let owner: Arc<Owner> = builder.build_for_process()?;
        owner.start_together();
        let shared = Arc::clone(&owner.shared);
        // Its threads run until the process ends.
        std::mem::forget(owner);
        Ok(Box::leak(Box::new(Self {
            shared,
            changes: RwLock::new(()),
            taken: Mutex::default(),
            forking: Mutex::new(None),
            retired: AtomicBool::new(false),
        })))
    }

    /// How faults reach the engine.
    #[must_use]
    pub fn fault_mode(&self) -> FaultMode {
        self.shared.mode()
    }

    /// Whether system calls find only what is in memory: in inline mode, and in a child of fork until it has handler threads.
    #[must_use]
    pub fn is_inline_now(&self) -> bool {
        self.shared.mode() == FaultMode::Inline
            || self.shared.inline_for_now.load(Ordering::Relaxed)
    }

    /// What the engine holds and has done.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let _blocked = Blocked::new();
        self.shared.stats()
    }

    /// The process has `bytes` in memory now, as the system says: what the limit is compared with.
    pub fn note_resident(&self, bytes: u64) {
        self.shared.note_resident(bytes);
        if self.shared.is_short() {
            self.shared.reclaimer.ring();
        }
    }

    /// Changes the limit, in bytes.
    pub fn set_limit(&self, bytes: u64) {
        if self.retired.load(Ordering::SeqCst) {
            // What is just being brought back would be driven out again.
            return;
        }
        let shared = &*self.shared;
        let Some(before) = shared.budget.limit() else {
            return;
        };
        if bytes < before {
            let _blocked = Blocked::new();
            shared.lower_to(bytes);
        } else if bytes > before {
            shared.set_limit(bytes);
        }
        if self.retired.load(Ordering::SeqCst) {
            shared.budget.set_limit(NO_LIMIT);
        }
    }

    /// Descriptors that must stay open.
    #[must_use]
    pub fn descriptors(&self) -> Vec<i32> {
        let mut numbers = vec![
            self.shared.swap.frames().uffd().number(),
            self.shared.bell_number.load(Ordering::Relaxed),
        ];
        numbers.extend(self.shared.uffd.descriptors());
        for area in self.shared.swap.open_areas() {
            area.device()
                .descriptors(&mut |number| numbers.push(number));
        }
        numbers
    }

    /// Frames are not used again from now on: the program makes system calls that may go on reading a page's memory after
    /// they return.
    pub fn stop_recycling(&self) {
        self.shared.swap.frames().stop_recycling();
    }

    /// Some of the program's memory may be executed beside being written. It can be taken on, and leaves memory where the system
    /// lets memory of ours be both, too.
    pub fn allow_executable(&self) {
        self.shared.swap.frames().allow_executable();
    }

    /// Whether a thread of the program was seen, in inline mode, with its stack in memory that is taken on.
    #[must_use]
    pub fn has_taken_a_stack(&self) -> bool {
        self.shared.stack_taken.load(Ordering::Relaxed)
    }

    /// Whether more than the limit is in use, or may be, since it cannot be held.
    #[must_use]
    pub fn is_over_limit(&self) -> bool {
        self.shared.budget.is_exceeded()
    }

    /// Pages brought in so far.
    #[must_use]
    pub fn pages_in(&self) -> u64 {
        self.shared.counters.pages_in()
    }

    /// Bytes the process has in memory, as far as is known without asking the system.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.shared.used_bytes()
    }

    /// Writes what can be of `range` out. Returns how many pages left memory.
    pub fn page_out(&self, range: &Range<usize>) -> usize {
        let _blocked = Blocked::new();
        let _within = Within::new();
        let mut pages = 0;
        for (window, part) in windows_of(range) {
            for chunk in part.start / CHUNK_PAGES..part.end.div_ceil(CHUNK_PAGES) {
                let _inside = self.shared.moving.enter();
                let Some(window) = windows::find(window) else {
                    continue;
                };
                if self.retired.load(Ordering::SeqCst) {
                    return pages;
                }
                // What cannot leave stays.
                let _ = self.shared.stage(window, chunk, chunk_mask(&part, chunk));
                pages += self.shared.write_out_chunk(window.number, chunk);
            }
        }
        pages
    }

    /// Brings what is missing of `range` into memory, as far as it was taken on, and makes pages that were never used. With the
    /// range held by a [`held::Holder`], it is there for the kernel from here on.
    pub fn bring_in(&self, range: &Range<usize>, write: bool) {
        if is_there(range, write) {
            return;
        }
        let _blocked = Blocked::new();
        let _within = Within::new();
        // Memory that is just being taken on is taken on now, or passed over since it is held.
        drop(self.changes_read());
        for (at, pages) in windows_of(range) {
            let Some(window) = windows::find(at) else {
                continue;
            };
            for page in pages {
                let address = window.mm.space.address(page);
                while !is_there(&(address..address + PAGE_SIZE), write) {
                    if !fault::bring_in(window, page, write) {
                        break;
                    }
                }
            }
        }
    }

    fn end(&self, change: Change<'_>) {
        change.end(|address| {
            // Refused only where nothing is mapped any more, and so nobody waits.
            let _ = self.shared.uffd.wake(address & !(PAGE_SIZE - 1), PAGE_SIZE);
        });
    }

    fn changes_read(&self) -> RwLockReadGuard<'_, ()> {
        self.changes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn changes_write(&self) -> RwLockWriteGuard<'_, ()> {
        self.changes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
