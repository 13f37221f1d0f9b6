//! A long run of the engine under shuttle, for as many executions as are asked for:
//! `cargo run --release -p userswap-core --features shuttle --example soak -- --iterations 1000000 --seed 7`

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use support::soak::{self, Schedule};
use userswap_core::rule::Rules;

/// Executions of one schedule before the other has its turn.
const TURN: u64 = 1_000;

fn main() -> ExitCode {
    let (iterations, seed) = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("soak: {error}; usage: soak [--iterations N] [--seed N]");
            return ExitCode::from(2);
        }
    };
    println!("seed {seed}, {iterations} executions");
    let (start, progress) = (Instant::now(), std::io::stderr().is_terminal());
    let mut done = 0;
    while done < iterations {
        let turn = done / TURN;
        let schedule = [Schedule::Random, Schedule::Pct][(turn % 2) as usize];
        let count = TURN.min(iterations - done);
        let found = std::panic::catch_unwind(|| {
            soak::run(
                schedule,
                seed.wrapping_add(turn),
                count as usize,
                Rules::ALL_KEPT,
            )
        });
        if found.is_err() {
            let again = seed.wrapping_add(turn);
            println!(
                "found by {schedule:?}, seed {again}, execution {}",
                soak::executions()
            );
            return ExitCode::FAILURE;
        }
        done += count;
        if progress {
            eprint!(
                "\r{done} executions, {:.0} s",
                start.elapsed().as_secs_f64()
            );
        }
    }
    if progress {
        eprintln!();
    }
    println!(
        "{done} executions, nothing found, {:.0} s",
        start.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}

/// How many executions, and the first seed: from the clock unless given.
fn arguments() -> Result<(u64, u64), String> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut values = (100_000, clock.map_or(0, |time| time.as_secs()));
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = match name.as_str() {
            "--iterations" => &mut values.0,
            "--seed" => &mut values.1,
            _ => return Err(format!("{name} is no option of it")),
        };
        let text = arguments.next().ok_or(format!("{name} needs a number"))?;
        *value = text
            .parse()
            .map_err(|_| format!("{name} {text} is no number"))?;
    }
    Ok(values)
}
