//! Random programs.
#![allow(dead_code)]

use crate::common::*;
use crate::native::State;
use iced_x86::code_asm::*;
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, MemoryOperand,
    MemorySize, Mnemonic, OpAccess, OpKind, Register,
};

/// xorshift64*
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    pub fn pick<T: Copy>(&mut self, v: &[T]) -> T {
        v[self.below(v.len() as u64) as usize]
    }
}

/// A random instruction of any encoding that a program may hold anywhere.
pub fn random_insn(
    r: &mut Rng,
    infos: &mut InstructionInfoFactory,
    place: Place,
    use_fs: bool,
) -> Option<Instruction> {
    let mut b: Vec<u8> = Vec::new();
    for _ in 0..r.below(2) {
        let p = r.pick(&[0x66, 0x66, 0xf2, 0xf3, 0xf0, 0x66]);
        b.push(p);
    }
    let op = r.next() as u8;
    match r.below(10) {
        0..=2 => {
            if r.one_in(2) {
                b.push(0x40 | (r.next() as u8 & 15));
            }
            b.push(op);
        }
        3..=4 => {
            if r.one_in(2) {
                b.push(0x40 | (r.next() as u8 & 15));
            }
            b.extend([0x0f, op]);
        }
        5 => {
            let map = r.pick(&[0x38, 0x3a]);
            b.extend([0x0f, map, op]);
        }
        6 => {
            b.clear();
            b.extend([0xc5, r.next() as u8, op]);
        }
        7 => {
            b.clear();
            let map = r.pick(&[1, 2, 3]);
            b.extend([0xc4, (r.next() as u8 & 0xe0) | map, r.next() as u8, op]);
        }
        8 => {
            b.clear();
            let map = r.pick(&[1, 2, 3]);
            let p2 = (r.next() as u8) | 4;
            b.extend([0x62, (r.next() as u8 & 0xf0) | map, p2, r.next() as u8, op]);
        }
        _ => {
            // x87
            b.clear();
            b.push(0xd8 | (op & 7));
        }
    }
    while b.len() < 15 {
        b.push(r.next() as u8);
    }
    let mut i = Decoder::new(64, &b, DecoderOptions::AMD).decode();
    if i.is_invalid() || i.flow_control() != FlowControl::Next || i.is_privileged() || forbidden(&i)
    {
        return None;
    }
    let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
    if memory {
        // A bit offset in a register reaches 256 MB far.
        let bits = matches!(
            i.mnemonic(),
            Mnemonic::Bt | Mnemonic::Btc | Mnemonic::Btr | Mnemonic::Bts
        );
        if i.is_vsib() || (bits && i.op1_kind() == OpKind::Register) {
            return None;
        }
        let base = r.pick(&[Register::R14, Register::R15, Register::R15]);
        i.set_memory_index(Register::None);
        i.set_memory_index_scale(1);
        i.set_segment_prefix(Register::None);
        if r.one_in(8) {
            i.set_memory_base(Register::RIP);
            i.set_memory_displacement64(place.data + 256 + (r.below(2048) & !63));
            i.set_memory_displ_size(8);
        } else {
            i.set_memory_base(base);
            let d = if r.one_in(4) {
                r.below(2048)
            } else {
                r.below(2048) & !63
            };
            i.set_memory_displacement64(d);
            i.set_memory_displ_size(8);
            if use_fs && r.one_in(6) {
                i.set_segment_prefix(Register::FS);
                // GS base is 64 in both runs.
            }
        }
    }
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Register | OpKind::Memory => {}
            OpKind::Immediate8
            | OpKind::Immediate8_2nd
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => {}
            _ => return None,
        }
    }
    // Registers that programs rely on stay.
    for u in infos.info(&i).used_registers() {
        let kept = matches!(
            u.register().full_register(),
            Register::RSP | Register::R13 | Register::R14 | Register::R15
        );
        if kept
            && matches!(
                u.access(),
                OpAccess::Write
                    | OpAccess::ReadWrite
                    | OpAccess::CondWrite
                    | OpAccess::ReadCondWrite
            )
        {
            return None;
        }
    }
    for u in infos.info(&i).used_memory() {
        // Implicit accesses through registers that hold anything.
        if !matches!(
            u.base(),
            Register::R14 | Register::R15 | Register::RIP | Register::None
        ) {
            return None;
        }
    }
    iced_x86::Encoder::new(64).encode(&i, place.code).ok()?;
    Some(i)
}

