//! Pages that say whose they are, for tests: a page found in the wrong place, or mixed of two, names itself.
//!
//! ```text
//! word 0   1      2         3          4 ...                              511
//!      page   region version  checksum  filler, a function of words 0 to 2
//! ```
//!
//! The checksum is over all other words. A page of zeros is one that nobody has written.

use std::fmt;

use crate::device::{PAGE_SIZE, PageBytes};

const WORDS: usize = PAGE_SIZE / 8;
const CHECKSUM: usize = 3;
const HEADER: usize = 4;

/// Words after which the filler of [`Content::Text`] repeats.
const PERIOD: usize = 8;

/// The top bit of the region's word: the filler is noise.
const NOISE: u64 = 1 << 63;

/// What a page is filled with behind its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Compresses to a small part.
    Text,
    /// Does not compress.
    Noise,
}

/// Whose a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The region or address space it was written in; less than 2^63.
    pub region: u64,
    /// The number of the page there.
    pub page: u64,
    /// How often it was written, or any number that no other version has. Not 0.
    pub version: u64,
    /// What it is filled with.
    pub content: Content,
}

/// What a page turned out to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nobody has written it.
    Zeros,
    /// All of it is this.
    Whole(Stamp),
    /// It begins like this, and from this byte on it is something else.
    Torn(Stamp, usize),
}

impl Stamp {
    /// The page's bytes.
    #[must_use]
    pub fn bytes(self) -> PageBytes {
        let mut bytes = [0; PAGE_SIZE];
        for (word, out) in self.words().into_iter().zip(bytes.chunks_exact_mut(8)) {
            out.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn words(self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        words[1] = self.region
            | if self.content == Content::Noise {
                NOISE
            } else {
                0
            };
        words[0] = self.page;
        words[2] = self.version;
        let seed = mix(mix(mix(words[1]) ^ self.page) ^ self.version);
        let period = match self.content {
            Content::Text => PERIOD,
            Content::Noise => WORDS,
        };
        for (i, word) in words.iter_mut().enumerate().skip(HEADER) {
            *word = mix(seed ^ ((i - HEADER) % period) as u64);
        }
        words[CHECKSUM] = checksum(&words);
        words
    }
}

impl Found {
    /// Looks at a page.
    #[must_use]
    pub fn of(bytes: &PageBytes) -> Self {
        if bytes.iter().all(|&byte| byte == 0) {
            return Self::Zeros;
        }
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        }
        let stamp = Stamp {
            region: words[1] & !NOISE,
            page: words[0],
            version: words[2],
            content: if words[1] & NOISE != 0 {
                Content::Noise
            } else {
                Content::Text
            },
        };
        let wanted = stamp.words();
        match (0..WORDS).find(|&i| words[i] != wanted[i]) {
            None => Self::Whole(stamp),
            Some(i) => Self::Torn(stamp, i * 8),
        }
    }

    /// Compares with what `page` of `region` should hold; `None`: zeros.
    ///
    /// # Errors
    /// One line that says whose the page is instead.
    pub fn expect(self, region: u64, page: u64, wanted: Option<Stamp>) -> Result<(), String> {
        if self == wanted.map_or(Self::Zeros, Self::Whole) {
            return Ok(());
        }
        let wanted = wanted.map_or(Self::Zeros, Self::Whole);
        Err(format!(
            "page {page} of region {region} holds {self}; it should hold {wanted}"
        ))
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stamp {
            region,
            page,
            version,
            ..
        } = self;
        write!(f, "page {page} of region {region}, version {version}")
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeros => f.write_str("zeros"),
            Self::Whole(stamp) => stamp.fmt(f),
            Self::Torn(stamp, at) => write!(f, "{stamp}, torn at byte {at}"),
        }
    }
}

fn checksum(words: &[u64; WORDS]) -> u64 {
    (0..WORDS)
        .filter(|&i| i != CHECKSUM)
        .fold(0, |sum: u64, i| mix(sum ^ words[i]))
}

/// The finalizer of splitmix64.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        region: 2,
        page: 12,
        version: 3,
        content: Content::Text,
    };

    #[test]
    fn a_wrong_page_says_whose_it_is() {
        for content in [Content::Text, Content::Noise] {
            let stamp = Stamp { content, ..STAMP };
            assert_eq!(Found::of(&stamp.bytes()), Found::Whole(stamp));
            assert_eq!(Found::of(&stamp.bytes()).expect(2, 12, Some(stamp)), Ok(()));
        }
        let wanted = Stamp {
            page: 17,
            version: 5,
            ..STAMP
        };
        assert_eq!(
            Found::of(&STAMP.bytes()).expect(2, 17, Some(wanted)),
            Err(
                "page 17 of region 2 holds page 12 of region 2, version 3; it should hold page 17 of region 2, version 5"
                    .into()
            )
        );
        assert_eq!(Found::of(&[0; PAGE_SIZE]).expect(2, 17, None), Ok(()));
        assert!(Found::of(&STAMP.bytes()).expect(2, 12, None).is_err());
        assert!(Found::Zeros.expect(2, 12, Some(STAMP)).is_err());
    }

    #[test]
    fn a_mixed_page_is_torn_wherever_the_seam_is() {
        let newer = Stamp {
            version: 4,
            ..STAMP
        };
        for seam in [24, 32, 64, 2048, PAGE_SIZE - 8] {
            let mut bytes = STAMP.bytes();
            bytes[seam..].copy_from_slice(&newer.bytes()[seam..]);
            assert!(matches!(Found::of(&bytes), Found::Torn(..)), "{seam}");
        }
    }
}
