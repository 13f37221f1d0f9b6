//! Building and owning an engine.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;

use userswap_core::device::{Device, PAGE_SIZE};
use userswap_core::{Swap, Way};
use userswap_device::{File, Ram, Tiered, Zram, ZramOptions};
use userswap_sys::signals::{Blocked, Stack};
use userswap_sys::uffd::{Open, OpenError, Uffd};
use userswap_sys::{cpu, host};

use crate::Error;
use crate::budget::{Budget, Whole};
use crate::crew::{Crew, HelpWanted};
use crate::cyclic::Cyclic;
use crate::density::Density;
use crate::fault::{self, Handlers};
use crate::frames::{BLOCK_BYTES, FramePool, STAGING_FAULTS};
use crate::guard::Known;
use crate::hand::Hand;
use crate::moving::Moving;
use crate::reclaim::Inactive;
use crate::region::Region;
use crate::registrar::Registrar;
use crate::registry;
use crate::shared::{Bell, Shared, StartLine};
use crate::spare::Spare;
use crate::spec::{Codec, DeviceSpec, FaultAround, FaultMode, Policy};
use crate::stats::{Counters, Stats};
use crate::thread;
use crate::watch;

/// The swap area of an engine that was told neither its size nor a limit, in bytes.
const DEFAULT_AREA: u64 = 4 << 30;

/// The largest swap area that is made without being asked for, in bytes: its tables are address space
/// that some systems count.
const MOST_DEFAULT_AREA: u64 = 256 << 30;

/// The least limit: frames to work with, and some pages.
const LEAST_LIMIT: u64 = 4 << 20;

/// How an engine is to be built.
#[must_use = "an engine is made by `build`"]
pub struct EngineBuilder {
    device: DeviceSpec,
    custom_device: Option<Box<dyn Device>>,
    area: Option<u64>,
    limit: Option<u64>,
    faults: FaultMode,
    way: Way,
    fault_around: FaultAround,
    strict: bool,
    whole: Option<Whole>,
    policy: Policy,
    #[cfg(feature = "break-rules")]
    rules: userswap_core::rule::Rules,
}

impl EngineBuilder {
    /// The rules of the protocol that the engine keeps. **Loses data** where one is broken.
    #[cfg(feature = "break-rules")]
    pub fn rules(mut self, rules: userswap_core::rule::Rules) -> Self {
        self.rules = rules;
        self
    }

    /// Where pages go. Default: compressed memory, lz4.
    pub fn device(mut self, device: DeviceSpec) -> Self {
        self.device = device;
        self
    }

    /// A device of the caller's own, instead of [`EngineBuilder::device`]; it brings its own size.
    pub fn custom_device(mut self, device: Box<dyn Device>) -> Self {
        self.custom_device = Some(device);
        self
    }

    /// The size of the swap area in bytes: how much can be swapped out at once. A multiple of 4096.
    /// Default: 4 GiB, or 16 times the limit if that is more, up to 256 GiB. Address space only: memory is taken as
    /// it is used.
    pub fn area(mut self, bytes: u64) -> Self {
        self.area = Some(bytes);
        self
    }

    /// The most memory in bytes that the regions' resident pages, the store and the engine's tables
    /// may take together. At least 4 MiB. Default: none; pages then leave memory only when told to.
    pub fn limit(mut self, bytes: u64) -> Self {
        self.limit = Some(bytes);
        self
    }

    /// How faults reach the engine.
    pub fn faults(mut self, mode: FaultMode) -> Self {
        self.faults = mode;
        self
    }

    /// The way in. [`Way::Unpinned`] **loses data**; it is there to show that it does.
    pub fn way(mut self, way: Way) -> Self {
        self.way = way;
        self
    }

    /// How many pages a fault brings in.
    pub fn fault_around(mut self, fault_around: FaultAround) -> Self {
        self.fault_around = fault_around;
        self
    }

    /// Whether a process whose memory cannot be kept within the limit is killed, with a message, instead of
    /// going over it. Default: no.
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// The limit is a share of `bytes`, which processes have together. Going over a share is no news, and no reason to kill a
    /// process that is strict, as long as `can_be_held` says that the whole can be held with so many bytes in use here. It is
    /// called from signal handlers, too.
    ///
    /// `ends` says, where it cannot be held and is strict, whether this process is the one to end, as it does then. `count` counts
    /// so many more bytes as this process's before the system is asked; not, unless the second argument says so, where the whole
    /// would be more than the limit then (`false`). `own_pages` says which of 64 pages from an address on no other process has.
    #[doc(hidden)]
    pub fn shares_limit(
        mut self,
        bytes: u64,
        can_be_held: fn(u64) -> bool,
        ends: fn(u64) -> bool,
        count: fn(i64, bool) -> bool,
        own_pages: fn(usize) -> Option<u64>,
    ) -> Self {
        self.whole = Some(Whole {
            bytes,
            can_be_held,
            ends,
            count,
            own_pages,
        });
        self
    }

