//! The program's system calls that change its address space, its processes or our descriptors.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, c_long};
use userswap::{Process, Side};
use userswap_hook::{Call, Decision, Handlers};
use userswap_sys::ranges::Ranges;
use userswap_sys::signals::Blocked;
use userswap_sys::{PAGE_SIZE, cpu, own};

use crate::maps::LEAST;
use crate::pieces::PIECE;
use crate::stop::{Why, stop, stop_inline};
use crate::threads::Thread;
use crate::{
    alone, census, descriptors, exit, forks, masks, memory, monitor, noted, pieces, privileges,
    processes, raw, rings, special, stacks, state,
};

/// The calls looked at.
const WANTED: [c_long; 21] = [
    libc::SYS_vmsplice,
    libc::SYS_setsockopt,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_shmat,
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mprotect,
    libc::SYS_pkey_mprotect,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_fork,
    libc::SYS_process_madvise,
    libc::SYS_seccomp,
    libc::SYS_prctl,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_exit_group,
];

const MADV_DONTNEED_LOCKED: c_int = 24;
const MADV_GUARD_INSTALL: c_int = 102;

/// Private anonymous memory that the program maps now and makes usable bit by bit, as libc does for threads' heaps.
static RESERVED: Ranges<1024> = Ranges::new();

/// Looks at the program's system calls.
pub(crate) struct Calls;

/// More calls that are looked at where inline mode may be: a thread ends, or lends its memory.
const WANTED_INLINE: [c_long; 2] = [libc::SYS_exit, libc::SYS_vfork];

impl Handlers for Calls {
    fn wants(&self, nr: usize) -> bool {
        let number = nr as c_long;
        WANTED.contains(&number)
            || special::CALLS.contains(&number)
            || alone::CALLS.contains(&number)
            || census::is_counted(nr)
            || privileges::CHANGES.contains(&number)
            || privileges::EVERYWHERE.contains(&number)
            || state::sees_all()
                && (userswap_hook::uses_memory(nr) && state::follows_calls()
                    || memory::REFUSED.contains(&number)
                    || masks::CALLS.contains(&number)
                    || WANTED_INLINE.contains(&number))
    }

    fn only_noted(&self, nr: usize) -> bool {
        state::sees_all() && noted::is_only_noted(nr) && !census::is_counted(nr)
    }

    fn before_bypassed(&self, call: &Call) {
        if privileges::EVERYWHERE.contains(&(call.nr as c_long)) && is_ours() {
            privileges::take_over();
        }
    }

    fn before(&self, call: &mut Call) -> Decision {
        self.before_bypassed(call);
        if state::is_starting() {
            return Decision::Run;
        }
        if !state::sees_all() {
            return change_process(call);
        }
        let Some(thread) = Thread::current() else {
            return change_process(call);
        };
        monitor::look_at_code();
        if let Some(result) = pieces::make(thread, call) {
            return Decision::Return(result);
        }
        if noted::is_only_noted(call.nr) && !census::is_counted(call.nr) {
            let _ = memory::begin(thread, call);
            return Decision::Run;
        }
        let is_refused = memory::REFUSED.contains(&(call.nr as c_long));
        if is_refused && own::is_thread(cpu::thread()) {
            // A ring of ours, in a child of fork: it could be the thread's first call that is looked at.
            return Decision::Run;
        }
        memory::refuse(call);
        if call.nr as c_long == libc::SYS_exit {
            memory::keep_robust_list();
            thread.ends();
            return Decision::Run;
        }
        let number = memory::begin(thread, call);
        let decision = number
            .and_then(|number| masks::before(thread, number, call))
            .unwrap_or_else(|| change_process(call));
        if decision != Decision::Run {
            memory::end(thread, call);
        }
        decision
    }

