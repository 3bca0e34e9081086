//! Calls that the kernel does when recording, and that replay takes from the log.

use std::borrow::Cow;
use std::sync::atomic::Ordering;

use super::mapped::MappedFile;
use super::{Call, Logged, capture};
use crate::fds::Class as FdClass;
use crate::hostcall::{self, ABORTED};
use crate::log::Log;
use crate::mm::Object;
use crate::runtime::{Flow, GuestMem, Runtime};
use crate::shared;
use crate::signal::deliver::Effect;
use crate::start::Mode;
use crate::thread::{Interrupted, Thread};
use crewind_syscalls::{FdEffect, FileEffect, Mem, Output, Place, Plan, Range, Restart, Role, Row};
use crewind_trace::event::{Event, MemWrite};
use crewind_trace::{Descriptors, OutputClass};

/// Operands up to this size together are copied through buffers of the runtime when other threads run
/// meanwhile; beyond, the kernel accesses guest memory directly.
const MAX_BOUNCE: u64 = 64 << 20;

/// Results from this size on may be written to the trace in a way of their own.
const LARGE: usize = 8 << 10;

/// Runtime buffers that stand in for the guest's while the vcpu is given up.
struct Bounce {
    parts: Vec<Part>,
    args: [u64; 6],
    /// Pointers inside of parts that lead to other parts: part, offset, the guest's value.
    pointers: Vec<(usize, usize, [u8; 8])>,
}

struct Part {
    addr: u64,
    bytes: Placed,
}

/// Bytes that lie as the guest's do within a page: files that are opened with `O_DIRECT` take only buffers that are aligned.
struct Placed {
    all: Vec<u8>,
    start: usize,
}

/// Smallest transfer of `O_DIRECT` (a block of a device).
const LEAST_DIRECT: u64 = 512;

impl Placed {
    /// Zeros for what the guest has at `addr`.
    fn new(addr: u64, len: u64) -> Placed {
        let page = crate::layout::PAGE as usize;
        // Zeroed memory of this size costs nothing until it is touched.
        if len < LEAST_DIRECT {
            let all = vec![0u8; len as usize];
            return Placed { all, start: 0 };
        }
        let mut all = vec![0u8; len as usize + page - 1];
        let start = (addr as usize).wrapping_sub(all.as_ptr() as usize) % page;
        all.truncate(start + len as usize);
        Placed { all, start }
    }
}

impl std::ops::Deref for Placed {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.all.get(self.start..).unwrap_or(&[])
    }
}

impl std::ops::DerefMut for Placed {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.all.get_mut(self.start..).unwrap_or(&mut [])
    }
}

impl Bounce {
    /// Buffers for all operands, when all are accessible; what is read is copied now. Operands with pointers to others
    /// (`iovec`, `msghdr`) get pointers to the buffers.
    fn new(plan: &Plan, args: &[u64; 6]) -> Option<Bounce> {
        let total: u64 = plan.operands.iter().map(|o| o.cap).sum();
        if total > MAX_BOUNCE {
            return None;
        }
        let mut b = Bounce {
            parts: Vec::new(),
            args: *args,
            pointers: Vec::new(),
        };
        for op in &plan.operands {
            if op.role == Role::FutexWord {
                continue;
            }
            let mut bytes = Placed::new(op.addr, op.cap);
            let readable = if op.dir.reads() || op.role == Role::Struct {
                crate::guestmem::copy_from_guest(&mut bytes, op.addr).is_ok()
            } else {
                is_readable(op.addr, op.cap)
            };
            if !readable {
                return None;
            }
            let to = bytes.as_mut_ptr() as u64;
            match op.place {
                Place::Arg(arg) => b.args[usize::from(arg)] = to,
                Place::Mem(at) => {
                    let (n, offset) = b.parts.iter().enumerate().find_map(|(n, p)| {
                        let offset = usize::try_from(at.checked_sub(p.addr)?).ok()?;
                        (offset + 8 <= p.bytes.len()).then_some((n, offset))
                    })?;
                    let field = b.parts[n].bytes.get_mut(offset..offset + 8)?;
                    let mut was = [0u8; 8];
                    was.copy_from_slice(field);
                    field.copy_from_slice(&to.to_le_bytes());
                    b.pointers.push((n, offset, was));
                }
            }
            b.parts.push(Part {
                addr: op.addr,
                bytes,
            });
        }
        Some(b)
    }

