//! The thread that watches how much memory the process has, and starts the engine when the limit comes near.
//!
//! With the limit far away it sleeps: a program cannot have more in memory than it has mapped. Later it looks
//! as often as memory could be used up at the fastest.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use userswap::{Engine, FaultMode, Process};
use userswap_hook::Bypass;
use userswap_sys::signals::{self, Blocked, stderr_line};
use userswap_sys::{cpu, futex, host, mapping, own};

use crate::config::Config;
use crate::files::Files;
use crate::share::Gives;
use crate::sharing::{self, Limits, Sharing};
use crate::{calls, exit, kept, maps, masks, noted, stacks, state, stop};

/// How fast a program can take memory, in bytes a second: two CPUs that touch pages of files that the system has, and maps 16 at
/// a time. To write zeros takes four times as long.
const FASTEST: u64 = 16 << 30;

const SHORTEST: Duration = Duration::from_micros(500);
const LONGEST: Duration = Duration::from_millis(50);

/// 1 while the monitor works, or somebody forks. Not a mutex: a fork takes it in one call and gives it back in
/// another, on both sides.
static AT_WORK: AtomicU32 = AtomicU32::new(0);

/// The engine cannot be had in this process, and that was said.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// That is because no thread can be started in it.
static NO_THREAD: AtomicBool = AtomicBool::new(false);

/// There is a monitor in this process, or will be at once.
static RUNS: AtomicBool = AtomicBool::new(false);

/// The program has confined its system calls.
static CONFINED: AtomicBool = AtomicBool::new(false);

/// 1: the monitor shall park; 2: it does.
static PARK: AtomicU32 = AtomicU32::new(0);

/// The monitor shall end. Changes while it is asleep.
static ENDS: AtomicBool = AtomicBool::new(false);

/// Bytes by which the program's memory has grown since somebody looked.
static GROWN: AtomicU64 = AtomicU64::new(0);

/// Memory has grown in ways that are not followed one by one: what is there shall be looked for.
static SEARCH: AtomicBool = AtomicBool::new(false);

/// Bytes that have come since the last search and may be swappable.
static UNSEARCHED: AtomicU64 = AtomicU64::new(0);

/// Bytes of the stack that starting the engine may have used: its tables are made there first.
const TRIMMED: usize = 8 << 20;

/// Bytes that are worth a search.
const WORTH_SEARCHING: u64 = 1 << 20;

/// `bytes` may have become swappable that were not taken on when they came.
pub(crate) fn search_later(bytes: usize) {
    let bytes = bytes as u64;
    // Relaxed: a sum that is only compared.
    if UNSEARCHED.fetch_add(bytes, Ordering::Relaxed) + bytes >= WORTH_SEARCHING {
        UNSEARCHED.store(0, Ordering::Relaxed);
        SEARCH.store(true, Ordering::Relaxed);
        look_now();
    }
}

/// Changes when the monitor shall look at once.
static LOOK: AtomicU32 = AtomicU32::new(0);

/// The monitor shall look at once.
pub(crate) fn look_now() {
    LOOK.fetch_add(1, Ordering::Relaxed);
    futex::wake_all(&LOOK);
}

/// What the program, which waits for the engine, may have in memory soon, in bytes.
static SOON: AtomicU64 = AtomicU64::new(0);

/// The engine has taken on what the program had. What a call begins to use before that is left to the system, however large.
static HAS_TAKEN_ON: AtomicBool = AtomicBool::new(false);

/// How long a program that grows waits for the engine to start.
const START_WAIT: Duration = Duration::from_secs(2);

/// The program has `bytes` more to use, and there is no engine yet. Near the limit it waits for the monitor to
/// start one: it could be past the limit before the monitor next runs.
pub(crate) fn grew(bytes: usize) {
    let Some(config) = exit::config() else { return };
    // Relaxed: a sum that is only compared with a limit.
    let grown = GROWN.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
    if grown < config.limit / 32 || REFUSED.load(Ordering::Relaxed) {
        return;
    }
    GROWN.store(0, Ordering::Relaxed);
    let (_bypass, _blocked) = (Bypass::new(), Blocked::new());
    // What has just been mapped may be used at once.
    let soon = kept::resident_bytes().unwrap_or(0) + bytes as u64;
    expect(config, soon, |at_first| at_first / 4 * 3);
}

