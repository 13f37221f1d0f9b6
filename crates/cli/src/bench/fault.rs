//! `userswap bench fault`: what one fault takes, and what it takes at least on this host.

use serde::Serialize;
use userswap::{FaultAround, Way};
use userswap_sys::mapping::resident_pages;

use super::beside::write_out_beside;
use super::candidate::{Candidate, Name, candidates};
use super::floor::{self, Floor};
use super::latency::{Figures, Latencies};
use super::phases;
use super::stat::{grouped, median, ratio};
use super::{stayed, verdict};
use crate::args::FaultArgs;
use crate::content::Content;
use crate::exit::Status;
use crate::interrupt;
use crate::memory::Memory;
use crate::progress::Progress;
use crate::random::permutation;
use crate::report::{Report, Table};
use crate::size::{PAGE, human};

/// One measurement, or with `repeat` left out the median of all.
#[derive(Clone, Debug, Serialize)]
struct Row {
    bench: &'static str,
    #[serde(flatten)]
    name: Name,
    pages: usize,
    #[serde(flatten)]
    figures: Figures,
    /// Other pages that were written out meanwhile, in bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    writeback_bytes_per_second: Option<f64>,
    /// Of those that are faulted on.
    stayed_pages: usize,
    verified: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    repeat: Option<u32>,
}

impl Row {
    /// For people.
    fn what(&self) -> String {
        match self.writeback_bytes_per_second {
            Some(_) => format!("{}, writing", self.name.short()),
            None => self.name.short(),
        }
    }

    fn is_alone(&self) -> bool {
        self.writeback_bytes_per_second.is_none()
    }

    /// A line for figures that are not of faults, since the pages never went out.
    fn stayed(&self) -> Option<String> {
        stayed(&self.what(), self.stayed_pages, self.pages)
    }
}

/// How many pages are written out meanwhile, for each that is faulted on.
const OTHERS: u64 = 4;

/// The limit of an engine with a file below compressed memory, for each byte that is faulted on: so small that the compressed
/// others are more than its share, so large that what comes in needs no room to be made.
const LIMIT: u64 = 2;

/// The medians, the floors, and how `direct` compares to the kernel's fastest compressor.
#[derive(Clone, Debug, Serialize)]
struct Summary {
    bench: &'static str,
    of: &'static str,
    verified: bool,
    page_cluster: Option<u32>,
    medians: Vec<Row>,
    floors: Vec<Floor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direct_over_kernel_p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direct_over_kernel_mean: Option<f64>,
}

/// Measures every candidate `--repeat` times, in turn.
pub(crate) fn run(args: &FaultArgs) -> anyhow::Result<Status> {
    let report = Report::new(args.common.json);
    let all = args.size * if args.writeback { 1 + OTHERS } else { 1 };
    let (ways, around) = (args.way.list(), FaultAround::Fixed(1));
    let mut candidates = candidates(&args.common, all, &ways, around)?;
    if args.writeback {
        for candidate in &mut candidates {
            candidate.limit_tiers(args.size * LIMIT);
        }
    }
    let content = Content::new(args.common.content, args.common.seed);
    let pages = usize::try_from(args.size)? / PAGE;
    let order = permutation(pages, args.common.seed);
    let progress = Progress::new(u64::from(args.common.repeat) * candidates.len() as u64 + 1);
    progress.begin("floors");
    let floors = floor::measure()?;
    progress.end();
    for floor in &floors {
        progress.suspend(|| report.record(floor))?;
    }
    let mut rows = Vec::new();
    for repeat in 0..args.common.repeat {
        for candidate in &candidates {
            progress.begin(candidate.name().short());
            let measured = measure(args, candidate, &content, &order, repeat)?;
            for row in &measured {
                progress.suspend(|| report.record(row))?;
            }
            progress.end();
            rows.extend(measured);
        }
    }
    drop(progress);
    let summary = summarize(&rows, floors);
    report.line(format_args!("{}", Shown(args, &summary)))?;
    report.record(&summary)?;
    Ok(if summary.verified {
        Status::Good
    } else {
        Status::Failed
    })
}

