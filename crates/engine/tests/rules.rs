//! Rules of the protocol, broken one at a time on real memory: those whose loss shows quickly and surely. Each test is
//! run with all rules kept too, and then finds nothing.
//!
//! Each runs in a process of its own: a broken rule may end it.

mod common;
#[path = "../../core/tests/support/table.rs"]
#[allow(dead_code, reason = "a part of the table's checks")]
mod table;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::child::{case, child, said, was_skipped};
use common::faulty::{Call, Faulty};
use common::pages::{Content, Pages};
use common::{PAGE, build};
use userswap::{Advice, DeviceError, Engine, FaultAround, Region};
use userswap_core::rule::{Rule, Rules};
use userswap_core::stamp::Found;

const COUNT: usize = 64;

/// Says what was lost.
type Test = fn(&World) -> Result<(), String>;

/// The rules that real memory is seen to need.
const CASES: [(Rule, Test); 7] = [
    (Rule::PinBeforeRead, two_threads_read_one_page),
    (Rule::ReleaseWhenGivingUp, a_failed_read_leaves_no_pin),
    (Rule::FailedReadMapsNothing, a_failed_read_maps_nothing),
    (Rule::PinnedPagesStay, pinned_pages_stay),
    (Rule::WriteBeforeDelete, a_page_is_somewhere_while_written),
    (Rule::FailedWriteKeepsPage, a_failed_write_keeps_the_page),
    (Rule::EachSlotTested, each_page_of_a_batch_has_its_own),
];

/// An engine over a device with switches, and a region of it.
struct World {
    region: Region,
    pages: Pages,
    switches: Arc<Switches>,
    engine: Engine,
}

#[derive(Debug, Default)]
struct Switches {
    reads_fail: AtomicBool,
    writes_fail: AtomicBool,
    reads_late: AtomicBool,
    writes_late: AtomicBool,
}

impl Switches {
    fn meet(&self, call: Call) -> Result<(), DeviceError> {
        let late = match call {
            Call::ReadDone => &self.reads_late,
            _ => &self.writes_late,
        };
        if matches!(call, Call::ReadDone | Call::Write) && late.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_micros(200));
        }
        match call {
            Call::Read if self.reads_fail.load(Ordering::SeqCst) => Err(DeviceError::Io(5)),
            Call::Write if self.writes_fail.load(Ordering::SeqCst) => Err(DeviceError::Io(28)),
            _ => Ok(()),
        }
    }
}

impl World {
    fn new(rules: Rules, slots: u64, around: usize) -> Option<Self> {
        let switches = Arc::new(Switches::default());
        let meets = Arc::clone(&switches);
        let builder = Engine::builder()
            .custom_device(Faulty::meeting(slots, move |call| meets.meet(call)))
            .fault_around(FaultAround::Fixed(around))
            .rules(rules);
        let engine = build("rules", builder)?;
        let region = engine.region(COUNT * PAGE).expect("a region");
        let world = Self {
            pages: Pages::named(&region, 1),
            region,
            switches,
            engine,
        };
        for page in 0..COUNT {
            world.pages.write(page, 1, Content::Text);
        }
        Some(world)
    }

    fn page_out(&self) {
        let range = 0..COUNT * PAGE;
        self.region.advise(range, Advice::PageOut).expect("advice");
    }

    fn is_right(&self, page: usize, version: u64) -> Result<(), String> {
        let wanted = self.pages.stamp(page, version, Content::Text);
        Found::of(&self.pages.read(page)).expect(1, page as u64, Some(wanted))
    }

    fn all_right(&self) -> Result<(), String> {
        (0..COUNT).try_for_each(|page| self.is_right(page, 1))
    }
}

fn a_failed_write_keeps_the_page(world: &World) -> Result<(), String> {
    world.switches.writes_fail.store(true, Ordering::SeqCst);
    world.page_out();
    world.switches.writes_fail.store(false, Ordering::SeqCst);
    world.all_right()
}

fn pinned_pages_stay(world: &World) -> Result<(), String> {
    let pin = world.region.pin(0..8 * PAGE).expect("a pin");
    world.page_out();
    let mut pinned = pin.range().step_by(PAGE);
    let Some(left) = pinned.find(|&at| !world.region.is_resident(at)) else {
        return Ok(());
    };
    // Dropping the pin of a page that is not there is a bug that says so itself.
    std::mem::forget(pin);
    Err(format!("the pinned page {} has left", left / PAGE))
}

fn a_failed_read_maps_nothing(world: &World) -> Result<(), String> {
    world.page_out();
    world.switches.reads_fail.store(true, Ordering::SeqCst);
    let brought = world.region.advise(0..8 * PAGE, Advice::WillNeed);
    world.switches.reads_fail.store(false, Ordering::SeqCst);
    world.all_right()?;
    brought.map_or(Ok(()), |_| Err("a read that fails is no error".into()))
}

