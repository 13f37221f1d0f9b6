//! How far an operation on a run of pages got.
//!
//! The kernel stops at the first page it cannot do. If that is the first page of the run it says why. If not, it says how
//! many bytes it did, and EAGAIN, whatever the reason was: the reason shows when the rest is asked for. EAGAIN with nothing
//! done is something else again: the address space is changing, look anew.

use crate::Errno;
use crate::inject::{self, Call, Fate};

/// How far COPY, ZEROPAGE, MOVE or POISON got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "an operation on a run of pages may stop anywhere in it"]
pub struct Progress {
    /// Bytes done, from the start of the run.
    pub done: usize,
    /// Why it stopped; `None` when the whole run is done. `AGAIN` with `done > 0` only means "not all".
    pub error: Option<Errno>,
}

/// A [`Progress`], sorted by what to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The whole run is done.
    Complete,
    /// This many bytes are done; asking for the rest tells why it stopped there.
    Partial(usize),
    /// Nothing is done: the address space is changing or a page is locked for a moment. Look again.
    Again,
    /// Nothing is done, and the first page is why.
    Refused(Errno),
}

impl Progress {
    /// What to do next.
    #[inline]
    pub fn outcome(self) -> Outcome {
        match self.error {
            None => Outcome::Complete,
            Some(_) if self.done > 0 => Outcome::Partial(self.done),
            Some(Errno::AGAIN) => Outcome::Again,
            Some(errno) => Outcome::Refused(errno),
        }
    }

    /// Whether the whole run is done.
    #[inline]
    pub fn is_complete(self) -> bool {
        self.error.is_none()
    }

    /// Makes a call on a run of `len` bytes, or what a test makes of it.
    #[inline]
    pub(super) fn of(call: Call, len: usize, make: impl FnOnce(usize) -> Self) -> Self {
        match inject::at(call, len) {
            Fate::Made => make(len),
            Fate::Refused(errno) => Progress {
                done: 0,
                error: Some(errno),
            },
            Fate::Short(bytes) => {
                let made = make(bytes);
                Progress {
                    error: made.error.or(Some(Errno::AGAIN)),
                    ..made
                }
            }
        }
    }

    /// From what the ioctl returned and what it left in its structure: bytes done, or a negative error number, or the 0
    /// that was there before where it failed early.
    #[inline]
    pub(super) fn new(returned: Result<(), Errno>, field: i64, len: usize) -> Self {
        match returned {
            Ok(()) => Progress {
                done: len,
                error: None,
            },
            Err(errno) => Progress {
                done: usize::try_from(field).unwrap_or(0).min(len),
                error: Some(errno),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_is_kept_apart_from_refused_and_again() {
        let cases = [
            (Ok(()), 8192, Outcome::Complete, 8192),
            (Err(Errno::AGAIN), 4096, Outcome::Partial(4096), 4096),
            (Err(Errno::AGAIN), 0, Outcome::Again, 0),
            (Err(Errno::AGAIN), -11, Outcome::Again, 0),
            (Err(Errno::EXIST), -17, Outcome::Refused(Errno::EXIST), 0),
            (Err(Errno::INVAL), 0, Outcome::Refused(Errno::INVAL), 0),
        ];
        for (returned, field, outcome, done) in cases {
            let progress = Progress::new(returned, field, 8192);
            assert_eq!((progress.outcome(), progress.done), (outcome, done));
            assert_eq!(progress.is_complete(), returned.is_ok());
        }
    }
}
