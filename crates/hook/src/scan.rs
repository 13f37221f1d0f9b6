//! Looks through code for bytes of interest, a block at a time: what is looked for is rare, and code is long.

use std::ops::Range;

use crate::file::MappedFile;

/// Bytes that are looked at together; a number that vector registers divide.
const BLOCK: usize = 64;

/// Bytes after which those that were looked at are given back.
const WINDOW: usize = 1 << 20;

/// Code to be looked through.
#[derive(Clone, Copy)]
pub(crate) struct Code<'a> {
    pub(crate) bytes: &'a [u8],
    /// Where they are: pages of files count as memory of the process, and code may be longer than what it may have.
    pub(crate) file: Option<&'a MappedFile>,
}

impl Code<'_> {
    fn passed(&self, range: Range<usize>) {
        if let Some(file) = self.file {
            file.give_back(&self.bytes[range]);
        }
    }
}

/// Every offset of `code` whose byte and the one behind it are meant, in order.
///
/// `is_meant` without branches: it is evaluated for every byte, many at once.
fn pairs(code: Code<'_>, is_meant: impl Fn(u8, u8) -> bool, mut found: impl FnMut(usize)) {
    let bytes = code.bytes;
    let mut at = 0;
    while let Some(block) = bytes[at..].first_chunk::<{ BLOCK + 1 }>() {
        let mut meant = [0_u8; BLOCK];
        for (i, meant) in meant.iter_mut().enumerate() {
            *meant = u8::from(is_meant(block[i], block[i + 1]));
        }
        let mut left = bits(&meant);
        while left != 0 {
            found(at + left.trailing_zeros() as usize);
            left &= left - 1;
        }
        at += BLOCK;
        if at.is_multiple_of(WINDOW) {
            code.passed(at - WINDOW..at);
        }
    }
    for i in at..bytes.len().saturating_sub(1) {
        if is_meant(bytes[i], bytes[i + 1]) {
            found(i);
        }
    }
    code.passed(at / WINDOW * WINDOW..bytes.len());
}

/// A bit for every byte, each 0 or 1.
fn bits(bytes: &[u8; BLOCK]) -> u64 {
    let eights = bytes.as_chunks::<8>().0.iter().enumerate();
    eights.fold(0, |bits, (i, eight)| {
        // Of the products of byte k with these powers of two only one comes to the highest byte: at its bit k.
        let product = u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080);
        bits | product >> 56 << (8 * i)
    })
}

/// Where bytes are that look like a system call: `syscall`, `sysenter` and `int 0x80`.
pub(crate) fn system_calls(code: Code<'_>, found: impl FnMut(usize)) {
    let is_meant = |a, b| (a == 0x0f) & ((b == 0x05) | (b == 0x34)) | (a == 0xcd) & (b == 0x80);
    pairs(code, is_meant, found);
}

/// Where something may name an address relative to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Distance {
    /// Where the instruction begins, without prefixes.
    pub(crate) opcode: usize,
    /// Where the next one begins.
    pub(crate) end: usize,
    /// What the four bytes at the end of the instruction lead to, as an offset like the others; it may lie outside.
    pub(crate) target: i64,
    /// A jump, not an address.
    pub(crate) is_jump: bool,
}

/// Where bytes are that look like a long jump or a call, or like an address that is computed (`lea distance(%rip), register`),
/// and where they would lead.
pub(crate) fn distances(code: Code<'_>, mut found: impl FnMut(Distance)) {
    let is_meant = |a, b| is_jump(a, b) | (a == LEA) & (b & 0xc7 == 0x05);
    pairs(code, is_meant, |opcode| {
        let of = code.bytes[opcode];
        let operand = opcode + if of | 1 == 0xe9 { 1 } else { 2 };
        if let Some(distance) = code.bytes.get(operand..).and_then(<[u8]>::first_chunk) {
            let end = operand + distance.len();
            let target = end as i64 + i64::from(i32::from_le_bytes(*distance));
            found(Distance {
                opcode,
                end,
                target,
                is_jump: of != LEA,
            });
        }
    });
}

const LEA: u8 = 0x8d;

fn is_jump(a: u8, b: u8) -> bool {
    (a | 1 == 0xe9) | (a == 0x0f) & (b & 0xf0 == 0x80)
}

/// Ranges of addresses that are asked about often, mostly in vain.
pub(crate) struct Wanted {
    /// In order, apart from each other.
    ranges: Vec<Range<u64>>,
    /// Where the first begins.
    start: u64,
    /// A bit for every page from there on: something of it is wanted.
    pages: Vec<u64>,
}

impl Wanted {
    const PAGE: u64 = 4096;

