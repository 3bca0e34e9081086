//! Finding out what an `execve` would do.

use super::elf::{Elf, HEADER_LEN};
use super::script::{self, HEAD_LEN};
use super::{ExecError, FileProvider, FileRole, ImageFile, Source};
use crate::errno::Errno;
use crate::layout::is_guest;
use crate::mm::FileId;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};

/// Scripts whose interpreters are scripts: how many the kernel follows.
const SCRIPTS_MAX: usize = 5;

/// A file that the program needs, open.
#[derive(Debug)]
pub struct PlannedFile {
    /// What it is.
    pub role: FileRole,
    /// Open for reading, close-on-exec.
    pub file: File,
    /// Device, inode, full path.
    pub id: FileId,
    /// Size in bytes.
    pub len: u64,
    /// What is to be mapped.
    pub elf: Elf,
}

/// A program that can be executed.
#[derive(Debug)]
pub struct Plan {
    /// Path as given to `execve`.
    pub execfn: Vec<u8>,
    /// Arguments, with those that scripts add.
    pub argv: Vec<Vec<u8>>,
    /// The program, then its interpreter if it has one.
    pub files: Vec<PlannedFile>,
    /// The program has a set-user-id or set-group-id bit, which is not honoured: tell the user.
    pub set_id: bool,
}

/// Checks what executing the file at `path` would run, as the kernel does before the point of no return.
///
/// `execfn` is the path as the guest gave it (`/dev/fd/N/...` for `execveat`); `path` is how to open it.
/// Sizes of arguments are not judged here: see [`super::check_sizes`].
pub fn plan(path: &[u8], execfn: &[u8], argv: &[Vec<u8>]) -> Result<Plan, ExecError> {
    let mut argv = argv.to_vec();
    if argv.is_empty() {
        argv.push(Vec::new());
    }
    let mut path = path.to_vec();
    let mut name = execfn.to_vec();
    for _ in 0..=SCRIPTS_MAX {
        let opened = Opened::new(&path)?;
        let Some(line) = script_line(&opened)? else {
            return finish(opened, execfn.to_vec(), argv);
        };
        argv.remove(0);
        argv.insert(0, name);
        argv.splice(
            0..0,
            [Some(line.interp.clone()), line.arg].into_iter().flatten(),
        );
        path.clone_from(&line.interp);
        name = line.interp;
    }
    Err(ExecError::new(
        libc::ELOOP,
        format!("{}: too many levels of scripts", show(execfn)),
    ))
}

fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// A regular file that may be executed and can be read.
struct Opened {
    path: Vec<u8>,
    file: File,
    head: [u8; HEAD_LEN],
    head_len: usize,
    len: u64,
    id: FileId,
    set_id: bool,
}

impl Opened {
    fn new(path: &[u8]) -> Result<Opened, ExecError> {
        let fail = |e: Errno, what: &str| ExecError {
            errno: e,
            text: format!("{}: {what}", show(path)),
        };
        let c_path =
            CString::new(path).map_err(|_| fail(Errno(libc::ENOENT), "has a NUL in its name"))?;
        // Without opening it for reading first: that may block or do something, if it is not a regular file.
        // SAFETY: the path is NUL-terminated; the descriptor returned is owned by nobody else.
        let by_path = unsafe {
            let fd = libc::open(c_path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC);
            if fd < 0 {
                return Err(fail(Errno::last(), "cannot be opened"));
            }
            File::from_raw_fd(fd)
        };
        let meta = by_path
            .metadata()
            .map_err(|e| fail(e.into(), "cannot be examined"))?;
        if !meta.is_file() {
            return Err(fail(Errno(libc::EACCES), "is not a regular file"));
        }
        let again = format!("/proc/self/fd/{}", by_path.as_raw_fd());
        let c_again = CString::new(again.as_str()).unwrap_or_default();
        // SAFETY: the path is NUL-terminated.
        if unsafe {
            libc::faccessat(
                libc::AT_FDCWD,
                c_again.as_ptr(),
                libc::X_OK,
                libc::AT_EACCESS,
            )
        } != 0
        {
            return Err(fail(Errno(libc::EACCES), "is not executable"));
        }
        let file = File::open(&again).map_err(|e| {
            fail(
                e.into(),
                "cannot be read; a program has to be, to be recorded",
            )
        })?;
        let full = std::fs::read_link(&again).map(|p| p.into_os_string().into_vec());
        let mut head = [0; HEAD_LEN];
        let head_len = read_up_to(&file, &mut head, 0).map_err(|e| fail(e, "cannot be read"))?;
        Ok(Opened {
            path: path.to_vec(),
            file,
            head,
            head_len,
            len: meta.len(),
            id: FileId {
                dev: meta.dev(),
                ino: meta.ino(),
                path: full.unwrap_or_else(|_| path.to_vec()).into(),
            },
            set_id: meta.mode() & (libc::S_ISUID | libc::S_ISGID) != 0,
        })
    }

