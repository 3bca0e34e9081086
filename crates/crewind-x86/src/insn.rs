//! Instructions that the runtime does for the guest, and which instructions those are.

use crate::cpuid;
use crate::ctx::Ctx;
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};

/// Kinds of instructions that leave translated code. The numbers go to traces and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum InsnKind {
    Rdtsc = 1,
    Rdtscp = 2,
    Rdpid = 3,
    Cpuid = 4,
    Rdrand = 5,
    Rdseed = 6,
    Xgetbv = 7,
    Rdpmc = 8,
    Wrfsbase = 9,
    Rdgsbase = 10,
    Wrgsbase = 11,
    Sgdt = 12,
    Sidt = 13,
    Sldt = 14,
    Str = 15,
    Smsw = 16,
    Fxsave = 17,
    Fxrstor = 18,
    Fnsave = 19,
    Fnstenv = 20,
    Xsave = 21,
    Xsavec = 22,
    Xsaveopt = 23,
    Xrstor = 24,
}

const KINDS: [InsnKind; 24] = [
    InsnKind::Rdtsc,
    InsnKind::Rdtscp,
    InsnKind::Rdpid,
    InsnKind::Cpuid,
    InsnKind::Rdrand,
    InsnKind::Rdseed,
    InsnKind::Xgetbv,
    InsnKind::Rdpmc,
    InsnKind::Wrfsbase,
    InsnKind::Rdgsbase,
    InsnKind::Wrgsbase,
    InsnKind::Sgdt,
    InsnKind::Sidt,
    InsnKind::Sldt,
    InsnKind::Str,
    InsnKind::Smsw,
    InsnKind::Fxsave,
    InsnKind::Fxrstor,
    InsnKind::Fnsave,
    InsnKind::Fnstenv,
    InsnKind::Xsave,
    InsnKind::Xsavec,
    InsnKind::Xsaveopt,
    InsnKind::Xrstor,
];

impl InsnKind {
    /// The kind with this number.
    pub fn from_u8(n: u8) -> Option<InsnKind> {
        KINDS.get(usize::from(n).checked_sub(1)?).copied()
    }
    /// True for the FPU-state family, which `fpu::emulate` does and which needs no logging.
    pub fn is_fpu_state(self) -> bool {
        self as u8 >= InsnKind::Fxsave as u8
    }
    /// True if it only writes registers, and cannot fail on this machine: time stamps, random numbers.
    pub fn only_tells(self) -> bool {
        match self {
            InsnKind::Rdtsc | InsnKind::Rdtscp => true,
            InsnKind::Rdrand => cpuid::has_rdrand(),
            InsnKind::Rdseed => cpuid::has_rdseed(),
            _ => false,
        }
    }
}

/// An instruction the runtime has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InsnExit {
    /// Which.
    pub kind: InsnKind,
    /// Its length.
    pub len: u8,
    /// Its bytes.
    pub bytes: [u8; 15],
}

impl InsnExit {
    pub(crate) fn decode(&self, pc: u64) -> Instruction {
        let bytes = self
            .bytes
            .get(..usize::from(self.len))
            .unwrap_or(&self.bytes);
        Decoder::with_ip(64, bytes, pc, decoder_options()).decode()
    }
}

/// How this cpu reads the few encodings that vendors disagree on.
pub(crate) fn decoder_options() -> u32 {
    if cpuid::is_amd() {
        DecoderOptions::AMD
    } else {
        DecoderOptions::NONE
    }
}

/// What the translator does with an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Copied.
    Plain,
    /// Copied; may leave a pc behind it in a signal frame, so nothing of another instruction may begin there.
    Trap,
    /// Conditional jump on flags.
    Jcc,
    /// `loop`, `loope`, `loopne`, `jrcxz`, `jecxz`.
    CountJump,
    Jmp,
    Call,
    JmpIndirect,
    CallIndirect,
    Ret,
    Syscall,
    Runtime(InsnKind),
    RdFsBase,
    /// Raises #UD, itself or because the guest's cpu does not have it.
    Undefined,
    Unsupported(&'static str),
    /// Translated code is left in front of it, whatever it is: a debugger stops there.
    Break,
}

