//! What the region of a site consists of: instructions, told by how they are moved into a stub.
//!
//! Told once, when a file is looked through: moving them takes their bytes and no decoder, whose tables are large.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Register};

/// One instruction: its kind, and how many bytes it has.
pub(crate) type Piece = [u8; 2];

/// Means the same anywhere.
pub(crate) const COPIED: u8 = 0;
/// The system call.
pub(crate) const CALL: u8 = 1;
/// A direct jump, conditional or not, without prefixes.
pub(crate) const JUMP: u8 = 2;
/// A return: nothing behind it runs.
pub(crate) const RETURN: u8 = 3;
/// And above: addresses memory relative to itself; what is above this is where the distance stands in it.
pub(crate) const RELATIVE: u8 = 16;
/// Fits no instruction.
const UNMOVABLE: u8 = u8::MAX;

/// The pieces of the code at `address`. An instruction that cannot be moved is of a kind that does not fit.
pub(crate) fn split(code: &[u8], address: u64) -> Vec<Piece> {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut pieces = Vec::new();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        let kind = if instruction.code() == Code::Syscall {
            CALL
        } else if is_jump(&instruction) {
            JUMP
        } else if instruction.flow_control() == FlowControl::Return {
            RETURN
        } else if instruction.memory_base() == Register::EIP {
            // Relative, and then cut to 32 bits.
            UNMOVABLE
        } else if instruction.is_ip_rel_memory_operand() {
            let offsets = decoder.get_constant_offsets(&instruction);
            RELATIVE + offsets.displacement_offset() as u8
        } else {
            COPIED
        };
        pieces.push([kind, instruction.len() as u8]);
    }
    pieces
}

/// Whether it is a direct jump that can be made a long one.
pub(crate) fn is_jump(instruction: &Instruction) -> bool {
    let conditional = instruction.is_jcc_short_or_near();
    let len = match instruction.code().is_jcc_short() || instruction.code().is_jmp_short() {
        true => 2,
        false if conditional => 6,
        false => 5,
    };
    (conditional || instruction.is_jmp_short_or_near()) && instruction.len() == len
}

/// Whether these are the pieces of `code`, with the system call at `call`, as far as can be told without a decoder.
pub(crate) fn are_of(pieces: &[Piece], code: &[u8], call: usize) -> bool {
    let mut at = 0;
    let mut calls = 0;
    for &[kind, len] in pieces {
        let Some(bytes) = code.get(at..at + usize::from(len)) else {
            return false;
        };
        let last = at + bytes.len() == code.len();
        let fits = match kind {
            COPIED => !bytes.is_empty(),
            CALL => bytes == [0x0f, 0x05] && at == call,
            JUMP => jump(bytes).is_some_and(|jump| at > call && (last || jump.condition.is_some())),
            RETURN => last && at > call,
            _ => kind.checked_sub(RELATIVE).is_some_and(|distance| {
                usize::from(distance) > 0 && usize::from(distance) + 4 <= bytes.len()
            }),
        };
        if !fits {
            return false;
        }
        calls += usize::from(kind == CALL);
        at += bytes.len();
    }
    at == code.len() && calls == 1
}

/// A direct jump.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Jump {
    /// Of a conditional one, the four bits that say on what.
    pub(crate) condition: Option<u8>,
    /// From its end.
    pub(crate) distance: i32,
}

/// The jump that these bytes are.
pub(crate) fn jump(bytes: &[u8]) -> Option<Jump> {
    let short = |byte: u8| i32::from(byte.cast_signed());
    let (condition, distance) = match *bytes {
        [0xeb, distance] => (None, short(distance)),
        [0xe9, a, b, c, d] => (None, i32::from_le_bytes([a, b, c, d])),
        [code, distance] if code & 0xf0 == 0x70 => (Some(code & 0xf), short(distance)),
        [0x0f, code, a, b, c, d] if code & 0xf0 == 0x80 => {
            (Some(code & 0xf), i32::from_le_bytes([a, b, c, d]))
        }
        _ => return None,
    };
    Some(Jump {
        condition,
        distance,
    })
}
