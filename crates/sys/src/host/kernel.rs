//! The kernel: its release and the settings that matter here.

use super::files::{Reading, read, read_number, unforeseen};

/// The kernel's release, such as `6.18.2`.
pub fn kernel_release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

/// The base page size. The engine runs only where it is [`crate::PAGE_SIZE`].
pub fn page_size() -> usize {
    rustix::param::page_size()
}

/// The sysctl vm.unprivileged_userfaultfd: whether anyone may have faults inside system calls reported.
///
/// `NOENT` where the kernel has no userfaultfd, or one older than 5.2.
pub fn unprivileged_userfaultfd() -> Reading<bool> {
    read_number("/proc/sys/vm/unprivileged_userfaultfd").map(|value| value != 0)
}

/// The sysctl vm.max_map_count: how many mappings a process may have. Registering part of a mapping splits it.
pub fn max_map_count() -> Reading<u64> {
    read_number("/proc/sys/vm/max_map_count")
}

/// How many mappings this process has now.
pub fn map_count() -> Reading<u64> {
    read("/proc/self/maps").map(|maps| maps.lines().count() as u64)
}

/// Where the kernel uses transparent huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HugePages {
    /// Everywhere it can.
    Always,
    /// Where a program advised it.
    Madvise,
    /// Nowhere.
    Never,
}

/// The setting for transparent huge pages. `NOENT` where the kernel has none.
pub fn transparent_huge_pages() -> Reading<HugePages> {
    const PATH: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    let text = read(PATH)?;
    parse_huge_pages(&text).ok_or_else(|| unforeseen(PATH, text.trim()))
}

/// The word in brackets is the one in force.
fn parse_huge_pages(text: &str) -> Option<HugePages> {
    match text.split_once('[')?.1.split_once(']')?.0 {
        "always" => Some(HugePages::Always),
        "madvise" => Some(HugePages::Madvise),
        "never" => Some(HugePages::Never),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_page_settings() {
        assert_eq!(
            parse_huge_pages("[always] madvise never\n"),
            Some(HugePages::Always)
        );
        assert_eq!(
            parse_huge_pages("always [madvise] never\n"),
            Some(HugePages::Madvise)
        );
        assert_eq!(
            parse_huge_pages("always madvise [never]\n"),
            Some(HugePages::Never)
        );
        assert_eq!(parse_huge_pages("always madvise never\n"), None);
    }

    #[test]
    fn this_kernel() {
        assert!(kernel_release().contains('.'));
        assert!(page_size().is_power_of_two());
        let maps = map_count().expect("maps");
        assert!(maps > 3 && maps < max_map_count().expect("limit"));
    }
}
