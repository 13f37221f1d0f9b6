//! What the tests share: stamped pages, a device with switches, and the checker of invariants.
#![allow(dead_code, reason = "no test binary uses all of it")]

pub(crate) mod hooked;
#[cfg(feature = "shuttle")]
pub(crate) mod soak;
pub(crate) mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use userswap_core::device::{
    Content, Device, DeviceError, PAGE_SIZE, PageBytes, Properties, Usage,
};
use userswap_core::entry::SwapEntry;
use userswap_core::page_table::{CHUNK_PAGES, PteState};
use userswap_core::rule::Rules;
use userswap_core::script::{Point, ScriptedDevice};
use userswap_core::soft::{self, SoftMm, SoftSwap};
use userswap_core::space::Frames;
use userswap_core::stamp::{self, Found, Stamp};
use userswap_core::{FaultError, Staged, SwapArea, Way, bug};

/// Long enough for any machine; nothing is measured with it.
pub(crate) const HANG: Duration = Duration::from_secs(30);

/// A synchronous device without peculiarities.
pub(crate) const PLAIN: Properties = Properties {
    synchronous: true,
    stable_pages: false,
    discards: true,
};

/// A page that says whose it is, where there is only one region.
pub(crate) fn stamp(page: usize, version: u64) -> PageBytes {
    stamp_of(0, page, version).bytes()
}

pub(crate) fn stamp_of(region: u64, page: usize, version: u64) -> Stamp {
    Stamp {
        region,
        page: page as u64,
        version,
        content: stamp::Content::Text,
    }
}

/// The version of `page` in `bytes`. A page of zeros is version 0 of any page.
///
/// # Errors
/// The page is torn, or another one.
pub(crate) fn version_of(page: usize, bytes: &PageBytes) -> Result<u64, String> {
    match Found::of(bytes) {
        Found::Zeros => Ok(0),
        Found::Whole(stamp) if stamp.page == page as u64 => Ok(stamp.version),
        found => Err(format!("page {page} holds {found}")),
    }
}

/// Stores a version of a page.
pub(crate) fn store(
    swap: &SoftSwap,
    mm: &SoftMm,
    page: usize,
    version: u64,
) -> Result<(), FaultError> {
    soft::access(swap, mm, page, |bytes| *bytes = stamp(page, version))
}

/// Loads a page and checks that it is what it should be.
pub(crate) fn load(swap: &SoftSwap, mm: &SoftMm, page: usize) -> Result<u64, FaultError> {
    soft::access(swap, mm, page, |bytes| {
        version_of(page, bytes).unwrap_or_else(|error| panic!("{error}"))
    })
}

/// Writes a staged block out and drops its hold. What could not be written is put back.
pub(crate) fn write_out(swap: &SoftSwap, mm: &SoftMm, chunk: usize, staged: Staged) {
    let done = swap.write_back(staged.block, staged.mask);
    let back = swap.put_back(mm, chunk, staged.block, done.failed, 0);
    assert_eq!(back, done.failed, "{done:?}");
    swap.frames().release(staged.block, 1);
}

/// Pages `mask` of `chunk` out, as far as they can be.
pub(crate) fn page_out(swap: &SoftSwap, mm: &SoftMm, chunk: usize, mask: u64) {
    if let Ok(staged) = swap.stage(mm, chunk, mask) {
        write_out(swap, mm, chunk, staged);
    }
}

/// The entry of a page that is swapped.
pub(crate) fn entry(mm: &SoftMm, page: usize) -> Option<SwapEntry> {
    match mm.table.load(page).state() {
        PteState::Swapped(entry) => Some(entry),
        PteState::None | PteState::Present => None,
    }
}

/// (c, h) of the slot a swapped page is in.
pub(crate) fn slot(swap: &SoftSwap, mm: &SoftMm, page: usize) -> (u32, bool) {
    let entry = entry(mm, page).expect("a swapped page");
    let slot = area_of(swap, entry).slot(entry);
    (slot.count, slot.has_cache)
}

fn area_of(swap: &SoftSwap, entry: SwapEntry) -> &SwapArea {
    swap.areas().nth(entry.area()).expect("an area")
}

static KNOWN_BUGS: AtomicU64 = AtomicU64::new(0);

/// Broken invariants reported since [`forget_bugs`].
pub(crate) fn new_bugs() -> u64 {
    bug::count() - KNOWN_BUGS.load(Ordering::SeqCst)
}

