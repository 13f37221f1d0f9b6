//! What a kernel's userfaultfd can do.

use std::fmt;

use linux_raw_sys::general as raw;

/// The feature bits of a userfaultfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(u64);

impl Features {
    pub(super) const WRITE_PROTECT: Features = Features(raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP as u64);
    pub(super) const SIGBUS: Features = Features(raw::UFFD_FEATURE_SIGBUS as u64);
    pub(super) const THREAD_ID: Features = Features(raw::UFFD_FEATURE_THREAD_ID as u64);
    pub(super) const POISON: Features = Features(raw::UFFD_FEATURE_POISON as u64);
    pub(super) const MOVE: Features = Features(raw::UFFD_FEATURE_MOVE as u64);

    /// Every feature the engine uses, with the name it is known by and the kernel that brought it.
    const USED: [(Features, &'static str, &'static str); 5] = [
        (Self::WRITE_PROTECT, "PAGEFAULT_FLAG_WP", "5.7"),
        (Self::SIGBUS, "SIGBUS", "4.14"),
        (Self::THREAD_ID, "THREAD_ID", "4.14"),
        (Self::POISON, "POISON", "6.6"),
        (Self::MOVE, "MOVE", "6.8"),
    ];

    /// From the kernel's bit mask.
    pub const fn from_bits(bits: u64) -> Self {
        Features(bits)
    }

    /// The kernel's bit mask.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Pages can be moved between ranges ([`super::Uffd::move_pages`]), which is how pages leave a program: without it
    /// nothing can be swapped out in one step. Linux 6.8.
    pub const fn move_pages(self) -> bool {
        self.has(Self::MOVE)
    }

    /// Pages can be marked so that an access gets SIGBUS ([`super::Uffd::poison`]). Linux 6.6.
    pub const fn poison(self) -> bool {
        self.has(Self::POISON)
    }

    /// Pages can be write-protected ([`super::Uffd::write_protect`]). Linux 5.7.
    pub const fn write_protect(self) -> bool {
        self.has(Self::WRITE_PROTECT)
    }

    /// Faults can be delivered as SIGBUS to the faulting thread. Linux 4.14.
    pub const fn sigbus(self) -> bool {
        self.has(Self::SIGBUS)
    }

    /// Events name the faulting thread. Linux 4.14.
    pub const fn thread_id(self) -> bool {
        self.has(Self::THREAD_ID)
    }

    /// The used features that are missing here: name, and the kernel that brought it.
    pub fn missing(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        Self::USED
            .into_iter()
            .filter(move |used| !self.has(used.0))
            .map(|(_, name, since)| (name, since))
    }

    const fn has(self, feature: Features) -> bool {
        self.0 & feature.0 == feature.0
    }

    pub(super) const fn and(self, other: Features) -> Features {
        Features(self.0 & other.0)
    }

    pub(super) const fn or(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)?;
        let have = Self::USED.iter().filter(|used| self.has(used.0));
        for (place, (_, name, _)) in have.enumerate() {
            write!(f, "{}{name}", if place == 0 { " (" } else { " " })?;
        }
        if Self::USED.iter().any(|used| self.has(used.0)) {
            f.write_str(")")
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_there_and_what_is_missing() {
        assert_eq!(Features::from_bits(0).to_string(), "0x0");
        let some = Features::MOVE.or(Features::SIGBUS);
        assert_eq!(some.to_string(), "0x10080 (SIGBUS MOVE)");
        assert!(some.move_pages() && some.sigbus() && !some.poison());
        assert_eq!(
            some.missing().collect::<Vec<_>>(),
            [
                ("PAGEFAULT_FLAG_WP", "5.7"),
                ("THREAD_ID", "4.14"),
                ("POISON", "6.6")
            ]
        );
        assert_eq!(some.and(Features::MOVE), Features::MOVE);
    }
}
