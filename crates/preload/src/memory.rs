//! The memory of the program's system calls, in inline mode: it stays while a call is made, and what is missing of it is
//! brought in before.
//!
//! Every call is noted from the first on, long before anything is swapped out: a call that waits in the kernel when the
//! engine starts has said by then what it uses.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use libc::{c_int, c_long};
use userswap_hook::{Access, Call, Knowledge, Span, memory_of, uses_memory};
use userswap_sys::{PAGE_SIZE, cpu};

use crate::stop::{Why, stop_inline};
use crate::threads::Thread;
use crate::{raw, sharing, stacks, state};

/// Names of files through which a process's memory is looked at from outside end so.
const MEMORY_FILE: &[u8] = b"/mem";

/// Calls that [`refuse`] looks at.
pub(crate) const REFUSED: [c_long; 7] = [
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_io_uring_setup,
    libc::SYS_io_setup,
    libc::SYS_userfaultfd,
    libc::SYS_prctl,
    libc::SYS_process_madvise,
];

/// Stops eviction inline for good where a call lets the kernel use memory in ways that cannot be followed, here or in another
/// process.
pub(crate) fn refuse(call: &Call) {
    let first = call.args[0];
    let why = match call.nr as c_long {
        libc::SYS_io_uring_setup | libc::SYS_io_setup => Why::Rings,
        libc::SYS_userfaultfd => Why::Faults,
        libc::SYS_prctl if first == PR_SET_SYSCALL_USER_DISPATCH && call.args[1] != 0 => {
            Why::Filter
        }
        // Where handler threads may go on it is answered as they need it.
        libc::SYS_process_madvise if !state::may_use_threads() => Why::OwnMemory,
        libc::SYS_process_vm_readv | libc::SYS_process_vm_writev => {
            if state::may_use_threads() && !is_own(first) {
                sharing::ask(first as u32);
            }
            return;
        }
        _ => return,
    };
    stop_inline(why);
}

const PR_SET_SYSCALL_USER_DISPATCH: usize = 59;

/// Whether what `clone` makes with these flags runs beside its maker, on the maker's thread-local memory: there the two would
/// take each other's calls for their own.
pub(crate) fn shares_thread_local(flags: usize) -> bool {
    let has = |flag: libc::c_int| flags & flag as usize != 0;
    has(libc::CLONE_VM) && !has(libc::CLONE_VFORK) && !has(libc::CLONE_SETTLS)
}

/// Whether the call makes a thread or a process.
pub(crate) fn makes(call: &Call) -> bool {
    [
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_fork,
        libc::SYS_vfork,
    ]
    .contains(&(call.nr as c_long))
}

/// Notes the call, holds what it uses, and has it in memory. Returns the call's number in its thread.
pub(crate) fn begin(thread: &'static Thread, call: &mut Call) -> Option<usize> {
    let number = thread.begin(call, makes(call))?;
    call.data = number + 1;
    if !uses_memory(call.nr) || !state::follows_calls() {
        return Some(number);
    }
    let hold = |range: &Range<usize>, write: bool| {
        thread.holder.hold(number, range);
        if let Some(process) = state::engine() {
            process.bring_in(range, write);
        }
    };
    let readable = thread.stack_above(call);
    let unreadable = Cell::new(false);
    let mut read = |at: usize, bytes: &mut [u8]| {
        let done = copy(at, bytes, &readable);
        unreadable.set(unreadable.get() || !done);
        done
    };
    let mut span = |span: Span| {
        let range = span.address..span.address.saturating_add(span.len).min(1 << 47);
        if range.start >= range.end {
            return;
        }
        // Pages that a pipe goes on holding may leave memory meanwhile: their frames are not used again. Handlers run on stacks
        // of ours.
        let does_not_matter = [libc::SYS_vmsplice, libc::SYS_sigaltstack];
        if span.kept && !does_not_matter.contains(&(call.nr as c_long)) {
            keep(&range);
        }
        hold(&range, span.access != Access::Read);
    };
    let known = memory_of(call, &mut read, &mut span);
    // What cannot be read the kernel cannot read either.
    if known == Knowledge::Unknown || known == Knowledge::AtLeast && !unreadable.get() {
        stop_inline(Why::UnknownCall);
    }
    match call.nr as c_long {
        libc::SYS_process_vm_readv | libc::SYS_process_vm_writev if is_own(call.args[0]) => {
            let write = call.nr as c_long == libc::SYS_process_vm_writev;
            for buffer in 0..call.args[4].min(MOST_BUFFERS) {
                let mut words = [0; 16];
                if !copy(
                    call.args[3].wrapping_add(buffer * 16),
                    &mut words,
                    &readable,
                ) {
                    break;
                }
                let [start, len] = [0, 8].map(|from| {
                    usize::from_ne_bytes(*words[from..].first_chunk().expect("inside"))
                });
                let end = start.saturating_add(len).min(1 << 47);
                if start < end {
                    hold(&(start..end), write);
                }
            }
        }
        _ => {}
    }
    Some(number)
}

