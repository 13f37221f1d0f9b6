//! Faults resolved inside the SIGBUS handler. One handler serves the whole process, so one test drives it.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Barrier, OnceLock};
use std::thread;

use common::{complete, fill, holds, inline_or_skip, pages};
use userswap_sys::mapping::Mapping;
use userswap_sys::signals::{self, Fault, Installed, Verdict};
use userswap_sys::uffd::{Outcome, Uffd};
use userswap_sys::{Errno, PAGE_SIZE, cpu, timing};

const PAGES: usize = 256;

struct Swapped {
    uffd: Uffd,
    home: Mapping,
    staging: Mapping,
}

static SWAPPED: OnceLock<Swapped> = OnceLock::new();
static FAULTS: AtomicUsize = AtomicUsize::new(0);
static WRITES: AtomicUsize = AtomicUsize::new(0);
static READS: AtomicUsize = AtomicUsize::new(0);
static BLOCKED: AtomicU64 = AtomicU64::new(0);
static SPOIL_ERRNO: AtomicBool = AtomicBool::new(false);

/// Brings the page back from staging.
fn resolve(fault: Fault<'_>) -> Verdict {
    let Some(swapped) = SWAPPED.get() else {
        return Verdict::NotOurs;
    };
    if !swapped.home.contains(fault.address()) {
        return Verdict::NotOurs;
    }
    FAULTS.fetch_add(1, Ordering::Relaxed);
    match fault.write() {
        Some(true) => WRITES.fetch_add(1, Ordering::Relaxed),
        Some(false) => READS.fetch_add(1, Ordering::Relaxed),
        None => 0,
    };
    BLOCKED.store(blocked(), Ordering::Relaxed);
    timing::now_ns();
    cpu::current();
    let offset = (fault.address() - swapped.home.base()) & !(PAGE_SIZE - 1);
    if SPOIL_ERRNO.load(Ordering::Relaxed) {
        set_errno(libc::EDOM);
    }
    loop {
        // SAFETY: both ranges are the test's; a missing page of `home` is in `staging` at the same offset.
        let progress = unsafe {
            swapped.uffd.move_pages(
                swapped.home.base() + offset,
                swapped.staging.base() + offset,
                PAGE_SIZE,
                false,
            )
        };
        match progress.outcome() {
            Outcome::Complete => return Verdict::Handled,
            Outcome::Again | Outcome::Partial(_) => {}
            // Another thread was faster: its page is there, or was already gone from staging.
            Outcome::Refused(Errno::EXIST | Errno::NOENT) => return Verdict::Handled,
            Outcome::Refused(errno) => {
                signals::stderr_line(format_args!("move: {}", errno.raw_os_error()));
                return Verdict::NotOurs;
            }
        }
    }
}

fn blocked() -> u64 {
    let mut mask = 0u64;
    // SAFETY: a null new mask only asks; 8 bytes are written.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_BLOCK,
            std::ptr::null::<u64>(),
            &raw mut mask,
            8,
        )
    };
    mask
}

fn set_errno(value: i32) {
    // SAFETY: this thread's errno.
    unsafe { *libc::__errno_location() = value };
}

fn errno() -> i32 {
    // SAFETY: this thread's errno.
    unsafe { *libc::__errno_location() }
}

fn page_out(swapped: &Swapped) {
    // SAFETY: the test's own ranges; every touch of `home` meanwhile is resolved by the handler.
    complete(unsafe {
        swapped.uffd.move_pages(
            swapped.staging.base(),
            swapped.home.base(),
            swapped.home.len(),
            false,
        )
    });
}

fn touch(swapped: &Swapped, page: usize) -> u8 {
    // SAFETY: inside `home`; a fault is resolved by the handler.
    unsafe { swapped.home.as_ptr().add(page * PAGE_SIZE).read_volatile() }
}

