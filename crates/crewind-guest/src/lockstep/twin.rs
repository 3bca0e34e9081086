//! The native twin: a process of ours under ptrace, stopped whenever this code looks at it.

use super::compare;
use super::wire::Regs;
use crate::hostcall;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::unix::fs::FileExt;

/// Why the twin did not do what it was told.
pub enum Stray {
    /// ptrace or the twin itself failed.
    Failed(String),
    /// Its instruction raised a signal.
    Signal(i32),
    /// It is at an instruction that enters the kernel.
    Kernel,
    /// It ended.
    Gone,
}

impl std::fmt::Display for Stray {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stray::Failed(why) => f.write_str(why),
            Stray::Signal(n) => write!(f, "it got signal {n}"),
            Stray::Kernel => f.write_str("it is at an instruction that enters the kernel"),
            Stray::Gone => f.write_str("it ended"),
        }
    }
}

impl From<io::Error> for Stray {
    fn from(e: io::Error) -> Self {
        Stray::Failed(e.to_string())
    }
}

type Result<T> = std::result::Result<T, Stray>;

/// The twin.
pub struct Twin {
    pid: libc::pid_t,
    memory: File,
    regs: libc::user_regs_struct,
    /// Transfers so far, counted as the runtime's clock does.
    pub clock: u64,
    /// Instructions executed.
    pub instructions: u64,
    xstate: Vec<u8>,
    breakpoint: Breakpoint,
    decoded: HashMap<u64, Instruction>,
}

/// The one debug register used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Breakpoint {
    /// Not asked for yet.
    Off,
    /// Set to this address.
    At(u64),
    /// The machine has none (some virtual machines and sandboxes).
    Refused,
}

const TF: u64 = 0x100;
const RSP: usize = 4;

