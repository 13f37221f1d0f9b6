//! Functions as instructions: decoded from their start, with every place that something may jump to.

use crate::image::Image;
use crate::scan::{self, Wanted};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};
use std::collections::BTreeSet;
use std::ops::Range;

/// How far a short jump reaches, with room for its own length and for what is moved around a site.
const SHORT: u64 = 160;

/// Room for the longest stretch that a rewrite may take on either side of a system call, in bytes.
const REACH: u64 = 64;

/// A function, decoded from its first byte to its last.
pub(crate) struct Function {
    pub(crate) code: Vec<Instruction>,
    /// Where its jumps, calls and jump tables lead, and its own start.
    pub(crate) targets: BTreeSet<u64>,
    /// It jumps through a register or memory, and no table was found for that.
    pub(crate) opaque_jump: bool,
}

/// Whether an instruction of a function begins at `address`; `None` where its bytes are not a whole number of valid instructions
/// (data among code). Less work than to decode it.
pub(crate) fn begins_at(image: &Image<'_>, range: &Range<u64>, address: u64) -> Option<bool> {
    let bytes = image.bytes_at(range.start)?;
    let bytes = bytes.get(..usize::try_from(range.end - range.start).ok()?)?;
    let mut decoder = Decoder::with_ip(64, bytes, range.start, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let mut found = false;
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() {
            return None;
        }
        found |= instruction.ip() == address;
    }
    Some(found)
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

    /// Whether control may reach the instruction: from above without a break, because something jumps to it, or by a jump through
    /// memory of which nothing is known.
    pub(crate) fn is_entered(&self, index: usize) -> bool {
        self.opaque_jump || self.is_jumped_to(index)
    }

    /// Whether control reaches the instruction from above without a break, or because something is known to jump to it.
    pub(crate) fn is_jumped_to(&self, index: usize) -> bool {
        for at in (0..=index).rev() {
            if self.targets.contains(&self.code[at].ip()) {
                return true;
            }
            if at > 0 && ends_block(&self.code[at - 1]) {
                return false;
            }
        }
        true
    }
}

/// Targets of jumps that lead from other functions to the places around some system calls.
///
/// Long jumps are looked for at every byte, whether or not it begins an instruction: that finds more than there are,
/// never fewer. Short ones can only come from close by, where functions are decoded.
pub(crate) struct JumpsNear<'n> {
    near: &'n [u64],
    base: u64,
    wanted: Wanted,
    found: BTreeSet<u64>,
}

impl<'n> JumpsNear<'n> {
    /// `near`: in order. `base`: where the code begins.
    pub(crate) fn new(near: &'n [u64], base: u64) -> Self {
        let window = |at: &u64| at.saturating_sub(REACH).max(base)..at + REACH;
        Self {
            near,
            base,
            wanted: Wanted::new(near.iter().map(window)),
            found: BTreeSet::new(),
        }
    }

    /// What bytes look like.
    pub(crate) fn see(&mut self, distance: &scan::Distance) {
        let target = self.base.wrapping_add_signed(distance.target);
        if distance.is_jump && self.wanted.has(target) {
            self.found.insert(target);
        }
    }

    /// All of them, once all bytes were seen.
    pub(crate) fn all(mut self, image: &Image<'_>) -> BTreeSet<u64> {
        let starts = image.starts();
        let mut next = 0;
        for &address in self.near {
            let first = starts.partition_point(|&start| start <= address.saturating_sub(SHORT));
            // Each function once, though it is close to several sites.
            next = next.max(first.saturating_sub(1));
            while let Some(&start) = starts.get(next).filter(|&&start| start < address + SHORT) {
                next += 1;
                let Some(range) = image.function(start) else {
                    continue;
                };
                let comes = |target: &u64| !range.contains(target) && self.wanted.has(*target);
                self.found.extend(jumps_of(image, &range).filter(comes));
            }
        }
        self.found
    }
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
