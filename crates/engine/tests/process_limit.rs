//! The engine over the process's own memory under a limit that cannot be held: the program goes on, over the limit.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::child::{case, child, complaints, said, succeeded, was_skipped};
use common::{MIB, PAGE, Random, skip};
use userswap::{Engine, Error, FaultMode, Process};
use userswap_sys::uffd::OpenError;

const LIMIT: u64 = 16 << 20;

/// Where the pieces of the test's memory lie: far apart, as a program's heap, stacks and mappings do.
const PLACES: [usize; 6] = [0x10, 0x20, 0x30, 0x40, 0x50, 0x60];
const PIECE: usize = 8 * MIB;

/// A minute is what the child may take; a few seconds is what it does.
#[test]
fn what_does_not_compress_does_not_stand_still() {
    for mode in ["inline", "thread"] {
        let output = child("child_of_noise", mode);
        if !was_skipped(&output) {
            succeeded(&output);
            let lines = complaints(&output);
            assert_eq!(lines.len(), 1, "{mode}: {}", said(&output));
            assert!(lines[0].contains("cannot be held"), "{}", lines[0]);
        }
    }
}

#[test]
#[ignore = "the other process of the test above"]
fn child_of_noise() {
    let Some(mode) = case() else { return };
    let mode: FaultMode = mode.parse().expect("a mode");
    let process = match Process::start(Engine::builder().limit(LIMIT).faults(mode)) {
        Ok(process) => process,
        Err(Error::Userfaultfd(refused @ OpenError::Refused { .. })) => {
            return skip("child_of_noise", refused);
        }
        Err(error) => panic!("an engine over this process: {error}"),
    };
    let pieces = PLACES.map(|place| map(place << 32));
    for &piece in &pieces {
        process.take_on(|found| found(piece..piece + PIECE));
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // The limit as it is where others of a tree come and go.
        scope.spawn(|| {
            let mut change = 0;
            while !done.load(Ordering::Relaxed) {
                change = (change + 7 * PAGE as u64) % (LIMIT / 64);
                process.set_limit(LIMIT - change);
                process.note_resident(process.used_bytes());
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let writers: Vec<_> = (0..2)
            .map(|seed| scope.spawn(move || fill_and_check(&pieces, seed)))
            .collect();
        for writer in writers {
            writer.join().expect("every page is right");
        }
        done.store(true, Ordering::Relaxed);
    });
    let stats = process.stats();
    assert!(process.used_bytes() > LIMIT, "{stats:?}");
    assert_eq!(stats.bugs, 0);
}

/// Fills every other page of the pieces, and finds in random pages what they have to hold, while some are filled anew.
fn fill_and_check(pieces: &[usize], seed: usize) {
    let own: Vec<_> = {
        let pages = pieces.iter().flat_map(|&at| (at..at + PIECE).step_by(PAGE));
        pages.skip(seed).step_by(2).collect()
    };
    let mut versions = vec![0; own.len()];
    for (&page, &version) in own.iter().zip(&versions) {
        fill(page, version);
    }
    let mut random = Random::new(seed as u64 + 1);
    for _ in 0..3_000 {
        let at = random.below(own.len());
        check(own[at], versions[at]);
        if at.is_multiple_of(4) {
            versions[at] += 1;
            fill(own[at], versions[at]);
        }
    }
}

/// The words of a page that are not zero: a part of what compresses a little, all of what does not at all.
fn noise(page: usize, version: u64) -> impl Iterator<Item = (*mut u64, u64)> {
    let mut random = Random::new(page as u64 + version);
    let words = PAGE / size_of::<u64>();
    let count = if (page / PAGE).is_multiple_of(3) {
        words
    } else {
        words / 8 * 5
    };
    (0..count).map(move |word| ((page as *mut u64).wrapping_add(word), random.next()))
}

fn fill(page: usize, version: u64) {
    for (word, value) in noise(page, version) {
        // SAFETY: in this test's mappings, in a page of this thread's.
        unsafe { word.write(value) };
    }
}

fn check(page: usize, version: u64) {
    for (word, value) in noise(page, version) {
        // SAFETY: as above.
        assert_eq!(unsafe { word.read() }, value, "page {page:#x}");
    }
}

fn map(at: usize) -> usize {
    // SAFETY: a fresh anonymous mapping where nothing is.
    let start = unsafe {
        libc::mmap(
            at as *mut _,
            PIECE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE
                | libc::MAP_ANONYMOUS
                | libc::MAP_NORESERVE
                | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    assert_eq!(start as usize, at);
    at
}
