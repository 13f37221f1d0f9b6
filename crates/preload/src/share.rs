//! How the processes of a tree share its limit: equal parts for those that want more than that (max-min fairness).
//!
//! The *level* is the part at which all of the limit is given out: who has less keeps what it has, the others get the level.
//! Nobody knows what another wants, only what it has, so each works out its own share, again and again: what the others leave,
//! and below the level more than that, a step at a time: those above it, who see the sum, make room meanwhile. In the end nobody
//! is above the level who has not what others leave, and the sum is the limit. Who rests gives way to the others, little by
//! little; when it goes on it comes back to the level as one does who begins.

/// What another process says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Bytes in memory.
    pub bytes: u64,
    /// Whether they can become fewer.
    pub gives: Gives,
}

/// Whether a process can give up memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gives {
    /// It can.
    #[default]
    Up,
    /// It has more than its share, and cannot give it up for now.
    NoMore,
    /// No limit is held there.
    Nothing,
}

/// What a process may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Bytes.
    pub bytes: u64,
    /// What it may have if others of its size grow as it does. An engine starts near half of it.
    pub at_first: u64,
}

/// Bytes by which a process below the level grows before it looks again: what another gives up in about that time.
const STEP: u64 = 256 << 10;

/// One part in so many of a step is left where the sum is far over the limit. It is not none: who is stopped gives up nothing.
const LEAST_STEP: u64 = 16;

/// The sum is far over the limit by one part in so many of it.
const FAR_OVER: u64 = 20;

/// A process that rests gives up one part in so many of what it has at each look, while less than one part in so many of the
/// limit is free: as long as others take it.
const RESTING_STEP: u64 = 128;
const RESTING_FROM: u64 = 32;

/// Bytes that an engine may have free, two times what its marks are, where these are no larger part of its limit.
const MOST_FREE: u64 = 2 << 20;

/// Bytes that a process needs to run at all: code and data of its libraries and the engine, which cannot leave or come back at
/// once.
const LEAST: u64 = 8 << 20;

/// One part in so many of the limit is for those who hold it, whatever the others have; and no [`LEAST`] is more than that.
const PROTECTED: u64 = 4;

/// A process that works out its share.
#[derive(Clone, Copy, Debug, Default)]
pub struct Own {
    /// Bytes it has in memory.
    pub bytes: u64,
    /// Its share when it last looked.
    pub last: u64,
    /// It cannot give up what it has more than that.
    pub is_over: bool,
    /// It has done next to nothing of late.
    pub rests: bool,
}

/// What of `limit` a process may have.
#[must_use]
pub fn share(limit: u64, process: Own, others: impl Iterator<Item = Part> + Clone) -> Share {
    let Own {
        bytes: own,
        last,
        is_over,
        rests,
    } = process;
    let sum = own.saturating_add(sum(others.clone().map(|part| part.bytes)));
    let held = held(limit, others.clone());
    // Among those who cannot nobody gives way to the others.
    let gives = |part: &Part| part.gives == Gives::Up || is_over && part.gives == Gives::NoMore;
    let stays = |part: &Part| !gives(part) && part.gives != Gives::Nothing;
    let bytes = |part: Part| part.bytes;
    let pool = held.saturating_sub(self::sum(others.clone().filter(stays).map(bytes)));
    let those = others.filter(gives).map(bytes);
    let left = pool.saturating_sub(self::sum(those.clone()));
    let level = level(pool, those.clone());
    // What is left is not promised to each of several that may grow at the same time.
    let peers = those.filter(|&bytes| bytes >= (own / 2).min(least(limit)));
    let parts = peers.count() as u64 + 1;
    let grown = |from: u64| from.min(left) + left.saturating_sub(from) / parts;
    let most_step = STEP.min(limit / 128);
    let far_over = (limit / FAR_OVER).max(1);
    let over = sum.saturating_sub(limit).min(far_over);
    // An engine keeps some of its share free: that it has less is no reason for a smaller one.
    let from = last.clamp(own, own + (own / 8).min(MOST_FREE.max(own / 32)));
    let step = (most_step * (far_over - over) / far_over).max(most_step / LEAST_STEP);
    let mut most = grown(from).max(level.min(from + step));
    if rests && sum > own && sum >= limit - limit / RESTING_FROM {
        most = most.min(own - own / RESTING_STEP);
    }
    Share {
        bytes: most.max(least(limit)),
        at_first: grown(own)
            .max(own)
            .max(level.min(limit / PROTECTED))
            .max(least(limit)),
    }
}

