//! Folders for swap files.

use std::path::{Path, PathBuf};

use userswap::DeviceSpec;

/// An empty folder that goes when this does.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    pub(crate) fn device(&self, form: &str) -> DeviceSpec {
        let device = form.replace("DIR", self.0.to_str().expect("a name"));
        device.parse().expect("a device")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The files of this process in `folder`: they have no name there.
pub(crate) fn nameless_files(folder: &Folder) -> Vec<std::fs::File> {
    let place = folder.0.to_str().expect("a name");
    let open = std::fs::read_dir("/proc/self/fd").expect("our descriptors");
    let open = open.flatten().map(|entry| entry.path()).filter(|path| {
        let target = std::fs::read_link(path).unwrap_or_default();
        let target = target.to_string_lossy();
        target.starts_with(place) && target.ends_with("(deleted)")
    });
    let both = |path| std::fs::File::options().read(true).write(true).open(path);
    open.map(|path| both(path).expect("it is open")).collect()
}