    /// The guest's own pointers again, before anything is copied back.
    fn take_pointers_back(&mut self) {
        for (n, offset, was) in self.pointers.drain(..) {
            if let Some(field) = self
                .parts
                .get_mut(n)
                .and_then(|p| p.bytes.get_mut(offset..offset + 8))
            {
                field.copy_from_slice(&was);
            }
        }
    }

    fn get(&self, r: &Range) -> Option<&[u8]> {
        self.parts.iter().find_map(|p| {
            let at = r.addr.checked_sub(p.addr)? as usize;
            p.bytes.get(at..at.checked_add(r.len as usize)?)
        })
    }
}

impl Mem for Bounce {
    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        match self.get(&Range {
            addr,
            len: buf.len() as u64,
        }) {
            Some(b) => {
                buf.copy_from_slice(b);
                true
            }
            None => GuestMem.read(addr, buf),
        }
    }
}

impl Runtime {
    /// Does a call, or repeats it from the log.
    pub fn pass(&mut self, th: &mut Thread, row: &'static Row, call: &Call) -> Flow {
        match self.mode {
            Mode::Record => self.pass_record(th, row, call),
            Mode::Replay => {
                let file_data = self.logged_file_data(th, call);
                let l = self.logged(th, call);
                self.pass_replay(th, row, call, l, &file_data);
                Flow::Go
            }
        }
    }

    fn pass_record(&mut self, th: &mut Thread, row: &'static Row, call: &Call) -> Flow {
        let blocking = self.multi()
            && !self.in_vfork
            && crewind_syscalls::may_block(row, &call.args, &GuestMem);
        // The one thread of a run that may be recorded any time.
        let apart = self.deferred.is_some()
            && self.par.is_none()
            && !self.in_vfork
            && crewind_syscalls::may_block(row, &call.args, &GuestMem);
        let mut plan = std::mem::take(&mut self.plan);
        let output = self.output_class(row, call);
        let shows = output.is_some() && shared::active();
        if blocking || apart || self.par.is_some() || shows {
            plan = crewind_syscalls::before(row, &call.args, &GuestMem);
        } else {
            crewind_syscalls::before_into(row, &call.args, &GuestMem, &mut plan);
        }
        if plan.confidence != crewind_syscalls::Confidence::Known {
            let text = crewind_syscalls::format(row, &call.args, None, None, &[]);
            self.warn_once(call.nr, format_args!("{text} is not known to crewind in all details; if the replay diverges, this is the first place to look"));
        }
        for op in plan.operands.iter().filter(|op| op.dir.writes()) {
            self.prepare_write(op.addr, op.cap);
        }
        if self.par.is_some() && !blocking {
            touch_operands(&plan, call);
        }
        let mapped = self.mapped_file(row, call);
        th.temp_mask = crewind_syscalls::temp_sigmask(row, &call.args, &GuestMem);
        // A replay shows what it finds in its memory, so it must be what the kernel took from there.
        let from_shared = shows && plan.operands.iter().any(|o| shared::touches(o.addr, o.cap));
        let bounce = if blocking || apart || from_shared {
            Bounce::new(&plan, &call.args)
        } else {
            None
        };
        th.log_shared();
        let host_args = bounce.as_ref().map_or(call.args, |b| b.args);
        let mut turn = None;
        let (ret, output) = loop {
            if blocking {
                self.release_vcpu(th);
            } else if apart {
                crate::deferred::step_aside(th);
            }
            let (ret, seq) = call_out(self, th, call.nr, &host_args, output);
            if apart {
                crate::deferred::come_back();
            }
            if blocking && let Some(turn) = turn.replace(self.acquire_vcpu(th)) {
                self.log_preempt(th, call, turn);
            }
            if ret == -i64::from(libc::EINTR) && self.interruption_is_nothing(th) {
                continue;
            }
            break (ret, seq);
        };
        if ret == ABORTED {
            th.temp_mask = None;
            if let Some(turn) = turn {
                self.log_preempt(th, call, turn);
            }
            self.plan = plan;
            return Flow::Go;
        }
        let mut bounce = bounce;
        if let Some(b) = &mut bounce {
            b.take_pointers_back();
        }
        let mut ranges = std::mem::take(&mut self.ranges);
        // False when another thread took the memory away meanwhile: then what is there counts.
        let mut delivered = true;
        match &bounce {
            Some(b) => {
                crewind_syscalls::after(&plan, ret, b, &mut ranges);
                for r in &ranges {
                    if let Some(bytes) = b.get(r) {
                        self.prepare_write(r.addr, r.len);
                        delivered &= crate::guestmem::copy_to_guest(r.addr, bytes).is_ok();
                    }
                }
            }
            None => crewind_syscalls::after(&plan, ret, &GuestMem, &mut ranges),
        }
        let mut outs: Vec<MemWrite<'_>> = Vec::with_capacity(ranges.len());
        for r in &ranges {
            let own = bounce.as_ref().filter(|_| delivered).and_then(|b| b.get(r));
            // SAFETY: `outs` is gone when this function returns, and until then the mapping stays: the
            // guest does not run, no other thread is there, and the runtime changes no mapping. The one
            // call that changes this memory, `filter_results`, replaces `outs` with copies.
            let seen = own.or_else(|| unsafe { self.settled(r) });
            outs.extend(match seen {
                Some(bytes) => Some(MemWrite {
                    addr: r.addr,
                    data: Cow::Borrowed(bytes),
                }),
                None => capture(r.addr, r.len),
            });
        }
        self.note_effects(row, call, ret, &mut outs, mapped.as_ref());
        shared::logged_already(&outs);
        let ret = self.filter_results(call, ret, &mut outs);
        let mut l = Logged {
            ret,
            outs,
            output,
            turn,
        };
        self.refer_to_file(th, call, &mut l);
        self.note_interruption(th, row, call, ret);
        self.follow_up(th, call, ret);
        self.log_big_call(th, call, l);
        self.plan = plan;
        self.ranges = ranges;
        Flow::Go
    }

