//! Threads that come and go while others fault: exits, panics, thread-local destructors, regions and
//! engines that end meanwhile, and pins under system calls.

mod common;

use std::cell::Cell;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::pages::{Content, Pages};
use common::{MIB, PAGE, Random, build, in_both_modes, skip};
use userswap::{Advice, Engine, FaultAround, FaultMode, Region};

const COUNT: usize = 128;

fn written(engine: &Engine, count: usize) -> (Region, Pages) {
    let region = engine.region(count * PAGE).expect("a region");
    let pages = Pages::of(&region);
    for page in 0..count {
        pages.write(page, 1, Content::Text);
    }
    (region, pages)
}

fn verify_all(pages: Pages) {
    for page in 0..pages.count() {
        pages.verify(page, 1, Content::Text);
    }
}

/// Touches its pages when it is dropped.
struct Toucher(Option<Pages>);

/// Touches that happened in destructors.
static IN_DROP: AtomicUsize = AtomicUsize::new(0);

impl Drop for Toucher {
    fn drop(&mut self) {
        if let Some(pages) = self.0 {
            for page in 0..pages.count() {
                pages.verify(page, 1, Content::Text);
            }
            IN_DROP.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn threads_exit_and_panic_while_others_fault_on_the_same_pages() {
    thread_local! {
        static LAST: Cell<Option<Toucher>> = const { Cell::new(None) };
    }
    in_both_modes(
        "exit_and_panic",
        |builder| builder,
        |engine| {
            let (region, pages) = written(engine, COUNT);
            let stop = AtomicBool::new(false);
            IN_DROP.store(0, Ordering::Relaxed);
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        while !stop.load(Ordering::Relaxed) {
                            verify_all(pages);
                        }
                    });
                }
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        region
                            .advise(0..COUNT * PAGE, Advice::PageOut)
                            .expect("advice");
                    }
                });
                for round in 0..30 {
                    // A plain thread each, so that its end is a thread's real end.
                    let ending = thread::spawn(move || {
                        LAST.set(Some(Toucher(Some(pages))));
                        pages.verify(round % COUNT, 1, Content::Text);
                    });
                    let panicking = thread::spawn(move || {
                        let _toucher = Toucher(Some(pages));
                        pages.verify(round % COUNT, 1, Content::Text);
                        // Without the message that `panic!` prints.
                        std::panic::resume_unwind(Box::new("on purpose"));
                    });
                    ending.join().expect("a thread that ends");
                    let reason = panicking.join().expect_err("a thread that panics");
                    assert_eq!(reason.downcast_ref(), Some(&"on purpose"));
                }
                stop.store(true, Ordering::Relaxed);
            });
            assert_eq!(IN_DROP.load(Ordering::Relaxed), 60);
            verify_all(pages);
        },
    );
}

#[test]
fn several_engines_work_side_by_side() {
    let modes = [
        FaultMode::Inline,
        FaultMode::Thread,
        FaultMode::Inline,
        FaultMode::Thread,
    ];
    let engines: Vec<Engine> = modes
        .into_iter()
        .filter_map(|mode| build("several_engines", Engine::builder().faults(mode)))
        .collect();
    thread::scope(|scope| {
        for engine in &engines {
            scope.spawn(|| {
                let (region, pages) = written(engine, COUNT);
                for _ in 0..10 {
                    region
                        .advise(0..COUNT * PAGE, Advice::PageOut)
                        .expect("advice");
                    verify_all(pages);
                }
                assert!(engine.stats().pages_out >= 10 * COUNT as u64 - 20);
            });
        }
    });
    for engine in &engines {
        let stats = engine.stats();
        assert_eq!(
            (stats.resident_bytes, stats.swapped_bytes, stats.bugs),
            (0, 0, 0)
        );
    }
}

#[test]
fn regions_come_and_go_while_others_fault() {
    in_both_modes(
        "come_and_go",
        |builder| builder.limit(5 * MIB as u64),
        |engine| {
            let end = Instant::now() + Duration::from_millis(700);
            thread::scope(|scope| {
                for worker in 0..4_usize {
                    scope.spawn(move || {
                        let mut random = Random::new(worker as u64);
                        while Instant::now() < end {
                            let (region, pages) = written(engine, 1 + random.below(600));
                            if random.below(2) == 0 {
                                region
                                    .advise(0..region.len(), Advice::PageOut)
                                    .expect("advice");
                            }
                            // Two threads on neighbouring pages: one fault may bring both pages, and the
                            // other's be noticed only when the region is gone.
                            thread::scope(|scope| {
                                for first in 0..2 {
                                    scope.spawn(move || {
                                        for page in (first..pages.count()).step_by(2) {
                                            pages.verify(page, 1, Content::Text);
                                        }
                                    });
                                }
                            });
                        }
                    });
                }
            });
            let stats = engine.stats();
            assert_eq!(
                (stats.resident_bytes, stats.swapped_bytes),
                (0, 0),
                "{stats:?}"
            );
        },
    );
}

#[test]
fn a_region_outlives_its_engines_handle() {
    for mode in [FaultMode::Inline, FaultMode::Thread] {
        let builder = Engine::builder().limit(5 * MIB as u64).faults(mode);
        let Some(engine) = build("outlives", builder) else {
            continue;
        };
        let (region, pages) = written(&engine, 3000);
        drop(engine);
        verify_all(pages);
        let other = region.fork().expect("fork");
        region
            .advise(0..region.len(), Advice::PageOut)
            .expect("advice");
        drop(region);
        verify_all(Pages::of(&other));
        // Its last region takes the engine's threads with it, from another thread too.
        thread::spawn(move || drop(other))
            .join()
            .expect("the last drop");
    }
}

