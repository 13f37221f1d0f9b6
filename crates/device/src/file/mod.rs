//! Pages in a file or on a block device.
//!
//! A page that is written is sealed (see [`crate::seal`]) into a *segment* in memory; full segments are written in
//! one go to neighbouring blocks. What proves a page, and where it is, stays in memory beside its slot: 32 bytes.
//! Pages that repeat one word take no block.
//!
//! # What a slot's lock guarantees
//! The word, the proof and the page's place change together. Who reads takes a copy of all three, and of the page where
//! it is still in a segment, and reads the file without the lock: the block is not given to anybody else while
//! the slot has it, and the engine lets nobody change a slot that is being read. Should somebody do so (the way
//! `unpinned`), the page does not open, and that is an error.
//!
//! # Forks
//! A child of fork has the slots as a copy, and shares the file. It only reads from it; the first page it writes makes it a
//! file and a key of its own, a *home*, in the same folder. The parent does not use a block again that
//! was in use when it forked, until everybody who was forked then is gone (see [`leases`], [`blocks`]).
//!
//! Lock order: a slot, then nothing; the segments' state, then the leases. Neither is held while a file is read
//! or written; space for a file is made under the segments' state.

mod awaited;
mod blocks;
mod disk;
mod home;
mod leases;
mod pace;
mod ring;
mod segments;
#[cfg(test)]
mod tests;
mod word;
mod writeback;

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed},
};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::io::Errno;
use userswap_core::device::{
    Content, Device, DeviceError, Overdue, PageBytes, Properties, Side, SlotRead, Usage,
};

use crate::arena::{Table, refused};
use crate::cpu::{self, Counters};
use crate::same;
use crate::seal::Proof;
use crate::slots::{Slots, WORDS_PER_PAGE};
pub use home::{FileError, FileOptions};
use home::{Home, Origin};
use leases::{Leases, Pending};
pub use ring::io_uring_refused;
use segments::{Kind, Segments};
use word::{Where, Word};

/// Files of which pages can be left by forks, one inside the other, and this process's own.
const MOST_HOMES: usize = 16;

/// In place of a home's number.
const NO_HOME: usize = usize::MAX;

/// Words that prove a page.
const PROOF_WORDS: usize = 3;

/// Indices of the counters.
const SAME: usize = 0;
const SEALED: usize = 1;

/// A file or block device as a swap device.
pub struct File {
    name: String,
    slots: Slots<Word>,
    /// For each slot its page's proof, or the word that the page repeats. Changed under the slot's lock.
    proofs: Table<[AtomicU64; PROOF_WORDS]>,
    homes: [OnceLock<Home>; MOST_HOMES],
    /// The home that this process writes to.
    own: AtomicUsize,
    origin: Origin,
    options: FileOptions,
    blocks: u32,
    segments: Segments,
    leases: Mutex<Leases>,
    pending: Mutex<Option<Pending>>,
    counters: Counters<2>,
}

/// Where a page was when somebody looked.
enum Found {
    /// In the reader's buffer, or nowhere.
    Here(Content),
    /// In the reader's buffer, sealed.
    Sealed(usize, Proof),
    /// In a block of a home.
    Stored(usize, u32, Proof),
}

impl File {
    /// A device of `slots` slots, at most `u32::MAX`, on what `path` names: a folder, where a file is made that never
    /// has a name; a file that does not exist, as if its folder had been named; a file or block device that
    /// exists, with [`FileOptions::overwrite`].
    ///
    /// # Errors
    /// It cannot be used: the error says why, and what to do.
    pub fn new(path: &Path, slots: u64, options: FileOptions) -> Result<Self, FileError> {
        let (origin, home) = Home::open(path, slots, options)?;
        Self::with(path, slots, options, origin, home)
            .map_err(|error| FileError::device(path, error))
    }

