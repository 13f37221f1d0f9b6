//! With the feature `bundled`: builds the library that `run` loads, so that the binary can carry it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_BUNDLED").is_none() {
        return;
    }
    let variable = |name| PathBuf::from(std::env::var_os(name).expect("set by cargo"));
    let workspace = variable("CARGO_MANIFEST_DIR").join("../..");
    for source in ["core", "sys", "hook", "device", "engine", "preload"] {
        let source = workspace.join("crates").join(source).join("src");
        println!("cargo::rerun-if-changed={}", source.display());
    }
    // A folder of its own: the one in use is locked by the build that this is a part of.
    let target = variable("OUT_DIR").join("preload");
    let built = Command::new(variable("CARGO"))
        .current_dir(&workspace)
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            "userswap-preload",
            "--target-dir",
        ])
        .arg(&target)
        // All of it is in memory while a program runs.
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .status();
    assert!(
        built.is_ok_and(|status| status.success()),
        "the library that `run` loads could not be built"
    );
    let library = target.join("release/libuserswap_preload.so");
    println!("cargo::rustc-env=USERSWAP_BUNDLED={}", library.display());
    let mut hasher = DefaultHasher::new();
    std::fs::read(&library)
        .expect("it was just built")
        .hash(&mut hasher);
    println!("cargo::rustc-env=USERSWAP_BUNDLED_KEY={}", hasher.finish());
}
