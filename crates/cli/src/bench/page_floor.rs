//! What bringing one page in takes at least on this host, whoever asks for it and however many at once: decoding it, and
//! a fresh page that it is copied to. A page of zeros takes no fresh page.
//!
//! It is the CPU's time, all CPUs together: in sequential order the engine brings pages in on several at once, and a page
//! may take less time than this.

use std::time::Instant;

use anyhow::ensure;
use serde::Serialize;
use userswap::{Codec, Device};
use userswap_core::device;
use userswap_device::{Zram, ZramOptions};
use userswap_sys::mapping::Mapping;
use userswap_sys::uffd::{Open, Uffd};

use super::stat::median;
use crate::content::Content;
use crate::interrupt;
use crate::size::PAGE;

/// Both parts, microseconds of CPU for one page.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct PageFloor {
    #[serde(rename = "floor_decode_us")]
    decode_us: f64,
    #[serde(rename = "floor_page_us")]
    page_us: f64,
}

/// For people.
impl std::fmt::Display for PageFloor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { decode_us, page_us } = self;
        write!(
            f,
            "floor: decode {decode_us:.3} us + fresh page {page_us:.3} us = {:.3} us a page of CPU",
            decode_us + page_us
        )
    }
}

/// Pages in one pass: enough that they are in no cache close to the CPU.
const PAGES: usize = 4096;

/// Passes, of which the median counts.
const PASSES: usize = 9;

/// Pages that one request copies: so many that what a request takes hardly counts.
const AT_ONCE: usize = 64;

impl PageFloor {
    /// Of pages with this content, compressed as `codec` does.
    pub(super) fn measure(content: &Content, codec: Codec) -> anyhow::Result<Self> {
        let (decode_us, copied) = decode(content, codec)?;
        Ok(Self {
            decode_us,
            page_us: fresh_page()? * copied as f64 / PAGES as f64,
        })
    }
}

/// Microseconds for one page, and how many pages of a pass are more than zeros.
fn decode(content: &Content, codec: Codec) -> anyhow::Result<(f64, usize)> {
    let options = ZramOptions {
        codec,
        ..ZramOptions::default()
    };
    let device = Zram::new(PAGES as u64, options)?;
    let mut page = [0; PAGE];
    for number in 0..PAGES {
        content.write(number, &mut page);
        device.write(number as u64, &page)?;
    }
    let mut copied = 0;
    let us = us_per_page(
        || Ok(()),
        || {
            copied = 0;
            for slot in 0..PAGES as u64 {
                let read = device.read(slot, &mut page)?;
                copied += usize::from(read != device::Content::Zeros);
            }
            Ok(())
        },
    )?;
    Ok((us, copied))
}

fn fresh_page() -> anyhow::Result<f64> {
    const BYTES: usize = AT_ONCE * PAGE;
    let uffd = Uffd::open(Open::default())?;
    let ready = Mapping::reserve(BYTES, PAGE)?;
    ready.populate(0..BYTES)?;
    let missing = Mapping::reserve(PAGES * PAGE, PAGE)?;
    missing.advise_no_huge()?;
    // SAFETY: our own range, which nobody touches; the descriptor lives as long.
    unsafe { uffd.register(missing.base(), missing.len()) }?;
    us_per_page(
        || Ok(missing.discard(0..missing.len())?),
        || {
            for at in missing.addresses().step_by(BYTES) {
                // SAFETY: both ranges are our own and whole; nobody writes to `ready`.
                let progress = unsafe { uffd.copy(at, ready.base(), BYTES) };
                ensure!(progress.is_complete(), "no page can be had: {progress:?}");
            }
            Ok(())
        },
    )
}

/// Microseconds that each page of a pass takes, without what is done before it.
fn us_per_page(
    mut before: impl FnMut() -> anyhow::Result<()>,
    mut pass: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let mut passes = [0.0; PASSES];
    for us in &mut passes {
        interrupt::check()?;
        before()?;
        let start = Instant::now();
        pass()?;
        *us = start.elapsed().as_secs_f64() * 1e6 / PAGES as f64;
    }
    Ok(median(passes).expect("there are passes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Kind;

    #[test]
    fn pages_of_zeros_are_not_copied() {
        let copied = |kind| {
            let (_, copied) = decode(&Content::new(kind, 1), Codec::Lz4).expect("decoded");
            copied
        };
        assert_eq!((copied(Kind::Zero), copied(Kind::Text)), (0, PAGES));
        assert!((PAGES / 2..PAGES).contains(&copied(Kind::Mixed)));
    }

    #[test]
    fn adds_up() {
        let floor = PageFloor {
            decode_us: 1.25,
            page_us: 0.5,
        };
        let said = "floor: decode 1.250 us + fresh page 0.500 us = 1.750 us a page of CPU";
        assert_eq!(floor.to_string(), said);
    }
}
