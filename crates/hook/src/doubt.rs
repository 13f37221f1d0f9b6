//! Bytes that look like a system call where no function is known, or where it cannot be decoded: data among code, or code
//! without unwind information. They count as system calls only if control can come there.

use crate::image::{Image, Segment};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Stretches longer than this are not looked through: whatever is in them may be run. Codecs have some of a few mebibytes.
const LONGEST: u64 = 64 << 20;

/// Those of `hits` (in order) that may be run.
pub(crate) fn reached(image: &Image<'_>, segment: &Segment, code: &[u8], hits: &[u64]) -> Vec<u64> {
    let sections = image.code_sections();
    let hits: Vec<u64> = hits
        .iter()
        .copied()
        .filter(|hit| {
            sections
                .as_ref()
                .is_none_or(|s| s.iter().any(|s| s.contains(hit)))
        })
        .collect();
    if hits.is_empty() {
        return hits;
    }
    let starts = image.starts();
    let mut places: BTreeMap<(u64, u64), Vec<u64>> = BTreeMap::new();
    for hit in hits {
        let place = image.surroundings(hit, segment, &starts);
        places
            .entry((place.start, place.end))
            .or_default()
            .push(hit);
    }
    let ranges: Vec<Range<u64>> = places.keys().map(|&(start, end)| start..end).collect();
    let entries = entries_into(image, segment, code, &ranges);
    let mut found = Vec::new();
    for (range, hits) in ranges.iter().zip(places.values()) {
        if range.end - range.start > LONGEST {
            found.extend(hits);
            continue;
        }
        let mut starts: Vec<u64> = entries.range(range.clone()).copied().collect();
        let mut run = BTreeSet::new();
        if image.function(range.start).is_some() {
            starts.push(range.start);
            run = swept(image, range);
        }
        run.extend(followed(image, range, starts));
        found.extend(hits.iter().filter(|hit| run.contains(hit)));
    }
    found
}

/// Every address in the ranges that a jump, a call, a computed address, a symbol or a word of data names.
fn entries_into(
    image: &Image<'_>,
    segment: &Segment,
    code: &[u8],
    ranges: &[Range<u64>],
) -> BTreeSet<u64> {
    let mut entries = BTreeSet::new();
    let mut offer = |target: u64| {
        let index = ranges.partition_point(|r| r.start <= target);
        if index > 0 && ranges[index - 1].contains(&target) {
            entries.insert(target);
        }
    };
    let relative = |at: usize| {
        let distance: &[u8; 4] = code.get(at..)?.first_chunk()?;
        Some(
            (segment.address + at as u64 + 4)
                .wrapping_add_signed(i64::from(i32::from_le_bytes(*distance))),
        )
    };
    for at in memchr::memchr3_iter(0xe8, 0xe9, 0x0f, code) {
        let operand = match (code[at], code.get(at + 1)) {
            (0x0f, Some(second)) if second & 0xf0 == 0x80 => at + 2,
            (0x0f, _) => continue,
            _ => at + 1,
        };
        relative(operand).into_iter().for_each(&mut offer);
    }
    // lea distance(%rip), register
    for at in memchr::memchr_iter(0x8d, code) {
        if code.get(at + 1).is_some_and(|second| second & 0xc7 == 0x05) {
            relative(at + 2).into_iter().for_each(&mut offer);
        }
    }
    image.named_addresses().into_iter().for_each(offer);
    entries
}

/// The system calls that control comes to from the starts, inside the range.
fn followed(image: &Image<'_>, range: &Range<u64>, mut starts: Vec<u64>) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    let mut seen = Seen::new(range);
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
                found.insert(instruction.ip());
            }
            if instruction.op_count() > 0 && instruction.op0_kind() == OpKind::NearBranch64 {
                starts.push(instruction.near_branch64());
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
