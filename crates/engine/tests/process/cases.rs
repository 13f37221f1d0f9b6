//! The engine over the process's own memory: what the program maps, unmaps, moves, discards and forks keeps its
//! contents, swapped out or not.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use userswap::{Engine, Error, Process};
use userswap_sys::uffd::OpenError;

use super::common::{MIB, PAGE, skip};

/// The one engine of this process; tests take turns, since all change its address space. `None`: this host refuses it.
pub(crate) fn process() -> Option<(&'static Process, MutexGuard<'static, ()>)> {
    static PROCESS: OnceLock<Option<&'static Process>> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let process = PROCESS.get_or_init(|| {
        let builder = Engine::builder().limit(512 << 20).faults(super::FAULTS);
        match Process::start(builder) {
            Ok(process) => super::ready(process).then_some(process),
            Err(Error::Userfaultfd(refused @ OpenError::Refused { .. })) => {
                skip("process", refused);
                None
            }
            Err(error) => panic!("an engine over this process: {error}"),
        }
    });
    process.map(|process| (process, turn))
}

pub(crate) fn map(len: usize) -> Range<usize> {
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    assert_ne!(start, libc::MAP_FAILED);
    start as usize..start as usize + len
}

/// Maps anew what is not mapped.
pub(crate) fn map_at(range: &Range<usize>) {
    // SAFETY: nothing is mapped there.
    let start = unsafe {
        libc::mmap(
            range.start as *mut _,
            range.len(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    assert_eq!(start as usize, range.start);
}

/// The kernel's result of a call made through libc.
fn result(returned: isize) -> isize {
    if returned == -1 {
        -(std::io::Error::last_os_error().raw_os_error().unwrap_or(0) as isize)
    } else {
        returned
    }
}

pub(crate) fn unmap(process: &Process, range: Range<usize>) {
    let done = process.unmap(range.clone(), || {
        // SAFETY: a mapping of this test's, which uses it no more.
        result(unsafe { libc::munmap(range.start as *mut _, range.len()) } as isize)
    });
    assert_eq!(done, 0);
}

fn word(address: usize) -> *mut u64 {
    address as *mut u64
}

pub(crate) fn fill(range: &Range<usize>, version: u64) {
    for page in range.clone().step_by(PAGE) {
        // SAFETY: in a mapping of this test's.
        unsafe { word(page).write_volatile(page as u64 ^ version) };
    }
}

/// Pages whose word is not that of `version`, written when they lay at `moved_from`.
pub(crate) fn wrong(range: &Range<usize>, moved_from: usize, version: u64) -> usize {
    let pages = range.clone().step_by(PAGE);
    pages
        .filter(|page| {
            // SAFETY: in a mapping of this test's.
            let found = unsafe { word(*page).read_volatile() };
            found != (page - range.start + moved_from) as u64 ^ version
        })
        .count()
}

pub(crate) fn take_on(process: &Process, range: &Range<usize>) -> u64 {
    process.take_on(|found| found(range.clone()))
}

#[test]
fn what_is_taken_on_goes_out_and_comes_back() {
    let Some((process, _turn)) = process() else {
        return;
    };
    let range = map(8 * MIB);
    fill(&(range.start..range.start + 4 * MIB), 1);
    assert_eq!(take_on(process, &range), 1024);
    assert_eq!(take_on(process, &range), 0, "once is enough");
    assert_eq!(process.page_out(&range), 1024);
    assert!(process.stats().swapped_bytes >= 4 << 20);
    assert_eq!(
        wrong(&(range.start..range.start + 4 * MIB), range.start, 1),
        0
    );
    // What was never touched is zeros, and can be used.
    // SAFETY: in this test's mapping.
    assert_eq!(unsafe { word(range.end - PAGE).read_volatile() }, 0);
    fill(&(range.start + 4 * MIB..range.end), 2);
    assert_eq!(process.page_out(&range), 2048);
    assert_eq!(
        wrong(
            &(range.start + 4 * MIB..range.end),
            range.start + 4 * MIB,
            2
        ),
        0
    );
    unmap(process, range);
    assert_eq!(process.stats().swapped_bytes, 0, "its slots are free");
    assert_eq!(process.stats().bugs, 0);
}

#[test]
fn what_is_made_while_memory_is_looked_for_is_told_apart() {
    let Some((process, _turn)) = process() else {
        return;
    };
    let theirs = map(16 * PAGE);
    let mut ours = 0..0;
    process.take_on(|found| {
        // As who reads the list of mappings makes room for it.
        ours = map(16 * PAGE);
        userswap_sys::own::note(&ours);
        found(theirs.clone());
        found(ours.clone());
    });
    assert!(process.is_taken_on(&theirs));
    assert!(!process.is_taken_on(&ours));
    userswap_sys::own::forget(&ours);
    unmap(process, ours);
    unmap(process, theirs);
}

#[test]
fn a_mapping_in_the_place_of_an_old_one_starts_with_zeros() {
    let Some((process, _turn)) = process() else {
        return;
    };
    let range = map(2 * MIB);
    fill(&range, 3);
    take_on(process, &range);
    process.page_out(&range);
    let half = range.start + MIB..range.end;
    let fixed = process.unmap(half.clone(), || {
        // SAFETY: replaces a part of this test's mapping.
        result(unsafe {
            libc::mmap(
                half.start as *mut _,
                half.len(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        } as isize)
    });
    assert_eq!(fixed as usize, half.start);
    let zeros = half.clone().step_by(PAGE).all(|page| {
        // SAFETY: in this test's mapping.
        unsafe { word(page).read_volatile() == 0 }
    });
    assert!(zeros, "old contents in a new mapping");
    assert_eq!(wrong(&(range.start..half.start), range.start, 3), 0);
    fill(&half, 4);
    assert_eq!(take_on(process, &range), 256, "the new half");
    process.page_out(&range);
    assert_eq!(wrong(&half, half.start, 4), 0);
    unmap(process, range);
}

#[test]
fn what_moves_keeps_its_contents() {
    let Some((process, _turn)) = process() else {
        return;
    };
    let old = map(4 * MIB + 3 * PAGE);
    fill(&old, 5);
    take_on(process, &old);
    process.page_out(&(old.start..old.start + 3 * MIB));
    // To a place whose pages have other indices in their chunks, and longer.
    let target = map(8 * MIB);
    let new_len = 6 * MIB;
    let to = target.start + 5 * PAGE;
    let moved = process.remap(old.clone(), new_len, Some(to), false, || {
        // SAFETY: moves this test's mapping onto a part of another of its own.
        result(unsafe {
            libc::mremap(
                old.start as *mut _,
                old.len(),
                new_len,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                to as *mut libc::c_void,
            )
        } as isize)
    });
    assert_eq!(moved as usize, to);
    let new = to..to + old.len();
    assert_eq!(wrong(&new, old.start, 5), 0);
    // SAFETY: in this test's mapping.
    let beyond = unsafe { word(to + new_len - PAGE).read_volatile() };
    assert_eq!(beyond, 0, "what it grew by");
    process.page_out(&(to..to + new_len));
    assert_eq!(wrong(&new, old.start, 5), 0);
    unmap(process, target);
    assert_eq!(process.stats().swapped_bytes, 0);
    assert_eq!(process.stats().bugs, 0);
}

fn advise(range: &Range<usize>, advice: i32) -> isize {
    // SAFETY: of this test's mappings; advice that changes no contents, or that the test wants.
    result(unsafe { libc::madvise(range.start as *mut _, range.len(), advice) } as isize)
}

/// The system joins a mapping that moves to where its former neighbour is, and what it joins forgets that it is ours.
#[test]
fn what_moves_next_to_its_former_neighbour_leaves_it_ours() {
    moves_in_halves(|_, _| {});
}

/// What moves is told apart by advice, which its neighbour may have, too: given while it is ours, or before.
#[test]
fn what_moves_next_to_a_neighbour_with_advice_leaves_it_ours() {
    moves_in_halves(|process, neighbour| {
        for advice in [libc::MADV_SEQUENTIAL, libc::MADV_RANDOM] {
            let done = process.advise_reading(neighbour, |part| advise(part, advice));
            assert_eq!(done, 0);
        }
    });
    moves_in_halves(|process, neighbour| {
        process.leave_alone(neighbour);
        assert_eq!(advise(neighbour, libc::MADV_RANDOM), 0);
        take_on(process, neighbour);
    });
}

/// Moves two halves of a mapping one after the other; `advised` is told the one that is there.
fn moves_in_halves(advised: impl Fn(&Process, &Range<usize>)) {
    let Some((process, _turn)) = process() else {
        return;
    };
    let (old, new) = (map(4 * MIB), map(4 * MIB));
    fill(&old, 10);
    take_on(process, &old);
    for half in [0, 2 * MIB] {
        if half > 0 {
            let there = new.start..new.start + half;
            advised(process, &there);
            process.page_out(&there);
        }
        let (from, to) = (old.start + half, new.start + half);
        let moved = process.remap(from..from + 2 * MIB, 2 * MIB, Some(to), false, || {
            // SAFETY: moves a part of this test's mapping onto a part of another of its own.
            result(unsafe {
                libc::mremap(
                    from as *mut _,
                    2 * MIB,
                    2 * MIB,
                    libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                    to as *mut libc::c_void,
                )
            } as isize)
        });
        assert_eq!(moved as usize, to);
        process.page_out(&(to..to + 2 * MIB));
    }
    assert_eq!(wrong(&new, old.start, 10), 0);
    unmap(process, new);
    assert_eq!(process.stats().swapped_bytes, 0);
    assert_eq!(process.stats().bugs, 0);
}

#[test]
fn what_moves_away_from_a_mapping_that_stays_leaves_zeros_that_are_known() {
    let Some((process, _turn)) = process() else {
        return;
    };
    let old = map(4 * MIB);
    fill(&old, 8);
    take_on(process, &old);
    process.page_out(&(old.start..old.start + 3 * MIB));
    let moved = process.remap(old.clone(), old.len(), None, true, || {
        // SAFETY: moves this test's own mapping, which stays mapped.
        result(unsafe {
            libc::mremap(
                old.start as *mut _,
                old.len(),
                old.len(),
                libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP,
                0,
            )
        } as isize)
    }) as usize;
    let new = moved..moved + old.len();
    assert_eq!(wrong(&new, old.start, 8), 0);
    let zeros = old.clone().step_by(PAGE).all(|page| {
        // SAFETY: in this test's mapping.
        unsafe { word(page).read_volatile() == 0 }
    });
    assert!(zeros, "the old place");
    assert!(process.is_taken_on(&old), "its faults are still ours");
    fill(&old, 9);
    process.page_out(&old);
    assert_eq!(wrong(&old, old.start, 9), 0);
    unmap(process, old);
    unmap(process, new);
    assert_eq!(process.stats().swapped_bytes, 0);
    assert_eq!(process.stats().bugs, 0);
}

#[test]
fn what_is_discarded_reads_as_zeros() {
    let Some((process, _turn)) = process() else {
        return;
    };
    let range = map(MIB);
    fill(&range, 6);
    take_on(process, &range);
    process.page_out(&(range.start..range.start + MIB / 2));
    let middle = range.start + MIB / 4..range.end - MIB / 4;
    let done = process.discard(middle.clone(), || {
        // SAFETY: this test's mapping.
        result(
            unsafe { libc::madvise(middle.start as *mut _, middle.len(), libc::MADV_DONTNEED) }
                as isize,
        )
    });
    assert_eq!(done, 0);
    for page in range.clone().step_by(PAGE) {
        // SAFETY: in this test's mapping.
        let found = unsafe { word(page).read_volatile() };
        let expected = if middle.contains(&page) {
            0
        } else {
            page as u64 ^ 6
        };
        assert_eq!(found, expected, "page {:#x}", page - range.start);
    }
    unmap(process, range);
}

#[test]
fn both_sides_of_a_fork_have_everything() {
    let Some((process, _turn)) = process() else {
        return;
    };
    let range = map(8 * MIB);
    fill(&range, 7);
    take_on(process, &range);
    process.page_out(&(range.start..range.start + 6 * MIB));
    process.fork_begin();
    // SAFETY: the child only touches this test's memory, and leaves by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let mut bad = usize::from(process.fork_end(userswap::Side::Child).is_err()) * 1000;
        // Faults are resolved in this thread now; write half, read all.
        let first = range.start..range.start + 4 * MIB;
        bad += wrong(&first, range.start, 7);
        fill(&first, 8);
        bad += usize::from(process.start_threads().is_err()) * 1000;
        bad += wrong(&(first.end..range.end), first.end, 7);
        process.page_out(&range);
        bad += wrong(&first, range.start, 8);
        bad += wrong(&(first.end..range.end), first.end, 7);
        bad += process.stats().bugs as usize;
        // SAFETY: ends the child without running this process's exit handlers.
        unsafe { libc::_exit(bad.min(100) as i32) };
    }
    process
        .fork_end(userswap::Side::Parent)
        .expect("the parent");
    assert_eq!(wrong(&range, range.start, 7), 0, "the parent's own");
    let mut status = 0;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child's exit status: pages that were wrong");
    assert_eq!(wrong(&range, range.start, 7), 0);
    unmap(process, range);
}

#[test]
fn threads_that_change_the_address_space_and_fault_do_not_meet() {
    let Some((process, _turn)) = process() else {
        return;
    };
    let kept = map(16 * MIB);
    fill(&kept, 9);
    take_on(process, &kept);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                process.page_out(&kept);
            }
        });
        let changers: Vec<_> = (0..2)
            .map(|seed| {
                scope.spawn(move || {
                    for round in 0..200 {
                        let range = map(MIB / 2);
                        fill(&range, seed + round);
                        take_on(process, &range);
                        if round % 2 == 0 {
                            process.page_out(&range);
                        }
                        assert_eq!(wrong(&range, range.start, seed + round), 0);
                        unmap(process, range);
                    }
                })
            })
            .collect();
        for _ in 0..20 {
            assert_eq!(wrong(&kept, kept.start, 9), 0);
        }
        for changer in changers {
            changer.join().expect("a changer");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(wrong(&kept, kept.start, 9), 0);
    unmap(process, kept);
    assert_eq!(process.stats().bugs, 0);
}

#[test]
fn pages_dropped_unseen_read_as_zeros() {
    let Some((process, _turn)) = process() else {
        return;
    };
    let range = map(MIB);
    fill(&range, 10);
    take_on(process, &range);
    // SAFETY: this test's mapping.
    let dropped = unsafe { libc::madvise(range.start as *mut _, range.len(), libc::MADV_DONTNEED) };
    assert_eq!(dropped, 0);
    for page in range.clone().step_by(PAGE) {
        // SAFETY: in this test's mapping.
        assert_eq!(unsafe { word(page).read_volatile() }, 0);
    }
    unmap(process, range);
    assert_eq!(process.stats().bugs, 0);
}

#[test]
fn what_is_left_to_the_system_again_has_its_contents() {
    let Some((process, _turn)) = process() else {
        return;
    };
    let range = map(4 * MIB);
    fill(&range, 11);
    take_on(process, &range);
    process.page_out(&range);
    let middle = range.start + MIB..range.end - MIB;
    process.leave_alone(&middle);
    assert!(!process.is_taken_on(&middle) && process.is_taken_on(&range));
    assert_eq!(wrong(&range, range.start, 11), 0);
    process.page_out(&range);
    assert_eq!(wrong(&range, range.start, 11), 0);
    take_on(process, &range);
    process.page_out(&range);
    process.retire();
    assert_eq!(process.taken_bytes(), 0);
    assert_eq!(process.stats().swapped_bytes, 0);
    assert_eq!(wrong(&range, range.start, 11), 0);
    // SAFETY: a mapping of this test's, which uses it no more.
    let unmapped = unsafe { libc::munmap(range.start as *mut _, range.len()) };
    assert_eq!(unmapped, 0);
}