/// The program is about to fork: what it has, each of the two may soon have for itself.
pub(crate) fn forks() {
    if let Some(config) = exit::config()
        && !is_confined()
        && !REFUSED.load(Ordering::Relaxed)
        && !HAS_TAKEN_ON.load(Ordering::Relaxed)
    {
        let soon = kept::resident_bytes().unwrap_or(0) * 2;
        // What is guarded by then is not copied unseen.
        expect(config, soon, |at_first| at_first / 2);
    }
}

/// The program may have `soon` bytes in memory soon. The engine starts near the limit; from `wait_from` on the program waits for it.
fn expect(config: &Config, soon: u64, wait_from: fn(u64) -> u64) {
    let at_first = || sharing::at_first(config.limit);
    if soon < at_first() / 2 {
        return;
    }
    SOON.fetch_max(soon, Ordering::Relaxed);
    look_now();
    let since = Instant::now();
    while soon > wait_from(at_first())
        && !HAS_TAKEN_ON.load(Ordering::Acquire)
        && !REFUSED.load(Ordering::Relaxed)
        && since.elapsed() < START_WAIT
    {
        std::thread::sleep(SHORTEST);
    }
}

/// How long a program that confines all its threads waits for the monitor to park, which is at work for less than that.
const PARK_WAIT: Duration = Duration::from_secs(10);

/// The thread for which [`hold_to_fork`] keeps the monitor asleep; 0: none.
static FORKER: AtomicU32 = AtomicU32::new(0);

/// As [`hold`], for a thread that is about to fork, once: libc's fork calls this before it takes the locks of its allocator, for
/// which the monitor may be waiting, and the system call again.
pub(crate) fn hold_to_fork() {
    // Relaxed: only its own number matters to a thread.
    if FORKER.load(Ordering::Relaxed) != cpu::thread() {
        hold();
        FORKER.store(cpu::thread(), Ordering::Relaxed);
    }
}

/// Ends [`hold_to_fork`], if it has not ended: on both sides of a fork, or where there was none.
pub(crate) fn release_from_fork() {
    if FORKER.swap(0, Ordering::Relaxed) != 0 {
        release();
    }
}

/// Waits until the monitor is asleep, and keeps it so until [`release`].
pub(crate) fn hold() {
    // Acquire: what the monitor did is seen.
    while AT_WORK.swap(1, Ordering::Acquire) != 0 {
        futex::wait(&AT_WORK, 1);
    }
}

/// Ends [`hold`].
pub(crate) fn release() {
    AT_WORK.store(0, Ordering::Release);
    futex::wake_all(&AT_WORK);
}

/// Starts the monitor.
pub(crate) fn start(config: &'static Config) {
    let _bypass = Bypass::new();
    own::expect_thread();
    // As for the engine's threads.
    let _blocked = Blocked::but_libcs();
    RUNS.store(true, Ordering::Relaxed);
    ENDS.store(false, Ordering::Relaxed);
    let started = std::thread::Builder::new()
        .name("userswap".into())
        // Larger than any that libc keeps from threads of the program, in memory that may be swapped.
        .stack_size(72 << 20)
        .spawn(move || {
            // For good: nothing this thread does is the program's.
            std::mem::forget(Bypass::new());
            Blocked::forever();
            own::note_thread();
            watch(config);
        });
    if started.is_err() {
        no_monitor();
        NO_THREAD.store(true, Ordering::Relaxed);
        own::expect_no_thread();
        refuse("no thread can be started");
    }
}

/// In a child of fork, which has none until one is started; or it cannot be started.
pub(crate) fn no_monitor() {
    RUNS.store(false, Ordering::Relaxed);
}

