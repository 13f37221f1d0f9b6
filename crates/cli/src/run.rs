//! `userswap run`: a program under a memory limit. The library that does the work is loaded into the program and
//! all it starts; this process waits, passes signals on, and sums up.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use userswap::{DeviceSpec, FileOptions, FileSpec};
use userswap_device::File as SwapFile;
use userswap_preload::config::names;
use userswap_preload::tree::Tree;
use userswap_sys::file_ref::FileRef;
use userswap_sys::host;

use crate::args::{FaultsArg, LimitArg, RunArgs};
use crate::{os, plans_file};

/// The file name of the library.
#[cfg(not(feature = "bundled"))]
const LIBRARY: &str = "libuserswap_preload.so";

/// How often the program is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// In how many looks processes that were killed are taken out of the sum.
const LOOKS_A_SWEEP: u32 = 20;

/// Less than this does not hold what a program needs to run at all, in bytes.
pub(crate) const LEAST_LIMIT: u64 = 16 << 20;

/// Runs the program to its end; exits as it does.
pub(crate) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let limit = limit(args.limit)?;
    let faults = faults(args.faults)?;
    let device = device(args)?;
    let library = library()?;
    let program = &args.program[0];
    if let Some(path) = on_path(program) {
        warn_if_static(&path);
    }
    let tree_file = memory_file("userswap-tree")?;
    let tree = Tree::create(&tree_file).context("cannot make the table of processes")?;
    let kept = library.key().filter(|_| !args.no_cache);
    let plans_file = match kept.and_then(plans_file::open) {
        Some(file) => file,
        None => memory_file("userswap-plans")?,
    };
    let (_stats_file, stats_path, stats) = match &args.stats {
        Some(path) => {
            let file = File::create(path)
                .with_context(|| format!("cannot write statistics to {}", path.display()))?;
            let path = std::path::absolute(path)?;
            (file, path.clone(), path.into_os_string())
        }
        None => {
            let file = memory_file("userswap-stats")?;
            let (path, reference) = (path_of(&file), reference(&file)?);
            (file, path, reference)
        }
    };
    let mut preload = library.path().into_os_string();
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    let mut command = Command::new(program);
    command
        .args(&args.program[1..])
        .env("LD_PRELOAD", preload)
        .env(names::LIMIT, limit.to_string())
        .env(names::DEVICE, device.to_string())
        .env(names::TREE, reference(&tree_file)?)
        .env(names::PLANS, reference(&plans_file)?)
        .env(names::FILTERS, host::seccomp_filters().to_string())
        .env(names::STATS, stats)
        .env(names::FAULTS, faults)
        .env(names::STRICT, if args.strict { "1" } else { "0" });
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            // As shells do.
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            eprintln!("userswap: cannot run {}: {error}", program.display());
            return Ok(ExitCode::from(if missing { 127 } else { 126 }));
        }
    };
    let (status, most) = wait(&mut child, &tree)?;
    if args.verbose {
        let lines = std::fs::read_to_string(&stats_path)
            .with_context(|| format!("cannot read {}", stats_path.display()))?;
        sum_up(&lines, limit, most);
    }
    Ok(exit_code(status))
}

/// The program's status as a shell would give it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let by_signal = status.signal().map(|signal| 128 + signal);
    ExitCode::from(status.code().or(by_signal).unwrap_or(1) as u8)
}

static CHILD: AtomicI32 = AtomicI32::new(0);

extern "C" fn pass_on(signal: libc::c_int) {
    let child = CHILD.load(Ordering::Relaxed);
    if child != 0 {
        os::send_signal(child, signal);
    }
}

extern "C" fn leave_to_the_program(_: libc::c_int) {}

