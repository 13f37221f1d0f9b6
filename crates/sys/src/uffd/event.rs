//! What a userfaultfd tells who reads it, and waiting for it.

use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use linux_raw_sys::general as raw;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::Uffd;
use crate::Errno;
use crate::descriptor::move_up;
use crate::inject::{self, Call};

/// One message as the kernel writes it: 32 bytes, the meaning of `words` depends on `event`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct RawEvent {
    event: u8,
    reserved: [u8; 7],
    words: [u64; 3],
}

const _: () = assert!(mem::size_of::<RawEvent>() == mem::size_of::<raw::uffd_msg>());

/// A message, understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A thread touched a page that is not there, and waits until something fills it or wakes it.
    PageFault(PageFault),
    /// The range moved (mremap).
    Remap {
        /// Where it was.
        from: usize,
        /// Where it is.
        to: usize,
        /// Bytes.
        len: usize,
    },
    /// The contents are being thrown away (MADV_DONTNEED, MADV_FREE).
    Remove {
        /// First address.
        start: usize,
        /// One past the last.
        end: usize,
    },
    /// The range is unmapped.
    Unmap {
        /// First address.
        start: usize,
        /// One past the last.
        end: usize,
    },
    /// Something this crate never asks for; the kernel's number.
    Other(u8),
}

/// A page fault, as an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageFault {
    /// An address in the page; the kernel may have rounded it down to the page.
    pub address: usize,
    /// The access was a write.
    pub write: bool,
    /// The faulting thread, where the userfaultfd names it ([`super::Features::thread_id`]); else 0.
    pub thread: u32,
}

impl RawEvent {
    /// What it says.
    #[inline]
    pub fn decode(&self) -> Event {
        let [first, second, third] = self.words;
        match u32::from(self.event) {
            raw::UFFD_EVENT_PAGEFAULT => Event::PageFault(PageFault {
                address: second as usize,
                write: first & u64::from(raw::UFFD_PAGEFAULT_FLAG_WRITE) != 0,
                // The low half; what follows it is padding.
                thread: third as u32,
            }),
            raw::UFFD_EVENT_REMAP => Event::Remap {
                from: first as usize,
                to: second as usize,
                len: third as usize,
            },
            raw::UFFD_EVENT_REMOVE => Event::Remove {
                start: first as usize,
                end: second as usize,
            },
            raw::UFFD_EVENT_UNMAP => Event::Unmap {
                start: first as usize,
                end: second as usize,
            },
            _ => Event::Other(self.event),
        }
    }
}

impl Uffd {
    /// Reads waiting messages into `buffer`, and returns the part filled.
    ///
    /// Blocks while there is none, unless opened `nonblock`: then an empty slice. Several threads may read; each message
    /// goes to one of them. `INTR` if a signal handler ran meanwhile.
    pub fn read_events<'a>(&self, buffer: &'a mut [RawEvent]) -> Result<&'a [RawEvent], Errno> {
        let len = mem::size_of_val(buffer);
        // SAFETY: the same memory as bytes; `RawEvent` is whole words without padding, and any bytes make a valid one.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<u8>(), len) };
        match inject::whole(Call::ReadEvents).and_then(|()| rustix::io::read(self, bytes)) {
            // The kernel writes whole messages only.
            Ok(read) => Ok(&buffer[..read / mem::size_of::<RawEvent>()]),
            Err(Errno::AGAIN) => Ok(&[]),
            Err(errno) => Err(errno),
        }
    }

    /// Waits until a message can be read (`Ok(true)`) or `bell` has been rung (`Ok(false)`).
    pub fn wait(&self, bell: &Doorbell) -> Result<bool, Errno> {
        let mut fds = [
            PollFd::new(self, PollFlags::IN),
            PollFd::new(&bell.0, PollFlags::IN),
        ];
        loop {
            match poll(&mut fds, None) {
                Ok(_) if !fds[1].revents().is_empty() => return Ok(false),
                Ok(_) if fds[0].revents().contains(PollFlags::IN) => return Ok(true),
                // POLLERR: a blocking userfaultfd cannot be polled.
                Ok(_) if !fds[0].revents().is_empty() => return Err(Errno::INVAL),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// Tells threads inside [`Uffd::wait`] to come out. Rung once, it stays rung.
#[derive(Debug)]
pub struct Doorbell(OwnedFd);

impl Doorbell {
    /// A bell not yet rung.
    pub fn new() -> Result<Self, Errno> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Doorbell(move_up(fd)))
    }

    /// The descriptor's number.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Rings it. It cannot fail: the counter it adds to takes 2^64 - 2 rings.
    pub fn ring(&self) {
        let rung = rustix::io::write(self.0.as_fd(), &1u64.to_ne_bytes());
        debug_assert!(rung.is_ok(), "doorbell: {rung:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(event: u32, words: [u64; 3]) -> Event {
        RawEvent {
            event: event as u8,
            reserved: [0; 7],
            words,
        }
        .decode()
    }

    #[test]
    fn decodes_every_kind() {
        let fault = message(
            raw::UFFD_EVENT_PAGEFAULT,
            [1, 0x7000_1234, 0xdead_0000_0000 | 42],
        );
        assert_eq!(
            fault,
            Event::PageFault(PageFault {
                address: 0x7000_1234,
                write: true,
                thread: 42
            })
        );
        let fault = message(raw::UFFD_EVENT_PAGEFAULT, [0, 0x1000, 0]);
        assert_eq!(
            fault,
            Event::PageFault(PageFault {
                address: 0x1000,
                write: false,
                thread: 0
            })
        );
        assert_eq!(
            message(raw::UFFD_EVENT_REMAP, [1, 2, 3]),
            Event::Remap {
                from: 1,
                to: 2,
                len: 3
            }
        );
        assert_eq!(
            message(raw::UFFD_EVENT_REMOVE, [1, 2, 0]),
            Event::Remove { start: 1, end: 2 }
        );
        assert_eq!(
            message(raw::UFFD_EVENT_UNMAP, [1, 2, 0]),
            Event::Unmap { start: 1, end: 2 }
        );
        assert_eq!(
            message(raw::UFFD_EVENT_FORK, [1, 2, 0]),
            Event::Other(raw::UFFD_EVENT_FORK as u8)
        );
    }
}
