//! How segments are filled, and written to a file.

use std::sync::atomic::Ordering::{Relaxed, Release};

use userswap_core::device::{DeviceError, PageBytes};

use super::blocks::CLUSTER;
use super::home::{Home, Origin};
use super::segments::{Kind, NOBODY, Place, State};
use super::word::Word;
use super::{File, MOST_HOMES, NO_HOME};
use crate::seal::Proof;

impl File {
    /// A place for a page to be written. [`File::fill`] and [`File::finish`] follow, or [`File::leave`].
    pub(crate) fn reserve(&self) -> Result<Place, DeviceError> {
        loop {
            let mut state = self.segments.state();
            if let Some(place) = self.segments.next_place(&mut state) {
                return Ok(place);
            }
            if let Some(segment) = state.find(|kind| kind == Kind::Free) {
                self.open_segment(&mut state, segment)?;
                continue;
            }
            let failed = state.find(|kind| matches!(kind, Kind::Failed(_)));
            if let Some(segment) = failed {
                state.set(segment, Kind::Full);
                drop(state);
                self.write_segment(segment)?;
            } else if state.find(|kind| kind == Kind::Full).is_some() {
                self.segments.wait(state);
            } else {
                return Err(DeviceError::Full);
            }
        }
    }

    fn open_segment(&self, state: &mut State, segment: usize) -> Result<(), DeviceError> {
        let number = self.own_home()?;
        let home = self.home(number);
        let mut blocks = [0; CLUSTER];
        let mut got = home.blocks.take(&mut blocks, |ready| home.extend(ready));
        if got == 0 && home.blocks.waiting() > 0 {
            self.reap(home);
            got = home.blocks.take(&mut blocks, |_| None);
        }
        if got == 0 {
            return Err(DeviceError::Full);
        }
        self.segments.open(state, segment, number, &blocks[..got]);
        Ok(())
    }

    /// Where this process writes; a child of fork gets it now. The caller holds the segments' state.
    fn own_home(&self) -> Result<usize, DeviceError> {
        let own = self.own.load(Relaxed);
        if own != NO_HOME {
            return Ok(own);
        }
        let number = self.homes().count();
        let (Origin::Folder(folder), true) = (&self.origin, number < MOST_HOMES) else {
            return Err(DeviceError::Full);
        };
        let home = Home::another(folder, self.blocks, self.options)?;
        let _ = self.homes[number].set(home);
        self.own.store(number, Release);
        Ok(number)
    }

    /// Frees blocks that nobody forked needs any more. The caller holds the segments' state.
    pub(super) fn reap(&self, home: &Home) {
        let ended = self.leases().take_ended();
        if ended.any() {
            let leases = self.leases();
            home.blocks.reap(|after, to| leases.need(after, to));
        }
    }

    /// Seals `page` into `place`, and makes that what `slot` holds.
    pub(crate) fn fill(&self, place: &mut Place, slot: u64, page: &PageBytes) {
        let home = self.home(self.segments.home(place.segment));
        let sealed = self.segments.page(place);
        sealed.copy_from_slice(page);
        let Proof { version, tag } = home.seal.seal(slot, sealed);
        self.segments.note(place, slot);
        let word = Word::buffered(place.segment, place.index);
        let proof = [version, tag as u64, (tag >> 64) as u64];
        self.replace(slot as usize, word, proof);
    }

    /// The caller has nothing for `place`.
    pub(crate) fn leave(&self, place: Place) {
        self.finish(place);
    }

    /// The caller is done with `place`. Who is the last one in a segment writes it.
    pub(crate) fn finish(&self, place: Place) {
        let segment = place.segment;
        if self.segments.is_last(place) {
            // What could not be written stays in the segment, and is tried again.
            let _ = self.write_segment(segment);
        }
    }

    /// Writes a segment that is full, and the caller's to write.
    pub(super) fn write_segment(&self, segment: usize) -> Result<(), DeviceError> {
        let number = self.segments.home(segment);
        let home = self.home(number);
        let (blocks, count, bytes) = self.segments.content(segment);
        let written = home.disk.write(&blocks[..count], bytes);
        if written.is_ok() {
            for (index, &block) in blocks[..count].iter().enumerate() {
                self.settle(segment, index, number, block);
            }
        }
        let kind = written.map_or_else(Kind::Failed, |()| Kind::Free);
        self.segments.state().set(segment, kind);
        self.segments.notify();
        written
    }

    /// A place's page is in `block` now.
    fn settle(&self, segment: usize, index: usize, home: usize, block: u32) {
        let slot = self.segments.slot(segment, index);
        if slot != NOBODY {
            let mut locked = self.slots.lock(slot as usize);
            if locked.word() == Word::buffered(segment, index) {
                return locked.set(Word::stored(home, block));
            }
        }
        // Discarded, or written anew, meanwhile.
        self.home(home).blocks.give_back(block);
    }

    /// Writes what can be of pages that are still in memory. Nobody else uses the device.
    pub(super) fn write_all(&self) {
        let mut state = self.segments.state();
        let Some((segment, unused)) = self.segments.end_open(&mut state) else {
            return;
        };
        let home = self.home(self.segments.home(segment));
        for block in unused.into_iter().flatten() {
            home.blocks.give_back(block);
        }
        let full = state.find(|kind| kind == Kind::Full) == Some(segment);
        drop(state);
        if full {
            // What cannot be written stays.
            let _ = self.write_segment(segment);
        }
    }
}
