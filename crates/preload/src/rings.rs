//! Rings of io_uring, where handler threads are or may be needed: what they read and write comes in as for other calls, but advice given through them would
//! change memory unseen. So rings are made without that one operation: it is refused with `EACCES`.
//!
//! A ring is made disabled, told the operations it may do, all but that one, and enabled; to the program it looks like one
//! that was never disabled.

use userswap_hook::{Call, Decision};

use crate::memory::{can_read, words, write_words};
use crate::raw;
use crate::stop::{Why, stop};

const SETUP_DISABLED: u64 = 1 << 6;
const SETUP_ONLY_REGISTERED: u64 = 1 << 15;

/// Requests of `io_uring_register`, and what says that the ring is given by its registered number.
const PROBE: usize = 8;
const RESTRICTIONS: usize = 11;
const ENABLE: usize = 12;
const BY_NUMBER: usize = 1 << 31;

/// More than any system has, of requests to register something.
const MOST_REQUESTS: u8 = 64;

/// The operation that is left out.
const ADVICE: u8 = 25;

/// What a ring is told: a kind, and what of that kind it may do.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Allowed {
    kind: u16,
    what: u8,
    unused: [u8; 13],
}

const A_REQUEST: u16 = 0;
const AN_OPERATION: u16 = 1;
const FLAGS: u16 = 2;

/// Makes the ring that `call` asks for. It is the program's call.
pub(crate) fn set_up(call: &Call, make: impl FnOnce() -> isize) -> Decision {
    // Entries; flags and a CPU.
    let parameters = call.args[1];
    let Some([entries, flags]) = words::<2>(parameters, &(0..0)) else {
        if !can_read() {
            stop(Why::Rings);
        }
        return Decision::Run;
    };
    if flags & SETUP_DISABLED != 0 {
        // The program will tell it what it may do, which can be said once.
        stop(Why::Rings);
        return Decision::Run;
    }
    if !write_words(parameters, [entries, flags | SETUP_DISABLED]) {
        return Decision::Run;
    }
    let ring = make();
    let answered = words::<2>(parameters, &(0..0));
    if let Some([entries, flags]) = answered {
        write_words(parameters, [entries, flags & !SETUP_DISABLED]);
    }
    if ring >= 0 {
        let by_number = if flags & SETUP_ONLY_REGISTERED != 0 {
            BY_NUMBER
        } else {
            0
        };
        let register = |request: usize, at: usize, count: usize| {
            let arguments = [ring as usize, request | by_number, at, count, 0, 0];
            // SAFETY: each request below reads or writes what it is given, and changes the new ring only.
            unsafe { raw::make(&Call::new(libc::SYS_io_uring_register as usize, arguments)) }
        };
        if !restrict(register) {
            stop(Why::Rings);
        }
        register(ENABLE, 0, 0);
    }
    Decision::Return(ring)
}

/// Leaves advice out of what a ring may do. `false`: that was refused.
fn restrict(register: impl Fn(usize, usize, usize) -> isize) -> bool {
    // Its first byte is the last operation that the system knows.
    let mut known = [0_u8; 16];
    if register(PROBE, known.as_mut_ptr() as usize, 0) < 0 {
        return false;
    }
    let may = |kind, what| Allowed {
        kind,
        what,
        ..Allowed::default()
    };
    let mut list = [Allowed::default(); 1 + u8::MAX as usize + 1 + MOST_REQUESTS as usize];
    let mut len = 0;
    let operations = (0..=known[0]).filter(|&operation| operation != ADVICE);
    let operations = operations.map(|operation| may(AN_OPERATION, operation));
    let requests = (0..MOST_REQUESTS).map(|request| may(A_REQUEST, request));
    for allowed in [may(FLAGS, u8::MAX)]
        .into_iter()
        .chain(operations)
        .chain(requests)
    {
        list[len] = allowed;
        len += 1;
    }
    // How many requests the system knows is not told: a list with too many is refused whole.
    (0..usize::from(MOST_REQUESTS))
        .any(|too_many| register(RESTRICTIONS, list.as_ptr() as usize, len - too_many) >= 0)
}
