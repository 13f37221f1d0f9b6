//! What the processes of one `userswap run` share: a file with a row for each, saying how much it has in memory.
//!
//! The limit is for all of them together: see [`share`]. `run` makes the file and takes rows of processes that
//! are gone out; a process that finds no free row goes by what the others leave.

use std::fs::File;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::fs::OFlags;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use userswap_sys::file_ref::FileRef;
use userswap_sys::{own, place};

use crate::owner;
use crate::share::{self, Gives, Own, Part, Share};

/// Processes that can share a limit.
pub const ROWS: usize = 4094;

/// What the table is like: a library of another version makes nothing of it.
const SHAPE: u32 = 3;

#[repr(C)]
struct Table {
    /// No row from this one on was ever used.
    used: AtomicU32,
    /// How often a process has begun, been executed, or gone.
    changes: AtomicU32,
    /// The process that is about to end itself, since the limit cannot be held; 0: none.
    ends: AtomicU32,
    /// [`SHAPE`].
    shape: AtomicU32,
    /// The process that asks about files: see [`Tree::turn_to_ask`]; 0: none.
    asks: AtomicU32,
    unused: [u32; 3],
    rows: [Row; ROWS],
}

#[repr(C)]
struct Row {
    process: AtomicU32,
    /// Whether others of the tree have asked it to handle faults in threads: see [`Tree::ask`].
    asked: AtomicU32,
    /// Bytes in memory, and [`NO_MORE`] or [`NOTHING`].
    resident: AtomicU64,
}

/// It cannot give up what it has more than its share.
const NO_MORE: u64 = 1 << 62;
/// It can give up nothing.
const NOTHING: u64 = 1 << 63;

impl Row {
    fn part(&self) -> Part {
        // Relaxed, throughout: sums that are only compared with a limit.
        let word = self.resident.load(Ordering::Relaxed);
        let gives = match word & (NO_MORE | NOTHING) {
            0 => Gives::Up,
            NO_MORE => Gives::NoMore,
            _ => Gives::Nothing,
        };
        let bytes = word & !(NO_MORE | NOTHING);
        Part { bytes, gives }
    }
}

/// A row's word with so many bytes more.
fn more(word: u64, bytes: i64) -> u64 {
    let flags = word & (NO_MORE | NOTHING);
    (word - flags).saturating_add_signed(bytes).min(NO_MORE - 1) | flags
}

const NOT_ASKED: u32 = 0;
const ASKED: u32 = 1;
const ANSWERED: u32 = 2;

/// The table, mapped.
pub struct Tree {
    table: &'static Table,
}

impl Tree {
    /// Makes `file`, which is new, a table without processes.
    ///
    /// # Errors
    /// What the system said.
    pub fn create(file: &File) -> std::io::Result<Self> {
        file.set_len(size_of::<Table>() as u64)?;
        let tree = Self::map(file)?;
        tree.table.shape.store(SHAPE, Ordering::Relaxed);
        Ok(tree)
    }

    /// Opens the file; `None`: it is not there, or not such a file.
    #[must_use]
    pub fn open(file: &FileRef) -> Option<Self> {
        let file = File::from(file.open(OFlags::RDWR).ok()?);
        let whole = file.metadata().ok()?.len() == size_of::<Table>() as u64;
        let tree = whole.then(|| Self::map(&file).ok()).flatten()?;
        (tree.table.shape.load(Ordering::Relaxed) == SHAPE).then_some(tree)
    }

    fn map(file: &File) -> std::io::Result<Self> {
        let len = size_of::<Table>();
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
        let table = unsafe { &*start.cast::<Table>() };
        Ok(Self { table })
    }

    /// Says what this process has in memory.
    pub fn tell(&self, part: Part) {
        let Some(row) = self.own_row() else { return };
        let gives = match part.gives {
            Gives::Up => 0,
            Gives::NoMore => NO_MORE,
            Gives::Nothing => NOTHING,
        };
        row.resident.store(part.bytes | gives, Ordering::Relaxed);
    }

