//! The userfaultfd that memory is registered with. While a process goes over from inline mode to handler threads there are two:
//! lower addresses are registered with the new one already, the rest with the former.

use std::ops::Deref;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use userswap_sys::Errno;
use userswap_sys::uffd::{Open, OpenError, Uffd};

/// Addresses end before this.
const NOWHERE: usize = usize::MAX;

#[derive(Debug)]
pub(crate) struct Registrar {
    now: Uffd,
    former: OnceLock<Uffd>,
    /// Memory from this address on is registered with the former one. Changes only while nothing moves.
    former_from: AtomicUsize,
    /// Memory is registered so that it can be write-protected: all that is taken on, since mappings that are told apart by it
    /// are not joined.
    guards: AtomicBool,
}

/// The one that memory is registered with from now on.
impl Deref for Registrar {
    type Target = Uffd;

    fn deref(&self) -> &Uffd {
        &self.now
    }
}

impl Registrar {
    pub(crate) fn new(uffd: Uffd) -> Self {
        Self {
            now: uffd,
            former: OnceLock::new(),
            former_from: AtomicUsize::new(NOWHERE),
            guards: AtomicBool::new(false),
        }
    }

    /// From now on memory is registered so that it can be write-protected; `false`: the system cannot do it.
    pub(crate) fn begin_to_guard(&self) -> bool {
        let can = self.now.features().write_protect();
        // Relaxed, here and below: changes while nobody registers.
        self.guards.store(can, Ordering::Relaxed);
        can
    }

    /// Whether it is.
    pub(crate) fn guards(&self) -> bool {
        self.guards.load(Ordering::Relaxed)
    }

    /// Registers a range with the one that memory is registered with now.
    ///
    /// # Safety
    /// As for [`Uffd::register`].
    pub(crate) unsafe fn register(&self, addr: usize, len: usize) -> Result<(), Errno> {
        if self.guards() {
            // SAFETY: the caller's part.
            unsafe { self.now.register_guarding(addr, len) }
        } else {
            // SAFETY: the caller's part.
            unsafe { self.now.register(addr, len) }
        }
    }

    /// The one that the page at `address` is registered with.
    pub(crate) fn of(&self, address: usize) -> &Uffd {
        // Acquire: whoever sees the boundary sees the former one. Where there is none this never asks for it.
        if address < self.former_from.load(Ordering::Acquire) {
            return &self.now;
        }
        self.former.get().unwrap_or(&self.now)
    }

    /// Opens another one: all memory is the former's then, until [`Registrar::advance`] says otherwise. Once, while nothing
    /// moves.
    pub(crate) fn succeed(&self, want: Open) -> Result<(), OpenError> {
        if self.former.get().is_some() {
            // As in a child of a process that came halfway.
            return Err(OpenError::Handshake(Errno::EXIST));
        }
        let former = self.now.succeed(want)?;
        let first = self.former.set(former).is_ok();
        debug_assert!(first, "once");
        // Release: with the former one.
        self.former_from.store(0, Ordering::Release);
        Ok(())
    }

    /// All memory below `address` is registered with the new one. While nothing moves.
    pub(crate) fn advance(&self, address: usize) {
        self.former_from.store(address, Ordering::Release);
    }

    /// Nothing is registered with the former one any more. While nothing moves.
    pub(crate) fn close_former(&self) {
        self.advance(NOWHERE);
        if let Some(former) = self.former.get() {
            // Refused where the system has no descriptor left: it stays open, and nothing is registered with it.
            let _ = former.close_in_place();
        }
    }

    /// Descriptors that must stay open.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = i32> {
        let former = self.former.get().map(Uffd::number);
        std::iter::once(self.now.number()).chain(former)
    }
}
