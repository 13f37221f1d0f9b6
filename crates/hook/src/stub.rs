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

use crate::piece::{self, Piece};
use crate::plan::Site;
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
///
/// `code` is what stands in the site's region.
pub(crate) fn make(site: &Site, code: &[u8], pieces: &[Piece], place: Place) -> Option<Stub> {
    let mut out = Writer {
        bytes: Vec::with_capacity(MAX_STUB),
        place,
    };
    let careful = is_careful(site.number);
    let (before, after) = code.split_at((site.address - site.region.start) as usize);
    let call = pieces.iter().position(|piece| piece[0] == piece::CALL)?;
    out.moved_all(&pieces[..call], before, site.region.start)?;
    // lea record(%rip), %rcx: the record's place is known at the end.
    let lea = out.bytes.len();
    out.bytes.extend([0x48, 0x8d, 0x0d, 0, 0, 0, 0]);
    out.bytes.extend([0xff, 0x25]);
    out.distance_to(place.head + if careful { 8 } else { 0 })?;
    let next = out.here();
    let goes_on = out.moved_all(&pieces[call + 1..], &after[2..], site.address + 2)?;
    if goes_on {
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

    /// The same instructions at their new place: what they address relative to themselves stays what it was. Whether what is
    /// behind them runs.
    fn moved_all(&mut self, pieces: &[Piece], mut code: &[u8], start: u64) -> Option<bool> {
        let mut end = start.wrapping_add(self.place.bias);
        let mut goes_on = true;
        for &[kind, len] in pieces {
            let (bytes, rest) = code.split_at_checked(len.into())?;
            code = rest;
            // Where the instruction ended.
            end = end.wrapping_add(len.into());
            match kind {
                piece::JUMP => {
                    let jump = piece::jump(bytes)?;
                    match jump.condition {
                        Some(condition) => self.bytes.extend([0x0f, 0x80 | condition]),
                        None => self.bytes.push(0xe9),
                    }
                    self.distance_to(end.wrapping_add_signed(jump.distance.into()))?;
                    goes_on = jump.condition.is_some();
                }
                piece::COPIED => self.bytes.extend(bytes),
                piece::RETURN => {
                    self.bytes.extend(bytes);
                    goes_on = false;
                }
                _ => {
                    let at = usize::from(kind.checked_sub(piece::RELATIVE)?);
                    let &distance = bytes.get(at..)?.first_chunk()?;
                    let target = end.wrapping_add_signed(i32::from_le_bytes(distance).into());
                    let start = self.bytes.len();
                    self.bytes.extend(bytes);
                    let distance = jump(self.here(), target)?;
                    self.bytes[start + at..][..4].copy_from_slice(&distance);
                }
            }
        }
        Some(goes_on)
    }
}
