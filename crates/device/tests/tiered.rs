//! Two tiers: which pages go where, and that each is found whatever moves meanwhile.

mod content;

use std::sync::atomic::{AtomicBool, Ordering};

use content::{Numbers, Page};
use userswap_core::device::{Content, Device, DeviceError, PAGE_SIZE, Properties, Side, SlotRead};
use userswap_device::{File, FileOptions, Tiered, Zram, ZramOptions};

const SLOTS: u64 = 20_000;

struct Rig {
    _folder: tempfile::TempDir,
    device: Tiered,
}

fn rig(size: Option<u64>) -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let options = FileOptions {
        size,
        ..FileOptions::default()
    };
    let zram = ZramOptions {
        refuse_incompressible: true,
        ..ZramOptions::default()
    };
    let above = Zram::new(SLOTS, zram).unwrap();
    let below = File::new(folder.path(), SLOTS, options).unwrap();
    Rig {
        device: Tiered::new(above, below).unwrap(),
        _folder: folder,
    }
}

fn read(device: &Tiered, slot: u64) -> Page {
    let mut page = [0xee; PAGE_SIZE];
    match device.read(slot, &mut page).unwrap() {
        Content::Zeros => [0; PAGE_SIZE],
        Content::Bytes => page,
    }
}

/// A page that compresses, with its slot and version in it.
fn page(slot: u64, version: u64) -> Page {
    let mut page = content::text(&mut Numbers::new(slot << 20 | version));
    page[..8].copy_from_slice(&slot.to_le_bytes());
    page[8..16].copy_from_slice(&version.to_le_bytes());
    page
}

fn tend(device: &Tiered) {
    while device.tend() {}
}

#[test]
fn what_does_not_compress_goes_below_and_the_rest_stays_above() {
    let Rig { device, .. } = &rig(None);
    assert_eq!(
        device.properties(),
        Properties {
            synchronous: true,
            stable_pages: false,
            discards: true
        }
    );
    assert!(device.leaves_memory() && device.name().starts_with("zram,file:"));
    for slot in 0..100 {
        device.write(slot, &page(slot, 0)).unwrap();
        device
            .write(slot + 100, &content::random(&mut Numbers::new(slot + 1)))
            .unwrap();
        device.write(slot + 200, &[7; PAGE_SIZE]).unwrap();
    }
    tend(device);
    let usage = device.usage();
    assert_eq!((usage.compressed_pages, usage.file_pages), (100, 100));
    assert_eq!((usage.same_pages, usage.raw_pages), (100, 0));
    for slot in 0..100 {
        assert_eq!(read(device, slot), page(slot, 0));
        assert_eq!(
            read(device, slot + 100),
            content::random(&mut Numbers::new(slot + 1))
        );
        assert_eq!(read(device, slot + 200), [7; PAGE_SIZE]);
        assert_eq!(read(device, slot + 300), [0; PAGE_SIZE]);
    }
    // From one side to the other, and gone.
    for slot in 0..100 {
        device
            .write(slot, &content::random(&mut Numbers::new(slot + 1)))
            .unwrap();
        device.write(slot + 100, &page(slot, 2)).unwrap();
        device.discard(slot + 200);
    }
    for slot in 0..100 {
        assert_eq!(
            read(device, slot),
            content::random(&mut Numbers::new(slot + 1))
        );
        assert_eq!(read(device, slot + 100), page(slot, 2));
        assert_eq!(read(device, slot + 200), [0; PAGE_SIZE]);
        device.discard(slot);
        device.discard(slot + 100);
        assert_eq!(read(device, slot), [0; PAGE_SIZE]);
    }
    let usage = device.usage();
    assert_eq!(
        (usage.compressed_pages, usage.file_pages, usage.same_pages),
        (0, 0, 0)
    );
}

