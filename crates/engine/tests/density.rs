//! What pages are compressed with follows from what becomes of those that were chosen to leave.

mod common;

use common::{MIB, PAGE, Random, build};
use userswap::{Engine, FaultAround, Region};

const LIMIT: usize = 24 * MIB;
const PAGES: usize = 36 * MIB / PAGE;

/// A quarter of each page does not compress.
fn expected(page: usize, word: usize) -> u64 {
    if word < 128 {
        ((page * 512 + word) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    } else {
        page as u64
    }
}

fn filled(engine: &Engine) -> Region {
    let mut region = engine.region(PAGES * PAGE).expect("a region");
    for (page, bytes) in region.chunks_exact_mut(PAGE).enumerate() {
        for (word, bytes) in bytes.chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&expected(page, word).to_le_bytes());
        }
    }
    region
}

fn check(region: &Region, page: usize) {
    for (word, bytes) in region[page * PAGE..][..PAGE].chunks_exact(8).enumerate() {
        let found = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        assert_eq!(found, expected(page, word), "page {page}");
    }
}

fn engine(test: &str) -> Option<Engine> {
    // Without neighbours: what is touched is what the test touches.
    let builder = Engine::builder().limit(LIMIT as u64);
    build(test, builder.fault_around(FaultAround::Fixed(1)))
}

/// More is in use than fits, by a little: what leaves is soon wanted.
#[test]
fn pages_that_are_wanted_again_soon_are_stored_small() {
    let Some(engine) = engine("pages_that_are_wanted_again_soon_are_stored_small") else {
        return;
    };
    let region = filled(&engine);
    let mut random = Random::new(3);
    let mut dense = 0;
    for _ in 0..400_000 {
        let hot = random.below(10) > 0;
        check(&region, random.below(if hot { PAGES / 2 } else { PAGES }));
        let stats = engine.stats();
        let share = stats.store_memory_bytes as f64 / LIMIT as f64;
        assert!(share < 0.5, "small for another reason: {stats:?}");
        dense = stats.dense_bytes;
        if dense > LIMIT as u64 / 4 {
            break;
        }
    }
    assert!(dense > LIMIT as u64 / 4, "{:?}", engine.stats());
    (0..PAGES).for_each(|page| check(&region, page));
    assert_eq!(engine.stats().bugs, 0);
}

/// Nothing that leaves is wanted before all else was.
#[test]
fn pages_of_a_walk_are_stored_fast() {
    let Some(engine) = engine("pages_of_a_walk_are_stored_fast") else {
        return;
    };
    let region = filled(&engine);
    for _ in 0..16 {
        (0..PAGES).for_each(|page| check(&region, page));
    }
    let stats = engine.stats();
    assert!(stats.pages_out as usize > 4 * PAGES, "{stats:?}");
    assert_eq!(stats.dense_bytes, 0, "{stats:?}");
}
