//! One step of one thread: the frame around `fault`, `swap_out` and `rest`, which
//! say what each step does.
//!
//! **What is one step.** The engine reports a step just before it takes it; a step here is what it does from
//! one report to the next, so no other thread comes in between. That is sound where the part has, in this
//! order, takings of locks, at most one access that threads without those locks can see, and givings of locks:
//! others could move out of its middle, before or behind it, and nobody would see a difference. Three
//! hints are read in one step though they are two loads (slot word and cache index, in `pinned?` and in a
//! waiter's look): a look at a moment in between ends in one more look, or in the same wake-up, since
//! every release that changes either word wakes after both.
//!
//! Locks are taken when they are free: a thread in front of a held lock has no step. Parked threads have none
//! either, until they are woken. Frames never run out (but taking one may be told to fail).

use userswap_core::rule::Rule;
use userswap_core::step::Step;
use userswap_core::{SlotError, SlotWord};

use crate::config::{Config, Device, Op};
use crate::state::{
    CachedPage, Content, FRAMES, Frame, FrameAt, Owner, PAGES, Pc, Phase, Pte, SLOTS, SPACES, Slot,
    Space, State, THREADS, Thread, Waits,
};
use crate::violation::Violation;

/// One thread's step, and whether it was made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The thread.
    pub thread: usize,
    /// The step.
    pub step: Step,
    /// An allocation, a device call or a mapping fails in it.
    pub fails: bool,
}

/// What came of a step.
pub type Taken = Result<(), Violation>;

/// A system in motion.
pub struct Machine<'a> {
    pub(crate) config: &'a Config,
    /// Where it is.
    pub state: State,
    pub(crate) me: usize,
    pub(crate) fails: bool,
}

/// The state an exploration of `config` begins with.
///
/// # Panics
/// If the configuration does not fit a state.
#[must_use]
pub fn initial(config: &Config) -> State {
    let absent = Space {
        ptes: [Pte::None; PAGES],
        memory: [None; PAGES],
        truth: [None; PAGES],
        lock: None,
    };
    let free = Slot {
        word: SlotWord::FREE,
        owner: Owner::Nobody,
        cached: None,
        data: Content::ZEROS,
        bucket: None,
    };
    let frame = Frame {
        holds: 0,
        content: Content::ZEROS,
        pages: [CachedPage::default(); PAGES],
    };
    let mut state = State {
        spaces: [absent; SPACES],
        slots: [free; SLOTS],
        frames: [frame; FRAMES],
        threads: [Thread::at(0, Pc::Done); THREADS],
        cursor: 0,
        stopped: false,
        closed: false,
        gone: false,
        inside: 0,
        waiting: 0,
        failures: config.failures,
        forked: false,
        mixed: false,
    };
    for page in 0..config.pages {
        let version = config.first_version(page);
        let space = &mut state.spaces[0];
        space.truth[page] = Some(version);
        if config.swapped && page < config.slots {
            let slot = &mut state.slots[page];
            let word = SlotWord::OWNED.put_in_pte().expect("(0,1)");
            slot.word = word.released().expect("(1,1)").0;
            slot.data = Content::whole(version);
            space.ptes[page] = Pte::Swapped(page as u8);
            state.cursor = page as u8 + 1;
        } else {
            space.ptes[page] = Pte::Present;
            space.memory[page] = Some(Content::whole(version));
        }
    }
    let forks = config.threads.iter().flatten().any(|&op| op == Op::Fork);
    assert!(!forks || config.pages == 1, "a fork copies one page");
    for (thread, ops) in config.threads.iter().enumerate() {
        state.threads[thread].pc = ops.first().map_or(Pc::Done, |&op| Pc::Do(begin(op)));
    }
    state
}

/// An operation's first step.
fn begin(op: Op) -> Step {
    match op {
        Op::Load(_) | Op::Store(_) | Op::ChildLoad | Op::ChildStore => Step::Touch,
        Op::PageOut(_) | Op::Fork => Step::LookPresent,
        Op::Drop(_) | Op::ChildDiscard => Step::ClearPte,
        Op::Swapoff => Step::StopAllocation,
    }
}

