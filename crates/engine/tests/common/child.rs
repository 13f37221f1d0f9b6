//! Tests that need a process of their own: the test binary starts itself again.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Runs the test `name` of this very binary, ignored there, in a process of its own with `case` in its
/// environment.
pub(crate) fn child(name: &str, case: &str) -> Output {
    finish(command(name, case))
}

/// The command that runs the ignored test `name` of this binary.
pub(crate) fn command(name: &str, case: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command
        .args([
            "--exact",
            name,
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("USERSWAP_CASE", case);
    command
}

/// How long a child may take: a minute, and more where a longer run was asked for.
fn patience() -> Duration {
    let rounds = std::env::var("USERSWAP_ROUNDS").ok();
    let rounds: u64 = rounds.and_then(|text| text.parse().ok()).unwrap_or(0);
    Duration::from_secs(60 + 10 * rounds)
}

/// The output of a command that must end: a hang is a failure too.
pub(crate) fn finish(mut command: Command) -> Output {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the test binary starts");
    // Read as it comes: a child that says much must not wait for room in a pipe.
    let stdout = collect(child.stdout.take().expect("piped"));
    let stderr = collect(child.stderr.take().expect("piped"));
    let start = Instant::now();
    let (status, hangs) = loop {
        match child.try_wait().expect("the child can be waited for") {
            Some(status) => break (status, false),
            None if start.elapsed() > patience() => {
                child.kill().expect("it can be killed");
                break (child.wait().expect("its end"), true);
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let output = Output {
        status,
        stdout: stdout.join().expect("its output"),
        stderr: stderr.join().expect("its output"),
    };
    assert!(!hangs, "the child hangs: {}", said(&output));
    output
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut said = Vec::new();
        from.read_to_end(&mut said).expect("a pipe can be read");
        said
    })
}

/// The case this process was started for; `None`: somebody ran the ignored tests by hand.
pub(crate) fn case() -> Option<String> {
    std::env::var("USERSWAP_CASE").ok()
}

/// What a child said, for a failing assertion.
pub(crate) fn said(output: &Output) -> String {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    format!("{}\n--- stdout\n{out}--- stderr\n{err}", output.status)
}

/// The lines of its standard error that come from userswap.
pub(crate) fn complaints(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter(|line| line.starts_with("userswap:"))
        .map(str::to_owned)
        .collect()
}

/// Whether the child said that it was skipped: then so is the test that started it.
pub(crate) fn was_skipped(output: &Output) -> bool {
    let out = String::from_utf8_lossy(&output.stdout);
    let skipped = out.lines().find(|line| line.contains("SKIPPED: "));
    if let Some(line) = skipped {
        println!("{line}");
    }
    skipped.is_some()
}

/// The child ended well.
#[track_caller]
pub(crate) fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", said(output));
}

/// The child was killed by `signal`.
#[track_caller]
pub(crate) fn killed_by(output: &Output, signal: i32) {
    assert_eq!(output.status.signal(), Some(signal), "{}", said(output));
}