    /// Guest memory that the kernel has just written and nothing changes while the guest does not run, to be logged from
    /// where it is: private, and no other thread in a system call. A file behind it may shrink: what was written is a
    /// copy of its pages.
    ///
    /// # Safety
    /// The kernel wrote all of it. The bytes must not be used after the guest ran, or mappings changed, or memory there was written.
    unsafe fn settled<'a>(&self, r: &Range) -> Option<&'a [u8]> {
        if self.multi() {
            return None;
        }
        let end = r.addr.checked_add(r.len)?;
        let mut at = r.addr;
        while at < end {
            let vma = self.space.find(at)?;
            let private = match vma.object {
                Object::Anon => true,
                Object::File(_) => !vma.flags.shared,
                _ => false,
            };
            if !private || !vma.prot.readable() {
                return None;
            }
            at = vma.end;
        }
        // SAFETY: mapped for reading, all of it; not written meanwhile by the caller's promise.
        Some(unsafe { std::slice::from_raw_parts(r.addr as *const u8, r.len as usize) })
    }

    /// Logs a call; output too large for one record is kept within the format's limit by construction
    /// (the kernel moves less than 2 GiB, and such calls are cut by the caller's buffers).
    fn log_big_call(&mut self, th: &mut Thread, call: &Call, l: Logged<'_>) {
        let total: usize = l.outs.iter().map(|o| o.data.len()).sum();
        if total > crewind_trace::MAX_RECORD_DATA {
            crate::report::fail(
                crate::start::Failure::Unsupported,
                format_args!(
                    "one system call ({}) brought {total} bytes; the trace format takes at most {} in one event",
                    crewind_syscalls::syscall_name(call.nr).unwrap_or("?"),
                    crewind_trace::MAX_RECORD_DATA
                ),
            );
        }
        if total < LARGE {
            return self.complete(th, call, l);
        }
        let descriptors = if self.multi() {
            Descriptors::Avoid
        } else {
            Descriptors::Momentary
        };
        if let Log::Record(w) = &mut th.log {
            w.set_descriptors(descriptors);
        }
        self.complete(th, call, l);
        // There may be threads by the next event.
        if let Log::Record(w) = &mut th.log {
            w.set_descriptors(Descriptors::Avoid);
        }
    }

