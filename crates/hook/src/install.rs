//! Putting the hook in: every library that is there now, and those that come later.

use crate::bypass::Bypass;
use crate::call::{Call, Handlers};
use crate::coverage::{Coverage, Library};
use crate::file::CodeFile;
use crate::gate::{self, Wired};
use crate::image::{Image, Segment};
use crate::known::Plans;
use crate::look::{self, LazyKnown, Own};
use crate::maps::{self, Mapping};
use crate::patch;
use crate::plan::Plan;
use crate::room::Room;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use userswap_sys::PAGE_SIZE;
use userswap_sys::signals::Blocked;

/// Why the hook could not be installed. Nothing has been changed then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is in already.
    #[error("the system call hook is installed already")]
    Twice,
    /// Code cannot be rewritten under running threads.
    #[error(
        "the process has {0} threads already; the system call hook must be installed before the second starts"
    )]
    Threads(usize),
    /// The processor lacks `xsavec`.
    #[error(
        "this processor cannot save its vector registers (no xsavec), which the system call hook needs"
    )]
    Processor,
    /// The list of mappings cannot be read.
    #[error("cannot read /proc/self: {0}; the system call hook needs /proc")]
    Maps(rustix::io::Errno),
}

/// What was done so far.
#[derive(Default)]
struct Done {
    coverage: Coverage,
    /// Where stubs lie.
    stubs: Vec<Range<usize>>,
    /// Where processes share plans.
    plans: Option<&'static Plans>,
    /// The file that this code is in.
    own: Option<Own>,
    /// Where code that comes is looked at, once some has.
    room: Option<Room>,
}

/// The lock is held while code is rewritten, with signals blocked. A process copy that was made meanwhile by another thread
/// gets a new one: nobody there will ever give the old one back.
static DONE: AtomicPtr<Mutex<Done>> = AtomicPtr::new(std::ptr::null_mut());

fn new_done() -> *mut Mutex<Done> {
    Box::into_raw(Box::default())
}

fn done() -> MutexGuard<'static, Done> {
    // SAFETY: set by `install` before anybody comes here, to memory that is never freed.
    let lock = unsafe { &*DONE.load(Ordering::Acquire) };
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// In the copy of a process, before anything else runs there.
extern "C" fn in_copy() {
    // SAFETY: as in `done`.
    let lock = unsafe { &*DONE.load(Ordering::Acquire) };
    if matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
        DONE.store(new_done(), Ordering::Release);
    }
}

/// Rewrites the system calls of every library and of the program, so that `handlers` see them once [`set_active`] turns that on.
///
/// To be called while the process has one thread: from a library's initialiser. Code that is mapped later (`dlopen`) is
/// rewritten as it is mapped. The kernel's (vdso) is, too, where calls are wanted that it makes. Our own code, and code that
/// belongs to no file, stay as they are.
///
/// `plans` names a file that processes of one user share: what one of them finds in a library the others need
/// not look for. What is there is not taken for more than it is; without it, each looks through all.
///
/// # Errors
/// See [`Error`]; the process is unchanged then.
pub fn install(
    handlers: &'static dyn Handlers,
    plans: Option<&'static Plans>,
) -> Result<Coverage, Error> {
    match maps::threads().map_err(Error::Maps)? {
        0 | 1 => {}
        more => return Err(Error::Threads(more)),
    }
    if !gate::prepare() {
        return Err(Error::Processor);
    }
    let maps = maps::read().map_err(Error::Maps)?;
    if !gate::wire(Wired {
        handlers,
        code_came,
    }) {
        return Err(Error::Twice);
    }
    gate::want(handlers);
    DONE.store(new_done(), Ordering::Release);
    // SAFETY: a function that uses only a static. Without room for it, copies of this process may wait for ever when they
    // load libraries; nothing else depends on it.
    unsafe { libc::pthread_atfork(None, None, Some(in_copy)) };
    without_signals(|| {
        let mut done = done();
        done.plans = plans;
        let own_address = patch::own_address();
        let own = maps.iter().find(|m| m.range.contains(&own_address));
        done.own = own.map(Own::of);
        take_in_all(maps, |_| true, &mut done);
        Ok(done.coverage.clone())
    })
}

/// Whether calls are looked at from now on. Off, a call costs one load more than without the hook.
///
/// A call that has begun is not affected: turned on, calls that wait in the kernel were not seen; turned off, calls that were seen are
/// reported when they end (those that start a thread, `vfork` and `clone3` are not).
pub fn set_active(active: bool) {
    gate::set_active(active);
}

