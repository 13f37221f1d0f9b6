//! Schedules drawn at random: each is one path of those that the explorer tries all of.

use userswap_model::check;
use userswap_model::config::Config;
use userswap_model::explore::Schedule;
use userswap_model::machine::{Machine, initial};

/// A small random number generator (xorshift64*), so that a seed names a sample for ever.
pub(crate) struct Random(u64);

impl Random {
    /// From a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

/// A schedule of `config` to its end, or to the first violation. One thread goes on for a while more often
/// than not: threads that change at every step rarely meet where it matters.
pub(crate) fn draw(config: &Config, random: &mut Random) -> Schedule {
    let mut machine = Machine::new(config, initial(config));
    let (mut schedule, mut moves) = (Schedule::new(), Vec::new());
    let mut favourite = 0;
    loop {
        machine.moves(&mut moves);
        if moves.is_empty() || schedule.len() > 2_000 {
            return schedule;
        }
        if random.below(4) == 0 {
            favourite = random.below(config.threads.len());
        }
        let of_favourite: Vec<_> = moves.iter().filter(|go| go.thread == favourite).collect();
        let go = match of_favourite.len() {
            0 => moves[random.below(moves.len())],
            count => *of_favourite[random.below(count)],
        };
        schedule.push(go);
        let result = machine.make(go);
        if result
            .and_then(|()| check::always(config, &machine.state))
            .is_err()
        {
            return schedule;
        }
    }
}