/// The step `thread` would take next; `None`: it has none, being parked or done.
#[must_use]
pub fn next_step(state: &State, thread: usize) -> Option<Step> {
    match state.threads[thread].pc {
        Pc::Do(step) => Some(step),
        _ => None,
    }
}

/// Whether `thread` has finished.
#[must_use]
pub fn is_done(state: &State, thread: usize) -> bool {
    state.threads[thread].pc == Pc::Done
}

impl<'a> Machine<'a> {
    /// At `state`.
    #[must_use]
    pub fn new(config: &'a Config, state: State) -> Self {
        Self {
            config,
            state,
            me: 0,
            fails: false,
        }
    }

    /// Every move that can be made now.
    pub fn moves(&mut self, out: &mut Vec<Move>) {
        out.clear();
        for thread in 0..self.config.threads.len() {
            self.me = thread;
            let Pc::Do(step) = self.thread().pc else {
                continue;
            };
            if !self.is_free_to(step) {
                continue;
            }
            let go = |fails| Move {
                thread,
                step,
                fails,
            };
            out.push(go(false));
            if self.state.failures > 0 && self.may_fail(step) {
                out.push(go(true));
            }
        }
    }

    /// Makes a move.
    ///
    /// # Errors
    /// The step broke an invariant; the state is as it left it.
    pub fn make(&mut self, go: Move) -> Taken {
        self.me = go.thread;
        self.fails = go.fails;
        if go.fails {
            self.state.failures -= 1;
        }
        self.take(go.step)
    }

    fn may_fail(&self, step: Step) -> bool {
        let fails = self.config.fails;
        match step {
            Step::TakeFrame => fails.frame,
            Step::ReadDevice => fails.read,
            Step::WriteDevice => fails.write,
            Step::Map => {
                let same = self.pte() == self.thread().slot.map_or(Pte::None, Pte::Swapped);
                fails.map && same
            }
            _ => false,
        }
    }

    /// Whether nothing is in the way of `step`.
    fn is_free_to(&self, step: Step) -> bool {
        let me = self.thread();
        match step {
            Step::Touch if self.op().space() == 1 => self.state.forked,
            Step::ClearPte => {
                (self.op().space() == 0 || self.state.forked) && self.space().lock.is_none()
            }
            Step::FillZeros
            | Step::AwaitPte
            | Step::Pin
            | Step::LookWanted
            | Step::Compare
            | Step::LookPresent
            | Step::Unmap => self.space().lock.is_none(),
            Step::Map => me.phase == Phase::TakeBack || self.space().lock.is_none(),
            Step::InsertCache => !self.page().locked,
            Step::Announce | Step::Wake => self.slot().bucket.is_none(),
            Step::Notify => {
                let other = me.other.expect("whose waiters are woken");
                self.state.slots[usize::from(other)].bucket.is_none()
            }
            Step::LookUsed => {
                let swapped = |pte: &Pte| matches!(pte, Pte::Swapped(_));
                !self.any_used() || self.state.spaces[0].ptes.iter().any(swapped)
            }
            Step::AwaitUsers => {
                self.state.inside == 0 || !self.config.rules.keep(Rule::DeviceReference)
            }
            _ => true,
        }
    }