/// Waits for the program; returns how it ended, and the most bytes it and its children were seen to have in memory.
fn wait(child: &mut Child, tree: &Tree) -> anyhow::Result<(ExitStatus, u64)> {
    CHILD.store(child.id() as i32, Ordering::Relaxed);
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2] {
        os::on_signal(signal, pass_on).context("cannot install a signal handler")?;
    }
    // The terminal sends these to the program, too.
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        os::on_signal(signal, leave_to_the_program).context("cannot install a signal handler")?;
    }
    // Where there is none, the end is seen at the next look.
    let process = Pid::from_raw(child.id() as i32);
    let mut process = process.and_then(|process| pidfd_open(process, PidfdFlags::empty()).ok());
    let (mut most, mut looks) = (0, 0);
    loop {
        most = most.max(tree.resident());
        if let Some(status) = child.try_wait()? {
            return Ok((status, most));
        }
        looks += 1;
        if looks % LOOKS_A_SWEEP == 0 {
            tree.sweep(is_gone);
        }
        match &process {
            Some(descriptor) => {
                let pause = Timespec {
                    tv_sec: 0,
                    tv_nsec: LOOK_EVERY.subsec_nanos().into(),
                };
                let mut ends = [PollFd::new(descriptor, PollFlags::IN)];
                // It ended, which would be said at once each time, though a tracer may keep the end from us for long.
                if !matches!(poll(&mut ends, Some(&pause)), Ok(0) | Err(Errno::INTR)) {
                    process = None;
                }
            }
            None => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// Whether a process is not there any more, or only for its parent to ask how it ended.
fn is_gone(process: u32) -> bool {
    let stat = match std::fs::read(format!("/proc/{process}/stat")) {
        Ok(stat) => stat,
        // Whatever else goes wrong says nothing.
        Err(error) => {
            let gone = [Errno::NOENT, Errno::SRCH].map(Errno::raw_os_error);
            return error
                .raw_os_error()
                .is_some_and(|errno| gone.contains(&errno));
        }
    };
    // Behind the name, which may hold anything: the state, and later the number of threads. The first of several may have ended
    // before the others.
    let name_end = stat.windows(2).rposition(|two| two == b") ");
    let rest = name_end.map_or(&[][..], |end| &stat[end + 2..]);
    let fields: Vec<_> = rest.split(|&byte| byte == b' ').collect();
    matches!(fields.first(), Some(&b"Z" | &b"X")) && fields.get(17) == Some(&&b"1"[..])
}

/// How faults are handled. Auto: inline, and in threads what cannot be so, where the host permits both.
fn faults(wanted: FaultsArg) -> anyhow::Result<&'static str> {
    let access = host::userfaultfd_access();
    let sigbus = access
        .features
        .as_ref()
        .is_ok_and(|features| features.sigbus());
    let inline = access.user_only() && sigbus;
    match wanted {
        FaultsArg::Auto if access.full() && inline => Ok("auto"),
        FaultsArg::Auto | FaultsArg::Thread if access.full() => Ok("thread"),
        FaultsArg::Auto | FaultsArg::Inline if inline => Ok("inline"),
        FaultsArg::Thread => bail!(
            "faults in system calls may not be handled here (run `userswap doctor`): use --faults inline or auto"
        ),
        FaultsArg::Inline => {
            bail!("faults may not be handled here at all (run `userswap doctor`)")
        }
        FaultsArg::Auto => {
            eprintln!(
                "userswap: faults may not be handled here at all (run `userswap doctor`): the program runs without a limit"
            );
            Ok("thread")
        }
    }
}

/// The limit, in bytes.
fn limit(wanted: LimitArg) -> anyhow::Result<u64> {
    let bytes = match wanted {
        LimitArg::Bytes(bytes) => bytes,
        LimitArg::Auto => {
            let cgroup = host::cgroup_memory().ok().flatten();
            let tightest = cgroup.and_then(|cgroup| cgroup.tightest()?.limit);
            let Some(bytes) = tightest else {
                bail!("no memory limit is set for this cgroup: give one, such as --limit 2G");
            };
            // The rest is for what is not in the processes: page tables, caches, sockets.
            bytes / 10 * 9
        }
    };
    check_limit(bytes)?;
    Ok(bytes)
}

/// Whether a program can run within a limit of so many bytes.
pub(crate) fn check_limit(bytes: u64) -> anyhow::Result<()> {
    ensure!(
        bytes >= LEAST_LIMIT,
        "a limit of {bytes} bytes is too small: give at least {LEAST_LIMIT} (16M)"
    );
    Ok(())
}

/// Where pages go, for every process of the tree.
fn device(args: &RunArgs) -> anyhow::Result<DeviceSpec> {
    let mut device = args.device.clone();
    if let Some(path) = &args.spill {
        if !path.is_dir() {
            bail!("--spill {}: not a folder", path.display());
        }
        let options = FileOptions::default();
        let path = path.clone();
        device = match device {
            DeviceSpec::Zram(codec) => DeviceSpec::Tiered(codec, FileSpec { path, options }),
            other => bail!("--spill goes with --device zram, not with {other}"),
        };
    }
    if let Some(file) = device.file_mut() {
        // Each process opens it where it happens to be.
        file.path = std::path::absolute(&file.path)?;
        let given = file.path.to_str();
        if given.is_none_or(|path| path.contains(',')) {
            bail!(
                "{}: the name of a file to swap to may hold no comma, and only Unicode",
                file.path.display()
            );
        }
        // Rather now, in one line, than in every process.
        drop(SwapFile::new(&file.path, 1024, file.options)?);
    }
    Ok(device)
}

/// The library that is loaded into the program.
enum Library {
    /// Beside this program, as built or installed.
    #[cfg_attr(
        feature = "bundled",
        expect(dead_code, reason = "the library is carried")
    )]
    File(PathBuf),
    /// Carried by this program.
    #[cfg_attr(
        not(feature = "bundled"),
        expect(dead_code, reason = "nothing is carried")
    )]
    Carried { file: File, key: u64 },
}

