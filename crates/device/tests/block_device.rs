//! A block device, and one that fails: a loop device over a file that is cut short, or has no space.

mod storage;

use std::fs::OpenOptions;

use userswap_core::device::{Content, Device, DeviceError, PAGE_SIZE, PageBytes};
use userswap_device::{File, FileOptions};

use storage::{Loop, Mounted, noise};

const SLOTS: u64 = 2048;

const OPTIONS: FileOptions = FileOptions {
    encrypt: true,
    size: None,
    overwrite: true,
    io_uring: true,
    timeout: std::time::Duration::from_secs(10),
};

fn read(file: &File, slot: u64) -> Result<PageBytes, DeviceError> {
    let mut page = [0; PAGE_SIZE];
    assert_eq!(file.read(slot, &mut page)?, Content::Bytes);
    Ok(page)
}

fn is_io(error: DeviceError) -> bool {
    // A device with an error may say so, or that it has no space.
    matches!(error, DeviceError::Io(libc::EIO | libc::ENOSPC))
}

#[test]
fn pages_go_to_a_block_device_and_back_and_its_end_is_kept_to() {
    let folder = tempfile::tempdir().unwrap();
    let Some(device) = Loop::new(folder.path(), 4 << 20) else {
        return;
    };
    let careful = FileOptions {
        overwrite: false,
        ..OPTIONS
    };
    let refused = File::new(&device.device, SLOTS, careful).err().unwrap();
    assert!(refused.to_string().contains("overwrite=on"), "{refused}");
    let file = File::new(&device.device, SLOTS, OPTIONS).unwrap();
    let twice = File::new(&device.device, SLOTS, OPTIONS).err().unwrap();
    assert!(twice.to_string().contains("another process"), "{twice}");
    for slot in 0..1024 {
        file.write(slot, &noise(slot)).unwrap();
    }
    assert_eq!(file.write(1024, &noise(1024)), Err(DeviceError::Full));
    for slot in 0..1024 {
        assert_eq!(read(&file, slot), Ok(noise(slot)), "slot {slot}");
    }
    for slot in 0..1024 {
        file.discard(slot);
    }
    file.retire();
    File::new(&device.device, SLOTS, OPTIONS).expect("it is free again");
}

#[test]
fn what_a_device_cannot_read_is_an_error_and_the_rest_is_not_harmed() {
    let folder = tempfile::tempdir().unwrap();
    let Some(device) = Loop::new(folder.path(), 4 << 20) else {
        return;
    };
    let file = File::new(&device.device, SLOTS, OPTIONS).unwrap();
    for slot in 0..1024 {
        file.write(slot, &noise(slot)).unwrap();
    }
    // Behind the device's back: its second half is gone.
    let content = OpenOptions::new().write(true).open(&device.content);
    content.unwrap().set_len(2 << 20).unwrap();
    for slot in (0..512).step_by(7) {
        assert_eq!(read(&file, slot), Ok(noise(slot)), "slot {slot}");
    }
    for slot in (512..1024).step_by(7) {
        let error = read(&file, slot).expect_err("it is gone");
        // Never what it was not: some kernels fail the read, some give zeros.
        assert!(
            is_io(error) || error == DeviceError::Corrupt,
            "slot {slot}: {error}"
        );
    }
}

#[test]
fn what_a_device_cannot_write_stays_and_is_written_when_it_can() {
    let Some(mounted) = Mounted::tmpfs(4 << 20) else {
        return;
    };
    // It says that it has 16 MiB, and has less than two.
    let Some(device) = Loop::new(mounted.path(), 16 << 20) else {
        return;
    };
    let ballast = mounted.path().join("ballast");
    std::fs::write(&ballast, vec![1; 2 << 20]).unwrap();
    let file = File::new(&device.device, 4096, OPTIONS).unwrap();
    let mut slot = 0;
    let error = loop {
        match file.write(slot, &noise(slot)) {
            Ok(()) => slot += 1,
            Err(error) => break error,
        }
        assert!(slot < 4096, "there is no space for that many");
    };
    assert!(is_io(error), "{error}");
    assert!(slot > 256, "{slot} pages");
    let all_there = |slots| {
        for slot in 0..slots {
            assert_eq!(read(&file, slot), Ok(noise(slot)), "slot {slot}");
        }
    };
    all_there(slot);
    std::fs::remove_file(&ballast).unwrap();
    for _ in 0..8 {
        file.tend();
    }
    for more in slot..slot + 256 {
        file.write(more, &noise(more)).expect("there is space now");
    }
    all_there(slot + 256);
}
