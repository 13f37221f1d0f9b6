//! An ELF file as bytes: where its code lies, and where functions begin and end.
//!
//! Function bounds come from the unwind tables (every function a compiler made has an entry, also in stripped files);
//! symbols are the fallback for hand-written code without them.

use gimli::{BaseAddresses, EhFrame, EhFrameHdr, LittleEndian, ParsedEhFrameHdr, UnwindSection};
use object::elf::{
    ET_DYN, FileHeader64, PF_X, PT_GNU_EH_FRAME, PT_INTERP, PT_LOAD, ProgramHeader64,
};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol};
use std::ops::Range;

use crate::file::MappedFile;
use crate::scan::Code;

/// Where a dynamic section keeps its newer flags, and the one that says that the file is a program.
const DT_FLAGS_1: i64 = 0x6fff_fffb;
const DF_1_PIE: u64 = 0x0800_0000;

type Slice<'a> = gimli::EndianSlice<'a, LittleEndian>;

/// One loadable piece of the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// The address in the file's own numbering (before the load bias).
    pub(crate) address: u64,
    /// Where its bytes begin in the file.
    pub(crate) offset: u64,
    /// How many bytes of it the file holds.
    pub(crate) len: u64,
    /// Whether it holds code.
    pub(crate) executable: bool,
}

/// A parsed file.
pub(crate) struct Image<'a> {
    bytes: &'a [u8],
    /// Where they are, if in a file.
    file: Option<&'a MappedFile>,
    segments: Vec<Segment>,
    unwind: Option<Unwind<'a>>,
    /// Starts and sizes of the functions that symbols name, by start.
    symbols: Vec<(u64, u64)>,
    interpreter: bool,
    relocatable: bool,
}

struct Unwind<'a> {
    header: ParsedEhFrameHdr<Slice<'a>>,
    frames: EhFrame<Slice<'a>>,
    bases: BaseAddresses,
}

impl<'a> Image<'a> {
    /// Parses a file; `None` as for [`Image::parse`].
    pub(crate) fn of(file: &'a MappedFile) -> Option<Self> {
        let mut image = Self::parse(file.bytes())?;
        image.file = Some(file);
        Some(image)
    }

