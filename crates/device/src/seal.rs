//! Making a page unreadable and unforgeable on its way out of memory.
//!
//! A page is sealed under a *version* that is never used again with the same key, and bound to its slot. What
//! proves it later, the version and a tag, stays in memory beside the slot. So a block that was changed, swapped with
//! another, is stale or torn does not open.
//!
//! **No version is used twice under a key.** A key is made by the process that writes with it, and counts its versions
//! in one atomic. A child of fork has a copy of key and counter, and uses neither to write: its first write
//! makes it a file and a key of its own (see `homes`).

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::io::Errno;
use userswap_core::device::{DeviceError, PageBytes};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::arena::{Secret, refused, scrub_stack};

/// Bytes of a key.
const KEY_BYTES: usize = 32;

/// What proves that a page is the one that was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proof {
    pub(crate) version: u64,
    pub(crate) tag: u128,
}

/// A key and its versions, or, where pages are not encrypted, only those.
pub(crate) struct Seal {
    key: Option<Secret<LessSafeKey>>,
    versions: AtomicU64,
}

impl Seal {
    /// A fresh key, from the system's random numbers, in locked memory.
    ///
    /// # Errors
    /// The system gives no random numbers, or lets us lock no memory (RLIMIT_MEMLOCK).
    pub(crate) fn encrypting() -> Result<Self, DeviceError> {
        let mut bytes = [0; KEY_BYTES];
        let filled = SystemRandom::new().fill(&mut bytes);
        let key = Secret::new(|| {
            let key = UnboundKey::new(&AES_256_GCM, &bytes);
            LessSafeKey::new(key.expect("the key has its length"))
        });
        black_box(&mut bytes).fill(0);
        scrub_stack();
        filled.map_err(|_| refused(Errno::IO))?;
        Ok(Self::with(Some(key?)))
    }

    /// No key: pages can be read by whoever can read the file, and carry a checksum over content, slot and version.
    pub(crate) fn checking() -> Self {
        Self::with(None)
    }

    fn with(key: Option<Secret<LessSafeKey>>) -> Self {
        Self {
            key,
            versions: AtomicU64::new(1),
        }
    }

    /// In a child of fork.
    pub(crate) fn lock_again(&self) -> Result<(), DeviceError> {
        self.key.as_ref().map_or(Ok(()), Secret::lock_again)
    }

    /// Seals `page`, in place, for `slot`.
    pub(crate) fn seal(&self, slot: u64, page: &mut PageBytes) -> Proof {
        // Relaxed: only distinctness matters. 2^64 of them are not used up.
        let version = self.versions.fetch_add(1, Relaxed);
        let tag = match &self.key {
            Some(key) => {
                let tag = key
                    .seal_in_place_separate_tag(nonce(version), bound_to(slot), page)
                    .expect("a page is not too long");
                u128::from_le_bytes(tag.as_ref().try_into().expect("sixteen bytes"))
            }
            None => checksum(slot, version, page),
        };
        Proof { version, tag }
    }

    /// Opens `page`, in place; `false`: it is not what was sealed for `slot` with this proof, and the
    /// bytes are nobody's.
    #[must_use]
    pub(crate) fn open(&self, slot: u64, proof: Proof, page: &mut PageBytes) -> bool {
        match &self.key {
            Some(key) => {
                let tag = Tag::from(proof.tag.to_le_bytes());
                key.open_in_place_separate_tag(nonce(proof.version), bound_to(slot), tag, page, 0..)
                    .is_ok()
            }
            None => checksum(slot, proof.version, page) == proof.tag,
        }
    }
}

/// Why pages cannot be encrypted on this host, if they cannot.
#[must_use]
pub fn key_refused() -> Option<DeviceError> {
    Seal::encrypting().err()
}

fn nonce(version: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[..8].copy_from_slice(&version.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn bound_to(slot: u64) -> Aad<[u8; 8]> {
    Aad::from(slot.to_le_bytes())
}

fn checksum(slot: u64, version: u64, page: &PageBytes) -> u128 {
    // Versions differ in their low bits, slots in others.
    u128::from(xxh3_64_with_seed(page, version ^ slot.rotate_right(24)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use userswap_core::device::PAGE_SIZE;

    fn both() -> [Seal; 2] {
        [Seal::encrypting().unwrap(), Seal::checking()]
    }

    #[test]
    fn what_was_sealed_opens_for_its_slot_and_version_only() {
        for seal in both() {
            let page: PageBytes = std::array::from_fn(|i| i as u8);
            let next: PageBytes = std::array::from_fn(|i| i as u8 ^ 1);
            let (mut first, mut second) = (page, next);
            let proof = seal.seal(3, &mut first);
            let later = seal.seal(3, &mut second);
            assert_ne!(proof.version, later.version);
            let opens = |slot, proof, sealed: &PageBytes| {
                let mut copy = *sealed;
                seal.open(slot, proof, &mut copy) && (copy == page || copy == next)
            };
            assert!(opens(3, proof, &first) && opens(3, later, &second));
            assert!(!opens(4, proof, &first), "another slot's");
            assert!(!opens(3, later, &first), "stale");
            for bit in [0, 8 * PAGE_SIZE / 2 + 3, 8 * PAGE_SIZE - 1] {
                let mut changed = first;
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(!opens(3, proof, &changed), "bit {bit}");
            }
        }
    }

    #[test]
    fn only_a_key_hides_the_content() {
        let [encrypting, checking] = both();
        let mut page = [0x55; PAGE_SIZE];
        let _ = checking.seal(0, &mut page);
        assert_eq!(page, [0x55; PAGE_SIZE]);
        let _ = encrypting.seal(0, &mut page);
        let same = page.iter().filter(|&&byte| byte == 0x55).count();
        assert!(same < 200, "{same} of 4096 bytes as they were");
        let other = Seal::encrypting().unwrap();
        let mut again = [0x55; PAGE_SIZE];
        let _ = other.seal(0, &mut again);
        assert_ne!(page, again, "a key of its own");
    }
}
