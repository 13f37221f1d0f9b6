//! Reading small files of /proc and /sys.

use std::path::Path;

use thiserror::Error;

use crate::Errno;

/// A fact about the host, or why it is not known.
pub type Reading<T> = Result<T, HostError>;

/// Why a fact is not known.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HostError {
    /// The file cannot be read; `NOENT` mostly means that the kernel has no such thing.
    #[error("cannot read {path}: {errno}")]
    Unreadable {
        /// The file.
        path: String,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The file says something unforeseen.
    #[error("cannot understand {path}: {text:?}")]
    Unforeseen {
        /// The file.
        path: String,
        /// What it says, or the line in question.
        text: String,
    },
}

pub(super) fn read(path: impl AsRef<Path>) -> Reading<String> {
    let path = path.as_ref();
    std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))
}

pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> HostError {
    let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
    HostError::Unreadable {
        path: path.display().to_string(),
        errno,
    }
}

pub(super) fn unforeseen(path: impl AsRef<Path>, text: &str) -> HostError {
    HostError::Unforeseen {
        path: path.as_ref().display().to_string(),
        text: text.to_owned(),
    }
}

/// A file that holds one number.
pub(super) fn read_number(path: impl AsRef<Path>) -> Reading<u64> {
    let text = read(&path)?;
    text.trim()
        .parse()
        .map_err(|_| unforeseen(path, text.trim()))
}

/// The value of `key` in a text of `key: value` lines.
pub(super) fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name == key).then_some(value.trim())
    })
}
