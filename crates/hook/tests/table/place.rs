//! Laying out the structures of a call at the edges of accessible memory.

use std::ops::Range;

const PAGE: usize = 4096;
/// Accessible pages of a block's arena; an inaccessible one lies before and behind.
const PAGES: usize = 5;
/// How many blocks a call may have.
const BLOCKS: usize = 16;

/// What happens when the last byte that the table names is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// EFAULT.
    Exact,
    /// EFAULT, or less is done.
    Short,
    /// Perhaps nothing: the kernel need not use all of it.
    Bound,
}

/// A structure, and the structures that it points to.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    bytes: Vec<u8>,
    links: Vec<(usize, Block)>,
    expect: Expect,
}

impl Block {
    pub(crate) fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Block {
            bytes: bytes.into(),
            links: Vec::new(),
            expect: Expect::Exact,
        }
    }

    /// At that offset stands the address of the other block.
    pub(crate) fn link(mut self, offset: usize, to: Block) -> Self {
        self.links.push((offset, to));
        self
    }

    pub(crate) fn short(mut self) -> Self {
        self.expect = Expect::Short;
        self
    }

    pub(crate) fn bound(mut self) -> Self {
        self.expect = Expect::Bound;
        self
    }
}

/// An argument.
#[derive(Clone, Debug)]
pub(crate) enum Arg {
    Value(usize),
    Pointer(Block),
}

impl From<Block> for Arg {
    fn from(block: Block) -> Self {
        Arg::Pointer(block)
    }
}

/// Makes the arguments, and what they need.
pub(crate) type Make = Box<dyn Fn(&mut State) -> Vec<Arg>>;

/// A system call with its arguments, made anew for every attempt.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) nr: i64,
    pub(crate) make: Make,
    /// The call need not succeed, only not fail with EFAULT.
    pub(crate) may_fail: bool,
    /// Made in a child, whose exit status tells.
    pub(crate) in_child: bool,
}

/// What an attempt leaves to be put away.
#[derive(Default)]
pub(crate) struct State {
    files: Vec<i32>,
    children: Vec<i32>,
}

impl State {
    pub(crate) fn file(&mut self, fd: i32) -> i32 {
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        self.files.push(fd);
        fd
    }

    pub(crate) fn child(&mut self, pid: i32) -> i32 {
        assert!(pid > 0, "{}", std::io::Error::last_os_error());
        self.children.push(pid);
        pid
    }

    pub(crate) fn finish(self) {
        for fd in self.files {
            // SAFETY: opened for this attempt.
            unsafe { libc::close(fd) };
        }
        for pid in self.children {
            // SAFETY: a child of this attempt, which ends by itself; it may be gone.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        }
    }
}

/// Where a block lies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Placed {
    /// That many of its bytes are accessible, up to the end.
    EndsAfter(usize),
    /// All but its first byte are.
    BeginsBefore,
    /// None of it is.
    Nowhere,
}

/// The start of the accessible pages of an arena.
fn arena(index: usize) -> usize {
    static BASE: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    assert!(index < BLOCKS);
    let stride = (PAGES + 2) * PAGE;
    let base = *BASE.get_or_init(|| {
        // SAFETY: a new mapping.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BLOCKS * stride,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        for i in 0..BLOCKS {
            // SAFETY: inside the mapping just made.
            let opened = unsafe {
                libc::mprotect(
                    at.byte_add(i * stride + PAGE),
                    PAGES * PAGE,
                    libc::PROT_READ | libc::PROT_WRITE,
                )
            };
            assert_eq!(opened, 0);
        }
        at as usize
    });
    base + index * stride + PAGE
}

/// Whether all of it can be accessed.
fn accessible(range: &Range<usize>) -> bool {
    (0..BLOCKS).any(|i| arena(i) <= range.start && range.end <= arena(i) + PAGES * PAGE)
}

