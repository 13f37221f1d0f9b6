//! The engine over the process's own memory gives that back to the system, and some of it cannot be read: accesses to that
//! fail from then on, whatever the program does, and never see anything else.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::child::{case, child, complaints, said, succeeded, was_skipped};
use common::{PAGE, scripted, skip};
use userswap::{DeviceError, Engine, Error, FaultMode, Process};
use userswap_core::script::Point;
use userswap_sys::uffd::OpenError;

const PAGES: usize = 256;

/// Reads of the slot fail while it is set.
static BROKEN: AtomicBool = AtomicBool::new(false);
const BAD_SLOT: u64 = 40;

#[test]
fn what_cannot_be_read_fails_for_good_when_memory_goes_back() {
    for mode in ["inline", "thread"] {
        let output = child("child_retires", mode);
        if !was_skipped(&output) {
            succeeded(&output);
            let lines = complaints(&output);
            assert_eq!(lines.len(), 1, "{mode}: {}", said(&output));
            assert!(lines[0].contains("errno 5"), "{}", lines[0]);
        }
    }
}

#[test]
#[ignore = "the other process of the test above"]
fn child_retires() {
    let Some((process, start)) = all_out("child_retires") else {
        return;
    };
    let page = |index: usize| (start + index * PAGE) as *mut u64;
    process.take_no_more();
    process.retire();
    assert_eq!(
        process.taken_bytes(),
        0,
        "nobody is asked about it any more"
    );
    // Nor may the contents come back later, when the program has made something else of its memory.
    BROKEN.store(false, Ordering::SeqCst);
    let bad = unreadable(start);
    assert_eq!(bad.len(), 1, "{bad:?}");
    for index in (0..PAGES).filter(|index| !bad.contains(index)) {
        // SAFETY: as above.
        assert_eq!(unsafe { page(index).read() }, index as u64 + 1);
    }
    // A child of fork, which the engine does not see, has the same.
    // SAFETY: the child only has the system look at its memory, and leaves by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let right = unreadable(start) == bad;
        // SAFETY: ends the child without this process's exit handlers.
        unsafe { libc::_exit(i32::from(!right)) };
    }
    let mut status = 0;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child's exit status");
    // So has memory that moves.
    let target = map(PAGES);
    // SAFETY: moves this test's mapping over another of its own.
    let moved = unsafe {
        libc::mremap(
            start as *mut _,
            PAGES * PAGE,
            PAGES * PAGE,
            libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
            target as *mut libc::c_void,
        )
    };
    assert_eq!(moved as usize, target);
    assert_eq!(unreadable(target), bad);
    assert_eq!(process.stats().bugs, 0);
}

#[test]
fn what_cannot_be_read_fails_when_faults_go_over_to_threads() {
    if !userswap_sys::host::userfaultfd_access().full() {
        return skip(
            "faults go over",
            "faults in system calls may not be handled",
        );
    }
    let output = child("child_goes_over", "auto");
    if !was_skipped(&output) {
        succeeded(&output);
        let lines = complaints(&output);
        assert!(
            lines.iter().all(|line| line.contains("errno 5")),
            "{lines:?}"
        );
    }
}

#[test]
#[ignore = "the other process of the test above"]
fn child_goes_over() {
    let Some((process, start)) = all_out("child_goes_over") else {
        return;
    };
    process.go_over().expect("it goes over");
    let bad = unreadable(start);
    assert_eq!(bad.len(), 1, "{bad:?}");
    let page = |index: usize| (start + index * PAGE) as *mut u64;
    for index in (0..PAGES).filter(|index| !bad.contains(index)) {
        // SAFETY: in the mapping, and readable.
        assert_eq!(unsafe { page(index).read() }, index as u64 + 1);
    }
    // A touch is the end of whoever touches it.
    // SAFETY: the child touches a page of this test's, and leaves by _exit if it can.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above. What Rust gives its threads for handlers is too little to tell of the page on.
        unsafe {
            let mut none: libc::stack_t = std::mem::zeroed();
            none.ss_flags = libc::SS_DISABLE;
            libc::sigaltstack(&raw const none, std::ptr::null_mut());
            libc::_exit(page(bad[0]).read() as i32)
        };
    }
    let mut status = 0;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS);
    assert_eq!(process.stats().bugs, 0);
}