/// Asks the handlers again which calls they want, for calls that begin from now on. Of those that have begun nothing changes.
pub fn look_again() {
    gate::want_again();
}

/// What is covered by now, with what came after [`install`].
#[must_use]
pub fn coverage() -> Coverage {
    let _bypass = Bypass::new();
    if DONE.load(Ordering::Acquire).is_null() {
        return Coverage::default();
    }
    done().coverage.clone()
}

/// What a file holds, without changing anything: for looking at a program before it is started.
///
/// `rewritten` counts the sites that can be rewritten.
///
/// # Errors
/// What opening or mapping the file gave; `INVAL` where it is not an x86-64 ELF file.
pub fn inspect(path: &Path) -> Result<Inspection, rustix::io::Errno> {
    let file = CodeFile::open(path)?.map()?;
    let mut image = Image::of(&file).ok_or(rustix::io::Errno::INVAL)?;
    let mut library = Library {
        path: path.to_path_buf(),
        ..Library::default()
    };
    for segment in image.segments().to_vec().iter().filter(|s| s.executable) {
        let plan = look::plan_of(&mut image, segment);
        library.rewritten += plan.sites.len();
        note(&mut library, &plan);
    }
    Ok(Inspection {
        dynamic: image.is_dynamic(),
        library,
    })
}

/// Whether the dynamic linker loads the program at `path`; nothing can be loaded into a static one.
///
/// # Errors
/// As [`inspect`].
pub fn is_dynamic(path: &Path) -> Result<bool, rustix::io::Errno> {
    let file = CodeFile::open(path)?.map()?;
    let image = Image::parse(file.bytes()).ok_or(rustix::io::Errno::INVAL)?;
    Ok(image.is_dynamic())
}

/// What [`inspect`] found.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Whether the dynamic linker loads it; a static program loads no library of ours.
    pub dynamic: bool,
    /// Its sites.
    pub library: Library,
}

/// Runs `run` while no code is rewritten. With every signal blocked on this thread, and not from a handler of ours.
pub fn while_code_stays<R>(run: impl FnOnce() -> R) -> R {
    let _done = done();
    run()
}

/// Rewrites what a call has brought in, before the program gets to know its address.
fn code_came(call: &Call, result: isize) {
    let start = match call.nr as i64 {
        libc::SYS_mmap => result.cast_unsigned(),
        _ => call.args[0],
    };
    let range = start..start.saturating_add(call.args[1]);
    let _bypass = Bypass::new();
    without_signals(|| {
        let mut done = done();
        let mut room = done.room.take().or_else(Room::make);
        let mut look = || {
            if call.nr as i64 == libc::SYS_mmap {
                take_in_new(call, range.clone(), &mut done);
            } else if let Ok(maps) = maps::read() {
                take_in_all(maps, |m| overlap(&m.range, &range), &mut done);
            }
        };
        match &mut room {
            Some(room) => room.run(&mut look),
            None => look(),
        }
        done.room = room;
    });
}

