//! Putting the hook in: every library that is there now, and those that come later.

use crate::bypass::Bypass;
use crate::call::{Call, Handlers};
use crate::coverage::{Coverage, Library};
use crate::gate::{self, Wired};
use crate::image::{Image, Segment};
use crate::maps::{self, Mapping};
use crate::patch;
use crate::plan::{self, Plan};
use rustix::fs::{Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

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
/// # Errors
/// See [`Error`]; the process is unchanged then.
pub fn install(handlers: &'static dyn Handlers) -> Result<Coverage, Error> {
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
    gate::want(|nr| handlers.wants(nr));
    DONE.store(new_done(), Ordering::Release);
    // SAFETY: a function that uses only a static. Without room for it, copies of this process may wait for ever when they
    // load libraries; nothing else depends on it.
    unsafe { libc::pthread_atfork(None, None, Some(in_copy)) };
    without_signals(|| {
        let mut done = done();
        let own = own_inode(&maps);
        for mapping in maps.iter().filter(|m| m.executable) {
            take_in(mapping, own, &mut done);
        }
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
    let file = MappedFile::open(path)?;
    let mut image = Image::parse(file.bytes()).ok_or(rustix::io::Errno::INVAL)?;
    let mut library = Library {
        path: path.to_path_buf(),
        ..Library::default()
    };
    for segment in image.segments().to_vec().iter().filter(|s| s.executable) {
        let plan = plan_of(&mut image, segment);
        library.rewritten += plan.sites.len();
        note(&mut library, plan);
    }
    Ok(Inspection {
        dynamic: image.is_dynamic(),
        library,
    })
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
        let Ok(maps) = maps::read() else { return };
        let mut done = done();
        let own = own_inode(&maps);
        for mapping in maps
            .iter()
            .filter(|m| m.executable && overlap(&m.range, &range))
        {
            take_in(mapping, own, &mut done);
        }
    });
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// The file that this code is in.
fn own_inode(maps: &[Mapping]) -> u64 {
    let own = patch::own_address();
    maps.iter()
        .find(|m| m.range.contains(&own))
        .map_or(0, |m| m.inode)
}

/// Looks at one mapping, and rewrites it.
fn take_in(mapping: &Mapping, own: u64, done: &mut Done) {
    // The kernel's own code makes calls where it cannot answer itself: those that ask for the time.
    let kernels = is_kernels(mapping) && gate::wanted(libc::SYS_clock_gettime as usize);
    if mapping.inode == 0 && !kernels {
        // Brackets name what the kernel provides.
        if !mapping.path.to_string_lossy().starts_with('[') {
            done.coverage.generated += mapping.range.len();
        }
        return;
    }
    if mapping.inode == own {
        return;
    }
    let mut library = Library {
        path: mapping.path.clone(),
        ..Library::default()
    };
    match rewrite(mapping, &mut library, &mut done.stubs) {
        Ok(()) => {}
        Err(why) => library.unreadable = Some(why),
    }
    if library.rewritten + library.native + library.uncovered.len() > 0
        || library.unreadable.is_some()
    {
        done.coverage.libraries.push(library);
    }
}

fn is_kernels(mapping: &Mapping) -> bool {
    mapping.path.as_os_str() == "[vdso]"
}

fn rewrite(
    mapping: &Mapping,
    library: &mut Library,
    stubs: &mut Vec<Range<usize>>,
) -> Result<(), &'static str> {
    let (file, memory);
    let bytes = if is_kernels(mapping) {
        // SAFETY: mapped and readable as long as the process lives. A copy: the code is about to change.
        memory = unsafe {
            std::slice::from_raw_parts(mapping.range.start as *const u8, mapping.range.len())
        }
        .to_vec();
        &memory[..]
    } else {
        file = MappedFile::open(&mapping.path).map_err(|_| "the file cannot be opened any more")?;
        if file.inode != mapping.inode {
            return Err("the file was replaced since it was mapped");
        }
        file.bytes()
    };
    let mut image = Image::parse(bytes).ok_or("not an x86-64 ELF file")?;
    let segment = image
        .segments()
        .iter()
        .copied()
        .find(|s| {
            s.executable && s.offset & !0xfff <= mapping.offset && mapping.offset < s.offset + s.len
        })
        .ok_or("code is mapped from a part of the file that is not code")?;
    let first = (segment.address & !0xfff) + (mapping.offset - (segment.offset & !0xfff));
    let bias = (mapping.range.start as u64).wrapping_sub(first);
    let Plan { sites, .. } = {
        let mut plan = plan_of(&mut image, &segment);
        let inside = |at: &u64| mapping.range.contains(&(at.wrapping_add(bias) as usize));
        plan.sites
            .retain(|s| inside(&s.region.start) && inside(&(s.region.end - 1)));
        let sites = std::mem::take(&mut plan.sites);
        note(library, plan);
        Plan {
            sites,
            ..Plan::default()
        }
    };
    let done_before = |site| patch::is_rewritten(site, bias, stubs);
    // Without any that can be rewritten, what was found of the others still counts.
    if !sites.is_empty() && sites.iter().all(done_before) {
        *library = Library::default();
        return Ok(());
    }
    let bytes = |address: u64, len: usize| image.bytes_at(address)?.get(..len).map(<[u8]>::to_vec);
    let patched = patch::rewrite(mapping, bias, &sites, &bytes);
    stubs.extend(patched.stubs);
    library.rewritten += patched.rewritten;
    library.uncovered.extend(patched.failed);
    Ok(())
}

/// What can be done with a segment: nothing where handlers would overflow the stacks of its code.
fn plan_of(image: &mut Image<'_>, segment: &Segment) -> Plan {
    let mut plan = plan::plan(image, segment);
    if image.has_small_stacks() {
        let sites = std::mem::take(&mut plan.sites);
        plan.cramped.extend(sites.iter().map(|site| site.address));
    }
    plan
}

fn note(library: &mut Library, plan: Plan) {
    library.native += plan.native.len();
    library.uncovered.extend(plan.cramped);
    library.uncovered.extend(plan.doubtful);
}

/// Runs with every signal blocked on this thread.
fn without_signals<T>(run: impl FnOnce() -> T) -> T {
    // SAFETY: plain calls on sets of our own.
    unsafe {
        let mut all = std::mem::zeroed();
        let mut old = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
        let out = run();
        libc::pthread_sigmask(libc::SIG_SETMASK, &old, std::ptr::null_mut());
        out
    }
}

/// A file's bytes, as a mapping.
struct MappedFile {
    at: *mut std::ffi::c_void,
    len: usize,
    inode: u64,
}

impl MappedFile {
    fn open(path: &Path) -> rustix::io::Result<Self> {
        let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        let len = usize::try_from(stat.st_size).map_err(|_| rustix::io::Errno::INVAL)?;
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::PRIVATE,
                &file,
                0,
            )?
        };
        Ok(MappedFile {
            at,
            len,
            inode: stat.st_ino,
        })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped readable for as long as self; a library in use is not written to or truncated (its own code
        // would break too).
        unsafe { std::slice::from_raw_parts(self.at.cast(), self.len) }
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // SAFETY: our own mapping, to which no reference is left.
        let _ = unsafe { rustix::mm::munmap(self.at, self.len) };
    }
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
