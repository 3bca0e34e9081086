//! Where a thread is and who called it, in words: frames of a process that a replay has brought to a moment.
//!
//! Everything but names comes from the process's own memory: program headers, unwind tables, the dynamic linker's list of
//! objects. So programs without symbols, and those whose files are gone, have frames too. Names come from the trace's copies
//! of the files that the process had mapped, and from separate files of debug information on this machine if their build-ids
//! are the same.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use addr2line::Loader;
use addr2line::gimli::{self, BaseAddresses, EhFrameHdr, Pointer};
use crewind_debug::engine::{self, Engine};
use crewind_guest::debug::wire::Registers;
use crewind_guest::loader::{FileRole, ImageInfo};
use crewind_trace::event::{Event, FileRef};
use crewind_trace::{FileStore, StreamReader, TraceDir, Verify};
use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, FrameAddress, Unwinder};
use object::elf::{
    DT_DEBUG, ELFMAG, FileHeader64, NT_GNU_BUILD_ID, PT_DYNAMIC, PT_GNU_EH_FRAME, PT_LOAD, PT_NOTE,
    ProgramHeader64,
};
use object::read::ReadCache;
use object::read::elf::{ElfFile64, FileHeader, NoteIterator, ProgramHeader};
use object::{Endianness, Object as _, ObjectSection};

use crate::fail::Result;
use crate::locate::trace_error;

/// Most frames: a runaway recursion is shown by its first ones.
const MOST: usize = 64;
/// Most objects in the dynamic linker's list that are believed.
const MOST_OBJECTS: usize = 4096;
/// Longest section of unwind tables that is read.
const LONGEST: u64 = 64 << 20;
/// Registers in DWARF's order: `rsp`, `rbp` by the numbers of the encoding of instructions.
const RSP: usize = 4;
const RBP: usize = 5;
/// Numbers in the auxiliary vector.
const AT_PHDR: u64 = 3;
const AT_BASE: u64 = 7;

/// A file that a process has mapped, as the trace keeps it.
#[derive(Clone, Debug)]
pub struct Mapped {
    /// Address of its first byte.
    pub addr: u64,
    /// Its content.
    pub file: FileRef,
}

/// Files that the processes of `path` (from the root) mapped from their first bytes on: where ELF objects are.
///
/// # Errors
/// The trace cannot be read.
pub fn mapped_files(trace: &TraceDir, path: &[u32]) -> Result<Vec<Mapped>> {
    let mut found = Vec::new();
    for process in trace.processes().map_err(|e| trace_error(&e))? {
        if !path.contains(&process.proc.0) {
            continue;
        }
        for &thread in &process.threads {
            let mut reader =
                StreamReader::open(trace.path(), thread).map_err(|e| trace_error(&e))?;
            while let Ok(Some(record)) = reader.next() {
                if let Event::FileMapping {
                    addr,
                    offset: 0,
                    file,
                    ..
                } = record.event
                {
                    found.push(Mapped { addr, file });
                }
            }
        }
    }
    Ok(found)
}

/// Memory of a process that stands still.
struct Memory<'a> {
    engine: &'a mut Engine,
    pages: BTreeMap<u64, Vec<u8>>,
}

const PAGE: u64 = 4096;

impl Memory<'_> {
    /// As many bytes as there are.
    fn read(&mut self, addr: u64, len: u64) -> engine::Result<Vec<u8>> {
        let mut out = Vec::new();
        while (out.len() as u64) < len {
            let Some(at) = addr.checked_add(out.len() as u64) else {
                break;
            };
            let page = at & !(PAGE - 1);
            if !self.pages.contains_key(&page) {
                let bytes = self.engine.read(page, PAGE)?;
                self.pages.insert(page, bytes);
            }
            let bytes = self.pages.get(&page).map_or(&[][..], Vec::as_slice);
            let rest = bytes.get((at - page) as usize..).unwrap_or(&[]);
            if rest.is_empty() {
                break;
            }
            let n = rest.len().min((len - out.len() as u64) as usize);
            out.extend_from_slice(rest.get(..n).unwrap_or(rest));
        }
        Ok(out)
    }

    fn word(&mut self, addr: u64) -> Option<u64> {
        let bytes = self.read(addr, 8).ok()?;
        bytes.try_into().ok().map(u64::from_le_bytes)
    }

    fn text(&mut self, addr: u64) -> Vec<u8> {
        let mut bytes = self.read(addr, PAGE).unwrap_or_default();
        bytes.truncate(bytes.iter().position(|b| *b == 0).unwrap_or(0));
        bytes
    }
}

