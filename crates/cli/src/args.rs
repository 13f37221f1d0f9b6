//! The command line.

use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use userswap::{DeviceSpec, FaultAround, FaultMode, Way};

use crate::content::Kind;
use crate::kernel_zram::Algorithm;
use crate::size::{self, parse_duration, parse_size};

const AFTER_HELP: &str = "\
SIZE takes K, M, G (powers of 1024); DUR takes ns, us, ms, s; DEV is zram, zram:lz4, zram:zstd, ram, file:PATH or zram,file:PATH.
PATH is a folder, where a file without a name is made, or, with overwrite=on, a file or block device; options follow it:
encrypt=off, size=SIZE, overwrite=on, io_uring=off, timeout=SECONDS (until a device that does not answer is said to hang).
Exit status: 0 good, 1 data lost or a check failed, 2 bad arguments or not possible on this host,
128+N stopped by signal N.";

/// User-space swap for Linux: run programs under a memory limit, show that it is right, measure it, see what works on this host.
#[derive(Debug, Parser)]
#[command(name = "userswap", version, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program under a memory limit: what is cold in its memory is compressed
    Run(RunArgs),
    /// Hunt for lost updates: many threads add to every page while everything is paged out without pause
    Stress(StressArgs),
    /// Try every order of the protocol's steps: shortest schedules that lose data, or that there are none
    Race(RaceArgs),
    /// Measure swap-in and swap-out, beside the kernel's where asked
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Say what works on this host, what does not, and what to do about it
    Doctor(DoctorArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Throughput: all pages out, then all pages in, for each way in turn
    Swapin(SwapinArgs),
    /// Latency of threads that fault on the same pages in lockstep
    Contend(ContendArgs),
    /// Latency of single faults in random order, and the floor that this host sets
    Fault(FaultArgs),
    /// Real programs: natively, under `userswap run`, and in a memory cgroup with the kernel's zram
    Run(BenchRunArgs),
}

/// The ways in, as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WayArg {
    /// Past the swap cache, the entry pinned
    Direct,
    /// Through the swap cache
    Cached,
    /// Past the swap cache without a pin: loses data, to show that it does
    Unpinned,
}

impl From<WayArg> for Way {
    fn from(way: WayArg) -> Self {
        match way {
            WayArg::Direct => Way::Direct,
            WayArg::Cached => Way::Cached,
            WayArg::Unpinned => Way::Unpinned,
        }
    }
}

/// The ways in that a benchmark takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Ways {
    /// The three below
    All,
    /// Past the swap cache, the entry pinned
    Direct,
    /// Through the swap cache
    Cached,
    /// Past the swap cache without a pin
    Unpinned,
    /// No way of the engine: the kernel alone
    None,
}

impl Ways {
    /// In the order in which they are measured.
    pub(crate) fn list(self) -> Vec<Way> {
        match self {
            Ways::All => vec![Way::Unpinned, Way::Direct, Way::Cached],
            Ways::Direct => vec![Way::Direct],
            Ways::Cached => vec![Way::Cached],
            Ways::Unpinned => vec![Way::Unpinned],
            Ways::None => Vec::new(),
        }
    }
}

/// The name of a way, as it is typed and printed.
pub(crate) fn way_name(way: Way) -> &'static str {
    match way {
        Way::Direct => "direct",
        Way::Cached => "cached",
        Way::Unpinned => "unpinned",
    }
}

/// How faults reach the engine, as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FaultsArg {
    /// In the faulting thread, and in handler threads from where a program needs them on
    Auto,
    /// In the faulting thread, by SIGBUS
    Inline,
    /// In handler threads
    Thread,
}

impl FaultsArg {
    /// As it is typed.
    pub(crate) fn name(self) -> &'static str {
        fault_mode_name(self.into())
    }
}

