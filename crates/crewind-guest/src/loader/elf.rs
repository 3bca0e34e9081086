//! The little of an ELF file that the kernel looks at. Pure; any bytes are judged, none crash it.

use super::ExecError;
use crate::layout::{GUEST_END, PAGE, page_down, page_up};
use crate::mm::Prot;

/// Size of the ELF header.
pub(super) const HEADER_LEN: usize = 64;
const PHDR_LEN: u16 = 56;
/// The kernel refuses more than this many bytes of program headers.
const PHDRS_MAX: usize = 65536;

const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_GNU_STACK: u32 = 0x6474_e551;
const PF_X: u32 = 1;
const PF_W: u32 = 2;
const PF_R: u32 = 4;

/// A `PT_LOAD` program header, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Offset in the file of the first byte.
    pub offset: u64,
    /// Address as linked.
    pub vaddr: u64,
    /// Bytes from the file.
    pub filesz: u64,
    /// Bytes in memory, the rest zeros.
    pub memsz: u64,
    /// Rights.
    pub prot: Prot,
    /// Wanted alignment; a power of two.
    pub align: u64,
}

impl Segment {
    /// First and last page boundary as linked.
    pub fn pages(&self) -> std::ops::Range<u64> {
        page_down(self.vaddr)..page_up(self.vaddr + self.memsz).unwrap_or(GUEST_END)
    }
}

