//! What storage does to pages, done to the file behind the device.

use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rustix::fs::ftruncate;
use rustix::io::{pread, pwrite};

use super::blocks::CLUSTER;
use super::*;
use userswap_core::device::PAGE_SIZE;

/// Pages of no pattern, each telling its slot and version.
fn page(slot: u64, version: u64) -> PageBytes {
    let mut state = slot << 20 ^ version << 1 | 1;
    std::array::from_fn(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().to_path_buf()
    }

    fn file(&self, slots: u64, options: FileOptions) -> File {
        File::new(&self.path(), slots, options).unwrap()
    }
}

const SYNC: FileOptions = FileOptions {
    encrypt: true,
    size: None,
    overwrite: false,
    io_uring: false,
    timeout: std::time::Duration::from_secs(10),
};

fn read(file: &File, slot: u64) -> Result<PageBytes, DeviceError> {
    let mut page = Aligned([0xee; PAGE_SIZE]);
    Ok(match file.read(slot, &mut page.0)? {
        Content::Zeros => [0; PAGE_SIZE],
        Content::Bytes => page.0,
    })
}

/// Writes whole segments, so that all is in the file.
fn filled(file: &File, slots: u64) {
    assert_eq!(slots % CLUSTER as u64, 0);
    for slot in 0..slots {
        file.write(slot, &page(slot, 0)).unwrap();
    }
}

fn block(file: &File, slot: u64) -> u64 {
    match file.slots.peek(slot as usize).unwrap().place() {
        Where::Stored(0, block) => u64::from(block) * PAGE_SIZE as u64,
        other => panic!("not in the file: {other:?}"),
    }
}

/// As the system wants it where its cache is passed by.
#[repr(align(4096))]
struct Aligned(PageBytes);

fn raw(file: &File, slot: u64) -> PageBytes {
    let mut page = Aligned([0; PAGE_SIZE]);
    let fd = file.home(0).disk.fd();
    assert_eq!(pread(fd, &mut page.0, block(file, slot)), Ok(PAGE_SIZE));
    page.0
}

fn put_raw(file: &File, slot: u64, page: &PageBytes) {
    let fd = file.home(0).disk.fd();
    assert_eq!(
        pwrite(fd, &Aligned(*page).0, block(file, slot)),
        Ok(PAGE_SIZE)
    );
}

fn every_kind(mut test: impl FnMut(FileOptions)) {
    for (encrypt, io_uring) in [(true, true), (true, false), (false, true), (false, false)] {
        test(FileOptions {
            encrypt,
            io_uring,
            ..SYNC
        });
    }
}

#[test]
fn pages_come_back_from_segments_and_from_the_file() {
    every_kind(|options| {
        let folder = Folder::new();
        let file = folder.file(1000, options);
        let mut versions = [0u64; 300];
        let mut state = 7u64;
        for step in 1..3000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let slot = (state >> 33) % 300;
            match state >> 60 {
                0..3 => {
                    file.discard(slot);
                    versions[slot as usize] = 0;
                }
                3 => {
                    file.write(slot, &[step as u8 | 1; PAGE_SIZE]).unwrap();
                    versions[slot as usize] = step | 1 << 32;
                }
                _ => {
                    file.write(slot, &page(slot, step)).unwrap();
                    versions[slot as usize] = step;
                }
            }
            let slot = (state >> 40) % 300;
            let expected = expected(slot, versions[slot as usize]);
            assert_eq!(read(&file, slot), Ok(expected), "step {step}, slot {slot}");
        }
        let mut pages = vec![[0u8; PAGE_SIZE]; 300];
        let mut reads: Vec<_> = pages
            .iter_mut()
            .enumerate()
            .map(|(slot, page)| (slot % 3 != 1).then(|| SlotRead::new(slot as u64, page)))
            .collect();
        file.read_batch(&mut reads);
        for read in reads.iter().flatten() {
            let expected = expected(read.slot, versions[read.slot as usize]);
            match read.result {
                Ok(Content::Zeros) => assert_eq!(expected, [0; PAGE_SIZE]),
                Ok(Content::Bytes) => assert_eq!(*read.page, expected),
                Err(error) => panic!("{error}"),
            }
        }
        let usage = file.usage();
        assert!(usage.same_pages > 0 && usage.file_pages > 0, "{usage:?}");
        assert!(usage.file_written_bytes > 0 && usage.file_read_bytes > 0);
        for slot in 0..300 {
            file.discard(slot);
        }
        assert_eq!((file.usage().same_pages, file.usage().file_pages), (0, 0));
    });
}

