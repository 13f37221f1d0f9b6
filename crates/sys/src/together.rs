//! Giving the frames of many ranges back with one system call.
//!
//! Each call interrupts every CPU that runs a thread of the process. With a second thread busy, ranges of 3 pages take 3.6 us
//! a page one by one and 0.4 by 64 (2 virtual CPUs, Linux 6.18). Before Linux 6.14, and where the call is filtered, it is
//! refused.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::PAGE_SIZE;

/// The calling process, as a descriptor that need not be opened: Linux 6.14.
const THIS_PROCESS: isize = -10_001;

/// The system does not do it. Relaxed: nothing depends on it but time.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// Ranges whose frames go together.
#[derive(Debug)]
pub struct Together {
    parts: [libc::iovec; Self::MOST],
    count: usize,
}

impl Default for Together {
    fn default() -> Self {
        let nothing = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            parts: [nothing; Self::MOST],
            count: 0,
        }
    }
}

impl Together {
    /// Ranges at most.
    pub const MOST: usize = 64;

    /// Whether there is room for no further range.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.count == Self::MOST
    }

    /// Adds `len` bytes from `addr`, whole pages.
    ///
    /// # Panics
    /// When it is full.
    pub fn add(&mut self, addr: usize, len: usize) {
        debug_assert!(addr.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE));
        self.parts[self.count] = libc::iovec {
            iov_base: addr as *mut _,
            iov_len: len,
        };
        self.count += 1;
    }

    /// Gives the frames of all ranges back, and is empty then. `false`: of some perhaps not, or the system cannot do that.
    ///
    /// *Fault path.*
    ///
    /// # Safety
    /// As for [`crate::mapping::discard`], for each range.
    pub unsafe fn discard(&mut self) -> bool {
        let parts = &self.parts[..self.count];
        self.count = 0;
        if parts.is_empty() {
            return true;
        }
        if REFUSED.load(Ordering::Relaxed) {
            return false;
        }
        let result: isize;
        // SAFETY: the caller's part; the call reads the ranges. It is made directly: it leaves errno as it is, and is not
        // taken for the program's.
        unsafe {
            std::arch::asm!(
                "syscall",
                inlateout("rax") libc::SYS_process_madvise as isize => result,
                in("rdi") THIS_PROCESS,
                in("rsi") parts.as_ptr(),
                in("rdx") parts.len(),
                in("r10") libc::MADV_DONTNEED as isize,
                in("r8") 0,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        let refused = [libc::ENOSYS, libc::EBADF, libc::EPERM];
        if refused.iter().any(|&errno| result == -(errno as isize)) {
            REFUSED.store(true, Ordering::Relaxed);
        }
        let all: usize = parts.iter().map(|part| part.iov_len).sum();
        usize::try_from(result) == Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Mapping;

    #[test]
    fn all_ranges_go_or_it_is_said() {
        let mapping = Mapping::reserve(16 * PAGE_SIZE, PAGE_SIZE).unwrap();
        mapping.advise_no_huge().unwrap();
        mapping.populate(0..16 * PAGE_SIZE).unwrap();
        let mut together = Together::default();
        for page in [1, 4, 6] {
            together.add(mapping.base() + page * PAGE_SIZE, 2 * PAGE_SIZE);
        }
        // SAFETY: nobody uses the pages.
        let gone = unsafe { together.discard() };
        let resident = mapping.resident_pages(0..16 * PAGE_SIZE).unwrap();
        if !gone {
            println!("SKIPPED: all_ranges_go_or_it_is_said: this system gives back range by range");
            assert_eq!(resident, 16);
            return;
        }
        assert_eq!(resident, 10);
        // SAFETY: as above; there is nothing to do.
        assert!(unsafe { together.discard() }, "it is empty then");

        together.add(mapping.base(), PAGE_SIZE);
        // Nothing is mapped there.
        together.add(1 << 46, PAGE_SIZE);
        together.add(mapping.base() + 8 * PAGE_SIZE, PAGE_SIZE);
        // SAFETY: as above; the address that is not mapped is nobody's.
        assert!(!unsafe { together.discard() });
        // SAFETY: as above: what could not go is not tried again.
        assert!(unsafe { together.discard() });
    }
}
