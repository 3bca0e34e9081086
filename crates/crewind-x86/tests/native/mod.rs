//! Runs code natively from a full register state and takes the state at its end or at a fault.
#![allow(dead_code)]

use crate::common::Region;
use crewind_x86::ctx::Ctx;
use crewind_x86::{CodeCache, Recovered, set_guest_fs_base};
use iced_x86::code_asm::*;
use std::mem::offset_of;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// Everything the guest can see of a thread.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct State {
    pub zmm: [[u8; 64]; 32],
    /// fxsave image; only the x87 part counts.
    pub fx: [u8; 512],
    pub k: [u64; 8],
    pub gpr: [u64; 16],
    pub rflags: u64,
    pub mxcsr: u32,
    pub host_mxcsr: u32,
    pub host_rsp: u64,
    pub entry: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    End,
    Fault { signal: i32, pc: u64 },
}

impl State {
    pub fn new() -> State {
        let mut fx = [0u8; 512];
        fx[0] = 0x7f;
        fx[1] = 0x03;
        State {
            zmm: [[0; 64]; 32],
            fx,
            k: [0; 8],
            gpr: [0; 16],
            rflags: 2,
            mxcsr: 0x1f80,
            host_mxcsr: 0x1f80,
            host_rsp: 0,
            entry: 0,
        }
    }

    /// First difference that counts.
    pub fn difference(&self, got: &State, flag_mask: u64) -> Option<String> {
        const NAMES: [&str; 16] = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11",
            "r12", "r13", "r14", "r15",
        ];
        for (n, name) in NAMES.iter().enumerate() {
            if self.gpr[n] != got.gpr[n] {
                return Some(format!(
                    "{name}: want {:#x} got {:#x}",
                    self.gpr[n], got.gpr[n]
                ));
            }
        }
        // RF shows in signal frames only.
        if self.rflags & flag_mask & !0x1_0000 != got.rflags & !0x1_0000 {
            return Some(format!(
                "flags: want {:#x} got {:#x}",
                self.rflags & flag_mask,
                got.rflags
            ));
        }
        if self.mxcsr != got.mxcsr {
            return Some(format!(
                "mxcsr: want {:#x} got {:#x}",
                self.mxcsr, got.mxcsr
            ));
        }
        let width = vector_width();
        for n in 0..(if width == 64 { 32 } else { 16 }) {
            if self.zmm[n][..width] != got.zmm[n][..width] {
                return Some(format!(
                    "vector register {n}: want {:x?} got {:x?}",
                    self.zmm[n], got.zmm[n]
                ));
            }
        }
        if width == 64 && self.k != got.k {
            return Some(format!("masks: want {:x?} got {:x?}", self.k, got.k));
        }
        if self.fx[..5] != got.fx[..5] || self.fx[32..160] != got.fx[32..160] {
            return Some(format!(
                "x87: want {:x?} got {:x?}",
                &self.fx[..160],
                &got.fx[..160]
            ));
        }
        None
    }
}

fn vector_width() -> usize {
    if std::arch::is_x86_feature_detected!("avx512bw") {
        64
    } else if std::arch::is_x86_feature_detected!("avx") {
        32
    } else {
        16
    }
}

/// Low address of the native trampoline and its state.
const TRAMPOLINE: u64 = 0x0800_0000;
const STATE: u64 = TRAMPOLINE + 0x4000;

pub struct Native {
    region: Region,
    exit: u64,
}

static NATIVE_EXIT: AtomicU64 = AtomicU64::new(0);
static FAULT_PC: AtomicU64 = AtomicU64::new(0);
static FAULT_SIGNAL: AtomicU64 = AtomicU64::new(0);
/// Address that the last native fault was about.
pub static FAULT_ADDR: AtomicU64 = AtomicU64::new(0);
static CACHE: AtomicPtr<CodeCache> = AtomicPtr::new(std::ptr::null_mut());

