//! What the benchmark's pages hold. Every page follows from the seed and its number, so that it can be checked later
//! without having been kept.

mod template;

use crate::random::mix;
use crate::size::PAGE;
use template::{Template, mixed, noise, text};

/// The kinds of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Zeros, written.
    Zero,
    /// English-like text; lz4 makes it about a third.
    Text,
    /// A heap: text, structures with pointers, small integers, some zero and some incompressible pages.
    Mixed,
    /// Pseudo-random bytes; no compressor gains anything.
    Random,
}

impl Kind {
    /// As it is typed and printed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Zero => "zero",
            Kind::Text => "text",
            Kind::Mixed => "mixed",
            Kind::Random => "random",
        }
    }
}

/// How many different pages are prepared. Pages drawn from them differ by their stamp; no swap looks across pages.
const TEMPLATES: u64 = 1024;

/// The byte range of a page that holds its stamp: its number and a check of seed and number.
const STAMP: std::ops::Range<usize> = 8..24;

/// A source of pages.
pub(crate) struct Content {
    seed: u64,
    templates: Vec<Template>,
}

impl Content {
    pub(crate) fn new(kind: Kind, seed: u64) -> Self {
        let make: fn(u64) -> Template = match kind {
            Kind::Zero => {
                return Self {
                    seed,
                    templates: vec![Template::zeros()],
                };
            }
            Kind::Text => text,
            Kind::Mixed => mixed,
            Kind::Random => noise,
        };
        let templates = (0..TEMPLATES)
            .map(|index| make(mix(seed ^ (index << 32))))
            .collect();
        Self { seed, templates }
    }

    /// Writes page number `page` into `bytes`, which is one page long.
    pub(crate) fn write(&self, page: usize, bytes: &mut [u8]) {
        let drawn = mix(self.seed.wrapping_add(page as u64));
        let template = &self.templates[(drawn % self.templates.len() as u64) as usize];
        bytes.copy_from_slice(template.bytes.as_slice());
        if template.stamped {
            let stamp = (page as u128) << 64 | u128::from(drawn);
            bytes[STAMP].copy_from_slice(&stamp.to_le_bytes());
        }
    }

    /// Fills `bytes`, which begin with page `first`.
    pub(crate) fn fill(&self, first: usize, bytes: &mut [u8]) {
        for (index, page) in bytes.chunks_exact_mut(PAGE).enumerate() {
            self.write(first + index, page);
        }
    }

    /// How many pages of `bytes`, which begin with page `first`, are not what [`Content::fill`] wrote.
    pub(crate) fn wrong_pages(&self, first: usize, bytes: &[u8]) -> usize {
        let mut expected = [0; PAGE];
        let wrong = |(index, page): &(usize, &[u8])| {
            self.write(first + index, &mut expected);
            page != &expected
        };
        bytes.chunks_exact(PAGE).enumerate().filter(wrong).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: usize = 2000;

    fn filled(kind: Kind) -> Vec<u8> {
        let mut bytes = vec![0xa5; PAGES * PAGE];
        Content::new(kind, 1).fill(0, &mut bytes);
        bytes
    }

    /// The ratio that a page-wise store gets: a page that lz4 does not make smaller counts whole, one that is all
    /// zeros not at all.
    fn lz4_ratio(bytes: &[u8]) -> f64 {
        let stored = |page: &[u8]| match lz4_flex::block::compress(page).len() {
            _ if page.iter().all(|&byte| byte == 0) => 0,
            len => len.min(PAGE),
        };
        bytes.len() as f64 / bytes.chunks_exact(PAGE).map(stored).sum::<usize>() as f64
    }

    #[test]
    fn compresses_as_it_says() {
        let text = lz4_ratio(&filled(Kind::Text));
        assert!((2.7..3.3).contains(&text), "text: {text}");
        let mixed = lz4_ratio(&filled(Kind::Mixed));
        assert!((2.5..3.0).contains(&mixed), "mixed: {mixed}");
        let random = lz4_ratio(&filled(Kind::Random));
        assert!((0.99..1.01).contains(&random), "random: {random}");
        assert!(filled(Kind::Zero).iter().all(|&byte| byte == 0));
    }

    #[test]
    fn the_same_seed_gives_the_same_pages() {
        for kind in [Kind::Text, Kind::Mixed, Kind::Random] {
            assert!(filled(kind) == filled(kind), "{kind:?}");
            let mut other = vec![0; PAGES * PAGE];
            Content::new(kind, 2).fill(0, &mut other);
            assert!(filled(kind) != other, "{kind:?}");
        }
    }

    #[test]
    fn what_was_filled_is_right() {
        for kind in [Kind::Zero, Kind::Text, Kind::Mixed, Kind::Random] {
            assert_eq!(
                Content::new(kind, 1).wrong_pages(0, &filled(kind)),
                0,
                "{kind:?}"
            );
        }
    }

    #[test]
    fn planted_corruption_is_caught() {
        for kind in [Kind::Zero, Kind::Text, Kind::Mixed, Kind::Random] {
            let content = Content::new(kind, 1);
            for at in [0, 9, 17, PAGE - 1, 1000 * PAGE + 2048, PAGES * PAGE - 1] {
                let mut bytes = filled(kind);
                bytes[at] ^= 0x10;
                assert_eq!(content.wrong_pages(0, &bytes), 1, "{kind:?}, byte {at}");
            }
        }
    }

    #[test]
    fn another_pages_content_is_caught() {
        for kind in [Kind::Text, Kind::Random] {
            let content = Content::new(kind, 1);
            let mut bytes = filled(kind);
            bytes.copy_within(3 * PAGE..4 * PAGE, 7 * PAGE);
            assert_eq!(content.wrong_pages(0, &bytes), 1, "{kind:?}");
            assert!(content.wrong_pages(1, &bytes) > PAGES * 9 / 10, "{kind:?}");
        }
    }
}
