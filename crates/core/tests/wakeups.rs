//! Nobody parks for an owner who is not going to release, and nobody's work is passed over: steps of
//! two threads put between each other through memory that calls back.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use support::hooked::{HookedFrames, HookedSpace, frames, space};
use support::{HANG, PLAIN, device, within_reason};
use userswap_core::page_table::PteState;
use userswap_core::space::{AddressSpace, Frame, Frames, Purpose, SpaceError};
use userswap_core::{Access, FaultError, Mm, PinResult, Swap, Way, bug};

struct World {
    swap: Swap<HookedFrames>,
    mm: Mm<HookedSpace>,
}

/// As many slots as pages, and all pages touched.
fn world(way: Way, pages: usize, around: usize) -> Arc<World> {
    let swap = Swap::new(frames(), way);
    swap.add_area(Box::new(device(pages as u64, PLAIN).0))
        .expect("a first area");
    let mm = space(&swap, pages, around);
    let world = World { swap, mm };
    for page in 0..pages {
        world.bring(page).expect("a first touch");
    }
    Arc::new(world)
}

impl World {
    fn fault(&self, page: usize) -> Result<usize, FaultError> {
        let access = Access {
            page,
            write: true,
            max_pages: 64,
            wait: true,
        };
        self.swap.fault(&self.mm, access)
    }

    fn bring(&self, page: usize) -> Result<(), FaultError> {
        while self.mm.table.load(page).state() != PteState::Present {
            self.fault(page)?;
        }
        Ok(())
    }

    fn page_out(&self) {
        let staged = self.swap.stage(&self.mm, 0, u64::MAX).expect("staged");
        let done = self.swap.write_back(staged.block, staged.mask);
        assert_eq!(done.written, staged.mask);
        self.swap.frames().release(staged.block, 1);
    }

    fn used(&self) -> u64 {
        self.swap.areas().map(|area| area.used()).sum()
    }
}

#[test]
fn a_fault_does_not_park_for_a_page_that_was_staged_again_under_its_entry() {
    for way in support::SAFE {
        within_reason(move || {
            let world = world(way, 1, 1);
            world.page_out();
            let again = Arc::clone(&world);
            // After the fault has found nothing in the cache: in, out again, the same slot, and not
            // written, for nobody knows how long.
            *world.swap.frames().before_take.lock().expect("hook") = Some(Box::new(move || {
                again.bring(0).expect("in");
                let staged = again.swap.stage(&again.mm, 0, 1).expect("staged");
                again.swap.frames().release(staged.block, 1);
            }));
            assert_eq!(world.fault(0), Ok(0), "the access repeats");
            assert_eq!(world.fault(0), Ok(1), "and finds the page staged");
            assert_eq!(world.used(), 0);
        });
    }
}

#[test]
fn writeback_does_not_pass_over_a_page_that_is_just_being_copied() {
    within_reason(|| {
        let world = world(Way::Direct, 1, 1);
        let child = space(&world.swap, 1, 1);
        let (staged, copied) = world.swap.fork_chunk(&world.mm, &child, 0);
        assert_eq!(copied, Ok(0));
        let staged = staged.expect("staged");
        let (copying, is_copying) = channel();
        let (go_on, may_go_on) = channel();
        *world.mm.space.before_copy.lock().expect("hook") = Some(Box::new(move || {
            copying.send(()).expect("the test listens");
            may_go_on.recv().expect("the test goes on");
        }));
        thread::scope(|scope| {
            let copier = scope.spawn(|| world.bring(0));
            is_copying.recv_timeout(HANG).expect("the page is copied");
            let writer = scope.spawn(|| world.swap.write_back(staged.block, staged.mask));
            thread::sleep(Duration::from_millis(20));
            go_on.send(()).expect("the copier waits");
            assert_eq!(copier.join().expect("copier"), Ok(()));
            let done = writer.join().expect("writer");
            assert_eq!(
                done.written, 1,
                "nobody else would have come to write it: {done:?}"
            );
        });
        world.swap.frames().release(staged.block, 1);
        assert_eq!(world.swap.discard(&child, 0, 1).pinned, 0);
        assert_eq!((world.used(), world.swap.frames().frames.in_use()), (0, 0));
    });
}