fn at(off: usize) -> u64 {
    STATE + off as u64
}

impl Native {
    pub fn new() -> Native {
        let region = Region::new(TRAMPOLINE, 0x8000);
        let mut a = CodeAssembler::new(64).unwrap();
        let gprs = [
            rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
        ];
        for r in [rbx, rbp, r12, r13, r14, r15] {
            a.push(r).unwrap();
        }
        let m = |o: usize| qword_ptr(at(o));
        let d = |o: usize| dword_ptr(at(o));
        a.mov(m(offset_of!(State, host_rsp)), rsp).unwrap();
        a.stmxcsr(d(offset_of!(State, host_mxcsr))).unwrap();
        a.fxrstor64(ptr(at(offset_of!(State, fx)))).unwrap();
        vectors(&mut a, false);
        a.ldmxcsr(d(offset_of!(State, mxcsr))).unwrap();
        a.push(m(offset_of!(State, rflags))).unwrap();
        a.popfq().unwrap();
        for (n, r) in gprs.iter().enumerate() {
            a.mov(*r, m(offset_of!(State, gpr) + 8 * n)).unwrap();
        }
        a.jmp(m(offset_of!(State, entry))).unwrap();
        let mut exit = a.create_label();
        a.set_label(&mut exit).unwrap();
        for (n, r) in gprs.iter().enumerate() {
            a.mov(m(offset_of!(State, gpr) + 8 * n), *r).unwrap();
        }
        a.mov(rsp, m(offset_of!(State, host_rsp))).unwrap();
        a.pushfq().unwrap();
        a.pop(m(offset_of!(State, rflags))).unwrap();
        a.cld().unwrap();
        a.stmxcsr(d(offset_of!(State, mxcsr))).unwrap();
        a.fxsave64(ptr(at(offset_of!(State, fx)))).unwrap();
        vectors(&mut a, true);
        a.ldmxcsr(d(offset_of!(State, host_mxcsr))).unwrap();
        a.fninit().unwrap();
        for r in [r15, r14, r13, r12, rbp, rbx] {
            a.pop(r).unwrap();
        }
        a.ret().unwrap();
        let out = a
            .assemble_options(
                TRAMPOLINE,
                iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS,
            )
            .unwrap();
        let exit = out.label_ip(&exit).unwrap();
        region.write(TRAMPOLINE, &out.inner.code_buffer);
        NATIVE_EXIT.store(exit, Ordering::SeqCst);
        Native { region, exit }
    }

    /// Runs `entry` from `init` until it jumps to `end` or faults.
    pub fn run(&mut self, init: &State, entry: u64, end: u64, code: &Region) -> (State, End) {
        // At the end: jmp [rip+0]; exit
        code.write(end, &[0xff, 0x25, 0, 0, 0, 0]);
        code.write(end + 6, &self.exit.to_le_bytes());
        let s = STATE as *mut State;
        FAULT_SIGNAL.store(0, Ordering::SeqCst);
        // SAFETY: the trampoline keeps the C ABI; the state lies in its region; tests' code stays in their regions.
        let out = unsafe {
            *s = init.clone();
            (*s).entry = entry;
            set_gs(64);
            NATIVE_RUNNING.store(1, Ordering::SeqCst);
            let f: extern "sysv64" fn() = std::mem::transmute(TRAMPOLINE);
            f();
            NATIVE_RUNNING.store(0, Ordering::SeqCst);
            set_gs(0);
            (*s).clone()
        };
        let signal = FAULT_SIGNAL.load(Ordering::SeqCst) as i32;
        let end = match signal {
            0 => End::End,
            signal => End::Fault {
                signal,
                pc: FAULT_PC.load(Ordering::SeqCst),
            },
        };
        (out, end)
    }
}

thread_local! {
    /// Pcs of the steps of a native run with the trap flag.
    pub static TRACE: std::cell::UnsafeCell<Vec<u64>> = const { std::cell::UnsafeCell::new(Vec::new()) };
}

