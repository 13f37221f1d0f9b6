//! What an engine is made of, as users write it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub use userswap_device::{Codec, FileOptions};

use crate::Error;

/// How faults reach the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FaultMode {
    /// Whichever suits regions on this host: inline. For a whole process (`userswap run`): inline, and threads once it does what
    /// inline mode cannot follow.
    #[default]
    Auto,
    /// The faulting thread resolves its own fault in a SIGBUS handler: fastest, and needs no
    /// privilege; a system call on swapped-out memory fails (EFAULT or a short count), so pin what
    /// system calls use.
    Inline,
    /// Handler threads resolve faults; system calls on swapped-out memory work too, where the host
    /// permits it (CAP_SYS_PTRACE, vm.unprivileged_userfaultfd=1 or access to /dev/userfaultfd).
    Thread,
}

impl FromStr for FaultMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "auto" => Ok(Self::Auto),
            "inline" => Ok(Self::Inline),
            "thread" => Ok(Self::Thread),
            _ => Err(Error::FaultMode(text.to_owned())),
        }
    }
}

/// Which pages leave memory. To be measured against each other: programs want the default.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Policy {
    /// Those that nobody touched while they were on the inactive list.
    #[default]
    Recency,
    /// In the order of addresses, used or not.
    Fifo,
    /// Any.
    Random,
}

impl FromStr for Policy {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "recency" => Ok(Self::Recency),
            "fifo" => Ok(Self::Fifo),
            "random" => Ok(Self::Random),
            _ => Err(()),
        }
    }
}

/// How many pages one fault brings in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FaultAround {
    /// Grows while neighbours get used, shrinks when they do not; 1 to 64 pages.
    #[default]
    Adaptive,
    /// Always this many pages, rounded up to a power of two, at most 64. 1 turns it off.
    Fixed(usize),
}

impl FaultAround {
    pub(crate) fn pages(self) -> Option<usize> {
        match self {
            Self::Adaptive => None,
            Self::Fixed(pages) => Some(pages),
        }
    }
}

/// A device that the engine makes itself. Parsed from `zram`, `zram:lz4`, `zram:zstd`, `ram`, `file:PATH` and
/// `zram,file:PATH`; options of a file follow its path, such as `file:PATH,encrypt=off,size=8G`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceSpec {
    /// Compressed memory.
    Zram(Codec),
    /// Plain memory, never discarded; each read takes `read_delay` longer. For tests and
    /// demonstrations.
    Ram {
        /// Added to every read.
        read_delay: Duration,
    },
    /// A file or block device.
    File(FileSpec),
    /// Compressed memory, and a file below it for what is old, does not fit or does not compress.
    Tiered(Codec, FileSpec),
}

/// A file to swap to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSpec {
    /// A folder, in which a file is made that never has a name; a path where nothing is, as if its folder had been named;
    /// or, with [`FileOptions::overwrite`], a file or block device.
    pub path: PathBuf,
    /// How it is used.
    pub options: FileOptions,
}

impl DeviceSpec {
    /// The file it has, if any.
    #[must_use]
    pub fn file_mut(&mut self) -> Option<&mut FileSpec> {
        match self {
            Self::File(file) | Self::Tiered(_, file) => Some(file),
            Self::Zram(_) | Self::Ram { .. } => None,
        }
    }
}

impl FromStr for DeviceSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(file) = text.strip_prefix("file:") {
            return file.parse().map(Self::File);
        }
        let (name, below) = text
            .split_once(',')
            .map_or((text, None), |(name, below)| (name, Some(below)));
        let codec = match name {
            "zram" => Codec::Adaptive,
            "zram:lz4" => Codec::Lz4,
            "zram:zstd" => Codec::Zstd,
            "ram" if below.is_none() => {
                return Ok(Self::Ram {
                    read_delay: Duration::ZERO,
                });
            }
            _ => return Err(Error::UnknownDevice(text.to_owned())),
        };
        match below.map(|below| below.strip_prefix("file:")) {
            None => Ok(Self::Zram(codec)),
            Some(Some(file)) => Ok(Self::Tiered(codec, file.parse()?)),
            Some(None) => Err(Error::UnknownDevice(text.to_owned())),
        }
    }
}

