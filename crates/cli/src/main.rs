//! The `userswap` command: run a program under a limit, show the race, stress the engine, measure it, say what works.

mod args;
mod bench;
mod content;
mod doctor;
mod exit;
mod interrupt;
mod kernel_swap;
mod kernel_zram;
mod memory;
mod memory_cgroup;
mod os;
mod plans_file;
mod progress;
mod race;
mod ram_disk;
mod random;
mod report;
mod run;
mod size;
#[cfg(test)]
#[path = "../tests/support/skip.rs"]
mod skip;
mod stress;
mod swap_area;

use std::process::ExitCode;

use clap::Parser;

use args::{Bench, Cli, Command};
use exit::Status;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::explain_usage(&error),
    };
    if let Command::Run(args) = &cli.command {
        return run::run(args).unwrap_or_else(|error| exit::explain(&error));
    }
    match run(&cli.command) {
        Ok(status) => status.into(),
        Err(error) => exit::explain(&error),
    }
}

fn run(command: &Command) -> anyhow::Result<Status> {
    interrupt::install()?;
    match command {
        Command::Stress(args) => stress::run(args),
        Command::Bench {
            what: Bench::Swapin(args),
        } => bench::swapin(args),
        Command::Bench {
            what: Bench::Contend(args),
        } => bench::contend(args),
        Command::Bench {
            what: Bench::Fault(args),
        } => bench::fault(args),
        Command::Bench {
            what: Bench::Run(args),
        } => bench::run(args),
        Command::Race(args) => race::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Run(_) => unreachable!("it exits as its program does"),
    }
}
