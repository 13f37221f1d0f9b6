//! What can go wrong where a user can do something about it.

use userswap_core::{FaultError, ForkError};
use userswap_sys::Errno;
use userswap_sys::mapping::MappingError;
use userswap_sys::uffd::OpenError;

/// An error of the library: one line that says what, which limit, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A size that is 0 or not a multiple of the page size.
    #[error("{what} of {bytes} bytes: must be at least one page and a multiple of 4096 bytes")]
    Size {
        /// What has the size.
        what: &'static str,
        /// The size, in bytes.
        bytes: u64,
    },
    /// A limit that does not hold the engine's own tables.
    #[error("a limit of {bytes} bytes is too small: at least {least} bytes are needed")]
    LimitTooSmall {
        /// The limit asked for, in bytes.
        bytes: u64,
        /// The least limit, in bytes.
        least: u64,
    },
    /// A limit for an engine that was built without one, and so has nobody who keeps to it.
    #[error("this engine was built without a limit: build one with `limit`")]
    NoLimit,
    /// A device name nobody knows.
    #[error(
        "unknown device `{0}`: use zram, zram:lz4, zram:zstd, ram, file:PATH or zram,file:PATH"
    )]
    UnknownDevice(String),
    /// An option of a file that nobody knows.
    #[error(
        "`{0}`: a file to swap to is file:PATH[,encrypt=off][,size=SIZE][,overwrite=on][,io_uring=off][,timeout=SECONDS]"
    )]
    FileOption(String),
    /// A file cannot be swapped to.
    #[error(transparent)]
    File(#[from] userswap_device::FileError),
    /// A fault mode nobody knows.
    #[error("unknown fault mode `{0}`: use auto, inline or thread")]
    FaultMode(String),
    /// The device could not be made.
    #[error("cannot make a device of {bytes} bytes: {error}")]
    Device {
        /// Bytes of the area.
        bytes: u64,
        /// What the device said.
        error: userswap_core::device::DeviceError,
    },
    /// A child of fork cannot use the device.
    #[error("the swap device cannot be used after a fork: {error}")]
    DeviceInChild {
        /// What the device said.
        error: userswap_core::device::DeviceError,
    },
    /// Pages of this machine are not of the size that slots have.
    #[error("this machine's pages are {0} bytes; userswap needs 4096")]
    PageSize(usize),
    /// userfaultfd is not to be had.
    #[error(transparent)]
    Userfaultfd(#[from] OpenError),
    /// The kernel's userfaultfd cannot move pages.
    #[error(
        "this kernel's userfaultfd cannot move pages (UFFDIO_MOVE, Linux 6.8): run `userswap doctor`"
    )]
    NoMove,
    /// Address space could not be had.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// Something else the system refused.
    #[error("cannot {what}: {errno}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        errno: Errno,
    },
    /// No more regions fit the fault handler's table.
    #[error("too many regions: at most {0} in one process")]
    TooManyRegions(usize),
    /// A range outside the region, or not of whole pages.
    #[error("range {start:#x}..{end:#x} is not whole pages inside a region of {len:#x} bytes")]
    Range {
        /// First byte.
        start: usize,
        /// One past the last byte.
        end: usize,
        /// Length of the region, in bytes.
        len: usize,
    },
    /// Pinning this much would leave no room for anything else.
    #[error("cannot pin {bytes} bytes: at most half of the limit of {limit} bytes can be pinned")]
    PinLimit {
        /// Bytes asked for.
        bytes: u64,
        /// The engine's limit, in bytes.
        limit: u64,
    },
    /// A page is pinned as often as can be counted.
    #[error("the page at offset {offset:#x} is pinned too often")]
    TooManyPins {
        /// Offset of the page in its region, in bytes.
        offset: usize,
    },
    /// Some pages of a range to drop are pinned.
    #[error("{pages} pages of the range are pinned and were kept")]
    Pinned {
        /// How many.
        pages: usize,
    },
    /// A page could not be brought into memory; it is still where it was.
    #[error("cannot bring in the page at offset {offset:#x}: {error}")]
    Fault {
        /// Offset of the page in its region, in bytes.
        offset: usize,
        /// Why.
        error: FaultError,
    },
    /// A region could not be copied; the original is unharmed.
    #[error("cannot fork the region at offset {offset:#x}: {error}")]
    Fork {
        /// Offset of the chunk in its region, in bytes.
        offset: usize,
        /// Why.
        error: ForkError,
    },
    /// What is swapped out does not fit into memory within the limit.
    #[error(
        "swapoff needs {needed} bytes of memory, the limit is {limit}: raise the limit or drop regions"
    )]
    SwapoffLimit {
        /// Bytes that would be in memory afterwards.
        needed: u64,
        /// The engine's limit, in bytes.
        limit: u64,
    },
    /// What a device holds fits neither into the other devices nor into memory within the limit.
    #[error(
        "swapoff of {device}: {left} bytes in it fit neither into the other devices nor into memory within the limit of \
         {limit} bytes; raise the limit, add a device or drop regions. Nothing is lost, the device stays in use"
    )]
    SwapoffNoRoom {
        /// The device's name.
        device: String,
        /// Bytes that are in it still.
        left: u64,
        /// The engine's limit, in bytes.
        limit: u64,
    },
    /// Whoever was told of the progress wanted no more of it.
    #[error("swapoff of {device} was stopped with {left} bytes left in it; it stays in use")]
    SwapoffStopped {
        /// The device's name.
        device: String,
        /// Bytes that are in it still.
        left: u64,
    },
    /// A device that this engine never had, or has no more.
    #[error("this engine has no such device: it was swapped off, or belongs to another engine")]
    NoSuchDevice,
    /// An engine numbers its devices, past ones included.
    #[error(
        "too many devices: an engine can have {0} in its life, those that were swapped off included"
    )]
    TooManyDevices(usize),
}
