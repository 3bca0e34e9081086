//! Every form of instruction is asked about exactly what it accesses: the processor itself is the judge. What a check
//! claims is put against the border of a page that cannot be accessed; if the instruction, run natively, faults there,
//! it accesses more than was claimed.

mod common;
mod generate;
mod native;

use common::*;
use crewind_x86::rights::{self, CheckedRange, NO_READ, NO_WRITE};
use crewind_x86::{Exit, Options};
use generate::*;
use iced_x86::code_asm::*;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, InstructionInfoFactory};
use native::*;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

/// The page that operands lie in; those around it cannot be accessed.
const PAGE: u64 = DATA + 0x8000;

fn protect(addr: u64, prot: i32) {
    // SAFETY: pages of the test's data.
    let r = unsafe { libc::mprotect(addr as *mut libc::c_void, 4096, prot) };
    assert_eq!(r, 0);
}

const READ: i32 = libc::PROT_READ;
const BOTH: i32 = libc::PROT_READ | libc::PROT_WRITE;

struct Lab {
    g: Guest,
    native: Native,
    /// Forms that ran natively without a fault.
    ran: HashSet<Code>,
    claims: u64,
}

impl Lab {
    fn new(o: Options) -> Lab {
        let g = Guest::guarded(o);
        g.rights
            .as_ref()
            .expect("checked")
            .bytes()
            .fill(NO_READ | NO_WRITE);
        Lab {
            g,
            native: Native::new(),
            ran: HashSet::new(),
            claims: 0,
        }
    }

    /// What the check of the one instruction asks for.
    fn ask(&mut self, code: &[u8], s: &State) -> Vec<CheckedRange> {
        install_handler(&self.g.cache);
        self.g.code.write(CODE, code);
        self.g.code.write(CODE + code.len() as u64, &[0x0f, 0x05]);
        self.g.cache.invalidate(CODE, CODE + 4096);
        let c = self.g.start();
        load_ctx(c, s, CODE);
        // SAFETY: sets the x87 state for the guest.
        unsafe { load_x87(s) };
        set_gs(64);
        let exit = self.g.run();
        set_gs(0);
        reset_x87();
        let mut ranges = Vec::new();
        if let Exit::Check { site } = exit {
            assert_eq!(c.rip, CODE);
            self.g.cache.check_ranges(site, c, &mut ranges);
        }
        ranges
    }

    /// The same where just these rights are given.
    fn ask_with(&mut self, code: &[u8], s: &State, given: &[CheckedRange]) -> Vec<CheckedRange> {
        let set = |g: &Guest, right: Option<u8>| {
            let table = g.rights.as_ref().expect("checked");
            for x in given {
                for a in (x.addr & !63..x.addr + x.len).step_by(64) {
                    let b = &mut table.bytes()[rights::index(a)];
                    *b = match right {
                        Some(r) => r,
                        None if x.write => 0,
                        None => (*b).min(NO_WRITE),
                    };
                }
            }
        };
        set(&self.g, None);
        let missing = self.ask(code, s);
        set(&self.g, Some(NO_READ | NO_WRITE));
        missing
    }

    /// Address of a native fault in one of the three pages.
    fn faults(&mut self, code: &[u8], s: &State, i: &Instruction) -> Option<u64> {
        let as_gs: Vec<u8> = code
            .iter()
            .enumerate()
            .map(|(n, b)| if n < 4 && *b == 0x64 { 0x65 } else { *b })
            .collect();
        self.g.code.write(CODE, &as_gs);
        let end = CODE + code.len() as u64;
        match self.native.run(s, CODE, end, &self.g.code).1 {
            End::End => {
                self.ran.insert(i.code());
                None
            }
            End::Fault { .. } => {
                let a = FAULT_ADDR.load(Ordering::SeqCst);
                (PAGE - 4096..PAGE + 8192).contains(&a).then_some(a)
            }
        }
    }

