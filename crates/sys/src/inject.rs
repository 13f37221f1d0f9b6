//! Faults on purpose, for tests: every userfaultfd call and `madvise` can be delayed, refused or cut short, and a
//! thread of the engine can be made to panic.
//!
//! Only with the feature `inject`, which development dependencies turn on. Without it the places
//! that ask are empty and leave no code behind.
//!
//! # How it works
//! One table for the process, a row for each [`Call`]. A row holds how often something shall happen (0: never), what may
//! happen, and two counters. A call takes a number from its row's counter and hashes it with the seed: so which calls
//! are hit does not depend on time, only on the order in which threads come by.
//!
//! Guarantee: the table is read inside signal handlers, so reading it takes no lock and allocates nothing. Mechanism:
//! every field is an atomic; a plan fills the rows in before it stores the seed that turns them on (Release), and a call
//! loads the seed first (Acquire). One plan at a time: a running plan holds a lock that no call takes. Tests in one
//! process therefore take turns; a test whose *other* threads must not be hit runs in a process of its own.
//! A call that has read its row may still be hit just after its plan has ended.

use crate::Errno;

/// A system call that can be hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// UFFDIO_COPY.
    Copy,
    /// UFFDIO_MOVE.
    Move,
    /// UFFDIO_ZEROPAGE.
    Zeropage,
    /// UFFDIO_POISON.
    Poison,
    /// UFFDIO_WAKE.
    Wake,
    /// UFFDIO_REGISTER.
    Register,
    /// UFFDIO_UNREGISTER.
    Unregister,
    /// UFFDIO_WRITEPROTECT.
    WriteProtect,
    /// Reading a userfaultfd.
    ReadEvents,
    /// MADV_DONTNEED.
    Discard,
    /// `madvise` with any other advice.
    Advise,
}

impl Call {
    /// All of them.
    pub const ALL: [Call; 11] = [
        Call::Copy,
        Call::Move,
        Call::Zeropage,
        Call::Poison,
        Call::Wake,
        Call::Register,
        Call::Unregister,
        Call::WriteProtect,
        Call::ReadEvents,
        Call::Discard,
        Call::Advise,
    ];
}

/// A kind of thread that the engine starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// Keeps memory free.
    Reclaimer,
    /// Brings pages in ahead of a walk.
    ReadAhead,
    /// Reads faults in thread mode.
    Handler,
    /// Helps in a page-out.
    PageOut,
}

/// What is to happen to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// What it asked for, whole.
    Made,
    /// It is not made, and this comes back.
    Refused(Errno),
    /// It is made for so many bytes, fewer than asked for, and the rest is put off.
    Short(usize),
}

/// For a call without parts: the refusal that a test wants. *Fault path.*
#[inline(always)]
pub(crate) fn whole(call: Call) -> Result<(), Errno> {
    match at(call, 0) {
        Fate::Made => Ok(()),
        Fate::Short(_) => Err(Errno::AGAIN),
        Fate::Refused(errno) => Err(errno),
    }
}

#[cfg(not(feature = "inject"))]
mod off {
    use super::{Call, Fate, Thread};

    /// Nothing happens.
    #[inline(always)]
    pub(crate) const fn at(_: Call, _: usize) -> Fate {
        Fate::Made
    }

    /// Nothing happens.
    #[inline(always)]
    pub const fn pass(_: Thread) {}
}

#[cfg(not(feature = "inject"))]
pub(crate) use off::at;
#[cfg(not(feature = "inject"))]
pub use off::pass;

#[cfg(feature = "inject")]
pub(crate) use on::at;
#[cfg(feature = "inject")]
pub use on::{Plan, Running, doom, pass};

#[cfg(feature = "inject")]
mod on {
    use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use std::time::Duration;

    use rustix::thread::{Timespec, nanosleep};

    use super::{Call, Fate, Thread};
    use crate::{Errno, PAGE_SIZE};

    const CALLS: usize = Call::ALL.len();

    /// Things that may happen to one kind of call.
    const KINDS: usize = 8;

    /// Kinds beside error numbers, which are below 200.
    const SHORT: u8 = 200;
    const DELAY: u8 = 201;

