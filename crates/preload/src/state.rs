//! Whether the engine runs in this process, and who may change the address space meanwhile.
//!
//! Guarantee: when [`begin`] returns, every change of the address space that the hook sees goes through
//! the engine, and none that began before is still under way. Mechanism: a change that finds no engine counts
//! itself before it looks once more; who starts the engine makes it known first, and then waits for the
//! count. Both sides use SeqCst: one of them sees the other.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use userswap::{FaultMode, Process};

use crate::stop;

static ENGINE: AtomicPtr<Process> = AtomicPtr::new(std::ptr::null_mut());

/// Changes under way that the engine does not know of.
static UNSEEN: AtomicUsize = AtomicUsize::new(0);

/// Set in a child of fork while only threads of ours are being started: no call is the program's.
static STARTING: AtomicBool = AtomicBool::new(false);

/// Every system call of the program's is looked at, as inline mode needs it. Set before the first is.
static SEES_ALL: AtomicBool = AtomicBool::new(false);

/// Faults may be handled in threads. Set before the first call is looked at.
static MAY_USE_THREADS: AtomicBool = AtomicBool::new(false);

/// Says how faults are to be handled.
pub(crate) fn set_faults(faults: FaultMode) {
    SEES_ALL.store(faults != FaultMode::Thread, Ordering::Relaxed);
    MAY_USE_THREADS.store(faults != FaultMode::Inline, Ordering::Relaxed);
}

/// Whether every system call of the program's is looked at, and SIGBUS is ours: from the start to the end, whoever handles
/// faults.
pub(crate) fn sees_all() -> bool {
    SEES_ALL.load(Ordering::Relaxed)
}

/// Whether faults are handled in threads, or may be some day.
pub(crate) fn may_use_threads() -> bool {
    MAY_USE_THREADS.load(Ordering::Relaxed)
}

/// Whether the memory of the program's system calls has to be there before they are made, or may have to be before they end.
pub(crate) fn follows_calls() -> bool {
    if !sees_all() {
        return false;
    }
    // In this order: with a reason known before there is an engine, none ever takes anything on inline.
    let possible = stop::reason(FaultMode::Inline).is_none();
    engine().map_or(possible, Process::is_inline_now)
}

/// Runs `start`, which starts threads of ours where no thread of the program's runs beside this one.
pub(crate) fn while_starting<R>(start: impl FnOnce() -> R) -> R {
    STARTING.store(true, Ordering::Relaxed);
    let result = start();
    STARTING.store(false, Ordering::Relaxed);
    result
}

/// Whether calls are made by threads of ours.
pub(crate) fn is_starting() -> bool {
    STARTING.load(Ordering::Relaxed)
}

/// The engine, once it runs.
pub(crate) fn engine() -> Option<&'static Process> {
    // SAFETY: null, or from `begin`: it lives for ever.
    unsafe { ENGINE.load(Ordering::SeqCst).as_ref() }
}

/// Runs a change of the address space without the engine; `Err`: there is one.
pub(crate) fn unseen<R>(change: impl FnOnce() -> R) -> Result<R, &'static Process> {
    if let Some(engine) = engine() {
        return Err(engine);
    }
    UNSEEN.fetch_add(1, Ordering::SeqCst);
    let result = match engine() {
        Some(engine) => Err(engine),
        None => Ok(change()),
    };
    UNSEEN.fetch_sub(1, Ordering::SeqCst);
    result
}

/// In a child of fork: only its one thread is left.
pub(crate) fn only_this_thread() {
    UNSEEN.store(0, Ordering::SeqCst);
}

/// Brings back all that `engine` has taken on, and takes it for gone: nobody asks it any more. Signals are blocked, and no
/// call of this thread is looked at.
pub(crate) fn end(engine: &'static Process) {
    engine.take_no_more();
    engine.retire();
    // Only now: until then changes go through it.
    ENGINE.store(std::ptr::null_mut(), Ordering::SeqCst);
}

/// Makes `engine` the one that changes go through. `false`: a change that began before does not end; nothing may be
/// taken on then, and [`end`] follows: what the program got since may have been.
pub(crate) fn begin(engine: &'static Process) -> bool {
    ENGINE.store(std::ptr::from_ref(engine).cast_mut(), Ordering::SeqCst);
    let since = Instant::now();
    while UNSEEN.load(Ordering::SeqCst) != 0 {
        if since.elapsed() > Duration::from_secs(10) {
            return false;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    true
}

/// What is looked at follows from who handles faults now.
pub(crate) fn look_again() {
    if sees_all() {
        userswap_hook::look_again();
    }
}