fn expected(slot: u64, version: u64) -> PageBytes {
    match version {
        0 => [0; PAGE_SIZE],
        same if same >> 32 != 0 => [same as u8 | 1; PAGE_SIZE],
        version => page(slot, version),
    }
}

#[test]
fn what_is_no_longer_what_was_written_is_an_error() {
    every_kind(|mut options| {
        // So small that a block is used again soon.
        options.size = Some(128 * PAGE_SIZE as u64);
        let folder = Folder::new();
        let file = folder.file(1000, options);
        filled(&file, 128);
        let corrupt = |slot| {
            assert_eq!(
                read(&file, slot).err(),
                Some(DeviceError::Corrupt),
                "{slot}"
            )
        };
        // One bit.
        let mut changed = raw(&file, 5);
        changed[4095] ^= 0x10;
        put_raw(&file, 5, &changed);
        corrupt(5);
        // Two blocks swapped.
        let (a, b) = (raw(&file, 10), raw(&file, 11));
        put_raw(&file, 10, &b);
        put_raw(&file, 11, &a);
        corrupt(10);
        corrupt(11);
        // An earlier version of the same slot in the same block.
        let (stale, at) = (raw(&file, 20), block(&file, 20));
        for slot in 0..64 {
            file.discard(slot);
        }
        for slot in 0..64 {
            file.write(slot, &page(slot, 1)).unwrap();
        }
        assert_eq!(block(&file, 20), at, "the block is used again");
        assert_eq!(read(&file, 20), Ok(page(20, 1)));
        put_raw(&file, 20, &stale);
        corrupt(20);
        // Half of one version, half of another.
        let mut torn = raw(&file, 30);
        torn[2048..].copy_from_slice(&stale[2048..]);
        put_raw(&file, 30, &torn);
        corrupt(30);
        // In a batch, the others are not harmed.
        let mut pages = vec![[0u8; PAGE_SIZE]; 64];
        let mut reads: Vec<_> = pages
            .iter_mut()
            .enumerate()
            .map(|(slot, page)| Some(SlotRead::new(slot as u64, page)))
            .collect();
        file.read_batch(&mut reads);
        for read in reads.iter().flatten() {
            if [20, 30].contains(&read.slot) {
                assert_eq!(read.result, Err(DeviceError::Corrupt));
            } else {
                assert_eq!(read.result, Ok(Content::Bytes));
                assert_eq!(*read.page, page(read.slot, 1));
            }
        }
    });
}

#[test]
fn a_file_that_was_cut_short_is_an_error() {
    every_kind(|options| {
        let folder = Folder::new();
        let file = folder.file(1000, options);
        filled(&file, 128);
        ftruncate(file.home(0).disk.fd(), block(&file, 70) + 100).unwrap();
        assert_eq!(read(&file, 69), Ok(page(69, 0)));
        assert_eq!(read(&file, 70), Err(DeviceError::Short));
        assert_eq!(read(&file, 127), Err(DeviceError::Short));
        let mut pages = vec![[0u8; PAGE_SIZE]; 64];
        // Every other one, so that they are several requests.
        let mut reads: Vec<_> = pages
            .iter_mut()
            .enumerate()
            .map(|(index, page)| Some(SlotRead::new(64 + index as u64 % 32 * 2, page)))
            .collect();
        file.read_batch(&mut reads);
        for read in reads.iter().flatten() {
            if read.slot < 70 {
                assert_eq!(read.result, Ok(Content::Bytes));
                assert_eq!(*read.page, page(read.slot, 0));
            } else {
                assert_eq!(read.result, Err(DeviceError::Short));
            }
        }
    });
}

/// Puts a descriptor that can only be read in the place of the file's; returns what was there.
fn make_unwritable(file: &File) -> std::os::fd::OwnedFd {
    let number = file.home(0).disk.fd().as_raw_fd();
    let kept = rustix::io::dup(file.home(0).disk.fd()).unwrap();
    let path = format!("/proc/self/fd/{number}");
    let only_read = std::fs::File::open(path).unwrap();
    // SAFETY: both are descriptors of ours; what the number stands for changes, and it stays open.
    assert_eq!(unsafe { libc::dup2(only_read.as_raw_fd(), number) }, number);
    kept
}