/// Not for random programs: nondeterministic, hidden from the guest, or harmful to the test itself.
fn forbidden(i: &Instruction) -> bool {
    use Mnemonic::*;
    if (0..i.op_count())
        .any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_segment_register())
    {
        return true;
    }
    if i.segment_prefix() == Register::GS {
        return true;
    }
    matches!(
        i.memory_size(),
        MemorySize::SegPtr16 | MemorySize::SegPtr32 | MemorySize::SegPtr64
    ) || matches!(
        i.mnemonic(),
        Popf | Popfd
            | Popfq
            | Rdtsc
            | Rdtscp
            | Xabort
            | Rdpid
            | Cpuid
            | Rdrand
            | Rdseed
            | Xgetbv
            | Rdpmc
            | Rdfsbase
            | Wrfsbase
            | Rdgsbase
            | Wrgsbase
            | Sgdt
            | Sidt
            | Sldt
            | Str
            | Smsw
            | Lsl
            | Lar
            | Verr
            | Verw
            | Fxsave
            | Fxsave64
            | Fxrstor
            | Fxrstor64
            | Fnsave
            | Fnstenv
            | Xsave
            | Xsave64
            | Xsavec
            | Xsavec64
            | Xsaveopt
            | Xsaveopt64
            | Xrstor
            | Xrstor64
            | Monitorx
            | Mwaitx
            | Rdpru
            | Clzero
            | Swapgs
            | Enter
            | Leave
            | Xtest
            | Rdpkru
            | Wrpkru
            | Frstor
            | Fldenv
            | Maskmovq
            | Maskmovdqu
            | Vmaskmovdqu
            | Xsetbv
    )
}

/// Where a program lies.
#[derive(Clone, Copy)]
pub struct Place {
    pub code: u64,
    pub data: u64,
    pub end: u64,
}

pub const LOW: Place = Place {
    code: CODE,
    data: DATA,
    end: CODE + 0x8000,
};
/// As a JIT's: pcs do not fit into 32 bits, and data is out of reach of the cache's rip-relative operands.
pub const HIGH: Place = Place {
    code: 0x2345_1000_0000,
    data: 0x2345_2000_0000,
    end: 0x2345_1000_8000,
};

pub struct Program {
    pub bytes: Vec<u8>,
    pub text: String,
}

struct Gen<'a> {
    a: CodeAssembler,
    r: &'a mut Rng,
    infos: InstructionInfoFactory,
    place: Place,
    functions: Vec<CodeLabel>,
    /// Jumps to where a word of the data says, as a PLT does.
    thunk: Option<CodeLabel>,
    /// fs accesses differ by a byte in the native run, so such programs hold no pointers to code, which they might
    /// read.
    use_fs: bool,
    depth: u32,
}

