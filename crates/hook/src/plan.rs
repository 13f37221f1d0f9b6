//! Which bytes of a library are replaced by a jump, and what becomes of the instructions that stood there.

use crate::code::{self, Function, JumpsNear};
use crate::doubt::Stretches;
use crate::image::{Image, Segment};
use crate::piece::{self, Piece};
use crate::scan;
use iced_x86::{Code, FlowControl, Instruction, Mnemonic};
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

/// The length of `jmp rel32`.
pub(crate) const JUMP: u64 = 5;
/// The length of `jmp rel8`, and of `syscall` itself.
pub(crate) const SHORT_JUMP: u64 = 2;
/// How many instructions before or after the system call may move into the stub.
const NEIGHBOURS: usize = 4;
/// After how many places to look at pages of the file are given back: each may have brought a hundred KiB.
const GIVEN_BACK: usize = 64;
/// `mov $15, %rax; syscall`: the signal trampoline. Unwinders know it by these bytes, so it must keep them.
const SIGRETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];

/// A `syscall` instruction that can be rewritten. Those around it in the region run in the stub, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    /// Its address, in the file's numbering.
    pub(crate) address: u64,
    /// The bytes that are replaced.
    pub(crate) region: Range<u64>,
    /// Where the long jump goes if not into the region: padding that a short jump reaches.
    pub(crate) island: Option<u64>,
    /// The system call's number, where the instructions of the region set it.
    pub(crate) number: Option<u32>,
    /// Where its bytes begin in those of the plan.
    bytes: usize,
    /// Of how many pieces its region consists.
    pieces: usize,
}

/// What was found in one piece of code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) sites: Vec<Site>,
    /// For each site: the file's bytes of the region, and of the island; the pieces of the region.
    bytes: Vec<u8>,
    /// Sites that are what they seem, but have no room for a jump: address of the instruction.
    pub(crate) cramped: Vec<u64>,
    /// Bytes that look like a system call where the code could not be decoded.
    pub(crate) doubtful: Vec<u64>,
    /// Left as they are on purpose: `rt_sigreturn`, whose bytes unwinders recognise, and which takes no pointer.
    pub(crate) native: Vec<u64>,
}

impl Site {
    /// As it is kept: what is missing is added with its bytes.
    pub(crate) fn new(
        address: u64,
        region: Range<u64>,
        island: Option<u64>,
        number: Option<u32>,
    ) -> Self {
        Self {
            address,
            region,
            island,
            number,
            bytes: 0,
            pieces: 0,
        }
    }
}

impl Plan {
    /// Adds a site, with the bytes of its region and its island. `false`: the pieces are not those of the region.
    pub(crate) fn add(
        &mut self,
        mut site: Site,
        region: &[u8],
        island: &[u8],
        pieces: &[Piece],
    ) -> bool {
        let call = (site.address - site.region.start) as usize;
        let fits = piece::are_of(pieces, region, call)
            && region.len() as u64 == site.region.end - site.region.start
            && island.len() as u64 == site.island.map_or(0, |_| JUMP);
        if fits {
            site.bytes = self.bytes.len();
            site.pieces = pieces.len();
            self.bytes.extend(region);
            self.bytes.extend(island);
            self.bytes.extend(pieces.as_flattened());
            self.sites.push(site);
        }
        fits
    }

    /// None of the sites is rewritten, though there is room.
    pub(crate) fn cannot_be_rewritten(&mut self) {
        let sites = std::mem::take(&mut self.sites);
        self.cramped.extend(sites.iter().map(|site| site.address));
    }

    /// The bytes of a site's region, and of its island.
    pub(crate) fn original(&self, site: &Site) -> (&[u8], &[u8]) {
        let island = site.island.map_or(0, |_| JUMP as usize);
        let len = (site.region.end - site.region.start) as usize;
        self.bytes[site.bytes..][..len + island].split_at(len)
    }

    /// What a site's region consists of.
    pub(crate) fn pieces(&self, site: &Site) -> &[Piece] {
        let (region, island) = self.original(site);
        let start = site.bytes + region.len() + island.len();
        self.bytes[start..][..site.pieces * size_of::<Piece>()]
            .as_chunks()
            .0
    }

