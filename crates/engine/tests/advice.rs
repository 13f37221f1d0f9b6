//! Advice does what it says, fault-around brings in what it says, and pages of zeros come and go.

mod common;

use common::pages::{Content, Pages};
use common::{PAGE, build, in_both_modes, wait_until};
use userswap::{Advice, DeviceSpec, Engine, FaultAround, Region};
use userswap_sys::mapping::resident_pages;

const CHUNK: usize = 64;

/// How many pages the kernel has in memory.
fn by_the_kernel(region: &Region) -> usize {
    resident_pages(region.as_ptr() as usize, region.len()).expect("mincore")
}

fn resident(region: &Region) -> usize {
    (0..region.len())
        .step_by(PAGE)
        .filter(|&at| region.is_resident(at))
        .count()
}

#[track_caller]
fn assert_resident(region: &Region, pages: usize) {
    // A thread sees its page a moment before the handler that brought it has noted it.
    wait_until("the pages to be noted", || {
        resident(region) == by_the_kernel(region)
    });
    assert_eq!(resident(region), pages);
}

/// A handler gives back what it had charged in vain a moment after the thread it works for goes on.
#[track_caller]
fn wait_for_resident(engine: &Engine, pages: usize) {
    wait_until("the charges to settle", || {
        engine.stats().resident_bytes == (pages * PAGE) as u64
    });
}

fn written(engine: &Engine, count: usize) -> (Region, Pages) {
    let region = engine.region(count * PAGE).expect("a region");
    let pages = Pages::of(&region);
    for page in 0..count {
        pages.write(page, 1, Content::Text);
    }
    (region, pages)
}

#[test]
fn page_out_writes_the_range_and_nothing_else() {
    in_both_modes(
        "page_out",
        |builder| builder,
        |engine| {
            let (region, pages) = written(engine, 200);
            assert_resident(&region, 200);
            let out = region
                .advise(60 * PAGE..130 * PAGE, Advice::PageOut)
                .expect("advice");
            assert_eq!(out, 70);
            assert_resident(&region, 130);
            assert!(region.is_resident(59 * PAGE) && !region.is_resident(60 * PAGE));
            assert!(!region.is_resident(129 * PAGE) && region.is_resident(130 * PAGE));
            wait_for_resident(engine, 130);
            let stats = engine.stats();
            assert_eq!(stats.swapped_bytes, 70 * PAGE as u64);
            assert_eq!(
                (stats.pages_out, stats.resident_bytes),
                (70, 130 * PAGE as u64)
            );
            assert!(stats.stored_bytes > 0 && stats.stored_bytes < 70 * PAGE as u64 / 4);
            let again = region
                .advise(60 * PAGE..130 * PAGE, Advice::PageOut)
                .expect("advice");
            assert_eq!(again, 0, "they are out already");
            for page in 0..200 {
                pages.verify(page, 1, Content::Text);
            }
            assert_resident(&region, 200);
            assert_eq!(engine.stats().swapped_bytes, 0);
        },
    );
}

#[test]
fn will_need_brings_the_range_in() {
    in_both_modes(
        "will_need",
        |builder| builder.fault_around(FaultAround::Fixed(1)),
        |engine| {
            let (region, _) = written(engine, 200);
            region
                .advise(0..200 * PAGE, Advice::PageOut)
                .expect("advice");
            assert_resident(&region, 0);
            let brought = region
                .advise(10 * PAGE..100 * PAGE, Advice::WillNeed)
                .expect("advice");
            assert_eq!(brought, 90);
            assert_resident(&region, 90);
            let again = region
                .advise(10 * PAGE..100 * PAGE, Advice::WillNeed)
                .expect("advice");
            assert_eq!(again, 0, "they are in already");
        },
    );
}

