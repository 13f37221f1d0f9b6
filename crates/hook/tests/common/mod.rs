//! Running programs under the hook and under strace.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// Says that a test was not run; in continuous integration, where everything must run, that is a failure.
pub fn skip(name: &str, reason: &str) {
    println!("SKIPPED: {name}: {reason}");
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{name} cannot run here: {reason}"
    );
}

/// The example `counting`, built for this test run.
pub fn counting_library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let status = Command::new(env!("CARGO"))
            .args([
                "build",
                "--quiet",
                "--locked",
                "-p",
                "userswap-hook",
                "--example",
                "counting",
            ])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("cargo runs");
        assert!(status.success(), "the example builds");
        // tests run from target/<profile>/deps; the example is built with the default profile.
        let deps = std::env::current_exe().expect("known");
        let target = deps.ancestors().nth(3).expect("target/profile/deps/test");
        target.join("debug/examples/libcounting.so")
    })
}

/// A directory of this test's own.
pub fn scratch(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hook-{name}"));
    std::fs::create_dir_all(&path).expect("writable");
    path
}

/// Compiles a program or library from the folder `tests/c`.
pub fn compile(scratch: &Path, source: &str, options: &[&str]) -> PathBuf {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/c")
        .join(source);
    let out = scratch.join(source).with_extension("out");
    let done = Command::new("cc")
        .args(["-O1", "-g", "-o"])
        .args([&out, &file])
        .args(options)
        .output()
        .expect("a C compiler");
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    out
}

