//! Calls that change the guest's mappings: done in both modes, so that addresses and faults repeat.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd};

use super::{Call, Logged, capture};
use crate::errno::Errno;
use crate::mm::{Backing, FileId, MmapArgs, Outcome, Placement, ShmSource};
use crate::par::Par;
use crate::runtime::{Flow, Runtime};
use crate::start::{Failure, Mode};
use crate::thread::Thread;
use crewind_syscalls::Row;
use crewind_trace::event::{Event, FileRef};

impl Runtime {
    /// Handles a call of this family; `None` when it is of another.
    pub fn memory_call(&mut self, th: &mut Thread, row: &'static Row, call: &Call) -> Option<Flow> {
        if let Some(flow) = self.over_limit(th, call) {
            return Some(flow);
        }
        let [a, b, c, d, e, _] = call.args;
        let int = |v: u64| v as i32;
        if self.recording()
            && let Some(par) = self.par
        {
            self.before_mapping(th, par, call);
        }
        Some(match i64::from(call.nr) {
            libc::SYS_mmap => self.sys_mmap(th, call),
            libc::SYS_munmap => {
                let o = self.space.munmap(a, b);
                self.unmapped();
                self.redone(th, call, o, |()| 0)
            }
            libc::SYS_mprotect => {
                let o = self.space.mprotect(a, b, int(c));
                self.redone(th, call, o, |()| 0)
            }
            libc::SYS_pkey_mprotect => {
                let o = self.space.pkey_mprotect(a, b, int(c), int(d));
                self.redone(th, call, o, |()| 0)
            }
            libc::SYS_mremap => {
                let o = self.space.mremap(a, b, c, int(d), e);
                if let (Ok(to), true) = (&o.result, self.recording()) {
                    self.remapped(a, b, *to, c, int(d));
                }
                self.redone(th, call, o, |v| v as i64)
            }
            libc::SYS_brk => {
                let o = self.space.brk(a);
                self.redone(th, call, o, |v| v as i64)
            }
            libc::SYS_madvise => {
                let o = self.space.madvise(a, b, int(c));
                if int(c) == libc::MADV_REMOVE && o.result.is_ok() {
                    self.emptied(a, b);
                }
                self.redone(th, call, o, |()| 0)
            }
            libc::SYS_pkey_alloc => {
                let r = self.space.pkey_alloc(a, b).map(i64::from);
                self.emulated(th, call, to_ret(r))
            }
            libc::SYS_pkey_free => {
                let r = self.space.pkey_free(int(a)).map(|()| 0);
                self.emulated(th, call, to_ret(r))
            }
            462 => {
                let r = self.space.mseal().map(|()| 0);
                self.emulated(th, call, to_ret(r))
            }
            libc::SYS_remap_file_pages => {
                let r = self.space.remap_file_pages().map(|()| 0);
                self.emulated(th, call, to_ret(r))
            }
            libc::SYS_msync => self.host_only(th, call, |rt| rt.space.msync(a, b, int(c))),
            libc::SYS_mlock => self.host_only(th, call, |rt| rt.space.mlock(a, b, 0)),
            libc::SYS_mlock2 => self.host_only(th, call, |rt| rt.space.mlock(a, b, c as u32)),
            libc::SYS_munlock => self.host_only(th, call, |rt| rt.space.munlock(a, b)),
            libc::SYS_mlockall => self.host_only(th, call, |rt| rt.space.mlockall(int(a))),
            libc::SYS_munlockall => self.host_only(th, call, |rt| rt.space.munlockall()),
            libc::SYS_mincore => self.sys_mincore(th, call),
            libc::SYS_shmat => self.sys_shmat(th, row, call),
            libc::SYS_shmdt => {
                let o = self.space.shmdt(a);
                self.unmapped();
                self.redone(th, call, o, |()| 0)
            }
            _ => return None,
        })
    }

    /// Recording threads in parallel: a call that changes mappings writes all of their memory, so nobody else touches
    /// it from here to the call's record. What is mapped anew at a place of the runtime's choice was nobody's.
    fn before_mapping(&mut self, th: &mut Thread, par: &'static Par, call: &Call) {
        let [a, b, c, d, e, _] = call.args;
        let fixed = libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE;
        let changes = matches!(
            i64::from(call.nr),
            libc::SYS_munmap
                | libc::SYS_mprotect
                | libc::SYS_pkey_mprotect
                | libc::SYS_madvise
                | libc::SYS_mmap
                | libc::SYS_mremap
                | libc::SYS_brk
                | libc::SYS_shmdt
                | libc::SYS_shmat
        );
        if !changes {
            return;
        }
        par.mapping_begins(th);
        th.maps = true;
        match i64::from(call.nr) {
            libc::SYS_munmap | libc::SYS_mprotect | libc::SYS_pkey_mprotect | libc::SYS_madvise => {
                par.event_maps(th, a, b)
            }
            libc::SYS_mmap if d as i32 & fixed != 0 => par.event_maps(th, a, b),
            libc::SYS_mmap => {
                // Where it will be is not known yet: `after_mapping`.
            }
            libc::SYS_mremap => {
                par.event_maps(th, a, b.max(c));
                if d as i32 & libc::MREMAP_FIXED != 0 {
                    par.event_maps(th, e, c);
                }
            }
            libc::SYS_brk => {
                let now = self.space.brk(0).result.unwrap_or(a);
                par.event_maps(th, now.min(a), now.abs_diff(a));
            }
            _ => {}
        }
    }

