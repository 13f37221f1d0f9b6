//! Many threads on few slots: no update is lost, no page is another, nothing is leaked.

mod support;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use support::{
    PLAIN, SAFE, check, check_empty, device, stamp, version_of, within_reason, write_out,
};
use userswap_core::device::Properties;
use userswap_core::page_table::CHUNK_PAGES;
use userswap_core::script::{Point, ScriptedDevice};
use userswap_core::soft::{self, SoftMm, SoftSwap};
use userswap_core::{Way, bug};

/// One chunk and a piece of another.
const PAGES: usize = CHUNK_PAGES + 24;
const WRITERS: usize = 4;

/// Not a good generator: enough to mix things up, and the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end
    }
}

/// What a run came to.
#[derive(Debug, Default)]
struct Outcome {
    lost: u64,
    misloads: u64,
}

/// What the threads of a run share.
struct World {
    swap: SoftSwap,
    mm: SoftMm,
    /// How often each page was written: what must be in it at the end.
    written: Vec<AtomicU64>,
    misloads: AtomicU64,
    writers: AtomicUsize,
}

impl World {
    fn new(swap: SoftSwap, around: Option<usize>) -> Self {
        Self {
            mm: soft::mm(&swap, PAGES, around),
            swap,
            written: (0..PAGES).map(|_| AtomicU64::new(0)).collect(),
            misloads: AtomicU64::new(0),
            writers: AtomicUsize::new(WRITERS),
        }
    }

    fn version(&self, page: usize, bytes: &userswap_core::device::PageBytes) -> u64 {
        version_of(page, bytes).unwrap_or_else(|_| {
            self.misloads.fetch_add(1, Ordering::SeqCst);
            0
        })
    }

    /// Adds one to a page's version.
    fn bump(&self, page: usize) {
        let bumped = soft::access(&self.swap, &self.mm, page, |bytes| {
            *bytes = stamp(page, self.version(page, bytes) + 1);
        });
        bumped.expect("a page that can be accessed");
        self.written[page].fetch_add(1, Ordering::SeqCst);
    }

    fn write(&self, seed: u64, operations: usize) {
        let mut random = Random(seed);
        for turn in 0..operations {
            if turn % 8 == 0 {
                // Let pages leave, however few CPUs there are.
                thread::yield_now();
            }
            let page = random.below(PAGES);
            if random.below(3) == 0 {
                let read = soft::access(&self.swap, &self.mm, page, |bytes| {
                    self.version(page, bytes)
                });
                read.expect("a page that can be accessed");
            } else {
                self.bump(page);
            }
        }
        self.writers.fetch_sub(1, Ordering::SeqCst);
    }

    fn writing(&self) -> bool {
        self.writers.load(Ordering::SeqCst) > 0
    }

    /// Stages without pause, and keeps a few blocks staged before it writes them.
    fn page_out(&self) {
        let (mut random, mut queue) = (Random(77), VecDeque::new());
        while self.writing() {
            let chunk = random.below(2);
            let mask = random.next() | random.next();
            if let Ok(staged) = self.swap.stage(&self.mm, chunk, mask) {
                queue.push_back((chunk, staged));
            }
            if queue.len() > random.below(3) {
                let (chunk, staged) = queue.pop_front().expect("not empty");
                write_out(&self.swap, &self.mm, chunk, staged);
            }
            thread::yield_now();
        }
        for (chunk, staged) in queue {
            write_out(&self.swap, &self.mm, chunk, staged);
        }
    }

