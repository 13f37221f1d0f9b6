//! What went wrong elsewhere (section 5 of the protocol), symptom by symptom.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use support::{
    PLAIN, SAFE, Zeros, check, check_empty, first, load, page_out, setup, slot, store,
    within_reason, write_out,
};
use userswap_core::device::Properties;
use userswap_core::script::{Point, ScriptedDevice};
use userswap_core::soft::{self, SoftMm, SoftSwap};
use userswap_core::space::{Frame, Frames, Purpose};
use userswap_core::{Access, Way, bug};

fn fault(swap: &SoftSwap, mm: &SoftMm, page: usize) -> usize {
    let access = Access {
        page,
        write: true,
        max_pages: 64,
        wait: true,
    };
    swap.fault(mm, access).expect("no error")
}

#[test]
fn livelock_racers_on_a_pinned_entry_let_its_owner_finish() {
    for way in SAFE {
        within_reason(move || {
            let (swap, switches) = setup(way, 1, PLAIN);
            let mm = soft::mm(&swap, 1, Some(1));
            for round in 1..=20 {
                store(&swap, &mm, 0, round).expect("stored");
                page_out(&swap, &mm, 0, 1);
                let stopped = switches.stop_next(Point::BeforeRead);
                let reads = switches.reads.load(Ordering::SeqCst);
                thread::scope(|scope| {
                    let racers: Vec<_> = (0..16)
                        .map(|_| scope.spawn(|| load(&swap, &mm, 0)))
                        .collect();
                    stopped.reached();
                    stopped.go_on();
                    for racer in racers {
                        assert_eq!(racer.join().expect("racer"), Ok(round));
                    }
                });
                assert_eq!(
                    switches.reads.load(Ordering::SeqCst),
                    reads + 1,
                    "one reads for all"
                );
            }
            check_empty(&swap, &[&mm]);
        });
    }
}

#[test]
fn stalls_a_parked_waiter_is_woken_by_the_release() {
    for way in SAFE {
        within_reason(move || {
            let (swap, switches) = setup(way, 1, PLAIN);
            let mm = soft::mm(&swap, 1, Some(1));
            store(&swap, &mm, 0, 1).expect("stored");
            page_out(&swap, &mm, 0, 1);
            let stopped = switches.stop_next(Point::AfterRead);
            thread::scope(|scope| {
                let owner = scope.spawn(|| fault(&swap, &mm, 0));
                stopped.reached();
                let waiter = scope.spawn(|| fault(&swap, &mm, 0));
                // Long enough to have parked, were it not on a very busy machine.
                thread::sleep(Duration::from_millis(30));
                assert!(!waiter.is_finished(), "it waits");
                stopped.go_on();
                assert_eq!(owner.join().expect("owner"), 1);
                assert_eq!(waiter.join().expect("waiter"), 0, "nobody else wakes it");
            });
            check_empty(&swap, &[&mm]);
        });
    }
}

#[test]
fn data_loss_the_only_copy_is_discarded_after_the_map_not_before() {
    for way in SAFE {
        let (swap, switches) = setup(way, 8, PLAIN);
        let mm = soft::mm(&swap, 8, Some(8));
        (0..8).for_each(|page| store(&swap, &mm, page, 1).expect("stored"));
        page_out(&swap, &mm, 0, first(8));
        let discards = switches.discards.load(Ordering::SeqCst);
        mm.space.full.store(true, Ordering::SeqCst);
        assert!(load(&swap, &mm, 0).is_err(), "read, but not mapped");
        assert_eq!(switches.reads.load(Ordering::SeqCst), 8);
        assert_eq!(switches.discards.load(Ordering::SeqCst), discards);
        mm.space.full.store(false, Ordering::SeqCst);
        (0..8).for_each(|page| assert_eq!(load(&swap, &mm, page), Ok(1)));
        assert_eq!(
            switches.discards.load(Ordering::SeqCst),
            discards + 8,
            "each once"
        );
        check_empty(&swap, &[&mm]);
    }
}

