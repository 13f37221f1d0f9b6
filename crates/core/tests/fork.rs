//! Copied address spaces: each side has its own pages, slots are shared and counted.

mod support;

use std::sync::atomic::Ordering;

use support::{
    PLAIN, SAFE, check, check_empty, entry, first, load, page_out, setup, slot, store, write_out,
};
use userswap_core::page_table::CHUNK_PAGES;
use userswap_core::soft::{self, SoftMm, SoftSwap};
use userswap_core::{ForkError, PinResult, Staged, Way};

const PAGES: usize = 6;

fn parent(swap: &SoftSwap) -> SoftMm {
    let mm = soft::mm(swap, PAGES, Some(2));
    (0..PAGES).for_each(|page| store(swap, &mm, page, 1).expect("a first touch"));
    mm
}

fn fork(swap: &SoftSwap, mm: &SoftMm) -> (SoftMm, Option<Staged>) {
    let child = soft::mm(swap, mm.table.pages(), Some(2));
    let mut first = None;
    for chunk in 0..mm.table.chunks() {
        let (staged, copied) = swap.fork_chunk(mm, &child, chunk);
        copied.expect("copied");
        first = first.or(staged);
    }
    (child, first)
}

#[test]
fn both_sides_write_and_see_only_their_own() {
    for way in SAFE {
        for written in [false, true] {
            let (swap, _) = setup(way, 32, PLAIN);
            let mm = parent(&swap);
            let (child, staged) = fork(&swap, &mm);
            let staged = staged.expect("the present pages are staged");
            assert_eq!(slot(&swap, &mm, 0), (2, true));
            assert_eq!(entry(&mm, 0), entry(&child, 0), "one slot for both");
            check(&swap, &[&mm, &child], &[staged]);
            if written {
                write_out(&swap, &mm, 0, staged);
                assert_eq!(slot(&swap, &mm, 0), (2, false));
            }
            for page in 0..PAGES {
                let (one, other) = if page % 2 == 0 {
                    (&mm, &child)
                } else {
                    (&child, &mm)
                };
                store(&swap, one, page, 2).expect("stored");
                assert_eq!(load(&swap, other, page), Ok(1), "{way:?}, page {page}");
                store(&swap, other, page, 3).expect("stored");
                assert_eq!(load(&swap, one, page), Ok(2), "{way:?}, page {page}");
            }
            if !written {
                // Nobody needs what is staged any more.
                check(&swap, &[&mm, &child], &[staged]);
                write_out(&swap, &mm, 0, staged);
            }
            check_empty(&swap, &[&mm, &child]);
        }
    }
}

#[test]
fn swapped_pages_are_shared_without_a_read() {
    for way in SAFE {
        let (swap, switches) = setup(way, 32, PLAIN);
        let mm = parent(&swap);
        page_out(&swap, &mm, 0, first(PAGES));
        let (child, staged) = fork(&swap, &mm);
        assert_eq!(staged, None);
        assert_eq!(switches.reads.load(Ordering::SeqCst), 0);
        assert_eq!(slot(&swap, &mm, 0), (2, false));
        check(&swap, &[&mm, &child], &[]);
        assert_eq!(load(&swap, &mm, 0), Ok(1));
        assert_eq!(
            slot(&swap, &child, 0),
            (1, false),
            "the last holder has it alone"
        );
        assert_eq!(load(&swap, &child, 0), Ok(1));
        check_empty(&swap, &[&mm, &child]);
    }
}

#[test]
fn a_slot_lives_as_long_as_its_last_holder() {
    for way in SAFE {
        let (swap, _) = setup(way, 32, PLAIN);
        let mm = parent(&swap);
        page_out(&swap, &mm, 0, first(PAGES));
        let (child, _) = fork(&swap, &mm);
        let (grandchild, _) = fork(&swap, &child);
        assert_eq!(slot(&swap, &mm, 0), (3, false));
        let used = swap.areas().next().expect("an area").used();
        for (gone, left) in [(&mm, 2), (&child, 1)] {
            assert_eq!(swap.discard(gone, 0, u64::MAX).pinned, 0);
            assert_eq!(slot(&swap, &grandchild, 0), (left, false));
            assert_eq!(swap.areas().next().expect("an area").used(), used);
            check(&swap, &[&mm, &child, &grandchild], &[]);
        }
        for page in 0..PAGES {
            assert_eq!(load(&swap, &grandchild, page), Ok(1));
        }
        check_empty(&swap, &[&mm, &child, &grandchild]);
    }
}

