//! Compressed memory.
//!
//! A page is looked at for one repeated word (then only the slot's word says so), compressed
//! outside any lock, and stored packed; what does not compress is stored as it is. See [`word`] for
//! the states of a slot.
//!
//! # What a slot's lock guarantees
//! The word of a slot and the object it names change together. A reader that holds the lock has an
//! object that cannot be freed, moved or reused beneath it; a writer swaps the word and frees the
//! old object in one critical section, so two writers never both free it and none is lost.
//! In the ways `direct` and `cached` the engine lets nobody meet on a slot, and the lock is never
//! contended but by a compaction; the way `unpinned` meets, and stays memory-safe.
//!
//! Lock order: a compression context; a slot; a shard of the store; its pool. A decompression context is
//! taken under a slot's lock and nothing is taken under it.

mod recompress;
#[cfg(test)]
mod tests;
mod word;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use rustix::io::Errno;
use userswap_core::device::{
    Content, Device, DeviceError, PAGE_SIZE, PageBytes, Properties, Usage,
};

use crate::arena::refused;
use crate::codec::{Codec, Contexts, Format, Method};
use crate::cpu::{self, Counters};
use crate::same;
use crate::slots::{Locked, Slots};
use crate::store::{Excess, Store};
use recompress::Sweep;
use word::{Stored, WIDE_BYTES, Word};

/// Where the store takes more than one part in so many of the limit, [`Codec::Adaptive`] takes to Zstandard: too little is left
/// for what the program works on.
const DENSE_FROM: u64 = 2;

/// Where pages are to be small and compress badly, its full level is worth its time from one part in so many of that on.
const SMALL_FROM: u64 = 2;

/// Badly: to more than one part in so many of their bytes. Of the others the full level saves little more than the fast one.
const BADLY: u64 = 4;

/// How a [`Zram`] is to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZramOptions {
    /// How pages are compressed.
    pub codec: Codec,
    /// The most bytes of memory that stored pages may take, rounding included and tables not.
    /// A write that needs more fails with [`DeviceError::Full`].
    pub memory_limit: Option<u64>,
    /// Fail with [`DeviceError::Incompressible`] instead of storing a page as it is.
    pub refuse_incompressible: bool,
    /// For LZ4: 1 compresses best, larger is faster and worse.
    pub lz4_acceleration: u32,
    /// For Zstandard: its compression level; negative is faster and worse.
    pub zstd_level: i32,
}

impl Default for ZramOptions {
    fn default() -> Self {
        Self {
            codec: Codec::default(),
            memory_limit: None,
            refuse_incompressible: false,
            lz4_acceleration: 1,
            zstd_level: 2,
        }
    }
}

/// Compressed memory as a swap device.
///
/// A write that fails leaves the slot as it was: what it held can still be read.
pub struct Zram {
    slots: Slots<Word>,
    store: Store,
    contexts: Contexts,
    counters: Counters<6>,
    /// Bytes the store may take before pages are compressed with Zstandard, where the codec is adaptive.
    dense_from: AtomicU64,
    /// The engine has better use for memory than for time. Relaxed: a hint.
    small: AtomicBool,
    sweep: Mutex<Sweep>,
    options: ZramOptions,
    /// What somebody else does between the two halves of [`Zram::replace`], when a test breaks the rule
    /// `ReplaceInOneStep`.
    #[cfg(test)]
    between: Option<fn(&Zram, usize)>,
}

/// Indices of the counters.
const SAME: usize = 0;
const PACKED: usize = 1;
const RAW: usize = 2;
const STORED_BYTES: usize = 3;
/// Of the packed ones, those by Zstandard.
const DENSE: usize = 4;
const WIDE: usize = 5;