    fn pass_replay(
        &mut self,
        th: &mut Thread,
        row: &'static Row,
        call: &Call,
        l: Logged<'_>,
        file_data: &[Event<'_>],
    ) {
        th.temp_mask = crewind_syscalls::temp_sigmask(row, &call.args, &GuestMem);
        let output = l.output.filter(|_| !std::mem::take(&mut th.shown));
        let text = match output {
            None => Vec::new(),
            Some(_) => output_text(row, &call.args, l.ret),
        };
        match l.turn {
            Some(turn) if self.par.is_none() => {
                self.vcpu.release();
                self.show_output(th, output, &text);
                self.wait_turn(th, turn);
            }
            _ => self.show_output(th, output, &text),
        }
        self.write_outs(&l.outs);
        self.write_file_data(file_data);
        self.note_interruption(th, row, call, l.ret);
        self.follow_up(th, call, l.ret);
        self.finish(th, call, l.ret);
    }

    /// Replaying: puts logged bytes into guest memory.
    pub fn write_outs(&mut self, outs: &[MemWrite<'_>]) {
        for o in outs {
            self.prepare_write(o.addr, o.data.len() as u64);
            if crate::guestmem::copy_to_guest(o.addr, &o.data).is_err() {
                // Not writable for the guest (a read-only mapping of a file that was written): by force.
                self.force_write(o.addr, &o.data);
            }
        }
    }

    /// Replaying: writes guest memory whatever its protection, by pages, as one may be behind the end of a file.
    pub(crate) fn force_write(&mut self, addr: u64, bytes: &[u8]) {
        use std::os::unix::fs::FileExt;
        let page = crate::layout::PAGE;
        let mut at = addr;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min((page - at % page) as usize));
            let write = || {
                std::fs::OpenOptions::new()
                    .write(true)
                    .open("/proc/self/mem")
                    .and_then(|f| f.write_all_at(now, at))
            };
            let mut done = write();
            if done.is_err() {
                self.make_present(at);
                done = write();
            }
            if let Err(e) = done {
                crate::report::warn(format_args!(
                    "memory at {at:#x} cannot be given its recorded content: {e}"
                ));
            }
            at += now.len() as u64;
            rest = later;
        }
    }

    /// Which of the recorder's standard files a call writes to.
    fn output_class(&mut self, row: &Row, call: &Call) -> Option<u8> {
        let arg = row.writes_to?;
        match self.fds.info(call.int(usize::from(arg))).class {
            FdClass::Standard(n) => Some(n),
            _ => None,
        }
    }

    fn show_output(&mut self, _th: &mut Thread, output: Option<(u8, u64)>, text: &[u8]) {
        if let (Some((fd, seq)), Some(shared)) = (output, &self.shared) {
            shared.show(fd, seq, text);
        }
    }

    /// After EINTR: true when what came does nothing, so that the kernel would have restarted the call.
    fn interruption_is_nothing(&mut self, th: &mut Thread) -> bool {
        if th.pending.load(Ordering::Acquire) == 0 {
            return false;
        }
        // SAFETY: pending, so the handler is done with the slot.
        let signo = unsafe { (*th.slot.get()).signo() };
        if self.is_start_signal(signo) {
            self.start_by_signal();
        } else if self.effect(signo) != Effect::None {
            return false;
        }
        th.pending.store(0, Ordering::Release);
        crate::signal::host::set_mask(th.mask);
        true
    }

    fn note_interruption(&mut self, th: &mut Thread, row: &Row, call: &Call, ret: i64) {
        th.interrupted = (ret == -i64::from(libc::EINTR)).then(|| Interrupted {
            nr: call.nr,
            pc: call.pc,
            restartable: crewind_syscalls::restart(row, &call.args) == Restart::Restartable,
        });
    }

    /// What a successful call means for the runtime's own picture of the guest, in both modes.
    pub(super) fn follow_up(&mut self, th: &mut Thread, call: &Call, ret: i64) {
        if ret != 0 {
            return;
        }
        let limits = match i64::from(call.nr) {
            libc::SYS_setrlimit => call.args[1],
            libc::SYS_prlimit64 if call.int(0) == 0 || call.int(0) == self.pid => call.args[2],
            _ => return,
        };
        let resource = call.args[if i64::from(call.nr) == libc::SYS_setrlimit {
            0
        } else {
            1
        }] as u32;
        let Ok(soft) = crate::guestmem::read_u64(limits) else {
            return;
        };
        match resource {
            libc::RLIMIT_STACK => {
                let sp = th.ctx().gpr[4];
                let effects = self.space.set_stack_limit(soft, sp);
                self.apply(effects);
            }
            libc::RLIMIT_DATA => {
                self.space.set_data_limit(soft);
                self.limits.note_soft(resource, soft);
            }
            libc::RLIMIT_AS | libc::RLIMIT_NOFILE => self.limits.note_soft(resource, soft),
            _ => {}
        }
    }

