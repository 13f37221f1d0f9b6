//! This process's part of the limit that its tree shares: what it tells the others, and what they leave it.

use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use userswap::{EngineBuilder, Process};
use userswap_hook::Bypass;
use userswap_sys::pagemap;
use userswap_sys::signals::Blocked;

use crate::config::Config;
use crate::counted::{Counted, Shared};
use crate::rest::Rest;
use crate::share::{Gives, Part};
use crate::tree::Tree;
use crate::{exit, kept};

/// What the processes of a tree share.
static TREE: OnceLock<Tree> = OnceLock::new();

/// Opens it, when the program starts.
pub(crate) fn open_tree(config: &Config) {
    if let Some(tree) = config.tree.as_ref().and_then(Tree::open) {
        tree.begin();
        let _ = TREE.set(tree);
    }
}

/// Memory may be shared with another process of the tree.
static FORKED: AtomicBool = AtomicBool::new(false);

/// Bytes in memory that count as other processes' of the tree; [`NOT_KNOWN`] after a fork, until somebody looks.
static OF_OTHERS: AtomicU64 = AtomicU64::new(0);

const NOT_KNOWN: u64 = u64::MAX;

/// Whether the limit that the tree shares can be held with `used` bytes in use here, as far as is known.
fn can_be_held(used: u64) -> bool {
    own_part(used).is_none_or(|(tree, limit, own)| tree.can_be_held(limit, own))
}

/// Whether this process is the one to end, since that limit cannot be held.
fn ends(used: u64) -> bool {
    // Before it is out of the sum, which it must not come back to.
    ENDS.store(true, Ordering::SeqCst);
    let ends = own_part(used).is_some_and(|(tree, limit, own)| tree.ends(limit, own));
    if !ends {
        ENDS.store(false, Ordering::SeqCst);
        // Another ends, perhaps: what it had is there soon.
        std::thread::sleep(Duration::from_millis(1));
    }
    ends
}

/// Counts `bytes` more as this process's, until it next looks; not, unless `always`, where the tree would have more than the limit.
fn count(bytes: i64, always: bool) -> bool {
    let (Some(tree), Some(config)) = (TREE.get(), exit::config()) else {
        return true;
    };
    tree.count(config.limit, bytes, always)
}

/// Which of 64 pages from `address` on no other process has, where that can be seen.
fn own_pages(address: usize) -> Option<u64> {
    let looked = kept::PAGES.with(|pagemap| pagemap::own_pages(pagemap.as_fd(), address));
    looked?.ok()
}

/// This process is about to end.
static ENDS: AtomicBool = AtomicBool::new(false);

/// The tree, its limit, and what counts as this process's own of `used` bytes; `None`: that is not known.
fn own_part(used: u64) -> Option<(&'static Tree, u64, u64)> {
    let of_others = OF_OTHERS.load(Ordering::Relaxed);
    let own = (of_others != NOT_KNOWN).then(|| used.saturating_sub(of_others))?;
    Some((TREE.get()?, exit::config()?.limit, own))
}

/// This process was made by fork, or has forked.
pub(crate) fn shares_memory() {
    FORKED.store(true, Ordering::Relaxed);
    OF_OTHERS.store(NOT_KNOWN, Ordering::Relaxed);
}

/// Whether it was, or has.
pub(crate) fn is_shared() -> bool {
    FORKED.load(Ordering::Relaxed)
}

/// Bytes that this process may have in memory as `/proc` shows it, what counts as others' included.
pub(crate) struct Limits {
    pub(crate) now: u64,
    /// If others grow as it does: see [`Share::at_first`](crate::share::Share::at_first).
    pub(crate) at_first: u64,
}

/// What is remembered from look to look.
#[derive(Default)]
pub(crate) struct Sharing {
    counted: Counted,
    rest: Rest,
    last: u64,
}

impl Sharing {
    /// Tells the others that this process has `resident` bytes in memory, of which `of_files` belong to files, and whether it gives
    /// them up; returns what it may have of `limit`.
    pub(crate) fn look(
        &mut self,
        limit: u64,
        resident: u64,
        of_files: u64,
        gives: Gives,
        engine: Option<&Process>,
    ) -> Limits {
        let Some(tree) = TREE.get() else {
            return Limits {
                now: limit,
                at_first: limit,
            };
        };
        let is_shared = Shared {
            anonymous: FORKED.load(Ordering::Relaxed),
            files: tree.has_others(),
            changes: tree.changes(),
        };
        let bytes = self
            .counted
            .bytes(resident, of_files, is_shared, || tree.note_change());
        if !ENDS.load(Ordering::Relaxed) {
            tree.tell(Part { bytes, gives });
        }
        let rests = self.rest.look(engine.map_or(0, Process::pages_in));
        let share = tree.share(limit, self.last, rests);
        self.last = share.bytes;
        // What others count need not be counted here.
        let of_others = resident - bytes;
        OF_OTHERS.store(of_others, Ordering::Relaxed);
        let [now, at_first] =
            [share.bytes, share.at_first].map(|bytes| (bytes + of_others).min(limit));
        Limits { now, at_first }
    }
}

/// As [`Limits::at_first`], by what this process has last told.
pub(crate) fn at_first(limit: u64) -> u64 {
    let share = TREE.get().map(|tree| tree.share(limit, 0, false).at_first);
    let of_others = OF_OTHERS.load(Ordering::Relaxed);
    share.map_or(limit, |share| share.saturating_add(of_others).min(limit))
}

/// An engine for this process, whose limit is a share of `limit`.
pub(crate) fn with_limit(builder: EngineBuilder, limit: u64) -> EngineBuilder {
    match TREE.get() {
        Some(_) => builder.shares_limit(limit, can_be_held, ends, count, own_pages),
        None => builder,
    }
}

/// Does `ask`, which asks a file system something, unless another process of the tree waits for an answer: see
/// [`Tree::turn_to_ask`].
pub(crate) fn in_turn(ask: impl FnOnce()) {
    let Some(tree) = TREE.get() else {
        return ask();
    };
    if tree.turn_to_ask() {
        ask();
        tree.has_asked();
    }
}

/// This process gives up nothing from now on.
pub(crate) fn give_nothing() {
    TREE.get().inspect(|tree| tree.give_nothing());
}

/// Whether another process is about to read its memory: see [`ask`].
pub(crate) fn is_asked() -> bool {
    TREE.get().is_some_and(Tree::is_asked)
}

/// It has done what it was asked for.
pub(crate) fn answer() {
    TREE.get().inspect(|tree| tree.answer());
}

/// How long a process of the tree may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// How often it is asked.
const BETWEEN_ASKING: Duration = Duration::from_micros(500);

/// The memory of `process` is about to be read from outside: if it is one of the tree, what it has swapped out will be
/// found when this returns, unless it does not answer.
pub(crate) fn ask(process: u32) {
    /// One that is stopped, say.
    static SILENT: AtomicU32 = AtomicU32::new(0);
    let Some(tree) = TREE.get() else { return };
    if !tree.ask(process) || SILENT.load(Ordering::Relaxed) == process {
        return;
    }
    let (_bypass, _blocked) = (Bypass::new(), Blocked::new());
    let since = Instant::now();
    while tree.ask(process) {
        if since.elapsed() > ANSWER_WAIT {
            SILENT.store(process, Ordering::Relaxed);
            return;
        }
        std::thread::sleep(BETWEEN_ASKING);
    }
}
