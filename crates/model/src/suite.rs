//! The configurations that are explored by default, and the four losses.

use userswap_core::Way;

use crate::config::{Config, Device, Fails, Op};
use crate::explore::{Explored, Schedule, explore_for};
use crate::state::Content;
use crate::violation::Violation;

use Op::{ChildDiscard, ChildLoad, ChildStore, Drop, Fork, Load, PageOut, Store, Swapoff};

const EVERYTHING: Fails = Fails {
    frame: true,
    read: true,
    write: true,
    map: true,
};

/// What is explored to show that `way` loses nothing.
#[must_use]
pub fn configurations(way: Way) -> Vec<Config> {
    let new = |name, threads: &[&[Op]]| Config::new(name, way, threads);
    let devices: &[Device] = if way == Way::Cached {
        &[
            Device::Keeps,
            Device::Discards,
            Device::Plain,
            Device::Stable,
        ]
    } else {
        &[Device::Keeps, Device::Discards, Device::Plain]
    };
    let mut all = Vec::new();
    for &device in devices {
        all.extend([
            new("reuse", &[&[Load(0)], &[Store(0), PageOut(0)]]).on(device),
            new(
                "both store",
                &[&[Store(0), PageOut(0)], &[Store(0), PageOut(0), Load(0)]],
            )
            .on(device),
            new(
                "one slot for two",
                &[&[Load(0), PageOut(1)], &[Store(0), PageOut(1), Load(1)]],
            )
            .sized(2, 1)
            .on(device),
            new(
                "two slots",
                &[&[Load(0), PageOut(1)], &[Store(0), PageOut(0), Load(1)]],
            )
            .sized(2, 2)
            .on(device),
            new("failures", &[&[Store(0)], &[Store(0), PageOut(0), Load(0)]])
                .failing(EVERYTHING, 2)
                .on(device),
            new(
                "two slots for one",
                &[&[Load(0)], &[PageOut(0), Load(0), PageOut(0)]],
            )
            .sized(1, 2)
            .present()
            .on(device),
            new("drop", &[&[Load(0)], &[Drop(0), Store(0), PageOut(0)]]).on(device),
            new(
                "three, drop",
                &[&[Load(0)], &[Store(0), PageOut(0)], &[Drop(0)]],
            )
            .on(device),
            new("fork", &[&[Load(0)], &[Fork, Store(0)], &[ChildDiscard]]).on(device),
            new("swapoff", &[&[Store(0)], &[PageOut(0)], &[Swapoff]]).on(device),
        ]);
    }
    all.extend([
        new(
            "three fault",
            &[&[Load(0)], &[Store(0)], &[Load(0), PageOut(0)]],
        )
        .on(Device::Discards),
        new(
            "fork, present",
            &[&[Store(0)], &[Fork, Store(0)], &[ChildLoad]],
        )
        .present()
        .on(Device::Discards),
    ]);
    for &device in &[Device::Discards, Device::Stable] {
        if !devices.contains(&device) {
            continue;
        }
        all.extend([
            new("three, present", &[&[Load(0)], &[Store(0)], &[PageOut(0)]])
                .present()
                .on(device),
            new("three, failures", &[&[Load(0)], &[Store(0)], &[PageOut(0)]])
                .present()
                .failing(EVERYTHING, 1)
                .on(device),
            new(
                "fork, child stores",
                &[&[PageOut(0)], &[Fork, Store(0)], &[ChildStore]],
            )
            .on(device),
            new(
                "swapoff, failures",
                &[&[Store(0)], &[PageOut(0)], &[Swapoff]],
            )
            .failing(
                Fails {
                    frame: true,
                    ..Fails::default()
                },
                1,
            )
            .on(device),
        ]);
    }
    all
}

/// One of the losses of the protocol's section 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// A stale copy is mapped.
    V1,
    /// The slot was discarded: zeros are mapped.
    V2,
    /// A read met a write: halves of two versions are mapped.
    V3,
    /// One thread came through the cache, one past it.
    V4,
}

impl Variant {
    /// All four.
    pub const ALL: [Self; 4] = [Self::V1, Self::V2, Self::V3, Self::V4];

    /// Its name in the protocol.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "V1",
            Self::V2 => "V2",
            Self::V3 => "V3",
            Self::V4 => "V4",
        }
    }

    /// What happens, in a few words.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::V1 => "stale copy",
            Self::V2 => "discard",
            Self::V3 => "torn read",
            Self::V4 => "mixed ways on a shared entry",
        }
    }

    /// Where it is looked for.
    #[must_use]
    pub fn config(self) -> Config {
        let new = |threads: &[&[Op]]| Config::new(self.title(), Way::Unpinned, threads);
        match self {
            Self::V1 => new(&[&[Load(0)], &[Store(0), PageOut(0)]]),
            // Not even modified: read, and paged out again.
            Self::V2 => new(&[&[Load(0)], &[Load(0), PageOut(0)]]).on(Device::Discards),
            Self::V3 => new(&[&[Load(0)], &[Store(0), PageOut(0)]]).on(Device::Plain),
            Self::V4 => new(&[&[Load(0)], &[Fork, Store(0), ChildDiscard, PageOut(0)]]),
        }
    }

    fn is_shown_by(self, violation: &Violation) -> bool {
        let Violation::Lost { found, mixed, .. } = *violation else {
            return false;
        };
        let torn = found.low != found.high;
        match self {
            Self::V1 => !mixed && !torn && found != Content::ZEROS,
            Self::V2 => !mixed && found == Content::ZEROS,
            Self::V3 => torn,
            Self::V4 => mixed,
        }
    }

    /// Looks for a shortest schedule that loses data this way, in its own configuration changed by `change`.
    #[must_use]
    pub fn search(self, change: impl FnOnce(Config) -> Config) -> (Config, Explored) {
        let config = change(self.config());
        let wanted = match self {
            Self::V1 => |violation: &Violation| Self::V1.is_shown_by(violation),
            Self::V2 => |violation: &Violation| Self::V2.is_shown_by(violation),
            Self::V3 => |violation: &Violation| Self::V3.is_shown_by(violation),
            Self::V4 => |violation: &Violation| Self::V4.is_shown_by(violation),
        };
        let explored = explore_for(&config, wanted);
        (config, explored)
    }

    /// A shortest schedule of the way `unpinned` that loses data this way.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn shortest(self) -> (Config, Schedule, Violation) {
        let (config, explored) = self.search(|config| config);
        let (schedule, violation) = explored.broken.expect("unpinned loses");
        (config, schedule, violation)
    }
}