const MOST_BUFFERS: usize = 1024;

/// The call is over.
pub(crate) fn end(thread: &Thread, call: &Call) {
    if let Some(number) = call.data.checked_sub(1) {
        thread.holder.end(number);
    }
}

/// The kernel goes on using `range`, whose pages are never to leave.
pub(crate) fn keep(range: &Range<usize>) {
    let pages = range.start & !(PAGE_SIZE - 1)..range.end.next_multiple_of(PAGE_SIZE);
    if !stacks::note(&pages) {
        stop_inline(Why::Stacks);
        return;
    }
    if let Some(process) = state::engine()
        && process.is_taken_on(&pages)
    {
        process.leave_alone(&pages);
    }
}

fn is_own(process: usize) -> bool {
    // SAFETY: asks only.
    let own = unsafe { raw::make(&Call::new(libc::SYS_getpid as usize, [0; 6])) };
    process == own as usize || process == cpu::thread() as usize
}

/// Whether the path at `address` is as `is` says. Longer ones than anybody asks for are not. What lies in `readable` is known to be
/// there.
pub(crate) fn is_path(
    address: usize,
    readable: &Range<usize>,
    is: impl FnOnce(&[u8]) -> bool,
) -> bool {
    // Long enough for every such path; it begins with a folder that may be named otherwise.
    let mut path = [0; 64];
    let mut len = 0;
    while len < path.len() {
        let at = address.wrapping_add(len);
        // A path may end where memory does.
        let part = (path.len() - len).min(PAGE_SIZE - at % PAGE_SIZE);
        if !copy(at, &mut path[len..len + part], readable) {
            return false;
        }
        if let Some(end) = path[len..len + part].iter().position(|&byte| byte == 0) {
            return is(&path[..len + end]);
        }
        len += part;
    }
    false
}

/// Whether a path may be that of this process's memory.
pub(crate) fn is_own_memory(path: &[u8]) -> bool {
    path.ends_with(MEMORY_FILE) && !is_of_another(path)
}

/// Whether the path leads through the folder of a process that is not this one.
fn is_of_another(path: &[u8]) -> bool {
    let Some(rest) = path.strip_prefix(b"/proc/") else {
        return false;
    };
    let name = rest.split(|&byte| byte == b'/').next().unwrap_or(rest);
    let number = std::str::from_utf8(name)
        .ok()
        .and_then(|name| name.parse::<usize>().ok());
    number.is_some_and(|number| !is_own(number) && !is_thread_of_ours(number))
}

/// Whether a thread of this process has that number.
fn is_thread_of_ours(number: usize) -> bool {
    let call = |nr: c_long, arguments| {
        // SAFETY: asks only: signal 0 is none.
        unsafe { raw::make(&Call::new(nr as usize, arguments)) }
    };
    let own = call(libc::SYS_getpid, [0; 6]) as usize;
    call(libc::SYS_tgkill, [own, number, 0, 0, 0, 0]) == 0
}

/// Constants of libc and of the program, which stay mapped and readable as long as the process lives: names of files often stand
/// there.
static CONSTANTS: [[AtomicUsize; 2]; 8] = [const { [const { AtomicUsize::new(0) }; 2] }; 8];