    /// A call done in both modes, with one result.
    fn redone<T>(
        &mut self,
        th: &mut Thread,
        call: &Call,
        o: Outcome<T>,
        value: impl Fn(T) -> i64,
    ) -> Flow {
        self.apply(o.effects);
        let ret = to_ret(o.result.map(value));
        if i64::from(call.nr) == libc::SYS_mmap {
            self.after_mapping(th, ret, call.args[1]);
            if ret >= 0 {
                self.mapped_anew(ret as u64, call.args[1]);
            }
        }
        self.emulated(th, call, ret)
    }

    /// Recording threads in parallel: as `before_mapping`, for memory whose place is known only now.
    fn after_mapping(&mut self, th: &mut Thread, ret: i64, len: u64) {
        if self.recording()
            && ret >= 0
            && let Some(par) = self.par
        {
            par.event_maps(th, ret as u64, len);
        }
    }

    /// A call that changes nothing the guest computes with, but what memory is locked: its result is logged, replay only notes that.
    fn host_only(
        &mut self,
        th: &mut Thread,
        call: &Call,
        f: impl FnOnce(&mut Self) -> Result<(), Errno>,
    ) -> Flow {
        match self.mode {
            Mode::Record => {
                let ret = to_ret(f(self).map(|()| 0));
                self.complete(
                    th,
                    call,
                    Logged {
                        ret,
                        ..Logged::default()
                    },
                );
            }
            Mode::Replay => {
                let l = self.logged(th, call);
                let result = match l.ret {
                    0.. => Ok(()),
                    e => Err(Errno(e.unsigned_abs() as i32)),
                };
                let [addr, len, ..] = call.args;
                self.space
                    .locked_as_logged(i64::from(call.nr), addr, len, result);
                self.finish(th, call, l.ret);
            }
        }
        Flow::Go
    }

    fn sys_mincore(&mut self, th: &mut Thread, call: &Call) -> Flow {
        match self.mode {
            Mode::Record => {
                let mut l = Logged::default();
                match self.space.mincore(call.args[0], call.args[1]) {
                    Ok(v) => {
                        self.prepare_write(call.args[2], v.len() as u64);
                        if crate::guestmem::copy_to_guest(call.args[2], &v).is_err() {
                            l.ret = -i64::from(libc::EFAULT);
                        }
                        l.outs.extend(capture(call.args[2], v.len() as u64));
                    }
                    Err(e) => l.ret = e.to_ret(),
                }
                self.complete(th, call, l);
            }
            Mode::Replay => {
                let l = self.logged(th, call);
                self.write_outs(&l.outs);
                self.finish(th, call, l.ret);
            }
        }
        Flow::Go
    }

    fn sys_shmat(&mut self, th: &mut Thread, _row: &'static Row, call: &Call) -> Flow {
        let (id, addr, flags) = (call.int(0), call.args[1], call.int(2));
        match self.mode {
            Mode::Record => {
                // The kernel attaches with a key that is open to all.
                let stopped = self.par.filter(|par| par.has_keys() && !par.stopping());
                if let Some(par) = stopped {
                    par.stop_world(th);
                }
                let o = self.space.shmat(id, addr, flags, ShmSource::Host);
                self.apply(o.effects);
                if let Some(par) = stopped {
                    par.resume_world();
                }
                let mut l = Logged {
                    ret: to_ret(o.result.map(|v| v as i64)),
                    ..Logged::default()
                };
                if l.ret >= 0 {
                    let at = l.ret as u64;
                    let len = self.space.find(at).map_or(0, |v| v.end - at);
                    self.mapped_anew(at, len);
                    l.outs.extend(capture(at, len));
                    let content = l.outs.first().map_or(&[][..], |o| &o.data);
                    self.segment_attached(at, content);
                }
                self.complete(th, call, l);
            }
            Mode::Replay => {
                let l = self.logged(th, call);
                if l.ret >= 0 {
                    let len = l.outs.first().map_or(0, |o| o.data.len() as u64);
                    let o = self
                        .space
                        .shmat(id, addr, flags, ShmSource::StandIn { len });
                    self.apply(o.effects);
                    let ret = to_ret(o.result.map(|v| v as i64));
                    self.check_result(th, call, &l, ret);
                    self.write_outs(&l.outs);
                }
                self.finish(th, call, l.ret);
            }
        }
        Flow::Go
    }

