//! Devices that fail: an access gets SIGBUS and one line that says why, never junk; a page that cannot
//! be written stays in memory; nothing is lost.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread;

use common::child::{case, child, complaints, killed_by, said, succeeded, was_skipped};
use common::pages::{Content, Pages};
use common::{MIB, PAGE, build, in_both_modes, scripted};
use userswap::{Advice, DeviceError, Engine, FaultAround, Region};
use userswap_core::script::{Point, ScriptedDevice};
use userswap_device::{Zram, ZramOptions};

const COUNT: usize = 100;

/// Reads fail while it is set.
static BROKEN: AtomicBool = AtomicBool::new(false);

fn breakable() -> Box<ScriptedDevice> {
    scripted(COUNT as u64, |point, _| {
        if point == Point::BeforeRead && BROKEN.load(Ordering::SeqCst) {
            return Err(DeviceError::Io(5));
        }
        Ok(())
    })
}

fn written(engine: &Engine, count: usize, content: Content) -> (Region, Pages) {
    let region = engine.region(count * PAGE).expect("a region");
    let pages = Pages::of(&region);
    for page in 0..count {
        pages.write(page, 1, content);
    }
    (region, pages)
}

/// An engine on the breakable device with a region that is swapped out.
fn with_broken_reads(mode: &str) -> Option<(Engine, Region)> {
    let builder = Engine::builder()
        .custom_device(breakable())
        .fault_around(FaultAround::Fixed(8))
        .faults(mode.parse().expect("a mode"));
    let engine = build("broken_reads", builder)?;
    let (region, _) = written(&engine, COUNT, Content::Text);
    let out = region
        .advise(0..COUNT * PAGE, Advice::PageOut)
        .expect("advice");
    assert_eq!(out, COUNT);
    BROKEN.store(true, Ordering::SeqCst);
    Some((engine, region))
}

/// One line, naming the page, its entry and the device.
#[track_caller]
fn assert_named(line: &str, page: usize) {
    for part in [
        &format!("{:#x}", page * PAGE),
        "entry",
        "scripted",
        "errno 5",
        "SIGBUS",
    ] {
        assert!(line.contains(part), "`{line}` does not say `{part}`");
    }
}

#[test]
fn a_read_error_kills_with_sigbus_and_one_line() {
    for mode in ["inline", "thread"] {
        let output = child("child_killed", mode);
        if !was_skipped(&output) {
            killed_by(&output, libc::SIGBUS);
            let lines = complaints(&output);
            assert_eq!(lines.len(), 1, "{mode}: {}", said(&output));
            assert_named(&lines[0], 50);
        }
    }
}

#[test]
#[ignore = "started by a_read_error_kills_with_sigbus_and_one_line"]
fn child_killed() {
    let Some(mode) = case() else { return };
    let Some((_engine, region)) = with_broken_reads(&mode) else {
        return;
    };
    let byte = Pages::of(&region).peek(50, 0);
    panic!("the access returned {byte}");
}

#[test]
fn a_program_with_its_own_handler_gets_the_sigbus_and_can_go_on() {
    for mode in ["inline", "thread"] {
        let output = child("child_handler", mode);
        if !was_skipped(&output) {
            succeeded(&output);
            let lines = complaints(&output);
            assert!(!lines.is_empty(), "{}", said(&output));
            for line in lines {
                assert_named(&line, 50);
            }
        }
    }
}

static CAUGHT: AtomicU32 = AtomicU32::new(0);
static CAUGHT_AT: AtomicUsize = AtomicUsize::new(0);

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    CAUGHT_AT.store(address, Ordering::SeqCst);
    // The third time the device works again, so the access that repeats succeeds.
    if CAUGHT.fetch_add(1, Ordering::SeqCst) == 2 {
        BROKEN.store(false, Ordering::SeqCst);
    }
}

#[test]
#[ignore = "started by a_program_with_its_own_handler_gets_the_sigbus_and_can_go_on"]
fn child_handler() {
    let Some(mode) = case() else { return };
    // SAFETY: plain data, for which zeros are a value; the handler touches only atomics.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()),
            0
        );
    }
    let Some((engine, region)) = with_broken_reads(&mode) else {
        return;
    };
    let pages = Pages::of(&region);
    pages.verify(50, 1, Content::Text);
    assert_eq!(CAUGHT.load(Ordering::SeqCst), 3);
    assert_eq!(
        CAUGHT_AT.load(Ordering::SeqCst) / PAGE * PAGE,
        pages.address(50) as usize
    );
    for page in 0..COUNT {
        pages.verify(page, 1, Content::Text);
    }
    assert_eq!(CAUGHT.load(Ordering::SeqCst), 3);
    assert_eq!(engine.stats().bugs, 0);
}

#[test]
fn calls_get_a_typed_error_and_lose_nothing() {
    static BAD: AtomicBool = AtomicBool::new(false);
    let device = || {
        scripted(COUNT as u64, |point, _| {
            if point == Point::AfterRead && BAD.load(Ordering::SeqCst) {
                return Err(DeviceError::Corrupt);
            }
            Ok(())
        })
    };
    in_both_modes(
        "typed_error",
        |builder| builder.custom_device(device()),
        |engine| {
            let (region, pages) = written(engine, COUNT, Content::Text);
            region
                .advise(0..COUNT * PAGE, Advice::PageOut)
                .expect("advice");
            BAD.store(true, Ordering::SeqCst);
            let range = 8 * PAGE..16 * PAGE;
            let error = region
                .advise(range.clone(), Advice::WillNeed)
                .expect_err("unreadable");
            let line = error.to_string();
            assert!(
                line.contains("0x8000") && line.contains("corrupt") && !line.contains('\n'),
                "{line}"
            );
            assert!(region.pin(range.clone()).is_err());
            BAD.store(false, Ordering::SeqCst);
            let pin = region.pin(range).expect("readable again");
            drop(pin);
            for page in 0..COUNT {
                pages.verify(page, 1, Content::Text);
            }
        },
    );
}

