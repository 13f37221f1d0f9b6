//! What an engine is made of, as users write it.

use std::str::FromStr;
use std::time::Duration;

pub use userswap_device::Codec;

use crate::Error;

/// How faults reach the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FaultMode {
    /// Whichever suits regions on this host: inline.
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

/// A device that the engine makes itself. Parsed from `zram`, `zram:lz4`, `zram:zstd` and `ram`.
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
}

impl FromStr for DeviceSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "zram" | "zram:lz4" => Ok(Self::Zram(Codec::Lz4)),
            "zram:zstd" => Ok(Self::Zram(Codec::Zstd)),
            "ram" => Ok(Self::Ram {
                read_delay: Duration::ZERO,
            }),
            _ => Err(Error::UnknownDevice(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_modes_are_parsed_by_name() {
        assert!(matches!("zram".parse(), Ok(DeviceSpec::Zram(Codec::Lz4))));
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
}
