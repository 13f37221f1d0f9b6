//! Whether the program has done next to nothing of late: others may have better use for its memory.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// How long it is looked at at a time, and how often it must have rested in turn: a fifth of a second in all.
const PERIOD: Duration = Duration::from_millis(20);
const PERIODS: u32 = 10;

/// It rests where its threads take less than one part in so many of the time.
const BUSY: u32 = 16;

/// What its last periods were like.
#[derive(Default)]
pub(crate) struct Rest {
    began: Duration,
    /// CPU time of the process by then, without this thread's.
    used: Duration,
    /// Periods of rest in turn.
    rested: u32,
}

impl Rest {
    /// Looks; from the same thread each time, which is not the program's.
    pub(crate) fn look(&mut self) -> bool {
        let now = time(ClockId::Monotonic);
        if now.saturating_sub(self.began) >= PERIOD {
            let process = time(ClockId::ProcessCPUTime);
            self.note(now, process.saturating_sub(time(ClockId::ThreadCPUTime)));
        }
        self.rested >= PERIODS
    }

    /// A period ends at `now`, by when the program's threads have used so much time.
    fn note(&mut self, now: Duration, used: Duration) {
        let period = now.saturating_sub(self.began);
        if used.saturating_sub(self.used) * BUSY < period {
            // A long one in which nobody looked is as good as several.
            let periods = period.as_nanos() / PERIOD.as_nanos();
            self.rested = self
                .rested
                .saturating_add(periods.min(PERIODS.into()) as u32);
        } else {
            self.rested = 0;
        }
        (self.began, self.used) = (now, used);
    }
}

fn time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rests_after_some_time_and_not_once_it_works() {
        let mut rest = Rest::default();
        let at = |periods: u32| PERIOD * periods;
        (1..PERIODS).for_each(|period| rest.note(at(period), Duration::ZERO));
        assert!(rest.rested < PERIODS);
        rest.note(at(PERIODS), PERIOD / BUSY / 2);
        assert!(rest.rested >= PERIODS);
        rest.note(at(PERIODS + 1), PERIOD);
        assert_eq!(rest.rested, 0);
        rest.note(at(2 * PERIODS + 1), PERIOD);
        assert!(rest.rested >= PERIODS, "nobody looked for long");
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
                rest.look();
            }
            is_at_work.store(false, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(rest.rested < PERIODS);
    }
}
