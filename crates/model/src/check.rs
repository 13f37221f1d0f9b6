//! The invariants, looked at in every state (I4 and I5 show as lost data where a page is mapped).

use userswap_core::SlotWord;
use userswap_core::step::Step;

use crate::config::Config;
use crate::machine::Taken;
use crate::state::{CachedPage, Content, Owner, Pc, Phase, Pte, Space, State, Thread};
use crate::violation::Violation;

/// Whether `state` keeps what has to hold at every moment.
///
/// # Errors
/// What is broken.
pub fn always(config: &Config, state: &State) -> Taken {
    for (number, slot) in state.slots[..config.slots].iter().enumerate() {
        let entry = Pte::Swapped(number as u8);
        let ptes = state.spaces.iter().flat_map(|space| &space.ptes);
        let held = ptes.filter(|&&pte| pte == entry).count() as i32;
        let on_their_way: i32 = state
            .threads
            .iter()
            .map(|thread| ahead(thread, number as u8))
            .sum();
        let word = slot.word.state();
        if word.count as i32 != held + on_their_way {
            return Err(Violation::Count);
        }
        if word.has_cache != (slot.owner != Owner::Nobody) {
            return Err(Violation::Owner);
        }
        // Without the pin it is so for a moment, under the PTE lock.
        let shown = |space: &Space| space.lock.is_none() && space.ptes.contains(&entry);
        if slot.word.is_free() && state.spaces.iter().any(shown) {
            return Err(Violation::FreeEntry);
        }
    }
    for space in &state.spaces {
        for page in 0..config.pages {
            let Some(stored) = space.truth[page] else {
                continue;
            };
            let there = space.memory[page].or(match space.ptes[page] {
                Pte::Swapped(slot) => Some(behind(state, slot)),
                Pte::Present => None,
                Pte::None => Some(Content::ZEROS),
            });
            // Under the PTE lock the page may be between memory and frame.
            if there.is_none() && space.lock.is_some() {
                continue;
            }
            if there != Some(Content::whole(stored)) {
                return Err(Violation::Unreachable);
            }
        }
    }
    if state.gone && state.slots.iter().any(|slot| !slot.word.is_free()) {
        return Err(Violation::DeviceGone);
    }
    Ok(())
}

/// What a fault on the entry would bring: the cached page if its data are not written, else the slot.
fn behind(state: &State, slot: u8) -> Content {
    let cached = state.slots[usize::from(slot)].cached;
    let frame = cached.map(|at| (&state.frames[usize::from(at.block)], usize::from(at.index)));
    match frame {
        Some((frame, index)) if frame.pages[index].dirty => frame.content,
        _ => state.slots[usize::from(slot)].data,
    }
}

/// How far the count of `slot` is ahead of the PTEs because of what `thread` is in the middle of.
fn ahead(thread: &Thread, slot: u8) -> i32 {
    let mine = thread.slot == Some(slot);
    let finishing = matches!(thread.pc, Pc::Do(Step::Discard | Step::FinishFree));
    match thread.pc {
        Pc::Do(Step::PutEntry) if mine => 1,
        Pc::Do(Step::EnterDevice | Step::SwapFree) if mine && thread.phase == Phase::Drop => 1,
        Pc::Do(Step::LeaveDevice)
            if thread.other == Some(slot)
                && thread.phase == Phase::Fork
                && thread.after_leave == Pc::ChildSet =>
        {
            1
        }
        Pc::Do(Step::SetPte) if mine => -1,
        _ if mine && finishing && thread.after_free == Pc::Do(Step::SetPte) => -1,
        _ => 0,
    }
}

/// Whether nothing is held any more in `state`, where every thread has finished.
///
/// # Errors
/// Something is.
pub fn at_end(config: &Config, state: &State) -> Taken {
    let mut cached = [0; crate::state::FRAMES];
    for slot in &state.slots[..config.slots] {
        if let Some(frame) = slot.cached {
            cached[usize::from(frame.block)] += 1;
        }
        // A page whose write failed stays staged, and keeps h.
        let owner = if slot.cached.is_some() {
            Owner::Page
        } else {
            Owner::Nobody
        };
        let free = slot.word == SlotWord::FREE;
        if slot.owner != owner || (!free && slot.word.state().count == 0) {
            return Err(Violation::Leaked);
        }
    }
    let held = state.frames.iter().zip(cached).any(|(frame, cached)| {
        let quiet = |page: &CachedPage| !page.locked && !page.writeback;
        frame.holds != cached || !frame.pages.iter().all(quiet)
    });
    let locks = state.spaces.iter().any(|space| space.lock.is_some())
        || state.slots.iter().any(|slot| slot.bucket.is_some());
    if held || locks || state.inside != 0 || state.waiting != 0 {
        return Err(Violation::Leaked);
    }
    Ok(())
}
