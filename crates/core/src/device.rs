//! What the protocol needs of a swap device.

use thiserror::Error;

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

/// The bytes of one page.
pub type PageBytes = [u8; PAGE_SIZE];

/// What a device is like; the engine chooses the way in by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Properties {
    /// A read answers at once, in the caller's thread: direct swap-in pays.
    pub synchronous: bool,
    /// A page must not change while it is being written.
    pub stable_pages: bool,
    /// A freed slot's data are worth dropping: [`Device::discard`] is called.
    pub discards: bool,
}

/// What [`Device::read`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Content {
    /// The buffer holds the page.
    Bytes,
    /// The page is all zeros; the buffer was not touched.
    Zeros,
}

/// Why a device could not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// The system refused, with this `errno`.
    #[error("I/O error (errno {0})")]
    Io(i32),
    /// The device's memory limit or space is used up; the page stays in memory.
    #[error("the store is full")]
    Full,
    /// Storing this page would save no memory, and the device was told to refuse such pages.
    #[error("the page does not compress")]
    Incompressible,
    /// What is stored is not what was written.
    #[error("the stored page is corrupt")]
    Corrupt,
    /// The device's own code panicked.
    #[error("the device panicked")]
    Panicked,
}

/// What a device holds, in pages and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Pages whose content takes no memory beyond the slot table: all zeros, or one repeated word.
    pub same_pages: u64,
    /// Pages stored compressed.
    pub compressed_pages: u64,
    /// Pages stored as they are.
    pub raw_pages: u64,
    /// Bytes of content stored: compressed sizes and raw pages.
    pub stored_bytes: u64,
    /// Bytes of memory that hold them: stored bytes, rounding, and free space not yet given back.
    pub memory_bytes: u64,
    /// Bytes of tables beside the store.
    pub metadata_bytes: u64,
}

/// Where swapped pages go: slots of [`PAGE_SIZE`] bytes, numbered from 0.
///
/// The protocol guarantees that at most one thread writes a slot at a time, and (in the ways
/// `direct` and `cached`) that no slot is read, written or discarded while another thread does so.
/// The way `unpinned` breaks the second rule on purpose, so a device must stay memory-safe when a
/// read meets a write or a discard of the same slot; what it returns then is its own affair.
///
/// `read`, `write` and `discard` run inside a signal handler: they must not allocate from the
/// process heap, take a lock that is held across an allocation, or touch swapped memory.
pub trait Device: Send + Sync {
    /// A short name for messages, such as `zram`.
    fn name(&self) -> &str;

    /// How many slots there are.
    fn slots(&self) -> u64;

    /// What the device is like.
    fn properties(&self) -> Properties;

    /// Reads slot `slot` into `page`. A slot never written, or discarded, reads as zeros.
    ///
    /// # Errors
    /// The content of `page` is unspecified after an error.
    fn read(&self, slot: u64, page: &mut PageBytes) -> Result<Content, DeviceError>;

    /// Stores `page` in slot `slot`, replacing what was there.
    ///
    /// # Errors
    /// After an error the slot's content is unspecified; the caller keeps the page.
    fn write(&self, slot: u64, page: &PageBytes) -> Result<(), DeviceError>;

    /// Drops the data of `slot`. Called before the slot can be handed out again.
    fn discard(&self, slot: u64);

    /// What the device holds now. Cheap: a few loads.
    fn usage(&self) -> Usage;

    /// Gives back memory that lies unused between stored pages. Never called in a signal handler; may run
    /// beside any other use.
    fn compact(&self) {}

    /// Bytes of memory the device takes now: [`Usage::memory_bytes`] and [`Usage::metadata_bytes`].
    fn memory_bytes(&self) -> u64 {
        let usage = self.usage();
        usage.memory_bytes + usage.metadata_bytes
    }
}