#[test]
fn use_after_free_at_swapoff_nobody_uses_a_closed_device() {
    for way in SAFE {
        within_reason(move || {
            let swap = soft::swap(12, way);
            let mm = soft::mm(&swap, 64, Some(8));
            let done = AtomicBool::new(false);
            // A panic in a device is but an error of the device.
            let used_closed = Arc::new(AtomicBool::new(false));
            let add = || {
                let closed = Arc::new(AtomicBool::new(false));
                let (seen, used) = (Arc::clone(&closed), Arc::clone(&used_closed));
                let script = Box::new(move |_, _| {
                    if seen.load(Ordering::SeqCst) {
                        used.store(true, Ordering::SeqCst);
                    }
                    Ok(())
                });
                let area = swap.add_area(Box::new(ScriptedDevice::new(40, PLAIN, script)));
                (area.expect("few areas"), closed)
            };
            thread::scope(|scope| {
                for thread in 0..3 {
                    let (swap, mm, done) = (&swap, &mm, &done);
                    scope.spawn(move || {
                        let mut turn = thread;
                        while !done.load(Ordering::SeqCst) {
                            turn += 7;
                            if thread == 0 {
                                page_out(swap, mm, 0, 0x0f0f_f0f0_3c3c_c3c3 << (turn % 4));
                            } else {
                                store(swap, mm, turn % 64, turn as u64).expect("stored");
                            }
                        }
                    });
                }
                for _ in 0..20 {
                    let (area, closed) = add();
                    thread::sleep(Duration::from_millis(2));
                    swap.begin_swapoff(area);
                    while area.used() > 0 {
                        swap.unuse(&mm, area).expect("all can be read");
                    }
                    swap.end_swapoff(area);
                    closed.store(true, Ordering::SeqCst);
                    assert!(area.enter().is_none());
                }
                done.store(true, Ordering::SeqCst);
            });
            let used = used_closed.load(Ordering::SeqCst);
            assert!(!used, "a closed device is used");
            check_empty(&swap, &[&mm]);
        });
    }
}

#[test]
fn corruption_at_swapoff_no_slot_is_handed_out_once_it_has_begun() {
    within_reason(|| {
        let (swap, _) = setup(Way::Direct, 512, PLAIN);
        let mm = soft::mm(&swap, 256, Some(1));
        (0..256).for_each(|page| store(&swap, &mm, page, 1).expect("stored"));
        let done = AtomicBool::new(false);
        let area = swap.areas().next().expect("an area");
        thread::scope(|scope| {
            for thread in 0..3 {
                let (swap, mm, done) = (&swap, &mm, &done);
                scope.spawn(move || {
                    let mut turn = thread;
                    while !done.load(Ordering::SeqCst) {
                        turn += 1;
                        page_out(swap, mm, turn % 4, u64::MAX);
                        load(swap, mm, turn * 31 % 256).expect("loaded");
                    }
                });
            }
            for _ in 0..200 {
                swap.begin_swapoff(area);
                let mut used = area.used();
                for _ in 0..20 {
                    thread::yield_now();
                    let now = area.used();
                    assert!(now <= used, "{now} slots used after {used}");
                    used = now;
                }
                swap.abort_swapoff(area);
            }
            done.store(true, Ordering::SeqCst);
        });
        check_empty(&swap, &[&mm]);
    });
}

#[test]
fn zeros_inside_a_batch_each_page_gets_its_own_content() {
    for way in SAFE {
        for zeros in [0b1010_0110_u64, 0b0000_0001, 0b1111_1110, 0b1111_1111, 0] {
            let swap = soft::swap(1, way);
            let device = ScriptedDevice::new(8, PLAIN, Box::new(|_, _| Ok(())));
            swap.add_area(Box::new(Zeros(device))).expect("an area");
            let mm = soft::mm(&swap, 8, Some(8));
            for page in 0..8 {
                let is_zero = zeros >> page & 1 == 1;
                store(&swap, &mm, page, 7).expect("stored");
                if is_zero {
                    soft::access(&swap, &mm, page, |bytes| bytes.fill(0)).expect("stored");
                }
            }
            page_out(&swap, &mm, 0, first(8));
            // The frames that are read into held something else before.
            let block = swap
                .frames()
                .take(Purpose::Read(first(8)))
                .expect("the block");
            for index in 0..8 {
                let frame = Frame { block, index };
                swap.frames().fill(frame, |bytes| bytes.fill(0xaa));
            }
            swap.frames().release(block, 1);
            assert_eq!(fault(&swap, &mm, 3), 8, "one batch");
            for page in 0..8 {
                let version = if zeros >> page & 1 == 1 { 0 } else { 7 };
                assert_eq!(
                    load(&swap, &mm, page),
                    Ok(version),
                    "{way:?} {zeros:b} {page}"
                );
            }
            check_empty(&swap, &[&mm]);
        }
    }
}

