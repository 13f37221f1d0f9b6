//! What becomes of a SIGBUS that is not the engine's. A handler belongs to a process, so each case runs in its own.

mod common;

use std::ffi::{c_int, c_void};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

use common::{case, child, complete, fill, inline_or_skip, pages, said};
use userswap_sys::mapping::Mapping;
use userswap_sys::signals::{self, Fault, Installed, Stack, Verdict};
use userswap_sys::uffd::Uffd;
use userswap_sys::{Errno, PAGE_SIZE};

/// Runs a case; it must be there.
fn run(case: &str) -> Output {
    let output = child("in_a_process_of_its_own", case)
        .output()
        .expect("run");
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines()
        .filter(|line| line.starts_with("SKIPPED"))
        .for_each(|line| eprintln!("{line}"));
    output
}

#[track_caller]
fn survives(case: &str) {
    let output = run(case);
    assert!(output.status.success(), "{}", said(&output));
}

#[track_caller]
fn dies(case: &str) {
    let output = run(case);
    assert_eq!(
        output.status.signal(),
        Some(libc::SIGBUS),
        "{}",
        said(&output)
    );
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("still alive"),
        "{}",
        said(&output)
    );
}

#[test]
fn a_handler_with_three_arguments_gets_them() {
    survives("siginfo");
}

#[test]
fn a_handler_with_one_argument_gets_it() {
    survives("plain");
}

#[test]
fn a_handler_sees_what_it_interrupted() {
    survives("traced");
}

#[test]
fn a_handler_may_touch_swapped_memory() {
    survives("nested");
}

#[test]
fn a_poisoned_page_reaches_the_earlier_handler() {
    survives("poison");
}

#[test]
fn the_default_ends_the_process() {
    dies("default");
}

#[test]
fn ignoring_a_fault_ends_the_process() {
    dies("ignored fault");
}

#[test]
fn a_signal_that_was_sent_ends_the_process_by_default() {
    dies("default sent");
}

#[test]
fn a_signal_that_was_sent_can_be_ignored() {
    survives("ignored sent");
}

#[test]
fn a_signal_that_was_sent_reaches_the_earlier_handler() {
    survives("handler sent");
}

#[test]
fn a_one_time_handler_serves_once() {
    dies("one time");
}

#[test]
fn a_replaced_handler_can_be_put_back() {
    survives("replaced");
}

#[test]
fn the_alternate_stack_is_used_on_request() {
    survives("alternate stack");
}

#[test]
#[ignore = "run by the others"]
fn in_a_process_of_its_own() {
    match case().as_str() {
        "siginfo" => siginfo(),
        "plain" => plain(),
        "traced" => traced(),
        "nested" => nested(),
        "poison" => poison(),
        "default" => {
            dispose(libc::SIG_DFL, 0);
            install();
            eprintln!("still alive");
            touch(broken());
        }
        "ignored fault" => {
            dispose(libc::SIG_IGN, 0);
            install();
            eprintln!("still alive");
            touch(broken());
        }
        "default sent" => {
            dispose(libc::SIG_DFL, 0);
            install();
            eprintln!("still alive");
            raise();
            eprintln!("alive after the signal");
        }
        "ignored sent" => {
            dispose(libc::SIG_IGN, 0);
            install();
            raise();
            raise();
            assert!(signals::is_in_force());
        }
        "handler sent" => {
            dispose(count as *const () as usize, 0);
            install();
            raise();
            raise();
            assert_eq!(CALLS.load(Ordering::SeqCst), 2);
        }
        "one time" => {
            dispose(repair_plain as *const () as usize, libc::SA_RESETHAND);
            install();
            let page = broken();
            ADDRESS.store(page, Ordering::SeqCst);
            touch(page);
            assert_eq!(CALLS.load(Ordering::SeqCst), 1);
            eprintln!("still alive");
            touch(broken());
        }
        "replaced" => replaced(),
        "alternate stack" => alternate_stack(),
        unknown => panic!("no such case: {unknown}"),
    }
}

static CALLS: AtomicUsize = AtomicUsize::new(0);
static ADDRESS: AtomicUsize = AtomicUsize::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static BLOCKED: AtomicU64 = AtomicU64::new(0);
static SWAPPED: AtomicUsize = AtomicUsize::new(0);
static UFFD: std::sync::OnceLock<Uffd> = std::sync::OnceLock::new();

