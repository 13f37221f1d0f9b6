//! The fault, step by step (section 3 of the protocol; `core/src/swap_in.rs` and `take_back.rs`).

use userswap_core::rule::Rule;
use userswap_core::step::Step;
use userswap_core::{SlotError, Way as Chosen};

use crate::config::Op;
use crate::machine::{Machine, Taken};
use crate::state::{CachedPage, Content, FrameAt, Owner, Pc, Phase, Pte, Waits, Way};
use crate::violation::Violation;

impl Machine<'_> {
    pub(crate) fn touch(&mut self) -> Taken {
        let page = self.page_index();
        let Some(found) = self.space().memory[page] else {
            return self.at(Step::ReadPte);
        };
        self.check_content(found)?;
        if matches!(self.op(), Op::Store(_) | Op::ChildStore) {
            let op = usize::from(self.thread().op);
            let version = self.config.stored_version(self.me, op);
            let space = self.space_mut();
            space.memory[page] = Some(Content::whole(version));
            space.truth[page] = Some(version);
        }
        self.goto(Pc::NextOp)
    }

    pub(crate) fn read_pte(&mut self) -> Taken {
        match self.pte() {
            Pte::Present => self.at(Step::AwaitPte),
            Pte::Swapped(slot) => {
                let thread = self.thread_mut();
                thread.slot = Some(slot);
                thread.phase = Phase::Read;
                thread.after_leave = Pc::Retry;
                self.at(Step::EnterDevice)
            }
            Pte::None => self.at(Step::FillZeros),
        }
    }

    pub(crate) fn fill_zeros(&mut self) -> Taken {
        if self.pte() != Pte::None {
            return self.goto(Pc::Retry);
        }
        self.lock_pte();
        let page = self.page_index();
        if self.space().memory[page].is_some() {
            return Err(Violation::MappedTwice);
        }
        self.space_mut().memory[page] = Some(Content::ZEROS);
        self.check_content(Content::ZEROS)?;
        self.at(Step::SetPte)
    }

    /// Whoever holds the PTE lock is mapping or unmapping the page. (Also the start of a fork's own turn,
    /// and of the second half of a swap-out that was torn apart.)
    pub(crate) fn await_pte(&mut self) -> Taken {
        match self.thread().phase {
            Phase::Fork => {
                self.lock_pte();
                self.goto(Pc::Copy)
            }
            Phase::Stage => {
                self.lock_pte();
                self.at(Step::InsertCache)
            }
            _ => self.goto(Pc::Retry),
        }
    }

    pub(crate) fn look_up_cache(&mut self) -> Taken {
        let Some(frame) = self.slot().cached else {
            return self.at(Step::ChooseWay);
        };
        let thread = self.thread_mut();
        thread.frame = Some(frame);
        thread.phase = Phase::TakeBack;
        let stable = self.config.device.properties().stable_pages;
        self.at(if stable {
            Step::LookWriteback
        } else {
            Step::LockPage
        })
    }

    pub(crate) fn look_writeback(&mut self) -> Taken {
        let cached = self.slot().cached == self.thread().frame;
        if self.keeps(Rule::StableWhileWritten) && cached && self.page().writeback {
            let thread = self.thread_mut();
            thread.waits = Waits::Writeback;
            thread.after_wait = Pc::Do(Step::LeaveDevice);
            return self.goto(Pc::Wait);
        }
        self.at(Step::LockPage)
    }

    pub(crate) fn choose_way(&mut self) -> Taken {
        let direct = self.config.device.properties().synchronous;
        let way = if direct && self.slot().word.state().count == 1 {
            match self.config.way {
                Chosen::Direct if !self.keeps(Rule::PinBeforeRead) => Way::Unpinned,
                Chosen::Direct => Way::Direct,
                Chosen::Cached => Way::Cached,
                Chosen::Unpinned => Way::Unpinned,
            }
        } else {
            Way::Cached
        };
        self.thread_mut().way = way;
        match way {
            Way::Unpinned => self.at(Step::TakeFrame),
            Way::Direct | Way::Cached => self.at(Step::LookPinned),
        }
    }

    pub(crate) fn look_pinned(&mut self) -> Taken {
        if !self.is_pinned() {
            return self.at(Step::TakeFrame);
        }
        self.await_release()
    }

    fn await_release(&mut self) -> Taken {
        let thread = self.thread_mut();
        thread.waits = Waits::Pin;
        thread.after_wait = Pc::Do(Step::LeaveDevice);
        self.goto(Pc::Wait)
    }

    pub(crate) fn take_frame(&mut self) -> Taken {
        let stages = self.thread().phase == Phase::Stage;
        if self.fails {
            if stages {
                if self.op() == Op::Fork {
                    self.thread_mut().phase = Phase::Fork;
                }
                self.thread_mut().after_free = Pc::Do(Step::LeaveDevice);
                return self.at(Step::ReleasePin);
            }
            if !self.keeps(Rule::AllocateBeforePin)
                && let Ok(word) = self.slot().word.prepared()
            {
                self.slot_mut().word = word;
                self.slot_mut().owner = Owner::Thread(self.me as u8);
            }
            return self.at(Step::LeaveDevice);
        }
        let free = self.state.frames.iter().position(|frame| frame.holds == 0);
        let free = free.expect("there are frames for everybody");
        self.state.frames[free].holds = 1;
        let index = self.page_index() as u8;
        self.thread_mut().frame = Some(FrameAt {
            block: free as u8,
            index,
        });
        self.at(if stages { Step::Unmap } else { Step::Pin })
    }

    pub(crate) fn pin(&mut self) -> Taken {
        let leave = Pc::Do(Step::LeaveDevice);
        if self.pte() != Pte::Swapped(self.slot_number()) {
            self.thread_mut().after_frame = leave;
            return self.at(Step::ReleaseFrame);
        }
        if self.thread().way == Way::Unpinned {
            return self.at(Step::ReadDevice);
        }
        match self.slot().word.prepared() {
            Ok(word) => self.slot_mut().word = word,
            Err(SlotError::Busy) if self.keeps(Rule::OneOwner) => {
                let thread = self.thread_mut();
                thread.waits = Waits::Pin;
                thread.after_frame = Pc::Wait;
                thread.after_wait = leave;
                return self.at(Step::ReleaseFrame);
            }
            Err(SlotError::Busy) => return Err(Violation::Owner),
            Err(error) => return Err(Violation::Refused(error)),
        }
        self.slot_mut().owner = Owner::Thread(self.me as u8);
        if self.thread().way == Way::Direct {
            return self.at(Step::ReadDevice);
        }
        self.lock_pte();
        self.at(Step::InsertCache)
    }

    /// Adds the page, locked. The last step of a cached read under the PTE lock; swap-out goes on.
    pub(crate) fn insert_cache(&mut self) -> Taken {
        let stages = self.thread().phase == Phase::Stage;
        let (slot, frame) = (self.slot_number(), self.thread().frame);
        *self.page_mut() = CachedPage {
            slot: Some(slot),
            locked: true,
            writeback: false,
            dirty: stages,
        };
        self.slot_mut().cached = frame;
        if stages {
            return self.at(Step::CountPte);
        }
        self.drop_pte_lock();
        self.at(Step::ReadDevice)
    }

    pub(crate) fn read_device(&mut self) -> Taken {
        self.use_device()?;
        if self.fails {
            self.frame_mut().content = Content::JUNK;
            if self.keeps(Rule::FailedReadMapsNothing) {
                self.thread_mut().failed = true;
                return self.at(Step::LookWanted);
            }
            return self.after_read();
        }
        let data = self.slot().data;
        if self.reads_halves() {
            self.frame_mut().content = Content {
                low: data.low,
                high: 0,
            };
            return self.at(Step::ReadRest);
        }
        self.frame_mut().content = data;
        self.after_read()
    }

    pub(crate) fn read_rest(&mut self) -> Taken {
        self.use_device()?;
        self.frame_mut().content.high = self.slot().data.high;
        self.after_read()
    }

    fn after_read(&mut self) -> Taken {
        if self.keeps(Rule::ReleaseAfterPte) {
            return self.at(Step::Map);
        }
        self.give_up(Pc::Do(Step::Map))
    }

    pub(crate) fn look_wanted(&mut self) -> Taken {
        let wanted = self.pte() == Pte::Swapped(self.slot_number());
        // SIGBUS: the access does not happen.
        let leave = if wanted { Pc::NextOp } else { Pc::Retry };
        let thread = self.thread_mut();
        thread.after_leave = leave;
        thread.after_frame = Pc::Do(Step::LeaveDevice);
        if self.keeps(Rule::ReleaseWhenGivingUp) {
            self.give_up(Pc::Do(Step::ReleaseFrame))
        } else {
            self.at(Step::ReleaseFrame)
        }
    }

    /// Gives back what the read took, on every way out; then `next`.
    fn give_up(&mut self, next: Pc) -> Taken {
        let slot = self.thread().slot;
        let thread = self.thread_mut();
        thread.after_free = Pc::Do(Step::LookWaiters);
        thread.after_wake = next;
        thread.other = slot;
        let way = thread.way;
        if next == Pc::Do(Step::Map) {
            thread.way = Way::Unpinned;
        }
        match way {
            Way::Unpinned => self.goto(next),
            Way::Direct => self.at(Step::ReleasePin),
            Way::Cached => self.at(Step::DeleteCached),
        }
    }

    /// The end of a read, mapped or not.
    fn end_read(&mut self, mapped: bool) -> Taken {
        self.thread_mut().after_frame = Pc::Do(Step::LeaveDevice);
        if !mapped && !self.keeps(Rule::ReleaseWhenGivingUp) && self.thread().way != Way::Unpinned {
            let thread = self.thread_mut();
            thread.other = None;
            thread.after_wake = Pc::Do(Step::ReleaseFrame);
            return self.at(Step::LookWaiters);
        }
        self.give_up(Pc::Do(Step::ReleaseFrame))
    }

    /// Tries the page lock: of a page found in the cache, or of one that is to be written.
    pub(crate) fn lock_page(&mut self) -> Taken {
        if self.page().locked {
            if self.slot().cached != self.thread().frame {
                return self.page_is_gone();
            }
            let writes = self.thread().phase == Phase::Write;
            let again = if writes {
                Step::LockPage
            } else {
                Step::LeaveDevice
            };
            let thread = self.thread_mut();
            thread.waits = Waits::PageLock;
            thread.after_wait = Pc::Do(again);
            return self.goto(Pc::Wait);
        }
        self.page_mut().locked = true;
        self.at(Step::RecheckPage)
    }

    pub(crate) fn recheck_page(&mut self) -> Taken {
        let (slot, frame) = (self.thread().slot, self.thread().frame);
        let same = self.page().slot == slot && self.slot().cached == frame;
        if !same && self.keeps(Rule::RecheckCachedPage) {
            self.page_mut().locked = false;
            return self.page_is_gone();
        }
        if self.thread().phase == Phase::Write {
            return self.at(Step::LookCounted);
        }
        let writeback = self.page().writeback && self.keeps(Rule::StableWhileWritten);
        if writeback && self.config.device.properties().stable_pages {
            let thread = self.thread_mut();
            thread.waits = Waits::Writeback;
            thread.after_wait = Pc::Do(Step::LeaveDevice);
            return self.unlock_then(Pc::Wait);
        }
        self.thread_mut().copies = writeback;
        self.at(Step::Compare)
    }

    /// The frame has another page, or none: whoever met the lock that was taken in vain is woken.
    fn page_is_gone(&mut self) -> Taken {
        let met = self.page().slot;
        let thread = self.thread_mut();
        thread.other = met;
        thread.after_wake = Pc::Do(Step::LeaveDevice);
        if self.keeps(Rule::WakeAfterVainLock) {
            return self.at(Step::LookWaiters);
        }
        self.at(Step::LeaveDevice)
    }

    /// The page lock is let go, waiters are woken, then `next`.
    pub(crate) fn unlock_then(&mut self, next: Pc) -> Taken {
        let slot = self.thread().slot;
        let thread = self.thread_mut();
        thread.other = slot;
        thread.after_wake = next;
        self.at(Step::UnlockPage)
    }

    pub(crate) fn compare(&mut self) -> Taken {
        if self.pte() != Pte::Swapped(self.slot_number()) {
            return self.unlock_then(Pc::Do(Step::LeaveDevice));
        }
        self.lock_pte();
        let shared = self.slot().word.state().count > 1 && self.keeps(Rule::CopyWhatOthersHold);
        let elsewhere = usize::from(self.frame_at().index) != self.page_index();
        self.thread_mut().copies |= shared || elsewhere;
        self.at(Step::Map)
    }

    pub(crate) fn map(&mut self) -> Taken {
        let reads = self.thread().phase == Phase::Read;
        if reads {
            let same = self.pte() == Pte::Swapped(self.slot_number());
            if !same && self.keeps(Rule::RecheckPte) || self.fails {
                return self.end_read(false);
            }
            self.lock_pte();
        } else if self.fails {
            self.drop_pte_lock();
            return self.unlock_then(Pc::Do(Step::LeaveDevice));
        }
        let (page, content) = (self.page_index(), self.frame().content);
        if self.space().memory[page].is_some() {
            return Err(Violation::MappedTwice);
        }
        self.space_mut().memory[page] = Some(content);
        self.note_mixed();
        self.check_content(content)?;
        if !reads && !self.thread().copies {
            // The page itself left the frame.
            self.frame_mut().content = Content::JUNK;
        }
        self.thread_mut().after_free = Pc::Do(Step::SetPte);
        self.at(Step::SwapFree)
    }

    /// Remembers that a page came in through the cache that somebody is reading past it.
    fn note_mixed(&mut self) {
        if self.thread().way != Way::Cached || self.thread().phase != Phase::Read {
            return;
        }
        let slot = self.thread().slot;
        let reading = [Step::ReadDevice, Step::ReadRest, Step::Map].map(Pc::Do);
        let others = self.state.threads.iter().enumerate();
        self.state.mixed |= others.into_iter().any(|(thread, other)| {
            thread != self.me
                && other.phase == Phase::Read
                && other.way == Way::Unpinned
                && other.slot == slot
                && reading.contains(&other.pc)
        });
    }

    pub(crate) fn check_content(&self, found: Content) -> Taken {
        let stored = self.space().truth[self.page_index()].expect("the page exists");
        if found == Content::whole(stored) {
            return Ok(());
        }
        Err(Violation::Lost {
            found,
            stored,
            mixed: self.state.mixed,
        })
    }

    pub(crate) fn set_pte(&mut self) -> Taken {
        self.set_pte_to(Pte::Present);
        self.drop_pte_lock();
        let thread = self.thread();
        if thread.slot.is_none() {
            // The page was filled with zeros.
            return self.goto(Pc::Retry);
        }
        if thread.phase == Phase::Read {
            return self.end_read(true);
        }
        if thread.copies {
            return self.unlock_then(Pc::Do(Step::LeaveDevice));
        }
        self.uncache(Pc::Do(Step::LeaveDevice))
    }

    /// Deletes a locked page, gives up h and the frame, wakes; then `next`.
    pub(crate) fn uncache(&mut self, next: Pc) -> Taken {
        let slot = self.thread().slot;
        let thread = self.thread_mut();
        thread.other = slot;
        thread.after_free = Pc::Do(Step::ReleaseFrame);
        thread.after_frame = Pc::Do(Step::LookWaiters);
        thread.after_wake = next;
        self.at(Step::DeleteCached)
    }
}
