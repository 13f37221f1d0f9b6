//! LZ4 blocks, with the compressor's state in memory of the caller's.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::from_mut;

use userswap_core::device::{PAGE_SIZE, PageBytes};

// The binding crate does not declare this one; it is part of the library's stable interface.
unsafe extern "C" {
    fn LZ4_compress_fast_extState(
        state: *mut c_void,
        source: *const c_char,
        target: *mut c_char,
        source_len: c_int,
        target_len: c_int,
        acceleration: c_int,
    ) -> c_int;
    fn LZ4_sizeofState() -> c_int;
}

/// Bytes for the compressor's table; checked against the library when a state is made.
const STATE_BYTES: usize = 16 * 1024 + 128;

/// What a compression works in. The library clears it at each use, so it carries nothing over.
#[repr(C, align(64))]
pub(crate) struct State([u8; STATE_BYTES]);

impl State {
    pub(crate) fn new() -> Self {
        // SAFETY: the call takes nothing and returns a constant.
        let needed = unsafe { LZ4_sizeofState() };
        assert!(usize::try_from(needed).is_ok_and(|needed| needed <= STATE_BYTES));
        Self([0; STATE_BYTES])
    }

    /// Compresses `page` into `target`; gives the length, or nothing where it does not fit.
    /// `acceleration` 1 compresses best; larger is faster and worse.
    pub(crate) fn compress(
        &mut self,
        page: &PageBytes,
        target: &mut [u8],
        acceleration: u32,
    ) -> Option<usize> {
        let room = c_int::try_from(target.len()).unwrap_or(c_int::MAX);
        // SAFETY: the state is large enough (checked in `new`), aligned to more than the eight
        // bytes asked for, and exclusively ours; the library reads PAGE_SIZE bytes of the page and
        // writes at most `room` bytes to the target. It allocates nothing when given a state.
        let written = unsafe {
            LZ4_compress_fast_extState(
                from_mut(&mut self.0).cast(),
                page.as_ptr().cast(),
                target.as_mut_ptr().cast(),
                PAGE_SIZE as c_int,
                room,
                c_int::try_from(acceleration).unwrap_or(c_int::MAX),
            )
        };
        usize::try_from(written).ok().filter(|&written| written > 0)
    }
}

/// Decompresses `source` into `page`; false when `source` is no block of exactly one page.
pub(crate) fn decompress(source: &[u8], page: &mut PageBytes) -> bool {
    let Ok(len) = c_int::try_from(source.len()) else {
        return false;
    };
    // SAFETY: the library bounds its reads by `len` and its writes by PAGE_SIZE, whatever the
    // source holds; a malformed source makes it return a negative number.
    let written = unsafe {
        lz4_sys::LZ4_decompress_safe(
            source.as_ptr().cast(),
            page.as_mut_ptr().cast(),
            len,
            PAGE_SIZE as c_int,
        )
    };
    usize::try_from(written) == Ok(PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_back() {
        let mut page = [0; PAGE_SIZE];
        for (index, byte) in page.iter_mut().enumerate() {
            *byte = (index / 40) as u8;
        }
        let (mut packed, mut back) = ([0; PAGE_SIZE], [1; PAGE_SIZE]);
        let len = State::new().compress(&page, &mut packed, 1).unwrap();
        assert!(len < 1000);
        assert!(decompress(&packed[..len], &mut back));
        assert_eq!(back, page);
    }

    #[test]
    fn too_little_room_and_damage_are_reported() {
        let page = [7; PAGE_SIZE];
        let (mut packed, mut back) = ([0; 64], [0; PAGE_SIZE]);
        let mut state = State::new();
        assert_eq!(state.compress(&page, &mut packed[..4], 1), None);
        let len = state.compress(&page, &mut packed, 1).unwrap();
        assert!(!decompress(&packed[..len - 6], &mut back), "short");
        assert!(!decompress(&[], &mut back), "empty");
        assert!(!decompress(&[0xff; 30], &mut back), "junk");
    }
}
