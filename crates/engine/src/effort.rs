//! How much is tried to make room for a charge before it goes over the limit.
//!
//! A thread that touches a page waits for it. Where the limit cannot be held, since what is in memory does not compress or is
//! in use all over, that has to come to an end soon: the work is bounded, whatever becomes of it.

/// What a step of the reclaimer came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Pages were staged or written.
    Worked,
    /// Staged pages were written, and nothing more can be staged now.
    Barren,
    /// Pages were written in vain: they are back where they were.
    InVain,
    /// There is nothing to do but wait for other threads' writes.
    OthersAtWork,
    /// Nothing can be staged and nothing is staged.
    Nothing,
}

/// What may be tried for one charge before it goes over the limit: it must not stand still where the limit cannot be held.
pub(crate) struct Tries {
    /// Steps that brought something: twice round every chunk, since the first may only have given second chances.
    worked: usize,
    /// Steps for which the hand went round everything and found nothing to stage.
    barren: usize,
    /// Blocks written in vain: what is there does not compress.
    in_vain: usize,
    /// Waits, of some 20 microseconds, for others who make room.
    waits: usize,
    /// Pauses, of a millisecond, where there is nothing to do.
    pauses: usize,
}

impl Tries {
    pub(crate) fn new(occupied: usize) -> Self {
        Self {
            worked: 256 + 2 * occupied,
            barren: 128,
            in_vain: 64,
            // A second or so: on a busy machine others may not run for long.
            waits: 20_000,
            pauses: 4,
        }
    }

    /// Whether there is one more after `step`.
    pub(crate) fn go_on(&mut self, step: Step) -> bool {
        let left = match step {
            Step::Worked => &mut self.worked,
            Step::Barren => &mut self.barren,
            Step::InVain => &mut self.in_vain,
            Step::OthersAtWork => &mut self.waits,
            Step::Nothing => &mut self.pauses,
        };
        *left = left.saturating_sub(1);
        *left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Engine;
    use crate::testing::{build_or_skip, fill_with_noise};

    const ALL: [Step; 5] = [
        Step::Worked,
        Step::Barren,
        Step::InVain,
        Step::OthersAtWork,
        Step::Nothing,
    ];

    #[test]
    fn every_kind_of_step_comes_to_an_end() {
        for step in ALL {
            let mut tries = Tries::new(1000);
            let mut steps = 1;
            while tries.go_on(step) {
                steps += 1;
                assert!(steps <= 20_000, "{step:?}");
            }
            // The others are not used up by it.
            for other in ALL.into_iter().filter(|&other| other != step) {
                assert!(tries.go_on(other), "{other:?} after {step:?}");
            }
        }
    }

    /// What does not compress is not asked again by a step that finds nothing else in a large region: one of many steps would
    /// do the work of all.
    #[test]
    fn a_step_goes_round_once() {
        let builder = Engine::builder().limit(256 << 20);
        let Some(engine) = build_or_skip(builder, "a_step_goes_round_once") else {
            return;
        };
        let mut region = engine.region(64 << 20).expect("a region");
        fill_with_noise(&mut region[..userswap_core::device::PAGE_SIZE], 1);
        let shared = engine.shared();
        let step = || (0..100).map(|_| shared.reclaim_step());
        assert!(step().any(|step| step == Step::InVain), "it compresses");
        assert_eq!(shared.reclaim_step(), Step::Nothing);
        let memory = shared.region_at(region.as_ptr() as usize).expect("listed");
        let passes = || (1..).find(|_| shared.swap.pass_over(&memory.mm, 0, 1) != 0);
        assert_eq!(
            passes(),
            Some(15),
            "14 passes are left, and one that takes it"
        );
    }
}
