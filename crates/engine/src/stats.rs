//! Counters that the fault path can afford: sharded, never allocating.

use std::sync::atomic::{AtomicU64, Ordering};

use userswap_sys::cpu;

const SHARDS: usize = 16;

/// Bucket *i* counts latencies of 2^i to 2^(i+1) nanoseconds, each split in four.
const BUCKETS: usize = 40 * 4;

/// What an engine holds and has done. Bytes and counts since the engine was built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of the regions that are in memory.
    pub resident_bytes: u64,
    /// Bytes of the regions that are swapped out.
    pub swapped_bytes: u64,
    /// Bytes of content in the store: compressed sizes and raw pages.
    pub stored_bytes: u64,
    /// Bytes of memory the store takes for them.
    pub store_memory_bytes: u64,
    /// Bytes of the regions that the store holds compressed with more effort, to less, than it first does.
    pub dense_bytes: u64,
    /// Bytes of the regions that lie outside memory, in a file or on a block device.
    pub file_bytes: u64,
    /// Bytes read from there.
    pub file_read_bytes: u64,
    /// Bytes written there.
    pub file_written_bytes: u64,
    /// Bytes of memory beside resident pages and the store: staged pages, frames kept for reuse,
    /// scratch space and tables.
    pub overhead_bytes: u64,
    /// The limit, if one was set.
    pub limit_bytes: Option<u64>,
    /// Faults resolved.
    pub faults: u64,
    /// Pages mapped by faults, first touches and read-ahead included.
    pub pages_in: u64,
    /// Pages written to the device.
    pub pages_out: u64,
    /// Pages taken back before they were written.
    pub refaults: u64,
    /// Attempts to resolve a fault that found somebody else at work on the page.
    pub waits: u64,
    /// Nanoseconds that faults spent making room under the limit.
    pub stalled_ns: u64,
    /// Latency of faults in nanoseconds, signal delivery not included: p50, p90, p99 and maximum. The
    /// percentiles are upper ends of buckets a quarter of an octave wide.
    pub fault_ns: [u64; 4],
    /// Broken invariants met. Anything but 0 is a bug in userswap.
    pub bugs: u64,
}

/// Threads on different CPUs count on different cache lines.
#[repr(align(128))]
struct Shard {
    faults: AtomicU64,
    pages_in: AtomicU64,
    waits: AtomicU64,
    stalled_ns: AtomicU64,
    latency: [AtomicU64; BUCKETS],
    slowest_ns: AtomicU64,
}

pub(crate) struct Counters {
    shards: Box<[Shard]>,
    pub(crate) pages_out: AtomicU64,
    pub(crate) refaults: AtomicU64,
}

impl Counters {
    pub(crate) fn new() -> Self {
        let shard = |_| Shard {
            faults: AtomicU64::new(0),
            pages_in: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            stalled_ns: AtomicU64::new(0),
            latency: [const { AtomicU64::new(0) }; BUCKETS],
            slowest_ns: AtomicU64::new(0),
        };
        Self {
            shards: (0..SHARDS).map(shard).collect(),
            pages_out: AtomicU64::new(0),
            refaults: AtomicU64::new(0),
        }
    }

    /// So many nanoseconds went to making room.
    pub(crate) fn stalled(&self, ns: u64) {
        if ns > 0 {
            let shard = &self.shards[cpu::current() % SHARDS];
            shard.stalled_ns.fetch_add(ns, Ordering::Relaxed);
        }
    }

    /// One fault resolved: `pages` mapped after `waits` vain attempts, in `ns` nanoseconds, of which
    /// `stalled_ns` went to making room. Relaxed throughout: plain counters.
    pub(crate) fn fault(&self, pages: usize, waits: u64, ns: u64, stalled_ns: u64) {
        let shard = &self.shards[cpu::current() % SHARDS];
        shard.faults.fetch_add(1, Ordering::Relaxed);
        shard.pages_in.fetch_add(pages as u64, Ordering::Relaxed);
        if waits > 0 {
            shard.waits.fetch_add(waits, Ordering::Relaxed);
        }
        self.stalled(stalled_ns);
        shard.latency[bucket(ns)].fetch_add(1, Ordering::Relaxed);
        if shard.slowest_ns.load(Ordering::Relaxed) < ns {
            shard.slowest_ns.fetch_max(ns, Ordering::Relaxed);
        }
    }