impl Zram {
    /// A device of `slots` slots, at most `u32::MAX`. Address space for all of them is reserved
    /// here (a little more than four pages each); memory is taken as pages come.
    ///
    /// # Errors
    /// [`DeviceError::Io`] when there are too many slots, when the system refuses the address
    /// space, or when the codec refuses its parameters (`EINVAL`).
    pub fn new(slots: u64, options: ZramOptions) -> Result<Self, DeviceError> {
        let count = u32::try_from(slots).map_err(|_| refused(Errno::INVAL))?;
        let contexts = Contexts::new(options.codec, options.lz4_acceleration, options.zstd_level)?;
        Ok(Self {
            slots: Slots::new(count as usize)?,
            store: Store::new(slots, options.memory_limit)?,
            contexts,
            counters: Counters::new()?,
            dense_from: AtomicU64::new(u64::MAX),
            small: AtomicBool::new(false),
            sweep: Mutex::new(Sweep::new()),
            options,
            #[cfg(test)]
            between: None,
        })
    }

    /// Moves compressed pages together and gives the memory gained back to the system. Worth it
    /// after many slots were freed. Safe beside any other use; it keeps others from a slot only
    /// while it copies that slot's object. Not for signal handlers: it takes milliseconds.
    pub fn compact(&self) {
        self.store.compact(|owner, handle| {
            let Ok(slot) = self.index(u64::from(owner)) else {
                return true;
            };
            let mut locked = self.slots.lock(slot);
            let len = match locked.word().stored() {
                Stored::Packed(held, len, _) if held == handle => len,
                Stored::Wide(held) if held == handle => WIDE_BYTES,
                // Freed, or moved on, since the store looked.
                _ => return true,
            };
            // SAFETY: the slot holds this object and we hold the slot, so nobody can free it.
            let Ok(copy) = (unsafe { self.store.duplicate(owner, handle, len) }) else {
                return false;
            };
            locked.set(match locked.word().stored() {
                Stored::Packed(_, len, format) => Word::packed(copy, len, format),
                _ => Word::wide(copy),
            });
            let excess = self.store.free(handle);
            drop(locked);
            self.give_back(excess);
            true
        });
    }

    /// Bytes of tables and contexts.
    fn metadata_bytes(&self) -> u64 {
        self.slots.resident_bytes()
            + self.store.metadata_bytes()
            + self.contexts.memory_bytes() as u64
    }

    /// The options it was made with.
    pub fn options(&self) -> ZramOptions {
        self.options
    }

    fn index(&self, slot: u64) -> Result<usize, DeviceError> {
        usize::try_from(slot)
            .ok()
            .filter(|&slot| slot < self.slots.len())
            .ok_or(refused(Errno::INVAL))
    }

    /// Stores `page`, without a slot naming it yet.
    fn store_page(&self, cpu: usize, owner: u32, page: &PageBytes) -> Result<Word, DeviceError> {
        if let Some(value) = same::repeated_word(page) {
            return match Word::same(value) {
                Some(word) => Ok(word),
                None => self
                    .store
                    .put(cpu, owner, &value.to_ne_bytes())
                    .map(Word::wide),
            };
        }
        let method = self.method(self.store.resident_bytes());
        if let Some(word) = self.pack(cpu, owner, page, method)? {
            return Ok(word);
        }
        if !self.options.refuse_incompressible {
            return self.store.put_page(cpu, page).map(Word::page);
        }
        // A page that could not leave memory is worth another try.
        let denser = self.options.codec == Codec::Adaptive && method != Method::Zstd;
        let packed = match denser && self.contexts.has_zstd() {
            true => self.pack(cpu, owner, page, Method::Zstd)?,
            false => None,
        };
        packed.ok_or(DeviceError::Incompressible)
    }

    /// Stores `page` compressed; nothing if it does not compress so.
    fn pack(
        &self,
        cpu: usize,
        owner: u32,
        page: &PageBytes,
        method: Method,
    ) -> Result<Option<Word>, DeviceError> {
        self.contexts.compress(cpu, method, page, |packed| {
            let Some(packed) = packed else {
                return Ok(None);
            };
            let handle = self.store.put(cpu, owner, packed)?;
            Ok(Some(Word::packed(handle, packed.len(), method.format())))
        })
    }

