//! Mapping a program and its interpreter, and starting its stack.

use super::elf::{Elf, HEADER_LEN, Segment};
use super::stack::{self, StackInput};
use super::{ArgArea, ExecError, ImageFile, ImageInfo};
use crate::errno::Errno;
use crate::layout::{BRK_START, PAGE, STACK_TOP, is_guest, page_down, page_up};
use crate::mm::host::Host;
use crate::mm::{Backing, MmapArgs, Placement, Prot, Space};
use crate::procfs::ProcessView;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// A file to load from.
#[derive(Debug)]
pub enum Source {
    /// The file itself (recording).
    Original(File),
    /// Its copy in the trace's store (replay).
    Stored(File),
}

impl Source {
    fn file(&self) -> &File {
        match self {
            Source::Original(f) | Source::Stored(f) => f,
        }
    }

    fn backing(&self, file: &ImageFile) -> Backing {
        match self {
            Source::Original(f) => Backing::Fd(f.as_raw_fd()),
            Source::Stored(f) => Backing::Store {
                fd: f.as_raw_fd(),
                id: file.id(),
                writable: false,
            },
        }
    }
}

/// Where the files of an image come from.
pub trait FileProvider {
    /// Opens a file of the image for reading.
    fn open(&self, file: &ImageFile) -> Result<Source, Errno>;
}

/// A program in place.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Loaded {
    /// Where to start: the interpreter's entry, or the program's when it has none.
    pub pc: u64,
    /// Initial stack pointer.
    pub sp: u64,
    /// The auxiliary vector, with its end: text of `/proc/self/auxv`.
    pub auxv: Vec<(u64, u64)>,
    /// Where arguments and environment are.
    pub args: ArgArea,
    /// The main stack's mapping.
    pub stack: Range<u64>,
    /// The program's own entry.
    pub program_entry: u64,
    /// What was added to the program's addresses.
    pub program_bias: u64,
    /// The interpreter's base address, 0 without one.
    pub interp_base: u64,
    /// The program's code, for `/proc/self/stat`.
    pub code: Range<u64>,
    /// The program's data, likewise.
    pub data: Range<u64>,
}

impl Loaded {
    /// What `/proc/self/{stat,statm,status}` say about the program; threads, signals, name and size are for the
    /// caller to fill in.
    pub fn process_view(&self) -> ProcessView {
        ProcessView {
            start_code: self.code.start,
            end_code: self.code.end,
            start_stack: self.sp,
            start_data: self.data.start,
            end_data: self.data.end,
            start_brk: BRK_START,
            args: self.args,
            threads: 1,
            ..ProcessView::default()
        }
    }
}

/// From the lowest to the highest file-backed byte of the segments chosen.
fn extent(elf: &Elf, bias: u64, chosen: impl Fn(&Segment) -> bool) -> Range<u64> {
    let segments = || elf.segments.iter().filter(|s| chosen(s));
    let start = segments()
        .map(|s| s.vaddr.wrapping_add(bias))
        .min()
        .unwrap_or(0);
    let end = segments()
        .map(|s| (s.vaddr + s.filesz).wrapping_add(bias))
        .max()
        .unwrap_or(0);
    start..end
}

/// Loads an image into an empty space. After an error the space is in no useful state.
pub fn load<H: Host>(
    info: &ImageInfo,
    space: &mut Space<H>,
    files: &dyn FileProvider,
) -> Result<Loaded, ExecError> {
    let program = info
        .program()
        .ok_or_else(|| ExecError::new(libc::EINVAL, "image without a program"))?;
    let (elf, bias) = map_file(program, space, files)?;
    let program_entry = elf.entry.wrapping_add(bias);
    let (interp_base, pc) = match info.interpreter() {
        Some(file) => {
            let (interp, bias) = map_file(file, space, files)?;
            (bias, interp.entry.wrapping_add(bias))
        }
        None => (0, program_entry),
    };
    let exec_stack = elf.exec_stack;
    let stack = space
        .map_stack(info.stack_limit, exec_stack)
        .map_err(|errno| ExecError {
            errno,
            text: "the stack cannot be mapped".into(),
        })?;

    let phdr = if elf.phdr == 0 {
        0
    } else {
        elf.phdr.wrapping_add(bias)
    };
    let input = StackInput {
        top: STACK_TOP,
        execfn: &info.execfn,
        argv: &info.argv,
        envp: &info.envp,
        random: &info.random,
        platform: &info.machine.platform,
    };
    let image = stack::build(&input, |random, execfn, platform| {
        let (c, m) = (&info.credentials, &info.machine);
        vec![
            (libc::AT_MINSIGSTKSZ, m.minsigstksz),
            (libc::AT_HWCAP, m.hwcap),
            (libc::AT_PAGESZ, PAGE),
            (libc::AT_CLKTCK, m.clktck),
            (libc::AT_PHDR, phdr),
            (libc::AT_PHENT, 56),
            (libc::AT_PHNUM, elf.phnum.into()),
            (libc::AT_BASE, interp_base),
            (libc::AT_FLAGS, 0),
            (libc::AT_ENTRY, program_entry),
            (libc::AT_UID, c.uid.into()),
            (libc::AT_EUID, c.euid.into()),
            (libc::AT_GID, c.gid.into()),
            (libc::AT_EGID, c.egid.into()),
            (libc::AT_SECURE, c.secure.into()),
            (libc::AT_RANDOM, random),
            (libc::AT_HWCAP2, m.hwcap2),
            (libc::AT_EXECFN, execfn),
            (libc::AT_PLATFORM, platform),
        ]
    });
    // Half of the stack is left to the program in any case.
    let image = image
        .filter(|i| i.sp >= stack.start + (stack.end - stack.start) / 2)
        .ok_or_else(|| {
            ExecError::new(
                libc::E2BIG,
                "arguments and environment do not fit on the stack",
            )
        })?;
    space.host().write(image.sp, &image.bytes);
    Ok(Loaded {
        pc,
        sp: image.sp,
        auxv: image.auxv,
        args: image.args,
        stack,
        program_entry,
        program_bias: bias,
        interp_base,
        code: extent(&elf, bias, |s| s.prot.exec),
        data: extent(&elf, bias, |s| s.prot.write),
    })
}

