//! A state of the whole system: shared memory, device, threads, and what the checks remember.

use userswap_core::SlotWord;
use userswap_core::step::Step;

/// Threads a state has room for.
pub const THREADS: usize = 3;
/// Pages an address space has at most.
pub const PAGES: usize = 2;
/// Slots at most.
pub const SLOTS: usize = 2;
/// Address spaces: the parent and the child.
pub const SPACES: usize = 2;
/// Frames: each thread has at most one under way, and each slot keeps at most one cached.
pub const FRAMES: usize = THREADS + SLOTS;

/// A version of a page: 0 zeros, then one number for each store; [`JUNK`] is what nobody wrote.
pub type Version = u8;

/// What an operation that failed leaves behind.
pub const JUNK: Version = 15;

/// What a page holds, in two halves, since a read can meet a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Content {
    /// The first half.
    pub low: Version,
    /// The second half.
    pub high: Version,
}

impl Content {
    /// Zeros.
    pub const ZEROS: Self = Self::whole(0);
    /// What nobody wrote.
    pub const JUNK: Self = Self::whole(JUNK);

    /// One version in both halves.
    #[must_use]
    pub const fn whole(version: Version) -> Self {
        Self {
            low: version,
            high: version,
        }
    }
}

impl std::fmt::Display for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |version| match version {
            0 => "zeros".to_owned(),
            JUNK => "junk".to_owned(),
            version => format!("v{}", version - 1),
        };
        if self.low == self.high {
            f.write_str(&name(self.low))
        } else {
            write!(f, "{}/{}", name(self.low), name(self.high))
        }
    }
}

/// A page-table word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pte {
    /// Nothing.
    None,
    /// In memory.
    Present,
    /// In this slot.
    Swapped(u8),
}

/// Which frame: its block, and the index of the page in its chunk, by which the frame in the block is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameAt {
    /// The block.
    pub block: u8,
    /// The index.
    pub index: u8,
}

/// A block of frames, of which a thread uses one, and the state of the cached page in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Its holds; 0: free.
    pub holds: u8,
    /// What it holds.
    pub content: Content,
    /// By the page's index in its chunk: each has its own lock.
    pub pages: [CachedPage; PAGES],
}

/// The state of a frame's page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CachedPage {
    /// The slot whose page it is.
    pub slot: Option<u8>,
    /// The page lock.
    pub locked: bool,
    /// The device reads the frame.
    pub writeback: bool,
    /// The slot's data are not written yet.
    pub dirty: bool,
}

/// Who owns a slot's cache flag, as the checks see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// Nobody: the flag is clear.
    Nobody,
    /// A thread.
    Thread(u8),
    /// A staged page: whoever locks it.
    Page,
}

/// Where a thread is: before a step, or at a point that is passed without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pc {
    /// About to take this step.
    Do(Step),
    /// About to wait, if there is still something to wait for.
    Wait,
    /// Parked: somebody else has to wake it.
    Parked,
    /// The fault is over; the access repeats.
    Retry,
    /// The child's PTE is set, and what follows.
    ChildSet,
    /// The caller of swap-out drops its hold on the frame.
    EndWrite,
    /// The page's turn in a fork, the PTE locked.
    Copy,
    /// The next operation.
    NextOp,
    /// Nothing is left to do.
    Done,
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Waits {
    /// Nothing.
    Nothing,
    /// The release of its entry.
    Pin,
    /// The page lock of its frame.
    PageLock,
    /// The end of the write of its frame.
    Writeback,
}

/// What a thread is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// A fault that reads.
    Read,
    /// A fault that found the page in the cache.
    TakeBack,
    /// Swap-out, up to the entry in the PTE.
    Stage,
    /// Swap-out, from there.
    Write,
    /// Copying the PTE.
    Fork,
    /// Dropping a page.
    Drop,
}

/// The way a fault goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// With the pin.
    Direct,
    /// Through the cache.
    Cached,
    /// Without the pin.
    Unpinned,
}

/// A thread: its place and what it remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Thread {
    /// Which operation.
    pub op: u8,
    /// Where it is.
    pub pc: Pc,
    /// What it is in the middle of.
    pub phase: Phase,
    /// The slot at work.
    pub slot: Option<u8>,
    /// The frame at work.
    pub frame: Option<FrameAt>,
    /// The way chosen.
    pub way: Way,
    /// What it waits for.
    pub waits: Waits,
    /// The slot whose waiters are woken, or that is shared with the child.
    pub other: Option<u8>,
    /// swapoff: the page that is looked at.
    pub scan: u8,
    /// The page was mapped, or staged.
    pub done: bool,
    /// The read or the write failed.
    pub failed: bool,
    /// The page is copied out of the cache, not moved.
    pub copies: bool,
    /// The pin was released twice already (a broken rule).
    pub twice: bool,
    /// After a free.
    pub after_free: Pc,
    /// After a frame was dropped.
    pub after_frame: Pc,
    /// After waking others.
    pub after_wake: Pc,
    /// After waiting.
    pub after_wait: Pc,
    /// After dropping the device reference.
    pub after_leave: Pc,
}

impl Thread {
    /// At `pc` of operation `op`, with nothing to remember.
    #[must_use]
    pub fn at(op: u8, pc: Pc) -> Self {
        Self {
            op,
            pc,
            phase: Phase::Read,
            slot: None,
            frame: None,
            way: Way::Direct,
            waits: Waits::Nothing,
            other: None,
            scan: 0,
            done: false,
            failed: false,
            copies: false,
            twice: false,
            after_free: Pc::Done,
            after_frame: Pc::Done,
            after_wake: Pc::Done,
            after_wait: Pc::Done,
            after_leave: Pc::Done,
        }
    }
}

/// An address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Space {
    /// The page-table words.
    pub ptes: [Pte; PAGES],
    /// What an access finds; `None`: it faults.
    pub memory: [Option<Content>; PAGES],
    /// What it should find: the last version stored. `None`: there is no such page.
    pub truth: [Option<Version>; PAGES],
    /// The PTE lock, and who holds it.
    pub lock: Option<u8>,
}

/// A slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// (c, h), the engine's own word.
    pub word: SlotWord,
    /// Who owns h.
    pub owner: Owner,
    /// The cache index: the frame that may hold the page.
    pub cached: Option<FrameAt>,
    /// What the device holds.
    pub data: Content,
    /// The lock under which waiters park.
    pub bucket: Option<u8>,
}

/// The system at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The parent and the child.
    pub spaces: [Space; SPACES],
    /// The slots.
    pub slots: [Slot; SLOTS],
    /// The frames.
    pub frames: [Frame; FRAMES],
    /// The threads.
    pub threads: [Thread; THREADS],
    /// Where the allocator looks first.
    pub cursor: u8,
    /// Slots are not handed out any more.
    pub stopped: bool,
    /// References are not handed out any more.
    pub closed: bool,
    /// The device must not be used any more.
    pub gone: bool,
    /// Device references.
    pub inside: u8,
    /// Threads that have announced a wait.
    pub waiting: u8,
    /// Failures that may still come.
    pub failures: u8,
    /// There is a child.
    pub forked: bool,
    /// A thread mapped a page through the cache that another one was reading past it.
    pub mixed: bool,
}
