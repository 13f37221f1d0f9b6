//! A library for `LD_PRELOAD` that counts the system calls of a program, by number, in a file that all its processes share.
//!
//! `HOOK_COUNTS` names the file (512 counters of 8 bytes); without it nothing is counted. When counting begins, the call
//! `prctl(0x75737761, first, behind)` says so to whoever traces, with the range of this library's addresses.
//! `HOOK_MODE`: `count` (default), `slow` (the same, and takes its time before each `read`:
//! counters 500 and 501 tell how often that began and ended), `clobber` (the same, and destroys every register it may), `idle` (installed, not
//! active), `unwanted` (active, nobody wants a number), `noted` (calls are only noted, once a thread has made one), `off`.
//! `HOOK_PLANS` names a file through which processes share what they find in libraries.
//! `HOOK_REPORT=1` prints what was found to standard error, at the start and at the end.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use userswap_hook::{Call, Decision, Handlers, Note, Plans};
use userswap_sys::file_ref::FileRef;

const NUMBERS: usize = 512;
/// Numbers that no call has.
const STAYED: usize = 500;
/// "uswa"
const MARK: usize = 0x7573_7761;

struct Counting {
    counts: &'static [AtomicU64],
    all: bool,
    clobbers: bool,
    slow: bool,
    notes: bool,
}

/// What each thread notes: made before, as handlers cannot allocate.
static NOTES: [Note; 1024] = [const { Note::new() }; 1024];
static NOTES_USED: AtomicUsize = AtomicUsize::new(0);

impl Handlers for Counting {
    fn wants(&self, _nr: usize) -> bool {
        self.all
    }

    fn only_noted(&self, _nr: usize) -> bool {
        self.notes
    }

    fn before(&self, call: &mut Call) -> Decision {
        self.note_from_now_on(call.stack);
        if let Some(count) = self.counts.get(call.nr) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.clobber();
        if self.slow && call.nr == libc::SYS_read as usize {
            self.stay();
        }
        Decision::Run
    }

    fn after(&self, call: &Call, result: isize) {
        std::hint::black_box((call, result));
        self.clobber();
    }
}

impl Counting {
    /// The first call of a thread: the next ones from near here are noted.
    fn note_from_now_on(&self, stack: usize) {
        let word = userswap_hook::thread_word();
        // SAFETY: the word is this thread's own.
        if self.notes && unsafe { word.replace(1) } == 0 {
            let at = NOTES_USED.fetch_add(1, Ordering::Relaxed);
            if let Some(note) = NOTES.get(at) {
                note.begin(&(stack - (64 << 10)..stack + (64 << 10)));
            }
        }
    }

    /// Takes a while; who does not come to the end is missed in the second counter.
    fn stay(&self) {
        self.counts[STAYED].fetch_add(1, Ordering::Relaxed);
        for _ in 0..50_000 {
            std::hint::spin_loop();
        }
        self.counts[STAYED + 1].fetch_add(1, Ordering::Relaxed);
    }

    fn clobber(&self) {
        if self.clobbers {
            // SAFETY: the processor has AVX (looked up at the start); all registers are declared as changed.
            unsafe {
                std::arch::asm!(
                    "vzeroall",
                    "fldz",
                    "fstp st(0)",
                    "mov edi, 1", "mov esi, 1", "mov edx, 1", "mov r8d, 1", "mov r9d, 1", "mov r10d, 1",
                    out("rdi") _, out("rsi") _, out("rdx") _, out("r8") _, out("r9") _, out("r10") _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                    out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                    out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                    out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                    out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                );
            }
        }
    }
}

