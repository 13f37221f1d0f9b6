//! The limit under load: a region five times as large, written and verified by several threads.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use common::child::{case, child, complaints, said, succeeded, was_skipped};
use common::pages::{Content, Pages};
use common::{MIB, PAGE, Peak, Random, build, scripted};
use userswap::{Engine, FaultAround, FaultMode, Stats};
use userswap_core::script::Point;
use userswap_sys::host::resident_set_bytes;

const THREADS: usize = 4;

fn used(stats: &Stats) -> u64 {
    stats.resident_bytes + stats.store_memory_bytes + stats.overhead_bytes
}

/// Threads pick pages at random, each verifying what the last one wrote and writing anew, until `end`
/// and at least once for each page. Then every page is verified.
fn load(pages: Pages, content: Content, time: Duration) {
    let versions: Vec<Mutex<u64>> = (0..pages.count()).map(|_| Mutex::new(0)).collect();
    let end = Instant::now() + time;
    thread::scope(|scope| {
        for worker in 0..THREADS {
            let versions = &versions;
            scope.spawn(move || {
                for page in (worker..pages.count()).step_by(THREADS) {
                    let mut version = versions[page].lock().expect("no worker panics");
                    *version += 1;
                    pages.write(page, *version, content);
                }
                let mut random = Random::new(worker as u64);
                while Instant::now() < end {
                    // Runs of a few pages, as programs touch memory.
                    let first = random.below(pages.count());
                    for (page, version) in versions.iter().enumerate().skip(first).take(8) {
                        let mut version = version.lock().unwrap_or_else(PoisonError::into_inner);
                        if *version > 0 {
                            pages.verify(page, *version, content);
                        }
                        if page % 2 == 0 {
                            *version += 1;
                            pages.write(page, *version, content);
                        }
                    }
                }
            });
        }
    });
    for (page, version) in versions.iter().enumerate() {
        pages.verify(page, *version.lock().expect("no worker panicked"), content);
    }
}

/// Four different bytes in no order: LZ4 makes little of them, Zstandard a quarter.
fn four_bytes(page: &mut [u8], seed: u64) {
    let mut random = Random::new(seed + 1);
    for word in page.chunks_exact_mut(8) {
        let number = random.next() & 0x1010_1010_1010_1010 | random.next() & 0x0101_0101_0101_0101;
        word.copy_from_slice(&number.to_ne_bytes());
    }
}

/// Twice as much as the limit, which LZ4 alone cannot hold.
#[test]
fn what_only_zstandard_makes_fit_stays_within_the_limit() {
    for (device, holds) in [("zram", true), ("zram:lz4", false)] {
        let output = child("child_four_bytes", device);
        if !was_skipped(&output) {
            succeeded(&output);
            print!("{}", String::from_utf8_lossy(&output.stdout));
            assert_eq!(complaints(&output).is_empty(), holds, "{}", said(&output));
        }
    }
}

#[test]
#[ignore = "started by what_only_zstandard_makes_fit_stays_within_the_limit"]
fn child_four_bytes() {
    let Some(device) = case() else { return };
    let limit = 24 * MIB as u64;
    let builder = Engine::builder()
        .limit(limit)
        .device(device.parse().expect("a device"));
    let Some(engine) = build("child_four_bytes", builder) else {
        return;
    };
    let mut region = engine.region(2 * limit as usize).expect("a region");
    let mut peak = 0;
    for (at, page) in region.chunks_exact_mut(PAGE).enumerate() {
        four_bytes(page, at as u64);
        peak = peak.max(used(&engine.stats()));
    }
    let mut random = Random::new(7);
    let mut expected = [0; PAGE];
    for _ in 0..20_000 {
        let at = random.below(region.len() / PAGE);
        four_bytes(&mut expected, at as u64);
        assert!(region[at * PAGE..][..PAGE] == expected, "page {at}");
        peak = peak.max(used(&engine.stats()));
    }
    let stats = engine.stats();
    println!(
        "{device}: limit {limit}, used {peak}, {} dense",
        stats.dense_bytes
    );
    if device == "zram" {
        assert!(peak <= limit + limit / 20, "{peak} of {limit}");
        assert!(stats.dense_bytes > limit / 2, "{stats:?}");
    }
}