/// Notes them. More than there is room for are as other memory is.
pub(crate) fn note_constants() {
    unsafe extern "C" fn note(
        object: *mut libc::dl_phdr_info,
        _: libc::size_t,
        room: *mut libc::c_void,
    ) -> c_int {
        // SAFETY: what the dynamic linker lends for this call, and what `note_constants` lent to it.
        let (object, room) = unsafe { (&*object, &mut *room.cast::<Room>()) };
        // SAFETY: the headers of an object that is loaded.
        let headers =
            unsafe { std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)) };
        let loaded = |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD;
        let range = |header: &libc::Elf64_Phdr| {
            let start = (object.dlpi_addr + header.p_vaddr) as usize;
            start..start + header.p_filesz as usize
        };
        let in_libc = libc::getauxval as *const () as usize;
        let mut segments = headers.iter().filter(loaded);
        // The program comes first.
        let is_program = std::mem::replace(&mut room.is_first, false);
        if is_program || segments.any(|header| range(header).contains(&in_libc)) {
            let constant = |header: &&libc::Elf64_Phdr| {
                header.p_flags & libc::PF_W == 0 && header.p_flags & libc::PF_R != 0
            };
            for header in headers.iter().filter(loaded).filter(constant) {
                let Some([start, end]) = room.free.next() else {
                    return 1;
                };
                let range = range(header);
                // The end last: it is what makes it a range. There is only this thread yet.
                start.store(range.start, Ordering::Relaxed);
                end.store(range.end, Ordering::Relaxed);
            }
        }
        0
    }
    struct Room {
        is_first: bool,
        free: std::slice::Iter<'static, [AtomicUsize; 2]>,
    }
    let mut room = Room {
        is_first: true,
        free: CONSTANTS.iter(),
    };
    // SAFETY: calls `note` while it runs, with the room that it is lent.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut room).cast()) };
}

/// Whether all of `range` is constant.
fn is_constant(range: &Range<usize>) -> bool {
    CONSTANTS.iter().any(|[start, end]| {
        start.load(Ordering::Relaxed) <= range.start && range.end <= end.load(Ordering::Relaxed)
    })
}