    fn with(
        path: &Path,
        slots: u64,
        options: FileOptions,
        origin: Origin,
        home: Home,
    ) -> Result<Self, DeviceError> {
        let count = u32::try_from(slots).map_err(|_| refused(Errno::INVAL))?;
        let blocks = home.blocks.total();
        let homes = [const { OnceLock::new() }; MOST_HOMES];
        let _ = homes[0].set(home);
        Ok(Self {
            name: format!("file:{}", path.display()),
            slots: Slots::new(count as usize)?,
            proofs: Table::zeroed(count as usize)?,
            homes,
            own: AtomicUsize::new(0),
            origin,
            options,
            blocks,
            segments: Segments::new()?,
            leases: Mutex::new(Leases::new()),
            pending: Mutex::new(None),
            counters: Counters::new()?,
        })
    }

    /// Whether several requests go to the system in one call.
    #[must_use]
    pub fn uses_io_uring(&self) -> bool {
        self.homes().any(|home| home.disk.has_ring())
    }

    fn homes(&self) -> impl Iterator<Item = &Home> {
        self.homes.iter().map_while(OnceLock::get)
    }

    fn home(&self, number: usize) -> &Home {
        self.homes[number]
            .get()
            .expect("a slot's word names a home")
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self, slot: u64) -> Result<usize, DeviceError> {
        usize::try_from(slot)
            .ok()
            .filter(|&slot| slot < self.slots.len())
            .ok_or(refused(Errno::INVAL))
    }

    fn put_proof(&self, slot: usize, proof: [u64; PROOF_WORDS]) {
        for (word, value) in self.proofs[slot].iter().zip(proof) {
            // Relaxed: under the slot's lock.
            word.store(value, Relaxed);
        }
    }

    fn proof(&self, slot: usize) -> Proof {
        let [version, low, high] = [0, 1, 2].map(|word| self.proofs[slot][word].load(Relaxed));
        Proof {
            version,
            tag: u128::from(high) << 64 | u128::from(low),
        }
    }

    /// Looks where the page of `slot` is, and takes what is in memory of it.
    fn find(&self, slot: usize, page: &mut PageBytes) -> Found {
        let locked = self.slots.lock(slot);
        match locked.word().place() {
            Where::Empty => Found::Here(Content::Zeros),
            Where::Same => {
                let value = self.proof(slot).version;
                drop(locked);
                Found::Here(same::repeated(value, page))
            }
            Where::Buffered(segment, index) => {
                self.segments.copy(segment, index, page);
                Found::Sealed(self.segments.home(segment), self.proof(slot))
            }
            Where::Stored(home, block) => Found::Stored(home, block, self.proof(slot)),
        }
    }

    fn open(
        &self,
        home: usize,
        slot: u64,
        proof: Proof,
        page: &mut PageBytes,
    ) -> Result<Content, DeviceError> {
        if self.home(home).seal.open(slot, proof, page) {
            Ok(Content::Bytes)
        } else {
            Err(DeviceError::Corrupt)
        }
    }

    /// Makes `word` what `slot` holds.
    fn replace(&self, slot: usize, word: Word, proof: [u64; PROOF_WORDS]) {
        let mut locked = self.slots.lock(slot);
        let old = locked.word();
        self.put_proof(slot, proof);
        locked.set(word);
        drop(locked);
        self.slots.touch(slot);
        self.count(word, 1);
        self.let_go(old);
    }

    /// No slot has `old` any more.
    fn let_go(&self, old: Word) {
        self.count(old, -1);
        // What is in a segment goes with it.
        if let Where::Stored(home, block) = old.place()
            && home == self.own.load(Acquire)
        {
            self.home(home).blocks.give_back(block);
        }
    }

    fn count(&self, word: Word, sign: i64) {
        let counter = match word.place() {
            Where::Empty => return,
            Where::Same => SAME,
            Where::Buffered(..) | Where::Stored(..) => SEALED,
        };
        self.counters.add(cpu::current(), counter, sign);
    }

