//! Files of the process, for front ends that read them from here (`set sysroot target:`): as they were recorded.

use crate::engine::{Engine, Error};
use crate::target::Session;
use gdbstub::target::ext::host_io::{
    FsKind, HostIo, HostIoClose, HostIoCloseOps, HostIoErrno, HostIoError, HostIoFstat,
    HostIoFstatOps, HostIoOpen, HostIoOpenFlags, HostIoOpenMode, HostIoOpenOps, HostIoPread,
    HostIoPreadOps, HostIoResult, HostIoSetfs, HostIoSetfsOps, HostIoStat,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Finds the content of a file that the process has mapped, by the path that the process knows it by.
pub type Find = Box<dyn FnMut(&mut Engine, &Path) -> Option<File>>;

/// Most files that are open at a time.
const MOST: usize = 4096;

/// Files that front ends may read.
#[derive(Default)]
pub(crate) struct Files {
    find: Option<Find>,
    open: BTreeMap<u32, File>,
}

impl Files {
    /// Closes all files.
    pub(crate) fn close(&mut self) {
        self.open.clear();
    }
}

impl Session {
    /// Lets front ends read files of the process. They get no others: who can connect here may be somebody else.
    pub fn set_files(&mut self, find: Find) {
        self.files.find = Some(find);
    }

    fn open_file(&self, fd: u32) -> Result<&File, HostIoError<Error>> {
        self.files
            .open
            .get(&fd)
            .ok_or(HostIoError::Errno(HostIoErrno::EBADF))
    }
}

impl HostIo for Session {
    fn support_open(&mut self) -> Option<HostIoOpenOps<'_, Self>> {
        Some(self)
    }

    fn support_close(&mut self) -> Option<HostIoCloseOps<'_, Self>> {
        Some(self)
    }

    fn support_pread(&mut self) -> Option<HostIoPreadOps<'_, Self>> {
        Some(self)
    }

    fn support_fstat(&mut self) -> Option<HostIoFstatOps<'_, Self>> {
        Some(self)
    }

    fn support_setfs(&mut self) -> Option<HostIoSetfsOps<'_, Self>> {
        Some(self)
    }
}

impl HostIoOpen for Session {
    fn open(
        &mut self,
        filename: &[u8],
        flags: HostIoOpenFlags,
        _: HostIoOpenMode,
    ) -> HostIoResult<u32, Self> {
        let writes = HostIoOpenFlags::O_WRONLY
            | HostIoOpenFlags::O_RDWR
            | HostIoOpenFlags::O_CREAT
            | HostIoOpenFlags::O_TRUNC;
        if flags.intersects(writes) {
            return Err(HostIoError::Errno(HostIoErrno::EROFS));
        }
        let path = Path::new(std::ffi::OsStr::from_bytes(filename));
        let engine = self.timeline.engine();
        let found = self.files.find.as_mut().and_then(|f| f(engine, path));
        let file = found.ok_or(HostIoError::Errno(HostIoErrno::ENOENT))?;
        let open = &mut self.files.open;
        let fd = (0..).find(|fd| !open.contains_key(fd)).unwrap_or(0);
        if open.len() >= MOST {
            return Err(HostIoError::Errno(HostIoErrno::EMFILE));
        }
        open.insert(fd, file);
        Ok(fd)
    }
}

impl HostIoClose for Session {
    fn close(&mut self, fd: u32) -> HostIoResult<(), Self> {
        match self.files.open.remove(&fd) {
            Some(_) => Ok(()),
            None => Err(HostIoError::Errno(HostIoErrno::EBADF)),
        }
    }
}

impl HostIoPread for Session {
    fn pread(
        &mut self,
        fd: u32,
        count: usize,
        offset: u64,
        buf: &mut [u8],
    ) -> HostIoResult<usize, Self> {
        let n = count.min(buf.len());
        let into = buf.get_mut(..n).unwrap_or_default();
        Ok(self.open_file(fd)?.read_at(into, offset)?)
    }
}

impl HostIoFstat for Session {
    fn fstat(&mut self, fd: u32) -> HostIoResult<HostIoStat, Self> {
        let size = self.open_file(fd)?.metadata()?.len();
        Ok(HostIoStat {
            st_dev: 0,
            st_ino: 0,
            st_mode: HostIoOpenMode::S_IFREG | HostIoOpenMode::S_IRUSR,
            st_nlink: 1,
            st_uid: 0,
            st_gid: 0,
            st_rdev: 0,
            st_size: size,
            st_blksize: 4096,
            st_blocks: size.div_ceil(512),
            st_atime: 0,
            // Not "now", or gdb reads it again and again.
            st_mtime: 1,
            st_ctime: 1,
        })
    }
}

impl HostIoSetfs for Session {
    fn setfs(&mut self, _: FsKind) -> HostIoResult<(), Self> {
        // There is one process.
        Ok(())
    }
}
