//! The library that `userswap run` loads into a program: keeps the process under a memory limit by swapping its own
//! memory, without the program's knowledge.
//!
//! Modules, bottom-up: `alloc` (memory of its own), `config` (what was asked for), `owner` (whose memory this is), `maps` (what
//! can be swapped), `share` (how a limit is shared), `tree` (with which processes), `stacks` (what stays), `forks` (who is the
//! child), `raw`, `rest` (whether the program does anything), `state` (whether the engine runs), `kept` (files about the
//! process), `counted` (what of its memory counts), `files` (pages of files leave first), `exit` (what is said at the end),
//! `privileges` (our threads have the program's), `sharing` (this process's part of the limit), `monitor` (the thread that
//! watches memory use), `alone` (calls that want one thread); for inline mode `stop` (where it cannot be), `alternate` (stacks
//! for handlers), `threads` (what is known of each), `census` (how many the program sees), `memory` (what system calls use), `noted` (calls before the engine
//! starts), `pieces` (large reads and writes), `masks` (SIGBUS); `rings` (io_uring), `special` (calls that few programs make),
//! `processes`, `descriptors`; `calls` (the program's system calls), `start` (this file).

mod alloc;
mod alone;
mod alternate;
mod calls;
mod census;
pub mod config;
mod counted;
mod descriptors;
mod exit;
mod files;
mod forks;
mod kept;
mod maps;
mod masks;
mod memory;
mod monitor;
mod noted;
mod owner;
mod pieces;
mod privileges;
mod processes;
mod raw;
mod rest;
mod rings;
pub mod share;
mod sharing;
mod special;
mod stacks;
mod state;
mod stop;
mod threads;
pub mod tree;

use std::path::Path;
use std::ptr;

use userswap::FaultMode;
use userswap_hook::Bypass;
use userswap_sys::own;
use userswap_sys::signals::{Blocked, stderr_line};

use crate::config::Config;

/// Everything the library allocates comes from here; the program's heap is the program's.
#[global_allocator]
static OWN: alloc::Own = alloc::Own::new();

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

/// Runs when the program is loaded, before its own code.
extern "C" fn start() {
    let Some(mut config) = Config::from_environment() else {
        return;
    };
    if config.faults == FaultMode::Auto && !memory::can_read() {
        // Without reading its own memory this library cannot answer for the program's signals.
        config.faults = FaultMode::Thread;
    }
    if has_allocator_for_one_thread() {
        stderr_line(format_args!(
            "userswap: the program has a memory allocator of its own, which is not made for threads such as ours: the limit is not \
             held in process {}",
            std::process::id()
        ));
        return;
    }
    let config: &'static Config = Box::leak(Box::new(config));
    if !forks::prepare() {
        stderr_line(format_args!(
            "userswap: this kernel cannot tell a forked child (MADV_WIPEONFORK): the limit is not held in process {}",
            std::process::id()
        ));
        return;
    }
    state::set_faults(config.faults);
    let installed = {
        let _blocked = Blocked::new();
        let installed = userswap_hook::install(&calls::Calls, config.plans.as_ref());
        OWN.guard();
        installed
    };
    if let Err(error) = installed {
        stderr_line(format_args!(
            "userswap: {error}: the limit is not held in process {}",
            std::process::id()
        ));
        return;
    }
    exit::prepare(config);
    kept::open_all();
    if state::sees_all() {
        if !memory::can_read() {
            stop::stop_inline(stop::Why::Unreadable);
        }
        monitor::note_main_thread();
        memory::note_constants();
        masks::start();
        noted::begin();
    }
    // An allocator that the program brings may register functions of its own when it is first used. Those that are registered last
    // are called first, and ours may wait for a thread that needs the allocator's locks.
    // SAFETY: memory that nobody else has seen.
    unsafe { libc::free(libc::malloc(1)) };
    // SAFETY: functions that live as long as the library, which is never unloaded.
    unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(in_child)) };
    sharing::open_tree(config);
    monitor::start(config);
    userswap_hook::set_active(true);
}

/// Whether libc would have the program allocate what threads of ours need, which it does only for one thread.
fn has_allocator_for_one_thread() -> bool {
    // SAFETY: names of libc's own.
    let calloc = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"calloc".as_ptr()) };
    // SAFETY: asks only.
    let headers = unsafe { libc::getauxval(libc::AT_PHDR) };
    let file = |address| {
        let mut found = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
        // SAFETY: writes to `found` where it returns anything but 0.
        unsafe {
            (libc::dladdr(address, found.as_mut_ptr()) != 0).then(|| found.assume_init().dli_fbase)
        }
    };
    let program = file(ptr::with_exposed_provenance(headers as usize));
    // Most use libc's, which need not be looked at; a program may also only name the function.
    program.is_some()
        && file(calloc) == program
        && userswap_hook::allocates_for_one_thread(Path::new("/proc/self/exe")) == Ok(true)
}

/// In a thread that is about to fork, before libc takes any lock for it.
extern "C" fn before_fork() {
    let (_bypass, _blocked) = (Bypass::new(), Blocked::new());
    monitor::forks();
    monitor::hold_to_fork();
}

/// In the parent; the call itself has ended this where it was seen.
extern "C" fn after_fork() {
    let (_bypass, _blocked) = (Bypass::new(), Blocked::new());
    monitor::release_from_fork();
}

/// In a child of fork, when libc is ready for threads again.
extern "C" fn in_child() {
    let Some(config) = exit::config() else { return };
    // Where the call itself was not seen.
    monitor::release_from_fork();
    own::forget_threads();
    if monitor::is_confined() {
        return;
    }
    let (_bypass, _blocked) = (Bypass::new(), Blocked::new());
    // Before what may give up once more.
    monitor::may_start();
    kept::open_all();
    if let Some(process) = state::engine()
        && let Err(error) = state::while_starting(|| process.start_threads())
    {
        stderr_line(format_args!(
            "userswap: {error}: the limit is not held in process {}",
            std::process::id()
        ));
        // Its system calls on swapped-out memory would fail.
        state::end(process);
        monitor::give_up();
    }
    state::look_again();
    monitor::start(config);
    if let Some(process) = state::engine() {
        process.expect_look();
    }
}