pub(crate) fn classify(i: &Instruction) -> Class {
    if i.is_invalid() {
        return Class::Undefined;
    }
    if i.segment_prefix() == Register::GS && uses_memory(i) {
        return Class::Unsupported("an access through the GS segment");
    }
    match i.flow_control() {
        FlowControl::Next => next_class(i),
        FlowControl::UnconditionalBranch if i.op0_kind() == OpKind::NearBranch64 => Class::Jmp,
        FlowControl::Call if i.op0_kind() == OpKind::NearBranch64 => Class::Call,
        FlowControl::ConditionalBranch if i.op0_kind() == OpKind::NearBranch64 => {
            if i.is_jcc_short_or_near() {
                Class::Jcc
            } else if i.is_loop() || i.is_loopcc() || i.is_jcx_short() {
                Class::CountJump
            } else {
                Class::Unsupported("an unknown conditional jump")
            }
        }
        FlowControl::IndirectBranch if i.code() == Code::Jmp_rm64 => Class::JmpIndirect,
        FlowControl::IndirectCall if i.code() == Code::Call_rm64 => Class::CallIndirect,
        FlowControl::Return => match i.code() {
            Code::Retnq | Code::Retnq_imm16 => Class::Ret,
            Code::Sysretd | Code::Sysretq | Code::Sysexitd | Code::Sysexitq => Class::Plain,
            Code::Iretd | Code::Iretq | Code::Iretw => Class::Unsupported("iret"),
            _ => Class::Unsupported("a far or 16-bit return"),
        },
        FlowControl::Call => match i.mnemonic() {
            Mnemonic::Syscall => Class::Syscall,
            Mnemonic::Sysenter => Class::Unsupported("sysenter"),
            Mnemonic::Call => Class::Unsupported("a far or 16-bit call"),
            _ => Class::Undefined,
        },
        FlowControl::Interrupt => match i.mnemonic() {
            Mnemonic::Int if i.immediate8() == 0x80 => {
                Class::Unsupported("a 32-bit system call (int 0x80)")
            }
            Mnemonic::Int | Mnemonic::Int1 | Mnemonic::Int3 => Class::Trap,
            _ => Class::Undefined,
        },
        FlowControl::XbeginXabortXend | FlowControl::Exception => Class::Undefined,
        _ => Class::Unsupported("a far or 16-bit jump or call"),
    }
}

fn next_class(i: &Instruction) -> Class {
    use InsnKind as K;
    let kind = match i.mnemonic() {
        Mnemonic::Rdtsc => K::Rdtsc,
        Mnemonic::Rdtscp => K::Rdtscp,
        Mnemonic::Rdpid => K::Rdpid,
        Mnemonic::Cpuid => K::Cpuid,
        Mnemonic::Rdrand => K::Rdrand,
        Mnemonic::Rdseed => K::Rdseed,
        Mnemonic::Xgetbv => K::Xgetbv,
        Mnemonic::Rdpmc => K::Rdpmc,
        Mnemonic::Wrfsbase => K::Wrfsbase,
        Mnemonic::Rdgsbase => K::Rdgsbase,
        Mnemonic::Wrgsbase => K::Wrgsbase,
        Mnemonic::Sgdt => K::Sgdt,
        Mnemonic::Sidt => K::Sidt,
        Mnemonic::Sldt => K::Sldt,
        Mnemonic::Str => K::Str,
        Mnemonic::Smsw => K::Smsw,
        Mnemonic::Fxsave | Mnemonic::Fxsave64 => K::Fxsave,
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => K::Fxrstor,
        Mnemonic::Fnsave => K::Fnsave,
        Mnemonic::Fnstenv => K::Fnstenv,
        Mnemonic::Xsave | Mnemonic::Xsave64 => K::Xsave,
        Mnemonic::Xsavec | Mnemonic::Xsavec64 => K::Xsavec,
        Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => K::Xsaveopt,
        Mnemonic::Xrstor | Mnemonic::Xrstor64 => K::Xrstor,
        Mnemonic::Rdfsbase => return Class::RdFsBase,
        Mnemonic::Lsl | Mnemonic::Lar | Mnemonic::Verr | Mnemonic::Verw => {
            return Class::Unsupported("reading segment descriptors (lsl, lar, verr, verw)");
        }
        Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => {
            return Class::Unsupported("loading a segment register");
        }
        Mnemonic::Mov | Mnemonic::Pop
            if i.op0_kind() == OpKind::Register
                && matches!(i.op0_register(), Register::FS | Register::GS | Register::SS) =>
        {
            return Class::Unsupported("loading a segment register");
        }
        m if hidden(m) => return Class::Undefined,
        _ => return Class::Plain,
    };
    Class::Runtime(kind)
}

