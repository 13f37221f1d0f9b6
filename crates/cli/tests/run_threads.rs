//! `userswap run --faults thread`: what it does where it is asked for handler threads from the start.

mod support;

use support::limited::User;
use support::programs::{check_filtering, programs, programs_of_every_user};

programs_of_every_user!(User::InThreads);

programs! { User::InThreads;
    memory_is_used_in_every_way: "memory", [96], ["96"];
    mappings_of_files_keep_what_was_changed_in_them: "files", [28], ["16"];
    memory_that_children_do_not_get: "wiped", [38], ["48"];
    huge_pages_are_taken_apart_and_put_together: "huge", [44], ["48"];
    our_own_memory_is_never_taken_for_the_programs: "blocks", [40], ["48"];
    the_kernel_works_on_swapped_memory_by_itself: "rings", [38, 26], ["48"];
    the_program_handles_faults_of_its_own_memory: "faults", [30], ["40"];
    what_the_kernel_uses_comes_in: "over", [38], ["48", "forks"];
    a_process_looks_at_another: "peers", [38], ["everything"];
}

#[test]
fn programs_that_filter_their_system_calls() {
    check_filtering(User::InThreads);
}
