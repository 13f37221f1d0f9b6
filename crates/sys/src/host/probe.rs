//! Does it really work here? A page goes out and comes back, and is compared.

use thiserror::Error;

use crate::Errno;
use crate::PAGE_SIZE;
use crate::mapping::{Mapping, MappingError};
use crate::uffd::{Open, OpenError, Outcome, Uffd};

/// Why the round trip failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProbeError {
    /// No userfaultfd.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// No memory to try it on.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// The kernel's userfaultfd cannot move pages.
    #[error("this kernel's userfaultfd cannot move pages (Linux 6.8 can)")]
    NoMove,
    /// A step was refused.
    #[error("{step} was refused: {errno}")]
    Refused {
        /// Which.
        step: &'static str,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The pages came back changed.
    #[error("pages moved out and back came back changed: this kernel's UFFDIO_MOVE cannot be used")]
    Changed,
}

/// How often a move that meets a changing address space is tried again.
const ATTEMPTS: usize = 1000;

/// Moves two pages out to a second range and back, and compares every byte.
///
/// The userfaultfd is of the kind that anyone may open. Takes some tens of microseconds.
pub fn probe_move() -> Result<(), ProbeError> {
    const LEN: usize = 2 * PAGE_SIZE;
    // SIGBUS, so that a step gone wrong cannot leave a thread waiting for ever.
    let uffd = Uffd::open(Open {
        sigbus: true,
        ..Open::default()
    })?;
    if !uffd.features().move_pages() {
        return Err(ProbeError::NoMove);
    }
    let (home, away) = (
        Mapping::reserve(LEN, PAGE_SIZE)?,
        Mapping::reserve(LEN, PAGE_SIZE)?,
    );
    // Best effort: a kernel without huge pages refuses, and has nothing to split.
    let _ = home.advise_no_huge();
    let pattern = |offset: usize| (offset / 7) as u8 ^ (offset / PAGE_SIZE) as u8;
    for offset in 0..LEN {
        // SAFETY: inside `home`, which nobody else knows; not yet registered, so no fault can be ours.
        unsafe { home.as_ptr().add(offset).write(pattern(offset)) };
    }
    for (step, range) in [
        ("registering the first range", &home),
        ("registering the second range", &away),
    ] {
        // SAFETY: our own range; the descriptor outlives every use of it here.
        unsafe { uffd.register(range.base(), LEN) }
            .map_err(|errno| ProbeError::Refused { step, errno })?;
    }
    move_all(&uffd, "moving out", away.base(), home.base(), LEN)?;
    move_all(&uffd, "moving back", home.base(), away.base(), LEN)?;
    for offset in 0..LEN {
        // SAFETY: inside `home`; both pages are present again, since both moves were complete.
        if unsafe { home.as_ptr().add(offset).read() } != pattern(offset) {
            return Err(ProbeError::Changed);
        }
    }
    Ok(())
}

fn move_all(
    uffd: &Uffd,
    step: &'static str,
    dst: usize,
    src: usize,
    len: usize,
) -> Result<(), ProbeError> {
    let mut done = 0;
    for _ in 0..ATTEMPTS {
        // SAFETY: both ranges are the probe's own, and nobody touches them meanwhile.
        match unsafe { uffd.move_pages(dst + done, src + done, len - done, false) }.outcome() {
            Outcome::Complete => return Ok(()),
            Outcome::Partial(bytes) => done += bytes,
            Outcome::Again => {}
            Outcome::Refused(errno) => return Err(ProbeError::Refused { step, errno }),
        }
    }
    Err(ProbeError::Refused {
        step,
        errno: Errno::AGAIN,
    })
}
