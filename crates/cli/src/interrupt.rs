//! SIGINT, SIGTERM and SIGHUP end a run in an orderly way: loops look at a flag and return, so that what was set up is
//! taken away by its guard.

use std::ffi::c_int;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use anyhow::Context;

use crate::os;

static RECEIVED: AtomicI32 = AtomicI32::new(0);
static HELD: AtomicUsize = AtomicUsize::new(0);

/// The run was stopped by this signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped by signal {0}")]
pub(crate) struct Interrupted(pub(crate) i32);

/// While one of these lives, no number of signals ends the process before its clean-up.
#[derive(Debug)]
pub(crate) struct Hold(());

impl Hold {
    pub(crate) fn new() -> Self {
        HELD.fetch_add(1, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        HELD.fetch_sub(1, Ordering::SeqCst);
    }
}

extern "C" fn received(signal: c_int) {
    let again = RECEIVED.swap(signal, Ordering::SeqCst) != 0;
    // A second signal means that the first took too long; with nothing to clean up there is nothing to wait for.
    if again && HELD.load(Ordering::SeqCst) == 0 {
        os::exit_now(128 + signal);
    }
}

/// Installs the handlers.
pub(crate) fn install() -> anyhow::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        os::on_signal(signal, received).context("cannot install a signal handler")?;
    }
    Ok(())
}

/// Whether a signal asked the run to stop.
pub(crate) fn requested() -> bool {
    RECEIVED.load(Ordering::Relaxed) != 0
}

/// Returns an error once a signal asked the run to stop.
pub(crate) fn check() -> Result<(), Interrupted> {
    match RECEIVED.load(Ordering::Relaxed) {
        0 => Ok(()),
        signal => Err(Interrupted(signal)),
    }
}
