//! Zram from outside: every change of a slot's state, limits, memory given back, many threads.

mod content;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use content::{Numbers, PAGE, Page};
use userswap_core::device::{Content, Device, DeviceError, Usage};
use userswap_device::{Codec, Zram, ZramOptions};

fn zram(slots: u64) -> Zram {
    Zram::new(slots, ZramOptions::default()).unwrap()
}

/// What a slot reads as; checks that zeros are reported as such and leave the buffer alone.
fn read(device: &dyn Device, slot: u64) -> Page {
    let mut page = [0xee; PAGE];
    match device.read(slot, &mut page).unwrap() {
        Content::Zeros => {
            assert_eq!(page, [0xee; PAGE], "the buffer was touched");
            [0; PAGE]
        }
        Content::Bytes => {
            assert_ne!(page, [0; PAGE], "zeros were not reported");
            page
        }
    }
}

/// One page of each kind: zeros, repeated words in every form, compressible ones, noise.
fn kinds() -> Vec<Page> {
    let mut numbers = Numbers::new(9);
    let words = [
        0,
        1,
        u64::MAX,
        1.0_f64.to_bits(),
        0xdead_beef_dead_beef,
        0xf123_4567_89ab_cdef,
    ];
    let mut pages: Vec<Page> = words
        .iter()
        .map(|word| word.to_ne_bytes().repeat(PAGE / 8).try_into().unwrap())
        .collect();
    pages.push(content::text(&mut numbers));
    pages.push(content::heap(&mut numbers));
    pages.push(content::random(&mut numbers));
    pages
}

fn kept_slack(usage: Usage) -> u64 {
    usage.memory_bytes - usage.stored_bytes
}

#[test]
fn every_kind_replaces_every_kind() {
    for codec in [Codec::Lz4, Codec::Zstd] {
        let device = Zram::new(
            16,
            ZramOptions {
                codec,
                ..ZramOptions::default()
            },
        )
        .unwrap();
        for old in &kinds() {
            for new in &kinds() {
                device.write(7, old).unwrap();
                device.write(7, new).unwrap();
                assert_eq!(&read(&device, 7), new);
                assert_eq!((read(&device, 6), read(&device, 8)), ([0; PAGE], [0; PAGE]));
                let usage = device.usage();
                assert_eq!(
                    usage.same_pages + usage.compressed_pages + usage.raw_pages,
                    1
                );
                device.discard(7);
                device.discard(7);
                assert_eq!(read(&device, 7), [0; PAGE]);
                let usage = device.usage();
                assert_eq!(
                    (
                        usage.stored_bytes,
                        usage.compressed_pages,
                        usage.raw_pages,
                        usage.same_pages
                    ),
                    (0, 0, 0, 0)
                );
            }
        }
    }
}

#[test]
fn what_a_device_is_like() {
    let device = zram(5);
    assert_eq!((device.name(), device.slots()), ("zram", 5));
    assert!(
        device.properties().synchronous
            && device.properties().discards
            && !device.properties().stable_pages
    );
    let zstd = Zram::new(
        5,
        ZramOptions {
            codec: Codec::Zstd,
            ..ZramOptions::default()
        },
    )
    .unwrap();
    assert_eq!(zstd.name(), "zram:zstd");
}

#[test]
fn usage_tells_what_is_stored() {
    let device = zram(100);
    for (slot, page) in kinds().iter().enumerate() {
        device.write(slot as u64, page).unwrap();
    }
    let usage = device.usage();
    // The word that fits in no table word takes an object, and counts as compressed.
    assert_eq!(
        (usage.same_pages, usage.compressed_pages, usage.raw_pages),
        (5, 3, 1)
    );
    assert!(usage.stored_bytes > 4096 + 8 && usage.stored_bytes < 3 * 4096);
    assert!(usage.memory_bytes >= usage.stored_bytes && usage.metadata_bytes > 0);
}

#[test]
fn each_slot_of_a_batch_is_itself() {
    let device = zram(512);
    let kinds = kinds();
    let mut numbers = Numbers::new(3);
    let batch: Vec<&Page> = (0..512)
        .map(|_| &kinds[numbers.below(kinds.len() as u64) as usize])
        .collect();
    for (slot, page) in batch.iter().enumerate() {
        device.write(slot as u64, page).unwrap();
    }
    for slot in (0..512).step_by(3) {
        device.discard(slot);
    }
    for (slot, page) in batch.iter().enumerate() {
        let expected = if slot % 3 == 0 { &[0; PAGE] } else { *page };
        assert_eq!(&read(&device, slot as u64), expected, "slot {slot}");
    }
}