/// An ELF file that can be mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf {
    /// Linked at a fixed address (`ET_EXEC`).
    pub fixed: bool,
    /// Entry point as linked.
    pub entry: u64,
    /// Address of the program headers in memory as linked, when a segment holds them.
    pub phdr: u64,
    /// Number of program headers.
    pub phnum: u16,
    /// What to map, at least one.
    pub segments: Vec<Segment>,
    /// Offset and length in the file of the interpreter's path.
    pub interp: Option<(u64, u64)>,
    /// Wants an executable stack.
    pub exec_stack: bool,
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    b.get(at..at + 2)
        .and_then(|s| s.try_into().ok())
        .map_or(0, u16::from_le_bytes)
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    b.get(at..at + 4)
        .and_then(|s| s.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 8)
        .and_then(|s| s.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

fn bad(text: &str) -> ExecError {
    ExecError::new(libc::ENOEXEC, text)
}

/// Whether the first bytes of a file are those of an x86-64 ELF program or shared library: files of which
/// code is mapped.
pub fn looks_like_image(head: &[u8]) -> bool {
    head.len() >= 20
        && head.starts_with(b"\x7fELF\x02\x01")
        && matches!(u16_at(head, 16), ET_EXEC | ET_DYN)
        && u16_at(head, 18) == EM_X86_64
}

impl Elf {
    /// Where in the file the program headers are, (offset, length), from the file's first bytes.
    pub fn phdr_table(head: &[u8]) -> Result<(u64, usize), ExecError> {
        if !head.starts_with(b"\x7fELF") {
            return Err(bad("not an ELF file or script"));
        }
        if head.len() < HEADER_LEN {
            return Err(bad("ELF header is cut short"));
        }
        let machine = u16_at(head, 18);
        match (head[4], machine) {
            (2, EM_X86_64) => {}
            (1, EM_386) => {
                return Err(bad(
                    "32-bit x86 program; only x86-64 programs can be recorded",
                ));
            }
            (1, EM_X86_64) => return Err(bad("x32 program; only 64-bit programs can be recorded")),
            _ => {
                return Err(bad(&format!(
                    "ELF file for another machine (e_machine {machine})"
                )));
            }
        }
        if head[5] != 1 || !matches!(u16_at(head, 16), ET_EXEC | ET_DYN) {
            return Err(bad("ELF file is not a program or shared object"));
        }
        let (entsize, num) = (u16_at(head, 54), u16_at(head, 56));
        let len = usize::from(num) * usize::from(PHDR_LEN);
        if entsize != PHDR_LEN || len == 0 || len > PHDRS_MAX {
            return Err(bad("ELF program headers of the wrong size or number"));
        }
        Ok((u64_at(head, 32), len))
    }

    /// Judges header and program headers (the bytes that [`Elf::phdr_table`] points to) of a file of
    /// `file_len` bytes.
    pub fn parse(head: &[u8], phdrs: &[u8], file_len: u64) -> Result<Elf, ExecError> {
        let (phoff, len) = Elf::phdr_table(head)?;
        if phdrs.len() != len {
            return Err(bad("ELF program headers are cut short"));
        }
        let mut elf = Elf {
            fixed: u16_at(head, 16) == ET_EXEC,
            entry: u64_at(head, 24),
            phdr: 0,
            phnum: u16_at(head, 56),
            segments: Vec::new(),
            interp: None,
            exec_stack: false,
        };
        for ph in phdrs.chunks_exact(PHDR_LEN.into()) {
            let flags = u32_at(ph, 4);
            match u32_at(ph, 0) {
                PT_LOAD => {
                    let seg = segment(ph, flags, file_len)?;
                    if seg.offset <= phoff && phoff - seg.offset < seg.filesz {
                        elf.phdr = phoff - seg.offset + seg.vaddr;
                    }
                    if seg.memsz != 0 {
                        elf.segments.push(seg);
                    }
                }
                PT_INTERP if elf.interp.is_none() => {
                    let (offset, len) = (u64_at(ph, 8), u64_at(ph, 32));
                    if !(2..=4096).contains(&len) {
                        return Err(bad("ELF interpreter path of an impossible length"));
                    }
                    elf.interp = Some((offset, len));
                }
                PT_GNU_STACK => elf.exec_stack = flags & PF_X != 0,
                _ => {}
            }
        }
        if elf.segments.is_empty() {
            return Err(bad("ELF file has nothing to load"));
        }
        Ok(elf)
    }

    /// Lowest and highest page boundary of all segments as linked.
    pub fn span(&self) -> std::ops::Range<u64> {
        let start = self
            .segments
            .iter()
            .map(|s| s.pages().start)
            .min()
            .unwrap_or(0);
        let end = self
            .segments
            .iter()
            .map(|s| s.pages().end)
            .max()
            .unwrap_or(0);
        start..end
    }

    /// The largest alignment that a segment wants.
    pub fn align(&self) -> u64 {
        self.segments.iter().map(|s| s.align).max().unwrap_or(PAGE)
    }
}

fn segment(ph: &[u8], flags: u32, file_len: u64) -> Result<Segment, ExecError> {
    let align = u64_at(ph, 48);
    let seg = Segment {
        offset: u64_at(ph, 8),
        vaddr: u64_at(ph, 16),
        filesz: u64_at(ph, 32),
        memsz: u64_at(ph, 40),
        prot: Prot {
            read: flags & PF_R != 0,
            write: flags & PF_W != 0,
            exec: flags & PF_X != 0,
        },
        // As the kernel: what is not a power of two is not looked at. More than 1 GiB is not meant.
        align: if align.is_power_of_two() && align <= 1 << 30 {
            align.max(PAGE)
        } else {
            PAGE
        },
    };
    let in_memory = seg
        .vaddr
        .checked_add(seg.memsz)
        .is_some_and(|end| end <= GUEST_END);
    if seg.filesz > seg.memsz || !in_memory {
        return Err(ExecError::new(
            libc::EINVAL,
            "ELF segment outside the address space",
        ));
    }
    if seg.filesz != 0 {
        // The kernel maps such a file and the program dies of SIGBUS.
        if seg
            .offset
            .checked_add(seg.filesz)
            .is_none_or(|end| end > file_len)
        {
            return Err(bad(
                "ELF file is cut short: a segment reaches beyond its end",
            ));
        }
        if seg.offset % PAGE != seg.vaddr % PAGE {
            return Err(bad(
                "ELF segment's offset and address differ within the page",
            ));
        }
    }
    Ok(seg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parses_ourselves() {
        let file = std::fs::read("/proc/self/exe").unwrap();
        let (off, len) = Elf::phdr_table(&file[..256]).unwrap();
        let elf = Elf::parse(
            &file[..256],
            &file[off as usize..][..len],
            file.len() as u64,
        )
        .unwrap();
        assert!(!elf.fixed);
        assert_eq!(elf.phdr, 64);
        assert!(elf.interp.is_some() && !elf.exec_stack);
        assert!(elf.segments.iter().any(|s| s.prot.exec));
        assert!(looks_like_image(&file[..64]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(
            mut head in proptest::collection::vec(any::<u8>(), 64..256),
            phdrs in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(3), any::<u8>()], 112),
            len in any::<u64>(),
        ) {
            let _ = Elf::phdr_table(&head);
            head[..6].copy_from_slice(b"\x7fELF\x02\x01");
            head[16..20].copy_from_slice(&[3, 0, 62, 0]);
            head[54..58].copy_from_slice(&[56, 0, 2, 0]);
            if let Ok(elf) = Elf::parse(&head, &phdrs, len) {
                for s in &elf.segments {
                    prop_assert!(s.filesz <= s.memsz && s.pages().end <= GUEST_END);
                }
                prop_assert!(elf.span().start < elf.span().end);
            }
        }
    }
}
