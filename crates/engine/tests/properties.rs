//! Any sequence of operations on real memory does what it would do to plain arrays of bytes.
//!
//! Every page carries region, number, version and checksum, so that a wrong page says whose it is. A failing sequence is
//! shrunk, and printed like a program. A longer run, and one with a given seed:
//! `PROPTEST_CASES=20000 PROPTEST_RNG_SEED=1 cargo test -p userswap --test properties -- --nocapture`.

mod common;

use std::cell::Cell;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread;

use common::faulty::{Call, Faulty};
use common::pages::{Content, Pages};
use common::{MIB, PAGE, build};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use userswap::{
    Advice, DeviceError, Engine, Error, FaultAround, FaultError, FaultMode, ForkError, Pin, Region,
};
use userswap_core::stamp::Found;

/// Pages of a region: two chunks and a bit.
const COUNT: usize = 140;
/// Regions at once.
const REGIONS: usize = 4;

#[derive(Clone, Debug)]
enum Operation {
    /// Fills whole pages.
    Write(Range<usize>, Content),
    /// Changes one byte of a page.
    Poke(usize, usize, u8),
    Read(Range<usize>),
    Advise(Range<usize>, Advice),
    Discard(Range<usize>),
    Pin(Range<usize>),
    /// Drops one of the pins.
    Unpin(usize),
    Fork,
    New,
    Drop,
    /// Two threads write every other page each, and a third pages out meanwhile.
    Together(Range<usize>),
    /// In MiB; only where there is a limit.
    Limit(u64),
    ReadsFail(bool),
    WritesFail(Option<DeviceError>),
    Swapoff,
}

/// An operation on one of the regions.
#[derive(Clone)]
struct Step(usize, Operation);

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Step(r, operation) = self;
        match operation {
            Operation::Write(pages, content) => write!(f, "write(r{r}, {pages:?}, {content:?})"),
            Operation::Poke(page, at, byte) => write!(f, "poke(r{r}, page {page}, {at}, {byte})"),
            Operation::Read(pages) => write!(f, "read(r{r}, {pages:?})"),
            Operation::Advise(pages, advice) => write!(f, "advise(r{r}, {pages:?}, {advice:?})"),
            Operation::Discard(pages) => write!(f, "discard(r{r}, {pages:?})"),
            Operation::Pin(pages) => write!(f, "pin(r{r}, {pages:?})"),
            Operation::Unpin(nth) => write!(f, "unpin(r{r}, {nth})"),
            Operation::Fork => write!(f, "fork(r{r})"),
            Operation::New => write!(f, "new()"),
            Operation::Drop => write!(f, "drop(r{r})"),
            Operation::Together(pages) => write!(f, "together(r{r}, {pages:?})"),
            Operation::Limit(mib) => write!(f, "limit({mib} MiB)"),
            Operation::ReadsFail(fail) => write!(f, "reads_fail({fail})"),
            Operation::WritesFail(error) => write!(f, "writes_fail({error:?})"),
            Operation::Swapoff => write!(f, "swapoff()"),
        }?;
        f.write_str(";")
    }
}

fn pages() -> impl Strategy<Value = Range<usize>> {
    let len = prop_oneof![1..4_usize, 1..=COUNT];
    (0..COUNT, len).prop_map(|(start, len)| start..(start + len).min(COUNT))
}

fn operation() -> impl Strategy<Value = Operation> {
    let content = prop_oneof![Just(Content::Text), Just(Content::Noise)];
    let advice = prop_oneof![
        6 => Just(Advice::PageOut),
        2 => Just(Advice::WillNeed),
        1 => Just(Advice::Sequential),
        1 => Just(Advice::Random),
    ];
    let error = prop_oneof![
        Just(None),
        Just(Some(DeviceError::Io(28))),
        Just(Some(DeviceError::Full)),
        Just(Some(DeviceError::Incompressible)),
    ];
    prop_oneof![
        60 => (pages(), content).prop_map(|(pages, content)| Operation::Write(pages, content)),
        30 => (0..COUNT, 0..PAGE, any::<u8>()).prop_map(|(p, at, b)| Operation::Poke(p, at, b)),
        60 => pages().prop_map(Operation::Read),
        90 => (pages(), advice).prop_map(|(pages, advice)| Operation::Advise(pages, advice)),
        10 => pages().prop_map(Operation::Discard),
        20 => pages().prop_map(Operation::Pin),
        20 => any::<usize>().prop_map(Operation::Unpin),
        20 => Just(Operation::Fork),
        5 => Just(Operation::New),
        15 => Just(Operation::Drop),
        5 => pages().prop_map(Operation::Together),
        10 => (4..10_u64).prop_map(Operation::Limit),
        10 => any::<bool>().prop_map(Operation::ReadsFail),
        10 => error.prop_map(Operation::WritesFail),
        2 => Just(Operation::Swapoff),
    ]
}

