//! `userswap bench swapin`: everything out, everything in.

use serde::Serialize;
use userswap::{DeviceSpec, Way};

use super::candidate::{Candidate, Name, candidates};
use super::page_floor::PageFloor;
use super::phases::{self, Sequence};
use super::stat::{grouped, median, ratio};
use super::{stayed, verdict};
use crate::args::{Order, SwapinArgs, fault_mode_name};
use crate::content::{Content, Kind};
use crate::exit::Status;
use crate::progress::Progress;
use crate::random::permutation;
use crate::report::{Report, Table};
use crate::size::{PAGE, human, rounded};

/// One measurement.
#[derive(Clone, Debug, Serialize)]
struct Row {
    bench: &'static str,
    #[serde(flatten)]
    name: Name,
    content: Kind,
    order: Order,
    threads: usize,
    pages: usize,
    out_seconds: f64,
    in_seconds: f64,
    out_us_per_page: f64,
    in_us_per_page: f64,
    verified: bool,
    wrong_pages: usize,
    stayed_pages: usize,
    out_passes: usize,
    stored_bytes: u64,
    resident_overhead_bytes: u64,
    /// Bytes written to a file or block device for each byte of pages that went out; pages of one repeated word are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    write_amplification: Option<f64>,
    repeat: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    faults: Option<&'static str>,
}

/// The medians of a candidate.
#[derive(Clone, Debug, Serialize)]
struct Median {
    #[serde(flatten)]
    name: Name,
    out_us_per_page: f64,
    in_us_per_page: f64,
    stored_bytes: u64,
    resident_overhead_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    write_amplification: Option<f64>,
    /// The most of any repeat: pages that did not go out, and so did not come in.
    stayed_pages: usize,
}

/// All medians and the ratios between them; the kernel's are those of its fastest compressor.
#[derive(Clone, Debug, Serialize)]
struct Summary {
    bench: &'static str,
    of: &'static str,
    content: Kind,
    order: Order,
    threads: usize,
    pages: usize,
    repeats: u32,
    verified: bool,
    medians: Vec<Median>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direct_over_unpinned: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cached_over_direct: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_over_direct_in: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_over_direct_out: Option<f64>,
    #[serde(flatten)]
    floor: Option<PageFloor>,
}

/// Measures every candidate `--repeat` times, in turn.
pub(crate) fn run(args: &SwapinArgs) -> anyhow::Result<Status> {
    let report = Report::new(args.common.json);
    let candidates = candidates(&args.common, args.size, &args.way.list(), args.fault_around)?;
    let content = Content::new(args.common.content, args.common.seed);
    let pages = usize::try_from(args.size)? / PAGE;
    let sequence = match args.order {
        Order::Seq => Sequence::Ascending,
        Order::Random => Sequence::Listed(permutation(pages, args.common.seed)),
    };
    let progress = Progress::new(u64::from(args.common.repeat) * candidates.len() as u64 * STEPS);
    let mut rows = Vec::new();
    let floor = floor(args, &content)?;
    for repeat in 0..args.common.repeat {
        for candidate in &candidates {
            let row = measure(args, candidate, &content, &sequence, repeat, &progress)?;
            progress.suspend(|| report.record(&row))?;
            rows.push(row);
        }
    }
    drop(progress);
    let summary = Summary {
        floor,
        ..summarize(args, &rows)
    };
    report.line(format_args!("{}", Shown(args, &summary)))?;
    report.record(&summary)?;
    Ok(if summary.verified {
        Status::Good
    } else {
        Status::Failed
    })
}

const STEPS: u64 = 4;

/// Where the engine has pages compressed in memory: a file has to be waited for.
fn floor(args: &SwapinArgs, content: &Content) -> anyhow::Result<Option<PageFloor>> {
    match args.common.device {
        DeviceSpec::Zram(codec) if !args.way.list().is_empty() => {
            PageFloor::measure(content, codec).map(Some)
        }
        _ => Ok(None),
    }
}