impl Gen<'_> {
    fn plain(&mut self, n: u64) {
        for _ in 0..n {
            if let Some(i) =
                (0..50).find_map(|_| random_insn(self.r, &mut self.infos, self.place, self.use_fs))
            {
                let _ = self.a.add_instruction(i);
            }
        }
    }

    /// Common integer code, of which random encodings hold little.
    fn integer(&mut self) {
        const REGS: [AsmRegister64; 10] = [rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r12];
        let (x, y) = (self.r.pick(&REGS), self.r.pick(&REGS));
        let a = &mut self.a;
        let d = self.r.below(512) as i64;
        let m = qword_ptr(r15 + d);
        match self.r.below(16) {
            0 => a.add(x, y),
            1 => a.mov(x, m),
            2 => a.mov(m, y),
            3 => a.sub(x, m),
            4 => a.adc(x, y),
            5 => a.cmp(x, y),
            6 => a.lea(x, ptr(y + d)),
            7 => a.xor(x, y),
            8 => a.inc(x),
            9 => a.shl(x, (d & 63) as i32),
            10 => a.cmovb(x, y),
            11 => a.imul_2(x, y),
            12 => a.pushfq().and_then(|()| a.pop(x)),
            13 => a.push(x).and_then(|()| a.pop(y)),
            14 => {
                let m = MemoryOperand::with_base_displ(Register::RIP, self.place.data as i64 + d);
                let i = Instruction::with2(Code::Lea_r64_m, Register::from(x), m).unwrap();
                a.add_instruction(i)
            }
            _ => a.test(x, y),
        }
        .unwrap();
    }

    fn string(&mut self) {
        let a = &mut self.a;
        a.lea(rsi, ptr(r15 + self.r.below(512) as i64)).unwrap();
        a.lea(rdi, ptr(r15 + 512 + self.r.below(512) as i64))
            .unwrap();
        a.mov(ecx, self.r.below(20) as i32).unwrap();
        match self.r.below(8) {
            0 => a.rep().movsb(),
            1 => a.rep().movsq(),
            2 => a.rep().stosd(),
            3 => a.repe().cmpsb(),
            4 => a.repne().scasb(),
            5 => a.lodsw(),
            6 => a.movsd(),
            _ => a.scasq(),
        }
        .unwrap();
    }

    fn jcc(&mut self, l: CodeLabel) {
        let a = &mut self.a;
        match self.r.below(16) {
            0 => a.jo(l),
            1 => a.jno(l),
            2 => a.jb(l),
            3 => a.jae(l),
            4 => a.je(l),
            5 => a.jne(l),
            6 => a.jbe(l),
            7 => a.ja(l),
            8 => a.js(l),
            9 => a.jns(l),
            10 => a.jp(l),
            11 => a.jnp(l),
            12 => a.jl(l),
            13 => a.jge(l),
            14 => a.jle(l),
            _ => a.jg(l),
        }
        .unwrap();
    }

    /// An instruction with a rip-relative operand in the data.
    fn absolute(&mut self, code: Code, offset: i64) {
        let m = MemoryOperand::with_base_displ(Register::RIP, self.place.data as i64 + offset);
        self.a
            .add_instruction(Instruction::with1(code, m).unwrap())
            .unwrap();
    }

    fn body(&mut self, n: u64) {
        for _ in 0..n {
            self.item();
        }
    }

    fn item(&mut self) {
        self.depth += 1;
        let what = if self.depth > 3 { 0 } else { self.r.below(24) };
        match what {
            0..=9 => {
                let n = 1 + self.r.below(2);
                self.plain(n);
                for _ in 0..self.r.below(5) {
                    self.integer();
                }
            }
            10..=12 => {
                let mut l = self.a.create_label();
                self.integer();
                self.jcc(l);
                self.body(2);
                self.a.set_label(&mut l).unwrap();
                self.a.zero_bytes().unwrap();
            }
            13..=14 => self.counted_loop(),
            15 => self.string(),
            16 => {
                let mut l = self.a.create_label();
                self.a.jmp(l).unwrap();
                self.body(1);
                self.a.set_label(&mut l).unwrap();
                self.a.zero_bytes().unwrap();
            }
            17 => {
                let mut l = self.a.create_label();
                match self.r.below(2) {
                    0 => self.a.jrcxz(l),
                    _ => self.a.loopne(l),
                }
                .unwrap();
                self.plain(1);
                self.a.set_label(&mut l).unwrap();
                self.a.zero_bytes().unwrap();
            }
            18 => {
                // loop
                self.a.mov(ecx, 1 + self.r.below(6) as i32).unwrap();
                let mut l = self.a.create_label();
                self.a.set_label(&mut l).unwrap();
                self.a.add(qword_ptr(r15 + 8), rcx).unwrap();
                match self.r.below(3) {
                    0 => self.a.loop_(l),
                    1 => self.a.loope(l),
                    _ => self.a.loopne(l),
                }
                .unwrap();
            }
            19..=20 if !self.functions.is_empty() => {
                let f = self.r.pick(&self.functions);
                match if self.use_fs { 0 } else { self.r.below(6) } {
                    0 | 1 => self.a.call(f).unwrap(),
                    2 => {
                        self.a.lea(r12, ptr(f)).unwrap();
                        self.a.mov(qword_ptr(r15 + 64), r12).unwrap();
                        self.a.call(qword_ptr(r15 + 64)).unwrap();
                    }
                    3 => {
                        self.a.lea(rax, ptr(f)).unwrap();
                        self.a.call(rax).unwrap();
                    }
                    _ => {
                        self.a.lea(r12, ptr(f)).unwrap();
                        self.a.mov(qword_ptr(r15 + 88), r12).unwrap();
                        if let Some(thunk) = self.thunk {
                            self.a.call(thunk).unwrap();
                        }
                    }
                }
            }
            21 if !self.use_fs => {
                // Indirect jumps forward.
                let mut l = self.a.create_label();
                match self.r.below(4) {
                    0 => {
                        self.a.lea(rcx, ptr(l)).unwrap();
                        self.a.jmp(rcx).unwrap();
                    }
                    1 => {
                        self.a.lea(r11, ptr(l)).unwrap();
                        self.a.push(r11).unwrap();
                        self.a.ret().unwrap();
                    }
                    2 => {
                        self.a.lea(r11, ptr(l)).unwrap();
                        self.a.push(r11).unwrap();
                        self.absolute(Code::Pop_rm64, 72);
                        self.absolute(Code::Jmp_rm64, 72);
                    }
                    _ => {
                        self.a.lea(r8, ptr(l)).unwrap();
                        self.a.mov(qword_ptr(r15 + 80), r8).unwrap();
                        self.a.mov(ecx, 10).unwrap();
                        self.a.jmp(qword_ptr(r15 + rcx * 8)).unwrap();
                    }
                }
                self.plain(1);
                self.a.set_label(&mut l).unwrap();
                self.a.zero_bytes().unwrap();
            }
            22 => {
                self.a.push(r9).unwrap();
                self.body(1);
                self.a.pop(r10).unwrap();
            }
            23 if self.r.one_in(6) => {
                // Something that faults, unless the register happens to be good.
                match self.r.below(8) {
                    0 => self.a.mov(rax, qword_ptr(rdx)),
                    1 => self.a.div(r9d),
                    2 => self.a.ud2(),
                    3 => self.a.jmp(qword_ptr(rbx + 5)),
                    4 => self.a.call(qword_ptr(rcx)),
                    5 => self.a.int3(),
                    6 => self.a.movaps(xmm1, xmmword_ptr(r15 + 1)),
                    _ => self.a.hlt(),
                }
                .unwrap();
            }
            _ => {
                if self.use_fs {
                    let _ = self.a.fs_test(self.r.below(200));
                }
                self.integer();
            }
        }
        self.depth -= 1;
    }

    fn counted_loop(&mut self) {
        let slot = 4096 + 8 * i64::from(self.depth);
        // Now and then so often that the loop is worth a translation of its own.
        let most = match self.depth {
            1 => self.r.pick(&[6, 40]),
            _ => 6,
        };
        self.a
            .mov(dword_ptr(r14 + slot), 1 + self.r.below(most) as i32)
            .unwrap();
        let mut l = self.a.create_label();
        self.a.set_label(&mut l).unwrap();
        match self.r.below(3) {
            // Flags of the decrement stay alive at the head.
            0 => self.a.setb(al).unwrap(),
            1 => self.integer(),
            _ => {}
        }
        self.body(2);
        self.a.dec(dword_ptr(r14 + slot)).unwrap();
        if self.r.one_in(2) {
            self.a.jg(l).unwrap();
        } else {
            let mut out = self.a.create_label();
            self.a.jle(out).unwrap();
            self.a.jmp(l).unwrap();
            self.a.set_label(&mut out).unwrap();
            self.a.zero_bytes().unwrap();
        }
    }
}

