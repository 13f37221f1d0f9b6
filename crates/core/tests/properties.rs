//! Random sequences of operations against a flat memory that knows no swap: every page is always the
//! one that was last stored, and the invariants hold after each step.
//!
//! Every page carries region, number, version and checksum, so that a wrong page says whose it is. A failing sequence is
//! shrunk, and printed like a program. A longer run, and one with a given seed:
//! `PROPTEST_CASES=100000 PROPTEST_RNG_SEED=1 cargo test -p userswap-core --test properties -- --nocapture`.

mod support;

use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use support::{Switches, check, check_empty, device, stamp_of};
use userswap_core::device::{PageBytes, Properties};
use userswap_core::page_table::{CHUNK_PAGES, PteState};
use userswap_core::soft::{self, SoftMm, SoftSwap};
use userswap_core::space::{Frames, SpaceError};
use userswap_core::stamp::{Found, Stamp};
use userswap_core::{Access, FaultError, PinResult, StageError, Staged, Way};

/// One chunk and a piece of another.
const PAGES: usize = CHUNK_PAGES + 6;
const CHUNKS: usize = 2;
const BLOCKS: usize = 5;
const SPACES: usize = 3;

#[derive(Clone)]
enum Step {
    Store(usize, usize),
    Load(usize, usize),
    Stage(usize, usize, u64),
    /// Writes the oldest staged block, and puts back what could not be written or not.
    WriteBack(bool),
    /// Puts part of the oldest staged block back.
    PutBack(u64),
    Pin(usize, usize),
    Unpin(usize),
    Discard(usize, usize, u64),
    Fork(usize),
    Drop(usize),
    /// Slots that cannot be read from now on.
    Unreadable(BTreeSet<u64>),
    Unwritable(Option<BTreeSet<u64>>),
    /// No frame is free.
    Exhausted(bool),
    /// No page can be mapped in a space: the system has no memory.
    NoMemory(usize, bool),
    /// No page can leave a space: the system uses them all.
    Busy(usize, bool),
    SwapOffAndOn,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Store(space, page) => write!(f, "store(s{space}, page {page})"),
            Step::Load(space, page) => write!(f, "load(s{space}, page {page})"),
            Step::Stage(space, chunk, mask) => {
                write!(f, "stage(s{space}, chunk {chunk}, {mask:#x})")
            }
            Step::WriteBack(put_back) => write!(f, "write_back(put_back: {put_back})"),
            Step::PutBack(mask) => write!(f, "put_back({mask:#x})"),
            Step::Pin(space, page) => write!(f, "pin(s{space}, page {page})"),
            Step::Unpin(nth) => write!(f, "unpin({nth})"),
            Step::Discard(space, chunk, mask) => {
                write!(f, "discard(s{space}, chunk {chunk}, {mask:#x})")
            }
            Step::Fork(space) => write!(f, "fork(s{space})"),
            Step::Drop(space) => write!(f, "drop(s{space})"),
            Step::Unreadable(slots) => write!(f, "unreadable({slots:?})"),
            Step::Unwritable(slots) => write!(f, "unwritable({slots:?})"),
            Step::Exhausted(exhausted) => write!(f, "exhausted({exhausted})"),
            Step::NoMemory(space, full) => write!(f, "no_memory(s{space}, {full})"),
            Step::Busy(space, busy) => write!(f, "busy(s{space}, {busy})"),
            Step::SwapOffAndOn => write!(f, "swapoff_and_on()"),
        }?;
        f.write_str(";")
    }
}

fn page() -> impl Strategy<Value = usize> {
    // Few enough to meet each other, on both sides of the border of the chunks.
    prop_oneof![0..6_usize, 60..PAGES]
}

fn mask() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(u64::MAX),
        any::<u64>(),
        (0..64_u32).prop_map(|i| 1 << i)
    ]
}

fn slots() -> impl Strategy<Value = BTreeSet<u64>> {
    prop::collection::btree_set(0..64_u64, 0..8)
}