/// After a rule was broken on purpose.
pub(crate) fn forget_bugs() {
    KNOWN_BUGS.store(bug::count(), Ordering::SeqCst);
}

/// Checks the invariants of a moment at which no operation is under way, with `staged` the blocks the
/// test holds. I1: each slot's count is the number of PTEs that hold it. I2 and I6: the cache flag is
/// set only of staged pages. The words tell the truth about memory, no slot and no frame is leaked,
/// and no broken invariant was reported.
pub(crate) fn check(swap: &SoftSwap, mms: &[&SoftMm], staged: &[Staged]) {
    assert_eq!(new_bugs(), 0, "a bug was reported");
    let mut counts = BTreeMap::<SwapEntry, u32>::new();
    for mm in mms {
        for page in 0..mm.table.pages() {
            let present = mm.table.load(page).state() == PteState::Present;
            assert_eq!(
                mm.space.peek(page).is_some(),
                present,
                "page {page}'s word lies"
            );
            if let Some(entry) = entry(mm, page) {
                *counts.entry(entry).or_default() += 1;
            }
        }
    }
    let mut cached = 0;
    for (number, area) in swap.areas().enumerate() {
        let mut used = 0;
        for offset in 0..area.slots() {
            let entry = SwapEntry::new(number, offset);
            let slot = area.slot(entry);
            let expected = counts.remove(&entry).unwrap_or(0);
            assert_eq!(slot.count, expected, "I1: slot {entry} is {slot:?}");
            cached += u32::from(slot.has_cache);
            used += u64::from(slot.count > 0 || slot.has_cache);
        }
        assert_eq!(area.used(), used, "slots of area {number} are leaked");
    }
    assert!(counts.is_empty(), "entries name no slot: {counts:?}");
    let most = staged
        .iter()
        .map(|staged| staged.mask.count_ones())
        .sum::<u32>();
    assert!(
        cached <= most,
        "I6: {cached} cache flags set, {most} pages staged"
    );
    let blocks = staged
        .iter()
        .map(|staged| staged.block)
        .collect::<BTreeSet<_>>();
    assert_eq!(
        swap.frames().in_use(),
        blocks.len(),
        "blocks of frames are leaked"
    );
}

/// Discards everything and checks that nothing is left.
pub(crate) fn check_empty(swap: &SoftSwap, mms: &[&SoftMm]) {
    check(swap, mms, &[]);
    for mm in mms {
        for chunk in 0..mm.table.chunks() {
            assert_eq!(swap.discard(mm, chunk, u64::MAX).pinned, 0);
        }
    }
    check(swap, mms, &[]);
    for area in swap.areas() {
        assert_eq!(area.used(), 0);
    }
}

/// What a test makes a device do.
#[derive(Debug, Default)]
pub(crate) struct Switches {
    /// Slots whose reads fail.
    pub(crate) unreadable: Mutex<BTreeSet<u64>>,
    /// Slots whose writes fail; `None`: of none, `Some(empty)`: of all.
    pub(crate) unwritable: Mutex<Option<BTreeSet<u64>>>,
    /// Set: whoever still calls uses a device that is gone.
    pub(crate) closed: AtomicBool,
    /// It was used after that. A panic in a device is but an error of the device, so the test looks here.
    pub(crate) used_closed: AtomicBool,
    /// Calls so far.
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) discards: AtomicU64,
    stop: Mutex<Option<Stop>>,
}

/// Stops a thread that comes to a point: whom it tells, and what it waits for.
#[derive(Debug)]
struct Stop {
    point: Point,
    slot: Option<u64>,
    reached: Sender<u64>,
    go_on: Receiver<()>,
}

/// A thread that is to be stopped in the device.
pub(crate) struct Stopped {
    reached: Receiver<u64>,
    go_on: Sender<()>,
}

impl Stopped {
    /// Waits until the thread is there; returns the slot.
    pub(crate) fn reached(&self) -> u64 {
        self.reached.recv_timeout(HANG).expect("nobody came by")
    }

    /// Lets the thread go on.
    pub(crate) fn go_on(self) {
        self.go_on.send(()).expect("the thread waits");
    }
}

impl Switches {
    /// Stops the next thread that comes to `point`.
    pub(crate) fn stop_next(&self, point: Point) -> Stopped {
        self.stop_next_of(point, None)
    }

    /// Stops the next thread that comes to `point` of `slot`; `None`: of any.
    pub(crate) fn stop_next_of(&self, point: Point, slot: Option<u64>) -> Stopped {
        let (reached_tx, reached) = channel();
        let (go_on, go_on_rx) = channel();
        *self.stop.lock().expect("switches") = Some(Stop {
            point,
            slot,
            reached: reached_tx,
            go_on: go_on_rx,
        });
        Stopped { reached, go_on }
    }