/// Instructions of features that the guest's `cpuid` does not show: their results cannot be made deterministic.
fn hidden(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        m,
        Rdpkru
            | Wrpkru
            | Xtest
            | Xend
            | Xabort
            | Umonitor
            | Umwait
            | Tpause
            | Monitorx
            | Mwaitx
            | Rdpru
            | Vmcall
            | Vmmcall
            | Vmfunc
            | Vmgexit
            | Enclu
            | Enclv
            | Encls
            | Getsec
            | Pconfig
            | Enqcmd
            | Enqcmds
            | Ldtilecfg
            | Sttilecfg
            | Tilerelease
            | Tilezero
            | Tileloadd
            | Tileloaddt1
            | Tilestored
            | Tdpbf16ps
            | Tdpbssd
            | Tdpbsud
            | Tdpbusd
            | Tdpbuud
            | Tdpfp16ps
            | Tcmmimfp16ps
            | Tcmmrlfp16ps
            | Clui
            | Stui
            | Testui
            | Uiret
            | Senduipi
            | Aesenc128kl
            | Aesenc256kl
            | Aesdec128kl
            | Aesdec256kl
            | Aesencwide128kl
            | Aesencwide256kl
            | Aesdecwide128kl
            | Aesdecwide256kl
            | Encodekey128
            | Encodekey256
            | Incsspd
            | Incsspq
            | Rstorssp
            | Saveprevssp
            | Setssbsy
            | Clrssbsy
            | Wrssd
            | Wrssq
            | Wrussd
            | Wrussq
    )
}

fn uses_memory(i: &Instruction) -> bool {
    if i.mnemonic() == Mnemonic::Lea || i.mnemonic() == Mnemonic::Nop {
        return false;
    }
    (0..i.op_count()).any(|n| {
        matches!(
            i.op_kind(n),
            OpKind::Memory
                | OpKind::MemorySegSI
                | OpKind::MemorySegESI
                | OpKind::MemorySegRSI
                | OpKind::MemorySegDI
                | OpKind::MemorySegEDI
                | OpKind::MemorySegRDI
        )
    }) || i.mnemonic() == Mnemonic::Xlatb
}

/// What a nondeterministic instruction gave: all that is needed to do it again. Meaning of the four words: eax,
/// ebx, ecx, edx for cpuid; value for the others (rdtscp: tsc, aux; rdrand/rdseed: value, carry).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct InsnResult(pub [u64; 4]);

/// Why an instruction cannot be done: the signal it raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsnFault {
    /// #UD: SIGILL.
    InvalidOpcode,
    /// #GP: SIGSEGV with SI_KERNEL.
    GeneralProtection,
    /// Guest memory at this address could not be accessed: SIGSEGV there.
    Memory {
        /// Faulting address.
        addr: u64,
        /// A write.
        write: bool,
    },
    /// The guest uses GS base, which is not supported.
    GsBase,
}

