//! Calls that make a process or a thread, or confine what the process may call.

use libc::c_long;
use userswap::Side;
use userswap_hook::{Bypass, Call};
use userswap_sys::own;
use userswap_sys::signals::Blocked;

use crate::{exit, monitor, owner, privileges, sharing, state, stop};

/// Whether a call may have made a process.
pub(crate) fn makes_process(call: &Call) -> bool {
    [libc::SYS_clone, libc::SYS_clone3, libc::SYS_fork].contains(&(call.nr as c_long))
}

/// Whether a call makes a process with an address space of its own.
pub(crate) fn is_fork(call: &Call) -> bool {
    clone_flags(call).is_some_and(|flags| flags & libc::CLONE_VM as usize == 0)
}

/// The flags of a call that makes a thread or a process.
pub(crate) fn clone_flags(call: &Call) -> Option<usize> {
    match call.nr as c_long {
        libc::SYS_fork => Some(0),
        libc::SYS_clone => Some(call.args[0]),
        // SAFETY: the first word of clone's arguments, which the kernel is about to read, or has read.
        _ => (call.args[1] >= size_of::<u64>())
            .then(|| unsafe { *(call.args[0] as *const u64) as usize }),
    }
}

pub(crate) fn forked(side: Side) {
    monitor::release_from_fork();
    sharing::shares_memory();
    if side == Side::Child {
        state::only_this_thread();
        stop::only_this_thread();
        privileges::only_this_thread();
        monitor::no_monitor();
        owner::belongs_to_this_process();
        // Those of the parent, with those that were on their way.
        own::forget_threads();
    }
    let Some(process) = state::engine() else {
        return;
    };
    if let Err(error) = process.fork_end(side) {
        userswap_sys::signals::stderr_line(format_args!(
            "userswap: a child process cannot be given its swapped memory ({error}); ending it"
        ));
        std::process::abort();
    }
    if side == Side::Child {
        // Until it has handler threads.
        state::look_again();
    }
}

/// Whether a call sets a mode of seccomp: who asks only whether there is such a thing names no filter.
pub(crate) fn is_confinement(mode: usize, filter: usize) -> bool {
    mode == libc::SECCOMP_MODE_STRICT as usize || filter != 0
}

/// The program is about to confine its system calls: ours could end it. What there is to write is written now, and from
/// then on nothing is done for it any more.
pub(crate) fn confined(all_threads: bool) {
    // A child that borrows this memory confines itself, not whom it borrows from.
    if !owner::is_this_process() {
        return;
    }
    let (_bypass, _blocked) = (Bypass::new(), Blocked::new());
    exit::finish();
    monitor::confined(all_threads);
    userswap_hook::set_active(false);
}

#[cfg(test)]
mod tests {
    use libc::c_int;

    use super::*;

    #[test]
    fn only_a_new_address_space_is_a_fork() {
        let clone =
            |flags: c_int| Call::new(libc::SYS_clone as usize, [flags as usize, 0, 0, 0, 0, 0]);
        assert!(is_fork(&clone(libc::SIGCHLD)));
        assert!(!is_fork(&clone(libc::CLONE_VM | libc::CLONE_VFORK)));
        assert!(is_fork(&Call::new(libc::SYS_fork as usize, [0; 6])));
        let arguments = [libc::CLONE_VM as u64; 8];
        let clone3 = Call::new(
            libc::SYS_clone3 as usize,
            [arguments.as_ptr() as usize, 64, 0, 0, 0, 0],
        );
        assert!(!is_fork(&clone3));
    }
}