    fn take(&mut self, step: Step) -> Taken {
        match step {
            Step::Touch => self.touch(),
            Step::ReadPte => self.read_pte(),
            Step::FillZeros => self.fill_zeros(),
            Step::AwaitPte => self.await_pte(),
            Step::EnterDevice => self.enter_device(),
            Step::LookUpCache => self.look_up_cache(),
            Step::ChooseWay => self.choose_way(),
            Step::LookPinned => self.look_pinned(),
            Step::TakeFrame => self.take_frame(),
            Step::Pin => self.pin(),
            Step::InsertCache => self.insert_cache(),
            Step::ReadDevice => self.read_device(),
            Step::ReadRest => self.read_rest(),
            Step::LookWanted => self.look_wanted(),
            Step::LookWriteback => self.look_writeback(),
            Step::LockPage => self.lock_page(),
            Step::RecheckPage => self.recheck_page(),
            Step::Compare => self.compare(),
            Step::Map => self.map(),
            Step::SwapFree => self.swap_free(),
            Step::Discard => self.discard(),
            Step::FinishFree => self.finish_free(),
            Step::SetPte => self.set_pte(),
            Step::UnlockPage => self.unlock_page(),
            Step::DeleteCached => self.delete_cached(),
            Step::ReleasePin => self.release_pin(),
            Step::ReleaseFrame => self.release_frame(),
            Step::LookWaiters => self.look_waiters(),
            Step::Notify => self.notify(),
            Step::Announce => self.announce(),
            Step::LookAgain => self.look_again(),
            Step::Park => unreachable!("part of the look before it"),
            Step::Wake => self.wake(),
            Step::LeaveDevice => self.leave_device(),
            Step::LookPresent => self.look_present(),
            Step::AllocateSlot => self.allocate_slot(),
            Step::Unmap => self.unmap(),
            Step::CountPte => self.count_pte(),
            Step::PutEntry => self.put_entry(),
            Step::UnlockPte => self.unlock_pte(),
            Step::FindOwner => self.find_owner(),
            Step::LookCounted => self.look_counted(),
            Step::WriteDevice => self.write_device(),
            Step::WriteRest => self.write_rest(),
            Step::Relock => self.relock(),
            Step::Duplicate => self.duplicate(),
            Step::CopyPresent => self.copy_present(),
            Step::ClearPte => self.clear_pte(),
            Step::StopAllocation => self.stop_allocation(),
            Step::ScanPte => self.scan_pte(),
            Step::LookUsed => self.look_used(),
            Step::CloseDevice => self.close_device(),
            Step::AwaitUsers => self.await_users(),
        }
    }

    /// Goes to `pc`, and on through points that are passed without a step.
    pub(crate) fn goto(&mut self, pc: Pc) -> Taken {
        let next = match pc {
            Pc::Do(Step::LookWaiters) if !self.keeps(Rule::WakeOnRelease) => {
                self.thread().after_wake
            }
            Pc::Wait => {
                if self.keeps(Rule::WaitForRelease) && self.is_busy() {
                    return self.at(Step::Announce);
                }
                self.thread().after_wait
            }
            Pc::Retry => {
                let (op, scan) = (self.thread().op, self.thread().scan);
                let swapoff = self.op() == Op::Swapoff;
                let step = if swapoff { Step::ScanPte } else { Step::Touch };
                *self.thread_mut() = Thread::at(op, Pc::Do(step));
                self.thread_mut().scan = scan;
                return Ok(());
            }
            Pc::NextOp => {
                let op = self.thread().op + 1;
                let next = self.config.threads[self.me].get(usize::from(op));
                let pc = next.map_or(Pc::Done, |&op| Pc::Do(begin(op)));
                *self.thread_mut() = Thread::at(op, pc);
                return Ok(());
            }
            Pc::ChildSet => return self.set_child(),
            Pc::Copy => return self.copy(),
            Pc::EndWrite => {
                self.thread_mut().after_frame = Pc::NextOp;
                return self.at(Step::ReleaseFrame);
            }
            Pc::Do(_) | Pc::Parked | Pc::Done => {
                self.thread_mut().pc = pc;
                return Ok(());
            }
        };
        self.goto(next)
    }

    /// The next step is `step`.
    pub(crate) fn at(&mut self, step: Step) -> Taken {
        self.goto(Pc::Do(step))
    }

    pub(crate) fn keeps(&self, rule: Rule) -> bool {
        self.config.rules.keep(rule)
    }