#[test]
fn a_slot_outside_is_an_error() {
    let device = zram(5);
    assert_eq!(
        device.read(5, &mut [0; PAGE]),
        Err(DeviceError::Io(libc::EINVAL))
    );
    assert_eq!(
        device.write(u64::MAX, &[0; PAGE]),
        Err(DeviceError::Io(libc::EINVAL))
    );
    device.discard(1 << 40);
    assert!(matches!(
        Zram::new(1 << 33, ZramOptions::default()),
        Err(DeviceError::Io(libc::EINVAL))
    ));
}

#[test]
fn large_areas_take_no_memory_before_use() {
    let device = zram(8 << 20);
    let text = content::text(&mut Numbers::new(4));
    for slot in [0, 1 << 20, (8 << 20) - 1] {
        device.write(slot, &text).unwrap();
        assert_eq!(read(&device, slot), text);
    }
    let usage = device.usage();
    assert!(
        usage.memory_bytes <= 1 << 20 && usage.metadata_bytes <= 2 << 20,
        "{usage:?}"
    );
}

#[test]
fn a_full_store_refuses_and_keeps_what_it_has() {
    let limit = 100 * PAGE as u64;
    let device = Zram::new(
        1000,
        ZramOptions {
            memory_limit: Some(limit),
            ..ZramOptions::default()
        },
    )
    .unwrap();
    let mut numbers = Numbers::new(4);
    let pages: Vec<Page> = (0..1000).map(|_| content::random(&mut numbers)).collect();
    let full = (0..1000)
        .find(|&slot| device.write(slot as u64, &pages[slot]) == Err(DeviceError::Full))
        .unwrap();
    assert_eq!(full, 100);
    let before = device.usage();
    assert_eq!(
        device.write(3, &pages[500]),
        Err(DeviceError::Full),
        "overwriting needs room for both"
    );
    assert_eq!(device.usage(), before);
    assert_eq!(read(&device, 3), pages[3], "the old content stays");
    assert_eq!(read(&device, full as u64), [0; PAGE]);
    device.write(500, &[0; PAGE]).unwrap();
    device.write(501, &[7; PAGE]).unwrap();
    device.discard(50);
    device.write(3, &pages[500]).unwrap();
    assert_eq!(read(&device, 3), pages[500]);
    assert!(device.usage().memory_bytes <= limit);
    for slot in 0..100 {
        device.discard(slot);
    }
    // Room that one kind left is room for another.
    let text = content::text(&mut numbers);
    let stored = (0..1000)
        .take_while(|&slot| device.write(slot, &text).is_ok())
        .count();
    assert!(stored > 150, "{stored} pages of text");
}

#[test]
fn incompressible_pages_can_be_refused() {
    let device = Zram::new(
        10,
        ZramOptions {
            refuse_incompressible: true,
            ..ZramOptions::default()
        },
    )
    .unwrap();
    let mut numbers = Numbers::new(4);
    let text = content::text(&mut numbers);
    device.write(1, &text).unwrap();
    assert_eq!(
        device.write(1, &content::random(&mut numbers)),
        Err(DeviceError::Incompressible)
    );
    assert_eq!(read(&device, 1), text);
    assert_eq!(device.usage().raw_pages, 0);
}

#[test]
fn discard_gives_memory_back() {
    let pages = content::mixed(2000);
    let device = zram(20_000);
    for slot in 0..20_000 {
        device
            .write(slot, &pages[slot as usize % pages.len()])
            .unwrap();
    }
    let full = device.usage();
    for slot in 0..20_000 {
        device.discard(slot);
    }
    let empty = device.usage();
    assert_eq!(
        (
            empty.stored_bytes,
            empty.same_pages,
            empty.compressed_pages,
            empty.raw_pages
        ),
        (0, 0, 0, 0)
    );
    assert!(
        empty.memory_bytes < full.memory_bytes / 20,
        "{} of {} kept",
        empty.memory_bytes,
        full.memory_bytes
    );
    device.compact();
    assert_eq!(device.usage().memory_bytes, 0);
}

