//! Any sequence of operations on real memory does what it would do to plain arrays of bytes.

mod common;

use std::ops::Range;

use common::{MIB, PAGE, build};
use proptest::prelude::*;
use userswap::{Advice, Engine, FaultAround, FaultMode, Region};

/// Pages of a region: two chunks and a bit.
const COUNT: usize = 140;
/// Regions at once.
const REGIONS: usize = 4;

#[derive(Clone, Debug)]
enum Operation {
    /// Fills a range of bytes with a pattern.
    Write {
        start: usize,
        len: usize,
        value: u8,
        noise: bool,
    },
    Read {
        start: usize,
        len: usize,
    },
    Advise {
        pages: Range<usize>,
        advice: Option<Advice>,
    },
    Pin {
        pages: Range<usize>,
    },
    Unpin,
    Fork,
    Drop,
}

fn pages() -> impl Strategy<Value = Range<usize>> {
    (0..COUNT, 0..=COUNT).prop_map(|(start, len)| start..(start + len).min(COUNT))
}

fn bytes() -> impl Strategy<Value = (usize, usize)> {
    let end = COUNT * PAGE;
    let len = prop_oneof![1..64_usize, 1..3 * PAGE, 1..60 * PAGE];
    (0..end, len).prop_map(move |(start, len)| (start, len.min(end - start)))
}

fn operation() -> impl Strategy<Value = Operation> {
    let advice = prop_oneof![
        5 => Just(Some(Advice::PageOut)),
        2 => Just(Some(Advice::WillNeed)),
        1 => Just(None),
        1 => Just(Some(Advice::Sequential)),
        1 => Just(Some(Advice::Random)),
    ];
    prop_oneof![
        6 => (bytes(), any::<u8>(), any::<bool>()).prop_map(|((start, len), value, noise)| {
            Operation::Write { start, len, value, noise }
        }),
        6 => bytes().prop_map(|(start, len)| Operation::Read { start, len }),
        8 => (pages(), advice).prop_map(|(pages, advice)| Operation::Advise { pages, advice }),
        2 => pages().prop_map(|pages| Operation::Pin { pages }),
        2 => Just(Operation::Unpin),
        2 => Just(Operation::Fork),
        1 => Just(Operation::Drop),
    ]
}

/// A region, and what it must hold. Pins are kept as ranges, since they borrow the region: each is a
/// guard that lives in `held`.
struct Model {
    region: &'static Region,
    wanted: Vec<u8>,
    held: Vec<userswap::Pin<'static>>,
}

impl Model {
    fn new(region: Region, wanted: Vec<u8>) -> Self {
        Self {
            region: Box::leak(Box::new(region)),
            wanted,
            held: Vec::new(),
        }
    }

    fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.region[range]
    }

    fn is_pinned(&self, page: usize) -> bool {
        self.held
            .iter()
            .any(|pin| pin.range().contains(&(page * PAGE)))
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.held.clear();
        // SAFETY: leaked in `new`; its pins are gone, and nobody else has the reference.
        drop(unsafe { Box::from_raw(std::ptr::from_ref(self.region).cast_mut()) });
    }
}

fn fill(bytes: &mut [u8], value: u8, noise: bool) {
    let mut random = common::Random::new(u64::from(value));
    for byte in bytes {
        *byte = if noise { random.next() as u8 } else { value };
    }
}

fn write(model: &mut Model, range: Range<usize>, value: u8, noise: bool) {
    fill(&mut model.wanted[range.clone()], value, noise);
    // SAFETY: inside the region; this thread is the only one, and no reference to the bytes is alive.
    unsafe {
        std::ptr::copy_nonoverlapping(
            model.wanted[range.clone()].as_ptr(),
            model.region.as_mut_ptr().add(range.start),
            range.len(),
        );
    }
}

