//! The engine over software memory, with a thread for each of the model's, held in front of every step.

use std::cell::RefCell;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use userswap_core::entry::SwapEntry;
use userswap_core::page_table::PteState;
use userswap_core::rule::Rules;
use userswap_core::soft::{self, SoftMm, SoftSwap};
use userswap_core::space::{Frame, Frames};
use userswap_core::step::{self, Step};
use userswap_core::{Access, FaultError, Staged, SwapArea};
use userswap_model::config::{Config, Op};
use userswap_model::explore::Schedule;
use userswap_model::machine::{Machine, initial, is_done, next_step};
use userswap_model::state::{Content, FRAMES, FrameAt, PAGES, Pc, Pte, State};
use userswap_model::violation::Violation;

use super::device::{Handle, Memory, bytes, content};

/// How long a thread may take to get from one step to the next before the replay gives up: it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where the threads are held.
struct Holds {
    threads: Mutex<Vec<Held>>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default)]
struct Held {
    at: Option<Step>,
    parked: bool,
    goes: bool,
    finished: bool,
}

thread_local!(static ME: RefCell<Option<(Arc<Holds>, usize)>> = const { RefCell::new(None) });

fn hold(step: Step) {
    let me = ME.with(|me| me.borrow().clone());
    if let Some((holds, thread)) = me {
        holds.hold(thread, step);
    }
}

impl Holds {
    fn lock(&self) -> MutexGuard<'_, Vec<Held>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self, thread: usize, step: Step) {
        let mut threads = self.lock();
        threads[thread].parked = step == Step::Park;
        if threads[thread].parked {
            self.changed.notify_all();
            return;
        }
        threads[thread].at = Some(step);
        self.changed.notify_all();
        while !threads[thread].goes {
            threads = self
                .changed
                .wait(threads)
                .unwrap_or_else(PoisonError::into_inner);
        }
        threads[thread].goes = false;
        threads[thread].at = None;
    }

    fn finish(&self, thread: usize) {
        self.lock()[thread].finished = true;
        self.changed.notify_all();
    }

    fn let_go(&self, thread: usize) {
        let mut threads = self.lock();
        threads[thread].goes = true;
        // As long as the thread has not taken notice it must not seem to be held.
        threads[thread].at = None;
        self.changed.notify_all();
    }

    /// The step the thread is held at, or `None` when it has finished.
    fn wait_for(&self, thread: usize) -> Result<Option<Step>, String> {
        self.wait_until(thread, |held| match held.at {
            _ if held.finished => Some(None),
            Some(step) if !held.goes => Some(Some(step)),
            _ => None,
        })
    }

    fn wait_until<T>(
        &self,
        thread: usize,
        until: impl Fn(&Held) -> Option<T>,
    ) -> Result<T, String> {
        let mut threads = self.lock();
        loop {
            if let Some(found) = until(&threads[thread]) {
                return Ok(found);
            }
            let (next, timeout) = self
                .changed
                .wait_timeout(threads, PATIENCE)
                .unwrap_or_else(PoisonError::into_inner);
            threads = next;
            if timeout.timed_out() {
                return Err(format!("thread {thread} hangs, or died"));
            }
        }
    }
}

/// Says that a thread has finished also where an assertion of the engine ends it.
struct Finishes(Arc<Holds>, usize);

impl Drop for Finishes {
    fn drop(&mut self) {
        self.0.finish(self.1);
    }
}

struct World {
    swap: SoftSwap,
    parent: SoftMm,
    child: SoftMm,
    memory: Arc<Memory>,
}

impl World {
    fn new(config: &Config, rules: Rules) -> Self {
        let memory = Arc::new(Memory::new(config.device, config.slots));
        let swap = soft::swap_with_rules(FRAMES, config.way, rules);
        let area = swap.add_area(Box::new(Handle(Arc::clone(&memory))));
        assert!(area.is_some());
        let parent = soft::mm(&swap, config.pages, Some(1));
        let child = soft::mm(&swap, config.pages, Some(1));
        let world = Self {
            swap,
            parent,
            child,
            memory,
        };
        for page in 0..config.pages {
            let first = bytes(Content::whole(config.first_version(page)));
            soft::access(&world.swap, &world.parent, page, |memory| *memory = first)
                .expect("the page can be filled");
            if config.swapped && page < config.slots {
                let staged = world.swap.stage(&world.parent, 0, 1 << page);
                world.write(staged.expect("the page can be staged"));
            }
        }
        world
    }

