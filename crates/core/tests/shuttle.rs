//! The engine under shuttle: many threads, chosen schedules, each page checked at each access. More than the
//! few threads of the models in `src/models`, but a sample, and without the machine's weaker orderings.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

use support::soak::{self, Schedule};
use support::table;
use userswap_core::rule::{Rule, Rules};

const SEED: u64 = 0x5eed;

/// Executions of each schedule with all rules kept.
const ITERATIONS: usize = 5_000;

/// Executions of each schedule in one search, and searches, before a broken rule counts as not found.
const SEARCH: (usize, u64) = (2_000, 40);

/// Broken invariants are counted for the process.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn nothing_is_lost() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for schedule in [Schedule::Random, Schedule::Pct] {
        let all = || soak::run(schedule, SEED, ITERATIONS, Rules::ALL_KEPT);
        let result = catch_unwind(AssertUnwindSafe(all));
        let executions = soak::executions();
        table::say(&format!(
            "shuttle: {schedule:?}, seed {SEED:#x}, {executions} executions"
        ));
        assert_eq!(
            result.unwrap_or_else(|panic| resume_unwind(panic)),
            ITERATIONS
        );
    }
}

#[test]
fn every_broken_rule_is_found() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let find = |rule: &Rule| {
        let searches = (SEED..SEED + SEARCH.1)
            .flat_map(|seed| [(Schedule::Pct, seed), (Schedule::Random, seed)]);
        let found = searches.into_iter().find_map(|(schedule, seed)| {
            let broken = || soak::run(schedule, seed, SEARCH.0, Rules::without(*rule));
            let found = catch_unwind(AssertUnwindSafe(broken));
            support::forget_bugs();
            let said = table::said(&*found.err()?);
            let at = soak::executions();
            Some(format!(
                "{schedule:?}, seed {seed:#x}, execution {at}: {said}"
            ))
        });
        (
            *rule,
            found.unwrap_or_else(|| panic!("{rule:?} is broken, and nothing shows")),
        )
    };
    // Those not in the table would be searched for in vain.
    let found: Vec<_> = table::column("shuttle").iter().map(find).collect();
    table::report("shuttle", &found);
}
