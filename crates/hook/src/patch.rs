//! Writing stubs and jumps into the process.

use crate::maps::{self, Mapping};
use crate::plan::{Plan, Site};
use crate::stub::{self, HEAD, MAX_STUB, Place, TAIL, TAILS};
use crate::{entry, plan};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use std::ffi::c_void;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

const PAGE: usize = 4096;
/// How far a near jump reaches, less what the last stub and the site's neighbours take.
const REACH: usize = (1 << 31) - (1 << 16);
/// Room for tails: part of our own mapping, so that one range of addresses holds every instruction that makes a call.
const ARENA: usize = 1 << 20;

#[repr(C, align(4096))]
struct Arena(std::cell::UnsafeCell<[u8; ARENA]>);

// SAFETY: its bytes are written once, page by page, by whoever took the pages from ARENA_USED, before anybody knows of
// them, and are read-only after.
unsafe impl Sync for Arena {}

static TAIL_ARENA: Arena = Arena(std::cell::UnsafeCell::new([0; ARENA]));
/// How much of it is given out. Only grows; each piece belongs to whoever moved it.
static ARENA_USED: AtomicUsize = AtomicUsize::new(0);

/// What became of a library's sites.
pub(crate) struct Patched {
    pub(crate) rewritten: usize,
    /// Where the stubs lie, if anywhere.
    pub(crate) stubs: Option<Range<usize>>,
    /// Sites that could not be: no place near enough, or the memory is not what the file says.
    pub(crate) failed: Vec<u64>,
}

/// Rewrites the sites of one mapping. `bias` is what its addresses are above the file's.
///
/// `maps` is what is mapped, as far as is known; stubs are added to it. Nobody else may run code of this mapping meanwhile,
/// and no signal may arrive.
pub(crate) fn rewrite(
    mapping: &Mapping,
    bias: u64,
    plan: &Plan,
    maps: &mut Vec<Mapping>,
) -> Patched {
    let sites = &plan.sites;
    let all_failed = || Patched {
        rewritten: 0,
        stubs: None,
        failed: sites.iter().map(|s| s.address).collect(),
    };
    let room = (HEAD + sites.len() * MAX_STUB).next_multiple_of(PAGE);
    let Some(area) = map_near(mapping, room, maps) else {
        return all_failed();
    };
    let careful = sites.iter().filter(|s| stub::is_careful(s.number)).count();
    let Some(tails) = take_tails(careful) else {
        return all_failed();
    };

    let mut stubs = Vec::with_capacity(room);
    stubs.extend(entry::entries().iter().flat_map(|e| e.to_le_bytes()));
    let mut tail_bytes = Vec::new();
    let mut writes = Writes::default();
    let mut failed = Vec::new();
    for site in sites {
        stubs.resize(stubs.len().next_multiple_of(16), 0xcc);
        let place = Place {
            bias,
            stub: (area + stubs.len()) as u64,
            head: area as u64,
            tails: (tails + tail_bytes.len()) as u64,
        };
        let (code, _) = plan.original(site);
        let made = stub::make(site, code, plan.pieces(site), place).and_then(|stub| {
            let tails = if stub.has_tails {
                stub::tails(
                    place.stub + stub.record as u64,
                    place.tails,
                    entry::behind_tails(),
                )?
            } else {
                Vec::new()
            };
            writes.add(plan, site, place)?;
            Some((stub, tails))
        });
        match made {
            Some((stub, tails)) => {
                stubs.extend(stub.bytes);
                tail_bytes.extend(tails);
            }
            None => failed.push(site.address),
        }
    }
    let finished = fill(area, room, &stubs).is_ok()
        && fill(
            tails,
            (careful * TAIL * TAILS.len()).next_multiple_of(PAGE),
            &tail_bytes,
        )
        .is_ok()
        && overwrite(mapping, &writes).is_ok();
    if !finished {
        return all_failed();
    }
    Patched {
        rewritten: sites.len() - failed.len(),
        stubs: Some(area..area + room),
        failed,
    }
}

/// Whether the site jumps to a stub of ours already: its memory was made code a second time.
pub(crate) fn is_rewritten(site: &Site, bias: u64, stubs: &[Range<usize>]) -> bool {
    let at = site.island.unwrap_or(site.region.start).wrapping_add(bias) as usize;
    // SAFETY: five bytes of a mapping that can be read; sites come from its segments.
    let bytes: [u8; 5] = unsafe { (at as *const [u8; 5]).read_unaligned() };
    let [0xe9, distance @ ..] = bytes else {
        return false;
    };
    let target = (at + 5).wrapping_add_signed(i32::from_le_bytes(distance) as isize);
    stubs.iter().any(|area| area.contains(&target))
}

/// Bytes to go over the program's code.
#[derive(Default)]
struct Writes {
    /// Addresses, and which of the bytes go there.
    places: Vec<(usize, Range<usize>)>,
    bytes: Vec<u8>,
}

impl Writes {
    /// Those for a site; `None`, and nothing added, where memory does not hold what the file does.
    fn add(&mut self, plan: &Plan, site: &Site, place: Place) -> Option<()> {
        let before = (self.places.len(), self.bytes.len());
        let added = plan
            .overwritten(site)
            .try_for_each(|(address, original)| self.add_place(site, place, address, original));
        if added.is_none() {
            self.places.truncate(before.0);
            self.bytes.truncate(before.1);
        }
        added
    }

