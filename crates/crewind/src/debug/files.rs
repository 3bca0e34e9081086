//! Files for gdb: those of this machine where they are what was recorded, else the trace's copies.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crewind_debug::Find;
use crewind_guest::loader::FileRole;
use crewind_trace::{FileStore, TraceDir, Verify};
use object::Endianness;
use object::elf::{DT_SONAME, FileHeader64};
use object::read::ReadCache;
use object::read::elf::{Dyn, ElfFile64, FileHeader, ProgramHeader};

use super::Chosen;
use crate::backtrace::{Mapped, Objects, mapped_files};
use crate::fail::{Error, Result, say};
use crate::locate::trace_error;

/// Where libraries are that need no path.
const DIRECTORIES: [&str; 7] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
];

/// Finds the trace's copies of files that the process has mapped.
pub fn kept(trace: &TraceDir, chosen: &Chosen) -> Result<Find> {
    let mapped = mapped_files(trace, &chosen.path)?;
    let (trace, image) = (trace.clone(), chosen.image.clone());
    let store = FileStore::for_replay(trace.path(), Verify::Size);
    let of_image = |role| {
        let file = image.files.iter().find(|f| f.role == role)?;
        store.open_ref(&file.file_ref()).ok()
    };
    // The program names its interpreter by a path that may be a link to the one that the image has.
    let named = of_image(FileRole::Program).and_then(|p| interpreter_of(&p));
    let interpreter = named.zip(of_image(FileRole::Interpreter));
    let mut last: Option<Objects> = None;
    Ok(Box::new(move |engine, path| {
        if let Some((name, file)) = &interpreter
            && name == path
        {
            return file.try_clone().ok();
        }
        if let Some(file) = last.as_ref().and_then(|o| o.file(path)) {
            return Some(file);
        }
        // It may have been mapped since.
        let objects = Objects::of(engine, &trace, &image, &mapped).ok()?;
        let file = objects.file(path);
        last = Some(objects);
        file
    }))
}

/// Whether the libraries of this machine are those of the recording, as far as can be told: the trace has their contents,
/// and those have names.
pub fn are_here(trace: &TraceDir, chosen: &Chosen) -> Result<bool> {
    let store = FileStore::for_replay(trace.path(), Verify::Size);
    let path_of = |path: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(path));
    for file in &chosen.image.files {
        if file.role == FileRole::Interpreter
            && let Ok(kept) = store.open_ref(&file.file_ref())
            && !same_content(&path_of(file.path.as_slice()), &kept).unwrap_or(false)
        {
            return Ok(false);
        }
    }
    let program = chosen.image.program().map(|f| path_of(f.path.as_slice()));
    let beside = program.as_deref().and_then(Path::parent);
    let mut seen = BTreeSet::new();
    for Mapped { file, .. } in mapped_files(trace, &chosen.path)? {
        if !seen.insert(file.hash) {
            continue;
        }
        let Ok(kept) = store.open_ref(&file) else {
            continue;
        };
        let Some(name) = name_of(&kept) else {
            continue;
        };
        let here = DIRECTORIES
            .iter()
            .map(Path::new)
            .chain(beside)
            .any(|d| same_content(&d.join(&name), &kept).unwrap_or(false));
        if !here {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The path that a program gives for its interpreter.
fn interpreter_of(file: &File) -> Option<PathBuf> {
    let cache = ReadCache::new(file);
    let elf: ElfFile64<Endianness, _> = ElfFile64::parse(&cache).ok()?;
    let (endian, data) = (elf.endian(), elf.data());
    let name = elf
        .elf_program_headers()
        .iter()
        .find_map(|h| h.interpreter(endian, data).ok().flatten())?;
    Some(std::ffi::OsStr::from_bytes(name).into())
}

/// The name that a library has for those that need it.
fn name_of(file: &File) -> Option<OsString> {
    let cache = ReadCache::new(file);
    let elf: ElfFile64<Endianness, _> = ElfFile64::parse(&cache).ok()?;
    let (endian, data) = (elf.endian(), elf.data());
    let header: &FileHeader64<Endianness> = elf.elf_header();
    let sections = header.sections(endian, data).ok()?;
    let (entries, strings) = sections.dynamic(endian, data).ok()??;
    let strings = sections.strings(endian, data, strings).ok()?;
    let name = entries
        .iter()
        .find(|e| e.tag(endian) == DT_SONAME)?
        .string(endian, strings)
        .ok()?;
    (!name.contains(&b'/')).then(|| std::ffi::OsStr::from_bytes(name).into())
}

/// The program's file for gdb: where it was, if that is still the same one, else the one that the trace keeps.
pub fn executable(trace: &TraceDir, chosen: &Chosen, place: &Path) -> Result<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let file = chosen
        .image
        .program()
        .ok_or_else(|| Error::internal("the trace names no program"))?;
    let there = PathBuf::from(std::ffi::OsStr::from_bytes(file.path.as_slice()));
    let kept = FileStore::for_replay(trace.path(), Verify::Hash)
        .open_ref(&file.file_ref())
        .map_err(|e| trace_error(&e))?;
    if same_content(&there, &kept).unwrap_or(false) {
        return Ok(there);
    }
    say(&format!(
        "{} has changed since the recording; using the trace's copy",
        there.display()
    ));
    let name = there
        .file_name()
        .map_or_else(|| OsString::from("program"), Into::into);
    let copy = place.join(name);
    let mut from = kept;
    std::fs::File::create(&copy)
        .and_then(|mut to| io::copy(&mut from, &mut to))
        .map_err(|e| Error::internal(format!("cannot copy the program: {e}")))?;
    Ok(copy)
}

fn same_content(path: &Path, kept: &std::fs::File) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(path)?;
    if file.metadata()?.len() != kept.metadata()?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut at = 0;
    loop {
        let n = file.read_at(&mut a, at)?;
        if n == 0 {
            return Ok(true);
        }
        let (Some(a), Some(b)) = (a.get(..n), b.get_mut(..n)) else {
            return Ok(false);
        };
        kept.read_exact_at(b, at)?;
        if a != b {
            return Ok(false);
        }
        at += n as u64;
    }
}