    /// Parses the bytes of a file; `None` where it is not an x86-64 ELF file.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header = FileHeader64::<Endianness>::parse(bytes).ok()?;
        let endian = header.endian().ok()?;
        if header.e_machine(endian) != object::elf::EM_X86_64 {
            return None;
        }
        let headers = header.program_headers(endian, bytes).ok()?;
        let segments = headers
            .iter()
            .filter(|h| h.p_type(endian) == PT_LOAD)
            .map(|h| Segment {
                address: h.p_vaddr(endian),
                offset: h.p_offset(endian),
                len: h.p_filesz(endian),
                executable: h.p_flags(endian).0 & PF_X.0 != 0,
            })
            .collect();
        let has = |kind| headers.iter().any(|h| h.p_type(endian) == kind);
        let mut image = Image {
            bytes,
            file: None,
            segments,
            unwind: None,
            symbols: Vec::new(),
            interpreter: has(PT_INTERP),
            relocatable: header.e_type(endian) == ET_DYN,
        };
        image.unwind = headers
            .iter()
            .find(|h| h.p_type(endian) == PT_GNU_EH_FRAME)
            .and_then(|h: &ProgramHeader64<Endianness>| image.unwind_at(h.p_vaddr(endian)));
        Some(image)
    }

    /// Reads the names too; only needed where the unwind tables do not answer.
    pub(crate) fn read_symbols(&mut self) {
        if let Ok(file) = object::File::parse(self.bytes) {
            self.symbols = file
                .symbols()
                .chain(file.dynamic_symbols())
                .filter(|s| s.kind() == object::SymbolKind::Text && s.size() > 0)
                .map(|s| (s.address(), s.size()))
                .collect();
            self.symbols.sort_unstable();
            self.symbols.dedup();
        }
    }

    /// The sections of code; `None` where the file has no sections to ask.
    pub(crate) fn code_sections(&self) -> Option<Vec<Range<u64>>> {
        let file = object::File::parse(self.bytes).ok()?;
        let executable = |flags| match flags {
            object::SectionFlags::Elf { sh_flags, .. } => {
                sh_flags.0 & object::elf::SHF_EXECINSTR.0 != 0
            }
            _ => false,
        };
        let sections: Vec<_> = file
            .sections()
            .filter(|s| executable(s.flags()))
            .map(|s| s.address()..s.address() + s.size())
            .collect();
        (!sections.is_empty()).then_some(sections)
    }

    /// Whether its code, Go's, makes system calls on stacks that begin with 2 KiB and lie side by side: no room for handlers.
    pub(crate) fn has_small_stacks(&self) -> bool {
        const GOS: [&[u8]; 3] = [b".go.buildinfo", b".note.go.buildid", b".gopclntab"];
        object::File::parse(self.bytes).is_ok_and(|file| {
            let mut sections = file.sections();
            sections.any(|section| section.name_bytes().is_ok_and(|name| GOS.contains(&name)))
        })
    }

    /// Where the functions with unwind information begin, in order.
    pub(crate) fn starts(&self) -> Vec<u64> {
        let Some(unwind) = &self.unwind else {
            return Vec::new();
        };
        let Some(table) = unwind.header.table() else {
            return Vec::new();
        };
        let mut starts = Vec::new();
        let mut entries = table.iter(&unwind.bases);
        while let Ok(Some((gimli::Pointer::Direct(start), _))) = entries.next() {
            starts.push(start);
        }
        starts
    }

    /// The function that `address` lies in, or what lies between two where no unwind information tells; `starts` as above.
    pub(crate) fn surroundings(
        &self,
        address: u64,
        segment: &Segment,
        starts: &[u64],
    ) -> Range<u64> {
        if let Some(function) = self.function(address) {
            return function;
        }
        let behind = segment.address + segment.len;
        let index = starts.partition_point(|&start| start <= address);
        let below = self.unwind.as_ref().and_then(|u| u.function_below(address));
        let start = below.map_or(segment.address, |f| f.end.clamp(segment.address, address));
        start..starts.get(index).map_or(behind, |&next| next.min(behind))
    }

    /// Addresses of code that other parts of the file name: symbols, and words that the dynamic linker fills in.
    pub(crate) fn named_addresses(&self) -> Vec<u64> {
        let Ok(file) = object::File::parse(self.bytes) else {
            return Vec::new();
        };
        let symbols = file
            .symbols()
            .chain(file.dynamic_symbols())
            .map(|s| s.address());
        let words = file.dynamic_relocations().into_iter().flatten();
        symbols
            .chain(words.map(|(_, word)| word.addend().cast_unsigned()))
            .chain([file.entry()])
            .collect()
    }

    /// Whether a dynamic linker loads it: it names one, or it is a library and no position-independent program.
    pub(crate) fn is_dynamic(&self) -> bool {
        self.interpreter || (self.relocatable && !self.is_program())
    }

    fn is_program(&self) -> bool {
        let flags = || {
            let header = FileHeader64::<Endianness>::parse(self.bytes).ok()?;
            let endian = header.endian().ok()?;
            let sections = header.sections(endian, self.bytes).ok()?;
            let (entries, _) = sections.dynamic(endian, self.bytes).ok()??;
            let flags = entries
                .iter()
                .find(|e| e.d_tag.get(endian).0 == DT_FLAGS_1)?;
            Some(flags.d_val.get(endian))
        };
        flags().is_some_and(|flags| flags & DF_1_PIE != 0)
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The bytes of a segment that the file holds.
    pub(crate) fn code(&self, segment: &Segment) -> &'a [u8] {
        let start = usize::try_from(segment.offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(segment.len).unwrap_or(usize::MAX));
        self.bytes
            .get(start..end.min(self.bytes.len()))
            .unwrap_or(&[])
    }

    /// The same, to be looked through.
    pub(crate) fn scanned(&self, segment: &Segment) -> Code<'a> {
        Code {
            bytes: self.code(segment),
            file: self.file,
        }
    }

    /// Gives back the pages of the file that were read.
    pub(crate) fn give_back(&self) {
        if let Some(file) = self.file {
            file.give_back(self.bytes);
        }
    }

    /// The bytes from `address` to the end of its segment.
    pub(crate) fn bytes_at(&self, address: u64) -> Option<&'a [u8]> {
        let segment = self.segments.iter().find(|s| s.contains(address))?;
        self.code(segment)
            .get(usize::try_from(address - segment.address).ok()?..)
    }

    /// Whether the bytes there look like `int 0x80` or `sysenter`.
    pub(crate) fn is_old_way(&self, address: u64) -> bool {
        let bytes = self.bytes_at(address).unwrap_or_default();
        [[0xcd, 0x80], [0x0f, 0x34]]
            .iter()
            .any(|old| bytes.starts_with(old))
    }

    /// The function that `address` lies in.
    pub(crate) fn function(&self, address: u64) -> Option<Range<u64>> {
        self.unwind
            .as_ref()
            .and_then(|unwind| unwind.function(address))
            .or_else(|| self.function_of_symbol(address))
    }

    /// Whether unwind information says that `address` lies in a function.
    pub(crate) fn is_described(&self, address: u64) -> bool {
        let unwind = self.unwind.as_ref();
        unwind.is_some_and(|unwind| unwind.function(address).is_some())
    }

    /// The function that ends below `address` together with what follows it up to the next: code whose author ended
    /// the unwind information early, as where a thread begins and there is nothing to unwind to.
    pub(crate) fn function_and_gap(&self, address: u64) -> Option<Range<u64>> {
        /// No such code is longer.
        const LONGEST: u64 = 512;
        let below = self.unwind.as_ref()?.function_below(address)?;
        let next = (address..address + LONGEST).find(|&at| self.function(at).is_some())?;
        (address - below.end < LONGEST).then_some(below.start..next)
    }

    fn function_of_symbol(&self, address: u64) -> Option<Range<u64>> {
        let index = self.symbols.partition_point(|&(start, _)| start <= address);
        let (start, size) = *self.symbols[..index].last()?;
        (address < start + size).then_some(start..start + size)
    }

    fn unwind_at(&self, address: u64) -> Option<Unwind<'a>> {
        let base = BaseAddresses::default().set_eh_frame_hdr(address);
        let bytes = self.bytes_at(address)?;
        let header = EhFrameHdr::new(bytes, LittleEndian).parse(&base, 8).ok()?;
        let gimli::Pointer::Direct(frames) = header.eh_frame_ptr() else {
            return None;
        };
        Some(Unwind {
            frames: EhFrame::new(self.bytes_at(frames)?, LittleEndian),
            bases: base.set_eh_frame(frames),
            header,
        })
    }
}