    /// Forks, writes to both sides' pages, and drops the copy again.
    fn fork(&self) {
        let mut random = Random(99);
        while self.writing() {
            let child = soft::mm(&self.swap, PAGES, Some(4));
            for chunk in 0..2 {
                // It fails where no slot and no frame is free; what was copied is dropped.
                let (staged, copied) = self.swap.fork_chunk(&self.mm, &child, chunk);
                for _ in 0..if copied.is_ok() { 8 } else { 0 } {
                    let page = (chunk * CHUNK_PAGES + random.below(CHUNK_PAGES)).min(PAGES - 1);
                    let latest = self.written[page].load(Ordering::SeqCst) + WRITERS as u64;
                    let seen = soft::access(&self.swap, &child, page, |bytes| {
                        let version = self.version(page, bytes);
                        *bytes = stamp(page, version + 1_000_000);
                        version
                    });
                    let seen = seen.expect("a page that can be accessed") % 1_000_000;
                    assert!(seen <= latest, "the child has page {page} from the future");
                }
                if let Some(staged) = staged {
                    write_out(&self.swap, &self.mm, chunk, staged);
                }
                assert_eq!(self.swap.discard(&child, chunk, u64::MAX).pinned, 0);
            }
        }
    }

    fn run(&self, operations: usize, forks: bool) -> Outcome {
        thread::scope(|scope| {
            for i in 0..WRITERS {
                scope.spawn(move || self.write(0x1234_5678_9abc + i as u64 * 7919, operations));
            }
            scope.spawn(|| self.page_out());
            if forks {
                scope.spawn(|| self.fork());
            }
        });
        let mut outcome = Outcome::default();
        for page in 0..PAGES {
            let is = soft::access(&self.swap, &self.mm, page, |bytes| {
                self.version(page, bytes)
            });
            let is = is.expect("a page that can be accessed");
            outcome.lost += self.written[page].load(Ordering::SeqCst).abs_diff(is);
        }
        outcome.misloads = self.misloads.load(Ordering::SeqCst);
        outcome
    }
}

fn safe(way: Way, properties: Properties, slots: u64, around: Option<usize>) {
    within_reason(move || {
        let swap = soft::swap(12, way);
        let (device, switches) = device(slots, properties);
        swap.add_area(Box::new(device)).expect("a first area");
        let world = World::new(swap, around);
        let outcome = world.run(2_500, true);
        let what = format!("{way:?} {properties:?} {slots} slots, fault-around {around:?}");
        assert_eq!((outcome.lost, outcome.misloads), (0, 0), "{what}");
        assert!(
            switches.reads.load(Ordering::SeqCst) > 0,
            "{what}: nothing was swapped in"
        );
        check(&world.swap, &[&world.mm], &[]);
        check_empty(&world.swap, &[&world.mm]);
        assert_eq!(bug::count(), 0);
    });
}

const AROUND: [Option<usize>; 4] = [Some(1), Some(8), Some(64), None];

#[test]
fn nothing_is_lost_on_a_synchronous_device() {
    for way in SAFE {
        for around in AROUND {
            safe(way, PLAIN, 24, around);
        }
    }
}

#[test]
fn nothing_is_lost_on_a_handful_of_slots() {
    for way in SAFE {
        for slots in [1, 3] {
            safe(way, PLAIN, slots, Some(8));
        }
    }
}

#[test]
fn nothing_is_lost_with_room_for_everything() {
    for way in SAFE {
        safe(way, PLAIN, 1_000, None);
    }
}

#[test]
fn nothing_is_lost_on_an_asynchronous_device_with_stable_pages() {
    let properties = Properties {
        synchronous: false,
        stable_pages: true,
        discards: false,
    };
    for around in AROUND {
        safe(Way::Direct, properties, 40, around);
    }
}

/// Whether the checks above see the loss when the pin is left out.
fn unpinned(discards: bool) -> Outcome {
    let late = AtomicBool::new(false);
    let script = Box::new(move |point, _| {
        if point == Point::AfterRead && late.fetch_xor(true, Ordering::SeqCst) {
            thread::sleep(Duration::from_micros(300));
        }
        Ok(())
    });
    let properties = Properties { discards, ..PLAIN };
    let swap = soft::swap(12, Way::Unpinned);
    swap.add_area(Box::new(ScriptedDevice::new(4, properties, script)))
        .expect("a first area");
    World::new(swap, Some(1)).run(2_000, false)
}

#[test]
fn without_the_pin_the_checks_see_the_loss() {
    let seen = within_reason(|| (0..20).any(|round| unpinned(round % 2 == 0).lost > 0));
    assert!(seen, "checks that cannot fail are worth nothing");
}
