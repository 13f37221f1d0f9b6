//! `userswap bench contend`: threads that fault on the same page at the same time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde::Serialize;
use userswap::Way;

use super::candidate::{Candidate, Name, candidates};
use super::latency::{Figures, Latencies};
use super::phases;
use super::stat::{grouped, ratio};
use super::{stayed, verdict};
use crate::args::ContendArgs;
use crate::content::Content;
use crate::exit::Status;
use crate::interrupt;
use crate::memory::Memory;
use crate::progress::Progress;
use crate::report::{Report, Table};
use crate::size::human;

/// One measurement, or with `repeat` left out the median of all.
#[derive(Clone, Debug, Serialize)]
struct Row {
    bench: &'static str,
    #[serde(flatten)]
    name: Name,
    threads: usize,
    pages: usize,
    #[serde(flatten)]
    figures: Figures,
    stayed_pages: usize,
    verified: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    repeat: Option<u32>,
}

impl Row {
    /// A line for figures that are not of faults, since the pages never went out.
    fn stayed(&self) -> Option<String> {
        let what = format!("{}, {} threads", self.name.short(), self.threads);
        stayed(&what, self.stayed_pages, self.pages)
    }

    /// Whether the threads met at the pages: at least half of those that could meet a fault under way did. A busy
    /// machine pulls them apart, and then whoever comes later finds the page in memory.
    fn met(&self) -> bool {
        let alone = 1.0 / self.threads as f64;
        self.figures.faulted_share >= alone + (1.0 - alone) / 2.0
    }
}

/// The medians, and how many times slower the kernel is than `direct`.
#[derive(Clone, Debug, Serialize)]
struct Summary {
    bench: &'static str,
    of: &'static str,
    verified: bool,
    medians: Vec<Row>,
    kernel_over_direct: Vec<KernelOverDirect>,
}

/// Above 1: `direct` is faster. The fastest of the kernel's compressors counts.
#[derive(Clone, Copy, Debug, Serialize)]
struct KernelOverDirect {
    threads: usize,
    p50: Option<f64>,
    p90: Option<f64>,
    p99: Option<f64>,
    max: Option<f64>,
}

/// Measures every candidate with each number of threads `--repeat` times, in turn.
pub(crate) fn run(args: &ContendArgs) -> anyhow::Result<Status> {
    let report = Report::new(args.common.json);
    let candidates = candidates(&args.common, args.size, &args.way.list(), args.fault_around)?;
    let content = Content::new(args.common.content, args.common.seed);
    let steps = args.common.repeat as usize * candidates.len() * args.threads.len();
    let progress = Progress::new(steps as u64);
    let mut rows = Vec::new();
    for repeat in 0..args.common.repeat {
        for &threads in &args.threads {
            for candidate in &candidates {
                progress.begin(format!("{}, {threads} threads", candidate.name().short()));
                let row = measure(args, candidate, &content, usize::from(threads), repeat)?;
                progress.suspend(|| report.record(&row))?;
                progress.end();
                rows.push(row);
            }
        }
    }
    drop(progress);
    let summary = summarize(&rows);
    report.line(format_args!("{}", Shown(args, &summary)))?;
    report.record(&summary)?;
    Ok(if summary.verified {
        Status::Good
    } else {
        Status::Failed
    })
}

fn measure(
    args: &ContendArgs,
    candidate: &Candidate,
    content: &Content,
    threads: usize,
    repeat: u32,
) -> anyhow::Result<Row> {
    let mut subject = candidate.open(usize::try_from(args.size)?)?;
    phases::fill(&mut subject.memory, content)?;
    let out = phases::page_out(&subject.memory, 1)?;
    let latencies = lockstep(&subject.memory, threads)?;
    let wrong_pages = phases::wrong_pages(&mut subject.memory, content)?;
    Ok(Row {
        bench: "contend",
        name: candidate.name(),
        threads,
        pages: subject.memory.pages(),
        figures: latencies.figures(),
        stayed_pages: out.stayed,
        verified: wrong_pages == 0,
        repeat: Some(repeat),
    })
}

/// How long a thread spins for the others before it gives its CPU away.
const SPINS: u32 = 200;

