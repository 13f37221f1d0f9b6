//! Cyclic access: a program that goes through more than memory holds, again and again in the same order, misses every page
//! where what came in first leaves first. Where what came in *last* leaves first, the rest of memory stays, and each round
//! reads only what has no room.
//!
//! *Noticing it.* Of one page in each chunk it is noted how many pages had left memory when it left. When it is read again, how
//! many have left since is its *distance*. In such rounds all distances are about the same; where access is random they differ
//! by as much as they are long, and where a program goes to and fro by half of that.
//!
//! *Keeping a part.* What is read is noted as an *arrival*. Under cyclic access the oldest arrivals leave, in place of
//! what the clock hand finds; but the hand goes on slowly, and what it takes out an arrival stays for. So nothing stays for good.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};

use userswap_core::mask;
use userswap_core::page_table::CHUNK_PAGES;

/// One chunk in so many that leave under cyclic access is the clock hand's choice.
pub(crate) const HAND_EVERY: u32 = 7;

/// Arrivals are this part of what memory holds when they leave: walks that run beside each other are not in each other's way, and
/// what is read ahead is used before.
const STAY: usize = 8;

/// Arrivals that are noted at most, where memory is large, and at least. One of 24 bytes may be of one page.
const MOST: usize = 1 << 14;
const LEAST: usize = 1 << 10;

/// Under cyclic access so many of the latest arrivals are looked at whether they are of the same chunk.
const LOOKS_BACK: usize = 64;

/// Distances that are averaged.
const AVERAGED: u32 = 32;

/// Distances that are looked at before anything is said of them.
const ENOUGH: u32 = 24;

/// Access is cyclic from where the variance of the distances is less than this part of their mean's square, until it is more than
/// twice as much. Between 0 and a distance, all alike, it is a third; where each access is random, one.
const ALIKE: f64 = 1.0 / 8.0;

/// When the watched page of each chunk left memory.
#[derive(Debug)]
pub(crate) struct Departures(Box<[AtomicU32]>);

impl Departures {
    /// No page has left memory yet.
    const NONE: u32 = 0;

    pub(crate) fn new(chunks: usize) -> Self {
        Self((0..chunks).map(|_| AtomicU32::new(Self::NONE)).collect())
    }

    /// Bytes that it takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.0)
    }

    /// The page of a chunk that is watched, as a mask: each at another place, as what lies in them may be alike.
    fn watched(chunk: usize) -> u64 {
        // Multiplied by a fraction of 2^32 that spreads neighbours.
        mask::bit((chunk as u32).wrapping_mul(0x9e37_79b9) as usize >> 26)
    }

    /// The pages of `mask` leave `chunk`, after `left` others. All fields are hints: Relaxed.
    pub(crate) fn note(&self, chunk: usize, mask: u64, left: u64) {
        if mask & Self::watched(chunk) != 0 {
            self.0[chunk].store((left as u32).max(Self::NONE + 1), Ordering::Relaxed);
        }
    }

    /// The pages of `mask` have come back to `chunk`, now that `left` have left: their distance, if it is known of one.
    pub(crate) fn take(&self, chunk: usize, mask: u64, left: u64) -> Option<u32> {
        if mask & Self::watched(chunk) == 0 {
            return None;
        }
        let then = self.0[chunk].swap(Self::NONE, Ordering::Relaxed);
        // Less than none where it has left again meanwhile.
        let distance = (left as u32).wrapping_sub(then);
        (then != Self::NONE && distance <= i32::MAX as u32).then_some(distance)
    }
}

/// The distances of late, averaged: their mean and that of their squares.
#[derive(Debug, Default)]
struct Distances {
    count: u32,
    mean: f64,
    square: f64,
}

impl Distances {
    /// Whether access is cyclic, by this one, too; `was`: by those before.
    fn note(&mut self, distance: u32, was: bool) -> bool {
        self.count = (self.count + 1).min(AVERAGED);
        let weight = 1.0 / f64::from(self.count);
        let distance = f64::from(distance);
        self.mean += (distance - self.mean) * weight;
        self.square += (distance * distance - self.square) * weight;
        let variance = self.square - self.mean * self.mean;
        let most = self.mean * self.mean * if was { 2.0 * ALIKE } else { ALIKE };
        self.count >= ENOUGH && variance < most
    }
}

/// Pages that came in together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// The number of the region.
    pub(crate) region: u64,
    pub(crate) chunk: usize,
    pub(crate) pages: u64,
}

/// What has been read, oldest first.
#[derive(Debug)]
struct Arrivals {
    /// A push does not allocate: there is room for `most`.
    queue: VecDeque<Arrival>,
    most: usize,
    /// Pages in it.
    pages: usize,
}

