//! System calls that fail or are late, each kind at random while threads write and check pages: nothing is lost,
//! nothing hangs, and when it is over nothing is left.
//!
//! Each case runs in a process of its own, since the table of injected faults is one for the process. It prints how
//! often the call was made and how often it was hit. `USERSWAP_SEED` and `USERSWAP_ROUNDS` make a longer run.

mod common;

use std::ops::Range;
use std::process::Output;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::child::{case, child, succeeded, was_skipped};
use common::churn::{Churn, Tally};
use common::faulty::{self, Faulty, Harm};
use common::pages::{Content, Pages};
use common::{MIB, PAGE, build};
use userswap::{Advice, DeviceError, Engine, EngineBuilder, FaultAround, FaultMode};
use userswap_sys::Errno;
use userswap_sys::inject::{self, Call};

/// SIGBUS that the program got: each is an access that failed and is repeated.
static FAILED: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_sigbus(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    FAILED.fetch_add(1, Ordering::Relaxed);
}

/// The program's own handler: the access repeats.
fn survive_sigbus() {
    // SAFETY: plain data, for which zeros are a value; the handler touches only an atomic.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()),
            0
        );
    }
}

/// What may come back from a call.
fn refusals(call: Call) -> &'static [Errno] {
    match call {
        Call::Copy => &[
            Errno::AGAIN,
            Errno::NOMEM,
            Errno::EXIST,
            Errno::NOENT,
            Errno::FAULT,
        ],
        Call::Move => &[
            Errno::AGAIN,
            Errno::BUSY,
            Errno::NOMEM,
            Errno::EXIST,
            Errno::NOENT,
            Errno::INVAL,
        ],
        Call::Zeropage => &[Errno::AGAIN, Errno::NOMEM, Errno::EXIST, Errno::NOENT],
        Call::Poison => &[Errno::AGAIN, Errno::NOMEM, Errno::EXIST],
        Call::Wake => &[Errno::AGAIN, Errno::INTR],
        Call::Register => &[Errno::NOMEM, Errno::BUSY, Errno::INVAL],
        // Not used for regions.
        Call::Unregister | Call::WriteProtect => &[],
        // Any other ends the process: see `a_userfaultfd_that_cannot_be_read_ends_the_process`.
        Call::ReadEvents => &[Errno::AGAIN, Errno::INTR],
        Call::Discard => &[Errno::AGAIN, Errno::NOMEM, Errno::INVAL],
        Call::Advise => &[Errno::AGAIN, Errno::NOMEM],
    }
}

/// One call in so many is hit: often where the call is rare.
fn one_in(call: Call) -> u32 {
    match call {
        Call::Copy | Call::Move | Call::ReadEvents => 11,
        Call::Zeropage | Call::Wake | Call::Discard => 5,
        Call::Poison | Call::Register | Call::Advise | Call::Unregister | Call::WriteProtect => 3,
    }
}

fn refusing(plan: inject::Plan, call: Call) -> inject::Plan {
    let plan = plan.one_in(call, one_in(call));
    let plan = refusals(call)
        .iter()
        .fold(plan, |plan, &errno| plan.refuse(call, errno));
    match call {
        Call::Copy | Call::Move | Call::Zeropage => plan.cut_short(call),
        _ => plan,
    }
}

/// The seeds to run with: more for a longer run.
fn seeds() -> Range<u64> {
    let number = |name: &str| std::env::var(name).map(|text| text.parse().expect("a number"));
    let first = number("USERSWAP_SEED").unwrap_or(1);
    first..first + number("USERSWAP_ROUNDS").unwrap_or(1)
}

/// Runs `call`'s cases, each in its own process.
#[track_caller]
fn under(call: Call, modes: &[&str]) {
    for mode in modes {
        for what in ["refused", "late"] {
            said_hits(child("child_churn", &format!("{call:?} {what} {mode}")));
        }
    }
}

/// The child ended well, and says what was hit.
#[track_caller]
fn said_hits(output: Output) {
    if was_skipped(&output) {
        return;
    }
    succeeded(&output);
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said.lines().find_map(|line| line.split_once("injected: "));
    common::say(line.expect("what was hit").1);
}

