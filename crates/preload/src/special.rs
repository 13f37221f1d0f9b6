//! Calls that few programs make, and that change what the engine may do with memory: locks on all of it, shared memory put in
//! the place of other, userfaultfds of the program's own, the process's memory as a file.

use std::ops::Range;

use libc::{c_int, c_long};
use userswap::Process;
use userswap_hook::{Bypass, Call, Decision};
use userswap_sys::signals::Blocked;
use userswap_sys::{PAGE_SIZE, own};

use crate::stop::{Why, stop};
use crate::threads::Thread;
use crate::{calls, census, kept, maps, memory, raw, stacks, state};

/// The calls looked at here, in both modes.
pub(crate) const CALLS: [c_long; 6] = [
    libc::SYS_mlockall,
    libc::SYS_ioctl,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_io_uring_setup,
];

/// What such a call does to us, before it is made.
pub(crate) fn before(call: &Call) -> Decision {
    match call.nr as c_long {
        libc::SYS_mlockall => return lock_all(call),
        libc::SYS_ioctl => leave_to_others(call),
        libc::SYS_open => look_at_path(call, call.args[0]),
        libc::SYS_openat | libc::SYS_openat2 => look_at_path(call, call.args[1]),
        _ => {}
    }
    Decision::Run
}

/// `mlockall`: nothing is to leave memory from now on. What is ours is locked, too, but not filled: it is mostly reserve.
fn lock_all(call: &Call) -> Decision {
    let flags = call.args[0] as c_int;
    let known = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    let (current, future) = (flags & libc::MCL_CURRENT, flags & libc::MCL_FUTURE);
    if flags & !known != 0 || current | future == 0 {
        return Decision::Run;
    }
    let lock = |flags: c_int| {
        let mut now = *call;
        now.args[0] = flags as usize;
        // SAFETY: locks what the program wants locked.
        unsafe { raw::make(&now) }
    };
    // Says, too, whether the program may.
    let first = match current {
        0 => flags,
        _ => libc::MCL_CURRENT | libc::MCL_ONFAULT,
    };
    let mut result = lock(first);
    if result < 0 {
        return Decision::Return(result);
    }
    stop(Why::Locked);
    if current != 0 && flags & libc::MCL_ONFAULT == 0 {
        fill_what_is_locked();
    }
    if current != 0 && future != 0 {
        result = lock(flags);
    }
    Decision::Return(result)
}

/// Brings all of the program's memory in, as far as it can be, and leaves ours as it is.
fn fill_what_is_locked() {
    let (_bypass, _blocked) = (Bypass::new(), Blocked::new());
    let Some(text) = kept::MAPS.read_all() else {
        return;
    };
    let mut ours: Vec<_> = own::ranges().into_iter().flatten().collect();
    ours.sort_unstable_by_key(|range| range.start);
    maps::all(&text, |mapping| {
        // A range of one byte stands for all of its mapping.
        let is_marked = |range: &Range<usize>| range.len() == 1 && mapping.contains(&range.start);
        if ours.iter().any(is_marked) {
            return;
        }
        stacks::without(mapping, &ours, &mut |part| {
            let arguments = [part.start, part.len(), 0, 0, 0, 0];
            // SAFETY: locked already; what cannot be filled stays empty, as with the call that is made up for.
            unsafe { raw::make(&Call::new(libc::SYS_mlock as usize, arguments)) };
        });
    });
}

/// Requests that name memory in their first words, whose faults somebody else is to handle: which word, of two, is the
/// address and which the length.
const UFFDIO_REGISTER: u32 = 0xc020_aa00;
const UFFDIO_MOVE: u32 = 0xc028_aa05;

/// A userfaultfd is told what it shall tell: the second word. Of these its reader hears before the call that changes memory goes on,
/// and may need to change memory himself, which waits for that call where we look at both.
const UFFDIO_API: u32 = 0xc018_aa3f;
const EVENT_FORK: u64 = 1 << 1;
const EVENT_REMAP: u64 = 1 << 2;
const EVENT_REMOVE: u64 = 1 << 3;
const EVENT_UNMAP: u64 = 1 << 6;
const EVENTS: u64 = EVENT_FORK | EVENT_REMAP | EVENT_REMOVE | EVENT_UNMAP;

/// The program handles faults in memory itself, or moves pages out of it: that is not ours any more.
fn leave_to_others(call: &Call) {
    let words = match call.args[1] as u32 {
        UFFDIO_API => {
            let words = memory::words::<2>(call.args[2], &(0..0));
            if words.is_some_and(|[_, features]| features & EVENTS != 0) {
                stop(Why::Faults);
            }
            return;
        }
        UFFDIO_REGISTER => memory::words::<2>(call.args[2], &(0..0)),
        // Where to; where from, how many.
        UFFDIO_MOVE => memory::words::<3>(call.args[2], &(0..0)).map(|[_, from, len]| [from, len]),
        _ => return,
    };
    let Some([start, len]) = words.map(|words| words.map(|word| word as usize)) else {
        return;
    };
    let end = start.saturating_add(len).min(1 << 47);
    if start >= end || !start.is_multiple_of(PAGE_SIZE) {
        return;
    }
    let range = start..end.next_multiple_of(PAGE_SIZE);
    // Noted first, so that it is not found again.
    if !stacks::note(&range) {
        return stop(Why::Faults);
    }
    if let Some(process) = state::engine() {
        process.leave_alone(&range);
    }
}

/// What opening the path at `address`, which is in memory, means to us.
fn look_at_path(call: &Call, address: usize) {
    let (mut is_memory, mut leads_to_threads) = (false, false);
    let thread = state::sees_all().then(Thread::current).flatten();
    let readable = thread.map_or(0..0, |thread| thread.stack_above(call));
    memory::is_path(address, &readable, |path| {
        is_memory = memory::is_own_memory(path);
        leads_to_threads = census::may_lead_to_threads(path);
        true
    });
    if is_memory {
        // Through the file of a process's memory the system finds nothing that is swapped out, whoever handles faults.
        stop(Why::OwnMemory);
    }
    if leads_to_threads {
        census::begin();
    }
}

/// `shmat`, which may take the place of other memory.
pub(crate) fn attach(process: &Process, call: &Call, make: impl FnOnce() -> isize) -> isize {
    let [segment, address, flags, ..] = call.args;
    if flags as c_int & libc::SHM_REMAP == 0 || address == 0 {
        return make();
    }
    // SAFETY: all zeros is a value.
    let mut about: libc::shmid_ds = unsafe { std::mem::zeroed() };
    let arguments = [
        segment,
        libc::IPC_STAT as usize,
        &raw mut about as usize,
        0,
        0,
        0,
    ];
    // SAFETY: writes what it asks for.
    unsafe { raw::make(&Call::new(libc::SYS_shmctl as usize, arguments)) };
    let start = address & !(PAGE_SIZE - 1);
    let end = start.saturating_add(about.shm_segsz).min(1 << 47);
    let range = start..end.next_multiple_of(PAGE_SIZE);
    let result = process.unmap(range.clone(), make);
    if !(-4095..0).contains(&result) {
        calls::reserve_no_more(&range);
    }
    result
}