impl Arrivals {
    fn new(most: usize) -> Self {
        Self {
            queue: VecDeque::with_capacity(most),
            most,
            pages: 0,
        }
    }

    /// Whether its oldest may leave, where memory holds `room` pages.
    fn is_long(&self, room: usize) -> bool {
        self.pages > stay(room) || self.queue.len() > self.most / 4 * 3
    }

    fn push(&mut self, arrival: Arrival, looks_back: usize) {
        let of_chunk =
            |noted: &&mut Arrival| (noted.region, noted.chunk) == (arrival.region, arrival.chunk);
        let mut latest = self.queue.iter_mut().rev().take(looks_back);
        if let Some(noted) = latest.find(of_chunk) {
            let fresh = arrival.pages & !noted.pages;
            noted.pages |= fresh;
            self.pages += fresh.count_ones() as usize;
            return;
        }
        if self.queue.len() >= self.most {
            self.pop();
        }
        self.queue.push_back(arrival);
        self.pages += arrival.pages.count_ones() as usize;
    }

    fn pop(&mut self) -> Option<Arrival> {
        let arrival = self.queue.pop_front()?;
        self.pages -= arrival.pages.count_ones() as usize;
        Some(arrival)
    }
}

/// Whether access is cyclic, and what leaves then.
#[derive(Debug)]
pub(crate) struct Cyclic {
    state: Mutex<(Distances, Arrivals)>,
    is_on: AtomicBool,
}

impl Cyclic {
    /// For memory that holds so many chunks.
    pub(crate) fn new(chunks: usize) -> Self {
        let arrivals = Arrivals::new((chunks * CHUNK_PAGES / STAY).clamp(LEAST, MOST));
        Self {
            state: Mutex::new((Distances::default(), arrivals)),
            is_on: AtomicBool::new(false),
        }
    }

    /// Whether access is cyclic. A hint.
    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Pages were read from a device, one of them at a `distance` that is known. Memory holds `room` pages.
    pub(crate) fn note(&self, arrival: Arrival, distance: Option<u32>, room: usize) {
        // Who meets another here leaves it: one more or less does not matter.
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let (distances, arrivals) = &mut *state;
        let was_on = self.is_on();
        if let Some(distance) = distance {
            let is_on = distances.note(distance, was_on);
            self.is_on.store(is_on, Ordering::Relaxed);
        }
        arrivals.push(arrival, if was_on { LOOKS_BACK } else { 1 });
        while !was_on && arrivals.is_long(room) {
            arrivals.pop();
        }
    }