    struct Row {
        /// One call in so many is hit; 0: none.
        one_in: AtomicU32,
        /// What may happen: a byte each, from the lowest; 0: no more.
        kinds: AtomicU64,
        delay_ns: AtomicU64,
        made: AtomicU64,
        hit: AtomicU64,
    }

    static TABLE: [Row; CALLS] = [const {
        Row {
            one_in: AtomicU32::new(0),
            kinds: AtomicU64::new(0),
            delay_ns: AtomicU64::new(0),
            made: AtomicU64::new(0),
            hit: AtomicU64::new(0),
        }
    }; CALLS];

    /// The running plan's seed; 0: none runs.
    static SEED: AtomicU64 = AtomicU64::new(0);

    /// Held while a plan runs.
    static TURN: Mutex<()> = Mutex::new(());

    /// The threads that are to panic.
    static DOOMED: [AtomicBool; 4] = [const { AtomicBool::new(false) }; 4];

    /// What shall happen to calls.
    #[derive(Clone, Debug)]
    #[must_use = "a plan does nothing before it is started"]
    pub struct Plan {
        seed: u64,
        rows: [PlanRow; CALLS],
    }

    #[derive(Clone, Copy, Debug, Default)]
    struct PlanRow {
        one_in: u32,
        kinds: [u8; KINDS],
        delay_ns: u64,
    }

    impl Plan {
        /// A plan by which nothing happens yet.
        pub fn new(seed: u64) -> Self {
            Self {
                // 0 means that no plan runs.
                seed: seed.max(1),
                rows: [PlanRow::default(); CALLS],
            }
        }

        /// One call in `one_in` of this kind is hit.
        pub fn one_in(mut self, call: Call, one_in: u32) -> Self {
            self.rows[call as usize].one_in = one_in;
            self
        }

        /// Calls that are hit may be refused with `errno`.
        ///
        /// # Panics
        /// If more than eight things may happen to the call.
        pub fn refuse(self, call: Call, errno: Errno) -> Self {
            let errno = u8::try_from(errno.raw_os_error()).expect("an error number");
            assert!(0 < errno && errno < SHORT);
            self.may(call, errno)
        }

        /// Calls that are hit may be made in part. Of a single page, or where a call has no parts, that is a refusal
        /// with EAGAIN.
        ///
        /// # Panics
        /// As [`Plan::refuse`].
        pub fn cut_short(self, call: Call) -> Self {
            self.may(call, SHORT)
        }

        /// Calls that are hit may be made late by `delay`.
        ///
        /// # Panics
        /// As [`Plan::refuse`].
        pub fn delay(mut self, call: Call, delay: Duration) -> Self {
            self.rows[call as usize].delay_ns = delay.as_nanos() as u64;
            self.may(call, DELAY)
        }

        fn may(mut self, call: Call, kind: u8) -> Self {
            let kinds = &mut self.rows[call as usize].kinds;
            let free = kinds.iter().position(|&kind| kind == 0);
            kinds[free.expect("at most eight things may happen to a call")] = kind;
            self
        }

        /// Puts the plan in force until the result is dropped. Waits for a plan that runs already.
        #[must_use = "the plan ends when this is dropped"]
        pub fn start(self) -> Running {
            let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
            for (row, plan) in TABLE.iter().zip(&self.rows) {
                row.one_in.store(plan.one_in, Ordering::Relaxed);
                row.kinds
                    .store(u64::from_le_bytes(plan.kinds), Ordering::Relaxed);
                row.delay_ns.store(plan.delay_ns, Ordering::Relaxed);
                row.made.store(0, Ordering::Relaxed);
                row.hit.store(0, Ordering::Relaxed);
            }
            // Release: who sees the seed sees the rows.
            SEED.store(self.seed, Ordering::Release);
            Running { _turn: turn }
        }
    }

    /// A plan in force; dropping it ends it.
    #[derive(Debug)]
    pub struct Running {
        _turn: MutexGuard<'static, ()>,
    }

