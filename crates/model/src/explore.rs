//! Every schedule of a configuration, breadth first, so that the first violation found is one of the shortest.
//!
//! What is checked, beyond the invariants of [`crate::check`]:
//!
//! - *Deadlock*: a state in which no thread has a step and not all have finished.
//! - *Spins*: a cycle of steps of one thread alone. That thread retries instead of waiting: for as long as it
//!   has the CPU, the one it waits for does not get on. Where a thread should wait, it must park.
//! - *Starves*: a run without end that is weakly fair, that is, in which no thread has a step for ever
//!   without taking one. Programs are finite, so in a run without end somebody never comes to his own end.
//!   Such a run exists exactly if the graph of states has a strongly connected component with a cycle in which
//!   each thread takes a step somewhere, or has none somewhere.

use std::collections::HashSet;
use std::hash::{Hash, Hasher};

use crate::check;
use crate::config::Config;
use crate::machine::{Machine, Move, initial, is_done};
use crate::state::{State, THREADS};
use crate::violation::Violation;

/// A schedule: moves from the initial state.
pub type Schedule = Vec<Move>;

/// What an exploration found.
#[derive(Clone, Debug)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Moves between them.
    pub transitions: usize,
    /// The length of the longest of the shortest schedules.
    pub depth: usize,
    /// A shortest schedule that breaks something, and what it breaks.
    pub broken: Option<(Schedule, Violation)>,
    graph: Graph,
}

#[derive(Clone, Debug, Default)]
struct Graph {
    states: Vec<State>,
    /// How a state was reached first: its predecessor and the move.
    from: Vec<(u32, Move)>,
    /// Where the edges of a state begin; they end where the next one's begin.
    first_edge: Vec<u32>,
    edges: Vec<Edge>,
}

#[derive(Clone, Copy, Debug)]
struct Edge {
    to: u32,
    thread: u8,
}

/// Which violations count; others end their schedule and are passed over.
pub type Wanted = fn(&Violation) -> bool;

/// Explores all of `config`, or up to the first violation.
#[must_use]
pub fn explore(config: &Config) -> Explored {
    explore_for(config, |_| true)
}

/// Explores `config` up to the first violation that is `wanted`.
#[must_use]
pub fn explore_for(config: &Config, wanted: Wanted) -> Explored {
    let mut graph = Graph::default();
    let mut seen = Seen::new();
    let start = initial(config);
    let none = Move {
        thread: 0,
        step: userswap_core::step::Step::Touch,
        fails: false,
    };
    graph.states.push(start);
    graph.from.push((0, none));
    seen.add(&graph.states, 0);
    let mut depths = vec![0_u32];
    let mut moves = Vec::new();
    let mut broken = None;
    let mut at = 0;
    'all: while at < graph.states.len() {
        graph.first_edge.push(graph.edges.len() as u32);
        let state = graph.states[at];
        Machine::new(config, state).moves(&mut moves);
        if moves.is_empty() {
            let done = (0..config.threads.len()).all(|thread| is_done(&state, thread));
            let end = if done {
                check::at_end(config, &state)
            } else {
                Err(Violation::Deadlock)
            };
            if let Err(violation) = end
                && wanted(&violation)
            {
                broken = Some((graph.schedule(at), violation));
                break 'all;
            }
        }
        for &go in &moves {
            let mut machine = Machine::new(config, state);
            let result = machine.make(go);
            let result = result.and_then(|()| check::always(config, &machine.state));
            if let Err(violation) = result {
                if wanted(&violation) {
                    let mut schedule = graph.schedule(at);
                    schedule.push(go);
                    broken = Some((schedule, violation));
                    break 'all;
                }
                continue;
            }
            graph.states.push(machine.state);
            let new = graph.states.len() - 1;
            let to = match seen.find_or_add(&graph.states, new) {
                Some(known) => {
                    graph.states.pop();
                    known
                }
                None => {
                    graph.from.push((at as u32, go));
                    depths.push(depths[at] + 1);
                    new as u32
                }
            };
            graph.edges.push(Edge {
                to,
                thread: go.thread as u8,
            });
        }
        at += 1;
    }
    if broken.is_none() {
        broken = endless(config, &graph).filter(|(_, violation)| wanted(violation));
    }
    Explored {
        states: graph.states.len(),
        transitions: graph.edges.len(),
        depth: depths.iter().max().map_or(0, |&depth| depth as usize),
        broken,
        graph,
    }
}

