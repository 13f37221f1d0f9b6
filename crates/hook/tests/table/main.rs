//! The tables against the kernel: what a call uses is what the table says, to the byte.
//!
//! Each structure of each case lies at the very end of accessible memory: with the table's length before the end the call must go as
//! it goes with room around; with one byte less, and with its first byte before the beginning, it must fail with EFAULT; and
//! where the table says that a pointer is not used, it may point to inaccessible memory.

mod cases;
mod place;

use place::{Case, Expect, Placed, State};
use std::collections::BTreeSet;
use userswap_hook::{Call, Knowledge, Span, memory_of};

const EFAULT: isize = -(libc::EFAULT as isize);

/// The spans of a call; the table must only read what it has told before.
fn spans(call: &Call, what: &str) -> Vec<Span> {
    let told = std::cell::RefCell::new(Vec::<Span>::new());
    let knowledge = memory_of(
        call,
        &mut |at, bytes| {
            let covered = |byte: usize| {
                told.borrow()
                    .iter()
                    .any(|s| (s.address..s.address + s.len).contains(&byte))
            };
            assert!(covered(at), "{what}: reads {at:#x}, which it has not told");
            // What lies between told bytes is on the same page; a string is read a little ahead.
            place::read(at, bytes)
        },
        &mut |span| told.borrow_mut().push(span),
    );
    assert_ne!(knowledge, Knowledge::Unknown, "{what} is not in the table");
    told.into_inner()
}

/// How many bytes from the start of the block the table says are used.
fn used(spans: &[Span], block: std::ops::Range<usize>) -> usize {
    spans
        .iter()
        .filter(|s| block.contains(&s.address))
        .map(|s| s.address + s.len - block.start)
        .max()
        .unwrap_or(0)
}

/// One attempt, with block `special` where `position` says; all others have room.
fn attempt(
    case: &Case,
    position: Option<(usize, Placed)>,
) -> (isize, Vec<std::ops::Range<usize>>, Vec<Span>) {
    let mut state = State::default();
    let arguments = (case.make)(&mut state);
    let (args, blocks) = place::lay_out(&arguments, position);
    let call = Call::new(case.nr as usize, args);
    let found = spans(&call, case.name);
    let result = place::make(case, &args);
    state.finish();
    (result, blocks, found)
}

/// How two results of the same call compare: any success is one.
fn class(result: isize) -> isize {
    result.min(0)
}

/// Checks one case; what it found wrong, and how many places were checked.
fn check(case: &Case) -> Result<usize, String> {
    let (plain, blocks, found) = attempt(case, None);
    if plain == -(libc::ENOSYS as isize) {
        println!("not on this kernel: {}", case.name);
        return Ok(0);
    }
    if [libc::EPERM, libc::EACCES].contains(&(-plain as i32)) {
        // Refused before a look at its memory, perhaps: nothing can be said.
        println!("SKIPPED: {}: not permitted here", case.name);
        return match std::env::var("CI").as_deref() {
            Ok("true") => Err(format!("{}: not permitted", case.name)),
            _ => Ok(0),
        };
    }
    if plain == EFAULT {
        return Err(format!("{}: EFAULT with all memory there", case.name));
    }
    if plain < 0 && !case.may_fail {
        return Err(format!("{}: {plain}", case.name));
    }
    let expects = {
        let mut state = State::default();
        let expects = place::expectations(&(case.make)(&mut state));
        state.finish();
        expects
    };
    let mut checked = 0;
    for (i, block) in blocks.iter().enumerate() {
        let wrong = |how: &str, got: isize| {
            Err(format!(
                "{}: block {i}: {how}: {got}, with all memory there {plain}",
                case.name
            ))
        };
        let len = used(&found, block.clone());
        checked += 1;
        if len == 0 {
            if class(attempt(case, Some((i, Placed::Nowhere))).0) == EFAULT {
                return wrong("not in the table, but used", EFAULT);
            }
            continue;
        }
        let (at_end, ..) = attempt(case, Some((i, Placed::EndsAfter(len))));
        if class(at_end) != class(plain) {
            return wrong(&format!("{len} bytes are not enough"), at_end);
        }
        if expects[i] == Expect::Bound {
            continue;
        }
        let (cut, ..) = attempt(case, Some((i, Placed::EndsAfter(len - 1))));
        let short = expects[i] == Expect::Short && (0..plain).contains(&cut);
        if cut != EFAULT && !short {
            return wrong(&format!("{len} bytes are too many"), cut);
        }
        let (early, ..) = attempt(case, Some((i, Placed::BeginsBefore)));
        if early != EFAULT && !(expects[i] == Expect::Short && (0..plain).contains(&early)) {
            return wrong("its first byte is not used", early);
        }
    }
    Ok(checked)
}

