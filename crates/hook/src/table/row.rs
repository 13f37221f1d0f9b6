//! What a row of the tables can say.

use super::Walk;

/// A call's number, and what each pointer among its arguments points to. A null pointer points to nothing.
#[derive(Clone, Copy)]
pub(crate) struct Row(pub(crate) u32, pub(crate) &'static [(u8, What)]);

/// What an argument points to.
#[derive(Clone, Copy)]
pub(crate) enum What {
    /// Bytes that the kernel reads.
    In(Size),
    /// Bytes that the kernel writes.
    Out(Size),
    /// Bytes that the kernel reads and writes.
    Both(Size),
    /// Bytes that the kernel uses from now on.
    Kept(Size),
    /// A string with its end.
    Text,
    /// Something with pointers of its own.
    Via(fn(&mut Walk<'_>, usize)),
}

/// How many bytes.
#[derive(Clone, Copy)]
pub(crate) enum Size {
    /// That many.
    Bytes(u32),
    /// As many as that argument says.
    Len(u8),
    /// The same, of an argument that has 32 bits.
    Int(u8),
    /// As many elements as that argument says, of so many bytes each.
    Count(u8, u32),
    /// The same, of an argument that has 32 bits.
    IntCount(u8, u32),
    /// As many as the 32-bit word says that the argument points to.
    At(u8),
    /// As many as that argument says, and these.
    LenPlus(u8, u32),
    /// Whole words for as many bits as that argument says.
    Bits(u8),
}

pub(crate) use Size::{At, Bits, Bytes, Count, Int, IntCount, Len, LenPlus};
pub(crate) use What::{Both, In, Kept, Out, Text, Via};

/// Sizes of the kernel's structures on x86-64.
pub(crate) mod size {
    use super::Size;
    pub(crate) const STAT: Size = Size::Bytes(144);
    pub(crate) const STATFS: Size = Size::Bytes(120);
    pub(crate) const STATX: Size = Size::Bytes(256);
    pub(crate) const TIMESPEC: Size = Size::Bytes(16);
    pub(crate) const TWO_TIMES: Size = Size::Bytes(32);
    pub(crate) const RUSAGE: Size = Size::Bytes(144);
    pub(crate) const RLIMIT: Size = Size::Bytes(16);
    pub(crate) const SIGINFO: Size = Size::Bytes(128);
    pub(crate) const SIGACTION: Size = Size::Bytes(32);
    pub(crate) const SIGEVENT: Size = Size::Bytes(64);
    pub(crate) const STACK: Size = Size::Bytes(24);
    pub(crate) const TIMEX: Size = Size::Bytes(208);
    pub(crate) const LONG: Size = Size::Bytes(8);
    pub(crate) const INT: Size = Size::Bytes(4);
}
