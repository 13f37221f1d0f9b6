//! Where every rewritten site arrives: saves the program's registers, asks the handlers, makes the call.
//!
//! The contract of the `syscall` instruction is kept: `rcx`, `r11` and `rax` change, nothing else does, and the 128 bytes
//! below the stack pointer belong to the program. Three ways through, cheapest first:
//!
//! | when | cost |
//! |---|---|
//! | not active | one load, no flag touched, 8 bytes of stack |
//! | nobody wants this number | flags saved, one byte looked up |
//! | otherwise | all registers saved (`xsave`), handlers called |
//!
//! The unwind rules say that the caller of this code is the program's own code behind its `syscall` instruction, so
//! cancellation, exceptions and debuggers pass through it. They hold from the instruction after the stack pointer moves.

use crate::call::{Call, Decision};
use crate::{install, stub};
use std::arch::{asm, global_asm};
use std::mem::offset_of;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// Whether calls are looked at. Read by the entry code without ordering: who turns it on must not rely on calls that
/// have begun already.
static ACTIVE: AtomicU32 = AtomicU32::new(0);
/// For each number, whether calls are looked at. Written before [`ACTIVE`] is.
static WANTED: [AtomicU8; NUMBERS] = [const { AtomicU8::new(0) }; NUMBERS];
/// The state components that `xsave` saves, and the room they take. Written before any site is rewritten.
static SAVED_MASK: AtomicU32 = AtomicU32::new(0);
static SAVED_SIZE: AtomicU32 = AtomicU32::new(0);
/// libc's handler of [`SIGCANCEL`], once it has set one.
static CANCEL: AtomicUsize = AtomicUsize::new(0);

/// Numbers from here on are always looked at: nobody knows them.
pub(crate) const NUMBERS: usize = 512;

/// x87, SSE, AVX, and the three parts of AVX-512. Nothing compiled touches the others (tiles, protection keys).
const COMPONENTS: u32 = 0b1110_0111;
/// The saved legacy part, and the header behind it.
const LEGACY: usize = 512;

/// What lies on the stack while the handlers run.
#[repr(C)]
struct Frame {
    call: Call,
    saved: [usize; 6],
    result: isize,
    /// Where the address of the tail stands.
    route: usize,
    /// Whether the handlers saw the call, and are to see its result: 0, 1, or [`UNKNOWN`].
    asked: usize,
    /// Whether they gave the result themselves.
    answered: usize,
    _padding: usize,
    rbp: usize,
    record: *const stub::Record,
    flags: usize,
}

/// Behind a tail nothing is left of what was before.
const UNKNOWN: usize = 2;
/// The signal that libc cancels threads with (`SIGRTMIN - 2`).
const SIGCANCEL: usize = 32;

/// What each thread has: thread-local memory that is set up with the thread, since the ordinary way to reach thread-local
/// memory of a library may allocate, and this code may be inside the allocator.
#[repr(C)]
pub(crate) struct Thread {
    /// How many [`crate::Bypass`] guards live.
    pub(crate) bypass: u32,
    /// The handlers are running.
    inside: u32,
    /// A cancellation came meanwhile.
    pending: u32,
    _unused: u32,
}

const REDZONE: usize = 128;
const BELOW_RBP: usize = offset_of!(Frame, rbp);