#[test]
fn pages_whose_mapping_is_gone_do_not_hide_one_that_cannot_be_read() {
    for mode in ["inline", "thread"] {
        let output = child("child_retires_with_holes", mode);
        if !was_skipped(&output) {
            succeeded(&output);
        }
    }
}

#[test]
#[ignore = "the other process of the test above"]
fn child_retires_with_holes() {
    let Some((process, start)) = all_out("child_retires_with_holes") else {
        return;
    };
    // Behind the engine's back, as by a call that nobody saw: before the page that cannot be read, and after it.
    let holes = [BAD_SLOT as usize - 20, BAD_SLOT as usize + 20];
    for hole in holes {
        // SAFETY: a page of this test's mapping that it does not use again.
        let unmapped = unsafe { libc::munmap((start + hole * PAGE) as *mut _, PAGE) };
        assert_eq!(unmapped, 0);
    }
    process.take_no_more();
    process.retire();
    assert_eq!(process.taken_bytes(), 0);
    let bad = unreadable(start);
    assert_eq!(bad.len(), 3, "the two and the one between them: {bad:?}");
    for index in (0..PAGES).filter(|index| !bad.contains(index)) {
        let page = (start + index * PAGE) as *const u64;
        // SAFETY: in the mapping, and readable.
        assert_eq!(unsafe { page.read() }, index as u64 + 1);
    }
}

/// An engine over this process, and where `PAGES` pages are that it has swapped out, one of which cannot be read any more.
fn all_out(test: &str) -> Option<(&'static Process, usize)> {
    let mode = case()?;
    let device = scripted(PAGES as u64, |point, slot| {
        let fails = point == Point::BeforeRead && slot == BAD_SLOT;
        if fails && BROKEN.load(Ordering::SeqCst) {
            return Err(DeviceError::Io(5));
        }
        Ok(())
    });
    let mode: FaultMode = mode.parse().expect("a mode");
    let process = match Process::start(Engine::builder().custom_device(device).faults(mode)) {
        Ok(process) => process,
        Err(Error::Userfaultfd(refused @ OpenError::Refused { .. })) => {
            skip(test, refused);
            return None;
        }
        Err(error) => panic!("an engine over this process: {error}"),
    };
    let start = map(PAGES);
    for index in 0..PAGES {
        let page = (start + index * PAGE) as *mut u64;
        // SAFETY: in the mapping made above.
        unsafe { page.write(index as u64 + 1) };
    }
    let range = start..start + PAGES * PAGE;
    process.take_on(|found| found(range.clone()));
    assert_eq!(process.page_out(&range), PAGES);
    BROKEN.store(true, Ordering::SeqCst);
    Some((process, start))
}

/// The pages that the system cannot read for this process, whose access would end it.
fn unreadable(start: usize) -> Vec<usize> {
    let mut ends = [0; 2];
    // SAFETY: makes a pipe; the ends are this function's.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    let is_bad = |index: &usize| {
        let at = (start + index * PAGE) as *const libc::c_void;
        // SAFETY: writes a byte of the test's mapping, if it can be read, and reads it again.
        unsafe {
            let written = libc::write(ends[1], at, 1);
            let mut byte = 0_u8;
            written != 1 || libc::read(ends[0], (&raw mut byte).cast(), 1) != 1
        }
    };
    let bad = (0..PAGES).filter(is_bad).collect();
    for end in ends {
        // SAFETY: opened above.
        unsafe { libc::close(end) };
    }
    bad
}

fn map(pages: usize) -> usize {
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            pages * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    assert_ne!(start, libc::MAP_FAILED);
    start as usize
}
