//! What faults and swap-out share: slots, frames, references, waiting; and swapoff
//! (`core/src/area.rs`, `waiters.rs`, `gate.rs`, `swapoff.rs`).

use userswap_core::Dropped;
use userswap_core::rule::Rule;
use userswap_core::step::Step;

use crate::machine::{Machine, Taken};
use crate::state::{CachedPage, Content, Owner, Pc, Phase, Pte, Way};
use crate::violation::Violation;

impl Machine<'_> {
    pub(crate) fn enter_device(&mut self) -> Taken {
        self.state.inside += 1;
        if self.state.closed {
            if matches!(self.thread().phase, Phase::Drop | Phase::Fork) {
                return Err(Violation::DeviceGone);
            }
            return self.at(Step::LeaveDevice);
        }
        self.at(match self.thread().phase {
            Phase::Read | Phase::TakeBack => Step::LookUpCache,
            Phase::Stage => Step::AllocateSlot,
            Phase::Write => Step::LockPage,
            Phase::Fork => Step::Duplicate,
            Phase::Drop => Step::SwapFree,
        })
    }

    pub(crate) fn leave_device(&mut self) -> Taken {
        self.state.inside -= 1;
        self.goto(self.thread().after_leave)
    }

    pub(crate) fn swap_free(&mut self) -> Taken {
        let thread = self.thread();
        let owned = match thread.phase {
            Phase::Read => thread.way != Way::Unpinned,
            Phase::TakeBack => !thread.copies,
            _ => false,
        };
        if owned {
            self.slot_mut().word = self.bug(self.slot().word.freed_by_owner())?;
            return self.goto(self.thread().after_free);
        }
        let (word, dropped) = self.bug(self.slot().word.freed())?;
        self.slot_mut().word = word;
        match dropped {
            Dropped::InUse => self.goto(self.thread().after_free),
            Dropped::Last => {
                self.slot_mut().owner = Owner::Thread(self.me as u8);
                self.finish()
            }
        }
    }

    pub(crate) fn release_pin(&mut self) -> Taken {
        let (word, dropped) = self.bug(self.slot().word.released())?;
        if self.slot().owner != Owner::Thread(self.me as u8) {
            return Err(Violation::Owner);
        }
        self.slot_mut().word = word;
        // Reading gives its pin up in one place, which the broken rule passes twice.
        if self.thread().phase == Phase::Read
            && !self.keeps(Rule::ReleaseOnce)
            && !self.thread().twice
        {
            self.thread_mut().twice = true;
            self.thread_mut().after_free = Pc::Do(Step::ReleasePin);
        } else if self.thread().twice {
            self.thread_mut().after_free = Pc::Do(Step::LookWaiters);
        }
        match dropped {
            Dropped::InUse => {
                self.slot_mut().owner = Owner::Nobody;
                self.goto(self.thread().after_free)
            }
            Dropped::Last => self.finish(),
        }
    }

    /// (0,1) -> free: the data first, then the word.
    fn finish(&mut self) -> Taken {
        let discards = self.config.device.properties().discards;
        if discards && self.keeps(Rule::DiscardBeforeReuse) {
            return self.at(Step::Discard);
        }
        self.at(Step::FinishFree)
    }

    pub(crate) fn discard(&mut self) -> Taken {
        self.use_device()?;
        self.slot_mut().data = Content::ZEROS;
        if self.keeps(Rule::DiscardBeforeReuse) {
            return self.at(Step::FinishFree);
        }
        self.goto(self.thread().after_free)
    }

    pub(crate) fn finish_free(&mut self) -> Taken {
        self.slot_mut().word = self.bug(self.slot().word.finished())?;
        self.slot_mut().owner = Owner::Nobody;
        if self.config.device.properties().discards && !self.keeps(Rule::DiscardBeforeReuse) {
            return self.at(Step::Discard);
        }
        self.goto(self.thread().after_free)
    }

    pub(crate) fn delete_cached(&mut self) -> Taken {
        let slot = self.thread().slot;
        if self.page().slot != slot || self.page().writeback {
            return Err(Violation::NotCached);
        }
        *self.page_mut() = CachedPage::default();
        let me = Owner::Thread(self.me as u8);
        let slot = self.slot_mut();
        slot.cached = None;
        if slot.owner == Owner::Page {
            slot.owner = me;
        }
        self.at(Step::ReleasePin)
    }

    pub(crate) fn release_frame(&mut self) -> Taken {
        let frame = self.frame_mut();
        if frame.holds == 0 {
            return Err(Violation::Leaked);
        }
        frame.holds -= 1;
        if frame.holds == 0 {
            frame.content = Content::ZEROS;
        }
        self.goto(self.thread().after_frame)
    }

    pub(crate) fn unlock_page(&mut self) -> Taken {
        self.page_mut().locked = false;
        if self.thread().phase == Phase::Stage {
            self.frame_mut().holds += 1;
            self.slot_mut().owner = Owner::Page;
        }
        self.at(Step::LookWaiters)
    }

    pub(crate) fn look_waiters(&mut self) -> Taken {
        if self.state.waiting == 0 || self.thread().other.is_none() {
            return self.goto(self.thread().after_wake);
        }
        self.at(Step::Notify)
    }

    pub(crate) fn notify(&mut self) -> Taken {
        let slot = self.thread().other;
        for other in &mut self.state.threads {
            if other.pc == Pc::Parked && other.slot == slot {
                other.pc = Pc::Do(Step::Wake);
            }
        }
        self.goto(self.thread().after_wake)
    }

    pub(crate) fn announce(&mut self) -> Taken {
        self.slot_mut().bucket = Some(self.me as u8);
        self.state.waiting += 1;
        self.at(Step::LookAgain)
    }

    pub(crate) fn look_again(&mut self) -> Taken {
        self.slot_mut().bucket = None;
        if self.is_busy() || !self.keeps(Rule::AnnounceThenLook) {
            return self.goto(Pc::Parked);
        }
        self.state.waiting -= 1;
        self.goto(self.thread().after_wait)
    }

    pub(crate) fn wake(&mut self) -> Taken {
        self.state.waiting -= 1;
        self.goto(self.thread().after_wait)
    }

    pub(crate) fn stop_allocation(&mut self) -> Taken {
        self.state.stopped = true;
        self.at(Step::ScanPte)
    }

    pub(crate) fn scan_pte(&mut self) -> Taken {
        if matches!(self.pte(), Pte::Swapped(_)) {
            return self.at(Step::ReadPte);
        }
        self.thread_mut().scan += 1;
        if usize::from(self.thread().scan) < self.config.pages {
            return self.at(Step::ScanPte);
        }
        self.thread_mut().scan = 0;
        self.at(Step::LookUsed)
    }

    /// Goes on as soon as no slot is used, or one is in a PTE: until then the engine yields.
    pub(crate) fn look_used(&mut self) -> Taken {
        let used = self.any_used();
        self.at(if used {
            Step::ScanPte
        } else {
            Step::CloseDevice
        })
    }

    pub(crate) fn close_device(&mut self) -> Taken {
        if self.any_used() {
            return Err(Violation::DeviceGone);
        }
        self.state.closed = true;
        self.at(Step::AwaitUsers)
    }

    pub(crate) fn await_users(&mut self) -> Taken {
        if self.any_used() {
            return Err(Violation::DeviceGone);
        }
        self.state.gone = true;
        self.goto(Pc::NextOp)
    }
}