/// Touches all pages in ascending order with that many threads, none of which goes to a page before all are there.
fn lockstep(memory: &Memory, threads: usize) -> anyhow::Result<Latencies> {
    let arrived = AtomicUsize::new(0);
    let walk = || {
        let mut latencies = Latencies::new()?;
        for page in 0..memory.pages() {
            arrived.fetch_add(1, Ordering::AcqRel);
            let mut spins = 0;
            while arrived.load(Ordering::Acquire) < threads * (page + 1) {
                interrupt::check()?;
                spins += 1;
                if spins < SPINS {
                    std::hint::spin_loop();
                } else {
                    thread::yield_now();
                }
            }
            latencies.touch(memory, page);
        }
        anyhow::Ok(latencies)
    };
    thread::scope(|scope| {
        let walkers: Vec<_> = (0..threads).map(|_| scope.spawn(walk)).collect();
        let mut all = Latencies::new()?;
        for walker in walkers {
            all.add(&walker.join().expect("a walker does not panic")?)?;
        }
        Ok(all)
    })
}

fn summarize(rows: &[Row]) -> Summary {
    let median_of = |rows: Vec<&Row>| Row {
        figures: Figures::median_of(rows.iter().map(|row| row.figures)),
        stayed_pages: rows.iter().map(|row| row.stayed_pages).max().unwrap_or(0),
        verified: rows.iter().all(|row| row.verified),
        repeat: None,
        ..rows[0].clone()
    };
    let mut medians: Vec<Row> = grouped(rows, |row| (row.name, row.threads))
        .into_iter()
        .map(median_of)
        .collect();
    medians.sort_by_key(|row| row.threads);
    let mut numbers: Vec<usize> = medians.iter().map(|row| row.threads).collect();
    numbers.dedup();
    Summary {
        bench: "summary",
        of: "contend",
        verified: rows.iter().all(|row| row.verified),
        kernel_over_direct: numbers
            .into_iter()
            .filter_map(|threads| compare(&medians, threads))
            .collect(),
        medians,
    }
}

fn compare(medians: &[Row], threads: usize) -> Option<KernelOverDirect> {
    let here = || {
        medians
            .iter()
            .filter(|row| row.threads == threads && row.stayed().is_none() && row.met())
    };
    let direct = here().find(|row| row.name.is_way(Way::Direct))?;
    here().find(|row| row.name.is_kernel())?;
    let compare = |value: fn(&Figures) -> u64| {
        let kernel = here()
            .filter(|row| row.name.is_kernel())
            .map(|row| value(&row.figures))
            .min();
        ratio(
            kernel.map(|ns| ns as f64),
            Some(value(&direct.figures) as f64),
        )
    };
    Some(KernelOverDirect {
        threads,
        p50: compare(|figures| figures.p50_ns),
        p90: compare(|figures| figures.p90_ns),
        p99: compare(|figures| figures.p99_ns),
        max: compare(|figures| figures.max_ns),
    })
}

/// The summary for people.
struct Shown<'a>(&'a ContendArgs, &'a Summary);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shown(args, summary) = self;
        let size = human(args.size);
        writeln!(
            f,
            "{size}, threads touching each page together, medians of {}",
            args.common.repeat
        )?;
        let mut table =
            Table::new(&[&["way", "threads"][..], &Figures::HEAD[..], &["faulted"]].concat());
        for row in &summary.medians {
            let mut cells = vec![row.name.short(), row.threads.to_string()];
            cells.extend(row.figures.cells());
            cells.push(format!("{:.0} %", row.figures.faulted_share * 100.0));
            table.row(cells);
        }
        write!(f, "{table}")?;
        for row in &summary.medians {
            if let Some(line) = row.stayed() {
                write!(f, "\n{line}")?;
            }
        }
        for row in &summary.medians {
            if !row.met() {
                let (name, threads) = (row.name.short(), row.threads);
                write!(
                    f,
                    "\n{name}, {threads} threads: they rarely met; not a figure of contention"
                )?;
            }
        }
        for ratios in &summary.kernel_over_direct {
            write!(f, "\n{} threads, kernel / direct:", ratios.threads)?;
            for (name, ratio) in [
                ("p50", ratios.p50),
                ("p90", ratios.p90),
                ("p99", ratios.p99),
                ("max", ratios.max),
            ] {
                if let Some(ratio) = ratio {
                    write!(f, "  {name} {ratio:.2}")?;
                }
            }
        }
        write!(f, "\n{}", verdict(summary.verified))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::PAGE;

    #[test]
    fn every_thread_touches_every_page() {
        let memory = Memory::kernel(50 * PAGE).expect("mapping");
        let latencies = lockstep(&memory, 3).expect("latencies");
        assert_eq!(latencies.figures().count, 150);
        assert_eq!(memory.resident_pages().expect("residency"), 50);
    }
}
