//! Sleeping on a word until it changes: for what must hold no lock while a process forks.

use std::sync::atomic::AtomicU32;

use std::time::Duration;

use rustix::thread::futex::{Flags, Timespec, wait as futex_wait, wake as futex_wake};

/// Sleeps while `word` is `value`. May return early: the caller looks again.
pub fn wait(word: &AtomicU32, value: u32) {
    // Every error means "look again".
    let _ = futex_wait(word, Flags::PRIVATE, value, None);
}

/// Sleeps while `word` is `value`, at most for `limit`. May return early.
pub fn wait_for(word: &AtomicU32, value: u32, limit: Duration) {
    let limit = Timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: limit.subsec_nanos().into(),
    };
    // Every error means "look again".
    let _ = futex_wait(word, Flags::PRIVATE, value, Some(&limit));
}

/// Wakes all who sleep on `word`.
pub fn wake_all(word: &AtomicU32) {
    // A word that can be read cannot be refused.
    let _ = futex_wake(word, Flags::PRIVATE, i32::MAX as u32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_sleeper_that_nobody_wakes_comes_back() {
        let word = AtomicU32::new(7);
        wait_for(&word, 7, Duration::from_millis(5));
        wait_for(&word, 8, Duration::from_secs(3600));
    }

    #[test]
    fn a_sleeper_is_woken_by_the_change() {
        let word = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                while word.load(Ordering::Acquire) == 0 {
                    wait(&word, 0);
                }
            });
            std::thread::sleep(std::time::Duration::from_millis(10));
            assert!(!sleeper.is_finished());
            word.store(1, Ordering::Release);
            wake_all(&word);
        });
    }
}
