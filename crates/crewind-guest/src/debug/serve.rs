//! Answering the debugger while the process stands still.

use super::Debugger;
use super::wire::{Answer, Channel, ProgramInfo, Registers, Request, Run, Stopped, ThreadInfo};
use crate::runtime::Runtime;
use crate::thread::Thread;
use crewind_trace::event::ThreadId;
use std::os::fd::IntoRawFd;

/// Most bytes of one answer.
const MOST: u64 = 16 << 20;

impl Runtime {
    /// Says where the process stopped, answers what is asked, and returns how to go on. Does not return when the
    /// debugger is gone.
    pub(super) fn answer(&mut self, d: &mut Debugger, th: &mut Thread, stopped: Stopped) -> Run {
        send(&mut d.channel, &Answer::Stopped(stopped.clone()), &[]);
        loop {
            let (request, bytes) = match d.channel.receive::<Request>() {
                Ok(r) => r,
                // Nobody wants this process any more.
                Err(_) => crate::process::leave(0),
            };
            match request {
                Request::Run(run) => return run,
                Request::Quit => crate::process::leave(0),
                Request::Breaks(pcs) => {
                    self.set_breaks(d, pcs);
                    send(&mut d.channel, &Answer::Done, &[]);
                }
                Request::Watches(ranges) => {
                    self.set_watches(d, ranges);
                    send(&mut d.channel, &Answer::Done, &[]);
                }
                Request::Calls(calls) => {
                    d.calls = calls;
                    send(&mut d.channel, &Answer::Done, &[]);
                }
                Request::Forks(forks) => {
                    d.forks = forks;
                    send(&mut d.channel, &Answer::Done, &[]);
                }
                Request::Threads => {
                    let list = self.list_threads(th);
                    send(&mut d.channel, &Answer::Threads(list), &[]);
                }
                Request::Registers(id) => match self.registers(th, id) {
                    Some(r) => send(&mut d.channel, &Answer::Bytes, &r.to_bytes()),
                    None => send(
                        &mut d.channel,
                        &Answer::Failed(format!("there is no thread t{id}")),
                        &[],
                    ),
                },
                Request::Read { addr, len } => {
                    let bytes = read(addr, len.min(MOST));
                    send(&mut d.channel, &Answer::Bytes, &bytes);
                }
                Request::SetRegisters(id) => {
                    let done = Registers::from_bytes(&bytes)
                        .is_some_and(|r| self.set_registers(th, id, &r));
                    let answer = if done {
                        Answer::Done
                    } else {
                        Answer::Failed(format!("there is no thread t{id}"))
                    };
                    send(&mut d.channel, &answer, &[]);
                }
                Request::Write { addr } => {
                    let answer = match self.write_for_debugger(addr, &bytes) {
                        Ok(()) => Answer::Done,
                        Err(why) => Answer::Failed(why),
                    };
                    send(&mut d.channel, &answer, &[]);
                }
                Request::Stray(how) => {
                    let answer = match self.stray(d, th, how) {
                        Some((why, pc, work)) => {
                            let mut place = stopped.place;
                            place.thread = how.thread;
                            place.point.pc = pc;
                            Answer::Stopped(Stopped {
                                why,
                                place,
                                last: None,
                                work,
                            })
                        }
                        None => Answer::Failed(format!("there is no thread t{}", how.thread)),
                    };
                    send(&mut d.channel, &answer, &[]);
                }
                Request::Program => {
                    let program = self.program();
                    send(&mut d.channel, &Answer::Program(program), &[]);
                }
                Request::Checksum => {
                    let sum = self.state_sum(th);
                    send(&mut d.channel, &Answer::Checksum(sum), &[]);
                }
                Request::Fork => self.fork_for_debugger(d, &stopped),
            }
        }
    }