fn apply(models: &mut Vec<Model>, at: usize, operation: &Operation) -> Result<(), TestCaseError> {
    let at = at % models.len();
    let many = models.len();
    let model = &mut models[at];
    match operation {
        &Operation::Write {
            start,
            len,
            value,
            noise,
        } => {
            write(model, start..start + len, value, noise);
        }
        &Operation::Read { start, len } => {
            let range = start..start + len;
            prop_assert!(
                model.bytes(range.clone()) == &model.wanted[range.clone()],
                "{range:?}"
            );
        }
        Operation::Advise { pages, advice } => {
            let range = pages.start * PAGE..pages.end * PAGE;
            let result = match *advice {
                Some(advice) => model.region.advise(range.clone(), advice),
                // SAFETY: the model holds no reference to the region's bytes.
                None => unsafe { model.region.discard_shared(range.clone()) },
            };
            match advice {
                None => {
                    let pinned = pages.clone().filter(|&page| model.is_pinned(page)).count();
                    prop_assert_eq!(result.is_err(), pinned > 0, "{:?}", result);
                    for page in pages
                        .clone()
                        .filter(|&page| !model.is_pinned(page))
                        .collect::<Vec<_>>()
                    {
                        model.wanted[page * PAGE..(page + 1) * PAGE].fill(0);
                    }
                }
                _ => prop_assert!(result.is_ok(), "{result:?}"),
            }
        }
        Operation::Pin { pages } => {
            let range = pages.start * PAGE..pages.end * PAGE;
            match model.region.pin(range) {
                Ok(pin) => model.held.push(pin),
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            }
        }
        Operation::Unpin => drop(model.held.pop()),
        Operation::Fork => {
            if many < REGIONS {
                let child = model
                    .region
                    .fork()
                    .map_err(|error| TestCaseError::fail(error.to_string()))?;
                let wanted = model.wanted.clone();
                models.push(Model::new(child, wanted));
            }
        }
        Operation::Drop => {
            if many > 1 {
                drop(models.swap_remove(at));
            }
        }
    }
    for model in models {
        for pin in &model.held {
            let range = pin.range();
            prop_assert!(
                range
                    .clone()
                    .step_by(PAGE)
                    .all(|offset| model.region.is_resident(offset))
            );
        }
    }
    Ok(())
}

fn run(engine: &Engine, operations: &[(usize, Operation)]) -> Result<(), TestCaseError> {
    let region = engine.region(COUNT * PAGE).expect("a region");
    let mut models = vec![Model::new(region, vec![0; COUNT * PAGE])];
    for (at, operation) in operations {
        apply(&mut models, *at, operation)?;
    }
    for model in &models {
        prop_assert!(model.bytes(0..COUNT * PAGE) == &model.wanted[..]);
    }
    drop(models);
    let stats = engine.stats();
    prop_assert_eq!(stats.bugs, 0);
    prop_assert_eq!(stats.resident_bytes, 0);
    common::wait_until("an empty store", || engine.stats().swapped_bytes == 0);
    Ok(())
}

/// One engine serves all cases: what one leaves behind, the next would find.
fn check(name: &str, mode: FaultMode, limit: Option<u64>, around: FaultAround) {
    let mut builder = Engine::builder().faults(mode).fault_around(around);
    if let Some(limit) = limit {
        builder = builder.limit(limit);
    }
    let Some(engine) = build(name, builder) else {
        return;
    };
    let config = ProptestConfig {
        cases: 100,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    };
    let operations = prop::collection::vec((0..REGIONS, operation()), 1..60);
    let mut runner = proptest::test_runner::TestRunner::new(config);
    runner
        .run(&operations, |operations| run(&engine, &operations))
        .unwrap_or_else(|error| panic!("{name}: {error}"));
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
    check(
        "inline_single_pages",
        FaultMode::Inline,
        None,
        FaultAround::Fixed(1),
    );
}

/// Four regions at once are more than half of the least limit, and half of their content is noise.
#[test]
fn inline_with_the_least_limit() {
    check(
        "inline_limit",
        FaultMode::Inline,
        Some(4 * MIB as u64),
        FaultAround::Adaptive,
    );
}

#[test]
fn thread_with_the_least_limit() {
    check(
        "thread_limit",
        FaultMode::Thread,
        Some(4 * MIB as u64),
        FaultAround::Fixed(8),
    );
}