impl From<FaultsArg> for FaultMode {
    fn from(faults: FaultsArg) -> Self {
        match faults {
            FaultsArg::Auto => FaultMode::Auto,
            FaultsArg::Inline => FaultMode::Inline,
            FaultsArg::Thread => FaultMode::Thread,
        }
    }
}

/// The name of a fault mode, as it is typed and printed.
pub(crate) fn fault_mode_name(mode: FaultMode) -> &'static str {
    match mode {
        FaultMode::Auto => "auto",
        FaultMode::Inline => "inline",
        FaultMode::Thread => "thread",
    }
}

/// What is stressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Target {
    /// This engine
    Engine,
    /// Plain memory and whatever swap the host has
    Kernel,
}

/// The order in which pages are touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Order {
    /// Ascending
    Seq,
    /// A random permutation of the whole region
    Random,
}

/// A memory limit, as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LimitArg {
    /// What the cgroup allows, less a tenth
    Auto,
    /// Bytes
    Bytes(u64),
}

fn parse_limit(text: &str) -> Result<LimitArg, String> {
    match text {
        "auto" => Ok(LimitArg::Auto),
        size => size::parse_limit(size).map(LimitArg::Bytes),
    }
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The most memory that the program and all it starts may have together, compressed memory included; auto: what
    /// the cgroup allows, less a tenth
    #[arg(long, value_name = "SIZE|auto", default_value = "auto", value_parser = parse_limit)]
    pub(crate) limit: LimitArg,
    /// Where pages go
    #[arg(long, value_name = "DEV", default_value = "zram", value_parser = parse_device)]
    pub(crate) device: DeviceSpec,
    /// Let pages that are old, do not fit or do not compress go to a file in this folder, encrypted, which is gone when the
    /// program is: short for --device zram,file:FOLDER
    #[arg(long, value_name = "FOLDER")]
    pub(crate) spill: Option<std::path::PathBuf>,
    /// How faults are handled: auto is inline, and thread for a program that inline cannot follow, where the host permits it
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) faults: FaultsArg,
    /// Write statistics here: one JSON object for each process that ends
    #[arg(long, value_name = "FILE")]
    pub(crate) stats: Option<std::path::PathBuf>,
    /// Kill the program, with a message, rather than let it go over the limit
    #[arg(long)]
    pub(crate) strict: bool,
    /// Say at the end what was done, on one line
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Keep nothing for later runs. Else what was found in libraries is kept in $XDG_CACHE_HOME/userswap, or ~/.cache/userswap
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct StressArgs {
    /// The way in
    #[arg(long, value_enum, default_value = "direct")]
    pub(crate) way: WayArg,
    /// The swap device [default: ram]
    #[arg(long, value_name = "DEV", value_parser = parse_device)]
    pub(crate) device: Option<DeviceSpec>,
    /// How much longer each read of the ram device takes, which widens the window [default: 1ms]
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    pub(crate) delay: Option<Duration>,
    /// Memory to swap
    #[arg(long, value_name = "SIZE", default_value = "32M", value_parser = parse_size)]
    pub(crate) size: u64,
    /// The swap area; as small as the memory, so that slots are soon used again
    #[arg(long, value_name = "SIZE", default_value = "32M", value_parser = parse_size)]
    pub(crate) area: u64,
    /// Threads that add; fewer where the host starts no more
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) workers: u32,
    /// Rounds; 0 goes on until stopped
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) rounds: u64,
    /// What is stressed; with kernel only --size, --workers, --rounds, --sleep and --json count
    #[arg(long, value_enum, default_value = "engine")]
    pub(crate) target: Target,
    /// How faults reach the engine
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) faults: FaultsArg,
    /// Swap devices on and off meanwhile, one after the other: swapon of another like --device, then swapoff of the one
    /// there was
    #[arg(long)]
    pub(crate) swapoff: bool,
    /// How long a worker sleeps between two pages; with very many workers between several pages, so that a round
    /// takes no more than 4 million sleeps (32,000 workers: a minute or two on 2 CPUs). 0 never sleeps
    #[arg(long, value_name = "DUR", default_value = "10us", value_parser = parse_duration)]
    pub(crate) sleep: Duration,
    /// One JSON object a round on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// What all benchmarks take.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// The swap area
    #[arg(long, value_name = "SIZE", default_value = "4G", value_parser = parse_size)]
    pub(crate) area: u64,
    /// The engine's swap device
    #[arg(long, value_name = "DEV", default_value = "zram", value_parser = parse_device)]
    pub(crate) device: DeviceSpec,
    /// How faults reach the engine
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) faults: FaultsArg,
    /// What the pages hold
    #[arg(long, value_enum, default_value = "mixed")]
    pub(crate) content: Kind,
    /// How often everything is measured, one after the other each time
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: u32,
    /// Measure the kernel's swap, too, in the same run: its zram, or where --device has a file its swap on storage of the same
    /// kind, for a folder in memory a block device in memory that both get (as root: sets it up and takes it away again)
    #[arg(long)]
    pub(crate) kernel: bool,
    /// The kernel zram's compressors, separated by commas
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "lzo-rle",
        requires = "kernel"
    )]
    pub(crate) kernel_algo: Vec<Algorithm>,
    /// What contents and random order follow from
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// One JSON object a line on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SwapinArgs {
    /// Memory to swap
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    pub(crate) size: u64,
    /// The order in which pages are touched
    #[arg(long, value_enum, default_value = "seq")]
    pub(crate) order: Order,
    /// The ways in
    #[arg(long, value_enum, default_value = "all")]
    pub(crate) way: Ways,
    /// Threads that page out and touch, each its own part
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: u16,
    /// Pages that one fault brings in: auto, or a power of two from 1 (off) to 64
    #[arg(long, value_name = "N", default_value = "auto", value_parser = parse_fault_around)]
    pub(crate) fault_around: FaultAround,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct ContendArgs {
    /// Memory to swap
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_size)]
    pub(crate) size: u64,
    /// The ways in
    #[arg(long, value_enum, default_value = "all")]
    pub(crate) way: Ways,
    /// How many threads touch each page together, several numbers separated by commas
    #[arg(long, value_name = "N", default_value = "2,4", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(2..=1024))]
    pub(crate) threads: Vec<u16>,
    /// Pages that one fault brings in: auto, or a power of two from 1 (off) to 64
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_fault_around)]
    pub(crate) fault_around: FaultAround,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct FaultArgs {
    /// Memory to swap
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    pub(crate) size: u64,
    /// The ways in
    #[arg(long, value_enum, default_value = "all")]
    pub(crate) way: Ways,
    /// Measure once more while another thread writes out four times as many pages without pause
    #[arg(long)]
    pub(crate) writeback: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Which pages leave memory, as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PolicyArg {
    /// Those not used of late: what `run` does
    Recency,
    /// In turn, used or not
    Fifo,
    /// Any
    Random,
}

impl PolicyArg {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Recency => "recency",
            Self::Fifo => "fifo",
            Self::Random => "random",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct BenchRunArgs {
    /// The limit
    #[arg(long, value_name = "SIZE", value_parser = size::parse_limit, conflicts_with = "share")]
    pub(crate) limit: Option<u64>,
    /// Limits as percentages of the most memory that each program has natively, separated by commas
    #[arg(
        long,
        value_name = "PERCENT",
        value_delimiter = ',',
        default_value = "75,50,35",
        value_parser = clap::value_parser!(u8).range(5..=100)
    )]
    pub(crate) share: Vec<u8>,
    /// How often each program is run in each way, the ways in turn
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: u32,
    /// Which pages leave memory under `run`, several separated by commas to compare them
    #[arg(long, value_enum, value_delimiter = ',', default_value = "recency")]
    pub(crate) policy: Vec<PolicyArg>,
    /// How faults are handled under `run`, several separated by commas to compare them
    #[arg(long, value_enum, value_delimiter = ',', default_value = "auto")]
    pub(crate) faults: Vec<FaultsArg>,
    /// Leave the kernel out; it is measured where this process is root and the host has memory cgroups and zram
    #[arg(long)]
    pub(crate) no_kernel: bool,
    /// The kernel zram's compressor
    #[arg(long, value_enum, default_value = "lzo-rle")]
    pub(crate) kernel_algo: Algorithm,
    /// The longest that one execution may take
    #[arg(long, value_name = "DUR", default_value = "120s", value_parser = parse_duration)]
    pub(crate) longest: Duration,
    /// One JSON object a line on standard output
    #[arg(long)]
    pub(crate) json: bool,
    /// The program and its arguments; without one, those of a list that are installed
    #[arg(trailing_var_arg = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<std::ffi::OsString>,
}

