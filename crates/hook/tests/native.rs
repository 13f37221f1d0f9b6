//! C programs that check themselves, under the hook: registers, signals, threads, processes, libraries that come later.

mod common;

use common::{compile, counting_library, run_hooked, run_plain, scratch};
use std::path::Path;
use std::process::{Command, Output};

const MODES: [&str; 4] = ["count", "unwanted", "noted", "idle"];

fn assert_ok(output: &Output, what: &str) {
    assert!(
        output.status.success() && output.stdout == b"ok\n",
        "{what}: {:?} {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The program is right without the hook, and with it in every mode.
fn right_in_every_mode(program: &Path) {
    let path = program.to_str().expect("utf-8");
    assert_ok(&run_plain(&[path]), "without the hook");
    for mode in MODES {
        assert_ok(&run_hooked(&[path], mode), mode);
    }
}

fn build(name: &str, options: &[&str]) -> std::path::PathBuf {
    compile(&scratch(name), name, options)
}

#[test]
fn every_register_is_kept_at_sites_of_every_shape() {
    if !std::arch::is_x86_feature_detected!("avx") {
        return common::skip("registers", "no AVX here");
    }
    let program = build("registers.c", &[]);
    let found = userswap_hook::inspect(&program)
        .expect("an ELF file")
        .library;
    // The probe and eight shapes.
    assert_eq!(
        (found.rewritten, found.uncovered.len()),
        (9, 0),
        "{:x?}",
        found.uncovered
    );
    right_in_every_mode(&program);
    assert_ok(
        &run_hooked(&[program.to_str().expect("utf-8")], "clobber"),
        "clobber",
    );
}

#[test]
fn signals_inside_calls() {
    right_in_every_mode(&build("signals.c", &[]));
}

#[test]
fn threads_and_cancellation() {
    let program = build("threads.cc", &["-lstdc++", "-pthread"]);
    right_in_every_mode(&program);
    // A cancellation that arrives while the handlers run waits until they are through.
    let counts = scratch("cancelled").join("counts");
    let of = counted(Command::new(&program).env("HOOK_MODE", "slow"), &counts);
    let (began, ended) = (of(500), of(501));
    assert!(
        began >= 25 && began == ended,
        "{began} began, {ended} ended"
    );
}

#[test]
fn every_way_to_make_a_process() {
    right_in_every_mode(&build("processes.c", &[]));
}

/// Runs with a file of counters; what each number was counted.
fn counted(command: &mut Command, counts: &Path) -> impl Fn(i64) -> u64 + use<> {
    std::fs::write(counts, [0u8; 4096]).expect("writable");
    let output = command
        .env("LD_PRELOAD", counting_library())
        .env("HOOK_COUNTS", counts)
        .output()
        .expect("runs");
    assert_ok(&output, "counted");
    let counts = std::fs::read(counts).expect("readable");
    move |nr| u64::from_ne_bytes(counts[nr as usize * 8..][..8].try_into().expect("8 bytes"))
}

/// The sites of a library that is loaded later are rewritten before they run.
#[test]
fn library_that_comes_later() {
    let plugin = build("plugin.c", &["-shared", "-fPIC"]);
    let program = build("plugged.c", &[]);
    let counts = scratch("plugged").join("counts");
    for (mode, expected) in [("count", 2000), ("idle", 0)] {
        let of = counted(
            Command::new(&program).arg(&plugin).env("HOOK_MODE", mode),
            &counts,
        );
        assert_eq!(of(libc::SYS_getpriority), expected, "{mode}");
    }
}

/// Code that nothing describes counts as uncovered if it is called, data among code do not; neither is touched.
#[test]
fn code_without_unwind_information() {
    let program = build("doubt.c", &["-s"]);
    let found = userswap_hook::inspect(&program)
        .expect("an ELF file")
        .library;
    assert_eq!(
        (found.rewritten, found.uncovered.len()),
        (0, 1),
        "{:x?}",
        found.uncovered
    );
    let bytes = std::fs::read(&program).expect("readable");
    let call = bytes
        .windows(7)
        .position(|w| w == [0xb8, 110, 0, 0, 0, 0x0f, 0x05]);
    assert!(call.is_some());
    right_in_every_mode(&program);
}

/// Of data that look like code which calls the system none counts; what is called does, whichever way it calls.
#[test]
fn data_that_look_like_system_calls() {
    let program = build("old.c", &["-s", "-no-pie"]);
    let found = userswap_hook::inspect(&program).expect("an ELF file");
    let uncovered = found.library.uncovered;
    let bytes = std::fs::read(&program).expect("readable");
    let call = bytes.windows(3).position(|w| w == [0xcd, 0x80, 0xc3]);
    let call = call.expect("it is there") as u64;
    assert_eq!(uncovered.len(), 1, "{uncovered:x?}");
    // Text is mapped at its place in the file, from some page on.
    assert_eq!(uncovered[0] % 4096, call % 4096, "{uncovered:x?}");
}

/// Code that others have, too, or a file, stays as it is.
#[test]
fn code_that_is_mapped_shared() {
    right_in_every_mode(&build("shared.c", &[]));
}

/// Code that is made code a second time is known, and not rewritten or reported again.
#[test]
fn code_made_code_again() {
    let program = build("again.c", &[]);
    right_in_every_mode(&program);
    let output = Command::new(&program)
        .env("LD_PRELOAD", counting_library())
        .env("HOOK_REPORT", "1")
        .output()
        .expect("runs");
    assert_ok(&output, "report");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let at_start = text
        .lines()
        .filter(|l| l.contains(" rewritten, ") && l.contains(" native"))
        .count();
    assert!(
        at_start >= 2 && text.contains(&format!("at the end {at_start} libraries")),
        "{text}"
    );
    assert!(text.trim_end().ends_with(" 0 uncovered"), "{text}");
}

/// Processes that share what they find see the same calls as one that looks for itself, whatever became of the file.
#[test]
fn plans_that_are_shared() {
    let program = build("signals.c", &[]);
    let plans = scratch("plans").join("plans-shared");
    let run = |limits: &str| {
        let output = Command::new("sh")
            .args(["-c", &format!("{limits} exec env \"$@\""), "sh"])
            .arg(format!("LD_PRELOAD={}", counting_library().display()))
            .arg(format!("HOOK_PLANS={}", plans.display()))
            .arg("HOOK_REPORT=1")
            .arg(&program)
            .output()
            .expect("runs");
        assert_ok(&output, "shared");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let mut found: Vec<String> = text.lines().map(str::to_owned).collect();
        found.retain(|line| line.contains(" rewritten, ") && line.contains(" native"));
        found
    };
    let size = || std::fs::metadata(&plans).expect("there").len();
    std::fs::write(&plans, "").expect("writable");
    // A process that may write no files is not ended for it.
    let alone = run("ulimit -f 0;");
    assert_eq!(size(), 0);
    assert!(alone.iter().any(|line| line.contains("libc")), "{alone:?}");
    assert_eq!(run(""), alone);
    let kept = size();
    assert!(kept > 0);
    assert_eq!(run(""), alone);
    assert_eq!(size(), kept);
    let damaged = vec![0x5a; kept as usize];
    std::fs::write(&plans, damaged).expect("writable");
    assert_eq!(run(""), alone);
    std::fs::remove_file(&plans).expect("there");
    assert_eq!(run(""), alone);
}
