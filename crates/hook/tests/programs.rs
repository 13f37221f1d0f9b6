//! Real programs under the hook: they print what they print without it, and the hook sees exactly the calls that strace sees.

mod common;

use common::{Traced, counting_library, run_plain, trace};

/// The hook must see every call that the tracer sees after it is in, and the program must not notice.
///
/// `own` permits calls that the library makes for itself, when code comes in later.
fn same_calls(command: &[&str], own: bool) -> Traced {
    let plain = run_plain(command);
    let Some(traced) = trace(command) else {
        return Traced::default();
    };
    assert_eq!(
        plain.status,
        traced.output.status,
        "{command:?}: {}",
        traced.errors()
    );
    assert_eq!(
        String::from_utf8_lossy(&plain.stdout),
        String::from_utf8_lossy(&traced.output.stdout),
        "{command:?} prints something else"
    );
    assert!(
        traced.elsewhere.is_empty(),
        "{command:?}: not seen: {:?}",
        traced.elsewhere
    );
    assert!(traced.processes > 0, "{command:?}: the hook was never in");
    let differing: Vec<_> = traced
        .counts()
        .filter(|&(name, kernel, hook)| {
            if own {
                kernel < hook || (kernel != hook && !common::own_call(name))
            } else {
                kernel != hook
            }
        })
        .map(|(name, kernel, hook)| format!("{name}: strace {kernel}, hook {hook}"))
        .collect();
    assert!(differing.is_empty(), "{command:?}: {differing:?}");
    println!(
        "{command:?}: {} calls in {} processes, {} seen by the hook",
        traced.kernel.values().sum::<u64>(),
        traced.processes,
        traced.hook.iter().sum::<u64>()
    );
    traced
}

#[test]
fn list_a_directory() {
    let traced = same_calls(&["ls", "-la", "/usr"], false);
    assert!(traced.is_skipped() || traced.hook.iter().sum::<u64>() > 50);
}

#[test]
fn shell_with_pipes_and_subshells() {
    let traced = same_calls(
        &[
            "bash",
            "-c",
            "ls / | sort | head -3; (echo a; echo b) | wc -l; x=$(uname -s); echo $x; exec echo end",
        ],
        false,
    );
    assert!(traced.is_skipped() || traced.processes >= 6);
}

#[test]
fn python_with_threads_and_children() {
    let program = "import json, subprocess, threading, os, ctypes, hashlib, sqlite3\n\
        r = subprocess.run(['ls', '/'], capture_output=True).stdout\n\
        t = [threading.Thread(target=lambda: sum(range(1000))) for _ in range(4)]\n\
        [x.start() for x in t]; [x.join() for x in t]\n\
        os.system('echo sub')\n\
        print(len(r) > 0, json.dumps({'a': 1}), flush=True)";
    same_calls(&["python3", "-c", program], true);
}

#[test]
fn compiler() {
    let scratch = common::scratch("compiler");
    let source = scratch.join("a.c");
    std::fs::write(
        &source,
        "#include <stdio.h>\nint main(void) { return puts(\"x\") < 0; }\n",
    )
    .expect("writable");
    let object = scratch.join("a.o");
    same_calls(
        &[
            "gcc",
            "-O1",
            "-c",
            "-o",
            object.to_str().expect("utf-8"),
            source.to_str().expect("utf-8"),
        ],
        true,
    );
    assert!(object.exists());
}

#[test]
fn sort_with_threads_and_temporary_files() {
    let scratch = common::scratch("sort");
    let input = scratch.join("in");
    let lines: String = (0..40_000u32)
        .map(|i| format!("{}\n", i.wrapping_mul(2_654_435_761)))
        .collect();
    std::fs::write(&input, lines).expect("writable");
    // Threads wait for each other or not, as it happens: the hook sees what the tracer sees in the same run.
    same_calls(
        &[
            "sort",
            "-S",
            "256K",
            "--parallel=2",
            input.to_str().expect("utf-8"),
        ],
        false,
    );
}

#[test]
fn git_and_sqlite() {
    same_calls(&["git", "--no-pager", "--version"], false);
    if common::has("sqlite3") {
        same_calls(
            &[
                "sqlite3",
                ":memory:",
                "create table a(x); insert into a values (1), (2); select sum(x) from a;",
            ],
            true,
        );
    }
}

/// A program that the dynamic linker does not load is known before it is started.
#[test]
fn static_program_is_known() {
    let scratch = common::scratch("static");
    let program = common::compile(&scratch, "plugged.c", &["-static"]);
    let found = userswap_hook::inspect(&program).expect("an ELF file");
    assert!(!found.dynamic);
    assert!(found.library.rewritten > 0, "libc is part of it");
    let dynamic = userswap_hook::inspect(std::path::Path::new("/bin/ls")).expect("an ELF file");
    assert!(dynamic.dynamic);
    assert_eq!(dynamic.library.uncovered, [0; 0]);
}

/// Every site of the libraries that make system calls is rewritten.
#[test]
fn libc_is_covered() {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("readable");
    let library = |name: &str| {
        let line = maps
            .lines()
            .find(|l| l.contains(name))
            .unwrap_or_else(|| panic!("no {name}"));
        std::path::PathBuf::from(line.split_whitespace().nth(5).expect("a path"))
    };
    for name in ["libc.so.6", "ld-linux"] {
        let path = library(name);
        let found = userswap_hook::inspect(&path).expect("an ELF file").library;
        println!(
            "{}: {} sites, {} native, {:x?}",
            path.display(),
            found.rewritten,
            found.native,
            found.uncovered
        );
        assert!(found.rewritten > 30 && found.native == 1);
        assert_eq!(found.uncovered, [0; 0], "{name}");
    }
    assert!(counting_library().exists());
}