impl Segment {
    pub(crate) fn contains(&self, address: u64) -> bool {
        address >= self.address && address - self.address < self.len
    }

    /// Whether a mapping that begins there in the file is of this segment.
    pub(crate) fn is_mapped_at(&self, offset: u64) -> bool {
        self.offset & !0xfff <= offset
            && offset - (self.offset & !0xfff) < self.len + (self.offset & 0xfff)
    }
}

impl Unwind<'_> {
    fn function(&self, address: u64) -> Option<Range<u64>> {
        let fde = self
            .header
            .table()?
            .fde_for_address(&self.frames, &self.bases, address, EhFrame::cie_from_offset)
            .ok()?;
        Some(fde.initial_address()..fde.end_address())
    }

    /// The last function that begins at or below `address`.
    fn function_below(&self, address: u64) -> Option<Range<u64>> {
        let table = self.header.table()?;
        let gimli::Pointer::Direct(entry) = table.lookup(address, &self.bases).ok()? else {
            return None;
        };
        let offset = usize::try_from(entry.checked_sub(self.bases.eh_frame.section?)?).ok()?;
        let fde = self
            .frames
            .fde_from_offset(&self.bases, offset.into(), EhFrame::cie_from_offset)
            .ok()?;
        (fde.initial_address() <= address).then_some(fde.initial_address()..fde.end_address())
    }
}
