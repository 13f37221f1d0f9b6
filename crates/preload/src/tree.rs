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
    unused: AtomicU32,
    /// Bytes in memory.
    resident: AtomicU64,
}

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
                // Release: whoever takes the row finds it empty.
                row.process.store(0, Ordering::Release);
            }
        }
    }

    /// This process is gone.
    pub fn leave(&self) {
        let me = std::process::id();
        self.sweep(|process| process == me);
    }

    fn own_row(&self) -> Option<&Row> {
        let me = std::process::id();
        let mine = |row: &&Row| row.process.load(Ordering::Relaxed) == me;
        self.rows.iter().find(mine).or_else(|| {
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
        tree.leave();
        assert_eq!(tree.resident(), 0);
    }
}
