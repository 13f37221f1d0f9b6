//! Room for a charge: how it is found, and what becomes of a charge for which there is none.
//!
//! Who charges has the reclaimer's steps done until the charge fits. Where a limit is shared with other processes the share may grow
//! meanwhile; where all that does not help, the charge is granted and that is said, or, where the limit is strict, the process ends.

use std::time::Duration;

use userswap_core::device::PAGE_SIZE;
use userswap_sys::signals::stderr_line;
use userswap_sys::timing::now_ns;

use crate::effort::{Step, Tries};
use crate::shared::Shared;

/// Milliseconds within which a share of a limit grows, if it does: on a busy machine who looks may not run sooner.
const GROWS_WITHIN: u32 = 20;

/// How often a charge waits for that.
const MOST_WAITS: u32 = 8;

impl Shared {
    /// Makes room for `pages` and charges them; `false`: no room can be made now, and nothing was charged.
    pub(crate) fn find_room(&self, pages: u64) -> bool {
        self.reclaim_until(|| {
            self.budget.ease(self.used_bytes(), now_ns());
            self.budget.charge(pages, self.other_bytes())
        })
    }

    /// Has what can leave memory do so until `is_done`; `false`: no more can, now.
    pub(crate) fn reclaim_until(&self, mut is_done: impl FnMut() -> bool) -> bool {
        let mut tries = Tries::new(self.occupied());
        loop {
            let step = self.reclaim_step();
            if is_done() {
                return true;
            }
            if !tries.go_on(step) {
                break;
            }
            match step {
                Step::Worked | Step::Barren | Step::InVain => {}
                Step::OthersAtWork => std::thread::sleep(Duration::from_micros(20)),
                Step::Nothing => {
                    // What is left is in other threads' hands, or in holes of the store, which only the
                    // reclaimer may close.
                    self.swap.frames().empty_reserve();
                    self.reclaimer.ring();
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        false
    }

    /// Makes room for `pages` and charges them; where no room can be made they are charged all the
    /// same, and that is said once.
    pub(crate) fn make_room(&self, pages: u64) {
        let needed = || self.used_bytes() + pages * PAGE_SIZE as u64;
        let mut most = self.budget.limit();
        for _ in 0..MOST_WAITS {
            if self.find_room(pages) {
                return;
            }
            // It has little that could leave: where others make room, its share grows.
            let grew =
                self.budget.limit() > most || self.may_be_held(needed()) && self.share_grows(most);
            if !grew {
                break;
            }
            most = most.max(self.budget.limit());
        }
        let (used, needed) = (self.used_bytes(), needed());
        if self.strict && self.is_to_end(needed) {
            let limit = self.whole_limit();
            stderr_line(format_args!(
                "userswap: the limit of {limit} bytes cannot be held, and is strict: ending the process"
            ));
            userswap_sys::kill_process();
        }
        self.budget.exceed(used, now_ns());
        self.budget.force(pages);
        self.tell_exceeded(needed);
    }

    /// Waits for a moment, where processes share a limit, until this one's share is more than `limit`; `false`: it does not grow.
    fn share_grows(&self, limit: Option<u64>) -> bool {
        let looks = if self.whole.is_some() {
            GROWS_WITHIN
        } else {
            0
        };
        (0..looks).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            self.budget.limit() > limit
        })
    }

    /// Whether a strict limit ends this process, which cannot do with less than `needed` bytes.
    fn is_to_end(&self, needed: u64) -> bool {
        let whole = self.whole.as_ref();
        whole.is_none_or(|whole| !(whole.can_be_held)(needed) && (whole.ends)(needed))
    }

    /// Whether others may make room where this process cannot do with less than `needed` bytes.
    fn may_be_held(&self, needed: u64) -> bool {
        let whole = self.whole.as_ref();
        whole.is_some_and(|whole| (whole.can_be_held)(needed))
    }

    /// The limit, in bytes, or what it is a share of.
    fn whole_limit(&self) -> u64 {
        let own = || self.budget.limit().unwrap_or(u64::MAX);
        self.whole.as_ref().map_or_else(own, |whole| whole.bytes)
    }

    /// Says, once, that the limit cannot be held with `used` bytes in use.
    pub(crate) fn tell_exceeded(&self, used: u64) {
        if !self.budget.is_warned() && !self.may_be_held(used) && self.budget.warn() {
            let limit = self.whole_limit();
            let advice = if self
                .swap
                .open_areas()
                .any(|area| area.device().leaves_memory())
            {
                ""
            } else {
                ". A file takes what memory does not: --device zram,file:FOLDER (or, for `run`, --spill FOLDER)"
            };
            stderr_line(format_args!(
                "userswap: the limit of {limit} bytes cannot be held: what is in memory does not compress (enough), is pinned, \
                 or the swap area is full; nothing is lost, memory use goes over the limit{advice}"
            ));
        }
    }

    /// Makes `limit` the limit, and room until it holds, as far as it can be held, or nothing more can be done now.
    pub(crate) fn lower_to(&self, limit: u64) {
        self.set_limit(limit);
        let mut tries = Tries::new(self.occupied());
        while self.used_bytes() > self.budget.allowed(self.other_bytes()) {
            // Step by step: a change of the address space may be waiting.
            let step = {
                let _inside = self.moving.enter();
                self.reclaim_step()
            };
            if !tries.go_on(step) {
                break;
            }
            match step {
                Step::Worked | Step::Barren => {}
                Step::OthersAtWork => std::thread::sleep(Duration::from_micros(20)),
                Step::InVain | Step::Nothing if self.tend() => {}
                Step::InVain | Step::Nothing => break,
            }
        }
        self.reclaimer.ring();
        let _inside = self.moving.enter();
        self.compact_store();
    }
}