    /// Which pages leave memory.
    #[doc(hidden)]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Builds the engine.
    ///
    /// # Errors
    /// A size that makes no sense, or something the host does not permit: the error says which.
    pub fn build(self) -> Result<Engine, Error> {
        let owner = Arc::new(self.build_owner(false)?);
        Ok(Engine { owner })
    }

    /// An engine for the process's own memory.
    pub(crate) fn build_for_process(self) -> Result<Arc<Owner>, Error> {
        self.build_owner(true).map(Arc::new)
    }

    fn build_owner(self, process: bool) -> Result<Owner, Error> {
        if host::page_size() != PAGE_SIZE {
            return Err(Error::PageSize(host::page_size()));
        }
        self.limit.map_or(Ok(()), check_limit)?;
        // A share may grow to all of it.
        let whole = self.whole.map(|whole| whole.bytes).or(self.limit);
        let default_area = whole
            .map_or(0, |limit| limit.saturating_mul(16))
            .clamp(DEFAULT_AREA, MOST_DEFAULT_AREA);
        let area = self
            .area
            .unwrap_or(default_area / PAGE_SIZE as u64 * PAGE_SIZE as u64);
        check_size("a swap area", area)?;
        let (mode, uffd) = open_faults(self.faults, process)?;
        // For a process, that is: inline at first, and threads when it has to be.
        let keeps_spare = process && self.faults == FaultMode::Auto;
        let staging_uffd = Uffd::open(STAGING_FAULTS)?;
        if !staging_uffd.features().move_pages() {
            return Err(Error::NoMove);
        }
        let device = match self.custom_device {
            Some(device) => device,
            None => make_device(&self.device, area, self.limit.is_some())?,
        };
        let pool = PoolSize::for_limit(whole, self.limit);
        let frames = FramePool::new(
            staging_uffd,
            pool.staging,
            pool.scratch,
            pool.reserve,
            process,
        )?;
        let frames = Arc::new(frames);
        #[cfg(not(feature = "break-rules"))]
        let swap = Swap::new(frames, self.way);
        #[cfg(feature = "break-rules")]
        let swap = Swap::with_rules(frames, self.way, self.rules);
        if let Some(limit) = self.limit {
            device.note_limit(limit);
        }
        swap.add_area(device).expect("the first area has a number");
        // The stack of a thread of the program may be swapped out itself.
        let stack = if process && mode == FaultMode::Inline {
            Stack::Alternate
        } else {
            Stack::Current
        };
        fault::install(stack)?;
        let shared = Arc::new(Shared {
            swap,
            budget: Budget::new(self.limit, self.strict),
            density: Density::default(),
            cyclic: Cyclic::new(blocks_for(whole)),
            counters: Counters::new(),
            first_mode: mode,
            in_threads: AtomicBool::new(mode == FaultMode::Thread),
            fault_around: self.fault_around,
            strict: self.strict,
            whole: self.whole,
            uffd: Arc::new(Registrar::new(uffd)),
            // Room for all: a push never allocates while a fault waits for the lock.
            regions: RwLock::new(Vec::with_capacity(registry::ROWS)),
            hand: Mutex::new(Hand::default()),
            inactive: Mutex::new(Inactive::new(
                pool.staging,
                match self.policy {
                    Policy::Recency => Inactive::target_for(self.limit),
                    // What is staged is written at once.
                    Policy::Fifo | Policy::Random => 1,
                },
            )),
            policy: self.policy,
            working: AtomicUsize::new(0),
            most_working: pool.most_working,
            turn: AtomicU32::new(0),
            warned_area_full: AtomicBool::new(false),
            warned_write: AtomicBool::new(false),
            reclaimer: Bell::default(),
            watch: Bell::default(),
            // A helper that a fork takes by surprise could hold a lock.
            help_wanted: if process {
                HelpWanted::default()
            } else {
                HelpWanted::for_this_host()
            },
            swapoff: Mutex::new(()),
            moving: Moving::new(),
            start: StartLine::new(!process),
            bell_number: AtomicI32::new(-1),
            inline_for_now: AtomicBool::new(false),
            known: Known::default(),
            stack_taken: AtomicBool::new(false),
            spare: Spare::default(),
            keeps_spare,
        });
        let handlers = (mode == FaultMode::Thread)
            .then(|| Handlers::start(&shared))
            .transpose()?;
        if keeps_spare {
            Spare::start(&shared)?;
        }
        let reclaimer = self
            .limit
            .is_some()
            .then(|| start_reclaimer(&shared))
            .transpose()?;
        let crew = Crew::start(&shared)?;
        let watch = Mutex::new(watch::start(&shared)?);
        Ok(Owner {
            shared,
            handlers,
            _crew: crew,
            reclaimer,
            watch,
        })
    }
}

