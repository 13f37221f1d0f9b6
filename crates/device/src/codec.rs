//! Compression with contexts made beforehand, two per CPU: one may belong to a thread that lost its
//! CPU in the middle.
//!
//! Guarantee: a context is used by one thread at a time, and a thread that wants one waits only
//! when all are busy. How: each sits behind a mutex; a thread tries its own CPU's first, then each
//! other, and blocks on its own CPU's if every one is taken.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use userswap_core::device::{DeviceError, PageBytes};

use crate::arena::Table;
use crate::store::MAX_PACKED;
use crate::{cpu, lz4, zstd};

const CONTEXTS_PER_CPU: usize = 2;

/// How a device compresses its pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// LZ4: under two microseconds to read a page back.
    Lz4,
    /// Zstandard: half the size of LZ4 or a little more, at three to five times the time.
    Zstd,
    /// LZ4 while that leaves room, Zstandard where the store outgrows its share of the limit. Without a limit, LZ4.
    #[default]
    Adaptive,
}

/// What one object was compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Lz4,
    Zstd,
}

type Output = [u8; MAX_PACKED];

/// A context and where its results appear before they go to the store.
pub(crate) struct Compressor<T> {
    context: T,
    output: Output,
}

impl<T> Compressor<T> {
    fn new(context: T) -> Mutex<Self> {
        Mutex::new(Self {
            context,
            output: [0; MAX_PACKED],
        })
    }
}

impl Compressor<zstd::Compressor> {
    /// Compresses `page`; nothing if it takes more than [`MAX_PACKED`] bytes.
    pub(crate) fn compress(&mut self, page: &PageBytes) -> Option<&[u8]> {
        let len = self.context.compress(page, &mut self.output)?;
        Some(&self.output[..len])
    }
}

/// Decompression needs no context.
struct Lz4 {
    compress: Table<Mutex<Compressor<lz4::State>>>,
    acceleration: u32,
}

struct Zstd {
    compress: Table<Mutex<Compressor<zstd::Compressor>>>,
    decompress: Table<Mutex<zstd::Decompressor>>,
    /// Bytes of memory all of it takes, once used.
    bytes: usize,
    /// Relaxed: only a sum depends on it.
    used: AtomicBool,
}

/// All contexts of a device: those that its codec may need.
pub(crate) struct Contexts {
    lz4: Option<Lz4>,
    zstd: Option<Zstd>,
}

const NOT_MADE: &str = "a format that the device's codec does not use";

impl Contexts {
    /// Contexts for `codec`: LZ4 with `acceleration`, Zstandard at `level`.
    pub(crate) fn new(codec: Codec, acceleration: u32, level: i32) -> Result<Self, DeviceError> {
        let lz4 = (codec != Codec::Zstd).then(|| Lz4::new(acceleration));
        let zstd = (codec != Codec::Lz4).then(|| Zstd::new(level));
        Ok(Self {
            lz4: lz4.transpose()?,
            zstd: zstd.transpose()?,
        })
    }

    /// Compresses `page` and hands `then` the result, or nothing if it takes more than
    /// [`MAX_PACKED`] bytes. The context stays taken until `then` returns.
    pub(crate) fn compress<R>(
        &self,
        cpu: usize,
        format: Format,
        page: &PageBytes,
        then: impl FnOnce(Option<&[u8]>) -> R,
    ) -> R {
        match format {
            Format::Lz4 => {
                let lz4 = self.lz4.as_ref().expect(NOT_MADE);
                let Compressor { context, output } = &mut *take(&lz4.compress, cpu);
                let len = context.compress(page, output, lz4.acceleration);
                then(len.map(|len| &output[..len]))
            }
            Format::Zstd => then(self.zstd(cpu).compress(page)),
        }
    }

    /// A context for Zstandard.
    pub(crate) fn zstd(&self, cpu: usize) -> MutexGuard<'_, Compressor<zstd::Compressor>> {
        let zstd = self.zstd.as_ref().expect(NOT_MADE);
        if !zstd.used.load(Relaxed) {
            zstd.used.store(true, Relaxed);
        }
        take(&zstd.compress, cpu)
    }

    /// Decompresses `packed` into `page`; false when it is not what was compressed.
    pub(crate) fn decompress(&self, format: Format, packed: &[u8], page: &mut PageBytes) -> bool {
        match format {
            Format::Lz4 => lz4::decompress(packed, page),
            Format::Zstd => {
                let zstd = self.zstd.as_ref().expect(NOT_MADE);
                take(&zstd.decompress, cpu::current()).decompress(packed, page)
            }
        }
    }

    /// Bytes of memory that contexts take: those for Zstandard once they were used.
    pub(crate) fn memory_bytes(&self) -> usize {
        let lz4 = self.lz4.as_ref().map(|lz4| lz4.compress.reserved_bytes());
        let used = self.zstd.as_ref().filter(|zstd| zstd.used.load(Relaxed));
        lz4.unwrap_or(0) + used.map_or(0, |zstd| zstd.bytes)
    }
}

impl Lz4 {
    fn new(acceleration: u32) -> Result<Self, DeviceError> {
        Ok(Self {
            compress: Table::from_fn(count(), |_| Compressor::new(lz4::State::new()))?,
            acceleration,
        })
    }
}

impl Zstd {
    fn new(level: i32) -> Result<Self, DeviceError> {
        let compress = Table::try_from_fn(count(), |_| {
            Ok(Compressor::new(zstd::Compressor::new(level)?))
        })?;
        let decompress =
            Table::try_from_fn(count(), |_| Ok(Mutex::new(zstd::Decompressor::new()?)))?;
        let workspaces = compress.len() * lock(&compress[0]).context.memory_bytes()
            + decompress.len() * lock(&decompress[0]).memory_bytes();
        Ok(Self {
            bytes: compress.reserved_bytes() + decompress.reserved_bytes() + workspaces,
            compress,
            decompress,
            used: AtomicBool::new(false),
        })
    }
}

/// How many contexts there are of a kind.
fn count() -> usize {
    CONTEXTS_PER_CPU * cpu::count()
}

fn take<T>(contexts: &[Mutex<T>], cpu: usize) -> MutexGuard<'_, T> {
    let own = cpu % contexts.len();
    (own..contexts.len())
        .chain(0..own)
        .find_map(|index| contexts[index].try_lock().ok())
        .unwrap_or_else(|| lock(&contexts[own]))
}

fn lock<T>(context: &Mutex<T>) -> MutexGuard<'_, T> {
    // A context carries nothing from one use to the next, so a poisoned one is as good.
    context.lock().unwrap_or_else(PoisonError::into_inner)
}
