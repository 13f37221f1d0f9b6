//! Everything at once on software memory, under shuttle: writers, reclaim, fork, discard, pins and swapoff
//! on a few pages and fewer slots. Each access checks that it sees the very last store.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner, thread};

use super::{Zeros, check, check_empty, stamp, version_of};
use userswap_core::device::{DeviceError, PageBytes, Properties};
use userswap_core::page_table::PteState;
use userswap_core::rule::Rules;
use userswap_core::script::{Point, Script, ScriptedDevice};
use userswap_core::soft::{self, SoftMm, SoftSwap};
use userswap_core::space::Frames;
use userswap_core::{Access, FaultError, PinResult, Staged, Way};

/// Pages that all threads use, at most.
const SHARED: usize = 5;
/// The page that comes and goes: one thread alone uses it.
const DROPPED: usize = SHARED;
const PAGES: usize = SHARED + 1;
/// What each thread does before it ends.
const TURNS: usize = 6;
/// Steps after which nobody gets anywhere any more. An execution takes a few thousand.
const MAX_STEPS: usize = 200_000;

/// How the next thread to run is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Schedule {
    /// Any of them.
    Random,
    /// By priorities that change a few times: finds what needs few preemptions (PCT).
    Pct,
}

static EXECUTIONS: AtomicUsize = AtomicUsize::new(0);

/// How many executions the current or last [`run`] has begun.
pub(crate) fn executions() -> usize {
    EXECUTIONS.load(Ordering::SeqCst)
}

/// Runs `iterations` executions with `rules`, each on another way, device and set of sizes. Returns how many
/// there were.
///
/// # Panics
/// In the first execution that fails: `seed` repeats it.
pub(crate) fn run(schedule: Schedule, seed: u64, iterations: usize, rules: Rules) -> usize {
    let mut config = Config::new();
    config.stack_size = 1 << 21;
    config.max_steps = MaxSteps::FailAfter(MAX_STEPS);
    config.failure_persistence = FailurePersistence::None;
    config.silence_warnings = true;
    EXECUTIONS.store(0, Ordering::SeqCst);
    let execution = move || {
        EXECUTIONS.fetch_add(1, Ordering::SeqCst);
        World::new(rules).run();
    };
    match schedule {
        Schedule::Random => {
            let scheduler = RandomScheduler::new_from_seed(seed, iterations);
            Runner::new(scheduler, config).run(execution)
        }
        Schedule::Pct => {
            let scheduler = PctScheduler::new_from_seed(seed, 5, iterations);
            Runner::new(scheduler, config).run(execution)
        }
    }
}

struct World {
    swap: SoftSwap,
    mm: SoftMm,
    around: usize,
    /// Pages that all threads use.
    shared: usize,
    properties: Properties,
    slots: u64,
    /// What must be in each page. Not modelled: changed while the page is held.
    expected: [AtomicU64; PAGES],
    next: AtomicU64,
    /// Which areas have been closed.
    closed: [Arc<AtomicBool>; 3],
    /// Whether reads and writes of devices may fail.
    failing: Arc<AtomicBool>,
}

fn chance(one_in: u32) -> bool {
    thread_rng().gen_range(0..one_in) == 0
}

impl World {
    fn new(rules: Rules) -> Arc<Self> {
        let mut random = thread_rng();
        let way = [Way::Direct, Way::Direct, Way::Cached][random.gen_range(0..3)];
        let around = 1 << random.gen_range(0..4);
        let properties = Properties {
            synchronous: random.gen_range(0..4) > 0,
            stable_pages: random.gen_range(0..3) == 0,
            discards: random.gen_range(0..3) > 0,
        };
        let swap = soft::swap_with_rules(random.gen_range(3..=5), way, rules);
        let world = Self {
            mm: soft::mm(&swap, PAGES, Some(around)),
            swap,
            around,
            shared: random.gen_range(1..=SHARED),
            properties,
            slots: random.gen_range(1..=7),
            expected: Default::default(),
            next: AtomicU64::new(1),
            closed: Default::default(),
            failing: Arc::new(AtomicBool::new(chance(3))),
        };
        world.swapon();
        Arc::new(world)
    }

