//! Our descriptors stay open, whatever the program closes.

use libc::{c_int, c_long};
use userswap::Process;
use userswap_hook::{Call, Decision};

use crate::{exit, kept, state};

/// Descriptors of ours stay open: closing one would turn what is swapped out into zeros.
pub(crate) fn keep_open(call: &Call, make: impl Fn(&Call) -> isize) -> Decision {
    let mut ours = kept::numbers().to_vec();
    ours.push(exit::descriptor());
    ours.extend(state::engine().into_iter().flat_map(Process::descriptors));
    ours.retain(|&fd| fd >= 0);
    let is_ours = |fd: usize| ours.contains(&(fd as c_int));
    let bad_descriptor = Decision::Return(-(libc::EBADF as isize));
    match call.nr as c_long {
        libc::SYS_close if is_ours(call.args[0]) => bad_descriptor,
        libc::SYS_dup2 | libc::SYS_dup3 if is_ours(call.args[1]) => bad_descriptor,
        libc::SYS_close_range => {
            let (first, last) = (call.args[0] as u32, call.args[1] as u32);
            let mut sorted = ours;
            sorted.sort_unstable();
            let mut from = first;
            let part = |start: u32, end: u32| {
                let mut part = *call;
                (part.args[0], part.args[1]) = (start as usize, end as usize);
                make(&part)
            };
            for fd in sorted {
                let fd = fd as u32;
                if fd < from || fd > last {
                    continue;
                }
                if fd > from {
                    let result = part(from, fd - 1);
                    if result < 0 {
                        return Decision::Return(result);
                    }
                }
                from = fd + 1;
            }
            if from == first {
                return Decision::Run;
            }
            Decision::Return(if from <= last { part(from, last) } else { 0 })
        }
        _ => Decision::Run,
    }
}