    pub(crate) fn op(&self) -> Op {
        self.config.threads[self.me][usize::from(self.thread().op)]
    }

    pub(crate) fn thread(&self) -> &Thread {
        &self.state.threads[self.me]
    }

    pub(crate) fn thread_mut(&mut self) -> &mut Thread {
        &mut self.state.threads[self.me]
    }

    /// The page the thread works on.
    pub(crate) fn page_index(&self) -> usize {
        match self.op() {
            Op::Swapoff => usize::from(self.thread().scan),
            op => op.page(),
        }
    }

    pub(crate) fn space(&self) -> &Space {
        &self.state.spaces[self.op().space()]
    }

    pub(crate) fn space_mut(&mut self) -> &mut Space {
        let space = self.op().space();
        &mut self.state.spaces[space]
    }

    pub(crate) fn pte(&self) -> Pte {
        self.space().ptes[self.page_index()]
    }

    pub(crate) fn set_pte_to(&mut self, pte: Pte) {
        let page = self.page_index();
        self.space_mut().ptes[page] = pte;
    }

    pub(crate) fn lock_pte(&mut self) {
        let me = self.me as u8;
        debug_assert!(self.space().lock.is_none(), "a held lock is taken");
        self.space_mut().lock = Some(me);
    }

    pub(crate) fn drop_pte_lock(&mut self) {
        self.space_mut().lock = None;
    }

    pub(crate) fn slot_number(&self) -> u8 {
        self.thread().slot.expect("a slot is at work")
    }

    pub(crate) fn slot(&self) -> &Slot {
        &self.state.slots[usize::from(self.slot_number())]
    }

    pub(crate) fn slot_mut(&mut self) -> &mut Slot {
        let slot = self.slot_number();
        &mut self.state.slots[usize::from(slot)]
    }

    pub(crate) fn frame_at(&self) -> FrameAt {
        self.thread().frame.expect("a frame is at work")
    }

    pub(crate) fn frame(&self) -> &Frame {
        &self.state.frames[usize::from(self.frame_at().block)]
    }

    pub(crate) fn frame_mut(&mut self) -> &mut Frame {
        let frame = self.frame_at();
        &mut self.state.frames[usize::from(frame.block)]
    }

    /// The cached page at work.
    pub(crate) fn page(&self) -> &CachedPage {
        &self.frame().pages[usize::from(self.frame_at().index)]
    }

    pub(crate) fn page_mut(&mut self) -> &mut CachedPage {
        let index = usize::from(self.frame_at().index);
        &mut self.frame_mut().pages[index]
    }

    pub(crate) fn any_used(&self) -> bool {
        let slots = &self.state.slots[..self.config.slots];
        slots.iter().any(|slot| !slot.word.is_free())
    }

    /// The engine's test for a pin: h is set, a PTE is counted, and no page is in the cache.
    pub(crate) fn is_pinned(&self) -> bool {
        let slot = self.slot();
        let state = slot.word.state();
        state.has_cache && state.count > 0 && slot.cached.is_none()
    }

    /// Whether what the thread waits for is still so.
    pub(crate) fn is_busy(&self) -> bool {
        let cached = || self.slot().cached == self.thread().frame;
        match self.thread().waits {
            Waits::Nothing => false,
            Waits::Pin => self.is_pinned(),
            Waits::PageLock => cached() && self.page().locked,
            Waits::Writeback => cached() && self.page().writeback,
        }
    }

    /// The device is going to be used.
    pub(crate) fn use_device(&self) -> Taken {
        if self.state.gone {
            return Err(Violation::DeviceGone);
        }
        Ok(())
    }

    pub(crate) fn reads_halves(&self) -> bool {
        self.config.device == Device::Plain
    }

    /// A refused transition that the engine would report as a bug.
    pub(crate) fn bug<T>(&self, result: Result<T, SlotError>) -> Result<T, Violation> {
        result.map_err(Violation::Refused)
    }
}