#[test]
fn will_need_counts_pages_and_not_faults() {
    in_both_modes(
        "will_need_counts",
        |builder| builder.fault_around(FaultAround::Fixed(64)),
        |engine| {
            let (region, _) = written(engine, CHUNK);
            region
                .advise(0..CHUNK * PAGE, Advice::PageOut)
                .expect("advice");
            let brought = region
                .advise(0..CHUNK * PAGE, Advice::WillNeed)
                .expect("advice");
            assert_resident(&region, CHUNK);
            assert_eq!(brought, CHUNK);
        },
    );
}

#[test]
fn pages_locked_in_memory_are_kept_and_said() {
    in_both_modes(
        "locked",
        |builder| builder,
        |engine| {
            let (region, pages) = written(engine, 16);
            let locked = region.as_ptr().wrapping_add(8 * PAGE).cast();
            // SAFETY: pages of the region, all present; locking changes no byte.
            assert_eq!(unsafe { libc::mlock(locked, 8 * PAGE) }, 0, "mlock");
            // One run over both halves: the system drops the first and refuses the second.
            // SAFETY: the tests touch regions through raw pointers only.
            let refused = unsafe { region.discard_shared(0..16 * PAGE) };
            assert!(
                matches!(refused, Err(userswap::Error::Pinned { pages: 8 })),
                "{refused:?}"
            );
            for page in 0..8 {
                assert_eq!((pages.peek(page, 0), pages.peek(page, 4095)), (0, 0));
            }
            for page in 8..16 {
                pages.verify(page, 1, Content::Text);
            }
            // SAFETY: the pages locked above.
            assert_eq!(unsafe { libc::munlock(locked, 8 * PAGE) }, 0, "munlock");
            assert_eq!(engine.stats().bugs, 0);
        },
    );
}

#[test]
fn a_region_locked_in_memory_goes_without_a_trace() {
    in_both_modes(
        "locked_drop",
        |builder| builder,
        |engine| {
            let (region, _) = written(engine, 16);
            // Some are swapped out and stay so: locked is what is there, and what will be.
            region.advise(0..4 * PAGE, Advice::PageOut).expect("advice");
            let locked = region.as_ptr().cast();
            // SAFETY: the whole region; locking changes no byte.
            let refused = unsafe { libc::mlock2(locked, 16 * PAGE, libc::MLOCK_ONFAULT as _) };
            assert_eq!(refused, 0, "mlock2");
            drop(region);
            let stats = engine.stats();
            assert_eq!(
                (stats.resident_bytes, stats.swapped_bytes, stats.bugs),
                (0, 0, 0)
            );
            engine.swapoff().expect("an empty area closes");
        },
    );
}

#[test]
fn dont_need_drops_pages_in_memory_and_in_the_store() {
    in_both_modes(
        "dont_need",
        |builder| builder,
        |engine| {
            let (region, pages) = written(engine, 128);
            region
                .advise(0..64 * PAGE, Advice::PageOut)
                .expect("advice");
            assert_eq!(
                // SAFETY: the tests touch regions through raw pointers only.
                unsafe { region.discard_shared(32 * PAGE..96 * PAGE) }.expect("advice"),
                64
            );
            assert_resident(&region, 32);
            assert_eq!(engine.stats().swapped_bytes, 32 * PAGE as u64);
            for page in 0..128 {
                if (32..96).contains(&page) {
                    assert_eq!((pages.peek(page, 0), pages.peek(page, 4095)), (0, 0));
                } else {
                    pages.verify(page, 1, Content::Text);
                }
            }
            // SAFETY: the tests touch regions through raw pointers only.
            unsafe { region.discard_shared(0..128 * PAGE) }.expect("advice");
            wait_for_resident(engine, 0);
            let stats = engine.stats();
            assert_eq!(
                (
                    stats.swapped_bytes,
                    stats.stored_bytes,
                    stats.resident_bytes
                ),
                (0, 0, 0)
            );
            assert_resident(&region, 0);
        },
    );
}