fn step() -> impl Strategy<Value = Step> {
    let space = || 0..SPACES;
    prop_oneof![
        8 => (space(), page()).prop_map(|(space, page)| Step::Store(space, page)),
        6 => (space(), page()).prop_map(|(space, page)| Step::Load(space, page)),
        6 => (space(), 0..CHUNKS, mask()).prop_map(|(s, chunk, mask)| Step::Stage(s, chunk, mask)),
        6 => any::<bool>().prop_map(Step::WriteBack),
        1 => mask().prop_map(Step::PutBack),
        1 => (space(), page()).prop_map(|(space, page)| Step::Pin(space, page)),
        1 => any::<usize>().prop_map(Step::Unpin),
        1 => (space(), 0..CHUNKS, mask()).prop_map(|(s, chunk, mask)| Step::Discard(s, chunk, mask)),
        2 => space().prop_map(Step::Fork),
        1 => space().prop_map(Step::Drop),
        1 => slots().prop_map(Step::Unreadable),
        1 => prop::option::of(slots()).prop_map(Step::Unwritable),
        1 => any::<bool>().prop_map(Step::Exhausted),
        1 => (space(), any::<bool>()).prop_map(|(space, full)| Step::NoMemory(space, full)),
        1 => (space(), any::<bool>()).prop_map(|(space, busy)| Step::Busy(space, busy)),
        1 => Just(Step::SwapOffAndOn),
    ]
}

#[derive(Clone, Debug)]
struct Setting {
    way: Way,
    properties: Properties,
    slots: u64,
    around: Option<usize>,
}

fn setting() -> impl Strategy<Value = Setting> {
    let way = prop_oneof![Just(Way::Direct), Just(Way::Cached)];
    let properties =
        any::<(bool, bool, bool)>().prop_map(|(synchronous, stable_pages, discards)| Properties {
            synchronous,
            stable_pages,
            discards,
        });
    let around = prop_oneof![Just(None), Just(Some(1)), Just(Some(4)), Just(Some(64))];
    (way, properties, 1..=64_u64, around).prop_map(|(way, properties, slots, around)| Setting {
        way,
        properties,
        slots,
        around,
    })
}

/// An address space and the memory it should be.
struct Space {
    number: usize,
    mm: SoftMm,
    /// `None`: nobody has written the page.
    wanted: Vec<Option<Stamp>>,
    pins: Vec<usize>,
}

impl Space {
    fn is_full(&self) -> bool {
        self.mm.space.full.load(Ordering::SeqCst)
    }
}

struct World {
    setting: Setting,
    swap: SoftSwap,
    switches: Arc<Switches>,
    spaces: Vec<Space>,
    /// With the number of the space each block came from.
    staged: VecDeque<(usize, usize, Staged)>,
    /// Of all versions and all spaces: no two stores are alike.
    clock: u64,
    exhausted: bool,
}

impl World {
    fn new(setting: Setting) -> Self {
        let swap = soft::swap(BLOCKS, setting.way);
        let (device, switches) = device(setting.slots, setting.properties);
        swap.add_area(Box::new(device)).expect("a first area");
        let mut world = Self {
            setting,
            swap,
            switches,
            spaces: Vec::new(),
            staged: VecDeque::new(),
            clock: 0,
            exhausted: false,
        };
        let first = world.space(vec![None; PAGES]);
        world.spaces.push(first);
        world
    }

    fn space(&mut self, wanted: Vec<Option<Stamp>>) -> Space {
        self.clock += 1;
        Space {
            number: self.clock as usize,
            mm: soft::mm(&self.swap, PAGES, self.setting.around),
            wanted,
            pins: vec![0; PAGES],
        }
    }

    fn at(&self, space: usize) -> usize {
        space % self.spaces.len()
    }