/// Whether `limit` can be held where a process cannot do with less than `own` bytes, if every other gives up all it can; or is
/// held as it is.
#[must_use]
pub fn can_be_held(limit: u64, own: u64, others: impl Iterator<Item = Part> + Clone) -> bool {
    let stays = |part: Part| match part.gives {
        Gives::Up => part.bytes.min(least(limit)),
        Gives::NoMore => part.bytes,
        Gives::Nothing => 0,
    };
    let part = |part: Part| match part.gives {
        Gives::Nothing => 0,
        _ => part.bytes,
    };
    let held = held(limit, others.clone());
    let rest = others.clone().map(part).filter(|&bytes| bytes > 0);
    let is_alone = rest.clone().next().is_none();
    let most = if is_alone {
        held
    } else {
        held + held / FAR_OVER
    };
    own.saturating_add(sum(rest)) <= most || own.saturating_add(sum(others.map(stays))) <= held
}

/// The sum of what stands in the table, whatever that is.
pub(crate) fn sum(all: impl Iterator<Item = u64>) -> u64 {
    all.fold(0, u64::saturating_add)
}

fn least(limit: u64) -> u64 {
    LEAST.min(limit / PROTECTED)
}

/// What is left of `limit` for the processes that hold it.
fn held(limit: u64, others: impl Iterator<Item = Part>) -> u64 {
    let free = others.filter(|part| part.gives == Gives::Nothing);
    let taken = sum(free.map(|part| part.bytes));
    limit.saturating_sub(taken).max(limit / PROTECTED)
}

