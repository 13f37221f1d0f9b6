//! A device that does not answer: that is said once, nothing is lost, and it goes on when the device does.

mod common;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::child::{case, child, succeeded, was_skipped};
use common::folder::Folder;
use common::pages::{Content, Pages};
use common::{MIB, PAGE, build, scripted, skip};
use userswap::{
    Advice, Device, DeviceError, Engine, Overdue, PageBytes, Properties, SlotRead, Usage,
};
use userswap_core::script::ScriptedDevice;
use userswap_sys::timing::now_ns;

fn done(program: &str, args: &[&str]) -> bool {
    let output = Command::new(program).args(args).output();
    output.is_ok_and(|output| output.status.success())
}

/// A file system on a loop device, which can be made to stand still.
struct FileSystem {
    folder: Folder,
}

impl FileSystem {
    fn new(name: &str) -> Option<Self> {
        // What a test that was killed left.
        let left = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(name)
            .join("mounted");
        let left = left.to_str().expect("a name");
        done("fsfreeze", &["--unfreeze", left]);
        done("umount", &[left]);
        let folder = Folder::new(name);
        let image = folder.0.join("image");
        let made = File::create(&image).and_then(|file| file.set_len(64 << 20));
        made.expect("a file");
        let this = Self { folder };
        std::fs::create_dir(this.path()).expect("a folder");
        let (image, path) = (image.to_str().expect("a name"), this.name());
        if done("mkfs.ext4", &["-q", image]) && done("mount", &["-o", "loop", image, &path]) {
            return Some(this);
        }
        skip(name, "no file system can be mounted on a loop device here");
        None
    }

    fn path(&self) -> PathBuf {
        self.folder.0.join("mounted")
    }

    fn name(&self) -> String {
        self.path().to_str().expect("a name").to_owned()
    }

    fn freeze(&self) {
        assert!(done("fsfreeze", &["--freeze", &self.name()]));
    }

    fn thaw(&self) -> bool {
        done("fsfreeze", &["--unfreeze", &self.name()])
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        self.thaw();
        let unmounted = done("umount", &[&self.name()]);
        assert!(unmounted || std::thread::panicking());
    }
}

struct Thaw<'a>(&'a FileSystem);

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        self.0.thaw();
    }
}

/// What this process says on standard error from now on.
struct Said(PathBuf);

impl Said {
    fn in_folder(folder: &Folder) -> Self {
        let path = folder.0.join("said");
        let file = File::create(&path).expect("a file");
        // SAFETY: both are open descriptors; who writes to standard error writes to the file then.
        assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), 2) }, 2);
        Self(path)
    }

    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.0).expect("what was said");
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until a line with `part` is there.
    #[track_caller]
    fn wait_for(&self, part: &str) {
        let start = Instant::now();
        while !self.lines().iter().any(|line| line.contains(part)) {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{:?}",
                self.lines()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_file_system_that_stands_still_is_told_of_once_and_goes_on() {
    let output = child("child_frozen", "frozen");
    if !was_skipped(&output) {
        succeeded(&output);
    }
}

#[test]
#[ignore = "started by the test above"]
fn child_frozen() {
    let Some(case) = case() else { return };
    let Some(system) = FileSystem::new("hanging") else {
        return;
    };
    let limit = 8 * MIB;
    let device = format!("zram,file:{},timeout=1", system.name());
    let builder = Engine::builder()
        .limit(limit as u64)
        .device(device.parse().expect("a device"));
    let Some(engine) = build(&case, builder) else {
        return;
    };
    let region = engine.region(4 * limit).expect("a region");
    let pages = Pages::of(&region);
    for page in 0..pages.count() / 2 {
        pages.write(page, 1, Content::Noise);
    }
    let said = Said::in_folder(&system.folder);
    system.freeze();
    let is_thawed = AtomicBool::new(false);
    let blocked = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for page in pages.count() / 2..pages.count() {
                pages.write(page, 1, Content::Noise);
            }
            is_thawed.load(Ordering::SeqCst)
        });
        // Also when something below fails: the scope waits for the writer.
        let _thaw = Thaw(&system);
        said.wait_for("has not answered for");
        // Pages that are in the file can be read; a second look says nothing.
        pages.verify(0, 1, Content::Noise);
        is_thawed.store(true, Ordering::SeqCst);
        assert!(system.thaw());
        writer.join().expect("it writes on")
    });
    said.wait_for("answers again");
    println!("the writer waited for the device: {blocked}");
    for page in 0..pages.count() {
        pages.verify(page, 1, Content::Noise);
    }
    let lines = said.lines();
    let hung: Vec<_> = lines
        .iter()
        .filter(|line| line.contains("has not answered"))
        .collect();
    assert_eq!(hung.len(), 1, "{lines:?}");
    for part in [
        "userswap: zram,file:",
        &system.name(),
        " s: ",
        "the oldest a write",
        "nothing is lost",
    ] {
        assert!(hung[0].contains(part), "{part}: {hung:?}");
    }
    assert_eq!(
        lines
            .iter()
            .filter(|line| line.contains("answers again"))
            .count(),
        1,
        "{lines:?}"
    );
    assert_eq!(engine.stats().bugs, 0);
}