/// The file's counters, or private ones.
fn counters() -> &'static [AtomicU64] {
    let len = NUMBERS * 8;
    if let Some(path) = std::env::var_os("HOOK_COUNTS") {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap_or_else(|e| panic!("HOOK_COUNTS={}: {e}", path.display()));
        // SAFETY: a new shared mapping of as many bytes as the file has; never unmapped. Atomics may be shared
        // between processes.
        unsafe {
            let at = rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::SHARED,
                &file,
                0,
            )
            .expect("counters can be mapped");
            std::slice::from_raw_parts(at.cast(), NUMBERS)
        }
    } else {
        (0..NUMBERS)
            .map(|_| AtomicU64::new(0))
            .collect::<Vec<_>>()
            .leak()
    }
}

extern "C" fn report() {
    let found = userswap_hook::coverage();
    eprintln!(
        "counting: at the end {} libraries, {} rewritten, {} uncovered",
        found.libraries.len(),
        found.rewritten(),
        found.uncovered().count()
    );
}

extern "C" fn start() {
    let mode = std::env::var("HOOK_MODE").unwrap_or_default();
    if mode == "off" {
        return;
    }
    let handlers = Box::leak(Box::new(Counting {
        counts: counters(),
        all: mode != "unwanted",
        slow: mode == "slow",
        notes: mode == "noted",
        clobbers: mode == "clobber" && std::arch::is_x86_feature_detected!("avx"),
    }));
    let plans = std::env::var_os("HOOK_PLANS").map(std::path::PathBuf::from);
    let plans = plans.and_then(|path| {
        let file = std::fs::File::open(&path).ok()?;
        let file = FileRef::new(file, path).ok()?;
        Some(&*Box::leak(Box::new(Plans { file, filters: 0 })))
    });
    let began = std::time::Instant::now();
    let found = match userswap_hook::install(handlers, plans) {
        Ok(found) => found,
        Err(error) => {
            eprintln!("counting: {error}");
            return;
        }
    };
    if std::env::var_os("HOOK_REPORT").is_some() {
        eprintln!("counting: installed in {:?}", began.elapsed());
        for library in &found.libraries {
            eprintln!(
                "counting: {}: {} rewritten, {} native, {} uncovered {:x?} {}",
                library.path.display(),
                library.rewritten,
                library.native,
                library.uncovered.len(),
                library.uncovered,
                library.unreadable.unwrap_or(""),
            );
        }
    }
    if std::env::var_os("HOOK_REPORT").is_some() {
        // SAFETY: a function of ours, which stays loaded.
        unsafe { libc::atexit(report) };
    }
    let own = own_range();
    if mode != "idle" {
        userswap_hook::set_active(true);
    }
    if mode == "noted" {
        assert!(userswap_hook::note_only(), "membarrier");
    }
    mark(own);
}

/// Tells a tracer, by a call that does nothing and is not counted.
fn mark((first, behind): (usize, usize)) {
    // SAFETY: an unknown prctl is refused.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") libc::SYS_prctl => _,
            in("rdi") MARK,
            in("rsi") first,
            in("rdx") behind,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
}

/// The addresses that this library takes, from the first to the last line with its name.
fn own_range() -> (usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("readable");
    let here = start as extern "C" fn() as usize;
    let parsed: Vec<(usize, usize, &str)> = maps
        .lines()
        .filter_map(|line| {
            let (start, rest) = line.split_once('-')?;
            let end = rest.split(' ').next()?;
            Some((
                usize::from_str_radix(start, 16).ok()?,
                usize::from_str_radix(end, 16).ok()?,
                line.split_whitespace().nth(5).unwrap_or(""),
            ))
        })
        .collect();
    let own = parsed
        .iter()
        .find(|m| (m.0..m.1).contains(&here))
        .expect("listed")
        .2;
    let first = parsed.iter().find(|m| m.2 == own).expect("listed").0;
    let last = parsed.iter().rposition(|m| m.2 == own).expect("listed");
    // Zeroed data and the tails in it follow without a name.
    let mut behind = parsed[last].1;
    for next in &parsed[last + 1..] {
        if next.0 != behind || !next.2.is_empty() {
            break;
        }
        behind = next.1;
    }
    (first, behind)
}

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;