impl Explored {
    /// The shortest schedule to state number `state`.
    #[must_use]
    pub fn schedule_to(&self, state: usize) -> Schedule {
        self.graph.schedule(state)
    }

    /// The numbers of the states in which every thread has finished.
    pub fn ends(&self) -> impl Iterator<Item = usize> {
        let first = &self.graph.first_edge;
        let end = self.graph.edges.len() as u32;
        (0..first.len()).filter(move |&at| first.get(at + 1).copied().unwrap_or(end) == first[at])
    }
}

impl Graph {
    fn schedule(&self, mut at: usize) -> Schedule {
        let mut moves = Vec::new();
        while at != 0 {
            let (from, go) = self.from[at];
            moves.push(go);
            at = from as usize;
        }
        moves.reverse();
        moves
    }

    fn edges(&self, at: usize) -> &[Edge] {
        let end = self
            .first_edge
            .get(at + 1)
            .map_or(self.edges.len(), |&end| end as usize);
        &self.edges[self.first_edge[at] as usize..end]
    }
}

/// A cycle that one thread can go round alone, or that all can go round for ever.
fn endless(config: &Config, graph: &Graph) -> Option<(Schedule, Violation)> {
    let all = config.threads.len();
    let cycles = components(graph, None);
    if cycles.is_empty() {
        return None;
    }
    // Components come out in no order: the shortest schedule into any is looked for.
    let shortest = |cycles: Vec<Cycle>| {
        let schedules = cycles.iter().map(|cycle| cycle.schedule(config, graph));
        schedules.min_by_key(Vec::len)
    };
    let alone = (0..all).flat_map(|thread| {
        let states = components(graph, Some(thread as u8)).into_iter();
        states.map(move |states| Cycle {
            states,
            thread: Some(thread),
        })
    });
    if let Some(schedule) = shortest(alone.collect()) {
        return Some((schedule, Violation::Spins));
    }
    let fair = cycles
        .into_iter()
        .filter(|cycle| is_fair(graph, cycle, all));
    let fair = fair.map(|states| Cycle {
        states,
        thread: None,
    });
    shortest(fair.collect()).map(|schedule| (schedule, Violation::Starves))
}

/// States among which one thread, or all together, can go round for ever.
struct Cycle {
    states: Vec<u32>,
    thread: Option<usize>,
}

impl Cycle {
    /// The shortest way there, and on until a state comes again.
    fn schedule(&self, config: &Config, graph: &Graph) -> Schedule {
        let mut at = *self.states.iter().min().expect("a cycle has states");
        let mut schedule = graph.schedule(at as usize);
        let inside: HashSet<u32> = self.states.iter().copied().collect();
        let mut passed = HashSet::new();
        let mut moves = Vec::new();
        while passed.insert(at) {
            let state = graph.states[at as usize];
            Machine::new(config, state).moves(&mut moves);
            let mine = |go: &&Move| self.thread.is_none_or(|thread| thread == go.thread);
            let next = moves.iter().filter(mine).find_map(|&go| {
                let mut machine = Machine::new(config, state);
                machine.make(go).ok()?;
                let edges = graph.edges(at as usize).iter();
                let mut edges = edges.filter(|edge| inside.contains(&edge.to));
                let to = edges.find(|edge| graph.states[edge.to as usize] == machine.state)?;
                Some((go, to.to))
            });
            let (go, to) = next.expect("every state of a cycle has a step in it");
            schedule.push(go);
            at = to;
        }
        schedule
    }
}

/// Whether each thread takes a step in the component, or has none in one of its states.
fn is_fair(graph: &Graph, cycle: &[u32], threads: usize) -> bool {
    let inside: HashSet<u32> = cycle.iter().copied().collect();
    let mut fair = [false; THREADS];
    for &at in cycle {
        let mut can = [false; THREADS];
        for edge in graph.edges(at as usize) {
            can[usize::from(edge.thread)] = true;
            fair[usize::from(edge.thread)] |= inside.contains(&edge.to);
        }
        for thread in 0..threads {
            fair[thread] |= !can[thread];
        }
    }
    fair[..threads].iter().all(|&fair| fair)
}

