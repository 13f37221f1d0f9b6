//! swapoff: all comes back, or nothing changes.

mod support;

use std::sync::Barrier;
use std::sync::atomic::Ordering;
use std::thread;

use support::{
    PLAIN, SAFE, check, check_empty, device, entry, first, load, page_out, setup, store, write_out,
};
use userswap_core::device::DeviceError;
use userswap_core::soft::{self, SoftMm, SoftSwap};
use userswap_core::{FaultError, StageError, Way};

const PAGES: usize = 100;

fn swapped(swap: &SoftSwap) -> SoftMm {
    let mm = soft::mm(swap, PAGES, Some(4));
    (0..PAGES).for_each(|page| store(swap, &mm, page, page as u64 + 1).expect("stored"));
    (0..2).for_each(|chunk| page_out(swap, &mm, chunk, u64::MAX));
    mm
}

#[test]
fn everything_comes_back() {
    for way in SAFE {
        let (swap, switches) = setup(way, 256, PLAIN);
        let mm = swapped(&swap);
        let child = soft::mm(&swap, PAGES, Some(4));
        for chunk in 0..2 {
            let (staged, copied) = swap.fork_chunk(&mm, &child, chunk);
            assert_eq!((staged, copied), (None, Ok(0)));
        }
        store(&swap, &mm, 3, 4).expect("stored");
        let staged = swap.stage(&mm, 0, 1 << 3).expect("staged, and not written");
        let area = swap.areas().next().expect("an area");
        swap.begin_swapoff(area);
        assert!(!swap.is_open(area));
        let brought: usize = [&mm, &child]
            .iter()
            .map(|mm| swap.unuse(mm, area).expect("all can be read"))
            .sum();
        assert_eq!(
            brought,
            2 * PAGES - 3,
            "three neighbours came with the store"
        );
        write_out(&swap, &mm, 0, staged);
        swap.end_swapoff(area);
        let calls = switches.reads.load(Ordering::SeqCst);
        for mm in [&mm, &child] {
            (0..PAGES).for_each(|page| assert_eq!(load(&swap, mm, page), Ok(page as u64 + 1)));
        }
        assert_eq!(switches.reads.load(Ordering::SeqCst), calls);
        assert_eq!(
            swap.stage(&mm, 0, 1),
            Err(StageError::AreaFull),
            "no area is left"
        );
        swap.add_area(Box::new(device(256, PLAIN).0))
            .expect("another");
        page_out(&swap, &mm, 0, u64::MAX);
        assert_eq!(
            entry(&mm, 0).expect("swapped").area(),
            1,
            "numbers are not used again"
        );
        check_empty(&swap, &[&mm, &child]);
    }
}

#[test]
fn a_page_that_cannot_be_read_refuses_it_and_nothing_is_lost() {
    for way in SAFE {
        let (swap, switches) = setup(way, 256, PLAIN);
        let mm = swapped(&swap);
        let bad = entry(&mm, 42).expect("swapped");
        switches
            .unreadable
            .lock()
            .expect("switches")
            .insert(bad.offset());
        let area = swap.areas().next().expect("an area");
        swap.begin_swapoff(area);
        let (brought, page, error) = swap.unuse(&mm, area).expect_err("one page is unreadable");
        assert_eq!(page, 42);
        assert!(brought >= 42, "all before it came");
        let read = FaultError::Read {
            entry: bad,
            error: DeviceError::Io(5),
        };
        assert_eq!(error, read);
        swap.abort_swapoff(area);
        assert!(swap.is_open(area) && area.enter().is_some());
        check(&swap, &[&mm], &[]);
        page_out(&swap, &mm, 0, first(8));
        assert!(entry(&mm, 0).is_some(), "the area hands out slots again");
        switches.unreadable.lock().expect("switches").clear();
        (0..PAGES).for_each(|page| assert_eq!(load(&swap, &mm, page), Ok(page as u64 + 1)));
        check_empty(&swap, &[&mm]);
    }
}

#[test]
fn a_stopped_area_is_passed_over_for_the_next() {
    let (swap, _) = setup(Way::Direct, 256, PLAIN);
    let second = swap
        .add_area(Box::new(device(256, PLAIN).0))
        .expect("another");
    let mm = swapped(&swap);
    let area = swap.areas().next().expect("an area");
    swap.begin_swapoff(area);
    swap.unuse(&mm, area).expect("all can be read");
    (0..2).for_each(|chunk| page_out(&swap, &mm, chunk, u64::MAX));
    assert_eq!((area.used(), second.used()), (0, PAGES as u64));
    swap.end_swapoff(area);
    (0..PAGES).for_each(|page| assert_eq!(load(&swap, &mm, page), Ok(page as u64 + 1)));
    check_empty(&swap, &[&mm]);
}