/// Guest memory for emulated instructions.
pub trait GuestMemory {
    /// Reads `buf.len()` bytes; Err(address that cannot be read).
    fn read(&mut self, addr: u64, buf: &mut [u8]) -> Result<(), u64>;
    /// Writes; Err(address that cannot be written), and then nothing was.
    fn write(&mut self, addr: u64, buf: &[u8]) -> Result<(), u64>;
}

/// Does the instruction on the host for the guest's operands in `ctx`, changing nothing. Zeros for those whose
/// result is fixed or that the runtime does with `apply` or `fpu::emulate` alone.
pub fn sample(ctx: &Ctx, insn: &InsnExit) -> InsnResult {
    let mut r = [0u64; 4];
    match insn.kind {
        InsnKind::Rdtsc => {
            // SAFETY: no memory, always there.
            r[0] = unsafe { core::arch::x86_64::_rdtsc() };
        }
        InsnKind::Rdtscp | InsnKind::Rdpid => {
            // Linux puts cpu | node << 12 in TSC_AUX. Both instructions give it; the vcpu the guest sees is the host's.
            let mut aux = 0u32;
            if cpuid::host(0x8000_0001, 0).edx & 1 << 27 != 0 {
                // SAFETY: cpuid shows rdtscp.
                r[0] = unsafe { core::arch::x86_64::__rdtscp(&mut aux) };
            }
            r[1] = u64::from(aux);
            if insn.kind == InsnKind::Rdpid {
                r = [r[1], 0, 0, 0];
            }
        }
        InsnKind::Cpuid => {
            let c = cpuid::guest_cpuid(ctx.gpr[0] as u32, ctx.gpr[1] as u32);
            r = [c.eax.into(), c.ebx.into(), c.ecx.into(), c.edx.into()];
        }
        InsnKind::Rdrand | InsnKind::Rdseed => {
            let mut v = 0u64;
            let ok = getrandom(&mut v);
            r = [v, u64::from(ok), 0, 0];
        }
        InsnKind::Xgetbv => {
            r[0] = match ctx.gpr[1] as u32 {
                0 => cpuid::guest_xcr0(),
                // XINUSE depends on what the runtime did: always everything.
                _ => cpuid::guest_xcr0(),
            };
        }
        _ => {}
    }
    InsnResult(r)
}

/// The guest cannot tell the kernel's generator from the cpu's.
fn getrandom(v: &mut u64) -> bool {
    // SAFETY: eight bytes at a valid address.
    unsafe { libc::getrandom((&raw mut *v).cast(), 8, 0) == 8 }
}

const CF: u64 = 1;