#[test]
fn what_cannot_be_written_stays_readable_and_is_written_later() {
    let folder = Folder::new();
    let file = folder.file(10_000, SYNC);
    filled(&file, 64);
    let kept = make_unwritable(&file);
    let mut slot = 64;
    let error = loop {
        match file.write(slot, &page(slot, 0)) {
            Ok(()) => slot += 1,
            Err(error) => break error,
        }
        assert!(slot < 1000, "segments do not hold that many");
    };
    assert_eq!(error, DeviceError::Io(Errno::BADF.raw_os_error()));
    assert_eq!(slot as usize, 64 + segments::SEGMENTS * CLUSTER);
    let all_there = || {
        for slot in 0..slot {
            assert_eq!(read(&file, slot), Ok(page(slot, 0)), "slot {slot}");
        }
    };
    all_there();
    file.discard(70);
    assert_eq!(read(&file, 70), Ok([0; PAGE_SIZE]));
    file.write(70, &page(70, 0))
        .expect_err("there is no place for it");
    let number = file.home(0).disk.fd().as_raw_fd();
    // SAFETY: as in `make_unwritable`.
    assert_eq!(unsafe { libc::dup2(kept.as_raw_fd(), number) }, number);
    for _ in 0..segments::SEGMENTS {
        file.tend();
    }
    file.write(70, &page(70, 0)).unwrap();
    all_there();
    assert_eq!(
        block(&file, 64) % PAGE_SIZE as u64,
        0,
        "it is in the file now"
    );
}

