//! A plan as bytes, for other processes that use the same file.
//!
//! What can be told from a site alone is checked again. That nothing jumps into it is what is taken on trust.

use crate::image::Segment;
use crate::piece::Piece;
use crate::plan::{self, Plan, Site};

/// The plan's bytes; `None`: it has what is not foreseen here.
pub(crate) fn pack(plan: &Plan) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(4096);
    for list in [&plan.cramped, &plan.doubtful, &plan.native] {
        put(&mut out, list.len() as u64);
        list.iter().for_each(|address| put(&mut out, *address));
    }
    put(&mut out, plan.sites.len() as u64);
    for site in &plan.sites {
        put(&mut out, site.region.start);
        let len = u8::try_from(site.region.end - site.region.start).ok()?;
        // 0: none. An island is never in the region.
        let island = match site.island {
            None => 0,
            Some(at) => i8::try_from(at.wrapping_sub(site.region.start).cast_signed()).ok()?,
        };
        let call = u8::try_from(site.address - site.region.start).ok()?;
        let (region, padding) = plan.original(site);
        let pieces = plan.pieces(site);
        let count = u8::try_from(pieces.len()).ok()?;
        out.extend([len, call, island.cast_unsigned(), count]);
        // No call has the last number there is.
        out.extend(site.number.unwrap_or(u32::MAX).to_le_bytes());
        out.extend(region.iter().chain(padding));
        out.extend(pieces.as_flattened());
    }
    Some(out)
}

/// The plan; `None` where it is none for this segment.
pub(crate) fn unpack(mut bytes: &[u8], segment: &Segment) -> Option<Plan> {
    let bytes = &mut bytes;
    let mut list = || -> Option<Vec<u64>> {
        // Lengths are checked by what is there: each takes eight bytes.
        (0..take_word(bytes)?).map(|_| take_word(bytes)).collect()
    };
    let mut plan = Plan::default();
    (plan.cramped, plan.doubtful, plan.native) = (list()?, list()?, list()?);
    for _ in 0..take_word(bytes)? {
        take_site(bytes, segment, &mut plan)?;
    }
    (bytes.is_empty() && are_apart(&plan.sites)).then_some(plan)
}

fn put(out: &mut Vec<u8>, word: u64) {
    out.extend(word.to_le_bytes());
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(len)?;
    *bytes = tail;
    Some(head)
}

fn take_word(bytes: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*take(bytes, 8)?.first_chunk()?))
}

fn take_site(bytes: &mut &[u8], segment: &Segment, plan: &mut Plan) -> Option<()> {
    let start = take_word(bytes)?;
    let &[len, call, island, count] = take(bytes, 4)? else {
        return None;
    };
    let number = u32::from_le_bytes(*take(bytes, 4)?.first_chunk()?);
    let region = start..start.checked_add(len.into())?;
    let island = match island.cast_signed() {
        0 => None,
        distance => Some(start.checked_add_signed(distance.into())?),
    };
    let code = take(bytes, len.into())?;
    let padding = take(bytes, island.map_or(0, |_| plan::JUMP as usize))?;
    let (pieces, _) = take(bytes, usize::from(count) * size_of::<Piece>())?.as_chunks();
    let ends = |at: u64, len: u64| [Some(at), at.checked_add(len - 1)];
    let mut places = ends(start, u64::from(len).max(1))
        .into_iter()
        .chain(island.into_iter().flat_map(|at| ends(at, plan::JUMP)));
    let inside = places.all(|at| at.is_some_and(|at| segment.contains(at)));
    let long_enough = match island {
        Some(_) => u64::from(len) == plan::SHORT_JUMP,
        None => u64::from(len) >= plan::JUMP,
    };
    let number = (number != u32::MAX).then_some(number);
    let site = Site::new(start + u64::from(call), region, island, number);
    (inside && long_enough && plan.add(site, code, padding, pieces)).then_some(())
}

/// Whether no byte belongs to two of them.
fn are_apart(sites: &[Site]) -> bool {
    let islands = sites.iter().filter_map(|site| site.island);
    let mut taken: Vec<_> = sites.iter().map(|site| site.region.clone()).collect();
    taken.extend(islands.map(|at| at..at + plan::JUMP));
    taken.sort_unstable_by_key(|range| range.start);
    taken.windows(2).all(|two| two[0].end <= two[1].start)
}
