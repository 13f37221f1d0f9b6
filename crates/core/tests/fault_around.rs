//! How many pages a fault brings in, read or taken back.

mod support;

use support::{PLAIN, SAFE, check, load, page_out, setup, store, write_out};
use userswap_core::page_table::{CHUNK_PAGES, PteState};
use userswap_core::soft::{self, SoftMm};

const ALL: u64 = u64::MAX;

fn present(mm: &SoftMm) -> usize {
    let pages = 0..mm.table.pages();
    pages
        .filter(|&page| mm.table.load(page).state() == PteState::Present)
        .count()
}

#[test]
fn what_is_staged_is_taken_back_in_a_wider_window_than_what_is_read() {
    for way in SAFE {
        let (swap, _) = setup(way, 256, PLAIN);
        let mm = soft::mm(&swap, CHUNK_PAGES, None);
        assert_eq!(swap.fault_around(&mm, 0), 1, "no walk yet");
        for page in 0..CHUNK_PAGES {
            store(&swap, &mm, page, 1).expect("stored");
            assert_eq!(swap.fault_around(&mm, page), 1, "it is there");
        }
        // One page is used at a time, its neighbours never.
        let mut rounds = 0;
        loop {
            page_out(&swap, &mm, 0, ALL);
            if swap.fault_around(&mm, 0) == 1 {
                break;
            }
            load(&swap, &mm, rounds * 13 % CHUNK_PAGES).expect("loaded");
            rounds += 1;
            assert!(rounds < 1000, "the window stays wide");
        }
        load(&swap, &mm, 20).expect("loaded");
        assert_eq!(present(&mm), 1, "read");
        let loaded = (0..CHUNK_PAGES).map(|page| load(&swap, &mm, page));
        assert!(loaded.into_iter().all(|version| version == Ok(1)));
        let staged = swap.stage(&mm, 0, ALL).expect("staged");
        let back = swap.fault_around(&mm, 20);
        assert!(back > 1);
        load(&swap, &mm, 20).expect("loaded");
        assert_eq!(present(&mm), back, "taken back");
        write_out(&swap, &mm, 0, staged);
        check(&swap, &[&mm], &[]);
    }
}

#[test]
fn a_last_chunk_of_one_page_has_no_pair() {
    let (swap, _) = setup(SAFE[0], 256, PLAIN);
    let mm = soft::mm(&swap, CHUNK_PAGES + 1, None);
    store(&swap, &mm, CHUNK_PAGES, 1).expect("stored");
    mm.expect_random();
    for announced in [true, false] {
        for _ in 0..50 {
            page_out(&swap, &mm, 1, ALL);
            assert_eq!(load(&swap, &mm, CHUNK_PAGES), Ok(1));
        }
        if announced {
            mm.expect_sequential();
        }
    }
    check(&swap, &[&mm], &[]);
}