    impl Running {
        /// Calls of this kind that were hit so far.
        pub fn hit(&self, call: Call) -> u64 {
            TABLE[call as usize].hit.load(Ordering::Relaxed)
        }

        /// Calls of this kind so far.
        pub fn made(&self, call: Call) -> u64 {
            TABLE[call as usize].made.load(Ordering::Relaxed)
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            SEED.store(0, Ordering::Relaxed);
        }
    }

    /// What is to happen to a call for `len` bytes that is about to be made. Delays happen in here. *Fault path.*
    #[inline]
    pub(crate) fn at(call: Call, len: usize) -> Fate {
        // Acquire: pairs with the start of the plan.
        match SEED.load(Ordering::Acquire) {
            0 => Fate::Made,
            seed => choose(seed, call, len),
        }
    }

    #[cold]
    fn choose(seed: u64, call: Call, len: usize) -> Fate {
        let row = &TABLE[call as usize];
        let number = row.made.fetch_add(1, Ordering::Relaxed);
        let one_in = row.one_in.load(Ordering::Relaxed);
        let chance = mix(seed ^ (call as u64 + 1) << 56 ^ number);
        if one_in == 0 || !chance.is_multiple_of(u64::from(one_in)) {
            return Fate::Made;
        }
        let kinds = row.kinds.load(Ordering::Relaxed).to_le_bytes();
        let count = kinds.iter().take_while(|&&kind| kind != 0).count();
        if count == 0 {
            return Fate::Made;
        }
        row.hit.fetch_add(1, Ordering::Relaxed);
        let choice = mix(chance);
        match kinds[choice as usize % count] {
            DELAY => {
                let delay = Timespec {
                    tv_sec: 0,
                    tv_nsec: row.delay_ns.load(Ordering::Relaxed).min(999_999_999) as _,
                };
                // A signal that ends the delay early is fine too.
                let _ = nanosleep(&delay);
                Fate::Made
            }
            SHORT if len > PAGE_SIZE => {
                let pages = len / PAGE_SIZE;
                Fate::Short((1 + (choice >> 32) as usize % (pages - 1)) * PAGE_SIZE)
            }
            SHORT => Fate::Refused(Errno::AGAIN),
            errno => Fate::Refused(Errno::from_raw_os_error(errno.into())),
        }
    }

    /// The finalizer of splitmix64.
    fn mix(mut x: u64) -> u64 {
        x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// The next thread of this kind that comes to its point panics there.
    pub fn doom(thread: Thread) {
        DOOMED[thread as usize].store(true, Ordering::SeqCst);
    }

    /// Where a thread of the engine is hit: at its work, with something in hand.
    ///
    /// # Panics
    /// If a test has asked for it.
    #[inline]
    pub fn pass(thread: Thread) {
        if DOOMED[thread as usize].swap(false, Ordering::SeqCst) {
            panic!("on purpose: a test dooms {thread:?}");
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_plan_hits_as_often_as_it_says_and_ends() {
            let plan = Plan::new(7)
                .one_in(Call::Copy, 4)
                .refuse(Call::Copy, Errno::NOMEM)
                .cut_short(Call::Copy);
            let fates = |plan: &Plan| -> Vec<Fate> {
                let running = plan.clone().start();
                let fates: Vec<Fate> = (0..400).map(|_| at(Call::Copy, 8 * PAGE_SIZE)).collect();
                let hit = fates.iter().filter(|&&fate| fate != Fate::Made).count() as u64;
                assert_eq!(
                    (running.hit(Call::Copy), running.made(Call::Copy)),
                    (hit, 400)
                );
                assert!((50..150).contains(&hit), "{hit}");
                assert_eq!(at(Call::Move, PAGE_SIZE), Fate::Made);
                fates
            };
            let first = fates(&plan);
            assert_eq!(first, fates(&plan), "the seed decides");
            assert!(first.contains(&Fate::Refused(Errno::NOMEM)));
            for fate in first {
                if let Fate::Short(bytes) = fate {
                    assert!((PAGE_SIZE..8 * PAGE_SIZE).contains(&bytes) && bytes % PAGE_SIZE == 0);
                }
            }
        }
    }
}