#[test]
fn advice_from_many_threads_at_once() {
    in_both_modes(
        "advice_from_many",
        |builder| builder.limit(6 * MIB as u64),
        |engine| {
            let (region, pages) = written(engine, 2000);
            thread::scope(|scope| {
                for worker in 0..6_u64 {
                    let region = &region;
                    scope.spawn(move || {
                        let mut random = Random::new(worker);
                        for _ in 0..300 {
                            let first = random.below(1900);
                            let range = first * PAGE..(first + 1 + random.below(100)) * PAGE;
                            match random.below(8) {
                                0..3 => {
                                    region.advise(range, Advice::PageOut).expect("advice");
                                }
                                3..5 => {
                                    region.advise(range, Advice::WillNeed).expect("advice");
                                }
                                5 => drop(region.pin(range).expect("a pin")),
                                6 => {
                                    region.advise(range, Advice::Random).expect("advice");
                                }
                                _ => {
                                    region.advise(range, Advice::Sequential).expect("advice");
                                }
                            }
                            pages.verify(first, 1, Content::Text);
                        }
                    });
                }
            });
            verify_all(pages);
        },
    );
}

#[test]
fn threads_in_lockstep_on_the_same_pages() {
    in_both_modes(
        "lockstep",
        |builder| builder.fault_around(FaultAround::Fixed(1)),
        |engine| {
            let (region, pages) = written(engine, COUNT);
            let barrier = Barrier::new(4);
            thread::scope(|scope| {
                for worker in 0..4 {
                    let (barrier, region) = (&barrier, &region);
                    scope.spawn(move || {
                        for _ in 0..10 {
                            if barrier.wait().is_leader() {
                                region
                                    .advise(0..COUNT * PAGE, Advice::PageOut)
                                    .expect("advice");
                            }
                            barrier.wait();
                            for at in 0..COUNT {
                                let page = if worker % 2 == 0 { at } else { COUNT - 1 - at };
                                pages.verify(page, 1, Content::Text);
                            }
                        }
                    });
                }
            });
        },
    );
}

/// A pipe: what is written to its second end is read from its first.
fn pipe() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors, which are then owned here.
    unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    }
}

/// write(2) of a page; the error number where it fails.
fn write_page(to: &OwnedFd, pages: Pages, page: usize) -> Result<usize, i32> {
    // SAFETY: inside the region, which lives.
    let wrote = unsafe { libc::write(to.as_raw_fd(), pages.address(page).cast(), PAGE) };
    usize::try_from(wrote).map_err(|_| std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

/// read(2) of a page; the error number where it fails.
fn read_page(from: &OwnedFd, pages: Pages, page: usize) -> Result<usize, i32> {
    // SAFETY: inside the region, which lives; nobody else is on the page.
    let got = unsafe { libc::read(from.as_raw_fd(), pages.address(page).cast(), PAGE) };
    usize::try_from(got).map_err(|_| std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

#[test]
fn system_calls_on_pinned_pages_work_while_others_page_out() {
    in_both_modes(
        "pinned_system_calls",
        |builder| builder,
        |engine| {
            let (region, pages) = written(engine, COUNT);
            let (from, to) = pipe();
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        region
                            .advise(0..COUNT * PAGE, Advice::PageOut)
                            .expect("advice");
                    }
                });
                for round in 0..500 {
                    let page = round % COUNT / 2 * 2;
                    let pin = region.pin(page * PAGE..(page + 2) * PAGE).expect("a pin");
                    assert_eq!(write_page(&to, pages, page), Ok(PAGE));
                    assert_eq!(read_page(&from, pages, page + 1), Ok(PAGE));
                    pages.verify(page, 1, Content::Text);
                    assert_eq!(
                        pages.peek(page + 1, 0),
                        page as u8,
                        "the copy of the other page"
                    );
                    drop(pin);
                    pages.write(page + 1, 1, Content::Text);
                }
                stop.store(true, Ordering::Relaxed);
            });
            verify_all(pages);
        },
    );
}

#[test]
fn a_system_call_on_swapped_memory_fails_cleanly_inline_and_works_in_thread_mode() {
    in_both_modes(
        "unpinned_system_calls",
        |builder| builder.fault_around(FaultAround::Fixed(1)),
        |engine| {
            let (region, pages) = written(engine, 4);
            let (from, to) = pipe();
            region.advise(0..4 * PAGE, Advice::PageOut).expect("advice");
            let full = userswap_sys::host::userfaultfd_access().full();
            if engine.fault_mode() == FaultMode::Thread && full {
                assert_eq!(write_page(&to, pages, 0), Ok(PAGE));
                assert_eq!(read_page(&from, pages, 1), Ok(PAGE));
                assert_eq!(pages.peek(1, 0), 0, "the copy of page 0");
            } else {
                if engine.fault_mode() == FaultMode::Thread {
                    skip(
                        "thread mode's system calls",
                        "faults in them are not permitted here",
                    );
                }
                assert_eq!(write_page(&to, pages, 0), Err(libc::EFAULT));
                assert!(!region.is_resident(0), "the failed call brings nothing in");
                pages.verify(0, 1, Content::Text);
                assert_eq!(write_page(&to, pages, 0), Ok(PAGE), "it is in memory now");
                assert_eq!(read_page(&from, pages, 1), Err(libc::EFAULT));
                pages.verify(1, 1, Content::Text);
            }
            pages.verify(2, 1, Content::Text);
            pages.verify(3, 1, Content::Text);
        },
    );
}