static NATIVE_RUNNING: AtomicU64 = AtomicU64::new(0);

fn vectors(a: &mut CodeAssembler, save: bool) {
    let z = [
        zmm0, zmm1, zmm2, zmm3, zmm4, zmm5, zmm6, zmm7, zmm8, zmm9, zmm10, zmm11, zmm12, zmm13,
        zmm14, zmm15, zmm16, zmm17, zmm18, zmm19, zmm20, zmm21, zmm22, zmm23, zmm24, zmm25, zmm26,
        zmm27, zmm28, zmm29, zmm30, zmm31,
    ];
    let y = [
        ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13,
        ymm14, ymm15,
    ];
    let x = [
        xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, xmm13,
        xmm14, xmm15,
    ];
    let ks = [k0, k1, k2, k3, k4, k5, k6, k7];
    for n in 0..32 {
        let m = at(offset_of!(State, zmm) + 64 * n);
        match vector_width() {
            64 if save => a.vmovups(zmmword_ptr(m), z[n]).unwrap(),
            64 => a.vmovups(z[n], zmmword_ptr(m)).unwrap(),
            32 if n < 16 && save => a.vmovups(ymmword_ptr(m), y[n]).unwrap(),
            32 if n < 16 => a.vmovups(y[n], ymmword_ptr(m)).unwrap(),
            16 if n < 16 && save => a.movups(xmmword_ptr(m), x[n]).unwrap(),
            16 if n < 16 => a.movups(x[n], xmmword_ptr(m)).unwrap(),
            _ => {}
        }
    }
    if vector_width() == 64 {
        for (n, k) in ks.iter().enumerate() {
            let m = qword_ptr(at(offset_of!(State, k) + 8 * n));
            if save {
                a.kmovq(m, *k).unwrap()
            } else {
                a.kmovq(*k, m).unwrap()
            }
        }
    }
    if save && vector_width() != 16 {
        a.vzeroupper().unwrap();
    }
}

pub fn set_gs(base: u64) {
    set_guest_fs_base(base);
}

pub fn load_ctx(c: &mut Ctx, s: &State, pc: u64) {
    c.gpr = s.gpr;
    c.rip = pc;
    c.rflags = s.rflags;
    c.mxcsr = s.mxcsr;
    c.fs_base = 64;
    c.vec.zmm = s.zmm;
    c.vec.k = s.k;
}

pub fn save_ctx(c: &Ctx, s: &mut State) {
    s.gpr = c.gpr;
    s.rflags = c.rflags;
    s.mxcsr = c.mxcsr;
    s.zmm = c.vec.zmm;
    s.k = c.vec.k;
}

/// # Safety
/// Changes the x87 state of the thread.
pub unsafe fn load_x87(s: &State) {
    let mut now = State::new();
    // SAFETY: aligned images; SSE state is put back as it was.
    unsafe {
        core::arch::x86_64::_fxsave64(now.fx.as_mut_ptr());
        now.fx[..24].copy_from_slice(&s.fx[..24]);
        now.fx[32..160].copy_from_slice(&s.fx[32..160]);
        core::arch::x86_64::_fxrstor64(now.fx.as_ptr());
    }
}

/// # Safety
/// None really.
pub unsafe fn save_x87(s: &mut State) {
    // SAFETY: an aligned image.
    unsafe { core::arch::x86_64::_fxsave64(s.fx.as_mut_ptr()) };
}

pub fn reset_x87() {
    // SAFETY: initialises x87.
    unsafe { core::arch::asm!("fninit", options(nomem, nostack)) };
}

/// mcontext indices of rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8..r15.
pub const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Registers of an interrupted context.
pub fn registers(uc: &libc::ucontext_t) -> Recovered {
    let g = |n: i32| uc.uc_mcontext.gregs[n as usize] as u64;
    let mut r = Recovered {
        rflags: g(libc::REG_EFL),
        rip: g(libc::REG_RIP),
        ..Recovered::default()
    };
    for (v, n) in r.gpr.iter_mut().zip(GREGS) {
        *v = g(n);
    }
    r
}