    /// Puts what is claimed against both borders of the page. `mover` is the register that moves the operand.
    fn judge(&mut self, code: &[u8], s: &State, mover: usize) {
        let i = Decoder::with_ip(64, code, CODE, DecoderOptions::AMD).decode();
        assert_eq!(i.len(), code.len());
        let ranges = self.ask(code, s);
        let operand = |r: &&CheckedRange| r.addr >= DATA && r.addr < DATA + DATA_SIZE as u64;
        let (low, high) = (PAGE - 4096, PAGE + 4096);
        let mine: Vec<CheckedRange> = ranges.iter().filter(operand).copied().collect();
        protect(low, libc::PROT_NONE);
        protect(high, libc::PROT_NONE);
        if mine.is_empty() {
            // Nothing is claimed, so nothing may be accessed.
            protect(PAGE, libc::PROT_NONE);
            let fault = self.faults(code, s, &i);
            assert_eq!(fault, None, "{i} accesses memory and claims {ranges:x?}");
        } else {
            self.claims += 1;
            let start = mine.iter().map(|r| r.addr).min().unwrap_or(0);
            let end = mine.iter().map(|r| r.addr + r.len).max().unwrap_or(0);
            let writes = mine.iter().any(|r| r.write);
            protect(PAGE, if writes { BOTH } else { READ });
            for by in [high.wrapping_sub(end), PAGE.wrapping_sub(start)] {
                let mut moved = s.clone();
                moved.gpr[mover] = moved.gpr[mover].wrapping_add(by);
                let fault = self.faults(code, &moved, &i);
                assert_eq!(fault, None, "{i} at {start:#x}+{by:#x} claims {mine:x?}");
            }
        }
        for p in [low, PAGE, high] {
            protect(p, BOTH | libc::PROT_EXEC);
        }
    }
}

fn state(r: &mut Rng) -> State {
    let mut s = random_state(r, LOW);
    for g in &mut s.gpr {
        *g = r.below(8);
    }
    s.gpr[4] = STACK_TOP - 8192;
    s.gpr[14] = PAGE + 512;
    s.gpr[15] = PAGE + 512;
    // Masks do not hide anything.
    s.k = [!0; 8];
    if r.one_in(2) {
        s.zmm = [[0xff; 64]; 32];
    }
    s.fx[4] = 0;
    // No exceptions.
    s.mxcsr = 0x1f80;
    s
}

#[test]
fn random_forms_claim_what_they_access() {
    let mut forms: HashMap<Code, u32> = HashMap::new();
    let mut infos = InstructionInfoFactory::new();
    let mut lab = Lab::new(Options::default());
    let mut r = case_rng(21, 0);
    for _ in 0..env("FORM_CASES", 60_000) {
        let Some(mut i) = random_insn(&mut r, &mut infos, LOW, true) else {
            continue;
        };
        if !(0..i.op_count()).any(|n| i.op_kind(n) == iced_x86::OpKind::Memory)
            || i.is_ip_rel_memory_operand()
        {
            continue;
        }
        let seen = forms.entry(i.code()).or_default();
        *seen += 1;
        if *seen > 3 {
            continue;
        }
        let base = i.memory_base().number();
        i.set_memory_displacement64(r.below(64) & !15);
        let mut enc = iced_x86::Encoder::new(64);
        if enc.encode(&i, CODE).is_err() {
            continue;
        }
        let s = state(&mut r);
        lab.judge(&enc.take_buffer(), &s, base);
    }
    eprintln!(
        "{} forms, {} ran, {} claims",
        forms.len(),
        lab.ran.len(),
        lab.claims
    );
    assert!(lab.ran.len() > 300 && lab.claims > 1000);
}

type Build = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;

const RDI: usize = 7;
const RSI: usize = 6;
const RSP: usize = 4;
const RBP: usize = 5;
const RBX: usize = 3;

