//! What unit tests of a whole engine share.

use userswap_sys::uffd::OpenError;

use crate::{Engine, EngineBuilder, Error};

/// The engine, or nothing where this host refuses userfaultfd: that is said, and fails in CI.
pub(crate) fn build_or_skip(builder: EngineBuilder, test: &str) -> Option<Engine> {
    match builder.build() {
        Ok(engine) => Some(engine),
        Err(Error::Userfaultfd(refused @ OpenError::Refused { .. })) => {
            println!("SKIPPED: {test}: {refused}");
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{refused}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Fills `bytes` with what does not compress.
pub(crate) fn fill_with_noise(bytes: &mut [u8], seed: u64) {
    let mut noise = seed | 1;
    for word in bytes.chunks_exact_mut(8) {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        word.copy_from_slice(&noise.to_ne_bytes());
    }
}
