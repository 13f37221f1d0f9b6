//! Each rule of the protocol broken once, with the interleaving that needs it, on software memory:
//! kept, the invariants hold; broken, a check sees it.

mod support;

use std::panic::{catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use support::hooked::{frames, space};
use support::{
    HANG, PLAIN, Switches, Zeros, check, check_empty, device, entry, first, load, page_out,
    setup_with, store, table, within_reason, write_out,
};
use userswap_core::rule::{Rule, Rules};
use userswap_core::script::{Point, ScriptedDevice};
use userswap_core::soft::{self, SoftMm, SoftSwap};
use userswap_core::space::Frames;
use userswap_core::{Access, FaultError, PinResult, StageError, Swap, Way};

/// A rule and the test that needs it.
type Case = (Rule, fn(Rules));

const CASES: [Case; 19] = [
    (Rule::PinBeforeRead, nobody_reuses_a_slot_that_is_read),
    (Rule::OneOwner, two_faults_do_not_both_read),
    (Rule::AllocateBeforePin, no_frame_leaves_no_pin),
    (Rule::ReleaseWhenGivingUp, no_memory_leaves_no_pin),
    (Rule::ReleaseOnce, a_fault_leaves_nothing_behind),
    (
        Rule::ReleaseAfterPte,
        nobody_reuses_a_slot_before_the_pte_is_done,
    ),
    (
        Rule::RecheckPte,
        a_page_dropped_while_it_is_read_stays_dropped,
    ),
    (Rule::FailedReadMapsNothing, a_failed_read_is_an_error),
    (Rule::PinnedPagesStay, a_pinned_page_stays),
    (
        Rule::WriteBeforeDelete,
        a_page_is_somewhere_while_it_is_written,
    ),
    (
        Rule::FailedWriteKeepsPage,
        a_page_that_cannot_be_written_is_kept,
    ),
    (Rule::StableWhileWritten, a_frame_stays_while_it_is_written),
    (
        Rule::CopyWhatOthersHold,
        a_child_keeps_what_its_parent_takes_back,
    ),
    (Rule::DiscardBeforeReuse, a_discard_spares_the_next_owner),
    (Rule::DeviceReference, swapoff_waits_for_a_reader),
    (Rule::SwapoffStopsAllocation, swapoff_ends_allocation),
    (
        Rule::EachSlotTested,
        each_page_of_a_batch_gets_its_own_content,
    ),
    (Rule::WaitForRelease, whoever_meets_a_pin_waits),
    (Rule::WakeOnRelease, whoever_waits_is_woken),
];

#[test]
fn every_broken_rule_is_caught() {
    for (rule, test) in CASES {
        let kept = catch_unwind(|| within_reason(move || test(Rules::ALL_KEPT)));
        assert!(kept.is_ok(), "{rule:?}: the test fails with the rule kept");
    }
    let found = CASES.map(|(rule, test)| {
        let broken = catch_unwind(|| within_reason(move || test(Rules::without(rule))));
        support::forget_bugs();
        let said = broken.expect_err(&format!("{rule:?} is broken, and nobody sees it"));
        (rule, table::said(&*said))
    });
    table::report("script", &found);
}

#[test]
fn the_table_has_every_rule_and_each_rule_a_checker() {
    let rows = table::rows();
    let names: Vec<_> = rows.iter().map(|(name, _)| name.as_str()).collect();
    let rules = Rule::ALL.map(|rule| format!("{rule:?}"));
    assert_eq!(names, rules, "docs/RULES.md and Rule::ALL have parted");
    for (name, cells) in &rows {
        let checkers = ["script", "loom", "shuttle", "explorer", "real memory"];
        let seen = checkers.iter().any(|checker| !cells[checker].is_empty());
        assert!(seen, "nobody sees {name} broken");
    }
}

/// How long to wait for what happens only when a rule is broken.
fn patience(rules: Rules) -> Duration {
    if rules == Rules::ALL_KEPT {
        Duration::from_millis(20)
    } else {
        HANG
    }
}

/// Joins a thread; its panic goes on here.
fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
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

/// `pages` pages of version 1, present.
fn touched(swap: &SoftSwap, pages: usize, around: usize) -> SoftMm {
    let mm = soft::mm(swap, pages, Some(around));
    (0..pages).for_each(|page| store(swap, &mm, page, 1).expect("a first touch"));
    mm
}

/// A subsystem of `slots` slots, and `pages` pages of version 1, all swapped out.
fn swapped(
    rules: Rules,
    way: Way,
    slots: u64,
    pages: usize,
    around: usize,
) -> (SoftSwap, SoftMm, Arc<Switches>) {
    let (swap, switches) = setup_with(rules, way, slots, PLAIN);
    let mm = touched(&swap, pages, around);
    page_out(&swap, &mm, 0, first(pages));
    (swap, mm, switches)
}

fn nobody_reuses_a_slot_that_is_read(rules: Rules) {
    let (swap, mm, switches) = swapped(rules, Way::Direct, 1, 1, 1);
    let stopped = switches.stop_next(Point::AfterRead);
    thread::scope(|scope| {
        let reader = scope.spawn(|| load(&swap, &mm, 0));
        stopped.reached();
        let (done, is_done) = channel();
        let (swap, mm) = (&swap, &mm);
        let writer = scope.spawn(move || {
            store(swap, mm, 0, 2).expect("stored");
            page_out(swap, mm, 0, 1);
            done.send(()).expect("the test listens");
        });
        // Only without the pin does the writer get this far.
        let _ = is_done.recv_timeout(patience(rules));
        stopped.go_on();
        join(reader).expect("loaded");
        join(writer);
    });
    assert_eq!(load(&swap, &mm, 0), Ok(2), "the store is lost");
    check_empty(&swap, &[&mm]);
}

fn two_faults_do_not_both_read(rules: Rules) {
    let swap = Swap::with_rules(frames(), Way::Direct, rules);
    let (device, switches) = device(4, PLAIN);
    swap.add_area(Box::new(device)).expect("a first area");
    let world = Arc::new((space(&swap, 1, 1), swap));
    let (mm, swap) = (&world.0, &world.1);
    let access = Access {
        page: 0,
        write: true,
        max_pages: 1,
        wait: false,
    };
    assert_eq!(swap.fault(mm, access), Ok(1));
    let staged = swap.stage(mm, 0, 1).expect("staged");
    assert_eq!(swap.write_back(staged.block, staged.mask).written, 1);
    swap.frames().release(staged.block, 1);
    let (told, tell) = channel();
    let again = Arc::clone(&world);
    // The second fault has seen a free flag and is about to take it.
    *swap.frames().before_take.lock().expect("hook") = Some(Box::new(move || {
        let stopped = switches.stop_next(Point::AfterRead);
        let first = thread::spawn(move || again.1.fault(&again.0, access));
        stopped.reached();
        told.send((first, stopped)).expect("the test listens");
    }));
    let second = swap.fault(mm, access);
    let (first, stopped) = tell.recv().expect("the hook ran");
    stopped.go_on();
    let first = first.join().unwrap_or_else(|panic| resume_unwind(panic));
    assert_eq!((first, second), (Ok(1), Ok(0)), "one of them reads");
    assert_eq!(support::new_bugs(), 0);
}

fn no_frame_leaves_no_pin(rules: Rules) {
    let (swap, mm, _) = swapped(rules, Way::Direct, 4, 2, 1);
    swap.frames().exhausted.store(true, Ordering::SeqCst);
    assert_eq!(fault(&swap, &mm, 0), Err(FaultError::NoFrames));
    swap.frames().exhausted.store(false, Ordering::SeqCst);
    check_empty(&swap, &[&mm]);
}

fn no_memory_leaves_no_pin(rules: Rules) {
    let (swap, mm, _) = swapped(rules, Way::Direct, 4, 2, 2);
    mm.space.full.store(true, Ordering::SeqCst);
    assert!(fault(&swap, &mm, 0).is_err(), "nothing can be mapped");
    mm.space.full.store(false, Ordering::SeqCst);
    check_empty(&swap, &[&mm]);
}

fn a_fault_leaves_nothing_behind(rules: Rules) {
    let (swap, mm, _) = swapped(rules, Way::Direct, 4, 2, 2);
    assert_eq!(fault(&swap, &mm, 0), Ok(2));
    check_empty(&swap, &[&mm]);
}

fn nobody_reuses_a_slot_before_the_pte_is_done(rules: Rules) {
    let (swap, mm, switches) = swapped(rules, Way::Direct, 2, 2, 2);
    let slots = [0, 1].map(|page| entry(&mm, page).expect("swapped").offset());
    let stopped = switches.stop_next_of(Point::AfterRead, Some(slots[1]));
    thread::scope(|scope| {
        let reader = scope.spawn(|| fault(&swap, &mm, 0));
        stopped.reached();
        // The neighbour's last holder goes, so that its release stops at the discard.
        assert_eq!(swap.discard(&mm, 0, 0b10).pinned, 0);
        let releasing = switches.stop_next_of(Point::Discard, Some(slots[1]));
        stopped.go_on();
        releasing.reached();
        store(&swap, &mm, 0, 2).expect("stored");
        page_out(&swap, &mm, 0, 1);
        releasing.go_on();
        join(reader).expect("read");
    });
    assert_eq!(load(&swap, &mm, 0), Ok(2), "the store is lost");
    check_empty(&swap, &[&mm]);
}

fn a_page_dropped_while_it_is_read_stays_dropped(rules: Rules) {
    let (swap, mm, switches) = swapped(rules, Way::Direct, 4, 1, 1);
    let stopped = switches.stop_next(Point::AfterRead);
    thread::scope(|scope| {
        let reader = scope.spawn(|| fault(&swap, &mm, 0));
        stopped.reached();
        assert_eq!(swap.discard(&mm, 0, 1).pinned, 0);
        stopped.go_on();
        join(reader).expect("read");
    });
    assert_eq!(load(&swap, &mm, 0), Ok(0), "the page is back");
    check_empty(&swap, &[&mm]);
}

fn a_failed_read_is_an_error(rules: Rules) {
    let (swap, mm, switches) = swapped(rules, Way::Direct, 4, 1, 1);
    let slot = entry(&mm, 0).expect("swapped").offset();
    switches.unreadable.lock().expect("switches").insert(slot);
    assert!(load(&swap, &mm, 0).is_err(), "junk is mapped");
    switches.unreadable.lock().expect("switches").clear();
    assert_eq!(load(&swap, &mm, 0), Ok(1));
    check_empty(&swap, &[&mm]);
}

fn a_pinned_page_stays(rules: Rules) {
    let (swap, _) = setup_with(rules, Way::Direct, 4, PLAIN);
    let mm = touched(&swap, 2, 1);
    assert_eq!(swap.pin(&mm, 1), PinResult::Pinned);
    page_out(&swap, &mm, 0, first(2));
    assert!(mm.space.peek(1).is_some(), "a pinned page left");
    swap.unpin(&mm, 1);
    check_empty(&swap, &[&mm]);
}

fn a_page_is_somewhere_while_it_is_written(rules: Rules) {
    let (swap, switches) = setup_with(rules, Way::Direct, 4, PLAIN);
    let mm = touched(&swap, 1, 1);
    let staged = swap.stage(&mm, 0, 1).expect("staged");
    let stopped = switches.stop_next(Point::BeforeWrite);
    thread::scope(|scope| {
        let writer = scope.spawn(|| write_out(&swap, &mm, 0, staged));
        stopped.reached();
        assert_eq!(load(&swap, &mm, 0), Ok(1), "the page is nowhere");
        stopped.go_on();
        join(writer);
    });
    check_empty(&swap, &[&mm]);
}

fn a_page_that_cannot_be_written_is_kept(rules: Rules) {
    let (swap, switches) = setup_with(rules, Way::Direct, 4, PLAIN);
    let mm = touched(&swap, 2, 1);
    *switches.unwritable.lock().expect("switches") = Some(Default::default());
    page_out(&swap, &mm, 0, first(2));
    assert_eq!(load(&swap, &mm, 0), Ok(1), "the page is lost");
    check_empty(&swap, &[&mm]);
}

fn a_frame_stays_while_it_is_written(rules: Rules) {
    let (swap, switches) = setup_with(rules, Way::Direct, 4, PLAIN);
    let mm = touched(&swap, 1, 1);
    let staged = swap.stage(&mm, 0, 1).expect("staged");
    let stopped = switches.stop_next(Point::BeforeWrite);
    let world = Arc::new((swap, mm));
    let writers = Arc::clone(&world);
    // Not scoped: it would wait for ever for the page lock of a fault that panicked.
    let writer = thread::spawn(move || write_out(&writers.0, &writers.1, 0, staged));
    let (swap, mm) = (&world.0, &world.1);
    stopped.reached();
    store(swap, mm, 0, 2).expect("stored");
    stopped.go_on();
    writer.join().unwrap_or_else(|panic| resume_unwind(panic));
    assert_eq!(load(swap, mm, 0), Ok(2));
    check_empty(swap, &[mm]);
}

fn a_child_keeps_what_its_parent_takes_back(rules: Rules) {
    let (swap, _) = setup_with(rules, Way::Direct, 4, PLAIN);
    let mm = touched(&swap, 1, 1);
    let child = soft::mm(&swap, 1, Some(1));
    let (staged, copied) = swap.fork_chunk(&mm, &child, 0);
    copied.expect("shared");
    store(&swap, &mm, 0, 2).expect("stored");
    assert_eq!(load(&swap, &child, 0), Ok(1), "the child's page is gone");
    write_out(&swap, &mm, 0, staged.expect("staged"));
    check_empty(&swap, &[&mm, &child]);
}

fn a_discard_spares_the_next_owner(rules: Rules) {
    let (swap, switches) = setup_with(rules, Way::Direct, 3, PLAIN);
    let mm = touched(&swap, 5, 1);
    page_out(&swap, &mm, 0, 0b01001);
    assert_eq!(load(&swap, &mm, 3), Ok(1), "its slot is free again");
    let stopped = switches.stop_next(Point::Discard);
    thread::scope(|scope| {
        let reader = scope.spawn(|| load(&swap, &mm, 0));
        stopped.reached();
        // Every slot that can be had.
        page_out(&swap, &mm, 0, 0b10110);
        stopped.go_on();
        join(reader).expect("loaded");
    });
    for page in 0..5 {
        assert_eq!(load(&swap, &mm, page), Ok(1), "page {page} was wiped");
    }
    check_empty(&swap, &[&mm]);
}

fn swapoff_waits_for_a_reader(rules: Rules) {
    // Where reads are pinned, a slot in use holds swapoff off as well.
    let (swap, mm, switches) = swapped(rules, Way::Unpinned, 4, 1, 1);
    let stopped = switches.stop_next(Point::BeforeRead);
    thread::scope(|scope| {
        let reader = scope.spawn(|| fault(&swap, &mm, 0));
        stopped.reached();
        let (done, is_done) = channel();
        let (swap, mm, switches) = (&swap, &mm, &switches);
        let swapoff = scope.spawn(move || {
            let area = swap.areas().next().expect("an area");
            swap.begin_swapoff(area);
            swap.unuse(mm, area).expect("all can be read");
            swap.end_swapoff(area);
            switches.closed.store(true, Ordering::SeqCst);
            done.send(()).expect("the test listens");
        });
        let _ = is_done.recv_timeout(patience(rules));
        stopped.go_on();
        join(reader).expect("read");
        join(swapoff);
    });
    let used = switches.used_closed.load(Ordering::SeqCst);
    assert!(!used, "a closed device is used");
    assert_eq!(load(&swap, &mm, 0), Ok(1));
}

fn swapoff_ends_allocation(rules: Rules) {
    let (swap, _) = setup_with(rules, Way::Direct, 4, PLAIN);
    let mm = touched(&swap, 1, 1);
    let area = swap.areas().next().expect("an area");
    swap.begin_swapoff(area);
    let staged = swap.stage(&mm, 0, 1);
    assert_eq!(staged, Err(StageError::AreaFull), "a slot is handed out");
    swap.abort_swapoff(area);
    check_empty(&swap, &[&mm]);
}

fn each_page_of_a_batch_gets_its_own_content(rules: Rules) {
    let swap = soft::swap_with_rules(2, Way::Direct, rules);
    let device = ScriptedDevice::new(4, PLAIN, Box::new(|_, _| Ok(())));
    swap.add_area(Box::new(Zeros(device))).expect("an area");
    let mm = touched(&swap, 2, 2);
    soft::access(&swap, &mm, 0, |bytes| bytes.fill(0)).expect("stored");
    page_out(&swap, &mm, 0, first(2));
    assert_eq!(fault(&swap, &mm, 0), Ok(2), "one batch");
    assert_eq!(load(&swap, &mm, 0), Ok(0));
    assert_eq!(load(&swap, &mm, 1), Ok(1), "zeros are mapped");
    check_empty(&swap, &[&mm]);
}

fn whoever_meets_a_pin_waits(rules: Rules) {
    let (swap, mm, switches) = swapped(rules, Way::Direct, 4, 1, 1);
    let stopped = switches.stop_next(Point::AfterRead);
    thread::scope(|scope| {
        let owner = scope.spawn(|| fault(&swap, &mm, 0));
        stopped.reached();
        let (back, is_back) = channel();
        let (swap, mm) = (&swap, &mm);
        let racer = scope.spawn(move || {
            let mapped = fault(swap, mm, 0);
            // The test has stopped listening when all is well.
            let _ = back.send(());
            mapped
        });
        let came = is_back.recv_timeout(patience(rules));
        assert!(came.is_err(), "a racer is back while the entry is pinned");
        stopped.go_on();
        assert_eq!((join(owner), join(racer)), (Ok(1), Ok(0)));
    });
    check_empty(&swap, &[&mm]);
}

fn whoever_waits_is_woken(rules: Rules) {
    let (swap, mm, switches) = swapped(rules, Way::Direct, 4, 1, 1);
    let world = Arc::new((swap, mm));
    let stopped = switches.stop_next(Point::AfterRead);
    let (told, tell) = channel();
    let racer = |told: std::sync::mpsc::Sender<_>| {
        let world = Arc::clone(&world);
        thread::spawn(move || told.send(fault(&world.0, &world.1, 0)));
    };
    racer(told.clone());
    stopped.reached();
    racer(told);
    // Long enough to have parked.
    thread::sleep(Duration::from_millis(20));
    stopped.go_on();
    // In either order: a racer that is woken may be the first to tell.
    let first = tell.recv_timeout(HANG).expect("the owner is done");
    let limit = if rules == Rules::ALL_KEPT {
        HANG
    } else {
        Duration::from_secs(1)
    };
    let woken = tell.recv_timeout(limit).expect("nobody wakes who waits");
    let mut mapped = [first, woken];
    mapped.sort_by_key(|pages| pages.is_ok_and(|pages| pages > 0));
    assert_eq!(mapped, [Ok(0), Ok(1)]);
    check(&world.0, &[&world.1], &[]);
}
