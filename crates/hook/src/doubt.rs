//! Bytes that look like a system call where no function is known, or where it cannot be decoded: data among code, or code
//! without unwind information. They count as system calls only if control can come there.

use crate::image::{Image, Segment};
use crate::scan::{self, Distance, Wanted};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Stretches longer than this are not looked through: whatever is in them may be run. Codecs have some of a few mebibytes.
const LONGEST: u64 = 64 << 20;

/// Where bytes look like system calls, and nothing else is known.
pub(crate) struct Stretches<'i, 'a> {
    image: &'i Image<'a>,
    segment: &'i Segment,
    /// In order, with the bytes that are meant.
    stretches: Vec<(Range<u64>, Vec<u64>)>,
    wanted: Wanted,
    /// Addresses in them that a jump, a call or an address in the code names, or what looks like one.
    guessed: Vec<u64>,
}

impl<'i, 'a> Stretches<'i, 'a> {
    /// What lies around `hits`, which are in order.
    pub(crate) fn around(image: &'i Image<'a>, segment: &'i Segment, hits: &[u64]) -> Self {
        let sections = (!hits.is_empty()).then(|| image.code_sections()).flatten();
        let is_code = |hit: &&u64| {
            let sections = sections.as_ref();
            sections.is_none_or(|s| s.iter().any(|s| s.contains(hit)))
        };
        let starts = if hits.is_empty() {
            Vec::new()
        } else {
            image.starts()
        };
        let behind = segment.address + segment.len;
        let mut places: BTreeMap<(u64, u64), Vec<u64>> = BTreeMap::new();
        let hits = hits.iter().filter(is_code);
        // In what a compiler describes may be instructions that are not known here.
        for &hit in hits.filter(|&&hit| image.is_described(hit) || goes_on(image, hit)) {
            let place = image.surroundings(hit, segment, &starts);
            // Which may be longer than what there is.
            let (start, end) = (place.start.max(segment.address), place.end.min(behind));
            places.entry((start, end)).or_default().push(hit);
        }
        let places = places.into_iter();
        let stretches: Vec<_> = places
            .map(|((start, end), hits)| (start..end, hits))
            .collect();
        let ranges = stretches.iter().map(|(range, _)| range.clone());
        Self {
            image,
            segment,
            wanted: Wanted::new(ranges),
            stretches,
            guessed: Vec::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.stretches.is_empty()
    }

    /// What bytes of the segment look like.
    pub(crate) fn see(&mut self, distance: &Distance) {
        let target = self.segment.address.wrapping_add_signed(distance.target);
        if self.wanted.has(target) {
            self.guessed.push(target);
        }
    }

    /// Those of the hits that may be run, once all bytes were seen.
    pub(crate) fn reached(mut self) -> Vec<u64> {
        let mut found = Vec::new();
        if self.is_empty() {
            return found;
        }
        let named = self.named();
        self.guessed.extend(&named);
        self.guessed.sort_unstable();
        self.guessed.dedup();
        // What is known, where something depends on it.
        let mut known = None;
        for (range, hits) in &self.stretches {
            if range.end - range.start > LONGEST {
                found.extend(hits);
                continue;
            }
            let first = self.guessed.partition_point(|&at| at < range.start);
            let behind = self.guessed.partition_point(|&at| at < range.end);
            let mut starts = self.guessed[first..behind].to_vec();
            let mut run = BTreeSet::new();
            if self.image.function(range.start).is_some() {
                starts.push(range.start);
                run = swept(self.image, range);
            }
            let mut seen = Seen::new(range);
            run.extend(followed(self.image, range, &mut seen, starts, |_| ()));
            found.extend(hits.iter().filter(|&&hit| {
                let mut is_known = || {
                    known
                        .get_or_insert_with(|| self.known(&named))
                        .contains(&hit)
                };
                let is_doubtful = self.image.is_old_way(hit)
                    || !self.image.is_described(hit) && ends_a_table(self.image, hit);
                run.contains(&hit) && (!is_doubtful || is_known())
            }));
        }
        found
    }

    /// Addresses in the stretches that a symbol or a word of data names.
    fn named(&self) -> Vec<u64> {
        let named = self.image.named_addresses().into_iter();
        named.filter(|&at| self.wanted.has(at)).collect()
    }

    /// Addresses in the stretches that instructions of functions name.
    fn named_by_functions(&self) -> Vec<u64> {
        let mut named = Vec::new();
        let base = self.segment.address;
        let mut function: Option<(Range<u64>, Decoder<'_>)> = None;
        scan::distances(self.image.scanned(self.segment), |distance| {
            let target = base.wrapping_add_signed(distance.target);
            let (start, end) = (base + distance.opcode as u64, base + distance.end as u64);
            if !self.wanted.has(target) {
                return;
            }
            let is_ahead = |(range, decoder): &(Range<u64>, Decoder<'_>)| {
                range.contains(&start) && decoder.ip() <= start
            };
            if !function.as_ref().is_some_and(is_ahead) {
                function = self.image.function(start).and_then(|range| {
                    let bytes = self.image.bytes_at(range.start)?;
                    let decoder = Decoder::with_ip(64, bytes, range.start, DecoderOptions::NONE);
                    Some((range, decoder))
                });
            }
            if let Some((_, decoder)) = &mut function {
                while decoder.can_decode() && decoder.ip() <= start {
                    if decoder.decode().next_ip() == end {
                        named.push(target);
                    }
                }
            }
        });
        named
    }

    /// The system calls that control comes to for all that is known: where the stretches are entered from outside it is from
    /// instructions of functions, not from bytes that look like one.
    ///
    /// What calls the system by its old ways (`int 0x80`), which in 64-bit code is next to nothing, counts only so, and what would
    /// be the end of a table: two bytes are too common in data among code, and bytes that look like jumps lead everywhere in long
    /// stretches.
    fn known(&self, named: &[u64]) -> BTreeSet<u64> {
        let mut starts = self.named_by_functions();
        starts.extend(named);
        let functions = self.stretches.iter().map(|(range, _)| range.start);
        starts.extend(functions.filter(|&start| self.image.function(start).is_some()));
        let mut found = BTreeSet::new();
        let mut seen: Vec<Option<Seen>> = self.stretches.iter().map(|_| None).collect();
        while let Some(start) = starts.pop() {
            let index = self
                .stretches
                .partition_point(|(range, _)| range.start <= start);
            let Some(index) = index.checked_sub(1) else {
                continue;
            };
            let range = &self.stretches[index].0;
            if range.contains(&start) && range.end - range.start <= LONGEST {
                let seen = seen[index].get_or_insert_with(|| Seen::new(range));
                let outside = |at| starts.push(at);
                found.extend(followed(self.image, range, seen, vec![start], outside));
            }
        }
        found
    }
}

/// Whether there is code behind what looks like a system call, up to where it goes elsewhere: a call that returns comes there.
/// What does not return uses no memory.
fn goes_on(image: &Image<'_>, hit: u64) -> bool {
    let bytes = image.bytes_at(hit).unwrap_or_default();
    let decoder = Decoder::with_ip(64, bytes, hit, DecoderOptions::NONE);
    // The first is the call itself.
    let mut behind = decoder.into_iter().skip(1);
    behind
        .find(|next| next.is_invalid() || next.flow_control() != FlowControl::Next)
        .is_some_and(|end| !end.is_invalid())
}

/// Whether the two bytes at `hit` are the last of what looks like a table of GHC's. One of 16 bytes is in front of each function: two
/// small numbers, the function's kind, and a distance, which may be any, in 4 bytes each. Where the kind would be part of an
/// instruction, one of the bytes before it that have to be zero would say which, and not be zero.
fn ends_a_table(image: &Image<'_>, hit: u64) -> bool {
    const ALIGNED: u64 = 8;
    const BEFORE: u64 = 11;
    const KINDS: Range<u8> = 1..64;
    let table = hit.checked_sub(BEFORE).and_then(|at| image.bytes_at(at));
    let bytes = table.and_then(|bytes| bytes.first_chunk());
    (hit + 2).is_multiple_of(ALIGNED)
        && matches!(bytes, Some([0, _, 0, 0, 0, kind, 0, 0, 0]) if KINDS.contains(kind))
}

/// The system calls that control comes to from the starts, inside the range; `outside` gets where it leaves that.
fn followed(
    image: &Image<'_>,
    range: &Range<u64>,
    seen: &mut Seen,
    mut starts: Vec<u64>,
    mut outside: impl FnMut(u64),
) -> Vec<u64> {
    let mut found = Vec::new();
    while let Some(start) = starts.pop() {
        let Some(bytes) = image.bytes_at(start) else {
            continue;
        };
        let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
        while decoder.can_decode() && range.contains(&decoder.ip()) && seen.insert(decoder.ip()) {
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                break;
            }
            if calls_system(&instruction) {
                found.push(instruction.ip());
            }
            let branch = (instruction.op_count() > 0
                && instruction.op0_kind() == OpKind::NearBranch64)
                .then(|| instruction.near_branch64());
            // Whose address is taken may be called.
            let address = (instruction.mnemonic() == Mnemonic::Lea
                && instruction.is_ip_rel_memory_operand())
            .then(|| instruction.ip_rel_memory_address());
            for target in branch.into_iter().chain(address) {
                if range.contains(&target) {
                    starts.push(target);
                } else {
                    outside(target);
                }
            }
            if matches!(
                instruction.flow_control(),
                FlowControl::UnconditionalBranch
                    | FlowControl::IndirectBranch
                    | FlowControl::Return
            ) {
                break;
            }
        }
    }
    found
}

/// Addresses of a range: a bit for each, since there may be millions.
struct Seen {
    start: u64,
    bits: Vec<u64>,
}

impl Seen {
    fn new(range: &Range<u64>) -> Self {
        let len = (range.end - range.start) as usize;
        Self {
            start: range.start,
            bits: vec![0; len.div_ceil(64)],
        }
    }

    /// `true`: for the first time. `address` is in the range.
    fn insert(&mut self, address: u64) -> bool {
        let at = (address - self.start) as usize;
        let (word, bit) = (&mut self.bits[at / 64], 1 << (at % 64));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}

/// Those that a sweep over a function comes to, past what is invalid.
fn swept(image: &Image<'_>, range: &Range<u64>) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    let Some(bytes) = image.bytes_at(range.start) else {
        return found;
    };
    let mut decoder = Decoder::with_ip(64, bytes, range.start, DecoderOptions::NONE);
    while decoder.can_decode() && decoder.ip() < range.end {
        let instruction = decoder.decode();
        if calls_system(&instruction) {
            found.insert(instruction.ip());
        }
    }
    found
}

fn calls_system(instruction: &Instruction) -> bool {
    match instruction.code() {
        Code::Syscall | Code::Sysenter => true,
        Code::Int_imm8 => instruction.immediate8() == 0x80,
        _ => false,
    }
}
