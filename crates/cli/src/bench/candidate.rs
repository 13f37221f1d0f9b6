//! What is measured: a way of the engine, or the kernel: its zram with a compressor, or its swap on the same storage.

use std::sync::Arc;

use anyhow::{Context, ensure};
use userswap::{DeviceSpec, FaultAround, Way};

use crate::args::{Common, way_name};
use crate::kernel_swap::{self, KernelSwap, Storage};
use crate::kernel_zram::{self, Algorithm, KernelZram};
use crate::memory::{EngineSetup, Memory, must_fit, must_fit_area};

/// One of those that are compared.
#[derive(Clone, Debug)]
pub(super) enum Candidate {
    Engine {
        setup: EngineSetup,
        /// Where it swaps to, if the kernel swaps there, too.
        storage: Option<Arc<Storage>>,
    },
    KernelZram {
        algorithm: Algorithm,
        area: u64,
    },
    KernelSwap(Arc<Storage>),
}

/// In place of a way.
const KERNEL: &str = "kernel";

/// The fields that name a candidate in every record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(super) struct Name {
    pub(super) engine: &'static str,
    pub(super) way: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) algorithm: Option<Algorithm>,
}

impl Name {
    /// For people.
    pub(super) fn short(&self) -> String {
        match self.algorithm {
            Some(algorithm) => format!("{} {}", self.way, algorithm.name()),
            None => self.way.to_owned(),
        }
    }

    pub(super) fn is_way(&self, way: Way) -> bool {
        self.way == way_name(way)
    }

    pub(super) fn is_kernel(&self) -> bool {
        self.way == KERNEL
    }
}

/// All candidates in the order in which each repeat measures them, after checking that they can be measured here.
pub(super) fn candidates(
    common: &Common,
    size: u64,
    ways: &[Way],
    fault_around: FaultAround,
) -> anyhow::Result<Vec<Candidate>> {
    must_fit_area(size, common.area)?;
    must_fit(size)?;
    ensure!(
        common.kernel || !ways.is_empty(),
        "--way none leaves only the kernel to measure; add --kernel"
    );
    let mut device = common.device.clone();
    let mut storage = None;
    if let (true, Some(file)) = (common.kernel, device.file_mut()) {
        let made = Storage::like(file, size).context(IMPOSSIBLE)?;
        *file = made.for_engine(file);
        storage = Some(Arc::new(made));
    }
    let engine = |&way: &Way| Candidate::Engine {
        setup: EngineSetup {
            device: device.clone(),
            area: common.area,
            way,
            faults: common.faults.into(),
            fault_around,
            limit: None,
        },
        storage: storage.clone(),
    };
    let mut all: Vec<Candidate> = ways.iter().map(engine).collect();
    // Whatever the host refuses is said now, not when the engine has been measured.
    if let Some(storage) = storage {
        drop(KernelSwap::set_up(&storage, size).context(IMPOSSIBLE)?);
        all.push(Candidate::KernelSwap(storage));
        kernel_zram::note_other_swap()?;
    } else if common.kernel {
        for &algorithm in &common.kernel_algo {
            let zram = KernelZram::set_up(algorithm, kernel_area(common.area));
            drop(zram.context(IMPOSSIBLE)?);
            all.push(Candidate::KernelZram {
                algorithm,
                area: common.area,
            });
        }
        kernel_zram::note_other_swap()?;
    }
    Ok(all)
}

const IMPOSSIBLE: &str = "--kernel is not possible here: leave it out";

/// The kernel's area has a header page that holds no data.
fn kernel_area(area: u64) -> u64 {
    area + crate::size::PAGE as u64
}

impl Candidate {
    pub(super) fn name(&self) -> Name {
        let (engine, way, algorithm) = match self {
            Self::Engine { setup, .. } => ("userswap", way_name(setup.way), None),
            Self::KernelZram { algorithm, .. } => ("kernel-zram", KERNEL, Some(*algorithm)),
            Self::KernelSwap(_) => ("kernel-swap", KERNEL, None),
        };
        Name {
            engine,
            way,
            algorithm,
        }
    }

