//! How much of this process's memory counts as its own: what it shares with others, since a fork or of files, counts by parts.
//!
//! The system says what the parts are, and walks all pages for it: it is asked now and then. In between they are as they were,
//! but for pages that were copied since, when somebody wrote to what a fork had shared: each such write is a fault, and faults
//! are counted cheaply. So what counts may be too much for that time, but not too little.

use std::time::{Duration, Instant};

use rustix::time::ClockId;
use userswap_sys::PAGE_SIZE;

use crate::raw::{self, Whose};
use crate::{kept, rest};

/// At least between two questions: where a fork is undone page by page, and otherwise.
const FORKED_PAUSE: Duration = Duration::from_millis(10);
const PAUSE: Duration = Duration::from_millis(50);

/// At most one part in so many of the time is spent on questions, and where more than one part in so many of the memory may have
/// been copied since the last.
const SELDOM: u32 = 50;
const OFTEN: u32 = 4;
const COPIED: u64 = 16;

/// What may be shared with other processes of the tree.
#[derive(Clone, Copy)]
pub(crate) struct Shared {
    /// Memory that a fork has copied.
    pub(crate) anonymous: bool,
    /// Pages of files.
    pub(crate) files: bool,
    /// How often other processes have come and gone, or copied what they shared.
    pub(crate) changes: u32,
}

/// The last answer.
#[derive(Default)]
pub(crate) struct Counted {
    asked: Option<Instant>,
    anonymous: Ratio,
    files: Ratio,
    /// How long to go by it, and how long it took, waits for a CPU not counted.
    pause: Duration,
    took: Duration,
    /// Faults of the process by then, and that number.
    faults: u64,
    changes: u32,
    /// Bytes that may have been copied since the others were last told.
    untold: u64,
}

impl Counted {
    /// Of `resident` bytes, of which `files` belong to files, those that count. `tell` has the others ask, too, and gives that
    /// number: what was copied here is theirs alone now.
    pub(crate) fn bytes(
        &mut self,
        resident: u64,
        files: u64,
        is_shared: Shared,
        tell: impl FnOnce() -> u32,
    ) -> u64 {
        if !is_shared.anonymous && !is_shared.files {
            return resident;
        }
        let anonymous = resident.saturating_sub(files);
        let copied = self.copied(is_shared);
        // Sooner where much may have been copied: too much counted is room that nobody uses; and where a child may have given up
        // what it shared (exec): too little counted is room that others use.
        let is_due = |asked: Instant| {
            let since = asked.elapsed();
            let is_old = self.changes != is_shared.changes;
            let is_wanted = is_old || copied > anonymous / COPIED;
            since >= self.pause || is_wanted && since >= self.took * OFTEN
        };
        if self.asked.is_none_or(is_due) {
            let start = rest::time(ClockId::ThreadCPUTime);
            // Before: a page that is copied meanwhile may be in the answer or not.
            self.faults = raw::usage(Whose::Process).minor_faults;
            // A page copied here counts whole until then, and the others' parts of it are too small by what is too much.
            self.untold += copied;
            self.changes = if self.untold > anonymous / COPIED {
                self.untold = 0;
                tell()
            } else {
                is_shared.changes
            };
            if let Some((all, of_files)) = kept::proportional_bytes() {
                self.anonymous.note(all - of_files, anonymous);
                self.files.note(of_files, files);
            }
            let least = if is_shared.anonymous {
                FORKED_PAUSE
            } else {
                PAUSE
            };
            self.took = rest::time(ClockId::ThreadCPUTime).saturating_sub(start);
            self.pause = least.max(self.took * SELDOM);
            self.asked = Some(Instant::now());
        }
        let counted = if is_shared.anonymous {
            (self.anonymous.of(anonymous) + self.copied(is_shared)).min(anonymous)
        } else {
            anonymous
        };
        (counted + self.files.of(files)).min(resident)
    }

    /// Bytes that may have been copied since the last answer.
    fn copied(&self, is_shared: Shared) -> u64 {
        if is_shared.anonymous {
            raw::usage(Whose::Process)
                .minor_faults
                .saturating_sub(self.faults)
                * PAGE_SIZE as u64
        } else {
            0
        }
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
            changes: 0,
        };
        assert_eq!(
            Counted::default().bytes(7 << 20, 3 << 20, alone, || 0),
            7 << 20
        );
    }
}
