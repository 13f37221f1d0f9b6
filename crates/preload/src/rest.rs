//! Whether the program has done next to nothing of late: others may have better use for its memory.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::raw::{self, Whose};

/// How long it is looked at at a time, and how often it must have rested in turn: a fifth of a second in all.
const PERIOD: Duration = Duration::from_millis(20);
const PERIODS: u32 = 10;

/// It rests where its threads take less than one part in so many of the time, and bring in no more than so many pages.
const BUSY: u32 = 16;
const FEW_PAGES: u64 = 16;

/// A period in which nobody looked counts as so many at most.
const MOST_AT_ONCE: u128 = 2;

/// What its last periods were like.
#[derive(Default)]
pub(crate) struct Rest {
    began: Duration,
    by_then: Used,
    /// Periods of rest in turn.
    rested: u32,
}

/// What the program's threads have used so far.
#[derive(Clone, Copy, Default)]
struct Used {
    time: Duration,
    /// How often another thread took their CPU from them: they would have worked.
    preempted: u64,
    /// Pages that came in for them.
    pages_in: u64,
}

impl Rest {
    /// Looks; from the same thread each time, which is not the program's. `pages_in` pages have come in so far.
    pub(crate) fn look(&mut self, pages_in: u64) -> bool {
        let now = time(ClockId::Monotonic);
        if now.saturating_sub(self.began) >= PERIOD {
            let less = |process: Duration, thread: Duration| process.saturating_sub(thread);
            let preempted = |whose| raw::usage(whose).preempted;
            let used = Used {
                time: less(time(ClockId::ProcessCPUTime), time(ClockId::ThreadCPUTime)),
                preempted: preempted(Whose::Process).saturating_sub(preempted(Whose::Thread)),
                pages_in,
            };
            self.note(now, used);
        }
        self.rested >= PERIODS
    }

    /// A period ends at `now`, by when the program's threads have used so much.
    fn note(&mut self, now: Duration, used: Used) {
        let (period, by_then) = (now.saturating_sub(self.began), self.by_then);
        let is_first = self.began.is_zero();
        let rests = used.time.saturating_sub(by_then.time) * BUSY < period
            && used.preempted <= by_then.preempted
            && used.pages_in.saturating_sub(by_then.pages_in) <= FEW_PAGES;
        if rests && !is_first {
            let periods = period.as_nanos() / PERIOD.as_nanos();
            self.rested = self.rested.saturating_add(periods.min(MOST_AT_ONCE) as u32);
        } else {
            self.rested = 0;
        }
        (self.began, self.by_then) = (now, used);
    }
}

/// What `clock` says.
pub(crate) fn time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rests_after_some_time_and_not_once_it_works() {
        let mut rest = Rest::default();
        let at = |periods: u32| PERIOD * (1000 + periods);
        let used = |time: Duration| Used {
            time,
            ..Used::default()
        };
        (0..PERIODS).for_each(|period| rest.note(at(period), used(Duration::ZERO)));
        assert!(rest.rested < PERIODS, "the first tells nothing");
        let little = PERIOD / BUSY / 2;
        rest.note(at(PERIODS), used(little));
        assert!(rest.rested >= PERIODS);
        let works = [
            used(little + PERIOD),
            Used {
                preempted: 1,
                ..used(little)
            },
            Used {
                pages_in: FEW_PAGES + 1,
                ..used(little)
            },
        ];
        for work in works {
            let before = (rest.began, rest.by_then, rest.rested);
            rest.note(at(PERIODS + 1), work);
            assert_eq!(rest.rested, 0);
            (rest.began, rest.by_then, rest.rested) = before;
        }
        rest.rested = 0;
        rest.note(at(3 * PERIODS), used(little));
        assert_eq!(rest.rested, 2, "nobody looked for long");
    }

    #[test]
    fn a_thread_that_works_is_seen() {
        let mut rest = Rest::default();
        let is_at_work = std::sync::atomic::AtomicBool::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while is_at_work.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            for _ in 0..15 {
                std::thread::sleep(PERIOD);
                rest.look(0);
            }
            is_at_work.store(false, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(rest.rested < PERIODS);
    }
}
