//! What the tests on real userfaultfd share. Each test binary uses a part of it.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::process::{Command, Output};

use userswap_sys::PAGE_SIZE;
use userswap_sys::mapping::Mapping;
use userswap_sys::uffd::{Open, OpenError, Progress, Uffd};

/// Says that `name` cannot be tested on this host. With CI=true a test that does not run is a failure.
pub(crate) fn skip(name: &str, reason: impl std::fmt::Display) {
    eprintln!("SKIPPED: {name}: {reason}");
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{name} must run in CI: {reason}"
    );
}

/// Opens, or skips the test where the host refuses; any other failure is the test's.
pub(crate) fn open_or_skip(name: &str, want: Open) -> Option<Uffd> {
    match Uffd::open(want) {
        Ok(uffd) => Some(uffd),
        Err(refused @ OpenError::Refused { .. }) => {
            skip(name, refused);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Opens in inline mode, or skips; so does a kernel that cannot move pages.
pub(crate) fn inline_or_skip(name: &str) -> Option<Uffd> {
    let uffd = open_or_skip(
        name,
        Open {
            sigbus: true,
            ..Open::default()
        },
    )?;
    if !uffd.features().move_pages() {
        skip(name, "no UFFDIO_MOVE");
        return None;
    }
    Some(uffd)
}

/// Address space for `pages` base pages.
pub(crate) fn pages(pages: usize) -> Mapping {
    let mapping = Mapping::reserve(pages * PAGE_SIZE, PAGE_SIZE).expect("reserve");
    // Refused where the kernel has no huge pages.
    let _ = mapping.advise_no_huge();
    mapping
}

/// Fills page `page` of `mapping` with bytes that only this page and this `seed` have.
pub(crate) fn fill(mapping: &Mapping, page: usize, seed: u8) {
    for offset in 0..PAGE_SIZE {
        // SAFETY: inside the mapping, which the test owns.
        unsafe {
            mapping
                .as_ptr()
                .add(page * PAGE_SIZE + offset)
                .write_volatile(byte(page, offset, seed))
        };
    }
}

/// Whether page `page` of `mapping` holds what `fill` wrote to page `of`.
pub(crate) fn holds(mapping: &Mapping, page: usize, of: usize, seed: u8) -> bool {
    (0..PAGE_SIZE).all(|offset| {
        // SAFETY: inside the mapping, which the test owns.
        let found = unsafe {
            mapping
                .as_ptr()
                .add(page * PAGE_SIZE + offset)
                .read_volatile()
        };
        found == byte(of, offset, seed)
    })
}

fn byte(page: usize, offset: usize, seed: u8) -> u8 {
    (page as u8)
        .wrapping_mul(31)
        .wrapping_add((offset / 3) as u8)
        .wrapping_add(seed)
        | 1
}

/// Everything was done.
#[track_caller]
pub(crate) fn complete(progress: Progress) {
    assert!(progress.is_complete(), "{progress:?}");
}

/// Runs the test `name` of this very binary, ignored there, in a process of its own with `case` in its environment.
pub(crate) fn child(name: &str, case: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command
        .args([
            "--exact",
            name,
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("CASE", case);
    command
}

/// The case this process was started for.
pub(crate) fn case() -> String {
    std::env::var("CASE").expect("started by another test")
}

/// What a child said, for a failing assertion.
pub(crate) fn said(output: &Output) -> String {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    format!("{}\n--- stdout\n{out}--- stderr\n{err}", output.status)
}
