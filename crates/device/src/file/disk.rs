//! Reading and writing blocks of an open file.
//!
//! Blocks that lie one behind the other are one request. Every request is done whole or is an error: what the system cuts
//! short is asked for again from there.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use rustix::fs::OFlags;
use rustix::io::{Errno, preadv, pwritev};
use rustix::process::{Resource, getrlimit};
use userswap_core::device::{DeviceError, PAGE_SIZE, PageBytes};
use userswap_sys::timing::now_ns;
use userswap_sys::{cpu, descriptor};

use super::awaited::Awaited;
use super::pace::{self, Pace};
use super::ring::{Ring, Transfer};
use crate::arena::refused;

/// Pages that are asked for together at most.
pub(super) const MOST: usize = 64;

/// An open file or block device.
pub(super) struct Disk {
    fd: OwnedFd,
    /// Whether the system ends processes that write beyond RLIMIT_FSIZE here.
    limited: bool,
    ring: Ring,
    /// The ring is this process's own.
    use_ring: AtomicBool,
    pub(super) awaited: Awaited,
    pace: Pace,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

/// Something to be read or written: pages behind each other in the file.
#[derive(Clone, Copy)]
struct Run {
    first: usize,
    count: usize,
}

impl Disk {
    pub(super) fn new(fd: OwnedFd, limited: bool, with_ring: bool) -> Self {
        Self {
            fd,
            limited,
            ring: Ring::new(),
            use_ring: AtomicBool::new(with_ring),
            awaited: Awaited::new(),
            pace: Pace::new(),
            read_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
        }
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Opens the ring, if one is to be used and none is open. Allocates.
    pub(super) fn open_ring(&self) {
        // Acquire: pairs with the release in `leave_ring`.
        if self.use_ring.load(Acquire) && !self.ring.is_open() {
            self.pace.note_cpus(cpu::count());
            self.ring.open();
        }
    }

    /// In a child of fork: the ring is the parent's.
    pub(super) fn leave_ring(&self) {
        self.use_ring.store(false, Release);
        self.ring.forget();
    }

    /// Closes the file and the ring: nothing is read or written from now on. The descriptor's number stays taken.
    pub(super) fn close(&self) {
        self.use_ring.store(false, Release);
        self.ring.close();
        // Should the system refuse, the file stays open until the end.
        let _ = descriptor::close_in_place(&self.fd);
    }

    /// Whether requests go through a ring.
    pub(super) fn has_ring(&self) -> bool {
        self.ring.is_open()
    }

    pub(super) fn descriptors(&self, name: &mut dyn FnMut(i32)) {
        name(self.fd.as_raw_fd());
        if let Some(ring) = self.ring.descriptor() {
            name(ring);
        }
    }

    /// Bytes read and written so far.
    pub(super) fn transferred(&self) -> (u64, u64) {
        (
            self.read_bytes.load(Relaxed),
            self.written_bytes.load(Relaxed),
        )
    }

    /// Reads `blocks` into `pages`, both of one length; `done` says for each what became of it.
    pub(super) fn read(
        &self,
        blocks: &[u32],
        pages: &mut [IoSliceMut<'_>],
        mut done: impl FnMut(usize, Result<(), DeviceError>),
    ) {
        let _request = self.awaited.begin(false);
        let mut list = [Run { first: 0, count: 0 }; MOST];
        let list = runs(blocks, &mut list);
        if let &[block] = blocks {
            let result = self.read_one(block, pages);
            return self.note_read(list[0], result, &mut done);
        }
        if list.len() > 1 && self.use_ring.load(Acquire) {
            let mut transfers = [Transfer::EMPTY; MOST];
            for (transfer, run) in transfers.iter_mut().zip(list) {
                *transfer = Transfer::new(offset(blocks[run.first]), run.first, run.count);
            }
            let transfers = &mut transfers[..list.len()];
            if self.ring.read(self.fd.as_raw_fd(), pages, transfers, 0) {
                for (run, transfer) in list.iter().zip(&*transfers) {
                    // What came short is read again, whole: it seldom happens.
                    let result = if transfer.is_whole() {
                        Ok(())
                    } else {
                        self.read_run(blocks, pages, *run)
                    };
                    self.note_read(*run, result, &mut done);
                }
                return;
            }
        }
        for run in list {
            let result = self.read_run(blocks, pages, *run);
            self.note_read(*run, result, &mut done);
        }
    }

    /// Reads one block the way that is sooner done.
    fn read_one(&self, block: u32, pages: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        let run = Run { first: 0, count: 1 };
        if !self.use_ring.load(Acquire) {
            return self.read_run(&[block], pages, run);
        }
        let since = now_ns();
        let mut transfer = [Transfer::new(offset(block), 0, 1)];
        let looked = self.pace.looks() && {
            let fd = self.fd.as_raw_fd();
            self.ring.read(fd, pages, &mut transfer, pace::LONGEST_NS)
        };
        if !transfer[0].is_whole() {
            self.read_run(&[block], pages, run)?;
        }
        self.pace.note(looked, now_ns() - since);
        Ok(())
    }

    fn note_read(
        &self,
        run: Run,
        result: Result<(), DeviceError>,
        done: &mut impl FnMut(usize, Result<(), DeviceError>),
    ) {
        if result.is_ok() {
            self.read_bytes
                .fetch_add((run.count * PAGE_SIZE) as u64, Relaxed);
        }
        for index in run.first..run.first + run.count {
            done(index, result);
        }
    }

    fn read_run(
        &self,
        blocks: &[u32],
        pages: &mut [IoSliceMut<'_>],
        run: Run,
    ) -> Result<(), DeviceError> {
        let mut at = 0;
        while at < run.count * PAGE_SIZE {
            let (page, within) = (at / PAGE_SIZE, at % PAGE_SIZE);
            let from = offset(blocks[run.first]) + at as u64;
            let list = &mut pages[run.first + page..run.first + run.count];
            let read = if within == 0 {
                preadv(&self.fd, list, from)
            } else {
                let rest = &mut list[0][within..];
                preadv(&self.fd, &mut [IoSliceMut::new(rest)], from)
            };
            match read {
                Ok(0) => return Err(DeviceError::Short),
                Ok(read) => at += read,
                Err(Errno::INTR) => {}
                Err(errno) => self.try_otherwise(errno)?,
            }
        }
        Ok(())
    }

    /// Writes `pages`, which lie one behind the other, to `blocks`.
    pub(super) fn write(&self, blocks: &[u32], pages: &[u8]) -> Result<(), DeviceError> {
        debug_assert_eq!(blocks.len() * PAGE_SIZE, pages.len());
        let highest = blocks.iter().max().map_or(0, |&block| offset(block + 1));
        if !self.may_reach(highest) {
            return Err(refused(Errno::FBIG));
        }
        let _request = self.awaited.begin(true);
        let mut list = [Run { first: 0, count: 0 }; MOST];
        let list = runs(blocks, &mut list);
        let mut whole = [false; MOST];
        if list.len() > 1 && self.use_ring.load(Acquire) {
            let mut transfers = [Transfer::EMPTY; MOST];
            for (transfer, run) in transfers.iter_mut().zip(list) {
                *transfer = Transfer::new(offset(blocks[run.first]), run.first, run.count);
            }
            let transfers = &mut transfers[..list.len()];
            if self.ring.write(self.fd.as_raw_fd(), pages, transfers) {
                for (whole, transfer) in whole.iter_mut().zip(&*transfers) {
                    *whole = transfer.is_whole();
                }
            }
        }
        for (run, _) in list.iter().zip(whole).filter(|(_, whole)| !whole) {
            let bytes = &pages[run.first * PAGE_SIZE..(run.first + run.count) * PAGE_SIZE];
            self.write_run(offset(blocks[run.first]), bytes)?;
        }
        self.written_bytes.fetch_add(pages.len() as u64, Relaxed);
        Ok(())
    }

    fn write_run(&self, mut to: u64, mut bytes: &[u8]) -> Result<(), DeviceError> {
        while !bytes.is_empty() {
            match pwritev(&self.fd, &[IoSlice::new(bytes)], to) {
                Ok(0) => return Err(refused(Errno::NOSPC)),
                Ok(written) => {
                    to += written as u64;
                    bytes = &bytes[written..];
                }
                Err(Errno::INTR) => {}
                Err(errno) => self.try_otherwise(errno)?,
            }
        }
        Ok(())
    }

    /// What the file takes past the system's cache may be too little for a request cut short: then through it.
    fn try_otherwise(&self, errno: Errno) -> Result<(), DeviceError> {
        let flags = rustix::fs::fcntl_getfl(&self.fd).map_err(refused)?;
        if errno != Errno::INVAL || !flags.contains(OFlags::DIRECT) {
            return Err(refused(errno));
        }
        rustix::fs::fcntl_setfl(&self.fd, flags - OFlags::DIRECT).map_err(refused)
    }

    /// Whether the process may make the file `bytes` long. Asked before, since the answer to a try is a signal that ends it.
    pub(super) fn may_reach(&self, bytes: u64) -> bool {
        let most = getrlimit(Resource::Fsize).current;
        !self.limited || most.is_none_or(|most| bytes <= most)
    }
}

fn offset(block: u32) -> u64 {
    u64::from(block) * PAGE_SIZE as u64
}

/// The runs of neighbours in `blocks`, at most [`MOST`] of them since there are no more blocks.
fn runs<'a>(blocks: &[u32], list: &'a mut [Run; MOST]) -> &'a [Run] {
    let mut count = 0;
    for (index, &block) in blocks.iter().enumerate() {
        if index > 0 && blocks[index - 1].checked_add(1) == Some(block) {
            list[count - 1].count += 1;
        } else {
            list[count] = Run {
                first: index,
                count: 1,
            };
            count += 1;
        }
    }
    &list[..count]
}

/// A page as the system wants it.
pub(super) fn slice(page: &mut PageBytes) -> IoSliceMut<'_> {
    IoSliceMut::new(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_run() {
        let mut list = [Run { first: 0, count: 0 }; MOST];
        let of = |blocks: &[u32], list: &mut [Run; MOST]| -> Vec<_> {
            let runs = runs(blocks, list).iter();
            runs.map(|run| (run.first, run.count)).collect()
        };
        assert_eq!(of(&[], &mut list), []);
        assert_eq!(of(&[7], &mut list), [(0, 1)]);
        assert_eq!(
            of(&[7, 8, 9, 11, 12, 3, 4, u32::MAX, 0], &mut list),
            [(0, 3), (3, 2), (5, 2), (7, 1), (8, 1)]
        );
        let far: Vec<u32> = (0..64).map(|i| i * 2).collect();
        assert_eq!(of(&far, &mut list).len(), 64);
    }
}
