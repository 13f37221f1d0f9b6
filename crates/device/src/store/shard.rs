//! Shards: what threads on different CPUs, or storing different sizes, do not share.
//!
//! A shard owns blocks of one class. Those with a free object are in four lists by density;
//! allocation takes from the densest, so that sparse blocks drain, or fills holes. Those with idle pages are also
//! in a queue, oldest first, from which pages are given back once there are more than a few.
//!
//! A shard is reached only through its lock, and changes the bookkeeping of its own blocks only.

use std::sync::atomic::Ordering::Relaxed;

use super::block::{BY_DENSITY, BY_IDLE, Block, DENSITIES, FULL, NONE, Pages, RELEASING};
use super::class::Class;

/// A doubly linked list of blocks, threaded through their bookkeeping.
#[derive(Debug)]
struct List<const KIND: usize> {
    head: u32,
    tail: u32,
}

impl<const KIND: usize> List<KIND> {
    const EMPTY: Self = Self {
        head: NONE,
        tail: NONE,
    };

    fn push_back(&mut self, blocks: &[Block], id: u32) {
        let tail = self.tail;
        let link = &blocks[id as usize].links[KIND];
        link.next.store(NONE, Relaxed);
        link.previous.store(tail, Relaxed);
        self.join(blocks, tail, id);
        self.tail = id;
    }

    fn remove(&mut self, blocks: &[Block], id: u32) {
        let link = &blocks[id as usize].links[KIND];
        let (next, previous) = (link.next.load(Relaxed), link.previous.load(Relaxed));
        self.join(blocks, previous, next);
        if next == NONE {
            self.tail = previous;
        } else {
            blocks[next as usize].links[KIND]
                .previous
                .store(previous, Relaxed);
        }
    }

    /// Makes `next` what follows `previous`, or what the list begins with.
    fn join(&mut self, blocks: &[Block], previous: u32, next: u32) {
        if previous == NONE {
            self.head = next;
        } else {
            blocks[previous as usize].links[KIND]
                .next
                .store(next, Relaxed);
        }
    }

    fn last(&self) -> Option<u32> {
        (self.tail != NONE).then_some(self.tail)
    }

    fn first(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }
}

/// The blocks of one class that one group of CPUs allocates from.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) class: Class,
    density: [List<BY_DENSITY>; DENSITIES as usize],
    idle: List<BY_IDLE>,
    /// Pages in the `idle` masks of all its blocks.
    pub(super) idle_pages: u32,
    /// How many blocks it has.
    pub(super) blocks: u32,
}

impl Shard {
    pub(super) fn new(class: Class) -> Self {
        Self {
            class,
            density: [const { List::EMPTY }; DENSITIES as usize],
            idle: List::EMPTY,
            idle_pages: 0,
            blocks: 0,
        }
    }

    /// The block to allocate from: one of the fullest that have room.
    pub(super) fn densest(&self) -> Option<u32> {
        self.candidates().next()
    }

    /// Blocks with room, one of each density, the fullest first.
    pub(super) fn candidates(&self) -> impl Iterator<Item = u32> {
        self.density.iter().rev().filter_map(List::first)
    }

    /// A block less than three quarters full, while there is another with room.
    pub(super) fn sparsest(&self) -> Option<u32> {
        let sparse = self.density[..3].iter().find_map(List::last)?;
        (self.densest() != Some(sparse)).then_some(sparse)
    }

    /// Puts a block that is in no list where it belongs.
    pub(super) fn insert(&mut self, blocks: &[Block], id: u32) {
        let block = &blocks[id as usize];
        let list = block.density(self.class);
        block.set_list(list);
        if list < FULL {
            self.density[usize::from(list)].push_back(blocks, id);
        }
    }

    /// Takes a block out of its density list, to be left alone by allocation.
    pub(super) fn detach(&mut self, blocks: &[Block], id: u32) {
        let block = &blocks[id as usize];
        if block.list() < FULL {
            self.density[usize::from(block.list())].remove(blocks, id);
        }
        block.set_list(RELEASING);
    }

    /// Moves a block to another list if its number of used objects calls for it.
    pub(super) fn resort(&mut self, blocks: &[Block], id: u32) {
        let block = &blocks[id as usize];
        if block.list() != block.density(self.class) {
            self.detach(blocks, id);
            self.insert(blocks, id);
        }
    }

    /// Notes that `pages` of a block, resident, are on no used object any more.
    pub(super) fn add_idle(&mut self, blocks: &[Block], id: u32, pages: Pages) {
        self.change_idle(blocks, id, blocks[id as usize].idle() | pages);
    }

    /// Notes that `pages` of a block are in use again, or given back.
    pub(super) fn drop_idle(&mut self, blocks: &[Block], id: u32, pages: Pages) {
        self.change_idle(blocks, id, blocks[id as usize].idle() & !pages);
    }

    fn change_idle(&mut self, blocks: &[Block], id: u32, idle: Pages) {
        let block = &blocks[id as usize];
        let old = block.idle();
        block.set_idle(idle);
        self.idle_pages = self.idle_pages + idle.count_ones() - old.count_ones();
        match (old, idle) {
            (0, 0) => {}
            (0, _) => self.idle.push_back(blocks, id),
            (_, 0) => self.idle.remove(blocks, id),
            _ => {}
        }
    }

    /// The block whose pages have been idle longest.
    pub(super) fn longest_idle(&self) -> Option<u32> {
        self.idle.first()
    }
}
