//! One round: workers add, one thread pages out, until all workers are through.

use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::crew;
use super::devices::Exchange;
use crate::interrupt;
use crate::memory::Memory;
use crate::os::threads::crowd;

/// The most sleeps of a round over all workers. A sleep costs a few microseconds of CPU time beside the wait.
const SLEEPS: usize = 4 << 20;

/// What a round did.
#[derive(Debug)]
pub(super) struct Outcome {
    /// How many workers started, and so what every page must count.
    pub(super) workers: usize,
    /// How long they took.
    pub(super) seconds: f64,
    /// How many devices were swapped off meanwhile.
    pub(super) swapoffs: u32,
}

/// Runs a round and calls `started` once all workers stand ready.
pub(super) fn run(
    memory: &Memory,
    wanted: usize,
    sleep: Duration,
    exchange: Option<Exchange<'_>>,
    started: impl FnOnce(usize) -> anyhow::Result<()>,
) -> anyhow::Result<Outcome> {
    populate(memory);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let pager = thread::Builder::new()
            .name("pager".into())
            .spawn_scoped(scope, || keep_paging_out(memory, &stop))
            .context("cannot start the thread that pages out")?;
        let exchange = exchange
            .map(|exchange| {
                let stop = &stop;
                thread::Builder::new()
                    .name("devices".into())
                    .spawn_scoped(scope, move || exchange.run(memory, stop))
                    .inspect_err(|_| stop.store(true, Ordering::Relaxed))
                    .context("cannot start the thread that exchanges devices")
            })
            .transpose()?;
        // Also stops the pager when something below fails or panics: the scope would wait for it.
        let stop_pager = OnDrop(|| stop.store(true, Ordering::Relaxed));
        let outcome = work(memory, wanted, sleep, started);
        drop(stop_pager);
        pager.join().expect("the pager does not panic")?;
        let swapoffs = exchange.map_or(Ok(0), |thread| {
            thread.join().expect("who exchanges devices does not panic")
        })?;
        interrupt::check()?;
        outcome.map(|outcome| Outcome {
            swapoffs,
            ..outcome
        })
    })
}

fn populate(memory: &Memory) {
    for page in 0..memory.pages() {
        memory.word(page, 0).store(0, Ordering::Relaxed);
        memory.word(page, 1).store(page as u64, Ordering::Relaxed);
    }
}

fn keep_paging_out(memory: &Memory, stop: &AtomicBool) -> anyhow::Result<()> {
    while !stop.load(Ordering::Relaxed) && !interrupt::requested() {
        memory.page_out(0..memory.len())?;
    }
    Ok(())
}

fn work(
    memory: &Memory,
    wanted: usize,
    sleep: Duration,
    started: impl FnOnce(usize) -> anyhow::Result<()>,
) -> anyhow::Result<Outcome> {
    let room = crew::room_for(wanted);
    let pace = Pace::new(sleep, room, memory.pages());
    let gate = RwLock::new(());
    let (workers, begin) = crowd(crew::STACK, |crowd| {
        // Closed for as long as it is held for writing: all workers begin together.
        let closed = gate.write().expect("no thread panics at the gate");
        while crowd.len() < room && !interrupt::requested() {
            let (gate, worker) = (&gate, crowd.len());
            let spawned = crowd.spawn(move || {
                drop(gate.read());
                add_everywhere(memory, worker, pace);
            });
            match spawned {
                Ok(()) => {}
                // The host starts no more. Those that run are the crew.
                Err(_) if crowd.len() > 0 => break,
                Err(error) => return Err(error).context("cannot start any worker"),
            }
        }
        let workers = crowd.len();
        let reported = started(workers);
        let begin = Instant::now();
        drop(closed);
        reported.map(|()| (workers, begin))
    })?;
    Ok(Outcome {
        workers,
        seconds: begin.elapsed().as_secs_f64(),
        swapoffs: 0,
    })
}

/// Adds 1 to word 0 of every page; even workers ascend, odd ones descend.
fn add_everywhere(memory: &Memory, worker: usize, pace: Pace) {
    let pages = memory.pages();
    for step in 0..pages {
        if interrupt::requested() {
            return;
        }
        let page = if worker.is_multiple_of(2) {
            step
        } else {
            pages - 1 - step
        };
        memory.word(page, 0).fetch_add(1, Ordering::Relaxed);
        // Shifted by the worker's number, so that not all of them sleep after the same page.
        if pace.every != 0 && (step + worker).is_multiple_of(pace.every) {
            thread::sleep(pace.sleep);
        }
    }
}

/// When a worker sleeps, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pace {
    sleep: Duration,
    /// After every how many pages; 0 never.
    every: usize,
}

impl Pace {
    fn new(sleep: Duration, workers: usize, pages: usize) -> Self {
        let every = if sleep.is_zero() {
            0
        } else {
            (workers * pages).div_ceil(SLEEPS).max(1)
        };
        Self { sleep, every }
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::PAGE;
    use crate::stress::check::check;

    #[test]
    fn few_workers_sleep_after_every_page_and_many_less_often() {
        let sleep = Duration::from_micros(10);
        assert_eq!(Pace::new(sleep, 8, 256).every, 1);
        assert_eq!(Pace::new(sleep, 512, 8192).every, 1);
        assert_eq!(Pace::new(sleep, 16_384, 8192).every, 32);
        assert_eq!(Pace::new(Duration::ZERO, 8, 256).every, 0);
    }

    #[test]
    fn every_worker_adds_to_every_page() {
        let memory = Memory::kernel(64 * PAGE).expect("mapping");
        let mut told = 0;
        let outcome = run(&memory, 6, Duration::from_micros(1), None, |started| {
            told = started;
            Ok(())
        });
        assert_eq!((told, outcome.expect("a round").workers), (6, 6));
        assert!(check(&memory, 6).expect("a check").errors.is_empty());
    }

    #[test]
    fn an_error_while_starting_ends_the_round() {
        let memory = Memory::kernel(4 * PAGE).expect("mapping");
        let outcome = run(&memory, 4, Duration::ZERO, None, |_| {
            anyhow::bail!("no output")
        });
        assert_eq!(outcome.expect_err("an error").to_string(), "no output");
    }
}
