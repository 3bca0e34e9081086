//! Finding the program to record as `execvp` does, and telling early why it cannot run.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::fail::{CANNOT_EXECUTE, Error, NOT_FOUND, Result};

/// What to execute.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// The file, as the kernel would get it.
    pub file: PathBuf,
    /// The argument vector.
    pub argv: Vec<OsString>,
    /// Things that the user should know before it starts.
    pub warnings: Vec<String>,
}

/// Finds the program of a command line, in `path` (the value of `PATH`) unless its name has a slash.
pub fn find(command: &[OsString], path: Option<&OsStr>) -> Result<Program> {
    let name = command
        .first()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| {
            Error::usage(
                "no program given; give one after `record`, as in `crewind record -- ls -l`",
            )
        })?;
    let file = if name.as_bytes().contains(&b'/') {
        let file = PathBuf::from(name);
        check(&file)?;
        file
    } else {
        search(name, path)?
    };
    let mut program = Program {
        file,
        argv: command.to_vec(),
        warnings: Vec::new(),
    };
    inspect(&mut program)?;
    Ok(program)
}

fn search(name: &OsStr, path: Option<&OsStr>) -> Result<PathBuf> {
    let path = path.unwrap_or(OsStr::new("/bin:/usr/bin"));
    let mut denied = None;
    for directory in path.as_bytes().split(|&b| b == b':') {
        // An empty element is the current directory.
        let file = match directory {
            [] => Path::new(".").join(name),
            _ => Path::new(OsStr::from_bytes(directory)).join(name),
        };
        match check(&file) {
            Ok(()) => return Ok(file),
            Err(e) if e.status == CANNOT_EXECUTE && file.is_file() => denied = Some(e),
            Err(_) => {}
        }
    }
    Err(denied.unwrap_or_else(|| Error {
        status: NOT_FOUND,
        message: format!(
            "{}: no such program in PATH; check the name, or give a path with a slash",
            name.display()
        ),
    }))
}

/// Checks that a file is there and may be executed.
fn check(file: &Path) -> Result<()> {
    let cannot = |why: String| Error {
        status: CANNOT_EXECUTE,
        message: format!("cannot execute {}: {why}", file.display()),
    };
    let meta = match std::fs::metadata(file) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error {
                status: NOT_FOUND,
                message: format!("{}: no such file", file.display()),
            });
        }
        Err(e) => return Err(cannot(e.to_string())),
    };
    if meta.is_dir() {
        return Err(cannot("it is a directory".into()));
    }
    let name = CString::new(file.as_os_str().as_bytes())
        .map_err(|_| cannot("its name holds a NUL byte".into()))?;
    // SAFETY: `name` is NUL-terminated and lives over the call.
    let allowed =
        unsafe { libc::faccessat(libc::AT_FDCWD, name.as_ptr(), libc::X_OK, libc::AT_EACCESS) }
            == 0;
    // Root may "execute" by access() only what has some x bit; the kernel agrees.
    if !allowed || meta.permissions().mode() & 0o111 == 0 {
        return Err(cannot(
            "permission denied; `chmod +x` makes a program executable".into(),
        ));
    }
    Ok(())
}

/// Looks at the first bytes: a text without `#!` is run by the shell, as `execvp` does; other machines' programs and
/// data are refused with a reason. What cannot be read is left to the guest process.
fn inspect(program: &mut Program) -> Result<()> {
    let shown = program.file.display().to_string();
    let Ok(mut file) = File::open(&program.file) else {
        return Ok(());
    };
    if let Ok(meta) = file.metadata()
        && meta.mode() & 0o6000 != 0
        && !caller_is_root()
    {
        program.warnings.push(format!(
            "{shown} is set-user-id or set-group-id; it runs with your own rights when recorded, and may fail"
        ));
    }
    let mut head = [0; 128];
    let mut length = 0;
    while let Some(rest) = head.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(_) => return Ok(()),
        }
    }
    let head = head.get(..length).unwrap_or_default();
    if let Some(rest) = head.strip_prefix(b"\x7fELF") {
        return check_elf(rest)
            .map_err(|why| Error::unsupported(format!("cannot record {shown}: {why}")));
    }
    if head.starts_with(b"#!") {
        return Ok(());
    }
    let line = head.split(|&b| b == b'\n').next().unwrap_or_default();
    if line.contains(&0) {
        return Err(Error {
            status: CANNOT_EXECUTE,
            message: format!("cannot execute {shown}: neither an ELF program nor a script"),
        });
    }
    let mut argv: Vec<OsString> = vec!["/bin/sh".into(), program.file.clone().into()];
    argv.extend(program.argv.drain(..).skip(1));
    program.argv = argv;
    program.file = "/bin/sh".into();
    Ok(())
}

/// Checks class, byte order and machine; `rest` is what follows the magic.
fn check_elf(rest: &[u8]) -> std::result::Result<(), String> {
    const CLASS_64: u8 = 2;
    const LITTLE_ENDIAN: u8 = 1;
    const X86_64: u16 = 62;
    let machine = rest
        .get(14..16)
        .and_then(|b| b.try_into().ok())
        .map(u16::from_le_bytes);
    match (rest.first(), rest.get(1), machine) {
        (Some(&CLASS_64), Some(&LITTLE_ENDIAN), Some(X86_64)) => Ok(()),
        (Some(1), ..) => Err(
            "it is a 32-bit program, crewind records 64-bit x86 programs; build it with -m64"
                .into(),
        ),
        (.., Some(machine)) => Err(format!(
            "it is for another processor (ELF machine {machine}), crewind records x86-64 programs; build it for x86-64"
        )),
        _ => Err("its ELF header is cut short; copy or build it again".into()),
    }
}

fn caller_is_root() -> bool {
    // SAFETY: has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn searches_like_execvp() {
        let found = find(
            &command(&["sh", "-c", "x"]),
            Some(OsStr::new("/no/such:/bin")),
        )
        .unwrap();
        assert_eq!(found.file, Path::new("/bin/sh"));
        assert_eq!(found.argv, ["sh", "-c", "x"]);
        assert_eq!(
            find(&command(&["sh"]), Some(OsStr::new("/no/such")))
                .unwrap_err()
                .status,
            NOT_FOUND
        );
        assert_eq!(
            find(&command(&["/bin"]), None).unwrap_err().status,
            CANNOT_EXECUTE
        );
        assert_eq!(
            find(&command(&["/etc/passwd"]), None).unwrap_err().status,
            CANNOT_EXECUTE
        );
        assert_eq!(
            find(&command(&["/no/such"]), None).unwrap_err().status,
            NOT_FOUND
        );
        assert_eq!(find(&command(&[""]), None).unwrap_err().status, 120);
    }

    #[test]
    fn other_machines_are_named() {
        let mut header = [0; 60];
        header[0] = 2;
        header[1] = 1;
        header[14] = 183;
        assert!(check_elf(&header).unwrap_err().contains("183"));
        header[14] = 62;
        assert!(check_elf(&header).is_ok());
        header[0] = 1;
        assert!(check_elf(&header).unwrap_err().contains("32-bit"));
        assert!(check_elf(&[]).is_err());
    }
}
