//! swapon and swapoff while the engine works: devices come and go, pages stay.
//!
//! An engine's devices lie side by side: pages go to the one of the highest priority that has room. swapoff of one ends
//! the handing out of its slots, and then brings its pages into memory, a chunk at a time, as faults would. Under
//! a limit each chunk is charged first, like a fault's; what is cold leaves for the other devices meanwhile.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use userswap_core::device::{Device, PAGE_SIZE};
use userswap_core::entry::MAX_AREAS;
use userswap_core::space::SpaceError;
use userswap_core::{FaultError, SwapArea};
use userswap_sys::signals::Blocked;

use crate::Error;
use crate::engine::{Engine, check_size, make_device};
use crate::shared::{RegionMemory, Shared};
use crate::spec::DeviceSpec;
use crate::watch;

/// How often room is looked for before there is said to be none: other threads may have taken what was found.
const ROOM_TRIES: u32 = 8;

/// A device of an engine, as long as it is swapped on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SwapDevice {
    area: usize,
}

/// What there is to know of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Which it is.
    pub device: SwapDevice,
    /// Its name, as messages say it.
    pub name: String,
    /// Pages go to the device of the highest priority that has room; among equals to the one that came first.
    pub priority: i32,
    /// Bytes of pages it has room for.
    pub size_bytes: u64,
    /// Bytes of pages it holds.
    pub used_bytes: u64,
    /// It takes no pages any more: swapoff is at work.
    pub draining: bool,
}

/// How far a swapoff is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwapoffProgress {
    /// Bytes of pages that were in the device when it began.
    pub total_bytes: u64,
    /// Bytes of pages that are in it now.
    pub left_bytes: u64,
}

/// Where pages that come back may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// Into memory, whatever the limit says.
    Any,
    /// Into memory within the limit.
    WithinLimit,
}

/// An area that hands out no slots; it does again when this is dropped, also by a panic of who is told of the progress.
struct Stopped<'a> {
    shared: &'a Shared,
    area: &'a SwapArea,
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        let _blocked = Blocked::new();
        self.shared.swap.abort_swapoff(self.area);
    }
}

impl Engine {
    /// swapon: another device, for `bytes` of pages, a multiple of 4096. The first one, of [`Engine::builder`], has priority
    /// 0.
    ///
    /// # Errors
    /// A size that makes no sense, a device that cannot be made, or more devices than an engine can have in its life.
    pub fn swapon(
        &self,
        device: &DeviceSpec,
        bytes: u64,
        priority: i32,
    ) -> Result<SwapDevice, Error> {
        check_size("a swap area", bytes)?;
        let limited = self.owner.shared.budget.limit().is_some();
        self.swapon_custom(make_device(device, bytes, limited)?, priority)
    }

    /// swapon of a device of the caller's own.
    ///
    /// # Errors
    /// More devices than an engine can have in its life.
    pub fn swapon_custom(
        &self,
        device: Box<dyn Device>,
        priority: i32,
    ) -> Result<SwapDevice, Error> {
        let _blocked = Blocked::new();
        let device = self.owner.shared.swapon(device, priority)?;
        let mut thread = watch::lock(&self.owner.watch);
        if thread.is_none() {
            *thread = watch::start(&self.owner.shared)?;
        }
        Ok(device)
    }

    /// The devices there are, in the order in which they came.
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceStatus> {
        let swap = &self.owner.shared.swap;
        let status = |area: &SwapArea| DeviceStatus {
            device: SwapDevice {
                area: area.number(),
            },
            name: area.device().name().to_owned(),
            priority: area.priority(),
            size_bytes: bytes(area.slots()),
            used_bytes: bytes(area.used()),
            draining: !swap.is_open(area),
        };
        swap.open_areas().map(status).collect()
    }

