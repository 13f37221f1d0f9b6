//! Copies of regions: both sides go on as if they had never met.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::child::{case, child, succeeded};
use common::pages::{Content, Pages};
use common::{MIB, PAGE, Random, build, in_both_modes, wait_until};
use userswap::{Advice, Engine, Region};

const COUNT: usize = 300;

fn filled(engine: &Engine, version: u64) -> Region {
    let region = engine.region(COUNT * PAGE).expect("a region");
    let pages = Pages::of(&region);
    for page in 0..COUNT {
        pages.write(page, version, Content::Text);
    }
    region
}

fn verify(region: &Region, version: impl Fn(usize) -> u64) {
    let pages = Pages::of(region);
    for page in 0..COUNT {
        pages.verify(page, version(page), Content::Text);
    }
}

/// Nothing is left in the store, nor of the budget.
#[track_caller]
fn assert_empty(engine: &Engine) {
    wait_until("the store to be empty", || {
        engine.stats().swapped_bytes == 0
    });
    let stats = engine.stats();
    assert_eq!(
        (stats.stored_bytes, stats.resident_bytes, stats.bugs),
        (0, 0, 0)
    );
}

#[test]
fn both_sides_write_from_several_threads() {
    in_both_modes(
        "both_sides_write",
        |builder| builder,
        |engine| {
            let parent = filled(engine, 1);
            parent
                .advise(0..COUNT / 2 * PAGE, Advice::PageOut)
                .expect("advice");
            let child = parent.fork().expect("fork");
            thread::scope(|scope| {
                for (side, region) in [&parent, &child].into_iter().enumerate() {
                    for worker in 0..3_usize {
                        let pages = Pages::of(region);
                        scope.spawn(move || {
                            let own = (worker..COUNT).step_by(3);
                            for (turn, page) in own.clone().enumerate() {
                                pages.verify(page, 1, Content::Text);
                                pages.write(page, 100 + side as u64, Content::Text);
                                if turn % 20 == worker {
                                    region
                                        .advise(0..COUNT * PAGE, Advice::PageOut)
                                        .expect("advice");
                                }
                            }
                            for page in own {
                                pages.verify(page, 100 + side as u64, Content::Text);
                            }
                        });
                    }
                }
            });
            verify(&parent, |_| 100);
            verify(&child, |_| 101);
            drop(parent);
            verify(&child, |_| 101);
            drop(child);
            assert_empty(engine);
        },
    );
}

#[test]
fn a_copy_is_taken_chunk_by_chunk_while_the_original_is_written() {
    in_both_modes(
        "taken_while_written",
        |builder| builder,
        |engine| {
            let parent = filled(engine, 1);
            let pages = Pages::of(&parent);
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                let writer = scope.spawn(|| {
                    let mut version = 1;
                    while version < 3 || !stop.load(Ordering::Relaxed) {
                        version += 1;
                        for page in 0..COUNT {
                            // Word by word, so that a copy in between is whole words of one of two versions.
                            pages.word(page).store(version, Ordering::Relaxed);
                        }
                    }
                    version
                });
                for _ in 0..20 {
                    let child = parent.fork().expect("fork");
                    let copied = Pages::of(&child);
                    let words: Vec<u64> = (0..COUNT)
                        .map(|page| copied.word(page).load(Ordering::Relaxed))
                        .collect();
                    for (page, &word) in words.iter().enumerate() {
                        assert_eq!(
                            copied.word(page).load(Ordering::Relaxed),
                            word,
                            "the copy changes"
                        );
                        assert!(copied.peek(page, PAGE - 1) == pages.peek(page, PAGE - 1));
                    }
                }
                stop.store(true, Ordering::Relaxed);
                writer.join().expect("the writer");
            });
            drop(parent);
            assert_empty(engine);
        },
    );
}

#[test]
fn grandchildren_and_every_order_of_leaving() {
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
        in_both_modes(
            "grandchildren",
            |builder| builder,
            |engine| {
                let first = filled(engine, 1);
                first
                    .advise(0..200 * PAGE, Advice::PageOut)
                    .expect("advice");
                let second = first.fork().expect("fork");
                Pages::of(&second).write(7, 2, Content::Text);
                let third = second.fork().expect("a grandchild");
                Pages::of(&third).write(8, 3, Content::Text);
                let fourth = first.fork().expect("another child");
                let mut regions = [Some(first), Some(second), Some(third), Some(fourth)];
                let versions: [fn(usize) -> u64; 4] = [
                    |_| 1,
                    |page| if page == 7 { 2 } else { 1 },
                    |page| match page {
                        7 => 2,
                        8 => 3,
                        _ => 1,
                    },
                    |_| 1,
                ];
                for leaving in order {
                    regions[leaving] = None;
                    for (region, version) in regions.iter().zip(versions) {
                        if let Some(region) = region {
                            verify(region, version);
                            region
                                .advise(0..COUNT * PAGE, Advice::PageOut)
                                .expect("advice");
                        }
                    }
                }
                assert_empty(engine);
            },
        );
    }
}

