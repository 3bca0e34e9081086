//! Calls that change files: what the guest then sees in its mappings of them is an effect of the call.

use std::ops::Range;

use super::{Call, capture};
use crate::runtime::{GuestMem, Runtime};
use crewind_syscalls::{FileEffect, Row};
use crewind_trace::event::MemWrite;

/// A file that is mapped, before a call that may change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedFile {
    dev: u64,
    ino: u64,
    /// Its descriptor, unless it was named by a path.
    fd: Option<i32>,
    state: State,
}

/// What tells where a call wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    /// Position of the descriptor.
    pos: u64,
    /// Size of the file.
    size: u64,
    /// Whether all writes go to the end.
    append: bool,
}

const ALL: Range<u64> = 0..u64::MAX;

impl Runtime {
    /// The file that a call may change, if the guest has mapped it.
    pub(super) fn mapped_file(&mut self, row: &Row, call: &Call) -> Option<MappedFile> {
        if row.file == FileEffect::None {
            return None;
        }
        let (dev, ino, fd, size) = match crewind_syscalls::file_effect(row, &call.args, &GuestMem) {
            FileEffect::Fd(a) | FileEffect::TruncateFd(a) => {
                let fd = call.int(usize::from(a));
                let info = self.fds.info(fd);
                (info.dev, info.ino, Some(fd), None)
            }
            FileEffect::TruncatePath(a) => {
                let path = crate::guestmem::read_path(call.args[usize::from(a)]).ok()?;
                let (dev, ino, size) = stat(&path)?;
                (dev, ino, None, Some(size))
            }
            _ => return None,
        };
        if ino == 0 || self.space.overlaps(dev, ino, 0, u64::MAX).is_empty() {
            return None;
        }
        let state = match fd {
            Some(fd) => state(fd),
            None => State {
                pos: 0,
                size: size.unwrap_or(0),
                append: false,
            },
        };
        Some(MappedFile {
            dev,
            ino,
            fd,
            state,
        })
    }

    /// Logs what the guest now sees in mappings of a file that a successful call changed.
    pub(super) fn refresh_mappings(
        &mut self,
        row: &Row,
        call: &Call,
        ret: i64,
        outs: &mut Vec<MemWrite<'_>>,
        mapped: Option<&MappedFile>,
    ) {
        let (dev, ino, range) = match mapped {
            Some(m) => {
                let after = m.fd.map_or(m.state, state);
                // A thread may have closed the descriptor meanwhile, and reused its number.
                let same =
                    m.fd.is_none_or(|fd| crate::fds::identity(fd) == Some((m.dev, m.ino)));
                let range = if same {
                    changed(call, ret, m.state, after)
                } else {
                    ALL
                };
                (m.dev, m.ino, range)
            }
            // Truncated by the open.
            None => match crewind_syscalls::file_effect(row, &call.args, &GuestMem) {
                FileEffect::Creat | FileEffect::OpenTrunc(_) | FileEffect::OpenHowTrunc(_) => {
                    let info = self.fds.info(ret as i32);
                    (info.dev, info.ino, ALL)
                }
                _ => return,
            },
        };
        if ino == 0 {
            return;
        }
        let len = range.end.saturating_sub(range.start);
        for (addr, len) in self.space.overlaps(dev, ino, range.start, len) {
            // By pages: those behind the end of the file cannot be read.
            let mut at = addr;
            while at < addr + len {
                let page_end = (at & !(crate::layout::PAGE - 1)) + crate::layout::PAGE;
                let n = page_end.min(addr + len) - at;
                outs.extend(capture(at, n));
                at += n;
            }
        }
    }
}

/// Which part of a file a successful call changed; all of it when that is not certain: when somebody else moved the
/// position meanwhile.
fn changed(call: &Call, ret: i64, before: State, after: State) -> Range<u64> {
    let count = u64::try_from(ret).unwrap_or(0);
    let at_end = || {
        if after.size == before.size.saturating_add(count) || count <= after.size && before.append {
            after.size.saturating_sub(count)..after.size
        } else {
            ALL
        }
    };
    let at_position = || {
        if before.append {
            // The position is then behind what was written.
            if after.pos >= count && after.pos == after.size {
                return after.pos - count..after.pos;
            }
            return ALL;
        }
        if before.pos.checked_add(count) == Some(after.pos) {
            before.pos..after.pos
        } else {
            ALL
        }
    };
    let behind_pointer = |pointer: u64| match crate::guestmem::read_u64(pointer) {
        Ok(end) if end >= count => end - count..end,
        _ => ALL,
    };
    let [_, _, c, d, ..] = call.args;
    match i64::from(call.nr) {
        libc::SYS_write | libc::SYS_writev | libc::SYS_sendfile => at_position(),
        libc::SYS_pwrite64 | libc::SYS_pwritev | libc::SYS_pwritev2 => {
            let current = i64::from(call.nr) == libc::SYS_pwritev2 && d == u64::MAX;
            let flags = if i64::from(call.nr) == libc::SYS_pwritev2 {
                call.int(5)
            } else {
                0
            };
            match (current, before.append || flags & libc::RWF_APPEND != 0) {
                (true, _) if flags & libc::RWF_APPEND == 0 => at_position(),
                (_, true) if after.size == before.size.saturating_add(count) => at_end(),
                (_, true) | (true, _) => ALL,
                (false, false) => d..d.saturating_add(count),
            }
        }
        libc::SYS_copy_file_range | libc::SYS_splice if d != 0 => behind_pointer(d),
        libc::SYS_copy_file_range | libc::SYS_splice => at_position(),
        // From where the old or the new end is.
        libc::SYS_ftruncate => before.size.min(call.args[1])..u64::MAX,
        libc::SYS_truncate => before.size.min(call.args[1])..u64::MAX,
        libc::SYS_fallocate => {
            let moves = libc::FALLOC_FL_COLLAPSE_RANGE | libc::FALLOC_FL_INSERT_RANGE;
            let start = before.size.min(c);
            if call.int(1) & moves != 0 {
                start..u64::MAX
            } else {
                start..c.saturating_add(d)
            }
        }
        _ => ALL,
    }
}