/// Maps one ELF file; returns it and what was added to its addresses.
fn map_file<H: Host>(
    file: &ImageFile,
    space: &mut Space<H>,
    files: &dyn FileProvider,
) -> Result<(Elf, u64), ExecError> {
    let name = String::from_utf8_lossy(file.path.as_slice()).into_owned();
    let fail = |errno: Errno| ExecError {
        errno,
        text: format!("{name}: cannot be loaded"),
    };
    let named = |e: ExecError| ExecError {
        text: format!("{name}: {}", e.text),
        ..e
    };
    let source = files.open(file).map_err(fail)?;
    let elf = read_elf(source.file()).map_err(named)?;
    let span = elf.span();
    let bias = if elf.fixed {
        0
    } else {
        let align = elf.align();
        let at = space
            .place_skewed(
                span.end - span.start,
                align,
                span.start,
                Placement::ElfImage,
            )
            .ok_or(Errno(libc::ENOMEM))
            .map_err(fail)?;
        at.wrapping_sub(span.start)
    };
    let backing = source.backing(file);
    for s in &elf.segments {
        map_segment(s, bias, space, &backing).map_err(fail)?;
    }
    Ok((elf, bias))
}

fn read_elf(file: &File) -> Result<Elf, ExecError> {
    let io = |e: std::io::Error| ExecError {
        errno: e.into(),
        text: "cannot be read".into(),
    };
    let len = file.metadata().map_err(io)?.len();
    let mut head = [0; HEADER_LEN];
    file.read_exact_at(&mut head, 0).map_err(io)?;
    let (offset, table) = Elf::phdr_table(&head)?;
    let mut phdrs = vec![0; table];
    file.read_exact_at(&mut phdrs, offset).map_err(io)?;
    Elf::parse(&head, &phdrs, len)
}

fn map_segment<H: Host>(
    s: &Segment,
    bias: u64,
    space: &mut Space<H>,
    backing: &Backing,
) -> Result<(), Errno> {
    let overflow = Errno(libc::ENOMEM);
    let start = s.vaddr.wrapping_add(bias);
    if !is_guest(page_down(start), s.memsz) {
        return Err(overflow);
    }
    let file_end = start + s.filesz;
    let mem_end = page_up(start + s.memsz).ok_or(overflow)?;
    let mut zero_from = page_down(start);
    if s.filesz != 0 {
        let end = page_up(file_end).ok_or(overflow)?;
        fixed(
            space,
            zero_from..end,
            s.prot,
            page_down(s.offset),
            Some(backing),
        )?;
        if s.memsz > s.filesz && s.prot.write {
            let zeros = [0; PAGE as usize];
            space
                .host()
                .write(file_end, &zeros[..(end - file_end) as usize]);
        }
        zero_from = end;
    }
    if zero_from < mem_end {
        fixed(
            space,
            zero_from..mem_end,
            Prot {
                exec: s.prot.exec,
                ..Prot::RW
            },
            0,
            None,
        )?;
    }
    Ok(())
}

fn fixed<H: Host>(
    space: &mut Space<H>,
    range: Range<u64>,
    prot: Prot,
    offset: u64,
    backing: Option<&Backing>,
) -> Result<(), Errno> {
    let kind = if backing.is_none() {
        libc::MAP_ANONYMOUS
    } else {
        0
    };
    let args = MmapArgs {
        addr: range.start,
        len: range.end - range.start,
        prot: prot.bits(),
        flags: libc::MAP_PRIVATE | libc::MAP_FIXED | kind,
        offset,
        placement: Placement::ElfImage,
    };
    // Nothing was translated yet: there are no effects.
    space
        .mmap(&args, backing.cloned().unwrap_or(Backing::Anon))
        .result
        .map(drop)
}