    fn check(&self) {
        let mms: Vec<_> = self.spaces.iter().map(|space| &space.mm).collect();
        let staged: Vec<_> = self.staged.iter().map(|&(.., staged)| staged).collect();
        check(&self.swap, &mms, &staged);
        for space in &self.spaces {
            for page in 0..PAGES {
                if let Some(bytes) = space.mm.space.peek(page) {
                    expect(space, page, &bytes);
                } else if space.mm.table.load(page).state() == PteState::None {
                    assert_eq!(space.wanted[page], None, "page {page} is lost");
                }
            }
        }
    }

    /// Brings a page in, if the state of things allows it.
    fn bring(&mut self, space: usize, page: usize) -> bool {
        let mut turns = 0;
        while self.spaces[space].mm.space.peek(page).is_none() {
            turns += 1;
            assert!(turns < 100, "page {page} never comes");
            let access = Access {
                page,
                write: true,
                max_pages: CHUNK_PAGES,
                wait: true,
            };
            match self.swap.fault(&self.spaces[space].mm, access) {
                Ok(_) => {}
                Err(FaultError::NoFrames) => {
                    let all = self.swap.frames().in_use() == BLOCKS;
                    assert!(self.exhausted || all, "frames are free");
                    return false;
                }
                Err(FaultError::Read { entry, .. }) => {
                    let unreadable = self.switches.unreadable.lock().expect("switches");
                    assert!(unreadable.contains(&entry.offset()), "{entry} can be read");
                    return false;
                }
                Err(FaultError::Space(SpaceError::NoMemory)) => {
                    assert!(self.spaces[space].is_full(), "there is memory");
                    return false;
                }
                Err(error) => panic!("{error}"),
            }
        }
        true
    }

    fn load(&mut self, space: usize, page: usize) {
        if self.bring(space, page) {
            let bytes = self.spaces[space].mm.space.peek(page).expect("present");
            expect(&self.spaces[space], page, &bytes);
        }
    }

    fn store(&mut self, space: usize, page: usize) {
        if self.bring(space, page) {
            self.clock += 1;
            let stamp = stamp_of(self.spaces[space].number as u64, page, self.clock);
            soft::access(&self.swap, &self.spaces[space].mm, page, |page| {
                *page = stamp.bytes()
            })
            .expect("present");
            self.spaces[space].wanted[page] = Some(stamp);
        }
    }

    fn stage(&mut self, space: usize, chunk: usize, mask: u64) {
        let Space { number, mm, .. } = &self.spaces[space];
        match self.swap.stage(mm, chunk, mask) {
            Ok(staged) => self.staged.push_back((*number, chunk, staged)),
            Err(StageError::NoFrames) => {
                assert!(self.exhausted || self.swap.frames().in_use() == BLOCKS);
            }
            Err(StageError::AreaFull) => {
                let used = self.swap.areas().last().expect("an area").used();
                assert_eq!(used, self.setting.slots, "slots are free");
            }
            Err(StageError::NothingToDo) => {}
        }
    }

    fn write_back(&mut self, put_back: bool) {
        let Some((number, chunk, staged)) = self.staged.pop_front() else {
            return;
        };
        let done = self.swap.write_back(staged.block, staged.mask);
        assert_eq!(done.written & done.failed, 0);
        assert_eq!(done.failed == 0, done.error.is_none());
        let space = self.spaces.iter().find(|space| space.number == number);
        if let Some(space) = space
            && put_back
        {
            self.swap
                .put_back(&space.mm, chunk, staged.block, done.failed, 1);
        }
        // Of a page that others hold too, the space got a copy: it is staged still.
        let left = self.swap.still_staged(staged.block, done.failed);
        self.keep(number, chunk, staged.block, left);
    }

    /// Keeps what is left of a staged block for later.
    fn keep(&mut self, number: usize, chunk: usize, block: u32, mask: u64) {
        if mask == 0 {
            self.swap.frames().release(block, 1);
        } else {
            self.staged
                .push_back((number, chunk, Staged { block, mask }));
        }
    }

