//! Functions as instructions: decoded from their start, with every place that something may jump to.

use crate::image::Image;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};
use std::collections::BTreeSet;
use std::ops::Range;

/// How far a short jump reaches, with room for its own length and for what is moved around a site.
const SHORT: u64 = 160;

/// A function, decoded from its first byte to its last.
pub(crate) struct Function {
    pub(crate) code: Vec<Instruction>,
    /// Where its jumps, calls and jump tables lead, and its own start.
    pub(crate) targets: BTreeSet<u64>,
    /// It jumps through a register or memory, and no table was found for that.
    pub(crate) opaque_jump: bool,
}

/// Decodes a function; `None` where its bytes are not a whole number of valid instructions (data among code).
pub(crate) fn decode(image: &Image<'_>, range: &Range<u64>) -> Option<Function> {
    let bytes = image.bytes_at(range.start)?;
    let bytes = bytes.get(..usize::try_from(range.end - range.start).ok()?)?;
    let mut decoder = Decoder::with_ip(64, bytes, range.start, DecoderOptions::NONE);
    let mut code = Vec::new();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return None;
        }
        code.push(instruction);
    }
    let mut function = Function {
        code,
        targets: BTreeSet::from([range.start]),
        opaque_jump: false,
    };
    function.collect_targets(image, range);
    Some(function)
}

impl Function {
    fn collect_targets(&mut self, image: &Image<'_>, range: &Range<u64>) {
        let mut indirect = false;
        let mut tables = Vec::new();
        for instruction in &self.code {
            if let Some(target) = branch_target(instruction) {
                self.targets.insert(target);
            }
            indirect |= instruction.flow_control() == FlowControl::IndirectBranch;
            if instruction.is_ip_rel_memory_operand()
                && instruction.mnemonic() == iced_x86::Mnemonic::Lea
            {
                let address = instruction.ip_rel_memory_address();
                // The address of code in this very function may be jumped to.
                self.targets.insert(address);
                tables.push(address);
            }
        }
        if indirect {
            // Whatever can be read as a table of offsets into this function is taken for one: too many targets cost
            // a rewrite, one too few would cost correctness.
            let before = self.targets.len();
            for table in tables {
                self.read_table(image, table, range);
            }
            self.opaque_jump = self.targets.len() == before;
        }
    }

    fn read_table(&mut self, image: &Image<'_>, table: u64, range: &Range<u64>) {
        let Some(bytes) = image.bytes_at(table) else {
            return;
        };
        for word in bytes.as_chunks::<4>().0 {
            let target = table.wrapping_add_signed(i64::from(i32::from_le_bytes(*word)));
            if !range.contains(&target) {
                break;
            }
            self.targets.insert(target);
        }
    }

    /// The index of the instruction that begins at `address`.
    pub(crate) fn index_of(&self, address: u64) -> Option<usize> {
        self.code.binary_search_by_key(&address, |i| i.ip()).ok()
    }

    /// Whether control reaches the instruction at all: from above without a break, or because something jumps to it.
    pub(crate) fn is_entered(&self, index: usize) -> bool {
        for at in (0..=index).rev() {
            if self.targets.contains(&self.code[at].ip()) {
                return true;
            }
            if at > 0 && ends_block(&self.code[at - 1]) {
                // Only a jump through memory could lead here.
                return self.opaque_jump;
            }
        }
        true
    }
}

/// Targets of jumps that lead from other functions into `window`.
///
/// Long jumps are looked for at every byte, whether or not it begins an instruction: that finds more than there are,
/// never fewer. Short ones can only come from close by, where functions are decoded.
pub(crate) fn jumps_into(image: &Image<'_>, code: &[u8], base: u64, near: &[u64]) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    let wanted = Bitmap::around(near, base, code.len());
    for opcode in memchr::memchr3_iter(0xe8, 0xe9, 0x0f, code) {
        let at = match (code[opcode], code.get(opcode + 1)) {
            (0x0f, Some(second)) if second & 0xf0 == 0x80 => opcode + 2,
            (0x0f, _) => continue,
            _ => opcode + 1,
        };
        let Some(&four) = code.get(at..).and_then(|rest| rest.first_chunk()) else {
            continue;
        };
        let target = (at as i64) + 4 + i64::from(i32::from_le_bytes(four));
        if let Ok(target) = usize::try_from(target)
            && wanted.has(target)
        {
            found.insert(base + target as u64);
        }
    }
    let starts = image.starts();
    let mut next = 0;
    for &address in near {
        let first = starts.partition_point(|&start| start <= address.saturating_sub(SHORT));
        // Each function once, though it is close to several sites.
        next = next.max(first.saturating_sub(1));
        while let Some(&start) = starts.get(next).filter(|&&start| start < address + SHORT) {
            next += 1;
            let Some(range) = image.function(start) else {
                continue;
            };
            let wanted = |target: &u64| {
                usize::try_from(target.wrapping_sub(base)).is_ok_and(|t| wanted.has(t))
            };
            found.extend(jumps_of(image, &range).filter(|t| !range.contains(t) && wanted(t)));
        }
    }
    found
}

/// Where the direct jumps of a function lead, as far as it can be decoded.
fn jumps_of(image: &Image<'_>, range: &Range<u64>) -> impl Iterator<Item = u64> + use<> {
    let mut targets = Vec::new();
    let len = usize::try_from(range.end - range.start).unwrap_or(0);
    if let Some(bytes) = image.bytes_at(range.start).and_then(|b| b.get(..len)) {
        let mut decoder = Decoder::with_ip(64, bytes, range.start, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            targets.extend(branch_target(&instruction));
        }
    }
    targets.into_iter()
}

/// Where a direct jump or call leads.
fn branch_target(instruction: &Instruction) -> Option<u64> {
    match instruction.op0_kind() {
        OpKind::NearBranch64 if instruction.op_count() > 0 => Some(instruction.near_branch64()),
        _ => None,
    }
}

/// Whether control never goes on to the next instruction.
fn ends_block(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::Return
            | FlowControl::Exception
    )
}

/// The number of the system call, where this instruction is what sets it.
pub(crate) fn sets_number(instruction: &Instruction) -> Option<u32> {
    let to_rax = instruction.op0_kind() == OpKind::Register
        && matches!(instruction.op0_register(), Register::EAX | Register::RAX);
    match instruction.mnemonic() {
        iced_x86::Mnemonic::Mov
            if to_rax
                && matches!(
                    instruction.op1_kind(),
                    OpKind::Immediate32 | OpKind::Immediate32to64
                ) =>
        {
            Some(instruction.immediate32())
        }
        iced_x86::Mnemonic::Xor
            if to_rax && instruction.op0_register() == instruction.op1_register() =>
        {
            Some(0)
        }
        _ => None,
    }
}

/// A set of byte offsets near some addresses.
struct Bitmap(Vec<u64>);

impl Bitmap {
    /// Room for the longest stretch that a rewrite may take on either side.
    const REACH: u64 = 64;

    fn around(near: &[u64], base: u64, len: usize) -> Self {
        let mut bits = vec![0u64; len / 64 + 1];
        for &address in near {
            let start = address.saturating_sub(Self::REACH).max(base) - base;
            let end = (address + Self::REACH - base).min(len as u64);
            for at in start..end {
                bits[at as usize / 64] |= 1 << (at % 64);
            }
        }
        Bitmap(bits)
    }

    fn has(&self, at: usize) -> bool {
        self.0
            .get(at / 64)
            .is_some_and(|word| word >> (at % 64) & 1 != 0)
    }
}
