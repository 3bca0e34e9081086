//! Instructions whose result is not a function of the guest's state: done by the runtime, logged, repeated
//! from the log.

use std::borrow::Cow;

use crate::runtime::{Flow, GuestMem, Runtime};
use crate::signal::SigInfo;
use crate::start::Mode;
use crate::thread::Thread;
use crewind_trace::event::Event;
use crewind_x86::insn::{self, InsnFault};
use crewind_x86::{InsnExit, InsnResult, fpu};

impl Runtime {
    /// Does one instruction for the guest.
    pub fn instruction(&mut self, th: &mut Thread, i: &InsnExit) -> Flow {
        let at = (th.ctx().clock(), th.ctx().rip);
        if i.kind.is_fpu_state() {
            // A function of the guest's state; only its form needed our help.
            let done = fpu::emulate(th.ctx(), i, &mut Memory(self));
            if let Some(par) = self.par {
                // What it took to access that memory belongs in front of the instruction.
                self.placed_in_front(th, par, at);
            }
            return self.instruction_done(th, done);
        }
        let done = match self.mode {
            Mode::Record => {
                let regs = th.reg_hash();
                let r = insn::sample(th.ctx(), i);
                let done = insn::apply(th.ctx(), i, &r, &mut Memory(self));
                let event = Event::Insn {
                    kind: i.kind as u8,
                    values: Cow::Borrowed(&r.0),
                };
                th.append_at(at.0, at.1, regs, event);
                done
            }
            Mode::Replay => {
                let r = self.logged_insn(th, i);
                insn::apply(th.ctx(), i, &r, &mut Memory(self))
            }
        };
        self.instruction_done(th, done)
    }

    fn logged_insn(&mut self, th: &mut Thread, i: &InsnExit) -> InsnResult {
        let (clock, pc, regs) = (th.ctx().clock(), th.ctx().rip, th.reg_hash());
        let Some(r) = self.take_record(th) else {
            self.end_of_log(th)
        };
        match &r.event {
            Event::Insn { kind, values }
                if *kind == i.kind as u8 && r.clock == clock && r.pc == pc && r.regs == regs =>
            {
                let mut out = InsnResult::default();
                for (o, v) in out.0.iter_mut().zip(values.iter()) {
                    *o = *v;
                }
                out
            }
            Event::Killed => self.park(th),
            _ => self.diverged(th, &r, &format!("instruction {:?}", i.kind)),
        }
    }

    fn instruction_done(&mut self, th: &mut Thread, done: Result<(), InsnFault>) -> Flow {
        match done {
            Ok(()) => Flow::Go,
            Err(fault) => {
                let info = self.insn_fault(th, &fault);
                self.raise(th, info)
            }
        }
    }

    /// Away from the recording: does one instruction as the machine would now.
    ///
    /// # Errors
    /// It faults: the signal.
    pub(crate) fn instruction_now(&mut self, th: &mut Thread, i: &InsnExit) -> Result<(), u32> {
        let done = if i.kind.is_fpu_state() {
            fpu::emulate(th.ctx(), i, &mut Memory(self))
        } else {
            let r = insn::sample(th.ctx(), i);
            insn::apply(th.ctx(), i, &r, &mut Memory(self))
        };
        done.map_err(|fault| self.insn_fault(th, &fault).signo())
    }

    /// The signal of an instruction that cannot be done.
    fn insn_fault(&mut self, th: &mut Thread, fault: &InsnFault) -> SigInfo {
        let (signo, code, addr, trapno, err) = match *fault {
            InsnFault::InvalidOpcode => (libc::SIGILL, 2, th.ctx().rip, 6, 0),
            InsnFault::GsBase => {
                self.warn_once(
                    u32::MAX,
                    format_args!("the program sets its GS base, which crewind uses itself; it gets SIGILL. Programs that use GS cannot be recorded yet"),
                );
                (libc::SIGILL, 2, th.ctx().rip, 6, 0)
            }
            InsnFault::GeneralProtection => (libc::SIGSEGV, 0x80, 0, 13, 0),
            InsnFault::Memory { addr, write } => {
                let mapped = self.space.find(addr).is_some();
                let code = if mapped { 2 } else { 1 };
                (
                    libc::SIGSEGV,
                    code,
                    addr,
                    14,
                    4 | u64::from(write) << 1 | u64::from(mapped),
                )
            }
        };
        let mut info = SigInfo::fault(signo, code, addr);
        (info.trapno, info.err) = (trapno, err);
        if trapno == 14 {
            info.cr2 = addr;
        }
        info
    }
}

/// Guest memory, with pages that hold translated code made writable first.
struct Memory<'a>(&'a mut Runtime);

impl insn::GuestMemory for Memory<'_> {
    fn read(&mut self, addr: u64, buf: &mut [u8]) -> Result<(), u64> {
        insn::GuestMemory::read(&mut GuestMem, addr, buf)
    }

    fn write(&mut self, addr: u64, buf: &[u8]) -> Result<(), u64> {
        self.0.prepare_write(addr, buf.len() as u64);
        insn::GuestMemory::write(&mut GuestMem, addr, buf)
    }
}