#[test]
fn a_fixed_fault_around_brings_exactly_that_many() {
    for (asked, brought) in [(0, 1), (1, 1), (8, 8), (6, 8), (64, 64), (1000, 64)] {
        in_both_modes(
            "fixed_fault_around",
            |builder| builder.fault_around(FaultAround::Fixed(asked)),
            |engine| {
                let (region, pages) = written(engine, 3 * CHUNK);
                region
                    .advise(0..region.len(), Advice::PageOut)
                    .expect("advice");
                wait_until("the counts", || engine.stats().pages_in == 3 * CHUNK as u64);
                let before = engine.stats();
                for (touched, page) in [70, 5, 191].into_iter().enumerate() {
                    pages.verify(page, 1, Content::Text);
                    assert_resident(&region, (touched + 1) * brought);
                    // The window is aligned, and inside the page's chunk.
                    let first = page / brought * brought;
                    assert!((first..first + brought).all(|page| region.is_resident(page * PAGE)));
                }
                let all_in = (3 * CHUNK + 3 * brought) as u64;
                wait_until("the counts", || engine.stats().pages_in >= all_in);
                let stats = engine.stats();
                assert_eq!((stats.faults - before.faults, stats.pages_in), (3, all_in));
            },
        );
    }
}

#[test]
fn random_brings_single_pages_and_sequential_whole_chunks() {
    in_both_modes(
        "random_and_sequential",
        |builder| builder,
        |engine| {
            let (region, pages) = written(engine, 4 * CHUNK);
            let all = 0..region.len();
            region.advise(all.clone(), Advice::PageOut).expect("advice");
            assert_eq!(
                region.advise(all.clone(), Advice::Random).expect("advice"),
                0
            );
            let jumps = (0..100).map(|jump| jump * 37 % (4 * CHUNK));
            for (touched, page) in jumps.enumerate() {
                pages.peek(page, 0);
                assert_resident(&region, touched + 1);
            }
            region.advise(all.clone(), Advice::PageOut).expect("advice");
            assert_eq!(region.advise(all, Advice::Sequential).expect("advice"), 0);
            pages.peek(100, 0);
            // One page of the chunk may be left out to see whether it gets used.
            wait_until("a chunk", || {
                (CHUNK - 1..=CHUNK).contains(&resident(&region))
            });
            assert!(region.is_resident(100 * PAGE));
        },
    );
}

#[test]
fn an_adaptive_fault_around_grows_on_a_walk() {
    in_both_modes(
        "adaptive",
        |builder| builder,
        |engine| {
            let count = 64 * CHUNK;
            let (region, pages) = written(engine, count);
            let all = 0..region.len();
            region.advise(all.clone(), Advice::Random).expect("advice");
            region.advise(all, Advice::PageOut).expect("advice");
            let before = engine.stats();
            for page in 0..count {
                pages.verify(page, 1, Content::Text);
            }
            let stats = engine.stats();
            let faults = stats.faults - before.faults;
            assert!(
                faults * 8 < count as u64,
                "{faults} faults for {count} pages walked"
            );
        },
    );
}

#[test]
fn pages_of_zeros_leave_and_come_back() {
    in_both_modes(
        "zeros",
        |builder| builder,
        |engine| {
            let region = engine.region(128 * PAGE).expect("a region");
            let pages = Pages::of(&region);
            // Read first: these pages may all be the one page of zeros that the kernel has.
            for page in 0..128 {
                assert_eq!(pages.peek(page, 17), 0);
            }
            assert_resident(&region, 128);
            // Write to some of them: they must become pages of their own.
            for page in (0..128).step_by(4) {
                pages.poke(page, 17, 9);
            }
            for round in 0..3 {
                let out = region
                    .advise(0..128 * PAGE, Advice::PageOut)
                    .expect("advice");
                assert_eq!(out, 128, "round {round}");
                // A handler that is late with a fault of the round before, which another has resolved meanwhile, brings its page
                // once more.
                wait_until("everything to have left", || {
                    let all = 0..region.len();
                    region.advise(all, Advice::PageOut).expect("advice");
                    let stats = engine.stats();
                    (stats.swapped_bytes, stats.resident_bytes) == (128 * PAGE as u64, 0)
                });
                assert_resident(&region, 0);
                for page in 0..128 {
                    let wanted = if page % 4 == 0 { 9 } else { 0 };
                    assert_eq!((pages.peek(page, 17), pages.peek(page, 4095)), (wanted, 0));
                }
            }
            for page in 0..128 {
                pages.write(page, 2, Content::Text);
            }
            for page in 0..128 {
                pages.verify(page, 2, Content::Text);
            }
        },
    );
}