    fn swapon(&self) {
        let number = self.swap.areas().count();
        let (gone, failing) = (Arc::clone(&self.closed[number]), Arc::clone(&self.failing));
        // Slow devices have wide windows; on quick ones threads keep their priority.
        let slow = chance(2);
        let script: Script = Box::new(move |point, _| {
            assert!(!gone.load(Ordering::SeqCst), "a closed device is used");
            for _ in 0..if slow {
                thread_rng().gen_range(0..4)
            } else {
                0
            } {
                thread::yield_now();
            }
            let may_fail = matches!(point, Point::BeforeRead | Point::BeforeWrite);
            if may_fail && failing.load(Ordering::SeqCst) && chance(8) {
                return Err(DeviceError::Io(5));
            }
            Ok(())
        });
        let device = ScriptedDevice::new(self.slots, self.properties, script);
        let area = self.swap.add_area(Box::new(Zeros(device)));
        assert!(area.is_some(), "few areas");
    }

    fn run(self: Arc<Self>) {
        let always: [fn(&Self); 3] = [Self::write, Self::write, Self::page_out];
        let often: [fn(&Self); 7] = [
            Self::write,
            Self::page_out,
            Self::read_ahead,
            Self::fork,
            Self::drop_and_touch,
            Self::pin,
            Self::swapoff,
        ];
        // Fewer threads get further with each other.
        let often = often.into_iter().filter(|_| !chance(3));
        let threads = always.into_iter().chain(often).map(|job| {
            let world = Arc::clone(&self);
            thread::spawn(move || job(&world))
        });
        let threads: Vec<_> = threads.collect();
        for thread in threads {
            thread.join().expect("no panic");
        }
        self.failing.store(false, Ordering::SeqCst);
        for page in 0..PAGES {
            self.access(page, |_| {}).expect("nothing fails any more");
        }
        check(&self.swap, &[&self.mm], &[]);
        check_empty(&self.swap, &[&self.mm]);
    }

    /// Lets `then` see and change a page, once it is seen to be right.
    fn access(&self, page: usize, then: impl Fn(&mut PageBytes)) -> Result<(), FaultError> {
        soft::access(&self.swap, &self.mm, page, |bytes| {
            let found = version_of(page, bytes).unwrap_or_else(|error| panic!("{error}"));
            let expected = self.expected[page].load(Ordering::SeqCst);
            assert_eq!(found, expected, "page {page} is not what was stored last");
            then(bytes);
        })
    }

    /// Stores a version that was never there before, or zeros.
    fn store(&self, page: usize, bytes: &mut PageBytes) {
        let version = if chance(4) {
            bytes.fill(0);
            0
        } else {
            let version = self.next.fetch_add(1, Ordering::SeqCst);
            *bytes = stamp(page, version);
            version
        };
        self.expected[page].store(version, Ordering::SeqCst);
    }

    fn page(&self) -> usize {
        thread_rng().gen_range(0..self.shared)
    }

    /// Brings pages in without touching them, and without waiting for anybody.
    fn read_ahead(&self) {
        for _ in 0..2 * TURNS {
            let access = Access {
                page: thread_rng().gen_range(0..PAGES),
                write: false,
                max_pages: PAGES,
                wait: false,
            };
            // What cannot be read is read again by whoever needs it.
            let _ = self.swap.fault(&self.mm, access);
        }
    }

    fn write(&self) {
        for _ in 0..TURNS {
            let page = self.page();
            let write = !chance(3);
            // A read that fails is tried again by the next turn.
            let _ = self.access(page, |bytes| {
                if write {
                    self.store(page, bytes);
                }
            });
        }
    }

