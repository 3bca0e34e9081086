//! What one instruction accesses, and the same instruction on other memory: for memory that is looked at from outside of
//! translated code.

use crate::ctx::Ctx;
use crate::insn::{Class, classify, decoder_options};
use crate::rights::{self, CheckedRange, Dest, Special, Test};
use iced_x86::{
    Code, Decoder, Encoder, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register,
};

/// Longest instruction.
pub const MAX_INSN: usize = 15;

/// An instruction and its accesses to guest memory.
#[derive(Debug)]
pub struct Touching {
    insn: Instruction,
    tests: Vec<Test>,
    special: Special,
    writes: bool,
    plain: bool,
}

impl Touching {
    /// Decodes the instruction at `pc`; `bytes` are as many as can be fetched there, 15 are enough. None: it is not one.
    pub fn decode(pc: u64, bytes: &[u8]) -> Option<Touching> {
        let mut decoder = Decoder::with_ip(64, bytes, pc, decoder_options());
        let insn = decoder.decode();
        if insn.is_invalid() {
            return None;
        }
        let class = classify(&insn);
        let mut infos = InstructionInfoFactory::new();
        let info = infos.info(&insn);
        let mut tests = Vec::new();
        let special = crate::checks::accesses(info, &insn, class, &mut tests);
        Some(Touching {
            writes: crate::checks::asks_for_write(info),
            plain: class == Class::Plain,
            insn,
            tests,
            special,
        })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.insn.len() as u64
    }

    /// Whether it is empty, which no instruction is.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The ranges that it is about to access, as `CodeCache::check_ranges` has them.
    pub fn ranges(&self, ctx: &Ctx, out: &mut Vec<CheckedRange>) {
        out.extend(self.tests.iter().map(|t| t.range(ctx)));
        match self.special {
            Special::None => {}
            Special::Rep(rep) => rights::rep_ranges(&rep, ctx, out),
            Special::Ask => rights::asked_ranges(&self.insn, ctx, self.writes, out),
        }
    }

    /// For `rep movs` and `rep stos` with plain addresses: whether it copies (from rsi), and the size of an element.
    pub fn fills(&self) -> Option<(bool, u64)> {
        let Special::Rep(rep) = self.special else {
            return None;
        };
        let plain = rep.dest == Dest::Write && !rep.addr32 && !rep.fs;
        let known = matches!(
            self.insn.mnemonic(),
            Mnemonic::Movsb
                | Mnemonic::Movsw
                | Mnemonic::Movsd
                | Mnemonic::Movsq
                | Mnemonic::Stosb
                | Mnemonic::Stosw
                | Mnemonic::Stosd
                | Mnemonic::Stosq
        );
        (plain && known).then_some((rep.source, 1 << rep.shift))
    }

    /// Whether it may leave parts of what it writes alone: by a mask, or by a condition.
    pub fn writes_in_part(&self) -> bool {
        self.insn.op_mask() != Register::None
            || matches!(
                self.insn.mnemonic(),
                Mnemonic::Vmaskmovps
                    | Mnemonic::Vmaskmovpd
                    | Mnemonic::Vpmaskmovd
                    | Mnemonic::Vpmaskmovq
                    | Mnemonic::Maskmovq
                    | Mnemonic::Maskmovdqu
                    | Mnemonic::Vmaskmovdqu
                    | Mnemonic::Xsave
                    | Mnemonic::Xsave64
                    | Mnemonic::Xsavec
                    | Mnemonic::Xsavec64
                    | Mnemonic::Xsaveopt
                    | Mnemonic::Xsaveopt64
                    | Mnemonic::Xsaves
                    | Mnemonic::Xsaves64
            )
    }