/// In a child of fork: where its parent could start no thread, it may.
pub(crate) fn may_start() {
    if NO_THREAD.swap(false, Ordering::Relaxed) {
        REFUSED.store(false, Ordering::Relaxed);
    }
}

/// The engine cannot be had in this process, which has been said.
pub(crate) fn give_up() {
    REFUSED.store(true, Ordering::Relaxed);
}

/// Has the monitor end, until [`start`]. `false`: there is none, or an engine, which needs it.
pub(crate) fn end() -> bool {
    // In a signal handler of a thread that forks, say.
    if FORKER.load(Ordering::Relaxed) == cpu::thread() {
        return false;
    }
    hold();
    let may_end = RUNS.load(Ordering::Relaxed) && state::engine().is_none() && !is_confined();
    // Relaxed: `AT_WORK` orders it.
    ENDS.store(may_end, Ordering::Relaxed);
    release();
    if may_end {
        no_monitor();
        look_now();
    }
    may_end
}

/// The program is about to confine its own system calls, and ours with them. `all_threads`: those of every thread.
pub(crate) fn confined(all_threads: bool) {
    CONFINED.store(true, Ordering::Relaxed);
    hold();
    if let Some(process) = state::engine() {
        state::end(process);
        refuse(BY_FILTER);
    } else if all_threads {
        refuse(BY_FILTER);
    }
    release();
    if all_threads {
        park();
    }
}

/// Has the monitor sleep for good, in a call that has begun: its next one could be the end of the process.
fn park() {
    PARK.store(1, Ordering::SeqCst);
    let since = Instant::now();
    while PARK.load(Ordering::SeqCst) == 1 {
        if !RUNS.load(Ordering::Relaxed) || since.elapsed() > PARK_WAIT {
            return;
        }
        look_now();
        std::thread::sleep(SHORTEST);
    }
    // It is about to make that call.
    std::thread::sleep(SHORTEST * 4);
}

/// Whether the program has confined its system calls.
pub(crate) fn is_confined() -> bool {
    CONFINED.load(Ordering::Relaxed)
}

const BY_FILTER: &str = "the program filters its system calls (seccomp), which ours could not pass";

pub(crate) fn refuse(why: &str) {
    if !REFUSED.swap(true, Ordering::Relaxed) {
        stderr_line(format_args!(
            "userswap: {why}: the limit is not held in process {}",
            std::process::id()
        ));
    }
    sharing::give_nothing();
    // For good: there will be no engine. Not where a call of ours could be the end of the process.
    if state::sees_all() && state::engine().is_none() && !is_confined() {
        noted::begin();
    }
}

fn watch(config: &'static Config) {
    let mut sharing = Sharing::default();
    let mut given = config.limit;
    let mut files = Files::new();
    loop {
        let look = LOOK.load(Ordering::Relaxed);
        if PARK.load(Ordering::SeqCst) != 0 {
            PARK.store(2, Ordering::SeqCst);
            loop {
                futex::wait(&PARK, 2);
            }
        }
        hold();
        if ENDS.load(Ordering::Relaxed) {
            return release();
        }
        let pause = {
            let (resident, of_files) = kept::resident_and_file_bytes().unwrap_or((0, 0));
            let Limits { now, at_first } =
                sharing.look(config.limit, resident, of_files, gives(), state::engine());
            let is_asked = sharing::is_asked();
            if is_asked {
                stop::note_inline(stop::Why::Read);
            }
            let pause = match state::engine() {
                None if resident.max(SOON.load(Ordering::Relaxed)) > at_first / 2
                    && !REFUSED.load(Ordering::Relaxed) =>
                {
                    begin(config, now);
                    SHORTEST
                }
                None => pause(at_first / 2, resident),
                Some(process) => {
                    if SEARCH.swap(false, Ordering::Relaxed) {
                        take_on(process);
                    }
                    if process.has_taken_a_stack() {
                        stop::note_inline(stop::Why::Stack);
                    }
                    stop::finish();
                    process.start_handlers();
                    let resident = if files.press(process, now) {
                        kept::resident_bytes().unwrap_or(resident)
                    } else {
                        resident
                    };
                    given = keep(process, now, given, resident);
                    pause(now, resident)
                }
            };
            if is_asked && !stop::is_due() {
                sharing::answer();
            }
            pause
        };
        release();
        // A file system that does not answer holds up this thread and nobody else.
        if files.has_to_learn() {
            sharing::in_turn(|| files.learn());
        }
        futex::wait_for(&LOOK, look, pause);
    }
}