    /// What is overwritten for a site: each address, with the bytes that are there.
    pub(crate) fn overwritten(&self, site: &Site) -> impl Iterator<Item = (u64, &[u8])> {
        let (region, bytes) = self.original(site);
        let island = site.island.map(|at| (at, bytes));
        std::iter::once((site.region.start, region)).chain(island)
    }
}

/// Finds every system call in a segment and plans its rewriting.
pub(crate) fn plan(image: &mut Image<'_>, segment: &Segment) -> Plan {
    let mut plan = Plan::default();
    let code = image.scanned(segment);
    let mut hits: Vec<u64> = Vec::new();
    scan::system_calls(code, |at| hits.push(segment.address + at as u64));
    if hits.is_empty() {
        return plan;
    }
    if hits.iter().any(|&hit| image.function(hit).is_none()) {
        image.read_symbols();
    }
    let mut real: Vec<(u64, Rc<Function>)> = Vec::new();
    let mut unsure = Vec::new();
    let mut last: Option<(Range<u64>, Option<Rc<Function>>)> = None;
    for (index, hit) in hits.into_iter().enumerate() {
        if index % GIVEN_BACK == 0 {
            image.give_back();
        }
        let at = (hit - segment.address) as usize;
        if code.bytes[..at + 2].ends_with(&SIGRETURN) {
            plan.native.push(hit);
            continue;
        }
        let Some(range) = image.function(hit).or_else(|| image.function_and_gap(hit)) else {
            unsure.push(hit);
            continue;
        };
        if last.as_ref().is_none_or(|(of, _)| *of != range) {
            // Most bytes that look like a call are inside another instruction: that takes no more than a look.
            if code::begins_at(image, &range, hit) == Some(false) {
                continue;
            }
            let function = code::decode(image, &range).map(Rc::new);
            last = Some((range, function));
        }
        match last.as_ref().and_then(|(_, function)| function.clone()) {
            None => unsure.push(hit),
            Some(function) => match function.index_of(hit) {
                // Inside another instruction: not a system call.
                None => {}
                Some(index) => match function.code[index].code() {
                    Code::Syscall if function.is_entered(index) => real.push((hit, function)),
                    // The old ways in take other numbers and other registers.
                    Code::Int_imm8 | Code::Sysenter if function.is_jumped_to(index) => {
                        plan.cramped.push(hit);
                    }
                    _ => unsure.push(hit),
                },
            },
        }
    }
    let near: Vec<u64> = real.iter().map(|(hit, _)| *hit).collect();
    let mut foreign = JumpsNear::new(&near, segment.address);
    let mut stretches = Stretches::around(image, segment, &unsure);
    if !near.is_empty() || !stretches.is_empty() {
        scan::distances(code, |distance| {
            foreign.see(&distance);
            stretches.see(&distance);
        });
    }
    let foreign = foreign.all(image);
    plan.doubtful.extend(stretches.reached());
    let mut taken: BTreeSet<u64> = BTreeSet::new();
    for (address, function) in &real {
        let index = function.index_of(*address).expect("looked up above");
        let free = |at: &u64| !function.targets.contains(at) && !foreign.contains(at);
        let site = with_jump(function, index, &free, &near, &taken)
            .or_else(|| with_island(image, function, index, &foreign, &taken));
        match site {
            Some(site) => {
                let original = |range: Range<u64>| bytes_of(image, &range).unwrap_or_default();
                let island = site.island.map(|at| original(at..at + JUMP));
                let region = original(site.region.clone());
                let used = [
                    Some(site.region.clone()),
                    site.island.map(|at| at..at + JUMP),
                ];
                let pieces = piece::split(region, site.region.start);
                if plan.add(site, region, island.unwrap_or_default(), &pieces) {
                    taken.extend(used.into_iter().flatten().flatten());
                } else {
                    plan.cramped.push(*address);
                }
            }
            None => plan.cramped.push(*address),
        }
    }
    plan
}

