//! What every page must hold after a round.

use std::fmt;
use std::sync::atomic::Ordering;
use std::thread;

use crate::interrupt;
use crate::memory::Memory;
use crate::size::PAGE;

/// A page that is wrong. The address is the page's offset in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageError {
    /// Word 0 does not count every worker.
    Lost {
        page: usize,
        expected: u64,
        got: u64,
    },
    /// Word 1 is not the page's index: another page's content, or none.
    Misload { page: usize, got: u64 },
}

impl fmt::Display for PageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            PageError::Lost {
                page,
                expected,
                got,
            } => {
                let (at, lost) = (page * PAGE, expected.abs_diff(got));
                write!(
                    f,
                    "Error on {at:#x}, expected {expected}, got {got}, {lost} data loss!"
                )
            }
            PageError::Misload { page, got } => {
                let at = page * PAGE;
                write!(
                    f,
                    "Error on {at:#x}, expected index {page}, got {got}, misload!"
                )
            }
        }
    }
}

/// All that is wrong, in the order of pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) errors: Vec<PageError>,
    /// Updates lost over all pages.
    pub(super) lost: u64,
    /// Pages with a wrong index.
    pub(super) misloads: u64,
}

/// Readers that check: most of a check is waiting for a delayed device.
const READERS: usize = 16;

/// Checks every page after `workers` workers have ended.
pub(super) fn check(memory: &Memory, workers: u64) -> anyhow::Result<Found> {
    let share = memory.pages().div_ceil(READERS);
    let errors = thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let end = memory.pages().min((reader + 1) * share);
                scope.spawn(move || look(memory, (reader * share).min(end)..end, workers))
            })
            .collect();
        let looked = readers
            .into_iter()
            .map(|reader| reader.join().expect("a reader does not panic"));
        looked.collect::<Result<Vec<_>, _>>()
    })?;
    let errors: Vec<PageError> = errors.into_iter().flatten().collect();
    let lost = |error: &PageError| match *error {
        PageError::Lost { expected, got, .. } => expected.abs_diff(got),
        PageError::Misload { .. } => 0,
    };
    let misload = |error: &&PageError| matches!(error, PageError::Misload { .. });
    Ok(Found {
        lost: errors.iter().map(lost).sum(),
        misloads: errors.iter().filter(misload).count() as u64,
        errors,
    })
}

fn look(
    memory: &Memory,
    pages: std::ops::Range<usize>,
    expected: u64,
) -> Result<Vec<PageError>, interrupt::Interrupted> {
    let mut errors = Vec::new();
    for page in pages {
        interrupt::check()?;
        let got = memory.word(page, 0).load(Ordering::Relaxed);
        if got != expected {
            errors.push(PageError::Lost {
                page,
                expected,
                got,
            });
        }
        let got = memory.word(page, 1).load(Ordering::Relaxed);
        if got != page as u64 {
            errors.push(PageError::Misload { page, got });
        }
    }
    Ok(errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planted_errors_are_found_and_counted() {
        let memory = Memory::kernel(100 * PAGE).expect("mapping");
        for page in 0..memory.pages() {
            memory.word(page, 0).store(8, Ordering::Relaxed);
            memory.word(page, 1).store(page as u64, Ordering::Relaxed);
        }
        assert_eq!(check(&memory, 8).expect("a check"), Found::default());
        memory.word(90, 0).store(5, Ordering::Relaxed);
        memory.word(17, 0).store(9, Ordering::Relaxed);
        memory.word(17, 1).store(90, Ordering::Relaxed);
        let found = check(&memory, 8).expect("a check");
        assert_eq!((found.lost, found.misloads), (4, 1));
        assert_eq!(
            found.errors,
            [
                PageError::Lost {
                    page: 17,
                    expected: 8,
                    got: 9
                },
                PageError::Misload { page: 17, got: 90 },
                PageError::Lost {
                    page: 90,
                    expected: 8,
                    got: 5
                },
            ]
        );
    }

    #[test]
    fn the_lines_are_the_sources() {
        let lost = PageError::Lost {
            page: 0x5aa,
            expected: 32746,
            got: 32743,
        };
        assert_eq!(
            lost.to_string(),
            "Error on 0x5aa000, expected 32746, got 32743, 3 data loss!"
        );
        let misload = PageError::Misload { page: 1, got: 7 };
        assert_eq!(
            misload.to_string(),
            "Error on 0x1000, expected index 1, got 7, misload!"
        );
    }
}