impl Library {
    fn path(&self) -> PathBuf {
        match self {
            Self::File(path) => path.clone(),
            Self::Carried { file, .. } => path_of(file),
        }
    }

    /// What tells it from other builds.
    fn key(&self) -> Option<u64> {
        match self {
            Self::File(path) => plans_file::key_of_file(path),
            Self::Carried { key, .. } => Some(*key),
        }
    }
}

#[cfg(feature = "bundled")]
fn library() -> anyhow::Result<Library> {
    let mut file = memory_file("libuserswap_preload.so")?;
    file.write_all(include_bytes!(env!("USERSWAP_BUNDLED")))
        .context("cannot unpack the library")?;
    let key = env!("USERSWAP_BUNDLED_KEY").parse()?;
    Ok(Library::Carried { file, key })
}

#[cfg(not(feature = "bundled"))]
fn library() -> anyhow::Result<Library> {
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let folder = program.parent().unwrap_or(Path::new("/"));
    let places = ["", "deps", "../lib/userswap", "../lib"];
    let mut found = places
        .map(|place| folder.join(place).join(LIBRARY))
        .into_iter();
    let found = found.find(|path| path.is_file()).with_context(|| {
        format!(
            "{LIBRARY} is not beside {}: `cargo build --release` makes it; copy it there",
            program.display()
        )
    })?;
    Ok(Library::File(found))
}

/// The file that `program` names.
fn on_path(program: &std::ffi::OsStr) -> Option<PathBuf> {
    let path = Path::new(program);
    if path.components().count() > 1 {
        return Some(path.to_path_buf());
    }
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders)
        .map(|folder| folder.join(path))
        .find(|path| path.is_file())
}

/// No library can be loaded into a static program: it runs as it is.
fn warn_if_static(path: &Path) {
    if userswap_hook::is_dynamic(path) == Ok(false) {
        eprintln!(
            "userswap: {} is statically linked, so nothing can be loaded into it: it runs without a limit",
            path.display()
        );
    }
}

/// A file in memory, which is gone when this process is.
fn memory_file(name: &str) -> anyhow::Result<File> {
    let file: OwnedFd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)
        .context("cannot make a file in memory")?;
    Ok(File::from(file))
}

/// Where other processes find a file of ours.
fn path_of(file: &File) -> PathBuf {
    let (process, number) = (std::process::id(), file.as_raw_fd());
    PathBuf::from(format!("/proc/{process}/fd/{number}"))
}

/// That, and which file it is, for the environment.
fn reference(file: &File) -> anyhow::Result<OsString> {
    let reference = FileRef::new(file, path_of(file)).context("cannot look at a file in memory")?;
    Ok(reference.to_string().into())
}

/// One line about all processes that ended by themselves.
fn sum_up(lines: &str, limit: u64, most: u64) {
    let records: Vec<serde_json::Value> = lines
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let numbers = |field: &str| -> Vec<u64> {
        let fields = records.iter().map(|record| &record[field]);
        fields.filter_map(serde_json::Value::as_u64).collect()
    };
    let sum = |field: &str| -> u64 { numbers(field).iter().sum() };
    let stalled: f64 = records
        .iter()
        .filter_map(|record| record["stalled_seconds"].as_f64())
        .fold(0.0, |sum, seconds| sum + seconds);
    let highest = numbers("most_resident_bytes")
        .into_iter()
        .max()
        .unwrap_or(0);
    let swapping = records
        .iter()
        .filter(|record| record["faults_mode"] != "none");
    let went_over = records.iter().filter(|record| record["went_over"] == true);
    let went_over = match went_over.count() {
        0 => String::new(),
        count => format!(" ({count} in thread mode after all)"),
    };
    let to_file = match sum("file_written_bytes") {
        0 => String::new(),
        written => format!(
            " ({} MiB to the file, {} MiB from it)",
            written >> 20,
            sum("file_read_bytes") >> 20
        ),
    };
    // Standard error may be gone.
    let _ = writeln!(
        std::io::stderr(),
        "userswap: {} process(es), {} swapping{went_over}; at most {} MiB of {} in memory; {} MiB out, {} MiB in{to_file}, {} faults, \
         {stalled:.2} s stalled",
        records.len(),
        swapping.count(),
        most.max(highest) >> 20,
        limit >> 20,
        sum("out_bytes") >> 20,
        sum("in_bytes") >> 20,
        sum("faults"),
    );
}
