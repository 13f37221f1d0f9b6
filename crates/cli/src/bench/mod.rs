//! `userswap bench`: the engine's ways in, and the kernel's zram swap beside them in the same run.

mod beside;
mod candidate;
mod contend;
mod fault;
mod floor;
mod latency;
mod page_floor;
mod phases;
mod run;
mod stat;
mod swapin;

pub(crate) use contend::run as contend;
pub(crate) use fault::run as fault;
pub(crate) use run::run;
pub(crate) use swapin::run as swapin;

/// The last line of every benchmark.
fn verdict(verified: bool) -> &'static str {
    if verified {
        "every page verified"
    } else {
        "WRONG PAGES: data were lost"
    }
}

/// A line for figures that count pages which never went out; none while those are too few to matter.
fn stayed(what: &str, stayed: usize, pages: usize) -> Option<String> {
    let many = stayed > pages / 100;
    many.then(|| format!("{what}: {stayed} of {pages} pages STAYED in memory and were not swapped"))
}
