//! The cases.

mod files;
mod network;
mod paths;
mod process;

use crate::place::{Arg, Block, Case, State};

pub(crate) fn all() -> Vec<Case> {
    let mut all = files::cases();
    all.extend(process::cases());
    all.extend(network::cases());
    all
}

pub(crate) fn case(
    name: &'static str,
    nr: i64,
    make: impl Fn(&mut State) -> Vec<Arg> + 'static,
) -> Case {
    Case {
        name,
        nr,
        make: Box::new(make),
        may_fail: false,
        in_child: false,
    }
}

impl Case {
    /// Anything but EFAULT will do.
    pub(crate) fn may_fail(mut self) -> Self {
        self.may_fail = true;
        self
    }

    pub(crate) fn in_child(mut self) -> Self {
        self.in_child = true;
        self
    }
}

/// A value.
pub(crate) fn v(value: impl TryInto<i64>) -> Arg {
    Arg::Value(value.try_into().unwrap_or_else(|_| panic!("fits")) as usize)
}

/// Memory for the kernel to fill.
pub(crate) fn out(len: usize) -> Block {
    Block::new(vec![0x5a; len])
}

/// Zero bytes.
pub(crate) fn zero(len: usize) -> Block {
    Block::new(vec![0; len])
}

/// A string with its end.
pub(crate) fn text(text: &str) -> Block {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    Block::new(bytes)
}

/// 64-bit words.
pub(crate) fn words(words: &[i64]) -> Block {
    Block::new(
        words
            .iter()
            .flat_map(|w| w.to_ne_bytes())
            .collect::<Vec<_>>(),
    )
}

/// 32-bit words.
pub(crate) fn ints(ints: &[i32]) -> Block {
    Block::new(
        ints.iter()
            .flat_map(|w| w.to_ne_bytes())
            .collect::<Vec<_>>(),
    )
}

pub(crate) fn open(state: &mut State, path: &str, flags: i32) -> i32 {
    let path = std::ffi::CString::new(path).expect("no end inside");
    // SAFETY: a path with its end.
    state.file(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0o600) })
}

/// The ends of a pipe, with some bytes in it.
pub(crate) fn pipe(state: &mut State) -> [i32; 2] {
    let mut ends = [0; 2];
    // SAFETY: two integers of ours; eight bytes.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK), 0);
        assert_eq!(libc::write(ends[1], [1u8; 8].as_ptr().cast(), 8), 8);
    }
    ends.map(|fd| state.file(fd))
}
