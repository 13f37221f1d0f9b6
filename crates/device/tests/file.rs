//! A file on a file system that is full, and one behind a limit on the length of files.

use std::path::Path;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use userswap_core::device::{Content, Device, DeviceError, PAGE_SIZE, PageBytes};
use userswap_device::{File, FileOptions};

fn noise(seed: u64) -> PageBytes {
    let mut state = seed << 1 | 1;
    std::array::from_fn(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    })
}

/// Writes pages until the device takes no more; all that were taken can be read. Returns how many.
fn fill(file: &File) -> u64 {
    let mut slot = 0;
    while file.write(slot, &noise(slot)).is_ok() {
        slot += 1;
    }
    assert_eq!(file.write(slot, &noise(slot)), Err(DeviceError::Full));
    for slot in 0..slot {
        let mut page = [0; PAGE_SIZE];
        assert_eq!(file.read(slot, &mut page), Ok(Content::Bytes));
        assert_eq!(page, noise(slot), "slot {slot}");
    }
    // What is dropped makes room.
    for slot in 0..64 {
        file.discard(slot);
    }
    file.write(3, &noise(9)).expect("there is room again");
    slot
}

struct Mounted(tempfile::TempDir);

impl Mounted {
    fn tmpfs(bytes: usize) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(folder.path())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(folder));
        }
        assert_ne!(
            std::env::var("CI").as_deref(),
            Ok("true"),
            "nothing can be mounted"
        );
        eprintln!("SKIPPED: nothing can be mounted here (not root)");
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

#[test]
fn a_full_file_system_refuses_pages_before_they_are_taken() {
    let Some(mounted) = Mounted::tmpfs(4 << 20) else {
        return;
    };
    let file = File::new(mounted.path(), 10_000, FileOptions::default()).unwrap();
    let pages = fill(&file);
    // Nearly all of the four mebibytes.
    assert!((700..=1024).contains(&pages), "{pages} pages");
    drop(file);
    let again = File::new(mounted.path(), 10_000, FileOptions::default()).unwrap();
    assert_eq!(fill(&again), pages, "nothing was left there");
}

#[test]
fn a_limit_on_the_length_of_files_is_met_without_its_signal() {
    // A signal would end this process: the test runs in one of its own.
    const NAME: &str = "a_limit_on_the_length_of_files_is_met_without_its_signal";
    const MARK: &str = "USERSWAP_TEST_LIMITED";
    if std::env::var_os(MARK).is_none() {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(MARK, "1")
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let set = |bytes: Option<u64>| {
        let limit = Rlimit {
            current: bytes,
            ..getrlimit(Resource::Fsize)
        };
        setrlimit(Resource::Fsize, limit).unwrap();
    };
    let folder = tempfile::tempdir().unwrap();
    set(Some(2 << 20));
    let file = File::new(folder.path(), 10_000, FileOptions::default()).unwrap();
    let pages = fill(&file);
    assert!((256..=512).contains(&pages), "{pages} pages");
    // Lowered behind our back.
    set(Some(1 << 20));
    let mut slot = 1000;
    while file.write(slot, &noise(slot)).is_ok() && slot < 2000 {
        file.discard(slot - 1000);
        slot += 1;
    }
    for slot in 1000..slot {
        let mut page = [0; PAGE_SIZE];
        assert_eq!(file.read(slot, &mut page), Ok(Content::Bytes));
        assert_eq!(page, noise(slot), "slot {slot}");
    }
}