trait FsTest {
    fn fs_test(&mut self, off: u64) -> Result<(), iced_x86::IcedError>;
}

impl FsTest for CodeAssembler {
    fn fs_test(&mut self, off: u64) -> Result<(), iced_x86::IcedError> {
        self.add(rax, qword_ptr(r15 + off).fs())
    }
}

pub fn program(r: &mut Rng, place: Place) -> Program {
    let use_fs = r.one_in(3);
    let mut g = Gen {
        a: CodeAssembler::new(64).unwrap(),
        r,
        infos: InstructionInfoFactory::new(),
        place,
        functions: Vec::new(),
        thunk: None,
        use_fs,
        depth: 0,
    };
    let mut main = g.a.create_label();
    g.a.jmp(main).unwrap();
    // Functions before main: calls go backwards; one behind it as well.
    for _ in 0..2 {
        let mut f = g.a.create_label();
        g.a.set_label(&mut f).unwrap();
        g.depth = 2;
        g.body(2);
        if g.r.one_in(3) {
            g.a.add_instruction(Instruction::with1(Code::Retnq_imm16, 0).unwrap())
        } else {
            g.a.ret()
        }
        .unwrap();
        g.functions.push(f);
    }
    let mut thunk = g.a.create_label();
    g.a.set_label(&mut thunk).unwrap();
    g.absolute(Code::Jmp_rm64, 88);
    g.thunk = Some(thunk);
    let mut late = g.a.create_label();
    g.functions.push(late);
    g.depth = 0;
    g.a.set_label(&mut main).unwrap();
    let n = 4 + g.r.below(10);
    g.body(n);
    g.a.jmp(place.end).unwrap();
    g.a.set_label(&mut late).unwrap();
    g.depth = 2;
    g.functions.clear();
    g.body(2);
    g.a.ret().unwrap();
    let bytes = g.a.assemble(place.code).unwrap();
    let mut text = String::new();
    for i in Decoder::with_ip(64, &bytes, place.code, DecoderOptions::AMD).iter() {
        text += &format!("{:#x} {i}\n", i.ip());
    }
    assert!(bytes.len() < 0x8000);
    Program { bytes, text }
}