    fn put_back(&mut self, mask: u64) {
        let Some((number, chunk, staged)) = self.staged.pop_front() else {
            return;
        };
        if let Some(space) = self.spaces.iter().find(|space| space.number == number) {
            self.swap
                .put_back(&space.mm, chunk, staged.block, staged.mask & mask, 0);
        }
        let left = self.swap.still_staged(staged.block, staged.mask);
        self.keep(number, chunk, staged.block, left);
    }

    fn discard(&mut self, space: usize, chunk: usize, mask: u64) {
        let Space {
            mm, wanted, pins, ..
        } = &mut self.spaces[space];
        let done = self.swap.discard(mm, chunk, mask);
        for i in (0..CHUNK_PAGES).filter(|i| mask & 1 << i != 0) {
            let page = chunk * CHUNK_PAGES + i;
            if page < PAGES {
                assert_eq!(done.pinned & 1 << i != 0, pins[page] > 0);
                if pins[page] == 0 {
                    wanted[page] = None;
                }
            }
        }
    }

    fn fork(&mut self, space: usize) {
        if self.spaces.len() == SPACES {
            return;
        }
        let child = self.space(self.spaces[space].wanted.clone());
        let mut copied = true;
        for chunk in 0..CHUNKS {
            let parent = &self.spaces[space];
            let (staged, result) = self.swap.fork_chunk(&parent.mm, &child.mm, chunk);
            if let Some(staged) = staged {
                self.staged.push_back((parent.number, chunk, staged));
            }
            copied &= result.is_ok();
        }
        self.spaces.push(child);
        if !copied {
            self.drop_space(self.spaces.len() - 1);
        }
    }

    fn drop_space(&mut self, space: usize) {
        let gone = self.spaces.remove(space);
        for page in 0..PAGES {
            (0..gone.pins[page]).for_each(|_| self.swap.unpin(&gone.mm, page));
        }
        for chunk in 0..CHUNKS {
            assert_eq!(self.swap.discard(&gone.mm, chunk, u64::MAX).pinned, 0);
        }
    }