/// How many blocks the frame pool has, by what for.
struct PoolSize {
    staging: usize,
    scratch: usize,
    reserve: usize,
    /// Threads that write blocks out at once, whatever the limit.
    most_working: usize,
}

/// How many blocks fit into a limit: without one as with one of 2 GiB, since pools are address space, not memory.
pub(crate) fn blocks_for(limit: Option<u64>) -> usize {
    limit.map_or(8192, |limit| limit as usize / BLOCK_BYTES)
}

impl PoolSize {
    /// For a limit of `share`, which may become as much as `limit`.
    fn for_limit(limit: Option<u64>, share: Option<u64>) -> Self {
        let cpus = cpu::count();
        let inactive = Inactive::target_for(limit);
        Self {
            // Staging is address space; memory is in it only while pages are. Blocks are often staged in
            // part, so there are more of them than their memory would fill.
            staging: (inactive * 2).max(16) + 2 * cpus,
            // As many faults can wait for a slow device at once; only blocks that are used take memory.
            scratch: (blocks_for(share) / 32).clamp(2, 256),
            // Only faults that bring many pages use it, and its memory is nobody's meanwhile.
            reserve: (blocks_for(share) / 128).clamp(1, 16),
            most_working: 2 * cpus,
        }
    }
}

pub(crate) fn make_device(
    spec: &DeviceSpec,
    area: u64,
    limited: bool,
) -> Result<Box<dyn Device>, Error> {
    let slots = area / PAGE_SIZE as u64;
    let failed = |error| Error::Device { bytes: area, error };
    let zram = |codec, refuse_incompressible| {
        let options = ZramOptions {
            codec,
            refuse_incompressible,
            ..ZramOptions::default()
        };
        Zram::new(slots, options).map_err(failed)
    };
    Ok(match spec {
        DeviceSpec::Ram { read_delay } => Box::new(Ram::new(slots, *read_delay).map_err(failed)?),
        // Under a limit, a page that saves nothing in the store had better stay in memory.
        DeviceSpec::Zram(codec) => Box::new(zram(*codec, limited)?),
        DeviceSpec::File(file) => Box::new(File::new(&file.path, slots, file.options)?),
        DeviceSpec::Tiered(codec, file) => {
            let below = File::new(&file.path, slots, file.options)?;
            Box::new(Tiered::new(zram(*codec, true)?, below).map_err(failed)?)
        }
    })
}

/// Faults come as signals to the thread that touched a page.
const INLINE_FAULTS: Open = Open {
    kernel_faults: false,
    sigbus: true,
    nonblock: true,
};

/// Faults come as events, those of system calls too.
pub(crate) const THREAD_FAULTS: Open = Open {
    kernel_faults: true,
    sigbus: false,
    nonblock: true,
};

/// Opens the userfaultfd of regions, or of a process's own memory, in the best way that `wanted` allows.
fn open_faults(wanted: FaultMode, process: bool) -> Result<(FaultMode, Uffd), OpenError> {
    match wanted {
        FaultMode::Auto | FaultMode::Inline => Ok((FaultMode::Inline, Uffd::open(INLINE_FAULTS)?)),
        FaultMode::Thread => {
            let uffd = match Uffd::open(THREAD_FAULTS) {
                // Without the privilege for faults in system calls, those of the program itself still work:
                // a region's user knows what to pin.
                Err(_) if !process => Uffd::open(Open {
                    kernel_faults: false,
                    ..THREAD_FAULTS
                }),
                opened => opened,
            };
            Ok((FaultMode::Thread, uffd?))
        }
    }
}

/// In a child of fork: opens a userfaultfd of the child's own in the place of the inherited one.
pub(crate) fn open_faults_again(uffd: &Uffd, mode: FaultMode) -> Result<(), Error> {
    let open = match mode {
        FaultMode::Auto | FaultMode::Inline => INLINE_FAULTS,
        FaultMode::Thread => THREAD_FAULTS,
    };
    Ok(uffd.reopen(open)?)
}

