//! Tells of a device that does not answer.
//!
//! Who waits for it cannot: it waits in the system. So an engine with a device whose pages leave memory has one more thread,
//! which never waits for a device, and looks once a second. A device that hangs is told of once, and once more when it answers
//! again. Nothing is given up meanwhile: pages that cannot be read are waited for, pages that cannot be written stay.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use userswap_core::entry::MAX_AREAS;
use userswap_sys::signals::stderr_line;
use userswap_sys::timing::now_ns;

use crate::Error;
use crate::shared::Shared;
use crate::thread;

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Starts the thread, where there is a device to look at.
pub(crate) fn start(shared: &Arc<Shared>) -> Result<Option<JoinHandle<()>>, Error> {
    if !shared.waits_for_storage() {
        return Ok(None);
    }
    let shared = Arc::clone(shared);
    let body = move || {
        shared.start.pass();
        shared.run_watch();
    };
    thread::start(
        "userswap-watch".into(),
        "start the thread that watches devices",
        body,
    )
    .map(Some)
}

/// The handle of the thread.
pub(crate) fn lock<T>(handle: &Mutex<T>) -> MutexGuard<'_, T> {
    handle.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Whether there is a device that may not answer.
    pub(crate) fn waits_for_storage(&self) -> bool {
        let mut areas = self.swap.open_areas();
        areas.any(|area| area.device().leaves_memory())
    }

    fn run_watch(&self) {
        let mut silent_since = [None; MAX_AREAS];
        while !self.watch.is_stopped_within(INTERVAL) {
            let now = now_ns();
            for area in self.swap.open_areas() {
                let since = &mut silent_since[area.number()];
                let (device, late) = (area.device(), area.device().overdue(now));
                let seconds = |since: u64| now.saturating_sub(since) / 1_000_000_000;
                match (late, *since) {
                    (Some(late), None) => {
                        *since = Some(late.since_ns);
                        stderr_line(format_args!(
                            "userswap: {} has not answered for {} s: {} {} (the oldest a {}), and so do the threads that \
                             need it; nothing is lost, and it goes on when the device does",
                            device.name(),
                            seconds(late.since_ns),
                            late.requests,
                            if late.requests == 1 {
                                "request waits"
                            } else {
                                "requests wait"
                            },
                            if late.writing { "write" } else { "read" },
                        ));
                    }
                    (None, Some(began)) => {
                        *since = None;
                        stderr_line(format_args!(
                            "userswap: {} answers again, after {} s",
                            device.name(),
                            seconds(began)
                        ));
                    }
                    (Some(_), Some(_)) | (None, None) => {}
                }
            }
        }
    }
}
