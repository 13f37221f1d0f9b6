//! `userswap run`: C programs that use what the system offers for memory, processes, signals and descriptors, while
//! their memory is swapped.

mod support;

use support::limited::{User, compiled, folder, possible_with, same_for, same_within};
use support::programs::{
    check, check_filtering, check_stops, possible_for, programs, programs_of_every_user,
};
use support::{skip, userswap};

programs_of_every_user!(User::Any);

programs! { User::Any;
    /// Pages of files leave first: those that the program has changed in a private mapping must not.
    mappings_of_files_keep_what_was_changed_in_them: "files", [28], ["16"];
    /// A child that is to find nothing does, and one in a folder of its own, without /proc, is held to the limit.
    memory_that_children_do_not_get: "wiped", [38], ["48"];
    huge_pages_are_taken_apart_and_put_together: "huge", [44, 38], ["48"];
    our_own_memory_is_never_taken_for_the_programs: "blocks", [40], ["48"];
    /// Buffers that the kernel was told of, plain ones, and asynchronous requests; advice through a ring is refused.
    the_kernel_works_on_swapped_memory_by_itself: "rings", [38, 26], ["48"];
    /// Memory that the program handles the faults of is given back to it.
    the_program_handles_faults_of_its_own_memory: "faults", [30], ["40"];
    /// Everything that one process reads of another with process_vm_readv is there.
    a_process_looks_at_another: "peers", [38], ["everything"];
}

/// What inline mode cannot follow, begun when much is swapped out: handler threads go on, nothing is lost, and the limit holds,
/// while other threads work on the same memory, in children, and where SIGBUS is blocked or has a handler of the program's.
#[test]
fn a_program_goes_over_to_handler_threads() {
    for (how, processes) in [("once", 1), ("threads", 1), ("forks", 4), ("bus", 1)] {
        let Some(swapping) = check(User::Any, "over", &[38], &["48", how]) else {
            return;
        };
        assert_eq!(swapping, [processes], "{how}");
    }
}

/// The same for everything that is known, before there is an engine and after.
#[test]
fn what_inline_mode_cannot_follow_handler_threads_do() {
    for how in ["rings", "aio", "unknown", "stack", "faults"] {
        for when in ["early", "late"] {
            let Some(swapping) = check(User::Any, "stops", &[32], &[how, when]) else {
                return;
            };
            assert_eq!(swapping, [1], "{how} {when}");
        }
    }
}

/// Changes of user and capabilities, which belong to threads, and of which ours have the program's: libc ends a program whose threads
/// are answered differently. The statistics come from one that may not open their file any more.
#[test]
fn users_and_capabilities_are_given_up_as_natively() {
    let test = "users_and_capabilities_are_given_up_as_natively";
    if !possible_with(test, &["setpriv"]) {
        return;
    }
    let may_change = std::process::Command::new("setpriv")
        .args(["--reuid=1000", "--regid=65534", "--clear-groups", "true"])
        .status()
        .is_ok_and(|status| status.success());
    if !may_change {
        return skip(test, "users may not be changed here");
    }
    for user in [User::Any, User::InThreads] {
        for how in ["all", "few"] {
            let Some(swapping) = check(user, "user", &[32], &[how]) else {
                return;
            };
            assert_eq!(swapping, [1], "{how}");
        }
    }
    for more in [&[][..], &["--bounding-set=-all", "--no-new-privs"]] {
        let mut command = vec![
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
        ];
        command.extend(more);
        command.extend([
            "sh",
            "-c",
            "grep -E 'Uid|Gid|Groups|Cap' /proc/self/status; :",
        ]);
        let native = std::process::Command::new(command[0])
            .args(&command[1..])
            .output()
            .expect("it runs");
        // Often: our thread may not have come as far as to know itself.
        for _ in 0..20 {
            let output = userswap(&["run", "--limit", "32M", "--"])
                .args(&command)
                .output()
                .expect("userswap runs");
            assert!(native.status.success() && native == output, "{output:?}");
        }
    }
}