/// Makes one ptrace request with plain arguments.
fn ptrace(request: libc::c_uint, pid: libc::pid_t, addr: u64, data: u64) -> io::Result<()> {
    // SAFETY: requests made through here take numbers, or pointers to live data that the caller made.
    match unsafe { libc::ptrace(request, pid, addr, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

impl Twin {
    /// Takes over a child that has asked to be traced and stops itself.
    pub fn attach(pid: libc::pid_t) -> Result<Twin> {
        // SAFETY: all-zero is a valid value of this plain C struct.
        let regs = unsafe { std::mem::zeroed() };
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))?;
        let mut twin = Twin {
            pid,
            memory,
            regs,
            clock: 0,
            instructions: 0,
            xstate: Vec::new(),
            breakpoint: Breakpoint::Off,
            decoded: HashMap::new(),
        };
        match twin.wait()? {
            libc::SIGSTOP => {}
            signal => return Err(Stray::Signal(signal)),
        }
        ptrace(
            libc::PTRACE_SETOPTIONS,
            pid,
            0,
            libc::PTRACE_O_EXITKILL as u64,
        )?;
        twin.read_regs()?;
        Ok(twin)
    }

    /// Its process id.
    pub fn pid(&self) -> libc::pid_t {
        self.pid
    }

    /// Its registers.
    pub fn regs(&self) -> Regs {
        let r = &self.regs;
        Regs {
            gpr: [
                r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11,
                r.r12, r.r13, r.r14, r.r15,
            ],
            rip: r.rip,
            rflags: r.eflags,
            fs_base: r.fs_base,
            clock: self.clock,
        }
    }

    /// Its pc.
    pub fn rip(&self) -> u64 {
        self.regs.rip
    }

    /// Sets registers and clock.
    pub fn set_regs(&mut self, from: &Regs) -> Result<()> {
        let r = &mut self.regs;
        [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11,
            r.r12, r.r13, r.r14, r.r15,
        ] = from.gpr;
        (r.rip, r.eflags, r.fs_base, r.gs_base) = (from.rip, from.rflags & !TF, from.fs_base, 0);
        // Not in a system call: nothing is to be restarted.
        r.orig_rax = u64::MAX;
        self.clock = from.clock;
        self.write_regs()
    }

    /// Its floating point and vector state.
    pub fn vectors(&mut self) -> Result<&[u8]> {
        const ROOM: usize = 16 << 10;
        self.xstate.resize(ROOM, 0);
        let mut iov = libc::iovec {
            iov_base: self.xstate.as_mut_ptr().cast(),
            iov_len: ROOM,
        };
        ptrace(
            libc::PTRACE_GETREGSET,
            self.pid,
            NT_X86_XSTATE,
            &raw mut iov as u64,
        )?;
        self.xstate.truncate(iov.iov_len);
        Ok(&self.xstate)
    }

    /// Sets it to the state in `from`.
    pub fn set_vectors(&mut self, from: &[u8]) -> Result<()> {
        const PRESENT: std::ops::Range<usize> = 512..520;
        self.vectors()?;
        compare::take_over(&mut self.xstate, from);
        if let Some(present) = self
            .xstate
            .get_mut(PRESENT)
            .and_then(|p| p.first_chunk_mut::<8>())
        {
            *present =
                (u64::from_le_bytes(*present) | crate::fpstate::layout().features).to_le_bytes();
        }
        let mut iov = libc::iovec {
            iov_base: self.xstate.as_mut_ptr().cast(),
            iov_len: self.xstate.len(),
        };
        Ok(ptrace(
            libc::PTRACE_SETREGSET,
            self.pid,
            NT_X86_XSTATE,
            &raw mut iov as u64,
        )?)
    }

    /// Writes its memory, whatever the rights.
    pub fn write(&self, addr: u64, data: &[u8]) -> Result<()> {
        Ok(self.memory.write_all_at(data, addr)?)
    }

    /// Reads its memory.
    pub fn read(&self, addr: u64, to: &mut [u8]) -> Result<()> {
        Ok(self.memory.read_exact_at(to, addr)?)
    }

    /// Makes it do a system call of ours.
    pub fn inject(&mut self, nr: i64, args: [u64; 6]) -> Result<()> {
        let kept = self.regs;
        let r = &mut self.regs;
        r.rip = hostcall::syscall_instruction();
        (r.rax, r.orig_rax) = (nr as u64, u64::MAX);
        [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9] = args;
        self.write_regs()?;
        ptrace(libc::PTRACE_SINGLESTEP, self.pid, 0, 0)?;
        let stopped = self.wait()?;
        self.read_regs()?;
        let result = self.regs.rax as i64;
        self.regs = libc::user_regs_struct {
            orig_rax: u64::MAX,
            ..kept
        };
        self.write_regs()?;
        match (stopped, result) {
            (libc::SIGTRAP, -4095..=-1) => Err(Stray::Failed(format!(
                "system call {nr} {args:x?} in the twin: errno {}",
                -result
            ))),
            (libc::SIGTRAP, _) => Ok(()),
            (signal, _) => Err(Stray::Signal(signal)),
        }
    }

    /// Mappings or their rights changed, as they do before code changes: the runtime guards what it translated.
    pub fn forget_code(&mut self) {
        self.decoded.clear();
    }

    /// The instruction at `pc`; `None` when there is none to read.
    pub fn instruction(&mut self, pc: u64) -> Option<Instruction> {
        if let Some(i) = self.decoded.get(&pc) {
            return Some(*i);
        }
        let mut bytes = [0u8; 15];
        let n = match self.memory.read_at(&mut bytes, pc) {
            Ok(n) => n,
            // Up to the end of the page.
            Err(_) => self
                .memory
                .read_at(bytes.get_mut(..(4096 - (pc & 4095) as usize).min(15))?, pc)
                .ok()?,
        };
        let options = if crewind_x86::cpuid::is_amd() {
            DecoderOptions::AMD
        } else {
            DecoderOptions::NONE
        };
        let insn = Decoder::with_ip(64, bytes.get(..n)?, pc, options).decode();
        if insn.is_invalid() {
            return None;
        }
        self.decoded.insert(pc, insn);
        Some(insn)
    }

    /// Executes the instruction it is at (one iteration of a repeated one) and counts the transfer.
    pub fn step(&mut self) -> Result<()> {
        let pc = self.regs.rip;
        let Some(insn) = self.instruction(pc) else {
            // It will fault.
            return self.resume(libc::PTRACE_SINGLESTEP);
        };
        if enters_kernel(&insn) {
            return Err(Stray::Kernel);
        }
        if self.breakpoint == Breakpoint::At(pc) {
            self.set_breakpoint(0);
        }
        self.resume(libc::PTRACE_SINGLESTEP)?;
        if matches!(insn.mnemonic(), Mnemonic::Pushfq | Mnemonic::Pushf) {
            self.hide_trap_flag()?;
        }
        if self.regs.rip != pc || !repeats(&insn) {
            self.instructions += 1;
        }
        if ticks(&insn, pc, self.regs.rip) {
            self.clock += 1;
        }
        Ok(())
    }

    /// Executes a straight line of `count` instructions that leads to `pc`, at full speed where the machine allows.
    pub fn run_line(&mut self, pc: u64, count: u64) -> Result<()> {
        // Two ptrace calls more or less cost as much as a step.
        const WORTH_IT: u64 = 3;
        let alone = self
            .instruction(self.regs.rip)
            .is_some_and(|i| !repeats(&i));
        if count < WORTH_IT && alone || !self.set_breakpoint(pc) {
            while self.regs.rip != pc {
                self.step()?;
            }
            return Ok(());
        }
        self.instructions += count;
        self.resume(libc::PTRACE_CONT)
    }

    /// Moves the breakpoint; false when the machine has none.
    fn set_breakpoint(&mut self, pc: u64) -> bool {
        const EXECUTION_LOCAL_0: u64 = 1;
        let register = |n: usize| (offset_of!(libc::user, u_debugreg) + 8 * n) as u64;
        let poke = |n, value| ptrace(libc::PTRACE_POKEUSER, self.pid, register(n), value).is_ok();
        let set = match self.breakpoint {
            Breakpoint::Refused => false,
            Breakpoint::At(at) if at == pc => true,
            Breakpoint::At(_) => poke(0, pc),
            Breakpoint::Off => poke(0, pc) && poke(7, EXECUTION_LOCAL_0),
        };
        self.breakpoint = if set {
            Breakpoint::At(pc)
        } else {
            Breakpoint::Refused
        };
        set
    }

    /// What `pushf` stored shows that it was stepped over.
    fn hide_trap_flag(&self) -> Result<()> {
        let at = self.regs().gpr[RSP] + 1;
        let mut byte = [0];
        self.memory.read_exact_at(&mut byte, at)?;
        byte[0] &= !(TF >> 8) as u8;
        self.write(at, &byte)
    }

    fn resume(&mut self, how: libc::c_uint) -> Result<()> {
        ptrace(how, self.pid, 0, 0)?;
        let signal = self.wait()?;
        self.read_regs()?;
        if signal == libc::SIGTRAP {
            Ok(())
        } else {
            Err(Stray::Signal(signal))
        }
    }

    /// Waits for the next stop; returns its signal.
    fn wait(&mut self) -> Result<i32> {
        let mut status = 0;
        loop {
            // SAFETY: `status` is a live int.
            let pid = unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) };
            if pid == self.pid {
                break;
            }
            let e = io::Error::last_os_error();
            if e.kind() != io::ErrorKind::Interrupted {
                return Err(e.into());
            }
        }
        if libc::WIFSTOPPED(status) {
            Ok(libc::WSTOPSIG(status))
        } else {
            Err(Stray::Gone)
        }
    }

    fn read_regs(&mut self) -> Result<()> {
        Ok(ptrace(
            libc::PTRACE_GETREGS,
            self.pid,
            0,
            &raw mut self.regs as u64,
        )?)
    }

    fn write_regs(&mut self) -> Result<()> {
        Ok(ptrace(
            libc::PTRACE_SETREGS,
            self.pid,
            0,
            &raw mut self.regs as u64,
        )?)
    }
}

