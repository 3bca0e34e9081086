//! `/proc/self` as the guest sees it, when recording.

use crate::fds::Info;
use crate::guestmem;
use crate::procfs::{self, ProcFile, ProcessView};
use crate::runtime::Runtime;
use crate::signal::{DFL, IGN, MAX, bit};
use crate::thread::Thread;

impl Runtime {
    /// Text of a file below `/proc/self` whose real one would show the runtime; `None` for all other paths.
    pub fn proc_text(&mut self, th: &mut Thread, path: &[u8]) -> Option<Vec<u8>> {
        let p = procfs::classify(path, self.pid)?;
        let read = |addr: u64, buf: &mut [u8]| match guestmem::copy_from_guest(buf, addr) {
            Ok(()) => buf.len(),
            Err(f) => f.copied,
        };
        let area = self.loaded.args;
        Some(match p.file {
            ProcFile::Maps => self.space.render_maps(),
            ProcFile::Smaps => self.space.render_smaps(),
            ProcFile::Cmdline => procfs::cmdline(&area, read),
            ProcFile::Environ => procfs::environ(&area, read),
            ProcFile::Auxv => procfs::auxv(&self.loaded.auxv),
            ProcFile::Stat => procfs::stat(&std::fs::read(own(path)).ok()?, &self.process_view(th)),
            ProcFile::Statm => {
                procfs::statm(&std::fs::read(own(path)).ok()?, &self.process_view(th))
            }
            ProcFile::Status => {
                procfs::status(&std::fs::read(own(path)).ok()?, &self.process_view(th))
            }
            _ => return None,
        })
    }

    /// Target of a link below `/proc/self` that would lead to the runtime.
    pub fn proc_link(&mut self, _th: &mut Thread, path: &[u8]) -> Option<Vec<u8>> {
        let p = procfs::classify(path, self.pid)?;
        match p.file {
            ProcFile::Exe => self.image.program().map(|f| f.path.0.clone()),
            _ => None,
        }
    }

    /// The file behind `/proc/self/exe`, for opening and executing.
    pub fn guest_exe(&self, path: &[u8]) -> Option<Vec<u8>> {
        let p = procfs::classify(path, self.pid)?;
        (p.file == ProcFile::Exe).then(|| self.image.program().map(|f| f.path.0.clone()))?
    }

    /// Remembers directories of descriptors, whose listings hide the runtime's.
    pub fn is_fd_directory(&mut self, fd: i32) -> bool {
        let Info { dev, ino, .. } = self.fds.info(fd);
        if self.fd_directories.contains(&(dev, ino)) {
            return true;
        }
        // Only /proc has such directories, and its inodes are on a device without blocks (major 0).
        if libc::major(dev) != 0 {
            return false;
        }
        let Ok(target) = std::fs::read_link(format!("/proc/self/fd/{fd}")) else {
            return false;
        };
        use std::os::unix::ffi::OsStrExt;
        let is = procfs::classify(target.as_os_str().as_bytes(), self.pid)
            .is_some_and(|p| matches!(p.file, ProcFile::FdDir | ProcFile::FdInfoDir));
        if is {
            self.fd_directories.insert((dev, ino));
        }
        is
    }

    fn process_view(&self, th: &mut Thread) -> ProcessView {
        let (mut ignored, mut caught) = (0, 0);
        for s in 1..=MAX as u32 {
            match self.actions[s as usize].handler {
                DFL => {}
                IGN => ignored |= bit(s),
                _ => caught |= bit(s),
            }
        }
        ProcessView {
            comm: self.comm.clone(),
            threads: self.threads.len() as u32,
            vsize: self.space.mapped_bytes(),
            sig_blocked: th.mask,
            sig_ignored: ignored,
            sig_caught: caught,
            ..self.loaded.process_view()
        }
    }
}

fn own(path: &[u8]) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStrExt;
    std::path::PathBuf::from(std::ffi::OsStr::from_bytes(path))
}
