//! Every way out of every operation releases what it took: pins, slots and frames, exactly once.

mod support;

use std::sync::atomic::Ordering;
use std::thread;

use support::{
    PLAIN, SAFE, check, check_empty, device, entry, first, load, page_out, setup, slot, store,
    write_out,
};
use userswap_core::device::{DeviceError, Properties};
use userswap_core::script::Point;
use userswap_core::soft::{self, SoftMm, SoftSwap};
use userswap_core::space::{Frames, SpaceError};
use userswap_core::{Access, FaultError, PinResult, StageError, Staged, Way};

const PAGES: usize = 8;

/// `PAGES` pages, each swapped out as version 1.
fn swapped(swap: &SoftSwap, around: usize) -> SoftMm {
    let mm = soft::mm(swap, PAGES, Some(around));
    for page in 0..PAGES {
        store(swap, &mm, page, 1).expect("a first touch");
    }
    page_out(swap, &mm, 0, first(PAGES));
    check(swap, &[&mm], &[]);
    mm
}

fn fault(swap: &SoftSwap, mm: &SoftMm, page: usize) -> Result<usize, FaultError> {
    let access = Access {
        page,
        write: true,
        max_pages: 64,
        wait: true,
    };
    swap.fault(mm, access)
}

fn all_there(swap: &SoftSwap, mm: &SoftMm, version: u64) {
    for page in 0..PAGES {
        assert_eq!(load(swap, mm, page), Ok(version), "page {page}");
    }
    check_empty(swap, &[mm]);
}

#[test]
fn no_frame_leaves_no_pin() {
    for way in SAFE {
        let (swap, _) = setup(way, 16, PLAIN);
        let mm = swapped(&swap, 4);
        swap.frames().exhausted.store(true, Ordering::SeqCst);
        for page in 0..PAGES {
            assert_eq!(fault(&swap, &mm, page), Err(FaultError::NoFrames));
            assert_eq!(slot(&swap, &mm, page), (1, false), "{way:?}");
        }
        check(&swap, &[&mm], &[]);
        swap.frames().exhausted.store(false, Ordering::SeqCst);
        all_there(&swap, &mm, 1);
    }
}

#[test]
fn a_page_discarded_while_it_is_read_leaves_no_pin() {
    for way in SAFE {
        for error in [false, true] {
            let (swap, switches) = setup(way, 16, PLAIN);
            let mm = swapped(&swap, 4);
            let stopped = switches.stop_next(Point::BeforeRead);
            thread::scope(|scope| {
                let reader = scope.spawn(|| fault(&swap, &mm, 0));
                let read = stopped.reached();
                assert_eq!(slot(&swap, &mm, 0), (1, true), "pinned");
                assert_eq!(swap.discard(&mm, 0, 1).pinned, 0);
                assert_eq!(
                    switches.discards.load(Ordering::SeqCst),
                    0,
                    "the pin keeps the slot"
                );
                if error {
                    switches.unreadable.lock().expect("switches").insert(read);
                }
                stopped.go_on();
                // Its neighbours came, or not; the page itself is nobody's any more: no error.
                assert!(reader.join().expect("reader").is_ok(), "{way:?}");
            });
            assert!(switches.discards.load(Ordering::SeqCst) > 0);
            check(&swap, &[&mm], &[]);
            assert_eq!(
                load(&swap, &mm, 0),
                Ok(0),
                "a discarded page reads as zeros"
            );
            check_empty(&swap, &[&mm]);
        }
    }
}

#[test]
fn whoever_meets_a_pin_waits_and_takes_no_frame() {
    for way in SAFE {
        let (swap, switches) = setup(way, 16, PLAIN);
        let mm = swapped(&swap, 1);
        let stopped = switches.stop_next(Point::AfterRead);
        thread::scope(|scope| {
            let owner = scope.spawn(|| fault(&swap, &mm, 0));
            stopped.reached();
            let racers: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| load(&swap, &mm, 0)))
                .collect();
            thread::sleep(std::time::Duration::from_millis(20));
            assert_eq!(swap.frames().in_use(), 1, "only the owner's block");
            assert_eq!(slot(&swap, &mm, 0), (1, true));
            stopped.go_on();
            assert_eq!(owner.join().expect("owner"), Ok(1));
            for racer in racers {
                assert_eq!(racer.join().expect("racer"), Ok(1));
            }
        });
        assert_eq!(
            switches.reads.load(Ordering::SeqCst),
            1,
            "{way:?}: one read serves all"
        );
        check(&swap, &[&mm], &[]);
        all_there(&swap, &mm, 1);
    }
}