    /// What the device does at each call.
    ///
    /// # Errors
    /// What the test asked for.
    pub(crate) fn act(&self, point: Point, slot: u64) -> Result<(), DeviceError> {
        let stop = self
            .stop
            .lock()
            .expect("switches")
            .take_if(|stop| stop.point == point && stop.slot.is_none_or(|stop| stop == slot));
        if let Some(stop) = stop {
            stop.reached.send(slot).expect("the test listens");
            // A test that fails drops its end.
            let _ = stop.go_on.recv();
        }
        if self.closed.load(Ordering::SeqCst) {
            self.used_closed.store(true, Ordering::SeqCst);
        }
        match point {
            Point::BeforeRead => {
                self.reads.fetch_add(1, Ordering::SeqCst);
                let unreadable = self.unreadable.lock().expect("switches");
                if unreadable.contains(&slot) {
                    return Err(DeviceError::Io(5));
                }
            }
            Point::BeforeWrite => {
                self.writes.fetch_add(1, Ordering::SeqCst);
                let unwritable = self.unwritable.lock().expect("switches");
                if let Some(slots) = &*unwritable
                    && (slots.is_empty() || slots.contains(&slot))
                {
                    return Err(DeviceError::Full);
                }
            }
            Point::Discard => {
                self.discards.fetch_add(1, Ordering::SeqCst);
            }
            Point::AfterRead => {}
        }
        Ok(())
    }
}

/// A device with switches.
pub(crate) fn device(slots: u64, properties: Properties) -> (ScriptedDevice, Arc<Switches>) {
    let switches = Arc::new(Switches::default());
    let acts = Arc::clone(&switches);
    let script = Box::new(move |point, slot| acts.act(point, slot));
    (ScriptedDevice::new(slots, properties, script), switches)
}

/// A swap subsystem with one such device that keeps `rules`.
pub(crate) fn setup_with(
    rules: Rules,
    way: Way,
    slots: u64,
    properties: Properties,
) -> (SoftSwap, Arc<Switches>) {
    let swap = soft::swap_with_rules(16, way, rules);
    let (device, switches) = device(slots, properties);
    swap.add_area(Box::new(device)).expect("a first area");
    (swap, switches)
}

/// A swap subsystem with one such device.
pub(crate) fn setup(way: Way, slots: u64, properties: Properties) -> (SoftSwap, Arc<Switches>) {
    setup_with(Rules::ALL_KEPT, way, slots, properties)
}

/// The safe ways.
pub(crate) const SAFE: [Way; 2] = [Way::Direct, Way::Cached];

/// Runs `test` on a thread of its own and fails if it hangs.
pub(crate) fn within_reason<R: Send + 'static>(test: impl FnOnce() -> R + Send + 'static) -> R {
    let (done, result) = channel();
    let thread = std::thread::spawn(move || {
        // The receiver is gone only when it gave up.
        let _ = done.send(test());
    });
    match result.recv_timeout(HANG) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => panic!("it hangs"),
        Err(RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.join().expect_err("it panicked"))
        }
    }
}

/// The mask of a chunk's first `pages` pages.
pub(crate) fn first(pages: usize) -> u64 {
    userswap_core::mask::run(0, pages.min(CHUNK_PAGES))
}

/// A device that says so when a page is all zeros, and leaves the buffer as it was.
pub(crate) struct Zeros(pub(crate) ScriptedDevice);

impl Device for Zeros {
    fn name(&self) -> &str {
        "zeros"
    }

    fn slots(&self) -> u64 {
        self.0.slots()
    }

    fn properties(&self) -> Properties {
        self.0.properties()
    }

    fn read(&self, slot: u64, page: &mut PageBytes) -> Result<Content, DeviceError> {
        let mut bytes = [0; PAGE_SIZE];
        let content = self.0.read(slot, &mut bytes)?;
        if bytes.iter().all(|&byte| byte == 0) {
            return Ok(Content::Zeros);
        }
        *page = bytes;
        Ok(content)
    }

    fn write(&self, slot: u64, page: &PageBytes) -> Result<(), DeviceError> {
        self.0.write(slot, page)
    }

    fn discard(&self, slot: u64) {
        self.0.discard(slot);
    }

    fn usage(&self) -> Usage {
        self.0.usage()
    }
}