#[test]
fn pinned_pages_are_copied_and_stay_pinned() {
    in_both_modes(
        "pinned_pages_are_copied",
        |builder| builder,
        |engine| {
            let parent = filled(engine, 1);
            let pin = parent.pin(60 * PAGE..140 * PAGE).expect("a pin");
            let child = parent.fork().expect("fork");
            for page in 60..140 {
                assert!(parent.is_resident(page * PAGE));
            }
            Pages::of(&parent).write(100, 2, Content::Text);
            verify(&child, |_| 1);
            parent
                .advise(0..COUNT * PAGE, Advice::PageOut)
                .expect("advice");
            assert!(parent.is_resident(139 * PAGE) && !parent.is_resident(140 * PAGE));
            drop(pin);
            verify(&parent, |page| if page == 100 { 2 } else { 1 });
            drop(parent);
            drop(child);
            assert_empty(engine);
        },
    );
}

#[test]
fn system_calls_into_pinned_pages_work_while_the_region_is_copied() {
    in_both_modes(
        "pins_while_copied",
        |builder| builder,
        |engine| {
            let parent = filled(engine, 1);
            let pin = parent.pin(0..64 * PAGE).expect("a pin");
            let pages = Pages::of(&parent);
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        drop(parent.fork().expect("fork"));
                    }
                });
                // SAFETY: a plain system call on a path that lives.
                let zero = unsafe { libc::open(c"/dev/zero".as_ptr(), libc::O_RDONLY) };
                assert!(zero >= 0);
                let mut bad = 0;
                for _ in 0..3000 {
                    // SAFETY: the buffer is inside the region, and no reference to it exists.
                    let got = unsafe { libc::read(zero, pages.address(0).cast(), 16 * PAGE) };
                    bad += usize::from(got != (16 * PAGE) as isize);
                }
                stop.store(true, Ordering::Relaxed);
                // SAFETY: opened above.
                unsafe { libc::close(zero) };
                assert_eq!(bad, 0, "reads that failed or came short");
            });
            drop(pin);
        },
    );
}

#[test]
fn a_copy_under_a_limit_keeps_the_limit() {
    let limit = 8 * MIB as u64;
    in_both_modes(
        "fork_under_a_limit",
        |builder| builder.limit(limit),
        |engine| {
            const MANY: usize = 4096;
            let parent = engine.region(MANY * PAGE).expect("a region");
            let pages = Pages::of(&parent);
            for page in 0..MANY {
                pages.write(page, 1, Content::Text);
            }
            let child = parent.fork().expect("fork");
            let copied = Pages::of(&child);
            let mut random = Random::new(1);
            for _ in 0..MANY {
                let page = random.below(MANY);
                pages.verify(page, 1, Content::Text);
                copied.verify(page, 1, Content::Text);
            }
            let stats = engine.stats();
            let used = stats.resident_bytes + stats.store_memory_bytes + stats.overhead_bytes;
            assert!(used <= limit + limit / 20, "{stats:?}");
            drop(parent);
            for page in 0..MANY {
                copied.verify(page, 1, Content::Text);
            }
            drop(child);
            assert_empty(engine);
        },
    );
}

/// Shared pages that cannot be stored are nobody's to put back: copying, paging out and touching them
/// must come to an end all the same. In a process of its own, since it would hang.
#[test]
fn copies_of_pages_that_do_not_compress_come_to_an_end() {
    for mode in ["inline", "thread"] {
        let output = child("child_noise", mode);
        if !common::child::was_skipped(&output) {
            succeeded(&output);
        }
    }
}

#[test]
#[ignore = "started by copies_of_pages_that_do_not_compress_come_to_an_end"]
fn child_noise() {
    let Some(mode) = case() else { return };
    let builder = Engine::builder()
        .limit(4 * MIB as u64)
        .faults(mode.parse().expect("a mode"));
    let Some(engine) = build("child_noise", builder) else {
        return;
    };
    const MANY: usize = 4096;
    let parent = engine.region(MANY * PAGE).expect("a region");
    let pages = Pages::of(&parent);
    for page in 0..MANY {
        pages.write(page, 1, Content::Noise);
    }
    let child = parent.fork().expect("fork");
    let copied = Pages::of(&child);
    parent
        .advise(0..MANY * PAGE, Advice::PageOut)
        .expect("advice");
    for page in (0..MANY).step_by(2) {
        copied.verify(page, 1, Content::Noise);
        copied.write(page, 2, Content::Noise);
    }
    child
        .advise(0..MANY * PAGE, Advice::PageOut)
        .expect("advice");
    for page in 0..MANY {
        pages.verify(page, 1, Content::Noise);
        copied.verify(page, 1 + u64::from(page % 2 == 0), Content::Noise);
    }
    drop(parent);
    drop(child);
    assert_empty(&engine);
}