/// Whether this process can give up memory.
fn gives() -> Gives {
    if REFUSED.load(Ordering::Relaxed) {
        Gives::Nothing
    } else if state::engine().is_some_and(Process::is_over_limit) {
        Gives::NoMore
    } else {
        Gives::Up
    }
}

/// How long nothing can happen that matters before `mark` is reached.
fn pause(mark: u64, resident: u64) -> Duration {
    let free = mark.saturating_sub(resident);
    Duration::from_micros(free * 1_000_000 / FASTEST).clamp(SHORTEST, LONGEST)
}

/// Starts the engine and takes on what the program has.
fn begin(config: &Config, limit: u64) {
    if is_confined() {
        return refuse(BY_FILTER);
    }
    if let Some(problem) = uncovered(config.faults) {
        return refuse(&problem);
    }
    if config.faults == FaultMode::Auto && uncovered(FaultMode::Inline).is_some() {
        // Handler threads make up for what a file hides.
        stop::note_inline(stop::Why::Code);
    }
    // With a reason against inline mode only, it goes over before it has anything.
    let last = match config.faults {
        FaultMode::Auto => FaultMode::Thread,
        faults => faults,
    };
    if let Some(why) = stop::reason(last) {
        return refuse(why.text());
    }
    // Before anybody can take anything on.
    if state::sees_all() && !noted::end() {
        return refuse("this host has refused a barrier for the program's threads (membarrier)");
    }
    let builder = Engine::builder()
        .device(config.device.clone())
        .limit(limit)
        .faults(config.faults)
        .policy(config.policy)
        .strict(config.strict);
    let builder = sharing::with_limit(builder, config.limit);
    let process = match Process::start(builder) {
        Ok(process) => process,
        Err(error) => return refuse(&error.to_string()),
    };
    // While this thread waits for a CPU, nobody sees memory grow. A filter that the process began with could refuse it.
    if host::seccomp() == Ok(host::Seccomp::Off) {
        cpu::take_short_turns();
    }
    if state::sees_all() {
        masks::note_actions();
    }
    if config.faults == FaultMode::Auto && stop::reason(FaultMode::Inline).is_some() {
        // Before anybody takes anything on: it has nothing to go over with. Where it cannot, that is found again below.
        let _ = process.go_over();
    }
    if !state::begin(process) {
        state::end(process);
        return refuse("a change of the address space does not end");
    }
    if state::sees_all() {
        // The program may have put a handler of its own there just before.
        if let Err(errno) = signals::reinstall() {
            state::end(process);
            return refuse(&format!("the SIGBUS handler cannot be installed ({errno})"));
        }
        // What was found wrong before the engine was known.
        stop::finish();
        if state::engine().is_none() {
            return;
        }
        process.start_handlers();
    }
    if !calls::may_recycle() {
        process.stop_recycling();
    }
    take_on(process);
    if sharing::is_shared() {
        process.guard();
    }
    HAS_TAKEN_ON.store(true, Ordering::Release);
    // SAFETY: this thread's stack is many times larger, and little of it is in use.
    unsafe { mapping::trim_stack(TRIMMED) };
    process.note_resident(kept::resident_bytes().unwrap_or(0));
}