#[test]
fn read_ahead_does_not_wait_for_a_pin() {
    for way in SAFE {
        let (swap, switches) = setup(way, 16, PLAIN);
        let mm = swapped(&swap, 1);
        let stopped = switches.stop_next(Point::AfterRead);
        thread::scope(|scope| {
            let owner = scope.spawn(|| fault(&swap, &mm, 0));
            stopped.reached();
            let ahead = Access {
                page: 0,
                write: false,
                max_pages: 64,
                wait: false,
            };
            assert_eq!(swap.fault(&mm, ahead), Ok(0));
            stopped.go_on();
            assert_eq!(owner.join().expect("owner"), Ok(1));
        });
        all_there(&swap, &mm, 1);
    }
}

#[test]
fn a_page_that_cannot_be_mapped_stays_swapped() {
    for way in SAFE {
        let (swap, _) = setup(way, 16, PLAIN);
        let mm = swapped(&swap, 8);
        mm.space.full.store(true, Ordering::SeqCst);
        for page in 0..PAGES {
            let failed = Err(FaultError::Space(SpaceError::NoMemory));
            assert_eq!(fault(&swap, &mm, page), failed);
            assert_eq!(slot(&swap, &mm, page), (1, false));
        }
        check(&swap, &[&mm], &[]);
        mm.space.full.store(false, Ordering::SeqCst);
        all_there(&swap, &mm, 1);
    }
}

#[test]
fn a_staged_page_that_cannot_be_mapped_stays_staged() {
    let (swap, switches) = setup(Way::Direct, 16, PLAIN);
    let mm = soft::mm(&swap, PAGES, Some(8));
    (0..PAGES).for_each(|page| store(&swap, &mm, page, 1).expect("a first touch"));
    let staged = swap.stage(&mm, 0, first(PAGES)).expect("staged");
    mm.space.full.store(true, Ordering::SeqCst);
    let failed = Err(FaultError::Space(SpaceError::NoMemory));
    assert_eq!(fault(&swap, &mm, 3), failed);
    assert_eq!(swap.put_back(&mm, 0, staged.block, staged.mask, 0), 0);
    check(&swap, &[&mm], &[staged]);
    mm.space.full.store(false, Ordering::SeqCst);
    assert_eq!(
        fault(&swap, &mm, 3),
        Ok(PAGES),
        "taken back, neighbours too"
    );
    assert_eq!(switches.reads.load(Ordering::SeqCst), 0, "without a read");
    write_out(&swap, &mm, 0, staged);
    assert_eq!(
        switches.writes.load(Ordering::SeqCst),
        0,
        "nothing is left to write"
    );
    all_there(&swap, &mm, 1);
}

#[test]
fn a_first_touch_that_cannot_be_mapped_can_be_repeated() {
    let (swap, _) = setup(Way::Direct, 16, PLAIN);
    let mm = soft::mm(&swap, PAGES, Some(8));
    mm.space.full.store(true, Ordering::SeqCst);
    assert_eq!(
        store(&swap, &mm, 2, 1),
        Err(FaultError::Space(SpaceError::NoMemory))
    );
    check(&swap, &[&mm], &[]);
    mm.space.full.store(false, Ordering::SeqCst);
    assert_eq!(load(&swap, &mm, 2), Ok(0));
    check_empty(&swap, &[&mm]);
}

#[test]
fn a_read_error_names_the_entry_and_keeps_the_page() {
    for way in SAFE {
        let (swap, switches) = setup(way, 16, PLAIN);
        let mm = swapped(&swap, 8);
        let bad = entry(&mm, 5).expect("swapped");
        switches
            .unreadable
            .lock()
            .expect("switches")
            .insert(bad.offset());
        let error = FaultError::Read {
            entry: bad,
            error: DeviceError::Io(5),
        };
        assert_eq!(fault(&swap, &mm, 5), Err(error));
        assert!(error.to_string().contains(&bad.to_string()), "{error}");
        check(&swap, &[&mm], &[]);
        for page in 0..PAGES {
            assert_eq!(
                slot(&swap, &mm, page),
                (1, false),
                "an error keeps the whole batch out"
            );
        }
        // As a neighbour it drops out, alone.
        assert_eq!(fault(&swap, &mm, 4), Ok(PAGES - 1), "{way:?}");
        assert_eq!(slot(&swap, &mm, 5), (1, false));
        check(&swap, &[&mm], &[]);
        switches.unreadable.lock().expect("switches").clear();
        all_there(&swap, &mm, 1);
    }
}

