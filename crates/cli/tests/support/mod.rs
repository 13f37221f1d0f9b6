//! What the tests of the binary share.
#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "each test program uses a part"
)]

pub(crate) mod kernel;
pub(crate) mod limited;
pub(crate) mod programs;
mod skip;

use std::process::{Command, Output};

pub(crate) use skip::skip;

/// Where tests keep what later ones need not look for again.
pub(crate) const CACHES: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/caches");

/// The binary under test.
pub(crate) fn userswap(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_userswap"));
    command.env("XDG_CACHE_HOME", CACHES).args(args);
    command
}

/// Runs the binary to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    userswap(args).output().expect("the binary runs")
}

/// The exit status, standard output and standard error of a run.
pub(crate) fn outcome(args: &[&str]) -> (Option<i32>, String, String) {
    let output = run(args);
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Every line of standard output as JSON.
pub(crate) fn records(stdout: &str) -> Vec<serde_json::Value> {
    stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect()
}