    /// `ranges`: in order of their starts.
    pub(crate) fn new(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut apart: Vec<Range<u64>> = Vec::new();
        for range in ranges.into_iter().filter(|range| !range.is_empty()) {
            match apart.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => apart.push(range),
            }
        }
        let (start, end) = match (apart.first(), apart.last()) {
            (Some(first), Some(last)) => (first.start, last.end),
            _ => (0, 0),
        };
        let mut pages = vec![0; ((end - start) / Self::PAGE / 64 + 1) as usize];
        for range in &apart {
            for page in (range.start - start) / Self::PAGE..=(range.end - 1 - start) / Self::PAGE {
                pages[page as usize / 64] |= 1 << (page % 64);
            }
        }
        Self {
            ranges: apart,
            start,
            pages,
        }
    }

    pub(crate) fn has(&self, address: u64) -> bool {
        // Below the first it is larger than any.
        let page = address.wrapping_sub(self.start) / Self::PAGE;
        let word = usize::try_from(page / 64).ok();
        if word
            .and_then(|w| self.pages.get(w))
            .is_none_or(|word| word >> (page % 64) & 1 == 0)
        {
            return false;
        }
        let index = self.ranges.partition_point(|range| range.start <= address);
        index > 0 && address < self.ranges[index - 1].end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_memory(bytes: &[u8]) -> Code<'_> {
        Code { bytes, file: None }
    }

    /// Random bytes, and pairs that are looked for at every place of a block.
    fn code() -> Vec<u8> {
        let mut state = 7_u32;
        let mut code: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(1 << 18)
        .collect();
        for (i, at) in (0..4096).step_by(67).enumerate() {
            let pair = [
                [0x0f, 0x05],
                [0x0f, 0x34],
                [0xcd, 0x80],
                [0xe8, 0x00],
                [0x8d, 0x3d],
            ];
            code[at..at + 2].copy_from_slice(&pair[i % pair.len()]);
        }
        code
    }

    #[test]
    fn finds_what_a_look_at_each_byte_finds() {
        let code = code();
        // Ends at every place of a block, too.
        for len in (0..200).chain([code.len()]) {
            let code = &code[..len];
            let mut found = Vec::new();
            system_calls(in_memory(code), |at| found.push(at));
            let pairs = code.windows(2).enumerate();
            let expected = pairs
                .filter(|(_, pair)| {
                    [[0x0f, 0x05], [0x0f, 0x34], [0xcd, 0x80]]
                        .iter()
                        .any(|p| p == pair)
                })
                .map(|(at, _)| at);
            assert_eq!(found, expected.collect::<Vec<_>>(), "{len}");
        }
    }

    /// With a distance of four bytes.
    fn is_long(instruction: &iced_x86::Instruction) -> bool {
        let text = format!("{:?}", instruction.code());
        text.contains("rel32_64")
    }

    /// What is given back as it is passed comes again, also where one part ends and the next begins.
    #[test]
    fn long_code_in_a_file_is_looked_through_to_its_end() {
        let mut code = vec![0x90; 2 * WINDOW + WINDOW / 2 + 7];
        let len = code.len();
        let places = [0, 63, WINDOW - 2, 2 * WINDOW - 1, 2 * WINDOW + 1, len - 2];
        for at in places {
            code[at..at + 2].copy_from_slice(&[0x0f, 0x05]);
        }
        let path = std::env::temp_dir().join(format!("userswap-scan-{}", std::process::id()));
        std::fs::write(&path, &code).expect("writable");
        let file = crate::file::CodeFile::open(&path).and_then(|file| file.map());
        std::fs::remove_file(&path).expect("there");
        let file = file.expect("a file");
        let code = Code {
            bytes: file.bytes(),
            file: Some(&file),
        };
        for _ in 0..2 {
            let mut found = Vec::new();
            system_calls(code, |at| found.push(at));
            assert_eq!(found, places);
        }
    }

    #[test]
    fn distances_lead_where_a_decoder_says() {
        use iced_x86::{Decoder, DecoderOptions, OpKind};
        let code = code();
        let mut all = Vec::new();
        distances(in_memory(&code), |distance| all.push(distance));
        let mut seen = [0; 2];
        for at in 0..code.len() - 15 {
            let mut decoder = Decoder::with_ip(64, &code[at..], at as u64, DecoderOptions::NONE);
            let instruction = decoder.decode();
            let branch = instruction.op_count() > 0
                && instruction.op0_kind() == OpKind::NearBranch64
                && is_long(&instruction);
            let lea = instruction.mnemonic() == iced_x86::Mnemonic::Lea
                && instruction.is_ip_rel_memory_operand();
            if !(branch || lea) {
                continue;
            }
            let target = if branch {
                instruction.near_branch64()
            } else {
                instruction.ip_rel_memory_address()
            };
            // Prefixes may stand before it, and one of them makes some addresses short.
            let end = at + instruction.len();
            let is_it = |d: &&Distance| d.end == end && d.opcode >= at;
            let found = all
                .iter()
                .filter(is_it)
                .any(|d| d.target == target as i64 && d.is_jump == branch);
            if code[at] != 0x67 && !code[at..end].contains(&0x67) {
                assert!(found, "{at:x} {:x?}", &code[at..end]);
            }
            seen[usize::from(lea)] += 1;
        }
        assert!(seen[0] > 1000 && seen[1] > 10, "{seen:?}");
    }

    #[test]
    fn wanted_are_those_inside() {
        let ranges = [
            10..20,
            15..30,
            30..31,
            50..50,
            9000..9001,
            1 << 30..(1 << 30) + 5,
        ];
        let wanted = Wanted::new(ranges.clone());
        let around = [0, 4096, 8192, 1 << 30, u64::MAX - 100];
        for address in around.iter().flat_map(|&at| at..at + 100).chain(8990..9010) {
            let expected = ranges.iter().any(|range| range.contains(&address));
            assert_eq!(wanted.has(address), expected, "{address}");
        }
        assert!(!Wanted::new([]).has(0));
    }
}