/// Copies memory of the arenas, as a fault-safe reader would.
pub(crate) fn read(at: usize, bytes: &mut [u8]) -> bool {
    if !accessible(&(at..at + bytes.len())) {
        return false;
    }
    // SAFETY: accessible, and nobody writes meanwhile.
    unsafe { std::ptr::copy_nonoverlapping(at as *const u8, bytes.as_mut_ptr(), bytes.len()) };
    true
}

/// Puts every block in its arena; arguments and the blocks' ranges.
pub(crate) fn lay_out(
    arguments: &[Arg],
    special: Option<(usize, Placed)>,
) -> ([usize; 6], Vec<Range<usize>>) {
    let mut ranges = Vec::new();
    let mut args = [0; 6];
    for (slot, argument) in args.iter_mut().zip(arguments) {
        *slot = match argument {
            Arg::Value(value) => *value,
            Arg::Pointer(block) => put(block, special, &mut ranges),
        };
    }
    (args, ranges)
}

fn put(block: &Block, special: Option<(usize, Placed)>, ranges: &mut Vec<Range<usize>>) -> usize {
    let index = ranges.len();
    let start = arena(index);
    let end = start + PAGES * PAGE;
    let at = match special {
        Some((which, Placed::EndsAfter(len))) if which == index => end - len,
        Some((which, Placed::BeginsBefore)) if which == index => start - 1,
        Some((which, Placed::Nowhere)) if which == index => end,
        // In the middle, so that there is room on both sides; aligned as compilers align.
        _ => start + PAGE + 64,
    };
    ranges.push(at..at + block.bytes.len().max(1));
    let mut bytes = block.bytes.clone();
    for (offset, to) in &block.links {
        let address = put(to, special, ranges);
        bytes[*offset..*offset + 8].copy_from_slice(&address.to_ne_bytes());
    }
    for (i, byte) in bytes.iter().enumerate() {
        if accessible(&(at + i..at + i + 1)) {
            // SAFETY: accessible memory of our own.
            unsafe { ((at + i) as *mut u8).write(*byte) };
        }
    }
    at
}

/// What is expected of each block, in the order in which they are laid out.
pub(crate) fn expectations(arguments: &[Arg]) -> Vec<Expect> {
    fn collect(block: &Block, out: &mut Vec<Expect>) {
        out.push(block.expect);
        block.links.iter().for_each(|(_, to)| collect(to, out));
    }
    let mut out = Vec::new();
    for argument in arguments {
        if let Arg::Pointer(block) = argument {
            collect(block, &mut out);
        }
    }
    out
}

/// Makes the call; its result, an error as its negated number.
pub(crate) fn make(case: &Case, args: &[usize; 6]) -> isize {
    // SAFETY: the cases name only calls that touch their own blocks and files, or fail.
    let call = || unsafe {
        let result = libc::syscall(
            case.nr, args[0], args[1], args[2], args[3], args[4], args[5],
        );
        if result == -1 {
            -(*libc::__errno_location() as isize)
        } else {
            result as isize
        }
    };
    if !case.in_child {
        return call();
    }
    // SAFETY: the child makes the call and ends.
    unsafe {
        match libc::fork() {
            0 => libc::_exit((-call()).clamp(0, 255) as i32),
            child => {
                let mut status = 0;
                assert_eq!(libc::waitpid(child, &mut status, 0), child);
                -(libc::WEXITSTATUS(status) as isize)
            }
        }
    }
}

/// Goes to a directory of its own, with a few files.
pub(crate) fn enter_scratch() {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("hook-table");
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(path.join("dir")).expect("writable");
    std::env::set_current_dir(&path).expect("a directory");
    std::fs::write("file", vec![7u8; 64 << 10]).expect("writable");
    let _ = std::os::unix::fs::symlink("file", "link");
    // select reads no more of its sets than the process has room for descriptors: make room for what the cases ask.
    // SAFETY: duplicates a descriptor.
    assert!(unsafe { libc::fcntl(2, libc::F_DUPFD_CLOEXEC, 250) } >= 250);
}
