//! The way in and out of translated code.
//!
//! Rules here: nothing below the guest's stack pointer is touched (its red zone), the guest's flags are untouched
//! until they are saved, x87 state is left alone, and Rust runs with the direction flag clear and its own MXCSR.

use crate::ctx::{Ctx, VecState};
use crate::emit::{Cell, Cells, RCX};
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, CodeLabel, registers::*, *};
use std::mem::offset_of;

/// Why translated code was left (`Ctx::exit_kind`).
pub(crate) mod kind {
    /// Direct transfer that is not linked; `exit_arg` is the stub slot.
    pub const LINK: u32 = 1;
    /// Direct transfer that ticked and found the limit; `exit_arg` is the link.
    pub const TICK: u32 = 2;
    /// Indirect transfer that ticked and found the limit; `target` is the pc.
    pub const INDIRECT_TICK: u32 = 3;
    /// Indirect transfer without an entry in the table, not ticked yet; `target` is the pc.
    pub const MISS: u32 = 4;
    /// Instruction the runtime does; `exit_arg` is the site.
    pub const SITE: u32 = 5;
    /// The signal handler came here.
    pub const FAULT: u32 = 6;
    /// A check of rights failed; `exit_arg` is its number.
    pub const CHECK: u32 = 7;
}

/// Addresses of the stubs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stubs {
    pub enter: u64,
    pub link: u64,
    pub tick: u64,
    pub indirect_tick: u64,
    pub miss: u64,
    pub site: u64,
    pub fault: u64,
    pub check: u64,
    /// The check of repeated string instructions; 0 without checks.
    pub rep: u64,
}

/// How much vector state the cpu and kernel have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vectors {
    Xmm,
    Ymm,
    Zmm,
}

impl Vectors {
    pub(crate) fn host() -> Vectors {
        if std::arch::is_x86_feature_detected!("avx512bw") {
            Vectors::Zmm
        } else if std::arch::is_x86_feature_detected!("avx") {
            Vectors::Ymm
        } else {
            Vectors::Xmm
        }
    }
}

/// Room for the stubs at the start of the cache.
pub(crate) const STUBS_SIZE: usize = 4096;

struct Asm {
    a: CodeAssembler,
    base: i32,
    /// Whether translated code has a PKRU of its own.
    pkru: bool,
}

type R = Result<(), IcedError>;

impl Asm {
    fn q(&self, off: usize) -> AsmMemoryOperand {
        qword_ptr(i64::from(self.base) + off as i64).fs()
    }
    fn d(&self, off: usize) -> AsmMemoryOperand {
        dword_ptr(i64::from(self.base) + off as i64).fs()
    }
    fn zmm_at(&self, n: usize) -> i64 {
        i64::from(self.base) + (offset_of!(Ctx, vec) + offset_of!(VecState, zmm) + 64 * n) as i64
    }
    fn k_at(&self, n: usize) -> AsmMemoryOperand {
        self.q(offset_of!(Ctx, vec) + offset_of!(VecState, k) + 8 * n)
    }

    fn save_vectors(&mut self, v: Vectors) -> R {
        self.move_vectors(v, 0..32, true)?;
        if v == Vectors::Zmm {
            self.move_masks(true)?;
        }
        if v != Vectors::Xmm {
            self.a.vzeroupper()?;
        }
        Ok(())
    }

