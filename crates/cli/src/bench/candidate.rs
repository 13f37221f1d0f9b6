//! What is measured: a way of the engine, or the kernel with a compressor.

use anyhow::{Context, ensure};
use userswap::{FaultAround, Way};

use crate::args::{Common, way_name};
use crate::kernel_zram::{self, Algorithm, KernelZram};
use crate::memory::{EngineSetup, Memory, must_fit, must_fit_area};

/// One of those that are compared.
#[derive(Clone, Debug)]
pub(super) enum Candidate {
    Engine(EngineSetup),
    Kernel { algorithm: Algorithm, area: u64 },
}

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
        self.algorithm.is_some()
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
    let engine = |&way: &Way| {
        Candidate::Engine(EngineSetup {
            device: common.device.clone(),
            area: common.area,
            way,
            faults: common.faults.into(),
            fault_around,
        })
    };
    let mut all: Vec<Candidate> = ways.iter().map(engine).collect();
    if common.kernel {
        for &algorithm in &common.kernel_algo {
            // Whatever the host refuses is said now, not when the engine has been measured.
            let zram = KernelZram::set_up(algorithm, kernel_area(common.area));
            drop(zram.context("--kernel is not possible here: leave it out")?);
            all.push(Candidate::Kernel {
                algorithm,
                area: common.area,
            });
        }
        kernel_zram::note_other_swap()?;
    }
    Ok(all)
}

/// The kernel's area has a header page that holds no data.
fn kernel_area(area: u64) -> u64 {
    area + crate::size::PAGE as u64
}

impl Candidate {
    pub(super) fn name(&self) -> Name {
        match self {
            Candidate::Engine(setup) => Name {
                engine: "userswap",
                way: way_name(setup.way),
                algorithm: None,
            },
            Candidate::Kernel { algorithm, .. } => Name {
                engine: "kernel-zram",
                way: "kernel",
                algorithm: Some(*algorithm),
            },
        }
    }

    /// Memory of `len` bytes that this candidate swaps.
    pub(super) fn open(&self, len: usize) -> anyhow::Result<Subject> {
        Ok(match self {
            Candidate::Engine(setup) => Subject {
                memory: Memory::engine(setup, len)?,
                zram: None,
            },
            &Candidate::Kernel { algorithm, area } => {
                let zram = KernelZram::set_up(algorithm, kernel_area(area))?;
                Subject {
                    memory: Memory::kernel(len)?,
                    zram: Some(zram),
                }
            }
        })
    }
}

/// Memory under measurement and what swaps it.
pub(super) struct Subject {
    // The memory first: unmapped, it leaves nothing that swapoff would have to bring back.
    pub(super) memory: Memory,
    zram: Option<KernelZram>,
}

/// What the swapped pages take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) stored_bytes: u64,
    pub(super) overhead_bytes: u64,
}

impl Subject {
    pub(super) fn usage(&self) -> anyhow::Result<Usage> {
        let (stored_bytes, taken) = match (&self.zram, self.memory.stats()) {
            (Some(zram), _) => {
                let usage = zram.usage()?;
                (usage.stored_bytes, usage.memory_bytes)
            }
            (None, Some(stats)) => (
                stats.stored_bytes,
                stats.store_memory_bytes + stats.overhead_bytes,
            ),
            (None, None) => (0, 0),
        };
        Ok(Usage {
            stored_bytes,
            overhead_bytes: taken.saturating_sub(stored_bytes),
        })
    }
}
