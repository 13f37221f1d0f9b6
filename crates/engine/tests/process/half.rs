//! Calls of the program's that fail after they have done a part, and memory that is left to the system in part.

use super::cases::{fill, map, map_at, process, take_on, unmap, wrong};
use super::common::{MIB, PAGE};

/// The system's word for a call that could not be finished.
const NOT_FINISHED: isize = -(libc::ENOMEM as isize);

/// Takes the mapping of a part away, as a call may before it fails.
fn unmap_unfinished(start: usize, len: usize) -> isize {
    // SAFETY: a part of a mapping of this test's, which uses it no more.
    assert_eq!(unsafe { libc::munmap(start as *mut _, len) }, 0);
    NOT_FINISHED
}

fn is_zero(start: usize, len: usize) -> bool {
    (start..start + len).step_by(PAGE).all(|page| {
        // SAFETY: in a mapping of this test's.
        unsafe { (page as *const u64).read_volatile() == 0 }
    })
}

/// As of mmap with MAP_FIXED: what it was to replace may be gone, some of it or all.
#[test]
fn what_a_failed_call_has_unmapped_is_gone_and_the_rest_is_not() {
    let Some((process, _turn)) = process() else {
        return;
    };
    let range = map(4 * MIB);
    fill(&range, 21);
    take_on(process, &range);
    process.page_out(&(range.start..range.start + 3 * MIB));
    // From within one chunk to within another, swapped out and in memory.
    let gone = range.start + 2 * MIB + 5 * PAGE..range.end - 7 * PAGE;
    let failed = process.unmap(range.clone(), || unmap_unfinished(gone.start, gone.len()));
    assert_eq!(failed, NOT_FINISHED);
    assert!(!process.is_taken_on(&gone));
    let (before, after) = (range.start..gone.start, gone.end..range.end);
    assert!(process.is_taken_on(&before) && process.is_taken_on(&after));
    // What is mapped there now is new, also once it is ours.
    map_at(&gone);
    assert!(is_zero(gone.start, gone.len()), "old contents");
    fill(&gone, 22);
    assert_eq!(take_on(process, &gone), (gone.len() / PAGE) as u64);
    process.page_out(&range);
    assert_eq!(wrong(&gone, gone.start, 22), 0);
    assert_eq!(wrong(&before, before.start, 21), 0);
    assert_eq!(wrong(&after, after.start, 21), 0);
    unmap(process, range);
    assert_eq!(process.stats().swapped_bytes, 0, "its slots are free");
    assert_eq!(process.stats().bugs, 0);
}

/// mremap unmaps its target first, and may find no room then.
#[test]
fn what_a_failed_move_has_unmapped_is_gone_and_what_was_to_move_is_not() {
    let Some((process, _turn)) = process() else {
        return;
    };
    let (old, target) = (map(2 * MIB), map(2 * MIB));
    fill(&old, 23);
    fill(&target, 24);
    take_on(process, &old);
    take_on(process, &target);
    process.page_out(&old);
    process.page_out(&target);
    let failed = process.remap(old.clone(), old.len(), Some(target.start), false, || {
        unmap_unfinished(target.start, target.len())
    });
    assert_eq!(failed, NOT_FINISHED);
    assert!(!process.is_taken_on(&target) && process.is_taken_on(&old));
    map_at(&target);
    assert!(is_zero(target.start, target.len()), "old contents");
    assert_eq!(wrong(&old, old.start, 23), 0);
    unmap(process, old);
    unmap(process, target);
    assert_eq!(process.stats().swapped_bytes, 0);
    assert_eq!(process.stats().bugs, 0);
}

/// Memory goes back piece by piece; its ends are where nothing else ends.
#[test]
fn what_is_left_to_the_system_goes_back_to_its_last_page() {
    let Some((process, _turn)) = process() else {
        return;
    };
    let range = map(9 * MIB);
    fill(&range, 25);
    take_on(process, &range);
    process.page_out(&range);
    let left = range.start + 3 * PAGE..range.end - 5 * PAGE;
    process.leave_alone(&left);
    assert!(!process.is_taken_on(&left));
    let ends = [range.start..left.start, left.end..range.end];
    for end in &ends {
        assert!(process.is_taken_on(end));
    }
    assert_eq!(process.stats().swapped_bytes, 8 * PAGE as u64);
    assert_eq!(process.taken_bytes(), 8 * PAGE as u64);
    assert_eq!(wrong(&range, range.start, 25), 0);
    unmap(process, range);
    assert_eq!(process.stats().bugs, 0);
}