#[test]
fn a_neighbour_that_cannot_be_read_stops_nobody_else() {
    // Slots are handed out in order, so the page that fails is one in a window of eight.
    let device = || {
        let script = |point, slot| match (point, slot) {
            (Point::BeforeRead, 3) => Err(DeviceError::Io(5)),
            _ => Ok(()),
        };
        scripted(8, script)
    };
    in_both_modes(
        "bad_neighbour",
        |builder| {
            builder
                .custom_device(device())
                .fault_around(FaultAround::Fixed(8))
        },
        |engine| {
            let (region, pages) = written(engine, 8, Content::Text);
            region.advise(0..8 * PAGE, Advice::PageOut).expect("advice");
            for page in [0, 1, 2, 4, 5, 6, 7] {
                pages.verify(page, 1, Content::Text);
            }
            assert!(!region.is_resident(3 * PAGE));
        },
    );
}

#[test]
fn a_full_area_keeps_pages_in_memory_and_is_said_once() {
    said_once("child_area_full", "area is full");
}

#[test]
fn a_full_store_keeps_pages_in_memory_and_is_said_once() {
    said_once("child_store_full", "store is full");
}

#[track_caller]
fn said_once(name: &str, what: &str) {
    for mode in ["inline", "thread"] {
        let output = child(name, mode);
        if !was_skipped(&output) {
            succeeded(&output);
            let lines = complaints(&output);
            assert_eq!(lines.len(), 1, "{mode}: {}", said(&output));
            assert!(lines[0].contains(what), "{}", lines[0]);
        }
    }
}

#[test]
#[ignore = "started by a_full_area_keeps_pages_in_memory_and_is_said_once"]
fn child_area_full() {
    let Some(mode) = case() else { return };
    let builder = Engine::builder()
        .area(100 * PAGE as u64)
        .faults(mode.parse().expect("a mode"));
    let Some(engine) = build("area_full", builder) else {
        return;
    };
    // Chunks end at 64 and 128: the second finds room for a part of its pages.
    let (region, pages) = written(&engine, 128, Content::Text);
    for _ in 0..2 {
        region
            .advise(0..128 * PAGE, Advice::PageOut)
            .expect("advice");
        let stats = engine.stats();
        assert_eq!(stats.swapped_bytes, 100 * PAGE as u64);
        assert_eq!(stats.resident_bytes, 28 * PAGE as u64);
    }
    for page in 0..128 {
        pages.verify(page, 1, Content::Text);
    }
    assert_eq!(engine.stats().bugs, 0);
}

#[test]
#[ignore = "started by a_full_store_keeps_pages_in_memory_and_is_said_once"]
fn child_store_full() {
    let Some(mode) = case() else { return };
    let options = ZramOptions {
        memory_limit: Some(MIB as u64),
        ..ZramOptions::default()
    };
    let device = Zram::new(4096, options).expect("a device");
    let builder = Engine::builder()
        .custom_device(Box::new(device))
        .faults(mode.parse().expect("a mode"));
    let Some(engine) = build("store_full", builder) else {
        return;
    };
    let (region, pages) = written(&engine, 1024, Content::Noise);
    for _ in 0..2 {
        region
            .advise(0..1024 * PAGE, Advice::PageOut)
            .expect("advice");
        let stats = engine.stats();
        assert!(stats.store_memory_bytes <= MIB as u64, "{stats:?}");
        assert!(stats.resident_bytes >= 3 * MIB as u64, "{stats:?}");
        assert_eq!(stats.resident_bytes + stats.swapped_bytes, 4 * MIB as u64);
    }
    for page in (0..1024).rev() {
        pages.verify(page, 1, Content::Noise);
    }
    assert_eq!(engine.stats().bugs, 0);
}

#[test]
fn write_errors_that_come_and_go_lose_nothing() {
    for (limit, error) in [
        (None, DeviceError::Io(28)),
        (None, DeviceError::Full),
        (Some(8 * MIB as u64), DeviceError::Full),
        (Some(8 * MIB as u64), DeviceError::Io(5)),
    ] {
        let device = || {
            let turn = AtomicU32::new(0);
            scripted(4096, move |point, _| {
                // Bursts of errors, in the middle of chunks.
                let bad = turn.fetch_add(1, Ordering::Relaxed) / 40 % 3 == 1;
                if point == Point::BeforeWrite && bad {
                    Err(error)
                } else {
                    Ok(())
                }
            })
        };
        in_both_modes(
            "write_errors",
            |builder| {
                let builder = builder.custom_device(device());
                match limit {
                    Some(limit) => builder.limit(limit),
                    None => builder,
                }
            },
            |engine| {
                const MANY: usize = 1500;
                let (region, pages) = written(engine, MANY, Content::Text);
                thread::scope(|scope| {
                    for worker in 0..3_usize {
                        let region = &region;
                        scope.spawn(move || {
                            for version in 1..6 {
                                for page in (worker..MANY).step_by(3) {
                                    pages.verify(page, version, Content::Text);
                                    pages.write(page, version + 1, Content::Text);
                                    if page % 97 == 0 {
                                        region
                                            .advise(0..MANY * PAGE, Advice::PageOut)
                                            .expect("advice");
                                    }
                                }
                            }
                        });
                    }
                });
                for page in 0..MANY {
                    pages.verify(page, 6, Content::Text);
                }
                drop(region);
                common::wait_until("an empty device and memory", || {
                    let stats = engine.stats();
                    (stats.swapped_bytes, stats.resident_bytes) == (0, 0)
                });
            },
        );
    }
}
