//! The race of section 1 in the engine itself: one page, one slot, two threads.

use loom::sync::Arc;
use loom::thread::{Builder, JoinHandle};

use super::{Model, Words, on_a_large_stack};
use crate::device::PAGE_SIZE;
use crate::rule::{Kept, Rule};
use crate::soft::{SoftFrames, SoftMm, SoftSpace, SoftSwap, access};
use crate::space::Frames;
use crate::swap::{Mm, Swap, Way};

/// One thread loads, the other stores and pages out again: the store survives.
pub(super) const RACE: Model = Model {
    name: "a direct swap-in loses no store",
    preemptions: Some(3),
    run: |kept| on_a_large_stack(move || race(kept, Way::Direct)),
    rests_on: &[
        Rule::PinBeforeRead,
        Rule::ReleaseOnce,
        Rule::ReleaseAfterPte,
    ],
};

/// The same through the cache.
pub(super) const CACHED: Model = Model {
    name: "a cached swap-in loses no store",
    preemptions: Some(2),
    run: |kept| on_a_large_stack(move || race(kept, Way::Cached)),
    rests_on: &[],
};

/// One thread loads, the other drops the page: it stays dropped.
pub(super) const DROPPING: Model = Model {
    name: "a dropped page stays dropped",
    preemptions: None,
    run: |kept| on_a_large_stack(move || dropping(kept)),
    rests_on: &[Rule::RecheckPte, Rule::ReleaseWhenGivingUp],
};

/// One thread writes a staged page out while the other takes it back and stores. The writer does not spin on
/// a page that is just being deleted, either: loom gives up on an execution without end.
pub(super) const WRITING: Model = Model {
    name: "a page is taken back while it is written",
    preemptions: Some(3),
    run: |kept| on_a_large_stack(move || writing(kept)),
    rests_on: &[Rule::WriteBeforeDelete, Rule::StableWhileWritten],
};

fn page_out(swap: &SoftSwap, mm: &SoftMm) {
    if let Ok(staged) = swap.stage(mm, 0, 1) {
        let done = swap.write_back(staged.block, staged.mask);
        assert_eq!(done.failed, 0);
        swap.frames().release(staged.block, 1);
    }
}

type World = (SoftSwap, SoftMm);

/// One page with 1 in it, in memory.
fn world(kept: Kept, way: Way) -> Arc<World> {
    let frames = std::sync::Arc::new(SoftFrames::new(2));
    let swap = Swap::keeping(std::sync::Arc::clone(&frames), way, kept);
    swap.add_area(Box::new(Words::new(1))).expect("an area");
    let mm: SoftMm = Mm::new(SoftSpace::new(frames, 1), 1, Some(1));
    access(&swap, &mm, 0, |page| page.fill(1)).expect("a first touch");
    Arc::new((swap, mm))
}

fn beside(world: &Arc<World>, then: impl FnOnce(&World) + Send + 'static) -> JoinHandle<()> {
    let world = Arc::clone(world);
    let thread = Builder::new()
        .stack_size(1 << 16)
        .spawn(move || then(&world));
    thread.expect("a thread")
}

fn content((swap, mm): &World) -> u8 {
    access(swap, mm, 0, |page| page[0]).expect("the page can be accessed")
}

/// Nothing is left when the page is dropped.
fn check_empty((swap, mm): &World) {
    assert_eq!(swap.discard(mm, 0, 1).pinned, 0);
    assert_eq!(swap.frames().in_use(), 0, "a block is leaked");
    assert!(
        swap.areas().all(|area| area.used() == 0),
        "a slot is leaked"
    );
}

fn race(kept: Kept, way: Way) {
    let world = world(kept, way);
    page_out(&world.0, &world.1);
    let reader = beside(&world, |world| assert!(matches!(content(world), 1 | 2)));
    access(&world.0, &world.1, 0, |page| page.fill(2)).expect("stored");
    page_out(&world.0, &world.1);
    reader.join().expect("reader");
    assert_eq!(content(&world), 2, "the store is lost");
    check_empty(&world);
}

fn dropping(kept: Kept) {
    let world = world(kept, Way::Direct);
    page_out(&world.0, &world.1);
    let reader = beside(&world, |world| assert!(matches!(content(world), 0 | 1)));
    assert_eq!(world.0.discard(&world.1, 0, 1).pinned, 0);
    reader.join().expect("reader");
    assert_eq!(content(&world), 0, "the page is back");
    check_empty(&world);
}

fn writing(kept: Kept) {
    let world = world(kept, Way::Direct);
    let (swap, mm) = &*world;
    let staged = swap.stage(mm, 0, 1).expect("staged");
    let writer = beside(&world, move |(swap, _)| {
        assert_eq!(swap.write_back(staged.block, staged.mask).failed, 0);
        swap.frames().release(staged.block, 1);
    });
    let found = access(swap, mm, 0, |page| {
        std::mem::replace(page, [2; PAGE_SIZE])[0]
    });
    assert_eq!(found, Ok(1), "the page was nowhere");
    writer.join().expect("writer");
    assert_eq!(content(&world), 2, "the store is lost");
    check_empty(&world);
}
