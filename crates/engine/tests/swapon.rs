//! swapon and swapoff at run time: devices come and go while threads use the regions; nothing is lost.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use common::folder::{Folder, nameless_files};
use common::pages::{Content, Pages};
use common::{MIB, PAGE, Random, in_both_modes, scripted};
use userswap::{
    Advice, DeviceError, DeviceSpec, DeviceStatus, Engine, Error, FaultError, SwapDevice,
};
use userswap_core::script::Point;

const COUNT: usize = 512;

const GO_ON: ControlFlow<()> = ControlFlow::Continue(());

fn first(engine: &Engine) -> SwapDevice {
    engine.devices()[0].device
}

fn status(engine: &Engine, device: SwapDevice) -> DeviceStatus {
    let mut devices = engine.devices().into_iter();
    devices
        .find(|status| status.device == device)
        .expect("it is on")
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn zram() -> DeviceSpec {
    "zram".parse().expect("a device")
}

#[test]
fn pages_go_to_the_device_of_the_highest_priority_that_has_room() {
    in_both_modes(
        "highest_priority",
        |builder| builder.area((COUNT * PAGE) as u64),
        |engine| {
            let small = engine
                .swapon(&zram(), 128 * PAGE as u64, 5)
                .expect("swapon");
            let low = engine
                .swapon(&zram(), (COUNT * PAGE) as u64, -5)
                .expect("swapon");
            let region = engine.region(COUNT * PAGE).expect("a region");
            let pages = Pages::of(&region);
            for page in 0..COUNT {
                pages.write(page, 1, Content::Text);
            }
            let out = region
                .advise(0..COUNT * PAGE, Advice::PageOut)
                .expect("advice");
            assert_eq!(out, COUNT);
            let used = |device| status(engine, device).used_bytes as usize / PAGE;
            assert_eq!(used(small), 128, "the highest is full");
            assert_eq!(used(first(engine)), COUNT - 128);
            assert_eq!(used(low), 0);
            let names: Vec<_> = engine
                .devices()
                .iter()
                .map(|status| status.priority)
                .collect();
            assert_eq!(names, [0, 5, -5], "in the order in which they came");
            for page in 0..COUNT {
                pages.verify(page, 1, Content::Text);
            }
        },
    );
}

#[test]
fn one_device_is_drained_to_memory_and_closed_and_the_others_go_on() {
    let folder = Folder::new("swapon-one-device-is");
    in_both_modes(
        "drained_to_memory",
        |builder| builder.area((COUNT * PAGE) as u64),
        |engine| {
            let file = engine
                .swapon(&folder.device("file:DIR"), (COUNT * PAGE) as u64, 1)
                .expect("swapon");
            assert_eq!(nameless_files(&folder).len(), 1);
            let region = engine.region(COUNT * PAGE).expect("a region");
            let pages = Pages::of(&region);
            for page in 0..COUNT {
                pages.write(page, 1, Content::Noise);
            }
            region
                .advise(0..COUNT * PAGE, Advice::PageOut)
                .expect("advice");
            let child = region.fork().expect("fork");
            assert_eq!(status(engine, file).used_bytes, (COUNT * PAGE) as u64);
            let mut seen = Vec::new();
            let done = engine.swapoff_device(file, |progress| {
                assert_eq!(progress.total_bytes, (COUNT * PAGE) as u64);
                assert!(status(engine, file).draining);
                seen.push(progress.left_bytes);
                GO_ON
            });
            done.expect("swapoff");
            assert!(seen.is_sorted_by(|a, b| a >= b), "it grows less: {seen:?}");
            assert_eq!(seen.last(), Some(&0));
            assert!(seen.len() > 4, "piece by piece: {seen:?}");
            assert_eq!(
                nameless_files(&folder).len(),
                0,
                "its space is the disk's again"
            );
            assert_eq!(engine.devices().len(), 1);
            let again = engine.swapoff_device(file, |_| GO_ON);
            assert!(matches!(again, Err(Error::NoSuchDevice)), "{again:?}");
            for page in 0..COUNT {
                pages.verify(page, 1, Content::Noise);
                Pages::of(&child).verify(page, 1, Content::Noise);
            }
            let out = region
                .advise(0..COUNT * PAGE, Advice::PageOut)
                .expect("advice");
            assert_eq!(out, COUNT, "the first device takes them");
            for page in 0..COUNT {
                pages.verify(page, 1, Content::Noise);
            }
        },
    );
}

#[test]
fn devices_come_and_go_under_load_and_a_limit() {
    let limit = 8 * MIB;
    let folder = Folder::new("swapon-devices-come");
    in_both_modes(
        "come_and_go",
        |builder| builder.limit(limit as u64).area(64 * MIB as u64),
        |engine| {
            let region = engine.region(3 * limit).expect("a region");
            let count = region.len() / PAGE;
            let pages = Pages::of(&region);
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                for worker in 0..3_usize {
                    let (stop, region) = (&stop, &region);
                    scope.spawn(move || {
                        let mut versions = vec![0; count];
                        let mut random = Random::new(worker as u64);
                        while !stop.load(Ordering::Relaxed) {
                            let page = random.below(count / 3) * 3 + worker;
                            if versions[page] > 0 {
                                pages.verify(page, versions[page], Content::Text);
                            }
                            versions[page] += 1;
                            pages.write(page, versions[page], Content::Text);
                            if random.below(50) == 0 {
                                let start = page / 64 * 64;
                                let range = start * PAGE..(start + 64).min(count) * PAGE;
                                region.advise(range, Advice::PageOut).expect("advice");
                            }
                        }
                        for page in (worker..count).step_by(3) {
                            if versions[page] > 0 {
                                pages.verify(page, versions[page], Content::Text);
                            }
                        }
                    });
                }
                let specs = [folder.device("file:DIR"), zram()];
                // Also when something below fails: the scope waits for the workers.
                let _stop = OnDrop(|| stop.store(true, Ordering::Relaxed));
                for (priority, spec) in (1..7).zip(specs.iter().cycle()) {
                    let old = first(engine);
                    let new = engine
                        .swapon(spec, 64 * MIB as u64, priority)
                        .expect("swapon");
                    common::wait_until("pages in the new device", || {
                        status(engine, new).used_bytes > MIB as u64
                    });
                    engine.swapoff_device(old, |_| GO_ON).expect("swapoff");
                    assert_eq!(engine.devices().len(), 1);
                }
            });
            assert_eq!(nameless_files(&folder).len(), 0);
            drop(region);
            // The reclaimer may have a block in hand for a moment.
            common::wait_until("the slots to come free", || {
                engine.stats().swapped_bytes == 0
            });
        },
    );
}

