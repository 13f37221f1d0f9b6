//! How much of this process's memory counts as its own: what it shares with others, since a fork or of files, counts by parts.
//!
//! The system says what the parts are, and walks all pages for it: it is asked now and then, and in between they are as they were.

use std::time::{Duration, Instant};

use crate::kept;

/// At least between two questions: where a fork is undone page by page, and otherwise.
const FORKED_PAUSE: Duration = Duration::from_millis(10);
const PAUSE: Duration = Duration::from_millis(50);

/// What may be shared with other processes of the tree.
#[derive(Clone, Copy)]
pub(crate) struct Shared {
    /// Memory that a fork has copied.
    pub(crate) anonymous: bool,
    /// Pages of files.
    pub(crate) files: bool,
}

/// The last answer.
#[derive(Default)]
pub(crate) struct Counted {
    asked: Option<Instant>,
    anonymous: Ratio,
    files: Ratio,
    /// How long to go by it.
    pause: Duration,
}

impl Counted {
    /// Of `resident` bytes, of which `files` belong to files, those that count.
    pub(crate) fn bytes(&mut self, resident: u64, files: u64, is_shared: Shared) -> u64 {
        if !is_shared.anonymous && !is_shared.files {
            return resident;
        }
        let anonymous = resident.saturating_sub(files);
        if self.asked.is_none_or(|asked| asked.elapsed() >= self.pause) {
            let start = Instant::now();
            if let Some((all, of_files)) = kept::proportional_bytes() {
                self.anonymous.note(all - of_files, anonymous);
                self.files.note(of_files, files);
            }
            // At most a fiftieth of the time is spent on it.
            let least = if is_shared.anonymous {
                FORKED_PAUSE
            } else {
                PAUSE
            };
            self.pause = least.max(start.elapsed() * 50);
            self.asked = Some(Instant::now());
        }
        let counted = if is_shared.anonymous {
            self.anonymous.of(anonymous)
        } else {
            anonymous
        };
        (counted + self.files.of(files)).min(resident)
    }
}

/// A part of a whole, in bytes.
#[derive(Default)]
struct Ratio {
    part: u64,
    whole: u64,
}

impl Ratio {
    /// Less tells nothing.
    const LEAST: u64 = 256 << 10;

    fn note(&mut self, part: u64, whole: u64) {
        if whole >= Self::LEAST {
            *self = Self { part, whole };
        }
    }

    fn of(&self, bytes: u64) -> u64 {
        if self.part >= self.whole {
            return bytes;
        }
        let product = u128::from(bytes) * u128::from(self.part);
        (product / u128::from(self.whole)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_as_they_were() {
        let mut ratio = Ratio::default();
        assert_eq!(ratio.of(12 << 20), 12 << 20, "nobody was asked");
        ratio.note(4 << 20, 16 << 20);
        assert_eq!(ratio.of(12 << 20), 3 << 20);
        ratio.note(0, 4096);
        assert_eq!(ratio.of(12 << 20), 3 << 20, "too few to tell");
        ratio.note(17 << 20, 16 << 20);
        assert_eq!(ratio.of(12 << 20), 12 << 20, "never more than all");
    }

    #[test]
    fn what_is_shared_with_nobody_counts() {
        let alone = Shared {
            anonymous: false,
            files: false,
        };
        assert_eq!(Counted::default().bytes(7 << 20, 3 << 20, alone), 7 << 20);
    }
}
