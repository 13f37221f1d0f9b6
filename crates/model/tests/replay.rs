//! The model is tied to the engine: the engine's real code, driven through the model's schedules, is in
//! the model's state after every step; `rules.rs` sees the two part when one of them is
//! changed.

mod support;

use support::replay;
use support::walk::{Random, draw};
use userswap_core::rule::Rules;
use userswap_core::{Way, bug};
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