    fn become_child(&self, lease: Option<std::os::fd::OwnedFd>) -> Result<(), DeviceError> {
        let ended = self.leases().clear();
        drop(ended);
        let own = self.own.swap(NO_HOME, Relaxed);
        if own != NO_HOME
            && let Some(lease) = lease
        {
            let _ = self.home(own).lease.set(lease);
        }
        let mut state = self.segments.state();
        while let Some(segment) = state.find(|kind| matches!(kind, Kind::Failed(_) | Kind::Full)) {
            state.set(segment, Kind::Kept);
        }
        for home in self.homes() {
            home.disk.leave_ring();
            home.seal.lock_again()?;
        }
        Ok(())
    }
}

impl Device for File {
    fn name(&self) -> &str {
        &self.name
    }

    fn slots(&self) -> u64 {
        self.slots.len() as u64
    }

    fn properties(&self) -> Properties {
        Properties {
            synchronous: false,
            // Sealing copies it.
            stable_pages: false,
            discards: true,
        }
    }

    fn read(&self, slot: u64, page: &mut PageBytes) -> Result<Content, DeviceError> {
        match self.find(self.index(slot)?, page) {
            Found::Here(content) => Ok(content),
            Found::Sealed(home, proof) => self.open(home, slot, proof, page),
            Found::Stored(home, block, proof) => {
                let mut result = Ok(());
                let mut pages = [disk::slice(page)];
                let disk = &self.home(home).disk;
                disk.read(&[block], &mut pages, |_, read| result = read);
                result?;
                self.open(home, slot, proof, page)
            }
        }
    }

    fn batches(&self) -> bool {
        true
    }