pub(crate) fn start_reclaimer(shared: &Arc<Shared>) -> Result<JoinHandle<()>, Error> {
    let shared = Arc::clone(shared);
    thread::start(
        "userswap-out".into(),
        "start the reclaimer thread",
        move || {
            shared.start.pass();
            shared.run_reclaimer();
        },
    )
}

fn check_limit(bytes: u64) -> Result<(), Error> {
    if bytes < LEAST_LIMIT {
        return Err(Error::LimitTooSmall {
            bytes,
            least: LEAST_LIMIT,
        });
    }
    Ok(())
}

pub(crate) fn check_size(what: &'static str, bytes: u64) -> Result<(), Error> {
    if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE as u64) {
        return Err(Error::Size { what, bytes });
    }
    Ok(())
}

/// Keeps an engine's threads running while somebody uses it: the engine's handle, or a region.
pub(crate) struct Owner {
    pub(crate) shared: Arc<Shared>,
    handlers: Option<Handlers>,
    _crew: Crew,
    reclaimer: Option<JoinHandle<()>>,
    /// Started with the first device that has to be watched.
    pub(crate) watch: Mutex<Option<JoinHandle<()>>>,
}

impl Owner {
    /// Waits until the engine's threads run, and lets them begin.
    pub(crate) fn start_together(&self) {
        let handlers = self.handlers.as_ref().map_or(0, Handlers::count);
        let reclaimers = usize::from(self.reclaimer.is_some());
        let watches = usize::from(watch::lock(&self.watch).is_some());
        let spares = usize::from(self.shared.keeps_spare);
        let threads = handlers + reclaimers + watches + spares;
        self.shared.start.wait_for(threads as u32);
        self.shared.start.open();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.reclaimer.stop();
        self.shared.watch.stop();
        let threads = [self.reclaimer.take(), watch::lock(&self.watch).take()];
        for thread in threads.into_iter().flatten() {
            thread.join().expect(thread::ENDS_WELL);
        }
    }
}

/// A swap engine: a device, a limit, and the regions that share them.
///
/// ```no_run
/// use userswap::{Advice, Engine};
///
/// let engine = Engine::builder().limit(256 << 20).build()?;
/// let mut data = engine.region(1 << 30)?; // four times the limit
/// data.fill(7);
/// assert_eq!(data[123_456_789], 7);
/// data.advise(0..1 << 20, Advice::PageOut)?;
/// println!("{} bytes in memory", engine.stats().resident_bytes);
/// # Ok::<(), userswap::Error>(())
/// ```
pub struct Engine {
    pub(crate) owner: Arc<Owner>,
}

impl Engine {
    /// An engine with the defaults: compressed memory, no limit, faults inline, direct swap-in.
    pub fn builder() -> EngineBuilder {
        EngineBuilder {
            device: DeviceSpec::Zram(Codec::Adaptive),
            custom_device: None,
            area: None,
            limit: None,
            faults: FaultMode::Auto,
            way: Way::Direct,
            fault_around: FaultAround::Adaptive,
            strict: false,
            whole: None,
            policy: Policy::Recency,
            #[cfg(feature = "break-rules")]
            rules: userswap_core::rule::Rules::ALL_KEPT,
        }
    }

    /// A region of `len` bytes of zeros, a multiple of 4096. It takes memory as it is used.
    ///
    /// # Errors
    /// A length that makes no sense, or more regions or address space than the system gives.
    pub fn region(&self, len: usize) -> Result<Region, Error> {
        Region::new(&self.owner, len)
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Shared {
        &self.owner.shared
    }

    /// What the engine holds and has done.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let _blocked = Blocked::new();
        self.owner.shared.stats()
    }

    /// How faults reach the engine: inline or thread.
    #[must_use]
    pub fn fault_mode(&self) -> FaultMode {
        self.owner.shared.mode()
    }

    /// Changes the limit, in bytes, and brings memory use down to it as far as can be done at once; what
    /// cannot leave memory is charged on, and said, as under the old limit. How many frames the engine works
    /// with stays as it was built.
    ///
    /// # Errors
    /// A limit that is too small; an engine that was built without one.
    pub fn set_limit(&self, bytes: u64) -> Result<(), Error> {
        let _blocked = Blocked::new();
        let shared = &*self.owner.shared;
        check_limit(bytes)?;
        if shared.budget.limit().is_none() {
            return Err(Error::NoLimit);
        }
        shared.lower_to(bytes);
        Ok(())
    }
}
