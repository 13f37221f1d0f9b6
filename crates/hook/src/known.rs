//! Plans of files that were looked at before, in a file that processes share, and that may be kept for later ones: looking a
//! library through takes milliseconds, and most processes use the same ones.
//!
//! A plan is for the file, or the kernel's code, that it was made of ([`Identity`]) and for who made it. It is kept only where a
//! change of that file would show, found only where it and its entry are what their checksum says, and used only where memory
//! holds the bytes that it has for each site (`patch`). In every other case the file is looked through.
//!
//! ```text
//! [ENTRIES entries of ENTRY bytes, used from the first on][plans]
//! ```
//! Readers take no lock: a plan is written before its entry. Who would have to wait for the lock to write keeps nothing.

use crate::file::{CodeFile, Identity};
use crate::image::Segment;
use crate::packed;
use crate::plan::Plan;
use rustix::fs::{FlockOperation, OFlags};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use userswap_sys::file_ref::FileRef;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// How many plans are kept at most.
const ENTRIES: usize = 512;
/// Bytes that an entry takes.
const ENTRY: usize = size_of::<Words>();
/// Entries that are read at once.
const AT_ONCE: usize = 32;
/// Bytes that all takes at most.
const LONGEST: u64 = 16 << 20;

/// Who made a plan (1), the file (8), the segment (3), where the plan lies and how long it is (2), the checksum, and one more.
type Words = [u64; 16];
const SEGMENT: usize = 9;
const PLACE: usize = 12;
const LEN: usize = 13;
const CHECKSUM: usize = 14;

/// To be changed with the rules of a plan, and with how it is kept.
const FORMAT: u64 = 4;

/// What processes share to keep plans for each other.
#[derive(Clone, Debug)]
pub struct Plans {
    /// A file, empty at first, called as [`PLANS_NAMES`] say.
    pub file: FileRef,
    /// How many filters of system calls (seccomp) are in force where `run` is. These let pass what keeping plans takes,
    /// as those of containers do; with more of them a process could be ended for it, and only looks at what others have kept.
    pub filters: u32,
}

/// Whether a file is called as those of plans are: what it once was known by may be another file's after long.
fn is_of_plans(fd: &OwnedFd) -> bool {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let Ok(path) = rustix::fs::readlink(link, Vec::new()) else {
        return false;
    };
    let name = path.to_bytes().rsplit(|&byte| byte == b'/').next();
    name.is_some_and(|name| {
        PLANS_NAMES
            .iter()
            .any(|start| name.starts_with(start.as_bytes()))
    })
}

/// How files of plans are called: the beginnings of their names, on a disk and in memory.
pub const PLANS_NAMES: [&str; 2] = ["plans-", "memfd:userswap-plans"];

/// Whether there is room for the plans of some more libraries in a file that may have been used before.
pub fn has_room_for_plans(file: impl AsFd) -> bool {
    let len = rustix::fs::fstat(&file).map_or(0, |stat| stat.st_size.cast_unsigned());
    let mut entry = [0; ENTRY];
    let at = ENTRIES / 4 * 3 * ENTRY;
    let read = rustix::io::pread(&file, &mut entry, at as u64);
    len < LONGEST / 4 * 3 && read.is_ok_and(|len| entry[..len].iter().all(|&byte| byte == 0))
}

/// Plans, shared.
pub(crate) struct Known<'a> {
    plans: &'a Plans,
    /// For reading only: a program may have forbidden itself to open files for writing.
    fd: OwnedFd,
    /// Who looks: another build of this code may have other rules.
    maker: u64,
}

impl<'a> Known<'a> {
    /// Opens the file; `None`: it is not there, or cannot be used. `own`: the file that this code is in.
    pub(crate) fn open(plans: &'a Plans, own: &Identity) -> Option<Self> {
        let fd = plans.file.open(OFlags::RDONLY).ok()?;
        let build = [FORMAT, xxh3_64(env!("CARGO_PKG_VERSION").as_bytes())].map(u64::to_le_bytes);
        let own = own.0.map(u64::to_le_bytes);
        let maker = xxh3_64_with_seed(own.as_flattened(), xxh3_64(build.as_flattened()));
        Some(Self { plans, fd, maker })
    }

    /// The plan for the code at `offset` of a file, and the segment it is for.
    pub(crate) fn find(&self, file: &Identity, offset: u64) -> Option<(Segment, Plan)> {
        self.first(|words| {
            let segment = segment_of(words);
            let same = words[0] == self.maker && words[1..SEGMENT] == file.0;
            if !same || !segment.is_mapped_at(offset) {
                return None;
            }
            let plan = packed::unpack(&self.body(words)?, &segment)?;
            Some((segment, plan))
        })
    }

