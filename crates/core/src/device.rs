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
    /// What is stored is not what was written: changed, swapped with another page, stale or torn.
    #[error("the stored page is corrupt")]
    Corrupt,
    /// The device ends before the page: it was cut short.
    #[error("the device ends before the page")]
    Short,
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
    /// Of these, the ones compressed with more effort, to less, than pages are at first.
    pub dense_pages: u64,
    /// Pages stored as they are.
    pub raw_pages: u64,
    /// Bytes of content stored: compressed sizes and raw pages.
    pub stored_bytes: u64,
    /// Bytes of memory that hold them: stored bytes, rounding, and free space not yet given back.
    pub memory_bytes: u64,
    /// Bytes of tables beside the store.
    pub metadata_bytes: u64,
    /// Pages that lie outside memory: in a file or on a block device.
    pub file_pages: u64,
    /// Bytes read from there, all told.
    pub file_read_bytes: u64,
    /// Bytes written there, all told.
    pub file_written_bytes: u64,
}

/// One of several slots that are read together.
#[derive(Debug)]
pub struct SlotRead<'a> {
    /// The slot.
    pub slot: u64,
    /// Where its page goes.
    pub page: &'a mut PageBytes,
    /// What became of it, as [`Device::read`] says.
    pub result: Result<Content, DeviceError>,
}

impl<'a> SlotRead<'a> {
    /// A read of `slot` into `page` that has not happened.
    pub fn new(slot: u64, page: &'a mut PageBytes) -> Self {
        Self {
            slot,
            page,
            result: Err(DeviceError::Short),
        }
    }
}

/// Requests that a device's storage should have answered by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// When the oldest of them was made, in nanoseconds of the monotonic clock.
    pub since_ns: u64,
    /// How many there are.
    pub requests: usize,
    /// The oldest is a write.
    pub writing: bool,
}

/// On which side of a fork a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It forked.
    Parent,
    /// It tried to.
    Failed,
    /// It was made.
    Child,
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

    /// Whether [`Device::read_batch`] is better than single reads.
    fn batches(&self) -> bool {
        false
    }

    /// Reads several slots, each as [`Device::read`] does, and as fit for a signal handler.
    fn read_batch(&self, reads: &mut [Option<SlotRead<'_>>]) {
        for read in reads.iter_mut().flatten() {
            read.result = self.read(read.slot, read.page);
        }
    }

    /// Gives back memory that lies unused between stored pages. Never called in a signal handler; may run
    /// beside any other use.
    fn compact(&self) {}

    /// Does a bounded piece of work that nobody waits for; `true`: there is more. Never called in a signal
    /// handler; may run beside any other use.
    fn tend(&self) -> bool {
        false
    }

    /// Whether pages can leave memory here: not only for a smaller place in it.
    fn leaves_memory(&self) -> bool {
        false
    }

    /// What its storage should have answered by `now_ns` of the monotonic clock, and has not; a device that waits for nobody
    /// has nothing to say. Called by a thread that never waits for the device.
    fn overdue(&self, now_ns: u64) -> Option<Overdue> {
        let _ = now_ns;
        None
    }

    /// The engine's limit is `bytes`: for a device that can choose how much of it to take.
    fn note_limit(&self, bytes: u64) {
        let _ = bytes;
    }

    /// From now on pages had better take less memory, or less time (`false`, as at first): for a device that can choose. Called on
    /// the fault path.
    fn prefer_small(&self, small: bool) {
        let _ = small;
    }

    /// The area is closed: no slot is in use, and none is read, written or discarded from now on. Gives up what the device
    /// holds: files, space in them, memory.
    fn retire(&self) {}

    /// The process is about to fork, and the child shall have the slots too. Nobody uses the device until
    /// [`Device::fork_end`].
    fn fork_begin(&self) {}

    /// The fork that [`Device::fork_begin`] was for is over. What was in a slot can still be read, on both sides.
    ///
    /// # Errors
    /// In a child: it cannot be given what it needs, and must not go on.
    fn fork_end(&self, side: Side) -> Result<(), DeviceError> {
        let _ = side;
        Ok(())
    }

    /// Names the descriptors that must stay open.
    fn descriptors(&self, name: &mut dyn FnMut(i32)) {
        let _ = name;
    }

    /// Bytes of memory the device takes now: [`Usage::memory_bytes`] and [`Usage::metadata_bytes`].
    fn memory_bytes(&self) -> u64 {
        let usage = self.usage();
        usage.memory_bytes + usage.metadata_bytes
    }
}