fn a_failed_read_leaves_no_pin(world: &World) -> Result<(), String> {
    world.page_out();
    world.switches.reads_fail.store(true, Ordering::SeqCst);
    let _ = world.region.advise(0..PAGE, Advice::WillNeed);
    world.switches.reads_fail.store(false, Ordering::SeqCst);
    // With its pin left behind the page never comes: the case's watchdog says so.
    world.all_right()
}

fn each_page_of_a_batch_has_its_own(world: &World) -> Result<(), String> {
    // SAFETY: inside the region, which nobody else uses.
    unsafe { world.region.as_mut_ptr().write_bytes(0, PAGE) };
    world.page_out();
    assert_eq!(world.pages.read(0), [0; PAGE]);
    (1..COUNT).try_for_each(|page| world.is_right(page, 1))
}

fn a_page_is_somewhere_while_written(world: &World) -> Result<(), String> {
    world.switches.writes_late.store(true, Ordering::SeqCst);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                world.page_out();
            }
        });
        let found = (0..20).try_for_each(|_| world.all_right());
        stop.store(true, Ordering::SeqCst);
        found
    })
}

/// Section 1 of the protocol: a slot is freed and reused while a second thread reads it.
fn two_threads_read_one_page(world: &World) -> Result<(), String> {
    const TURNS: usize = 150;
    let pages = world.pages;
    pages.word(0).store(0, Ordering::SeqCst);
    world.switches.reads_late.store(true, Ordering::SeqCst);
    let stop = AtomicBool::new(false);
    let added: u64 = thread::scope(|scope| {
        let adders: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut added = 0;
                    while !stop.load(Ordering::SeqCst) {
                        pages.word(0).fetch_add(1, Ordering::SeqCst);
                        added += 1;
                        thread::sleep(Duration::from_micros(20));
                    }
                    added
                })
            })
            .collect();
        let mut left = 0;
        while left < TURNS {
            let out = world.region.advise(0..PAGE, Advice::PageOut);
            left += out.expect("advice");
        }
        stop.store(true, Ordering::SeqCst);
        adders
            .into_iter()
            .map(|adder| adder.join().expect("an adder"))
            .sum()
    });
    match pages.word(0).load(Ordering::SeqCst) {
        sum if sum == added => Ok(()),
        sum => Err(format!(
            "{} of {added} stores to page 0 are lost",
            added.abs_diff(sum)
        )),
    }
}

#[test]
fn every_broken_rule_is_caught() {
    let mut found = Vec::new();
    for (rule, _) in CASES {
        let kept = child("child_rule", &format!("{rule:?} kept"));
        if was_skipped(&kept) {
            return;
        }
        assert!(kept.status.success(), "{rule:?} kept: {}", said(&kept));
        let broken = child("child_rule", &format!("{rule:?} broken"));
        assert!(
            !broken.status.success(),
            "{rule:?} is broken, and nobody sees it"
        );
        let says = said(&broken);
        let caught = says.lines().find_map(|line| line.split_once("caught: "));
        let caught = caught.map_or_else(|| broken.status.to_string(), |(_, what)| what.to_owned());
        println!("rule {rule:?} on real memory: caught by {caught}");
        found.push((rule, caught));
    }
    table::report("real memory", &found);
}

#[test]
#[ignore = "started by every_broken_rule_is_caught"]
fn child_rule() {
    let Some(case) = case() else { return };
    let (name, what) = case.split_once(' ').expect("a case");
    let &(rule, test) = CASES
        .iter()
        .find(|(rule, _)| format!("{rule:?}") == name)
        .expect("a rule");
    let rules = if what == "broken" {
        Rules::without(rule)
    } else {
        Rules::ALL_KEPT
    };
    // A wait without end is a loss too.
    thread::spawn(|| {
        thread::sleep(Duration::from_secs(4));
        println!("caught: a thread that waits for ever");
        std::process::abort();
    });
    // Until it shows: a race takes more than one turn.
    for _ in 0..20 {
        let around = if rule == Rule::EachSlotTested { 8 } else { 1 };
        // One slot, so that it is reused at once.
        let slots = if rule == Rule::PinBeforeRead {
            1
        } else {
            2 * COUNT as u64
        };
        let Some(world) = World::new(rules, slots, around) else {
            return;
        };
        if let Err(wrong) = test(&world) {
            println!("caught: {wrong}");
            std::process::abort();
        }
        if world.engine.stats().bugs > 0 {
            println!("caught: a broken invariant was counted");
            std::process::abort();
        }
        if what == "kept" {
            return;
        }
    }
}