/// What the device does.
#[derive(Debug, Default)]
struct Switches {
    reads_fail: AtomicBool,
    /// 0: none fails.
    writes_fail: AtomicU8,
    /// Several threads run: one may meet an error that another has just ended.
    together: AtomicBool,
}

fn code(error: Option<DeviceError>) -> u8 {
    match error {
        None => 0,
        Some(DeviceError::Full) => 1,
        Some(DeviceError::Incompressible) => 2,
        Some(_) => 3,
    }
}

impl Switches {
    fn meet(&self, call: Call) -> Result<(), DeviceError> {
        match (call, self.writes_fail.load(Ordering::SeqCst)) {
            (Call::Read, _) if self.reads_fail.load(Ordering::SeqCst) => Err(DeviceError::Io(5)),
            (Call::Write, 1) => Err(DeviceError::Full),
            (Call::Write, 2) => Err(DeviceError::Incompressible),
            (Call::Write, 3) => Err(DeviceError::Io(28)),
            _ => Ok(()),
        }
    }
}

thread_local! {
    /// The switches of the case that this thread runs; constant, so that a signal handler can look.
    static SWITCHES: Cell<*const Switches> = const { Cell::new(std::ptr::null()) };
}

/// Accesses that got SIGBUS because the device did not read.
static FAILED: AtomicU64 = AtomicU64::new(0);

/// An access to a page that cannot be read: it can from now on, and the access repeats.
extern "C" fn on_sigbus(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let switches = SWITCHES.get();
    if switches.is_null() {
        std::process::abort();
    }
    // SAFETY: set only while the switches live.
    let switches = unsafe { &*switches };
    let failed = switches.reads_fail.swap(false, Ordering::SeqCst);
    if !failed && !switches.together.load(Ordering::SeqCst) {
        userswap_sys::signals::stderr_line(format_args!("a SIGBUS, and no read fails"));
        std::process::abort();
    }
    FAILED.fetch_add(1, Ordering::Relaxed);
}

fn install_handler() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    // SAFETY: plain data, for which zeros are a value; the handler touches atomics and a constant thread-local.
    ONCE.call_once(|| unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        let installed = libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
        assert_eq!(installed, 0);
    });
}

/// A region, and what it must hold. Pins borrow the region, so it is leaked while they live.
struct Model {
    region: &'static Region,
    pages: Pages,
    name: u64,
    wanted: Vec<u8>,
    pins: Vec<Pin<'static>>,
}

impl Model {
    fn new(region: Region, name: u64, wanted: Vec<u8>) -> Self {
        Self {
            pages: Pages::named(&region, name),
            region: Box::leak(Box::new(region)),
            name,
            wanted,
            pins: Vec::new(),
        }
    }

    fn wanted(&mut self, page: usize) -> &mut [u8] {
        &mut self.wanted[page * PAGE..(page + 1) * PAGE]
    }

    fn check(&mut self, pages: Range<usize>) -> Result<(), TestCaseError> {
        for page in pages {
            let found = self.pages.read(page);
            let wanted = &self.wanted[page * PAGE..(page + 1) * PAGE];
            if found == wanted {
                continue;
            }
            let at = (0..PAGE).find(|&at| found[at] != wanted[at]);
            let wanted = Found::of(wanted.try_into().expect("a page"));
            return Err(TestCaseError::fail(format!(
                "page {page} of region {} holds {}; it should hold {wanted}; first wrong byte {at:?}",
                self.name,
                Found::of(&found),
            )));
        }
        Ok(())
    }

    fn is_pinned(&self, page: usize) -> bool {
        let mut pins = self.pins.iter();
        pins.any(|pin| pin.range().contains(&(page * PAGE)))
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.pins.clear();
        // SAFETY: leaked in `new`; its pins are gone, and nobody else has the reference.
        drop(unsafe { Box::from_raw(std::ptr::from_ref(self.region).cast_mut()) });
    }
}