    fn after(&self, call: &Call, result: isize) {
        if result == 0 && privileges::CHANGES.contains(&(call.nr as c_long)) {
            privileges::changed(call);
        }
        if state::is_starting() {
            return;
        }
        if state::sees_all() && noted::is_only_noted(call.nr) {
            if let Some(thread) = Thread::current() {
                memory::end(thread, call);
            }
            return;
        }
        let side = if processes::makes_process(call) {
            forks::side()
        } else {
            None
        };
        if state::sees_all()
            && (result != 0 || !memory::makes(call) || side == Some(true))
            && let Some(thread) = Thread::current()
        {
            if memory::makes(call) {
                thread.has_made();
                if side == Some(true) {
                    thread.is_the_only_one();
                }
            } else {
                masks::after(thread, call, result);
                memory::end(thread, call);
            }
        }
        match call.nr as c_long {
            libc::SYS_mmap => mapped(call, result),
            libc::SYS_mprotect | libc::SYS_pkey_mprotect if result == 0 && is_writable(call) => {
                allow_executable(call);
                // Of what kind other memory is cannot be told from here.
                let pages = range(call.args[0], call.args[1]);
                let is_ours = RESERVED.covers(&pages);
                match state::engine() {
                    Some(process) if is_ours => {
                        process.take_on(|found| found(pages));
                    }
                    Some(_) => monitor::search_later(pages.len()),
                    None => monitor::grew(pages.len()),
                }
            }
            _ => {}
        }
        // Its arguments may be gone by now: a new thread comes here, too.
        if let Some(child) = side {
            crate::OWN.release();
            processes::forked(match (child, result) {
                (true, _) => Side::Child,
                (false, 0..) => Side::Parent,
                (false, _) => Side::Failed,
            });
        }
        let brings_code = [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect];
        if brings_code.contains(&(call.nr as c_long))
            && call.args[2] & libc::PROT_EXEC as usize != 0
        {
            monitor::code_came();
        }
    }
}

/// Whether the calling thread is ours, be it that it has not said so yet.
fn is_ours() -> bool {
    own::is_thread(cpu::thread()) || own::thread_is_coming() && Blocked::as_a_thread_of_ours()
}

/// What a call that changes the address space, the process or our descriptors does to us.
fn change_process(call: &mut Call) -> Decision {
    match call.nr as c_long {
        libc::SYS_munmap => {
            let pages = range(call.args[0], call.args[1]);
            let unmap = |call: &Call| {
                let mut result = 0;
                stacks::unmapped(&pages, || {
                    result = make(call);
                    result == 0
                });
                result
            };
            // While nothing is taken on, with an engine or without.
            let result = state::unseen(|| unmap(call))
                .unwrap_or_else(|process| process.unmap(pages.clone(), || unmap(call)));
            if result == 0 {
                RESERVED.cut(&pages);
            }
            Decision::Return(result)
        }
        libc::SYS_mmap if call.args[3] as c_int & libc::MAP_FIXED != 0 => {
            let decision = change(call, |process, call| {
                process.unmap(range(call.args[0], call.args[1]), || make(call))
            });
            if let Decision::Return(result) = decision {
                if result > 0 {
                    RESERVED.cut(&range(call.args[0], call.args[1]));
                }
                mapped(call, result);
            }
            decision
        }
        libc::SYS_mremap => change(call, remap),
        libc::SYS_brk => change(call, set_break),
        libc::SYS_shmat => change(call, |process, call| {
            special::attach(process, call, || make(call))
        }),
        libc::SYS_madvise => change(call, advise),
        // What can be written is not dropped as if it were a file's still.
        libc::SYS_mprotect | libc::SYS_pkey_mprotect
            if call.args[2] as c_int & libc::PROT_WRITE != 0 =>
        {
            let result = state::unseen(|| make(call))
                .unwrap_or_else(|process| process.protect(|| make(call)));
            Calls.after(call, result);
            Decision::Return(result)
        }
        libc::SYS_clone | libc::SYS_clone3 | libc::SYS_fork if processes::is_fork(call) => {
            monitor::hold_to_fork();
            forks::begin();
            if let Some(process) = state::engine() {
                process.fork_begin();
            }
            crate::OWN.hold();
            Decision::Run
        }
        libc::SYS_clone | libc::SYS_clone3
            if processes::clone_flags(call).is_some_and(memory::shares_thread_local) =>
        {
            stop(Why::SharedThread);
            Decision::Run
        }
        // What these send may be read from memory after they return.
        libc::SYS_vmsplice => {
            stop_recycling();
            Decision::Run
        }
        libc::SYS_io_uring_setup => {
            stop_recycling();
            if state::may_use_threads() {
                rings::set_up(call, || make(call))
            } else {
                Decision::Run
            }
        }
        number if alone::CALLS.contains(&number) => {
            Decision::Return(alone::make_alone(call, || make(call)))
        }
        number if special::CALLS.contains(&number) => special::before(call),
        _ if census::is_counted(call.nr) => {
            Decision::Return(census::make_counted(call, || make(call)))
        }
        libc::SYS_setsockopt if call.args[2] as c_int == libc::SO_ZEROCOPY => {
            stop_recycling();
            Decision::Run
        }
        // Older contents would come back: it is as if the system were too old for it.
        libc::SYS_process_madvise => {
            let result = state::unseen(|| make(call));
            Decision::Return(result.unwrap_or(-(libc::ENOSYS as isize)))
        }
        libc::SYS_prctl
            if call.args[0] as c_int == libc::PR_SET_SECCOMP
                && processes::is_confinement(call.args[1], call.args[2]) =>
        {
            processes::confined(false);
            Decision::Run
        }
        libc::SYS_seccomp
            if call.args[0] as u32 <= libc::SECCOMP_SET_MODE_FILTER
                && processes::is_confinement(call.args[0] + 1, call.args[2]) =>
        {
            processes::confined(call.args[1] & libc::SECCOMP_FILTER_FLAG_TSYNC as usize != 0);
            Decision::Run
        }
        libc::SYS_close | libc::SYS_close_range | libc::SYS_dup2 | libc::SYS_dup3 => {
            descriptors::keep_open(call, make)
        }
        libc::SYS_exit_group => {
            exit::finish();
            Decision::Run
        }
        _ => Decision::Run,
    }
}