/// The losses of the way unpinned, as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum VariantArg {
    /// All four
    #[value(name = "all")]
    All,
    /// A stale copy is mapped
    #[value(name = "V1", alias = "v1")]
    V1,
    /// The freed slot was discarded: zeros are mapped
    #[value(name = "V2", alias = "v2")]
    V2,
    /// A read met a write: halves of two versions are mapped
    #[value(name = "V3", alias = "v3")]
    V3,
    /// One thread came through the cache, one past it
    #[value(name = "V4", alias = "v4")]
    V4,
}

#[derive(Debug, Args)]
pub(crate) struct RaceArgs {
    /// The way in: shows how unpinned loses, or that direct and cached do not; all three if left out
    #[arg(long, value_enum)]
    pub(crate) way: Option<WayArg>,
    /// Which loss of the way unpinned to show; all four if left out
    #[arg(long, value_enum)]
    pub(crate) variant: Option<VariantArg>,
    /// Draw the schedule of one --variant in this file
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<std::path::PathBuf>,
    /// One JSON object for each schedule and each configuration on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// One JSON object a reading on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

fn parse_device(text: &str) -> Result<DeviceSpec, String> {
    text.parse()
        .map_err(|error: userswap::Error| error.to_string())
}

fn parse_fault_around(text: &str) -> Result<FaultAround, String> {
    match text.parse::<usize>() {
        _ if text == "auto" => Ok(FaultAround::Adaptive),
        Ok(pages) if pages.is_power_of_two() && pages <= 64 => Ok(FaultAround::Fixed(pages)),
        _ => Err(format!(
            "'{text}' is neither auto nor a power of two from 1 to 64"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        // Default values that are parsed by the engine need no check here.
        let _ = Cli::command();
    }

    #[test]
    fn defaults_of_stress_are_the_sources() {
        let Command::Stress(args) = Cli::parse_from(["userswap", "stress"]).command else {
            panic!("not stress");
        };
        assert_eq!(
            (args.size, args.area, args.workers),
            (32 << 20, 32 << 20, 65_536)
        );
        assert_eq!(
            (args.rounds, args.way, args.target),
            (1, WayArg::Direct, Target::Engine)
        );
        assert!(args.device.is_none() && args.delay.is_none());
    }

    #[test]
    fn fault_around_is_auto_or_a_power_of_two() {
        assert_eq!(parse_fault_around("auto"), Ok(FaultAround::Adaptive));
        assert_eq!(parse_fault_around("1"), Ok(FaultAround::Fixed(1)));
        assert_eq!(parse_fault_around("64"), Ok(FaultAround::Fixed(64)));
        for text in ["0", "3", "128", "-1", "many", ""] {
            assert!(parse_fault_around(text).is_err(), "{text}");
        }
    }

    #[test]
    fn all_ways_are_in_the_order_of_measurement() {
        let names: Vec<_> = Ways::All.list().into_iter().map(way_name).collect();
        assert_eq!(names, ["unpinned", "direct", "cached"]);
    }
}
