//! The memory that is swapped: a region of the engine, or a plain mapping that the kernel swaps.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use userswap::{Advice, DeviceSpec, Engine, FaultAround, FaultMode, Region, Stats, Way};
use userswap_sys::host;
use userswap_sys::mapping::{self, Mapping};

use crate::interrupt;
use crate::os;
use crate::size::{PAGE, human, rounded};

/// How to build an engine.
#[derive(Clone, Debug)]
pub(crate) struct EngineSetup {
    pub(crate) device: DeviceSpec,
    pub(crate) area: u64,
    pub(crate) way: Way,
    pub(crate) faults: FaultMode,
    pub(crate) fault_around: FaultAround,
    pub(crate) limit: Option<u64>,
}

/// Swappable memory.
///
/// Shared access goes through atomics only ([`Memory::word`], [`Memory::touch`]); plain bytes need `&mut`
/// ([`Memory::bytes`]). So no reference to plain bytes ever meets another thread's access.
pub(crate) struct Memory {
    backing: Backing,
}

enum Backing {
    // The region before its engine: fields are dropped in this order.
    Engine { region: Region, engine: Engine },
    Kernel { mapping: Mapping, keeps: bool },
}

impl Memory {
    /// A region of a new engine.
    pub(crate) fn engine(setup: &EngineSetup, len: usize) -> anyhow::Result<Self> {
        let mut builder = Engine::builder()
            .device(setup.device.clone())
            .area(setup.area)
            .way(setup.way)
            .faults(setup.faults)
            .fault_around(setup.fault_around);
        if let Some(limit) = setup.limit {
            builder = builder.limit(limit);
        }
        let engine = builder.build()?;
        let region = engine.region(len)?;
        Ok(Self {
            backing: Backing::Engine { region, engine },
        })
    }

    /// Plain anonymous memory in base pages, which the kernel swaps to its zram.
    pub(crate) fn kernel(len: usize) -> anyhow::Result<Self> {
        Self::swapped_by_kernel(len, false)
    }

    /// The same, swapped to storage that answers later.
    pub(crate) fn kernel_on_storage(len: usize) -> anyhow::Result<Self> {
        Self::swapped_by_kernel(len, true)
    }

    fn swapped_by_kernel(len: usize, keeps: bool) -> anyhow::Result<Self> {
        let mapping = Mapping::reserve(len, PAGE)?;
        // A huge page would go out and come in as one: not what is compared here.
        mapping.advise_no_huge()?;
        Ok(Self {
            backing: Backing::Kernel { mapping, keeps },
        })
    }

    /// The engine's figures; none for kernel memory.
    pub(crate) fn stats(&self) -> Option<Stats> {
        match &self.backing {
            Backing::Engine { engine, .. } => Some(engine.stats()),
            Backing::Kernel { .. } => None,
        }
    }

    /// The engine, if it is one that swaps.
    pub(crate) fn swap_engine(&self) -> Option<&Engine> {
        match &self.backing {
            Backing::Engine { engine, .. } => Some(engine),
            Backing::Kernel { .. } => None,
        }
    }

