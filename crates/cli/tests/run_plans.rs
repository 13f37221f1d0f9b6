//! `userswap run`: what is found in libraries is kept for later runs, where nobody else can have written it.

mod support;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use support::limited::{folder, possible};
use support::userswap;

/// Runs programs that were installed long ago, natively and under a limit, with caches in `caches`.
fn same(caches: &Path, options: &[&str]) {
    let program = ["sh", "-c", "ls / | sort | wc -l; echo $0 right"];
    let native = Command::new(program[0]).args(&program[1..]).output();
    let limited = userswap(&["run", "--limit", "64M"])
        .env("XDG_CACHE_HOME", caches)
        .env("HOME", "/nowhere")
        .args(options)
        .arg("--")
        .args(program)
        .output()
        .expect("userswap runs");
    let complaints = String::from_utf8_lossy(&limited.stderr);
    assert!(limited.status.success(), "{complaints}");
    assert_eq!(limited.stdout, native.expect("it runs").stdout);
}

/// The files of plans in a folder for caches, and how long they are.
fn kept(caches: &Path) -> Vec<(PathBuf, u64)> {
    let entries = fs::read_dir(caches.join("userswap")).into_iter().flatten();
    let paths = entries.map(|entry| entry.expect("readable").path());
    paths
        .map(|path| (path.clone(), fs::metadata(path).expect("there").len()))
        .collect()
}

fn empty(name: &str) -> PathBuf {
    let caches = folder(name).join("caches");
    let _ = fs::remove_dir_all(&caches);
    fs::create_dir_all(&caches).expect("writable");
    caches
}

#[test]
fn what_one_run_finds_the_next_one_has() {
    let test = "what_one_run_finds_the_next_one_has";
    if !possible(test) {
        return;
    }
    let caches = empty(test);
    same(&caches, &["--no-cache"]);
    assert_eq!(kept(&caches), []);
    // Of a build that is gone; of another that is in use; and what only is called so.
    let place = caches.join("userswap");
    fs::create_dir(&place).expect("writable");
    fs::set_permissions(&place, Permissions::from_mode(0o700)).expect("ours");
    for (name, weeks) in [
        ("plans-00112233445566aa", 2),
        ("plans-00112233445566bb", 0),
        ("plans-2020", 2),
    ] {
        let file = File::create(place.join(name)).expect("writable");
        let then = SystemTime::now() - Duration::from_secs(weeks * 7 * 24 * 3600);
        file.set_modified(then).expect("ours");
    }
    same(&caches, &[]);
    let mut first = kept(&caches);
    assert!(place.join("plans-00112233445566bb").exists() && place.join("plans-2020").exists());
    assert_eq!(first.len(), 3, "{first:?}");
    for other in ["plans-00112233445566bb", "plans-2020"] {
        fs::remove_file(place.join(other)).expect("there");
    }
    first.retain(|(_, len)| *len > 1000);
    assert_eq!(first.len(), 1, "{first:?}");
    let path = &first[0].0;
    let mode = fs::metadata(path).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // What is not found is added.
    same(&caches, &[]);
    assert_eq!(kept(&caches), first);
    // What makes no sense is as nothing.
    fs::write(path, vec![0x5a; first[0].1 as usize]).expect("writable");
    same(&caches, &[]);
    // As full as it may be; or as nothing, for who must not trust it.
    let other = fs::read(path).expect("readable");
    assert!(!other.iter().all(|&byte| byte == 0x5a), "made anew");
    for mode in [0o622, 0o666] {
        fs::write(path, "").expect("writable");
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("ours");
        same(&caches, &[]);
        assert_eq!(kept(&caches), [(path.clone(), 0)], "{mode:o}");
    }
}

#[test]
fn where_nothing_can_be_kept_programs_run() {
    let test = "where_nothing_can_be_kept_programs_run";
    if !possible(test) {
        return;
    }
    let caches = empty(test);
    // A file is in the way; nothing says where; and the folder may be anybody's.
    fs::write(caches.with_file_name("file"), "").expect("writable");
    same(&caches.with_file_name("file"), &[]);
    same(Path::new("somewhere"), &[]);
    assert!(!Path::new("somewhere").exists());
    let open = caches.with_file_name("open");
    fs::create_dir_all(open.join("userswap")).expect("writable");
    fs::set_permissions(open.join("userswap"), Permissions::from_mode(0o777)).expect("ours");
    same(&open, &[]);
    assert_eq!(kept(&open), []);
}