/// An ELF object in the process.
struct Object {
    /// What its addresses are more than in its file.
    bias: u64,
    range: Range<u64>,
    headers: Vec<ProgramHeader64<Endianness>>,
    build_id: Vec<u8>,
    name: String,
    /// Its path when it was recorded, if that is known.
    path: Option<PathBuf>,
    /// The trace's copy.
    file: Option<File>,
    symbols: Option<Vec<Loader>>,
}

impl Object {
    /// The object whose header is at `addr`, if one is.
    fn at(memory: &mut Memory<'_>, addr: u64) -> Option<Object> {
        let bytes = memory.read(addr, PAGE).ok()?;
        if !bytes.starts_with(&ELFMAG) {
            return None;
        }
        let header = FileHeader64::<Endianness>::parse(&*bytes).ok()?;
        let endian = header.endian().ok()?;
        let headers = header.program_headers(endian, &*bytes).ok()?.to_vec();
        let loads = headers.iter().filter(|h| h.p_type(endian) == PT_LOAD);
        let first = loads.clone().map(|h| h.p_vaddr(endian)).min()?;
        let end = loads
            .filter_map(|h| h.p_vaddr(endian).checked_add(h.p_memsz(endian)))
            .max()?;
        let bias = addr.wrapping_sub(first & !(PAGE - 1));
        let mut build_id = Vec::new();
        for h in headers.iter().filter(|h| h.p_type(endian) == PT_NOTE) {
            let at = bias.wrapping_add(h.p_vaddr(endian));
            let Ok(notes) = memory.read(at, h.p_memsz(endian).min(PAGE)) else {
                continue;
            };
            let Ok(mut notes) =
                NoteIterator::<FileHeader64<Endianness>>::new(endian, h.p_align(endian), &notes)
            else {
                continue;
            };
            while let Ok(Some(note)) = notes.next() {
                if note.name() == b"GNU" && note.n_type(endian) == NT_GNU_BUILD_ID {
                    build_id = note.desc().to_vec();
                }
            }
        }
        Some(Object {
            bias,
            range: addr..bias.wrapping_add(end),
            headers,
            build_id,
            name: String::new(),
            path: None,
            file: None,
            symbols: None,
        })
    }

    fn header(&self, kind: u32) -> Option<(u64, u64)> {
        let h = self.headers.iter().find(|h| h.p_type(LITTLE) == kind)?;
        Some((self.bias.wrapping_add(h.p_vaddr(LITTLE)), h.p_memsz(LITTLE)))
    }

    /// Makes its unwind tables known.
    fn add_to(&self, memory: &mut Memory<'_>, unwinder: &mut UnwinderX86_64<Vec<u8>>) {
        let Some(tables) = self
            .tables_in_memory(memory)
            .or_else(|| self.tables_in_file())
        else {
            return;
        };
        let range = self.range.clone();
        unwinder.add_module(framehop::Module::new(
            self.name.clone(),
            range,
            self.bias,
            tables,
        ));
    }

    fn tables_in_memory(
        &self,
        memory: &mut Memory<'_>,
    ) -> Option<ExplicitModuleSectionInfo<Vec<u8>>> {
        let (at, len) = self.header(PT_GNU_EH_FRAME)?;
        let eh_frame_hdr = memory.read(at, len.min(LONGEST)).ok()?;
        let bases = BaseAddresses::default().set_eh_frame_hdr(at);
        let parsed = EhFrameHdr::new(&eh_frame_hdr, gimli::LittleEndian)
            .parse(&bases, 8)
            .ok()?;
        let Pointer::Direct(frames) = parsed.eh_frame_ptr() else {
            return None;
        };
        // How long it is only the file knows; it ends with its segment.
        let end = self.headers.iter().find_map(|h| {
            let from = self.bias.wrapping_add(h.p_vaddr(LITTLE));
            let to = from.checked_add(h.p_memsz(LITTLE))?;
            (h.p_type(LITTLE) == PT_LOAD && (from..to).contains(&frames)).then_some(to)
        })?;
        let eh_frame = memory.read(frames, (end - frames).min(LONGEST)).ok()?;
        let svma = |avma: u64| avma.wrapping_sub(self.bias);
        Some(ExplicitModuleSectionInfo {
            base_svma: 0,
            eh_frame_svma: Some(svma(frames)..svma(frames) + eh_frame.len() as u64),
            eh_frame_hdr_svma: Some(svma(at)..svma(at) + eh_frame_hdr.len() as u64),
            eh_frame: Some(eh_frame),
            eh_frame_hdr: Some(eh_frame_hdr),
            ..Default::default()
        })
    }