/// Offsets of the fs prefixes, which the native run needs as gs.
pub fn fs_prefixes(p: &Program, place: Place) -> Vec<usize> {
    let mut at = Vec::new();
    for i in Decoder::with_ip(64, &p.bytes, place.code, DecoderOptions::AMD).iter() {
        let start = (i.ip() - place.code) as usize;
        if i.segment_prefix() == Register::FS {
            at.extend((start..start + i.len()).find(|o| p.bytes[*o] == 0x64));
        }
    }
    at
}

pub fn random_state(r: &mut Rng, place: Place) -> State {
    let mut s = State::new();
    for g in &mut s.gpr {
        *g = match r.below(4) {
            0 => r.next(),
            1 => r.below(100),
            2 => place.data + r.below(4096),
            _ => r.next() & 0xffff_ffff,
        };
    }
    s.gpr[4] = STACK_TOP - 8192;
    s.gpr[14] = place.data + 256;
    s.gpr[15] = place.data + 256;
    s.rflags = 0x202 | (r.next() & 0x8d5);
    s.mxcsr = 0x1f80 | (r.next() as u32 & 0xe03f);
    for z in &mut s.zmm {
        for b in z.iter_mut() {
            *b = r.next() as u8;
        }
    }
    for k in &mut s.k {
        *k = r.next();
    }
    for n in 0..8 {
        for k in 0..10 {
            s.fx[32 + 16 * n + k] = r.next() as u8;
        }
    }
    s.fx[4] = r.next() as u8; // tags
    s
}

/// A generator for one case.
pub fn case_rng(seed: u64, case: u64) -> Rng {
    let mut r = Rng(seed.wrapping_add(case).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for _ in 0..4 {
        r.next();
    }
    r
}

pub fn env(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}
