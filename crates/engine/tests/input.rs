//! Bad input gets a typed error whose one line says what, which limit, and what to do; nothing else
//! happens.

mod common;

use std::time::Duration;

use common::{MIB, PAGE, build};
use userswap::{Advice, Codec, DeviceSpec, Engine, Error, FaultMode};

/// The error of `result`, which says `parts` in one line.
#[track_caller]
fn refused<T>(result: Result<T, Error>, parts: &[&str]) -> Error {
    let error = result.err().expect("refused");
    let line = error.to_string();
    assert!(!line.contains('\n') && line.len() < 300, "{line}");
    for part in parts {
        assert!(line.contains(part), "`{line}` does not say `{part}`");
    }
    error
}

#[test]
fn sizes_of_regions_are_whole_pages_and_not_zero() {
    let Some(engine) = build("sizes_of_regions", Engine::builder()) else {
        return;
    };
    for len in [0, 1, 4095, 4097, PAGE * 3 + 8] {
        let error = refused(engine.region(len), &["region", &len.to_string(), "4096"]);
        assert!(matches!(error, Error::Size { bytes, .. } if bytes == len as u64));
    }
    let huge = refused(engine.region(1 << 60), &["11529215", "reserve"]);
    assert!(matches!(huge, Error::Mapping(_)));
    let still_works = engine.region(PAGE).expect("a region");
    assert_eq!(still_works[0], 0);
    assert_eq!(engine.stats().bugs, 0);
}

#[test]
fn sizes_of_areas_are_whole_pages_and_not_zero() {
    for bytes in [0, 100, (1 << 20) + 1] {
        let error = refused(
            Engine::builder().area(bytes).build(),
            &["swap area", &bytes.to_string(), "4096"],
        );
        assert!(matches!(error, Error::Size { .. }));
    }
}

#[test]
fn an_area_larger_than_address_space_is_refused() {
    for device in [
        DeviceSpec::Zram(Codec::Lz4),
        DeviceSpec::Ram {
            read_delay: Duration::ZERO,
        },
    ] {
        let bytes = 1 << 56;
        let error = refused(
            Engine::builder().device(device).area(bytes).build(),
            &["device", &bytes.to_string()],
        );
        assert!(matches!(error, Error::Device { .. }));
    }
}

#[test]
fn the_least_limit_is_said() {
    for bytes in [0, 1, 4 * MIB as u64 - 1] {
        let error = refused(
            Engine::builder().limit(bytes).build(),
            &["limit", &bytes.to_string(), &(4 * MIB).to_string()],
        );
        assert!(matches!(error, Error::LimitTooSmall { .. }));
    }
    assert!(build("the_least_limit", Engine::builder().limit(4 * MIB as u64)).is_some());
}

#[test]
fn limits_need_no_round_numbers_and_may_exceed_the_machine() {
    for bytes in [4 * MIB as u64 + 1, 1 << 40, 1 << 50] {
        assert!(
            build("large_limits", Engine::builder().limit(bytes)).is_some(),
            "{bytes}"
        );
    }
}

#[test]
fn unknown_names_are_told_the_known_ones() {
    for name in ["", "zram:", "zram:lzma", "ZRAM", "disk"] {
        let error = refused(
            name.parse::<DeviceSpec>(),
            &[name, "zram", "zram:zstd", "ram"],
        );
        assert!(matches!(error, Error::UnknownDevice(_)));
    }
    for name in ["", "fast", "Inline"] {
        let error = refused(
            name.parse::<FaultMode>(),
            &[name, "auto", "inline", "thread"],
        );
        assert!(matches!(error, Error::FaultMode(_)));
    }
}

