//! A schedule, step by step, with what the state was after each: as text.

use userswap_core::step::Step;

use crate::config::{Config, Op};
use crate::explore::Schedule;
use crate::machine::{Machine, Move, initial};
use crate::state::{Content, Pc, Phase, Pte, State, Thread, Way};
use crate::violation::Violation;

/// One step of a schedule.
#[derive(Clone, Debug)]
pub struct Row {
    /// The thread that took it.
    pub thread: usize,
    /// The step.
    pub step: Step,
    /// Its letter in the protocol's section 1, where it has one.
    pub letter: &'static str,
    /// What was done, in a few words.
    pub what: String,
    /// What is so afterwards: see [`Timeline::columns`].
    pub cells: Vec<String>,
}

/// A schedule with its states.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// What each thread does.
    pub threads: Vec<String>,
    /// The names of the cells.
    pub columns: Vec<String>,
    /// What is so at first.
    pub first: Vec<String>,
    /// The steps.
    pub rows: Vec<Row>,
    /// What was lost, if anything was.
    pub end: Option<String>,
}

impl Timeline {
    /// Plays `schedule`, which ends in `violation`.
    #[must_use]
    pub fn new(config: &Config, schedule: &Schedule, violation: Option<Violation>) -> Self {
        let forks = config.threads.iter().flatten().any(|&op| op == Op::Fork);
        let mut columns = Vec::new();
        for page in 0..config.pages {
            let name = if config.pages == 1 {
                String::new()
            } else {
                format!(" {page}")
            };
            columns.extend([format!("PTE{name}"), format!("page{name}")]);
        }
        if forks {
            columns.push("child PTE".into());
        }
        for slot in 0..config.slots {
            let name = entry(slot as u8);
            columns.extend([format!("{name} (c,h)"), format!("data of {name}")]);
        }
        columns.extend((0..config.threads.len()).map(|thread| format!("T{thread}'s copy")));
        let cells = |state: &State| {
            let mut cells = Vec::new();
            let parent = &state.spaces[0];
            for page in 0..config.pages {
                let memory = parent.memory[page];
                cells.extend([pte(parent.ptes[page]), content(memory)]);
            }
            if forks {
                cells.push(pte(state.spaces[1].ptes[0]));
            }
            for slot in &state.slots[..config.slots] {
                let word = slot.word.state();
                let shown = format!("({},{})", word.count, u8::from(word.has_cache));
                cells.extend([shown, slot.data.to_string()]);
            }
            cells.extend(state.threads[..config.threads.len()].iter().map(|thread| {
                let held = thread.frame.filter(|_| has_copy(state, thread));
                content(held.map(|frame| state.frames[usize::from(frame.block)].content))
            }));
            cells
        };
        let mut machine = Machine::new(config, initial(config));
        let first = cells(&machine.state);
        let victim = schedule.last().map(|go| go.thread);
        let mut rows = Vec::new();
        for (at, &go) in schedule.iter().enumerate() {
            let before = machine.state;
            let op = config.threads[go.thread][usize::from(before.threads[go.thread].op)];
            let result = machine.make(go);
            debug_assert!(result.is_ok() || at + 1 == schedule.len());
            let letter = letter(go, Some(go.thread) == victim, op, &before);
            rows.push(Row {
                thread: go.thread,
                step: go.step,
                letter,
                what: what(config, go, op, &before, &machine.state),
                cells: cells(&machine.state),
            });
        }
        let threads = config.threads.iter().enumerate().map(|(thread, ops)| {
            let ops: Vec<_> = ops.iter().map(ToString::to_string).collect();
            format!("T{thread}: {}", ops.join(", "))
        });
        Self {
            threads: threads.collect(),
            columns,
            first,
            rows,
            end: violation.map(|violation| violation.to_string()),
        }
    }

    /// The letters in the order of the schedule.
    #[must_use]
    pub fn letters(&self) -> Vec<&'static str> {
        let letters = self.rows.iter().map(|row| row.letter);
        letters.filter(|letter| !letter.is_empty()).collect()
    }
}

/// Whether the thread's frame is a private copy, and not a page that others see in the cache.
fn has_copy(state: &State, thread: &Thread) -> bool {
    let slot = thread.slot.map(|slot| &state.slots[usize::from(slot)]);
    let read = matches!(
        thread.pc,
        Pc::Do(Step::ReadRest | Step::Map | Step::LookWanted)
    );
    read && thread.phase == Phase::Read
        && slot.is_some_and(|slot| thread.way != Way::Cached || slot.cached == thread.frame)
}

fn entry(slot: u8) -> char {
    char::from(b'E' + slot)
}

fn pte(pte: Pte) -> String {
    match pte {
        Pte::None => "-".into(),
        Pte::Present => "present".into(),
        Pte::Swapped(slot) => entry(slot).into(),
    }
}

fn content(content: Option<Content>) -> String {
    content.map_or_else(|| "-".into(), |content| content.to_string())
}