#[test]
fn refused_when_there_is_no_room_and_nothing_is_lost() {
    let limit = 8 * MIB;
    let folder = Folder::new("swapon-refused-when-there");
    in_both_modes(
        "no_room",
        |builder| builder.limit(limit as u64).area(64 * MIB as u64),
        |engine| {
            let file = engine
                .swapon(&folder.device("file:DIR"), 64 * MIB as u64, 1)
                .expect("swapon");
            let region = engine.region(2 * limit).expect("a region");
            let pages = Pages::of(&region);
            for page in 0..pages.count() {
                // Which no compressed memory takes.
                pages.write(page, 1, Content::Noise);
            }
            for status in engine.devices() {
                assert_eq!(status.used_bytes > 0, status.device == file, "{status:?}");
            }
            let error = engine.swapoff_device(file, |_| GO_ON).expect_err("refused");
            let text = error.to_string();
            let Error::SwapoffNoRoom {
                device,
                left,
                limit: said,
            } = error
            else {
                panic!("{text}");
            };
            assert_eq!(said, limit as u64);
            assert!(
                left > 0 && device.contains(&folder.0.display().to_string()),
                "{text}"
            );
            assert!(text.contains("raise the limit"), "{text}");
            assert!(!status(engine, file).draining, "it is in use again");
            for page in 0..pages.count() {
                pages.verify(page, 1, Content::Noise);
            }
            assert!(status(engine, file).used_bytes > 0);
            // Too few slots are seen at once.
            let tiny = engine.swapon(&zram(), PAGE as u64, 2).expect("swapon");
            engine
                .swapoff_device(first(engine), |_| GO_ON)
                .expect("it is empty");
            let mut pieces = 0;
            let refused = engine.swapoff_device(file, |_| {
                pieces += 1;
                GO_ON
            });
            assert!(
                matches!(refused, Err(Error::SwapoffNoRoom { .. })),
                "{refused:?}"
            );
            assert_eq!(pieces, 0, "nothing was brought in");
            engine
                .swapoff_device(tiny, |_| GO_ON)
                .expect("a page has room");
            // With another file it goes.
            engine
                .swapon(&folder.device("file:DIR"), 64 * MIB as u64, 0)
                .expect("swapon");
            engine.swapoff_device(file, |_| GO_ON).expect("swapoff");
            assert_eq!(nameless_files(&folder).len(), 1);
            for page in 0..pages.count() {
                pages.verify(page, 1, Content::Noise);
            }
        },
    );
}