/// The most that one more process gets of `pool` if each of the others keeps what it has up to as much.
fn level(pool: u64, others: impl Iterator<Item = u64> + Clone) -> u64 {
    let mut level = 0;
    loop {
        let (mut rest, mut count) = (pool, 1);
        for bytes in others.clone() {
            if bytes <= level {
                rest = rest.saturating_sub(bytes);
            } else {
                count += 1;
            }
        }
        // It rises as those below it turn out to be small.
        let next = rest / count;
        if next <= level {
            return level;
        }
        level = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn parts(those: &[(u64, Gives)]) -> impl Iterator<Item = Part> + Clone {
        those.iter().map(|&(mib, gives)| Part {
            bytes: mib * MIB,
            gives,
        })
    }

    fn having(mib: u64) -> Own {
        Own {
            bytes: mib * MIB,
            ..Own::default()
        }
    }

    fn mib_of(limit: u64, own: u64, is_over: bool, those: &[(u64, Gives)]) -> u64 {
        let own = Own {
            bytes: own * MIB,
            is_over,
            ..Own::default()
        };
        share(limit * MIB, own, parts(those)).bytes / MIB
    }

    #[test]
    fn who_is_alone_has_all_and_small_ones_keep_what_they_have() {
        use Gives::Up;
        assert_eq!(mib_of(100, 0, false, &[]), 100);
        assert_eq!(mib_of(100, 30, false, &[]), 100);
        assert_eq!(mib_of(100, 30, false, &[(7, Up), (5, Up)]), 88);
        // The other may grow at the same time: half of the 60 that are left.
        assert_eq!(mib_of(100, 30, false, &[(10, Up)]), 60);
        // 100 = 10 + 45 + 45.
        assert_eq!(mib_of(100, 45, false, &[(10, Up), (60, Up)]), 45);
        assert_eq!(mib_of(100, 60, false, &[(10, Up), (45, Up)]), 45);
        // Nobody else uses the rest: it comes to 70 in the end.
        assert_eq!(mib_of(100, 60, false, &[(10, Up), (20, Up)]), 63);
    }

    #[test]
    fn who_is_below_the_level_grows_step_by_step() {
        let limit = 128 * MIB;
        let grows_by = |own: u64, other: u64| {
            let others = [(other, Gives::Up)];
            share(limit, having(own), parts(&others)).bytes - own * MIB
        };
        assert_eq!(grows_by(20, 108), 256 << 10);
        assert_eq!(grows_by(20, 100), 4 * MIB, "half of what is left");
        let slower = grows_by(20, 110);
        assert!((16 << 10) < slower && slower < 256 << 10, "{slower}");
        assert_eq!(grows_by(20, 120), 16 << 10, "far over: slowly");
        assert_eq!(grows_by(63, 120), 16 << 10);
        assert_eq!(grows_by(64, 120), 0, "the level");
        let last = 20 * MIB + (500 << 10);
        let others = [(120, Gives::Up)];
        let goes_on = |last| {
            let own = Own { last, ..having(20) };
            share(limit, own, parts(&others)).bytes
        };
        assert_eq!(goes_on(last), last + (16 << 10), "kept free");
        assert_eq!(goes_on(30 * MIB), 22 * MIB + (16 << 10), "not used");
        assert_eq!(grows_by(2, 126), 6 * MIB, "what is needed to run at all");
    }

    #[test]
    fn what_cannot_leave_is_taken_off() {
        use Gives::{NoMore, Nothing, Up};
        for stuck in [NoMore, Nothing] {
            assert_eq!(mib_of(100, 40, false, &[(60, stuck)]), 40);
            // 40 = 20 + 20.
            assert_eq!(mib_of(100, 25, false, &[(60, stuck), (25, Up)]), 20);
        }
        // Where no limit is held the others have a quarter.
        assert_eq!(mib_of(100, 20, false, &[(300, Nothing)]), 25);
        assert_eq!(mib_of(100, 20, false, &[(300, Nothing), (20, Up)]), 12);
        assert_eq!(mib_of(100, 20, false, &[(95, NoMore)]), 8);
        // Those who cannot give up more share among themselves.
        let others = [(30, NoMore), (30, NoMore), (30, Up)];
        assert_eq!(mib_of(100, 30, true, &others), 25);
        assert_eq!(mib_of(100, 30, false, &others), 20);
    }

    #[test]
    fn an_engine_starts_when_it_may_be_needed_and_no_sooner() {
        use Gives::Up;
        let at_first = |own: u64, those: &[(u64, Gives)]| {
            share(100 * MIB, having(own), parts(those)).at_first / MIB
        };
        assert_eq!(at_first(10, &[]), 100);
        assert_eq!(at_first(10, &[(3, Up)]), 97);
        assert_eq!(at_first(2, &[(97, Up)]), 25, "a shell beside a large one");
        // Five of 16 that grow alike: all of the rest would be promised five times.
        assert_eq!(at_first(16, &[(16, Up); 4]), 25);
        assert_eq!(at_first(10, &[(10, Up); 1]), 50);
        assert_eq!(at_first(3, &[(3, Up); 33]), 8, "as little as there is");
    }

    #[test]
    fn a_limit_cannot_be_held_where_too_much_cannot_leave() {
        use Gives::{NoMore, Nothing, Up};
        let holds =
            |own: u64, those: &[(u64, Gives)]| can_be_held(100 * MIB, own * MIB, parts(those));
        assert!(holds(100, &[]) && !holds(101, &[]));
        assert!(holds(90, &[(60, Up)]), "it gives up");
        assert!(!holds(95, &[(60, Up)]), "not all");
        assert!(!holds(60, &[(60, NoMore)]));
        assert!(holds(52, &[(52, NoMore)]), "hardly over");
        assert!(holds(40, &[(60, NoMore)]));
        assert!(holds(20, &[(300, Nothing)]) && !holds(30, &[(300, Nothing)]));
    }

    /// A process of the simulation below.
    #[derive(Clone, Copy)]
    struct Simulated {
        wants: u64,
        has: u64,
        /// Its share when it last looked.
        last: u64,
        is_stopped: bool,
        rests: bool,
    }

    /// What an engine keeps free.
    const FREE: u64 = 300 << 10;

    /// One look of each in turn; growth and shrinking as fast as real ones at most.
    fn look(limit: u64, all: &mut [Simulated]) {
        for at in 0..all.len() {
            let others = all.iter().enumerate().filter(|&(other, _)| other != at);
            let others = others.map(|(_, one)| Part {
                bytes: one.has,
                gives: Gives::Up,
            });
            let Simulated {
                wants,
                has,
                last,
                is_stopped,
                rests,
            } = all[at];
            let own = Own {
                bytes: has,
                last,
                is_over: false,
                rests,
            };
            let share = share(limit, own, others).bytes;
            if !is_stopped {
                all[at].last = share;
                let aim = (share - FREE).min(wants);
                all[at].has = aim.clamp(has.saturating_sub(STEP), has + 2 * STEP);
            }
        }
    }

    #[test]
    fn processes_come_to_equal_parts_that_sum_to_the_limit() {
        let mut state = 7_u64;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        for round in 0..40 {
            let limit = (64 + random(200)) * MIB;
            let count = 2 + random(6) as usize;
            let mut all: Vec<_> = (0..count)
                .map(|_| Simulated {
                    wants: random(2 * limit),
                    has: 0,
                    last: 0,
                    is_stopped: false,
                    rests: false,
                })
                .collect();
            // The first is there alone at first; nobody is held up before it can run.
            (0..2000).for_each(|_| look(limit, &mut all[..1]));
            assert_eq!(all[0].has, all[0].wants.min(limit - FREE));
            let mut started = 0;
            for one in &mut all[1..] {
                one.has = one.wants.min(LEAST);
                started += one.has;
            }
            all[0].has = all[0].has.min(limit.saturating_sub(started));
            let far = limit + limit / FAR_OVER + count as u64 * STEP;
            for _ in 0..4000 {
                look(limit, &mut all);
                let sum: u64 = all.iter().map(|one| one.has).sum();
                assert!(sum <= far, "{round}: {sum} of {limit}");
            }
            let sum: u64 = all.iter().map(|one| one.has).sum();
            let wanted: u64 = all.iter().map(|one| one.wants).sum();
            let spare = count as u64 * FREE + count as u64;
            assert!(sum <= limit, "{round}: {sum} of {limit}");
            assert!(
                sum + spare >= wanted.min(limit),
                "{round}: {sum} of {limit}"
            );
            let most = all.iter().map(|one| one.has).max().unwrap_or(0);
            for one in &all {
                // Who has less than another has what it wants.
                let fair = one.has == one.wants || one.has + spare >= most;
                assert!(fair, "{round}: {} of {}, {most}", one.has, one.wants);
            }
        }
    }

    /// The others do not wait for one that is stopped and so gives up nothing.
    #[test]
    fn one_that_is_stopped_holds_up_nobody() {
        let limit = 96 * MIB;
        let wants = limit;
        let mut all = [Simulated {
            wants,
            has: 0,
            last: 0,
            is_stopped: false,
            rests: false,
        }; 3];
        (0..2000).for_each(|_| look(limit, &mut all[..1]));
        all[0].is_stopped = true;
        (0..8000).for_each(|_| look(limit, &mut all));
        assert_eq!(all.map(|one| (one.has + FREE) / MIB), [96, 32, 32]);
        all[0].is_stopped = false;
        (0..2000).for_each(|_| look(limit, &mut all));
        assert_eq!(all.map(|one| (one.has + FREE) / MIB), [32, 32, 32]);
    }

    #[test]
    fn one_that_rests_gives_way_and_comes_back() {
        let limit = 96 * MIB;
        let simulated = |wants: u64| Simulated {
            wants: wants * MIB,
            has: 0,
            last: 0,
            is_stopped: false,
            rests: false,
        };
        let mut all = [simulated(60), simulated(50), simulated(50)];
        let mib = |all: &[Simulated; 3]| all.map(|one| (one.has + FREE) / MIB);
        (0..8000).for_each(|_| look(limit, &mut all));
        assert_eq!(mib(&all), [32, 32, 32]);
        all[0].rests = true;
        (0..8000).for_each(|_| look(limit, &mut all));
        assert_eq!(mib(&all), [8, 44, 44], "what is needed to run at all");
        // Others that have enough take no more.
        all[1].wants = 20 * MIB;
        all[2].wants = 20 * MIB;
        (0..8000).for_each(|_| look(limit, &mut all));
        assert_eq!(mib(&all)[0], 53, "most of what they leave");
        all[0].rests = false;
        all[1].wants = 50 * MIB;
        all[2].wants = 50 * MIB;
        (0..8000).for_each(|_| look(limit, &mut all));
        assert_eq!(mib(&all), [32, 32, 32]);
        let alone = Own {
            rests: true,
            ..having(40)
        };
        assert_eq!(share(limit, alone, parts(&[])).bytes, limit);
    }
}
