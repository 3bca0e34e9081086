//! A recorded process's own ways into its trace, which it keeps when it gives up its user or changes its root.
//!
//! The trace directory is closed to others, so paths to what is in it stop working for a process that changes its
//! user. The recorder opens the directories and the session while it may, and recorded processes pass the
//! descriptors on to what they fork and execute. When the recorder is root, which alone can become somebody else, the
//! two directories and the streams' files are open to everybody, behind the trace directory that is not: only
//! holders of these descriptors get there.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::error::{Result, TraceError};
use crate::files::FILES;
use crate::segment::STREAMS;
use crate::session::SESSION;
use crate::sys;

/// Descriptors of a trace's directories and session, which must stay open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchors {
    /// Of the directory of streams.
    pub streams: RawFd,
    /// Of the directory of files' contents.
    pub files: RawFd,
    /// Of the session.
    pub session: RawFd,
}

static OWN: OnceLock<(PathBuf, Anchors)> = OnceLock::new();

/// Opens them for the trace in `dir`, whose session is there: streams, files, session.
///
/// # Errors
/// One of them cannot be opened.
pub fn open_anchors(dir: &Path) -> Result<[OwnedFd; 3]> {
    let opened = (|| {
        let trace = sys::open_dir(dir)?;
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        Ok::<_, io::Error>([
            sys::open_at(&trace, STREAMS, flags, 0)?.into(),
            sys::open_at(&trace, FILES, flags, 0)?.into(),
            sys::open_at(&trace, SESSION, libc::O_RDWR, 0)?.into(),
        ])
    })();
    opened.map_err(|e| TraceError::io(dir, "open", e))
}

/// Lets this process use `anchors` for the trace in `dir`, from now on.
pub fn anchor(dir: &Path, anchors: Anchors) {
    let _ = OWN.set((sys::absolute(dir), anchors));
}

/// This process's way to the subdirectory or file `name` of the trace in `dir`.
pub(crate) fn anchored(dir: &Path, name: &str) -> Option<io::Result<File>> {
    let (own, anchors) = OWN.get()?;
    let fd = match name {
        STREAMS => anchors.streams,
        FILES => anchors.files,
        SESSION => anchors.session,
        _ => return None,
    };
    if own != dir {
        return None;
    }
    // SAFETY: duplicates a descriptor; takes no pointer.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Some(Err(io::Error::last_os_error()));
    }
    // SAFETY: just returned by the kernel, nobody else owns it.
    Some(Ok(unsafe { File::from_raw_fd(copy) }))
}

/// Whether this process may write to the trace in `dir`.
pub fn may_write(dir: &Path) -> bool {
    let writable = |name| {
        sys::open_subdir(dir, name).is_ok_and(|d| {
            let rights = libc::R_OK | libc::W_OK | libc::X_OK;
            // SAFETY: a literal name; changes nothing.
            unsafe { libc::faccessat(d.as_raw_fd(), c".".as_ptr(), rights, libc::AT_EACCESS) == 0 }
        })
    };
    writable(STREAMS) && writable(FILES)
}

/// Opens the directories of a new trace to whoever this recorder's processes become, if it may become anybody.
pub(crate) fn let_others_in(dir: &Path) -> io::Result<()> {
    // SAFETY: returns a number.
    let root = unsafe { libc::geteuid() } == 0;
    if !root || std::fs::metadata(dir)?.mode() & 0o077 != 0 {
        return Ok(());
    }
    for sub in [STREAMS, FILES] {
        std::fs::set_permissions(dir.join(sub), Permissions::from_mode(0o777))?;
    }
    Ok(())
}

/// The rights that a segment's file gets in the directory of streams.
pub(crate) fn segment_rights(streams: &File) -> io::Result<Permissions> {
    let open = streams.metadata()?.mode() & 0o002 != 0;
    Ok(Permissions::from_mode(if open { 0o666 } else { 0o600 }))
}