    fn sys_mmap(&mut self, th: &mut Thread, call: &Call) -> Flow {
        let [addr, len, prot, flags, fd, offset] = call.args;
        let (prot, flags, fd) = (prot as i32, flags as i32, fd as i32);
        let args = |placement| MmapArgs {
            addr,
            len,
            prot,
            flags,
            offset,
            placement,
        };
        if flags & libc::MAP_ANONYMOUS != 0 {
            let o = self.space.mmap(&args(Placement::Normal), Backing::Anon);
            return self.redone(th, call, o, |v| v as i64);
        }
        match self.mode {
            Mode::Record => self.mmap_file(th, call, fd, args),
            Mode::Replay => self.mmap_stored(th, call, args),
        }
        Flow::Go
    }

    fn mmap_file(
        &mut self,
        th: &mut Thread,
        call: &Call,
        fd: i32,
        args: impl Fn(Placement) -> MmapArgs,
    ) {
        // SAFETY: the descriptor stays the guest's; it is only looked at.
        let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
        let regular = fd >= 0 && file.metadata().is_ok_and(|m| m.is_file());
        let shared = call.args[3] as i32 & libc::MAP_TYPE != libc::MAP_PRIVATE;
        let placement = if regular {
            place(&file, shared)
        } else {
            Placement::Normal
        };
        let a = args(placement);
        let o = self.space.mmap(
            &a,
            if fd >= 0 {
                Backing::Fd(fd)
            } else {
                Backing::Anon
            },
        );
        self.apply(o.effects);
        let ret = to_ret(o.result.map(|v| v as i64));
        self.after_mapping(th, ret, a.len);
        if ret >= 0 {
            self.mapped_anew(ret as u64, a.len);
            if regular && a.prot & libc::PROT_EXEC != 0 {
                self.look_for_function(Some(th));
            }
            if regular && matches!(th.log, crate::log::Log::Off) {
                // Kept when a recording begins.
            } else if regular {
                let stored = if shared {
                    self.store.put_fresh(&file)
                } else {
                    self.store.put(&file)
                };
                match stored {
                    Ok(stored) => {
                        if shared {
                            self.file_mapped(fd, (ret as u64, a.len), a.offset, &stored);
                        }
                        let id = crate::fds::identity(fd).unwrap_or((0, 0));
                        let event = Event::FileMapping {
                            dev: id.0,
                            ino: id.1,
                            addr: ret as u64,
                            len: a.len,
                            offset: a.offset,
                            file: stored,
                        };
                        th.append_at(call.clock, call.pc, call.regs, event);
                    }
                    Err(e) => crate::report::fail(
                        Failure::Usage,
                        format_args!("cannot keep a copy of a file that the program mapped: {e}"),
                    ),
                }
            } else if !is_zero_device(&file) {
                self.warn_once(
                    call.nr,
                    format_args!("the program mapped a device or other special file: what changes there by itself is not recorded, and a replay that depends on it diverges"),
                );
            }
        }
        self.complete(
            th,
            call,
            Logged {
                ret,
                ..Logged::default()
            },
        );
    }

    fn mmap_stored(&mut self, th: &mut Thread, call: &Call, args: impl Fn(Placement) -> MmapArgs) {
        let mut stored: Option<(FileRef, FileId)> = None;
        if let Some(Event::FileMapping { file, dev, ino, .. }) = th.upcoming().map(|r| &r.event) {
            stored = Some((
                file.clone(),
                FileId {
                    dev: *dev,
                    ino: *ino,
                    path: [].into(),
                },
            ));
            self.logged_record(th, call);
        }
        let l = self.logged(th, call);
        if l.ret >= 0 {
            let o = match stored {
                Some((file, id)) => match self.store.open_ref(&file) {
                    Ok(f) => {
                        let shared = call.args[3] as i32 & libc::MAP_TYPE != libc::MAP_PRIVATE;
                        let placement = place(&f, shared);
                        // Private also where the guest's is shared: what came from elsewhere is in the log.
                        let backing = Backing::Store {
                            fd: f.as_raw_fd(),
                            id,
                            writable: true,
                        };
                        self.space.mmap(&args(placement), backing)
                    }
                    Err(e) => crate::report::fail(Failure::TraceEnd, format_args!("{e}")),
                },
                None => {
                    let mut a = args(Placement::Normal);
                    a.flags |= libc::MAP_ANONYMOUS;
                    self.space.mmap(&a, Backing::Anon)
                }
            };
            self.apply(o.effects);
            let ret = to_ret(o.result.map(|v| v as i64));
            self.check_result(th, call, &l, ret);
        }
        self.finish(th, call, l.ret);
    }
}

/// ELF objects go where code goes. A function of the content, so that replay decides the same.
fn place(file: &File, shared: bool) -> Placement {
    if !shared && is_elf(file) {
        Placement::ElfImage
    } else {
        Placement::Normal
    }
}

fn to_ret(r: Result<i64, Errno>) -> i64 {
    r.unwrap_or_else(Errno::to_ret)
}

fn is_elf(file: &File) -> bool {
    use std::os::unix::fs::FileExt;
    let mut magic = [0u8; 4];
    file.read_at(&mut magic, 0).is_ok_and(|n| n == 4) && magic == *b"\x7fELF"
}

/// `/dev/zero`: mapping it is asking for anonymous memory.
fn is_zero_device(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    file.metadata()
        .is_ok_and(|m| m.rdev() == libc::makedev(1, 5))
}