/// Why calls could go unseen that have to be seen where faults are handled so, if they could.
fn uncovered(faults: FaultMode) -> Option<String> {
    let coverage = userswap_hook::coverage();
    if let Some((path, at)) = coverage.uncovered().next() {
        return Some(format!(
            "{} makes system calls that cannot be seen (at {at:#x})",
            path.display()
        ));
    }
    // Handler threads make up for what a file hides that nobody can read.
    if faults != FaultMode::Inline {
        return None;
    }
    coverage.libraries.iter().find_map(|library| {
        let why = library.unreadable?;
        Some(format!("{}: {why}", library.path.display()))
    })
}

/// Code has come since somebody looked at it.
static CODE_CAME: AtomicBool = AtomicBool::new(false);

/// The program has mapped code.
pub(crate) fn code_came() {
    CODE_CAME.store(true, Ordering::Relaxed);
}

/// Where all is looked at, before each call of the program: are the system calls of code that has come all seen?
pub(crate) fn look_at_code() {
    // Relaxed: who mapped the code makes another call before it runs.
    if !CODE_CAME.load(Ordering::Relaxed) || state::engine().is_none() {
        return;
    }
    let (_blocked, _bypass) = (Blocked::new(), Bypass::new());
    if !CODE_CAME.swap(false, Ordering::Relaxed) {
        return;
    }
    if uncovered(FaultMode::Thread).is_some() {
        stop::stop(stop::Why::Code);
    } else if uncovered(FaultMode::Inline).is_some() {
        stop::stop_inline(stop::Why::Code);
    }
}

/// What the main thread needs that was mapped before this library came: its stack, as far as it may grow, and its
/// thread-local memory.
pub(crate) fn note_main_thread() {
    let maps = kept::MAPS.read_all().unwrap_or_default();
    let here = 0_u8;
    let stack = std::ptr::from_ref(&here) as usize;
    let fits = maps::containing(&maps, stack).is_some_and(|found| {
        let start = found.end.saturating_sub(own::main_stack_bytes());
        stacks::note(&(start.min(found.start)..found.end))
    });
    let control = own::control_block();
    let local = maps::containing(&maps, control).is_some_and(|found| stacks::note(&found));
    if !fits || !local {
        stop::stop_inline(stop::Why::Stacks);
    }
}

/// Bytes that are given up at a time: the others of the tree shall hear of them before all of it is gone.
const GIVEN_UP: u64 = 4 << 20;

/// The limit is to be `limit`; it was `before`. What it is now.
fn keep(process: &Process, limit: u64, before: u64, resident: u64) -> u64 {
    let limit = if limit < before {
        limit.max(before.min(resident).saturating_sub(GIVEN_UP))
    } else {
        limit
    };
    process.set_limit(limit);
    let resident = if limit < before {
        kept::resident_bytes().unwrap_or(resident)
    } else {
        resident
    };
    process.note_resident(resident);
    limit
}

/// Takes on what can be swapped.
pub(crate) fn take_on(process: &Process) {
    let program = std::env::current_exe().unwrap_or_default();
    let program = program.to_string_lossy();
    process.take_on(|found| {
        let Some(maps) = kept::MAPS.read_all() else {
            return;
        };
        let stacks: Vec<_> = own::ranges()
            .into_iter()
            .flatten()
            .filter(|range| range.len() == 1)
            .map(|range| range.start)
            .collect();
        let threads = stacks::ranges();
        if maps::has_executable(&maps) {
            process.allow_executable();
        }
        maps::swappable(&maps, &program, &stacks, |range| {
            stacks::without(range, &threads, &mut *found);
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_shrinks_as_memory_is_used_up() {
        assert_eq!(pause(1 << 30, 0), LONGEST);
        assert_eq!(pause(1 << 30, 1 << 30), SHORTEST);
        assert_eq!(pause(1 << 30, 2 << 30), SHORTEST);
        let near = pause(1 << 30, (1 << 30) - (160 << 20));
        assert!(near > SHORTEST && near < LONGEST, "{near:?}");
    }
}
