//! Sequential access, noticed and shared out: chunks ahead of a walk are brought in by helpers.
//!
//! A fault on the chunk behind those brought in last is a step of a walk. After a few steps the
//! chunks ahead are handed out, each to one claimant: helper threads, and the walking thread itself
//! when it meets a chunk that a helper is still working on. So both work all the time, and neither
//! waits for the other for longer than half a chunk takes.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Steps in a row before chunks ahead are handed out.
const STEPS: u32 = 2;

/// Where a walk through a region is. All fields are hints, so Relaxed throughout: a lost update costs
/// a chunk read early or late.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// The chunk of the latest fault.
    at: AtomicUsize,
    /// The next chunk to hand out.
    next: AtomicUsize,
    steps: AtomicU32,
}

impl Stream {
    /// A fault brought in `chunk`. Returns whether a walk is on.
    pub(crate) fn note(&self, chunk: usize) -> bool {
        let (at, next) = (
            self.at.load(Ordering::Relaxed),
            self.next.load(Ordering::Relaxed),
        );
        self.at.store(chunk, Ordering::Relaxed);
        if chunk == at {
            return self.is_walk();
        }
        if chunk < at || chunk > next {
            self.steps.store(0, Ordering::Relaxed);
            self.next.store(chunk + 1, Ordering::Relaxed);
            return false;
        }
        self.next.fetch_max(chunk + 1, Ordering::Relaxed);
        if !self.is_walk() {
            self.steps.fetch_add(1, Ordering::Relaxed);
        }
        self.is_walk()
    }

    /// Hands out a chunk of a region of `chunks`, at most `ahead` chunks ahead of the walk.
    pub(crate) fn claim(&self, chunks: usize, ahead: usize) -> Option<usize> {
        if !self.is_walk() {
            return None;
        }
        let most = chunks.min(self.at.load(Ordering::Relaxed) + ahead + 1);
        self.next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                (next < most).then(|| next + 1)
            })
            .ok()
    }

    fn is_walk(&self) -> bool {
        self.steps.load(Ordering::Relaxed) >= STEPS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_hands_out_the_chunks_ahead_once_each() {
        let stream = Stream::default();
        assert!(!stream.note(10));
        assert_eq!(stream.claim(100, 4), None);
        assert!(!stream.note(11));
        assert!(stream.note(12));
        let ahead: Vec<_> = std::iter::from_fn(|| stream.claim(100, 4)).collect();
        assert_eq!(ahead, [13, 14, 15, 16]);
        assert!(
            stream.note(14),
            "a fault on a chunk handed out is a step too"
        );
        assert_eq!(stream.claim(18, 4), Some(17));
        assert_eq!(stream.claim(18, 4), None, "the region ends");
    }

    #[test]
    fn jumps_end_a_walk() {
        let stream = Stream::default();
        for chunk in [1, 2, 3] {
            stream.note(chunk);
        }
        assert!(stream.claim(1000, 4).is_some());
        assert!(!stream.note(500));
        assert_eq!(stream.claim(1000, 4), None);
    }
}
