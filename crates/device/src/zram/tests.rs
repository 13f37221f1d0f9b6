//! What can only be seen from inside; the rest is in `tests/`.

use super::*;

/// Spoils the stored bytes of a slot.
fn spoil(device: &Zram, slot: usize, junk: u8) {
    let Stored::Packed(handle, len, _) = device.slots.peek(slot).unwrap().stored() else {
        panic!("nothing compressed here");
    };
    // SAFETY: nobody else uses the device during this test; the slice lives for this call only.
    unsafe {
        let bytes = device.store.bytes(handle, len);
        std::slice::from_raw_parts_mut(bytes.as_ptr().cast_mut(), len).fill(junk);
    }
}

fn page_of(step: usize) -> PageBytes {
    std::array::from_fn(|index| (index / 64 * step) as u8)
}

/// Bytes without order, of each the bits in `bits`.
fn noise(mut seed: u32, bits: u8) -> PageBytes {
    std::array::from_fn(|_| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8 & bits
    })
}

/// A page that LZ4 stores in about half, and Zstandard in little: few different bytes, in no order.
fn dense_page(seed: u32) -> PageBytes {
    let mut page = noise(seed, 0x11);
    page[PAGE_SIZE / 4..].fill(seed as u8);
    page
}

fn adaptive(slots: u64) -> Zram {
    Zram::new(slots, ZramOptions::default()).unwrap()
}

/// Returns how many steps that took.
fn tend_to_the_end(device: &Zram) -> usize {
    let steps = (0..10_000).take_while(|_| device.tend()).count();
    assert!(steps < 10_000, "it does not come to an end");
    steps
}

fn check(device: &Zram, slot: u64, expected: &PageBytes) {
    let mut page = [0; PAGE_SIZE];
    assert_eq!(device.read(slot, &mut page), Ok(Content::Bytes), "{slot}");
    assert!(page == *expected, "slot {slot} has other content");
}

#[test]
fn a_store_that_outgrows_its_share_is_compressed_anew() {
    let device = adaptive(2048);
    for slot in 0..1024 {
        device.write(slot, &dense_page(slot as u32)).unwrap();
    }
    assert!(!device.tend(), "there is no limit");
    let before = device.usage();
    assert_eq!((before.compressed_pages, before.dense_pages), (1024, 0));
    device.note_limit(before.memory_bytes * 3);
    assert!(!device.tend(), "it is within its share");
    device.write(1500, &dense_page(1500)).unwrap();
    assert_eq!(device.usage().dense_pages, 0);

    let context_bytes = before.metadata_bytes;
    device.note_limit(before.memory_bytes / 8);
    device.write(1501, &dense_page(1501)).unwrap();
    assert_eq!(device.usage().dense_pages, 0, "nobody has tended it");
    tend_to_the_end(&device);
    device.write(1502, &dense_page(1502)).unwrap();
    let after = device.usage();
    assert_eq!((after.compressed_pages, after.dense_pages), (1027, 1027));
    assert!(after.metadata_bytes > context_bytes, "contexts count");
    assert!(
        after.stored_bytes < before.stored_bytes * 3 / 4,
        "{before:?} {after:?}"
    );
    for slot in (0..1024).chain(1500..1503) {
        check(&device, slot, &dense_page(slot as u32));
        device.discard(slot);
    }
    let empty = device.usage();
    assert_eq!(
        (
            empty.compressed_pages,
            empty.dense_pages,
            empty.stored_bytes
        ),
        (0, 0, 0)
    );
}

#[test]
fn pages_get_small_while_the_engine_asks_for_it() {
    // The one repeats itself, in a way that LZ4 makes less of; half of the other are literals.
    let well = |slot: u32| {
        let mut page = page_of(slot as usize % 7 + 1);
        for (at, word) in page.chunks_exact_mut(16).enumerate() {
            word[0] = (at as u8).wrapping_mul(7) & 31;
        }
        page
    };
    let badly = |slot: u32| {
        let mut page = well(slot);
        let mut seed = slot;
        for byte in &mut page[..PAGE_SIZE / 2] {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (seed >> 24) as u8 & 15;
        }
        page
    };
    pages_get_small(&well, false);
    pages_get_small(&badly, true);
}

/// `full`: whether they are compressed at the full level from a quarter of the limit on.
fn pages_get_small(page: &dyn Fn(u32) -> PageBytes, full: bool) {
    let device = adaptive(80);
    device.note_limit(1 << 30);
    // Gives the bytes that they take.
    let write = |slots: std::ops::Range<u32>| {
        let before = device.usage().stored_bytes;
        slots.for_each(|slot| device.write(slot.into(), &page(slot)).unwrap());
        device.usage().stored_bytes - before
    };
    write(0..16);
    device.prefer_small(true);
    write(16..32);
    assert_eq!(device.usage().dense_pages, 0, "nobody has tended it");
    let before = device.usage().stored_bytes;
    tend_to_the_end(&device);
    let after = device.usage();
    assert_eq!(after.dense_pages, 32);
    assert!(after.stored_bytes < before, "{before} {after:?}");
    let fast = write(32..48);
    let after = device.usage();
    assert_eq!(after.dense_pages, 48);
    device.note_limit(after.memory_bytes * 3);
    let later = write(48..64);
    assert_eq!(device.usage().dense_pages, 64);
    let is_smaller = later + later / 8 < fast;
    assert_eq!(is_smaller, full, "{later} bytes, {fast} before");
    device.note_limit(1 << 30);
    device.prefer_small(false);
    write(64..80);
    tend_to_the_end(&device);
    assert_eq!(device.usage().dense_pages, 64);
    (0..80).for_each(|slot| check(&device, slot, &page(slot as u32)));
}

