//! Signals by the thousand, at threads that fault without pause: timers and `pthread_kill`, with handlers on an alternate
//! stack that themselves touch swapped pages and raise a SIGBUS of the program's own. Nothing is lost, errno is kept.

mod common;

use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::child::{case, child, succeeded, was_skipped};
use common::pages::{Content, Pages};
use common::{MIB, PAGE, Random, build};
use userswap::{Advice, Engine, FaultMode, Region};

/// The pages that workers write, and behind them those that handlers read.
const WRITTEN: usize = 1500;
const READ: usize = 500;
const WORKERS: usize = 2;
const SENTINEL: i32 = 12_345;

static BASE: AtomicPtr<u8> = AtomicPtr::new(null_mut());
/// Handlers that ran, by signal: SIGALRM, SIGPROF, SIGUSR1.
static RAN: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
static OWN_SIGBUS: AtomicU64 = AtomicU64::new(0);
static OFF_STACK: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicBool = AtomicBool::new(false);
static FILE: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// A page of a mapping of an empty file, this thread's own; null where the thread has none.
    static BEYOND: Cell<*mut u8> = const { Cell::new(null_mut()) };
    /// The thread's alternate stack: its lowest address.
    static STACK: Cell<usize> = const { Cell::new(0) };
}

const STACK_BYTES: usize = 128 << 10;

extern "C" fn on_signal(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let index = match signal {
        libc::SIGALRM => 0,
        libc::SIGPROF => 1,
        _ => 2,
    };
    let turn = RAN[index].fetch_add(1, Ordering::Relaxed) as usize;
    let here = std::ptr::from_ref(&turn) as usize;
    let stack = STACK.get();
    if index == 2 && !(stack..stack + STACK_BYTES).contains(&here) {
        OFF_STACK.fetch_add(1, Ordering::Relaxed);
    }
    let base = BASE.load(Ordering::Relaxed);
    for page in [turn % READ, turn * 31 % READ] {
        // SAFETY: inside the region, which lives while the signals come; nobody writes these pages now.
        let found = unsafe { base.add((WRITTEN + page) * PAGE + 100).read_volatile() };
        if found != page as u8 {
            WRONG.store(true, Ordering::Relaxed);
        }
    }
    let beyond = BEYOND.get();
    if index == 2 && !beyond.is_null() && turn.is_multiple_of(8) {
        // SAFETY: the thread's own page: beyond the file's end, until the SIGBUS handler puts memory there; then the file
        // again.
        unsafe {
            if beyond.read_volatile() != 0 {
                WRONG.store(true, Ordering::Relaxed);
            }
            map_page(beyond, FILE.load(Ordering::Relaxed) as libc::c_int);
        }
    }
}

/// The program's own SIGBUS handler.
extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize & !(PAGE - 1);
    if address != BEYOND.get() as usize {
        std::process::abort();
    }
    OWN_SIGBUS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the thread's own page.
    unsafe { map_page(address as *mut u8, -1) };
}

/// Puts a page of `file`, or of memory, at `at`.
///
/// # Safety
/// Nothing else uses the page.
unsafe fn map_page(at: *mut u8, file: libc::c_int) {
    let kind = if file < 0 {
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS
    } else {
        libc::MAP_SHARED
    };
    let both = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the caller's part.
    let mapped = unsafe { libc::mmap(at.cast(), PAGE, both, kind | libc::MAP_FIXED, file, 0) };
    if mapped != at.cast() {
        std::process::abort();
    }
}

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

fn install(signal: libc::c_int, handler: Handler, stack: libc::c_int) {
    // SAFETY: plain data, for which zeros are a value; the handlers keep to atomics, memory and system calls.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | stack;
        assert_eq!(libc::sigaction(signal, &action, null_mut()), 0);
    }
}

/// Gives this thread an alternate stack and a page beyond a file's end.
fn prepare_thread() {
    let pages = |len| {
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping, kept for good.
        let mapped = unsafe { libc::mmap(null_mut(), len, both, kind, -1, 0) };
        assert_ne!(mapped, libc::MAP_FAILED);
        mapped
    };
    let stack = libc::stack_t {
        ss_sp: pages(STACK_BYTES),
        ss_flags: 0,
        ss_size: STACK_BYTES,
    };
    // SAFETY: memory of ours that stays.
    assert_eq!(unsafe { libc::sigaltstack(&stack, null_mut()) }, 0);
    STACK.set(stack.ss_sp as usize);
    let beyond = pages(PAGE).cast::<u8>();
    // SAFETY: the page just mapped.
    unsafe { map_page(beyond, FILE.load(Ordering::Relaxed) as libc::c_int) };
    BEYOND.set(beyond);
}

fn set_timers(micros: libc::suseconds_t) {
    let every = libc::timeval {
        tv_sec: 0,
        tv_usec: micros,
    };
    let timer = libc::itimerval {
        it_interval: every,
        it_value: every,
    };
    for which in [libc::ITIMER_REAL, libc::ITIMER_PROF] {
        // SAFETY: a whole timer; both signals have handlers.
        assert_eq!(unsafe { libc::setitimer(which, &timer, null_mut()) }, 0);
    }
}