/// Makes a call that changes the address space: through the engine, or, where there is none yet, as it is.
fn change(call: &Call, with_engine: impl FnOnce(&Process, &Call) -> isize) -> Decision {
    let result = state::unseen(|| make(call));
    if result.is_ok() && call.nr as c_long == libc::SYS_brk {
        // How far it went up cannot be told from here; libc goes in steps of this.
        monitor::grew(LEAST);
    }
    Decision::Return(result.unwrap_or_else(|process| with_engine(process, call)))
}

fn make(call: &Call) -> isize {
    // SAFETY: the program is making this very call.
    unsafe { raw::make(call) }
}

/// The pages of a call's address and length. Nonsense comes out as some range or none: the kernel refuses the call.
fn range(start: usize, len: usize) -> Range<usize> {
    let end = start.saturating_add(len).min(1 << 47);
    let end = end.next_multiple_of(PAGE_SIZE);
    start.min(end)..end
}

fn remap(process: &Process, call: &Call) -> isize {
    let [start, old_len, new_len, flags, target, _] = call.args;
    let flags = flags as c_int;
    let new_len = range(0, new_len).len();
    let fixed = (flags & libc::MREMAP_FIXED != 0).then_some(target);
    let stays = flags & libc::MREMAP_DONTUNMAP != 0;
    process.remap(range(start, old_len), new_len, fixed, stays, || make(call))
}

fn set_break(process: &Process, call: &Call) -> isize {
    let (wanted, before) = (call.args[0], raw::program_break());
    let page = |address: usize| address.next_multiple_of(PAGE_SIZE);
    if wanted == 0 || page(wanted) >= page(before) {
        let result = make(call);
        grew(page(before)..page(result as usize));
        return result;
    }
    let mut result = 0;
    process.unmap(page(wanted)..page(before), || {
        result = make(call);
        // This call does not answer with error numbers, but with the break as it is.
        if result as usize == wanted {
            0
        } else {
            -(libc::ENOMEM as isize)
        }
    });
    result
}

fn advise(process: &Process, call: &Call) -> isize {
    let [start, len, advice, ..] = call.args;
    let range = range(start, len);
    match advice as c_int {
        libc::MADV_DONTNEED => process.discard(range, || make(call)),
        // Memory that the kernel may take or leave would be neither here nor there: it goes at once, where it is ours.
        libc::MADV_FREE if process.is_taken_on(&range) => {
            let mut now = *call;
            now.args[2] = libc::MADV_DONTNEED as usize;
            process.discard(range, || make(&now))
        }
        // These act on what is in memory, or at the next fork, in ways that the engine does not follow.
        libc::MADV_DONTFORK | libc::MADV_WIPEONFORK | MADV_DONTNEED_LOCKED | MADV_GUARD_INSTALL => {
            // Noted first, so that it is not found again. Without room for the note it may be.
            stacks::note(&range);
            process.leave_alone(&range);
            make(call)
        }
        libc::MADV_NORMAL | libc::MADV_RANDOM | libc::MADV_SEQUENTIAL
            if start.is_multiple_of(PAGE_SIZE) =>
        {
            process.advise_reading(&range, |part| {
                if *part == range {
                    return make(call);
                }
                let mut now = *call;
                (now.args[0], now.args[1]) = (part.start, part.len());
                make(&now)
            })
        }
        libc::MADV_PAGEOUT if process.is_taken_on(&range) => {
            process.page_out(&range);
            0
        }
        libc::MADV_POPULATE_READ | libc::MADV_POPULATE_WRITE if process.is_inline_now() => {
            populate(process, call, range)
        }
        _ => make(call),
    }
}

