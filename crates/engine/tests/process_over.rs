//! The engine over the process's own memory that began inline and has gone over to handler threads.

mod common;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use common::child::{case, child, said, succeeded, was_skipped};
use common::{MIB, PAGE, Random, skip};
use userswap::{Engine, FaultMode, Process};
use userswap_sys::Errno;
use userswap_sys::inject::{Call, Plan};

const FAULTS: FaultMode = FaultMode::Auto;

/// Everything below is done after it has gone over. `false`: this host does not let it.
fn ready(process: &'static Process) -> bool {
    assert_eq!(process.fault_mode(), FaultMode::Inline);
    if !is_permitted() {
        return false;
    }
    process.go_over().expect("it goes over");
    process.start_handlers();
    assert_eq!(process.fault_mode(), FaultMode::Thread);
    true
}

#[path = "process/cases.rs"]
mod cases;

#[path = "process/half.rs"]
mod half;

fn is_permitted() -> bool {
    let is = userswap_sys::host::userfaultfd_access().full();
    if !is {
        skip("going over", "faults in system calls may not be handled");
    }
    is
}

const LIMIT: u64 = 24 << 20;
const SIZE: usize = 64 * MIB;

/// While threads read, write and first touch memory of which most is swapped out, it goes over: no page is lost or stale, the
/// limit holds, and the system finds everything afterwards. So it is where memory belongs to nobody for long between the two, and
/// where the system does not let some of it go over.
#[test]
fn pages_stay_right_while_threads_use_them() {
    for case in ["whole", "late", "in part"] {
        goes_over(case);
    }
}

/// The system does not let memory go over: it goes back to the system, with all that was in it.
#[test]
fn pages_stay_right_where_it_cannot_go_over() {
    goes_over("not");
}

fn goes_over(case: &str) {
    let output = child("child_goes_over", case);
    if !was_skipped(&output) {
        succeeded(&output);
        assert!(
            !said(&output).contains("cannot be held"),
            "{}",
            said(&output)
        );
    }
}

