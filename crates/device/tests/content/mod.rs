//! Pages as programs have them, made or found; the same ones every time, as far as they are made.

#![allow(dead_code, reason = "each user takes some")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::sync::LazyLock;

/// Bytes in a page.
pub(crate) const PAGE: usize = 4096;
/// A page.
pub(crate) type Page = [u8; PAGE];

/// A small generator of numbers (xorshift64*), so that runs repeat.
pub(crate) struct Numbers(u64);

impl Numbers {
    /// Starts at `seed`, which must not be 0.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// The next number, below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

static WORDS: LazyLock<Vec<&str>> = LazyLock::new(|| TEXT.split_whitespace().collect());

/// Common words, the commonest first.
const TEXT: &str = "
    the of and to a in that is was he for it with as his on be at by had not are but from or
    have an they which one you were her all she there would their we him been has when who
    will more no if out so said what up its about into than them can only other new some could
    time these two may then do first any my now such like our over man me even most made after
    also did many before must through back years where much your way well down should because
    each just those people mister how too little state good very make world still own see men
    work long memory mountain window carriage evening quarrel gentle perhaps nothing
    government
";

/// Phrases that come back, between words in the frequencies of a language, roughly.
pub(crate) fn text(numbers: &mut Numbers) -> Page {
    let mut bytes = Vec::with_capacity(PAGE + 64);
    while bytes.len() < PAGE {
        let phrase = &PHRASES[numbers.below(PHRASES.len() as u64) as usize];
        bytes.extend_from_slice(phrase.as_bytes());
        bytes.extend_from_slice(WORDS[skewed(numbers)].as_bytes());
        bytes.extend_from_slice(match numbers.below(8) {
            0 => b", ",
            1 => b". ",
            _ => b" ",
        });
    }
    bytes[..PAGE].try_into().unwrap()
}

static PHRASES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut numbers = Numbers::new(5);
    let mut phrase = || -> String {
        let words = 3 + numbers.below(4);
        (0..words)
            .map(|_| format!("{} ", WORDS[skewed(&mut numbers)]))
            .collect()
    };
    (0..60).map(|_| phrase()).collect()
});

/// The index of a word. The product of two is small more often than not: early words are common.
fn skewed(numbers: &mut Numbers) -> usize {
    let range = WORDS.len() as u64;
    (numbers.below(range) * numbers.below(range) / range) as usize
}

/// Small records with pointers, counts, flags and short names, as an allocator lays them out.
pub(crate) fn heap(numbers: &mut Numbers) -> Page {
    let mut page = [0; PAGE];
    let base = 0x7f3a_0000_0000 + (numbers.below(1 << 20) << 12);
    for record in page.chunks_exact_mut(64) {
        if numbers.below(8) == 0 {
            continue;
        }
        let pointer = |numbers: &mut Numbers| (base + numbers.below(1 << 16) * 16).to_le_bytes();
        record[8..16].copy_from_slice(&0x41_u64.to_le_bytes());
        record[16..24].copy_from_slice(&pointer(numbers));
        record[24..32].copy_from_slice(&pointer(numbers));
        record[32..40].copy_from_slice(&numbers.below(200).to_le_bytes());
        let word = WORDS[numbers.below(WORDS.len() as u64) as usize].as_bytes();
        record[40..40 + word.len()].copy_from_slice(word);
        record[56..60].copy_from_slice(&(numbers.below(4) as u32).to_le_bytes());
    }
    page
}

/// Bytes without any pattern.
pub(crate) fn random(numbers: &mut Numbers) -> Page {
    let mut page = [0; PAGE];
    for bytes in page.chunks_exact_mut(8) {
        bytes.copy_from_slice(&numbers.next().to_le_bytes());
    }
    page
}

/// `count` pages of programs installed here; fewer if they are small.
pub(crate) fn programs(count: usize) -> Vec<Page> {
    let mut pages = Vec::new();
    let mut names: Vec<_> =
        fs::read_dir("/usr/bin").map_or_else(|_| Vec::new(), |dir| dir.flatten().collect());
    names.sort_by_key(|entry| entry.file_name());
    for entry in names {
        let Ok(bytes) = fs::read(entry.path()) else {
            continue;
        };
        let room = (count - pages.len()).min(64);
        pages.extend(
            bytes
                .chunks_exact(PAGE)
                .take(room)
                .map(|page| Page::try_from(page).unwrap()),
        );
        if pages.len() == count {
            break;
        }
    }
    pages
}

/// Up to `count` pages of this process's own heap, after filling it with ordinary things.
pub(crate) fn own_heap(count: usize) -> Vec<Page> {
    let mut numbers = Numbers::new(77);
    let mut index = BTreeMap::new();
    for key in 0..count * 12 {
        let name = format!(
            "{} {}",
            WORDS[numbers.below(WORDS.len() as u64) as usize],
            numbers.below(1000)
        );
        let list: Vec<u32> = (0..numbers.below(12)).map(|n| n as u32 * 3).collect();
        index.insert((numbers.below(1 << 40), key), (name, list));
    }
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut memory = fs::File::open("/proc/self/mem").unwrap();
    let mut pages = Vec::new();
    for line in maps.lines().filter(|line| line.ends_with("[heap]")) {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let (start, end) = (
            u64::from_str_radix(start, 16).unwrap(),
            u64::from_str_radix(end, 16).unwrap(),
        );
        let mut page = [0; PAGE];
        for address in (start..end).step_by(PAGE) {
            if pages.len() < count
                && memory.seek(SeekFrom::Start(address)).is_ok()
                && memory.read_exact(&mut page).is_ok()
            {
                pages.push(page);
            }
        }
    }
    drop(index);
    pages
}

/// A mix of all of them, in the proportions a large program may have.
pub(crate) fn mixed(count: usize) -> Vec<Page> {
    let mut numbers = Numbers::new(1);
    let programs = programs(count / 5 + 1);
    let own = own_heap(count / 5 + 1);
    (0..count)
        .map(|_| match numbers.below(20) {
            0 => [0; PAGE],
            1 => random(&mut numbers),
            2..=6 => text(&mut numbers),
            7..=11 => heap(&mut numbers),
            12..=15 if !programs.is_empty() => {
                programs[numbers.below(programs.len() as u64) as usize]
            }
            _ if !own.is_empty() => own[numbers.below(own.len() as u64) as usize],
            _ => heap(&mut numbers),
        })
        .collect()
}