/// A process with one thread has two under `run`, and may still do what only one with one thread may.
#[test]
fn a_program_with_one_thread_may_have_a_namespace_for_users() {
    let test = "a_program_with_one_thread_may_have_a_namespace_for_users";
    if !possible_with(test, &["unshare", "gcc"]) {
        return;
    }
    let native = std::process::Command::new("unshare")
        .args(["--user", "true"])
        .status()
        .expect("it runs");
    if !native.success() {
        return skip(test, "this host has no namespaces for users");
    }
    let program = compiled("user");
    for user in [User::Any, User::InThreads] {
        // In a folder of its own: another test uses the program, too.
        let swapping = same_for(user, test, &folder(test), &[32], &[&program, "namespace"]);
        assert_eq!(swapping, [1], "{user:?}");
    }
}

/// What the host does not permit: a program that has given up its privileges goes on without a limit.
#[test]
fn one_without_privileges_any_more_does_not() {
    let test = "one_without_privileges_any_more_does_not";
    let tools = ["gcc", "timeout", "chroot"];
    if !possible_for(User::Any, test, &tools) || !possible_for(User::Unprivileged, test, &tools) {
        return;
    }
    if matches!(userswap_sys::host::unprivileged_userfaultfd(), Ok(true)) {
        skip(test, "whoever wants may handle faults in system calls here");
        return;
    }
    let program = compiled("over");
    for how in ["once", "threads", "forks", "bus"] {
        let output = User::Any
            .userswap()
            .args(["run", "--limit", "38M", "--"])
            .args(["chroot", "--userspec", "65534:65534", "/"])
            .args([&program, "48", how])
            .output()
            .expect("userswap runs");
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{how}: {complaints}");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.ends_with(&format!("{how} right\n")), "{how}: {said}");
        // It may not write its statistics either, which is said, too.
        let told = complaints.lines();
        let told = told.filter(|line| line.contains("limit is not held"));
        let told: Vec<_> = told.collect();
        assert!(
            told.len() == 1 && told[0].contains("io_uring"),
            "{how}: {complaints}"
        );
    }
}

/// A program whose allocator is for one thread gets no thread of ours, which would allocate, too.
#[test]
fn a_program_that_allocates_for_one_thread_keeps_to_it() {
    let test = "a_program_that_allocates_for_one_thread_keeps_to_it";
    if possible_for(User::Any, test, &["gcc"]) {
        check_stops(
            User::Any,
            "alone",
            38,
            &["48"],
            "allocator of its own",
            false,
        );
    }
}

/// What a program forbids itself it forbids us: its memory comes back before. What its children forbid themselves is theirs:
/// the program goes on under its limit, whether they have its memory, for a while, or a copy of it.
#[test]
fn programs_that_filter_their_system_calls() {
    check_filtering(User::Any);
}

/// Looking at a library that a thread loads takes no system call that was forbidden to it, and little of its stack.
#[test]
fn libraries_are_loaded_with_little() {
    if !possible_with("libraries_are_loaded_with_little", &["gcc"]) {
        return;
    }
    let program = compiled("loads");
    for how in ["writes", "locks", "stack", "answers"] {
        let native = std::process::Command::new(&program).arg(how).output();
        let limited = userswap(&["run", "--limit", "64M", "--", &program, how]).output();
        let (native, limited) = (native.expect("it runs"), limited.expect("userswap runs"));
        assert!(native.status.success(), "natively: {native:?}");
        assert_eq!(native, limited, "{how}");
    }
}