    fn elf(&self) -> Result<Elf, ExecError> {
        let head = &self.head[..self.head_len.max(HEADER_LEN)];
        let (offset, len) = Elf::phdr_table(head)?;
        let mut phdrs = vec![0; len];
        let got = read_up_to(&self.file, &mut phdrs, offset).map_err(|e| ExecError {
            errno: e,
            text: "program headers cannot be read".into(),
        })?;
        phdrs.truncate(got);
        Elf::parse(head, &phdrs, self.len)
    }

    fn planned(self, role: FileRole, elf: Elf) -> PlannedFile {
        PlannedFile {
            role,
            file: self.file,
            id: self.id,
            len: self.len,
            elf,
        }
    }
}

fn read_up_to(file: &File, buf: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < buf.len() {
        let Some(at) = offset
            .checked_add(done as u64)
            .filter(|&at| at < i64::MAX as u64)
        else {
            break;
        };
        match file.read_at(&mut buf[done..], at) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(done)
}

fn script_line(opened: &Opened) -> Result<Option<script::Shebang>, ExecError> {
    if !opened.head.starts_with(b"#!") {
        return Ok(None);
    }
    let none = || {
        ExecError::new(
            libc::ENOEXEC,
            format!("{}: '#!' names no interpreter", show(&opened.path)),
        )
    };
    script::parse(&opened.head).map(Some).ok_or_else(none)
}

fn finish(opened: Opened, execfn: Vec<u8>, argv: Vec<Vec<u8>>) -> Result<Plan, ExecError> {
    let name = show(&opened.path);
    let named = |e: ExecError| ExecError {
        text: format!("{name}: {}", e.text),
        ..e
    };
    let set_id = opened.set_id;
    let elf = opened.elf().map_err(named)?;
    check_place(&elf).map_err(named)?;
    let interp = match elf.interp {
        None => None,
        Some((offset, len)) => Some(interpreter(&opened, offset, len).map_err(named)?),
    };
    let mut files = vec![opened.planned(FileRole::Program, elf)];
    files.extend(interp);
    Ok(Plan {
        execfn,
        argv,
        files,
        set_id,
    })
}

/// A program at fixed addresses must not be where the runtime is.
fn check_place(elf: &Elf) -> Result<(), ExecError> {
    if !elf.fixed {
        return Ok(());
    }
    for s in &elf.segments {
        let pages = s.pages();
        if !is_guest(pages.start, pages.end - pages.start) {
            return Err(ExecError::new(
                libc::ENOEXEC,
                format!(
                    "is linked at {:#x}, which the recorder needs; link it as a PIE",
                    pages.start
                ),
            ));
        }
    }
    Ok(())
}

fn interpreter(program: &Opened, offset: u64, len: u64) -> Result<PlannedFile, ExecError> {
    let mut path = vec![0; len as usize];
    let got = read_up_to(&program.file, &mut path, offset).map_err(|e| ExecError {
        errno: e,
        text: "interpreter path cannot be read".into(),
    })?;
    if got as u64 != len {
        return Err(ExecError::new(
            libc::EIO,
            "interpreter path is beyond the end of the file",
        ));
    }
    if path.pop() != Some(0) {
        return Err(ExecError::new(libc::ENOEXEC, "interpreter path has no end"));
    }
    path.truncate(path.iter().position(|&b| b == 0).unwrap_or(path.len()));
    let opened = Opened::new(&path)?;
    let wrong = |e: ExecError| {
        let text = format!(
            "ELF interpreter {}: {}",
            OsStr::from_bytes(&path).display(),
            e.text
        );
        ExecError {
            errno: Errno(libc::ELIBBAD),
            text,
        }
    };
    let elf = opened.elf().map_err(wrong)?;
    check_place(&elf).map_err(wrong)?;
    Ok(opened.planned(FileRole::Interpreter, elf))
}

/// Provides the files of a plan themselves: what a recording loads is what was planned, whatever happened to
/// the paths since.
#[derive(Debug)]
pub struct OriginalFiles<'a>(pub &'a Plan);

impl FileProvider for OriginalFiles<'_> {
    fn open(&self, file: &ImageFile) -> Result<Source, Errno> {
        let planned = self
            .0
            .files
            .iter()
            .find(|f| f.role == file.role)
            .ok_or(Errno(libc::ENOENT))?;
        Ok(Source::Original(planned.file.try_clone()?))
    }
}