/// In a process of its own, so that what the kernel counts is this test's.
#[test]
fn pages_that_compress_stay_within_the_limit() {
    for mode in ["inline", "thread"] {
        let output = child("child_text", mode);
        if !was_skipped(&output) {
            succeeded(&output);
            assert_eq!(complaints(&output), [""; 0], "{}", said(&output));
            print!("{}", String::from_utf8_lossy(&output.stdout));
        }
    }
}

#[test]
#[ignore = "started by pages_that_compress_stay_within_the_limit"]
fn child_text() {
    let Some(mode) = case() else { return };
    let limit = 16 * MIB as u64;
    let baseline = resident_set_bytes().expect("statm");
    let builder = Engine::builder()
        .limit(limit)
        .faults(mode.parse().expect("a mode"));
    let Some(engine) = build("child_text", builder) else {
        return;
    };
    let region = engine.region(5 * limit as usize).expect("a region");
    let (done, peak, by_the_kernel) = (AtomicBool::new(false), Peak::default(), Peak::default());
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.see(used(&engine.stats()));
                by_the_kernel.see(
                    resident_set_bytes()
                        .expect("statm")
                        .saturating_sub(baseline),
                );
                thread::sleep(Duration::from_micros(300));
            }
        });
        load(Pages::of(&region), Content::Text, Duration::from_secs(3));
        done.store(true, Ordering::Relaxed);
    });
    let most = limit + limit / 20;
    let stats = engine.stats();
    println!(
        "{mode}: limit {limit}, used {}, by the kernel {}, {} pages out",
        peak.get(),
        by_the_kernel.get(),
        stats.pages_out
    );
    assert!(
        peak.get() <= most,
        "used {} of {most}: {stats:?}",
        peak.get()
    );
    assert!(peak.get() > limit / 2, "the limit was never put to use");
    // The kernel also counts the test's versions, stacks and code.
    let slack = 4 * MIB as u64;
    assert!(
        by_the_kernel.get() <= most + slack,
        "the kernel counts {} of {most}: {stats:?}",
        by_the_kernel.get()
    );
    assert!(stats.pages_out as usize > region.len() / PAGE, "{stats:?}");
    assert_eq!(stats.bugs, 0);
}

#[test]
fn pages_that_do_not_compress_exceed_it_and_that_is_said_once() {
    for mode in ["inline", "thread"] {
        let output = child("child_noise", mode);
        if !was_skipped(&output) {
            succeeded(&output);
            let lines = complaints(&output);
            assert_eq!(lines.len(), 1, "{}", said(&output));
            assert!(
                lines[0].contains("limit of 8388608 bytes cannot be held"),
                "{}",
                lines[0]
            );
        }
    }
}

#[test]
#[ignore = "started by pages_that_do_not_compress_exceed_it_and_that_is_said_once"]
fn child_noise() {
    let Some(mode) = case() else { return };
    let builder = Engine::builder()
        .limit(8 * MIB as u64)
        .faults(mode.parse().expect("a mode"));
    let Some(engine) = build("child_noise", builder) else {
        return;
    };
    let region = engine.region(24 * MIB).expect("a region");
    load(
        Pages::of(&region),
        Content::Noise,
        Duration::from_millis(1500),
    );
    // The reclaimer may be at work still.
    common::wait_until("the sum to be the region", || {
        let stats = engine.stats();
        stats.resident_bytes + stats.swapped_bytes == region.len() as u64
    });
    assert_eq!(engine.stats().bugs, 0);
}

