//! What the entry code asks: whether a call is looked at, by whom, and what comes after it.

use crate::call::{Call, Decision, Handlers, NUMBERS};
use crate::frame::{Frame, LEGACY, SIGCANCEL, UNKNOWN, thread};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// Who is asked.
pub(crate) struct Wired {
    pub(crate) handlers: &'static dyn Handlers,
    /// Looks at code that a call has brought in.
    pub(crate) code_came: fn(&Call, isize),
}

static WIRED: OnceLock<Wired> = OnceLock::new();
/// Whether calls are looked at. Read by the entry code without ordering: who turns it on must not rely on calls that
/// have begun already.
pub(crate) static ACTIVE: AtomicU32 = AtomicU32::new(0);
/// For each number, whether calls are looked at: [`UNWANTED`], [`ASKED`] or [`NOTED`]. Written before [`ACTIVE`] is, and again by
/// whoever must not rely on calls that have begun already.
pub(crate) static WANTED: [AtomicU8; NUMBERS] = [const { AtomicU8::new(0) }; NUMBERS];
/// Nobody looks at these calls.
const UNWANTED: u8 = 0;
/// The handlers are asked.
pub(crate) const ASKED: u8 = 1;
/// The same, but while notes are enough they are only noted.
const NOTED: u8 = 2;
/// Whether notes are enough. Read by the entry code without ordering, behind the note: see `note`.
pub(crate) static NOTE_ONLY: AtomicU32 = AtomicU32::new(0);
/// The state components that `xsave` saves, and the room they take. Written before any site is rewritten.
pub(crate) static SAVED_MASK: AtomicU32 = AtomicU32::new(0);
pub(crate) static SAVED_SIZE: AtomicU32 = AtomicU32::new(0);
/// libc's handler of [`SIGCANCEL`], once it has set one.
pub(crate) static CANCEL: AtomicUsize = AtomicUsize::new(0);

/// x87, SSE, AVX, and the three parts of AVX-512. Nothing compiled touches the others (tiles, protection keys).
const COMPONENTS: u32 = 0b1110_0111;

unsafe extern "C" {
    fn userswap_hook_cancel();
}

/// Says who is asked; `false` where that is known already.
pub(crate) fn wire(wired: Wired) -> bool {
    WIRED.set(wired).is_ok()
}

/// Finds out what has to be saved; `false` where the processor cannot do it.
pub(crate) fn prepare() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    let features = __cpuid_count(1, 0).ecx;
    let saves = __cpuid_count(0xd, 1).eax;
    // lahf, which the entry code keeps flags with, is everywhere where xsavec is.
    let keeps_flags = __cpuid(0x8000_0001).ecx & 1 != 0;
    if features & (1 << 27) == 0 || saves & 0b10 == 0 || !keeps_flags {
        return false;
    }
    // SAFETY: the processor and the system have xsave (OSXSAVE is set), so the register can be read.
    let enabled = unsafe { _xgetbv(0) } as u32;
    let mask = enabled & COMPONENTS;
    let mut size = LEGACY as u32 + 64;
    for component in (2..32).filter(|c| mask >> c & 1 != 0) {
        size = size.next_multiple_of(64) + __cpuid_count(0xd, component).eax;
    }
    SAVED_SIZE.store(size.next_multiple_of(64), Ordering::Relaxed);
    SAVED_MASK.store(mask, Ordering::Relaxed);
    true
}

/// Says which numbers are looked at.
pub(crate) fn want(handlers: &dyn Handlers) {
    let notes = notes_are_enough();
    for (nr, wanted) in WANTED.iter().enumerate() {
        let wanted_now = match handlers.wants(nr) {
            false => UNWANTED,
            true if notes && handlers.only_noted(nr) => NOTED,
            true => ASKED,
        };
        wanted.store(wanted_now, Ordering::Relaxed);
    }
}

/// Whether notes are enough, as was last said.
pub(crate) fn notes_are_enough() -> bool {
    NOTE_ONLY.load(Ordering::SeqCst) != 0
}

/// Says whether notes are enough.
pub(crate) fn note_only(enough: bool) {
    let Some(wired) = WIRED.get() else { return };
    // Calls of other threads are rightly treated in either way meanwhile: it is this word that decides, and it is looked at last.
    NOTE_ONLY.store(u32::from(enough), Ordering::SeqCst);
    for (nr, wanted) in WANTED.iter().enumerate() {
        if wanted.load(Ordering::Relaxed) != UNWANTED && wired.handlers.only_noted(nr) {
            wanted.store(if enough { NOTED } else { ASKED }, Ordering::Relaxed);
        }
    }
}

/// Asks again which numbers are looked at.
pub(crate) fn want_again() {
    if let Some(wired) = WIRED.get() {
        want(wired.handlers);
    }
}