    fn add_place(
        &mut self,
        site: &Site,
        place: Place,
        address: u64,
        original: &[u8],
    ) -> Option<()> {
        let at = address.wrapping_add(place.bias);
        // SAFETY: the range lies in a mapping that can be read: who calls has looked.
        let is = unsafe { std::slice::from_raw_parts(at as *const u8, original.len()) };
        if is != original {
            return None;
        }
        let start = self.bytes.len();
        match site.island {
            Some(island) if address != island => {
                let short = i8::try_from(island.wrapping_sub(site.region.end).cast_signed());
                self.bytes.extend([0xeb, short.ok()?.cast_unsigned()]);
            }
            _ => {
                self.bytes.push(0xe9);
                self.bytes.extend(stub::jump(at + 5, place.stub)?);
            }
        }
        // What is left over is never run; a breakpoint says so if it is.
        self.bytes.resize(start + original.len(), 0xcc);
        self.places.push((at as usize, start..self.bytes.len()));
        Some(())
    }
}

/// Memory for stubs, within reach of every jump from and to the mapping.
fn map_near(mapping: &Mapping, len: usize, maps: &mut Vec<Mapping>) -> Option<usize> {
    // Where nothing is known yet there is no gap either.
    let known = (!maps.is_empty()).then(|| map_in_gap(mapping, len, maps));
    known.flatten().or_else(|| {
        // Some of the gaps are none any more.
        *maps = maps::read().ok()?;
        map_in_gap(mapping, len, maps)
    })
}

fn map_in_gap(mapping: &Mapping, len: usize, maps: &mut Vec<Mapping>) -> Option<usize> {
    for at in maps::gaps(maps, &mapping.range, len, REACH)
        .into_iter()
        .take(16)
    {
        // SAFETY: maps new memory where there is none (FIXED_NOREPLACE refuses otherwise); nobody else knows of it.
        let mapped = unsafe {
            rustix::mm::mmap_anonymous(
                at as *mut c_void,
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE,
            )
        };
        if let Ok(mapped) = mapped {
            let start = mapped as usize;
            let index = maps.partition_point(|m| m.range.start < start);
            maps.insert(index, Mapping::anonymous(start..start + len));
            return Some(start);
        }
    }
    None
}

/// Whole pages of the arena, made writable.
fn take_tails(count: usize) -> Option<usize> {
    let len = (count * TAIL * TAILS.len()).next_multiple_of(PAGE);
    let base = TAIL_ARENA.0.get() as usize;
    let taken = ARENA_USED
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            (used + len <= ARENA).then_some(used + len)
        })
        .ok()?;
    Some(base + taken)
}

/// Writes code where nobody runs any yet, and makes it code.
fn fill(at: usize, len: usize, bytes: &[u8]) -> rustix::io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    assert!(bytes.len() <= len && at.is_multiple_of(PAGE));
    // SAFETY: the caller took these pages for itself, writable, and nobody else knows their address yet.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len());
        rustix::mm::mprotect(
            at as *mut c_void,
            len,
            MprotectFlags::READ | MprotectFlags::EXEC,
        )
    }
}

/// Puts the jumps over the program's code.
fn overwrite(mapping: &Mapping, writes: &Writes) -> rustix::io::Result<()> {
    let start = mapping.range.start as *mut c_void;
    let len = mapping.range.len();
    // SAFETY: the mapping may hold libc itself, which cannot be run until it is code again. Nobody else runs code
    // of it and no signal arrives (contract), and here nothing is called but mprotect, made inline, and volatile writes, which
    // are never turned into a call of memcpy. Each write lies in the mapping and replaces whole instructions that nothing jumps
    // into (plan.rs).
    unsafe {
        rustix::mm::mprotect(start, len, MprotectFlags::READ | MprotectFlags::WRITE)?;
        for (at, range) in &writes.places {
            for (i, byte) in writes.bytes[range.clone()].iter().enumerate() {
                ((*at + i) as *mut u8).write_volatile(*byte);
            }
        }
        rustix::mm::mprotect(start, len, MprotectFlags::READ | MprotectFlags::EXEC)
    }
}

/// Whether an address is in this library: its calls are never looked at.
pub(crate) fn own_address() -> usize {
    plan::plan as *const () as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `mov $39, %eax; syscall`
    const CODE: [u8; 7] = [0xb8, 39, 0, 0, 0, 0x0f, 0x05];

    #[test]
    fn where_memory_is_not_what_the_plan_says_nothing_is_written() {
        let mut plan = Plan::default();
        let site = Site::new(0x1005, 0x1000..0x1007, None, Some(39));
        assert!(plan.add(site, &CODE, &[], &[[0, 5], [1, 2]]));
        let writes_over = |memory: &[u8; 7]| {
            let at = memory.as_ptr() as u64;
            let place = Place {
                bias: at.wrapping_sub(0x1000),
                stub: at + 0x2000,
                head: at,
                tails: at,
            };
            let mut writes = Writes::default();
            let added = writes.add(&plan, &plan.sites[0], place);
            assert_eq!(added.is_some(), writes.places.len() == 1);
            writes.places.len()
        };
        assert_eq!(writes_over(&CODE), 1);
        for at in 0..CODE.len() {
            let mut other = CODE;
            other[at] ^= 1;
            assert_eq!(writes_over(&other), 0, "{at}");
        }
    }
}