    /// Keeps a plan for others, if that can be done without waiting. No change of the file since `identity` was asked for.
    pub(crate) fn keep(
        &self,
        file: &CodeFile,
        identity: &Identity,
        segment: &Segment,
        plan: &Plan,
    ) {
        // A change that comes later must show, and one that came meanwhile must not have.
        if file.is_settled() && file.identity().as_ref() == Ok(identity) {
            self.keep_content(identity, segment, plan);
        }
    }

    /// Keeps the plan of what cannot be other than its identity says.
    pub(crate) fn keep_content(&self, identity: &Identity, segment: &Segment, plan: &Plan) {
        if !is_confined(self.plans.filters)
            && let Some(body) = packed::pack(plan)
            && let Ok(fd) = self.plans.file.open(OFlags::RDWR)
            && is_of_plans(&fd)
            && rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            if self.find(identity, segment.offset).is_none() {
                let _ = self.append(&fd, identity, segment, &body);
            }
            // Not by closing it: a child may have been started with it meanwhile.
            let _ = rustix::fs::flock(&fd, FlockOperation::Unlock);
        }
    }

    /// Behind all others. The lock is held, through `fd`.
    fn append(
        &self,
        fd: &OwnedFd,
        identity: &Identity,
        segment: &Segment,
        body: &[u8],
    ) -> Option<()> {
        let (mut count, mut end) = (0, (ENTRIES * ENTRY) as u64);
        self.first(|words| -> Option<()> {
            count += 1;
            end = end.max(words[PLACE].saturating_add(words[LEN]));
            None
        });
        // What an entry says of a place that the file does not have is damage.
        let len = rustix::fs::fstat(fd).ok()?.st_size.cast_unsigned();
        end = end.min(len.max((ENTRIES * ENTRY) as u64));
        let behind = end.saturating_add(body.len() as u64);
        // A limit on files is said by a signal.
        if count == ENTRIES || behind > largest_file().min(LONGEST) {
            return None;
        }
        let mut words: Words = [0; 16];
        words[0] = self.maker;
        words[1..SEGMENT].copy_from_slice(&identity.0);
        words[SEGMENT..PLACE].copy_from_slice(&[segment.address, segment.offset, segment.len]);
        words[PLACE] = end;
        words[LEN] = body.len() as u64;
        words[CHECKSUM] = checksum(&words, body);
        write(fd, body, end)?;
        let words = words.map(u64::to_le_bytes);
        write(fd, words.as_flattened(), (count * ENTRY) as u64)
    }

    /// What `of` gives first for an entry in use.
    fn first<T>(&self, mut of: impl FnMut(&Words) -> Option<T>) -> Option<T> {
        // Not on the stack, which may be a small one.
        let mut bytes = vec![0; AT_ONCE * ENTRY];
        for part in 0..ENTRIES / AT_ONCE {
            let at = (part * bytes.len()) as u64;
            let len = rustix::io::pread(&self.fd, &mut bytes, at).unwrap_or(0);
            // What the file does not have yet is an entry that is not in use.
            bytes[len..].fill(0);
            for entry in bytes.chunks_exact(ENTRY) {
                let words = words_of(entry);
                if words == [0; 16] {
                    return None;
                }
                if let Some(found) = of(&words) {
                    return Some(found);
                }
            }
        }
        None
    }

    /// The plan that an entry is about, if both are what the checksum says.
    fn body(&self, words: &Words) -> Option<Vec<u8>> {
        let len = words[LEN];
        (len <= LONGEST).then_some(())?;
        let mut body = vec![0; usize::try_from(len).ok()?];
        let read = rustix::io::pread(&self.fd, &mut body, words[PLACE]).ok()?;
        (read == body.len() && checksum(words, &body) == words[CHECKSUM]).then_some(body)
    }
}

fn write(fd: &OwnedFd, bytes: &[u8], at: u64) -> Option<()> {
    (rustix::io::pwrite(fd, bytes, at) == Ok(bytes.len())).then_some(())
}

fn words_of(bytes: &[u8]) -> Words {
    let (words, _) = bytes.as_chunks();
    std::array::from_fn(|at| u64::from_le_bytes(words[at]))
}

fn segment_of(words: &Words) -> Segment {
    Segment {
        address: words[SEGMENT],
        offset: words[SEGMENT + 1],
        len: words[SEGMENT + 2],
        executable: true,
    }
}

fn checksum(words: &Words, body: &[u8]) -> u64 {
    let mut entry = *words;
    entry[CHECKSUM] = 0;
    xxh3_64_with_seed(body, xxh3_64(entry.map(u64::to_le_bytes).as_flattened()))
}

/// How long a file may become that this process writes to.
fn largest_file() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize);
    limit.current.unwrap_or(u64::MAX)
}

