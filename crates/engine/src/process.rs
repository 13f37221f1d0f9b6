//! An engine over the process's own memory: mappings that the program made and changes itself.
//!
//! Ranges of the program's private anonymous memory are *taken on*: registered, so that whatever is
//! missing there is asked of us, and what is in memory gets its word. From then on they are swapped like
//! a region. The program's system calls that change them go through here ([`Process::unmap`],
//! [`Process::remap`], [`Process::discard`], [`Process::fork_begin`]), so that the words tell the truth
//! when the call returns. What is not taken on is left alone.
//!
//! Used by the preloaded library of `userswap run`; not part of the stable interface.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use userswap_core::PinResult;
use userswap_core::device::{PAGE_SIZE, Side};
use userswap_core::mask;
use userswap_core::page_table::{CHUNK_PAGES, PteState};
use userswap_sys::Errno;
use userswap_sys::mapping::{self, present_mask};
use userswap_sys::own::{self, Within};
use userswap_sys::signals::{self, Blocked};

use crate::engine::{Owner, open_faults_again, start_reclaimer};
use crate::fault::{self, Handlers};
use crate::held;
use crate::moving::Change;
use crate::reclaim::chunk_mask;
use crate::shared::{RegionMemory, Shared};
use crate::spec::FaultMode;
use crate::stats::Stats;
use crate::windows::{self, WINDOW_BYTES};
use crate::{EngineBuilder, Error};

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

/// Bytes that are left to the system at a time.
const PIECE_BYTES: usize = 4 * CHUNK_PAGES * PAGE_SIZE;

/// Everything that must stand still while the process forks.
struct Forking {
    changes: RwLockWriteGuard<'static, ()>,
    change: Change<'static>,
    blocked: Blocked,
}

