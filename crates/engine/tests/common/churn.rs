//! Threads that write and check pages while pages come and go, for tests in which calls fail meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use userswap::{Advice, Engine, Region};

use super::pages::{Content, Pages};
use super::{PAGE, Random};

const WORKERS: usize = 3;

/// What became of a churn.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Operations.
    pub(crate) operations: AtomicU64,
    /// Calls that returned an error, which lost nothing.
    pub(crate) refused: AtomicU64,
}

impl Tally {
    fn done<T, E>(&self, result: Result<T, E>) -> Option<T> {
        self.operations.fetch_add(1, Ordering::Relaxed);
        if result.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        result.ok()
    }
}

/// A region whose pages are known: page N belongs to worker N % WORKERS, who alone writes it.
pub(crate) struct Churn {
    pub(crate) region: Region,
    pages: Pages,
    versions: Vec<AtomicU64>,
}

fn content(page: usize) -> Content {
    if page.is_multiple_of(5) {
        Content::Noise
    } else {
        Content::Text
    }
}

impl Churn {
    /// A region of `count` pages, all written.
    pub(crate) fn new(engine: &Engine, count: usize) -> Self {
        let region = engine.region(count * PAGE).expect("a region");
        let pages = Pages::named(&region, 1);
        for page in 0..count {
            pages.write(page, 1, content(page));
        }
        Self {
            region,
            pages,
            versions: (0..count).map(|_| AtomicU64::new(1)).collect(),
        }
    }

    fn count(&self) -> usize {
        self.versions.len()
    }

    fn version(&self, page: usize) -> u64 {
        self.versions[page].load(Ordering::Relaxed)
    }

    /// Every page is what was last written.
    pub(crate) fn verify(&self) {
        for page in 0..self.count() {
            self.pages.verify(page, self.version(page), content(page));
        }
    }

    /// Runs the workers, `operations` each.
    pub(crate) fn run(&self, engine: &Engine, seed: u64, operations: usize, tally: &Tally) {
        thread::scope(|scope| {
            for worker in 0..WORKERS {
                scope.spawn(move || {
                    let mut random = Random::new(seed << 8 | worker as u64);
                    for _ in 0..operations {
                        self.step(engine, worker, &mut random, tally);
                    }
                });
            }
        });
    }

    fn step(&self, engine: &Engine, worker: usize, random: &mut Random, tally: &Tally) {
        let first = random.below(self.count());
        let end = (first + 1 + random.below(100)).min(self.count());
        let range = first * PAGE..end * PAGE;
        let own = (first / WORKERS * WORKERS + worker).min(self.count() - WORKERS + worker);
        let own = own - (own + WORKERS - worker) % WORKERS;
        match random.below(100) {
            0..35 => {
                self.pages.verify(own, self.version(own), content(own));
                tally.operations.fetch_add(1, Ordering::Relaxed);
            }
            35..70 => {
                self.pages.verify(own, self.version(own), content(own));
                let version = self.version(own) + 1;
                self.pages.write(own, version, content(own));
                self.versions[own].store(version, Ordering::Relaxed);
                tally.operations.fetch_add(1, Ordering::Relaxed);
            }
            70..86 => drop(tally.done(self.region.advise(range, Advice::PageOut))),
            86..91 => drop(tally.done(self.region.advise(range, Advice::WillNeed))),
            91..96 => {
                if let Some(pin) = tally.done(self.region.pin(range)) {
                    for offset in pin.range().step_by(PAGE) {
                        assert!(self.region.is_resident(offset), "a pinned page stays");
                    }
                }
            }
            96..98 => self.fork(worker, random, tally),
            _ => short_life(engine, random, tally),
        }
    }

    /// A copy has the forker's own pages as they are: nobody else writes them.
    fn fork(&self, worker: usize, random: &mut Random, tally: &Tally) {
        let Some(child) = tally.done(self.region.fork()) else {
            return;
        };
        let pages = Pages::named(&child, 1);
        for page in (worker..self.count()).step_by(WORKERS * 7) {
            pages.verify(page, self.version(page), content(page));
            if random.below(2) == 0 {
                pages.write(page, 1 << 40, content(page));
                pages.verify(page, 1 << 40, content(page));
                self.pages.verify(page, self.version(page), content(page));
            }
        }
    }
}

/// A region that comes, is used and goes.
fn short_life(engine: &Engine, random: &mut Random, tally: &Tally) {
    // Some large, so that they leave holes in the store which are worth closing.
    let most = if random.below(4) == 0 { 1500 } else { 150 };
    let count = 1 + random.below(most);
    let Some(mut region) = tally.done(engine.region(count * PAGE)) else {
        return;
    };
    let pages = Pages::named(&region, 2);
    let kind = |page: usize| {
        if page.is_multiple_of(2) {
            Content::Noise
        } else {
            Content::Text
        }
    };
    for page in 0..count {
        pages.write(page, 7, kind(page));
    }
    tally.done(region.advise(0..count * PAGE, Advice::PageOut));
    let half = count / 2;
    // What is refused stays as it was.
    let gone = tally.done(region.discard(0..half * PAGE)).is_some();
    for page in 0..count {
        if page >= half {
            pages.verify(page, 7, kind(page));
        } else if gone {
            assert_eq!(pages.read(page), [0; PAGE], "a dropped page reads as zeros");
        }
    }
}