// SAFETY: the three entries are reached from stubs only, by a jump, with rcx = the stub's record (readable for ever),
// rax = the number, and the program's other registers as they were. Every path leaves with all of them restored but
// rax (the result), rcx and r11, which the instruction overwrites, and with the stack pointer where it was; nothing at or
// above rsp - 128 is written. The unwind rules describe exactly that: the frame's address is the program's stack pointer,
// the return address is in the record.
global_asm!(
    ".section .tbss.userswap_hook,\"awT\",@nobits",
    ".p2align 3",
    ".globl userswap_hook_thread",
    ".hidden userswap_hook_thread",
    ".type userswap_hook_thread, @object",
    "userswap_hook_thread:", // see `Thread`
    ".zero 16",
    ".size userswap_hook_thread, 16",
    ".text",
    // Unwind rules: the program's stack pointer is rsp + bytes, and the record's address is in rcx, or on the stack.
    ".macro userswap_hook_cfa_rcx bytes",
    ".cfi_def_cfa rsp, \\bytes",
    ".cfi_escape 0x16, 0x10, 3, 0x72, 0, 0x06", // return address: *rcx
    ".endm",
    ".macro userswap_hook_cfa_stack bytes",
    ".cfi_def_cfa rsp, \\bytes",
    ".cfi_escape 0x16, 0x10, 4, 0x77, 0, 0x06, 0x06", // **rsp
    ".endm",
    ".macro userswap_hook_cfa_frame",
    ".cfi_def_cfa rbp, {CFA}",
    ".cfi_offset rbp, {BELOW_RBP} - {CFA}",
    ".cfi_escape 0x16, 0x10, 5, 0x76, {RECORD_LOW}, {RECORD_HIGH}, 0x06, 0x06", // **(rbp + RECORD)
    ".endm",
    // Saves everything: in, the program's registers and rcx = record; out, rbp = frame, r11 kept.
    ".macro userswap_hook_frame",
    "lea rsp, [rsp - {REDZONE}]",
    "userswap_hook_cfa_rcx {REDZONE}",
    "pushfq",
    ".cfi_adjust_cfa_offset 8",
    "push rcx",
    ".cfi_adjust_cfa_offset 8",
    "push rbp",
    ".cfi_adjust_cfa_offset 8",
    "lea rsp, [rsp - {BELOW_RBP}]",
    ".cfi_adjust_cfa_offset {BELOW_RBP}",
    "mov rbp, rsp",
    "userswap_hook_cfa_frame",
    "mov [rbp + {NR}], rax",
    "mov [rbp + {ARGS}], rdi",
    "mov [rbp + {ARGS} + 8], rsi",
    "mov [rbp + {ARGS} + 16], rdx",
    "mov [rbp + {ARGS} + 24], r10",
    "mov [rbp + {ARGS} + 32], r8",
    "mov [rbp + {ARGS} + 40], r9",
    "mov [rbp + {SAVED}], rdi",
    "mov [rbp + {SAVED} + 8], rsi",
    "mov [rbp + {SAVED} + 16], rdx",
    "mov [rbp + {SAVED} + 24], r10",
    "mov [rbp + {SAVED} + 32], r8",
    "mov [rbp + {SAVED} + 40], r9",
    "mov [rbp + {RESULT}], rax",
    "lea rax, [rbp + {CFA}]",
    "mov [rbp + {STACK}], rax",
    "mov rax, [rcx]",
    "mov [rbp + {SITE}], rax",
    "xor eax, eax",
    "mov [rbp + {DATA}], rax",
    "mov [rbp + {ASKED}], rax",
    "mov [rbp + {ANSWERED}], rax",
    "cld",
    // Room for the vector registers; its header must be zero before it is written.
    "mov eax, dword ptr [rip + {SAVED_SIZE}]",
    "sub rsp, rax",
    "and rsp, -64",
    "xor eax, eax",
    "mov [rsp + {LEGACY}], rax",
    "mov [rsp + {LEGACY} + 8], rax",
    "mov [rsp + {LEGACY} + 16], rax",
    "mov [rsp + {LEGACY} + 24], rax",
    "mov [rsp + {LEGACY} + 32], rax",
    "mov [rsp + {LEGACY} + 40], rax",
    "mov [rsp + {LEGACY} + 48], rax",
    "mov [rsp + {LEGACY} + 56], rax",
    "mov eax, dword ptr [rip + {SAVED_MASK}]",
    "xor edx, edx",
    "xsavec [rsp]",
    ".endm",
    // A cancellation that came while the handlers ran is sent again, now that it may unwind from here.
    ".macro userswap_hook_deferred",
    "mov r11, qword ptr [rip + userswap_hook_thread@GOTTPOFF]",
    "cmp dword ptr fs:[r11 + {PENDING}], 0",
    "je 9f",
    "mov dword ptr fs:[r11 + {PENDING}], 0",
    "mov eax, {GETPID}",
    "syscall",
    "mov edi, eax",
    "mov eax, {GETTID}",
    "syscall",
    "mov esi, eax",
    "mov edx, {SIGCANCEL}",
    "mov eax, {TGKILL}",
    "syscall",
    "9:",
    ".endm",
    // Gives the program's registers back: out, rax = result, rcx = record, r11 kept.
    ".macro userswap_hook_unframe",
    "userswap_hook_cfa_frame",
    "mov eax, dword ptr [rip + {SAVED_MASK}]",
    "xor edx, edx",
    "xrstor [rsp]",
    "mov rdi, [rbp + {SAVED}]",
    "mov rsi, [rbp + {SAVED} + 8]",
    "mov rdx, [rbp + {SAVED} + 16]",
    "mov r10, [rbp + {SAVED} + 24]",
    "mov r8, [rbp + {SAVED} + 32]",
    "mov r9, [rbp + {SAVED} + 40]",
    "mov rax, [rbp + {RESULT}]",
    "lea rsp, [rbp + {BELOW_RBP}]",
    "pop rbp",
    ".cfi_same_value rbp",
    "userswap_hook_unsave",
    ".endm",
    // The record, the flags and the room of 128 bytes come off the stack.
    ".macro userswap_hook_unsave",
    "userswap_hook_cfa_stack {REDZONE} + 16",
    "pop rcx",
    "userswap_hook_cfa_rcx {REDZONE} + 8",
    "popfq",
    ".cfi_adjust_cfa_offset -8",
    "lea rsp, [rsp + {REDZONE}]",
    ".cfi_adjust_cfa_offset -{REDZONE}",
    ".endm",
    ".macro userswap_hook_save",
    "lea rsp, [rsp - {REDZONE}]",
    "userswap_hook_cfa_rcx {REDZONE}",
    "pushfq",
    ".cfi_adjust_cfa_offset 8",
    "push rcx",
    "userswap_hook_cfa_stack {REDZONE} + 16",
    ".endm",
    ".macro userswap_hook_begin name",
    ".p2align 4",
    ".globl \\name",
    ".hidden \\name",
    ".type \\name, @function",
    "\\name:",
    ".cfi_startproc",
    "userswap_hook_cfa_rcx 0",
    ".endm",
    ".macro userswap_hook_end name",
    ".cfi_endproc",
    ".size \\name, . - \\name",
    ".endm",
    // Sites whose number is known, and harmless.
    "userswap_hook_begin userswap_hook_fast",
    "mov r11d, dword ptr [rip + {ACTIVE}]",
    "xchg rcx, r11",
    "jrcxz 2f",
    "mov rcx, r11",
    // Calls are looked at: is this one?
    "userswap_hook_save",
    "cmp rax, {NUMBERS}",
    "jae 3f",
    "lea r11, [rip + {WANTED}]",
    "cmp byte ptr [r11 + rax], 0",
    "jne 3f",
    ".cfi_remember_state",
    "syscall",
    "userswap_hook_unsave",
    "jmp [rcx + {NEXT}]",
    "3:",
    ".cfi_restore_state",
    "userswap_hook_unsave",
    "jmp userswap_hook_full",
    // Nobody looks: make the call with nothing changed.
    "2:",
    "lea rsp, [rsp - {REDZONE} - 8]",
    "mov [rsp], r11",
    "userswap_hook_cfa_stack {REDZONE} + 8",
    "syscall",
    "mov rcx, [rsp]",
    "lea rsp, [rsp + {REDZONE} + 8]",
    "userswap_hook_cfa_rcx 0",
    "jmp [rcx + {NEXT}]",
    "userswap_hook_end userswap_hook_fast",
    // The handlers are asked.
    "userswap_hook_begin userswap_hook_full",
    "userswap_hook_frame",
    "mov rdi, rbp",
    "call {before}",
    "userswap_hook_deferred",
    "cmp qword ptr [rbp + {ANSWERED}], 0",
    "jne 2f",
    "mov rax, [rbp + {NR}]",
    "mov rdi, [rbp + {ARGS}]",
    "mov rsi, [rbp + {ARGS} + 8]",
    "mov rdx, [rbp + {ARGS} + 16]",
    "mov r10, [rbp + {ARGS} + 24]",
    "mov r8, [rbp + {ARGS} + 32]",
    "mov r9, [rbp + {ARGS} + 40]",
    "syscall",
    "mov [rbp + {RESULT}], rax",
    "mov rdi, rbp",
    "call {after}",
    "userswap_hook_deferred",
    "2:",
    "userswap_hook_unframe",
    "jmp [rcx + {NEXT}]",
    "userswap_hook_end userswap_hook_full",
    // Sites that may make a call with a tail, or bring in code.
    "userswap_hook_begin userswap_hook_careful",
    "userswap_hook_save",
    "mov eax, eax", // the number has 32 bits
    "cmp eax, {MMAP}",
    "je 4f",
    "cmp eax, {MPROTECT}",
    "je 4f",
    "cmp eax, {PKEY_MPROTECT}",
    "je 4f",
    "cmp eax, {RT_SIGACTION}",
    "je 6f",
    "cmp eax, {CLONE}",
    "je 5f",
    "mov ecx, {TAIL_RT_SIGRETURN}",
    "cmp eax, {RT_SIGRETURN}",
    "je 7f",
    "mov ecx, {TAIL_VFORK}",
    "cmp eax, {VFORK}",
    "je 7f",
    "mov ecx, {TAIL_CLONE3}",
    "cmp eax, {CLONE3}",
    "je 7f",
    "3:",
    ".cfi_remember_state",
    "userswap_hook_unsave",
    "jmp userswap_hook_fast",
    "4:",
    ".cfi_restore_state",
    ".cfi_remember_state",
    "test edx, {PROT_EXEC}",
    "jz 3b",
    "2:",
    "userswap_hook_unsave",
    "jmp userswap_hook_full",
    // A copy of this process goes on with a copy of this stack; only a thread needs a tail.
    "5:",
    ".cfi_restore_state",
    ".cfi_remember_state",
    "mov ecx, {TAIL_CLONE}",
    "test edi, {CLONE_VM}",
    "jnz 7f",
    "test rsi, rsi",
    "jnz 7f",
    "jmp 3b",
    "6:",
    "cmp edi, {SIGCANCEL}",
    "je 2b",
    "jmp 3b",
    // rcx = which tail; r11 = where its address stands.
    "7:",
    "mov r11, [rsp]",
    "lea r11, [r11 + rcx*8 + {TAIL_TABLE}]",
    "cmp dword ptr [rip + {ACTIVE}], 0",
    "je 8f",
    "lea rcx, [rip + {WANTED}]",
    "cmp byte ptr [rcx + rax], 0",
    "je 8f",
    "userswap_hook_unsave",
    "jmp userswap_hook_tail",
    "8:",
    ".cfi_restore_state",
    "userswap_hook_unsave",
    "jmp [r11]",
    "userswap_hook_end userswap_hook_careful",
    // The handlers are asked, and then everything is put back before the call is made in the tail.
    "userswap_hook_begin userswap_hook_tail",
    "userswap_hook_frame",
    "mov [rbp + {ROUTE}], r11",
    "mov rdi, rbp",
    "call {before}",
    "userswap_hook_deferred",
    "cmp qword ptr [rbp + {ANSWERED}], 0",
    "jne 2f",
    "mov rax, [rbp + {NR}]",
    "mov [rbp + {RESULT}], rax",
    "mov r11, [rbp + {ROUTE}]",
    "userswap_hook_unframe",
    "jmp [r11]",
    "2:",
    "userswap_hook_unframe",
    "jmp [rcx + {NEXT}]",
    "userswap_hook_end userswap_hook_tail",
    // The signal by which a thread is cancelled: libc's handler unwinds the stack, which must not hold frames of the
    // handlers; it waits until they are through.
    ".p2align 4",
    ".globl userswap_hook_cancel",
    ".hidden userswap_hook_cancel",
    ".type userswap_hook_cancel, @function",
    "userswap_hook_cancel:",
    ".cfi_startproc",
    "mov rax, qword ptr [rip + userswap_hook_thread@GOTTPOFF]",
    "cmp dword ptr fs:[rax + {INSIDE}], 0",
    "jne 2f",
    "jmp qword ptr [rip + {CANCEL}]",
    "2:",
    "mov dword ptr fs:[rax + {PENDING}], 1",
    "ret",
    "userswap_hook_end userswap_hook_cancel",
    // Behind the tails: rax = the answer, rcx = record, on whatever stack there is now. One for each call, since the
    // number is gone from rax.
    ".macro userswap_hook_behind name, number",
    "userswap_hook_begin \\name",
    "mov r11, rax",
    "mov eax, \\number",
    "jmp userswap_hook_behind_all",
    "userswap_hook_end \\name",
    ".endm",
    "userswap_hook_behind userswap_hook_behind_clone, {CLONE}",
    "userswap_hook_behind userswap_hook_behind_clone3, {CLONE3}",
    "userswap_hook_behind userswap_hook_behind_vfork, {VFORK}",
    "userswap_hook_begin userswap_hook_behind_all",
    "userswap_hook_frame",
    "mov [rbp + {RESULT}], r11",
    "mov qword ptr [rbp + {ASKED}], {UNKNOWN}",
    "mov rdi, rbp",
    "call {after}",
    "userswap_hook_deferred",
    "userswap_hook_unframe",
    "jmp [rcx + {NEXT}]",
    "userswap_hook_end userswap_hook_behind_all",
    ".purgem userswap_hook_cfa_rcx",
    ".purgem userswap_hook_cfa_stack",
    ".purgem userswap_hook_cfa_frame",
    ".purgem userswap_hook_deferred",
    ".purgem userswap_hook_frame",
    ".purgem userswap_hook_unframe",
    ".purgem userswap_hook_save",
    ".purgem userswap_hook_unsave",
    ".purgem userswap_hook_begin",
    ".purgem userswap_hook_end",
    ".purgem userswap_hook_behind",
    REDZONE = const REDZONE,
    BELOW_RBP = const BELOW_RBP,
    CFA = const size_of::<Frame>() + REDZONE,
    RECORD_LOW = const (offset_of!(Frame, record) & 0x7f) | 0x80,
    RECORD_HIGH = const offset_of!(Frame, record) >> 7,
    NR = const offset_of!(Frame, call.nr),
    ARGS = const offset_of!(Frame, call.args),
    DATA = const offset_of!(Frame, call.data),
    STACK = const offset_of!(Frame, call.stack),
    SITE = const offset_of!(Frame, call.site),
    SAVED = const offset_of!(Frame, saved),
    RESULT = const offset_of!(Frame, result),
    ROUTE = const offset_of!(Frame, route),
    ASKED = const offset_of!(Frame, asked),
    ANSWERED = const offset_of!(Frame, answered),
    UNKNOWN = const UNKNOWN,
    INSIDE = const offset_of!(Thread, inside),
    PENDING = const offset_of!(Thread, pending),
    SIGCANCEL = const SIGCANCEL,
    GETPID = const libc::SYS_getpid,
    GETTID = const libc::SYS_gettid,
    TGKILL = const libc::SYS_tgkill,
    RT_SIGACTION = const libc::SYS_rt_sigaction,
    CANCEL = sym CANCEL,
    TAIL_CLONE = const stub::tail_of(libc::SYS_clone),
    TAIL_CLONE3 = const stub::tail_of(libc::SYS_clone3),
    TAIL_VFORK = const stub::tail_of(libc::SYS_vfork),
    TAIL_RT_SIGRETURN = const stub::tail_of(libc::SYS_rt_sigreturn),
    NEXT = const offset_of!(stub::Record, next),
    TAIL_TABLE = const offset_of!(stub::Record, tails),
    LEGACY = const LEGACY,
    NUMBERS = const NUMBERS,
    PROT_EXEC = const libc::PROT_EXEC,
    CLONE_VM = const libc::CLONE_VM,
    MMAP = const libc::SYS_mmap,
    MPROTECT = const libc::SYS_mprotect,
    PKEY_MPROTECT = const libc::SYS_pkey_mprotect,
    CLONE = const libc::SYS_clone,
    CLONE3 = const libc::SYS_clone3,
    VFORK = const libc::SYS_vfork,
    RT_SIGRETURN = const libc::SYS_rt_sigreturn,
    ACTIVE = sym ACTIVE,
    WANTED = sym WANTED,
    SAVED_MASK = sym SAVED_MASK,
    SAVED_SIZE = sym SAVED_SIZE,
    before = sym before,
    after = sym after,
);

