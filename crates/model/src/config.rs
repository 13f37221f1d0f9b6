//! What is explored: threads with their operations, pages, slots, and what the device is like.

use userswap_core::Way;
use userswap_core::device::Properties;
use userswap_core::rule::Rules;

use crate::state::{PAGES, SLOTS, THREADS, Version};

/// What a thread does next. The child is the address space that [`Op::Fork`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads the page.
    Load(u8),
    /// Writes a new version of the page.
    Store(u8),
    /// Swaps the page out: stages it, then writes it.
    PageOut(u8),
    /// The page goes: it reads as zeros from now on.
    Drop(u8),
    /// Copies the address space of one page, then writes what that staged.
    Fork,
    /// Reads the child's page, once there is one.
    ChildLoad,
    /// Writes the child's page, once there is one.
    ChildStore,
    /// The child's page goes, once there is one.
    ChildDiscard,
    /// Brings everything back and closes the device.
    Swapoff,
}

impl Op {
    /// Which address space: 0 the parent, 1 the child.
    #[must_use]
    pub fn space(self) -> usize {
        usize::from(matches!(
            self,
            Self::ChildLoad | Self::ChildStore | Self::ChildDiscard
        ))
    }

    /// Which page.
    #[must_use]
    pub fn page(self) -> usize {
        match self {
            Self::Load(page) | Self::Store(page) | Self::PageOut(page) | Self::Drop(page) => {
                usize::from(page)
            }
            _ => 0,
        }
    }
}

impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Load(page) => write!(f, "load {page}"),
            Self::Store(page) => write!(f, "store {page}"),
            Self::PageOut(page) => write!(f, "page out {page}"),
            Self::Drop(page) => write!(f, "drop {page}"),
            Self::Fork => f.write_str("fork"),
            Self::ChildLoad => f.write_str("child loads"),
            Self::ChildStore => f.write_str("child stores"),
            Self::ChildDiscard => f.write_str("child goes"),
            Self::Swapoff => f.write_str("swapoff"),
        }
    }
}

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// Synchronous, keeps the data of freed slots, reads and writes a slot in one step.
    Keeps,
    /// The same, and discards: a freed slot reads as zeros.
    Discards,
    /// Plain memory: synchronous, keeps, and reads and writes halves.
    Plain,
    /// Asynchronous, and needs a page to stand still while it is written.
    Stable,
}

impl Device {
    /// What the engine is told.
    #[must_use]
    pub fn properties(self) -> Properties {
        Properties {
            synchronous: self != Self::Stable,
            stable_pages: self == Self::Stable,
            discards: self == Self::Discards,
        }
    }

    /// A word for tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Keeps => "keeps",
            Self::Discards => "discards",
            Self::Plain => "halves",
            Self::Stable => "stable",
        }
    }
}

/// What may fail, at any point, as often as [`Config::failures`] says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fails {
    /// Allocating a frame.
    pub frame: bool,
    /// Reading a slot.
    pub read: bool,
    /// Writing a slot.
    pub write: bool,
    /// Mapping a page.
    pub map: bool,
}

/// One exploration.
#[derive(Clone, Debug)]
pub struct Config {
    /// What it is for.
    pub name: &'static str,
    /// The way in.
    pub way: Way,
    /// The rules that are kept.
    pub rules: Rules,
    /// The device.
    pub device: Device,
    /// Pages of the address space.
    pub pages: usize,
    /// Slots of the device.
    pub slots: usize,
    /// Whether as many pages as there are slots for are swapped out at first, or none.
    pub swapped: bool,
    /// What may fail.
    pub fails: Fails,
    /// How often.
    pub failures: u8,
    /// What each thread does.
    pub threads: Vec<Vec<Op>>,
}

impl Config {
    /// Threads that do `threads` to one page over one slot that keeps its data, swapped out at first;
    /// nothing fails.
    ///
    /// # Panics
    /// If there are more threads than a state has room for.
    #[must_use]
    pub fn new(name: &'static str, way: Way, threads: &[&[Op]]) -> Self {
        assert!((1..=THREADS).contains(&threads.len()));
        Self {
            name,
            way,
            rules: Rules::ALL_KEPT,
            device: Device::Keeps,
            pages: 1,
            slots: 1,
            swapped: true,
            fails: Fails::default(),
            failures: 0,
            threads: threads.iter().map(|ops| ops.to_vec()).collect(),
        }
    }

    /// The same over `device`.
    #[must_use]
    pub fn on(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// The same with `pages` and `slots`.
    ///
    /// # Panics
    /// If there are more than a state has room for.
    #[must_use]
    pub fn sized(mut self, pages: usize, slots: usize) -> Self {
        assert!((1..=PAGES).contains(&pages) && (1..=SLOTS).contains(&slots));
        self.pages = pages;
        self.slots = slots;
        self
    }

    /// The same with every page present at first.
    #[must_use]
    pub fn present(mut self) -> Self {
        self.swapped = false;
        self
    }

    /// The same where `fails` may fail, `failures` times.
    #[must_use]
    pub fn failing(mut self, fails: Fails, failures: u8) -> Self {
        self.fails = fails;
        self.failures = failures;
        self
    }

    /// The same with other rules.
    #[must_use]
    pub fn with_rules(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    /// What page `page` holds at first.
    #[must_use]
    pub fn first_version(&self, page: usize) -> Version {
        page as Version + 1
    }

    /// What operation `op` of `thread` writes: each store its own version.
    #[must_use]
    pub fn stored_version(&self, thread: usize, op: usize) -> Version {
        let stores = |ops: &[Op]| {
            ops.iter()
                .filter(|op| matches!(op, Op::Store(_) | Op::ChildStore))
                .count()
        };
        let before: usize = self.threads[..thread].iter().map(|ops| stores(ops)).sum();
        (self.pages + before + stores(&self.threads[thread][..op])) as Version + 1
    }

    /// What each thread does, for tables.
    #[must_use]
    pub fn programs(&self) -> String {
        let program = |ops: &Vec<Op>| {
            let ops: Vec<_> = ops.iter().map(ToString::to_string).collect();
            ops.join(", ")
        };
        let programs: Vec<_> = self.threads.iter().map(program).collect();
        programs.join(" | ")
    }
}
