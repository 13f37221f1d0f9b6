//! Where what is found in the libraries of programs is kept from one run to the next: a file in the user's folder for caches. Where
//! that cannot be had, or is not wanted, a file in memory serves this run.
//!
//! What is in it decides what is looked at, so it counts only where nobody else can have written it.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How its name begins; the rest tells the library that it is for.
const PREFIX: &str = "plans-";

/// Opens the file for a library that `key` tells from all others; `None`: there can be none.
pub(crate) fn open(key: u64) -> Option<File> {
    let folder = folder()?;
    let path = folder.join(format!("{PREFIX}{key:016x}"));
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

/// A key that tells some content from other.
pub(crate) fn key_of(content: &impl Hash) -> u64 {
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
    let caches = absolute("XDG_CACHE_HOME").or_else(|| {
        let home = absolute("HOME")?;
        // Of whoever we are: not of who let us be somebody else.
        is_own(&std::fs::metadata(&home).ok()?).then(|| home.join(".cache"))
    })?;
    let folder = caches.join("userswap");
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(&folder).ok()?;
    is_own(&std::fs::metadata(&folder).ok()?).then_some(folder)
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
    (found.is_file() && found.nlink() == 1 && is_own(&found)).then_some(file)
}

/// Removes those of other libraries: of older builds.
fn remove_others(path: &Path) {
    let folder = path.parent().unwrap_or(path);
    for other in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_one = other.file_name().to_string_lossy().starts_with(PREFIX);
        if is_one && other.path() != path {
            let _ = std::fs::remove_file(other.path());
        }
    }
}

/// Whether it is this user's, and no other may write to it.
fn is_own(found: &Metadata) -> bool {
    found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0
}