    /// Loads the guest's vector state. Where the upper parts of the first sixteen registers are all zero they stay in their
    /// initial state: as long as a processor of Intel's thinks that they are in use, each SSE instruction waits for the
    /// last one with the same destination (Optimization Reference Manual, "Mixing AVX code with SSE code"). Scalar
    /// floating point took four times as long.
    fn load_vectors(&mut self, v: Vectors) -> R {
        if v == Vectors::Xmm {
            return self.move_vectors(v, 0..16, false);
        }
        if v == Vectors::Zmm {
            self.move_vectors(v, 16..32, false)?;
            self.move_masks(false)?;
        }
        self.move_vectors(v, 0..1, false)?;
        for n in 1..16 {
            let at = self.zmm_at(n);
            match v {
                Vectors::Zmm => self.a.vporq(zmm0, zmm0, zmmword_ptr(at).fs())?,
                _ => self.a.vorps(ymm0, ymm0, ymmword_ptr(at).fs())?,
            }
        }
        self.a.vextractf128(xmm1, ymm0, 1)?;
        if v == Vectors::Zmm {
            self.a.vextractf64x4(ymm2, zmm0, 1)?;
            self.a.vorps(ymm1, ymm1, ymm2)?;
        }
        let (mut used, mut done) = (self.a.create_label(), self.a.create_label());
        self.a.vptest(ymm1, ymm1)?;
        self.a.vzeroupper()?;
        self.a.jne(used)?;
        self.move_vectors(Vectors::Xmm, 0..16, false)?;
        self.a.jmp(done)?;
        self.a.set_label(&mut used)?;
        self.move_vectors(v, 0..16, false)?;
        self.a.set_label(&mut done)
    }