#[test]
#[expect(clippy::reversed_empty_ranges, reason = "a refused case")]
fn ranges_outside_a_region_change_nothing() {
    let Some(engine) = build("ranges_outside", Engine::builder()) else {
        return;
    };
    let mut region = engine.region(4 * PAGE).expect("a region");
    region.fill(7);
    let ranges = [
        0..5 * PAGE,
        4 * PAGE..5 * PAGE,
        1..PAGE,
        0..PAGE - 1,
        2 * PAGE..PAGE,
        0..usize::MAX,
        usize::MAX - PAGE + 1..usize::MAX,
    ];
    for range in ranges {
        for advice in [
            Advice::PageOut,
            Advice::WillNeed,
            Advice::Sequential,
            Advice::Random,
        ] {
            let error = refused(region.advise(range.clone(), advice), &["range", "0x4000"]);
            assert!(matches!(error, Error::Range { len, .. } if len == 4 * PAGE));
        }
        assert!(matches!(region.pin(range).err(), Some(Error::Range { .. })));
    }
    assert!((0..4).all(|page| region.is_resident(page * PAGE)));
    assert!(region.iter().all(|&byte| byte == 7));
    for empty in [0..0, 4 * PAGE..4 * PAGE] {
        assert_eq!(region.advise(empty.clone(), Advice::PageOut).ok(), Some(0));
        assert!(
            region
                .pin(empty)
                .expect("nothing to pin")
                .range()
                .is_empty()
        );
    }
    assert_eq!(engine.stats().bugs, 0);
}

#[test]
fn half_of_the_limit_can_be_pinned() {
    let limit = 8 * MIB;
    let Some(engine) = build("half_of_the_limit", Engine::builder().limit(limit as u64)) else {
        return;
    };
    let region = engine.region(16 * MIB).expect("a region");
    let too_much = limit / 2 + PAGE;
    let error = refused(
        region.pin(0..too_much),
        &["pin", &too_much.to_string(), &limit.to_string()],
    );
    assert!(matches!(error, Error::PinLimit { .. }));
    assert_eq!(engine.stats().resident_bytes, 0, "nothing was brought in");
    let pin = region.pin(0..limit / 2).expect("half can be pinned");
    assert_eq!(pin.range(), 0..limit / 2);
    drop(pin);
    assert_eq!(engine.stats().bugs, 0);
}

#[test]
fn a_page_can_be_pinned_often_but_not_without_end() {
    let Some(engine) = build("pinned_often", Engine::builder()) else {
        return;
    };
    let region = engine.region(2 * PAGE).expect("a region");
    let mut pins = Vec::new();
    let error = loop {
        match region.pin(0..2 * PAGE) {
            Ok(pin) => pins.push(pin),
            Err(error) => break error,
        }
        assert!(pins.len() < 1 << 20);
    };
    let error = refused(Err::<(), _>(error), &["0x0", "pinned too often"]);
    assert!(matches!(error, Error::TooManyPins { offset: 0 }));
    assert!(pins.len() >= 1000);
    drop(pins);
    assert_eq!(region.advise(0..2 * PAGE, Advice::PageOut).ok(), Some(2));
    assert_eq!(engine.stats().bugs, 0);
}

#[test]
fn pinned_pages_are_kept_and_counted_when_dropped_from_a_range() {
    let Some(engine) = build("pinned_pages_are_kept", Engine::builder()) else {
        return;
    };
    let mut region = engine.region(4 * PAGE).expect("a region");
    region.fill(7);
    let pin = region.pin(PAGE..2 * PAGE).expect("a pin");
    let error = refused(
        // SAFETY: nobody holds a reference to the region's bytes.
        unsafe { region.discard_shared(0..4 * PAGE) },
        &["1 page", "pinned"],
    );
    assert!(matches!(error, Error::Pinned { pages: 1 }));
    assert_eq!((region[0], region[PAGE], region[2 * PAGE]), (0, 7, 0));
    drop(pin);
    assert!(region.discard(0..4 * PAGE).is_ok());
    assert_eq!(region[PAGE], 0);
    assert_eq!(engine.stats().bugs, 0);
}

#[test]
fn there_can_be_many_regions_but_not_without_end() {
    let Some(engine) = build("many_regions", Engine::builder()) else {
        return;
    };
    let mut regions = Vec::new();
    let error = loop {
        match engine.region(PAGE) {
            Ok(region) => regions.push(region),
            Err(error) => break error,
        }
        assert!(regions.len() < 1 << 16);
    };
    let error = refused(Err::<(), _>(error), &["too many regions"]);
    assert!(matches!(error, Error::TooManyRegions(_)));
    assert!(regions.len() > 1000);
    regions.truncate(10);
    assert_eq!(engine.region(PAGE).expect("there is room again")[0], 0);
    assert_eq!(engine.stats().bugs, 0);
}