// SAFETY: a `Forking` is put away and taken out by one thread, the one that forks; in the child that is
// the only thread there is.
unsafe impl Send for Forking {}

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
        self.shared.mode
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
            self.shared.uffd.number(),
            self.shared.swap.frames().uffd().number(),
            self.shared.bell_number.load(Ordering::Relaxed),
        ];
        for area in self.shared.swap.areas() {
            area.device()
                .descriptors(&mut |number| numbers.push(number));
        }
        numbers
    }

    /// Leaves `range` to the system again, whatever was taken on of it: for memory that is to behave in ways that cannot
    /// be followed.
    pub fn leave_alone(&self, range: &Range<usize>) {
        let _blocked = Blocked::new();
        let _within = Within::new();
        let _changes = self.changes_write();
        if self.is_taken(range) {
            self.release(range);
        }
    }

    /// Frames are not used again from now on: the program makes system calls that may go on reading a page's memory after
    /// they return.
    pub fn stop_recycling(&self) {
        self.shared.swap.frames().stop_recycling();
    }

    /// Whether any of `range` is taken on.
    #[must_use]
    pub fn is_taken_on(&self, range: &Range<usize>) -> bool {
        let _blocked = Blocked::new();
        let _within = Within::new();
        let _changes = self.changes_read();
        self.is_taken(range)
    }

    /// Whether a thread of the program was seen, in inline mode, with its stack in memory that is taken on.
    #[must_use]
    pub fn has_taken_a_stack(&self) -> bool {
        self.shared.stack_taken.load(Ordering::Relaxed)
    }

    /// Bytes the process has in memory, as far as is known without asking the system.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.shared.used_bytes()
    }

    /// Bytes of address space taken on.
    #[must_use]
    pub fn taken_bytes(&self) -> u64 {
        let taken = self.taken();
        taken.iter().map(|(start, end)| (end - start) as u64).sum()
    }

    /// Takes memory on: `find` names ranges of private anonymous memory that can be read and written,
    /// whole pages, ascending, as they are now. What is ours among them is left out. Returns how many pages
    /// were found in memory.
    ///
    /// No change of the address space that goes through here happens meanwhile.
    pub fn take_on(&self, find: impl FnOnce(&mut dyn FnMut(Range<usize>))) -> u64 {
        let _blocked = Blocked::new();
        let _within = Within::new();
        let _changes = self.changes_write();
        // Relaxed: the lock orders it.
        if self.retired.load(Ordering::Relaxed) {
            return 0;
        }
        let sorted = || {
            let mut ours: Vec<_> = own::ranges()?.collect();
            ours.sort_unstable_by_key(|range| range.start);
            Some(ours)
        };
        let (mut ours, mut pages) = (None, 0);
        find(&mut |range| {
            // Told only now: what `find` has made for itself to look with is ours, too, and gone soon.
            let Some(ours) = ours.get_or_insert_with(sorted) else {
                // Not to be told apart: nothing more is taken on.
                return;
            };
            for part in without(range, ours) {
                for part in self.not_taken(part) {
                    for part in self.not_in_use(part) {
                        pages += self.take_on_range(&part);
                    }
                }
            }
        });
        pages
    }

    /// Runs `call`, a system call that changes what may be done with memory (mprotect), not during [`Process::while_steady`].
    pub fn protect(&self, call: impl FnOnce() -> isize) -> isize {
        let _blocked = Blocked::new();
        let _within = Within::new();
        let _changes = self.changes_read();
        call()
    }

    /// Runs `run` while no change of the address space that goes through here is under way.
    pub fn while_steady<R>(&self, run: impl FnOnce() -> R) -> R {
        let _blocked = Blocked::new();
        let _within = Within::new();
        let _changes = self.changes_write();
        run()
    }

    /// Runs `call`, a system call that takes the mappings of `range` away if it succeeds (munmap, mmap with
    /// MAP_FIXED, brk downwards), and forgets what was there. `call` returns the kernel's result.
    pub fn unmap(&self, range: Range<usize>, call: impl FnOnce() -> isize) -> isize {
        self.change(&range, call, |result| {
            if is_error(result) {
                self.resync(&range);
                self.forget_unmapped(&range);
            } else {
                self.forget(&range);
                self.give_up(&range);
            }
        })
    }

    /// What is taken on in `range` and not mapped any more is gone: a call may fail after it has taken mappings away.
    fn forget_unmapped(&self, range: &Range<usize>) {
        for hole in self.unmapped(range) {
            self.forget(&hole);
            self.give_up(&hole);
        }
    }

    /// Runs `call`, a system call that throws the contents of `range` away (madvise with
    /// MADV_DONTNEED).
    pub fn discard(&self, range: Range<usize>, call: impl FnOnce() -> isize) -> isize {
        if !range.start.is_multiple_of(PAGE_SIZE) {
            return call();
        }
        let range = range.start..range.end.next_multiple_of(PAGE_SIZE);
        let result = self.change(&range, call, |result| {
            // With holes in the range, all that is mapped was discarded nevertheless.
            if !is_error(result) || result == -(Errno::NOMEM.raw_os_error() as isize) {
                self.forget(&range);
            } else {
                self.resync(&range);
            }
        });
        // A call that uses it meanwhile would have found zeros.
        held::within(&range, |held| self.bring_in(&held, true));
        result
    }

    /// Runs `call`, an mremap of `old` to `new_len` bytes, and has what was swapped out go along. `stays`: the old
    /// place stays mapped, and is zeros afterwards.
    pub fn remap(
        &self,
        old: Range<usize>,
        new_len: usize,
        fixed: Option<usize>,
        stays: bool,
        call: impl FnOnce() -> isize,
    ) -> isize {
        // A fixed target is unmapped by the same call.
        let target = fixed.map(|start| start..start + new_len);
        let _blocked = Blocked::new();
        let _within = Within::new();
        let _changes = self.changes_read();
        let target_taken = target.as_ref().is_some_and(|target| self.is_taken(target));
        if !self.is_taken(&old) && !target_taken {
            return call();
        }
        let change = self.shared.moving.close();
        mapping::set_apart(&old);
        let result = call();
        if !is_error(result) {
            if let Some(target) = &target {
                self.forget(target);
                self.give_up(target);
            }
            let start = result as usize;
            let new = start..start + new_len;
            if start == old.start {
                self.resize(&old, new_len);
            } else {
                self.carry_over(&old, &new, stays);
            }
            mapping::rejoin(&new);
        }
        if is_error(result) {
            self.forget_unmapped(&old);
            if let Some(target) = &target {
                self.forget_unmapped(target);
            }
        }
        if is_error(result) || stays {
            mapping::rejoin(&old);
        }
        self.end(change);
        result
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
        if is_there(range) {
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
                while !is_there(&(address..address + PAGE_SIZE)) {
                    if !fault::bring_in(window, page, write) {
                        break;
                    }
                }
            }
        }
    }

    /// Before a fork: when this returns, nothing of the engine moves, and no lock of it is held by another
    /// thread. [`Process::fork_end`] follows, in the parent and in the child.
    pub fn fork_begin(&'static self) {
        let blocked = Blocked::new();
        let changes = self.changes_write();
        let change = self.shared.moving.close();
        change.settle();
        for area in self.shared.swap.areas() {
            area.device().fork_begin();
        }
        *lock(&self.forking) = Some(Forking {
            changes,
            change,
            blocked,
        });
    }

    /// After a fork, or one that failed, on `side`. In the child, swapped memory works when this returns, in the thread
    /// that touches it; [`Process::start_threads`] follows when threads can be started.
    ///
    /// # Errors
    /// In the child, when it cannot be given swapped memory of its own: it must not go on.
    pub fn fork_end(&'static self, side: Side) -> Result<(), Error> {
        let Some(forking) = lock(&self.forking).take() else {
            return Ok(());
        };
        let child = side == Side::Child;
        let mut result = self.end_fork_of_devices(side);
        if child {
            forking.change.inherit();
            result = result.and_then(|()| self.become_child());
        }
        let Forking {
            change,
            changes,
            blocked,
        } = forking;
        self.end(change);
        drop((changes, blocked));
        if child {
            // With SIGBUS blocked, a touch of swapped memory would be the end.
            signals::open_faults();
        }
        result
    }

    fn end_fork_of_devices(&self, side: Side) -> Result<(), Error> {
        for area in self.shared.swap.areas() {
            area.device()
                .fork_end(side)
                .map_err(|error| Error::DeviceInChild { error })?;
        }
        Ok(())
    }

    fn become_child(&self) -> Result<(), Error> {
        let shared = &*self.shared;
        own::forget_threads();
        shared.inline_for_now.store(true, Ordering::Relaxed);
        open_faults_again(&shared.uffd, FaultMode::Inline)?;
        shared.swap.frames().become_child()?;
        self.forget_unmapped(&(0..usize::MAX));
        self.register_all()?;
        // The program may have put another handler there, which knows nothing of ours.
        signals::reinstall().map_err(|errno| Error::System {
            what: "install the SIGBUS handler in the child",
            errno,
        })?;
        Ok(())
    }

    /// What is taken on and not mapped: the program had it left out of children (MADV_DONTFORK).
    fn unmapped(&self, range: &Range<usize>) -> Vec<Range<usize>> {
        let mut taken = self.taken_parts(range);
        taken.retain(|part| !mapping::is_mapped(part));
        let mut holes = Vec::new();
        for Range { start, end } in taken {
            let chunk_bytes = CHUNK_PAGES * PAGE_SIZE;
            for chunk in (start / chunk_bytes * chunk_bytes..end).step_by(chunk_bytes) {
                let chunk = start.max(chunk)..end.min(chunk + chunk_bytes);
                if mapping::is_mapped(&chunk) {
                    continue;
                }
                let pages = chunk.step_by(PAGE_SIZE).map(|page| page..page + PAGE_SIZE);
                holes.extend(pages.filter(|page| !mapping::is_mapped(page)));
            }
        }
        holes
    }

    /// Starts the engine's threads in a child of fork.
    ///
    /// # Errors
    /// A thread or a userfaultfd cannot be had: the child goes on with what [`Process::fork_end`] gave it.
    pub fn start_threads(&'static self) -> Result<(), Error> {
        let shared = &self.shared;
        if !shared.inline_for_now.load(Ordering::Relaxed) {
            return Ok(());
        }
        let _blocked = Blocked::new();
        shared.reclaimer.reset();
        shared.start.close();
        drop(start_reclaimer(shared)?);
        let mut threads = 1;
        if shared.mode == FaultMode::Thread {
            let handlers = Handlers::start(shared)?;
            threads += handlers.count() as u32;
            std::mem::forget(handlers);
        }
        // Until they all run, each resolves its own faults.
        shared.start.wait_for(threads);
        self.keep_what_threads_need();
        if shared.mode == FaultMode::Thread {
            let change = shared.moving.close();
            let opened = open_faults_again(&shared.uffd, FaultMode::Thread);
            if let Err(error) = opened {
                self.end(change);
                shared.start.open();
                return Err(error);
            }
            shared.inline_for_now.store(false, Ordering::Relaxed);
            shared.start.open();
            let registered = self.register_all();
            self.end(change);
            if let Err(error) = registered {
                signals::stderr_line(format_args!(
                    "userswap: {error}: what is swapped out would be lost; ending the process"
                ));
                std::process::abort();
            }
        }
        shared.inline_for_now.store(false, Ordering::Relaxed);
        shared.start.open();
        Ok(())
    }

    /// Pins what threads of ours need and the program's heap holds: libc keeps their thread-local variables there.
    fn keep_what_threads_need(&self) {
        for range in own::ranges().into_iter().flatten() {
            for part in self.taken_parts(&range) {
                let first = part.start & !(PAGE_SIZE - 1);
                for address in (first..part.end).step_by(PAGE_SIZE) {
                    let Some(window) = windows::find(address) else {
                        continue;
                    };
                    let page = (address - window.mm.space.base()) / PAGE_SIZE;
                    let _inside = self.shared.moving.enter();
                    while self.shared.swap.pin(&window.mm, page) == PinResult::NotPresent
                        && window.resolve(page, true).is_ok()
                    {}
                }
            }
        }
    }

    /// Nothing is taken on from here on: before [`Process::retire`], for good.
    pub fn take_no_more(&self) {
        let _blocked = Blocked::new();
        let _within = Within::new();
        let _changes = self.changes_write();
        self.retired.store(true, Ordering::SeqCst);
        // Who brings everything back must not have others take it out at the same time.
        self.shared.budget.set_limit(NO_LIMIT);
    }

    /// Brings everything back and leaves the program's memory to the system: where system calls on swapped-out memory
    /// cannot be made to work. The limit is not held any more.
    pub fn retire(&'static self) {
        let _blocked = Blocked::new();
        let _changes = self.changes_write();
        let taken: Vec<_> = {
            let taken = self.taken();
            taken.iter().map(|(&start, &end)| start..end).collect()
        };
        for range in taken {
            self.release(&range);
        }
    }

    /// Brings `range` back into memory and leaves it to the system, but what cannot be read. Called with `changes` held.
    fn release(&self, range: &Range<usize>) {
        // In pieces: all of it may be more than there is room for at once.
        for part in self.taken_parts(range) {
            let mut at = part.start;
            while at < part.end {
                let end = (at / PIECE_BYTES * PIECE_BYTES + PIECE_BYTES).min(part.end);
                self.release_piece(&(at..end));
                at = end;
            }
        }
    }

    fn release_piece(&self, range: &Range<usize>) {
        loop {
            let mut unreadable = false;
            for (at, pages) in windows_of(range) {
                let Some(window) = windows::find(at) else {
                    continue;
                };
                for page in pages.filter(|&page| window.is_swapped(page)) {
                    unreadable |= window.resolve_alone(page, true).is_err();
                }
            }
            let change = self.shared.moving.close();
            let left = windows_of(range).any(|(at, mut pages)| {
                windows::find(at).is_some_and(|window| pages.any(|page| window.is_swapped(page)))
            });
            if !left {
                self.forget(range);
                // SAFETY: nothing of the range is swapped out: what is missing stands for zeros.
                let _ = unsafe { self.shared.uffd.unregister(range.start, range.len()) };
                self.give_up(range);
            }
            self.end(change);
            // A page that cannot be read says so when it is touched.
            if !left || unreadable {
                return;
            }
        }
    }

    /// Registers every range taken on with a userfaultfd that has just been opened.
    fn register_all(&self) -> Result<(), Error> {
        for (&start, &end) in self.taken().iter() {
            for (window, part) in windows_of(&(start..end)) {
                let Some(space) = windows::find(window) else {
                    continue;
                };
                let base = space.mm.space.base();
                let range = base + part.start * PAGE_SIZE..base + part.end * PAGE_SIZE;
                space
                    .mm
                    .space
                    .register(&range)
                    .map_err(|errno| Error::System {
                        what: "register memory in a child process",
                        errno,
                    })?;
            }
        }
        Ok(())
    }

    /// Runs `call`, and `then` with its result, while no page of `range` moves.
    fn change(
        &self,
        range: &Range<usize>,
        call: impl FnOnce() -> isize,
        then: impl FnOnce(isize),
    ) -> isize {
        let _blocked = Blocked::new();
        let _within = Within::new();
        let _changes = self.changes_read();
        if !self.is_taken(range) {
            return call();
        }
        let change = self.shared.moving.close();
        let result = call();
        then(result);
        self.end(change);
        result
    }

    fn end(&self, change: Change<'_>) {
        change.end(|address| {
            // Refused only where nothing is mapped any more, and so nobody waits.
            let _ = self.shared.uffd.wake(address & !(PAGE_SIZE - 1), PAGE_SIZE);
        });
    }

    fn take_on_range(&self, range: &Range<usize>) -> u64 {
        let mut pages = 0;
        for (at, part) in windows_of(range) {
            let _inside = self.shared.moving.enter();
            let window = self.window_at(at);
            let space = &window.mm.space;
            let bytes = space.base() + part.start * PAGE_SIZE..space.base() + part.end * PAGE_SIZE;
            if space.register(&bytes).is_err() {
                // Gone or changed meanwhile, or of a kind that cannot be: it stays as it is.
                note_taken(&bytes, false);
                continue;
            }
            self.record(&bytes);
            for chunk in part.start / CHUNK_PAGES..part.end.div_ceil(CHUNK_PAGES) {
                let wanted = chunk_mask(&part, chunk);
                let (first, count) = (
                    wanted.trailing_zeros() as usize,
                    wanted.count_ones() as usize,
                );
                let address = space.address(chunk * CHUNK_PAGES + first);
                let new = self.shared.swap.adopt(&window.mm, chunk, || {
                    present_mask(address, count).map_or(0, |present| present << first)
                });
                self.shared.budget.take_over(u64::from(new.count_ones()));
                pages += u64::from(new.count_ones());
            }
        }
        pages
    }

    /// `range`, about to be taken on, without what a call in flight uses: a page missing there, which the kernel fills now,
    /// only we could fill then.
    fn not_in_use(&self, range: Range<usize>) -> Vec<Range<usize>> {
        for (at, _) in windows_of(&range) {
            self.window_at(at);
        }
        note_taken(&range, true);
        let mut used = Vec::new();
        held::within(&range, |held| used.push(held));
        used.sort_unstable_by_key(|held| held.start);
        for held in &used {
            note_taken(held, false);
        }
        without(range, &used)
    }

    /// The window at `address`, made if need be. Called with `changes` written.
    fn window_at(&self, address: usize) -> &'static RegionMemory {
        if let Some(window) = windows::find(address) {
            return window;
        }
        let base = address / WINDOW_BYTES * WINDOW_BYTES;
        let window = Arc::new(RegionMemory::window(base, WINDOW_BYTES, &self.shared));
        windows::publish(Arc::clone(&window));
        self.shared.list(window);
        windows::find(address).expect("just made")
    }

    /// What is swapped out of `range` is not needed any more, and what was in memory there is gone.
    fn forget(&self, range: &Range<usize>) {
        for (window, part) in windows_of(range) {
            let Some(window) = windows::find(window) else {
                continue;
            };
            for chunk in part.start / CHUNK_PAGES..part.end.div_ceil(CHUNK_PAGES) {
                let present = self
                    .shared
                    .swap
                    .forget(&window.mm, chunk, chunk_mask(&part, chunk));
                self.shared.budget.uncharge(u64::from(present.count_ones()));
            }
        }
    }

    /// A call that failed may have done part of its work: pages that are not in memory any more are
    /// forgotten.
    fn resync(&self, range: &Range<usize>) {
        for (at, part) in windows_of(range) {
            let Some(window) = windows::find(at) else {
                continue;
            };
            for chunk in part.start / CHUNK_PAGES..part.end.div_ceil(CHUNK_PAGES) {
                let wanted = chunk_mask(&part, chunk) & self.shared.swap.present(&window.mm, chunk);
                let gone = mask::filter(wanted, |index| {
                    let address = window.mm.space.address(chunk * CHUNK_PAGES + index);
                    present_mask(address, 1) != Some(1)
                });
                let present = self.shared.swap.forget(&window.mm, chunk, gone);
                self.shared.budget.uncharge(u64::from(present.count_ones()));
            }
        }
    }

    /// A mapping was resized at its place.
    fn resize(&self, old: &Range<usize>, new_len: usize) {
        let end = old.start + new_len;
        if end < old.end {
            self.forget(&(end..old.end));
            self.give_up(&(end..old.end));
        } else if end > old.end && self.is_taken(&(old.end - PAGE_SIZE..old.end)) {
            // What is new is registered like what it was added to.
            for (at, _) in windows_of(&(old.end..end)) {
                self.window_at(at);
            }
            self.record(&(old.end..end));
        }
    }

    /// A mapping moved: the words go along, and so does what was taken on.
    fn carry_over(&self, old: &Range<usize>, new: &Range<usize>, stays: bool) {
        for part in self.taken_parts(old) {
            let end = part.end.min(old.start + new.len());
            // What stays mapped stays registered, too.
            if !stays {
                self.give_up(&part);
            }
            if end <= part.start {
                self.forget(&part);
                continue;
            }
            self.forget(&(end..part.end));
            let moved = part.start - old.start + new.start..end - old.start + new.start;
            // A mapping that grew while it moved is taken on with what it grew by.
            let moved = if end == old.end {
                moved.start..new.end
            } else {
                moved
            };
            for (at, _) in windows_of(&moved) {
                self.window_at(at);
            }
            for page in (part.start..end).step_by(PAGE_SIZE) {
                let to = page - old.start + new.start;
                let (from, to_window) = (windows::find(page), windows::find(to));
                let (Some(from), Some(to_window)) = (from, to_window) else {
                    continue;
                };
                let index =
                    |window: &RegionMemory, address| (address - window.mm.space.base()) / PAGE_SIZE;
                self.shared.swap.carry_over(
                    &from.mm,
                    index(from, page),
                    &to_window.mm,
                    index(to_window, to),
                );
            }
            for (at, pages) in windows_of(&moved) {
                let space = &self.window_at(at).mm.space;
                let bytes =
                    space.base() + pages.start * PAGE_SIZE..space.base() + pages.end * PAGE_SIZE;
                if space.register(&bytes).is_err() {
                    // Without it missing pages would read as zeros.
                    signals::stderr_line(format_args!(
                        "userswap: memory that the program moved to {:#x} cannot be registered; ending the process",
                        bytes.start
                    ));
                    std::process::abort();
                }
                self.record(&bytes);
            }
        }
    }

    fn is_taken(&self, range: &Range<usize>) -> bool {
        let taken = self.taken();
        taken
            .range(..range.end)
            .next_back()
            .is_some_and(|(_, &end)| end > range.start)
    }

    /// The parts of `range` that are taken on.
    fn taken_parts(&self, range: &Range<usize>) -> Vec<Range<usize>> {
        let taken = self.taken();
        let mut parts: Vec<_> = taken
            .range(..range.end)
            .rev()
            .take_while(|&(_, &end)| end > range.start)
            .map(|(&start, &end)| start.max(range.start)..end.min(range.end))
            .collect();
        parts.reverse();
        parts
    }

    fn not_taken(&self, range: Range<usize>) -> Vec<Range<usize>> {
        let taken = self.taken_parts(&range);
        without(range, &taken)
    }

    /// `range` is taken on from now on.
    fn record(&self, range: &Range<usize>) {
        note_taken(range, true);
        let mut taken = self.taken();
        let (mut start, mut end) = (range.start, range.end);
        // Joined with its neighbours.
        if let Some((&before, &until)) = taken.range(..=start).next_back()
            && until >= start
        {
            start = before;
            end = end.max(until);
        }
        while let Some((&next, &until)) = taken.range(start..).next()
            && next <= end
        {
            end = end.max(until);
            taken.remove(&next);
        }
        taken.insert(start, end);
    }

    /// `range` is not taken on any more.
    fn give_up(&self, range: &Range<usize>) {
        let parts = self.taken_parts(range);
        for part in &parts {
            note_taken(part, false);
        }
        let mut taken = self.taken();
        for part in parts {
            let (&start, &end) = taken
                .range(..=part.start)
                .next_back()
                .expect("a part of something taken on");
            taken.remove(&start);
            if start < part.start {
                taken.insert(start, part.start);
            }
            if part.end < end {
                taken.insert(part.end, end);
            }
        }
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<usize, usize>> {
        lock(&self.taken)
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

/// Whether a system call's result is an error number.
fn is_error(result: isize) -> bool {
    (-4095..0).contains(&result)
}

/// The windows that `range` touches: an address in each, and which pages of the window are in the range.
fn windows_of(range: &Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
    let (start, end) = (range.start, range.end);
    let first = start / WINDOW_BYTES * WINDOW_BYTES;
    (first..end).step_by(WINDOW_BYTES).map(move |base| {
        let from = start.max(base);
        let to = end.min(base + WINDOW_BYTES);
        (
            base,
            (from - base) / PAGE_SIZE..(to - base).div_ceil(PAGE_SIZE),
        )
    })
}

/// Says to whoever makes system calls that `range` is, or is not, taken on.
fn note_taken(range: &Range<usize>, taken: bool) {
    for (at, part) in windows_of(range) {
        let Some(window) = windows::find(at) else {
            continue;
        };
        for chunk in part.start / CHUNK_PAGES..part.end.div_ceil(CHUNK_PAGES) {
            let mask = chunk_mask(&part, chunk);
            window.mm.space.note_taken(chunk, mask, taken);
        }
    }
}

/// Whether all of `range` that is taken on is in memory. Takes no lock; where the range is held, it stays so.
fn is_there(range: &Range<usize>) -> bool {
    windows_of(range).all(|(at, part)| {
        let Some(window) = windows::find(at) else {
            return true;
        };
        let (space, table) = (&window.mm.space, &window.mm.table);
        (part.start / CHUNK_PAGES..part.end.div_ceil(CHUNK_PAGES)).all(|chunk| {
            let taken = space.taken(chunk) & chunk_mask(&part, chunk);
            taken == 0
                || !space.is_leaving(chunk)
                    && mask::filter(taken, |index| {
                        let word = table.load(chunk * CHUNK_PAGES + index);
                        word.state() == PteState::Present
                    }) == taken
        })
    })
}

/// `range` without those in `holes`, which are sorted and need not be whole pages.
fn without(range: Range<usize>, holes: &[Range<usize>]) -> Vec<Range<usize>> {
    let (mut at, mut parts) = (range.start, Vec::new());
    for hole in holes {
        let hole = hole.start & !(PAGE_SIZE - 1)..hole.end.next_multiple_of(PAGE_SIZE);
        if hole.end <= at || hole.start >= range.end {
            continue;
        }
        if hole.start > at {
            parts.push(at..hole.start);
        }
        at = hole.end;
    }
    if at < range.end {
        parts.push(at..range.end);
    }
    parts
}
