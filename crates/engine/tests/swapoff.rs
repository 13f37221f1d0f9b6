//! swapoff: everything comes back into memory, or it is refused with a reason and nothing is lost.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::pages::{Content, Pages};
use common::{MIB, PAGE, Random, build, in_both_modes, scripted};
use userswap::{Advice, DeviceError, Engine, Error, FaultError};
use userswap_core::script::Point;

const COUNT: usize = 512;

#[test]
fn everything_comes_back_and_nothing_leaves_any_more() {
    in_both_modes(
        "everything_comes_back",
        |builder| builder,
        |engine| {
            let region = engine.region(COUNT * PAGE).expect("a region");
            let pages = Pages::of(&region);
            for page in 0..COUNT {
                pages.write(page, 1, Content::Text);
            }
            region
                .advise(0..300 * PAGE, Advice::PageOut)
                .expect("advice");
            let child = region.fork().expect("fork");
            engine.swapoff().expect("swapoff");
            let stats = engine.stats();
            assert_eq!((stats.swapped_bytes, stats.stored_bytes), (0, 0));
            // A handler gives back what it had charged in vain a moment later.
            common::wait_until("the charges to settle", || {
                engine.stats().resident_bytes == 2 * region.len() as u64
            });
            for page in 0..COUNT {
                assert!(region.is_resident(page * PAGE) && child.is_resident(page * PAGE));
                pages.verify(page, 1, Content::Text);
                Pages::of(&child).verify(page, 1, Content::Text);
            }
            assert_eq!(
                region
                    .advise(0..COUNT * PAGE, Advice::PageOut)
                    .expect("advice"),
                0
            );
            let grandchild = child.fork().expect("fork works without an area");
            Pages::of(&grandchild).verify(9, 1, Content::Text);
            engine
                .swapoff()
                .expect("a second swapoff has nothing to do");
            let fresh = engine.region(PAGE).expect("regions work on");
            assert_eq!(fresh[0], 0);
            drop((region, child, grandchild, fresh));
            assert_eq!(engine.stats().resident_bytes, 0);
        },
    );
}

#[test]
fn under_load_from_several_threads() {
    in_both_modes(
        "under_load",
        |builder| builder,
        |engine| {
            for _ in 0..3 {
                // A fresh engine each time: swapoff is for good.
                let fresh = build("under_load", Engine::builder().faults(engine.fault_mode()))
                    .expect("built before");
                load_and_swapoff(&fresh);
                assert_eq!(fresh.stats().resident_bytes, 0);
            }
        },
    );
}

fn load_and_swapoff(engine: &Engine) {
    let region = engine.region(COUNT * PAGE).expect("a region");
    let pages = Pages::of(&region);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for worker in 0..4_usize {
            let (stop, region) = (&stop, &region);
            scope.spawn(move || {
                let mut versions = vec![0; COUNT];
                let mut random = Random::new(worker as u64);
                while !stop.load(Ordering::Relaxed) {
                    let page = random.below(COUNT / 4) * 4 + worker;
                    if versions[page] > 0 {
                        pages.verify(page, versions[page], Content::Text);
                    }
                    versions[page] += 1;
                    pages.write(page, versions[page], Content::Text);
                    match random.below(40) {
                        0 => drop(
                            region
                                .advise(0..COUNT * PAGE, Advice::PageOut)
                                .expect("advice"),
                        ),
                        1 => {
                            let at = page / 4 * 4;
                            // Pages of other workers are there too: only bring in.
                            let range = at * PAGE..(at + 4) * PAGE;
                            region.advise(range, Advice::WillNeed).expect("advice");
                        }
                        2 => {
                            // SAFETY: the tests touch regions through raw pointers only.
                            unsafe { region.discard_shared(page * PAGE..(page + 1) * PAGE) }
                                .expect("advice");
                            versions[page] = 0;
                            assert_eq!(pages.peek(page, 8), 0);
                        }
                        _ => {}
                    }
                }
                for page in (worker..COUNT).step_by(4) {
                    if versions[page] > 0 {
                        pages.verify(page, versions[page], Content::Text);
                    }
                }
            });
        }
        thread::sleep(Duration::from_millis(100));
        engine.swapoff().expect("swapoff");
        assert_eq!(engine.stats().swapped_bytes, 0);
        thread::sleep(Duration::from_millis(50));
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(engine.stats().bugs, 0);
}