/// Faults alone and, where asked for, beside writeback.
fn measure(
    args: &FaultArgs,
    candidate: &Candidate,
    content: &Content,
    order: &[u32],
    repeat: u32,
) -> anyhow::Result<Vec<Row>> {
    let others = order.len() * if args.writeback { OTHERS as usize } else { 0 };
    let mut subject = candidate.open((order.len() + others) * PAGE)?;
    phases::fill(&mut subject.memory, content)?;
    // What is looked at goes out last: it finds compressed memory full.
    subject
        .memory
        .page_out(order.len() * PAGE..(order.len() + others) * PAGE)?;
    let mut rows = vec![];
    for with_writeback in [false, true] {
        if with_writeback && !args.writeback {
            break;
        }
        phases::page_out(&subject.memory, 1)?;
        let stayed = resident_of_first(&subject.memory, order.len())?;
        let touch = || touch_each(&subject.memory, order);
        let (latencies, rate) = if with_writeback {
            let others = order.len()..order.len() + others;
            let (latencies, rate) = write_out_beside(&subject.memory, others, content, touch)?;
            (latencies, Some(rate * PAGE as f64))
        } else {
            (touch()?, None)
        };
        rows.push(Row {
            bench: "fault",
            name: candidate.name(),
            pages: order.len(),
            figures: latencies.figures(),
            writeback_bytes_per_second: rate,
            stayed_pages: stayed,
            verified: true,
            repeat: Some(repeat),
        });
    }
    let verified = phases::wrong_pages(&mut subject.memory, content)? == 0;
    for row in &mut rows {
        row.verified = verified;
    }
    Ok(rows)
}

/// How many of the first `pages` are in memory.
fn resident_of_first(memory: &Memory, pages: usize) -> anyhow::Result<usize> {
    let base = memory.word(0, 0).as_ptr() as usize;
    Ok(resident_pages(base, pages * PAGE)?)
}

fn touch_each(memory: &Memory, order: &[u32]) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::new()?;
    for &page in order {
        interrupt::check()?;
        latencies.touch(memory, page as usize);
    }
    Ok(latencies)
}

fn summarize(rows: &[Row], floors: Vec<Floor>) -> Summary {
    let median_of = |rows: Vec<&Row>| Row {
        figures: Figures::median_of(rows.iter().map(|row| row.figures)),
        stayed_pages: rows.iter().map(|row| row.stayed_pages).max().unwrap_or(0),
        verified: rows.iter().all(|row| row.verified),
        repeat: None,
        writeback_bytes_per_second: median(
            rows.iter().filter_map(|row| row.writeback_bytes_per_second),
        ),
        ..rows[0].clone()
    };
    let medians: Vec<Row> = grouped(rows, |row| (row.name, row.is_alone()))
        .into_iter()
        .map(median_of)
        .collect();
    let direct = medians
        .iter()
        .find(|row| row.name.is_way(Way::Direct) && row.is_alone() && row.stayed().is_none())
        .map(|row| row.figures);
    let kernel = |value: fn(&Figures) -> f64| {
        let kernels = medians
            .iter()
            .filter(|row| row.name.is_kernel() && row.is_alone() && row.stayed().is_none());
        kernels
            .map(|row| value(&row.figures))
            .min_by(f64::total_cmp)
    };
    let compare = |value: fn(&Figures) -> f64| ratio(direct.as_ref().map(value), kernel(value));
    Summary {
        bench: "summary",
        of: "fault",
        verified: rows.iter().all(|row| row.verified),
        page_cluster: page_cluster(),
        direct_over_kernel_p50: compare(|figures| figures.p50_ns as f64),
        direct_over_kernel_mean: compare(|figures| figures.mean_ns),
        medians,
        floors,
    }
}

