//! How the process ends: what its status means, and the one line that says why.

use std::io;
use std::process::ExitCode;

use crate::interrupt::Interrupted;

/// How a command ended that did not fail to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Everything was right.
    Good,
    /// Data were lost, or a check failed.
    Failed,
    /// Not possible on this host.
    Impossible,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(match status {
            Status::Good => 0,
            Status::Failed => 1,
            Status::Impossible => 2,
        })
    }
}

/// Prints why a command could not run, on one line of standard error, and says how to exit.
pub(crate) fn explain(error: &anyhow::Error) -> ExitCode {
    if let Some(&Interrupted(signal)) = error.downcast_ref() {
        return ExitCode::from(128 + signal as u8);
    }
    let broken_pipe = error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
    if broken_pipe {
        // The reader has gone: what a program that does not catch SIGPIPE exits with, and as silently.
        return ExitCode::from(128 + libc::SIGPIPE as u8);
    }
    eprintln!("userswap: {}", one_line(&format!("{error:#}")));
    Status::Impossible.into()
}

/// Prints what is wrong with the command line on one line, or the help that was asked for.
pub(crate) fn explain_usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    let help = matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if help {
        // Standard output may be gone already; there is nobody left to tell.
        let _ = error.print();
    } else {
        let text = error.render().to_string();
        let first = text.split("\n\n").next().unwrap_or(&text);
        let line = one_line(first.strip_prefix("error: ").unwrap_or(first));
        eprintln!("userswap: {line}; see `userswap --help`");
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