#[test]
fn compaction_gives_back_what_scattered_frees_left() {
    let pages = content::mixed(2000);
    let device = zram(60_000);
    for slot in 0..60_000 {
        device
            .write(slot, &pages[slot as usize % pages.len()])
            .unwrap();
    }
    let mut numbers = Numbers::new(8);
    let kept: Vec<u64> = (0..60_000).filter(|_| numbers.below(4) == 0).collect();
    for slot in 0..60_000 {
        if kept.binary_search(&slot).is_err() {
            device.discard(slot);
        }
    }
    let before = device.usage();
    device.compact();
    let after = device.usage();
    println!(
        "a quarter kept at random: {:.1} % over the stored bytes, after compaction {:.1} %",
        100.0 * kept_slack(before) as f64 / before.stored_bytes as f64,
        100.0 * kept_slack(after) as f64 / after.stored_bytes as f64,
    );
    assert!(kept_slack(after) * 4 < after.stored_bytes, "{after:?}");
    for slot in kept {
        assert_eq!(read(&device, slot), pages[slot as usize % pages.len()]);
    }
}

#[test]
fn overhead_is_small() {
    for codec in [Codec::Lz4, Codec::Zstd] {
        let slots = 40_000;
        let pages = content::mixed(8000);
        let device = Zram::new(
            slots,
            ZramOptions {
                codec,
                ..ZramOptions::default()
            },
        )
        .unwrap();
        let idle = device.usage().metadata_bytes;
        let mut numbers = Numbers::new(8);
        for slot in 0..slots {
            device
                .write(slot, &pages[numbers.below(8000) as usize])
                .unwrap();
        }
        let usage = device.usage();
        let over = |bytes: u64| 100.0 * bytes as f64 / usage.stored_bytes as f64;
        let total = over(kept_slack(usage) + usage.metadata_bytes - idle);
        println!(
            "{codec:?}: {slots} mixed pages in {} MiB; over that: rounding and free space {:.2} %, tables {:.2} %, \
             together {total:.2} %, and {} KiB whatever is stored",
            usage.stored_bytes >> 20,
            over(kept_slack(usage)),
            over(usage.metadata_bytes - idle),
            idle >> 10,
        );
        assert!(total < 6.0);
    }
}

#[test]
fn threads_on_their_own_slots_do_not_meet() {
    for codec in [Codec::Lz4, Codec::Zstd] {
        let device = Zram::new(
            1000,
            ZramOptions {
                codec,
                ..ZramOptions::default()
            },
        )
        .unwrap();
        let kinds = kinds();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    device.compact();
                }
            });
            let workers: Vec<_> = (0..4)
                .map(|worker| {
                    let (device, kinds) = (&device, &kinds);
                    scope.spawn(move || {
                        let mut numbers = Numbers::new(worker + 1);
                        let mut held = vec![[0; PAGE]; 250];
                        for _ in 0..5000 {
                            let index = numbers.below(250);
                            let slot = index * 4 + worker;
                            match numbers.below(4) {
                                0 => {
                                    device.discard(slot);
                                    held[index as usize] = [0; PAGE];
                                }
                                1 => assert_eq!(read(device, slot), held[index as usize]),
                                _ => {
                                    let mut page =
                                        kinds[numbers.below(kinds.len() as u64) as usize];
                                    if numbers.below(2) == 0 {
                                        page[numbers.below(PAGE as u64) as usize] ^= 0x80;
                                    }
                                    device.write(slot, &page).unwrap();
                                    held[index as usize] = page;
                                }
                            }
                        }
                        for (index, page) in held.iter().enumerate() {
                            assert_eq!(&read(device, index as u64 * 4 + worker), page);
                            device.discard(index as u64 * 4 + worker);
                        }
                    })
                })
                .collect();
            for worker in workers {
                worker.join().unwrap();
            }
            done.store(true, Relaxed);
        });
        device.compact();
        assert_eq!(
            (device.usage().memory_bytes, device.usage().stored_bytes),
            (0, 0)
        );
    }
}

/// The way `unpinned` lets threads meet on a slot: whatever a read finds, it is one whole version.
#[test]
fn threads_on_one_slot_see_whole_pages() {
    let device = zram(2);
    let versions = kinds();
    thread::scope(|scope| {
        for worker in 0..4 {
            let (device, versions) = (&device, &versions);
            scope.spawn(move || {
                let mut numbers = Numbers::new(worker + 1);
                for _ in 0..10_000 {
                    match numbers.below(8) {
                        0 => device.discard(1),
                        1..=3 => {
                            device
                                .write(1, &versions[numbers.below(versions.len() as u64) as usize])
                                .unwrap();
                        }
                        _ => assert!(versions.contains(&read(device, 1))),
                    }
                }
            });
        }
    });
    device.discard(1);
    device.compact();
    assert_eq!(device.usage().memory_bytes, 0, "an object was lost");
}