/// Whether a filter of this thread could refuse calls that are not made to load code: locking and writing. `filters` of them
/// do not. Where that cannot be read, it is taken for so.
fn is_confined(filters: u32) -> bool {
    let status = crate::maps::read_file("/proc/thread-self/status").unwrap_or_default();
    let number = |name: &[u8]| -> Option<u32> {
        let line = status
            .split(|&byte| byte == b'\n')
            .find_map(|line| line.strip_prefix(name))?;
        std::str::from_utf8(line).ok()?.trim().parse().ok()
    };
    match number(b"Seccomp:") {
        Some(FREE) => false,
        Some(FILTERED) => number(b"Seccomp_filters:").is_none_or(|now| now > filters),
        _ => true,
    }
}

/// What the system says of a thread whose calls pass, and of one whose calls filters look at.
const FREE: u32 = 0;
const FILTERED: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Site;
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;
    use std::time::{Duration, SystemTime};

    /// A library that was changed long ago, and a file to keep plans in.
    struct Place {
        library: PathBuf,
        plans: PathBuf,
        meant: Plans,
    }

    impl Place {
        fn new(name: &str) -> Self {
            let name = format!("userswap-known-{name}-{}", std::process::id());
            let folder = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&folder).expect("writable");
            let plans = folder.join("plans-kept");
            let file = std::fs::File::create(&plans).expect("writable");
            let place = Self {
                library: folder.join("library"),
                meant: Plans {
                    file: FileRef::new(&file, plans.clone()).expect("its numbers"),
                    filters: 0,
                },
                plans,
            };
            place.write(&libc());
            place
        }

        fn write(&self, bytes: &[u8]) {
            std::fs::write(&self.library, bytes).expect("writable");
        }

        fn open(&self) -> Known<'_> {
            Known::open(&self.meant, &Identity([7; 8])).expect("a file")
        }

        fn file(&self) -> CodeFile {
            let mut file = CodeFile::open(&self.library).expect("a file");
            file.settle();
            file
        }

        /// Looks the library through and keeps what is found.
        fn keep(&self) -> (Identity, Segment, Plan) {
            let file = self.file();
            let identity = file.identity().expect("a file");
            let (segment, plan) = look_through(&file);
            self.open().keep(&file, &identity, &segment, &plan);
            (identity, segment, plan)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(self.library.parent().expect("a folder"));
        }
    }

    fn libc() -> Vec<u8> {
        let maps = crate::maps::read().expect("readable");
        let libc = maps
            .iter()
            .find(|m| m.executable && m.path.to_string_lossy().contains("libc.so"));
        std::fs::read(&libc.expect("it is mapped").path).expect("readable")
    }

    fn look_through(file: &CodeFile) -> (Segment, Plan) {
        let bytes = file.map().expect("a file");
        let mut image = crate::image::Image::parse(bytes.bytes()).expect("a library");
        let segment = image.segments().iter().copied().find(|s| s.executable);
        let segment = segment.expect("some code");
        let plan = crate::plan::plan(&mut image, &segment);
        assert!(plan.sites.len() > 100);
        (segment, plan)
    }

    #[test]
    fn what_one_found_the_next_finds() {
        let place = Place::new("same");
        let (identity, segment, plan) = place.keep();
        let found = place.open().find(&identity, segment.offset & !0xfff);
        let (found_segment, found_plan) = found.expect("kept");
        assert!(found_plan == plan && found_segment.address == segment.address);
        assert!(place.open().find(&identity, 0).is_none(), "no code there");
        // Once is enough.
        let size = || std::fs::metadata(&place.plans).expect("there").len();
        let before = size();
        place.keep();
        assert_eq!(size(), before);
    }

    #[test]
    fn another_file_another_time_and_another_maker_find_nothing() {
        let place = Place::new("other");
        let (identity, segment, _) = place.keep();
        let known = place.open();
        assert!(known.find(&identity, segment.offset).is_some());
        for word in 0..identity.0.len() {
            let mut other = identity;
            other.0[word] ^= 1;
            assert!(known.find(&other, segment.offset).is_none(), "{word}");
        }
        for word in 0..8 {
            let mut other = Identity([7; 8]);
            other.0[word] = 8;
            let other = Known::open(&place.meant, &other).expect("a file");
            assert!(other.find(&identity, segment.offset).is_none(), "{word}");
        }
    }

    #[test]
    fn every_change_of_a_file_changes_its_identity() {
        let place = Place::new("changed");
        let (identity, ..) = place.keep();
        let library = std::fs::OpenOptions::new().write(true).open(&place.library);
        let library = library.expect("writable");
        // Deep inside, and the time of the change set back, as archives and package managers do.
        let before = library
            .metadata()
            .expect("there")
            .modified()
            .expect("a time");
        std::thread::sleep(Duration::from_millis(20));
        library.write_all_at(b"\x90", 0x40000).expect("writable");
        library.set_modified(before).expect("its owner may");
        assert_ne!(place.file().identity().expect("a file"), identity);
        // The same bytes at the same place, as a new file.
        let bytes = std::fs::read(&place.library).expect("readable");
        let here = place.file().identity().expect("a file");
        std::fs::rename(&place.library, place.library.with_extension("old")).expect("renamed");
        place.write(&bytes);
        assert_ne!(place.file().identity().expect("a file"), here);
    }

    /// A change that comes right after might not show in its times.
    #[test]
    fn of_a_file_that_was_just_changed_nothing_is_kept() {
        let place = Place::new("fresh");
        let file = CodeFile::open(&place.library).expect("a file");
        let identity = file.identity().expect("a file");
        let (segment, plan) = look_through(&file);
        place.open().keep(&file, &identity, &segment, &plan);
        assert!(place.open().find(&identity, segment.offset).is_none());
    }

    #[test]
    fn of_a_file_that_changes_meanwhile_nothing_is_kept() {
        let place = Place::new("meanwhile");
        let file = place.file();
        let identity = file.identity().expect("a file");
        let (segment, plan) = look_through(&file);
        let library = std::fs::OpenOptions::new().write(true).open(&place.library);
        let long_ago = SystemTime::now() - Duration::from_secs(1000);
        library
            .expect("writable")
            .set_modified(long_ago)
            .expect("its owner may");
        place.open().keep(&file, &identity, &segment, &plan);
        assert!(place.open().find(&identity, segment.offset).is_none());
    }

    #[test]
    fn a_damaged_plan_is_refused() {
        let place = Place::new("damaged");
        let (identity, segment, plan) = place.keep();
        let good = std::fs::read(&place.plans).expect("readable");
        let file = std::fs::OpenOptions::new().write(true).open(&place.plans);
        let file = file.expect("writable");
        // All of the entry but what is not looked at, and of the plan every fifth byte.
        let body = ENTRIES * ENTRY;
        for at in (0..ENTRY).chain((body..good.len()).step_by(5)) {
            file.write_all_at(&[good[at] ^ 0x10], at as u64)
                .expect("writable");
            assert!(
                place.open().find(&identity, segment.offset).is_none(),
                "{at}"
            );
            file.write_all_at(&good[at..=at], at as u64)
                .expect("writable");
        }
        // Cut off, in the plan and in the entry; then made anew.
        for len in [good.len() - 1, body, ENTRY - 1, 0] {
            file.set_len(len as u64).expect("writable");
            assert!(
                place.open().find(&identity, segment.offset).is_none(),
                "{len}"
            );
        }
        place.keep();
        let found = place.open().find(&identity, segment.offset);
        assert!(found.is_some_and(|(_, found)| found == plan));
    }

    /// With a checksum that is right, what a site says of itself must still fit.
    #[test]
    fn a_plan_that_cannot_be_is_refused() {
        let place = Place::new("impossible");
        let (identity, segment, plan) = place.keep();
        let body = packed::pack(&plan).expect("it can be kept");
        assert!(packed::unpack(&body, &segment).is_some_and(|again| again == plan));
        let mut elsewhere = segment;
        elsewhere.len /= 2;
        assert!(packed::unpack(&body, &elsewhere).is_none());
        let site = &plan.sites[0];
        let start = site.region.start.to_le_bytes();
        let at = memchr::memmem::rfind(&body, &start).expect("it is there");
        // Its length, where the call is, and how many pieces there are.
        for field in [8, 9, 11] {
            let mut other = body.clone();
            other[at + field] ^= 1;
            assert!(packed::unpack(&other, &segment).is_none(), "{field}");
        }
        // A region with room for the long jump takes no short one.
        let long = plan.sites.iter().find(|site| site.island.is_none());
        let long = long.expect("most are");
        let mut with_island = Plan::default();
        let beside = Site::new(
            long.address,
            long.region.clone(),
            Some(long.region.end + 8),
            long.number,
        );
        let (region, _) = plan.original(long);
        assert!(with_island.add(beside, region, &[0x90; 5], plan.pieces(long)));
        let with_island = packed::pack(&with_island).expect("it can be kept");
        assert!(packed::unpack(&with_island, &segment).is_none());
        // One site twice.
        let mut twice = Plan::default();
        for _ in 0..2 {
            let (region, island) = plan.original(site);
            assert!(twice.add(site.clone(), region, island, plan.pieces(site)));
        }
        let twice = packed::pack(&twice).expect("it can be kept");
        assert!(packed::unpack(&twice, &segment).is_none());
        assert!(place.open().find(&identity, segment.offset).is_some());
    }
}
