//! A device whose reads and writes are as many steps as the model says, and fail when told to.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use userswap_core::device::{
    Content as Found, Device, DeviceError, PAGE_SIZE, PageBytes, Properties, Usage,
};
use userswap_core::step::{Step, at};
use userswap_model::config;
use userswap_model::state::{Content, JUNK};

const HALF: usize = PAGE_SIZE / 2;

/// The bytes of a page that holds `content`.
pub(crate) fn bytes(content: Content) -> PageBytes {
    let mut page = [content.low; PAGE_SIZE];
    page[HALF..].fill(content.high);
    page
}

/// What a page holds, if each half is one version.
pub(crate) fn content(page: &PageBytes) -> Content {
    let (low, high) = page.split_at(HALF);
    let whole = |half: &[u8]| half.iter().all(|&byte| byte == half[0]);
    assert!(whole(low) && whole(high), "a half is torn");
    Content {
        low: low[0],
        high: high[0],
    }
}

pub(crate) struct Memory {
    kind: config::Device,
    data: Mutex<Vec<PageBytes>>,
    /// The next read or write fails.
    pub(crate) fails: AtomicBool,
}

impl Memory {
    pub(crate) fn new(kind: config::Device, slots: usize) -> Self {
        Self {
            kind,
            data: Mutex::new(vec![[0; PAGE_SIZE]; slots]),
            fails: AtomicBool::new(false),
        }
    }

    pub(crate) fn content(&self, slot: usize) -> Content {
        content(&self.data()[slot])
    }

    fn data(&self) -> MutexGuard<'_, Vec<PageBytes>> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn halves(&self) -> bool {
        self.kind == config::Device::Plain
    }
}

/// What the swap area owns; the test keeps the memory.
pub(crate) struct Handle(pub(crate) std::sync::Arc<Memory>);

impl Device for Handle {
    fn name(&self) -> &str {
        "model"
    }

    fn slots(&self) -> u64 {
        self.0.data().len() as u64
    }

    fn properties(&self) -> Properties {
        self.0.kind.properties()
    }

    fn read(&self, slot: u64, page: &mut PageBytes) -> Result<Found, DeviceError> {
        let slot = slot as usize;
        if self.0.fails.swap(false, Ordering::SeqCst) {
            page.fill(JUNK);
            return Err(DeviceError::Io(5));
        }
        page[..HALF].copy_from_slice(&self.0.data()[slot][..HALF]);
        if self.0.halves() {
            at(Step::ReadRest);
        }
        page[HALF..].copy_from_slice(&self.0.data()[slot][HALF..]);
        Ok(Found::Bytes)
    }

    fn write(&self, slot: u64, page: &PageBytes) -> Result<(), DeviceError> {
        let slot = slot as usize;
        if self.0.fails.swap(false, Ordering::SeqCst) {
            self.0.data()[slot].fill(JUNK);
            return Err(DeviceError::Full);
        }
        self.0.data()[slot][..HALF].copy_from_slice(&page[..HALF]);
        if self.0.halves() {
            at(Step::WriteRest);
        }
        self.0.data()[slot][HALF..].copy_from_slice(&page[HALF..]);
        Ok(())
    }

    fn discard(&self, slot: u64) {
        self.0.data()[slot as usize].fill(0);
    }

    fn usage(&self) -> Usage {
        Usage::default()
    }
}