    /// Whether pages go to a file or block device.
    pub(super) fn has_storage(&self) -> bool {
        match self {
            Self::Engine { setup, .. } => setup.device.clone().file_mut().is_some(),
            Self::KernelZram { .. } => false,
            Self::KernelSwap(_) => true,
        }
    }

    /// Has the engine, where it has a file below compressed memory, keep a limit of `bytes`: without one nothing goes below.
    pub(super) fn limit_tiers(&mut self, bytes: u64) {
        if let Self::Engine { setup, .. } = self
            && matches!(setup.device, DeviceSpec::Tiered(..))
        {
            setup.limit = Some(bytes);
        }
    }

    /// Memory of `len` bytes that this candidate swaps.
    pub(super) fn open(&self, len: usize) -> anyhow::Result<Subject> {
        let (memory, kernel, storage) = match self {
            Self::Engine { setup, storage } => (Memory::engine(setup, len)?, None, storage.clone()),
            &Self::KernelZram { algorithm, area } => {
                let zram = KernelZram::set_up(algorithm, kernel_area(area))?;
                (Memory::kernel(len)?, Some(Kernel::Zram(zram)), None)
            }
            Self::KernelSwap(storage) => {
                let swap = KernelSwap::set_up(storage, len as u64)?;
                let memory = Memory::kernel_on_storage(len)?;
                (memory, Some(Kernel::Swap(swap)), Some(storage.clone()))
            }
        };
        let mut subject = Subject {
            memory,
            kernel,
            storage,
            written_before: 0,
        };
        subject.written_before = subject.written_bytes()?;
        Ok(subject)
    }
}

/// What the kernel swaps to.
enum Kernel {
    Zram(KernelZram),
    Swap(#[expect(dead_code, reason = "swap is on while it lives")] KernelSwap),
}

/// Memory under measurement and what swaps it.
pub(super) struct Subject {
    // The memory first: unmapped, it leaves nothing that swapoff would have to bring back.
    pub(super) memory: Memory,
    kernel: Option<Kernel>,
    storage: Option<Arc<Storage>>,
    /// What storage had been told to write when this was opened.
    written_before: u64,
}

/// What the swapped pages take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) stored_bytes: u64,
    pub(super) overhead_bytes: u64,
    /// Bytes that were written to storage.
    pub(super) written_bytes: u64,
}

impl Subject {
    pub(super) fn usage(&self) -> anyhow::Result<Usage> {
        let (stored_bytes, taken) = match (&self.kernel, self.memory.stats()) {
            (Some(Kernel::Zram(zram)), _) => {
                let usage = zram.usage()?;
                (usage.stored_bytes, usage.memory_bytes)
            }
            (None, Some(stats)) => (
                stats.stored_bytes,
                stats.store_memory_bytes + stats.overhead_bytes,
            ),
            // What the kernel's tables take it does not tell.
            _ => (0, 0),
        };
        Ok(Usage {
            stored_bytes,
            overhead_bytes: taken.saturating_sub(stored_bytes),
            written_bytes: self.written_bytes()? - self.written_before,
        })
    }

    /// Bytes written to storage so far: as the block device counts them where nobody else uses it.
    fn written_bytes(&self) -> anyhow::Result<u64> {
        let storage = self.storage.as_ref();
        if let Some(written) = storage.map_or(Ok(None), |storage| storage.written_bytes())? {
            return Ok(written);
        }
        match (&self.kernel, self.memory.stats()) {
            (Some(Kernel::Swap(_)), _) => kernel_swap::swapped_out_bytes(),
            (_, stats) => Ok(stats.map_or(0, |stats| stats.file_written_bytes)),
        }
    }
}
