//! A file on a file system that is full, one behind a limit on the length of files, and one without io_uring.

mod storage;

use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use userswap_core::device::{Content, Device, DeviceError, PAGE_SIZE, SlotRead};
use userswap_device::{File, FileOptions};

use storage::{Mounted, noise};

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

/// Refuses io_uring calls of this process from now on, as container runtimes do: `first` is the lowest that is refused.
fn refuse_io_uring(first: i64) {
    use libc::{BPF_ABS, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter};
    let op = |code: u32, jt, jf, k| sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut program = [
        // The call's number.
        op(BPF_LD | BPF_W | BPF_ABS, 0, 0, 0),
        op(BPF_JMP | BPF_JGE | BPF_K, 0, 2, first as u32),
        op(
            BPF_JMP | BPF_JGE | BPF_K,
            1,
            0,
            libc::SYS_io_uring_register as u32,
        ),
        op(
            BPF_RET | BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ),
        op(BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the filter lives for the length of the call; it holds for this process, which ends with its test.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let set = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &filter,
        );
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }
}

/// Pages that lie apart in the file come back, in batches.
fn scattered_pages_come_back(file: &File, version: u64) {
    for slot in 0..512 {
        file.write(slot, &noise(slot + version)).unwrap();
    }
    let mut pages = vec![[0; PAGE_SIZE]; 256];
    let mut reads: Vec<_> = pages
        .iter_mut()
        .enumerate()
        // Of neither an even nor a repeated distance.
        .map(|(index, page)| Some(SlotRead::new((index * 37 % 256 * 2) as u64, page)))
        .collect();
    file.read_batch(&mut reads);
    for read in reads.iter().flatten() {
        assert_eq!(read.result, Ok(Content::Bytes));
        assert_eq!(*read.page, noise(read.slot + version), "slot {}", read.slot);
    }
}

#[test]
fn a_filter_that_refuses_io_uring_costs_nothing_but_time() {
    // The filter stays: the test runs in processes of its own.
    const NAME: &str = "a_filter_that_refuses_io_uring_costs_nothing_but_time";
    const MARK: &str = "USERSWAP_TEST_FILTERED";
    let Some(when) = std::env::var_os(MARK) else {
        for when in ["before", "amid"] {
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", NAME, "--nocapture"])
                .env(MARK, when)
                .status();
            assert!(status.unwrap().success(), "{when}");
        }
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let open = || File::new(folder.path(), 10_000, FileOptions::default()).unwrap();
    if when == "before" {
        refuse_io_uring(libc::SYS_io_uring_setup);
        let file = open();
        assert!(!file.uses_io_uring());
        scattered_pages_come_back(&file, 0);
        return;
    }
    let file = open();
    if let Some(error) = userswap_device::io_uring_refused() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{error}");
        eprintln!("SKIPPED: io_uring is refused here anyway: {error}");
        return;
    }
    assert!(file.uses_io_uring());
    scattered_pages_come_back(&file, 0);
    refuse_io_uring(libc::SYS_io_uring_enter);
    scattered_pages_come_back(&file, 1000);
    assert!(
        !file.uses_io_uring(),
        "a ring that nobody may enter is closed"
    );
}
