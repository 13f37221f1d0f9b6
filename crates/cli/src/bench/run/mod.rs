//! `userswap bench run`: real programs natively, under `userswap run`, and in a memory cgroup with the kernel's zram,
//! the ways in turn in one run.
//!
//! Each way has the same memory in all, as `/proc` shows it. `run` counts its compressed store in its limit. A zram
//! device counts in no cgroup, and pages of files count where they were first read: what the program had in memory and what
//! the device took are added up, and the cgroup's limit is corrected by what that was too much or too little, from
//! execution to execution; the first few do not count.

mod execution;
mod programs;
mod summary;

use anyhow::ensure;
use serde::Serialize;

use self::execution::{End, Execution, KernelSide, Place, Scratch, Swapped};
use self::programs::{Access, Program};
use self::summary::summarize;
use crate::args::{BenchRunArgs, FaultsArg, PolicyArg};
use crate::exit::Status;
use crate::kernel_zram::{self, KernelZram};
use crate::memory_cgroup::MemoryCgroup;
use crate::progress::Progress;
use crate::report::{Report, note};
use crate::run::{LEAST_LIMIT, check_limit};
use crate::size::{PAGE, human};

/// Executions, at most, to find a cgroup's limit with.
const TRIES: usize = 5;

/// One in so many parts of a limit is near enough.
const NEAR: u64 = 40;

/// One execution.
#[derive(Clone, Debug, Serialize)]
struct Row {
    bench: &'static str,
    program: String,
    access: Access,
    #[serde(skip)]
    way: Way,
    #[serde(rename = "way")]
    way_name: &'static str,
    #[serde(flatten)]
    settings: Option<Settings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<Limit>,
    /// The most that the program had in memory when nothing limited it.
    need_bytes: u64,
    repeat: u32,
    seconds: f64,
    ended: String,
    completed: bool,
    /// Whether status and output are what they are natively; nothing where they differ natively, too.
    same: Option<bool>,
    output_hash: String,
    output_bytes: u64,
    most_bytes: u64,
    #[serde(flatten)]
    swapped: Option<Swapped>,
    #[serde(flatten)]
    kernel: Option<KernelSide>,
}

/// What limits the memory of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Native,
    Run(Settings),
    Kernel,
}

/// How `run` does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Settings {
    #[serde(rename = "faults_mode")]
    faults: FaultsArg,
    policy: PolicyArg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Limit {
    bytes: u64,
    /// Percentage of what the program needs, where it was given so.
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<u8>,
}

/// Measures every program in every way `--repeat` times, in turn.
pub(crate) fn run(args: &BenchRunArgs) -> anyhow::Result<Status> {
    let report = Report::new(args.json);
    let access = userswap_sys::host::userfaultfd_access();
    ensure!(
        access.user_only(),
        "faults may not be handled here at all, so that `userswap run` sets no limit (run `userswap doctor`)"
    );
    ensure!(
        access.full() || !args.faults.contains(&FaultsArg::Thread),
        "faults in system calls may not be handled here (run `userswap doctor`): use --faults inline or auto"
    );
    if let Some(limit) = args.limit {
        check_limit(limit)?;
    }
    let kernel = !args.no_kernel && kernel_is_usable(args);
    let scratch = Scratch::new()?;
    let programs = if args.program.is_empty() {
        listed(&scratch)?
    } else {
        vec![Program::named(&args.program)]
    };
    let with = |faults| {
        let policies = args.policy.iter();
        policies.map(move |&policy| Way::Run(Settings { faults, policy }))
    };
    let ways = args.faults.iter().flat_map(|&faults| with(faults));
    let ways: Vec<Way> = ways.chain(kernel.then_some(Way::Kernel)).collect();
    let limits = args.limit.map_or(args.share.len(), |_| 1);
    let steps =
        1 + limits * TRIES * usize::from(kernel) + args.repeat as usize * (1 + limits * ways.len());
    let progress = Progress::new((programs.len() * steps) as u64);
    let mut rows = Vec::new();
    for program in &programs {
        let mut measurement = Measurement {
            args,
            folder: if args.program.is_empty() {
                scratch.path().to_owned()
            } else {
                std::env::current_dir()?
            },
            scratch: &scratch,
            program,
            progress: &progress,
            report,
            cgroups: Vec::new(),
            rows: Vec::new(),
        };
        measurement.measure(&ways)?;
        rows.extend(measurement.rows);
    }
    drop(progress);
    let summary = summarize(&rows, args.repeat);
    report.line(&summary)?;
    report.record(&summary)?;
    Ok(if summary.verified {
        Status::Good
    } else {
        Status::Failed
    })
}

