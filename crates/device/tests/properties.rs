//! Any sequence of operations does what it would do to a plain map of pages.

mod content;

use std::collections::HashMap;

use content::{Numbers, PAGE, Page};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use userswap_core::device::{Content, Device, DeviceError};
use userswap_device::{Codec, Zram, ZramOptions};

const SLOTS: u64 = 48;

#[derive(Clone, Debug)]
enum Step {
    Write { slot: u64, kind: u8, seed: u64 },
    Read { slot: u64 },
    Discard { slot: u64 },
    Compact,
}

fn step() -> impl Strategy<Value = Step> {
    let slot = 0..SLOTS;
    prop_oneof![
        8 => (slot.clone(), 0..6_u8, 1..u64::MAX).prop_map(|(slot, kind, seed)| Step::Write { slot, kind, seed }),
        4 => slot.clone().prop_map(|slot| Step::Read { slot }),
        3 => slot.prop_map(|slot| Step::Discard { slot }),
        1 => Just(Step::Compact),
    ]
}

fn page(kind: u8, seed: u64) -> Page {
    let mut numbers = Numbers::new(seed);
    match kind {
        0 => [0; PAGE],
        1 => seed.to_ne_bytes().repeat(PAGE / 8).try_into().unwrap(),
        2 => content::text(&mut numbers),
        3 => content::heap(&mut numbers),
        4 => content::random(&mut numbers),
        // From all noise to nearly none: every compressed size.
        _ => {
            let mut page = content::random(&mut numbers);
            page[numbers.below(PAGE as u64) as usize..].fill(seed as u8);
            page
        }
    }
}

fn run(device: &Zram, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut reference: HashMap<u64, Page> = HashMap::new();
    for step in steps {
        match step {
            Step::Write { slot, kind, seed } => {
                let page = page(kind, seed);
                match device.write(slot, &page) {
                    Ok(()) => drop(reference.insert(slot, page)),
                    Err(error) => prop_assert_eq!(error, DeviceError::Full),
                }
            }
            Step::Read { slot } => check(device, slot, &reference)?,
            Step::Discard { slot } => {
                device.discard(slot);
                reference.remove(&slot);
            }
            Step::Compact => device.compact(),
        }
    }
    for slot in 0..SLOTS {
        check(device, slot, &reference)?;
    }
    let usage = device.usage();
    prop_assert_eq!(
        usage.same_pages + usage.compressed_pages + usage.raw_pages,
        reference.len() as u64
    );
    prop_assert!(usage.memory_bytes >= usage.stored_bytes);
    prop_assert!(usage.memory_bytes <= device.options().memory_limit.unwrap_or(u64::MAX));
    for slot in 0..SLOTS {
        device.discard(slot);
    }
    device.compact();
    prop_assert_eq!(device.usage().memory_bytes, 0);
    Ok(())
}

fn check(device: &Zram, slot: u64, reference: &HashMap<u64, Page>) -> Result<(), TestCaseError> {
    let mut page = [1; PAGE];
    if device.read(slot, &mut page).unwrap() == Content::Zeros {
        page = [0; PAGE];
    }
    prop_assert!(
        &page == reference.get(&slot).unwrap_or(&[0; PAGE]),
        "slot {} reads wrong",
        slot
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn zram_is_a_map(
        steps in prop::collection::vec(step(), 0..400),
        zstd: bool,
        limit in prop::option::of(0..40_u64),
    ) {
        let codec = if zstd { Codec::Zstd } else { Codec::Lz4 };
        let memory_limit = limit.map(|pages| pages * PAGE as u64);
        run(&Zram::new(SLOTS, ZramOptions { codec, memory_limit, ..ZramOptions::default() }).unwrap(), steps)?;
    }
}
