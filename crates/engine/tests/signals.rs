//! Signals: the engine takes SIGBUS for itself only where it is its own, keeps errno, and a handler of
//! the program may touch regions at any time.

mod common;

use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::child::{case, child, succeeded, was_skipped};
use common::pages::{Content, Pages};
use common::{PAGE, build, in_both_modes};
use userswap::{Advice, Engine, Region};

/// Runs the ignored test `name` in a process of its own, once for each mode.
#[track_caller]
fn in_children(name: &str) {
    for mode in ["inline", "thread"] {
        let output = child(name, mode);
        if !was_skipped(&output) {
            succeeded(&output);
        }
    }
}

fn install(
    signal: libc::c_int,
    handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void),
) {
    // SAFETY: plain data, for which zeros are a value; the handlers here keep to atomics and memory.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        assert_eq!(libc::sigaction(signal, &action, null_mut()), 0);
    }
}

static CAUGHT: AtomicUsize = AtomicUsize::new(0);
static CAUGHT_AT: AtomicUsize = AtomicUsize::new(0);
static SENT: AtomicUsize = AtomicUsize::new(0);

/// The program's own handler: mends a file mapping by putting memory there.
extern "C" fn mend(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo to a handler with SA_SIGINFO.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code <= 0 {
        SENT.fetch_add(1, Ordering::SeqCst);
        return;
    }
    CAUGHT.fetch_add(1, Ordering::SeqCst);
    CAUGHT_AT.store(address, Ordering::SeqCst);
    let page = (address & !(PAGE - 1)) as *mut libc::c_void;
    // SAFETY: replaces one page of the test's own mapping, which nothing else uses.
    let mended = unsafe {
        libc::mmap(
            page,
            PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    if mended != page {
        std::process::abort();
    }
}

#[test]
fn a_program_keeps_its_own_sigbus() {
    in_children("child_own_sigbus");
}

#[test]
#[ignore = "started by a_program_keeps_its_own_sigbus"]
fn child_own_sigbus() {
    let Some(mode) = case() else { return };
    install(libc::SIGBUS, mend);
    let builder = Engine::builder().faults(mode.parse().expect("a mode"));
    let Some(engine) = build("own_sigbus", builder) else {
        return;
    };
    let region = engine.region(256 * PAGE).expect("a region");
    let pages = Pages::of(&region);
    for page in 0..256 {
        pages.write(page, 1, Content::Text);
    }
    region
        .advise(0..256 * PAGE, Advice::PageOut)
        .expect("advice");
    // A mapping of an empty file: every access is beyond its end.
    // SAFETY: plain system calls; the mapping is the test's own.
    let mapped = unsafe {
        let file = libc::memfd_create(c"empty".as_ptr(), 0);
        assert!(file >= 0);
        let mapped = libc::mmap(
            null_mut(),
            64 * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file,
            0,
        );
        assert_ne!(mapped, libc::MAP_FAILED);
        mapped.cast::<u8>()
    };
    let address = AtomicPtr::new(mapped);
    thread::scope(|scope| {
        scope.spawn(|| {
            for page in 0..64 {
                // SAFETY: inside the mapping; the handler puts memory there.
                let at = unsafe { address.load(Ordering::Relaxed).add(page * PAGE + 8) };
                // SAFETY: as above.
                assert_eq!(unsafe { at.read_volatile() }, 0);
                assert_eq!(CAUGHT_AT.load(Ordering::SeqCst), at as usize);
            }
        });
        scope.spawn(|| {
            for page in 0..256 {
                pages.verify(page, 1, Content::Text);
            }
        });
    });
    assert_eq!(
        CAUGHT.load(Ordering::SeqCst),
        64,
        "the engine's faults are not the program's"
    );
    // A SIGBUS that somebody sends is the program's too.
    for _ in 0..3 {
        // SAFETY: the handler for it is installed.
        unsafe { libc::raise(libc::SIGBUS) };
    }
    // SAFETY: as above.
    assert_eq!(unsafe { libc::kill(libc::getpid(), libc::SIGBUS) }, 0);
    common::wait_until("the signals", || SENT.load(Ordering::SeqCst) == 4);
    region
        .advise(0..256 * PAGE, Advice::PageOut)
        .expect("advice");
    pages.verify(100, 1, Content::Text);
    assert_eq!(engine.stats().bugs, 0);
}

#[test]
fn errno_is_kept_across_a_fault() {
    const SENTINEL: i32 = 12_345;
    in_both_modes(
        "errno",
        |builder| builder,
        |engine| {
            let region = engine.region(64 * PAGE).expect("a region");
            let pages = Pages::of(&region);
            for round in 0..3 {
                for page in 0..64 {
                    // SAFETY: the address of this thread's errno.
                    unsafe { *libc::__errno_location() = SENTINEL };
                    if round == 0 {
                        pages.poke(page, 5, 1);
                    } else {
                        assert_eq!(pages.peek(page, 5), 1);
                    }
                    // SAFETY: as above.
                    assert_eq!(unsafe { *libc::__errno_location() }, SENTINEL);
                }
                region
                    .advise(0..64 * PAGE, Advice::PageOut)
                    .expect("advice");
            }
        },
    );
}

/// What the alarm's handler touches.
static TOUCHED: AtomicPtr<u8> = AtomicPtr::new(null_mut());
static ALARMS: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicBool = AtomicBool::new(false);
const TOUCHED_PAGES: usize = 128;

extern "C" fn touch(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let base = TOUCHED.load(Ordering::Relaxed);
    let alarm = ALARMS.fetch_add(1, Ordering::Relaxed) as usize;
    for page in [alarm % TOUCHED_PAGES, alarm * 7 % TOUCHED_PAGES] {
        // SAFETY: inside the region, which lives while the alarms do; nobody writes this byte now.
        let found = unsafe { base.add(page * PAGE + 100).read_volatile() };
        if found != page as u8 {
            WRONG.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn an_alarm_may_touch_a_region_whatever_it_interrupts() {
    in_children("child_alarm");
}

#[test]
#[ignore = "started by an_alarm_may_touch_a_region_whatever_it_interrupts"]
fn child_alarm() {
    let Some(mode) = case() else { return };
    let builder = Engine::builder().faults(mode.parse().expect("a mode"));
    let Some(engine) = build("alarm", builder) else {
        return;
    };
    // For good: an alarm may still be under way when the timer is off.
    let region: &Region = Box::leak(Box::new(
        engine.region(TOUCHED_PAGES * PAGE).expect("a region"),
    ));
    let pages = Pages::of(region);
    for page in 0..TOUCHED_PAGES {
        pages.poke(page, 100, page as u8);
    }
    TOUCHED.store(region.as_mut_ptr(), Ordering::Relaxed);
    install(libc::SIGALRM, touch);
    let every = libc::timeval {
        tv_sec: 0,
        tv_usec: 150,
    };
    let timer = libc::itimerval {
        it_interval: every,
        it_value: every,
    };
    assert_eq!(
        // SAFETY: a whole timer; SIGALRM has a handler.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, null_mut()) },
        0
    );
    let end = Instant::now() + Duration::from_millis(1500);
    thread::scope(|scope| {
        for worker in 0..3_usize {
            let engine = &engine;
            scope.spawn(move || {
                let mut round = worker;
                while Instant::now() < end {
                    round += 1;
                    match round % 4 {
                        0 => drop(region.advise(0..TOUCHED_PAGES * PAGE, Advice::PageOut)),
                        1 => drop(region.pin(0..8 * PAGE).expect("a pin")),
                        2 => {
                            let mut other = engine.region(16 * PAGE).expect("a region");
                            other.fill(round as u8);
                            other.advise(0..8 * PAGE, Advice::PageOut).expect("advice");
                            assert!(other.iter().all(|&byte| byte == round as u8));
                            drop(other.fork().expect("fork"));
                            let _ = engine.stats();
                        }
                        _ => {
                            for page in 0..TOUCHED_PAGES {
                                assert_eq!(pages.peek(page, 100), page as u8);
                            }
                        }
                    }
                }
            });
        }
    });
    let off = libc::timeval {
        tv_sec: 0,
        tv_usec: 0,
    };
    let timer = libc::itimerval {
        it_interval: off,
        it_value: off,
    };
    assert_eq!(
        // SAFETY: turns the timer off.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, null_mut()) },
        0
    );
    assert!(
        !WRONG.load(Ordering::Relaxed),
        "a handler read something else"
    );
    assert!(ALARMS.load(Ordering::Relaxed) > 100, "{ALARMS:?}");
    assert_eq!(engine.stats().bugs, 0);
}