    /// Counts `bytes` more as this process's, until it next [tells](Tree::tell); not, unless `always`, where the sum would be more
    /// than `limit` then (`false`).
    pub(crate) fn count(&self, limit: u64, bytes: i64, always: bool) -> bool {
        if !always && self.resident().saturating_add_signed(bytes) > limit {
            return false;
        }
        if let Some(row) = self.row_of(owner::process()) {
            // It never fails.
            let _ = (row.resident).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                Some(more(word, bytes))
            });
        }
        true
    }

    /// Says that this process gives up nothing from now on.
    pub(crate) fn give_nothing(&self) {
        if let Some(row) = self.row_of(owner::process()) {
            row.resident.fetch_or(NOTHING, Ordering::Relaxed);
        }
    }

    /// What of `limit` this process may have, by what it has told, where its share was `last` bytes before.
    #[must_use]
    pub fn share(&self, limit: u64, last: u64, rests: bool) -> Share {
        let own = self.row_of(owner::process()).map(Row::part);
        let own = own.unwrap_or_default();
        let is_over = own.gives != Gives::Up;
        let own = Own {
            bytes: own.bytes,
            last,
            is_over,
            rests: rests && !is_over,
        };
        share::share(limit, own, self.others())
    }

    /// Whether `limit` can be held where this process cannot do with less than `own` bytes.
    #[must_use]
    pub fn can_be_held(&self, limit: u64, own: u64) -> bool {
        share::can_be_held(limit, own, self.others())
    }

    /// Whether this process, which cannot do with less than `own` bytes, is to end since `limit` cannot be held. Then it is gone
    /// for the others, who may do with what it had: not all of them shall end.
    pub(crate) fn ends(&self, limit: u64, own: u64) -> bool {
        let me = owner::process();
        let ends = &self.table.ends;
        // Acquire, release: who ends after another sees that one gone.
        if ends
            .compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            return false;
        }
        let is_due = !self.can_be_held(limit, own);
        if is_due {
            self.leave();
        }
        ends.store(0, Ordering::Release);
        is_due
    }

    /// Whether it is this process's turn to ask a file system something, until [`Tree::has_asked`]. One that does not answer keeps who
    /// asks it, and of several who ask about the same file all but the first cannot even be killed.
    pub(crate) fn turn_to_ask(&self) -> bool {
        let me = owner::process();
        // Relaxed: nothing else is said with it.
        let turn = (self.table.asks).compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed);
        turn.is_ok()
    }

    /// It has been answered.
    pub(crate) fn has_asked(&self) {
        self.table.asks.store(0, Ordering::Relaxed);
    }

    /// Whether there is another process.
    pub(crate) fn has_others(&self) -> bool {
        self.others().next().is_some()
    }

    /// Bytes that all processes have in memory.
    #[must_use]
    pub fn resident(&self) -> u64 {
        share::sum(self.parts(0).map(|part| part.bytes))
    }

    fn others(&self) -> impl Iterator<Item = Part> + Clone {
        self.parts(owner::process())
    }

    /// What all say but `process`.
    fn parts(&self, process: u32) -> impl Iterator<Item = Part> + Clone {
        let others = self.rows().iter().filter(move |row| {
            let owner = row.process.load(Ordering::Relaxed);
            owner != 0 && owner != process
        });
        others.map(Row::part)
    }

    /// The rows that may be in use.
    fn rows(&self) -> &'static [Row] {
        let used = self.table.used.load(Ordering::Relaxed) as usize;
        &self.table.rows[..used.min(ROWS)]
    }

    /// Changes when a process begins, is executed, goes, or has copied what it shared: what others shared with it may be theirs
    /// alone now.
    pub(crate) fn changes(&self) -> u32 {
        // Relaxed, here and below: only its being different counts.
        self.table.changes.load(Ordering::Relaxed)
    }

    /// What others share with this process may be theirs alone now. Returns [`Tree::changes`].
    pub(crate) fn note_change(&self) -> u32 {
        let before = self.table.changes.fetch_add(1, Ordering::Relaxed);
        before.wrapping_add(1)
    }

    /// Takes out the rows of processes for which `is_gone`.
    pub fn sweep(&self, is_gone: impl Fn(u32) -> bool) {
        for row in self.rows() {
            let process = row.process.load(Ordering::Relaxed);
            if process != 0 && is_gone(process) {
                row.resident.store(0, Ordering::Relaxed);
                row.asked.store(NOT_ASKED, Ordering::Relaxed);
                // Release: whoever takes the row finds it empty.
                row.process.store(0, Ordering::Release);
                self.note_change();
            }
        }
        // Who was killed in the middle of it.
        for claim in [&self.table.ends, &self.table.asks] {
            let by = claim.load(Ordering::Relaxed);
            if by != 0 && by != owner::process() && is_gone(by) {
                let _ = claim.compare_exchange(by, 0, Ordering::Relaxed, Ordering::Relaxed);
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
        let row = self.row_of(owner::process());
        row.is_some_and(|row| row.asked.load(Ordering::Relaxed) == ASKED)
    }

    /// This process has done what it was asked for, as far as it can.
    pub(crate) fn answer(&self) {
        self.set_asked(ANSWERED);
    }

    /// This process has been executed: what it has answered was another program's word.
    pub(crate) fn begin(&self) {
        self.note_change();
        let me = owner::process();
        for claim in [&self.table.ends, &self.table.asks] {
            let _ = claim.compare_exchange(me, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        self.set_asked(NOT_ASKED);
        if let Some(row) = self.row_of(owner::process()) {
            let gives = !(NO_MORE | NOTHING);
            row.resident.fetch_and(gives, Ordering::Relaxed);
        }
    }

    fn set_asked(&self, asked: u32) {
        if let Some(row) = self.row_of(owner::process()) {
            row.asked.store(asked, Ordering::Release);
        }
    }

    fn row_of(&self, process: u32) -> Option<&Row> {
        let is = |row: &&Row| row.process.load(Ordering::Relaxed) == process;
        self.rows().iter().find(is)
    }

    /// This process is gone.
    pub fn leave(&self) {
        let me = owner::process();
        self.sweep(|process| process == me);
    }

    fn own_row(&self) -> Option<&Row> {
        let me = owner::process();
        self.row_of(me).or_else(|| {
            let mut rows = self.table.rows.iter().zip(1..);
            let found = rows.find(|(row, number)| {
                // First: a row that is in use is looked at.
                self.table.used.fetch_max(*number, Ordering::Relaxed);
                row.process
                    .compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            });
            found.map(|(row, _)| row)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_keeps_what_a_row_says_beside() {
        assert_eq!(more(5, 7), 12);
        assert_eq!(more(5 | NO_MORE, -3), 2 | NO_MORE);
        assert_eq!(more(5 | NOTHING, -9), NOTHING, "never less than none");
        assert_eq!(more(NO_MORE - 2, 5), NO_MORE - 1, "never a flag");
    }

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
        let limit = 100 << 20;
        let tell = |mib: u64, gives| {
            let bytes = mib << 20;
            tree.tell(Part { bytes, gives });
        };
        let shares = |of: &Tree| of.share(limit, 0, false).bytes >> 20;
        assert_eq!(shares(&tree), 100);
        tell(30, Gives::Up);
        assert_eq!(again.resident(), 30 << 20);
        assert_eq!(shares(&again), 100, "its own use is not another's");
        assert!(!again.has_others());
        // Far behind: rows that are not known to be in use are not looked at.
        let row = &again.table.rows[7];
        row.process.store(1, Ordering::Relaxed);
        row.resident.store(50 << 20, Ordering::Relaxed);
        assert!(!tree.has_others());
        again.table.used.store(8, Ordering::Relaxed);
        assert!(tree.has_others());
        assert_eq!(shares(&tree), 40, "half of the 20 that are left");
        row.resident.store(90 << 20, Ordering::Relaxed);
        tell(50, Gives::Up);
        assert_eq!(shares(&tree), 50, "it gives up 40");
        tell(50, Gives::NoMore);
        assert_eq!((shares(&tree), tree.resident() >> 20), (50, 140));
        row.resident.store(90 << 20 | NOTHING, Ordering::Relaxed);
        assert_eq!((shares(&tree), tree.resident() >> 20), (25, 140));
        assert!(tree.can_be_held(limit, 25 << 20) && !tree.can_be_held(limit, 26 << 20));
        row.resident.store(90 << 20 | NO_MORE, Ordering::Relaxed);
        assert!(tree.can_be_held(limit, 10 << 20) && !tree.can_be_held(limit, 26 << 20));
        tell(30, Gives::Up);
        tree.give_nothing();
        let gives = || again.row_of(std::process::id()).map(|row| row.part().gives);
        assert_eq!(gives(), Some(Gives::Nothing));
        let changes = tree.changes();
        tree.begin();
        assert_ne!(again.changes(), changes);
        assert_eq!(gives(), Some(Gives::Up), "another program");
        // Whatever stands there.
        again.table.used.store(u32::MAX, Ordering::Relaxed);
        assert_eq!(tree.resident(), 120 << 20);
        tree.sweep(|process| process == 1);
        assert_eq!(tree.resident(), 30 << 20);
        assert!(!tree.ask(1), "none of the tree");
        let me = std::process::id();
        assert!(!tree.is_asked() && again.ask(me) && again.ask(me) && tree.is_asked());
        tree.answer();
        assert!(!again.ask(me) && !tree.is_asked());
        tree.begin();
        assert!(again.ask(me), "another program");
        tell(101, Gives::NoMore);
        assert!(!tree.ends(limit, 100 << 20), "it can be held");
        again.table.ends.store(1, Ordering::Relaxed);
        assert!(!tree.ends(limit, 101 << 20), "another ends");
        again.table.ends.store(0, Ordering::Relaxed);
        assert!(tree.ends(limit, 101 << 20));
        assert_eq!(tree.resident(), 0, "gone");
        assert!(tree.turn_to_ask() && !again.turn_to_ask(), "one at a time");
        tree.has_asked();
        again.table.asks.store(1, Ordering::Relaxed);
        tree.sweep(|_| false);
        assert!(!tree.turn_to_ask(), "it is there");
        tree.sweep(|process| process == 1);
        assert!(tree.turn_to_ask(), "it is gone");
        again.table.shape.store(SHAPE - 1, Ordering::Relaxed);
        assert!(Tree::open(&meant).is_none(), "another version's");
        tell(1, Gives::Up);
        assert!(!tree.is_asked(), "a new one");
        std::fs::remove_file(&path).expect("it is there");
        tree.leave();
    }
}
