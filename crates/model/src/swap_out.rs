//! Swap-out, fork and discard, step by step (`core/src/swap_out.rs`, `fork.rs`).

use userswap_core::rule::Rule;
use userswap_core::step::Step;

use crate::config::Op;
use crate::machine::{Machine, Taken};
use crate::state::{Content, Owner, Pc, Phase, Pte, Waits};

impl Machine<'_> {
    fn forks(&self) -> bool {
        self.op() == Op::Fork
    }

    pub(crate) fn look_present(&mut self) -> Taken {
        let forks = self.forks();
        let thread = self.thread_mut();
        thread.phase = Phase::Stage;
        // Where nothing can be staged, a fork shares the entry, or copies the page as it stands.
        thread.after_leave = if forks {
            thread.phase = Phase::Fork;
            Pc::Do(Step::AwaitPte)
        } else {
            Pc::NextOp
        };
        if self.pte() != Pte::Present {
            return self.goto(self.thread().after_leave);
        }
        self.thread_mut().phase = Phase::Stage;
        self.at(Step::EnterDevice)
    }

    pub(crate) fn allocate_slot(&mut self) -> Taken {
        let stopped = self.state.stopped && self.keeps(Rule::SwapoffStopsAllocation);
        let slots = self.config.slots as u8;
        let free = |slot: &u8| self.state.slots[usize::from(*slot)].word.is_free();
        // From where the last one was found, then from the start.
        let found = (self.state.cursor..slots).find(free);
        let found = found.or_else(|| (0..slots).find(free));
        if !stopped {
            self.state.cursor = found.map_or(0, |slot| slot + 1);
        }
        let Some(slot) = found.filter(|_| !stopped) else {
            self.thread_mut().phase = if self.forks() {
                Phase::Fork
            } else {
                Phase::Stage
            };
            return self.at(Step::LeaveDevice);
        };
        self.thread_mut().slot = Some(slot);
        self.slot_mut().word = self.bug(self.slot().word.allocated())?;
        self.slot_mut().owner = Owner::Thread(self.me as u8);
        self.at(Step::TakeFrame)
    }

    pub(crate) fn unmap(&mut self) -> Taken {
        self.lock_pte();
        let forks = self.forks();
        let page = self.page_index();
        self.thread_mut().after_wake = if forks {
            Pc::Copy
        } else {
            Pc::Do(Step::UnlockPte)
        };
        if self.pte() != Pte::Present {
            self.thread_mut().other = None;
            return self.at(Step::LookWaiters);
        }
        let content = self.space_mut().memory[page].take();
        self.frame_mut().content = content.unwrap_or(Content::JUNK);
        self.thread_mut().done = true;
        if !self.keeps(Rule::UnmapWithPte) {
            self.drop_pte_lock();
            return self.at(Step::AwaitPte);
        }
        self.at(Step::InsertCache)
    }

    pub(crate) fn count_pte(&mut self) -> Taken {
        self.slot_mut().word = self.bug(self.slot().word.put_in_pte())?;
        self.at(Step::PutEntry)
    }

    pub(crate) fn put_entry(&mut self) -> Taken {
        self.set_pte_to(Pte::Swapped(self.slot_number()));
        self.thread_mut().other = self.thread().slot;
        self.at(Step::UnlockPage)
    }

    pub(crate) fn unlock_pte(&mut self) -> Taken {
        self.drop_pte_lock();
        let thread = self.thread_mut();
        thread.phase = Phase::Stage;
        if thread.done {
            thread.after_leave = Pc::Do(Step::FindOwner);
            return self.at(Step::LeaveDevice);
        }
        thread.after_leave = Pc::NextOp;
        thread.after_free = Pc::Do(Step::ReleaseFrame);
        thread.after_frame = Pc::Do(Step::LeaveDevice);
        self.at(Step::ReleasePin)
    }

    pub(crate) fn find_owner(&mut self) -> Taken {
        self.thread_mut().phase = Phase::Write;
        let Some(slot) = self.page().slot else {
            return self.goto(Pc::EndWrite);
        };
        let thread = self.thread_mut();
        thread.slot = Some(slot);
        thread.after_leave = Pc::EndWrite;
        self.at(Step::EnterDevice)
    }

    pub(crate) fn look_counted(&mut self) -> Taken {
        let leave = Pc::Do(Step::LeaveDevice);
        if self.slot().word.state().count == 0 || !self.page().dirty {
            return self.uncache(leave);
        }
        let write = Pc::Do(Step::WriteDevice);
        if !self.keeps(Rule::WriteBeforeDelete) {
            return self.uncache(write);
        }
        self.page_mut().writeback = true;
        self.unlock_then(write)
    }

    pub(crate) fn write_device(&mut self) -> Taken {
        self.use_device()?;
        if self.fails {
            self.slot_mut().data = Content::JUNK;
            self.thread_mut().failed = true;
            return self.after_write();
        }
        let content = self.frame().content;
        if self.reads_halves() {
            self.slot_mut().data.low = content.low;
            return self.at(Step::WriteRest);
        }
        self.slot_mut().data = content;
        self.after_write()
    }

    pub(crate) fn write_rest(&mut self) -> Taken {
        self.use_device()?;
        self.slot_mut().data.high = self.frame().content.high;
        self.after_write()
    }

    fn after_write(&mut self) -> Taken {
        if self.keeps(Rule::WriteBeforeDelete) {
            return self.at(Step::Relock);
        }
        self.at(Step::LeaveDevice)
    }

    pub(crate) fn relock(&mut self) -> Taken {
        if self.page().locked {
            let thread = self.thread_mut();
            thread.waits = Waits::PageLock;
            thread.after_wait = Pc::Do(Step::Relock);
            return self.goto(Pc::Wait);
        }
        let failed = self.thread().failed;
        let page = self.page_mut();
        page.locked = true;
        page.writeback = false;
        page.dirty &= failed;
        let leave = Pc::Do(Step::LeaveDevice);
        let counted = self.slot().word.state().count > 0;
        if failed && counted && self.keeps(Rule::FailedWriteKeepsPage) {
            return self.unlock_then(leave);
        }
        self.uncache(leave)
    }

    /// A fork's turn at the page, whose PTE is locked.
    pub(crate) fn copy(&mut self) -> Taken {
        match self.pte() {
            Pte::Swapped(slot) => {
                let thread = self.thread_mut();
                thread.other = Some(slot);
                thread.phase = Phase::Fork;
                thread.after_leave = Pc::ChildSet;
                self.at(Step::EnterDevice)
            }
            Pte::Present => self.at(Step::CopyPresent),
            Pte::None => self.end_copy(),
        }
    }

    pub(crate) fn duplicate(&mut self) -> Taken {
        let slot = self.thread().other.expect("the entry that is shared");
        let slot = &mut self.state.slots[usize::from(slot)];
        match slot.word.duplicated() {
            Ok(word) => slot.word = word,
            Err(error) => return Err(crate::violation::Violation::Refused(error)),
        }
        self.at(Step::LeaveDevice)
    }

    pub(crate) fn set_child(&mut self) -> Taken {
        let slot = self.thread().other.expect("the entry that is shared");
        self.make_child(Pte::Swapped(slot), None);
        self.end_copy()
    }

    pub(crate) fn copy_present(&mut self) -> Taken {
        let content = self.state.spaces[0].memory[0];
        self.make_child(Pte::Present, content);
        self.end_copy()
    }

    fn make_child(&mut self, pte: Pte, memory: Option<Content>) {
        let truth = self.state.spaces[0].truth[0];
        let child = &mut self.state.spaces[1];
        child.ptes[0] = pte;
        child.memory[0] = memory;
        child.truth[0] = truth;
        self.state.forked = true;
    }

    /// The copy is made: under the lock of a swap-out, or under the fork's own.
    fn end_copy(&mut self) -> Taken {
        if self.thread().frame.is_some() {
            return self.at(Step::UnlockPte);
        }
        self.drop_pte_lock();
        self.goto(Pc::NextOp)
    }

    pub(crate) fn clear_pte(&mut self) -> Taken {
        let (page, pte) = (self.page_index(), self.pte());
        let space = self.space_mut();
        space.ptes[page] = Pte::None;
        space.memory[page] = None;
        space.truth[page] = Some(0);
        let Pte::Swapped(slot) = pte else {
            return self.goto(Pc::NextOp);
        };
        let thread = self.thread_mut();
        thread.slot = Some(slot);
        thread.phase = Phase::Drop;
        thread.after_free = Pc::Do(Step::LeaveDevice);
        thread.after_leave = Pc::NextOp;
        self.at(Step::EnterDevice)
    }
}