#[test]
fn the_oldest_go_below_when_the_store_is_over_its_share() {
    let Rig { device, .. } = &rig(None);
    let empty = device.memory_bytes();
    for slot in 0..6000 {
        device.write(slot, &page(slot, 0)).unwrap();
    }
    let full = device.usage().memory_bytes;
    assert!(!device.tend(), "without a limit nothing moves");
    // A share of half of what is there.
    device.note_limit((empty + full / 2) * 3);
    tend(device);
    let usage = device.usage();
    assert!(
        usage.file_pages >= 2000 && usage.compressed_pages >= 1500,
        "{usage:?}"
    );
    // Nothing of the last that were written is below: those above are read without the file.
    let before = device.usage().file_read_bytes;
    for slot in 5000..6000 {
        assert_eq!(read(device, slot), page(slot, 0));
    }
    assert_eq!(device.usage().file_read_bytes, before);
    for slot in 0..6000 {
        assert_eq!(read(device, slot), page(slot, 0));
    }
    let written = usage.file_written_bytes;
    assert!(
        written <= (usage.file_pages + 64) * PAGE_SIZE as u64,
        "each was written once: {usage:?}"
    );
    // With a share of nothing, what is written goes below at once.
    device.note_limit(0);
    device.write(7000, &page(7000, 0)).unwrap();
    assert_eq!(device.usage().file_pages, usage.file_pages + 1);
    tend(device);
    assert_eq!(device.usage().compressed_pages, 0);
    let mut pages = vec![[0; PAGE_SIZE]; 64];
    let mut reads: Vec<_> = pages
        .iter_mut()
        .enumerate()
        .map(|(i, page)| (i % 7 != 0).then(|| SlotRead::new(i as u64 * 90, page)))
        .collect();
    device.note_limit(u64::MAX);
    device.write(90, &page(90, 1)).unwrap();
    device.read_batch(&mut reads);
    for read in reads.iter().flatten() {
        assert_eq!(read.result, Ok(Content::Bytes));
        assert_eq!(*read.page, page(read.slot, u64::from(read.slot == 90)));
    }
}

#[test]
fn a_full_file_leaves_pages_above() {
    let Rig { device, .. } = &rig(Some(128 * PAGE_SIZE as u64));
    device.note_limit(0);
    for slot in 0..1000 {
        device.write(slot, &page(slot, 0)).unwrap();
    }
    tend(device);
    let usage = device.usage();
    assert_eq!((usage.file_pages, usage.compressed_pages), (128, 872));
    let noise = content::random(&mut Numbers::new(1));
    assert_eq!(device.write(1000, &noise), Err(DeviceError::Full));
    for slot in 0..1000 {
        assert_eq!(read(device, slot), page(slot, 0));
    }
}

#[test]
fn pages_are_found_while_they_move() {
    let Rig { device, .. } = &rig(None);
    // Every page is to go below, but may be read, written and dropped before it does.
    device.note_limit(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3u64)
            .map(|thread| {
                scope.spawn(move || {
                    let mut numbers = Numbers::new(thread);
                    let first = thread * 500;
                    let mut versions = [0; 500];
                    for step in 1..6000 {
                        let slot = numbers.below(500);
                        let version = &mut versions[slot as usize];
                        match numbers.below(4) {
                            0 => {
                                device.discard(first + slot);
                                *version = 0;
                            }
                            1 => {
                                // Above, whatever the share.
                                device.note_limit(u64::MAX);
                                device
                                    .write(first + slot, &page(first + slot, step))
                                    .unwrap();
                                device.note_limit(0);
                                *version = step;
                            }
                            _ => {
                                let expected = match *version {
                                    0 => [0; PAGE_SIZE],
                                    version => page(first + slot, version),
                                };
                                assert!(read(device, first + slot) == expected, "step {step}");
                            }
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                device.tend();
                device.compact();
            }
        });
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(results.iter().all(Result::is_ok));
    });
    assert!(device.usage().file_written_bytes > 0, "some moved");
}

#[test]
fn a_child_has_both_tiers() {
    let Rig { device, .. } = &rig(None);
    for slot in 0..1000 {
        device.write(slot, &page(slot, 0)).unwrap();
    }
    device.note_limit(0);
    device.tend();
    let usage = device.usage();
    assert!(usage.file_pages > 0 && usage.compressed_pages > 0);
    device.fork_begin();
    // SAFETY: the child uses the device and ends by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let mut good = device.fork_end(Side::Child).is_ok();
        // Waits until the parent has gone over all of them.
        std::thread::sleep(std::time::Duration::from_millis(50));
        good &= (0..1000).all(|slot| read(device, slot) == page(slot, 0));
        tend(device);
        good &= (0..1000).all(|slot| read(device, slot) == page(slot, 0));
        // SAFETY: ends the child without this process's exit handlers.
        unsafe { libc::_exit(i32::from(!good)) };
    }
    device.fork_end(Side::Parent).unwrap();
    for slot in 0..1000 {
        device.write(slot, &page(slot, 1)).unwrap();
    }
    tend(device);
    for slot in 0..1000 {
        assert_eq!(read(device, slot), page(slot, 1));
    }
    let mut status = 0;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child found something else");
}