#[test]
fn broken_off_it_stays_in_use_with_what_is_left() {
    in_both_modes(
        "broken_off",
        |builder| builder,
        |engine| {
            let region = engine.region(COUNT * PAGE).expect("a region");
            let pages = Pages::of(&region);
            for page in 0..COUNT {
                pages.write(page, 1, Content::Text);
            }
            region
                .advise(0..COUNT * PAGE, Advice::PageOut)
                .expect("advice");
            let device = first(engine);
            let mut pieces = 0;
            let stopped = engine.swapoff_device(device, |_| {
                // A region can be used here.
                pages.verify(COUNT - 1, 1, Content::Text);
                pieces += 1;
                if pieces == 3 {
                    ControlFlow::Break(())
                } else {
                    GO_ON
                }
            });
            let Err(Error::SwapoffStopped { left, .. }) = stopped else {
                panic!("{stopped:?}");
            };
            assert!(left > 0 && left < (COUNT * PAGE) as u64, "{left}");
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                engine.swapoff_device(device, |_| panic!("on purpose"))
            }));
            assert!(panicked.is_err());
            assert!(!status(engine, device).draining);
            for page in 0..COUNT {
                pages.verify(page, 1, Content::Text);
            }
            let out = region
                .advise(0..COUNT * PAGE, Advice::PageOut)
                .expect("advice");
            assert_eq!(out, COUNT, "it takes pages again");
            engine.swapoff_device(device, |_| GO_ON).expect("swapoff");
            for page in 0..COUNT {
                pages.verify(page, 1, Content::Text);
            }
        },
    );
}

#[test]
fn refused_when_a_page_cannot_be_read() {
    let broken = Arc::new(AtomicBool::new(false));
    let reads = Arc::new(AtomicU64::new(0));
    in_both_modes(
        "read_error",
        |builder| builder,
        |engine| {
            let device = {
                let (broken, reads) = (Arc::clone(&broken), Arc::clone(&reads));
                scripted(COUNT as u64, move |point, slot| {
                    if point == Point::BeforeRead && slot == 40 && broken.load(Ordering::SeqCst) {
                        reads.fetch_add(1, Ordering::SeqCst);
                        return Err(DeviceError::Io(5));
                    }
                    Ok(())
                })
            };
            let bad = engine.swapon_custom(device, 1).expect("swapon");
            let region = engine.region(COUNT * PAGE).expect("a region");
            let pages = Pages::of(&region);
            for page in 0..COUNT {
                pages.write(page, 1, Content::Text);
            }
            region
                .advise(0..COUNT * PAGE, Advice::PageOut)
                .expect("advice");
            broken.store(true, Ordering::SeqCst);
            let refused = engine.swapoff_device(bad, |_| GO_ON);
            assert!(
                matches!(
                    refused,
                    Err(Error::Fault {
                        error: FaultError::Read {
                            error: DeviceError::Io(5),
                            ..
                        },
                        ..
                    })
                ),
                "{refused:?}"
            );
            assert!(reads.load(Ordering::SeqCst) > 0);
            broken.store(false, Ordering::SeqCst);
            for page in 0..COUNT {
                pages.verify(page, 1, Content::Text);
            }
            engine
                .swapoff_device(bad, |_| GO_ON)
                .expect("nothing is in the way now");
            for page in 0..COUNT {
                pages.verify(page, 1, Content::Text);
            }
        },
    );
}

#[test]
fn an_engine_has_so_many_devices_in_its_life() {
    in_both_modes(
        "so_many_devices",
        |builder| builder.area(PAGE as u64),
        |engine| {
            for _ in 1..64 {
                let device = engine.swapon(&zram(), PAGE as u64, 0).expect("swapon");
                engine.swapoff_device(device, |_| GO_ON).expect("swapoff");
            }
            let refused = engine.swapon(&zram(), PAGE as u64, 0);
            assert!(
                matches!(refused, Err(Error::TooManyDevices(64))),
                "{refused:?}"
            );
            for bytes in [0, 4095] {
                let refused = engine.swapon(&zram(), bytes, 0);
                assert!(matches!(refused, Err(Error::Size { .. })), "{refused:?}");
            }
        },
    );
}