/// Something else is at `range` now than what was reserved there.
pub(crate) fn reserve_no_more(range: &Range<usize>) {
    RESERVED.cut(range);
}

/// Has the pages of `range` made and brought in, in inline mode, where the kernel cannot: a piece at a time, as all of them may
/// be more than the limit.
fn populate(process: &Process, call: &Call, range: Range<usize>) -> isize {
    const MOST_TRIES: usize = 20;
    let write = call.args[2] as c_int == libc::MADV_POPULATE_WRITE;
    if !range.start.is_multiple_of(PAGE_SIZE) || range.is_empty() {
        return make(call);
    }
    for start in range.clone().step_by(PIECE) {
        let piece = start..range.end.min(start + PIECE);
        let mut part = *call;
        (part.args[0], part.args[1]) = (piece.start, piece.len());
        // What was brought in may be gone again before the kernel looks.
        let mut tries = (0..MOST_TRIES).map(|_| {
            process.bring_in(&piece, write);
            make(&part)
        });
        let fault = -(libc::EFAULT as isize);
        let result = tries.find(|&result| result != fault).unwrap_or(fault);
        if result < 0 {
            return result;
        }
    }
    0
}

/// A mapping was made.
fn mapped(call: &Call, result: isize) {
    let flags = call.args[3] as c_int;
    // Stacks stay, and huge pages cannot be taken apart.
    let other = libc::MAP_HUGETLB | libc::MAP_GROWSDOWN | libc::MAP_STACK;
    let kind = flags & (libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | other);
    if result > 0 && flags & (libc::MAP_STACK | libc::MAP_GROWSDOWN) != 0 {
        let noted = stacks::note(&range(result as usize, call.args[1]));
        if !noted && state::sees_all() {
            stop_inline(Why::Stacks);
        }
    }
    if result <= 0 || kind != libc::MAP_ANONYMOUS | libc::MAP_PRIVATE {
        return;
    }
    if is_writable(call) {
        allow_executable(call);
        grew(range(result as usize, call.args[1]));
    } else if call.args[2] == libc::PROT_NONE as usize {
        // Without room it is searched for later.
        RESERVED.note(&range(result as usize, call.args[1]));
    }
}

/// Whether a call has memory be read and written, and executed or not.
fn is_writable(call: &Call) -> bool {
    let writable = libc::PROT_READ | libc::PROT_WRITE;
    call.args[2] as c_int & !libc::PROT_EXEC == writable
}

/// What a call makes may be executed: so may its pages be when they leave.
fn allow_executable(call: &Call) {
    if call.args[2] as c_int & libc::PROT_EXEC != 0
        && let Some(process) = state::engine()
    {
        process.allow_executable();
    }
}

/// The program has more memory to use: under the engine's eyes at once, if it runs.
fn grew(pages: Range<usize>) {
    match state::engine() {
        Some(process) if pages.len() >= LEAST => {
            process.take_on(|found| found(pages));
        }
        Some(_) => monitor::search_later(pages.len()),
        None => monitor::grew(pages.len()),
    }
}

fn stop_recycling() {
    RECYCLE.store(false, Ordering::Relaxed);
    if let Some(process) = state::engine() {
        let _blocked = Blocked::new();
        process.stop_recycling();
    }
}

/// Whether frames may be used again: the program has made no call that goes on reading memory after it returns.
static RECYCLE: AtomicBool = AtomicBool::new(true);

/// Whether the program has made such a call.
pub(crate) fn may_recycle() -> bool {
    RECYCLE.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_whole_pages_whatever_was_passed() {
        assert_eq!(range(0x1000, 1), 0x1000..0x2000);
        assert_eq!(range(0x1000, 0), 0x1000..0x1000);
        assert_eq!(range(0x1000, 0x2000), 0x1000..0x3000);
        assert_eq!(range(usize::MAX - 5, 100).len(), 0);
        assert_eq!(range(0x1000, usize::MAX).end, 1 << 47);
    }
}