    /// How the engine takes faults; none for kernel memory.
    pub(crate) fn fault_mode(&self) -> Option<FaultMode> {
        match &self.backing {
            Backing::Engine { engine, .. } => Some(engine.fault_mode()),
            Backing::Kernel { .. } => None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        match &self.backing {
            Backing::Engine { region, .. } => region.len(),
            Backing::Kernel { mapping, .. } => mapping.len(),
        }
    }

    pub(crate) fn pages(&self) -> usize {
        self.len() / PAGE
    }

    /// Word `index` (of 64 bits) of page `page`.
    pub(crate) fn word(&self, page: usize, index: usize) -> &AtomicU64 {
        assert!(
            page < self.pages() && index < PAGE / 8,
            "word {index} of page {page} is outside"
        );
        // SAFETY: inside the memory (checked above), which lives as long as `self`; aligned, since pages are and
        // words are counted in words; plain references need `&mut self`, so all shared access is atomic.
        unsafe { AtomicU64::from_ptr(self.base().add(page * PAGE).cast::<u64>().add(index)) }
    }

    /// Reads one byte of page `page`, so that it must be in memory.
    #[inline]
    pub(crate) fn touch(&self, page: usize) -> u8 {
        assert!(page < self.pages(), "page {page} is outside");
        // SAFETY: as in `word`; a byte needs no alignment.
        let byte = unsafe { AtomicU8::from_ptr(self.base().add(page * PAGE)) };
        std::hint::black_box(byte.load(Ordering::Relaxed))
    }

    /// The plain bytes, for filling and checking by one thread.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        match &mut self.backing {
            Backing::Engine { region, .. } => region,
            // SAFETY: the mapping is readable, writable and zero-filled over its whole length and is unmapped only when
            // dropped; `&mut self` excludes every other access for as long as the slice lives.
            Backing::Kernel { mapping, .. } => unsafe {
                std::slice::from_raw_parts_mut(mapping.as_ptr(), mapping.len())
            },
        }
    }

    /// Asks for `range` (bytes, whole pages) to be swapped out. Some pages may stay: see [`Memory::resident_pages`].
    pub(crate) fn page_out(&self, range: Range<usize>) -> anyhow::Result<()> {
        match &self.backing {
            Backing::Engine { region, .. } => {
                region.advise(range, Advice::PageOut)?;
            }
            Backing::Kernel { mapping, .. } => {
                assert!(
                    range.start <= range.end && range.end <= mapping.len(),
                    "{range:?} is outside"
                );
                let addr = mapping.as_ptr().wrapping_add(range.start);
                os::page_out(addr, range.len()).context("madvise(MADV_PAGEOUT) was refused")?;
            }
        }
        Ok(())
    }

    /// Drops the contents of `range` (bytes, whole pages): it reads as zeros then.
    pub(crate) fn discard(&self, range: Range<usize>) -> anyhow::Result<()> {
        match &self.backing {
            Backing::Engine { region, .. } => {
                // SAFETY: a reference to plain bytes needs `&mut self` (see `Memory`), so nobody has one.
                unsafe { region.discard_shared(range) }?;
            }
            Backing::Kernel { mapping, .. } => mapping.discard(range)?,
        }
        Ok(())
    }

    /// Makes the kernel let go of pages that it has paged out to storage and still keeps, because they were being written
    /// when it was asked. It does when they are asked for again, for which something has to map them.
    pub(crate) fn let_go(&self) -> anyhow::Result<()> {
        /// Tries in a row that gain nothing.
        const TRIES: usize = 10;
        if !matches!(self.backing, Backing::Kernel { keeps: true, .. }) {
            return Ok(());
        }
        let (mut least, mut tries) = (usize::MAX, 0);
        while tries < TRIES {
            let mut kept = 0;
            for first in (0..self.pages()).step_by(64) {
                interrupt::check()?;
                let pages = (self.pages() - first).min(64);
                let at = self.base() as usize + first * PAGE;
                let mut present = mapping::present_mask(at, pages).context("memory is mapped")?;
                if present == 0 {
                    continue;
                }
                while present != 0 {
                    self.touch(first + present.trailing_zeros() as usize);
                    present &= present - 1;
                    kept += 1;
                }
                self.page_out(first * PAGE..(first + pages) * PAGE)?;
            }
            if kept == 0 {
                break;
            }
            tries = if kept < least { 0 } else { tries + 1 };
            least = least.min(kept);
            std::thread::sleep(Duration::from_millis(20));
            // A CPU keeps the last few pages it had to do with, until it is asked to page something out.
            on_each_cpu(|| self.page_out(0..PAGE))?;
        }
        Ok(())
    }

    /// How many pages are in memory now.
    pub(crate) fn resident_pages(&self) -> anyhow::Result<usize> {
        Ok(mapping::resident_pages(self.base() as usize, self.len())?)
    }

    fn base(&self) -> *mut u8 {
        match &self.backing {
            Backing::Engine { region, .. } => region.as_mut_ptr(),
            Backing::Kernel { mapping, .. } => mapping.as_ptr(),
        }
    }
}

