//! `userswap run`: the processes of one tree share its limit.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use support::limited::{User, compiled, possible_with};

/// The parent of every process.
fn parents() -> BTreeMap<u32, u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let number = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let parent = |process: u32| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(')')?;
        Some((process, rest.split_whitespace().nth(1)?.parse().ok()?))
    };
    number.filter_map(parent).collect()
}

/// The processes that `run` has started, and theirs.
fn below(run: u32) -> Vec<u32> {
    let parents = parents();
    let is_below = |process: &u32| {
        let mut at = *process;
        while let Some(&parent) = parents.get(&at) {
            if parent == run {
                return true;
            }
            at = parent;
        }
        false
    };
    parents.keys().copied().filter(is_below).collect()
}

/// What `process` has in memory, pages that it shares counted by parts, in bytes.
fn proportional_bytes(process: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// What was seen of a program under `run`.
struct Seen {
    /// The sums of all its processes, sorted, in bytes.
    sums: Vec<u64>,
    /// The least that its first process had while it had children, in bytes.
    least_of_parent: u64,
}

impl Seen {
    fn mib_of_100(&self, of_100: usize) -> u64 {
        self.sums[(self.sums.len() - 1) * of_100 / 100] >> 20
    }
}

/// Runs `program` and looks at its processes, one after another: some sums may be of different moments.
fn watched(program: &str, limit: u64, options: &[&str], arguments: &[&str]) -> Seen {
    // One at a time: each takes all CPUs there may be.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let run = User::Any
        .userswap()
        .args(["run", "--limit", &format!("{limit}M")])
        .args(options)
        .args(["--", &compiled(program)])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut run = run.expect("userswap runs");
    let (mut sums, mut processes, mut least_of_parent) = (Vec::new(), Vec::new(), u64::MAX);
    for look in 0.. {
        if run.try_wait().expect("it is ours").is_some() {
            break;
        }
        if look % 8 == 0 {
            // Of `timeout`: `run` itself, and what is below.
            let run = below(run.id()).into_iter().min();
            processes = run.map(below).unwrap_or_default();
        }
        let bytes = processes.iter().map(|&process| proportional_bytes(process));
        let bytes: Vec<u64> = bytes.collect();
        sums.push(bytes.iter().sum());
        // The first has the lowest number, and children that are at work.
        if let [parent, children @ ..] = &bytes[..]
            && children.iter().all(|&bytes| bytes > 4 << 20)
            && !children.is_empty()
        {
            least_of_parent = least_of_parent.min(*parent);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = run.wait_with_output().expect("it has ended");
    let complaints = String::from_utf8_lossy(&output.stderr);
    let right = format!("{} right\n", arguments[0]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        right,
        "{complaints}"
    );
    assert!(
        output.status.success() && complaints.is_empty(),
        "{complaints}"
    );
    sums.sort_unstable();
    let seen = Seen {
        sums,
        least_of_parent,
    };
    let parts = [50, 90, 95, 100].map(|of_100| seen.mib_of_100(of_100));
    println!(
        "{program} {arguments:?}: {} looks, {parts:?} MiB of {limit}, the parent at least {}",
        seen.sums.len(),
        least_of_parent >> 20
    );
    assert!(seen.sums.len() >= 20, "{} looks", seen.sums.len());
    assert!(parts[0] > limit / 2, "they need it: {parts:?} MiB");
    let [.., most, outlier] = parts;
    assert!(most <= limit + 8, "{parts:?} MiB");
    assert!(outlier <= limit + limit / 2, "{parts:?} MiB");
    seen
}

/// Six that use nearly half of the limit each, all the time, together have the limit and not much more; under a strict one, none
/// of them is ended for it.
#[test]
fn many_processes_together_keep_within_the_limit() {
    let test = "many_processes_together_keep_within_the_limit";
    if !possible_with(test, &["gcc", "timeout"]) {
        return;
    }
    for strict in [&[][..], &["--strict"]] {
        watched("crowd", 80, strict, &["6", "35", "16"]);
    }
}

/// An equal part would be 26 MiB.
#[test]
fn one_that_waits_gives_way_to_those_that_work() {
    let test = "one_that_waits_gives_way_to_those_that_work";
    if !possible_with(test, &["gcc", "timeout"]) {
        return;
    }
    let seen = watched("crowd", 80, &[], &["2", "50", "120", "60"]);
    assert!(seen.least_of_parent < 16 << 20, "{}", seen.least_of_parent);
}

/// Five have what one had, each for itself: they copy faster than any of them could be seen to.
#[test]
fn copies_after_a_fork_keep_within_the_limit() {
    let test = "copies_after_a_fork_keep_within_the_limit";
    if !possible_with(test, &["gcc", "timeout"]) {
        return;
    }
    let seen = watched("copies", 80, &[], &["4", "40", "6"]);
    let most = seen.mib_of_100(100);
    assert!(most <= 100, "{most} MiB");
}
