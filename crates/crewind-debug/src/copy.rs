//! Calls of the program's functions, and changes.
//!
//! A recording cannot be changed, but a copy of the process can: a fork of the one where the debugger is, which goes on
//! without the recording, and is thrown away.
//!
//! gdb calls a function by writing registers and memory, going on, and writing the registers back; the protocol does not
//! say that this is what it does. So the first write makes the copy, and from then on gdb sees the copy. When gdb goes on,
//! the copy does if its thread is somewhere else than in the recording (another pc or stack pointer: a call is under way);
//! else the copy is gone, and the recording goes on. Until then it stays, also after a call: what one call has made may be
//! an argument of the next (gdb puts strings into memory that it gets from `malloc`).

use crate::arch::Regs;
use crate::engine::{Engine, Error, LookOut, Result};
use crate::timeline::{Poll, Reason};
use crewind_guest::debug::wire::{Registers, Step, Stray, Why};

/// Ticks between two looks at the connection: some 20 ms.
const QUANTUM: u64 = 8_000_000;

/// A process that has left the recording.
pub(crate) struct Copy {
    engine: Engine,
    /// The thread that runs if one does: the one whose registers were written last.
    thread: u32,
    /// Its registers in the recording.
    original: Registers,
    /// Another thread that was stepped, and its registers before: gdb steps over a breakpoint of one before it lets another
    /// go on. Only one thread moves in a copy, so it is put back.
    aside: Option<(u32, Registers)>,
    /// Something was written that no call was for.
    written: bool,
}

impl Copy {
    /// A copy of this process.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn of(engine: &mut Engine, thread: u32) -> Result<Copy> {
        let original = engine.registers(thread)?;
        Ok(Copy {
            engine: engine.fork()?,
            thread,
            original,
            aside: None,
            written: false,
        })
    }

    /// The thread that ran last, or will.
    pub(crate) fn thread(&self) -> u32 {
        match &self.aside {
            Some((thread, _)) => *thread,
            None => self.thread,
        }
    }

    /// Puts a thread back where it was.
    fn put_back(&mut self) -> Result<()> {
        match self.aside.take() {
            Some((thread, registers)) => self.engine.set_registers(thread, &registers),
            None => Ok(()),
        }
    }

    pub(crate) fn registers(&mut self, thread: u32) -> Result<Registers> {
        self.engine.registers(thread)
    }

    /// Reads memory; returns how much could be read.
    pub(crate) fn read(&mut self, addr: u64, out: &mut [u8]) -> Result<usize> {
        let bytes = self.engine.read(addr, out.len() as u64)?;
        let n = bytes.len().min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..n), bytes.get(..n)) {
            to.copy_from_slice(from);
        }
        Ok(n)
    }

    /// Changes memory.
    pub(crate) fn write(&mut self, addr: u64, bytes: &[u8]) -> Result<()> {
        self.written = true;
        self.engine.write(addr, bytes)
    }

    /// Changes the registers of a thread. `original`: what they are in the recording.
    pub(crate) fn set(&mut self, thread: u32, wanted: &Regs, original: Registers) -> Result<()> {
        self.put_back()?;
        let now = self.engine.registers(thread)?;
        let Some(r) = wanted.to_wire(&now) else {
            return Err(Error::Refused("these are not all registers".into()));
        };
        self.engine.set_registers(thread, &r)?;
        (self.thread, self.original) = (thread, original);
        Ok(())
    }

    /// Whether its thread is somewhere else than in the recording.
    pub(crate) fn is_away(&mut self) -> Result<bool> {
        let now = self.engine.registers(self.thread)?;
        let place = |r: &Registers| (r.rip, r.gpr.get(4).copied());
        Ok(place(&now) != place(&self.original))
    }

    /// Whether something was changed that nobody has used.
    pub(crate) fn is_changed(&mut self) -> bool {
        // As gdb sees them: it puts nothing else back.
        let seen = |r: &Registers| Regs::new(r, true);
        let now = self.engine.registers(self.thread);
        self.written || now.is_ok_and(|now| seen(&now) != seen(&self.original))
    }

    /// Goes on, until something happens.
    pub(crate) fn go(
        &mut self,
        step: Option<Step>,
        breaks: &[u64],
        poll: Poll<'_>,
    ) -> Result<Reason> {
        self.written = false;
        self.put_back()?;
        let thread = step.map_or(self.thread, |s| s.thread);
        if thread != self.thread {
            self.aside = Some((thread, self.engine.registers(thread)?));
        }
        self.engine.look_out(&LookOut {
            breaks: breaks.to_vec(),
            ..LookOut::default()
        })?;
        let how = Stray {
            thread,
            step: step.is_some(),
            range: step.and_then(|s| s.range),
            work: QUANTUM,
        };
        loop {
            return Ok(match self.engine.stray(how)?.why {
                Why::Work if !poll() => continue,
                Why::Work => Reason::Interrupted,
                Why::Break => Reason::Break,
                Why::Signal(s) => Reason::Signal(s),
                Why::Cannot(why) => Reason::Cannot(why),
                _ => Reason::Done,
            });
        }
    }
}
