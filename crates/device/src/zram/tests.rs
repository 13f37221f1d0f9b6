//! What can only be seen from inside; the rest is in `tests/`.

use super::*;

/// Spoils the stored bytes of a slot.
fn spoil(device: &Zram, slot: usize, junk: u8) {
    let Stored::Packed(handle, len) = device.slots.peek(slot).unwrap().stored() else {
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
        let Stored::Packed(handle, len) = device.slots.peek(1).unwrap().stored() else {
            panic!()
        };
        device.slots.lock(1).set(Word::packed(handle, len - 1));
        assert_eq!(
            device.read(1, &mut [0; PAGE_SIZE]),
            Err(DeviceError::Corrupt)
        );
        device.slots.lock(1).set(Word::packed(handle, len));
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
    let mut seed = 1_u32;
    let noise = std::array::from_fn(|_| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8
    });
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
        let Stored::Packed(handle, _) = old.stored() else {
            panic!("nothing compressed here");
        };
        device.finish(device.store.free(handle));
    };
    let broken = std::panic::catch_unwind(|| two_writers(Some(other_writer)));
    let said = broken.expect_err("the rule is broken, and nobody sees it");
    let text = said.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| said.downcast_ref::<&str>().copied());
    println!("ReplaceInOneStep: {}", text.expect("a message"));
}
