//! Compression with contexts made beforehand, two per CPU: one may belong to a thread that lost its
//! CPU in the middle.
//!
//! Guarantee: a context is used by one thread at a time, and a thread that wants one waits only
//! when all are busy. How: each sits behind a mutex; a thread tries its own CPU's first, then each
//! other, and blocks on its own CPU's if every one is taken.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use userswap_core::device::{DeviceError, PageBytes};

use crate::arena::Table;
use crate::store::MAX_PACKED;
use crate::{cpu, lz4, zstd};

const CONTEXTS_PER_CPU: usize = 2;

/// The most contexts for Zstandard of each kind: every one is a mapping of some hundred kilobytes.
const MOST_FOR_ZSTD: usize = 64;

/// How a device compresses its pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// LZ4: under two microseconds to read a page back.
    Lz4,
    /// Zstandard: half the size of LZ4 or a little more, at three to five times the time.
    Zstd,
    /// LZ4 while that leaves room, Zstandard where the store outgrows its share of the limit, or the engine has better use for the
    /// memory ([`Device::prefer_small`]), and [`Device::tend`] is called. Without a limit, LZ4.
    ///
    /// [`Device::prefer_small`]: userswap_core::device::Device::prefer_small
    /// [`Device::tend`]: userswap_core::device::Device::tend
    #[default]
    Adaptive,
}

/// What one object was compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Lz4,
    Zstd,
}

/// How a page is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Lz4,
    /// Zstandard at its given level.
    Zstd,
    /// Zstandard with literals as they are: reads in half to two thirds of the time, and has most of what Zstandard gains on pages
    /// that repeat themselves. Of processes at work, LZ4, this, level 1, and level 2, which looks for matches of four bytes (ratio of
    /// 4 KiB pages; microseconds in and out, of one run each on the host of the README): a sort 3.2, 4.8, 7.1, 6.9; 3.0 + 1.0,
    /// 8.4 + 2.4, 7.9 + 3.5, 8.3 + 3.4. Python's dicts 3.8, 7.8, 8.5, 8.5; 2.8 + 1.1, 9.7 + 2.4, 8.4 + 3.8, 8.5 + 3.9. A database
    /// in memory 1.6, 1.9, 2.2, 2.3; 4.9 + 1.4, 14 + 3.5, 17 + 7.0, 17 + 6.9.
    FastZstd,
}

impl Method {
    pub(crate) fn format(self) -> Format {
        match self {
            Self::Lz4 => Format::Lz4,
            Self::Zstd | Self::FastZstd => Format::Zstd,
        }
    }
}

/// The level of [`Method::FastZstd`].
const FAST_LEVEL: i32 = -1;

type Output = [u8; MAX_PACKED];

/// A context and where its results appear before they go to the store.
pub(crate) struct Compressor<T> {
    context: T,
    output: Output,
    /// Its memory is counted.
    used: bool,
}

impl<T> Compressor<T> {
    fn new(context: T) -> Mutex<Self> {
        Mutex::new(Self {
            context,
            output: [0; MAX_PACKED],
            used: false,
        })
    }
}

impl Compressor<zstd::Compressor> {
    /// Compresses `page` at one of its levels; nothing if it takes more than [`MAX_PACKED`] bytes.
    pub(crate) fn compress(&mut self, level: i32, page: &PageBytes) -> Option<&[u8]> {
        let len = self.context.compress(level, page, &mut self.output)?;
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
    decompress: Table<Mutex<Decompressor>>,
    /// Bytes of the workspaces that were used. Relaxed: a sum.
    used_bytes: AtomicUsize,
}

struct Decompressor {
    context: zstd::Decompressor,
    /// Its memory is counted.
    used: bool,
}

/// All contexts of a device: those that its codec needs. An adaptive one has none for Zstandard until they are wanted: most
/// never are.
pub(crate) struct Contexts {
    lz4: Option<Lz4>,
    zstd: OnceLock<Zstd>,
    level: i32,
    /// Relaxed: a hint to who can make them.
    wanted: AtomicBool,
}

const NOT_MADE: &str = "a format that the device's codec does not use";

impl Contexts {
    /// Contexts for `codec`: LZ4 with `acceleration`, Zstandard at `level`.
    pub(crate) fn new(codec: Codec, acceleration: u32, level: i32) -> Result<Self, DeviceError> {
        let lz4 = (codec != Codec::Zstd).then(|| Lz4::new(acceleration));
        let contexts = Self {
            lz4: lz4.transpose()?,
            zstd: OnceLock::new(),
            level,
            wanted: AtomicBool::new(false),
        };
        if codec == Codec::Zstd {
            let _ = contexts.zstd.set(Zstd::new(level)?);
        }
        Ok(contexts)
    }