#[test]
fn a_failed_write_keeps_the_page() {
    let (swap, switches) = setup(Way::Direct, 16, PLAIN);
    let mm = soft::mm(&swap, PAGES, Some(1));
    (0..PAGES).for_each(|page| store(&swap, &mm, page, 1).expect("a first touch"));
    let staged = swap.stage(&mm, 0, first(PAGES)).expect("staged");
    *switches.unwritable.lock().expect("switches") = Some(Default::default());
    let done = swap.write_back(staged.block, staged.mask);
    assert_eq!((done.failed, done.written), (staged.mask, 0));
    assert_eq!(done.error, Some(DeviceError::Full));
    check(&swap, &[&mm], &[staged]);
    assert_eq!(load(&swap, &mm, 0), Ok(1), "a fault takes it back");
    let rest = staged.mask & !1;
    assert_eq!(swap.put_back(&mm, 0, staged.block, done.failed, 3), rest);
    swap.frames().release(staged.block, 1);
    check(&swap, &[&mm], &[]);
    for turn in 0..3 {
        assert_eq!(swap.pass_over(&mm, 0, rest), 0, "turn {turn}");
    }
    assert_eq!(swap.pass_over(&mm, 0, rest), rest);
    *switches.unwritable.lock().expect("switches") = None;
    page_out(&swap, &mm, 0, first(PAGES));
    all_there(&swap, &mm, 1);
}

#[test]
fn a_block_of_a_longer_space_may_be_offered_to_a_shorter_one() {
    let (swap, switches) = setup(Way::Direct, 128, PLAIN);
    let (long, short) = (soft::mm(&swap, 64, None), soft::mm(&swap, PAGES, None));
    for page in 0..64 {
        store(&swap, &long, page, 1).expect("a first touch");
    }
    let staged = swap.stage(&long, 0, u64::MAX).expect("staged");
    *switches.unwritable.lock().expect("switches") = Some(Default::default());
    let done = swap.write_back(staged.block, staged.mask);
    assert_eq!(done.failed, u64::MAX);
    // Whoever has the block does not know which space holds its pages.
    assert_eq!(swap.put_back(&short, 0, staged.block, done.failed, 0), 0);
    assert_eq!(
        swap.put_back(&long, 0, staged.block, done.failed, 0),
        u64::MAX
    );
    swap.frames().release(staged.block, 1);
    check_empty(&swap, &[&long, &short]);
}

#[test]
fn a_full_area_keeps_pages_in_memory() {
    let (swap, _) = setup(Way::Direct, 5, PLAIN);
    let mm = soft::mm(&swap, PAGES, Some(1));
    (0..PAGES).for_each(|page| store(&swap, &mm, page, 1).expect("a first touch"));
    let staged = swap.stage(&mm, 0, first(PAGES)).expect("staged");
    assert_eq!(staged.mask.count_ones(), 5);
    assert_eq!(swap.stage(&mm, 0, first(PAGES)), Err(StageError::AreaFull));
    check(&swap, &[&mm], &[staged]);
    write_out(&swap, &mm, 0, staged);
    all_there(&swap, &mm, 1);
}

#[test]
fn the_second_area_takes_what_the_first_cannot() {
    let (swap, _) = setup(Way::Direct, 3, PLAIN);
    let (second, _) = device(64, PLAIN);
    swap.add_area(Box::new(second)).expect("a second area");
    let mm = soft::mm(&swap, PAGES, Some(8));
    (0..PAGES).for_each(|page| store(&swap, &mm, page, 1).expect("a first touch"));
    page_out(&swap, &mm, 0, first(PAGES));
    page_out(&swap, &mm, 0, first(PAGES));
    let areas: Vec<_> = (0..PAGES)
        .map(|page| entry(&mm, page).expect("swapped").area())
        .collect();
    assert_eq!(areas, [0, 0, 0, 1, 1, 1, 1, 1]);
    check(&swap, &[&mm], &[]);
    all_there(&swap, &mm, 1);
}

#[test]
fn no_frames_for_staging_gives_the_slots_back() {
    let (swap, _) = setup(Way::Direct, 16, PLAIN);
    let mm = soft::mm(&swap, PAGES, Some(1));
    (0..PAGES).for_each(|page| store(&swap, &mm, page, 1).expect("a first touch"));
    swap.frames().exhausted.store(true, Ordering::SeqCst);
    assert_eq!(swap.stage(&mm, 0, first(PAGES)), Err(StageError::NoFrames));
    swap.frames().exhausted.store(false, Ordering::SeqCst);
    check(&swap, &[&mm], &[]);
    all_there(&swap, &mm, 1);
}