/// The engine's part: only the page at SWAPPED is its own, and holds zeros.
fn engine(fault: Fault<'_>) -> Verdict {
    let page = SWAPPED.load(Ordering::SeqCst);
    if fault.address() & !(PAGE_SIZE - 1) != page || fault.code() != Fault::CODE_ADDRESS {
        return Verdict::NotOurs;
    }
    let Some(uffd) = UFFD.get() else {
        return Verdict::NotOurs;
    };
    // SAFETY: a missing page of the test's own.
    match unsafe { uffd.zeropage(page, PAGE_SIZE) }.is_complete() {
        true => Verdict::Handled,
        false => Verdict::NotOurs,
    }
}

fn install() {
    // SAFETY: `engine` makes one system call and touches atomics only.
    assert_eq!(unsafe { signals::install(engine) }, Ok(Installed::Now));
}

/// Sets what happens on SIGBUS; SIGUSR1 is blocked meanwhile.
fn dispose(handler: usize, flags: c_int) {
    // SAFETY: plain data; the handlers below do what a handler may.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        libc::sigaddset(&mut action.sa_mask, libc::SIGUSR1);
        assert_eq!(libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()), 0);
    }
}

fn raise() {
    // SAFETY: sends a signal to this thread.
    unsafe { libc::raise(libc::SIGBUS) };
}

fn touch(addr: usize) -> u8 {
    // SAFETY: mapped; what the access meets is what is tested.
    unsafe { (addr as *const u8).read_volatile() }
}

/// A page of a file that ends before it: any access is SIGBUS, whoever handles SIGBUS.
fn broken() -> usize {
    let path = std::env::temp_dir().join(format!("userswap-chain-{}", std::process::id()));
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .expect("file");
    std::fs::remove_file(&path).expect("remove");
    // SAFETY: a new mapping, kept for the life of the process.
    let addr = unsafe {
        libc::mmap(
            ptr::null_mut(),
            PAGE_SIZE,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if addr == libc::MAP_FAILED {
        panic!("mmap: {}", std::io::Error::last_os_error());
    }
    addr as usize
}

/// Maps memory over the page at ADDRESS, so that the access goes through.
fn repair(addr: usize) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: replaces a page of `broken`, which nobody holds a reference to.
    unsafe {
        libc::mmap(
            addr as *mut _,
            PAGE_SIZE,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        )
    };
}

fn note(code: c_int, addr: usize) {
    CALLS.fetch_add(1, Ordering::SeqCst);
    CODE.store(code, Ordering::SeqCst);
    BLOCKED.store(blocked(), Ordering::SeqCst);
    repair(addr);
}

fn blocked() -> u64 {
    let mut mask = 0u64;
    // SAFETY: a null new mask only asks; 8 bytes are written.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_BLOCK,
            ptr::null::<u64>(),
            &raw mut mask,
            8,
        )
    };
    mask
}

fn is_blocked(mask: u64, signal: c_int) -> bool {
    mask >> (signal - 1) & 1 != 0
}

extern "C" fn repair_siginfo(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    assert!(signal == libc::SIGBUS && !context.is_null());
    // SAFETY: what the kernel passed on.
    let (code, addr) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    ADDRESS.store(addr, Ordering::SeqCst);
    note(code, addr & !(PAGE_SIZE - 1));
}

extern "C" fn repair_plain(signal: c_int) {
    assert_eq!(signal, libc::SIGBUS);
    note(0, ADDRESS.load(Ordering::SeqCst));
}

extern "C" fn count(_: c_int) {
    CALLS.fetch_add(1, Ordering::SeqCst);
}

/// Touches swapped memory before it repairs the page.
extern "C" fn touch_swapped(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    assert_eq!(touch(SWAPPED.load(Ordering::SeqCst)), 0);
    // SAFETY: what the kernel passed on.
    note(0, unsafe { (*info).si_addr() as usize } & !(PAGE_SIZE - 1));
}

fn siginfo() {
    dispose(repair_siginfo as *const () as usize, libc::SA_SIGINFO);
    install();
    let page = broken();
    let before = blocked();
    assert_eq!(touch(page + 77), 0);
    assert_eq!(CALLS.load(Ordering::SeqCst), 1);
    assert_eq!(ADDRESS.load(Ordering::SeqCst), page + 77);
    assert_eq!(CODE.load(Ordering::SeqCst), Fault::CODE_ADDRESS);
    let within = BLOCKED.load(Ordering::SeqCst);
    assert!(
        is_blocked(within, libc::SIGUSR1),
        "its sa_mask: {within:#x}"
    );
    assert!(
        !is_blocked(within, libc::SIGBUS) && !is_blocked(within, libc::SIGALRM),
        "{within:#x}"
    );
    assert_eq!(blocked(), before);
}

