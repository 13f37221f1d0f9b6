//! Keeping signals away from a thread for a while.

use std::marker::PhantomData;

/// The signal by which libc has all threads change their user and groups.
const SETXID: u32 = 33;

/// The signal by which libc ends one.
const CANCEL: u32 = 32;

/// While it lives, no signal that can wait is delivered to this thread.
///
/// For calls into the engine from outside a fault: a program's own handler that interrupted them could touch swapped
/// memory, and its fault would wait for locks that its own thread holds. Two system calls; nests.
#[derive(Debug)]
#[must_use = "signals are blocked only while this lives"]
pub struct Blocked {
    before: u64,
    /// The mask is the thread's: it must be restored there.
    not_send: PhantomData<*mut ()>,
}

impl Blocked {
    /// Blocks them.
    pub fn new() -> Self {
        Blocked {
            before: super::chain::set_mask(!super::unblockable()),
            not_send: PhantomData,
        }
    }

    /// Blocks them but for libc's own: while a thread of ours is started, which begins with the same mask. Whoever starts it
    /// may wait for a lock of libc that is held until all threads have changed their user.
    pub fn but_libcs() -> Self {
        Blocked {
            before: super::chain::set_mask(of_ours()),
            not_send: PhantomData,
        }
    }

    /// Blocks them on this thread for good: for threads of the engine, which run no handlers of the program's. But
    /// one: libc has every thread change its user and groups by a signal of its own, and waits until all have.
    pub fn forever() {
        super::chain::set_mask(of_ours());
    }

    /// Whether the calling thread has blocked what a thread of ours has blocked from its start on.
    #[must_use]
    pub fn as_a_thread_of_ours() -> bool {
        // Libc opens the first in every thread that it starts, and nobody blocks the others.
        let never = [CANCEL, libc::SIGKILL as u32, libc::SIGSTOP as u32];
        let ours = never
            .iter()
            .fold(of_ours(), |mask, signal| mask & !(1 << (signal - 1)));
        blocked() & ours == ours
    }
}

/// What threads of ours block.
fn of_ours() -> u64 {
    !super::unblockable() & !(1 << (SETXID - 1))
}

impl Default for Blocked {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        super::chain::set_mask(self.before);
    }
}

/// The signals this thread has blocked; bit N is signal N + 1.
pub fn blocked() -> u64 {
    super::kernel::mask()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_of_ours_lets_libc_change_its_user() {
        let mask = std::thread::spawn(|| {
            assert!(!Blocked::as_a_thread_of_ours());
            Blocked::forever();
            assert!(Blocked::as_a_thread_of_ours());
            blocked()
        });
        let mask = mask.join().expect("it ends");
        assert_eq!(mask & (1 << (SETXID - 1)), 0);
        assert_ne!(mask & (1 << (libc::SIGALRM - 1)), 0);
    }

    #[test]
    fn blocks_and_restores() {
        let before = blocked();
        let alarm = 1 << (libc::SIGALRM - 1);
        let bus = 1 << (libc::SIGBUS - 1);
        {
            let _outer = Blocked::new();
            {
                let _inner = Blocked::new();
                assert_eq!(blocked() & (alarm | bus), alarm, "faults stay open");
            }
            assert_ne!(
                blocked() & alarm,
                0,
                "the inner one restored the outer one's mask"
            );
        }
        assert_eq!(blocked(), before);
    }
}
