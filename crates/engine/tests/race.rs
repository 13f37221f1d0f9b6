//! The race of the protocol's section 1 on real memory, schedule by schedule: lost when unpinned,
//! never when direct or cached, whoever resolves the faults.

mod common;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::pages::Pages;
use common::{PAGE, Stop, build, scripted, skip, wait_until};
use userswap::{Advice, Engine, FaultAround, FaultMode, Properties, Region, Way};
use userswap_core::script::{Point, Script, ScriptedDevice};

const MODES: [FaultMode; 2] = [FaultMode::Inline, FaultMode::Thread];

/// An engine with one slot, so that a freed slot is the next to be handed out, and a region of one page
/// that holds 1 and is swapped out.
fn setup(
    name: &str,
    mode: FaultMode,
    way: Way,
    device: Box<ScriptedDevice>,
) -> Option<(Engine, Region)> {
    if mode == FaultMode::Thread && userswap_sys::cpu::count() < 2 {
        skip(name, "two faults at once need two handler threads");
        return None;
    }
    let builder = Engine::builder()
        .custom_device(device)
        .way(way)
        .faults(mode)
        .fault_around(FaultAround::Fixed(1));
    let engine = build(name, builder)?;
    let region = engine.region(PAGE).expect("a region");
    Some((engine, region))
}

/// Pages out what T1 has touched. In thread mode, T1's page wakes T0's access too, while the handler
/// that works for T0 goes on; T0 must be through before its page leaves again. So must it where T1 had
/// to wait for T0.
fn page_out_after<T>(
    t0: thread::ScopedJoinHandle<'_, T>,
    mode: FaultMode,
    way: Way,
    region: &Region,
) {
    if mode == FaultMode::Thread || way != Way::Unpinned {
        wait_until("T0's access", || t0.is_finished());
    }
    page_out(region);
}

fn page_out(region: &Region) {
    // The one slot comes free a moment after its page is mapped; and a handler that worked for an access
    // which is through already may take the page back once.
    wait_until("the page to leave", || {
        region.advise(0..PAGE, Advice::PageOut).expect("advice");
        !region.is_resident(0)
    });
}

/// Stops a thread's first read of the device at `at`; the second write at `write`.
fn device(discards: bool, at: Point, read: Arc<Stop>, write: Arc<Stop>) -> Box<ScriptedDevice> {
    let script: Script = Box::new(move |point, _| {
        if point == at {
            read.pass();
        }
        if point == Point::BeforeWrite {
            write.pass();
        }
        Ok(())
    });
    let properties = Properties {
        synchronous: true,
        stable_pages: false,
        discards,
    };
    Box::new(ScriptedDevice::new(1, properties, script))
}

/// Lets T0 go on when T1 is through, or has been found waiting for T0.
fn finish(way: Way, stop: &Stop, region: &Region, t1_is_finished: impl Fn() -> bool) {
    if way == Way::Unpinned {
        wait_until("T1, which waits for nobody", t1_is_finished);
        stop.open();
        wait_until("T0's stale page", || region.is_resident(0));
    } else {
        thread::sleep(Duration::from_millis(50));
        assert!(!t1_is_finished(), "T1 got past the pin");
        stop.open();
    }
}

/// T0 faults and is stopped after its read; T1 faults, stores v1 and pages out again; T0 goes on.
/// Returns what the page holds afterwards, v1 being 2.
fn v1(mode: FaultMode, way: Way) -> Option<u8> {
    let (stop, never) = (Arc::new(Stop::new()), Arc::default());
    let device = device(false, Point::AfterRead, Arc::clone(&stop), never);
    let (engine, region) = setup("v1_stale_copy", mode, way, device)?;
    let pages = Pages::of(&region);
    pages.poke(0, 0, 1);
    page_out(&region);
    stop.arm();
    thread::scope(|scope| {
        let t0 = scope.spawn(|| pages.peek(0, 0));
        stop.wait_reached();
        let region = &region;
        let t1 = scope.spawn(move || {
            pages.poke(0, 0, 2);
            page_out_after(t0, mode, way, region);
        });
        finish(way, &stop, region, || t1.is_finished());
    });
    let found = pages.peek(0, 0);
    assert_eq!(engine.stats().bugs, 0, "{mode:?} {way:?}");
    Some(found)
}

#[test]
fn v1_stale_copy() {
    for mode in MODES {
        let lost = v1(mode, Way::Unpinned);
        assert_eq!(lost.unwrap_or(1), 1, "{mode:?}: v1 should be lost");
        for way in [Way::Direct, Way::Cached] {
            assert_eq!(v1(mode, way).unwrap_or(2), 2, "{mode:?} {way:?}");
        }
    }
}

