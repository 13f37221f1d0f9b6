//! Which memory each system call uses: exact addresses and lengths, also those behind pointers in the memory itself.
//!
//! | module | holds |
//! |---|---|
//! | `row` | what a row of the tables can say |
//! | `files`, `process`, `network`, `system` | the rows, one for each call |
//! | `nested` | structures that hold pointers: vectors of buffers, messages, argument lists |
//! | `control` | calls whose second argument says what the third is |
//! | `ioctl` | requests by the size in their number, and the old ones without |
//!
//! The numbers are those of x86-64, up to the newest in the installed headers.

mod control;
mod files;
mod ioctl;
mod nested;
mod network;
mod process;
mod row;
mod system;

use crate::call::Call;
use row::{Row, Size, What};

/// What a call does with a piece of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The kernel reads it.
    Read,
    /// The kernel writes it.
    Write,
    /// Both.
    ReadWrite,
}

/// A piece of the program's memory that a call uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first byte.
    pub address: usize,
    /// Bytes, at least 1. Where only a bound is known (a string that could not be read, a list whose length the kernel
    /// keeps) it is the bound: what lies there but is not mapped is not used.
    pub len: usize,
    /// What is done with it.
    pub access: Access,
    /// The kernel goes on using it after the call: a thread's exit word, a registered buffer. It must stay resident.
    pub kept: bool,
}

/// How much [`memory_of`] knew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Knowledge {
    /// The spans are all the memory that the call uses.
    Exact,
    /// It may use more: through rings that it shares with the program, structures that vary with a driver, or memory that
    /// could not be read.
    AtLeast,
    /// Nothing is known of this number or request: any argument may be a pointer.
    Unknown,
}

/// Tells the memory that a call is about to use, the outer structures before what they point to.
///
/// `read` copies program memory, and answers `false` where there is none; it is called only for memory that was reported
/// as a span just before, so what makes spans resident makes it readable. `span` may hear of the same memory twice. Nothing is allocated.
pub fn memory_of(
    call: &Call,
    read: &mut dyn FnMut(usize, &mut [u8]) -> bool,
    span: &mut dyn FnMut(Span),
) -> Knowledge {
    let mut walk = Walk {
        call,
        read,
        span,
        knowledge: Knowledge::Exact,
    };
    match row_of(call.nr) {
        None => return Knowledge::Unknown,
        Some(row) => {
            for &(arg, what) in row.1 {
                walk.argument(usize::from(arg), what);
            }
        }
    }
    if SHARED_RINGS.iter().any(|&nr| nr as usize == call.nr) {
        walk.at_least();
    }
    walk.knowledge
}

/// Whether a call with this number may use memory at all; also where nothing is known of it.
#[must_use]
pub fn uses_memory(nr: usize) -> bool {
    row_of(nr).is_none_or(|row| !row.1.is_empty())
}

/// Whether the table has a row for this number.
#[must_use]
pub fn is_known(nr: usize) -> bool {
    row_of(nr).is_some()
}

/// The numbers the table has rows for, and some beyond.
const NUMBERS: usize = crate::call::NUMBERS;

fn row_of(nr: usize) -> Option<&'static Row> {
    *BY_NUMBER.get(nr)?
}

static BY_NUMBER: [Option<&'static Row>; NUMBERS] = {
    let mut rows = [None; NUMBERS];
    let parts: [&'static [Row]; 4] = [files::ROWS, process::ROWS, network::ROWS, system::ROWS];
    let mut part = 0;
    while part < parts.len() {
        let mut at = 0;
        while at < parts[part].len() {
            let row = &parts[part][at];
            assert!(rows[row.0 as usize].is_none(), "a call with two rows");
            rows[row.0 as usize] = Some(row);
            at += 1;
        }
        part += 1;
    }
    rows
};

/// Calls that also work on memory named in rings shared with the kernel.
const SHARED_RINGS: [u32; 1] = [linux_raw_sys::general::__NR_io_uring_enter];

/// The most that one call moves; also a bound on what a wrong length can report.
const MOST: usize = 0x7fff_f000;
/// The longest path or name, with its end.
const TEXT: usize = 4096;
const PAGE: usize = 4096;

/// Whether the kernel would take it for a pointer into a program's memory at all; offsets may be added to it then.
fn is_user(address: usize) -> bool {
    address != 0 && address < 1 << 56
}

/// One call's memory, being told.
pub(crate) struct Walk<'a> {
    pub(crate) call: &'a Call,
    read: &'a mut dyn FnMut(usize, &mut [u8]) -> bool,
    span: &'a mut dyn FnMut(Span),
    knowledge: Knowledge,
}

