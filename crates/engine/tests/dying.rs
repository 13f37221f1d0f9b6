//! Threads and processes that die: never zeros, never a wait without end and without a word.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::child::{case, child, complaints, killed_by, said, was_skipped};
use common::faulty::{self, Faulty, Harm, Plan};
use common::pages::{Content, Pages};
use common::{MIB, PAGE, build, in_both_modes};
use userswap::{Advice, DeviceError, DeviceSpec, Engine, Error, FaultError, FaultMode, Region};
use userswap_sys::Errno;
use userswap_sys::inject::{self, Call, Thread};

const COUNT: usize = 2048;

fn written(engine: &Engine) -> (Region, Pages) {
    let region = engine.region(COUNT * PAGE).expect("a region");
    let pages = Pages::of(&region);
    for page in 0..COUNT {
        pages.write(page, 1, Content::Text);
    }
    (region, pages)
}

/// The child of `case` ends by itself, and says why.
#[track_caller]
fn ends(case: &str, why: &str) {
    let output = child("child_dies", case);
    if !was_skipped(&output) {
        killed_by(&output, libc::SIGABRT);
        let lines = complaints(&output);
        assert!(
            lines.iter().any(|line| line.contains(why)),
            "{case}: {}",
            said(&output)
        );
    }
}

#[test]
fn a_reclaimer_that_panics_ends_the_process() {
    ends("Reclaimer", "the thread userswap-out panicked");
}

#[test]
fn a_read_ahead_thread_that_panics_ends_the_process() {
    ends("ReadAhead", "the thread userswap-in-");
}

#[test]
fn a_fault_handler_that_panics_ends_the_process() {
    ends("Handler", "the thread userswap-");
}

#[test]
fn a_page_out_thread_that_panics_ends_the_process() {
    ends("PageOut", "the thread userswap-page panicked");
}

#[test]
fn a_userfaultfd_that_cannot_be_read_ends_the_process() {
    ends("unreadable", "faults cannot be read any more");
}

#[test]
fn a_thread_that_cannot_be_woken_ends_the_process() {
    ends("unwakeable", "cannot be woken");
}

#[test]
#[ignore = "started by the tests above"]
fn child_dies() {
    let Some(case) = case() else { return };
    let builder = match &*case {
        "Handler" | "unreadable" | "unwakeable" => Engine::builder().faults(FaultMode::Thread),
        "Reclaimer" => Engine::builder().limit(6 * MIB as u64),
        // So slow that helpers pay.
        _ => Engine::builder().device(DeviceSpec::Ram {
            read_delay: Duration::from_micros(5),
        }),
    };
    let Some(engine) = build(&case, builder) else {
        return;
    };
    let (region, pages) = written(&engine);
    let mut plan = inject::Plan::new(1);
    match &*case {
        "Handler" => inject::doom(Thread::Handler),
        "ReadAhead" => inject::doom(Thread::ReadAhead),
        "PageOut" => inject::doom(Thread::PageOut),
        "Reclaimer" => inject::doom(Thread::Reclaimer),
        "unreadable" => {
            plan = plan
                .one_in(Call::ReadEvents, 1)
                .refuse(Call::ReadEvents, Errno::IO);
        }
        "unwakeable" => {
            plan = plan
                .one_in(Call::Wake, 1)
                .refuse(Call::Wake, Errno::AGAIN)
                // Who waits for a page that can neither be copied in nor marked is woken, to ask again.
                .one_in(Call::Copy, 1)
                .refuse(Call::Copy, Errno::FAULT)
                .one_in(Call::Poison, 1)
                .refuse(Call::Poison, Errno::NOMEM);
        }
        _ => panic!("a case: {case}"),
    }
    let _running = plan.start();
    for _ in 0..200 {
        region
            .advise(0..COUNT * PAGE, Advice::PageOut)
            .expect("advice");
        for page in 0..COUNT {
            pages.verify(page, 1, Content::Text);
        }
    }
    println!("nothing died");
}

