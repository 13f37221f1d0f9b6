//! Devices that come and go during a round: swapon of a new one, swapoff of the one there was, again and again.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use userswap::{DeviceSpec, Engine, Error};

use crate::interrupt;
use crate::memory::Memory;
use crate::progress::Drain;

/// How long each device is left to fill.
const PAUSE: Duration = Duration::from_millis(20);

/// What becomes of the devices of a round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exchange<'a> {
    pub(super) device: &'a DeviceSpec,
    /// Bytes of each.
    pub(super) area: u64,
}

impl Exchange<'_> {
    /// Exchanges devices until `stop`, or until the engine has had all that it can have. Returns how many were swapped off.
    pub(super) fn run(self, memory: &Memory, stop: &AtomicBool) -> anyhow::Result<u32> {
        let Some(engine) = memory.swap_engine() else {
            return Ok(0);
        };
        let mut done = 0;
        while !stop.load(Ordering::Relaxed) && !interrupt::requested() {
            match self.once(engine, done + 1) {
                Ok(()) => done += 1,
                Err(Error::TooManyDevices(_)) => break,
                // By the user, who is told so elsewhere.
                Err(Error::SwapoffStopped { .. }) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    fn once(self, engine: &Engine, number: u32) -> Result<(), Error> {
        let devices = engine.devices();
        // Above the one there is, so that pages go there.
        let priority = devices.iter().map(|status| status.priority).max();
        engine.swapon(
            self.device,
            self.area,
            priority.map_or(0, |priority| priority + 1),
        )?;
        thread::sleep(PAUSE);
        let drain = Drain::new(number);
        for old in devices {
            engine.swapoff_device(old.device, |progress| {
                drain.show(progress.left_bytes, progress.total_bytes);
                if interrupt::requested() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
        }
        Ok(())
    }
}