    /// Whether there are contexts for Zstandard. If not, they are wanted from now on.
    pub(crate) fn has_zstd(&self) -> bool {
        let has = self.zstd.get().is_some();
        if !has && !self.wanted.load(Relaxed) {
            self.wanted.store(true, Relaxed);
        }
        has
    }

    /// Makes contexts for Zstandard where they are wanted and not there; `true`: it did. Not on the fault path. Where the
    /// system has no memory for them, things stay as they are.
    pub(crate) fn make_wanted(&self) -> bool {
        let wanted = self.wanted.swap(false, Relaxed) && self.zstd.get().is_none();
        let made = wanted.then(|| Zstd::new(self.level).ok()).flatten();
        made.is_some_and(|zstd| self.zstd.set(zstd).is_ok())
    }

    /// Compresses `page` and hands `then` the result, or nothing if it takes more than
    /// [`MAX_PACKED`] bytes. The context stays taken until `then` returns.
    pub(crate) fn compress<R>(
        &self,
        cpu: usize,
        method: Method,
        page: &PageBytes,
        then: impl FnOnce(Option<&[u8]>) -> R,
    ) -> R {
        match method {
            Method::Lz4 => {
                let lz4 = self.lz4.as_ref().expect(NOT_MADE);
                let Compressor {
                    context, output, ..
                } = &mut *take(&lz4.compress, cpu);
                let len = context.compress(page, output, lz4.acceleration);
                then(len.map(|len| &output[..len]))
            }
            Method::Zstd | Method::FastZstd => {
                then(self.zstd(cpu).compress(self.level(method), page))
            }
        }
    }

    /// The level of Zstandard for a method that is one.
    pub(crate) fn level(&self, method: Method) -> i32 {
        match method {
            Method::FastZstd => FAST_LEVEL,
            Method::Zstd | Method::Lz4 => self.level,
        }
    }

    /// A context for Zstandard, of which there are some.
    pub(crate) fn zstd(&self, cpu: usize) -> MutexGuard<'_, Compressor<zstd::Compressor>> {
        let zstd = self.zstd.get().expect(NOT_MADE);
        let mut compressor = take(&zstd.compress, cpu);
        if !compressor.used {
            compressor.used = true;
            let bytes = compressor.context.memory_bytes();
            zstd.used_bytes.fetch_add(bytes, Relaxed);
        }
        compressor
    }

    /// Decompresses `packed` into `page`; false when it is not what was compressed.
    pub(crate) fn decompress(&self, format: Format, packed: &[u8], page: &mut PageBytes) -> bool {
        match format {
            Format::Lz4 => lz4::decompress(packed, page),
            Format::Zstd => {
                let zstd = self.zstd.get().expect(NOT_MADE);
                let mut decompressor = take(&zstd.decompress, cpu::current());
                if !decompressor.used {
                    decompressor.used = true;
                    let bytes = decompressor.context.memory_bytes();
                    zstd.used_bytes.fetch_add(bytes, Relaxed);
                }
                decompressor.context.decompress(packed, page)
            }
        }
    }

    /// Bytes of memory that contexts take: the large workspaces for Zstandard where they were used.
    pub(crate) fn memory_bytes(&self) -> usize {
        let lz4 = self.lz4.as_ref().map(|lz4| lz4.compress.reserved_bytes());
        let zstd = self.zstd.get().map(|zstd| {
            let tables = zstd.compress.reserved_bytes() + zstd.decompress.reserved_bytes();
            tables + zstd.used_bytes.load(Relaxed)
        });
        lz4.unwrap_or(0) + zstd.unwrap_or(0)
    }
}

impl Lz4 {
    fn new(acceleration: u32) -> Result<Self, DeviceError> {
        Ok(Self {
            compress: Table::from_fn(CONTEXTS_PER_CPU * cpu::count(), |_| {
                Compressor::new(lz4::State::new())
            })?,
            acceleration,
        })
    }
}

impl Zstd {
    fn new(level: i32) -> Result<Self, DeviceError> {
        let count = (CONTEXTS_PER_CPU * cpu::count()).min(MOST_FOR_ZSTD);
        Ok(Self {
            compress: Table::try_from_fn(count, |_| {
                Ok(Compressor::new(zstd::Compressor::new(&[
                    level, FAST_LEVEL,
                ])?))
            })?,
            decompress: Table::try_from_fn(count, |_| {
                Ok(Mutex::new(Decompressor {
                    context: zstd::Decompressor::new()?,
                    used: false,
                }))
            })?,
            used_bytes: AtomicUsize::new(0),
        })
    }
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
