//! Compression with contexts made beforehand, two per CPU: one may belong to a thread that lost its
//! CPU in the middle.
//!
//! Guarantee: a context is used by one thread at a time, and a thread that wants one waits only
//! when all are busy. How: each sits behind a mutex; a thread tries its own CPU's first, then each
//! other, and blocks on its own CPU's if every one is taken.

use std::sync::{Mutex, MutexGuard, PoisonError};

use userswap_core::device::{DeviceError, PageBytes};

use crate::arena::Table;
use crate::store::MAX_PACKED;
use crate::{cpu, lz4, zstd};

const CONTEXTS_PER_CPU: usize = 2;

/// How pages are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// LZ4: under a microsecond to read a page back.
    #[default]
    Lz4,
    /// Zstandard: half the size of LZ4 or a little more, at three to five times the time.
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

/// All contexts of a device.
pub(crate) enum Contexts {
    /// Decompression needs none.
    Lz4 {
        compress: Table<Mutex<Compressor<lz4::State>>>,
        acceleration: u32,
    },
    Zstd {
        compress: Table<Mutex<Compressor<zstd::Compressor>>>,
        decompress: Table<Mutex<zstd::Decompressor>>,
    },
}

impl Contexts {
    /// Contexts for `codec`: LZ4 with `acceleration`, Zstandard at `level`.
    pub(crate) fn new(codec: Codec, acceleration: u32, level: i32) -> Result<Self, DeviceError> {
        let count = CONTEXTS_PER_CPU * cpu::count();
        Ok(match codec {
            Codec::Lz4 => Self::Lz4 {
                compress: Table::from_fn(count, |_| Compressor::new(lz4::State::new()))?,
                acceleration,
            },
            Codec::Zstd => Self::Zstd {
                compress: Table::try_from_fn(count, |_| {
                    Ok(Compressor::new(zstd::Compressor::new(level)?))
                })?,
                decompress: Table::try_from_fn(count, |_| {
                    Ok(Mutex::new(zstd::Decompressor::new()?))
                })?,
            },
        })
    }

    /// Compresses `page` and hands `then` the result, or nothing if it takes more than
    /// [`MAX_PACKED`] bytes. The context stays taken until `then` returns.
    pub(crate) fn compress<R>(
        &self,
        cpu: usize,
        page: &PageBytes,
        then: impl FnOnce(Option<&[u8]>) -> R,
    ) -> R {
        match self {
            Self::Lz4 {
                compress,
                acceleration,
            } => {
                let Compressor { context, output } = &mut *take(compress, cpu);
                let len = context.compress(page, output, *acceleration);
                then(len.map(|len| &output[..len]))
            }
            Self::Zstd { compress, .. } => {
                let Compressor { context, output } = &mut *take(compress, cpu);
                let len = context.compress(page, output);
                then(len.map(|len| &output[..len]))
            }
        }
    }

    /// Decompresses `packed` into `page`; false when it is not what was compressed.
    pub(crate) fn decompress(&self, packed: &[u8], page: &mut PageBytes) -> bool {
        match self {
            Self::Lz4 { .. } => lz4::decompress(packed, page),
            Self::Zstd { decompress, .. } => {
                take(decompress, cpu::current()).decompress(packed, page)
            }
        }
    }

    /// Bytes of memory that contexts take, once used.
    pub(crate) fn memory_bytes(&self) -> usize {
        match self {
            Self::Lz4 { compress, .. } => compress.reserved_bytes(),
            Self::Zstd {
                compress,
                decompress,
            } => {
                let workspaces = compress.len() * lock(&compress[0]).context.memory_bytes()
                    + decompress.len() * lock(&decompress[0]).memory_bytes();
                compress.reserved_bytes() + decompress.reserved_bytes() + workspaces
            }
        }
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