    /// How pages are to be compressed while the store takes `bytes`.
    fn method(&self, bytes: u64) -> Method {
        // Relaxed: a threshold that may be passed a little later.
        let wanted = match self.options.codec {
            Codec::Lz4 => return Method::Lz4,
            Codec::Zstd => return Method::Zstd,
            Codec::Adaptive => {
                let (small, dense_from) = (self.small.load(Relaxed), self.dense_from.load(Relaxed));
                let early = || bytes > dense_from / SMALL_FROM && self.compresses_badly();
                match bytes > dense_from || small && early() {
                    true => Method::Zstd,
                    false if small => Method::FastZstd,
                    false => Method::Lz4,
                }
            }
        };
        if wanted == Method::Lz4 || self.contexts.has_zstd() {
            wanted
        } else {
            Method::Lz4
        }
    }

    /// Whether what is stored compresses badly.
    fn compresses_badly(&self) -> bool {
        let pages = self.counters.total(PACKED) * PAGE_SIZE as u64;
        self.counters.total(STORED_BYTES) > pages / BADLY
    }

    /// Makes `word` what `slot` holds, and frees what it held.
    fn replace(&self, cpu: usize, slot: usize, word: Word) {
        let mut locked = self.slots.lock(slot);
        let old = locked.word();
        #[cfg(test)]
        if let Some(between) = self.between {
            drop(locked);
            between(self, slot);
            locked = self.slots.lock(slot);
        }
        locked.set(word);
        let excess = match old.stored() {
            Stored::Empty | Stored::Same(_) => None,
            Stored::Wide(handle) | Stored::Packed(handle, ..) | Stored::Page(handle) => {
                self.store.free(handle)
            }
        };
        drop(locked);
        self.count(cpu, old, -1);
        self.count(cpu, word, 1);
        self.give_back(excess);
    }

    fn give_back(&self, excess: Option<Excess>) {
        if let Some(excess) = excess {
            self.store.give_back(excess);
        }
    }

    fn count(&self, cpu: usize, word: Word, sign: i64) {
        let (kind, bytes) = match word.stored() {
            Stored::Empty => return,
            Stored::Same(_) => return self.counters.add(cpu, SAME, sign),
            Stored::Wide(_) => (WIDE, WIDE_BYTES),
            Stored::Packed(_, len, Format::Lz4) => (PACKED, len),
            Stored::Packed(_, len, Format::Zstd) => {
                self.counters.add(cpu, DENSE, sign);
                (PACKED, len)
            }
            Stored::Page(_) => (RAW, PAGE_SIZE),
        };
        self.counters.add(cpu, kind, sign);
        self.counters.add(cpu, STORED_BYTES, sign * bytes as i64);
    }

    fn read_object(&self, slot: usize, page: &mut PageBytes) -> Result<Content, DeviceError> {
        self.read_locked(&self.slots.lock(slot), page)
    }

    fn read_locked(
        &self,
        locked: &Locked<'_, Word>,
        page: &mut PageBytes,
    ) -> Result<Content, DeviceError> {
        let stored = locked.word().stored();
        // SAFETY (all three): the slot names the object and is locked until the end of this
        // function, so nobody frees the object before.
        match stored {
            Stored::Empty => return Ok(Content::Zeros),
            Stored::Same(value) => return Ok(same::repeated(value, page)),
            Stored::Wide(handle) => {
                // SAFETY: as above.
                let bytes = unsafe { self.store.bytes(handle, WIDE_BYTES) };
                same::fill(
                    page,
                    u64::from_ne_bytes(bytes.try_into().expect("eight bytes")),
                );
            }
            Stored::Packed(handle, len, format) => {
                // SAFETY: as above.
                let packed = unsafe { self.store.bytes(handle, len) };
                if !self.contexts.decompress(format, packed, page) {
                    return Err(DeviceError::Corrupt);
                }
            }
            Stored::Page(handle) => {
                // SAFETY: as above.
                page.copy_from_slice(unsafe { self.store.page(handle) });
            }
        }
        Ok(Content::Bytes)
    }

    /// As [`Device::read`], but `None` where the slot holds nothing: the page may be elsewhere.
    pub(crate) fn read_held(
        &self,
        slot: u64,
        page: &mut PageBytes,
    ) -> Option<Result<Content, DeviceError>> {
        let slot = match self.index(slot) {
            Ok(slot) => slot,
            Err(error) => return Some(Err(error)),
        };
        if self.slots.peek(slot) == Some(Word::EMPTY) {
            return None;
        }
        let locked = self.slots.lock(slot);
        (locked.word() != Word::EMPTY).then(|| self.read_locked(&locked, page))
    }

