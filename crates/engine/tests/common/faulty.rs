//! A device around another, whose calls fail, are late or panic by a seeded plan.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use userswap::{Content, Device, DeviceError, PageBytes, Properties, Usage};
use userswap_device::{Zram, ZramOptions};

use super::Random;

/// A call of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Read,
    /// Read, and not handed over yet.
    ReadDone,
    Write,
    Discard,
    Compact,
}

/// What happens to calls that are hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Harm {
    Fails(DeviceError),
    Late(Duration),
    Panics,
}

/// One call in so many of one kind is hit, while it is on.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) call: Call,
    pub(crate) harm: &'static [Harm],
    pub(crate) one_in: u64,
    pub(crate) seed: u64,
    pub(crate) on: AtomicBool,
    pub(crate) made: AtomicU64,
    pub(crate) hit: AtomicU64,
}

impl Plan {
    pub(crate) fn new(call: Call, harm: &'static [Harm], one_in: u64, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            call,
            harm,
            one_in,
            seed,
            on: AtomicBool::new(false),
            made: AtomicU64::new(0),
            hit: AtomicU64::new(0),
        })
    }

    fn meet(&self, call: Call) -> Result<(), DeviceError> {
        if call != self.call || !self.on.load(Ordering::SeqCst) {
            return Ok(());
        }
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let mut random = Random::new(self.seed << 32 ^ number);
        random.next();
        if !random.next().is_multiple_of(self.one_in) {
            return Ok(());
        }
        self.hit.fetch_add(1, Ordering::Relaxed);
        match self.harm[random.below(self.harm.len())] {
            Harm::Fails(error) => Err(error),
            Harm::Late(delay) => {
                std::thread::sleep(delay);
                Ok(())
            }
            // Without the message that `panic!` prints.
            Harm::Panics => std::panic::resume_unwind(Box::new("on purpose")),
        }
    }
}

/// The device.
pub(crate) struct Faulty {
    inner: Zram,
    meet: Meet,
}

/// What a call meets before it is made.
type Meet = Box<dyn Fn(Call) -> Result<(), DeviceError> + Send + Sync>;

impl Faulty {
    /// Compressed memory of `slots` slots under `plan`.
    pub(crate) fn new(slots: u64, plan: &Arc<Plan>) -> Box<Self> {
        let plan = Arc::clone(plan);
        Self::meeting(slots, move |call| plan.meet(call))
    }

    /// Compressed memory of `slots` slots, each of whose calls meets `meet` first.
    pub(crate) fn meeting(
        slots: u64,
        meet: impl Fn(Call) -> Result<(), DeviceError> + Send + Sync + 'static,
    ) -> Box<Self> {
        Box::new(Self {
            inner: Zram::new(slots, ZramOptions::default()).expect("a device"),
            meet: Box::new(meet),
        })
    }
}

impl Device for Faulty {
    fn name(&self) -> &str {
        "faulty"
    }

    fn slots(&self) -> u64 {
        self.inner.slots()
    }

    fn properties(&self) -> Properties {
        self.inner.properties()
    }

    fn read(&self, slot: u64, page: &mut PageBytes) -> Result<Content, DeviceError> {
        let met = (self.meet)(Call::Read);
        if met.is_err() {
            // What a failed read leaves behind is nobody's page.
            page.fill(0xbd);
        }
        met?;
        let content = self.inner.read(slot, page)?;
        (self.meet)(Call::ReadDone)?;
        Ok(content)
    }

    fn write(&self, slot: u64, page: &PageBytes) -> Result<(), DeviceError> {
        (self.meet)(Call::Write)?;
        self.inner.write(slot, page)
    }

    fn discard(&self, slot: u64) {
        let met = (self.meet)(Call::Discard);
        assert_eq!(met, Ok(()), "a discard cannot fail");
        self.inner.discard(slot);
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn compact(&self) {
        let met = (self.meet)(Call::Compact);
        assert_eq!(met, Ok(()), "compaction cannot fail");
        self.inner.compact();
    }
}
