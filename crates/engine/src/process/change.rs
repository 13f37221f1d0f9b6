//! The program's changes of its mappings: the words tell the truth again before anything moves.

use std::ops::Range;

use userswap_core::device::PAGE_SIZE;
use userswap_core::mask;
use userswap_core::page_table::CHUNK_PAGES;
use userswap_sys::Errno;
use userswap_sys::mapping::{self, present_mask};
use userswap_sys::own::Within;
use userswap_sys::signals::{self, Blocked};

use super::Process;
use super::taken::windows_of;
use crate::held;
use crate::reclaim::chunk_mask;
use crate::shared::RegionMemory;
use crate::windows;

impl Process {
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

    /// Runs `call` for the parts of `range` that are not taken on: advice about how a file is read (MADV_RANDOM,
    /// MADV_SEQUENTIAL, MADV_NORMAL). To other memory it means nothing but to be told apart from its neighbours, and that
    /// is for [`Process::remap`] to say. Returns the last error, or 0.
    pub fn advise_reading(
        &self,
        range: &Range<usize>,
        mut call: impl FnMut(&Range<usize>) -> isize,
    ) -> isize {
        let _blocked = Blocked::new();
        let _within = Within::new();
        let _changes = self.changes_read();
        if !self.is_taken(range) {
            return call(range);
        }
        let results = self.not_taken(range.clone()).into_iter();
        results
            .map(|part| call(&part))
            .filter(|&result| is_error(result))
            .last()
            .unwrap_or(0)
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
        self.unguard(&old);
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

    /// Nothing of `range` is guarded any more: what moves, or is registered anew, could take the protection along.
    pub(super) fn unguard(&self, range: &Range<usize>) {
        for (at, part) in self.taken_parts(range).iter().flat_map(windows_of) {
            let Some(window) = windows::find(at) else {
                continue;
            };
            window.mm.space.unguard_all(&part);
        }
    }

    /// What is swapped out of `range` is not needed any more, and what was in memory there is gone.
    pub(super) fn forget(&self, range: &Range<usize>) {
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

    /// What is taken on in `range` and not mapped any more is gone: a call may fail after it has taken mappings away.
    pub(super) fn forget_unmapped(&self, range: &Range<usize>) {
        for hole in self.unmapped(range) {
            self.forget(&hole);
            self.give_up(&hole);
        }
    }

    /// What is taken on and not mapped: in a child of fork, what the program had left out (MADV_DONTFORK); after a call that
    /// failed, what it took away before.
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
}

/// Whether a system call's result is an error number.
fn is_error(result: isize) -> bool {
    (-4095..0).contains(&result)
}
