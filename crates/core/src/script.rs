//! A device for tests: plain memory, with a script that runs at every call.

use std::collections::HashMap;

use crate::device::{Content, Device, DeviceError, PAGE_SIZE, PageBytes, Properties, Usage};
use crate::sync::{Mutex, MutexGuard};

/// Where in a device call a script runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Before the slot's data are read.
    BeforeRead,
    /// After the data are in the caller's page, before the call returns.
    AfterRead,
    /// Before the data are stored.
    BeforeWrite,
    /// Before the data are dropped.
    Discard,
}

/// What runs at a [`Point`] of a slot; an error makes the call fail.
pub type Script = Box<dyn Fn(Point, u64) -> Result<(), DeviceError> + Send + Sync>;

/// A scripted device. It allocates, so it is for tests only.
pub struct ScriptedDevice {
    slots: u64,
    properties: Properties,
    data: Mutex<HashMap<u64, Box<PageBytes>>>,
    script: Script,
}

impl ScriptedDevice {
    /// A device of `slots` slots that is what `properties` says and follows `script`.
    #[must_use]
    pub fn new(slots: u64, properties: Properties, script: Script) -> Self {
        Self {
            slots,
            properties,
            data: Mutex::default(),
            script,
        }
    }

    fn data(&self) -> MutexGuard<'_, HashMap<u64, Box<PageBytes>>> {
        self.data.lock()
    }
}

impl Device for ScriptedDevice {
    fn name(&self) -> &str {
        "scripted"
    }

    fn slots(&self) -> u64 {
        self.slots
    }

    fn properties(&self) -> Properties {
        self.properties
    }

    fn read(&self, slot: u64, page: &mut PageBytes) -> Result<Content, DeviceError> {
        (self.script)(Point::BeforeRead, slot)?;
        *page = self.data().get(&slot).map_or([0; PAGE_SIZE], |data| **data);
        (self.script)(Point::AfterRead, slot)?;
        Ok(Content::Bytes)
    }

    fn write(&self, slot: u64, page: &PageBytes) -> Result<(), DeviceError> {
        (self.script)(Point::BeforeWrite, slot)?;
        self.data().insert(slot, Box::new(*page));
        Ok(())
    }

    fn discard(&self, slot: u64) {
        // A script cannot make a discard fail.
        let _ = (self.script)(Point::Discard, slot);
        self.data().remove(&slot);
    }

    fn usage(&self) -> Usage {
        let pages = self.data().len() as u64;
        let bytes = pages * PAGE_SIZE as u64;
        Usage {
            raw_pages: pages,
            stored_bytes: bytes,
            memory_bytes: bytes,
            ..Usage::default()
        }
    }
}
