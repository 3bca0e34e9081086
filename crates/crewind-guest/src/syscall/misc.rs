//! The rest of the calls that the runtime does itself, and those of the kernel's that need a hand.

use super::{Call, Logged, capture};
use crate::fds::Class as FdClass;
use crate::guestmem;
use crate::hostcall;
use crate::procfs::{Dirents, filter_dirents};
use crate::runtime::{Flow, Runtime};
use crate::start::Mode;
use crate::thread::Thread;
use crewind_syscalls::Row;
use crewind_trace::event::MemWrite;

const EINVAL: i64 = -(libc::EINVAL as i64);
const EFAULT: i64 = -(libc::EFAULT as i64);
const EBADF: i64 = -(libc::EBADF as i64);

const ARCH_SET_GS: u64 = 0x1001;
const ARCH_SET_FS: u64 = 0x1002;
const ARCH_GET_FS: u64 = 0x1003;
const ARCH_GET_GS: u64 = 0x1004;

impl Runtime {
    /// Handles what no other family does; `None` when the call is not known here either.
    pub fn misc_call(&mut self, th: &mut Thread, call: &Call) -> Option<Flow> {
        let [a, b, c, ..] = call.args;
        let ret = match i64::from(call.nr) {
            libc::SYS_set_tid_address => {
                th.clear_tid = a;
                i64::from(th.tid)
            }
            libc::SYS_set_robust_list => {
                if b == 24 {
                    th.robust = (a, b);
                    if self.recording() {
                        // However the process ends, other processes are told.
                        hostcall::set_robust_list(a);
                    }
                    0
                } else {
                    EINVAL
                }
            }
            libc::SYS_get_robust_list => {
                let target = a as i32;
                let own = target == 0 || target == th.tid;
                let list = if own {
                    Some(th.robust)
                } else {
                    // SAFETY: the vcpu is held, so siblings are not changing.
                    self.threads
                        .values()
                        .map(|t| unsafe { &*t.0 })
                        .find(|t| t.tid == target)
                        .map(|t| t.robust)
                };
                match list {
                    None => -i64::from(libc::ESRCH),
                    Some((head, _)) => {
                        if self.put_guest(b, &head.to_le_bytes())
                            && self.put_guest(c, &24u64.to_le_bytes())
                        {
                            0
                        } else {
                            EFAULT
                        }
                    }
                }
            }
            libc::SYS_arch_prctl => self.arch_prctl(th, call),
            _ => return None,
        };
        Some(self.emulated(th, call, ret))
    }

    fn arch_prctl(&mut self, th: &mut Thread, call: &Call) -> i64 {
        let [code, addr, ..] = call.args;
        match code {
            ARCH_SET_FS => {
                if addr >= crate::layout::TASK_SIZE {
                    return -i64::from(libc::EPERM);
                }
                th.ctx().fs_base = addr;
                crewind_x86::set_guest_fs_base(addr);
                0
            }
            ARCH_GET_FS => {
                let base = th.ctx().fs_base;
                if self.put_guest(addr, &base.to_le_bytes()) {
                    0
                } else {
                    EFAULT
                }
            }
            ARCH_GET_GS => {
                if self.put_guest(addr, &0u64.to_le_bytes()) {
                    0
                } else {
                    EFAULT
                }
            }
            ARCH_SET_GS if addr == 0 => 0,
            ARCH_SET_GS => {
                self.warn_once(
                    call.nr,
                    format_args!("the program wants to set its GS base, which crewind uses itself; it got EPERM. Programs that use GS cannot be recorded yet"),
                );
                -i64::from(libc::EPERM)
            }
            _ => EINVAL,
        }
    }