/// T0 is stopped before its read; T1 faults and pages out again without a store, and is stopped at its
/// write: in between, freeing the slot has discarded the data.
fn v2(mode: FaultMode, way: Way) -> Option<u8> {
    let (read, write) = (Arc::new(Stop::new()), Arc::new(Stop::new()));
    let device = device(
        true,
        Point::BeforeRead,
        Arc::clone(&read),
        Arc::clone(&write),
    );
    let (engine, region) = setup("v2_discard", mode, way, device)?;
    let pages = Pages::of(&region);
    pages.poke(0, 0, 1);
    page_out(&region);
    read.arm();
    write.arm();
    thread::scope(|scope| {
        let t0 = scope.spawn(|| pages.peek(0, 0));
        read.wait_reached();
        let (region, write) = (&region, &write);
        let t1 = scope.spawn(move || {
            pages.peek(0, 0);
            if mode == FaultMode::Thread || way != Way::Unpinned {
                wait_until("T0's access", || t0.is_finished());
            }
            // Unpinned, T0 takes the page back while it is being written.
            wait_until("a write", || {
                region.advise(0..PAGE, Advice::PageOut).expect("advice");
                write.is_reached()
            });
        });
        if way == Way::Unpinned {
            write.wait_reached();
            read.open();
            wait_until("T0's zeros", || region.is_resident(0));
        } else {
            thread::sleep(Duration::from_millis(50));
            assert!(!write.is_reached(), "T1 got past the pin");
            read.open();
        }
        write.open();
        t1.join().expect("T1");
    });
    let found = pages.peek(0, 0);
    assert_eq!(engine.stats().bugs, 0, "{mode:?} {way:?}");
    Some(found)
}

#[test]
fn v2_discard() {
    for mode in MODES {
        let lost = v2(mode, Way::Unpinned);
        assert_eq!(lost.unwrap_or(0), 0, "{mode:?}: zeros should be mapped");
        for way in [Way::Direct, Way::Cached] {
            assert_eq!(v2(mode, way).unwrap_or(1), 1, "{mode:?} {way:?}");
        }
    }
}

/// T0 starts while the entry is its own, so it goes direct; then fork shares the entry, T1 goes through
/// the cache, the child leaves, and the slot is reused.
fn v4(mode: FaultMode, way: Way) -> Option<u8> {
    let (stop, never) = (Arc::new(Stop::new()), Arc::default());
    let device = device(false, Point::AfterRead, Arc::clone(&stop), never);
    let (engine, region) = setup("v4_mixed", mode, way, device)?;
    let pages = Pages::of(&region);
    pages.poke(0, 0, 1);
    page_out(&region);
    stop.arm();
    thread::scope(|scope| {
        let t0 = scope.spawn(|| pages.peek(0, 0));
        stop.wait_reached();
        let child = region.fork().expect("fork");
        assert!(!child.is_resident(0), "the swapped page is shared");
        let region = &region;
        let t1 = scope.spawn(move || {
            pages.poke(0, 0, 2);
            drop(child);
            page_out_after(t0, mode, way, region);
        });
        finish(way, &stop, region, || t1.is_finished());
    });
    let found = pages.peek(0, 0);
    assert_eq!(engine.stats().bugs, 0, "{mode:?} {way:?}");
    Some(found)
}

#[test]
fn v4_mixed_ways_on_a_shared_entry() {
    for mode in MODES {
        let lost = v4(mode, Way::Unpinned);
        assert_eq!(lost.unwrap_or(1), 1, "{mode:?}: v1 should be lost");
        for way in [Way::Direct, Way::Cached] {
            assert_eq!(v4(mode, way).unwrap_or(2), 2, "{mode:?} {way:?}");
        }
    }
}

/// Many threads add to a word of each page of a region four times as large as what stays, while another
/// pages out without pause: the reproducer of the source, small.
#[test]
fn no_update_is_lost_in_the_crowd() {
    const PAGES: usize = 64;
    const THREADS: u64 = 6;
    const ROUNDS: u64 = 20;
    for mode in MODES {
        for way in [Way::Direct, Way::Cached] {
            let delayed = scripted(PAGES as u64, |point, _| {
                if point == Point::AfterRead {
                    thread::sleep(Duration::from_micros(20));
                }
                Ok(())
            });
            let builder = Engine::builder()
                .custom_device(delayed)
                .way(way)
                .faults(mode);
            let Some(engine) = build("no_update_is_lost_in_the_crowd", builder) else {
                continue;
            };
            let region = engine.region(PAGES * PAGE).expect("a region");
            let pages = Pages::of(&region);
            thread::scope(|scope| {
                let workers: Vec<_> = (0..THREADS)
                    .map(|worker| {
                        scope.spawn(move || {
                            for round in 0..ROUNDS {
                                for at in 0..PAGES {
                                    let page = if (worker + round) % 2 == 0 {
                                        at
                                    } else {
                                        PAGES - 1 - at
                                    };
                                    pages
                                        .word(page)
                                        .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                                }
                            }
                        })
                    })
                    .collect();
                while workers.iter().any(|worker| !worker.is_finished()) {
                    region
                        .advise(0..PAGES * PAGE, Advice::PageOut)
                        .expect("advice");
                }
            });
            for page in 0..PAGES {
                let sum = pages.word(page).load(std::sync::atomic::Ordering::Relaxed);
                assert_eq!(sum, THREADS * ROUNDS, "page {page}, {mode:?} {way:?}");
            }
            assert_eq!(engine.stats().bugs, 0);
        }
    }
}