fn report(case: &str, made: u64, hit: u64, tally: Tally) {
    println!(
        "injected: {case}: {hit} of {made} calls hit in {} operations, {} refused, {} accesses repeated; seed {}",
        tally.operations.into_inner(),
        tally.refused.into_inner(),
        FAILED.load(Ordering::Relaxed),
        seeds().start,
    );
    assert!(hit > 0, "{case}: nothing was hit");
}

/// Operations of each worker.
const OPERATIONS: usize = 250;

const LIMITS: [Option<u64>; 2] = [Some(6 * MIB as u64), None];

fn limited(limit: Option<u64>) -> EngineBuilder {
    match limit {
        Some(limit) => Engine::builder()
            .limit(limit)
            .fault_around(FaultAround::Fixed(16)),
        None => Engine::builder(),
    }
}

const BOTH: [&str; 2] = ["inline", "thread"];

#[test]
fn copies_fail_or_are_late() {
    under(Call::Copy, &BOTH);
}

#[test]
fn moves_fail_or_are_late() {
    under(Call::Move, &BOTH);
}

#[test]
fn zero_pages_fail_or_are_late() {
    under(Call::Zeropage, &BOTH);
}

#[test]
fn poison_marks_fail_or_are_late() {
    // Inline, nothing is marked.
    under(Call::Poison, &["thread"]);
}

#[test]
fn wake_ups_fail_or_are_late() {
    under(Call::Wake, &["thread"]);
}

#[test]
fn registering_fails_or_is_late() {
    under(Call::Register, &BOTH);
}

#[test]
fn reading_events_fails_or_is_late() {
    under(Call::ReadEvents, &["thread"]);
}

#[test]
fn giving_memory_back_fails_or_is_late() {
    under(Call::Discard, &BOTH);
}

#[test]
fn advice_to_the_system_fails_or_is_late() {
    under(Call::Advise, &BOTH);
}

#[test]
fn reads_of_the_device_fail_or_are_late() {
    under_device(faulty::Call::Read);
}

#[test]
fn writes_to_the_device_fail_or_are_late() {
    under_device(faulty::Call::Write);
}

#[test]
fn discards_of_the_device_panic_or_are_late() {
    under_device(faulty::Call::Discard);
}

#[test]
fn compactions_of_the_device_panic_or_are_late() {
    under_device(faulty::Call::Compact);
}

#[track_caller]
fn under_device(call: faulty::Call) {
    for mode in BOTH {
        for what in ["fails", "late"] {
            said_hits(child("child_device", &format!("{call:?} {what} {mode}")));
        }
    }
}

const LATE: Harm = Harm::Late(Duration::from_micros(300));

fn harm(call: faulty::Call, what: &str) -> &'static [Harm] {
    match (call, what) {
        (_, "late") => &[LATE],
        (faulty::Call::Read | faulty::Call::ReadDone, _) => &[
            Harm::Fails(DeviceError::Io(5)),
            Harm::Fails(DeviceError::Corrupt),
            Harm::Panics,
        ],
        (faulty::Call::Write, _) => &[
            Harm::Fails(DeviceError::Io(28)),
            Harm::Fails(DeviceError::Full),
            Harm::Fails(DeviceError::Incompressible),
            Harm::Panics,
        ],
        (faulty::Call::Discard | faulty::Call::Compact, _) => &[Harm::Panics],
    }
}

#[test]
#[ignore = "started by the tests above"]
fn child_device() {
    let Some(case) = case() else { return };
    let words: Vec<&str> = case.split(' ').collect();
    let [name, what, mode] = words[..] else {
        panic!("a case: {case}")
    };
    let (call, one_in) = match name {
        "Read" => (faulty::Call::Read, 40),
        "Write" => (faulty::Call::Write, 20),
        "Discard" => (faulty::Call::Discard, 20),
        "Compact" => (faulty::Call::Compact, 1),
        _ => panic!("a case: {case}"),
    };
    survive_sigbus();
    let (mut made, mut hit) = (0, 0);
    let tally = Tally::default();
    for seed in seeds() {
        for limit in LIMITS {
            let plan = faulty::Plan::new(call, harm(call, what), one_in, seed);
            let builder = limited(limit)
                .custom_device(Faulty::new(16_384, &plan))
                .faults(mode.parse().expect("a mode"));
            let Some(engine) = build(&case, builder) else {
                return;
            };
            let churn = Churn::new(&engine, 2048);
            plan.on.store(true, Ordering::SeqCst);
            std::thread::scope(|scope| {
                if call == faulty::Call::Compact {
                    scope.spawn(|| make_holes(&engine));
                }
                churn.run(&engine, seed, OPERATIONS, &tally);
            });
            plan.on.store(false, Ordering::SeqCst);
            made += plan.made.load(Ordering::SeqCst);
            hit += plan.hit.load(Ordering::SeqCst);
            // What a discard left in the store when it panicked stays until its slot is used again.
            let empties = !(call == faulty::Call::Discard && what == "fails");
            settled(&engine, churn, &case_of(&case, seed, limit), empties);
        }
    }
    report(&format!("the device's {case}"), made, hit, tally);
}