/// Panics in a device's code come back as errors: from calls as typed ones, and no pin stays behind.
#[test]
fn a_device_that_panics_loses_nothing() {
    let plans = || {
        [
            faulty::Call::Read,
            faulty::Call::Write,
            faulty::Call::Discard,
        ]
        .map(|call| Plan::new(call, &[Harm::Panics], 1, 1))
    };
    for (number, plan) in plans().iter().enumerate() {
        in_both_modes(
            "panicking_device",
            |builder| builder.custom_device(Faulty::new(2 * COUNT as u64, plan)),
            |engine| {
                let (mut region, pages) = written(engine);
                let range = 0..COUNT * PAGE;
                if plan.call != faulty::Call::Write {
                    let out = region.advise(range.clone(), Advice::PageOut);
                    assert_eq!(out.expect("advice"), COUNT);
                }
                let before = plan.hit.load(Ordering::SeqCst);
                plan.on.store(true, Ordering::SeqCst);
                match number {
                    0 => {
                        let refused = region.advise(range.clone(), Advice::WillNeed);
                        assert!(
                            matches!(
                                refused,
                                Err(Error::Fault {
                                    error: FaultError::Read {
                                        error: DeviceError::Panicked,
                                        ..
                                    },
                                    ..
                                })
                            ),
                            "{refused:?}"
                        );
                        assert!(region.pin(0..PAGE).is_err());
                    }
                    1 => {
                        let out = region.advise(range.clone(), Advice::PageOut);
                        assert_eq!(out.expect("advice"), 0, "nothing can be written");
                        assert_eq!(engine.stats().swapped_bytes, 0);
                    }
                    _ => {
                        for page in (0..COUNT - 2).step_by(2) {
                            region
                                .discard(page * PAGE..(page + 1) * PAGE)
                                .expect("pages");
                        }
                        for page in (0..COUNT - 2).step_by(2) {
                            assert_eq!(pages.peek(page, 0), 0);
                            pages.write(page, 1, Content::Text);
                        }
                    }
                }
                assert!(plan.hit.load(Ordering::SeqCst) > before, "{:?}", plan.call);
                plan.on.store(false, Ordering::SeqCst);
                for page in 0..COUNT {
                    pages.verify(page, 1, Content::Text);
                }
                drop(region);
                let stats = engine.stats();
                assert_eq!((stats.resident_bytes, stats.swapped_bytes), (0, 0));
            },
        );
    }
}

/// A forked process shares nothing with the engine: it finds no memory there, and its end does not matter.
#[test]
fn forked_processes_that_are_killed_do_not_matter() {
    in_both_modes(
        "killed_forks",
        |builder| builder.limit(6 * MIB as u64),
        |engine| {
            let (region, pages) = written(engine);
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                for worker in 0..2 {
                    let stop = &stop;
                    scope.spawn(move || {
                        while !stop.load(Ordering::Relaxed) {
                            for page in (worker..COUNT).step_by(2) {
                                pages.verify(page, 1, Content::Text);
                                pages.write(page, 1, Content::Text);
                            }
                        }
                    });
                }
                for round in 0..20 {
                    let touches = round % 2 == 0;
                    let touched = pages.address(round);
                    // SAFETY: the child makes plain system calls only, or reads one byte, until it is killed.
                    let child = unsafe { libc::fork() };
                    assert!(child >= 0, "fork");
                    if child == 0 {
                        // SAFETY: as above; the read is of unmapped memory, which is what is tested.
                        unsafe {
                            if touches {
                                // The test harness's own handler would print.
                                libc::signal(libc::SIGSEGV, libc::SIG_DFL);
                                touched.read_volatile();
                                libc::_exit(0);
                            }
                            loop {
                                libc::pause();
                            }
                        }
                    }
                    thread::sleep(Duration::from_millis(2));
                    let mut status = 0;
                    // SAFETY: our own child, waited for once.
                    unsafe {
                        if !touches {
                            assert_eq!(libc::kill(child, libc::SIGKILL), 0);
                        }
                        assert_eq!(libc::waitpid(child, &mut status, 0), child);
                    }
                    assert!(libc::WIFSIGNALED(status), "{status:#x}");
                    let wanted = if touches {
                        libc::SIGSEGV
                    } else {
                        libc::SIGKILL
                    };
                    assert_eq!(libc::WTERMSIG(status), wanted);
                }
                stop.store(true, Ordering::Relaxed);
            });
            for page in 0..COUNT {
                pages.verify(page, 1, Content::Text);
            }
            drop(region);
            common::wait_until("an empty engine", || engine.stats().resident_bytes == 0);
        },
    );
}
