//! What `userswap run` tells the library, through the environment: the only thing a program surely passes on to
//! the programs it starts.

use std::ffi::CStr;
use std::fmt;

use userswap::{DeviceSpec, FaultMode, Policy};
use userswap_hook::Plans;
use userswap_sys::file_ref::FileRef;

/// The names of the variables.
pub mod names {
    /// The limit, in bytes.
    pub const LIMIT: &str = "USERSWAP_LIMIT";
    /// Where pages go: a device's name.
    pub const DEVICE: &str = "USERSWAP_DEVICE";
    /// A file that processes append their statistics to: a path, or that form.
    pub const STATS: &str = "USERSWAP_STATS";
    /// The file through which the processes of a tree share the limit, as a [`FileRef`](userswap_sys::file_ref::FileRef).
    pub const TREE: &str = "USERSWAP_TREE";
    /// The file through which they share what they find in libraries, in the same form.
    pub const PLANS: &str = "USERSWAP_PLANS";
    /// How many filters of system calls were in force where that file was made.
    pub const FILTERS: &str = "USERSWAP_FILTERS";
    /// How faults are handled: auto, inline or thread.
    pub const FAULTS: &str = "USERSWAP_FAULTS";
    /// 1: end the process rather than let it go over the limit.
    pub const STRICT: &str = "USERSWAP_STRICT";
    /// Which pages leave memory: for measurements.
    pub const POLICY: &str = "USERSWAP_POLICY";
}

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bytes that this process and its children may have in memory together.
    pub limit: u64,
    /// Where pages go.
    pub device: DeviceSpec,
    /// Where statistics go at exit.
    pub stats: Option<StatsFile>,
    /// What the tree shares.
    pub tree: Option<FileRef>,
    /// What was found in libraries.
    pub plans: Option<Plans>,
    /// How faults are handled; auto: in the threads that meet them, until the program does what that cannot follow.
    pub faults: FaultMode,
    /// Whether to end the process rather than let it go over the limit.
    pub strict: bool,
    /// Which pages leave memory.
    pub policy: Policy,
}

/// A file for statistics.
#[derive(Clone, Debug)]
pub enum StatsFile {
    /// What `run` made for itself.
    Ours(FileRef),
    /// What the user named, which is made where it is not there.
    Named(String),
}

impl fmt::Display for StatsFile {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours(_) => out.write_str("the file of `userswap run`"),
            Self::Named(path) => out.write_str(path),
        }
    }
}

impl Config {
    /// From the environment; `None`: nothing was asked for.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let limit = variable(names::LIMIT)?.parse().ok()?;
        Some(Self {
            limit,
            device: parse(names::DEVICE, DeviceSpec::Zram(userswap::Codec::default())),
            stats: variable(names::STATS).map(|text| match text.parse() {
                Ok(file) => StatsFile::Ours(file),
                Err(_) => StatsFile::Named(text),
            }),
            tree: variable(names::TREE).and_then(|text| text.parse().ok()),
            plans: variable(names::PLANS)
                .and_then(|text| text.parse().ok())
                .map(|file| Plans {
                    file,
                    filters: parse(names::FILTERS, 0),
                }),
            faults: parse(names::FAULTS, FaultMode::Thread),
            strict: variable(names::STRICT).as_deref() == Some("1"),
            policy: parse(names::POLICY, Policy::Recency),
        })
    }
}

/// `run` has checked it; what does not parse is as if it were not there.
fn parse<T: std::str::FromStr>(name: &str, default: T) -> T {
    variable(name)
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

/// A variable, read as libc has it: the library starts before the program does.
fn variable(name: &str) -> Option<String> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: a string that ends; nobody changes the environment while the library starts.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: what getenv returns is a string that ends, and stays while nobody changes the environment.
    let value = unsafe { CStr::from_ptr(value) };
    value.to_str().ok().map(str::to_owned)
}