impl Walk<'_> {
    fn argument(&mut self, arg: usize, what: What) {
        let address = self.call.args[arg];
        if !is_user(address) {
            return;
        }
        match what {
            What::In(size) => self.sized(address, size, Access::Read),
            What::Out(size) => self.sized(address, size, Access::Write),
            What::Both(size) => self.sized(address, size, Access::ReadWrite),
            What::Kept(size) => {
                let len = self.size(size);
                self.tell(address, len, Access::ReadWrite, true);
            }
            What::Text => self.text(address),
            What::Via(walk) => walk(self, address),
        }
    }

    fn sized(&mut self, address: usize, size: Size, access: Access) {
        let len = self.size(size);
        self.tell(address, len, access, false);
    }

    fn size(&mut self, size: Size) -> usize {
        let args = &self.call.args;
        match size {
            Size::Bytes(bytes) => bytes as usize,
            Size::Len(arg) => args[usize::from(arg)],
            Size::Int(arg) => args[usize::from(arg)] as u32 as usize,
            Size::Count(arg, each) => args[usize::from(arg)].saturating_mul(each as usize),
            Size::IntCount(arg, each) => {
                (args[usize::from(arg)] as u32 as usize).saturating_mul(each as usize)
            }
            Size::At(arg) => self.word32(args[usize::from(arg)]).unwrap_or(0) as usize,
            Size::LenPlus(arg, more) => args[usize::from(arg)].saturating_add(more as usize),
            Size::Bits(arg) => args[usize::from(arg)].saturating_add(63) / 64 * 8,
        }
    }

    pub(crate) fn tell(&mut self, address: usize, len: usize, access: Access, kept: bool) {
        let len = len.min(MOST).min(usize::MAX - address);
        if address != 0 && len > 0 {
            (self.span)(Span {
                address,
                len,
                access,
                kept,
            });
        }
    }

    pub(crate) fn reads(&mut self, address: usize, len: usize) {
        self.tell(address, len, Access::Read, false);
    }

    pub(crate) fn writes(&mut self, address: usize, len: usize) {
        self.tell(address, len, Access::Write, false);
    }

    pub(crate) fn both(&mut self, address: usize, len: usize) {
        self.tell(address, len, Access::ReadWrite, false);
    }

    /// More memory may be in use than is told.
    pub(crate) fn at_least(&mut self) {
        self.knowledge = self.knowledge.max(Knowledge::AtLeast);
    }

    pub(crate) fn unknown(&mut self) {
        self.knowledge = Knowledge::Unknown;
    }

    /// Copies memory that was told before.
    pub(crate) fn copy<const N: usize>(&mut self, address: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        if address.checked_add(N).is_some() && (self.read)(address, &mut bytes) {
            Some(bytes)
        } else {
            // The call itself will meet the same and fail, or another thread unmaps it right now.
            self.at_least();
            None
        }
    }

    /// Copies neighbouring words that were told before.
    pub(crate) fn words(&mut self, address: usize, words: &mut [usize]) -> bool {
        let mut bytes = [0; 32 * size_of::<usize>()];
        let bytes = &mut bytes[..size_of_val(words)];
        let fits = address.checked_add(bytes.len()).is_some();
        if !fits || !(self.read)(address, bytes) {
            self.at_least();
            return false;
        }
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = usize::from_ne_bytes(*bytes);
        }
        true
    }

    pub(crate) fn word(&mut self, address: usize) -> Option<usize> {
        self.copy(address).map(usize::from_ne_bytes)
    }

    pub(crate) fn word32(&mut self, address: usize) -> Option<u32> {
        if !is_user(address) {
            return None;
        }
        self.reads(address, 4);
        self.copy(address).map(u32::from_ne_bytes)
    }

    /// A string: told page by page, so that no page behind its end is asked for.
    pub(crate) fn text(&mut self, address: usize) {
        self.text_up_to(address, TEXT);
    }

    /// The same with another bound. The kernel may read on to the end of a word, which never leaves the page.
    pub(crate) fn text_up_to(&mut self, address: usize, most: usize) {
        let mut at = address;
        let mut left = most;
        let mut chunk = [0; 256];
        while left > 0 && at != 0 {
            let len = left.min(chunk.len()).min(PAGE - at % PAGE);
            self.reads(at, 1);
            if !(self.read)(at, &mut chunk[..len]) {
                self.at_least();
                self.reads(at, len);
                return;
            }
            let end = chunk[..len].iter().position(|&b| b == 0);
            self.reads(at, end.map_or(len, |end| end + 1));
            if end.is_some() {
                return;
            }
            at = at.wrapping_add(len);
            left -= len;
        }
    }
}