fn state(fd: i32) -> State {
    // SAFETY: plain data that the kernel fills.
    let mut st: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `st` is live; the other calls take numbers. On failure the values match no call's effect.
    let (pos, flags) = unsafe {
        libc::fstat(fd, &raw mut st);
        (
            libc::lseek(fd, 0, libc::SEEK_CUR),
            libc::fcntl(fd, libc::F_GETFL),
        )
    };
    State {
        pos: u64::try_from(pos).unwrap_or(u64::MAX),
        size: u64::try_from(st.st_size).unwrap_or(0),
        append: flags >= 0 && flags & libc::O_APPEND != 0,
    }
}

/// Device, inode and size of what a path leads to.
fn stat(path: &[u8]) -> Option<(u64, u64, u64)> {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(std::ffi::OsStr::from_bytes(path)).ok()?;
    Some((meta.dev(), meta.ino(), meta.size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(nr: i64, args: [u64; 6]) -> Call {
        Call {
            nr: nr as u32,
            args,
            pc: 0,
            next: 2,
            clock: 0,
            regs: 0,
            argc: 6,
        }
    }

    fn at(pos: u64, size: u64) -> State {
        State {
            pos,
            size,
            append: false,
        }
    }

    #[test]
    fn writes_change_what_lies_before_the_position() {
        let write = call(libc::SYS_write, [3, 0, 100, 0, 0, 0]);
        assert_eq!(changed(&write, 100, at(50, 500), at(150, 500)), 50..150);
        // Somebody else uses the descriptor.
        assert_eq!(changed(&write, 100, at(50, 500), at(170, 500)), ALL);
        let append = |pos, size| State {
            append: true,
            ..at(pos, size)
        };
        assert_eq!(
            changed(&write, 100, append(0, 500), append(600, 600)),
            500..600
        );
        assert_eq!(changed(&write, 100, append(0, 500), append(600, 700)), ALL);
    }

    #[test]
    fn positioned_writes_change_their_range() {
        let pwrite = call(libc::SYS_pwrite64, [3, 0, 100, 4096, 0, 0]);
        assert_eq!(changed(&pwrite, 60, at(0, 500), at(0, 4156)), 4096..4156);
        // Linux appends then, whatever the offset.
        let append = |size| State {
            append: true,
            ..at(0, size)
        };
        assert_eq!(changed(&pwrite, 60, append(500), append(560)), 500..560);
        assert_eq!(changed(&pwrite, 60, append(500), append(570)), ALL);
        let current = call(libc::SYS_pwritev2, [3, 0, 1, u64::MAX, 0, 0]);
        assert_eq!(changed(&current, 60, at(10, 500), at(70, 500)), 10..70);
        let appending = call(libc::SYS_pwritev2, [3, 0, 1, 0, 0, libc::RWF_APPEND as u64]);
        assert_eq!(changed(&appending, 60, at(10, 500), at(10, 560)), 500..560);
    }

    #[test]
    fn truncation_changes_what_is_behind_the_nearer_end() {
        let truncate = call(libc::SYS_ftruncate, [3, 100, 0, 0, 0, 0]);
        assert_eq!(changed(&truncate, 0, at(0, 500), at(0, 100)), 100..u64::MAX);
        assert_eq!(changed(&truncate, 0, at(0, 50), at(0, 100)), 50..u64::MAX);
        let hole = call(libc::SYS_fallocate, [3, 3, 100, 50, 0, 0]);
        assert_eq!(changed(&hole, 0, at(0, 500), at(0, 500)), 100..150);
        let grow = call(libc::SYS_fallocate, [3, 0, 1000, 50, 0, 0]);
        assert_eq!(changed(&grow, 0, at(0, 500), at(0, 1050)), 500..1050);
        let collapse = call(libc::SYS_fallocate, [3, 8, 4096, 4096, 0, 0]);
        assert_eq!(
            changed(&collapse, 0, at(0, 9000), at(0, 4904)),
            4096..u64::MAX
        );
    }
}