    /// Effects on descriptors and on mapped files.
    fn note_effects(
        &mut self,
        row: &Row,
        call: &Call,
        ret: i64,
        outs: &mut Vec<MemWrite<'_>>,
        mapped: Option<&MappedFile>,
    ) {
        if row.fds != FdEffect::None {
            let mut changes = std::mem::take(&mut self.changes);
            changes.clear();
            crewind_syscalls::fd_changes(row, &call.args, ret, &GuestMem, &mut changes);
            changes.iter().for_each(|c| self.fds.changed(c));
            self.changes = changes;
        }
        if row.file != FileEffect::None && ret >= 0 {
            self.refresh_mappings(row, call, ret, outs, mapped);
        }
    }

    /// Gives the vcpu up around a call that may block. (Neither this nor its counterpart is inlined: what was read of
    /// `self` before must not be used after.)
    #[inline(never)]
    pub fn release_vcpu(&mut self, th: &mut Thread) {
        th.log_shared();
        let Some(par) = self.par else {
            self.log_way_out(th);
            return self.vcpu.release();
        };
        Self::log_way_to(par, th);
        th.in_call = true;
        par.give_vcpu(th);
        th.in_event = false;
        par.unlock();
    }

    /// Takes it again.
    #[inline(never)]
    pub fn acquire_vcpu(&mut self, th: &mut Thread) -> u64 {
        if let Some(par) = self.par {
            par.take_vcpu(th);
            th.in_call = false;
            th.in_event = true;
            return 0;
        }
        let turn = crate::runtime::vcpu().acquire();
        crate::runtime::HOLDER.store(th.ctx, Ordering::Release);
        turn
    }
}

/// What a call wrote out, from its operands in guest memory.
pub fn output_text(row: &Row, args: &[u64; 6], ret: i64) -> Vec<u8> {
    let mut text = Vec::new();
    if let Output::Bytes(ranges) = crewind_syscalls::output_bytes(row, args, ret, &GuestMem) {
        for r in ranges {
            if let Some(w) = capture(r.addr, r.len) {
                text.extend_from_slice(&w.data);
            }
        }
    }
    text
}

/// The kernel is going to access guest memory while this thread holds on to it.
fn touch_operands(plan: &Plan, call: &Call) {
    let futex_writes = i64::from(call.nr) == libc::SYS_futex
        && !matches!(
            call.int(1) & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME),
            libc::FUTEX_WAKE
                | libc::FUTEX_WAIT
                | libc::FUTEX_WAIT_BITSET
                | libc::FUTEX_WAKE_BITSET
                | libc::FUTEX_REQUEUE
                | libc::FUTEX_CMP_REQUEUE
        );
    for op in &plan.operands {
        // Otherwise only the word's address counts, or the comparison's result is in the log.
        if op.role != Role::FutexWord || futex_writes {
            crate::par::rights::touch(op.addr, op.cap, op.dir.writes() || futex_writes);
        }
    }
}

/// Whether every page of a range can be read.
fn is_readable(addr: u64, len: u64) -> bool {
    let Some(last) = addr.checked_add(len.saturating_sub(1)) else {
        return false;
    };
    let page = crate::layout::PAGE;
    let mut at = addr;
    while at <= last {
        if crate::guestmem::read::<u8>(at).is_err() {
            return false;
        }
        at = (at & !(page - 1)).saturating_add(page);
    }
    true
}

/// Makes the call; with output to a standard file, inside its place in the output order.
fn call_out(
    rt: &Runtime,
    th: &Thread,
    nr: u32,
    args: &[u64; 6],
    output: Option<u8>,
) -> (i64, Option<(u8, u64)>) {
    let guard = match (output, &rt.session) {
        (Some(n), Some(s)) => {
            let class = match n {
                0 => OutputClass::Stdin,
                1 => OutputClass::Stdout,
                _ => OutputClass::Stderr,
            };
            Some((n, s, s.output_lock(class)))
        }
        _ => None,
    };
    // SAFETY: the guest's own call, with its own or the runtime's stand-in buffers.
    let ret = unsafe { hostcall::guest_syscall(nr, args, &th.pending) };
    let seq = match &guard {
        Some((n, s, _)) if ret > 0 => Some((*n, s.next_output_seq())),
        _ => None,
    };
    (ret, seq)
}
