//! Where what is found in the libraries of programs is kept from one run to the next: a file in the user's folder for caches.
//! Where that cannot be had, or is not wanted, a file in memory serves this run.
//!
//! What is in it decides what is looked at, so it counts only where nobody else can have written it.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use userswap_hook::PLANS_NAMES;

/// How its name begins; the rest, in so many digits, tells the library that it is for, and since when the system runs.
const PREFIX: &str = PLANS_NAMES[0];
const DIGITS: usize = 16;

/// Files that were not used for longer are removed.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Opens the file for a library that `key` tells from all others; `None`: there can be none.
///
/// Each time the system starts begins a new one: numbers of devices come again, and after a loss of power a file's times may be
/// older than what is in it.
pub(crate) fn open(key: u64) -> Option<File> {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    let (folder, key) = (folder()?, key_of(&(key, boot)));
    let path = folder.join(format!("{PREFIX}{key:0DIGITS$x}"));
    let file = open_own(&path)?;
    if userswap_hook::has_room_for_plans(&file) {
        return Some(file);
    }
    // Whoever uses it keeps it until then.
    std::fs::remove_file(&path).ok()?;
    open_own(&path)
}

/// A key that tells a library from others, and from what it was before: which file it is, and when it last changed.
pub(crate) fn key_of_file(library: &Path) -> Option<u64> {
    let file = std::fs::metadata(library).ok()?;
    Some(key_of(&(
        (file.dev(), file.ino(), file.size()),
        (file.mtime(), file.mtime_nsec()),
        (file.ctime(), file.ctime_nsec()),
    )))
}

fn key_of(content: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}

/// The folder, made where it is missing.
fn folder() -> Option<PathBuf> {
    let absolute = |name| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let caches = absolute("XDG_CACHE_HOME");
    let caches = caches.or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    // Of whoever we are: not of who let us be somebody else.
    let above = caches.ancestors().take(2).find(|path| path.exists())?;
    if !is_ours(&std::fs::metadata(above).ok()?) {
        return None;
    }
    let folder = caches.join("userswap");
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(&folder).ok()?;
    let found = std::fs::symlink_metadata(&folder).ok()?;
    (found.is_dir() && is_only_ours(&found)).then_some(folder)
}

/// Opens a file that only this user can have written, or makes it.
fn open_own(path: &Path) -> Option<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(_) => {
            let file = options.create_new(true).open(path).ok()?;
            remove_others(path);
            file
        }
    };
    let found = file.metadata().ok()?;
    (found.is_file() && found.nlink() == 1 && is_only_ours(&found)).then_some(file)
}

/// Removes those of other libraries that nobody has added to for long: of older builds.
fn remove_others(path: &Path) {
    let folder = path.parent().unwrap_or(path);
    for other in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = other.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let is_one = digits.is_some_and(|digits| {
            digits.len() == DIGITS && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
        });
        let changed = other.metadata().and_then(|found| found.modified());
        let age = changed.ok().and_then(|changed| changed.elapsed().ok());
        if is_one && other.path() != path && age.is_some_and(|age| age > KEPT) {
            let _ = std::fs::remove_file(other.path());
        }
    }
}

fn is_ours(found: &Metadata) -> bool {
    found.uid() == rustix::process::geteuid().as_raw()
}

/// Whether it is this user's, and no other may write to it.
fn is_only_ours(found: &Metadata) -> bool {
    is_ours(found) && found.mode() & 0o022 == 0
}