    /// Programs that are linked statically have tables that no program header names.
    fn tables_in_file(&self) -> Option<ExplicitModuleSectionInfo<Vec<u8>>> {
        let cache = ReadCache::new(self.file.as_ref()?);
        let file = ElfFile64::<Endianness, _>::parse(&cache).ok()?;
        let section = |name: &str| {
            let s = file.section_by_name(name)?;
            let from = s.address();
            Some((from..from + s.size(), s.data().ok()?.to_vec()))
        };
        let (eh_frame_svma, eh_frame) = section(".eh_frame").unzip();
        Some(ExplicitModuleSectionInfo {
            base_svma: 0,
            eh_frame_svma,
            eh_frame,
            debug_frame: section(".debug_frame").map(|(_, data)| data),
            ..Default::default()
        })
    }

    /// Who knows its names: its separate debug information first, then itself.
    fn symbols(&mut self) -> &[Loader] {
        self.symbols.get_or_insert_with(|| {
            let mut loaders = Vec::new();
            let mut hex = String::new();
            for b in &self.build_id {
                // Writing to a String does not fail.
                let _ = write!(hex, "{b:02x}");
            }
            if let Some((first, rest)) =
                hex.split_at_checked(2).filter(|(_, rest)| !rest.is_empty())
            {
                let separate = format!("/usr/lib/debug/.build-id/{first}/{rest}.debug");
                loaders.extend(Loader::new(separate));
            }
            if let Some(file) = &self.file {
                // The loader wants a path; the copy has no name of its own while it is compressed or linked elsewhere.
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                loaders.extend(Loader::new(path));
            }
            loaders
        })
    }
}

/// What all of them are.
const LITTLE: Endianness = Endianness::Little;

/// A function of a frame: more than one when calls were inlined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name, if known.
    pub name: Option<String>,
    /// File and line, if known.
    pub source: Option<String>,
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its pc: in the first frame the next instruction, in the others where the call returns to.
    pub pc: u64,
    /// The object it lies in, and where: an address in its file.
    pub object: Option<(String, u64)>,
    /// What it is in, from the innermost one on.
    pub functions: Vec<Function>,
}

/// The frames of a thread, from the innermost one on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backtrace {
    /// The frames.
    pub frames: Vec<Frame>,
    /// Why there are no more, if the stack goes on.
    pub cut: Option<String>,
}

/// The objects of a process at a moment.
pub struct Objects {
    objects: Vec<Object>,
}

impl Objects {
    /// Those of the process that the engine has.
    ///
    /// # Errors
    /// The process is gone.
    pub fn of(
        engine: &mut Engine,
        trace: &TraceDir,
        image: &ImageInfo,
        mapped: &[Mapped],
    ) -> engine::Result<Objects> {
        let program = engine.program()?;
        let store = FileStore::for_replay(trace.path(), Verify::Size);
        let mut memory = Memory {
            engine,
            pages: BTreeMap::new(),
        };
        let auxv = |key| {
            program
                .auxv
                .iter()
                .find(|(k, _)| *k == key)
                .map(|(_, v)| *v)
        };
        let mut objects: BTreeMap<u64, Object> = BTreeMap::new();
        // The kernel, that is crewind, maps two objects; all others are mapped by the program.
        let of_image = |role| image.files.iter().find(move |f| f.role == role);
        let program_at = auxv(AT_PHDR).map(|at| at & !(PAGE - 1));
        for (at, role) in [
            (program_at, FileRole::Program),
            (auxv(AT_BASE), FileRole::Interpreter),
        ] {
            let (Some(at), Some(file)) = (at, of_image(role)) else {
                continue;
            };
            if let Some(mut o) = Object::at(&mut memory, at) {
                o.path = Some(Path::new(std::ffi::OsStr::from_bytes(file.path.as_slice())).into());
                o.file = store.open_ref(&file.file_ref()).ok();
                objects.insert(at, o);
            }
        }
        for m in mapped {
            if let Some(mut o) = Object::at(&mut memory, m.addr)
                && !objects.contains_key(&m.addr)
                && let Ok(file) = store.open_ref(&m.file)
                && same_begin(&mut memory, m.addr, &file)
            {
                o.file = Some(file);
                objects.insert(m.addr, o);
            }
        }
        let names = linker_list(&mut memory, program_at.and_then(|at| objects.get(&at)));
        for o in objects.values_mut() {
            if o.path.is_none()
                && let Some(path) = names.get(&o.bias).filter(|n| !n.is_empty())
            {
                o.path = Some(Path::new(std::ffi::OsStr::from_bytes(path)).into());
            }
            let name = o.path.as_deref().and_then(Path::file_name);
            o.name = name.map_or_else(|| "?".into(), |n| n.to_string_lossy().into_owned());
        }
        Ok(Objects {
            objects: objects.into_values().collect(),
        })
    }

