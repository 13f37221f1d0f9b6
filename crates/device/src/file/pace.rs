//! Whether to look for the answer to a read of one page, or to sleep until it comes.
//!
//! Who sleeps leaves a CPU idle that takes 10 to 30 us to wake (2 virtual CPUs, Linux 6.18; `userswap bench fault`), as long
//! as fast storage takes to answer. Looking costs the CPU, for no longer than sleeping might have cost; by one thread at a
//! time, since only one has the ring. Which way gets the page sooner is measured: storage in memory answers within the call.
//! Where threads want more CPUs than there are, who has looked in vain is the last to get a CPU back: that counts, too.

use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// For how long an answer is looked for at most, in nanoseconds.
pub(super) const LONGEST_NS: u64 = 60_000;

/// By so much an answer must come sooner for a way to be better.
const GAIN_NS: u64 = 3_000;

/// One in so many reads goes the other way, to see what has become of it; where that took several times as long, fewer do.
const EVERY: u32 = 32;
const SELDOM: u32 = 256;
const SEVERAL: u64 = 4;

/// Answers that tell enough of a way to begin with.
const ENOUGH: u32 = 8;

/// How much the latest answer counts, when there are many: one part in so many.
const WEIGHT: u32 = 64;

/// A later answer counts as this: a device that hung once is not judged by that for long.
const LATEST_NS: u64 = 1_000_000;

/// When answers came, in nanoseconds. All is relaxed, here and below: a guess by the past.
struct Average {
    ns: AtomicU64,
    answers: AtomicU32,
}

impl Average {
    const fn new() -> Self {
        Self {
            ns: AtomicU64::new(0),
            answers: AtomicU32::new(0),
        }
    }

    fn get(&self) -> u64 {
        self.ns.load(Relaxed)
    }

    fn is_known(&self) -> bool {
        self.answers.load(Relaxed) >= ENOUGH
    }

    fn note(&self, ns: u64) {
        let answers = (self.answers.load(Relaxed) + 1).min(WEIGHT);
        let (before, ns, weight) = (self.get(), ns.min(LATEST_NS), u64::from(answers));
        self.ns
            .store(before - before / weight + ns / weight, Relaxed);
        self.answers.store(answers, Relaxed);
    }
}

pub(super) struct Pace {
    looked: Average,
    slept: Average,
    /// Reads until one goes the other way.
    left: AtomicU32,
    /// Another CPU may do the storage's work meanwhile.
    has_others: AtomicBool,
}

impl Pace {
    /// Nothing is looked for yet.
    pub(super) const fn new() -> Self {
        Self {
            looked: Average::new(),
            slept: Average::new(),
            left: AtomicU32::new(EVERY),
            has_others: AtomicBool::new(false),
        }
    }

    /// The process may use `cpus` CPUs.
    pub(super) fn note_cpus(&self, cpus: usize) {
        self.has_others.store(cpus > 1, Release);
    }

    /// Whether the answer to the next read shall be looked for, for [`LONGEST_NS`].
    pub(super) fn looks(&self) -> bool {
        if !self.has_others.load(Acquire) {
            return false;
        }
        let pays = self.pays();
        let other = if pays { &self.slept } else { &self.looked };
        let left = self.left.load(Relaxed);
        self.left.store(left.saturating_sub(1), Relaxed);
        pays != (left == 0 || !other.is_known())
    }

    fn pays(&self) -> bool {
        self.looked.get() + GAIN_NS < self.slept.get()
    }

    /// An answer has come after `ns`.
    pub(super) fn note(&self, looked: bool, ns: u64) {
        let (mut way, mut other) = (&self.slept, &self.looked);
        if looked {
            (way, other) = (other, way);
        }
        if looked != self.pays() {
            // As long as it is better, the other way goes on being tried.
            let left = if ns.saturating_add(GAIN_NS) < other.get() {
                0
            } else if way.get() < SEVERAL * other.get() {
                EVERY
            } else {
                SELDOM
            };
            self.left.store(left, Relaxed);
        }
        way.note(ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `reads`, those that are looked for, one in `late_in` of them late.
    fn looks_of(pace: &Pace, reads: usize, late_in: usize, looked_ns: u64, slept_ns: u64) -> usize {
        let mut looked = 0;
        for _ in 0..reads {
            let looks = pace.looks();
            looked += usize::from(looks);
            let is_late = looks && looked % late_in == 0;
            let looked_ns = if is_late { 500_000 } else { looked_ns };
            pace.note(looks, if looks { looked_ns } else { slept_ns });
        }
        looked
    }

    fn looks(pace: &Pace, looked_ns: u64, slept_ns: u64) -> usize {
        looks_of(pace, 10_000, usize::MAX, looked_ns, slept_ns)
    }

    #[test]
    fn the_way_that_answers_sooner_is_taken() {
        let pace = Pace::new();
        assert_eq!(looks(&pace, 1, 1_000_000), 0, "before it knows the CPUs");
        pace.note_cpus(1);
        assert_eq!(looks(&pace, 1, 1_000_000), 0, "nobody else could answer");
        for (looked_ns, slept_ns, looked) in [
            (25_000, 45_000, 9_600..9_990),
            // In memory: there is nothing to wait for.
            (20_000, 1_500, 30..60),
            (40_000, 70_000, 9_600..9_990),
            // Slow, or hanging: it is looked for in vain.
            (900_000, 900_000, 100..400),
            (25_000, 45_000, 9_600..9_990),
        ] {
            pace.note_cpus(2);
            looks(&pace, looked_ns, slept_ns);
            let found = looks(&pace, looked_ns, slept_ns);
            assert!(
                looked.contains(&found),
                "{looked_ns} and {slept_ns} ns: {found} of 10,000"
            );
        }
    }

    #[test]
    fn what_is_often_late_is_left_and_taken_up_again() {
        let pace = Pace::new();
        pace.note_cpus(2);
        looks(&pace, 33_000, 60_000);
        // Now and then an answer is late anywhere.
        assert!(looks_of(&pace, 10_000, 200, 33_000, 60_000) > 9_000);
        // Others want the CPUs.
        looks_of(&pace, 1_000, 40, 19_000, 20_000);
        let looked = looks_of(&pace, 10_000, 40, 19_000, 20_000);
        assert!((100..2_000).contains(&looked), "{looked} of 10,000");
        looks(&pace, 33_000, 60_000);
        assert!(looks(&pace, 33_000, 60_000) > 9_000, "and back");
    }
}
