//! Medians of the executions, and what they come to, side by side.

use serde::Serialize;

use super::execution::KernelSide;
use super::programs::Access;
use super::{Limit, Row, Settings, Way};
use crate::bench::stat::{grouped, median, ratio};
use crate::report::Table;
use crate::size::rounded;

/// All programs, and whether each did the same in every way.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Summary {
    bench: &'static str,
    of: &'static str,
    repeats: u32,
    pub(super) verified: bool,
    medians: Vec<Median>,
}

/// A program under a limit, and natively beside it.
#[derive(Clone, Debug, Serialize)]
struct Median {
    program: String,
    access: Access,
    limit: Limit,
    need_bytes: u64,
    native_seconds: Option<f64>,
    run: Vec<RunMedian>,
    kernel: Option<KernelMedian>,
    run_over_native: Option<f64>,
    kernel_over_run: Option<f64>,
    same: Option<bool>,
}

#[derive(Clone, Debug, Serialize)]
struct RunMedian {
    #[serde(flatten)]
    settings: Settings,
    /// Of the executions that came to their end.
    seconds: Option<f64>,
    /// The others: they took too long.
    ended: usize,
    most_bytes: u64,
    in_bytes: u64,
    faults: u64,
    refaults: u64,
}

#[derive(Clone, Debug, Serialize)]
struct KernelMedian {
    /// Of the executions that came to their end.
    seconds: Option<f64>,
    /// The others: the program did not fit, or took too long.
    killed: usize,
    /// What the program had in memory and what the zram device took.
    bytes: u64,
    cgroup_bytes: u64,
    most_zram_bytes: u64,
}

pub(super) fn summarize(rows: &[Row], repeats: u32) -> Summary {
    let limited: Vec<&Row> = rows.iter().filter(|row| row.limit.is_some()).collect();
    let groups = grouped(&limited, |row| (row.program.clone(), row.limit));
    let medians = groups.into_iter().map(|group| {
        let native = rows
            .iter()
            .filter(|row| row.way == Way::Native && row.program == group[0].program);
        of_program(&group, native.collect())
    });
    Summary {
        bench: "summary",
        of: "run",
        repeats,
        verified: rows.iter().all(|row| row.same != Some(false)),
        medians: medians.collect(),
    }
}

fn of_program(group: &[&&Row], native: Vec<&Row>) -> Median {
    let first = group[0];
    let native_seconds = median(native.iter().map(|row| row.seconds));
    let ways = grouped(group, |row| row.way);
    let (mut run, mut kernel) = (Vec::new(), None);
    for rows in &ways {
        let number = |value: fn(&Row) -> u64| {
            median(rows.iter().map(|row| value(row) as f64)).unwrap_or(0.0) as u64
        };
        let completed: Vec<_> = rows.iter().filter(|row| row.completed).collect();
        let failed = rows.len() - completed.len();
        let seconds = median(completed.iter().map(|row| row.seconds));
        match rows[0].way {
            Way::Native => {}
            Way::Run(settings) => run.push(RunMedian {
                settings,
                seconds,
                ended: failed,
                most_bytes: number(|row| row.most_bytes),
                in_bytes: number(|row| row.swapped.map_or(0, |swapped| swapped.in_bytes)),
                faults: number(|row| row.swapped.map_or(0, |swapped| swapped.faults)),
                refaults: number(|row| row.swapped.map_or(0, |swapped| swapped.refaults)),
            }),
            Way::Kernel => {
                kernel = Some(KernelMedian {
                    seconds,
                    killed: failed,
                    bytes: number(|row| row.kernel.map_or(0, KernelSide::bytes)),
                    cgroup_bytes: number(|row| row.kernel.map_or(0, |side| side.cgroup_bytes)),
                    most_zram_bytes: number(|row| {
                        row.kernel.map_or(0, |side| side.most_zram_bytes)
                    }),
                });
            }
        }
    }
    let run_seconds = run.first().and_then(|run| run.seconds);
    let kernel_seconds = kernel.as_ref().and_then(|kernel| kernel.seconds);
    let mut same = group.iter().map(|row| row.same);
    Median {
        program: first.program.clone(),
        access: first.access,
        limit: first.limit.expect("of those that have one"),
        need_bytes: first.need_bytes,
        native_seconds,
        run_over_native: ratio(run_seconds, native_seconds),
        kernel_over_run: ratio(kernel_seconds, run_seconds),
        run,
        kernel,
        same: same.try_fold(true, |all, same| same.map(|same| all && same)),
    }
}

/// A median, and how many executions are not in it, in a word.
fn seconds(seconds: Option<f64>, others: usize, word: &str) -> String {
    match seconds {
        None => word.to_owned(),
        Some(seconds) if others == 0 => format!("{seconds:.2}"),
        Some(seconds) => format!("{seconds:.2} ({others} {word})"),
    }
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
}

impl Limit {
    fn shown(self) -> String {
        let share = self.share.map(|share| format!("{share}% "));
        share.unwrap_or_default() + &rounded(self.bytes)
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "seconds, medians of {}", self.repeats)?;
        write!(f, "{}", self.times())?;
        if self.medians.iter().any(|median| median.run.len() > 1) {
            write!(f, "\n\n{}", self.settings())?;
        }
        for median in &self.medians {
            match median.same {
                Some(true) => {}
                Some(false) => write!(f, "\n{}: OTHER OUTPUT than natively", median.program)?,
                None => write!(
                    f,
                    "\n{} ({}): not compared, since not every execution came to its end or printed the same natively",
                    median.program,
                    median.limit.shown()
                )?,
            }
        }
        let verdict = if self.verified {
            "every output compared is the native one"
        } else {
            "OTHER OUTPUT: data were lost, or the program tells how it is run"
        };
        write!(f, "\n{verdict}")
    }
}

impl Summary {
    fn times(&self) -> Table {
        let mut table = Table::new(&[
            "program",
            "needs",
            "limit",
            "native",
            "run",
            "kernel",
            "run/native",
            "kernel/run",
            "run has",
            "kernel has",
            "of it zram",
        ]);
        for median in &self.medians {
            let run = &median.run[0];
            let kernel = median.kernel.as_ref();
            let of_kernel = |value: fn(&KernelMedian) -> u64| {
                kernel.map_or_else(|| "-".to_owned(), |kernel| rounded(value(kernel)))
            };
            table.row(vec![
                median.program.clone(),
                rounded(median.need_bytes),
                median.limit.shown(),
                seconds(median.native_seconds, 0, "-"),
                seconds(run.seconds, run.ended, "too long"),
                kernel.map_or_else(
                    || "-".to_owned(),
                    |kernel| seconds(kernel.seconds, kernel.killed, "killed"),
                ),
                times(median.run_over_native),
                times(median.kernel_over_run),
                rounded(run.most_bytes),
                of_kernel(|kernel| kernel.bytes),
                of_kernel(|kernel| kernel.most_zram_bytes),
            ]);
        }
        table
    }

    fn settings(&self) -> Table {
        let mut table = Table::new(&[
            "program", "limit", "handled", "policy", "seconds", "in", "faults", "refaults",
        ]);
        for median in &self.medians {
            for run in &median.run {
                table.row(vec![
                    median.program.clone(),
                    median.limit.shown(),
                    run.settings.faults.name().to_owned(),
                    run.settings.policy.name().to_owned(),
                    seconds(run.seconds, run.ended, "too long"),
                    rounded(run.in_bytes),
                    run.faults.to_string(),
                    run.refaults.to_string(),
                ]);
            }
        }
        table
    }
}