    fn read_batch(&self, reads: &mut [Option<SlotRead<'_>>]) {
        for reads in reads.chunks_mut(disk::MOST) {
            self.read_some(reads);
        }
    }

    fn write(&self, slot: u64, page: &PageBytes) -> Result<(), DeviceError> {
        let index = self.index(slot)?;
        if let Some(value) = same::repeated_word(page) {
            self.replace(index, Word::SAME, [value, 0, 0]);
            return Ok(());
        }
        let mut place = self.reserve()?;
        self.fill(&mut place, slot, page);
        self.finish(place);
        Ok(())
    }

    fn discard(&self, slot: u64) {
        let Ok(slot) = self.index(slot) else { return };
        if self.slots.peek(slot) != Some(Word::EMPTY) {
            self.replace(slot, Word::EMPTY, [0; PROOF_WORDS]);
        }
    }

    fn usage(&self) -> Usage {
        let transferred = self.homes().map(|home| home.disk.transferred());
        let (read, written) = transferred.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        Usage {
            same_pages: self.counters.total(SAME),
            metadata_bytes: self.memory_bytes(),
            file_pages: self.counters.total(SEALED),
            file_read_bytes: read,
            file_written_bytes: written,
            ..Usage::default()
        }
    }

    fn memory_bytes(&self) -> u64 {
        let proofs = size_of::<[AtomicU64; PROOF_WORDS]>() * WORDS_PER_PAGE;
        let blocks: u64 = self.homes().map(|home| home.blocks.resident_bytes()).sum();
        self.slots.resident_bytes()
            + self.slots.touched_pages() * proofs as u64
            + blocks
            + self.segments.resident_bytes()
    }

    fn tend(&self) -> bool {
        let own = self.own.load(Acquire);
        let Some(home) = self.homes.get(own).and_then(OnceLock::get) else {
            return false;
        };
        home.disk.open_ring();
        let failed = {
            let mut state = self.segments.state();
            if home.blocks.waiting() > 0 {
                self.reap(home);
            }
            let failed = state.find(|kind| matches!(kind, Kind::Failed(_)));
            if let Some(segment) = failed {
                state.set(segment, Kind::Full);
            }
            failed
        };
        if let Some(segment) = failed {
            // It stays where it is, should it fail again.
            let _ = self.write_segment(segment);
        }
        false
    }

    fn leaves_memory(&self) -> bool {
        true
    }

    fn overdue(&self, now_ns: u64) -> Option<Overdue> {
        let late = self.homes().filter_map(|home| {
            let awaited = &home.disk.awaited;
            awaited.overdue(now_ns, self.options.timeout)
        });
        late.min_by_key(|late| late.since_ns)
    }

    fn retire(&self) {
        // What a child of fork has of the files it keeps: it has descriptors of its own.
        for home in self.homes() {
            home.disk.close();
            home.blocks.retire();
        }
        self.slots.clear();
        self.proofs.clear();
        self.segments.release_free();
    }

    fn fork_begin(&self) {
        self.write_all();
        *self.pending.lock().unwrap_or_else(PoisonError::into_inner) = Some(Pending::new());
    }

    fn fork_end(&self, side: Side) -> Result<(), DeviceError> {
        let pending = self
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(pending) = pending else {
            return Ok(());
        };
        match side {
            Side::Failed => Ok(()),
            Side::Child => self.become_child(pending.in_child()),
            Side::Parent => {
                if let Some(home) = self
                    .homes
                    .get(self.own.load(Relaxed))
                    .and_then(OnceLock::get)
                {
                    let fork = home.blocks.count_fork();
                    // The child's end is closed before the lock is taken, see `Ended`.
                    let end = pending.in_parent();
                    let ended = self.leases().add(fork, end);
                    drop(ended);
                }
                Ok(())
            }
        }
    }

    fn descriptors(&self, name: &mut dyn FnMut(i32)) {
        if let Origin::Folder(folder) = &self.origin {
            name(folder.as_raw_fd());
        }
        for home in self.homes() {
            home.disk.descriptors(name);
            if let Some(lease) = home.lease.get() {
                name(lease.as_raw_fd());
            }
        }
        self.leases().descriptors(name);
    }
}

impl File {
    /// Reads at most [`disk::MOST`] slots: what is in files, file by file, with as few requests as can be.
    fn read_some(&self, reads: &mut [Option<SlotRead<'_>>]) {
        let mut found: [Option<(usize, u32, Proof)>; disk::MOST] = [None; disk::MOST];
        for (read, found) in reads.iter_mut().zip(&mut found) {
            let Some(read) = read else { continue };
            read.result = self
                .index(read.slot)
                .and_then(|slot| match self.find(slot, read.page) {
                    Found::Here(content) => Ok(content),
                    Found::Sealed(home, proof) => self.open(home, read.slot, proof, read.page),
                    Found::Stored(home, block, proof) => {
                        *found = Some((home, block, proof));
                        Ok(Content::Bytes)
                    }
                });
        }
        while let Some((home, ..)) = found.iter().flatten().next().copied() {
            let mut blocks = [0; disk::MOST];
            let mut whose = [0; disk::MOST];
            let mut pages: [_; disk::MOST] =
                std::array::from_fn(|_| std::io::IoSliceMut::new(&mut []));
            let mut results = [Ok(()); disk::MOST];
            let mut count = 0;
            for (index, read) in reads.iter_mut().enumerate() {
                if let (Some(read), Some((its, block, _))) = (read, found[index])
                    && its == home
                {
                    blocks[count] = block;
                    whose[count] = index;
                    pages[count] = disk::slice(read.page);
                    count += 1;
                }
            }
            let disk = &self.home(home).disk;
            disk.read(&blocks[..count], &mut pages[..count], |index, result| {
                results[index] = result;
            });
            for (&index, result) in whose[..count].iter().zip(results) {
                let proof = found[index].take().map(|(_, _, proof)| proof);
                if let (Some(read), Some(proof)) = (&mut reads[index], proof) {
                    read.result =
                        result.and_then(|()| self.open(home, read.slot, proof, read.page));
                }
            }
        }
    }
}