/// Whether the kernel's side can be measured; says so where not.
fn kernel_is_usable(args: &BenchRunArgs) -> bool {
    let tried = KernelZram::set_up(args.kernel_algo, 16 << 20)
        .and_then(|zram| MemoryCgroup::set_up().map(|cgroup| (zram, cgroup)))
        .map(drop)
        .and_then(|()| kernel_zram::note_other_swap());
    if let Err(error) = &tried {
        note(format_args!("the kernel is left out: {error:#}"));
    }
    tried.is_ok()
}

/// The programs of the list.
fn listed(scratch: &Scratch) -> anyhow::Result<Vec<Program>> {
    let (programs, missing) = programs::installed(scratch.path())?;
    if !missing.is_empty() {
        note(format_args!("not installed: {}", missing.join(", ")));
    }
    ensure!(
        !programs.is_empty(),
        "none of the programs of the list is installed: name one after --"
    );
    Ok(programs)
}

/// All executions of one program.
struct Measurement<'a> {
    args: &'a BenchRunArgs,
    folder: std::path::PathBuf,
    scratch: &'a Scratch,
    program: &'a Program,
    progress: &'a Progress,
    report: Report,
    /// What the cgroup gets of each limit.
    cgroups: Vec<(Limit, u64)>,
    rows: Vec<Row>,
}

