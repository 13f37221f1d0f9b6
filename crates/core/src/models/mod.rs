//! Models for loom: every interleaving, and every outcome that the orderings of the atomics permit, of
//! two or three threads on the parts of the engine that take no lock or park.
//!
//! Each model runs with all rules kept; a rule it rests on is then broken, and loom must find a failing
//! execution. loom sees what shuttle and the tests on threads cannot: a fence left out, an ordering too weak.

mod cache;
mod clusters;
mod gate;
mod slot;
mod swap;
mod waiters;

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::area::SwapArea;
use crate::device::{Content, Device, DeviceError, PageBytes, Properties, Usage};
use crate::rule::{Kept, Rule, Rules};

/// A model: a set of threads, run once for each way they can interleave.
struct Model {
    name: &'static str,
    /// How many times a thread may be preempted in one execution; `None`: no bound.
    preemptions: Option<usize>,
    run: fn(Kept),
    /// The rules without which it fails.
    rests_on: &'static [Rule],
}

const MODELS: [Model; 13] = [
    slot::OWNERS,
    slot::REUSE,
    slot::COUNT,
    waiters::PARKING,
    cache::RECHECK,
    cache::VAIN_LOCK,
    gate::CLOSING,
    clusters::STOPPING,
    clusters::HANDING_OUT,
    swap::RACE,
    swap::CACHED,
    swap::DROPPING,
    swap::WRITING,
];

/// Executions so far: loom runs them one after the other.
static EXECUTIONS: AtomicU64 = AtomicU64::new(0);

/// Runs `model` with `rules`; returns how many executions there were. Panics in the first that fails.
fn explore(model: &Model, rules: Rules) -> u64 {
    EXECUTIONS.store(0, Ordering::Relaxed);
    let run = model.run;
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = model.preemptions;
    builder.max_branches = 10_000;
    builder.check(move || {
        EXECUTIONS.fetch_add(1, Ordering::Relaxed);
        run(Kept::by(rules));
    });
    EXECUTIONS.load(Ordering::Relaxed)
}

#[test]
fn no_execution_fails() {
    let mut all = 0;
    for model in &MODELS {
        let executions = explore(model, Rules::ALL_KEPT);
        println!("loom: {:<44} {executions:>8} executions", model.name);
        all += executions;
    }
    println!("loom: {all} executions");
}

/// What the child prints before what it found.
const FOUND: &str = "loom found: ";

#[test]
fn every_broken_rule_is_found() {
    let mut found: Vec<Rule> = Vec::new();
    for model in &MODELS {
        for &rule in model.rests_on {
            // In a process of its own: loom cannot take down a model that is deadlocked.
            let child = Command::new(std::env::current_exe().expect("this test"))
                .args([
                    "--exact",
                    "models::one_broken_rule",
                    "--ignored",
                    "--nocapture",
                ])
                .env("RULE", format!("{rule:?}"))
                .output()
                .expect("this test runs again");
            let said = String::from_utf8_lossy(&child.stdout);
            let said = said.lines().find_map(|line| line.strip_prefix(FOUND));
            assert!(!child.status.success(), "{rule:?} is broken: {child:?}");
            let said = said.unwrap_or_else(|| panic!("{rule:?}: {child:?}"));
            println!("loom: {:<26} {said}", format!("{rule:?}"));
            found.push(rule);
        }
    }
    found.sort_unstable();
    assert_eq!(
        found,
        documented(),
        "docs/RULES.md, column loom, says otherwise"
    );
}

#[test]
#[ignore = "the other process of every_broken_rule_is_found"]
fn one_broken_rule() {
    let name = std::env::var("RULE").expect("a rule");
    let rests = |rule: &&Rule| format!("{rule:?}") == name;
    let (model, &rule) = MODELS
        .iter()
        .find_map(|model| Some((model, model.rests_on.iter().find(rests)?)))
        .expect("a model that rests on it");
    std::panic::set_hook(Box::new(|panic| {
        let executions = EXECUTIONS.load(Ordering::Relaxed);
        let said = panic.to_string();
        // The message follows the place.
        let said = said.split_once('\n').map_or(&*said, |(_, said)| said);
        let said = said.lines().next().unwrap_or_default();
        println!("\n{FOUND}{executions:>6} executions: {said}");
    }));
    explore(model, Rules::without(rule));
}

/// The rules that the table says loom catches.
fn documented() -> Vec<Rule> {
    let table = include_str!("../../../../docs/RULES.md");
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim);
    let mut lines = table
        .lines()
        .skip_while(|line| !line.starts_with("| rule |"));
    let column = cells(lines.next().expect("a head")).position(|cell| cell == "loom");
    let column = column.expect("a column");
    let marked: Vec<_> = lines
        .filter(|line| cells(line).nth(column) == Some("x"))
        .map(|line| cells(line).next().expect("a name").trim_matches('`'))
        .collect();
    Rule::ALL
        .into_iter()
        .filter(|rule| marked.contains(&format!("{rule:?}").as_str()))
        .collect()
}

/// Runs `then` on a thread with a stack that an engine fits on (in words, as loom has it).
fn on_a_large_stack(then: impl FnOnce() + Send + 'static) {
    let thread = loom::thread::Builder::new().stack_size(1 << 16).spawn(then);
    thread.expect("a thread").join().expect("no panic");
}

/// A device whose slots hold a word each; nothing about it orders anything.
struct Words(Box<[loom::sync::atomic::AtomicU64]>);

impl Words {
    fn new(slots: usize) -> Self {
        Self(
            (0..slots)
                .map(|_| loom::sync::atomic::AtomicU64::new(0))
                .collect(),
        )
    }
}

/// What a page holds in these models: its first byte.
impl Device for Words {
    fn name(&self) -> &str {
        "words"
    }

    fn slots(&self) -> u64 {
        self.0.len() as u64
    }

    fn properties(&self) -> Properties {
        Properties {
            synchronous: true,
            stable_pages: false,
            discards: true,
        }
    }

    fn read(&self, slot: u64, page: &mut PageBytes) -> Result<Content, DeviceError> {
        page.fill(self.0[slot as usize].load(Ordering::Relaxed) as u8);
        Ok(Content::Bytes)
    }

    fn write(&self, slot: u64, page: &PageBytes) -> Result<(), DeviceError> {
        self.0[slot as usize].store(u64::from(page[0]), Ordering::Relaxed);
        Ok(())
    }

    fn discard(&self, slot: u64) {
        self.0[slot as usize].store(0, Ordering::Relaxed);
    }

    fn usage(&self) -> Usage {
        Usage::default()
    }
}

fn area(slots: usize, kept: Kept) -> SwapArea {
    SwapArea::keeping(0, Box::new(Words::new(slots)), 0, kept)
}

fn read(area: &SwapArea, slot: u64) -> u8 {
    let mut page = [0; crate::device::PAGE_SIZE];
    let content = area.device().read(slot, &mut page);
    assert_eq!(content, Ok(Content::Bytes));
    page[0]
}

fn write(area: &SwapArea, slot: u64, byte: u8) {
    let written = area.device().write(slot, &[byte; crate::device::PAGE_SIZE]);
    assert_eq!(written, Ok(()));
}
