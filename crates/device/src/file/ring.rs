//! Several requests in one system call, through io_uring, where the host permits it.
//!
//! Guarantee: when [`Ring::read`] or [`Ring::write`] returns, the system has done with the memory it was given. A thread
//! that finds the ring in use by another does not wait: it makes its requests one by one.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, TryLockError};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;
use rustix::io_uring::{IoringEnterFlags, io_uring_enter};
use userswap_core::device::PAGE_SIZE;
use userswap_sys::descriptor::move_up;
use userswap_sys::timing::now_ns;

use super::disk::MOST;

/// One request of several.
#[derive(Clone, Copy)]
pub(super) struct Transfer {
    offset: u64,
    /// The first page, and how many.
    first: usize,
    count: usize,
    /// Bytes done, or an error number below 0.
    result: i32,
}

impl Transfer {
    pub(super) const EMPTY: Self = Self::new(0, 0, 0);

    pub(super) const fn new(offset: u64, first: usize, count: usize) -> Self {
        Self {
            offset,
            first,
            count,
            result: 0,
        }
    }

    /// Whether all of it was done.
    pub(super) fn is_whole(&self) -> bool {
        self.count > 0 && self.result == (self.count * PAGE_SIZE) as i32
    }
}

/// Why the host refuses io_uring, if it does.
#[must_use]
pub fn io_uring_refused() -> Option<std::io::Error> {
    IoUring::new(MOST as u32).err()
}

/// A ring whose descriptor is none of the lowest, which are the program's.
fn out_of_the_way() -> std::io::Result<IoUring> {
    // A completion that is looked for need not interrupt who looks.
    let low: IoUring = IoUring::builder()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .build(MOST as u32)?;
    // SAFETY: the ring's descriptor, open while `low` lives.
    let fd = unsafe { BorrowedFd::borrow_raw(low.as_raw_fd()) };
    let high = move_up(fd.try_clone_to_owned()?);
    // SAFETY: a descriptor of a ring, with what the system said when it was made; `low` is not used any more.
    unsafe { IoUring::from_fd(high.into_raw_fd(), low.params().clone()) }
}

pub(super) struct Ring {
    ring: Mutex<Option<IoUring>>,
    is_open: AtomicBool,
    number: AtomicI32,
}

impl Ring {
    /// No ring yet.
    pub(super) fn new() -> Self {
        Self {
            ring: Mutex::new(None),
            is_open: AtomicBool::new(false),
            number: AtomicI32::new(-1),
        }
    }

    /// Opens it, where the host permits that. Allocates.
    pub(super) fn open(&self) {
        let Some(mut ring) = self.try_lock() else {
            return;
        };
        if ring.is_none()
            && let Ok(opened) = out_of_the_way()
        {
            self.number.store(opened.as_raw_fd(), Relaxed);
            self.is_open.store(true, Relaxed);
            *ring = Some(opened);
        }
    }

    /// Closes it for good: it is not opened again.
    pub(super) fn close(&self) {
        // Nobody uses it: then nobody has it locked.
        if let Some(mut ring) = self.try_lock() {
            self.is_open.store(false, Relaxed);
            *ring = None;
        }
    }

    /// In a child of fork: what was opened is the parent's, and stays mapped and unused.
    pub(super) fn forget(&self) {
        if let Some(mut ring) = self.try_lock() {
            std::mem::forget(ring.take());
        }
        self.is_open.store(false, Relaxed);
    }

    pub(super) fn is_open(&self) -> bool {
        self.is_open.load(Relaxed)
    }

