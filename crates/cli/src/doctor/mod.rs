//! `userswap doctor`: what works on this host, what does not, and what to do about it.

mod limits;
mod modes;
mod system;

use std::fmt;

use serde::Serialize;

use crate::args::DoctorArgs;
use crate::exit::Status;
use crate::report::Report;

/// How a reading is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Ok,
    /// Works, within bounds that can matter.
    Limited,
    /// Does not work.
    Missing,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Ok => "ok",
            State::Limited => "limited",
            State::Missing => "missing",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Reading {
    /// A word for programs and people.
    reading: &'static str,
    state: State,
    /// What was found.
    found: String,
    /// What to do about it; empty where nothing needs doing.
    #[serde(rename = "do", skip_serializing_if = "String::is_empty")]
    advice: String,
}

impl Reading {
    fn ok(reading: &'static str, found: impl Into<String>) -> Self {
        Self {
            reading,
            state: State::Ok,
            found: found.into(),
            advice: String::new(),
        }
    }

    fn limited(reading: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            reading,
            state: State::Limited,
            found: found.into(),
            advice: advice.into(),
        }
    }

    fn missing(reading: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            reading,
            state: State::Missing,
            found: found.into(),
            advice: advice.into(),
        }
    }

    /// A reading that could not be taken, which need not mean trouble.
    fn unknown(reading: &'static str, error: &userswap_sys::host::HostError) -> Self {
        Self::limited(
            reading,
            format!("not known: {error}"),
            "look whether /proc and /sys are mounted",
        )
    }
}

/// Looks at everything and prints it.
pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<Status> {
    let report = Report::new(args.json);
    let modes = modes::Modes::look();
    let readings = [modes.readings(), limits::readings(), system::readings()].concat();
    report.line(format_args!(
        "userswap {} on {}",
        env!("CARGO_PKG_VERSION"),
        system::description()
    ))?;
    for reading in &readings {
        report.line(format_args!(
            "{:<8} {:<18} {}",
            reading.state, reading.reading, reading.found
        ))?;
        if !reading.advice.is_empty() {
            report.line(format_args!("{:<8} {:<18} -> {}", "", "", reading.advice))?;
        }
        report.record(reading)?;
    }
    report.line(modes.verdict())?;
    Ok(if modes.any() {
        Status::Good
    } else {
        Status::Impossible
    })
}
