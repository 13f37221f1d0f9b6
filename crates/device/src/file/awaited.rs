//! Requests that the system has not answered yet: for whoever tells that a device hangs, since those who wait cannot.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed},
};
use std::time::Duration;

use userswap_core::device::Overdue;
use userswap_sys::timing::now_ns;

/// Requests that are kept account of. Where there are more at once, these tell enough.
const PLACES: usize = 32;

/// In a place: the request is a write. The rest is when it was made, in nanoseconds, which is never 0.
const WRITING: u64 = 1;

pub(super) struct Awaited {
    places: [AtomicU64; PLACES],
}

/// A request that is under way as long as this lives.
#[must_use = "a request is answered when this is dropped"]
pub(super) struct Request<'a>(Option<&'a AtomicU64>);

impl Drop for Request<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.0 {
            place.store(0, Relaxed);
        }
    }
}

impl Awaited {
    pub(super) const fn new() -> Self {
        Self {
            places: [const { AtomicU64::new(0) }; PLACES],
        }
    }

    /// A request is made now.
    pub(super) fn begin(&self, writing: bool) -> Request<'_> {
        let made = now_ns() & !WRITING | u64::from(writing);
        let taken = |place: &&AtomicU64| {
            // Relaxed, here and in all of this: the times tell everything.
            place.load(Relaxed) == 0 && place.compare_exchange(0, made, Acquire, Relaxed).is_ok()
        };
        Request(self.places.iter().find(taken))
    }

    /// Those that are older than `patience` at `now_ns`.
    pub(super) fn overdue(&self, now_ns: u64, patience: Duration) -> Option<Overdue> {
        let patience = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        let made = self.places.iter().map(|place| place.load(Relaxed));
        let late = made.filter(|&made| made != 0 && now_ns.saturating_sub(made) > patience);
        late.fold(None, |all: Option<Overdue>, made| {
            let one = Overdue {
                since_ns: made & !WRITING,
                requests: 1,
                writing: made & WRITING != 0,
            };
            let Some(all) = all else { return Some(one) };
            let oldest = if one.since_ns < all.since_ns {
                one
            } else {
                all
            };
            Some(Overdue {
                requests: all.requests + 1,
                ..oldest
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_late_is_told_with_the_oldest() {
        let awaited = Awaited::new();
        let second = Duration::from_secs(1);
        let write = awaited.begin(true);
        let started = now_ns();
        let reads: Vec<_> = (0..3).map(|_| awaited.begin(false)).collect();
        assert_eq!(awaited.overdue(now_ns(), second * 1000), None);
        let late = awaited
            .overdue(started + 3_000_000_000, second)
            .expect("late");
        assert!(late.since_ns <= started && late.writing, "{late:?}");
        assert!((1..=4).contains(&late.requests));
        let all = awaited
            .overdue(now_ns() + 3_000_000_000, second)
            .expect("late");
        assert_eq!((all.since_ns, all.requests), (late.since_ns, 4));
        drop(write);
        let rest = awaited
            .overdue(now_ns() + 3_000_000_000, second)
            .expect("late");
        assert_eq!((rest.requests, rest.writing), (3, false));
        drop(reads);
        assert_eq!(awaited.overdue(u64::MAX, second), None);
    }

    #[test]
    fn more_than_there_are_places_for_do_no_harm() {
        let awaited = Awaited::new();
        let many: Vec<_> = (0..2 * PLACES).map(|_| awaited.begin(false)).collect();
        let late = awaited.overdue(u64::MAX, Duration::ZERO).expect("late");
        assert_eq!(late.requests, PLACES);
        drop(many);
        assert_eq!(awaited.overdue(u64::MAX, Duration::ZERO), None);
    }
}