/// Does `work` once on each CPU that this thread may run on, in a thread of its own: this one stays where it is.
fn on_each_cpu(work: impl Fn() -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
    let all = sched_getaffinity(None).context("cannot ask for CPUs")?;
    let visit = || {
        for cpu in (0..CpuSet::MAX_CPU).filter(|&cpu| all.is_set(cpu)) {
            let mut one = CpuSet::new();
            one.set(cpu);
            // One that went away has nothing left.
            if sched_setaffinity(None, &one).is_ok() {
                work()?;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| scope.spawn(visit).join().expect("a visit does not panic"))
}

/// Refuses a `size` of memory that this host cannot hold in full, as it must be while it is filled.
pub(crate) fn must_fit(size: u64) -> anyhow::Result<()> {
    must_fit_with(size, 0)
}

/// The same, with a block device in memory of `disk` bytes.
pub(crate) fn must_fit_with(size: u64, disk: u64) -> anyhow::Result<()> {
    let takes = match disk {
        0 => String::new(),
        _ => format!(
            ", which takes {} with a block device in memory,",
            rounded(size + disk)
        ),
    };
    let machine = host::memory().ok().map(|memory| memory.available);
    let cgroups = host::cgroup_memory().ok().flatten();
    let cgroup = cgroups
        .as_ref()
        .and_then(|cgroups| cgroups.fullest()?.headroom());
    for (available, whose) in [
        (machine, "this host"),
        (cgroup, "this process's memory cgroup"),
    ] {
        if let Some(available) = available.filter(|&available| available < size + disk) {
            anyhow::bail!(
                "--size {}{takes} does not fit into the {} of memory that {whose} has left; use a smaller --size",
                human(size),
                rounded(available)
            );
        }
    }
    Ok(())
}

/// Refuses more memory than the swap area can hold.
pub(crate) fn must_fit_area(size: u64, area: u64) -> anyhow::Result<()> {
    anyhow::ensure!(
        size <= area,
        "--size {} is larger than --area {}: the area must hold every page; raise --area or lower --size",
        human(size),
        human(area)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_memory_reads_back_what_is_written() {
        let mut memory = Memory::kernel(4 * PAGE).expect("mapping");
        memory.bytes()[2 * PAGE] = 7;
        assert_eq!(memory.touch(2), 7);
        memory.word(3, 1).store(99, Ordering::Relaxed);
        assert_eq!(memory.bytes()[3 * PAGE + 8], 99);
        assert_eq!(
            (memory.pages(), memory.resident_pages().expect("residency")),
            (4, 2)
        );
        assert!(memory.stats().is_none() && memory.fault_mode().is_none());
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn touching_outside_is_refused() {
        Memory::kernel(PAGE).expect("mapping").touch(1);
    }

    #[test]
    fn sizes_that_cannot_fit_are_refused() {
        assert!(must_fit(1 << 20).is_ok());
        assert!(must_fit(1 << 60).is_err());
        let said = must_fit_with(1 << 20, 1 << 60)
            .expect_err("too large")
            .to_string();
        assert!(
            said.starts_with("--size 1M, which takes ") && said.contains(" does not fit into the "),
            "{said}"
        );
        assert!(must_fit_area(4096, 4096).is_ok());
        let said = must_fit_area(64 << 20, 32 << 20)
            .expect_err("too large")
            .to_string();
        assert!(
            said.contains("--size 64M is larger than --area 32M"),
            "{said}"
        );
    }
}
