//! The race of section 1 in the engine itself: one page, one slot, two threads.

use loom::sync::Arc;
use loom::thread;

use super::{Model, Words, on_a_large_stack};
use crate::rule::{Kept, Rule};
use crate::soft::{SoftFrames, SoftMm, SoftSpace, SoftSwap, access};
use crate::space::Frames;
use crate::swap::{Mm, Swap, Way};

/// One thread loads, the other stores and pages out again: the store survives.
pub(super) const RACE: Model = Model {
    name: "a direct swap-in loses no store",
    preemptions: Some(3),
    run: race,
    rests_on: &[Rule::PinBeforeRead, Rule::ReleaseAfterPte],
};

fn page_out(swap: &SoftSwap, mm: &SoftMm) {
    if let Ok(staged) = swap.stage(mm, 0, 1) {
        let done = swap.write_back(staged.block, staged.mask);
        assert_eq!(done.failed, 0);
        swap.frames().release(staged.block, 1);
    }
}

fn race(kept: Kept) {
    on_a_large_stack(move || race_in_engine(kept));
}

fn race_in_engine(kept: Kept) {
    let frames = std::sync::Arc::new(SoftFrames::new(2));
    let swap = Swap::keeping(std::sync::Arc::clone(&frames), Way::Direct, kept);
    swap.add_area(Box::new(Words::new(1))).expect("an area");
    let mm: SoftMm = Mm::new(SoftSpace::new(frames, 1), 1, Some(1));
    access(&swap, &mm, 0, |page| page.fill(1)).expect("a first touch");
    page_out(&swap, &mm);
    let world = Arc::new((swap, mm));
    let other = Arc::clone(&world);
    let reader = thread::Builder::new().stack_size(1 << 16).spawn(move || {
        let found = access(&other.0, &other.1, 0, |page| page[0]);
        assert!(matches!(found, Ok(1 | 2)), "{found:?}");
    });
    let reader = reader.expect("a thread");
    let (swap, mm) = &*world;
    access(swap, mm, 0, |page| page.fill(2)).expect("stored");
    page_out(swap, mm);
    reader.join().expect("reader");
    assert_eq!(
        access(swap, mm, 0, |page| page[0]),
        Ok(2),
        "the store is lost"
    );
}
