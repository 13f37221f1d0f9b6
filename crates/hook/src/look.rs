//! Looks at what is mapped, or has what others found there.

use std::cell::OnceCell;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::file::{CodeFile, Identity};
use crate::image::{Image, Segment};
use crate::known::{Known, Plans};
use crate::maps::Mapping;
use crate::plan::{self, Plan};

/// The file that this code is in: not looked at.
pub(crate) struct Own {
    /// As the list of mappings has it. An inode alone may be another file's on another device.
    inode: u64,
    path: PathBuf,
    /// None where the file was replaced meanwhile: nobody else's plans are for it.
    identity: Option<Identity>,
}

impl Own {
    pub(crate) fn of(own: &Mapping) -> Self {
        let file = CodeFile::open(&own.path).ok();
        let file = file.filter(|file| file.inode() == own.inode);
        // A library that came in memory has no path; the plans are for none but that.
        let in_memory = own.path.as_os_str().as_bytes().starts_with(b"/memfd:");
        let identity = file.and_then(|file| file.identity().ok());
        Self {
            inode: own.inode,
            path: own.path.clone(),
            identity: identity.or(in_memory.then_some(Identity([0; 8]))),
        }
    }

    pub(crate) fn is(&self, file: &CodeFile) -> bool {
        let same = |own| file.identity() == Ok(own);
        self.inode == file.inode() && self.identity.is_some_and(same)
    }

    pub(crate) fn is_at(&self, mapping: &Mapping) -> bool {
        self.inode == mapping.inode && self.path == mapping.path
    }
}

/// What other processes have found, opened when it is needed.
pub(crate) struct LazyKnown {
    plans: Option<&'static Plans>,
    own: Option<Identity>,
    opened: OnceCell<Option<Known<'static>>>,
}

impl LazyKnown {
    pub(crate) fn new(plans: Option<&'static Plans>, own: Option<&Own>) -> Self {
        Self {
            plans,
            own: own.and_then(|own| own.identity),
            opened: OnceCell::new(),
        }
    }

    fn get(&self) -> Option<&Known<'static>> {
        let open = || Known::open(self.plans?, &self.own?);
        self.opened.get_or_init(open).as_ref()
    }
}

/// What can be done with code of the kernel's own.
pub(crate) fn look_at_kernels(
    mapping: &Mapping,
    known: &LazyKnown,
) -> Result<(Segment, Plan), &'static str> {
    // SAFETY: mapped and readable as long as the process lives. A copy: the code is about to change.
    let memory = unsafe {
        std::slice::from_raw_parts(mapping.range.start as *const u8, mapping.range.len())
    }
    .to_vec();
    let (known, identity) = (known.get(), Identity::of_content(&memory));
    if let Some(found) = known.and_then(|known| known.find(&identity, mapping.offset)) {
        return Ok(found);
    }
    let (segment, plan) = look_through(Image::parse(&memory), mapping.offset)?;
    if let Some(known) = known {
        known.keep_content(&identity, &segment, &plan);
    }
    Ok((segment, plan))
}

/// What is mapped there of a file, and what can be done with it.
pub(crate) fn look_at(
    file: &CodeFile,
    mapping: &Mapping,
    known: &LazyKnown,
) -> Result<(Segment, Plan), &'static str> {
    let known = known
        .get()
        .and_then(|known| Some((known, file.identity().ok()?)));
    if let Some((known, identity)) = &known
        && let Some(found) = known.find(identity, mapping.offset)
    {
        return Ok(found);
    }
    let bytes = file.map().map_err(|_| "the file cannot be mapped again")?;
    let (segment, plan) = look_through(Image::of(&bytes), mapping.offset)?;
    if let Some((known, identity)) = &known {
        known.keep(file, identity, &segment, &plan);
    }
    Ok((segment, plan))
}

/// The segment that is mapped from `offset` on, and its plan.
fn look_through(image: Option<Image<'_>>, offset: u64) -> Result<(Segment, Plan), &'static str> {
    let mut image = image.ok_or("not an x86-64 ELF file")?;
    let segment = image
        .segments()
        .iter()
        .copied()
        .find(|s| s.executable && s.is_mapped_at(offset))
        .ok_or("code is mapped from a part of the file that is not code")?;
    let plan = plan_of(&mut image, &segment);
    Ok((segment, plan))
}

/// What can be done with a segment: nothing where handlers would overflow the stacks of its code.
pub(crate) fn plan_of(image: &mut Image<'_>, segment: &Segment) -> Plan {
    let mut plan = plan::plan(image, segment);
    if image.has_small_stacks() {
        plan.cannot_be_rewritten();
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that came in memory has plans, too; one that was replaced has none.
    #[test]
    fn the_own_library_is_known_by_its_file_or_has_come_in_memory() {
        let at = |path: &str| Mapping {
            inode: 7,
            path: path.into(),
            ..Mapping::default()
        };
        let identity = |path: &str| Own::of(&at(path)).identity;
        assert_eq!(
            identity("/memfd:library.so (deleted)"),
            Some(Identity([0; 8]))
        );
        assert_eq!(identity("/nowhere/library.so"), None);
        // Another file than what is mapped.
        assert_eq!(identity("/proc/self/exe"), None);
        let maps = crate::maps::read().expect("readable");
        let libc = maps
            .iter()
            .find(|m| m.executable && m.path.to_string_lossy().contains("libc.so"));
        let libc = libc.expect("it is mapped");
        assert!(
            Own::of(libc)
                .identity
                .is_some_and(|found| found != Identity([0; 8]))
        );
    }
}