#[test]
#[ignore = "started by the tests above"]
fn child_churn() {
    let Some(case) = case() else { return };
    let words: Vec<&str> = case.split(' ').collect();
    let [name, what, mode] = words[..] else {
        panic!("a case: {case}")
    };
    let call = Call::ALL
        .into_iter()
        .find(|call| format!("{call:?}") == name)
        .expect("a call");
    let mode: FaultMode = mode.parse().expect("a mode");
    survive_sigbus();
    let (mut made, mut hit) = (0, 0);
    let tally = Tally::default();
    for seed in seeds() {
        for limit in LIMITS {
            let Some(engine) = build(&case, limited(limit).faults(mode)) else {
                return;
            };
            let mut plan = inject::Plan::new(seed);
            if what == "late" {
                plan = plan
                    .one_in(call, one_in(call))
                    .delay(call, Duration::from_micros(300));
            } else {
                plan = refusing(plan, call);
            }
            if matches!(call, Call::Poison | Call::Wake) {
                // What cannot be brought in is marked, and who waits for it woken.
                plan = plan.one_in(Call::Copy, 5).refuse(Call::Copy, Errno::FAULT);
            }
            let churn = Churn::new(&engine, 2048);
            let running = plan.start();
            churn.run(&engine, seed, OPERATIONS, &tally);
            made += running.made(call);
            hit += running.hit(call);
            drop(running);
            settled(&engine, churn, &case_of(&case, seed, limit), true);
        }
    }
    report(&case, made, hit, tally);
}

/// Leaves holes in the store that are worth closing: whole pages leave none, so these compress to a quarter.
fn make_holes(engine: &Engine) {
    const COUNT: usize = 4000;
    const NOISE: usize = 1000;
    let mut region = engine.region(COUNT * PAGE).expect("a region");
    let pages = Pages::named(&region, 3);
    let wanted = |page: usize| pages.stamp(page, 1, Content::Noise).bytes();
    for page in 0..COUNT {
        region[page * PAGE..][..NOISE].copy_from_slice(&wanted(page)[..NOISE]);
    }
    region
        .advise(0..COUNT * PAGE, Advice::PageOut)
        .expect("advice");
    let kept = |page: usize| page.is_multiple_of(4);
    for page in (0..COUNT).filter(|&page| !kept(page)) {
        region
            .discard(page * PAGE..(page + 1) * PAGE)
            .expect("a page");
    }
    for page in (0..COUNT).filter(|&page| kept(page)) {
        let found = &region[page * PAGE..(page + 1) * PAGE];
        assert!(found[..NOISE] == wanted(page)[..NOISE], "page {page}");
        assert!(found[NOISE..].iter().all(|&byte| byte == 0), "page {page}");
    }
}

fn case_of(case: &str, seed: u64, limit: Option<u64>) -> String {
    format!("{case}, seed {seed}, limit {limit:?}")
}

/// The errors are over: everything reads right, can leave and come back, and goes without a trace.
fn settled(engine: &Engine, churn: Churn, case: &str, empties: bool) {
    churn.verify();
    let range = 0..churn.region.len();
    churn
        .region
        .advise(range.clone(), Advice::PageOut)
        .expect("advice");
    assert!(
        range.step_by(PAGE).any(|at| !churn.region.is_resident(at)),
        "{case}: pages leave again"
    );
    churn.verify();
    drop(churn);
    common::wait_until("an empty engine", || {
        let stats = engine.stats();
        stats.swapped_bytes == 0 && stats.resident_bytes == 0
    });
    let stats = engine.stats();
    assert_eq!(stats.bugs, 0, "{case}");
    if empties {
        assert_eq!(stats.stored_bytes, 0, "{case}: {stats:?}");
    }
    engine.swapoff().expect("an empty area closes");
}
