//! The model is tied to the engine: the engine's real code, driven through the model's schedules, is in
//! the model's state after every step; `rules.rs` sees the two part when one of them is
//! changed.

mod support;

use support::replay;
use support::walk::{Random, draw};
use userswap_core::rule::Rules;
use userswap_core::step::Step;
use userswap_core::{Way, bug};
use userswap_model::config::{Config, Device, Fails, Op};
use userswap_model::explore::Schedule;
use userswap_model::machine::{Machine, Move, initial};
use userswap_model::state::{Pc, State};
use userswap_model::suite::{Variant, configurations};

/// Schedules drawn for each configuration.
const DRAWN: usize = 12;

#[test]
fn the_shortest_losses_are_real() {
    for variant in Variant::ALL {
        let (config, schedule, violation) = variant.shortest();
        let steps = replay(&config, &schedule, Rules::ALL_KEPT)
            .unwrap_or_else(|error| panic!("{}: {error}", variant.name()));
        println!("{}: {steps} steps, {violation}", variant.name());
    }
}

fn replay_sample(way: Way) {
    let (mut schedules, mut steps) = (0, 0);
    for (number, config) in configurations(way).iter().enumerate() {
        for sample in 0..DRAWN {
            let seed = (number * DRAWN + sample) as u64;
            let schedule = draw(config, &mut Random::new(seed));
            steps += replay(config, &schedule, Rules::ALL_KEPT).unwrap_or_else(|error| {
                panic!(
                    "{way:?}, {} over {:?}, seed {seed}: {error}",
                    config.name, config.device
                )
            });
            schedules += 1;
        }
    }
    println!("{way:?}: {schedules} schedules replayed, {steps} steps compared");
    assert_eq!(bug::count(), 0);
}

#[test]
fn schedules_of_direct() {
    replay_sample(Way::Direct);
}

#[test]
fn schedules_of_cached() {
    replay_sample(Way::Cached);
}

/// Draws schedules of `config` until one has a step for which `wanted` holds of the states before and after
/// it, and replays it.
fn replay_one_with(config: &Config, wanted: impl Fn(Move, &State, &State) -> bool) {
    let has = |schedule: &Schedule| {
        let mut machine = Machine::new(config, initial(config));
        schedule.iter().any(|&go| {
            let before = machine.state;
            machine.make(go).is_ok() && wanted(go, &before, &machine.state)
        })
    };
    let mut drawn = (0..200_000).map(|seed| draw(config, &mut Random::new(seed)));
    let schedule = drawn.find(has).expect("there is such a schedule");
    replay(config, &schedule, Rules::ALL_KEPT).unwrap_or_else(|error| panic!("{error}"));
}

fn is_at(state: &State, thread: usize, step: Step) -> bool {
    state.threads[thread].pc == Pc::Do(step)
}

#[test]
fn a_lock_met_too_late_is_not_waited_for() {
    let threads: &[&[Op]] = &[&[Op::Load(0)], &[Op::Store(0)], &[Op::PageOut(0)]];
    let config = Config::new("stale lock", Way::Direct, threads).present();
    replay_one_with(&config, |go, before, after| {
        let (thread, gone) = (&before.threads[go.thread], Step::LookWaiters);
        go.step == Step::LockPage
            && before.slots[0].cached != thread.frame
            && is_at(after, go.thread, gone)
    });
}

#[test]
fn a_page_being_written_is_waited_for_without_its_lock() {
    let threads: &[&[Op]] = &[&[Op::Load(0)], &[Op::PageOut(0)]];
    let config = Config::new("stable", Way::Cached, threads);
    let config = config.present().on(Device::Stable);
    replay_one_with(&config, |go, _, after| {
        go.step == Step::LookWriteback && is_at(after, go.thread, Step::Announce)
    });
}

#[test]
fn a_failed_write_of_a_page_nobody_needs_drops_it() {
    let fails = Fails {
        write: true,
        ..Fails::default()
    };
    let threads: &[&[Op]] = &[&[Op::Load(0)], &[Op::PageOut(0)]];
    let config = Config::new("failed write", Way::Direct, threads);
    let config = config.present().failing(fails, 1);
    replay_one_with(&config, |go, before, after| {
        go.step == Step::Relock
            && before.threads[go.thread].failed
            && is_at(after, go.thread, Step::DeleteCached)
    });
}
