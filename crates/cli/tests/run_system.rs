//! `userswap run`: C programs that use what the system offers for memory, processes, signals and descriptors, while
//! their memory is swapped.

mod support;

use support::limited::{compiled, folder, possible_with, same_within};

/// How many processes swapped under each limit; `None`: it was not run.
fn check(name: &str, limits: &[u64], arguments: &[&str]) -> Option<Vec<usize>> {
    let test = format!("{name}_under_a_limit");
    if !possible_with(&test, &["gcc", "timeout"]) {
        return None;
    }
    let program = compiled(name);
    let mut command = vec![program.as_str()];
    command.extend(arguments);
    Some(same_within(&test, &folder(&test), limits, &command))
}

#[test]
fn the_system_reads_and_writes_swapped_memory_by_every_way() {
    check("transfers", &[38, 26], &["48"]);
}

/// What a program forbids itself it forbids us: its memory comes back before.
#[test]
fn a_program_that_filters_its_system_calls_has_its_memory_back() {
    for threads in [&["48"][..], &["48", "all"]] {
        let Some(swapping) = check("confined", &[38], threads) else {
            return;
        };
        assert_eq!(swapping, [1]);
    }
}

/// Pages of files leave first: those that the program has changed in a private mapping must not.
#[test]
fn mappings_of_files_keep_what_was_changed_in_them() {
    check("files", &[28], &["16"]);
}

#[test]
fn threads_change_mappings_under_each_other() {
    check("mappings", &[32], &["16"]);
}

#[test]
fn children_of_every_kind() {
    // The program, a dozen children, and three children of theirs: each tells what it did, the program too, though
    // others that borrowed its memory ended before it.
    if let Some(swapping) = check("forks", &[40], &["24"]) {
        assert_eq!(swapping, [16]);
    }
}

#[test]
fn handlers_for_faults_of_the_programs_own() {
    check("handlers", &[38], &["48"]);
}

#[test]
fn descriptors_are_all_closed_and_all_used() {
    check("descriptors", &[38, 26], &["48"]);
}

#[test]
fn threads_start_and_end() {
    check("threads", &[40], &["48"]);
}

#[test]
fn huge_pages_are_taken_apart_and_put_together() {
    check("huge", &[44, 38], &["48"]);
}

#[test]
fn our_own_memory_is_never_taken_for_the_programs() {
    check("blocks", &[40], &["48"]);
}