/// Copies the program's memory at `at`; `false`: there is none. What lies in `readable` is known to be there.
pub(crate) fn copy(at: usize, bytes: &mut [u8], readable: &Range<usize>) -> bool {
    let Some(end) = at.checked_add(bytes.len()) else {
        return false;
    };
    if readable.start <= at && end <= readable.end || is_constant(&(at..end)) {
        // SAFETY: in the part of this thread's stack that its callers use, or among constants that stay.
        unsafe { std::ptr::copy_nonoverlapping(at as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        return true;
    }
    transfer(
        libc::SYS_process_vm_readv,
        at,
        bytes.as_mut_ptr(),
        bytes.len(),
    )
}

/// Copies words of the program's at `at`, if they can be read. What lies in `readable` is known to be there.
pub(crate) fn words<const N: usize>(at: usize, readable: &Range<usize>) -> Option<[u64; N]> {
    let mut bytes = [[0; 8]; N];
    copy(at, bytes.as_flattened_mut(), readable).then(|| bytes.map(u64::from_ne_bytes))
}

/// Writes words to the program's memory at `at`; `false`: it cannot be written.
pub(crate) fn write_words<const N: usize>(at: usize, mut words: [u64; N]) -> bool {
    let len = size_of_val(&words);
    transfer(
        libc::SYS_process_vm_writev,
        at,
        words.as_mut_ptr().cast(),
        len,
    )
}

/// Through the kernel, which says where there is no memory instead of ending the process.
fn transfer(nr: c_long, at: usize, own: *mut u8, len: usize) -> bool {
    let (ours, theirs) = ([own as usize, len], [at, len]);
    let arguments = [
        cpu::thread() as usize,
        ours.as_ptr() as usize,
        1,
        theirs.as_ptr() as usize,
        1,
        0,
    ];
    // SAFETY: `own` has `len` bytes, which the caller lends; the other side is the program's, which it reads or writes itself.
    let done = unsafe { raw::make(&Call::new(nr as usize, arguments)) };
    done == len as isize
}

/// Whether this host lets a process read its own memory so.
pub(crate) fn can_read() -> bool {
    let known = [0x5eed_u64];
    words::<1>(known.as_ptr() as usize, &(0..0)) == Some(known)
}

/// Robust locks that the thread holds and that the kernel marks when it is gone: they stay.
pub(crate) fn keep_robust_list() {
    /// More than that the kernel does not look at.
    const MOST: usize = 2048;
    let (mut head, mut len) = (0_usize, 0_usize);
    let arguments = [0, &raw mut head as usize, &raw mut len as usize, 0, 0, 0];
    // SAFETY: two words of ours to write to.
    let asked = unsafe { raw::make(&Call::new(libc::SYS_get_robust_list as usize, arguments)) };
    if asked != 0 || head == 0 || !state::follows_calls() {
        return;
    }
    // First of the list, distance from there to the lock's word, the one being locked.
    let Some([first, offset, pending]) = words::<3>(head, &(0..0)) else {
        return;
    };
    let lock = |entry: u64| (entry & !1).wrapping_add(offset) as usize;
    let mut entry = first;
    for _ in 0..MOST {
        if entry & !1 == head as u64 {
            break;
        }
        let at = (entry & !1) as usize;
        keep_in(at..at + 8);
        keep_in(lock(entry)..lock(entry) + 4);
        let Some([next]) = words::<1>(at, &(0..0)) else {
            break;
        };
        entry = next;
    }
    if pending & !1 != 0 {
        keep_in(lock(pending)..lock(pending) + 4);
    }
}

fn keep_in(range: Range<usize>) {
    if range.start < range.end && range.end < 1 << 47 {
        keep(&range);
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    #[test]
    fn memory_is_read_and_written_where_there_is_some() {
        assert!(can_read());
        let mut mine = [1_u64, 2, 3];
        let at = mine.as_mut_ptr() as usize;
        assert_eq!(words::<2>(at + 8, &(0..0)), Some([2, 3]));
        assert_eq!(words::<2>(at + 8, &(at..at + 24)), Some([2, 3]));
        assert!(write_words(at, [7, 8]));
        assert_eq!(words::<3>(at, &(0..0)), Some([7, 8, 3]));
        assert_eq!(words::<1>(8, &(0..0)), None);
        assert!(!write_words(8, [1]));
        let mut bytes = [0; 8];
        assert!(!copy(8, &mut bytes, &(0x1000..0x2000)));
    }

    #[test]
    fn constants_are_those_of_the_program_and_of_libc() {
        note_constants();
        let is = |at: *const u8| is_constant(&(at as usize..at as usize + 1));
        assert!(is(c"of the program".as_ptr().cast()));
        assert!(is(libc::getpid as *const () as *const u8));
        static VARIABLE: AtomicUsize = AtomicUsize::new(7);
        assert!(!is((&raw const VARIABLE).cast()));
        assert!(!is(Box::new(7_u8).as_ref()));
        let mut bytes = [0; 7];
        assert!(copy(c"program".as_ptr() as usize, &mut bytes, &(0..0)));
        assert_eq!(&bytes, b"program");
    }

    #[test]
    fn the_files_of_memory_are_known_by_their_names() {
        for (path, is) in [
            (c"/proc/self/mem", true),
            (c"/proc/thread-self/mem", true),
            (c"/proc/1/task/1/mem", false),
            (c"/proc/1/mem", false),
            (c"self/mem", true),
            (c"mem", false),
            (c"/proc/self/maps", false),
            (c"/proc/meminfo", false),
        ] {
            let found = is_path(path.as_ptr() as usize, &(0..0), is_own_memory);
            assert_eq!(found, is, "{path:?}");
        }
        for number in [std::process::id(), cpu::thread()] {
            let path = CString::new(format!("/proc/{number}/mem")).expect("no zeros");
            let found = is_path(path.as_ptr() as usize, &(0..0), is_own_memory);
            assert!(found, "{path:?}");
        }
    }

    #[test]
    fn only_threads_with_memory_of_their_own_are_followed() {
        let thread = libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SETTLS;
        assert!(!shares_thread_local(thread as usize));
        assert!(!shares_thread_local(
            (libc::CLONE_VM | libc::CLONE_VFORK) as usize
        ));
        assert!(!shares_thread_local(libc::SIGCHLD as usize));
        assert!(shares_thread_local(
            (libc::CLONE_VM | libc::CLONE_FS) as usize
        ));
    }
}