    /// Keeps blocks staged for a while, writes them, and puts back what could not be written.
    fn page_out(&self) {
        let mut queue = VecDeque::new();
        for _ in 0..2 * TURNS {
            let mask = thread_rng().gen_range(1..1 << PAGES);
            queue.extend(self.swap.stage(&self.mm, 0, mask));
            if queue.len() > 1 || chance(2) {
                let oldest = queue.pop_front();
                queue.extend(oldest.and_then(|staged| self.write_back(staged)));
            }
        }
        queue.into_iter().for_each(|staged| self.finish(staged));
    }

    /// Writes a block; returns it if some of it is staged still.
    fn write_back(&self, staged: Staged) -> Option<Staged> {
        let done = self.swap.write_back(staged.block, staged.mask);
        let back = self
            .swap
            .put_back(&self.mm, 0, staged.block, done.failed, 0);
        assert_eq!(back & !done.failed, 0, "what was written comes back");
        if self.swap.still_staged(staged.block, staged.mask) != 0 {
            return Some(staged);
        }
        self.swap.frames().release(staged.block, 1);
        None
    }

    fn finish(&self, mut staged: Staged) {
        while let Some(rest) = self.write_back(staged) {
            staged = rest;
            thread::yield_now();
        }
    }

    fn fork(&self) {
        for _ in 0..2 {
            let child = soft::mm(&self.swap, PAGES, Some(self.around));
            let (staged, copied) = self.swap.fork_chunk(&self.mm, &child, 0);
            for _ in 0..if copied.is_ok() { TURNS } else { 0 } {
                let page = thread_rng().gen_range(0..PAGES);
                let seen = soft::access(&self.swap, &child, page, |bytes| {
                    let found = version_of(page, bytes).unwrap_or_else(|error| panic!("{error}"));
                    if chance(2) {
                        // The parent must never see it.
                        *bytes = stamp(page, u64::MAX);
                    }
                    found
                });
                let next = self.next.load(Ordering::SeqCst);
                assert!(
                    seen.is_err() || seen.is_ok_and(|seen| seen < next || seen == u64::MAX),
                    "the child has a page from the future"
                );
            }
            staged.into_iter().for_each(|staged| self.finish(staged));
            assert_eq!(self.swap.discard(&child, 0, u64::MAX).pinned, 0);
        }
    }

    fn drop_and_touch(&self) {
        for _ in 0..TURNS {
            let _ = self.access(DROPPED, |bytes| self.store(DROPPED, bytes));
            if chance(2) {
                let dropped = self.swap.discard(&self.mm, 0, 1 << DROPPED);
                assert_eq!(dropped.pinned, 0, "nobody pins it");
                self.expected[DROPPED].store(0, Ordering::SeqCst);
            }
            let _ = self.access(DROPPED, |_| {});
        }
    }

    fn pin(&self) {
        for _ in 0..TURNS {
            let page = self.page();
            if self.swap.pin(&self.mm, page) != PinResult::Pinned {
                let _ = self.access(page, |_| {});
                continue;
            }
            for _ in 0..3 {
                thread::yield_now();
                let present = self.mm.table.load(page).state() == PteState::Present;
                assert!(present, "a pinned page left");
            }
            self.swap.unpin(&self.mm, page);
        }
    }

    fn swapoff(&self) {
        for number in 0..2 {
            self.swapon();
            let area = self.swap.areas().nth(number).expect("it was added");
            self.swap.begin_swapoff(area);
            let mut used = area.used();
            for _ in 0..8 {
                // A page that cannot be read stays: then the area does too.
                let _ = self.swap.unuse(&self.mm, area);
                thread::yield_now();
                let now = area.used();
                assert!(now <= used, "a slot was handed out after the stop");
                used = now;
            }
            if used > 0 {
                self.swap.abort_swapoff(area);
            } else {
                self.swap.end_swapoff(area);
                self.closed[number].store(true, Ordering::SeqCst);
            }
        }
    }
}