/// Turns looking at calls on or off, for calls that begin from now on.
pub(crate) fn set_active(active: bool) {
    // Release: a call that sees it on sees what its caller prepared; the handlers read with acquire.
    ACTIVE.store(u32::from(active), Ordering::Release);
}

pub(crate) fn wanted(nr: usize) -> bool {
    WANTED
        .get(nr)
        .is_none_or(|w| w.load(Ordering::Relaxed) != UNWANTED)
}

fn bypassed() -> bool {
    // SAFETY: the counter is this thread's own and always there.
    unsafe { (&raw const (*thread()).bypass).read_volatile() != 0 }
}

/// Asks the handlers, where they want the call.
pub(crate) extern "C" fn before(frame: &mut Frame) {
    if frame.call.nr == libc::SYS_rt_sigaction as usize {
        take_cancellation(&mut frame.call);
    }
    if ACTIVE.load(Ordering::Acquire) == 0 || !wanted(frame.call.nr) {
        return;
    }
    let Some(wired) = WIRED.get() else { return };
    if bypassed() {
        return keeping_errno(|| wired.handlers.before_bypassed(&frame.call));
    }
    frame.asked = 1;
    if let Decision::Return(result) = inside(|| wired.handlers.before(&mut frame.call)) {
        frame.answered = 1;
        frame.result = result;
        look_at_code(frame, wired);
    }
}

/// Has code that a call has brought in rewritten.
fn look_at_code(frame: &Frame, wired: &Wired) {
    if brings_code(&frame.call, frame.result) && !bypassed() {
        inside(|| (wired.code_came)(&frame.call, frame.result));
    }
}

/// Tells the handlers the result, where they saw the call, and looks at code that has come in.
pub(crate) extern "C" fn after(frame: &mut Frame) {
    let told = match frame.asked {
        UNKNOWN => ACTIVE.load(Ordering::Acquire) != 0 && wanted(frame.call.nr) && !bypassed(),
        asked => asked != 0,
    };
    let Some(wired) = WIRED.get() else { return };
    if told {
        inside(|| wired.handlers.after(&frame.call, frame.result));
    }
    look_at_code(frame, wired);
}

/// Runs the handlers: cancellation waits, and `errno` stays what it is.
fn inside<T>(run: impl FnOnce() -> T) -> T {
    let thread = thread();
    // SAFETY: this thread's own word. A signal handler on top that runs the handlers too ends with 0: then a
    // cancellation is not held back for the rest of this run.
    unsafe { (&raw mut (*thread).inside).write_volatile(1) };
    let out = keeping_errno(run);
    // SAFETY: as above.
    unsafe { (&raw mut (*thread).inside).write_volatile(0) };
    out
}

/// libc sets its handler for cancellation: ours is set in its place, and goes on to it.
fn take_cancellation(call: &mut Call) {
    /// The kernel's structure: handler, flags, restorer, mask. Every libc in a process sets the same.
    static ACTION: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
    let given = call.args[1] as *const [u64; 4];
    let ignored = [libc::SIG_DFL as u64, libc::SIG_IGN as u64];
    if call.args[0] != SIGCANCEL || given.is_null() {
        return;
    }
    // SAFETY: libc's own structure, on its stack; nobody else may use this signal (sigaction refuses it).
    let [handler, rest @ ..] = unsafe { given.read_unaligned() };
    let ours = userswap_hook_cancel as unsafe extern "C" fn() as usize as u64;
    if ignored.contains(&handler) || handler == ours {
        return;
    }
    CANCEL.store(handler as usize, Ordering::Release);
    for (word, value) in ACTION.iter().zip([ours].into_iter().chain(rest)) {
        word.store(value, Ordering::Relaxed);
    }
    call.args[1] = ACTION.as_ptr() as usize;
}

fn keeping_errno<T>(run: impl FnOnce() -> T) -> T {
    // SAFETY: libc gives the address of this thread's errno, which is valid as long as the thread.
    unsafe {
        let errno = libc::__errno_location();
        let kept = errno.read();
        let out = run();
        errno.write(kept);
        out
    }
}

/// Whether a call has brought in code of a file, or made memory of a file into code.
fn brings_code(call: &Call, result: isize) -> bool {
    let [_, _, protection, flags, ..] = call.args;
    let executable = protection & libc::PROT_EXEC as usize != 0;
    let done = !(-4095..0).contains(&result);
    executable
        && done
        && match call.nr as i64 {
            libc::SYS_mmap => flags & libc::MAP_ANONYMOUS as usize == 0,
            libc::SYS_mprotect | libc::SYS_pkey_mprotect => true,
            _ => false,
        }
}