struct World<'a> {
    engine: &'a Engine,
    switches: &'a Switches,
    models: Vec<Model>,
    /// Of all versions and all regions: no two stores are alike.
    clock: u64,
}

fn bytes(pages: &Range<usize>) -> Range<usize> {
    pages.start * PAGE..pages.end * PAGE
}

impl World<'_> {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn add(&mut self, region: Region, wanted: Vec<u8>) {
        let name = self.tick();
        self.models.push(Model::new(region, name, wanted));
    }

    /// Only a read that fails excuses a call.
    fn excused<T>(&self, result: Result<T, Error>) -> Result<Option<T>, TestCaseError> {
        let failing = self.switches.reads_fail.load(Ordering::SeqCst);
        match result {
            Ok(value) => Ok(Some(value)),
            Err(Error::Fault {
                error: FaultError::Read { .. },
                ..
            }) if failing => Ok(None),
            Err(Error::Fork {
                error: ForkError::Slot(_),
                ..
            }) if failing => Ok(None),
            Err(error) => Err(TestCaseError::fail(error.to_string())),
        }
    }

    fn apply(&mut self, Step(at, operation): &Step) -> Result<(), TestCaseError> {
        let at = at % self.models.len();
        let version = self.tick();
        let model = &mut self.models[at];
        match operation {
            Operation::Write(pages, content) => {
                for page in pages.clone() {
                    model.pages.write(page, version, *content);
                    let stamped = model.pages.stamp(page, version, *content).bytes();
                    model.wanted(page).copy_from_slice(&stamped);
                }
            }
            &Operation::Poke(page, offset, byte) => {
                model.pages.poke(page, offset, byte);
                model.wanted(page)[offset] = byte;
            }
            Operation::Read(pages) => model.check(pages.clone())?,
            Operation::Advise(pages, advice) => {
                let result = model.region.advise(bytes(pages), *advice);
                self.excused(result)?;
            }
            Operation::Discard(pages) => {
                // SAFETY: the model holds no reference to the region's bytes.
                let result = unsafe { model.region.discard_shared(bytes(pages)) };
                let pinned = pages.clone().filter(|&page| model.is_pinned(page)).count();
                prop_assert_eq!(result.is_err(), pinned > 0, "{:?}", result);
                for page in pages
                    .clone()
                    .filter(|&page| !model.is_pinned(page))
                    .collect::<Vec<_>>()
                {
                    model.wanted(page).fill(0);
                }
            }
            Operation::Pin(pages) => {
                let result = model.region.pin(bytes(pages));
                if let Some(pin) = self.excused(result)? {
                    self.models[at].pins.push(pin);
                }
            }
            Operation::Unpin(nth) => {
                if !model.pins.is_empty() {
                    let nth = nth % model.pins.len();
                    drop(model.pins.swap_remove(nth));
                }
            }
            Operation::Fork => self.fork(at)?,
            Operation::New => {
                if self.models.len() < REGIONS {
                    let region = self.engine.region(COUNT * PAGE).expect("a region");
                    self.add(region, vec![0; COUNT * PAGE]);
                }
            }
            Operation::Drop => {
                if self.models.len() > 1 {
                    drop(self.models.swap_remove(at));
                }
            }
            Operation::Together(pages) => self.together(at, pages, version),
            Operation::Limit(mib) => {
                if self.engine.stats().limit_bytes.is_some() {
                    self.engine.set_limit(mib * MIB as u64).expect("a limit");
                }
            }
            Operation::ReadsFail(fail) => self.switches.reads_fail.store(*fail, Ordering::SeqCst),
            Operation::WritesFail(error) => {
                self.switches
                    .writes_fail
                    .store(code(*error), Ordering::SeqCst);
            }
            Operation::Swapoff => match self.engine.swapoff() {
                Err(Error::SwapoffLimit { .. }) => {}
                result => {
                    self.excused(result)?;
                }
            },
        }
        for model in &self.models {
            for page in model.pins.iter().flat_map(|pin| pin.range().step_by(PAGE)) {
                prop_assert!(model.region.is_resident(page), "a pinned page has left");
            }
        }
        Ok(())
    }

    fn fork(&mut self, at: usize) -> Result<(), TestCaseError> {
        if self.models.len() < REGIONS {
            let result = self.models[at].region.fork();
            if let Some(child) = self.excused(result)? {
                let wanted = self.models[at].wanted.clone();
                self.add(child, wanted);
            }
        }
        Ok(())
    }

    fn together(&mut self, at: usize, range: &Range<usize>, version: u64) {
        let Model { pages, region, .. } = self.models[at];
        let switches = std::ptr::from_ref(self.switches) as usize;
        self.switches.together.store(true, Ordering::SeqCst);
        thread::scope(|scope| {
            for first in 0..2 {
                scope.spawn(move || {
                    SWITCHES.set(switches as *const Switches);
                    for page in range.clone().skip(first).step_by(2) {
                        pages.write(page, version, Content::Text);
                        pages.verify(page, version, Content::Text);
                    }
                });
            }
            region
                .advise(bytes(range), Advice::PageOut)
                .expect("advice");
        });
        self.switches.together.store(false, Ordering::SeqCst);
        for page in range.clone() {
            let stamped = pages.stamp(page, version, Content::Text).bytes();
            self.models[at].wanted(page).copy_from_slice(&stamped);
        }
    }
}