#[test]
fn every_codec_and_kind_of_page_comes_back() {
    for device in ["zram", "zram:zstd", "ram"] {
        let device: DeviceSpec = device.parse().expect("a device");
        in_both_modes(
            "every_kind",
            |builder| builder.device(device.clone()),
            |engine| {
                let region = engine.region(96 * PAGE).expect("a region");
                let pages = Pages::of(&region);
                let content = |page| {
                    if page % 3 == 0 {
                        Content::Noise
                    } else {
                        Content::Text
                    }
                };
                for version in 1..4 {
                    for page in 0..64 {
                        pages.write(page, version, content(page));
                    }
                    for page in 64..96 {
                        // One repeated word.
                        for at in 0..PAGE {
                            pages.poke(page, at, page as u8);
                        }
                    }
                    assert_eq!(
                        region
                            .advise(0..96 * PAGE, Advice::PageOut)
                            .expect("advice"),
                        96
                    );
                    for page in (0..64).rev() {
                        pages.verify(page, version, content(page));
                    }
                    for page in 64..96 {
                        assert!((0..PAGE).all(|at| pages.peek(page, at) == page as u8));
                    }
                }
            },
        );
    }
}

#[test]
fn a_pinned_page_stays_until_its_last_pin_is_dropped() {
    in_both_modes(
        "pins",
        |builder| builder,
        |engine| {
            let (region, pages) = written(engine, 128);
            let all = 0..region.len();
            region.advise(all.clone(), Advice::PageOut).expect("advice");
            let pin = region.pin(10 * PAGE..20 * PAGE).expect("a pin");
            let second = region.pin(15 * PAGE..16 * PAGE).expect("a pin");
            assert_eq!(pin.range(), 10 * PAGE..20 * PAGE);
            region.advise(all.clone(), Advice::PageOut).expect("advice");
            assert_resident(&region, 10);
            drop(pin);
            assert_resident(&region, 10);
            region.advise(all.clone(), Advice::PageOut).expect("advice");
            assert_resident(&region, 1);
            assert!(region.is_resident(15 * PAGE));
            drop(second);
            assert_eq!(region.advise(all, Advice::PageOut).expect("advice"), 1);
            assert_resident(&region, 0);
            for page in 0..128 {
                pages.verify(page, 1, Content::Text);
            }
        },
    );
}

#[test]
fn a_last_chunk_cut_short_and_a_region_of_one_page_work_too() {
    in_both_modes(
        "odd_lengths",
        |builder| builder,
        |engine| {
            for count in [1, 63, 65, 130] {
                let (region, pages) = written(engine, count);
                let all = 0..region.len();
                assert_eq!(region.advise(all, Advice::PageOut).expect("advice"), count);
                for page in (0..count).rev() {
                    pages.verify(page, 1, Content::Text);
                }
                assert_resident(&region, count);
            }
        },
    );
}

#[test]
fn a_dropped_region_leaves_nothing_behind() {
    let Some(engine) = build("nothing_behind", Engine::builder()) else {
        return;
    };
    let (region, _) = written(&engine, 300);
    region
        .advise(0..200 * PAGE, Advice::PageOut)
        .expect("advice");
    assert!(engine.stats().stored_bytes > 0);
    drop(region);
    let stats = engine.stats();
    assert_eq!(
        (
            stats.resident_bytes,
            stats.swapped_bytes,
            stats.stored_bytes,
            stats.bugs
        ),
        (0, 0, 0, 0)
    );
}