/// The strongly connected components that have a cycle, of all edges or of one thread's (Tarjan, with its own
/// stack: graphs are deep).
fn components(graph: &Graph, thread: Option<u8>) -> Vec<Vec<u32>> {
    const NEW: u32 = u32::MAX;
    const DONE: u32 = u32::MAX - 1;
    let states = graph.first_edge.len();
    let mut low = vec![NEW; states];
    let mut stack: Vec<u32> = Vec::new();
    let mut calls: Vec<(u32, u32, u32)> = Vec::new();
    let mut found = Vec::new();
    let mut clock = 0;
    for root in 0..states as u32 {
        if low[root as usize] != NEW {
            continue;
        }
        calls.push((root, 0, clock));
        low[root as usize] = clock;
        clock += 1;
        stack.push(root);
        while let Some((at, next, index)) = calls.pop() {
            let edges = graph.edges(at as usize);
            let mut next = next as usize;
            let mut descend = None;
            while let Some(edge) = edges.get(next) {
                next += 1;
                if thread.is_some_and(|thread| thread != edge.thread) || edge.to as usize >= states
                {
                    continue;
                }
                match low[edge.to as usize] {
                    NEW => {
                        descend = Some(edge.to);
                        // Looked at again on the way back, for its low.
                        next -= 1;
                        break;
                    }
                    DONE => {}
                    other => low[at as usize] = low[at as usize].min(other),
                }
            }
            if let Some(to) = descend {
                calls.push((at, next as u32, index));
                calls.push((to, 0, clock));
                low[to as usize] = clock;
                clock += 1;
                stack.push(to);
                continue;
            }
            if low[at as usize] == index {
                let from = stack.iter().rposition(|&s| s == at).expect("on the stack");
                let component: Vec<u32> = stack.drain(from..).collect();
                for &state in &component {
                    low[state as usize] = DONE;
                }
                let is_cycle = component.len() > 1
                    || edges.iter().any(|edge| {
                        edge.to == at && thread.is_none_or(|thread| thread == edge.thread)
                    });
                if is_cycle {
                    found.push(component);
                }
            }
        }
    }
    found
}

/// Which states are known: an open-addressed table of their numbers.
struct Seen {
    table: Vec<u32>,
    used: usize,
}

const EMPTY: u32 = u32::MAX;

impl Seen {
    fn new() -> Self {
        Self {
            table: vec![EMPTY; 1 << 16],
            used: 0,
        }
    }

    fn add(&mut self, states: &[State], at: usize) {
        let known = self.find_or_add(states, at);
        debug_assert!(known.is_none());
    }

    /// The number of the state equal to `states[at]`, or `None` after adding `at`.
    fn find_or_add(&mut self, states: &[State], at: usize) -> Option<u32> {
        if self.used * 2 >= self.table.len() {
            self.grow(states);
        }
        let mask = self.table.len() - 1;
        let mut place = hash(&states[at]) & mask;
        loop {
            match self.table[place] {
                EMPTY => {
                    self.table[place] = at as u32;
                    self.used += 1;
                    return None;
                }
                known if states[known as usize] == states[at] => return Some(known),
                _ => place = (place + 1) & mask,
            }
        }
    }

    fn grow(&mut self, states: &[State]) {
        let old = std::mem::take(&mut self.table);
        self.table = vec![EMPTY; old.len() * 4];
        let mask = self.table.len() - 1;
        for number in old.into_iter().filter(|&number| number != EMPTY) {
            let mut place = hash(&states[number as usize]) & mask;
            while self.table[place] != EMPTY {
                place = (place + 1) & mask;
            }
            self.table[place] = number;
        }
    }
}

fn hash(state: &State) -> usize {
    let mut hasher = Mix(0);
    state.hash(&mut hasher);
    hasher.finish() as usize
}

/// A quick hash: states are many, and nobody chooses them to collide.
struct Mix(u64);

impl Mix {
    fn word(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.word(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.word(u64::from(value));
    }

    fn write_isize(&mut self, value: isize) {
        self.word(value as u64);
    }

    fn write_usize(&mut self, value: usize) {
        self.word(value as u64);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
}