fn run(engine: &Engine, switches: &Switches, steps: &[Step]) -> Result<(), TestCaseError> {
    SWITCHES.set(switches);
    let mut world = World {
        engine,
        switches,
        models: Vec::new(),
        clock: 0,
    };
    let region = engine.region(COUNT * PAGE).expect("a region");
    world.add(region, vec![0; COUNT * PAGE]);
    for step in steps {
        world.apply(step)?;
    }
    switches.reads_fail.store(false, Ordering::SeqCst);
    switches.writes_fail.store(0, Ordering::SeqCst);
    for model in &mut world.models {
        model.check(0..COUNT)?;
    }
    drop(world);
    let stats = engine.stats();
    prop_assert_eq!(stats.bugs, 0);
    prop_assert_eq!(stats.resident_bytes, 0);
    common::wait_until("an empty store", || engine.stats().swapped_bytes == 0);
    SWITCHES.set(std::ptr::null());
    Ok(())
}

fn check(name: &str, mode: FaultMode, limit: Option<u64>, around: FaultAround) {
    install_handler();
    let mut config = ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 60;
    }
    let seed = match config.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => userswap_sys::timing::now_ns(),
    };
    config.rng_seed = RngSeed::Fixed(seed);
    let step = (0..REGIONS, operation()).prop_map(|(at, operation)| Step(at, operation));
    let cases = config.cases;
    let operations = Cell::new(0);
    // One engine a case: a case may have closed its swap area.
    let result = TestRunner::new(config).run(&prop::collection::vec(step, 1..80), |steps| {
        let switches = Arc::new(Switches::default());
        let meets = Arc::clone(&switches);
        let mut builder = Engine::builder()
            .custom_device(Faulty::meeting(4096, move |call| meets.meet(call)))
            .faults(mode)
            .fault_around(around);
        if let Some(limit) = limit {
            builder = builder.limit(limit);
        }
        let Some(engine) = build(name, builder) else {
            return Ok(());
        };
        operations.set(operations.get() + steps.len());
        run(&engine, &switches, &steps)
    });
    common::say(format_args!(
        "{name}: {cases} cases, {} operations; PROPTEST_RNG_SEED={seed}",
        operations.get()
    ));
    result.unwrap_or_else(|error| panic!("{name}, PROPTEST_RNG_SEED={seed}: {error}"));
}

#[test]
fn inline() {
    check("inline", FaultMode::Inline, None, FaultAround::Adaptive);
}

#[test]
fn thread() {
    check("thread", FaultMode::Thread, None, FaultAround::Adaptive);
}

#[test]
fn inline_single_pages() {
    let around = FaultAround::Fixed(1);
    check("inline_single_pages", FaultMode::Inline, None, around);
}

/// Four regions at once are more than half of the least limit, and half of their content is noise.
#[test]
fn inline_with_the_least_limit() {
    let limit = Some(4 * MIB as u64);
    check(
        "inline_limit",
        FaultMode::Inline,
        limit,
        FaultAround::Adaptive,
    );
}

#[test]
fn thread_with_the_least_limit() {
    let limit = Some(4 * MIB as u64);
    check(
        "thread_limit",
        FaultMode::Thread,
        limit,
        FaultAround::Fixed(8),
    );
}