impl Measurement<'_> {
    fn measure(&mut self, ways: &[Way]) -> anyhow::Result<()> {
        // Not measured: its files come into the page cache, and it shows what the program needs.
        let first = self.execute(Way::Native, None, 0)?.0;
        let End::Status(status) = first.end else {
            anyhow::bail!("{} takes longer than --longest natively", self.program.name);
        };
        ensure!(
            self.args.program.is_empty() || status.code() != Some(127),
            "{} cannot be run: {}",
            self.program.name,
            first.said
        );
        let limits = self.limits(first.most_bytes);
        if ways.contains(&Way::Kernel) {
            self.find_cgroups(&limits, first.most_bytes)?;
        }
        for repeat in 0..self.args.repeat {
            self.record(Way::Native, None, repeat, &first)?;
            for &limit in &limits {
                for &way in ways {
                    self.record(way, Some(limit), repeat, &first)?;
                }
            }
        }
        // Natively it does not do the same each time: nothing can be said of the others.
        let natively = |row: &Row| row.way == Way::Native;
        if self
            .rows
            .iter()
            .any(|row| natively(row) && row.same == Some(false))
        {
            for row in &mut self.rows {
                row.same = None;
            }
        }
        Ok(())
    }

    /// Finds the cgroup's limit with which the kernel's side takes as much in all as each limit says.
    fn find_cgroups(&mut self, limits: &[Limit], need: u64) -> anyhow::Result<()> {
        for &limit in limits {
            self.cgroups.push((limit, limit.bytes / 10 * 7));
            for _ in 0..TRIES {
                let (execution, _, side) = self.execute(Way::Kernel, Some(limit), need)?;
                let total = side.map_or(0, |side| side.bytes());
                if Way::completed(execution.end, side)
                    && total.abs_diff(limit.bytes) <= limit.bytes / NEAR
                {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The cgroup's part of a limit.
    fn cgroup(&mut self, limit: Option<Limit>) -> Option<&mut u64> {
        let mut all = self.cgroups.iter_mut();
        let found = all.find(|(of, _)| Some(*of) == limit);
        found.map(|(_, bytes)| bytes)
    }

    fn limits(&self, need: u64) -> Vec<Limit> {
        if let Some(bytes) = self.args.limit {
            return vec![Limit { bytes, share: None }];
        }
        let of_need = |&share: &u8| {
            let bytes = need / 100 * u64::from(share) / PAGE as u64 * PAGE as u64;
            if bytes < LEAST_LIMIT {
                note(format_args!(
                    "{}: {share} % is less than {}, which is taken",
                    self.program.name,
                    human(LEAST_LIMIT)
                ));
            }
            Limit {
                bytes: bytes.max(LEAST_LIMIT),
                share: Some(share),
            }
        };
        self.args.share.iter().map(of_need).collect()
    }

    fn execute(
        &mut self,
        way: Way,
        limit: Option<Limit>,
        need: u64,
    ) -> anyhow::Result<(Execution, Option<Swapped>, Option<KernelSide>)> {
        let several = self.args.faults.len() * self.args.policy.len() > 1;
        let settings = match way {
            Way::Run(Settings { faults, policy }) if several => {
                format!(" {} {}", faults.name(), policy.name())
            }
            _ => String::new(),
        };
        let share = limit.and_then(|limit| limit.share);
        let share = share.map_or_else(String::new, |share| format!(", {share} %"));
        self.progress.begin(format!(
            "{}: {}{settings}{share}",
            self.program.name,
            way.name()
        ));
        let folder = self.folder.clone();
        let place = Place {
            folder: &folder,
            scratch: self.scratch.path(),
            longest: self.args.longest,
        };
        let command = &self.program.command;
        let bytes = limit.map_or(0, |limit| limit.bytes);
        let result = match way {
            Way::Native => (place.natively(command)?, None, None),
            Way::Run(settings) => {
                let (execution, swapped) = place.under_run(command, bytes, settings)?;
                (execution, Some(swapped), None)
            }
            Way::Kernel => {
                // Room for all of it, and more: a device takes memory only as it is used.
                let area = (need * 4).next_multiple_of(1 << 30);
                let algorithm = self.args.kernel_algo;
                let cgroup = self.cgroup(limit).map_or(bytes, |cgroup| *cgroup);
                let (execution, side) = place.under_kernel(command, cgroup, algorithm, area)?;
                let completed = Way::completed(execution.end, Some(side));
                if let Some(cgroup) = self.cgroup(limit) {
                    *cgroup = corrected(bytes, side, completed);
                }
                (execution, None, Some(side))
            }
        };
        self.progress.end();
        Ok(result)
    }

    fn record(
        &mut self,
        way: Way,
        limit: Option<Limit>,
        repeat: u32,
        first: &Execution,
    ) -> anyhow::Result<()> {
        let (execution, swapped, kernel) = self.execute(way, limit, first.most_bytes)?;
        let completed = Way::completed(execution.end, kernel);
        let same = completed.then(|| execution.is_like(first));
        if same == Some(false) && !execution.said.is_empty() {
            self.progress.suspend(|| {
                note(format_args!(
                    "{} {} and said: {}",
                    self.program.name,
                    ended(execution.end),
                    execution.said
                ));
            });
        }
        let row = Row {
            bench: "run",
            program: self.program.name.clone(),
            access: self.program.access,
            way,
            way_name: way.name(),
            settings: match way {
                Way::Run(settings) => Some(settings),
                Way::Native | Way::Kernel => None,
            },
            limit,
            need_bytes: first.most_bytes,
            repeat,
            seconds: execution.seconds,
            ended: ended(execution.end),
            completed,
            same,
            output_hash: format!("{:016x}", execution.printed.hash),
            output_bytes: execution.printed.bytes,
            most_bytes: execution.most_bytes,
            swapped,
            kernel,
        };
        self.progress.suspend(|| self.report.record(&row))?;
        self.rows.push(row);
        Ok(())
    }
}

/// The cgroup's limit for the next execution, after one that was to take `limit` bytes in all.
fn corrected(limit: u64, side: KernelSide, completed: bool) -> u64 {
    let (before, total) = (side.cgroup_bytes as i64, side.bytes() as i64);
    let next = if completed {
        before + (limit as i64 - total)
    } else {
        // It was killed, and what it had does not tell much.
        before + before / 8
    };
    // Less is no room to run in; more would not be limited.
    let next = next.clamp(limit as i64 / 16, limit as i64) as u64;
    next / PAGE as u64 * PAGE as u64
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Run(_) => "run",
            Self::Kernel => "kernel",
        }
    }

    /// Whether a program came to its own end: the kernel kills what does not fit.
    fn completed(end: End, kernel: Option<KernelSide>) -> bool {
        end != End::TooLong && !kernel.is_some_and(|side| side.killed)
    }
}

fn ended(end: End) -> String {
    match end {
        End::Status(status) => format!("ended with {status}"),
        End::TooLong => "was ended: it took too long".to_owned(),
    }
}
