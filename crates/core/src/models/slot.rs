//! The slot word: who owns the flag, and who frees.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use super::{Model, area, read, write};
use crate::area::SwapArea;
use crate::entry::SwapEntry;
use crate::rule::{Kept, Rule};
use crate::sync::Mutex;

/// Two faults and a fork of one entry: one owner at a time (I2).
pub(super) const OWNERS: Model = Model {
    name: "the flag has one owner",
    preemptions: Some(3),
    run: owners,
    rests_on: &[Rule::OneOwner],
};

/// A fault, an unmap and an allocation on one slot: what is read under the pin is what was written (I3), the
/// last drop frees once, and the data are discarded before the slot is handed out.
pub(super) const REUSE: Model = Model {
    name: "a pinned slot is not reused",
    preemptions: Some(3),
    run: reuse,
    rests_on: &[Rule::DiscardBeforeReuse],
};

/// Two holders let go while a third comes and a fault has the pin: the count is right (I1), one frees.
pub(super) const COUNT: Model = Model {
    name: "the last drop frees, once",
    preemptions: Some(3),
    run: count,
    rests_on: &[],
};

/// A slot in one PTE, with 7 in it.
fn swapped(area: &SwapArea) -> SwapEntry {
    let mut slots = [0];
    assert_eq!(area.allocate(&mut slots), 1);
    let entry = area.entry(slots[0]);
    write(area, slots[0], 7);
    area.put_in_pte(entry).expect("a fresh slot");
    area.release([entry]);
    entry
}

fn owners(kept: Kept) {
    let area = Arc::new(area(1, kept));
    let entry = swapped(&area);
    let owners = Arc::new(AtomicU32::new(0));
    let faults = [(); 2].map(|()| {
        let (area, owners) = (Arc::clone(&area), Arc::clone(&owners));
        thread::spawn(move || {
            if area.prepare(entry).is_ok() {
                let others = owners.fetch_add(1, Ordering::Relaxed);
                assert_eq!(others, 0, "two owners of one flag");
                owners.fetch_sub(1, Ordering::Relaxed);
                area.release([entry]);
            }
        })
    });
    area.duplicate(entry).expect("the slot is in use");
    for fault in faults {
        fault.join().expect("fault");
    }
    let slot = area.slot(entry);
    assert_eq!((slot.count, slot.has_cache), (2, false));
}

fn reuse(kept: Kept) {
    let area = Arc::new(area(2, kept));
    let entry = swapped(&area);
    // The other slot was used before: the allocator comes by again.
    let mut other = [0];
    assert_eq!(area.allocate(&mut other), 1);
    area.release([area.entry(other[0])]);
    // The PTE, with its lock: whether it holds the entry.
    let pte = Arc::new(Mutex::new(true));
    let fault = {
        let (area, pte) = (Arc::clone(&area), Arc::clone(&pte));
        thread::spawn(move || {
            if area.prepare(entry).is_err() {
                return;
            }
            if area.slot(entry).count == 1 {
                assert_eq!(read(&area, entry.offset()), 7, "the slot was reused");
            }
            let mut holds = pte.lock();
            if std::mem::take(&mut *holds) {
                area.free_owned(entry);
            }
            drop(holds);
            area.release([entry]);
        })
    };
    let unmap = {
        let (area, pte) = (Arc::clone(&area), Arc::clone(&pte));
        thread::spawn(move || {
            if std::mem::take(&mut *pte.lock()) {
                area.free(entry);
            }
        })
    };
    let mut slots = [9; 2];
    let got = area.allocate(&mut slots);
    let reused = slots[..got].contains(&entry.offset());
    if reused {
        assert_eq!(
            read(&area, entry.offset()),
            0,
            "handed out before the discard"
        );
        write(&area, entry.offset(), 9);
    }
    fault.join().expect("fault");
    unmap.join().expect("unmap");
    assert_eq!(area.used(), got as u64);
    let expected = if reused { 9 } else { 0 };
    assert_eq!(
        read(&area, entry.offset()),
        expected,
        "the next owner's data"
    );
}

fn count(kept: Kept) {
    let area = Arc::new(area(1, kept));
    let entry = swapped(&area);
    area.duplicate(entry).expect("in use");
    let holder = Arc::clone(&area);
    let first = thread::spawn(move || holder.free(entry));
    let holder = Arc::clone(&area);
    let second = thread::spawn(move || {
        // It holds the entry, so it can share it.
        holder.duplicate(entry).expect("in use");
        holder.free(entry);
        holder.free(entry);
    });
    if area.prepare(entry).is_ok() {
        area.release([entry]);
    }
    first.join().expect("first");
    second.join().expect("second");
    assert_eq!(area.used(), 0, "the slot is free");
    assert_eq!(read(&area, entry.offset()), 0, "and empty");
}