#[test]
fn refused_when_it_does_not_fit_within_the_limit() {
    let limit = 8 * MIB;
    in_both_modes(
        "does_not_fit",
        |builder| builder.limit(limit as u64),
        |engine| {
            let region = engine.region(4 * limit).expect("a region");
            let pages = Pages::of(&region);
            for page in 0..pages.count() {
                pages.write(page, 1, Content::Text);
            }
            let before = engine.stats().swapped_bytes;
            let error = engine.swapoff().expect_err("refused");
            let Error::SwapoffLimit {
                needed,
                limit: said,
            } = error
            else {
                panic!("{error}");
            };
            assert_eq!(said, limit as u64);
            assert!(needed >= region.len() as u64, "{needed}");
            assert!(error.to_string().contains("raise the limit"), "{error}");
            assert!(
                engine.stats().swapped_bytes > before / 2,
                "nothing was brought in"
            );
            for page in 0..pages.count() {
                pages.verify(page, 1, Content::Text);
            }
            // Less of it fits.
            // SAFETY: the tests touch regions through raw pointers only.
            unsafe { region.discard_shared(limit / 4..region.len()) }.expect("advice");
            engine.swapoff().expect("swapoff");
            for page in 0..limit / 4 / PAGE {
                pages.verify(page, 1, Content::Text);
            }
        },
    );
}

#[test]
fn shared_pages_count_for_each_who_shares_them() {
    let limit = 8 * MIB;
    in_both_modes(
        "shared_pages_count",
        |builder| builder.limit(limit as u64),
        |engine| {
            let region = engine.region(limit / 4 * 3).expect("a region");
            for page in 0..region.len() / PAGE {
                Pages::of(&region).write(page, 1, Content::Text);
            }
            region
                .advise(0..region.len(), Advice::PageOut)
                .expect("advice");
            let copies = [region.fork().expect("fork"), region.fork().expect("fork")];
            let refused = engine.swapoff();
            assert!(
                matches!(refused, Err(Error::SwapoffLimit { .. })),
                "{refused:?}"
            );
            for copy in &copies {
                for page in 0..region.len() / PAGE {
                    Pages::of(copy).verify(page, 1, Content::Text);
                }
            }
        },
    );
}

#[test]
fn refused_when_a_page_cannot_be_read_and_the_area_stays_open() {
    let broken = Arc::new(AtomicBool::new(false));
    let device = || {
        let broken = Arc::clone(&broken);
        scripted(COUNT as u64, move |point, slot| {
            if point == Point::BeforeRead && slot == 40 && broken.load(Ordering::SeqCst) {
                return Err(DeviceError::Io(5));
            }
            Ok(())
        })
    };
    in_both_modes(
        "read_error",
        |builder| builder.custom_device(device()),
        |engine| {
            let region = engine.region(COUNT * PAGE).expect("a region");
            let pages = Pages::of(&region);
            for page in 0..COUNT {
                pages.write(page, 1, Content::Text);
            }
            region
                .advise(0..COUNT * PAGE, Advice::PageOut)
                .expect("advice");
            broken.store(true, Ordering::SeqCst);
            let error = engine.swapoff().expect_err("refused");
            let Error::Fault {
                offset,
                error: FaultError::Read { error: reason, .. },
            } = error
            else {
                panic!("{error}");
            };
            assert_eq!(reason, DeviceError::Io(5));
            assert!(!region.is_resident(offset), "the page is where it was");
            broken.store(false, Ordering::SeqCst);
            for page in 0..COUNT {
                pages.verify(page, 1, Content::Text);
            }
            let out = region
                .advise(0..COUNT * PAGE, Advice::PageOut)
                .expect("advice");
            assert_eq!(out, COUNT, "the area takes pages again");
            engine.swapoff().expect("nothing is in the way now");
            for page in 0..COUNT {
                pages.verify(page, 1, Content::Text);
            }
            drop(region);
            assert_eq!(engine.stats().resident_bytes, 0);
        },
    );
}
