//! The code that a rewritten site jumps to.
//!
//! ```text
//! site:  jmp stub                 stub:  instructions that stood before the system call
//!                                        lea record(%rip), %rcx
//!                                        jmp *entry(%rip)            -> entry.rs, which makes the call
//!                                 next:  instructions that stood after it
//!                                        jmp behind the site
//! ```
//! `rcx` is free to use: the instruction overwrites it anyway. Calls after which another stack or none is in use are made
//! in a *tail*, one for each of them, from which both sides go on without anything saved on a stack.

use crate::plan::{self, Site};
use iced_x86::{Encoder, Instruction};
use linux_raw_sys::general as nr;

/// What a stub hands to the entry code, which reads it by these offsets.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    /// The address behind the `syscall` instruction: where the program believes to be.
    pub(crate) site_return: u64,
    /// Where to go on in the stub.
    pub(crate) next: u64,
    /// Where each of [`TAILS`] is called; 0 where this site makes none of them.
    pub(crate) tails: [u64; 4],
}

/// The calls that need a tail.
pub(crate) const TAILS: [u32; 4] = [
    nr::__NR_clone,
    nr::__NR_clone3,
    nr::__NR_vfork,
    nr::__NR_rt_sigreturn,
];

/// Which tail a call has.
pub(crate) const fn tail_of(number: i64) -> usize {
    let mut at = 0;
    while TAILS[at] as i64 != number {
        at += 1;
    }
    at
}

/// Calls whose sites take the careful entry: those with a tail, and those that are looked at also while nobody
/// looks: they may bring in code, or set the handler of cancellation.
pub(crate) const CAREFUL: [u32; 8] = [
    nr::__NR_clone,
    nr::__NR_clone3,
    nr::__NR_vfork,
    nr::__NR_rt_sigreturn,
    nr::__NR_rt_sigaction,
    nr::__NR_mmap,
    nr::__NR_mprotect,
    nr::__NR_pkey_mprotect,
];

/// The longest stub: a bound, checked where stubs are made.
pub(crate) const MAX_STUB: usize = 256;
/// The length of one tail.
pub(crate) const TAIL: usize = 24;
/// The two pointers to the entry code, at the head of each stub page.
pub(crate) const HEAD: usize = 16;

/// A stub's bytes, and the record among them.
pub(crate) struct Stub {
    pub(crate) bytes: Vec<u8>,
    /// Where the record lies in them.
    pub(crate) record: usize,
    /// Whether the record names tails.
    pub(crate) has_tails: bool,
}

/// Where things are when a stub is made.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Added to the file's addresses.
    pub(crate) bias: u64,
    /// Where the stub will lie; divisible by 16.
    pub(crate) stub: u64,
    /// Where the head of its page area lies: pointer to the fast entry, then to the careful one.
    pub(crate) head: u64,
    /// Where its tails will lie, if it needs them.
    pub(crate) tails: u64,
}

/// Whether calls from this site may need tails.
pub(crate) fn is_careful(number: Option<u32>) -> bool {
    number.is_none_or(|n| CAREFUL.contains(&n))
}

/// Makes a stub; `None` where an instruction cannot be moved that far.
pub(crate) fn make(site: &Site, place: Place) -> Option<Stub> {
    let mut out = Writer {
        bytes: Vec::with_capacity(MAX_STUB),
        place,
    };
    let careful = is_careful(site.number);
    for instruction in &site.before {
        out.moved(instruction)?;
    }
    // lea record(%rip), %rcx: the record's place is known at the end.
    let lea = out.bytes.len();
    out.bytes.extend([0x48, 0x8d, 0x0d, 0, 0, 0, 0]);
    out.bytes.extend([0xff, 0x25]);
    out.distance_to(place.head + if careful { 8 } else { 0 })?;
    let next = out.here();
    for instruction in &site.after {
        out.moved(instruction)?;
    }
    if !site.after.last().is_some_and(plan::ends) {
        out.bytes.push(0xe9);
        out.distance_to(site.region.end.wrapping_add(place.bias))?;
    }
    while !out.bytes.len().is_multiple_of(8) {
        out.bytes.push(0xcc);
    }
    let record = out.bytes.len();
    let distance = i32::try_from(record - (lea + 7)).ok()?;
    out.bytes[lea + 3..lea + 7].copy_from_slice(&distance.to_le_bytes());
    let tails: [u64; 4] = std::array::from_fn(|i| {
        if careful {
            place.tails + (i * TAIL) as u64
        } else {
            0
        }
    });
    for word in [(site.address + 2).wrapping_add(place.bias), next]
        .into_iter()
        .chain(tails)
    {
        out.bytes.extend(word.to_le_bytes());
    }
    (out.bytes.len() <= MAX_STUB).then_some(Stub {
        record,
        has_tails: careful,
        bytes: out.bytes,
    })
}

/// The tails of a stub whose record lies at `record`: `syscall; movabs $record, %rcx; jmp behind`.
pub(crate) fn tails(record: u64, at: u64, behind: [u64; 4]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(TAIL * 4);
    for target in behind {
        bytes.extend([0x0f, 0x05, 0x48, 0xb9]);
        bytes.extend(record.to_le_bytes());
        bytes.push(0xe9);
        let from = at + bytes.len() as u64 + 4;
        bytes.extend(jump(from, target)?);
        while !bytes.len().is_multiple_of(TAIL) {
            bytes.push(0xcc);
        }
    }
    Some(bytes)
}

/// The operand of a jump whose end is `from`.
pub(crate) fn jump(from: u64, to: u64) -> Option<[u8; 4]> {
    i32::try_from(to.wrapping_sub(from).cast_signed())
        .ok()
        .map(i32::to_le_bytes)
}

struct Writer {
    bytes: Vec<u8>,
    place: Place,
}

impl Writer {
    fn here(&self) -> u64 {
        self.place.stub + self.bytes.len() as u64
    }

    fn distance_to(&mut self, target: u64) -> Option<()> {
        let bytes = jump(self.here() + 4, target)?;
        self.bytes.extend(bytes);
        Some(())
    }

    /// The same instruction at its new place: what it addresses relative to itself stays what it was.
    fn moved(&mut self, instruction: &Instruction) -> Option<()> {
        let mut moved = *instruction;
        if moved.is_jcc_short_or_near() || moved.is_jmp_short_or_near() {
            moved.set_code(moved.code().as_near_branch());
            moved.set_near_branch64(moved.near_branch64().wrapping_add(self.place.bias));
        } else if moved.is_ip_rel_memory_operand() {
            moved.set_memory_displacement64(
                moved.ip_rel_memory_address().wrapping_add(self.place.bias),
            );
        }
        let mut encoder = Encoder::new(64);
        encoder.encode(&moved, self.here()).ok()?;
        self.bytes.extend(encoder.take_buffer());
        Some(())
    }
}