    /// The content of the object of this path.
    pub fn file(&self, path: &Path) -> Option<File> {
        let object = self
            .objects
            .iter()
            .find(|o| o.path.as_deref() == Some(path))?;
        object.file.as_ref()?.try_clone().ok()
    }

    /// The frames of a thread.
    ///
    /// # Errors
    /// The process is gone.
    pub fn backtrace(&mut self, engine: &mut Engine, regs: &Registers) -> Backtrace {
        let mut memory = Memory {
            engine,
            pages: BTreeMap::new(),
        };
        let mut unwinder = UnwinderX86_64::new();
        for o in &self.objects {
            o.add_to(&mut memory, &mut unwinder);
        }
        let mut cache = CacheX86_64::new();
        let own = UnwindRegsX86_64::new(regs.rip, regs.gpr[RSP], regs.gpr[RBP]);
        let mut read = |at| memory.word(at).ok_or(());
        let mut addresses = Vec::new();
        let mut cut = None;
        let mut at = unwinder.iter_frames(regs.rip, own, &mut cache, &mut read);
        loop {
            match at.next() {
                Ok(Some(_)) if addresses.len() == MOST => {
                    cut = Some("more frames than are shown".to_owned());
                    break;
                }
                Ok(Some(frame)) => addresses.push(frame),
                Ok(None) => break,
                // What the stack of a thread or program ends with.
                Err(framehop::Error::ReturnAddressIsNull) => break,
                Err(e) => {
                    cut = Some(format!("the stack cannot be followed further: {e}"));
                    break;
                }
            }
        }
        // A call through a bad pointer: the caller is where the return address on the stack says.
        if addresses.len() == 1
            && !self.objects.iter().any(|o| o.range.contains(&regs.rip))
            && let Some(caller) = memory.word(regs.gpr[RSP])
            && self.objects.iter().any(|o| o.range.contains(&caller))
        {
            let own = UnwindRegsX86_64::new(caller, regs.gpr[RSP].wrapping_add(8), regs.gpr[RBP]);
            let mut read = |at| memory.word(at).ok_or(());
            let mut at = unwinder.iter_frames(caller, own, &mut cache, &mut read);
            cut = None;
            while addresses.len() < MOST
                && let Ok(Some(frame)) = at.next()
            {
                // The first is the address after a call, whatever it looks like.
                let frame = FrameAddress::from_return_address(frame.address()).unwrap_or(frame);
                addresses.push(frame);
            }
        }
        Backtrace {
            frames: addresses.into_iter().map(|a| self.frame(a)).collect(),
            cut,
        }
    }

    fn frame(&mut self, address: FrameAddress) -> Frame {
        let pc = address.address();
        let look_up = address.address_for_lookup();
        let Some(object) = self.objects.iter_mut().find(|o| o.range.contains(&look_up)) else {
            return Frame {
                pc,
                object: None,
                functions: Vec::new(),
            };
        };
        let bias = object.bias;
        let at = look_up.wrapping_sub(bias);
        let mut functions = Vec::new();
        for loader in object.symbols() {
            functions = functions_at(loader, at);
            if !functions.is_empty() {
                break;
            }
        }
        Frame {
            pc,
            object: Some((object.name.clone(), pc.wrapping_sub(bias))),
            functions,
        }
    }
}

