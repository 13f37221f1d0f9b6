//! The pages that content is drawn from.

use crate::random::Random;
use crate::size::PAGE;

/// A prepared page.
pub(super) struct Template {
    pub(super) bytes: Box<[u8; PAGE]>,
    /// Whether the page's number is written into it; a page of zeros must stay one.
    pub(super) stamped: bool,
}

impl Template {
    pub(super) fn zeros() -> Self {
        Self {
            bytes: Box::new([0; PAGE]),
            stamped: false,
        }
    }

    /// A page made of 64-bit words.
    fn of_words(mut word: impl FnMut(usize) -> u64) -> Self {
        let mut bytes = Box::new([0; PAGE]);
        for (index, place) in bytes.chunks_exact_mut(8).enumerate() {
            place.copy_from_slice(&word(index).to_le_bytes());
        }
        Self {
            bytes,
            stamped: true,
        }
    }
}

const WORDS: &str = "the of and to in is that it was for on are as with his they at be this from have or by one had \
    not but what all were when we there can an your which their said if do will each about how up out them then she \
    many some so these would other into has more her two like him see time could no make than first been its who now \
    people my made over did down only way find use may water long little very after words called just where most know \
    memory page swap thread kernel cache device fault reader writer before between another through because under never \
    always against system number world great house every again point might while last light night country father mother \
    answer study learn plant cover food state story young important children sometimes mountain together something";

/// Text: sentences of common words, in which a page's own phrases come back as they do in a document about something.
pub(super) fn text(seed: u64) -> Template {
    let mut random = Random::new(seed);
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let word = |random: &mut Random| {
        // The smaller of two draws: the list begins with the commonest words.
        words[random.below(words.len()).min(random.below(words.len()))]
    };
    let phrases: Vec<String> = (0..PHRASES)
        .map(|_| {
            (0..4 + random.below(5))
                .map(|_| word(&mut random))
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    let mut text = String::with_capacity(PAGE + 128);
    while text.len() < PAGE {
        let mut sentence = String::new();
        for _ in 0..2 + random.below(3) {
            sentence.push_str(&phrases[random.below(phrases.len())]);
            sentence.push(' ');
            for _ in 0..random.below(3) {
                sentence.push_str(word(&mut random));
                sentence.push(' ');
            }
        }
        sentence[..1].make_ascii_uppercase();
        text.push_str(sentence.trim_end());
        text.push_str(". ");
    }
    let mut bytes = Box::new([0; PAGE]);
    bytes.copy_from_slice(&text.as_bytes()[..PAGE]);
    Template {
        bytes,
        stamped: true,
    }
}

/// How many phrases a page of text has of its own: sets how well it compresses.
const PHRASES: usize = 16;

/// Bytes that do not compress.
pub(super) fn noise(seed: u64) -> Template {
    let mut random = Random::new(seed);
    Template::of_words(|_| random.next())
}

/// A page of a heap, its kind drawn in the shares found in dumps of interpreters and compilers.
pub(super) fn mixed(seed: u64) -> Template {
    match Random::new(!seed).below(100) {
        0..8 => Template::zeros(),
        8..13 => noise(seed),
        13..40 => text(seed),
        40..66 => structures(seed),
        _ => integers(seed),
    }
}

/// Objects of 64 bytes: a type pointer, a count, pointers to near objects, a hash, spare fields.
fn structures(seed: u64) -> Template {
    let mut random = Random::new(seed);
    let heap = 0x7f00_0000_0000 | (random.next() & 0xff_fff0_0000);
    let types: Vec<u64> = (0..4)
        .map(|_| 0x5500_0000_0000 | (random.next() & 0xffff_ff00))
        .collect();
    let mut object_type = 0;
    Template::of_words(|index| match index % 8 {
        0 => {
            object_type = types[random.below(types.len())];
            object_type
        }
        1 => 1 + random.below(4) as u64,
        2 | 3 => heap + 64 * random.below(1 << 12) as u64,
        4 => random.next() & 0xffff_ffff,
        5 if random.below(3) == 0 => heap + 64 * random.below(1 << 14) as u64,
        _ => 0,
    })
}

/// An array of small integers: lengths, offsets, tags.
fn integers(seed: u64) -> Template {
    let mut random = Random::new(seed);
    let bound = 1 << (4 + random.below(10));
    Template::of_words(|_| random.below(bound) as u64)
}
