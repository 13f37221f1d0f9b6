//! What a fault takes at least on this host, whatever resolves it.
//!
//! A page is missing, its contents lie ready; the handler only copies them in. The handler reads the clock when it is
//! entered and before it returns, which parts the time into delivery and copy.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::ensure;
use serde::Serialize;
use userswap_sys::mapping::Mapping;
use userswap_sys::timing::now_ns;
use userswap_sys::uffd::{Open, Uffd};

use super::latency::{Figures, Latencies};
use crate::interrupt;
use crate::os::{SigbusHandler, read_byte};
use crate::size::PAGE;

/// One floor.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Floor {
    bench: &'static str,
    pub(super) what: &'static str,
    #[serde(flatten)]
    pub(super) figures: Figures,
}

impl Floor {
    fn new(what: &'static str, latencies: &Latencies) -> Self {
        Self {
            bench: "floor",
            what,
            figures: latencies.figures(),
        }
    }
}

/// Pages touched, and so samples of each.
const SAMPLES: usize = 16_384;

/// What the handler works with: set before the first fault, cleared after the last.
static UFFD: AtomicPtr<Uffd> = AtomicPtr::new(ptr::null_mut());
static READY: AtomicUsize = AtomicUsize::new(0);

/// When the handler was entered, and when it had copied.
static ENTERED: AtomicU64 = AtomicU64::new(0);
static COPIED: AtomicU64 = AtomicU64::new(0);

/// All floors. Faults of its own are taken meanwhile, so no engine may run yet.
pub(super) fn measure() -> anyhow::Result<Vec<Floor>> {
    let mut clock = Latencies::new()?;
    for _ in 0..SAMPLES {
        clock.record(Instant::now());
    }
    let (mut signal, mut copy, mut both) =
        (Latencies::new()?, Latencies::new()?, Latencies::new()?);
    let uffd = Uffd::open(Open {
        sigbus: true,
        ..Open::default()
    })?;
    let ready = Mapping::reserve(PAGE, PAGE)?;
    ready.populate(0..PAGE)?;
    let missing = Mapping::reserve(SAMPLES * PAGE, PAGE)?;
    missing.advise_no_huge()?;
    // SAFETY: our own range, which the handler fills; the descriptor lives until after the last touch.
    unsafe { uffd.register(missing.base(), missing.len()) }?;
    READY.store(ready.base(), Ordering::Relaxed);
    UFFD.store(ptr::from_ref(&uffd).cast_mut(), Ordering::Release);
    let handler = SigbusHandler::install(copy_in)?;
    for page in 0..SAMPLES {
        interrupt::check()?;
        let start = now_ns();
        // SAFETY: inside `missing`, whose pages the handler fills with what `ready` holds.
        unsafe { read_byte(missing.as_ptr().add(page * PAGE)) };
        let end = now_ns();
        let (entered, copied) = (
            ENTERED.load(Ordering::Relaxed),
            COPIED.load(Ordering::Relaxed),
        );
        ensure!(
            start <= entered && copied <= end,
            "a touch of a missing page made no fault"
        );
        both.record_ns(end - start);
        copy.record_ns(copied - entered);
        signal.record_ns(end - start - (copied - entered));
    }
    drop(handler);
    UFFD.store(ptr::null_mut(), Ordering::Release);
    Ok(vec![
        Floor::new("floor: clock", &clock),
        Floor::new("floor: SIGBUS", &signal),
        Floor::new("floor: UFFDIO_COPY", &copy),
        Floor::new("floor: SIGBUS + COPY", &both),
    ])
}

/// In the signal handler: copies the page in that lies ready.
fn copy_in(address: usize) -> bool {
    ENTERED.store(now_ns(), Ordering::Relaxed);
    // SAFETY: null, or set by `measure`, whose descriptor outlives the handler.
    let Some(uffd) = (unsafe { UFFD.load(Ordering::Acquire).as_ref() }) else {
        return false;
    };
    let (page, ready) = (address & !(PAGE - 1), READY.load(Ordering::Relaxed));
    // SAFETY: only pages of `missing` are registered with this descriptor (others are refused); `ready` is a whole page
    // that nobody writes.
    let progress = unsafe { uffd.copy(page, ready, PAGE) };
    COPIED.store(now_ns(), Ordering::Relaxed);
    progress.is_complete()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_costs_more_than_its_parts() {
        let floors = match measure() {
            Ok(floors) => floors,
            Err(error) => {
                return crate::skip::skip(
                    "the_whole_costs_more_than_its_parts",
                    &error.to_string(),
                );
            }
        };
        let p50 = |index: usize| floors[index].figures.p50_ns;
        assert!(
            p50(0) < p50(1) && p50(1) < p50(3) && p50(2) < p50(3),
            "{floors:?}"
        );
        assert!(
            floors[1..]
                .iter()
                .all(|floor| floor.figures.count == SAMPLES as u64)
        );
    }
}