    /// swapoff of one device: its pages come back into memory and, where a limit is set, leave for the other devices as
    /// far as they are cold. The engine's regions can be used meanwhile. When this returns the device is closed.
    ///
    /// `progress` is told after each piece of work how far it is, in this thread, and may use regions, but not begin
    /// another swapoff; it can break it off.
    ///
    /// # Errors
    /// There is no room for the pages, one of them cannot be read, or `progress` broke it off: the device then stays
    /// in use, with what is left in it, and nothing is lost.
    pub fn swapoff_device(
        &self,
        device: SwapDevice,
        mut progress: impl FnMut(SwapoffProgress) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let shared = &*self.owner.shared;
        let _turn = shared.swapoff_turn();
        let mut open = shared.swap.open_areas();
        let area = open
            .find(|area| area.number() == device.area)
            .ok_or(Error::NoSuchDevice)?;
        let total = area.used();
        shared.check_room_beside(area)?;
        shared.swap.begin_swapoff(area);
        shared.drain(area, Room::WithinLimit, |left| {
            progress(SwapoffProgress {
                total_bytes: bytes(total.max(left)),
                left_bytes: bytes(left),
            })
        })
    }

    /// Brings everything back into memory and closes every device. The engine's regions go on working;
    /// nothing is swapped out any more, until there is another [`Engine::swapon`].
    ///
    /// # Errors
    /// It does not fit within the limit, or a page cannot be read: then the device with the page stays in use, and
    /// nothing is lost.
    pub fn swapoff(&self) -> Result<(), Error> {
        let shared = &*self.owner.shared;
        let _turn = shared.swapoff_turn();
        shared.check_memory_for_all()?;
        let areas: Vec<&SwapArea> = shared.swap.open_areas().collect();
        // All of them first: what comes back from one shall not go to the next.
        for area in &areas {
            shared.swap.begin_swapoff(area);
        }
        let drain = |area: &&SwapArea| shared.drain(area, Room::Any, |_| ControlFlow::Continue(()));
        let result = areas.iter().try_for_each(drain);
        if result.is_err() {
            for area in shared.swap.open_areas() {
                shared.swap.abort_swapoff(area);
            }
        }
        result
    }
}

impl Shared {
    fn swapon(&self, device: Box<dyn Device>, priority: i32) -> Result<SwapDevice, Error> {
        if let Some(limit) = self.budget.limit() {
            device.note_limit(limit);
        }
        device.prefer_small(self.density.is_small());
        let area = self
            .swap
            .add_area_at(device, priority)
            .ok_or(Error::TooManyDevices(MAX_AREAS))?;
        // What found no room before may leave now; should it not, that is news again. Relaxed: hints.
        self.warned_area_full.store(false, Ordering::Relaxed);
        self.warned_write.store(false, Ordering::Relaxed);
        self.reclaimer.ring();
        Ok(SwapDevice {
            area: area.number(),
        })
    }

    /// One at a time: a second call must not return before the first has come to an end.
    fn swapoff_turn(&self) -> MutexGuard<'_, ()> {
        self.swapoff.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what cannot fit into memory however it is done.
    fn check_memory_for_all(&self) -> Result<(), Error> {
        let Some(limit) = self.budget.limit() else {
            return Ok(());
        };
        let _blocked = Blocked::new();
        // Not by slots: a slot that regions share becomes a page of each.
        let swapped: u64 = self
            .regions()
            .iter()
            .map(|region| region.swapped_pages())
            .sum();
        let needed = bytes(self.budget.resident_pages() + swapped) + self.fixed_bytes();
        if needed > limit {
            return Err(Error::SwapoffLimit { needed, limit });
        }
        Ok(())
    }

    /// Refuses what the other devices have too few slots for, and memory too little room.
    fn check_room_beside(&self, area: &SwapArea) -> Result<(), Error> {
        let Some(limit) = self.budget.limit() else {
            return Ok(());
        };
        let _blocked = Blocked::new();
        let others = self.swap.open_areas();
        let free: u64 = others
            .filter(|other| other.number() != area.number() && self.swap.is_open(other))
            .map(|other| other.slots().saturating_sub(other.used()))
            .sum();
        // Staged pages are in memory already.
        let used = self
            .used_bytes()
            .saturating_sub(self.swap.frames().staged_bytes());
        if bytes(area.used()) > bytes(free).saturating_add(limit.saturating_sub(used)) {
            return Err(self.no_room(area));
        }
        Ok(())
    }

    fn no_room(&self, area: &SwapArea) -> Error {
        Error::SwapoffNoRoom {
            device: area.device().name().to_owned(),
            left: bytes(area.used()),
            limit: self.budget.limit().unwrap_or(u64::MAX),
        }
    }

