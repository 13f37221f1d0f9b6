//! `userswap stress`: the reproducer of the swap-in race.
//!
//! Workers in pairs, one ascending and one descending, add 1 to word 0 of every page while one thread pages everything
//! out without pause. A swap-in that maps stale data loses an update, and the count of that page ends too low.

mod check;
mod crew;
mod devices;
mod round;

use anyhow::ensure;
use userswap::{DeviceSpec, FaultAround};
use userswap_sys::host;

use crate::args::{StressArgs, Target, way_name};
use crate::exit::Status;
use crate::interrupt::{self, Interrupted};
use crate::memory::{EngineSetup, Memory, must_fit, must_fit_area};
use crate::report::{Report, note};
use devices::Exchange;

const DEFAULT_DELAY: std::time::Duration = std::time::Duration::from_millis(1);

/// How many pages with errors are listed in a round.
const LISTED: usize = 20;

/// A round's record.
#[derive(Debug, serde::Serialize)]
struct Record {
    round: u64,
    workers: usize,
    lost: u64,
    misloads: u64,
    pages: usize,
    seconds: f64,
    target: Target,
    #[serde(skip_serializing_if = "Option::is_none")]
    way: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    faults: Option<&'static str>,
    /// Devices swapped off meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    swapoffs: Option<u32>,
}

/// How many workers this process could start now.
pub(crate) fn most_workers() -> usize {
    crew::room_for(usize::MAX)
}

/// Runs the rounds asked for.
pub(crate) fn run(args: &StressArgs) -> anyhow::Result<Status> {
    let report = Report::new(args.json);
    let mut memory = open(args)?;
    report.line(format_args!(
        "Populating {}MB of memory region...",
        args.size as f64 / f64::from(1 << 20)
    ))?;
    report.line("Keep swapping out...")?;
    let mut status = Status::Good;
    let mut number = 0;
    while args.rounds == 0 || number < args.rounds {
        if args.swapoff && number > 0 {
            // An engine can have only so many devices in its life.
            memory = open(args)?;
        }
        match one(args, &report, &memory, number) {
            Ok(true) => {}
            Ok(false) => status = Status::Failed,
            Err(error) => return stopped(error, status, args.rounds == 0),
        }
        number += 1;
    }
    Ok(status)
}

/// What an error in a round means: a signal is the ordinary end of endless rounds, and hides no loss before it.
fn stopped(error: anyhow::Error, so_far: Status, endless: bool) -> anyhow::Result<Status> {
    match error.downcast_ref::<Interrupted>() {
        Some(_) if endless || so_far == Status::Failed => Ok(so_far),
        _ => Err(error),
    }
}

fn open(args: &StressArgs) -> anyhow::Result<Memory> {
    must_fit(args.size)?;
    let len = usize::try_from(args.size)?;
    match args.target {
        Target::Kernel => {
            ensure!(
                !args.swapoff,
                "--swapoff is the engine's: leave it or --target kernel out"
            );
            ensure!(
                !host::swap_areas()?.is_empty(),
                "this host has no swap switched on (/proc/swaps is empty); switch one on, or use --target engine"
            );
            if args.device.is_some() || args.delay.is_some() {
                note(
                    "--device and --delay are the engine's; --target kernel uses whatever swap the host has",
                );
            }
            Memory::kernel(len)
        }
        Target::Engine => {
            must_fit_area(args.size, args.area)?;
            let setup = EngineSetup {
                device: device(args)?,
                area: args.area,
                way: args.way.into(),
                faults: args.faults.into(),
                // Single pages: each of them is raced for.
                fault_around: FaultAround::Fixed(1),
                limit: None,
            };
            Memory::engine(&setup, len)
        }
    }
}

fn device(args: &StressArgs) -> anyhow::Result<DeviceSpec> {
    match &args.device {
        None | Some(DeviceSpec::Ram { .. }) => Ok(DeviceSpec::Ram {
            read_delay: args.delay.unwrap_or(DEFAULT_DELAY),
        }),
        Some(other) => {
            ensure!(
                args.delay.is_none(),
                "--delay works with --device ram only; leave one of them out"
            );
            Ok(other.clone())
        }
    }
}

/// One round; whether nothing was lost.
fn one(args: &StressArgs, report: &Report, memory: &Memory, number: u64) -> anyhow::Result<bool> {
    interrupt::check()?;
    report.line(format_args!("Starting round {number}..."))?;
    report.line(format_args!("Spawning {} workers...", args.workers))?;
    let device = device(args)?;
    let exchange = args.swapoff.then_some(Exchange {
        device: &device,
        area: args.area,
    });
    let workers = args.workers as usize;
    let outcome = round::run(memory, workers, args.sleep, exchange, |started| {
        report.line(format_args!("{started} workers spawned, wait for done..."))
    })?;
    if args.swapoff {
        report.line(format_args!(
            "{} devices swapped off under load",
            outcome.swapoffs
        ))?;
    }
    let workers = outcome.workers;
    let found = check::check(memory, workers as u64)?;
    for error in found.errors.iter().take(LISTED) {
        report.line(format_args!("Round {number}: {error}"))?;
    }
    if found.errors.len() > LISTED {
        report.line(format_args!(
            "Round {number}: Error on {} more pages",
            found.errors.len() - LISTED
        ))?;
    }
    let (lost, misloads) = (found.lost, found.misloads);
    let good = found.errors.is_empty();
    let verdict = if good { "Good" } else { "Failed" };
    report.line(format_args!(
        "Round {number} {verdict}, {lost} data loss, {misloads} misload!"
    ))?;
    report.record(&Record {
        round: number,
        workers,
        lost,
        misloads,
        pages: memory.pages(),
        seconds: outcome.seconds,
        target: args.target,
        way: (args.target == Target::Engine).then(|| way_name(args.way.into())),
        faults: memory.fault_mode().map(crate::args::fault_mode_name),
        swapoffs: args.swapoff.then_some(outcome.swapoffs),
    })?;
    Ok(good)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn the_kernel_loses_nothing() {
        let Some(device) = crate::kernel_zram::tests::device("the_kernel_loses_nothing") else {
            return;
        };
        let line = "userswap stress --target kernel --size 1M --workers 8 --rounds 2";
        let crate::args::Command::Stress(args) =
            crate::args::Cli::parse_from(line.split(' ')).command
        else {
            panic!("not stress");
        };
        assert_eq!(run(&args).expect("rounds"), Status::Good);
        drop(device);
    }

    #[test]
    fn a_signal_ends_endless_rounds_well_and_others_not() {
        let signal = || anyhow::Error::from(Interrupted(2));
        assert_eq!(
            stopped(signal(), Status::Good, true).expect("status"),
            Status::Good
        );
        assert_eq!(
            stopped(signal(), Status::Failed, true).expect("status"),
            Status::Failed
        );
        assert_eq!(
            stopped(signal(), Status::Failed, false).expect("status"),
            Status::Failed
        );
        assert!(stopped(signal(), Status::Good, false).is_err());
        assert!(stopped(anyhow::anyhow!("other"), Status::Failed, true).is_err());
    }
}