/// Writes them back.
pub fn set_registers(uc: &mut libc::ucontext_t, r: &Recovered) {
    for (v, n) in r.gpr.iter().zip(GREGS) {
        uc.uc_mcontext.gregs[n as usize] = *v as i64;
    }
    uc.uc_mcontext.gregs[libc::REG_EFL as usize] = r.rflags as i64;
    uc.uc_mcontext.gregs[libc::REG_RIP as usize] = r.rip as i64;
}

extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, uc: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context.
    let uc = unsafe { &mut *uc.cast::<libc::ucontext_t>() };
    let mut r = registers(uc);
    if NATIVE_RUNNING.load(Ordering::SeqCst) != 0
        && signal == libc::SIGTRAP
        && uc.uc_mcontext.gregs[libc::REG_EFL as usize] & 0x100 != 0
    {
        // A step.
        TRACE.with(|t| {
            // SAFETY: only this thread uses it, and not while code runs natively.
            let t = unsafe { &mut *t.get() };
            if t.len() < t.capacity() {
                t.push(r.rip);
            }
        });
        if r.rip == NATIVE_EXIT.load(Ordering::SeqCst) {
            r.rflags &= !0x100;
            set_registers(uc, &r);
        }
        return;
    }
    if NATIVE_RUNNING.load(Ordering::SeqCst) != 0 {
        FAULT_PC.store(r.rip, Ordering::SeqCst);
        // SAFETY: the kernel passes valid information; the field is there for all these signals.
        FAULT_ADDR.store(unsafe { (*info).si_addr() } as u64, Ordering::SeqCst);
        FAULT_SIGNAL.store(signal as u64, Ordering::SeqCst);
        r.rip = NATIVE_EXIT.load(Ordering::SeqCst);
        r.rflags &= !0x100;
        set_registers(uc, &r);
        return;
    }
    let cache = CACHE.load(Ordering::SeqCst);
    // SAFETY: the test that installed the handler keeps the cache alive.
    if !cache.is_null() && unsafe { (*cache).contains(r.rip) } {
        // SAFETY: as above.
        let cache = unsafe { &*cache };
        if cache.recover(&mut r) == Some(crewind_x86::RecoveredKind::Exact) {
            // SAFETY: the thread's own context.
            unsafe { (*crewind_x86::ctx::ctx()).rip = r.rip };
            r.rip = cache.fault_exit_entry();
            set_registers(uc, &r);
            return;
        }
    }
    // Not ours: let it kill the test.
    // SAFETY: resets the action; the instruction faults again.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Handles faults of native and translated code. The cache must outlive the test's last fault.
pub fn install_handler(cache: &CodeCache) {
    static ONCE: Once = Once::new();
    CACHE.store(std::ptr::from_ref(cache).cast_mut(), Ordering::SeqCst);
    ONCE.call_once(|| {
        for s in [
            libc::SIGSEGV,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGTRAP,
            libc::SIGBUS,
        ] {
            // SAFETY: a handler with the right signature, on the alternate stack.
            unsafe {
                let mut sa: libc::sigaction = std::mem::zeroed();
                sa.sa_sigaction = on_fault as *const () as usize;
                sa.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                assert_eq!(libc::sigaction(s, &sa, std::ptr::null_mut()), 0);
            }
        }
    });
    // std gives threads an alternate stack that may be small for AVX-512 frames: use one of our own.
    let size = 1 << 16;
    let mem = Box::leak(vec![0u8; size].into_boxed_slice());
    let alternate = libc::stack_t {
        ss_sp: mem.as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: size,
    };
    // SAFETY: leaked memory.
    unsafe { assert_eq!(libc::sigaltstack(&alternate, std::ptr::null_mut()), 0) };
}