/// The letters of the protocol's section 1: of the thread that maps the wrong page, and of the others.
fn letter(go: Move, victim: bool, op: Op, before: &State) -> &'static str {
    let reads = before.threads[go.thread].phase == Phase::Read;
    match go.step {
        Step::ReadPte if victim => "a",
        Step::TakeFrame if victim => "b",
        Step::ReadDevice if victim => "c",
        Step::Map if victim => "d",
        Step::Map if reads => "p",
        Step::Touch
            if !victim && matches!(op, Op::Store(_)) && before.spaces[0].memory[0].is_some() =>
        {
            "e"
        }
        Step::AllocateSlot if !victim => "f1",
        Step::PutEntry if !victim => "f2",
        Step::WriteDevice if !victim => "f3",
        Step::DeleteCached if !victim && before.threads[go.thread].phase == Phase::Write => "f4",
        _ => "",
    }
}

/// What a step did, with the version or the entry it did it to.
fn what(config: &Config, go: Move, op: Op, before: &State, after: &State) -> String {
    let name = go.step.name();
    let (was, is) = (&before.threads[go.thread], &after.threads[go.thread]);
    let data = |slot: Option<u8>, state: &State| {
        content(slot.map(|slot| state.slots[usize::from(slot)].data))
    };
    let named = |slot: Option<u8>| slot.map_or('?', entry);
    let page = op.page();
    let what = match go.step {
        Step::Touch => match (before.spaces[op.space()].memory[page], op) {
            (None, _) => "access faults".to_owned(),
            (Some(_), Op::Store(_) | Op::ChildStore) => {
                let version = config.stored_version(go.thread, usize::from(was.op));
                format!("store {}", Content::whole(version))
            }
            (Some(found), _) => format!("load {found}"),
        },
        Step::ReadPte => format!("{name}: {}", pte(before.spaces[op.space()].ptes[page])),
        Step::LookUpCache if is.frame.is_some() => "cache hit".to_owned(),
        Step::LookUpCache => "cache miss".to_owned(),
        Step::ChooseWay => match is.way {
            Way::Direct => "way: direct".to_owned(),
            Way::Cached => "way: cached".to_owned(),
            Way::Unpinned => "way: unpinned".to_owned(),
        },
        Step::Pin if was.way == Way::Unpinned => "compare PTE (no pin)".to_owned(),
        Step::ReadDevice | Step::WriteDevice if go.fails => format!("{name}: fails"),
        Step::ReadDevice => format!("{name} {}: {}", named(was.slot), data(was.slot, before)),
        Step::WriteDevice => format!("{name} {}: {}", named(was.slot), data(was.slot, after)),
        Step::Map if is.pc == was.pc || after.spaces[op.space()].memory[page].is_some() => {
            format!("{name} {}", content(after.spaces[op.space()].memory[page]))
        }
        Step::SwapFree | Step::Discard => format!("{name} {}", named(was.slot)),
        Step::FinishFree => format!("{} is free", named(was.slot)),
        Step::AllocateSlot => format!("{name}: {}", named(is.slot)),
        Step::Unmap => format!("{name} {}", content(before.spaces[op.space()].memory[page])),
        Step::PutEntry => format!("PTE := {}", named(was.slot)),
        _ => name.to_owned(),
    };
    match go.step.number() {
        Some(number) => format!("{number} {what}"),
        None => what,
    }
}

impl std::fmt::Display for Timeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |thread: usize| {
            let rows = self.rows.iter().filter(|row| row.thread == thread);
            let longest = rows.map(|row| 4 + row.what.chars().count()).max();
            longest
                .unwrap_or(0)
                .max(self.threads[thread].chars().count())
        };
        let widths: Vec<usize> = (0..self.threads.len()).map(width).collect();
        let cell_width = |column: usize| {
            let cells = self
                .rows
                .iter()
                .map(|row| row.cells[column].chars().count());
            cells.max().unwrap_or(0).max(self.columns[column].len())
        };
        let cell_widths: Vec<usize> = (0..self.columns.len()).map(cell_width).collect();
        let mut line = |number: String, threads: &[String], cells: &[String]| {
            let mut text = format!("{number:>3} ");
            for (thread, width) in threads.iter().zip(&widths) {
                text.push_str(&format!(" {thread:<width$} "));
            }
            text.push('|');
            for (cell, width) in cells.iter().zip(&cell_widths) {
                text.push_str(&format!("  {cell:<width$}"));
            }
            writeln!(f, "{}", text.trim_end())
        };
        let nothing = vec![String::new(); self.threads.len()];
        line("#".into(), &self.threads, &self.columns)?;
        line("0".into(), &nothing, &self.first)?;
        for (number, row) in self.rows.iter().enumerate() {
            let mut threads = nothing.clone();
            threads[row.thread] = format!("{:<3} {}", row.letter, row.what);
            line((number + 1).to_string(), &threads, &row.cells)?;
        }
        if let Some(end) = &self.end {
            write!(f, "LOST: {end}")?;
        }
        Ok(())
    }
}