/// Instructions with operands that encodings do not show, or that reach beyond them.
#[test]
fn special_forms_claim_what_they_access() {
    let list: &[(usize, Build)] = &[
        (RSP, |a| a.push(rax)),
        (RSP, |a| a.push(5)),
        (RSP, |a| a.push(ax)),
        (RSP, |a| a.pushfq()),
        (RSP, |a| a.pop(rax)),
        (RSP, |a| a.pop(ax)),
        (RSP, |a| a.pop(qword_ptr(rsp - 8))),
        (RSP, |a| a.push(qword_ptr(rsp + 24))),
        // With room for variables it also looks whether the new end of the stack can be written, which is no access.
        (RSP, |a| a.enter(0, 0)),
        (RSP, |a| a.enter(0, 1)),
        (RBP, |a| a.leave()),
        (RDI, |a| a.stosb()),
        (RDI, |a| a.stosq()),
        (RDI, |a| a.rep().stosd()),
        (RDI, |a| a.rep().stosb()),
        (RDI, |a| a.repe().scasw()),
        (RDI, |a| a.repne().scasb()),
        (RSI, |a| a.lodsd()),
        (RSI, |a| a.rep().lodsq()),
        (RDI, |a| a.rep().movsw()),
        (RSI, |a| a.rep().movsb()),
        (RDI, |a| a.repe().cmpsb()),
        (RSI, |a| a.movsq()),
        (RDI, |a| a.cmpsd()),
        (RBX, |a| a.xlatb()),
        (RDI, |a| a.maskmovdqu(xmm1, xmm2)),
        (RDI, |a| a.vmaskmovdqu(xmm1, xmm2)),
        (RDI, |a| a.maskmovq(mm1, mm2)),
        (RDI, |a| a.bt(dword_ptr(rdi), edx)),
        (RDI, |a| a.bts(qword_ptr(rdi), rdx)),
        (RDI, |a| a.lock().btr(word_ptr(rdi + 4), dx)),
        (RDI, |a| a.btc(qword_ptr(rdi + rbp), rdx)),
        (RDI, |a| a.bt(dword_ptr(rdi), 7)),
        (RDI, |a| a.lock().cmpxchg16b(xmmword_ptr(rdi))),
        (RDI, |a| a.cmpxchg8b(qword_ptr(rdi))),
        (RDI, |a| a.lock().xadd(qword_ptr(rdi), rdx)),
        (RDI, |a| a.xchg(qword_ptr(rdi), rdx)),
        (RDI, |a| a.fldenv(ptr(rdi))),
        (RDI, |a| a.frstor(ptr(rdi))),
        (RDI, |a| a.fbstp(tbyte_ptr(rdi))),
        (RDI, |a| a.fld(tbyte_ptr(rdi))),
        (RDI, |a| a.ldmxcsr(dword_ptr(rdi))),
        (RDI, |a| a.stmxcsr(dword_ptr(rdi))),
        (RDI, |a| a.clzero()),
        (RDI, |a| a.prefetcht0(byte_ptr(rdi))),
        (RDI, |a| a.lea(rax, ptr(rdi))),
        (RDI, |a| a.mov(eax, dword_ptr(edi))),
        (RDI, |a| a.mov(qword_ptr(edi + esi * 2 + 16), rdx)),
        (RDI, |a| {
            a.vpgatherdd_3(xmm1, dword_ptr(rdi + xmm2 * 4), xmm3)
        }),
        (RDI, |a| {
            a.vpgatherqq_3(ymm1, qword_ptr(rdi + ymm2 * 1), ymm3)
        }),
        (RDI, |a| {
            a.vgatherdpd_3(ymm1, qword_ptr(rdi + xmm2 * 8), ymm3)
        }),
        (RDI, |a| {
            a.vgatherqps_3(xmm1, dword_ptr(rdi + ymm2 * 4), xmm3)
        }),
        (RDI, |a| a.vpgatherdd(zmm1.k1(), dword_ptr(rdi + zmm2 * 4))),
        (RDI, |a| a.vscatterdps(dword_ptr(rdi + zmm2 * 4).k1(), zmm1)),
        (RDI, |a| a.vpscatterqq(qword_ptr(rdi + zmm2 * 8).k1(), zmm1)),
        (RDI, |a| a.vpmaskmovd(ymmword_ptr(rdi), ymm1, ymm2)),
        (RDI, |a| a.vmovdqu32(zmmword_ptr(rdi).k1(), zmm2)),
        (RDI, |a| a.vpcompressd(zmmword_ptr(rdi).k1(), zmm2)),
        (RDI, |a| a.vpexpandd(zmm2.k1().z(), zmmword_ptr(rdi))),
        (RDI, |a| a.vaddps(zmm2, zmm3, dword_bcst(rdi))),
    ];
    for o in [
        Options::default(),
        Options {
            bmi2: false,
            flags_liveness: false,
            ..Options::default()
        },
    ] {
        let mut lab = Lab::new(o);
        let mut r = case_rng(22, 0);
        for (n, (mover, build)) in list.iter().enumerate() {
            let mut a = CodeAssembler::new(64).unwrap();
            build(&mut a).unwrap();
            let code = a.assemble(CODE).unwrap();
            for round in 0..8 {
                let mut s = state(&mut r);
                // Small operands: lengths, bit offsets, vector offsets.
                s.gpr[1] = r.below(24);
                s.gpr[2] = r.below(2000);
                for z in &mut s.zmm {
                    z.fill(0);
                    for e in z.chunks_mut(8) {
                        e[0] = r.next() as u8 & 63;
                        e[4] = if round % 2 == 0 {
                            0
                        } else {
                            r.next() as u8 & 63
                        };
                    }
                }
                if round > 3 {
                    // A mask for the AVX2 forms and maskmov.
                    s.zmm[3].fill(0xff);
                    s.zmm[2][..16].fill(if (24..28).contains(&n) { 0xff } else { 1 });
                    s.k[1] = r.next();
                }
                if round == 5 {
                    s.rflags |= 0x400;
                }
                if n == 43 {
                    // clzero takes rax.
                    s.gpr[0] = PAGE + 600;
                    lab.judge(&code, &s, 0);
                    continue;
                }
                s.gpr[*mover] = PAGE + 1024;
                lab.judge(&code, &s, *mover);
                // What vector registers and bit offsets decide is always asked for.
                let i = Decoder::with_ip(64, &code, CODE, DecoderOptions::AMD).decode();
                let register = i.op_count() == 2 && i.op1_kind() == iced_x86::OpKind::Register;
                use iced_x86::Mnemonic::{Bt, Btc, Btr, Bts};
                let bits = matches!(i.mnemonic(), Bt | Btc | Btr | Bts);
                if !(i.is_vsib() || bits && register) {
                    let mut sane = s.clone();
                    for g in [6, 7] {
                        if sane.gpr[g] < 4096 {
                            sane.gpr[g] = PAGE + 2048;
                        }
                    }
                    let ranges = lab.ask(&code, &sane);
                    assert_eq!(lab.ask_with(&code, &sane, &ranges), [], "{i} {o:?}");
                }
            }
        }
        eprintln!("{} of {} forms ran", lab.ran.len(), list.len());
        // Some share a code, and the cpu may lack AVX-512 and clzero.
        assert!(lab.ran.len() > 40, "{:?}", lab.ran);
    }
}

/// What is not asked for does not matter: with exactly the claimed rights the instruction runs.
#[test]
fn the_claimed_rights_are_enough() {
    let mut infos = InstructionInfoFactory::new();
    for o in [
        Options::default(),
        Options {
            bmi2: false,
            ..Options::default()
        },
        Options {
            flags_liveness: false,
            ..Options::default()
        },
    ] {
        let mut lab = Lab::new(o);
        let mut r = case_rng(23, 0);
        let mut n = 0;
        while n < 1500 {
            let Some(i) = random_insn(&mut r, &mut infos, LOW, true) else {
                continue;
            };
            let mut enc = iced_x86::Encoder::new(64);
            if enc.encode(&i, CODE).is_err() {
                continue;
            }
            let code = enc.take_buffer();
            let s = state(&mut r);
            let ranges = lab.ask(&code, &s);
            if ranges.is_empty() {
                continue;
            }
            n += 1;
            assert_eq!(lab.ask_with(&code, &s, &ranges), [], "{i} {o:?}");
        }
    }
}