fn measure(
    args: &SwapinArgs,
    candidate: &Candidate,
    content: &Content,
    sequence: &Sequence,
    repeat: u32,
    progress: &Progress,
) -> anyhow::Result<Row> {
    let name = candidate.name();
    let threads = usize::from(args.threads);
    let step = |what: &str| progress.begin(format!("{}: {what}", name.short()));
    step("fill");
    let mut subject = candidate.open(usize::try_from(args.size)?)?;
    phases::fill(&mut subject.memory, content)?;
    progress.end();
    step("out");
    let out = phases::page_out(&subject.memory, threads)?;
    progress.end();
    let usage = subject.usage()?;
    step("in");
    let in_seconds = phases::touch(&subject.memory, sequence, threads)?;
    progress.end();
    step("verify");
    let wrong_pages = phases::wrong_pages(&mut subject.memory, content)?;
    progress.end();
    let pages = subject.memory.pages();
    let moved = pages - out.stayed;
    let per_page = |seconds: f64| us_per_page(seconds, moved);
    Ok(Row {
        bench: "swapin",
        name,
        content: args.common.content,
        order: args.order,
        threads,
        pages,
        out_seconds: out.seconds,
        in_seconds,
        out_us_per_page: per_page(out.seconds),
        in_us_per_page: per_page(in_seconds),
        verified: wrong_pages == 0,
        wrong_pages,
        stayed_pages: out.stayed,
        out_passes: out.passes,
        stored_bytes: usage.stored_bytes,
        resident_overhead_bytes: usage.overhead_bytes,
        write_amplification: candidate
            .has_storage()
            .then(|| usage.written_bytes as f64 / (moved.max(1) * PAGE) as f64),
        repeat,
        faults: subject.memory.fault_mode().map(fault_mode_name),
    })
}

/// Microseconds for each page that went out and came in; 0 when none did, which no ratio is made of.
fn us_per_page(seconds: f64, moved: usize) -> f64 {
    if moved == 0 {
        return 0.0;
    }
    seconds * 1e6 / moved as f64
}

fn summarize(args: &SwapinArgs, rows: &[Row]) -> Summary {
    let median_of = |rows: Vec<&Row>| {
        let of = |value: fn(&Row) -> f64| median(rows.iter().map(|row| value(row))).unwrap_or(0.0);
        Median {
            name: rows[0].name,
            out_us_per_page: of(|row| row.out_us_per_page),
            in_us_per_page: of(|row| row.in_us_per_page),
            stored_bytes: of(|row| row.stored_bytes as f64) as u64,
            resident_overhead_bytes: of(|row| row.resident_overhead_bytes as f64) as u64,
            write_amplification: median(rows.iter().filter_map(|row| row.write_amplification)),
            stayed_pages: rows.iter().map(|row| row.stayed_pages).max().unwrap_or(0),
        }
    };
    let medians: Vec<Median> = grouped(rows, |row| row.name)
        .into_iter()
        .map(median_of)
        .collect();
    let way = |way: Way| medians.iter().find(|median| median.name.is_way(way));
    let way_in = |name: Way| way(name).map(|median| median.in_us_per_page);
    let kernel = |value: fn(&Median) -> f64| {
        medians
            .iter()
            .filter(|median| median.name.is_kernel())
            .map(value)
            .filter(|&value| value > 0.0)
            .min_by(f64::total_cmp)
    };
    Summary {
        bench: "summary",
        of: "swapin",
        content: args.common.content,
        order: args.order,
        threads: usize::from(args.threads),
        pages: rows.first().map_or(0, |row| row.pages),
        repeats: args.common.repeat,
        verified: rows.iter().all(|row| row.verified),
        direct_over_unpinned: ratio(way_in(Way::Direct), way_in(Way::Unpinned)),
        cached_over_direct: ratio(way_in(Way::Cached), way_in(Way::Direct)),
        kernel_over_direct_in: ratio(kernel(|median| median.in_us_per_page), way_in(Way::Direct)),
        kernel_over_direct_out: ratio(
            kernel(|median| median.out_us_per_page),
            way(Way::Direct).map(|median| median.out_us_per_page),
        ),
        floor: None,
        medians,
    }
}