fn functions_at(loader: &Loader, at: u64) -> Vec<Function> {
    let mut functions = Vec::new();
    if let Ok(mut frames) = loader.find_frames(at) {
        while let Ok(Some(frame)) = frames.next() {
            let name = frame
                .function
                .and_then(|f| f.demangle().ok().map(|n| n.into_owned()));
            let source = frame.location.and_then(|l| {
                let file = l.file?;
                Some(match l.line {
                    Some(line) => format!("{file}:{line}"),
                    None => file.to_owned(),
                })
            });
            functions.push(Function { name, source });
        }
    }
    let symbol = || {
        let name = loader.find_symbol(at)?;
        Some(addr2line::demangle_auto(name.into(), None).into_owned())
    };
    match functions.last_mut() {
        Some(last) if last.name.is_none() => last.name = symbol(),
        Some(_) => {}
        None => functions.extend(symbol().map(|name| Function {
            name: Some(name),
            source: None,
        })),
    }
    functions.retain(|f| f.name.is_some() || f.source.is_some());
    functions
}

/// Whether the process has this file at an address: others may have been there before.
fn same_begin(memory: &mut Memory<'_>, addr: u64, file: &File) -> bool {
    use std::os::unix::fs::FileExt;
    let mut begin = vec![0; PAGE as usize];
    let Ok(n) = file.read_at(&mut begin, 0) else {
        return false;
    };
    begin.truncate(n);
    memory
        .read(addr, n as u64)
        .is_ok_and(|bytes| bytes == begin)
}

/// Names of the objects by bias, from the dynamic linker's list.
fn linker_list(memory: &mut Memory<'_>, program: Option<&Object>) -> BTreeMap<u64, Vec<u8>> {
    let mut names = BTreeMap::new();
    let Some((dynamic, len)) = program.and_then(|p| p.header(PT_DYNAMIC)) else {
        return names;
    };
    let mut debug = None;
    for entry in (dynamic..dynamic.saturating_add(len.min(PAGE))).step_by(16) {
        match memory.word(entry) {
            Some(0) | None => break,
            Some(tag) if tag == DT_DEBUG as u64 => debug = memory.word(entry + 8),
            Some(_) => {}
        }
    }
    // `struct r_debug`: version, list; `struct link_map`: bias, name, dynamic section, next.
    let mut at = debug.and_then(|d| memory.word(d.wrapping_add(8)));
    while let Some(map) = at.filter(|m| *m != 0) {
        if names.len() == MOST_OBJECTS {
            break;
        }
        if let (Some(bias), Some(name)) = (memory.word(map), memory.word(map.wrapping_add(8))) {
            names.insert(bias, memory.text(name));
        }
        at = memory.word(map.wrapping_add(24));
    }
    names
}

impl Backtrace {
    /// One line for each function.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (n, f) in self.frames.iter().enumerate() {
            let place = match &f.object {
                Some((object, at)) => format!("{object}+{at:#x}"),
                None => "in no file".into(),
            };
            let none = [Function {
                name: None,
                source: None,
            }];
            let functions = if f.functions.is_empty() {
                &none[..]
            } else {
                &f.functions
            };
            for (depth, function) in functions.iter().enumerate() {
                let mut line = format!("{:<4}", format!("#{n}"));
                // Writing to a String does not fail.
                let _ = write!(line, "{:#018x} ", f.pc);
                line.push_str(function.name.as_deref().unwrap_or("??"));
                if let Some(source) = &function.source {
                    let _ = write!(line, " at {source}");
                }
                if depth + 1 < functions.len() {
                    line.push_str(" (inlined)");
                } else {
                    let _ = write!(line, " ({place})");
                }
                lines.push(line);
            }
        }
        lines.extend(self.cut.clone());
        lines
    }

    /// For `--json`.
    pub fn as_json(&self) -> serde_json::Value {
        let frames: Vec<_> = self
            .frames
            .iter()
            .map(|f| {
                let functions: Vec<_> = f
                    .functions
                    .iter()
                    .map(|f| serde_json::json!({ "name": f.name, "source": f.source }))
                    .collect();
                serde_json::json!({
                    "pc": f.pc,
                    "object": f.object.as_ref().map(|(name, _)| name),
                    "offset": f.object.as_ref().map(|(_, at)| at),
                    "functions": functions,
                })
            })
            .collect();
        serde_json::json!({ "frames": frames, "cut": self.cut })
    }
}
