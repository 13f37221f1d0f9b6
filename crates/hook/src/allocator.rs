//! Whose memory allocator libc uses in a program.

use std::path::Path;

use object::{Object, ObjectSymbol};

use crate::file::CodeFile;

/// Whether a program brings the allocator that libc uses, too, and knows nothing of threads: old Lisps collect garbage in it, and
/// take the stack of whoever calls it for the only one.
///
/// It defines `calloc`, by which libc makes what a thread needs, and uses nothing of libc's for threads.
///
/// # Errors
/// What opening or mapping the file gave; `INVAL` where it is not an ELF file.
pub fn allocates_for_one_thread(program: &Path) -> Result<bool, rustix::io::Errno> {
    let file = CodeFile::open(program)?.map()?;
    let file = object::File::parse(file.bytes()).map_err(|_| rustix::io::Errno::INVAL)?;
    let (mut allocates, mut has_threads) = (false, false);
    for symbol in file.dynamic_symbols() {
        let name = symbol.name_bytes().unwrap_or_default();
        allocates |= symbol.is_definition() && name == b"calloc";
        let of_threads = name.starts_with(b"pthread_") || name.starts_with(b"thrd_");
        has_threads |= symbol.is_undefined() && of_threads;
    }
    Ok(allocates && !has_threads)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What uses libc's allocator has none of its own.
    #[test]
    fn most_programs_have_none_of_their_own() {
        assert_eq!(allocates_for_one_thread(Path::new("/bin/sh")), Ok(false));
        let own = std::env::current_exe().expect("it has a name");
        assert_eq!(allocates_for_one_thread(&own), Ok(false));
        let none = allocates_for_one_thread(Path::new("/proc/self/maps"));
        assert!(none.is_err());
    }
}
