//! What writes copy after a fork is charged before, and nothing that is written, by whomever, is lost or refused for it.

use std::ops::Range;

use userswap::{FaultMode, Process, Side, held::Holder};
use userswap_sys::Errno;
use userswap_sys::inject::{Call, Plan};

use super::cases::{fill, map, process, take_on, unmap, wrong};
use super::common::{MIB, PAGE};

/// Small enough for the memory of a test to be worth guarding.
const LIMIT: u64 = 128 << 20;
const USUAL: u64 = 512 << 20;

/// Forks; the child runs `child`, which returns how much was wrong, the parent `parent`.
fn fork(process: &'static Process, child: impl FnOnce() -> usize, parent: impl FnOnce()) {
    process.set_limit(LIMIT);
    process.note_resident(process.used_bytes());
    process.fork_begin();
    // SAFETY: the child only touches this test's memory, and leaves by _exit.
    let forked = unsafe { libc::fork() };
    if forked == 0 {
        let begun = process.fork_end(Side::Child).is_ok() && process.start_threads().is_ok();
        // As its monitor would.
        process.note_resident(process.used_bytes());
        let bad = if begun { child() } else { 1000 };
        // SAFETY: ends the child without running this process's exit handlers.
        unsafe { libc::_exit(bad.min(100) as i32) };
    }
    process.fork_end(Side::Parent).expect("the parent");
    parent();
    let mut status = 0;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(forked, &mut status, 0) }, forked);
    assert_eq!(status, 0, "the child's exit status: what was wrong");
    process.set_limit(USUAL);
}

/// Has the kernel write eight bytes to `address`; `false`: it could not.
fn kernel_writes(address: usize) -> bool {
    let mut pipe = [0; 2];
    let bytes = 0x1234_u64.to_ne_bytes();
    // SAFETY: in a mapping of the test's, as long as what is read; the descriptors are this function's.
    unsafe {
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        assert_eq!(libc::write(pipe[1], bytes.as_ptr().cast(), bytes.len()), 8);
        let read = libc::read(pipe[0], address as *mut _, bytes.len());
        libc::close(pipe[0]);
        libc::close(pipe[1]);
        read == 8 && (address as *const u64).read_volatile() == 0x1234
    }
}

/// Writes to `range`, a byte more than was there in each page, and says by how many bytes more is in use then.
fn write(process: &Process, range: &Range<usize>) -> u64 {
    let before = process.used_bytes();
    fill(range, 8);
    process.used_bytes().saturating_sub(before)
}

#[test]
fn copies_are_charged_on_both_sides_of_a_fork() {
    let Some((process, _turn)) = process() else {
        return;
    };
    let range = map(24 * MIB);
    fill(&range, 7);
    take_on(process, &range);
    let written = range.start..range.start + 8 * MIB;
    let rest = written.end..range.end;
    let is_right = || {
        wrong(&written, written.start, 8)
            + wrong(&rest, rest.start, 7)
            + process.stats().bugs as usize
    };
    let child = || {
        let most = write(process, &written);
        let again = write(process, &written);
        is_right() + usize::from(most < written.len() as u64) + usize::from(again > MIB as u64)
    };
    fork(process, child, || {
        let most = write(process, &written);
        assert!(most >= written.len() as u64, "{most} bytes");
        assert!(write(process, &written) < MIB as u64, "once");
        assert_eq!(is_right(), 0);
    });
    // What is still guarded leaves like other memory, and a second fork guards it anew.
    assert!(process.page_out(&range) > 5000);
    assert_eq!(is_right(), 0);
    fork(process, is_right, || {
        assert!(write(process, &written) >= written.len() as u64);
    });
    unmap(process, range);
    assert_eq!(process.stats().bugs, 0);
}

#[test]
fn system_calls_write_to_what_a_fork_has_shared() {
    let Some((process, _turn)) = process() else {
        return;
    };
    let range = map(24 * MIB);
    fill(&range, 7);
    take_on(process, &range);
    // In a call that has begun before the fork.
    let held = range.start + 5 * MIB..range.start + 5 * MIB + PAGE;
    let holder = Holder::make();
    let call = holder.begin().expect("a call");
    holder.hold(call, &held);
    process.bring_in(&held, true);
    let places = (range.start + 8 * MIB..range.end).step_by(PAGE * 64 + PAGE);
    let write_there = |guarded: usize| {
        let is_inline = process.fault_mode() == FaultMode::Inline;
        // Or nothing here tests anything.
        let mut bad = usize::from(is_inline && kernel_writes(guarded));
        for place in places.clone() {
            process.bring_in(&(place..place + 8), true);
            bad += usize::from(!kernel_writes(place));
        }
        bad
    };
    fork(
        process,
        || write_there(range.start + 6 * MIB),
        || {
            assert!(kernel_writes(held.start), "held");
            assert_eq!(write_there(range.start + 7 * MIB), 0);
        },
    );
    // One that only reads what an earlier fork has shared, and is under way when the next is made.
    let read = range.start + 4 * MIB..range.start + 4 * MIB + PAGE;
    holder.hold(call, &read);
    process.bring_in(&read, false);
    let other = read.start + PAGE..read.start + PAGE + 8;
    fork(
        process,
        || 0,
        || {
            process.bring_in(&other, true);
            assert!(kernel_writes(other.start), "beside what is held");
        },
    );
    holder.end(call);
    unmap(process, range);
}

/// What moves is not guarded at its new place, whoever writes there.
#[test]
fn what_moves_is_guarded_no_more() {
    let Some((process, _turn)) = process() else {
        return;
    };
    let range = map(24 * MIB);
    fill(&range, 7);
    take_on(process, &range);
    let target = map(24 * MIB);
    unmap(process, target.clone());
    let move_it = || {
        let moved = process.remap(
            range.clone(),
            range.len(),
            Some(target.start),
            false,
            || {
                // SAFETY: this test's mapping, to where nothing is mapped.
                let moved = unsafe {
                    libc::mremap(
                        range.start as *mut _,
                        range.len(),
                        range.len(),
                        libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                        target.start,
                    )
                };
                moved as isize
            },
        );
        assert_eq!(moved as usize, target.start);
        let mut bad = wrong(&target, range.start, 7);
        for place in target.clone().step_by(MIB) {
            bad += usize::from(!kernel_writes(place));
        }
        bad
    };
    fork(process, move_it, || assert_eq!(move_it(), 0));
    unmap(process, target);
}

/// Where the protection cannot be had, or is not given up at once, every byte is there all the same.
#[test]
fn what_cannot_be_guarded_is_written_all_the_same() {
    let Some((process, _turn)) = process() else {
        return;
    };
    let range = map(16 * MIB);
    fill(&range, 7);
    take_on(process, &range);
    for errno in [Errno::AGAIN, Errno::NOMEM] {
        let plan = Plan::new(5).one_in(Call::WriteProtect, 2);
        let plan = plan.refuse(Call::WriteProtect, errno);
        let write_all = || {
            let written = range.start..range.start + 8 * MIB;
            write(process, &written);
            // What is shared has to be unprotected and unshared to leave.
            process.page_out(&range);
            let rest = written.end..range.end;
            let bad = wrong(&written, range.start, 8) + wrong(&rest, rest.start, 7);
            fill(&range, 7);
            bad
        };
        let running = plan.start();
        fork(process, write_all, || assert_eq!(write_all(), 0));
        drop(running);
    }
    unmap(process, range);
}