    fn swapoff(&mut self) {
        let number = self.swap.areas().count() - 1;
        self.swap
            .begin_swapoff(self.swap.areas().nth(number).expect("an area"));
        while self.swap.areas().nth(number).expect("an area").used() > 0 {
            for space in &self.spaces {
                // It waits for frames, and here nobody frees any.
                if self.exhausted || self.swap.frames().in_use() == BLOCKS {
                    self.swap
                        .abort_swapoff(self.swap.areas().nth(number).expect("an area"));
                    return;
                }
                let area = self.swap.areas().nth(number).expect("an area");
                if let Err((_, _, error)) = self.swap.unuse(&space.mm, area) {
                    match error {
                        FaultError::Read { entry, .. } => {
                            let unreadable = self.switches.unreadable.lock().expect("switches");
                            assert!(unreadable.contains(&entry.offset()), "{entry} can be read");
                        }
                        FaultError::Space(SpaceError::NoMemory) => {
                            assert!(space.is_full(), "there is memory");
                        }
                        error => panic!("{error}"),
                    }
                    self.swap.abort_swapoff(area);
                    assert!(self.swap.is_open(area));
                    return;
                }
            }
            for _ in 0..self.staged.len() {
                self.write_back(true);
            }
        }
        self.swap
            .end_swapoff(self.swap.areas().nth(number).expect("an area"));
        let (device, switches) = device(self.setting.slots, self.setting.properties);
        self.swap.add_area(Box::new(device)).expect("few areas");
        self.switches = switches;
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Store(space, page) => self.store(self.at(space), page),
            Step::Load(space, page) => self.load(self.at(space), page),
            Step::Stage(space, chunk, mask) => self.stage(self.at(space), chunk, mask),
            Step::WriteBack(put_back) => self.write_back(put_back),
            Step::PutBack(mask) => self.put_back(mask),
            Step::Pin(space, page) => {
                let space = self.at(space);
                let Space { mm, pins, .. } = &mut self.spaces[space];
                let present = mm.table.load(page).state() == PteState::Present;
                assert_eq!(self.swap.pin(mm, page) == PinResult::Pinned, present);
                pins[page] += usize::from(present);
            }
            Step::Unpin(nth) => {
                let all = |space: &Space| (0..PAGES).filter(|&p| space.pins[p] > 0).collect();
                let pinned: Vec<(usize, usize)> = (self.spaces.iter().enumerate())
                    .flat_map(|(i, space)| {
                        let pages: Vec<usize> = all(space);
                        pages.into_iter().map(move |page| (i, page))
                    })
                    .collect();
                if !pinned.is_empty() {
                    let (space, page) = pinned[nth % pinned.len()];
                    self.swap.unpin(&self.spaces[space].mm, page);
                    self.spaces[space].pins[page] -= 1;
                }
            }
            Step::Discard(space, chunk, mask) => self.discard(self.at(space), chunk, mask),
            Step::Fork(space) => self.fork(self.at(space)),
            Step::Drop(space) => {
                if self.spaces.len() > 1 {
                    self.drop_space(self.at(space));
                }
            }
            Step::Unreadable(slots) => *self.switches.unreadable.lock().expect("switches") = slots,
            Step::Unwritable(slots) => *self.switches.unwritable.lock().expect("switches") = slots,
            Step::Exhausted(exhausted) => {
                self.exhausted = exhausted;
                let flag = &self.swap.frames().exhausted;
                flag.store(exhausted, Ordering::SeqCst);
            }
            Step::NoMemory(space, full) => {
                let space = &self.spaces[self.at(space)].mm.space;
                space.full.store(full, Ordering::SeqCst);
            }
            Step::Busy(space, busy) => {
                let space = &self.spaces[self.at(space)].mm.space;
                space.busy.store(busy, Ordering::SeqCst);
            }
            Step::SwapOffAndOn => self.swapoff(),
        }
        self.check();
    }

    /// All is read once more with everything in order again, then nothing is left.
    fn finish(mut self) {
        self.step(Step::Unreadable(BTreeSet::new()));
        self.step(Step::Unwritable(None));
        self.step(Step::Exhausted(false));
        for space in 0..self.spaces.len() {
            self.step(Step::NoMemory(space, false));
            self.step(Step::Busy(space, false));
        }
        while !self.staged.is_empty() {
            self.write_back(true);
        }
        for space in 0..self.spaces.len() {
            for page in 0..PAGES {
                self.load(space, page);
            }
        }
        while self.spaces.len() > 1 {
            self.drop_space(1);
            self.check();
        }
        let last = self.spaces.pop().expect("one space");
        for page in 0..PAGES {
            (0..last.pins[page]).for_each(|_| self.swap.unpin(&last.mm, page));
        }
        check_empty(&self.swap, &[&last.mm]);
    }
}

/// A present page is what was last stored there.
fn expect(space: &Space, page: usize, bytes: &PageBytes) {
    let found = Found::of(bytes).expect(space.number as u64, page as u64, space.wanted[page]);
    found.unwrap_or_else(|wrong| panic!("{wrong}"));
}

#[test]
fn memory_is_what_was_stored() {
    let mut config = ProptestConfig {
        // Where the seeds of failures would go is nobody's business but the developer's.
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 1_500;
    }
    let seed = match config.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => std::process::id().into(),
    };
    config.rng_seed = RngSeed::Fixed(seed);
    let (cases, operations) = (config.cases, Cell::new(0));
    let programs = (setting(), prop::collection::vec(step(), 1..80));
    let result = TestRunner::new(config).run(&programs, |(setting, steps)| {
        operations.set(operations.get() + steps.len());
        let mut world = World::new(setting);
        world.check();
        for step in steps {
            world.step(step);
        }
        world.finish();
        Ok(())
    });
    println!(
        "{cases} cases, {} operations; PROPTEST_RNG_SEED={seed}",
        operations.get()
    );
    result.unwrap_or_else(|error| panic!("PROPTEST_RNG_SEED={seed}: {error}"));
}