unsafe extern "C" {
    fn userswap_hook_fast();
    fn userswap_hook_careful();
    fn userswap_hook_cancel();
    fn userswap_hook_behind_clone();
    fn userswap_hook_behind_clone3();
    fn userswap_hook_behind_vfork();
}

/// The two entries, as stubs need them: for harmless numbers, and for all.
pub(crate) fn entries() -> [u64; 2] {
    [
        userswap_hook_fast as unsafe extern "C" fn() as usize as u64,
        userswap_hook_careful as unsafe extern "C" fn() as usize as u64,
    ]
}

/// Where each tail goes on, in the order of [`stub::TAILS`].
pub(crate) fn behind_tails() -> [u64; 4] {
    let vfork = userswap_hook_behind_vfork as unsafe extern "C" fn() as usize as u64;
    [
        userswap_hook_behind_clone as unsafe extern "C" fn() as usize as u64,
        userswap_hook_behind_clone3 as unsafe extern "C" fn() as usize as u64,
        vfork,
        // Never comes back.
        vfork,
    ]
}

/// Finds out what has to be saved; `false` where the processor cannot do it.
pub(crate) fn prepare() -> bool {
    use std::arch::x86_64::{__cpuid_count, _xgetbv};
    let features = __cpuid_count(1, 0).ecx;
    let saves = __cpuid_count(0xd, 1).eax;
    if features & (1 << 27) == 0 || saves & 0b10 == 0 {
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
pub(crate) fn want(wants: impl Fn(usize) -> bool) {
    for (nr, wanted) in WANTED.iter().enumerate() {
        wanted.store(u8::from(wants(nr)), Ordering::Relaxed);
    }
}

/// Turns looking at calls on or off, for calls that begin from now on.
pub(crate) fn set_active(active: bool) {
    // Release: a call that sees it on sees what its caller prepared; the handlers read with acquire.
    ACTIVE.store(u32::from(active), Ordering::Release);
}

fn wanted(nr: usize) -> bool {
    WANTED
        .get(nr)
        .is_none_or(|w| w.load(Ordering::Relaxed) != 0)
}

/// This thread's own; to be used through the pointer only, since signal handlers write there too.
pub(crate) fn thread() -> *mut Thread {
    let address: *mut Thread;
    // SAFETY: reads two words that the thread's creator set up: the offset of our block, which is part of every thread's
    // initial block since the library is loaded at start, and the block's base.
    unsafe {
        asm!(
            "mov {0}, qword ptr [rip + userswap_hook_thread@GOTTPOFF]",
            "add {0}, qword ptr fs:[0]",
            out(reg) address,
            options(pure, readonly, nostack),
        );
    }
    address
}

fn bypassed() -> bool {
    // SAFETY: the counter is this thread's own and always there.
    unsafe { (&raw const (*thread()).bypass).read_volatile() != 0 }
}

/// Asks the handlers, where they want the call.
extern "C" fn before(frame: &mut Frame) {
    if frame.call.nr == libc::SYS_rt_sigaction as usize {
        take_cancellation(&mut frame.call);
    }
    if ACTIVE.load(Ordering::Acquire) == 0 || !wanted(frame.call.nr) || bypassed() {
        return;
    }
    let Some(handlers) = install::handlers() else {
        return;
    };
    frame.asked = 1;
    if let Decision::Return(result) = inside(|| handlers.before(&mut frame.call)) {
        frame.answered = 1;
        frame.result = result;
    }
}

/// Tells the handlers the result, where they saw the call, and looks at code that has come in.
extern "C" fn after(frame: &mut Frame) {
    let told = match frame.asked {
        UNKNOWN => ACTIVE.load(Ordering::Acquire) != 0 && wanted(frame.call.nr) && !bypassed(),
        asked => asked != 0,
    };
    if told && let Some(handlers) = install::handlers() {
        inside(|| handlers.after(&frame.call, frame.result));
    }
    if install::brings_code(&frame.call, frame.result) && !bypassed() {
        inside(|| install::code_came(&frame.call, frame.result));
    }
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