    fn area(&self) -> &SwapArea {
        self.swap.areas().next().expect("there is an area")
    }

    fn run(&self, config: &Config, thread: usize) {
        for (number, &op) in config.threads[thread].iter().enumerate() {
            match op {
                Op::Load(_) | Op::ChildLoad => self.access(op, None),
                Op::Store(_) | Op::ChildStore => {
                    self.access(op, Some(config.stored_version(thread, number)));
                }
                Op::PageOut(page) => {
                    if let Ok(staged) = self.swap.stage(&self.parent, 0, 1 << page) {
                        self.write(staged);
                    }
                }
                Op::Drop(page) => {
                    let _ = self.swap.discard(&self.parent, 0, 1 << page);
                }
                Op::Fork => {
                    let (staged, copied) = self.swap.fork_chunk(&self.parent, &self.child, 0);
                    copied.expect("the page can be copied");
                    if let Some(staged) = staged {
                        self.write(staged);
                    }
                }
                Op::ChildDiscard => {
                    let _ = self.swap.discard(&self.child, 0, 1);
                }
                Op::Swapoff => self.swapoff(),
            }
        }
    }

    fn write(&self, staged: Staged) {
        let _ = self.swap.write_back(staged.block, staged.mask);
        step::at(Step::ReleaseFrame);
        self.swap.frames().release(staged.block, 1);
    }

    fn access(&self, op: Op, store: Option<u8>) {
        let mm = if op.space() == 0 {
            &self.parent
        } else {
            &self.child
        };
        let page = op.page();
        loop {
            step::at(Step::Touch);
            if mm.space.peek(page).is_some() {
                if let Some(version) = store {
                    let stored = bytes(Content::whole(version));
                    soft::access(&self.swap, mm, page, |memory| *memory = stored)
                        .expect("the page is there");
                }
                return;
            }
            let access = Access {
                page,
                write: true,
                max_pages: 1,
                wait: true,
            };
            match self.swap.fault(mm, access) {
                Ok(_) | Err(FaultError::NoFrames | FaultError::Space(_)) => {}
                Err(FaultError::Read { .. }) => return,
            }
        }
    }

    fn swapoff(&self) {
        let area = self.area();
        self.swap.begin_swapoff(area);
        loop {
            self.swap
                .unuse(&self.parent, area)
                .expect("pages can be brought back");
            step::at(Step::LookUsed);
            if area.used() == 0 {
                break;
            }
        }
        self.swap.end_swapoff(area);
    }

    /// What differs between the engine and the model's `state`.
    fn compare(&self, config: &Config, state: &State) -> Result<(), String> {
        let same = |what: &str, engine: &dyn std::fmt::Debug, model: &dyn std::fmt::Debug| {
            let (engine, model) = (format!("{engine:?}"), format!("{model:?}"));
            if engine == model {
                return Ok(());
            }
            Err(format!(
                "{what}: the engine has {engine}, the model {model}"
            ))
        };
        for (mm, space) in [&self.parent, &self.child].into_iter().zip(&state.spaces) {
            for page in 0..config.pages {
                let pte = match mm.table.load(page).state() {
                    PteState::None => Pte::None,
                    PteState::Present => Pte::Present,
                    PteState::Swapped(entry) => Pte::Swapped(entry.offset() as u8),
                };
                same("PTE", &pte, &space.ptes[page])?;
                let memory = mm.space.peek(page).map(|page| content(&page));
                same("page", &memory, &space.memory[page])?;
            }
        }
        for (number, slot) in state.slots[..config.slots].iter().enumerate() {
            let entry = SwapEntry::new(0, number as u64);
            same("slot", &self.area().slot(entry), &slot.word.state())?;
            let cached = self.area().cached(entry).map(|frame| FrameAt {
                block: frame.block as u8,
                index: frame.index as u8,
            });
            same("cache", &cached, &slot.cached)?;
            same("slot data", &self.memory.content(number), &slot.data)?;
        }
        for (block, frame) in state.frames.iter().enumerate() {
            for index in 0..PAGES {
                let at = Frame {
                    block: block as u32,
                    index,
                };
                let (entry, bits) = self.swap.page_state(at);
                let page = frame.pages[index];
                same(
                    "cached page's entry",
                    &entry.map(|entry| entry.offset() as u8),
                    &page.slot,
                )?;
                same(
                    "cached page",
                    &bits,
                    &[page.locked, page.writeback, page.dirty],
                )?;
            }
        }
        let frames = state.frames.iter().filter(|frame| frame.holds > 0).count();
        same("frames in use", &self.swap.frames().in_use(), &frames)?;
        same(
            "area stopped",
            &!self.swap.is_open(self.area()),
            &state.stopped,
        )
    }

