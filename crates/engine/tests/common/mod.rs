//! What the engine's tests share. Each test binary uses a part of it.
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod child;
pub(crate) mod churn;
pub(crate) mod faulty;
pub(crate) mod folder;
pub(crate) mod pages;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use userswap::{DeviceError, Engine, EngineBuilder, Error, FaultMode, Properties};
use userswap_core::script::{Point, Script, ScriptedDevice};
use userswap_sys::uffd::OpenError;

pub(crate) const PAGE: usize = userswap::PAGE_SIZE;
pub(crate) const MIB: usize = 1 << 20;

/// Prints a line past the capture of a passing test's output: what was tried, and how often.
pub(crate) fn say(line: impl std::fmt::Display) {
    use std::io::Write;
    writeln!(std::io::stdout().lock(), "{line}").expect("stdout");
}

/// Says that `name` cannot be tested on this host. With CI=true a test that does not run is a failure.
pub(crate) fn skip(name: &str, reason: impl std::fmt::Display) {
    println!("SKIPPED: {name}: {reason}");
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{name} must run in CI: {reason}"
    );
}

/// Runs `test` with an engine in each fault mode, or skips it where the host refuses userfaultfd.
/// Afterwards no broken invariant may have been met.
pub(crate) fn in_both_modes(
    name: &str,
    setup: impl Fn(EngineBuilder) -> EngineBuilder,
    test: impl Fn(&Engine),
) {
    for mode in [FaultMode::Inline, FaultMode::Thread] {
        in_mode(mode, name, &setup, &test);
    }
}

pub(crate) fn in_mode(
    mode: FaultMode,
    name: &str,
    setup: impl Fn(EngineBuilder) -> EngineBuilder,
    test: impl Fn(&Engine),
) {
    if let Some(engine) = build(name, setup(Engine::builder()).faults(mode)) {
        test(&engine);
        assert_eq!(engine.stats().bugs, 0, "{name} {mode:?}");
    }
}

/// Builds an engine, or skips.
pub(crate) fn build(name: &str, builder: EngineBuilder) -> Option<Engine> {
    match builder.build() {
        Ok(engine) => Some(engine),
        Err(Error::Userfaultfd(refused @ OpenError::Refused { .. })) => {
            skip(name, refused);
            None
        }
        Err(error) => panic!("{name}: {error}"),
    }
}

/// A device like ram: synchronous, pages may change while written, no discards.
pub(crate) const PLAIN: Properties = Properties {
    synchronous: true,
    stable_pages: false,
    discards: false,
};

/// A scripted device of `slots` slots.
pub(crate) fn scripted(
    slots: u64,
    script: impl Fn(Point, u64) -> Result<(), DeviceError> + Send + Sync + 'static,
) -> Box<ScriptedDevice> {
    let script: Script = Box::new(script);
    Box::new(ScriptedDevice::new(slots, PLAIN, script))
}

/// Waits until `done`, for at most ten seconds.
#[track_caller]
pub(crate) fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "waited for: {what}"
        );
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Somewhere in a device call where a test can stop the thread that makes it.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    armed: AtomicBool,
    reached: AtomicBool,
    open: AtomicBool,
}

impl Stop {
    pub(crate) const fn new() -> Self {
        Self {
            armed: AtomicBool::new(false),
            reached: AtomicBool::new(false),
            open: AtomicBool::new(false),
        }
    }

    /// The next thread that passes is stopped.
    pub(crate) fn arm(&self) {
        self.open.store(false, Ordering::SeqCst);
        self.reached.store(false, Ordering::SeqCst);
        self.armed.store(true, Ordering::SeqCst);
    }

    /// For the script: stops here if armed, until the test opens the stop.
    pub(crate) fn pass(&self) {
        if self.armed.swap(false, Ordering::SeqCst) {
            self.reached.store(true, Ordering::SeqCst);
            let start = Instant::now();
            // The bound lets a test that failed come to its end.
            while !self.open.load(Ordering::SeqCst) && start.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }

    #[track_caller]
    pub(crate) fn wait_reached(&self) {
        wait_until("a thread at the stop", || self.is_reached());
    }

    pub(crate) fn is_reached(&self) -> bool {
        self.reached.load(Ordering::SeqCst)
    }

    pub(crate) fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }
}

/// A small generator of numbers that look random (xorshift64*), the same for the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// The largest value seen.
#[derive(Debug, Default)]
pub(crate) struct Peak(AtomicU64);

impl Peak {
    pub(crate) fn see(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
