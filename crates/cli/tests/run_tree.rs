//! `userswap run`: the processes of one tree share its limit.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;
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

/// Six that use nearly half of the limit each, all the time, together have the limit and not much more; under a strict one, none of
/// them is ended for it. They are looked at one after another, and have memory before engines start in all of them: some of the
/// looks may find more.
#[test]
fn many_processes_together_keep_within_the_limit() {
    let test = "many_processes_together_keep_within_the_limit";
    if !possible_with(test, &["gcc", "timeout"]) {
        return;
    }
    let (program, limit) = (compiled("crowd"), 80_u64 << 20);
    for strict in [&[][..], &["--strict"]] {
        let run = User::Any
            .userswap()
            .args(["run", "--limit", "80M"])
            .args(strict)
            .args(["--", &program, "6", "35", "16"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut run = run.expect("userswap runs");
        let (mut sums, mut processes, mut looks) = (Vec::new(), Vec::new(), 0);
        while run.try_wait().expect("it is ours").is_none() {
            if looks % 8 == 0 {
                // Of `timeout`: `run` itself, and what is below.
                let run = below(run.id()).into_iter().min();
                processes = run.map(below).unwrap_or_default();
            }
            looks += 1;
            sums.push(
                processes
                    .iter()
                    .map(|&process| proportional_bytes(process))
                    .sum::<u64>(),
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        let output = run.wait_with_output().expect("it has ended");
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.stdout, b"6 right\n", "{complaints}");
        assert!(
            output.status.success() && complaints.is_empty(),
            "{complaints}"
        );
        sums.sort_unstable();
        let part = |of_100: usize| sums[(sums.len() - 1) * of_100 / 100] >> 20;
        let parts = [50, 90, 95, 100].map(part);
        println!("{test}: {} looks, {parts:?} MiB", sums.len());
        assert!(sums.len() >= 20, "{} looks", sums.len());
        assert!(parts[0] > (limit >> 20) / 2, "they need it: {parts:?} MiB");
        let [.., most, outlier] = parts.map(|mib| mib << 20);
        assert!(most <= limit + (8 << 20), "{parts:?} MiB");
        assert!(outlier <= limit + limit / 2, "{parts:?} MiB");
    }
}
