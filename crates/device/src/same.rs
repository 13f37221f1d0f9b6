//! Pages that are one machine word repeated: freshly zeroed, poisoned or filled memory.

use userswap_core::device::{Content, PageBytes};

const WORD: usize = size_of::<u64>();
/// Words looked at together: wide enough for vector instructions, small enough to give up early.
const GROUP: usize = 16;

/// The word that `page` repeats, if it does.
///
/// An ordinary page is told apart by its ends. The word is in the machine's byte order, as [`fill`]
/// takes it.
pub(crate) fn repeated_word(page: &PageBytes) -> Option<u64> {
    let first = word(&page[..WORD]);
    // Many pages begin with a run of zeros; their end tells most of those apart at once.
    if word(&page[page.len() - WORD..]) != first {
        return None;
    }
    for group in page.chunks_exact(GROUP * WORD) {
        // Differences are gathered without a branch per word, so that this becomes vector code.
        let difference = group
            .chunks_exact(WORD)
            .fold(0, |difference, bytes| difference | (word(bytes) ^ first));
        if difference != 0 {
            return None;
        }
    }
    Some(first)
}

/// Fills `page` with `value`.
pub(crate) fn fill(page: &mut PageBytes, value: u64) {
    for bytes in page.chunks_exact_mut(WORD) {
        bytes.copy_from_slice(&value.to_ne_bytes());
    }
}

/// Makes `page` repeat `value`, unless that is zeros, which need not be written.
pub(crate) fn repeated(value: u64, page: &mut PageBytes) -> Content {
    if value == 0 {
        return Content::Zeros;
    }
    fill(page, value);
    Content::Bytes
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_ne_bytes(bytes.try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use userswap_core::device::PAGE_SIZE;

    #[test]
    fn a_filled_page_is_recognised() {
        for value in [0, 1, u64::MAX, 0x0102_0304_0506_0708] {
            let mut page = [0; PAGE_SIZE];
            fill(&mut page, value);
            assert_eq!(repeated_word(&page), Some(value));
        }
    }

    #[test]
    fn any_single_byte_off_is_seen() {
        let mut page = [0x5a; PAGE_SIZE];
        for position in 0..PAGE_SIZE {
            page[position] ^= 1;
            assert_eq!(repeated_word(&page), None, "byte {position}");
            page[position] ^= 1;
        }
        assert_eq!(repeated_word(&page), Some(0x5a5a_5a5a_5a5a_5a5a));
    }
}