    /// Calls of the kernel's that need something done before. `None`: nothing special.
    pub fn special_pass(
        &mut self,
        th: &mut Thread,
        row: &'static Row,
        call: &Call,
    ) -> Option<Flow> {
        match i64::from(call.nr) {
            libc::SYS_open | libc::SYS_openat | libc::SYS_openat2 => {
                self.open_special(th, row, call)
            }
            libc::SYS_getrlimit | libc::SYS_setrlimit | libc::SYS_prlimit64 => {
                self.limit_call(th, call)
            }
            libc::SYS_readlink | libc::SYS_readlinkat => self.readlink_special(th, call),
            libc::SYS_close_range => Some(self.close_range(th, call)),
            libc::SYS_dup2 | libc::SYS_dup3 if self.recording() && self.fds.is_own(call.int(1)) => {
                Some(self.emulated(th, call, EBADF))
            }
            libc::SYS_sendfile | libc::SYS_splice | libc::SYS_tee | libc::SYS_copy_file_range => {
                // Bytes that never pass through guest memory cannot be shown again: the program falls back.
                let out = match i64::from(call.nr) {
                    libc::SYS_sendfile => 0,
                    libc::SYS_tee => 1,
                    _ => 2,
                };
                if self.recording()
                    && matches!(self.fds.info(call.int(out)).class, FdClass::Standard(_))
                {
                    self.complete(
                        th,
                        call,
                        Logged {
                            ret: EINVAL,
                            ..Logged::default()
                        },
                    );
                    return Some(Flow::Go);
                }
                None
            }
            _ => None,
        }
    }

    /// `/proc/self/maps` and its like show the guest, not the runtime.
    fn open_special(&mut self, th: &mut Thread, _row: &Row, call: &Call) -> Option<Flow> {
        if self.mode == Mode::Replay {
            return None;
        }
        let at = if i64::from(call.nr) == libc::SYS_open {
            0
        } else {
            1
        };
        let path = guestmem::read_path(call.args[at]).ok()?;
        let cloexec = match i64::from(call.nr) {
            libc::SYS_open => call.args[1],
            libc::SYS_openat => call.args[2],
            _ => guestmem::read_u64(call.args[2]).ok()?,
        } & libc::O_CLOEXEC as u64;
        let ret = match self.guest_exe(&path) {
            // The link leads to the runtime; an `open` of its target opens the same file as the guest's link would.
            Some(target) => open_program(target, call, at, cloexec),
            None => memory_file(&self.proc_text(th, &path)?, cloexec != 0),
        };
        if ret >= 0 {
            self.fds.changed(&crewind_syscalls::FdChange::Open {
                fd: ret as i32,
                cloexec: cloexec != 0,
            });
        }
        self.complete(
            th,
            call,
            Logged {
                ret,
                ..Logged::default()
            },
        );
        Some(Flow::Go)
    }

    fn readlink_special(&mut self, th: &mut Thread, call: &Call) -> Option<Flow> {
        if self.mode == Mode::Replay {
            return None;
        }
        let at = usize::from(i64::from(call.nr) == libc::SYS_readlinkat);
        let path = guestmem::read_path(call.args[at]).ok()?;
        let target = self.proc_link(th, &path)?;
        let (buf, size) = (call.args[at + 1], call.int(at + 2));
        if size <= 0 {
            return None;
        }
        let n = target.len().min(size as usize);
        let mut l = Logged {
            ret: n as i64,
            ..Logged::default()
        };
        if self.put_guest(buf, &target[..n]) {
            l.outs.extend(capture(buf, n as u64));
        } else {
            l.ret = EFAULT;
        }
        self.complete(th, call, l);
        Some(Flow::Go)
    }

    /// Closes around the runtime's own descriptors.
    fn close_range(&mut self, th: &mut Thread, call: &Call) -> Flow {
        if self.mode == Mode::Replay {
            let l = self.logged(th, call);
            self.finish(th, call, l.ret);
            return Flow::Go;
        }
        let (first, last, flags) = (call.args[0] as u32, call.args[1] as u32, call.args[2]);
        let mut own: Vec<u32> = self
            .fds
            .own()
            .iter()
            .map(|f| *f as u32)
            .filter(|f| (first..=last).contains(f))
            .collect();
        own.sort_unstable();
        let mut ret = 0;
        let mut from = first;
        for stop in own.into_iter().map(Some).chain([None]) {
            let to = match stop {
                Some(s) if s == from => {
                    from = s + 1;
                    continue;
                }
                Some(s) => s - 1,
                None => last,
            };
            if from <= to || first > last {
                let a = [u64::from(from), u64::from(to), flags, 0, 0, 0];
                // SAFETY: closes guest descriptors only.
                ret = unsafe { crate::hostcall::raw(libc::SYS_close_range, a) };
                if ret < 0 {
                    break;
                }
            }
            from = stop.map_or(from, |s| s + 1);
        }
        if ret == 0 && first <= last {
            self.fds
                .changed(&crewind_syscalls::FdChange::CloseRange { first, last });
        }
        self.complete(
            th,
            call,
            Logged {
                ret,
                ..Logged::default()
            },
        );
        Flow::Go
    }