    /// The same instruction with its explicit memory operand at `at`, an address below 2 GB. None where its address is
    /// implied, or part of what it does.
    pub fn moved_to(&self, pc: u64, at: u32) -> Option<Vec<u8>> {
        let i = &self.insn;
        let operands = (0..i.op_count())
            .filter(|n| i.op_kind(*n) == OpKind::Memory)
            .count();
        let apart = !self.plain
            || self.special != Special::None
            || operands != 1
            || i.is_string_instruction()
            || matches!(i.mnemonic(), Mnemonic::Xlatb | Mnemonic::Clzero)
            || at > i32::MAX as u32;
        if apart {
            return None;
        }
        let mut moved = *i;
        moved.set_segment_prefix(Register::None);
        moved.set_memory_base(Register::None);
        moved.set_memory_index(Register::None);
        moved.set_memory_index_scale(1);
        // These have an address of 64 bits and no other form.
        let absolute = matches!(
            i.code(),
            Code::Mov_AL_moffs8
                | Code::Mov_AX_moffs16
                | Code::Mov_EAX_moffs32
                | Code::Mov_RAX_moffs64
                | Code::Mov_moffs8_AL
                | Code::Mov_moffs16_AX
                | Code::Mov_moffs32_EAX
                | Code::Mov_moffs64_RAX
        );
        moved.set_memory_displ_size(if absolute { 8 } else { 4 });
        moved.set_memory_displacement64(u64::from(at));
        let mut encoder = Encoder::try_new(64).ok()?;
        encoder.encode(&moved, pc).ok()?;
        Some(encoder.take_buffer())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(bytes: &[u8]) -> Option<String> {
        let t = Touching::decode(0x40_0000, bytes).unwrap();
        let out = t.moved_to(0x40_0000, 0x7000_1234)?;
        let i = Decoder::with_ip(64, &out, 0x40_0000, decoder_options()).decode();
        assert_eq!(i.len(), out.len());
        Some(i.to_string())
    }

    #[test]
    fn operands_are_moved() {
        let at = |text: &str| Some(text.replace('@', "70001234h"));
        // lock xadd [rbx+8], eax
        assert_eq!(
            moved(&[0xf0, 0x0f, 0xc1, 0x43, 0x08]),
            at("lock xadd [@],eax")
        );
        // mov rax, [rip+16]
        assert_eq!(moved(&[0x48, 0x8b, 0x05, 16, 0, 0, 0]), at("mov rax,[@]"));
        // mov fs:[rcx+r9*8], rdx
        assert_eq!(moved(&[0x64, 0x4a, 0x89, 0x14, 0xc9]), at("mov [@],rdx"));
        // vmovdqu ymm1, [rsi]
        assert_eq!(moved(&[0xc5, 0xfe, 0x6f, 0x0e]), at("vmovdqu ymm1,[@]"));
        // mov al, [moffs64]
        assert_eq!(moved(&[0xa0, 8, 7, 6, 5, 4, 3, 2, 1]), at("mov al,[@]"));
        // movsb; bt [rax], ecx; jmp [rax]; push rax
        for apart in [&[0xa4][..], &[0x0f, 0xa3, 0x08], &[0xff, 0x20], &[0x50]] {
            assert_eq!(moved(apart), None);
        }
    }

    #[test]
    fn ranges_are_those_of_the_registers() {
        let mut ctx = Ctx::new();
        (ctx.gpr[3], ctx.gpr[4]) = (0x5000, 0x9000);
        let ranges = |bytes: &[u8]| {
            let mut out = Vec::new();
            Touching::decode(0, bytes).unwrap().ranges(&ctx, &mut out);
            let short = |r: CheckedRange| (r.addr, r.len, r.read, r.write);
            out.into_iter().map(short).collect::<Vec<_>>()
        };
        assert_eq!(
            ranges(&[0xf0, 0x0f, 0xc1, 0x43, 0x08]),
            [(0x5008, 4, true, true)]
        );
        // push qword [rbx]
        assert_eq!(
            ranges(&[0xff, 0x33]),
            [(0x5000, 8, true, false), (0x8ff8, 8, false, true)]
        );
    }
}