/// Filters that `run` itself passes, as in a container, keep nobody from sharing what is found in libraries; one that comes later
/// does.
#[test]
fn processes_of_a_container_share_what_they_find_in_libraries() {
    let test = "processes_of_a_container_share_what_they_find_in_libraries";
    if !possible_with(test, &["gcc", "sh", "wc"]) {
        return;
    }
    let (filtered, loads) = (compiled("filtered"), compiled("loads"));
    let under_a_filter = |program: &[&str]| {
        let run = userswap(&[&["run", "--limit", "64M", "--"], program].concat());
        let mut command = std::process::Command::new(&filtered);
        let command = command.arg(run.get_program()).args(run.get_args());
        let output = command.output().expect("it runs");
        let fine = output.status.success() && output.stderr.is_empty();
        assert!(fine, "{output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    // What there is when the shell, which has looked for itself, runs this.
    let kept = r#"wc -c < "/${USERSWAP_PLANS#*/}""#;
    let bytes = under_a_filter(&["sh", "-c", kept]);
    assert!(bytes.parse::<u64>().is_ok_and(|bytes| bytes > 0), "{bytes}");
    assert_eq!(under_a_filter(&[&loads, "locks"]), "loaded");
}

/// Where the paths of what `run` shares lead to a stranger's files, these stay as they are.
#[test]
fn files_of_others_are_left_alone() {
    let test = "files_of_others_are_left_alone";
    if !possible_with(test, &["sh", "sleep"]) {
        return;
    }
    let folder = folder(test);
    // As many bytes as the table of processes has; entries that are not in use.
    let bytes = [vec![0; 128], vec![0xaa; (64 << 10) - 128]].concat();
    for (name, end) in [("PLANS", ""), ("TREE", ""), ("STATS", " 2>/dev/null")] {
        let file = folder.join(name);
        std::fs::write(&file, &bytes).expect("writable");
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        let opened = std::fs::File::options().write(true).open(&file);
        let opened = opened.and_then(|file| file.set_modified(long_ago));
        opened.expect("its owner may");
        let variable = format!("USERSWAP_{name}");
        let script = format!(
            "export {variable}=\"${{{variable}%%/*}}{}\"; env sleep 0.3{end}; :",
            file.display()
        );
        let output = userswap(&["run", "--limit", "64M", "--", "sh", "-c", &script]).output();
        let output = output.expect("userswap runs");
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
        let modified = std::fs::metadata(&file).and_then(|now| now.modified());
        assert_eq!(modified.ok(), Some(long_ago), "{name}");
        assert!(std::fs::read(&file).ok() == Some(bytes.clone()), "{name}");
    }
}

/// What cannot be swapped rightly is not swapped.
#[test]
fn what_has_to_be_in_memory_stops_it_with_a_line() {
    let test = "what_has_to_be_in_memory_stops_it_with_a_line";
    if !possible_for(User::Any, test, &["gcc", "timeout"]) {
        return;
    }
    for (how, said) in [
        ("memory", "/proc/PID/mem"),
        ("events", "handles page faults itself"),
        ("thread", "share their thread-local memory"),
        ("thread3", "share their thread-local memory"),
    ] {
        for when in ["early", "late"] {
            check_stops(User::Any, "stops", 32, &[how, when], said, true);
        }
    }
    check_stops(User::Any, "locked", 38, &["48", "all"], "mlockall", true);
}

/// Pages of files leave first, and it is asked whether they are files: a file system that does not answer holds up nobody.
#[test]
fn a_file_system_that_hangs() {
    let test = "a_file_system_that_hangs";
    if !possible_with(test, &["gcc", "timeout", "unshare"]) {
        return;
    }
    let (program, folder) = (compiled("hung"), folder(test));
    // Whatever is mounted goes with its processes.
    let command = ["unshare", "--mount", &program, "48"];
    let native = std::process::Command::new(command[0])
        .args(&command[1..])
        .current_dir(&folder)
        .output()
        .expect("unshare runs");
    if !native.status.success() {
        skip(
            test,
            &format!("no file system can be mounted here: {native:?}"),
        );
        return;
    }
    same_within(test, &folder, &[38], &command);
}

/// What a core has of a page is the page or nothing.
#[test]
fn a_core_has_no_wrong_pages() {
    let test = "a_core_has_no_wrong_pages";
    if !possible_with(test, &["gcc", "timeout"]) {
        return;
    }
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    if pattern.trim() != "core" {
        skip(test, "cores are not files in the current folder here");
        return;
    }
    same_within(test, &folder(test), &[38], &[&compiled("dumps")]);
}