    /// Saves or loads registers, as far as there are any of that kind.
    fn move_vectors(&mut self, v: Vectors, range: std::ops::Range<usize>, save: bool) -> R {
        for n in range {
            let at = self.zmm_at(n);
            match v {
                Vectors::Zmm => {
                    let m = zmmword_ptr(at).fs();
                    if save {
                        self.a.vmovups(m, ZMM[n])?
                    } else {
                        self.a.vmovups(ZMM[n], m)?
                    }
                }
                Vectors::Ymm if n < 16 => {
                    let m = ymmword_ptr(at).fs();
                    if save {
                        self.a.vmovups(m, YMM[n])?
                    } else {
                        self.a.vmovups(YMM[n], m)?
                    }
                }
                Vectors::Xmm if n < 16 => {
                    let m = xmmword_ptr(at).fs();
                    if save {
                        self.a.movups(m, XMM[n])?
                    } else {
                        self.a.movups(XMM[n], m)?
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The same for the mask registers.
    fn move_masks(&mut self, save: bool) -> R {
        for (n, k) in K.iter().enumerate() {
            let m = self.k_at(n);
            match save {
                true => self.a.kmovq(m, *k)?,
                false => self.a.kmovq(*k, m)?,
            }
        }
        Ok(())
    }

    /// Loads PKRU from eax. Destroys ecx and edx.
    fn wrpkru(&mut self) -> R {
        self.a.xor(ecx, ecx)?;
        self.a.xor(edx, edx)?;
        self.a.wrpkru()
    }

    fn enter(&mut self, v: Vectors) -> R {
        for r in SAVED {
            self.a.push(r)?;
        }
        self.a.sub(rsp, 8)?;
        let m = self.q(offset_of!(Ctx, host_rsp));
        self.a.mov(m, rsp)?;
        let m = self.d(offset_of!(Ctx, host_mxcsr));
        self.a.stmxcsr(m)?;
        let m = self.d(offset_of!(Ctx, in_guest));
        self.a.mov(m, 1)?;
        self.load_vectors(v)?;
        let m = self.d(offset_of!(Ctx, mxcsr));
        self.a.ldmxcsr(m)?;
        if self.pkru {
            // From here on only the context and the runtime's stack are touched, whose key is 0.
            let m = self.d(offset_of!(Ctx, pkru));
            self.a.mov(eax, m)?;
            self.wrpkru()?;
        }
        let m = self.q(offset_of!(Ctx, rflags));
        self.a.push(m)?;
        self.a.popfq()?;
        for (n, r) in GPR.iter().enumerate() {
            if *r != rsp {
                let m = self.q(offset_of!(Ctx, gpr) + 8 * n);
                self.a.mov(*r, m)?;
            }
        }
        let m = self.q(offset_of!(Ctx, gpr) + 8 * 4);
        self.a.mov(rsp, m)?;
        let m = self.q(offset_of!(Ctx, scratch) + 8 * ENTER_SCRATCH);
        self.a.jmp(m)
    }

    fn exit(&mut self, v: Vectors) -> R {
        let m = self.q(offset_of!(Ctx, gpr) + 8 * 4);
        self.a.mov(m, rsp)?;
        let m = self.q(offset_of!(Ctx, host_rsp));
        self.a.mov(rsp, m)?;
        self.a.pushfq()?;
        let m = self.q(offset_of!(Ctx, rflags));
        self.a.pop(m)?;
        for (n, r) in GPR.iter().enumerate() {
            if *r != rsp {
                let m = self.q(offset_of!(Ctx, gpr) + 8 * n);
                self.a.mov(m, *r)?;
            }
        }
        if self.pkru {
            self.a.xor(eax, eax)?;
            self.wrpkru()?;
        }
        // Alignment checking must not reach Rust.
        let mut no_ac = self.a.create_label();
        let m = self.d(offset_of!(Ctx, rflags));
        self.a.cld()?;
        self.a.test(m, 0x4_0000)?;
        self.a.je(no_ac)?;
        self.a.push(0x202)?;
        self.a.popfq()?;
        self.a.set_label(&mut no_ac)?;
        let m = self.d(offset_of!(Ctx, mxcsr));
        self.a.stmxcsr(m)?;
        let m = self.d(offset_of!(Ctx, host_mxcsr));
        self.a.ldmxcsr(m)?;
        self.save_vectors(v)?;
        let m = self.d(offset_of!(Ctx, in_guest));
        self.a.mov(m, 0)?;
        self.a.add(rsp, 8)?;
        for r in SAVED.iter().rev() {
            self.a.pop(*r)?;
        }
        self.a.ret()
    }
}

/// Scratch slot that holds the host address `enter` jumps to.
pub(crate) const ENTER_SCRATCH: usize = 7;

const SAVED: [AsmRegister64; 6] = [rbp, rbx, r12, r13, r14, r15];
const GPR: [AsmRegister64; 16] = [
    rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
];
const K: [AsmRegisterK; 8] = [k0, k1, k2, k3, k4, k5, k6, k7];
const XMM: [AsmRegisterXmm; 16] = [
    xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14,
    xmm15,
];
const YMM: [AsmRegisterYmm; 16] = [
    ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13, ymm14,
    ymm15,
];
const ZMM: [AsmRegisterZmm; 32] = [
    zmm0, zmm1, zmm2, zmm3, zmm4, zmm5, zmm6, zmm7, zmm8, zmm9, zmm10, zmm11, zmm12, zmm13, zmm14,
    zmm15, zmm16, zmm17, zmm18, zmm19, zmm20, zmm21, zmm22, zmm23, zmm24, zmm25, zmm26, zmm27,
    zmm28, zmm29, zmm30, zmm31,
];

/// Assembles the stubs for `base`. Returns the code and where each begins.
pub(crate) fn assemble(
    base: u64,
    ctx: i32,
    cells: &Cells,
    v: Vectors,
    pkru: bool,
) -> Result<(Vec<u8>, Stubs), IcedError> {
    let mut s = Asm {
        a: CodeAssembler::new(64)?,
        base: ctx,
        pkru,
    };
    let mut labels: Vec<CodeLabel> = Vec::new();
    let mut mark = |s: &mut Asm| -> R {
        let mut l = s.a.create_label();
        s.a.set_label(&mut l)?;
        labels.push(l);
        Ok(())
    };
    mark(&mut s)?;
    s.enter(v)?;
    let mut exit = s.a.create_label();
    for (k, restore_rcx) in [
        (kind::LINK, false),
        (kind::TICK, false),
        (kind::INDIRECT_TICK, true),
        (kind::MISS, true),
        (kind::SITE, false),
        (kind::FAULT, false),
        (kind::CHECK, false),
    ] {
        mark(&mut s)?;
        if restore_rcx {
            debug_assert_eq!(RCX, 1);
            let m = match cells.scratch {
                Cell::Thread(d) => qword_ptr(i64::from(d)).fs(),
                Cell::Fixed(a) => qword_ptr(a),
            };
            s.a.mov(rcx, m)?;
        }
        let m = s.d(offset_of!(Ctx, exit_kind));
        s.a.mov(m, k)?;
        s.a.jmp(exit)?;
    }
    s.a.set_label(&mut exit)?;
    s.exit(v)?;
    let out = s.a.assemble_options(
        base,
        iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS,
    )?;
    let mut at = [0u64; 8];
    for (a, l) in at.iter_mut().zip(&labels) {
        *a = out.label_ip(l)?;
    }
    let [enter, link, tick, indirect_tick, miss, site, fault, check] = at;
    Ok((
        out.inner.code_buffer,
        Stubs {
            enter,
            link,
            tick,
            indirect_tick,
            miss,
            site,
            fault,
            check,
            rep: 0,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, Mnemonic, OpKind};

    /// Machines differ in vector state; what each kind does can be checked on any.
    #[test]
    fn every_kind_of_vector_state_is_saved_and_restored() {
        // All are saved once. Xmm registers are loaded in all kinds, as nothing more may be in use; one wide one is loaded
        // twice, to find out.
        for (v, wide, loads) in [
            (Vectors::Xmm, 16, 16),
            (Vectors::Ymm, 16, 17),
            (Vectors::Zmm, 32, 33),
        ] {
            let (code, stubs) =
                assemble(0x7010_1000, -4096, &Cells::fixed(0x7010_0ac0), v, false).unwrap();
            assert!(code.len() <= STUBS_SIZE);
            let mut decoder = Decoder::with_ip(64, &code, 0x7010_1000, 0);
            let all: Vec<_> = decoder.iter().collect();
            let count = |mnemonic, load: bool| {
                let kind = |i: &&iced_x86::Instruction| {
                    i.mnemonic() == mnemonic && (i.op0_kind() == OpKind::Register) == load
                };
                all.iter().filter(kind).count()
            };
            let mnemonic = match v {
                Vectors::Xmm => Mnemonic::Movups,
                _ => Mnemonic::Vmovups,
            };
            assert_eq!(count(mnemonic, false), wide, "{v:?}");
            assert_eq!(count(mnemonic, true), loads, "{v:?}");
            assert_eq!(count(Mnemonic::Movups, true), 16, "{v:?}");
            assert_eq!(stubs.enter, 0x7010_1000);
            assert!(stubs.fault > stubs.site);
        }
    }

    /// Guest registers are loaded behind the change of rights on the way in, and saved before it on the way out.
    #[test]
    fn rights_change_once_on_each_way() {
        let cells = Cells::fixed(0x7010_0ac0);
        let (code, _) = assemble(0x7010_1000, -4096, &cells, Vectors::Xmm, true).unwrap();
        let mut decoder = Decoder::with_ip(64, &code, 0x7010_1000, 0);
        let all: Vec<_> = decoder.iter().collect();
        let changes: Vec<_> = (0..all.len())
            .filter(|n| all[*n].mnemonic() == Mnemonic::Wrpkru)
            .collect();
        assert_eq!(changes.len(), 2);
        let loads_rax = |i: &iced_x86::Instruction| {
            i.mnemonic() == Mnemonic::Mov && i.op0_register() == iced_x86::Register::RAX
        };
        let saves_rdx = |i: &iced_x86::Instruction| {
            i.mnemonic() == Mnemonic::Mov && i.op1_register() == iced_x86::Register::RDX
        };
        assert!(all.iter().position(loads_rax).unwrap() > changes[0]);
        assert!(all.iter().rposition(saves_rdx).unwrap() < changes[1]);
    }
}