/// Threads that wait for one page must not each take a window out of the limit.
#[test]
fn a_crowd_on_one_page_does_not_exceed_the_limit() {
    for mode in ["inline", "thread"] {
        let output = child("child_crowd", mode);
        if !was_skipped(&output) {
            succeeded(&output);
            assert_eq!(complaints(&output), [""; 0], "{}", said(&output));
        }
    }
}

#[test]
#[ignore = "started by a_crowd_on_one_page_does_not_exceed_the_limit"]
fn child_crowd() {
    let Some(mode) = case() else { return };
    let device = scripted(2048, |point, _| {
        if point == Point::BeforeRead {
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    });
    let builder = Engine::builder()
        .custom_device(device)
        // The device's memory counts too, and it does not compress.
        .limit(12 * MIB as u64)
        .fault_around(FaultAround::Fixed(64))
        .faults(mode.parse().expect("a mode"));
    let Some(engine) = build("child_crowd", builder) else {
        return;
    };
    let region = engine.region(MIB).expect("a region");
    let pages = Pages::of(&region);
    for page in 0..pages.count() {
        pages.write(page, 1, Content::Text);
    }
    for page in [3, 70, 130] {
        region
            .advise(0..region.len(), userswap::Advice::PageOut)
            .expect("advice");
        thread::scope(|scope| {
            for _ in 0..80 {
                scope.spawn(|| pages.verify(page, 1, Content::Text));
            }
        });
    }
    assert_eq!(engine.stats().bugs, 0);
}

/// Pages leave in the background and by the fault itself, also where two engines share a process.
#[test]
fn limits_of_two_engines_do_not_mix() {
    let limit = 6 * MIB as u64;
    let make = |mode| build("two_limits", Engine::builder().limit(limit).faults(mode));
    let (Some(one), Some(two)) = (make(FaultMode::Inline), make(FaultMode::Thread)) else {
        return;
    };
    thread::scope(|scope| {
        for engine in [&one, &two] {
            scope.spawn(|| {
                let region = engine.region(20 * MIB).expect("a region");
                load(
                    Pages::of(&region),
                    Content::Text,
                    Duration::from_millis(500),
                );
                let stats = engine.stats();
                assert!(used(&stats) <= limit + limit / 20, "{stats:?}");
                drop(region);
                let stats = engine.stats();
                assert_eq!(
                    (stats.resident_bytes, stats.swapped_bytes, stats.bugs),
                    (0, 0, 0)
                );
            });
        }
    });
}

#[test]
fn the_limit_can_be_changed_while_it_runs() {
    let builder = Engine::builder().limit(24 * MIB as u64);
    let Some(engine) = build("the_limit_can_be_changed_while_it_runs", builder) else {
        return;
    };
    let region = engine.region(16 * MIB).expect("a region");
    let pages = Pages::of(&region);
    for page in 0..pages.count() {
        pages.write(page, 1, Content::Text);
    }
    assert!(used(&engine.stats()) > 16 << 20, "all of it fits");
    engine.set_limit(8 << 20).expect("a lower limit");
    assert!(used(&engine.stats()) <= 8 << 20, "it left at once");
    for page in 0..pages.count() {
        pages.verify(page, 1, Content::Text);
    }
    assert!(used(&engine.stats()) <= (8 << 20) + (8 << 20) / 20);
    engine.set_limit(24 << 20).expect("a higher limit");
    for page in 0..pages.count() {
        pages.verify(page, 1, Content::Text);
    }
    assert!(used(&engine.stats()) > 16 << 20, "there is room again");
    let refused = engine
        .set_limit(1 << 20)
        .expect_err("too small")
        .to_string();
    assert!(
        refused.contains("1048576") && refused.contains("4194304"),
        "{refused}"
    );
    let without = Engine::builder().build().expect("an engine");
    let refused = without
        .set_limit(1 << 30)
        .expect_err("no limit")
        .to_string();
    assert!(refused.contains("without a limit"), "{refused}");
}