pub fn has(program: &str) -> bool {
    Command::new("which")
        .arg(program)
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// Without the hook.
pub fn run_plain(command: &[&str]) -> Output {
    Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// With the hook, counting for nobody.
pub fn run_hooked(command: &[&str], mode: &str) -> Output {
    Command::new(command[0])
        .args(&command[1..])
        .env("LD_PRELOAD", counting_library())
        .env("HOOK_MODE", mode)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// What strace and the hook saw of the same run.
#[derive(Default)]
pub struct Traced {
    pub output: Left,
    /// Calls by name, as the kernel got them after the hook was in.
    pub kernel: BTreeMap<String, u64>,
    /// Calls by number, as the hook saw them.
    pub hook: Vec<u64>,
    /// Calls that came from elsewhere than the hook.
    pub elsewhere: BTreeSet<String>,
    /// How many processes had the hook.
    pub processes: usize,
}

/// What a program left behind.
#[derive(Default)]
pub struct Left {
    pub status: std::process::ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Traced {
    pub fn is_skipped(&self) -> bool {
        self.hook.is_empty()
    }

    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// Name, strace's count, the hook's.
    pub fn counts(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        let names: BTreeSet<&str> = self
            .kernel
            .keys()
            .map(String::as_str)
            .chain(
                numbers()
                    .filter(|(_, nr)| self.hook.get(*nr).is_some_and(|&n| n > 0))
                    .map(|(name, _)| name),
            )
            .collect();
        names.into_iter().map(|name| {
            let nr = numbers().find(|(n, _)| *n == name).map(|(_, nr)| nr);
            (
                name,
                self.kernel.get(name).copied().unwrap_or(0),
                nr.and_then(|nr| self.hook.get(nr).copied()).unwrap_or(0),
            )
        })
    }
}

/// What the library does for itself when code comes in: reads the list of mappings and the file, maps stubs, allocates;
/// `fcntl` is how a debug build of the standard library checks descriptors.
pub fn own_call(name: &str) -> bool {
    [
        "open",
        "openat",
        "fstat",
        "read",
        "close",
        "mmap",
        "munmap",
        "mprotect",
        "brk",
        "rt_sigprocmask",
        "mremap",
        "fcntl",
        "madvise",
    ]
    .contains(&name)
}

/// Runs under strace and the hook at once; `None` (said) where there is no strace or it may not trace.
pub fn trace(command: &[&str]) -> Option<Traced> {
    if !has("strace") {
        skip(&command.join(" "), "no strace here");
        return None;
    }
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let scratch = scratch(&format!(
        "trace{}",
        NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    ));
    let (log, counts) = (scratch.join("log"), scratch.join("counts"));
    std::fs::write(&counts, [0u8; 4096]).expect("writable");
    let library = counting_library().to_str().expect("utf-8");
    let output = Command::new("strace")
        .args(["-f", "-i", "-o"])
        .arg(&log)
        .args(["-E", &format!("LD_PRELOAD={library}")])
        .args(command)
        .env("HOOK_COUNTS", &counts)
        .stdin(Stdio::null())
        .output()
        .expect("strace runs");
    let text = std::fs::read(&log).expect("a log");
    let text = String::from_utf8_lossy(&text).into_owned();
    let counters = std::fs::read(&counts).expect("counters");
    let _ = std::fs::remove_dir_all(&scratch);
    let mut traced = Traced {
        output: Left {
            status: output.status,
            stdout: output.stdout,
            stderr: output.stderr,
        },
        hook: counters
            .as_chunks()
            .0
            .iter()
            .map(|c| u64::from_ne_bytes(*c))
            .collect(),
        ..Traced::default()
    };
    traced.read(&text);
    Some(traced)
}

/// One line: process, address, rest.
fn fields(line: &str) -> Option<(u32, Option<usize>, &str)> {
    let (pid, rest) = line.split_once(' ')?;
    let (address, rest) = rest.trim_start().strip_prefix('[')?.split_once("] ")?;
    Some((
        pid.parse().ok()?,
        usize::from_str_radix(address, 16).ok(),
        rest,
    ))
}

impl Traced {
    fn read(&mut self, log: &str) {
        let parents = parents(log);
        // The range of the library in each process that has it; None until it does.
        let mut own: HashMap<u32, Option<(usize, usize)>> = HashMap::new();
        for (pid, address, rest) in log.lines().filter_map(fields) {
            if rest.starts_with("<... execve resumed") && rest.ends_with("= 0") {
                own.insert(pid, None);
                continue;
            }
            let Some((name, arguments)) = rest.split_once('(') else {
                continue;
            };
            if name.contains(' ') {
                continue;
            }
            if name == "prctl" && arguments.contains("0x75737761") {
                let range: Vec<usize> = arguments
                    .split([',', ')', ' '])
                    .filter_map(|a| {
                        a.strip_prefix("0x")
                            .and_then(|a| usize::from_str_radix(a, 16).ok())
                    })
                    .collect();
                own.insert(pid, Some((range[1], range[2])));
                self.processes += 1;
                continue;
            }
            let inherited = parents
                .get(&pid)
                .and_then(|parent| own.get(parent).copied().flatten());
            let Some((first, behind)) = *own.entry(pid).or_insert_with(|| {
                self.processes += usize::from(inherited.is_some());
                inherited
            }) else {
                continue;
            };
            // Left as they are: the return from a signal handler, and what the kernel restarts by itself.
            if ["rt_sigreturn", "restart_syscall"].contains(&name) {
                continue;
            }
            *self.kernel.entry(name.to_string()).or_default() += 1;
            if address.is_some_and(|at| !(first..behind).contains(&at)) {
                self.elsewhere.insert(rest.chars().take(80).collect());
            }
            if name == "execve" && rest.ends_with("= 0") {
                own.insert(pid, None);
            }
        }
    }
}

/// Who made whom.
fn parents(log: &str) -> HashMap<u32, u32> {
    log.lines()
        .filter_map(fields)
        .filter_map(|(pid, _, rest)| {
            let name = rest.strip_prefix("<... ").unwrap_or(rest);
            let makes = ["clone", "fork", "vfork"]
                .iter()
                .any(|n| name.starts_with(n));
            let child = rest.rsplit_once("= ")?.1.parse().ok()?;
            makes.then_some((child, pid))
        })
        .collect()
}

/// Names and numbers as the installed headers have them.
fn numbers() -> impl Iterator<Item = (&'static str, usize)> {
    static TEXT: OnceLock<Vec<(String, usize)>> = OnceLock::new();
    TEXT.get_or_init(|| {
        let header = std::fs::read_to_string("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
            .or_else(|_| std::fs::read_to_string("/usr/include/asm/unistd_64.h"))
            .expect("the kernel's headers (linux-libc-dev)");
        header
            .lines()
            .filter_map(|l| {
                let (name, nr) = l.strip_prefix("#define __NR_")?.split_once(' ')?;
                Some((name.to_string(), nr.trim().parse().ok()?))
            })
            .collect()
    })
    .iter()
    .map(|(name, nr)| (name.as_str(), *nr))
}
