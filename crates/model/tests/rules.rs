//! Each rule of the protocol, broken in the model: the explorer finds what it is for. And each time, the tie to
//! the engine is pulled: the engine with the same rule broken follows the schedule that was found, the engine
//! that keeps it does not.

mod support;
#[path = "../../core/tests/support/table.rs"]
#[allow(dead_code, reason = "a part of the table's checks")]
mod table;

use support::replay;
use userswap_core::Way;
use userswap_core::rule::{Rule, Rules};
use userswap_model::config::{Config, Device, Op};
use userswap_model::explore::{Explored, explore, explore_for};
use userswap_model::suite::configurations;
use userswap_model::violation::Violation;

/// Why the explorer cannot say anything about a rule.
fn inexpressible(rule: Rule) -> Option<&'static str> {
    Some(match rule {
        Rule::EachSlotTested => "a fault of the model brings one page",
        Rule::PinnedPagesStay => "the model's pages are not pinned for system calls",
        Rule::SwapoffWaitsForAllocators => "allocating a slot is one step of the model",
        Rule::ReplaceInOneStep => "the model's device is not a store of objects",
        _ => return None,
    })
}

/// The first of the default configurations in which breaking `rule` is seen, small ones first.
fn caught(rule: Rule) -> Option<(Config, Explored)> {
    if rule == Rule::DeviceReference {
        return without_reference();
    }
    let stable = configurations(Way::Cached)
        .into_iter()
        .filter(|config| config.device == Device::Stable);
    let mut all: Vec<Config> = configurations(Way::Direct)
        .into_iter()
        .chain(stable)
        .collect();
    all.sort_by_key(|config| (config.threads.len(), config.failures));
    all.into_iter().find_map(|config| {
        let config = config.with_rules(Rules::without(rule));
        let explored = explore(&config);
        explored.broken.is_some().then_some((config, explored))
    })
}

/// A pin keeps the slot in use, and swapoff waits for slots too; who reads without a pin has the reference only.
fn without_reference() -> Option<(Config, Explored)> {
    let gone = |violation: &Violation| *violation == Violation::DeviceGone;
    let kept = Config::new(
        "unpinned swapoff",
        Way::Unpinned,
        &[&[Op::Load(0)], &[Op::Swapoff]],
    );
    assert!(explore_for(&kept, gone).broken.is_none());
    let config = kept.with_rules(Rules::without(Rule::DeviceReference));
    let explored = explore_for(&config, gone);
    explored.broken.is_some().then_some((config, explored))
}

#[test]
fn every_rule_is_needed() {
    let (mut missed, mut found) = (Vec::new(), Vec::new());
    for rule in Rule::ALL {
        if let Some(why) = inexpressible(rule) {
            table::say(&format!("{rule:?}: the explorer cannot say: {why}"));
            continue;
        }
        let Some((config, explored)) = caught(rule) else {
            missed.push(rule);
            continue;
        };
        let (schedule, violation) = explored.broken.expect("caught");
        let said = format!(
            "{} in {} steps ({}, {})",
            violation.check(),
            schedule.len(),
            config.name,
            config.device.name(),
        );
        found.push((rule, said));
        // The engine's allocator counts a slot as free only after the discard, whatever its order.
        if rule != Rule::DiscardBeforeReuse {
            let followed = replay(&config, &schedule, config.rules);
            assert!(
                followed.is_ok(),
                "{rule:?}: the engine that breaks it too: {followed:?}"
            );
        }
        // The first two are found inside a step, before the engine that keeps them does anything else; with the
        // third the engine just waits, as it should.
        let unseen = [
            Rule::OneOwner,
            Rule::CopyWhatOthersHold,
            Rule::DeviceReference,
        ];
        if !unseen.contains(&rule) {
            let parted = replay(&config, &schedule, Rules::ALL_KEPT);
            let Err(parted) = parted else {
                panic!("{rule:?}: the engine that keeps it follows a model that does not");
            };
            println!("  the engine parts from it at {parted}");
        }
    }
    assert!(
        missed.is_empty(),
        "the explorer finds nothing wrong without {missed:?}"
    );
    table::report("explorer", &found);
}
