//! What was found in each library, and what became of it.

use std::path::PathBuf;

/// One file that code was mapped from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Library {
    /// The file.
    pub path: PathBuf,
    /// Sites that jump to the handlers now.
    pub rewritten: usize,
    /// Sites that are left as they are on purpose: the return from signal handlers.
    pub native: usize,
    /// Sites whose calls nobody sees: no room for a jump, or for handlers on the stack (Go), or bytes that look like a system call in code that could not be
    /// decoded. By address in the file's numbering.
    pub uncovered: Vec<u64>,
    /// Why the file as a whole could not be looked at.
    pub unreadable: Option<&'static str>,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// The files that hold system calls, or could not be looked at.
    pub libraries: Vec<Library>,
    /// Bytes of code that belongs to no file: made at run time.
    pub generated: usize,
}

impl Coverage {
    /// Sites that jump to the handlers.
    #[must_use]
    pub fn rewritten(&self) -> usize {
        self.libraries.iter().map(|l| l.rewritten).sum()
    }

    /// File and address of each site whose calls nobody sees.
    pub fn uncovered(&self) -> impl Iterator<Item = (&PathBuf, u64)> {
        self.libraries
            .iter()
            .flat_map(|l| l.uncovered.iter().map(move |at| (&l.path, *at)))
    }

    /// Whether every system call of every file is seen.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.libraries
            .iter()
            .all(|l| l.uncovered.is_empty() && l.unreadable.is_none())
    }
}