#[test]
fn what_gets_no_smaller_stays_and_is_not_tried_again() {
    let device = adaptive(256);
    let half_noise = |slot: u64| {
        let mut page = noise(slot as u32, u8::MAX);
        page[PAGE_SIZE / 2..].fill(7);
        page
    };
    for slot in 0..100 {
        device.write(slot, &half_noise(slot)).unwrap();
    }
    device.note_limit(PAGE_SIZE as u64);
    let rounds = || tend_to_the_end(&device);
    // These count as compressed, and nobody can make them smaller.
    let mut wide = [0; PAGE_SIZE];
    same::fill(&mut wide, 0.1_f64.to_bits());
    for slot in 200..256 {
        device.write(slot, &wide).unwrap();
        assert!(matches!(
            device.slots.peek(slot as usize).unwrap().stored(),
            Stored::Wide(_)
        ));
    }
    assert!(rounds() > 5);
    assert_eq!(device.usage().dense_pages, 0);
    assert_eq!(rounds(), 0, "nothing new has come");
    device.note_limit(u64::MAX);
    for slot in 100..150 {
        device.write(slot, &dense_page(slot as u32)).unwrap();
    }
    device.note_limit(PAGE_SIZE as u64);
    tend_to_the_end(&device);
    assert_eq!(device.usage().dense_pages, 50, "what has come since");
    assert_eq!(rounds(), 0);
    for slot in 0..100 {
        check(&device, slot, &half_noise(slot));
    }
}

/// A round that pauses, since the store has room meanwhile, has not seen what is written behind it.
#[test]
fn what_a_round_has_not_seen_is_not_taken_for_tried() {
    let device = adaptive(1024);
    let write = |slots: std::ops::Range<u64>| {
        for slot in slots {
            device.write(slot, &dense_page(slot as u32)).unwrap();
        }
    };
    device.note_limit(0);
    write(0..1);
    device.tend();
    device.note_limit(u64::MAX);
    write(0..1000);
    device.note_limit(0);
    for _ in 0..20 {
        assert!(device.tend());
    }
    device.note_limit(u64::MAX);
    write(0..300);
    device.note_limit(0);
    for _ in 0..2 {
        tend_to_the_end(&device);
    }
    assert_eq!(device.usage().dense_pages, 1000);
}

#[test]
fn a_page_that_could_not_leave_gets_another_try() {
    let refusing = |codec| {
        let options = ZramOptions {
            codec,
            refuse_incompressible: true,
            ..ZramOptions::default()
        };
        Zram::new(4, options).unwrap()
    };
    let page = noise(3, 0x1f);
    let result = refusing(Codec::Lz4).write(0, &page);
    assert_eq!(
        result,
        Err(DeviceError::Incompressible),
        "or it shows nothing"
    );
    let device = refusing(Codec::Adaptive);
    let result = device.write(0, &page);
    assert_eq!(result, Err(DeviceError::Incompressible), "not yet");
    device.tend();
    device.write(0, &page).unwrap();
    assert_eq!(device.usage().dense_pages, 1);
    check(&device, 0, &page);
    let result = device.write(0, &noise(3, u8::MAX));
    assert_eq!(result, Err(DeviceError::Incompressible));
    check(&device, 0, &page);
}

/// Writers, readers and discards of their own slots, while all is recompressed and moved together.
#[test]
fn recompression_is_one_step_to_everybody_else() {
    const OWNERS: u64 = 3;
    const SLOTS: u64 = 96;
    let device = adaptive(OWNERS * SLOTS);
    std::thread::scope(|scope| {
        let use_slots_of = |owner| {
            let device = &device;
            scope.spawn(move || {
                let mut held = [None; SLOTS as usize];
                for turn in 0..6000_u32 {
                    // Every other hundred by LZ4, for the sweep to find.
                    if owner == 0 && turn.is_multiple_of(100) {
                        let dense = turn / 100 % 2 == 0;
                        device.note_limit(if dense { 0 } else { u64::MAX });
                    }
                    let number = turn.wrapping_mul(0x9e37_79b9) >> 7;
                    let index = u64::from(number) % SLOTS;
                    let slot = owner * SLOTS + index;
                    if let Some(seed) = held[index as usize] {
                        check(device, slot, &dense_page(seed));
                    }
                    if number.is_multiple_of(5) {
                        device.discard(slot);
                        held[index as usize] = None;
                    } else {
                        device.write(slot, &dense_page(turn)).unwrap();
                        held[index as usize] = Some(turn);
                    }
                }
            })
        };
        let owners: Vec<_> = (0..OWNERS).map(use_slots_of).collect();
        let mut recompressed = 0;
        // Also where one fails.
        while owners.iter().any(|owner| !owner.is_finished()) {
            let before = device.usage().dense_pages;
            device.tend();
            recompressed += device.usage().dense_pages.saturating_sub(before);
            device.compact();
        }
        assert!(recompressed > 0, "nothing was");
    });
}