    /// Empties `area`, which hands out no slots any more, and closes it; or opens it again.
    fn drain(
        &self,
        area: &SwapArea,
        room: Room,
        tell: impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let stopped = Stopped { shared: self, area };
        self.bring_all_back(area, room, tell)?;
        std::mem::forget(stopped);
        let _blocked = Blocked::new();
        let _inside = self.moving.enter();
        self.swap.end_swapoff(area);
        Ok(())
    }

    fn bring_all_back(
        &self,
        area: &SwapArea,
        room: Room,
        mut tell: impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut told = |area: &SwapArea| match tell(area.used()) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::SwapoffStopped {
                device: area.device().name().to_owned(),
                left: bytes(area.used()),
            }),
        };
        // Slots may still be on their way into a PTE, and staged pages hold theirs: on until none is used.
        while area.used() > 0 {
            let numbers: Vec<u64> = {
                let _blocked = Blocked::new();
                self.regions().iter().map(|region| region.number).collect()
            };
            for number in numbers {
                let mut chunk = 0;
                while let Some(next) = self.bring_next_back(number, chunk, area, room)? {
                    chunk = next;
                    told(area)?;
                }
            }
            {
                let _blocked = Blocked::new();
                let _inside = self.moving.enter();
                self.write_out_all();
            }
            told(area)?;
            // What is left is on its way in another thread.
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Brings back the next chunk of a region, from `chunk` on, that has pages in `area`. Returns the chunk after it;
    /// nothing when there is none, or the region is gone.
    fn bring_next_back(
        &self,
        number: u64,
        chunk: usize,
        area: &SwapArea,
        room: Room,
    ) -> Result<Option<usize>, Error> {
        let _blocked = Blocked::new();
        let _inside = self.moving.enter();
        let found = {
            let regions = self.regions();
            let found = regions.iter().find(|region| region.number == number);
            found.map(Arc::clone)
        };
        let Some(region) = found else { return Ok(None) };
        // Holds off the region's end while pages are brought into it.
        let Some(_held) = region.gate.enter() else {
            return Ok(None);
        };
        let has_some = |&chunk: &usize| self.swap.count_in(&region.mm, chunk, area) > 0;
        let Some(chunk) = (chunk..region.mm.table.chunks()).find(has_some) else {
            return Ok(None);
        };
        self.bring_chunk_back(&region, chunk, area, room)?;
        Ok(Some(chunk + 1))
    }

    fn bring_chunk_back(
        &self,
        region: &RegionMemory,
        chunk: usize,
        area: &SwapArea,
        room: Room,
    ) -> Result<(), Error> {
        // Counted before they are mapped: they can be dropped, and uncounted, as soon as they are.
        let counted = self.swap.count_in(&region.mm, chunk, area) as u64;
        if !self.charge_for_swapoff(counted, room) {
            return Err(self.no_room(area));
        }
        let result = self.swap.unuse_chunk(&region.mm, chunk, area);
        let (Ok(brought) | Err((brought, ..))) = result;
        let brought = brought as u64;
        self.budget.force(brought.saturating_sub(counted));
        self.budget.uncharge(counted.saturating_sub(brought));
        match result {
            // The system is changing the mapping: the next turn finds what is left.
            Ok(_) | Err((_, _, FaultError::Space(SpaceError::Again))) => Ok(()),
            Err((_, page, error)) => Err(Error::Fault {
                offset: page * PAGE_SIZE,
                error,
            }),
        }
    }

    /// Counts `pages` as mapped; `false`: there is no room for them.
    fn charge_for_swapoff(&self, pages: u64, room: Room) -> bool {
        if room == Room::Any || self.budget.limit().is_none() {
            self.budget.force(pages);
            return true;
        }
        for attempt in 0..ROOM_TRIES {
            if self.budget.charge(pages, self.other_bytes()) {
                return true;
            }
            self.reclaimer.ring();
            if self.find_room(pages) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(u64::from(attempt)));
        }
        false
    }
}

fn bytes(pages: u64) -> u64 {
    pages * PAGE_SIZE as u64
}
