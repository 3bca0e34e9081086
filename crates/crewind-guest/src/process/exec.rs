//! `execve`: the process goes on as another program, in a fresh runtime.

use crate::guestmem;
use crate::hostcall;
use crate::loader;
use crate::log::Log;
use crate::process::leave;
use crate::runtime::{Flow, Runtime};
use crate::signal::{IGN, MAX, bit, host};
use crate::start::{Bytes, Failure, GuestStart, Mode};
use crate::syscall::{Call, Logged};
use crate::thread::Thread;
use crewind_trace::event::Event;
use std::os::fd::IntoRawFd;
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::Ordering;

/// Soft stack limit of a process that starts the runtime: a finite one keeps the kernel's usual layout.
const RUNTIME_STACK: u64 = 8 << 20;

/// What the guest wants to execute.
struct Wanted {
    /// How to open it.
    path: Vec<u8>,
    /// What the program sees as its name.
    execfn: Vec<u8>,
    argv: Vec<Vec<u8>>,
    envp: Vec<Vec<u8>>,
}

impl Runtime {
    /// `execve`, `execveat`.
    pub fn sys_execve(&mut self, th: &mut Thread, call: &Call) -> Flow {
        match self.mode {
            Mode::Record => {
                let wanted = self
                    .wanted(call)
                    .and_then(|w| {
                        if is_being_written(&w.path) {
                            Err(-i64::from(libc::ETXTBSY))
                        } else {
                            Ok(w)
                        }
                    })
                    .and_then(|w| match loader::plan(&w.path, &w.execfn, &w.argv) {
                        Ok(p) => Ok((w, p)),
                        Err(e) => Err(e.errno.to_ret()),
                    });
                match wanted {
                    Err(ret) => {
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
                    Ok((w, plan)) => {
                        if plan.set_id {
                            self.warn_once(call.nr, format_args!("{} is a set-user-id program; under crewind it runs with the user's own rights", String::from_utf8_lossy(&w.path)));
                        }
                        drop(plan);
                        if self.deferred.is_some() {
                            self.still(th);
                            self.recording_ends_at_exec(th, call);
                            return self.become_program(th, w, 0);
                        }
                        if !self.may_go_on_recording() {
                            return self.go_unrecorded(th, call, &w);
                        }
                        self.still(th);
                        th.append_at(call.clock, call.pc, call.regs, Event::Exec);
                        self.end_other_logs(th);
                        Self::finish_log(&mut th.log);
                        self.become_program(th, w, 0)
                    }
                }
            }
            Mode::Replay => {
                let r = self.logged_record(th, call);
                match &r.event {
                    Event::Exec => {
                        let skip = match &th.log {
                            Log::Replay(f) => f.consumed(),
                            _ => 0,
                        };
                        let w = Wanted {
                            path: Vec::new(),
                            execfn: Vec::new(),
                            argv: Vec::new(),
                            envp: Vec::new(),
                        };
                        self.become_program(th, w, skip)
                    }
                    // It went on unrecorded.
                    Event::ProcessExit {
                        status: Some(status),
                        signal: None,
                        ..
                    } => leave(*status),
                    Event::Syscall { nr, ret, .. } if *nr == call.nr && *ret < 0 => {
                        self.finish(th, call, *ret);
                        Flow::Go
                    }
                    _ => self.diverged_call(th, call, &r),
                }
            }
        }
    }

    /// False when the guest gave up the rights with which the recording was started (`setuid`, ...) and the next
    /// program's runtime could not be executed, or not write the trace: when the trace's directory was there before,
    /// and open to others.
    fn may_go_on_recording(&self) -> bool {
        let flags = libc::AT_EACCESS | libc::AT_EMPTY_PATH;
        // SAFETY: a literal path; changes nothing.
        let executable =
            unsafe { libc::faccessat(self.exec.exe, c"".as_ptr(), libc::X_OK, flags) } == 0;
        executable && crewind_trace::may_write(&self.trace)
    }

    /// What the process executes is not recorded: in the trace it ends here.
    pub(crate) fn end_logs_at_exec(&mut self, th: &mut Thread, call: &Call) {
        let end = Event::ProcessExit {
            status: Some(0),
            signal: None,
            memory: None,
        };
        th.append_at(call.clock, call.pc, call.regs, end);
        self.end_other_logs(th);
        Self::finish_log(&mut th.log);
    }

    /// Executes a program without recording it: better than the program failing because it is recorded. Replay
    /// ends the process here; what it tells others from now on is in their logs.
    fn go_unrecorded(&mut self, th: &mut Thread, call: &Call, w: &Wanted) -> Flow {
        crate::report::warn(format_args!(
            "process {} changed its user and may not write the trace any more; {} and what it starts run unrecorded. Let crewind make the trace's directory",
            self.pid,
            String::from_utf8_lossy(&w.path)
        ));
        self.still(th);
        self.end_logs_at_exec(th, call);
        let strings = |v: &[Vec<u8>]| -> Vec<std::ffi::CString> {
            v.iter()
                .filter_map(|s| std::ffi::CString::new(s.as_slice()).ok())
                .collect()
        };
        let pointers = |v: &[std::ffi::CString]| -> Vec<*const libc::c_char> {
            v.iter()
                .map(|s| s.as_ptr())
                .chain([std::ptr::null()])
                .collect()
        };
        let (argv, envp) = (strings(&w.argv), strings(&w.envp));
        let (argv, envp) = (pointers(&argv), pointers(&envp));
        let path = std::ffi::CString::new(w.path.as_slice()).unwrap_or_default();
        // SAFETY: terminated arrays of terminated strings; only flags of our own descriptors change.
        let ret = unsafe {
            for fd in self.fds.own() {
                libc::fcntl(*fd, libc::F_SETFD, libc::FD_CLOEXEC);
            }
            host::set_native_mask(th.mask);
            hostcall::raw(
                libc::SYS_execve,
                [
                    path.as_ptr() as u64,
                    argv.as_ptr() as u64,
                    envp.as_ptr() as u64,
                    0,
                    0,
                    0,
                ],
            )
        };
        crate::report::fail(
            Failure::Unsupported,
            format_args!(
                "{} cannot be executed: errno {}",
                String::from_utf8_lossy(&w.path),
                -ret
            ),
        )
    }

    fn wanted(&self, call: &Call) -> Result<Wanted, i64> {
        let at = usize::from(i64::from(call.nr) == libc::SYS_execveat);
        let dir = if at == 1 { call.int(0) } else { libc::AT_FDCWD };
        let flags = if at == 1 { call.int(4) } else { 0 };
        let name = guestmem::read_path(call.args[at]).map_err(|e| e.to_ret())?;
        let mut room = loader::arg_limit(self.exec.stack_limit.soft);
        let argv = guestmem::read_strings(call.args[at + 1], &mut room).map_err(|e| e.to_ret())?;
        let envp = guestmem::read_strings(call.args[at + 2], &mut room).map_err(|e| e.to_ret())?;
        let relative = name.first() != Some(&b'/');
        if relative && dir != libc::AT_FDCWD && crate::fds::identity(dir).is_none() {
            let needs_fd = !name.is_empty() || flags & libc::AT_EMPTY_PATH != 0;
            return Err(-i64::from(if needs_fd {
                libc::EBADF
            } else {
                libc::ENOENT
            }));
        }
        let (path, execfn) = if name.is_empty() {
            if flags & libc::AT_EMPTY_PATH == 0 || dir < 0 {
                return Err(-i64::from(libc::ENOENT));
            }
            (
                format!("/proc/self/fd/{dir}").into_bytes(),
                format!("/dev/fd/{dir}").into_bytes(),
            )
        } else if name[0] == b'/' || dir == libc::AT_FDCWD {
            (name.clone(), name)
        } else {
            let text = String::from_utf8_lossy(&name).into_owned();
            (
                [format!("/proc/self/fd/{dir}/").into_bytes(), name].concat(),
                format!("/dev/fd/{dir}/{text}").into_bytes(),
            )
        };
        let path = self.guest_exe(&path).unwrap_or(path);
        Ok(Wanted {
            path,
            execfn,
            argv,
            envp,
        })
    }

    /// Executes this binary again, with what the next runtime must know. Point of no return.
    fn become_program(&mut self, th: &mut Thread, w: Wanted, skip: u64) -> Flow {
        if self.mode == Mode::Replay && self.is_debugged() {
            self.debug_program_ends(th);
        }
        if !self.debug_next_program() {
            leave(0);
        }
        if let Some(l) = self.lockstep.take() {
            l.finish("the program executed another one, which is not compared");
        }
        host::block_all();
        if th.pending.swap(0, Ordering::AcqRel) != 0 {
            // SAFETY: pending, so the handler is done with it.
            host::requeue(unsafe { &*th.slot.get() });
        }
        let mut ignored = 0;
        for s in 1..=MAX as u32 {
            if self.actions[s as usize].handler == IGN {
                ignored |= bit(s);
            }
        }
        let cwd = std::env::current_dir()
            .map(|d| d.into_os_string().into_vec())
            .unwrap_or_default();
        let limit = guest_stack_limit();
        let bytes = |v: Vec<Vec<u8>>| v.into_iter().map(Bytes).collect();
        let part = self.deferred.is_some();
        let part_looks = self.looks_for_function();
        if let Some(deferred) = &mut self.options.deferred {
            deferred.start_now = false;
            if !part_looks {
                deferred.start_function = None;
            }
        }
        let start = GuestStart {
            mode: self.mode,
            trace: self.trace.clone(),
            trace_root: self.exec.trace_root.clone(),
            program: Bytes(w.path),
            execfn: Bytes(w.execfn),
            argv: bytes(w.argv),
            envp: bytes(w.envp),
            cwd: Bytes(cwd),
            options: self.options.clone(),
            proc: if part { 1 } else { self.proc.0 },
            thread: if part { 1 } else { th.id.0 },
            stack_limit: limit,
            personality: self.exec.personality,
            ignored,
            blocked: th.mask,
            control: self.exec.control,
            skip,
            shared: self.exec.shared,
            anchors: self.exec.anchors,
            limits: self.limits,
            standard: self.fds.standard(),
            log_level: self.exec.log_level.clone(),
            resumed: true,
        };
        let low = self.fds.own().first().copied().unwrap_or(100);
        let fd = match start.send(low) {
            Ok(fd) => fd.into_raw_fd(),
            Err(e) => crate::report::fail(
                Failure::Internal,
                format_args!("cannot pass the start message on: {e}"),
            ),
        };
        let finite = libc::rlimit {
            rlim_cur: RUNTIME_STACK.min(limit.hard),
            rlim_max: limit.hard,
        };
        let number = format!("{fd}\0");
        let argv = [
            c"crewind".as_ptr(),
            c"__guest".as_ptr(),
            number.as_ptr().cast(),
            std::ptr::null(),
        ];
        let envp: [*const libc::c_char; 1] = [std::ptr::null()];
        // Ignored signals stay ignored over execve, all others fall back to their defaults.
        // SAFETY: valid, terminated arrays; the descriptor is that of this binary.
        let ret = unsafe {
            libc::setrlimit(libc::RLIMIT_STACK, &finite);
            hostcall::raw(
                libc::SYS_execveat,
                [
                    self.exec.exe as u64,
                    c"".as_ptr() as u64,
                    argv.as_ptr() as u64,
                    envp.as_ptr() as u64,
                    libc::AT_EMPTY_PATH as u64,
                    0,
                ],
            )
        };
        crate::report::fail(
            Failure::Internal,
            format_args!("cannot start crewind for the next program: errno {}", -ret),
        )
    }
}

/// True when somebody has the file open for writing, which `execve` refuses. A read lease tells: the kernel
/// gives none then. (Only to owners and the privileged; for others this check is missing.)
fn is_being_written(path: &[u8]) -> bool {
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let path = std::ffi::OsStr::from_bytes(path);
    let Ok(file) = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
    else {
        return false;
    };
    if !file
        .metadata()
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    {
        return false;
    }
    let fd = file.as_raw_fd();
    // SAFETY: takes and gives back a lease on a descriptor of ours.
    unsafe {
        if libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) == 0 {
            libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK);
            return false;
        }
    }
    crate::errno::Errno::last().0 == libc::EAGAIN
}

/// The stack limit in force, which is the guest's own.
pub fn guest_stack_limit() -> crate::start::Limit {
    let mut l = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel fills the struct.
    unsafe {
        libc::getrlimit(libc::RLIMIT_STACK, &mut l);
    }
    crate::start::Limit {
        soft: l.rlim_cur,
        hard: l.rlim_max,
    }
}
