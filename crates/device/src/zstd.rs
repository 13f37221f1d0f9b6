//! Zstandard frames, with both contexts in memory of ours.
//!
//! The library can build a context inside a workspace it is given; such a context never allocates:
//! it would rather fail. Frames are written without their magic number, check sum and dictionary
//! number, which saves a few bytes a page.
//!
//! They use no dictionary. One trained on pages of the same process was measured (2 to 64 KiB, levels 1 and 3; memory of a
//! Python dict, of Python lists, of sort and of sqlite3): with its own memory, 77 to 553 KiB, from 5 % fewer to 17 % more bytes
//! than without, 4 to 48 % less time to decompress, and 30 to 250 ms to train.

use std::ffi::c_int;
use std::ptr::NonNull;

use rustix::io::Errno;
use userswap_core::device::{DeviceError, PAGE_SIZE, PageBytes};
use zstd_safe::zstd_sys::{
    self as sys, ZSTD_CCtx, ZSTD_DCtx, ZSTD_cParameter, ZSTD_dParameter, ZSTD_format_e,
};

use crate::arena::{Mapping, refused};

/// The longest match distance worth having: a page.
const WINDOW_LOG: c_int = PAGE_SIZE.ilog2() as c_int;

fn failed(code: usize) -> bool {
    // SAFETY: looks at the number only.
    unsafe { sys::ZSTD_isError(code) != 0 }
}

fn no_context() -> DeviceError {
    refused(Errno::INVAL)
}

/// Compresses pages.
pub(crate) struct Compressor {
    context: NonNull<ZSTD_CCtx>,
    workspace: Mapping,
    /// What the context is set to.
    level: c_int,
}

// SAFETY: the context is plain memory in the workspace it owns, bound to no thread.
unsafe impl Send for Compressor {}

impl Compressor {
    /// A compressor for each of `levels`, set to the first.
    pub(crate) fn new(levels: &[c_int]) -> Result<Self, DeviceError> {
        let size = |level| {
            // SAFETY: both take and return numbers.
            unsafe {
                let mut parameters = sys::ZSTD_getCParams(level, PAGE_SIZE as u64, 0);
                parameters.windowLog = WINDOW_LOG as u32;
                sys::ZSTD_estimateCCtxSize_usingCParams(parameters)
            }
        };
        // An error is a number larger than any size.
        let size = levels.iter().map(|&level| size(level)).max();
        let (Some(size), Some(&level)) = (size.filter(|&size| !failed(size)), levels.first())
        else {
            return Err(no_context());
        };
        let workspace = Mapping::new(size)?;
        // SAFETY: the workspace is `len` bytes, page-aligned, used by nothing else, and lives as
        // long as the context, in the same struct.
        let context =
            unsafe { sys::ZSTD_initStaticCCtx(workspace.base().as_ptr().cast(), workspace.len()) };
        let context = NonNull::new(context).ok_or_else(no_context)?;
        let parameters = [
            (ZSTD_cParameter::ZSTD_c_compressionLevel, level),
            (ZSTD_cParameter::ZSTD_c_windowLog, WINDOW_LOG),
            (ZSTD_cParameter::ZSTD_c_checksumFlag, 0),
            (ZSTD_cParameter::ZSTD_c_contentSizeFlag, 0),
            (
                ZSTD_cParameter::ZSTD_c_experimentalParam2,
                ZSTD_format_e::ZSTD_f_zstd1_magicless as c_int,
            ),
        ];
        for (parameter, value) in parameters {
            // SAFETY: the context was just made and is ours alone.
            if failed(unsafe { sys::ZSTD_CCtx_setParameter(context.as_ptr(), parameter, value) }) {
                return Err(no_context());
            }
        }
        Ok(Self {
            context,
            workspace,
            level,
        })
    }