#[test]
fn generations_keep_what_they_were_born_with() {
    for way in SAFE {
        let (swap, _) = setup(way, 64, PLAIN);
        let mut family = vec![parent(&swap)];
        for generation in 2..6 {
            let (child, staged) = fork(&swap, family.last().expect("a parent"));
            if let Some(staged) = staged {
                write_out(&swap, family.last().expect("a parent"), 0, staged);
            }
            store(&swap, &child, generation as usize % PAGES, generation).expect("stored");
            family.push(child);
            check(&swap, &family.iter().collect::<Vec<_>>(), &[]);
        }
        for (age, mm) in family.iter().enumerate() {
            for page in 0..PAGES {
                let own = (2..2 + age as u64).find(|&born| born as usize % PAGES == page);
                assert_eq!(load(&swap, mm, page), Ok(own.unwrap_or(1)), "{age}, {page}");
            }
        }
        check_empty(&swap, &family.iter().collect::<Vec<_>>());
    }
}

#[test]
fn pages_that_cannot_be_staged_are_copied() {
    for busy in [false, true] {
        let (swap, _) = setup(Way::Direct, 32, PLAIN);
        let mm = parent(&swap);
        assert_eq!(swap.pin(&mm, 2), PinResult::Pinned);
        mm.space.busy.store(busy, Ordering::SeqCst);
        let (child, staged) = fork(&swap, &mm);
        let copied = if busy { first(PAGES) } else { 1 << 2 };
        assert_eq!(swap.present(&child, 0), copied);
        assert_eq!(swap.present(&mm, 0), copied, "the pinned page never left");
        assert_eq!(staged.is_none(), busy);
        mm.space.busy.store(false, Ordering::SeqCst);
        staged
            .into_iter()
            .for_each(|staged| write_out(&swap, &mm, 0, staged));
        store(&swap, &mm, 2, 2).expect("stored");
        assert_eq!(load(&swap, &child, 2), Ok(1));
        (0..PAGES).for_each(|page| assert!(load(&swap, &child, page).is_ok()));
        swap.unpin(&mm, 2);
        check_empty(&swap, &[&mm, &child]);
    }
}

#[test]
fn with_too_few_slots_the_rest_is_copied() {
    let (swap, _) = setup(Way::Cached, 4, PLAIN);
    let mm = parent(&swap);
    let (child, staged) = fork(&swap, &mm);
    write_out(&swap, &mm, 0, staged.expect("four pages"));
    assert_eq!(swap.present(&child, 0).count_ones(), 2);
    check(&swap, &[&mm, &child], &[]);
    (0..PAGES).for_each(|page| assert_eq!(load(&swap, &child, page), Ok(1)));
    check_empty(&swap, &[&mm, &child]);
}

#[test]
fn a_fork_that_fails_leaves_the_parent_as_it_was() {
    let (swap, _) = setup(Way::Direct, 4, PLAIN);
    let mm = parent(&swap);
    let child = soft::mm(&swap, PAGES, None);
    child.space.full.store(true, Ordering::SeqCst);
    let (staged, copied) = swap.fork_chunk(&mm, &child, 0);
    assert!(matches!(copied, Err(ForkError::Space(_))), "{copied:?}");
    let staged = staged.expect("four pages");
    check(&swap, &[&mm, &child], &[staged]);
    write_out(&swap, &mm, 0, staged);
    assert_eq!(swap.discard(&child, 0, u64::MAX).pinned, 0);
    (0..PAGES).for_each(|page| assert_eq!(load(&swap, &mm, page), Ok(1)));
    check_empty(&swap, &[&mm, &child]);
}

#[test]
fn chunks_are_copied_each_on_its_own() {
    let (swap, _) = setup(Way::Direct, 300, PLAIN);
    let pages = 2 * CHUNK_PAGES + 3;
    let mm = soft::mm(&swap, pages, Some(64));
    (0..pages).for_each(|page| store(&swap, &mm, page, 1).expect("a first touch"));
    for chunk in 0..2 {
        page_out(&swap, &mm, chunk, u64::MAX);
    }
    let (child, staged) = fork(&swap, &mm);
    write_out(&swap, &mm, 2, staged.expect("the last chunk"));
    check(&swap, &[&mm, &child], &[]);
    (0..pages).for_each(|page| assert_eq!(load(&swap, &child, page), Ok(1)));
    check_empty(&swap, &[&mm, &child]);
}