#[test]
fn what_calls_use_is_what_the_table_says() {
    place::enter_scratch();
    let cases = cases::all();
    let mut calls = BTreeSet::new();
    let mut places = 0;
    let mut wrong = Vec::new();
    for case in &cases {
        match check(case) {
            Ok(0) => {}
            Ok(checked) => {
                places += checked;
                calls.insert(case.nr);
            }
            Err(why) => wrong.push(why),
        }
    }
    println!(
        "{} cases of {} system calls, {places} places in memory",
        cases.len(),
        calls.len()
    );
    assert!(wrong.is_empty(), "{}\n{wrong:#?}", wrong.len());
    assert!(calls.len() > 100, "{}", calls.len());
}

/// Every number that the headers name has a row.
#[test]
fn every_call_has_a_row() {
    for nr in (0..=334).chain(424..=469) {
        assert!(userswap_hook::is_known(nr), "{nr}");
    }
    assert!(
        !userswap_hook::is_known(400)
            && !userswap_hook::is_known(511)
            && !userswap_hook::is_known(usize::MAX)
    );
    let header = std::fs::read_to_string("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
        .expect("the kernel's headers");
    let mut count = 0;
    for (name, nr) in header
        .lines()
        .filter_map(|l| l.strip_prefix("#define __NR_")?.split_once(' '))
    {
        count += 1;
        assert!(
            userswap_hook::is_known(nr.trim().parse().expect("a number")),
            "{name}"
        );
    }
    println!("{count} numbers in this host's headers");
    assert!(count > 330);
}

/// What cannot be known is said.
#[test]
fn unknown_numbers_and_requests_are_said() {
    let none = |call: &Call| memory_of(call, &mut |_, _| false, &mut |span| panic!("{span:?}"));
    assert_eq!(none(&Call::new(400, [1 << 20; 6])), Knowledge::Unknown);
    assert_eq!(
        none(&Call::new(usize::MAX, [1 << 20; 6])),
        Knowledge::Unknown
    );
    let ioctl = libc::SYS_ioctl as usize;
    assert_eq!(
        none(&Call::new(ioctl, [0, 0x4b3a, 1 << 20, 0, 0, 0])),
        Knowledge::Unknown
    );
    // Of an interface its address is asked, and what its driver knows beyond what the request says.
    for (request, known) in [(0x8927, Knowledge::Exact), (0x8946, Knowledge::AtLeast)] {
        let call = Call::new(ioctl, [0, request, 1 << 20, 0, 0, 0]);
        let found = memory_of(&call, &mut |_, _| true, &mut |span| {
            assert_eq!(span.len, 40)
        });
        assert_eq!(found, known, "{request:x}");
    }
    assert_eq!(
        none(&Call::new(libc::SYS_getpid as usize, [1 << 20; 6])),
        Knowledge::Exact
    );
    // Memory that cannot be read: at least the outer structure is told.
    let mut told = Vec::new();
    let call = Call::new(libc::SYS_readv as usize, [0, 1 << 20, 3, 0, 0, 0]);
    assert_eq!(
        memory_of(&call, &mut |_, _| false, &mut |s| told.push(s)),
        Knowledge::AtLeast
    );
    assert_eq!((told[0].address, told[0].len), (1 << 20, 48));
}

/// Wrong lengths and addresses at the end of the address space do not overflow anything.
#[test]
fn senseless_arguments_are_survived() {
    for nr in 0..520 {
        for value in [0, 1, 4095, usize::MAX - 3, usize::MAX, 1 << 63] {
            let mut count = 0u32;
            memory_of(
                &Call::new(nr, [value; 6]),
                &mut |_, bytes| {
                    bytes.fill(0xff);
                    count += 1;
                    count < 10_000
                },
                &mut |s| {
                    assert!(
                        s.len > 0 && s.address.checked_add(s.len).is_some(),
                        "{nr} {s:?}"
                    );
                },
            );
        }
    }
}