    /// The child answers on a socket of its own; it says first where it is.
    fn fork_for_debugger(&mut self, d: &mut Debugger, stopped: &Stopped) {
        let fd = match d.channel.receive_fd() {
            Ok(fd) => fd,
            Err(_) => crate::process::leave(0),
        };
        // SAFETY: this is the only host thread of the process.
        match unsafe { libc::fork() } {
            -1 => {
                let e = std::io::Error::last_os_error();
                send(&mut d.channel, &Answer::Failed(e.to_string()), &[]);
            }
            0 => {
                // SAFETY: it was sent for this process.
                let own = unsafe { Channel::from_raw(fd.into_raw_fd()) };
                d.channel = own;
                if let Some(o) = &mut self.options.debug {
                    o.socket = d.channel.raw_fd();
                }
                send(&mut d.channel, &Answer::Stopped(stopped.clone()), &[]);
            }
            _ => {
                drop(fd);
                send(&mut d.channel, &Answer::Done, &[]);
            }
        }
    }

    fn list_threads(&mut self, th: &mut Thread) -> Vec<ThreadInfo> {
        let ids: Vec<ThreadId> = self.threads.keys().copied().collect();
        ids.into_iter()
            .filter_map(|id| {
                self.with_thread(th, id.0, |t| ThreadInfo {
                    id: id.0,
                    tid: t.tid,
                    clock: t.ctx().clock(),
                })
            })
            .collect()
    }

    pub(super) fn with_thread<T>(
        &mut self,
        th: &mut Thread,
        id: u32,
        f: impl FnOnce(&mut Thread) -> T,
    ) -> Option<T> {
        if th.id.0 == id {
            return Some(f(th));
        }
        let other = self.threads.get(&ThreadId(id)).copied()?;
        // SAFETY: all guest threads take turns on this host thread, so the other one does nothing now.
        Some(f(unsafe { &mut *other.0 }))
    }

    fn registers(&mut self, th: &mut Thread, id: u32) -> Option<Registers> {
        let x87 = crate::sched::x87_of(ThreadId(id));
        let dead = if th.id.0 == id {
            self.dead_flags(th)
        } else {
            let other = self.threads.get(&ThreadId(id)).copied()?;
            // SAFETY: as in `with_thread`.
            self.dead_flags(unsafe { &mut *other.0 })
        };
        self.with_thread(th, id, |t| {
            let ctx = t.ctx();
            Registers {
                gpr: ctx.gpr,
                rip: ctx.rip,
                rflags: ctx.rflags & !dead,
                fs_base: ctx.fs_base,
                mxcsr: ctx.mxcsr,
                x87,
                zmm: ctx.vec.zmm,
                k: ctx.vec.k,
            }
        })
    }

    fn program(&self) -> ProgramInfo {
        let path = self
            .image
            .program()
            .map(|f| String::from_utf8_lossy(f.path.as_slice()).into_owned())
            .unwrap_or_default();
        ProgramInfo {
            process: self.proc.0,
            pid: self.pid,
            path,
            auxv: self.loaded.auxv.clone(),
            name: String::from_utf8_lossy(&self.comm).into_owned(),
            // Whoever replays has what the recorder had.
            avx512: std::arch::is_x86_feature_detected!("avx512bw"),
        }
    }

    fn state_sum(&mut self, th: &mut Thread) -> u64 {
        let mut all = self.space.checksum().to_le_bytes().to_vec();
        for t in self.list_threads(th) {
            all.extend_from_slice(&t.clock.to_le_bytes());
            if let Some(r) = self.registers(th, t.id) {
                all.extend_from_slice(&r.to_bytes());
            }
        }
        xxhash_rust::xxh3::xxh3_64(&all)
    }
}

fn send(channel: &mut Channel, answer: &Answer, bytes: &[u8]) {
    if channel.send(answer, bytes).is_err() {
        crate::process::leave(0);
    }
}

/// As much of guest memory as can be read, from `addr` on.
fn read(addr: u64, len: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = addr;
    let end = addr.saturating_add(len);
    while at < end {
        let next = (crate::layout::page_down(at) + crate::layout::PAGE).min(end);
        match crate::guestmem::copy_of_guest(at, (next - at) as usize) {
            Ok(bytes) => out.extend_from_slice(&bytes),
            Err(_) => break,
        }
        at = next;
    }
    out
}