/// Looks at code that a call has just mapped from a file. All mappings are looked at only where something is to be rewritten: libraries
/// come by the hundred, and few make system calls.
fn take_in_new(call: &Call, range: Range<usize>, done: &mut Done) {
    // Open until the call ends: who closes it meanwhile could as well have closed it before the call.
    let file = CodeFile::of_call(call.args[4] as i32);
    let end = range.end.next_multiple_of(PAGE_SIZE);
    let mapping = Mapping {
        range: range.start..end,
        executable: true,
        shared: call.args[3] as i32 & libc::MAP_TYPE != libc::MAP_PRIVATE,
        offset: call.args[5] as u64,
        inode: file.as_ref().map_or(u64::MAX, CodeFile::inode),
        path: PathBuf::new(),
    };
    let file = file.map_err(|_| "the file cannot be read");
    if let (Some(own), Ok(file)) = (&done.own, &file)
        && own.is(file)
    {
        return;
    }
    take_in(
        &mapping,
        || file,
        &LazyKnown::new(done.plans, done.own.as_ref()),
        &mut Vec::new(),
        done,
    );
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Looks at the mappings of code that are meant, and rewrites them.
fn take_in_all(mut maps: Vec<Mapping>, meant: impl Fn(&Mapping) -> bool, done: &mut Done) {
    let known = LazyKnown::new(done.plans, done.own.as_ref());
    let of_code = maps.iter().filter(|m| m.executable && meant(m));
    for mapping in of_code.cloned().collect::<Vec<_>>() {
        let file = || {
            let file = CodeFile::open(&mapping.path);
            let file = file.map_err(|_| "the file cannot be opened any more")?;
            let same = file.inode() == mapping.inode;
            same.then_some(file)
                .ok_or("the file was replaced since it was mapped")
        };
        take_in(&mapping, file, &known, &mut maps, done);
    }
}

/// Looks at one mapping, and rewrites it. `file`: opens what it is of.
fn take_in(
    mapping: &Mapping,
    file: impl FnOnce() -> Result<CodeFile, &'static str>,
    known: &LazyKnown,
    maps: &mut Vec<Mapping>,
    done: &mut Done,
) {
    // The kernel's own code makes calls where it cannot answer itself: those that ask for the time.
    let kernels = is_kernels(mapping) && gate::wanted(libc::SYS_clock_gettime as usize);
    if mapping.inode == 0 && !kernels {
        // Brackets name what the kernel provides.
        if !mapping.path.to_string_lossy().starts_with('[') {
            done.coverage.generated += mapping.range.len();
        }
        return;
    }
    if done.own.as_ref().is_some_and(|own| own.is_at(mapping)) {
        return;
    }
    let mut library = Library::default();
    let found = if kernels {
        look::look_at_kernels(mapping, known)
    } else {
        file().and_then(|file| look::look_at(&file, mapping, known))
    };
    match found {
        Ok((segment, mut plan)) => {
            if mapping.shared {
                plan.cannot_be_rewritten();
            }
            rewrite(mapping, &segment, plan, &mut library, maps, &mut done.stubs);
        }
        Err(why) => library.unreadable = Some(why),
    }
    if library.rewritten + library.native + library.uncovered.len() > 0
        || library.unreadable.is_some()
    {
        library.path = path_of(mapping, maps);
        done.coverage.libraries.push(library);
    }
}

/// The file that is mapped there.
fn path_of(mapping: &Mapping, maps: &mut Vec<Mapping>) -> PathBuf {
    if !mapping.path.as_os_str().is_empty() {
        return mapping.path.clone();
    }
    if maps.is_empty() {
        *maps = maps::read().unwrap_or_default();
    }
    let mut same = maps
        .iter()
        .filter(|m| m.range.contains(&mapping.range.start));
    same.next().map(|m| m.path.clone()).unwrap_or_default()
}

fn is_kernels(mapping: &Mapping) -> bool {
    mapping.path.as_os_str() == "[vdso]"
}

fn rewrite(
    mapping: &Mapping,
    segment: &Segment,
    mut plan: Plan,
    library: &mut Library,
    maps: &mut Vec<Mapping>,
    stubs: &mut Vec<Range<usize>>,
) {
    let first = (segment.address & !0xfff) + (mapping.offset - (segment.offset & !0xfff));
    let bias = (mapping.range.start as u64).wrapping_sub(first);
    note(library, &plan);
    let inside = |at: u64| mapping.range.contains(&(at.wrapping_add(bias) as usize));
    let mut sites = std::mem::take(&mut plan.sites);
    sites.retain(|site| {
        let mut places = plan.overwritten(site);
        places.all(|(at, bytes)| inside(at) && inside(at + bytes.len() as u64 - 1))
    });
    plan.sites = sites;
    if plan.sites.is_empty() {
        return;
    }
    // Without any that can be rewritten, what was found of the others still counts.
    let done_before = |site| patch::is_rewritten(site, bias, stubs);
    if plan.sites.iter().all(done_before) {
        *library = Library::default();
        return;
    }
    let patched = patch::rewrite(mapping, bias, &plan, maps);
    stubs.extend(patched.stubs);
    library.rewritten += patched.rewritten;
    library.uncovered.extend(patched.failed);
}

fn note(library: &mut Library, plan: &Plan) {
    library.native += plan.native.len();
    library.uncovered.extend(&plan.cramped);
    library.uncovered.extend(&plan.doubtful);
}

/// Runs with no signal on this thread that can wait. The others are crashes, and SIGSYS: a program that filters its system calls may
/// answer those of ours so, and is ended where it cannot.
fn without_signals<T>(run: impl FnOnce() -> T) -> T {
    let _blocked = Blocked::new();
    run()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The copy of a process does not wait for a thread that it does not have.
    #[test]
    fn copy_made_while_code_is_rewritten() {
        DONE.store(new_done(), Ordering::Release);
        in_copy();
        let held = done();
        let before = DONE.load(Ordering::Acquire);
        in_copy();
        assert_ne!(DONE.load(Ordering::Acquire), before);
        drop(done());
        drop(held);
    }
}