#[test]
fn pages_that_cannot_leave_give_their_slots_back() {
    let (swap, _) = setup(Way::Direct, 16, PLAIN);
    let mm = soft::mm(&swap, PAGES, Some(1));
    (0..PAGES).for_each(|page| store(&swap, &mm, page, 1).expect("a first touch"));
    mm.space.busy.store(true, Ordering::SeqCst);
    assert_eq!(
        swap.stage(&mm, 0, first(PAGES)),
        Err(StageError::NothingToDo)
    );
    mm.space.busy.store(false, Ordering::SeqCst);
    check(&swap, &[&mm], &[]);
    all_there(&swap, &mm, 1);
}

#[test]
fn a_pinned_page_stays_until_its_last_pin_is_dropped() {
    let (swap, _) = setup(Way::Direct, 16, PLAIN);
    let mm = soft::mm(&swap, PAGES, Some(1));
    assert_eq!(swap.pin(&mm, 1), PinResult::NotPresent);
    (0..PAGES).for_each(|page| store(&swap, &mm, page, 1).expect("a first touch"));
    assert_eq!(swap.pin(&mm, 1), PinResult::Pinned);
    assert_eq!(swap.pin(&mm, 1), PinResult::Pinned);
    assert_eq!(swap.stage(&mm, 0, 0b10), Err(StageError::NothingToDo));
    swap.unpin(&mm, 1);
    let staged: Staged = swap.stage(&mm, 0, first(PAGES)).expect("the others");
    assert_eq!(staged.mask, first(PAGES) & !0b10);
    assert_eq!(swap.discard(&mm, 0, u64::MAX).pinned, 0b10);
    check(&swap, &[&mm], &[staged]);
    write_out(&swap, &mm, 0, staged);
    swap.unpin(&mm, 1);
    page_out(&swap, &mm, 0, 0b10);
    assert_eq!(slot(&swap, &mm, 1), (1, false));
    assert_eq!(load(&swap, &mm, 1), Ok(1));
    check_empty(&swap, &[&mm]);
}

#[test]
fn staged_pages_discarded_before_they_are_written_are_not_written() {
    let (swap, switches) = setup(Way::Cached, 16, PLAIN);
    let mm = soft::mm(&swap, PAGES, Some(1));
    (0..PAGES).for_each(|page| store(&swap, &mm, page, 1).expect("a first touch"));
    let staged = swap.stage(&mm, 0, first(PAGES)).expect("staged");
    assert_eq!(swap.discard(&mm, 0, u64::MAX).present, 0);
    let done = swap.write_back(staged.block, staged.mask);
    assert_eq!(
        (done.dropped, done.written, done.failed),
        (staged.mask, 0, 0)
    );
    assert_eq!(switches.writes.load(Ordering::SeqCst), 0);
    swap.frames().release(staged.block, 1);
    check_empty(&swap, &[&mm]);
}

#[test]
fn a_page_discarded_while_it_is_written_frees_its_slot() {
    for stable_pages in [false, true] {
        let properties = Properties {
            stable_pages,
            ..PLAIN
        };
        let (swap, switches) = setup(Way::Direct, 1, properties);
        let mm = soft::mm(&swap, 1, Some(1));
        store(&swap, &mm, 0, 1).expect("a first touch");
        let staged = swap.stage(&mm, 0, 1).expect("staged");
        let stopped = switches.stop_next(Point::BeforeWrite);
        thread::scope(|scope| {
            let writer = scope.spawn(|| swap.write_back(staged.block, staged.mask));
            stopped.reached();
            assert_eq!(swap.discard(&mm, 0, 1).pinned, 0);
            assert_eq!(load(&swap, &mm, 0), Ok(0), "zeros at once");
            stopped.go_on();
            assert_eq!(writer.join().expect("writer").dropped, 1);
        });
        swap.frames().release(staged.block, 1);
        check_empty(&swap, &[&mm]);
    }
}

#[test]
fn a_page_that_moved_to_another_slot_while_it_was_read_is_left_alone() {
    for way in SAFE {
        let (swap, switches) = setup(way, 16, PLAIN);
        let mm = swapped(&swap, 1);
        let old = entry(&mm, 0);
        let stopped = switches.stop_next(Point::AfterRead);
        thread::scope(|scope| {
            let reader = scope.spawn(|| fault(&swap, &mm, 0));
            stopped.reached();
            assert_eq!(swap.discard(&mm, 0, 1).pinned, 0);
            store(&swap, &mm, 0, 2).expect("a first touch");
            page_out(&swap, &mm, 0, 1);
            assert_ne!(entry(&mm, 0), old);
            stopped.go_on();
            assert_eq!(reader.join().expect("reader"), Ok(0), "{way:?}");
        });
        check(&swap, &[&mm], &[]);
        assert_eq!(load(&swap, &mm, 0), Ok(2));
        check_empty(&swap, &[&mm]);
    }
}
