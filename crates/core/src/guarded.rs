//! A device whose panics come back as errors.
//!
//! A device may be anybody's code, and it is called with pins held. A panic that unwound from there would leave them to
//! nobody, and everyone who needs these pages would wait for ever. Inside a signal handler it could not unwind at all.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::device::{
    Content, Device, DeviceError, Overdue, PageBytes, Properties, Side, SlotRead, Usage,
};

/// Wraps a device. The panic's own message has been printed by the time the error is returned.
pub(crate) struct Guarded(pub(crate) Box<dyn Device>);

impl Guarded {
    fn guard<R>(
        &self,
        call: impl FnOnce(&dyn Device) -> Result<R, DeviceError>,
    ) -> Result<R, DeviceError> {
        // Unwind safe: after an error nobody relies on the page that the call was filling, and what the device itself
        // may have left half-done is the device's own affair, as it is after any error.
        catch_unwind(AssertUnwindSafe(|| call(&*self.0))).unwrap_or(Err(DeviceError::Panicked))
    }
}

impl Device for Guarded {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn slots(&self) -> u64 {
        self.0.slots()
    }

    fn properties(&self) -> Properties {
        self.0.properties()
    }

    fn read(&self, slot: u64, page: &mut PageBytes) -> Result<Content, DeviceError> {
        self.guard(|device| device.read(slot, page))
    }

    fn write(&self, slot: u64, page: &PageBytes) -> Result<(), DeviceError> {
        self.guard(|device| device.write(slot, page))
    }

    fn discard(&self, slot: u64) {
        // What could not be dropped is overwritten when the slot is used again.
        let _ = self.guard(|device| {
            device.discard(slot);
            Ok(())
        });
    }

    fn usage(&self) -> Usage {
        self.0.usage()
    }

    fn compact(&self) {
        // Memory that could not be given back is still counted.
        let _ = self.guard(|device| {
            device.compact();
            Ok(())
        });
    }

    fn batches(&self) -> bool {
        self.0.batches()
    }

    fn read_batch(&self, reads: &mut [Option<SlotRead<'_>>]) {
        let done = self.guard(|device| {
            device.read_batch(reads);
            Ok(())
        });
        if let Err(error) = done {
            // Which of them were read is not known.
            for read in reads.iter_mut().flatten() {
                read.result = Err(error);
            }
        }
    }

    fn tend(&self) -> bool {
        self.guard(|device| Ok(device.tend())).unwrap_or(false)
    }

    fn leaves_memory(&self) -> bool {
        self.0.leaves_memory()
    }

    fn overdue(&self, now_ns: u64) -> Option<Overdue> {
        self.0.overdue(now_ns)
    }

    fn note_limit(&self, bytes: u64) {
        self.0.note_limit(bytes);
    }

    fn prefer_small(&self, small: bool) {
        self.0.prefer_small(small);
    }

    fn retire(&self) {
        // What could not be given up is held until the end.
        let _ = self.guard(|device| {
            device.retire();
            Ok(())
        });
    }

    fn fork_begin(&self) {
        self.0.fork_begin();
    }

    fn fork_end(&self, side: Side) -> Result<(), DeviceError> {
        self.guard(|device| device.fork_end(side))
    }

    fn descriptors(&self, name: &mut dyn FnMut(i32)) {
        self.0.descriptors(name);
    }

    fn memory_bytes(&self) -> u64 {
        self.0.memory_bytes()
    }
}
