//! `userswap run` with a file below compressed memory: limits that compression alone cannot hold.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::limited::{compiled, folder, possible, possible_with};
use support::{outcome, records, userswap};

/// Memory that does not compress, changed and looked at again and again.
const PROGRAM: &str = "
import hashlib, os, sys
pages = []
for i in range(int(sys.argv[1])):
    pages.append(bytearray(hashlib.shake_128(b'%d' % i).digest(1 << 16)))
total = hashlib.sha256()
for turn in range(2):
    for i, page in enumerate(pages):
        total.update(page)
        page[turn * 7] ^= i & 255
if len(sys.argv) > 2:
    child = os.fork()
    for i, page in enumerate(pages):
        page[i % 65536] = 1 if child else 2
        total.update(page)
    if child == 0:
        print('child', total.hexdigest(), flush=True)
        os._exit(3)
    print('status', os.waitpid(child, 0)[1])
print(total.hexdigest())
";

struct Ran {
    output: Output,
    swapping: Vec<serde_json::Value>,
}

impl Ran {
    fn sum(&self, field: &str) -> u64 {
        let fields = self.swapping.iter().map(|record| &record[field]);
        fields.filter_map(serde_json::Value::as_u64).sum()
    }

    fn complaints(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }
}

fn run(folder: &Path, options: &[&str], program: &[&str]) -> Ran {
    let stats = folder.join("stats");
    let output = Command::new("timeout")
        .args(["-k", "1", "60"])
        .arg(userswap(&[]).get_program())
        .arg("run")
        .args(options)
        .arg("--stats")
        .arg(&stats)
        .arg("--")
        .args(program)
        .output()
        .expect("userswap runs");
    let mut swapping = records(&std::fs::read_to_string(stats).expect("statistics"));
    swapping.retain(|record| record["faults_mode"] != "none");
    for record in &swapping {
        assert_eq!(record["bugs"], 0, "{record}");
    }
    Ran { output, swapping }
}

fn same_as_native(ran: &Ran, program: &[&str]) {
    let native = Command::new(program[0])
        .args(&program[1..])
        .output()
        .expect("the program runs");
    let lines = |output: &Output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(&native), lines(&ran.output), "{}", ran.complaints());
    assert_eq!(
        native.status.code(),
        ran.output.status.code(),
        "{}",
        ran.complaints()
    );
}

/// Python itself, not a script that looks for it.
fn python() -> Option<String> {
    let found = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output()
        .ok()?;
    Some(String::from_utf8(found.stdout).ok()?.trim().to_owned())
}

#[test]
fn a_quarter_and_an_eighth_of_what_a_program_needs() {
    let test = "a_quarter_and_an_eighth_of_what_a_program_needs";
    if !possible_with(test, &["timeout", "python3"]) {
        return;
    }
    let (folder, python) = (folder(test), python().expect("python3"));
    // 200 MiB, and what Python needs.
    let program = [&*python, "-c", PROGRAM, "3200"];
    let spill = folder.to_str().expect("a name");
    for (faults, limit, bytes) in [
        ("auto", "53M", 53_u64 << 20),
        ("auto", "27M", 27 << 20),
        ("inline", "53M", 53 << 20),
    ] {
        let options = ["--faults", faults, "--limit", limit, "--spill", spill];
        let ran = run(&folder, &options, &program);
        same_as_native(&ran, &program);
        let written = ran.sum("file_written_bytes");
        assert!(written > bytes, "{limit}: {written} bytes went to the file");
        assert!(ran.sum("file_read_bytes") > bytes, "{limit}");
        println!("{limit}: {:?}", ran.swapping);
        let most = ran.sum("most_resident_bytes");
        // On a host with nothing to spare, the thread that watches comes late.
        assert!(most <= bytes * 2, "{limit}: {most} bytes in memory");
    }
}

#[test]
fn parent_and_child_each_keep_their_own() {
    let test = "parent_and_child_each_keep_their_own";
    if !possible_with(test, &["timeout", "python3"]) {
        return;
    }
    let (folder, python) = (folder(test), python().expect("python3"));
    let program = [&*python, "-c", PROGRAM, "1200", "fork"];
    for (faults, device) in [
        ("auto", "zram,file:"),
        ("auto", "file:"),
        ("auto", "zram:zstd,file:"),
        ("inline", "zram,file:"),
        ("inline", "file:"),
    ] {
        let device = format!("{device}{}", folder.display());
        let options = ["--faults", faults, "--limit", "48M", "--device", &device];
        let ran = run(&folder, &options, &program);
        same_as_native(&ran, &program);
        assert_eq!(ran.swapping.len(), 2, "{device}: the program and its child");
        assert!(ran.sum("file_written_bytes") > 32 << 20, "{device}");
    }
}

#[test]
fn a_program_that_uses_memory_in_every_way_with_a_file() {
    let test = "a_program_that_uses_memory_in_every_way_with_a_file";
    if !possible_with(test, &["timeout", "gcc"]) {
        return;
    }
    let folder = folder(test);
    let program = compiled("memory");
    let spill = folder.to_str().expect("a name");
    let program = [&*program, "96"];
    let ran = run(&folder, &["--limit", "64M", "--spill", spill], &program);
    same_as_native(&ran, &program);
    assert!(ran.sum("out_bytes") > 0);
}

#[test]
fn a_killed_program_leaves_nothing_behind() {
    let test = "a_killed_program_leaves_nothing_behind";
    if !possible_with(test, &["timeout", "python3"]) {
        return;
    }
    let (folder, python) = (folder(test), python().expect("python3"));
    let spill = folder.join("spill");
    std::fs::create_dir(&spill).expect("a folder");
    let script = format!("{PROGRAM}\nos.kill(os.getpid(), 9)\n");
    let program = [&*python, "-c", &script, "1200"];
    let options = ["--limit", "48M", "--spill", spill.to_str().expect("a name")];
    let ran = run(&folder, &options, &program);
    assert_eq!(
        ran.output.status.code(),
        Some(128 + 9),
        "{}",
        ran.complaints()
    );
    let left: Vec<PathBuf> = std::fs::read_dir(&spill)
        .expect("the folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}

#[test]
fn what_cannot_be_is_said_before_the_program_starts() {
    if !possible("what_cannot_be_is_said_before_the_program_starts") {
        return;
    }
    for (options, parts) in [
        (
            &["--spill", "/no/such/folder"][..],
            ["/no/such/folder", "not a folder"],
        ),
        (
            &["--spill", "/tmp", "--device", "file:/tmp"],
            ["--spill", "zram"],
        ),
        (
            &["--device", "file:/no/such/place/x"],
            ["/no/such/place", "cannot swap"],
        ),
        (
            &["--device", "zram,file:/tmp,colour=red"],
            ["colour=red", "encrypt=off"],
        ),
        (
            &["--device", "file:/etc/passwd"],
            ["/etc/passwd", "overwrite=on"],
        ),
    ] {
        let mut arguments = vec!["run", "--limit", "64M"];
        arguments.extend(options);
        arguments.extend(["--", "sh", "-c", "echo started"]);
        let (status, out, err) = outcome(&arguments);
        assert_eq!(status, Some(2), "{err}");
        assert_eq!(out, "", "it started");
        assert!(parts.iter().all(|part| err.contains(part)), "{err}");
    }
}