/// Gives the guest the result of the instruction and moves `ctx.rip` behind it. Also does what needs no sampling:
/// `wrfsbase` (sets `ctx.fs_base`; the caller's host GS base too), `rdgsbase` (0), the sgdt family (fixed values).
/// The FPU-state family goes to `fpu::emulate`.
pub fn apply(
    ctx: &mut Ctx,
    insn: &InsnExit,
    r: &InsnResult,
    mem: &mut dyn GuestMemory,
) -> Result<(), InsnFault> {
    let i = insn.decode(ctx.rip);
    let v = r.0[0];
    match insn.kind {
        InsnKind::Rdtsc | InsnKind::Rdtscp => {
            ctx.gpr[0] = v & 0xffff_ffff;
            ctx.gpr[2] = v >> 32;
            if insn.kind == InsnKind::Rdtscp {
                ctx.gpr[1] = r.0[1] & 0xffff_ffff;
            }
        }
        InsnKind::Rdpid => set_reg(ctx, i.op0_register(), v),
        InsnKind::Cpuid => {
            ctx.gpr[0] = r.0[0];
            ctx.gpr[3] = r.0[1];
            ctx.gpr[1] = r.0[2];
            ctx.gpr[2] = r.0[3];
        }
        InsnKind::Rdrand | InsnKind::Rdseed => {
            let leaf = if insn.kind == InsnKind::Rdrand {
                cpuid::has_rdrand()
            } else {
                cpuid::has_rdseed()
            };
            if !leaf {
                return Err(InsnFault::InvalidOpcode);
            }
            let carry = r.0[1] & 1;
            set_reg(ctx, i.op0_register(), if carry != 0 { v } else { 0 });
            ctx.rflags = (ctx.rflags & !crate::liveness::ARITH) | if carry != 0 { CF } else { 0 };
        }
        InsnKind::Xgetbv => {
            if ctx.gpr[1] as u32 > 1 || (ctx.gpr[1] as u32 == 1 && !cpuid::has_xgetbv1()) {
                return Err(InsnFault::GeneralProtection);
            }
            ctx.gpr[0] = v & 0xffff_ffff;
            ctx.gpr[2] = v >> 32;
        }
        InsnKind::Rdpmc => return Err(InsnFault::GeneralProtection),
        InsnKind::Wrfsbase => {
            let v = get_reg(ctx, i.op0_register());
            if v >= 1 << 47 {
                return Err(InsnFault::GeneralProtection);
            }
            ctx.fs_base = v;
        }
        InsnKind::Rdgsbase => set_reg(ctx, i.op0_register(), 0),
        InsnKind::Wrgsbase => {
            if get_reg(ctx, i.op0_register()) != 0 {
                return Err(InsnFault::GsBase);
            }
        }
        // What Linux shows where the cpu has UMIP, as all newer ones do.
        InsnKind::Sgdt | InsnKind::Sidt => {
            let base: u64 = if insn.kind == InsnKind::Sgdt {
                0xffff_ffff_fffe_0000
            } else {
                0xffff_ffff_ffff_0000
            };
            let mut b = [0u8; 10];
            b[2..].copy_from_slice(&base.to_le_bytes());
            let addr = effective_address(ctx, &i);
            mem.write(addr, &b)
                .map_err(|addr| InsnFault::Memory { addr, write: true })?;
        }
        InsnKind::Sldt | InsnKind::Str | InsnKind::Smsw => {
            let value: u64 = match insn.kind {
                InsnKind::Sldt => 0,
                InsnKind::Str => 0x40,
                _ => 0x8005_0033,
            };
            if i.op0_kind() == OpKind::Register {
                set_reg(ctx, i.op0_register(), value);
            } else {
                let addr = effective_address(ctx, &i);
                mem.write(addr, &(value as u16).to_le_bytes())
                    .map_err(|addr| InsnFault::Memory { addr, write: true })?;
            }
        }
        _ => return Err(InsnFault::InvalidOpcode),
    }
    ctx.rip = i.next_ip();
    Ok(())
}

/// Effective address of the memory operand, with the guest's FS base.
pub(crate) fn effective_address(ctx: &Ctx, i: &Instruction) -> u64 {
    let op = (0..i.op_count())
        .find(|n| i.op_kind(*n) == OpKind::Memory)
        .unwrap_or(0);
    i.virtual_address(op, 0, |reg, _, _| {
        Some(match reg {
            Register::FS => ctx.fs_base,
            Register::ES | Register::CS | Register::SS | Register::DS | Register::GS => 0,
            r => get_reg(ctx, r),
        })
    })
    .unwrap_or(0)
}

/// Value of a general-purpose register of any size but the high bytes.
fn get_reg(ctx: &Ctx, r: Register) -> u64 {
    if !r.is_gpr() {
        return 0;
    }
    let v = ctx.gpr.get(r.number()).copied().unwrap_or(0);
    match r.size() {
        8 => v,
        4 => v & 0xffff_ffff,
        2 => v & 0xffff,
        _ => v & 0xff,
    }
}

/// Writes a 16-, 32- or 64-bit register as instructions do.
fn set_reg(ctx: &mut Ctx, r: Register, v: u64) {
    if let Some(g) = r.is_gpr().then(|| ctx.gpr.get_mut(r.number())).flatten() {
        *g = match r.size() {
            8 => v,
            4 => v & 0xffff_ffff,
            _ => (*g & !0xffff) | (v & 0xffff),
        };
    }
}