fn in_child(mode: &str) {
    let output = child("child_storm", mode);
    if !was_skipped(&output) {
        succeeded(&output);
        let said = String::from_utf8_lossy(&output.stdout);
        let line = said.lines().find_map(|line| line.split_once("storm: "));
        common::say(line.expect("what came").1);
    }
}

#[test]
fn signals_inside_the_handler_inline() {
    in_child("inline");
}

#[test]
fn signals_inside_the_handler_in_thread_mode() {
    in_child("thread");
}

#[test]
#[ignore = "started by the tests above"]
fn child_storm() {
    let Some(mode) = case() else { return };
    let mode: FaultMode = mode.parse().expect("a mode");
    // SAFETY: a plain system call.
    let file = unsafe { libc::memfd_create(c"empty".as_ptr(), 0) };
    FILE.store(u64::try_from(file).expect("a file"), Ordering::Relaxed);
    install(libc::SIGBUS, on_sigbus, libc::SA_ONSTACK);
    let builder = Engine::builder().limit(5 * MIB as u64).faults(mode);
    let Some(engine) = build("storm", builder) else {
        return;
    };
    // For good: a signal may still be under way when the last is sent.
    let region = engine.region((WRITTEN + READ) * PAGE).expect("a region");
    let region: &'static Region = Box::leak(Box::new(region));
    let pages = Pages::named(region, 1);
    for page in 0..READ {
        pages.poke(WRITTEN + page, 100, page as u8);
    }
    BASE.store(region.as_mut_ptr(), Ordering::Relaxed);
    install(libc::SIGUSR1, on_signal, libc::SA_ONSTACK);
    // These come to any thread, also to those whose alternate stack is the 8 KiB that Rust gives them: too little for a
    // fault.
    for signal in [libc::SIGALRM, libc::SIGPROF] {
        install(signal, on_signal, 0);
    }
    let end = Instant::now() + Duration::from_millis(1200);
    let targets = Mutex::new(Vec::new());
    let running = AtomicU64::new(0);
    let verified = AtomicU64::new(0);
    set_timers(100);
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (targets, running, verified) = (&targets, &running, &verified);
            scope.spawn(move || {
                prepare_thread();
                // SAFETY: this thread, which stays until nobody sends any more.
                targets
                    .lock()
                    .expect("targets")
                    .push(unsafe { libc::pthread_self() });
                let mut random = Random::new(worker as u64);
                let mut versions = vec![0_u64; WRITTEN];
                while Instant::now() < end {
                    let page = random.below(WRITTEN / WORKERS) * WORKERS + worker;
                    // SAFETY: the address of this thread's errno.
                    let errno = unsafe { libc::__errno_location() };
                    // SAFETY: as above.
                    unsafe { errno.write_volatile(SENTINEL) };
                    if versions[page] > 0 {
                        pages.verify(page, versions[page], Content::Text);
                    }
                    versions[page] += 1;
                    pages.write(page, versions[page], Content::Text);
                    // SAFETY: as above.
                    assert_eq!(unsafe { errno.read_volatile() }, SENTINEL, "errno is kept");
                    verified.fetch_add(1, Ordering::Relaxed);
                }
                running.fetch_add(1, Ordering::SeqCst);
                // The sender must find a thread.
                while running.load(Ordering::SeqCst) <= WORKERS as u64 {
                    thread::sleep(Duration::from_millis(1));
                }
                for page in (worker..WRITTEN).step_by(WORKERS) {
                    if versions[page] > 0 {
                        pages.verify(page, versions[page], Content::Text);
                    }
                }
            });
        }
        scope.spawn(|| {
            while running.load(Ordering::SeqCst) < WORKERS as u64 {
                for &target in targets.lock().expect("targets").iter() {
                    // SAFETY: a thread that stays until this one is done.
                    assert_eq!(unsafe { libc::pthread_kill(target, libc::SIGUSR1) }, 0);
                }
                thread::sleep(Duration::from_micros(50));
            }
            running.fetch_add(1, Ordering::SeqCst);
        });
        while Instant::now() < end {
            region
                .advise(0..region.len(), Advice::PageOut)
                .expect("advice");
            thread::sleep(Duration::from_millis(2));
        }
    });
    set_timers(0);
    let ran = RAN.each_ref().map(|ran| ran.load(Ordering::Relaxed));
    let own = OWN_SIGBUS.load(Ordering::Relaxed);
    let stats = engine.stats();
    println!(
        "storm: {mode:?}: {ran:?} of SIGALRM, SIGPROF and SIGUSR1, {own} SIGBUS of the program's own, {} faults, {} \
         writes checked",
        stats.faults,
        verified.load(Ordering::Relaxed),
    );
    assert!(
        !WRONG.load(Ordering::Relaxed),
        "a handler read something else"
    );
    assert_eq!(
        OFF_STACK.load(Ordering::Relaxed),
        0,
        "handlers run on the alternate stack"
    );
    assert!(ran.iter().all(|&ran| ran > 20) && own > 5, "{ran:?} {own}");
    assert_eq!(stats.bugs, 0);
}