    /// `pages` were mapped ahead of their first access.
    pub(crate) fn ahead(&self, pages: usize) {
        let shard = &self.shards[cpu::current() % SHARDS];
        shard.pages_in.fetch_add(pages as u64, Ordering::Relaxed);
    }

    /// Pages mapped, by faults and ahead of them.
    pub(crate) fn pages_in(&self) -> u64 {
        let shards = self.shards.iter();
        shards
            .map(|shard| shard.pages_in.load(Ordering::Relaxed))
            .sum()
    }

    pub(crate) fn fill(&self, stats: &mut Stats) {
        let sum = |field: fn(&Shard) -> &AtomicU64| {
            self.shards
                .iter()
                .map(|shard| field(shard).load(Ordering::Relaxed))
                .sum()
        };
        stats.faults = sum(|shard| &shard.faults);
        stats.pages_in = self.pages_in();
        stats.waits = sum(|shard| &shard.waits);
        stats.stalled_ns = sum(|shard| &shard.stalled_ns);
        stats.pages_out = self.pages_out.load(Ordering::Relaxed);
        stats.refaults = self.refaults.load(Ordering::Relaxed);
        let mut latency = [0_u64; BUCKETS];
        for shard in &self.shards {
            for (total, count) in latency.iter_mut().zip(&shard.latency) {
                *total += count.load(Ordering::Relaxed);
            }
        }
        let slowest = self
            .shards
            .iter()
            .map(|shard| shard.slowest_ns.load(Ordering::Relaxed))
            .max();
        stats.fault_ns = [
            percentile(&latency, 50),
            percentile(&latency, 90),
            percentile(&latency, 99),
            slowest.unwrap_or(0),
        ];
    }
}

fn bucket(ns: u64) -> usize {
    let ns = ns.max(4);
    let octave = ns.ilog2() as usize;
    let quarter = (ns >> (octave - 2)) as usize & 3;
    (octave * 4 + quarter).min(BUCKETS - 1)
}

/// The largest value of a bucket.
fn upper_end(bucket: usize) -> u64 {
    let (octave, quarter) = (bucket / 4, bucket as u64 % 4);
    (1_u64 << octave) / 4 * (5 + quarter) - 1
}

fn percentile(latency: &[u64; BUCKETS], percent: u64) -> u64 {
    let total: u64 = latency.iter().sum();
    let rank = (total * percent).div_ceil(100).max(1);
    let mut seen = 0;
    for (bucket, count) in latency.iter().enumerate() {
        seen += count;
        if seen >= rank {
            return upper_end(bucket);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_they_say() {
        for ns in [4, 5, 7, 8, 100, 1_000, 1_023, 1_024, 5_000_000] {
            let at = bucket(ns);
            assert!(ns <= upper_end(at), "{ns}");
            assert!(
                upper_end(at) < ns + ns / 4 + 1,
                "{ns} in a bucket up to {}",
                upper_end(at)
            );
        }
    }

    #[test]
    fn percentiles_are_ordered_and_the_maximum_is_exact() {
        let counters = Counters::new();
        for ns in 1..=1_000 {
            counters.fault(1, 0, ns * 10, 0);
        }
        let mut stats = Stats::default();
        counters.fill(&mut stats);
        let [p50, p90, p99, max] = stats.fault_ns;
        assert!(
            (5_000..6_300).contains(&p50) && (9_000..11_300).contains(&p90),
            "{stats:?}"
        );
        assert!(p99 >= p90 && max == 10_000);
        assert_eq!((stats.faults, stats.pages_in), (1_000, 1_000));
    }
}