    /// Makes the step that is let go next fail, or not.
    fn fail(&self, step: Step, fails: bool) {
        match step {
            Step::TakeFrame => self.swap.frames().exhausted.store(fails, Ordering::SeqCst),
            Step::ReadDevice | Step::WriteDevice => {
                self.memory.fails.store(fails, Ordering::SeqCst);
            }
            Step::Map => {
                self.parent.space.full.store(fails, Ordering::SeqCst);
                self.child.space.full.store(fails, Ordering::SeqCst);
            }
            _ => {}
        }
    }
}

/// Drives the engine, keeping `rules`, through `schedule` of the model, which keeps those of `config`, and
/// compares both after each step. Returns how many steps were compared.
///
/// Stops before a step in which the model breaks an invariant, unless that is a wrong page mapped.
/// A schedule that stops before its threads are done leaves them standing where they are.
pub(crate) fn replay(config: &Config, schedule: &Schedule, rules: Rules) -> Result<usize, String> {
    let world = Arc::new(World::new(config, rules));
    let count = config.threads.len();
    let holds = Arc::new(Holds {
        threads: Mutex::new(vec![Held::default(); count]),
        changed: Condvar::new(),
    });
    for thread in 0..count {
        let (world, holds, config) = (Arc::clone(&world), Arc::clone(&holds), config.clone());
        std::thread::spawn(move || {
            ME.with(|me| *me.borrow_mut() = Some((Arc::clone(&holds), thread)));
            let _finishes = Finishes(holds, thread);
            step::report_to(Some(hold));
            world.run(&config, thread);
            step::report_to(None);
        });
    }
    let mut machine = Machine::new(config, initial(config));
    for thread in 0..count {
        expect(&holds, thread, &machine.state)?;
    }
    world.compare(config, &machine.state)?;
    for (number, &go) in schedule.iter().enumerate() {
        let context = |error: String| {
            format!(
                "step {}, thread {} {:?}: {error}",
                number + 1,
                go.thread,
                go.step
            )
        };
        // A thread that was woken may still be on its way.
        expect(&holds, go.thread, &machine.state).map_err(context)?;
        world.fail(go.step, go.fails);
        holds.let_go(go.thread);
        let result = machine.make(go);
        if let Err(Violation::Lost { .. }) = result {
            // The model stops when the wrong page is mapped; the engine goes on to its next step.
            holds.wait_for(go.thread).map_err(context)?;
        } else if result.is_err() {
            // A check inside the model's step: in builds with assertions the engine's own may have
            // ended the thread.
            return Ok(number);
        } else if machine.state.threads[go.thread].pc == Pc::Parked {
            let parked = |held: &Held| {
                let goes_on = held.finished || held.at.is_some();
                (held.parked || goes_on).then_some(held.parked)
            };
            if !holds.wait_until(go.thread, parked).map_err(context)? {
                return Err(context("the model parks, the engine does not".into()));
            }
        } else {
            expect(&holds, go.thread, &machine.state).map_err(context)?;
        }
        world.fail(go.step, false);
        world.compare(config, &machine.state).map_err(context)?;
    }
    Ok(schedule.len())
}

/// The engine's thread is about to take the step that the model's is about to take.
fn expect(holds: &Holds, thread: usize, state: &State) -> Result<(), String> {
    let model = next_step(state, thread);
    let engine = holds.wait_for(thread)?;
    if model != engine || (model.is_none() && !is_done(state, thread)) {
        return Err(format!(
            "thread {thread}: the engine is at {engine:?}, the model at {model:?}"
        ));
    }
    Ok(())
}