/// The summary for people.
struct Shown<'a>(&'a SwapinArgs, &'a Summary);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shown(args, summary) = self;
        let order = if summary.order == Order::Seq {
            "sequential"
        } else {
            "random order"
        };
        writeln!(
            f,
            "{} of {} pages, {order}, {} thread(s), medians of {}",
            human(args.size),
            summary.content.name(),
            summary.threads,
            summary.repeats
        )?;
        let mut table = Table::new(&[
            "way",
            "out us/page",
            "in us/page",
            "stored",
            "overhead",
            "written",
            "stayed",
        ]);
        for median in &summary.medians {
            table.row(vec![
                median.name.short(),
                format!("{:.3}", median.out_us_per_page),
                format!("{:.3}", median.in_us_per_page),
                rounded(median.stored_bytes),
                rounded(median.resident_overhead_bytes),
                median
                    .write_amplification
                    .map_or("-".to_owned(), |ratio| format!("{ratio:.3}")),
                median.stayed_pages.to_string(),
            ]);
        }
        write!(f, "{table}")?;
        if let Some(floor) = &summary.floor {
            write!(f, "\n{floor}")?;
        }
        for median in &summary.medians {
            if let Some(line) = stayed(&median.name.short(), median.stayed_pages, summary.pages) {
                write!(f, "\n{line}; its figures are of the others")?;
            }
        }
        for (what, ratio) in [
            ("swap-in: direct / unpinned", summary.direct_over_unpinned),
            ("swap-in: cached / direct", summary.cached_over_direct),
            ("swap-in: kernel / direct", summary.kernel_over_direct_in),
            ("swap-out: kernel / direct", summary.kernel_over_direct_out),
        ] {
            if let Some(ratio) = ratio {
                write!(f, "\n{what:<27}{ratio:.3}")?;
            }
        }
        write!(f, "\n{}", verdict(summary.verified))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Bench, Cli, Command};
    use crate::kernel_zram::Algorithm;
    use clap::Parser;

    fn args() -> SwapinArgs {
        match Cli::parse_from(["userswap", "bench", "swapin", "--repeat", "1"]).command {
            Command::Bench {
                what: Bench::Swapin(args),
            } => args,
            other => panic!("{other:?}"),
        }
    }

    fn row(
        way: &'static str,
        algorithm: Option<Algorithm>,
        out: f64,
        in_: f64,
        stayed_pages: usize,
    ) -> Row {
        Row {
            bench: "swapin",
            name: Name {
                engine: "userswap",
                way,
                algorithm,
            },
            content: Kind::Mixed,
            order: Order::Seq,
            threads: 1,
            pages: 1000,
            out_seconds: 1.0,
            in_seconds: 1.0,
            out_us_per_page: out,
            in_us_per_page: in_,
            verified: true,
            wrong_pages: 0,
            stayed_pages,
            out_passes: 1,
            stored_bytes: 0,
            resident_overhead_bytes: 0,
            write_amplification: None,
            repeat: 0,
            faults: None,
        }
    }

    #[test]
    fn ratios_are_of_medians_and_the_kernels_of_its_fastest() {
        let rows = [
            row("unpinned", None, 1.0, 1.0, 0),
            row("direct", None, 1.0, 2.0, 0),
            row("direct", None, 3.0, 4.0, 0),
            row("cached", None, 1.0, 6.0, 0),
            row("kernel", Some(Algorithm::LzoRle), 8.0, 12.0, 0),
            row("kernel", Some(Algorithm::Lz4), 10.0, 9.0, 0),
        ];
        let summary = summarize(&args(), &rows);
        assert_eq!(
            (summary.direct_over_unpinned, summary.cached_over_direct),
            (Some(3.0), Some(2.0))
        );
        assert_eq!(
            (
                summary.kernel_over_direct_in,
                summary.kernel_over_direct_out
            ),
            (Some(3.0), Some(4.0))
        );
        assert_eq!(summary.medians.len(), 5);
    }

    #[test]
    fn where_nothing_went_out_there_is_no_ratio_and_it_is_said() {
        assert_eq!((us_per_page(1.0, 0), us_per_page(1.0, 500_000)), (0.0, 2.0));
        let rows = [
            row("direct", None, 0.0, 0.0, 1000),
            row("kernel", Some(Algorithm::Lz4), 8.0, 4.0, 3),
        ];
        let summary = summarize(&args(), &rows);
        assert_eq!(
            (
                summary.kernel_over_direct_in,
                summary.kernel_over_direct_out
            ),
            (None, None)
        );
        let shown = Shown(&args(), &summary).to_string();
        assert!(
            shown.contains("direct: 1000 of 1000 pages STAYED"),
            "{shown}"
        );
        assert!(
            !shown.contains("kernel lz4: 3 of"),
            "a few do not matter: {shown}"
        );
    }

    #[test]
    fn wrong_pages_show() {
        let rows = [Row {
            verified: false,
            wrong_pages: 1,
            ..row("direct", None, 1.0, 1.0, 0)
        }];
        let summary = summarize(&args(), &rows);
        assert!(!summary.verified);
        assert!(
            Shown(&args(), &summary)
                .to_string()
                .ends_with("WRONG PAGES: data were lost")
        );
    }
}