#[test]
fn corrupt_data_are_an_error_and_the_slot_stays_usable() {
    for codec in [Codec::Lz4, Codec::Zstd] {
        let device = Zram::new(
            4,
            ZramOptions {
                codec,
                ..ZramOptions::default()
            },
        )
        .unwrap();
        for junk in [0x00, 0xff, 0x5a] {
            device.write(2, &page_of(3)).unwrap();
            spoil(&device, 2, junk);
            let mut page = [0; PAGE_SIZE];
            assert_eq!(
                device.read(2, &mut page),
                Err(DeviceError::Corrupt),
                "{codec:?} {junk:#x}"
            );
            device.write(2, &page_of(5)).unwrap();
            assert_eq!(device.read(2, &mut page), Ok(Content::Bytes));
            assert_eq!(page, page_of(5));
        }
    }
}

#[test]
fn a_length_that_is_wrong_is_an_error() {
    for codec in [Codec::Lz4, Codec::Zstd] {
        let device = Zram::new(
            4,
            ZramOptions {
                codec,
                ..ZramOptions::default()
            },
        )
        .unwrap();
        device.write(1, &page_of(7)).unwrap();
        let Stored::Packed(handle, len, format) = device.slots.peek(1).unwrap().stored() else {
            panic!()
        };
        device
            .slots
            .lock(1)
            .set(Word::packed(handle, len - 1, format));
        assert_eq!(
            device.read(1, &mut [0; PAGE_SIZE]),
            Err(DeviceError::Corrupt)
        );
        device.slots.lock(1).set(Word::packed(handle, len, format));
        assert_eq!(device.read(1, &mut [0; PAGE_SIZE]), Ok(Content::Bytes));
    }
}

#[test]
fn each_kind_of_page_gets_its_state() {
    let device = Zram::new(8, ZramOptions::default()).unwrap();
    let stored = |slot, page: &PageBytes| {
        device.write(slot, page).unwrap();
        device.slots.peek(slot as usize).unwrap().stored()
    };
    let mut page = [0; PAGE_SIZE];
    assert_eq!(stored(0, &page), Stored::Same(0));
    same::fill(&mut page, 0x1122_3344_5566_7788);
    assert!(matches!(
        stored(1, &page),
        Stored::Same(_) | Stored::Wide(_)
    ));
    same::fill(&mut page, 0xf122_3344_5566_7781);
    assert!(matches!(stored(2, &page), Stored::Wide(_)));
    assert!(matches!(stored(3, &page_of(3)), Stored::Packed(..)));
    let noise = noise(1, u8::MAX);
    assert!(matches!(stored(4, &noise), Stored::Page(_)));
    device.discard(4);
    assert_eq!(device.slots.peek(4), Some(Word::EMPTY));
}

/// Two writers of one slot; then the pages of two other slots are right, and nothing is left of the three.
fn two_writers(between: Option<fn(&Zram, usize)>) {
    let mut device = Zram::new(4, ZramOptions::default()).unwrap();
    device.write(0, &page_of(3)).unwrap();
    device.between = between;
    device.write(0, &page_of(5)).unwrap();
    device.between = None;
    device.write(1, &page_of(7)).unwrap();
    device.write(2, &page_of(11)).unwrap();
    for (slot, step) in [(0, 5), (1, 7), (2, 11)] {
        let mut page = [0; PAGE_SIZE];
        assert_eq!(device.read(slot, &mut page), Ok(Content::Bytes));
        assert!(page == page_of(step), "slot {slot} has another's object");
        device.discard(slot);
    }
    assert_eq!(device.usage().stored_bytes, 0);
}

#[test]
fn an_object_replaced_in_two_steps_is_freed_twice() {
    two_writers(None);
    let other_writer = |device: &Zram, slot| {
        let mut locked = device.slots.lock(slot);
        let old = locked.word();
        let word = device.store_page(0, slot as u32, &page_of(9)).unwrap();
        locked.set(word);
        drop(locked);
        device.count(0, word, 1);
        device.count(0, old, -1);
        let Stored::Packed(handle, ..) = old.stored() else {
            panic!("nothing compressed here");
        };
        device.give_back(device.store.free(handle));
    };
    let broken = std::panic::catch_unwind(|| two_writers(Some(other_writer)));
    let said = broken.expect_err("the rule is broken, and nobody sees it");
    let text = said.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| said.downcast_ref::<&str>().copied());
    println!("ReplaceInOneStep: {}", text.expect("a message"));
}