/// A region around the system call that is long enough for a jump and entered only at its start.
fn with_jump(
    function: &Function,
    index: usize,
    free: &dyn Fn(&u64) -> bool,
    near: &[u64],
    taken: &BTreeSet<u64>,
) -> Option<Site> {
    let code = &function.code;
    // Few moved instructions first, and among those the ones before: they tell the number.
    for moved in 1..=2 * NEIGHBOURS {
        for before in (0..=moved.min(NEIGHBOURS)).rev() {
            let after = moved - before;
            if after > NEIGHBOURS || before > index || index + after >= code.len() {
                continue;
            }
            let all = &code[index - before..=index + after];
            let region = all[0].ip()..all[all.len() - 1].next_ip();
            if can_move(all, before)
                && all[1..].iter().all(|i| free(&i.ip()))
                && near[near.partition_point(|n| *n < region.start)..]
                    .iter()
                    .take_while(|n| **n < region.end)
                    .all(|n| *n == code[index].ip())
                && !region.clone().any(|at| taken.contains(&at))
            {
                let number = before
                    .checked_sub(1)
                    .and_then(|last| code::sets_number(&all[last]));
                return Some(Site::new(code[index].ip(), region, None, number));
            }
        }
    }
    None
}

/// Whether the instructions around the one at `index`, a system call, have room for a jump and mean the same in a stub.
fn can_move(all: &[Instruction], index: usize) -> bool {
    all[all.len() - 1].next_ip() - all[0].ip() >= JUMP
        && all[..index].iter().all(is_plain)
        && all[index + 1..].iter().all(is_movable)
        && all[index + 1..].iter().rev().skip(1).all(|i| !ends(i))
}

fn bytes_of<'a>(image: &Image<'a>, range: &Range<u64>) -> Option<&'a [u8]> {
    image
        .bytes_at(range.start)?
        .get(..(range.end - range.start) as usize)
}

/// A short jump in place of the two bytes, to padding between functions where a long one fits.
fn with_island(
    image: &Image<'_>,
    function: &Function,
    index: usize,
    foreign: &BTreeSet<u64>,
    taken: &BTreeSet<u64>,
) -> Option<Site> {
    let address = function.code[index].ip();
    let reach = address.saturating_sub(120)..address + 120;
    let island = reach.clone().find(|&at| {
        let room = at..at + JUMP;
        room.clone()
            .all(|b| !taken.contains(&b) && !foreign.contains(&b))
            && is_padding(image, &room)
    })?;
    let region = address..address + SHORT_JUMP;
    Some(Site::new(address, region, Some(island), None))
}

/// Whether the bytes belong to no function and are part of a run of no-operations that a function's end begins.
fn is_padding(image: &Image<'_>, room: &Range<u64>) -> bool {
    if room.clone().any(|at| image.function(at).is_some()) {
        return false;
    }
    // Decode from the end of the function below, which is the only boundary known here.
    let Some(start) = (room.start.saturating_sub(16)..room.start)
        .rev()
        .find_map(|at| image.function(at))
        .map(|f| f.end)
    else {
        return false;
    };
    let Some(bytes) = image.bytes_at(start) else {
        return false;
    };
    let mut decoder = iced_x86::Decoder::with_ip(64, bytes, start, iced_x86::DecoderOptions::NONE);
    while decoder.can_decode() && decoder.ip() < room.end {
        if !matches!(decoder.decode().mnemonic(), Mnemonic::Nop | Mnemonic::Int3) {
            return false;
        }
    }
    true
}

/// May move in front of the system call: goes on to the next instruction, whatever happens.
fn is_plain(instruction: &Instruction) -> bool {
    instruction.flow_control() == FlowControl::Next && instruction.code() != Code::Syscall
}

/// May move behind it: also jumps and returns, which mean the same from anywhere.
fn is_movable(instruction: &Instruction) -> bool {
    is_plain(instruction)
        || piece::is_jump(instruction)
        || instruction.flow_control() == FlowControl::Return
}

/// Nothing after it runs.
fn ends(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::UnconditionalBranch | FlowControl::Return
    )
}