#[test]
fn a_neighbour_that_cannot_be_mapped_does_not_keep_the_page_out() {
    for way in support::SAFE {
        let world = world(way, 8, 8);
        world.page_out();
        world.mm.space.refused.store(0b100, Ordering::SeqCst);
        assert_eq!(
            world.fault(6),
            Ok(3),
            "two before the refused one, and the page itself"
        );
        assert_eq!(
            world.fault(2),
            Err(FaultError::Space(SpaceError::Refused(17)))
        );
        world.mm.space.refused.store(0, Ordering::SeqCst);
        (0..8).for_each(|page| world.bring(page).expect("nothing is refused any more"));
        assert_eq!((world.used(), world.swap.frames().frames.in_use()), (0, 0));
    }
    let swap = Swap::new(frames(), Way::Direct);
    let mm = space(&swap, 8, 8);
    mm.space.refused.store(0b1, Ordering::SeqCst);
    let world = World { swap, mm };
    assert_eq!(world.fault(5), Ok(1), "the same for a first touch");
    assert_eq!(bug::count(), 0);
}

#[test]
fn fork_never_moves_a_pinned_page() {
    let world = world(Way::Direct, 2, 1);
    assert_eq!(world.swap.pin(&world.mm, 0), PinResult::Pinned);
    assert_eq!(world.swap.pin(&world.mm, 1), PinResult::Pinned);
    let child = space(&world.swap, 2, 1);
    let (staged, copied) = world.swap.fork_chunk(&world.mm, &child, 0);
    assert_eq!((staged, copied), (None, Ok(2)));
    assert_eq!(world.mm.space.unmapped.load(Ordering::SeqCst), 0);
    assert_eq!((world.used(), world.swap.frames().frames.in_use()), (0, 0));
}

#[test]
fn an_entry_freed_and_reused_twice_after_the_lookup_brings_its_latest_page() {
    for way in support::SAFE {
        within_reason(move || {
            // One slot for two pages.
            let swap = Swap::new(frames(), way);
            swap.add_area(Box::new(device(1, PLAIN).0))
                .expect("an area");
            let mm = space(&swap, 2, 1);
            let world = Arc::new(World { swap, mm });
            let fill = |world: &World, page: usize, byte: u8| {
                world.bring(page).expect("in");
                let block = world.swap.frames().take(Purpose::Unmap).expect("a block");
                let frame = Frame { block, index: page };
                world.swap.frames().fill(frame, |bytes| bytes.fill(byte));
                world.mm.space.discard(page, 1);
                world.mm.space.map(page, frame, 1).expect("mapped");
                world.swap.frames().release(block, 1);
            };
            let out = |world: &World, page: usize| {
                let staged = world.swap.stage(&world.mm, 0, 1 << page).expect("staged");
                let done = world.swap.write_back(staged.block, staged.mask);
                assert_eq!(done.written, 1 << page);
                world.swap.frames().release(staged.block, 1);
            };
            fill(&world, 0, 1);
            fill(&world, 1, 9);
            out(&world, 0);
            let again = Arc::clone(&world);
            *world.swap.frames().before_take.lock().expect("hook") = Some(Box::new(move || {
                fill(&again, 0, 2);
                out(&again, 1);
                again.bring(1).expect("in");
                out(&again, 0);
            }));
            assert_eq!(
                world.fault(0),
                Ok(1),
                "the word is what it was, and so is the entry"
            );
            assert_eq!(world.mm.space.space.peek(0), Some([2; 4096]));
            assert_eq!(world.mm.space.space.peek(1), Some([9; 4096]));
            assert_eq!(world.used(), 0);
        });
    }
}