    /// Hands the page of a slot whose object takes memory to `take`, by way of `page`, and drops it here. `false`: there
    /// is none. For others it is one step: they find the page here before, and where `take` puts it
    /// afterwards.
    pub(crate) fn move_out(
        &self,
        slot: u64,
        page: &mut PageBytes,
        take: impl FnOnce(&PageBytes),
    ) -> bool {
        let takes_memory =
            |word: Word| matches!(word.stored(), Stored::Packed(..) | Stored::Page(_));
        let Ok(slot) = self.index(slot) else {
            return false;
        };
        if self
            .slots
            .peek(slot)
            .is_some_and(|word| !takes_memory(word))
        {
            return false;
        }
        let mut locked = self.slots.lock(slot);
        let old = locked.word();
        if !takes_memory(old) || self.read_locked(&locked, page).is_err() {
            return false;
        }
        take(page);
        locked.set(Word::EMPTY);
        let excess = match old.stored() {
            Stored::Packed(handle, ..) | Stored::Page(handle) => self.store.free(handle),
            _ => None,
        };
        drop(locked);
        self.count(cpu::current(), old, -1);
        self.give_back(excess);
        true
    }
}

impl Device for Zram {
    fn compact(&self) {
        Self::compact(self);
    }

    fn name(&self) -> &str {
        match self.options.codec {
            Codec::Adaptive => "zram",
            Codec::Lz4 => "zram:lz4",
            Codec::Zstd => "zram:zstd",
        }
    }

    fn slots(&self) -> u64 {
        self.slots.len() as u64
    }

    /// A page that changed while it is compressed would come back as neither version, but the swap-out
    /// never lets one change: a fault copies from a frame under writeback. So nobody has to wait.
    fn properties(&self) -> Properties {
        Properties {
            synchronous: true,
            stable_pages: false,
            discards: true,
        }
    }

    fn read(&self, slot: u64, page: &mut PageBytes) -> Result<Content, DeviceError> {
        let slot = self.index(slot)?;
        match self.slots.peek(slot).map(Word::stored) {
            Some(Stored::Empty) => Ok(Content::Zeros),
            Some(Stored::Same(value)) => Ok(same::repeated(value, page)),
            _ => self.read_object(slot, page),
        }
    }

    /// The new content is in place before the old one goes: at its memory limit a device may
    /// refuse to overwrite a slot that it could have overwritten after a discard.
    fn write(&self, slot: u64, page: &PageBytes) -> Result<(), DeviceError> {
        let index = self.index(slot)?;
        let cpu = cpu::current();
        let word = self.store_page(cpu, slot as u32, page)?;
        self.slots.touch(index);
        self.replace(cpu, index, word);
        Ok(())
    }

    fn discard(&self, slot: u64) {
        let Ok(slot) = self.index(slot) else { return };
        if self.slots.peek(slot) != Some(Word::EMPTY) {
            self.replace(cpu::current(), slot, Word::EMPTY);
        }
    }

    fn tend(&self) -> bool {
        self.recompress_some() | self.contexts.make_wanted()
    }

    fn note_limit(&self, bytes: u64) {
        self.dense_from.store(bytes / DENSE_FROM, Relaxed);
    }

    fn prefer_small(&self, small: bool) {
        self.small.store(small, Relaxed);
    }

    fn retire(&self) {
        Self::compact(self);
        self.slots.clear();
    }

    fn usage(&self) -> Usage {
        Usage {
            same_pages: self.counters.total(SAME),
            compressed_pages: self.counters.total(PACKED) + self.counters.total(WIDE),
            dense_pages: self.counters.total(DENSE),
            raw_pages: self.counters.total(RAW),
            stored_bytes: self.counters.total(STORED_BYTES),
            memory_bytes: self.store.resident_bytes(),
            metadata_bytes: self.metadata_bytes(),
            ..Usage::default()
        }
    }

    fn memory_bytes(&self) -> u64 {
        self.store.resident_bytes() + self.metadata_bytes()
    }
}