/// A device whose reads wait until they are let go, and which says so.
struct Hanging {
    inner: Box<ScriptedDevice>,
    hangs: Arc<AtomicBool>,
    since_ns: u64,
}

impl Device for Hanging {
    fn name(&self) -> &str {
        "hanging"
    }

    fn slots(&self) -> u64 {
        self.inner.slots()
    }

    fn properties(&self) -> Properties {
        self.inner.properties()
    }

    fn read(&self, slot: u64, page: &mut PageBytes) -> Result<userswap::Content, DeviceError> {
        while self.hangs.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.inner.read(slot, page)
    }

    fn read_batch(&self, reads: &mut [Option<SlotRead<'_>>]) {
        self.inner.read_batch(reads);
    }

    fn write(&self, slot: u64, page: &PageBytes) -> Result<(), DeviceError> {
        self.inner.write(slot, page)
    }

    fn discard(&self, slot: u64) {
        self.inner.discard(slot);
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn leaves_memory(&self) -> bool {
        true
    }

    fn overdue(&self, _now_ns: u64) -> Option<Overdue> {
        let hangs = self.hangs.load(Ordering::SeqCst);
        hangs.then_some(Overdue {
            since_ns: self.since_ns,
            requests: 1,
            writing: false,
        })
    }
}

#[test]
fn reads_that_hang_are_waited_for_and_told_of_with_a_device_added_later() {
    let output = child("child_reads", "reads");
    if !was_skipped(&output) {
        succeeded(&output);
    }
}

#[test]
#[ignore = "started by the test above"]
fn child_reads() {
    let Some(case) = case() else { return };
    let folder = Folder::new("hanging-reads");
    let Some(engine) = build(&case, Engine::builder()) else {
        return;
    };
    let hangs = Arc::new(AtomicBool::new(false));
    let device = Hanging {
        inner: scripted(512, |_, _| Ok(())),
        hangs: Arc::clone(&hangs),
        since_ns: now_ns(),
    };
    engine.swapon_custom(Box::new(device), 1).expect("swapon");
    let region = engine.region(512 * PAGE).expect("a region");
    let pages = Pages::of(&region);
    for page in 0..512 {
        pages.write(page, 1, Content::Text);
    }
    region
        .advise(0..512 * PAGE, Advice::PageOut)
        .expect("advice");
    let told = Said::in_folder(&folder);
    hangs.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| (0..512).for_each(|page| pages.verify(page, 1, Content::Text))))
            .collect();
        told.wait_for("hanging has not answered for");
        assert!(readers.iter().all(|reader| !reader.is_finished()));
        hangs.store(false, Ordering::SeqCst);
    });
    told.wait_for("hanging answers again");
    let lines = told.lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].contains("1 request waits (the oldest a read)"),
        "{lines:?}"
    );
}
