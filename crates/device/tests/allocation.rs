//! Reads, writes and discards run in a signal handler: they must not come near `malloc`.
//!
//! Every function of the C library that allocates is replaced here by one that counts, so the
//! codecs' C code is watched as well as ours.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

mod content;

use std::cell::Cell;
use std::ffi::c_void;
use std::time::Duration;

use content::{Numbers, PAGE};
use userswap_core::device::Device;
use userswap_device::{Codec, File, FileOptions, Ram, Zram, ZramOptions};

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    static CALLS: Cell<u32> = const { Cell::new(0) };
}

fn note() {
    if WATCHED.get() {
        CALLS.set(CALLS.get() + 1);
    }
}

unsafe extern "C" {
    fn __libc_malloc(size: usize) -> *mut c_void;
    fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
    fn __libc_realloc(old: *mut c_void, size: usize) -> *mut c_void;
    fn __libc_memalign(align: usize, size: usize) -> *mut c_void;
    fn __libc_free(old: *mut c_void);
}

/// Replaces the C library's, for this whole program.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn malloc(size: usize) -> *mut c_void {
    note();
    // SAFETY: the caller's call, passed on.
    unsafe { __libc_malloc(size) }
}

/// Replaces the C library's, for this whole program.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    note();
    // SAFETY: the caller's call, passed on.
    unsafe { __libc_calloc(count, size) }
}

/// Replaces the C library's, for this whole program.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn realloc(old: *mut c_void, size: usize) -> *mut c_void {
    note();
    // SAFETY: the caller's call, passed on.
    unsafe { __libc_realloc(old, size) }
}

/// Replaces the C library's, for this whole program.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    note();
    // SAFETY: the caller's call, passed on.
    unsafe { __libc_memalign(align, size) }
}

/// Replaces the C library's, for this whole program.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn free(old: *mut c_void) {
    note();
    // SAFETY: the caller's call, passed on.
    unsafe { __libc_free(old) }
}

fn calls(work: impl FnOnce()) -> u32 {
    CALLS.set(0);
    WATCHED.set(true);
    work();
    WATCHED.set(false);
    CALLS.get()
}

#[test]
fn the_watch_works() {
    assert!(calls(|| drop(std::hint::black_box(vec![1; 100]))) >= 2);
}

#[test]
fn devices_do_not_allocate() {
    let pages = content::mixed(600);
    let noise = content::random(&mut Numbers::new(6));
    let options = |codec| ZramOptions {
        codec,
        memory_limit: Some(1 << 20),
        ..ZramOptions::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let small = FileOptions {
        size: Some(500 * PAGE as u64),
        ..FileOptions::default()
    };
    let devices: [Box<dyn Device>; 4] = [
        Box::new(Ram::new(1024, Duration::ZERO).unwrap()),
        Box::new(Zram::new(1024, options(Codec::Lz4)).unwrap()),
        Box::new(Zram::new(1024, options(Codec::Zstd)).unwrap()),
        Box::new(File::new(folder.path(), 1024, small).unwrap()),
    ];
    for device in devices {
        // From the very first use, on a thread that has used none before.
        let calls = std::thread::scope(|scope| {
            let work = || {
                calls(|| {
                    let mut page = [0; PAGE];
                    let mut refused = 0;
                    for round in 0..3 {
                        for (slot, page) in pages.iter().enumerate() {
                            let page = if round == 1 { &noise } else { page };
                            refused += u32::from(device.write(slot as u64, page).is_err());
                        }
                        for slot in 0..1024 {
                            assert!(device.read(slot, &mut page).is_ok());
                        }
                        for slot in (round..1024).step_by(2) {
                            device.discard(slot);
                        }
                        let _ = device.usage();
                    }
                    assert_eq!(
                        refused > 0,
                        device.properties().discards,
                        "the limit was reached"
                    );
                })
            };
            scope.spawn(work).join().unwrap()
        });
        assert_eq!(calls, 0, "{}", device.name());
    }
}