impl FromStr for FileSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut parts = text.split(',');
        let path = parts.next().unwrap_or_default();
        let mut options = FileOptions::default();
        if path.is_empty() {
            return Err(Error::FileOption(format!("file:{text}")));
        }
        for part in parts {
            let unknown = || Error::FileOption(part.to_owned());
            let on = || match part.split_once('=') {
                Some((_, "on")) => Ok(true),
                Some((_, "off")) => Ok(false),
                _ => Err(unknown()),
            };
            match part.split_once('=').ok_or_else(unknown)? {
                ("encrypt", _) => options.encrypt = on()?,
                ("overwrite", _) => options.overwrite = on()?,
                ("io_uring", _) => options.io_uring = on()?,
                ("timeout", seconds) => {
                    let seconds = seconds.parse().ok().filter(|&seconds| seconds > 0);
                    options.timeout = Duration::from_secs(seconds.ok_or_else(unknown)?);
                }
                ("size", size) => options.size = Some(bytes(size).ok_or_else(unknown)?),
                _ => return Err(unknown()),
            }
        }
        Ok(Self {
            path: path.into(),
            options,
        })
    }
}

/// As it is parsed.
impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zram = |codec: &Codec| match codec {
            Codec::Adaptive => "zram",
            Codec::Lz4 => "zram:lz4",
            Codec::Zstd => "zram:zstd",
        };
        match self {
            Self::Zram(codec) => f.write_str(zram(codec)),
            Self::Ram { .. } => f.write_str("ram"),
            Self::File(file) => file.fmt(f),
            Self::Tiered(codec, file) => write!(f, "{},{file}", zram(codec)),
        }
    }
}

impl fmt::Display for FileSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FileOptions {
            encrypt,
            size,
            overwrite,
            io_uring,
            timeout,
        } = self.options;
        write!(f, "file:{}", self.path.display())?;
        let options = [
            (!encrypt, "encrypt=off"),
            (overwrite, "overwrite=on"),
            (!io_uring, "io_uring=off"),
        ];
        for (_, option) in options.iter().filter(|(given, _)| *given) {
            write!(f, ",{option}")?;
        }
        if timeout != FileOptions::default().timeout {
            write!(f, ",timeout={}", timeout.as_secs())?;
        }
        size.map_or(Ok(()), |size| write!(f, ",size={size}"))
    }
}

/// A size with K, M or G, powers of 1024.
fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_modes_are_parsed_by_name() {
        assert!(matches!(
            "zram".parse(),
            Ok(DeviceSpec::Zram(Codec::Adaptive))
        ));
        assert!(matches!(
            "zram:zstd".parse(),
            Ok(DeviceSpec::Zram(Codec::Zstd))
        ));
        assert!(matches!(
            "ram".parse(),
            Ok(DeviceSpec::Ram {
                read_delay: Duration::ZERO
            })
        ));
        assert!(matches!("inline".parse(), Ok(FaultMode::Inline)));
        let refused = "zram:lzma".parse::<DeviceSpec>().unwrap_err().to_string();
        assert!(
            refused.contains("zram:lzma") && refused.contains("zram:zstd"),
            "{refused}"
        );
        assert!("fast".parse::<FaultMode>().is_err());
    }

    #[test]
    fn files_and_tiers_are_parsed_with_their_options() {
        for text in [
            "zram",
            "zram:lz4",
            "zram:zstd",
            "ram",
            "file:/a/b",
            "zram,file:/a",
            "zram:zstd,file:x,encrypt=off,overwrite=on,io_uring=off,timeout=3,size=4096",
        ] {
            let spec: DeviceSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
        }
        let mut spec: DeviceSpec = "zram:lz4,file:a/b,size=2G,encrypt=on".parse().unwrap();
        let file = spec.file_mut().unwrap();
        assert_eq!(file.path, PathBuf::from("a/b"));
        assert!(file.options.encrypt && !file.options.overwrite);
        assert_eq!(file.options.size, Some(2 << 30));
        for (text, named) in [
            ("file:", "file:"),
            ("file:,encrypt=off", "file:"),
            ("file:a,encrypt", "encrypt"),
            ("file:a,encrypt=maybe", "encrypt=maybe"),
            ("file:a,colour=red", "colour=red"),
            ("file:a,timeout=0", "timeout=0"),
            ("file:a,size=99999999999G", "size=99999999999G"),
            ("zram,zram", "zram,zram"),
            ("ram,file:a", "ram,file:a"),
        ] {
            let refused = text.parse::<DeviceSpec>().unwrap_err().to_string();
            assert!(refused.contains(named), "{text}: {refused}");
        }
    }
}
