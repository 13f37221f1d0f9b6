//! What the processes of one `userswap run` share: a file with a row for each, saying how much it has in memory.
//!
//! The limit is for all of them together: each may have what the others leave. `run` makes the file and takes
//! rows of processes that are gone out; a process that finds no free row goes by the whole limit.

use std::fs::File;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::fs::OFlags;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use userswap_sys::file_ref::FileRef;
use userswap_sys::{own, place};

/// Processes that can share a limit.
pub const ROWS: usize = 4096;

#[repr(C)]
struct Row {
    process: AtomicU32,
    /// Whether others of the tree have asked it to handle faults in threads: see [`Tree::ask`].
    asked: AtomicU32,
    /// Bytes in memory.
    resident: AtomicU64,
}

const NOT_ASKED: u32 = 0;
const ASKED: u32 = 1;
const ANSWERED: u32 = 2;

/// The table, mapped.
pub struct Tree {
    rows: &'static [Row],
}

impl Tree {
    /// Makes `file`, which is new, a table without processes.
    ///
    /// # Errors
    /// What the system said.
    pub fn create(file: &File) -> std::io::Result<Self> {
        file.set_len((ROWS * size_of::<Row>()) as u64)?;
        Self::map(file)
    }

    /// Opens the file; `None`: it is not there, or not such a file.
    #[must_use]
    pub fn open(file: &FileRef) -> Option<Self> {
        let file = File::from(file.open(OFlags::RDWR).ok()?);
        let whole = file.metadata().ok()?.len() == (ROWS * size_of::<Row>()) as u64;
        whole.then(|| Self::map(&file).ok()).flatten()
    }

    fn map(file: &File) -> std::io::Result<Self> {
        let len = ROWS * size_of::<Row>();
        // SAFETY: a fresh mapping, at addresses of the kernel's choice.
        let start = unsafe {
            mmap(
                place::hint(len),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        own::note(&(start as usize..start as usize + len));
        // SAFETY: as long as the file, aligned to pages, never unmapped, and atomics for which any bytes are values:
        // other processes may change them.
        let rows = unsafe { std::slice::from_raw_parts(start.cast::<Row>(), ROWS) };
        Ok(Self { rows })
    }

    /// Says how much this process has in memory, in bytes.
    pub fn tell(&self, resident: u64) {
        let Some(row) = self.own_row() else { return };
        // Relaxed, throughout: sums that are only compared with a limit.
        row.resident.store(resident, Ordering::Relaxed);
    }

    /// What of `limit` is left for this process, in bytes: at least a quarter, so that nobody starves.
    #[must_use]
    pub fn share(&self, limit: u64) -> u64 {
        let me = std::process::id();
        limit.saturating_sub(self.resident_but(me)).max(limit / 4)
    }

    /// Bytes that all processes have in memory.
    #[must_use]
    pub fn resident(&self) -> u64 {
        self.resident_but(0)
    }

    fn resident_but(&self, process: u32) -> u64 {
        let others = self.rows.iter().filter(|row| {
            let owner = row.process.load(Ordering::Relaxed);
            owner != 0 && owner != process
        });
        others.map(|row| row.resident.load(Ordering::Relaxed)).sum()
    }

    /// Takes out the rows of processes for which `is_gone`.
    pub fn sweep(&self, is_gone: impl Fn(u32) -> bool) {
        for row in self.rows {
            let process = row.process.load(Ordering::Relaxed);
            if process != 0 && is_gone(process) {
                row.resident.store(0, Ordering::Relaxed);
                row.asked.store(NOT_ASKED, Ordering::Relaxed);
                // Release: whoever takes the row finds it empty.
                row.process.store(0, Ordering::Release);
            }
        }
    }

    /// Asks `process` to handle faults in threads, since what it has swapped out is to be read from outside. `true`: it has
    /// not answered yet.
    pub(crate) fn ask(&self, process: u32) -> bool {
        let row = self.row_of(process);
        row.is_some_and(|row| {
            // Acquire: what was done before the answer. Relaxed, to ask: nothing is said with it.
            let asked =
                row.asked
                    .compare_exchange(NOT_ASKED, ASKED, Ordering::Relaxed, Ordering::Acquire);
            asked != Err(ANSWERED)
        })
    }

    /// Whether this process is asked.
    pub(crate) fn is_asked(&self) -> bool {
        let row = self.row_of(std::process::id());
        row.is_some_and(|row| row.asked.load(Ordering::Relaxed) == ASKED)
    }

    /// This process has done what it was asked for, as far as it can.
    pub(crate) fn answer(&self) {
        self.set_asked(ANSWERED);
    }

    /// This process has been executed: what it has answered was another program's word.
    pub(crate) fn begin(&self) {
        self.set_asked(NOT_ASKED);
    }

    fn set_asked(&self, asked: u32) {
        if let Some(row) = self.row_of(std::process::id()) {
            row.asked.store(asked, Ordering::Release);
        }
    }

    fn row_of(&self, process: u32) -> Option<&Row> {
        let is = |row: &&Row| row.process.load(Ordering::Relaxed) == process;
        self.rows.iter().find(is)
    }

    /// This process is gone.
    pub fn leave(&self) {
        let me = std::process::id();
        self.sweep(|process| process == me);
    }

    fn own_row(&self) -> Option<&Row> {
        let me = std::process::id();
        self.row_of(me).or_else(|| {
            self.rows.iter().find(|row| {
                row.process
                    .compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_leave_each_other_what_they_do_not_use() {
        let name = format!("userswap-tree-test-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path);
        let file = file.expect("a new file");
        let tree = Tree::create(&file).expect("a table");
        let meant = FileRef::new(&file, path.clone()).expect("its numbers");
        let again = Tree::open(&meant).expect("the same file");
        std::fs::remove_file(&path).expect("it is there");
        assert_eq!(tree.share(100 << 20), 100 << 20);
        tree.tell(30 << 20);
        assert_eq!(again.resident(), 30 << 20);
        assert_eq!(
            again.share(100 << 20),
            100 << 20,
            "its own use is not another's"
        );
        again.rows[1].process.store(1, Ordering::Relaxed);
        again.rows[1].resident.store(50 << 20, Ordering::Relaxed);
        assert_eq!(tree.share(100 << 20), 50 << 20);
        assert_eq!(tree.share(60 << 20), 15 << 20, "a quarter at least");
        tree.sweep(|process| process == 1);
        assert_eq!(tree.resident(), 30 << 20);
        assert!(!tree.ask(1), "none of the tree");
        let me = std::process::id();
        assert!(!tree.is_asked() && again.ask(me) && again.ask(me) && tree.is_asked());
        tree.answer();
        assert!(!again.ask(me) && !tree.is_asked());
        tree.begin();
        assert!(again.ask(me), "another program");
        tree.leave();
        assert_eq!(tree.resident(), 0);
        tree.tell(1);
        assert!(!tree.is_asked(), "a new one");
        tree.leave();
    }
}