#[test]
fn a_file_has_no_name_and_grows_as_it_is_used_up_to_its_size() {
    let folder = Folder::new();
    let options = FileOptions {
        size: Some(100 * PAGE_SIZE as u64),
        ..SYNC
    };
    for path in [folder.path(), folder.path().join("new")] {
        let file = File::new(&path, 1000, options).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        for slot in 0..100 {
            file.write(slot, &page(slot, 0)).unwrap();
        }
        assert_eq!(file.write(100, &page(100, 0)), Err(DeviceError::Full));
        file.write(101, &[7; PAGE_SIZE]).expect("it takes no block");
        file.discard(3);
        file.write(100, &page(100, 0)).unwrap();
        assert_eq!(read(&file, 100), Ok(page(100, 0)));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_file_of_the_users_is_only_used_when_that_is_said() {
    let folder = Folder::new();
    let path = folder.path().join("data");
    std::fs::write(&path, vec![1; 2 << 20]).unwrap();
    let refused = File::new(&path, 1000, SYNC).err().unwrap().to_string();
    assert!(
        refused.contains("overwrite=on") && refused.contains("data"),
        "{refused}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), vec![1; 2 << 20]);
    let options = FileOptions {
        overwrite: true,
        ..SYNC
    };
    let file = File::new(&path, 1000, options).unwrap();
    let twice = File::new(&path, 1000, options).err().unwrap().to_string();
    assert!(twice.contains("another process"), "{twice}");
    for slot in 0..512 {
        file.write(slot, &page(slot, 0)).unwrap();
    }
    assert_eq!(file.write(512, &page(0, 0)), Err(DeviceError::Full));
    assert_eq!(read(&file, 511), Ok(page(511, 0)));
    drop(file);
    assert_eq!(
        std::fs::metadata(&path).unwrap().len(),
        2 << 20,
        "it is still there, as long as it was"
    );
    std::fs::write(&path, b"short").unwrap();
    let small = File::new(&path, 1000, options).err().unwrap().to_string();
    assert!(small.contains("5 bytes"), "{small}");
    let none = File::new(&folder.path().join("no/such"), 10, SYNC)
        .err()
        .unwrap()
        .to_string();
    assert!(none.contains("no/such"), "{none}");
    let kind = File::new("/dev/null".as_ref(), 10, SYNC)
        .err()
        .unwrap()
        .to_string();
    assert!(kind.contains("no folder"), "{kind}");
}

#[test]
fn what_goes_to_an_encrypted_file_cannot_be_found_there() {
    for encrypt in [true, false] {
        let folder = Folder::new();
        let file = folder.file(100, FileOptions { encrypt, ..SYNC });
        let mut secret = page(1, 1);
        secret[1000..1016].copy_from_slice(b"a secret, a word");
        for slot in 0..64 {
            file.write(slot, &secret).unwrap();
        }
        let found = raw(&file, 9)
            .windows(16)
            .any(|bytes| bytes == b"a secret, a word");
        assert_eq!(found, !encrypt);
        assert_eq!(
            raw(&file, 9) == raw(&file, 10),
            !encrypt,
            "equal pages look different"
        );
    }
}

/// Runs `child` in a forked process, which has the device too; returns when it has ended well.
fn in_child(file: &File, child: impl FnOnce() -> bool, meanwhile: impl FnOnce()) {
    file.fork_begin();
    // SAFETY: the child uses the device and ends by _exit.
    let process = unsafe { libc::fork() };
    if process == 0 {
        let good = file.fork_end(Side::Child).is_ok() && child();
        // SAFETY: ends the child without this process's exit handlers.
        unsafe { libc::_exit(i32::from(!good)) };
    }
    assert!(process > 0);
    file.fork_end(Side::Parent).unwrap();
    meanwhile();
    let mut status = 0;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(process, &mut status, 0) }, process);
    assert_eq!(status, 0, "the child found something else");
}

#[test]
fn a_child_has_its_pages_whatever_the_parent_does() {
    every_kind(|options| {
        let folder = Folder::new();
        let file = folder.file(4000, options);
        filled(&file, 320);
        // Some are still in a segment.
        for slot in 320..350 {
            file.write(slot, &page(slot, 0)).unwrap();
        }
        let (go, gone) = std::io::pipe().unwrap();
        let child = || {
            // Waits until the parent has done its worst.
            let mut byte = [0];
            let _ = std::io::Read::read(&mut &go, &mut byte);
            let right = |slot, version| read(&file, slot) == Ok(page(slot, version));
            let mut good = (0..350).all(|slot| right(slot, 0));
            for slot in (0..350).step_by(2) {
                file.discard(slot);
                good &= file.write(slot, &page(slot, 2)).is_ok();
            }
            file.write_all();
            good && file.own.load(Relaxed) == 1
                && (0..350).all(|slot| right(slot, 2 - slot % 2 * 2))
        };
        in_child(&file, child, || {
            for slot in 0..350 {
                file.discard(slot);
                file.write(slot + 1000, &page(slot, 3)).unwrap();
            }
            assert!(file.home(0).blocks.waiting() >= 320);
            (&gone).write_all(b"!").unwrap();
        });
        file.tend();
        assert_eq!(file.home(0).blocks.waiting(), 0, "the child is gone");
        for slot in 0..350 {
            assert_eq!(read(&file, slot + 1000), Ok(page(slot, 3)));
        }
    });
}

use std::io::Write as _;

#[test]
fn a_fork_that_fails_changes_nothing() {
    let folder = Folder::new();
    let file = folder.file(1000, SYNC);
    filled(&file, 64);
    file.fork_begin();
    file.fork_end(Side::Failed).unwrap();
    file.discard(3);
    assert_eq!(file.home(0).blocks.waiting(), 0);
    let mut open = 0;
    file.descriptors(&mut |_| open += 1);
    assert_eq!(open, 2, "the folder and the file");
}

#[test]
fn threads_that_write_read_and_discard_each_see_their_own() {
    let folder = Folder::new();
    let file = folder.file(4000, FileOptions::default());
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let file = &file;
            scope.spawn(move || {
                for round in 0..12 {
                    for slot in thread * 100..thread * 100 + 100 {
                        file.write(slot, &page(slot, round)).unwrap();
                    }
                    for slot in thread * 100..thread * 100 + 100 {
                        assert_eq!(read(file, slot), Ok(page(slot, round)));
                        if slot % 3 == 0 {
                            file.discard(slot);
                        }
                    }
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..200 {
                file.tend();
                std::thread::yield_now();
            }
        });
    });
    let in_use: usize = (0..400)
        .filter(|&slot| file.slots.peek(slot) != Some(Word::EMPTY))
        .count();
    assert_eq!(file.usage().file_pages, in_use as u64);
}