/// The kernel's readahead, as a power of two of pages. It does not apply to a device that answers at once, like zram.
fn page_cluster() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/vm/page-cluster")
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// The summary for people.
struct Shown<'a>(&'a FaultArgs, &'a Summary);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shown(args, summary) = self;
        let size = human(args.size);
        writeln!(
            f,
            "{size}, single faults in random order, medians of {}",
            args.common.repeat
        )?;
        let mut table = Table::new(&[&["what"][..], &Figures::HEAD[..]].concat());
        let named = |name: String, figures: &Figures| [vec![name], figures.cells()].concat();
        for row in &summary.medians {
            table.row(named(row.what(), &row.figures));
        }
        for floor in &summary.floors {
            table.row(named(floor.what.to_owned(), &floor.figures));
        }
        write!(f, "{table}")?;
        for row in &summary.medians {
            if let Some(rate) = row.writeback_bytes_per_second {
                let mib = rate / f64::from(1 << 20);
                write!(f, "\n{}: {mib:.0} MiB a second", row.what())?;
            }
        }
        for row in &summary.medians {
            if let Some(line) = row.stayed() {
                write!(f, "\n{line}")?;
            }
        }
        for (what, ratio) in [
            ("direct / kernel, p50", summary.direct_over_kernel_p50),
            ("direct / kernel, mean", summary.direct_over_kernel_mean),
        ] {
            if let Some(ratio) = ratio {
                write!(f, "\n{what:<22}{ratio:.3}")?;
            }
        }
        if let Some(page_cluster) = summary.page_cluster {
            write!(f, "\nvm.page-cluster is {page_cluster}")?;
        }
        write!(f, "\n{}", verdict(summary.verified))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::PAGE;

    fn row(way: Name, p50_ns: u64, writeback: Option<f64>) -> Row {
        Row {
            bench: "fault",
            name: way,
            pages: 100,
            figures: Figures {
                p50_ns,
                mean_ns: p50_ns as f64,
                ..Figures::default()
            },
            writeback_bytes_per_second: writeback,
            stayed_pages: 0,
            verified: true,
            repeat: Some(0),
        }
    }

    #[test]
    fn faults_beside_writeback_are_rows_of_their_own_and_in_no_ratio() {
        let name = |engine, way| Name {
            engine,
            way,
            algorithm: None,
        };
        let (ours, kernels) = (name("userswap", "direct"), name("kernel-swap", "kernel"));
        let rows = [
            row(ours, 40, None),
            row(ours, 400, Some(4.0)),
            row(kernels, 80, None),
            row(kernels, 100, Some(2.0)),
            row(ours, 60, None),
            row(ours, 600, Some(6.0)),
        ];
        let summary = summarize(&rows, Vec::new());
        let medians = summary.medians.iter();
        let medians: Vec<_> = medians
            .map(|row| {
                (
                    row.what(),
                    row.figures.p50_ns,
                    row.writeback_bytes_per_second,
                )
            })
            .collect();
        assert_eq!(
            medians,
            [
                ("direct".into(), 50, None),
                ("direct, writing".into(), 500, Some(5.0)),
                ("kernel".into(), 80, None),
                ("kernel, writing".into(), 100, Some(2.0)),
            ]
        );
        assert_eq!(summary.direct_over_kernel_p50, Some(50.0 / 80.0));
    }

    #[test]
    fn what_stays_is_counted_among_the_pages_that_are_faulted_on() {
        let memory = Memory::kernel(50 * PAGE).expect("mapping");
        for page in 10..50 {
            memory.touch(page);
        }
        let resident = || resident_of_first(&memory, 10).expect("residency");
        assert_eq!(resident(), 0, "the others stayed");
        memory.touch(9);
        assert_eq!(resident(), 1);
    }

    #[test]
    fn every_page_is_touched_once() {
        let memory = Memory::kernel(50 * PAGE).expect("mapping");
        let latencies = touch_each(&memory, &permutation(50, 1)).expect("latencies");
        assert_eq!(latencies.figures().count, 50);
        assert_eq!(memory.resident_pages().expect("residency"), 50);
    }
}