    /// Bytes of memory its workspace takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.workspace.len()
    }

    /// Compresses `page` into `target` at one of its levels; gives the length, or nothing where it does not fit (no other error
    /// is possible: the workspace is large enough for each level).
    pub(crate) fn compress(
        &mut self,
        level: c_int,
        page: &PageBytes,
        target: &mut [u8],
    ) -> Option<usize> {
        if self.level != level {
            let parameter = ZSTD_cParameter::ZSTD_c_compressionLevel;
            // SAFETY: `&mut self` makes the context ours; the level may change at any time.
            let set =
                unsafe { sys::ZSTD_CCtx_setParameter(self.context.as_ptr(), parameter, level) };
            self.level = level;
            debug_assert!(!failed(set), "the context was made for it");
        }
        // SAFETY: `&mut self` makes the context ours; the library reads PAGE_SIZE bytes, writes at
        // most the target's length, and starts a new frame whatever the last call left behind.
        let written = unsafe {
            sys::ZSTD_compress2(
                self.context.as_ptr(),
                target.as_mut_ptr().cast(),
                target.len(),
                page.as_ptr().cast(),
                PAGE_SIZE,
            )
        };
        (!failed(written)).then_some(written)
    }
}

/// Decompresses pages.
pub(crate) struct Decompressor {
    context: NonNull<ZSTD_DCtx>,
    workspace: Mapping,
}

// SAFETY: as for `Compressor`.
unsafe impl Send for Decompressor {}

impl Decompressor {
    pub(crate) fn new() -> Result<Self, DeviceError> {
        // SAFETY: takes and returns numbers.
        let workspace = Mapping::new(unsafe { sys::ZSTD_estimateDCtxSize() })?;
        // SAFETY: as in `Compressor::new`.
        let context =
            unsafe { sys::ZSTD_initStaticDCtx(workspace.base().as_ptr().cast(), workspace.len()) };
        let context = NonNull::new(context).ok_or_else(no_context)?;
        // SAFETY: the context was just made and is ours alone.
        let set = unsafe {
            sys::ZSTD_DCtx_setParameter(
                context.as_ptr(),
                ZSTD_dParameter::ZSTD_d_experimentalParam1,
                ZSTD_format_e::ZSTD_f_zstd1_magicless as c_int,
            )
        };
        if failed(set) {
            return Err(no_context());
        }
        Ok(Self { context, workspace })
    }

    /// Bytes of memory its workspace takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.workspace.len()
    }

    /// Decompresses `source` into `page`; false when `source` is no frame of exactly one page.
    pub(crate) fn decompress(&mut self, source: &[u8], page: &mut PageBytes) -> bool {
        // SAFETY: `&mut self` makes the context ours; the library bounds its reads and writes by
        // the lengths given, whatever the source holds.
        let written = unsafe {
            sys::ZSTD_decompressDCtx(
                self.context.as_ptr(),
                page.as_mut_ptr().cast(),
                PAGE_SIZE,
                source.as_ptr().cast(),
                source.len(),
            )
        };
        written == PAGE_SIZE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_back_and_damage_is_reported() {
        let mut page = [0; PAGE_SIZE];
        for (index, byte) in page.iter_mut().enumerate() {
            *byte = (index * index / 97) as u8 & 15;
        }
        let (mut packed, mut back) = ([0; PAGE_SIZE], [1; PAGE_SIZE]);
        let mut compressor = Compressor::new(&[2, -1]).unwrap();
        let mut decompressor = Decompressor::new().unwrap();
        assert_eq!(
            compressor.compress(2, &page, &mut packed[..8]),
            None,
            "no room"
        );
        let len = compressor.compress(-1, &page, &mut packed).unwrap();
        assert!(decompressor.decompress(&packed[..len], &mut back));
        assert_eq!(back, page);
        let fast_len = std::mem::replace(&mut back, [1; PAGE_SIZE]).len().min(len);
        let len = compressor.compress(2, &page, &mut packed).unwrap();
        assert!(len < fast_len, "{len} bytes, {fast_len} fast");
        assert!(decompressor.decompress(&packed[..len], &mut back));
        assert_eq!(back, page);
        assert!(
            !decompressor.decompress(&packed[..len - 1], &mut back),
            "short"
        );
        assert!(!decompressor.decompress(&[0xa5; 100], &mut back), "junk");
        assert!(
            decompressor.decompress(&packed[..len], &mut back),
            "usable after an error"
        );
    }
}