#[test]
fn deadlock_a_discard_may_wait_for_threads_that_allocate_and_free() {
    for way in SAFE {
        within_reason(move || {
            type Shared = OnceLock<(SoftSwap, SoftMm)>;
            let shared = Arc::new(Shared::new());
            let (seen, busy) = (Arc::clone(&shared), AtomicBool::new(false));
            let waited = Arc::new(AtomicU64::new(0));
            let count = Arc::clone(&waited);
            let script = Box::new(move |point, _| {
                if point == Point::Discard && !busy.swap(true, Ordering::SeqCst) {
                    thread::scope(|scope| {
                        scope.spawn(|| {
                            // In the same chunk, so that its lock would be in the way too.
                            let (swap, mm) = seen.get().expect("set up");
                            page_out(swap, mm, 0, 1 << 7);
                            store(swap, mm, 7, 1).expect("stored");
                        });
                    });
                    count.fetch_add(1, Ordering::SeqCst);
                    busy.store(false, Ordering::SeqCst);
                }
                Ok(())
            });
            let swap = soft::swap(8, way);
            swap.add_area(Box::new(ScriptedDevice::new(8, PLAIN, script)))
                .expect("an area");
            let mm = soft::mm(&swap, 8, Some(1));
            assert!(shared.set((swap, mm)).is_ok());
            let (swap, mm) = shared.get().expect("set up");
            (0..8).for_each(|page| store(swap, mm, page, 1).expect("stored"));
            // A fault, a staged page taken back, a page dropped while staged, one while swapped.
            page_out(swap, mm, 0, first(4));
            load(swap, mm, 0).expect("loaded");
            let staged = swap.stage(mm, 0, 0b11_0001).expect("staged");
            load(swap, mm, 4).expect("loaded");
            assert_eq!(swap.discard(mm, 0, 0b10_0010).pinned, 0);
            write_out(swap, mm, 0, staged);
            check(swap, &[mm], &[]);
            assert_eq!(swap.discard(mm, 0, u64::MAX).pinned, 0);
            assert!(waited.load(Ordering::SeqCst) >= 5);
            check_empty(swap, &[mm]);
        });
    }
}

#[test]
fn deadlock_writeback_lets_a_fault_on_its_page_copy_it() {
    for way in SAFE {
        within_reason(move || {
            let (swap, switches) = setup(way, 1, PLAIN);
            let mm = soft::mm(&swap, 1, Some(1));
            store(&swap, &mm, 0, 1).expect("stored");
            let staged = swap.stage(&mm, 0, 1).expect("staged");
            let stopped = switches.stop_next(Point::BeforeWrite);
            thread::scope(|scope| {
                let writer = scope.spawn(|| swap.write_back(staged.block, staged.mask));
                stopped.reached();
                // The device has the frame, the fault gets a copy: done while the device works.
                store(&swap, &mm, 0, 2).expect("stored");
                stopped.go_on();
                assert_eq!(writer.join().expect("writer").dropped, 1);
            });
            swap.frames().release(staged.block, 1);
            assert_eq!(switches.reads.load(Ordering::SeqCst), 0);
            assert_eq!(load(&swap, &mm, 0), Ok(2));
            check_empty(&swap, &[&mm]);
        });
    }
}

#[test]
fn a_page_that_must_be_stable_is_waited_for_while_it_is_written() {
    for way in SAFE {
        for fails in [false, true] {
            within_reason(move || {
                let stable = Properties {
                    stable_pages: true,
                    ..PLAIN
                };
                let (swap, switches) = setup(way, 1, stable);
                let mm = soft::mm(&swap, 1, Some(1));
                store(&swap, &mm, 0, 1).expect("stored");
                let staged = swap.stage(&mm, 0, 1).expect("staged");
                let stopped = switches.stop_next(Point::BeforeWrite);
                thread::scope(|scope| {
                    let writer = scope.spawn(|| swap.write_back(staged.block, staged.mask));
                    stopped.reached();
                    let waiter = scope.spawn(|| store(&swap, &mm, 0, 2));
                    thread::sleep(Duration::from_millis(20));
                    assert!(!waiter.is_finished(), "the page is not stable");
                    assert_eq!(slot(&swap, &mm, 0), (1, true));
                    if fails {
                        *switches.unwritable.lock().expect("switches") = Some(Default::default());
                    }
                    stopped.go_on();
                    let done = writer.join().expect("writer");
                    assert_eq!(
                        (done.written, done.failed),
                        if fails { (0, 1) } else { (1, 0) }
                    );
                    assert_eq!(waiter.join().expect("waiter"), Ok(()));
                });
                swap.frames().release(staged.block, 1);
                assert_eq!(load(&swap, &mm, 0), Ok(2));
                check_empty(&swap, &[&mm]);
                assert_eq!(bug::count(), 0);
            });
        }
    }
}