    /// Takes what the guest must not see out of a call's results.
    ///
    /// Returns the call's result without it: listings of descriptors do not show the runtime's.
    pub fn filter_results(&mut self, call: &Call, ret: i64, outs: &mut Vec<MemWrite<'_>>) -> i64 {
        let form = match i64::from(call.nr) {
            libc::SYS_getdents64 => Dirents::New,
            libc::SYS_getdents => Dirents::Old,
            _ => return ret,
        };
        if ret <= 0 || !self.is_fd_directory(call.int(0)) {
            return ret;
        }
        let hidden: Vec<Vec<u8>> = self
            .fds
            .own()
            .iter()
            .map(|f| f.to_string().into_bytes())
            .collect();
        let mut ret = ret;
        while ret > 0 {
            let Some(mut w) = capture(call.args[1], ret as u64) else {
                return ret;
            };
            let left = filter_dirents(w.data.to_mut(), form, |name| {
                hidden.iter().any(|h| h == name)
            });
            if left > 0 {
                // What the kernel wrote behind them is an effect too: make it one that can be repeated.
                w.data.to_mut()[left..].fill(0);
                let _ = guestmem::copy_to_guest(w.addr, &w.data);
                outs.clear();
                outs.push(w);
                return left as i64;
            }
            // Nothing but ours: 0 would mean the end, so read on.
            // SAFETY: the guest's own call again.
            ret = unsafe { crate::hostcall::raw(i64::from(call.nr), call.args) };
        }
        outs.clear();
        ret
    }
}

/// Opens the guest's program, as the guest asked for `/proc/self/exe`. `at` is the index of the path among the
/// call's arguments. Returns a descriptor or a negative errno.
fn open_program(mut path: Vec<u8>, call: &Call, at: usize, cloexec: u64) -> i64 {
    path.push(0);
    let flags = if i64::from(call.nr) == libc::SYS_openat2 {
        // Resolution rules are about the path that was not taken; access to a program is reading.
        libc::O_RDONLY as u64 | cloexec
    } else {
        call.args[at + 1]
    };
    // SAFETY: the path is NUL-terminated and lives over the call.
    unsafe {
        crate::hostcall::raw(
            libc::SYS_openat,
            [libc::AT_FDCWD as u64, path.as_ptr() as u64, flags, 0, 0, 0],
        )
    }
}

/// A memory file with the text, as an open descriptor, at its start.
fn memory_file(text: &[u8], cloexec: bool) -> i64 {
    let flags = if cloexec { libc::MFD_CLOEXEC } else { 0 };
    // SAFETY: plain calls on a descriptor made here.
    unsafe {
        let fd = crate::hostcall::raw(
            libc::SYS_memfd_create,
            [c"proc".as_ptr() as u64, u64::from(flags), 0, 0, 0, 0],
        );
        if fd < 0 {
            return fd;
        }
        // The text is the kernel's, which has no limit of size; the descriptor is the guest's, and has its limit.
        let _lifted = crewind_trace::LiftedLimits::new();
        let mut at = 0;
        while at < text.len() {
            let n = crate::hostcall::raw(
                libc::SYS_pwrite64,
                [
                    fd as u64,
                    text[at..].as_ptr() as u64,
                    (text.len() - at) as u64,
                    at as u64,
                    0,
                    0,
                ],
            );
            if n <= 0 {
                break;
            }
            at += n as usize;
        }
        fd
    }
}