fn plain() {
    dispose(repair_plain as *const () as usize, 0);
    install();
    for round in 1..=3 {
        let page = broken();
        ADDRESS.store(page, Ordering::SeqCst);
        assert_eq!(touch(page), 0);
        assert_eq!(CALLS.load(Ordering::SeqCst), round);
    }
}

/// Ends the process well if what it interrupted is found through the frame of the signal.
extern "C" fn trace(_: c_int) {
    let frames = std::backtrace::Backtrace::force_capture().to_string();
    eprintln!("{frames}");
    std::process::exit(i32::from(!frames.contains("interrupted_by_sigbus")));
}

/// Not by its first instruction: a byte before that one is none of its own.
#[inline(never)]
fn interrupted_by_sigbus(page: usize) -> u8 {
    std::hint::black_box(&page);
    std::hint::black_box(touch(page))
}

fn traced() {
    dispose(trace as *const () as usize, 0);
    install();
    interrupted_by_sigbus(broken());
    panic!("the page was there");
}

/// A page registered and missing, which `engine` knows; `None` where the host has no userfaultfd.
fn swapped(name: &str) -> Option<Mapping> {
    let uffd = inline_or_skip(name)?;
    let home = pages(2);
    fill(&home, 1, 1);
    // SAFETY: the test's own range, served by `engine` for the life of the process.
    unsafe { uffd.register(home.base(), home.len()) }.expect("register");
    SWAPPED.store(home.base(), Ordering::SeqCst);
    assert!(UFFD.set(uffd).is_ok());
    Some(home)
}

fn nested() {
    let Some(_home) = swapped("a_handler_may_touch_swapped_memory") else {
        return;
    };
    dispose(touch_swapped as *const () as usize, libc::SA_SIGINFO);
    install();
    assert_eq!(touch(broken()), 0);
    assert_eq!(CALLS.load(Ordering::SeqCst), 1);
}

fn poison() {
    const NAME: &str = "a_poisoned_page_reaches_the_earlier_handler";
    let Some(home) = swapped(NAME) else { return };
    let uffd = UFFD.get().expect("opened");
    if !uffd.features().poison() {
        return common::skip(NAME, "no UFFDIO_POISON");
    }
    dispose(repair_siginfo as *const () as usize, libc::SA_SIGINFO);
    install();
    complete(uffd.poison(home.base(), PAGE_SIZE));
    touch(home.base() + 5);
    assert_eq!(CALLS.load(Ordering::SeqCst), 1);
    // Which of the two depends on how the kernel was built.
    let code = CODE.load(Ordering::SeqCst);
    assert!(
        code == Fault::CODE_FAILED_MEMORY || code == Fault::CODE_ADDRESS,
        "{code}"
    );
    assert_eq!(
        ADDRESS.load(Ordering::SeqCst) & !(PAGE_SIZE - 1),
        home.base()
    );
}

fn replaced() {
    assert_eq!(signals::reinstall(), Err(Errno::INVAL));
    install();
    dispose(repair_siginfo as *const () as usize, libc::SA_SIGINFO);
    assert!(!signals::is_in_force());
    assert_eq!(signals::reinstall(), Ok(Installed::Now));
    assert!(signals::is_in_force());
    assert_eq!(signals::reinstall(), Ok(Installed::Already));
    assert_eq!(touch(broken()), 0);
    assert_eq!(CALLS.load(Ordering::SeqCst), 1);
}

/// Notes where its own stack is; the earlier handler does the rest.
fn locate(_: Fault<'_>) -> Verdict {
    let here = 0u8;
    SWAPPED.store(&raw const here as usize, Ordering::SeqCst);
    Verdict::NotOurs
}

fn alternate_stack() {
    const LEN: usize = 16 * PAGE_SIZE;
    let stack = pages(16);
    let alternate = libc::stack_t {
        ss_sp: stack.as_ptr().cast(),
        ss_flags: 0,
        ss_size: LEN,
    };
    // SAFETY: a stack that outlives its use.
    assert_eq!(unsafe { libc::sigaltstack(&alternate, ptr::null_mut()) }, 0);
    dispose(repair_siginfo as *const () as usize, libc::SA_SIGINFO);
    // SAFETY: `locate` writes an atomic.
    let installed = unsafe { signals::install_on(locate, Stack::Alternate) };
    assert_eq!(installed, Ok(Installed::Now));
    touch(broken());
    assert!(stack.contains(SWAPPED.load(Ordering::SeqCst)));
    let none = libc::stack_t {
        ss_sp: ptr::null_mut(),
        ss_flags: libc::SS_DISABLE,
        ss_size: 0,
    };
    // SAFETY: gives the stack up before it is unmapped.
    assert_eq!(unsafe { libc::sigaltstack(&none, ptr::null_mut()) }, 0);
}