#[test]
fn faults_are_resolved_where_they_happen() {
    let Some(uffd) = inline_or_skip("faults_are_resolved_where_they_happen") else {
        return;
    };
    let (home, staging) = (pages(PAGES), pages(PAGES));
    (0..PAGES).for_each(|page| fill(&home, page, 1));
    for mapping in [&home, &staging] {
        // SAFETY: the test's own ranges, served by `resolve` for the life of the process.
        unsafe { uffd.register(mapping.base(), mapping.len()) }.expect("register");
    }
    // SAFETY: `resolve` makes system calls and touches atomics only.
    assert_eq!(unsafe { signals::install(resolve) }, Ok(Installed::Now));
    // SAFETY: as above; the second call changes nothing.
    let second = unsafe { signals::install(|_| Verdict::NotOurs) };
    assert_eq!(second, Ok(Installed::Already));
    assert!(signals::is_in_force());
    assert_eq!(signals::reinstall(), Ok(Installed::Already));
    let swapped = SWAPPED.get_or_init(|| Swapped {
        uffd,
        home,
        staging,
    });

    reads_and_writes_are_told_apart(swapped);
    errno_survives(swapped);
    other_signals_wait(swapped);
    threads_race_for_pages(swapped);
}

fn reads_and_writes_are_told_apart(swapped: &Swapped) {
    page_out(swapped);
    for page in 0..PAGES {
        if page % 2 == 0 {
            touch(swapped, page);
        } else {
            // SAFETY: inside `home`; it writes what is there.
            unsafe {
                let last = swapped.home.as_ptr().add((page + 1) * PAGE_SIZE - 1);
                last.write_volatile(
                    ((page as u8).wrapping_mul(31))
                        .wrapping_add((4095 / 3) as u8)
                        .wrapping_add(1)
                        | 1,
                );
            }
        }
    }
    assert!((0..PAGES).all(|page| holds(&swapped.home, page, page, 1)));
    assert_eq!(FAULTS.swap(0, Ordering::Relaxed), PAGES);
    let (reads, writes) = (
        READS.load(Ordering::Relaxed),
        WRITES.load(Ordering::Relaxed),
    );
    if cfg!(target_arch = "x86_64") {
        assert_eq!((reads, writes), (PAGES / 2, PAGES / 2));
    }
}

fn errno_survives(swapped: &Swapped) {
    page_out(swapped);
    for spoil in [false, true] {
        SPOIL_ERRNO.store(spoil, Ordering::Relaxed);
        set_errno(libc::EXDEV);
        touch(swapped, usize::from(spoil));
        assert_eq!(
            errno(),
            libc::EXDEV,
            "the handler spoils errno itself: {spoil}"
        );
    }
    SPOIL_ERRNO.store(false, Ordering::Relaxed);
    assert_eq!(FAULTS.swap(0, Ordering::Relaxed), 2);
    (0..PAGES).for_each(|page| _ = touch(swapped, page));
}

/// While a fault is resolved no handler of the program's may run; afterwards they may.
fn other_signals_wait(swapped: &Swapped) {
    let before = blocked();
    page_out(swapped);
    touch(swapped, 0);
    let within = BLOCKED.load(Ordering::Relaxed);
    let is_blocked = |signal: i32| within >> (signal - 1) & 1 != 0;
    for waits in [
        libc::SIGBUS,
        libc::SIGALRM,
        libc::SIGUSR1,
        libc::SIGCHLD,
        libc::SIGPROF,
    ] {
        assert!(is_blocked(waits), "signal {waits}: {within:#x}");
    }
    for open in [
        libc::SIGSEGV,
        libc::SIGILL,
        libc::SIGFPE,
        libc::SIGTRAP,
        libc::SIGABRT,
        libc::SIGSYS,
    ] {
        assert!(!is_blocked(open), "signal {open}: {within:#x}");
    }
    assert_eq!(blocked(), before);
    (0..PAGES).for_each(|page| _ = touch(swapped, page));
    FAULTS.store(0, Ordering::Relaxed);
}

fn threads_race_for_pages(swapped: &Swapped) {
    const ROUNDS: usize = 50;
    const THREADS: usize = 4;
    let barrier = Barrier::new(THREADS);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let barrier = &barrier;
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    if thread == 0 {
                        page_out(swapped);
                    }
                    barrier.wait();
                    for step in 0..PAGES {
                        // Half of the threads come from the other end.
                        let page = if thread % 2 == 0 {
                            step
                        } else {
                            PAGES - 1 - step
                        };
                        assert!(holds(&swapped.home, page, page, 1), "page {page}");
                    }
                    barrier.wait();
                }
            });
        }
    });
    assert!(FAULTS.load(Ordering::Relaxed) >= ROUNDS * PAGES);
}