#[test]
#[ignore = "the other process of the test above"]
fn child_goes_over() {
    let Some(case) = case().filter(|_| is_permitted()) else {
        return;
    };
    let plan = match &*case {
        "late" => {
            let plan = Plan::new(1).one_in(Call::Register, 1);
            plan.delay(Call::Register, Duration::from_millis(2))
        }
        "in part" => {
            let plan = Plan::new(2).one_in(Call::Register, 5);
            plan.refuse(Call::Register, Errno::NOMEM)
        }
        "not" => {
            let plan = Plan::new(3).one_in(Call::Unregister, 16);
            plan.refuse(Call::Unregister, Errno::NOMEM)
        }
        _ => Plan::new(4),
    };
    let builder = Engine::builder().limit(LIMIT).faults(FaultMode::Auto);
    let process = Process::start(builder).expect("an engine over this process");
    let range = cases::map(SIZE);
    cases::take_on(process, &range);
    // One page in eight is touched for the first time meanwhile.
    for page in pages(&range).filter(|&page| !is_late(page)) {
        write(page, 0);
    }
    process.page_out(&range);
    assert!(process.stats().swapped_bytes > SIZE as u64 / 4 * 3);
    let (over, most) = (AtomicUsize::new(0), AtomicU64::new(0));
    let started = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (over, most, started, range) = (&over, &most, &started, &range);
        for seed in 0..3 {
            scope.spawn(move || use_pages(range, seed, started, over));
        }
        scope.spawn(move || {
            while over.load(Ordering::SeqCst) == 0 {
                most.fetch_max(process.used_bytes(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        while started.load(Ordering::SeqCst) < 3 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let running = plan.start();
        let gone = process.go_over();
        drop(running);
        assert_eq!(process.has_gone_over(), gone.is_ok());
        assert_eq!(case == "not", gone.is_err(), "{gone:?}");
        if gone.is_err() {
            process.take_no_more();
            process.retire();
            assert_eq!(process.taken_bytes(), 0);
        }
        process.start_handlers();
        std::thread::sleep(Duration::from_millis(300));
        over.store(1, Ordering::SeqCst);
    });
    let most = most.load(Ordering::Relaxed);
    if ["whole", "late"].contains(&&*case) {
        assert!(most < LIMIT + LIMIT / 8, "{} MiB", most >> 20);
    } else {
        let taken = process.taken_bytes() as usize;
        assert!(taken < SIZE / 8 * 7 && (taken > SIZE / 2 || case == "not"));
    }
    // The system finds what is swapped out.
    process.page_out(&range);
    let mut swapped = 0;
    for at in range.clone().step_by(MIB + 3 * PAGE) {
        swapped += usize::from(!is_there(at));
        assert!(the_system_reads(at), "{at:#x}");
    }
    assert!(swapped > 30 || case == "not", "{swapped}");
    forks(process, &range);
    assert_eq!(process.stats().bugs, 0);
}

/// The number of times that `forks` and the threads have written to a page stands in it, and in which page.
fn word(page: usize) -> *mut u64 {
    page as *mut u64
}

fn write(page: usize, version: u64) {
    // SAFETY: in the test's mapping; one thread uses it at a time.
    unsafe {
        word(page).write_volatile(page as u64);
        word(page).add(1).write_volatile(version);
    }
}

/// `None`: the page holds something else.
fn read(page: usize) -> Option<u64> {
    // SAFETY: as above.
    let (of, version) = unsafe {
        (
            word(page).read_volatile(),
            word(page).add(1).read_volatile(),
        )
    };
    (of == page as u64).then_some(version)
}

fn pages(range: &Range<usize>) -> impl Iterator<Item = usize> + use<> {
    range.clone().step_by(PAGE)
}

fn is_late(page: usize) -> bool {
    (page / PAGE).is_multiple_of(8)
}

/// Goes over every third page in random order, and writes to each it finds; `over`: it is time to end.
fn use_pages(range: &Range<usize>, seed: usize, started: &AtomicUsize, over: &AtomicUsize) {
    let own: Vec<_> = pages(range).skip(seed).step_by(3).collect();
    let mut versions: Vec<_> = own
        .iter()
        .map(|&page| is_late(page).then_some(()))
        .collect();
    let mut counts = vec![0_u64; own.len()];
    let mut random = Random::new(seed as u64 + 1);
    let mut uses = 0;
    while over.load(Ordering::SeqCst) == 0 {
        let at = random.below(own.len());
        if versions[at].take().is_some() {
            // SAFETY: in the test's mapping.
            assert_eq!(unsafe { word(own[at]).read_volatile() }, 0, "never written");
        } else {
            assert_eq!(read(own[at]), Some(counts[at]), "page {:#x}", own[at]);
            counts[at] += 1;
        }
        write(own[at], counts[at]);
        uses += 1;
        if uses == 100 {
            started.fetch_add(1, Ordering::SeqCst);
        }
    }
    for (at, &page) in own.iter().enumerate() {
        if versions[at].is_none() {
            assert_eq!(read(page), Some(counts[at]), "page {page:#x}");
        }
    }
}

fn is_there(page: usize) -> bool {
    userswap_sys::mapping::present_mask(page, 1) == Some(1)
}

/// Has the page go through a pipe.
fn the_system_reads(page: usize) -> bool {
    let mut ends = [0; 2];
    let mut copy = [0_u8; PAGE];
    // SAFETY: a pipe of this function's, a page of the test's mapping and an array.
    unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        let written = libc::write(ends[1], page as *const _, PAGE);
        let got = libc::read(ends[0], copy.as_mut_ptr().cast(), PAGE);
        for end in ends {
            libc::close(end);
        }
        written == PAGE as isize
            && got == written
            && libc::memcmp(copy.as_ptr().cast(), page as *const _, PAGE) == 0
    }
}

/// A child has everything, and its system calls find it once it has handler threads.
fn forks(process: &'static Process, range: &Range<usize>) {
    static RIGHT: AtomicBool = AtomicBool::new(true);
    let check = |what: bool| {
        RIGHT.fetch_and(what, Ordering::Relaxed);
    };
    process.page_out(range);
    process.fork_begin();
    // SAFETY: the child only uses this test's memory, and leaves by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        check(process.fork_end(userswap::Side::Child).is_ok() && process.is_inline_now());
        let half = range.start..range.start + SIZE / 2;
        check(pages(&half).all(|page| is_late(page) || read(page).is_some()));
        check(
            process.start_threads().is_ok() && process.is_inline_now() != process.has_gone_over(),
        );
        check(pages(range).all(|page| is_late(page) || read(page).is_some()));
        process.page_out(range);
        check(pages(range).step_by(101).all(the_system_reads));
        check(process.stats().bugs == 0);
        // SAFETY: ends the child without this process's exit handlers.
        unsafe { libc::_exit(i32::from(!RIGHT.load(Ordering::Relaxed))) };
    }
    process
        .fork_end(userswap::Side::Parent)
        .expect("the parent");
    let mut status = 0;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child");
    assert!(pages(range).all(|page| is_late(page) || read(page).is_some()));
}