#[test]
fn slots_come_from_the_area_of_the_highest_priority_that_has_any() {
    let swap = soft::swap(8, Way::Direct);
    for (slots, priority) in [(256, 0), (256, -1), (64, 3), (10, 3), (256, 1)] {
        swap.add_area_at(Box::new(device(slots, PLAIN).0), priority)
            .expect("few areas");
    }
    let mm = swapped(&swap);
    // A chunk takes what one area has; the rest of the second, of 36 pages, is for the next.
    page_out(&swap, &mm, 1, u64::MAX);
    let used: Vec<u64> = swap.areas().map(|area| area.used()).collect();
    assert_eq!(used, [0, 0, 64, 10, 26]);
    (0..PAGES).for_each(|page| assert_eq!(load(&swap, &mm, page), Ok(page as u64 + 1)));
    check_empty(&swap, &[&mm]);
}

#[test]
fn one_area_is_drained_into_another_under_load_and_nothing_is_lost() {
    for way in SAFE {
        support::within_reason(move || {
            let (swap, _) = setup(way, 128, PLAIN);
            let mm = soft::mm(&swap, PAGES, None);
            thread::scope(|scope| {
                let workers: Vec<_> = (0..3)
                    .map(|worker| {
                        let (swap, mm) = (&swap, &mm);
                        scope.spawn(move || {
                            for turn in 0..3_000_u64 {
                                // Each page has one writer, so its version is known.
                                let page = turn as usize * 7 % (PAGES / 3) * 3 + worker;
                                let before = load(swap, mm, page).expect("loaded");
                                store(swap, mm, page, before + 1).expect("stored");
                                page_out(swap, mm, turn as usize % 2, turn.rotate_right(7) | 0xff0);
                            }
                        })
                    })
                    .collect();
                // Two areas at any time, of which the one that came first is drained.
                for priority in 1..50 {
                    let old = swap.open_areas().next().expect("an area");
                    let new = swap
                        .add_area_at(Box::new(device(128, PLAIN).0), priority)
                        .expect("few areas");
                    while new.used() == 0 && !workers.iter().all(|worker| worker.is_finished()) {
                        thread::yield_now();
                    }
                    swap.begin_swapoff(old);
                    while old.used() > 0 {
                        for chunk in 0..mm.table.chunks() {
                            swap.unuse_chunk(&mm, chunk, old).expect("all can be read");
                            // Nothing comes to an area that is being drained but what was on its way.
                            (0..2).for_each(|chunk| page_out(&swap, &mm, chunk, 0xff00));
                        }
                    }
                    swap.end_swapoff(old);
                    assert_eq!(swap.open_areas().count(), 1);
                }
            });
            let sum: u64 = (0..PAGES)
                .map(|page| load(&swap, &mm, page).expect("loaded"))
                .sum();
            assert_eq!(sum, 9_000, "updates are lost");
            assert!(swap.frames().in_use() == 0);
            check_empty(&swap, &[&mm]);
        });
    }
}

#[test]
#[should_panic(expected = "swapoff of an area in use")]
fn an_area_in_use_is_not_closed() {
    let (swap, _) = setup(Way::Direct, 256, PLAIN);
    let _mm = swapped(&swap);
    swap.end_swapoff(swap.areas().next().expect("an area"));
}

#[test]
fn areas_added_at_the_same_time_are_different_ones() {
    for _ in 0..50 {
        let swap = soft::swap(1, Way::Direct);
        let barrier = Barrier::new(2);
        thread::scope(|scope| {
            for slots in [5, 6] {
                let (swap, barrier) = (&swap, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    let area = swap.add_area(Box::new(device(slots, PLAIN).0));
                    assert_eq!(
                        area.expect("few areas").slots(),
                        slots,
                        "somebody else's area"
                    );
                });
            }
        });
        assert_eq!(swap.areas().count(), 2);
    }
}

#[test]
fn under_load_nothing_is_lost() {
    for way in SAFE {
        support::within_reason(move || {
            let (swap, _) = setup(way, 64, PLAIN);
            let mm = soft::mm(&swap, PAGES, None);
            thread::scope(|scope| {
                let workers: Vec<_> = (0..3)
                    .map(|worker| {
                        let (swap, mm) = (&swap, &mm);
                        scope.spawn(move || {
                            for turn in 0..3_000_u64 {
                                // Each page has one writer, so its version is known.
                                let page = turn as usize * 7 % (PAGES / 3) * 3 + worker;
                                let before = load(swap, mm, page).expect("loaded");
                                store(swap, mm, page, before + 1).expect("stored");
                                page_out(swap, mm, turn as usize % 2, turn.rotate_right(7) | 0xff0);
                            }
                        })
                    })
                    .collect();
                let mut rounds = 0;
                while !workers.iter().all(|worker| worker.is_finished()) && rounds < 60 {
                    let area = swap.areas().last().expect("an area");
                    swap.begin_swapoff(area);
                    while area.used() > 0 {
                        swap.unuse(&mm, area).expect("all can be read");
                    }
                    swap.end_swapoff(area);
                    swap.add_area(Box::new(device(64, PLAIN).0))
                        .expect("few areas");
                    thread::sleep(std::time::Duration::from_millis(2));
                    rounds += 1;
                }
            });
            let sum: u64 = (0..PAGES)
                .map(|page| load(&swap, &mm, page).expect("loaded"))
                .sum();
            assert_eq!(sum, 9_000, "updates are lost");
            assert!(swap.frames().in_use() == 0);
            check_empty(&swap, &[&mm]);
        });
    }
}
