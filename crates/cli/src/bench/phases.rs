//! The phases of a measurement: fill, page out, touch, verify.

use std::ops::Range;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use crate::content::Content;
use crate::interrupt;
use crate::memory::Memory;
use crate::size::PAGE;

/// Between looks at the interrupt flag: paged out or filled at once, so small beside any size worth measuring.
const SLICE: usize = 64 << 20;

/// Pages touched between looks at the interrupt flag.
const TOUCHES: usize = 1 << 12;

/// How often what stayed in memory is asked for again. The kernel leaves pages that sit in a CPU's batch, say.
const PASSES: usize = 8;

/// The order in which pages are touched.
#[derive(Debug)]
pub(super) enum Sequence {
    Ascending,
    Listed(Vec<u32>),
}

/// How paging out went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PagedOut {
    pub(super) seconds: f64,
    /// How often it was asked for.
    pub(super) passes: usize,
    /// Pages that stayed in memory all the same.
    pub(super) stayed: usize,
}

/// Fills the whole memory.
pub(super) fn fill(memory: &mut Memory, content: &Content) -> anyhow::Result<()> {
    for (index, slice) in memory.bytes().chunks_mut(SLICE).enumerate() {
        interrupt::check()?;
        content.fill(index * SLICE / PAGE, slice);
    }
    Ok(())
}

/// How many pages do not hold what [`fill`] wrote.
pub(super) fn wrong_pages(memory: &mut Memory, content: &Content) -> anyhow::Result<usize> {
    let mut wrong = 0;
    for (index, slice) in memory.bytes().chunks(SLICE).enumerate() {
        interrupt::check()?;
        wrong += content.wrong_pages(index * SLICE / PAGE, slice);
    }
    Ok(wrong)
}

/// Pages everything out, each thread a part, until nothing is left or no pass helps. Looking what is left is not timed.
pub(super) fn page_out(memory: &Memory, threads: usize) -> anyhow::Result<PagedOut> {
    let parts = split(memory.pages(), threads);
    let mut paged_out = PagedOut {
        seconds: 0.0,
        passes: 0,
        stayed: memory.resident_pages()?,
    };
    for _ in 0..PASSES {
        paged_out.seconds += timed(threads, |thread| {
            let (mut at, end) = (parts[thread].start * PAGE, parts[thread].end * PAGE);
            while at < end {
                interrupt::check()?;
                let next = end.min(at + SLICE);
                memory.page_out(at..next)?;
                at = next;
            }
            Ok(())
        })?;
        paged_out.passes += 1;
        memory.let_go()?;
        let before = paged_out.stayed;
        paged_out.stayed = memory.resident_pages()?;
        if paged_out.stayed == 0 || paged_out.stayed == before {
            break;
        }
    }
    Ok(paged_out)
}

/// Touches every page once, each thread a part of the sequence, and says how long it took.
pub(super) fn touch(memory: &Memory, sequence: &Sequence, threads: usize) -> anyhow::Result<f64> {
    let parts = split(memory.pages(), threads);
    timed(threads, |thread| {
        let part = parts[thread].clone();
        match sequence {
            Sequence::Ascending => {
                for start in part.clone().step_by(TOUCHES) {
                    interrupt::check()?;
                    for page in start..part.end.min(start + TOUCHES) {
                        memory.touch(page);
                    }
                }
            }
            Sequence::Listed(order) => {
                for pages in order[part].chunks(TOUCHES) {
                    interrupt::check()?;
                    for &page in pages {
                        memory.touch(page as usize);
                    }
                }
            }
        }
        Ok(())
    })
}

/// Runs `work` in that many threads at once; seconds from the first start to the last end.
fn timed(threads: usize, work: impl Fn(usize) -> anyhow::Result<()> + Sync) -> anyhow::Result<f64> {
    let barrier = Barrier::new(threads);
    let spans: Vec<(Instant, Instant)> = thread::scope(|scope| {
        let (barrier, work) = (&barrier, &work);
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    barrier.wait();
                    let start = Instant::now();
                    work(thread).map(|()| (start, Instant::now()))
                })
            })
            .collect();
        let ended = workers
            .into_iter()
            .map(|worker| worker.join().expect("a worker does not panic"));
        ended.collect::<anyhow::Result<_>>()
    })?;
    let start = spans.iter().map(|span| span.0).min();
    let end = spans.iter().map(|span| span.1).max();
    Ok(start
        .zip(end)
        .map_or(0.0, |(start, end)| (end - start).as_secs_f64()))
}

/// Cuts `pages` into as many contiguous parts, none more than a page longer than another.
fn split(pages: usize, parts: usize) -> Vec<Range<usize>> {
    (0..parts)
        .map(|part| pages * part / parts..pages * (part + 1) / parts)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Kind;
    use crate::random::permutation;

    #[test]
    fn parts_cover_everything_once() {
        assert_eq!(split(10, 3), [0..3, 3..6, 6..10]);
        assert_eq!(split(2, 4), [0..0, 0..1, 1..1, 1..2]);
    }

    #[test]
    fn touching_brings_every_page_in() {
        for sequence in [Sequence::Ascending, Sequence::Listed(permutation(100, 1))] {
            let memory = Memory::kernel(100 * PAGE).expect("mapping");
            assert_eq!(memory.resident_pages().expect("residency"), 0);
            assert!(touch(&memory, &sequence, 3).expect("seconds") > 0.0);
            assert_eq!(memory.resident_pages().expect("residency"), 100);
        }
    }

    #[test]
    fn what_is_filled_verifies_and_a_changed_byte_does_not() {
        let mut memory = Memory::kernel(64 * PAGE).expect("mapping");
        let content = Content::new(Kind::Mixed, 1);
        fill(&mut memory, &content).expect("filled");
        assert_eq!(wrong_pages(&mut memory, &content).expect("checked"), 0);
        memory.bytes()[33 * PAGE + 4000] ^= 1;
        assert_eq!(wrong_pages(&mut memory, &content).expect("checked"), 1);
    }
}