    pub(super) fn descriptor(&self) -> Option<i32> {
        self.is_open().then(|| self.number.load(Relaxed))
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Option<IoUring>>> {
        match self.ring.try_lock() {
            Ok(ring) => Some(ring),
            Err(TryLockError::Poisoned(ring)) => Some(ring.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Reads `transfers` into `pages`; `false`: nothing was done. A transfer that is not whole is to be tried otherwise.
    /// For `look_ns` nanoseconds the answer is looked for; who waits longer sleeps.
    pub(super) fn read(
        &self,
        fd: i32,
        pages: &mut [IoSliceMut<'_>],
        transfers: &mut [Transfer],
        look_ns: u64,
    ) -> bool {
        self.run(transfers, look_ns, |transfer| {
            let list = &mut pages[transfer.first..transfer.first + transfer.count];
            // An `IoSliceMut` is an iovec by its documentation.
            opcode::Readv::new(types::Fd(fd), list.as_mut_ptr().cast(), list.len() as u32)
                .offset(transfer.offset)
                .build()
        })
    }

    /// Writes `transfers` from `pages`; as [`Ring::read`].
    pub(super) fn write(&self, fd: i32, pages: &[u8], transfers: &mut [Transfer]) -> bool {
        self.run(transfers, 0, |transfer| {
            let bytes = &pages[transfer.first * PAGE_SIZE..][..transfer.count * PAGE_SIZE];
            opcode::Write::new(types::Fd(fd), bytes.as_ptr(), bytes.len() as u32)
                .offset(transfer.offset)
                .build()
        })
    }

    /// Submits an entry for each transfer, at most [`MOST`], and waits for them all.
    fn run(
        &self,
        transfers: &mut [Transfer],
        look_ns: u64,
        mut entry: impl FnMut(&Transfer) -> squeue::Entry,
    ) -> bool {
        let Some(mut guard) = self.try_lock() else {
            return false;
        };
        let Some(ring) = &mut *guard else {
            return false;
        };
        for (index, transfer) in transfers.iter_mut().enumerate() {
            transfer.result = -Errno::CANCELED.raw_os_error();
            let entry = entry(transfer).user_data(index as u64);
            // SAFETY: the memory that the entry names is borrowed by our caller, who gets it back when this function
            // returns; below it does not before every entry that the system took is completed.
            let pushed = unsafe { ring.submission().push(&entry) };
            if pushed.is_err() {
                break;
            }
        }
        let pushed = ring.submission().len();
        let (mut done, mut broken) = (0, false);
        let since = if look_ns > 0 { now_ns() } else { 0 };
        loop {
            for completion in ring.completion() {
                transfers[completion.user_data() as usize].result = completion.result();
                done += 1;
            }
            // What the system has not taken is no use of the memory.
            let taken = pushed - ring.submission().len();
            if done == pushed || broken && done == taken {
                break;
            }
            if broken {
                std::thread::yield_now();
                continue;
            }
            let looks = look_ns > 0 && now_ns() - since < look_ns;
            let queue = ring.submission();
            if looks && queue.is_empty() && !queue.taskrun() {
                std::hint::spin_loop();
                continue;
            }
            drop(queue);
            match submit_and_wait(ring, if looks { 0 } else { pushed - done }) {
                Ok(_) => {}
                Err(Errno::INTR | Errno::AGAIN | Errno::BUSY) => std::thread::yield_now(),
                // The ring is gone, or was forbidden: what is under way still completes.
                Err(_) => broken = true,
            }
        }
        if broken {
            self.is_open.store(false, Relaxed);
            *guard = None;
        }
        true
    }
}

/// Has the system take what was pushed, and waits until `count` entries are completed. By the system call itself, not libc's: a
/// fault of the program may be what we are at, and libc's calls are looked at as the program's.
fn submit_and_wait(ring: &mut IoUring, count: usize) -> Result<u32, Errno> {
    let pushed = ring.submission().len() as u32;
    // SAFETY: the ring's descriptor, open while it is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
    let flags = IoringEnterFlags::GETEVENTS;
    // SAFETY: the entries name memory that stays borrowed until they are completed, as where they were pushed.
    unsafe { io_uring_enter(fd, pushed, count as u32, flags) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    fn opened() -> Option<Ring> {
        let ring = Ring::new();
        ring.open();
        if ring.is_open() {
            return Some(ring);
        }
        assert_ne!(
            std::env::var("CI").as_deref(),
            Ok("true"),
            "io_uring is refused"
        );
        eprintln!("SKIPPED: io_uring is refused here");
        None
    }

    #[test]
    fn an_answer_is_looked_for_and_slept_for() {
        let Some(ring) = opened() else { return };
        // What the other end of a pipe sends is answered when it is sent.
        for (look_ns, late_ms) in [(0, 0), (0, 20), (u64::MAX, 20), (1_000_000, 20)] {
            let (from, mut to) = std::io::pipe().unwrap();
            let mut page = [0; PAGE_SIZE];
            let mut list = [IoSliceMut::new(&mut page)];
            let mut reads = [Transfer::new(0, 0, 1)];
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    std::thread::sleep(std::time::Duration::from_millis(late_ms));
                    to.write_all(&[7; PAGE_SIZE]).unwrap();
                });
                assert!(ring.read(from.as_raw_fd(), &mut list, &mut reads, look_ns));
            });
            assert!(reads[0].is_whole(), "{look_ns} ns, {late_ms} ms");
            assert_eq!(page, [7; PAGE_SIZE]);
        }
    }

    #[test]
    fn what_is_cut_short_or_refused_is_not_whole() {
        let Some(ring) = opened() else { return };
        let mut file = tempfile::tempfile().unwrap();
        let pages: Vec<u8> = (0..3 * PAGE_SIZE)
            .map(|i| (i / PAGE_SIZE) as u8 + 1)
            .collect();
        let transfer =
            |block: usize, first, count| Transfer::new((block * PAGE_SIZE) as u64, first, count);
        let mut writes = [transfer(2, 0, 2), transfer(0, 2, 1)];
        assert!(ring.write(file.as_raw_fd(), &pages, &mut writes));
        assert!(writes.iter().all(Transfer::is_whole));
        let mut all = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut all).unwrap();
        let blocks: Vec<u8> = all.chunks(PAGE_SIZE).map(|page| page[7]).collect();
        assert_eq!(blocks, [3, 0, 1, 2]);
        file.set_len((3 * PAGE_SIZE + 100) as u64).unwrap();
        let mut back = vec![[0u8; PAGE_SIZE]; 3];
        let mut list: Vec<_> = back.iter_mut().map(|page| IoSliceMut::new(page)).collect();
        let mut reads = [transfer(2, 0, 2), transfer(0, 2, 1)];
        assert!(ring.read(file.as_raw_fd(), &mut list, &mut reads, 0));
        assert!(!reads[0].is_whole() && reads[1].is_whole());
        assert_eq!((back[0][9], back[2][9]), (1, 3));
        let mut refused = [transfer(0, 0, 1), transfer(1, 1, 1)];
        assert!(ring.write(-1, &pages, &mut refused));
        assert!(!refused.iter().any(Transfer::is_whole));
        let taken = ring.ring.lock().unwrap();
        assert!(!ring.write(file.as_raw_fd(), &pages, &mut writes), "in use");
        drop(taken);
    }
}