    /// The next arrival to leave, where access is cyclic and there are enough that are younger.
    pub(crate) fn next(&self, room: usize) -> Option<Arrival> {
        if !self.is_on() {
            return None;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let arrivals = &mut state.1;
        arrivals.is_long(room).then(|| arrivals.pop()).flatten()
    }
}

/// How many pages of arrivals stay, of `room` pages that memory holds.
fn stay(room: usize) -> usize {
    (room / STAY).max(4 * CHUNK_PAGES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{build_or_skip, fill_with_noise};
    use crate::{Engine, Region};
    use userswap_core::device::PAGE_SIZE;

    /// Numbers below `below`, any of them.
    fn random(below: u32) -> impl FnMut() -> u32 {
        let mut seed = 1_u64;
        move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((seed >> 33) % u64::from(below)) as u32
        }
    }

    /// Whether access is cyclic by all of `distances`.
    fn is_cyclic(distances: impl Iterator<Item = u32>) -> bool {
        let mut averages = Distances::default();
        distances.fold(false, |was, distance| averages.note(distance, was))
    }

    #[test]
    fn distances_that_are_alike_are_of_cyclic_access() {
        let mut number = random(1000);
        let rounds = |_| 9_500 + number();
        assert!(is_cyclic((0..100).map(rounds)));
        // One in seven was taken out at any time.
        let mut number = random(10_000);
        let mixed = |at| if at % 7 == 0 { number() } else { 10_000 };
        assert!(is_cyclic((0..1000).map(mixed)));
        assert!(!is_cyclic((0..ENOUGH - 1).map(|_| 10_000)), "not at once");
    }

    #[test]
    fn distances_that_differ_are_not() {
        let mut number = random(10_000);
        assert!(!is_cyclic((0..1000).map(|_| number())), "to and fro");
        // Each page with the same probability, whatever was before.
        let mut number = random(1000);
        let mut anywhere = || (1..).find(|_| number() < 10).expect("some day");
        assert!(!is_cyclic((0..1000).map(|_| anywhere())));
        // It was cyclic, and is no longer.
        let rounds = std::iter::repeat_n(10_000, 100);
        assert!(!is_cyclic(rounds.chain((0..100).map(|_| anywhere()))));
    }

    #[test]
    fn arrivals_of_a_chunk_are_one() {
        let arrival = |chunk, pages| Arrival {
            region: 1,
            chunk,
            pages,
        };
        let mut arrivals = Arrivals::new(LEAST);
        arrivals.push(arrival(1, 0b011), 1);
        arrivals.push(arrival(1, 0b110), 1);
        arrivals.push(arrival(2, 0b1), 1);
        arrivals.push(arrival(1, 0b1000), 1);
        arrivals.push(arrival(2, 0b10), LOOKS_BACK);
        assert_eq!(arrivals.pages, 6);
        assert_eq!(arrivals.pop(), Some(arrival(1, 0b111)));
        assert_eq!(arrivals.pop(), Some(arrival(2, 0b11)));
        assert_eq!(arrivals.pop(), Some(arrival(1, 0b1000)));
        assert_eq!((arrivals.pop(), arrivals.pages), (None, 0));
        for chunk in 0..2 * LEAST {
            arrivals.push(arrival(chunk, 1), 1);
        }
        assert_eq!((arrivals.queue.len(), arrivals.pages), (LEAST, LEAST));
        // However much memory holds.
        assert!(arrivals.is_long(usize::MAX));
    }

    #[test]
    fn one_page_of_a_chunk_is_watched() {
        let departures = Departures::new(3);
        let watched = Departures::watched(2);
        departures.note(2, !watched, 5);
        assert_eq!(departures.take(2, u64::MAX, 50), None);
        departures.note(2, u64::MAX, 5);
        assert_eq!(departures.take(2, !watched, 50), None);
        assert_eq!(departures.take(2, watched, 50), Some(45));
        assert_eq!(departures.take(2, watched, 60), None, "once");
        departures.note(2, watched, 70);
        assert_eq!(departures.take(2, watched, 60), None, "it left meanwhile");
    }

    const LIMIT: usize = 24 << 20;
    const PAGES: usize = (32 << 20) / PAGE_SIZE;

    /// An engine with more to hold than its limit.
    fn engine(test: &str) -> Option<(Engine, Region)> {
        let engine = build_or_skip(Engine::builder().limit(LIMIT as u64), test)?;
        let region = filled(&engine);
        Some((engine, region))
    }

    fn filled(engine: &Engine) -> Region {
        let mut region = engine.region(PAGES * PAGE_SIZE).expect("a region");
        for (seed, page) in region.chunks_exact_mut(PAGE_SIZE).enumerate() {
            fill_with_noise(&mut page[..PAGE_SIZE / 8], seed as u64);
        }
        region
    }

    fn touch(region: &Region, page: usize) {
        std::hint::black_box(region[page * PAGE_SIZE]);
    }

    /// The share of all pages that come in when each is touched once, in the order of their addresses.
    fn share_read(engine: &Engine, region: &Region) -> f64 {
        let before = engine.stats();
        (0..PAGES).for_each(|page| touch(region, page));
        let stats = engine.stats();
        let taken_back = stats.refaults - before.refaults;
        let came = stats.pages_in - before.pages_in;
        came.saturating_sub(taken_back) as f64 / PAGES as f64
    }

    #[test]
    fn rounds_through_more_than_memory_holds_read_what_has_no_room() {
        let name = "rounds_through_more_than_memory_holds_read_what_has_no_room";
        let Some((engine, region)) = engine(name) else {
            return;
        };
        let shares: Vec<_> = (0..12).map(|_| share_read(&engine, &region)).collect();
        assert!(engine.shared().cyclic.is_on());
        assert!(shares[11] < 0.75, "{shares:?}");
        // What has been kept does not stay for good.
        let next = filled(&engine);
        let shares: Vec<_> = (0..60).map(|_| share_read(&engine, &next)).collect();
        assert!(shares[59] < 0.75, "{shares:?}");
        assert_eq!(engine.stats().bugs, 0);
    }

    #[test]
    fn random_access_is_not_taken_for_cyclic() {
        let Some((engine, region)) = engine("random_access_is_not_taken_for_cyclic") else {
            return;
        };
        let mut number = random(PAGES as u32);
        let mut cyclic = 0;
        for _ in 0..200 {
            for _ in 0..500 {
                touch(&region, number() as usize);
            }
            cyclic += u32::from(engine.shared().cyclic.is_on());
        }
        assert!(cyclic < 10, "{cyclic}");
    }
}