const NT_X86_XSTATE: u64 = 0x202;

/// Whether it is a string instruction with a repetition prefix.
pub fn repeats(insn: &Instruction) -> bool {
    insn.is_string_instruction() && (insn.has_rep_prefix() || insn.has_repne_prefix())
}

/// Whether the twin must not execute it.
pub fn enters_kernel(insn: &Instruction) -> bool {
    matches!(
        insn.mnemonic(),
        Mnemonic::Syscall | Mnemonic::Sysenter | Mnemonic::Int
    )
}

/// Whether the transfer from `insn` at `pc` to `to` advances the clock.
fn ticks(insn: &Instruction, pc: u64, to: u64) -> bool {
    match insn.flow_control() {
        FlowControl::Return | FlowControl::IndirectBranch | FlowControl::IndirectCall => true,
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch | FlowControl::Call => {
            to == insn.near_branch_target() && to <= pc
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_counts_indirect_and_backward_transfers() {
        let count = |bytes: &[u8], to: u64| {
            let pc = 0x1000;
            ticks(
                &Decoder::with_ip(64, bytes, pc, DecoderOptions::NONE).decode(),
                pc,
                to,
            )
        };
        assert!(count(&[0xc3], 0x2000), "ret");
        assert!(count(&[0xff, 0xe0], 0x2000), "jmp rax");
        assert!(count(&[0xff, 0xd0], 0x1002), "call rax");
        assert!(count(&[0xeb, 0xfe], 0x1000), "jmp to itself");
        assert!(!count(&[0xeb, 0x10], 0x1012), "jmp forward");
        assert!(count(&[0x75, 0xf0], 0xff2), "jne backward");
        assert!(!count(&[0x75, 0xf0], 0x1002), "jne not taken");
        assert!(!count(&[0xe8, 0, 0, 0, 0], 0x1005), "call forward");
        assert!(count(&[0xe8, 0, 0xff, 0xff, 0xff], 0xf05), "call backward");
        assert!(!count(&[0x90], 0x1001), "nop");
    }
}
