//! Small loops natively and translated, interleaved: what the clock and the look-ups cost.
//!
//! `cargo bench -p crewind-x86`; `BENCH` filters by name, `BENCH_DUMP` shows the code that was made; `BENCH_BIN=file` adds a flat binary for address 0x10000000 that ends with `ret`.

#[path = "../tests/common/mod.rs"]
mod common;

use common::*;
use crewind_x86::ctx;
use crewind_x86::{Exit, HotState, Options};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::time::Instant;

type Body = Result<(), IcedError>;
type Emit = fn(&mut CodeAssembler) -> Body;

/// What gcc -O1 makes of the recursive definition.
fn fib(a: &mut CodeAssembler) -> Body {
    let (mut f, mut small, mut main) = (a.create_label(), a.create_label(), a.create_label());
    a.jmp(main)?;
    a.set_label(&mut f)?;
    a.mov(eax, edi)?;
    a.cmp(edi, 1)?;
    a.jle(small)?;
    a.push(rbp)?;
    a.push(rbx)?;
    a.sub(rsp, 8)?;
    a.mov(ebx, edi)?;
    a.lea(edi, ptr(rdi - 1))?;
    a.call(f)?;
    a.mov(ebp, eax)?;
    a.lea(edi, ptr(rbx - 2))?;
    a.call(f)?;
    a.add(eax, ebp)?;
    a.add(rsp, 8)?;
    a.pop(rbx)?;
    a.pop(rbp)?;
    a.set_label(&mut small)?;
    a.ret()?;
    a.set_label(&mut main)?;
    a.mov(edi, 20)?;
    a.call(f)?;
    a.ret()
}

fn tight_loop(a: &mut CodeAssembler) -> Body {
    let mut l = a.create_label();
    a.mov(ecx, 100_000)?;
    a.set_label(&mut l)?;
    a.imul_3(rax, rax, 17)?;
    a.add(rax, rcx)?;
    a.xor(rdx, rax)?;
    a.dec(ecx)?;
    a.jne(l)?;
    a.ret()
}

/// A loop of two instructions: the clock's own latency.
fn shortest_loop(a: &mut CodeAssembler) -> Body {
    let mut l = a.create_label();
    a.mov(ecx, 100_000)?;
    a.set_label(&mut l)?;
    a.sub(ecx, 1)?;
    a.jne(l)?;
    a.ret()
}

fn sum(a: &mut CodeAssembler) -> Body {
    let (mut l, mut o) = (a.create_label(), a.create_label());
    a.mov(edx, 20)?;
    a.set_label(&mut o)?;
    a.mov(esi, DATA as u32)?;
    a.mov(ecx, 8000)?;
    a.set_label(&mut l)?;
    a.mov(rdi, qword_ptr(rsi))?;
    a.add(rax, rdi)?;
    a.add(rsi, 8)?;
    a.dec(ecx)?;
    a.jne(l)?;
    a.dec(edx)?;
    a.jne(o)?;
    a.ret()
}

/// Like an interpreter: a table of handlers, each jumping to the next one's.
fn dispatch(a: &mut CodeAssembler) -> Body {
    const N: usize = 8;
    let mut handlers: Vec<CodeLabel> = (0..N).map(|_| a.create_label()).collect();
    let mut out = a.create_label();
    for (n, h) in handlers.iter().enumerate() {
        a.lea(rax, ptr(*h))?;
        a.mov(qword_ptr(DATA + 0x8000 + 8 * n as u64), rax)?;
    }
    a.mov(ecx, 50_000)?;
    a.mov(ebx, 12345)?;
    a.xor(eax, eax)?;
    a.jmp(handlers[0])?;
    for (n, h) in handlers.iter_mut().enumerate() {
        a.set_label(h)?;
        a.add(rax, n as i32)?;
        a.imul_3(ebx, ebx, 1_664_525)?;
        a.add(ebx, 1_013_904_223)?;
        a.mov(edx, ebx)?;
        a.shr(edx, 29)?;
        a.dec(ecx)?;
        a.je(out)?;
        a.jmp(qword_ptr(rdx * 8 + (DATA + 0x8000)))?;
    }
    a.set_label(&mut out)?;
    a.ret()
}

/// Two small functions called from a loop, one through a pointer.
fn calls(a: &mut CodeAssembler) -> Body {
    let [mut f, mut h, mut main, mut l] = std::array::from_fn(|_| a.create_label());
    a.jmp(main)?;
    a.set_label(&mut f)?;
    a.lea(rax, ptr(rdi + rdi * 2))?;
    a.ret()?;
    a.set_label(&mut h)?;
    a.add(rax, rdi)?;
    a.ret()?;
    a.set_label(&mut main)?;
    a.lea(rbp, ptr(h))?;
    a.mov(ebx, 50_000)?;
    a.set_label(&mut l)?;
    a.mov(edi, ebx)?;
    a.call(f)?;
    a.call(rbp)?;
    a.dec(ebx)?;
    a.jne(l)?;
    a.ret()
}

/// Returns to translated code: a `syscall` behind the stack's first return address.
const BACK: u64 = CODE + 0xff000;

fn native(g: &Guest) -> f64 {
    let start = Instant::now();
    // SAFETY: the programs keep the C ABI except for rbx and rbp, which are saved here, and end with ret.
    unsafe {
        core::arch::asm!(
            "push rbx", "push rbp", "call {f}", "pop rbp", "pop rbx",
            f = in(reg) CODE,
            out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _, out("r8") _, out("r9") _,
            out("r10") _, out("r11") _, clobber_abi("C"),
        );
    }
    let _ = g;
    start.elapsed().as_secs_f64()
}

fn translated(g: &mut Guest) -> f64 {
    let c = g.start();
    c.gpr[4] = STACK_TOP - 4096 - 8;
    g.stack.write(STACK_TOP - 4096 - 8, &BACK.to_le_bytes());
    let start = Instant::now();
    let exit = g.run();
    assert!(
        matches!(exit, Exit::Syscall { .. }),
        "{exit:?} {:#x}",
        c.rip
    );
    start.elapsed().as_secs_f64()
}

/// With or without checks of rights, which are all given.
#[derive(Clone, Copy, PartialEq)]
enum Checks {
    Off,
    On,
}

fn measure(name: &str, code: &[u8], options: Options, checks: Checks) {
    let mut g = match checks {
        Checks::Off => Guest::new(options),
        Checks::On => Guest::guarded(options),
    };
    g.code.write(CODE, code);
    g.code.write(BACK, &[0x0f, 0x05]);
    let (mut n, mut t) = (f64::MAX, f64::MAX);
    for _ in 0..400 {
        n = n.min(native(&g));
        t = t.min(translated(&mut g));
    }
    if std::env::var("BENCH_DUMP").is_ok() {
        dump(&g);
    }
    // SAFETY: the thread's own context.
    let ticks = unsafe { (*ctx::ctx()).clock() };
    println!(
        "{name:16} native {:7.2} ms, translated {:7.2} ms: {:.2}x, {ticks} ticks, {:.2} ns each",
        n * 1e3,
        t * 1e3,
        t / n,
        (t - n) * 1e9 / ticks as f64
    );
}

/// The code that was made for the program, behind cells and stubs.
fn dump(g: &Guest) {
    let start = CACHE + 8192;
    let len = g.cache.stats().cache_bytes as usize;
    // SAFETY: inside the cache, which is mapped.
    let code = unsafe { std::slice::from_raw_parts(start as *const u8, len) };
    for i in iced_x86::Decoder::with_ip(64, code, start, 0).iter() {
        println!("{:#x} {i}", i.ip());
    }
}

fn exits() {
    let mut g = Guest::new(Options::default());
    let mut a = CodeAssembler::new(64).unwrap();
    let mut l = a.create_label();
    a.set_label(&mut l).unwrap();
    a.syscall().unwrap();
    a.jmp(l).unwrap();
    g.code.write(CODE, &a.assemble(CODE).unwrap());
    let c = g.start();
    let n = 20_000;
    let mut best = f64::MAX;
    for _ in 0..200 {
        let start = Instant::now();
        for _ in 0..n {
            if let Exit::Syscall { next } = g.run() {
                c.rip = next;
            }
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!("exit and entry   {:.1} ns", best * 1e9 / f64::from(n));
}

fn translation(checks: Checks) {
    let mut a = CodeAssembler::new(64).unwrap();
    // Blocks like a compiler's, each left by a jump back to its middle.
    for n in 0..2000 {
        let mut l = a.create_label();
        a.mov(rax, qword_ptr(rdi + 8)).unwrap();
        a.test(rax, rax).unwrap();
        a.je(l).unwrap();
        a.lea(rsi, ptr(rax + n)).unwrap();
        a.push(rbx).unwrap();
        a.mov(rbx, rsi).unwrap();
        a.add(rbx, 5).unwrap();
        a.movups(xmm0, xmmword_ptr(rsi)).unwrap();
        a.movups(xmmword_ptr(rdi + 16), xmm0).unwrap();
        a.cmp(rbx, 100).unwrap();
        a.ja(l).unwrap();
        a.xor(eax, eax).unwrap();
        a.mov(ecx, dword_ptr(rip_of(n))).unwrap();
        a.shl(rcx, 3).unwrap();
        a.and(ecx, 0xff).unwrap();
        a.pop(rbx).unwrap();
        a.set_label(&mut l).unwrap();
        a.call(CODE).unwrap();
    }
    let code = a.assemble(CODE).unwrap();
    let mut g = match checks {
        Checks::Off => Guest::new(Options::default()),
        Checks::On => Guest::guarded(Options::default()),
    };
    g.code.write(CODE, &code);
    let starts: Vec<u64> = {
        let mut v = vec![CODE];
        for i in iced_x86::Decoder::with_ip(64, &code, CODE, 0).iter() {
            if i.mnemonic() == iced_x86::Mnemonic::Call {
                v.push(i.next_ip());
            }
        }
        v.pop();
        v
    };
    let mut best = f64::MAX;
    for _ in 0..30 {
        g.cache.flush();
        let start = Instant::now();
        for pc in &starts {
            g.cache.prepare(*pc, &g.src).unwrap();
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    let s = g.cache.stats();
    let per = best * 1e6 / starts.len() as f64;
    println!("translation      {per:.2} us per block of 17");
    println!(
        "memory           guest {} bytes, cache {} bytes, tables {} bytes: {:.1}x",
        code.len(),
        s.cache_bytes,
        s.metadata_bytes,
        (s.cache_bytes + s.metadata_bytes) as f64 / code.len() as f64
    );
}

fn rip_of(n: i32) -> u64 {
    DATA + 4 * n as u64
}

fn main() {
    let programs: [(&str, Emit); 6] = [
        ("fib", fib),
        ("tight loop", tight_loop),
        ("shortest loop", shortest_loop),
        ("sum", sum),
        ("dispatch", dispatch),
        ("calls", calls),
    ];
    let filter = std::env::var("BENCH").unwrap_or_default();
    for (name, f) in programs.iter().filter(|(n, _)| n.contains(&filter)) {
        let mut a = CodeAssembler::new(64).unwrap();
        f(&mut a).unwrap();
        let code = a.assemble(CODE).unwrap();
        measure(name, &code, Options::default(), Checks::Off);
        measure("  checked", &code, Options::default(), Checks::On);
        if std::env::var("BENCH_ALL").is_ok() {
            measure(
                "  per thread",
                &code,
                Options {
                    hot_state: HotState::PerThread,
                    ..Options::default()
                },
                Checks::Off,
            );
            measure(
                "  no liveness",
                &code,
                Options {
                    flags_liveness: false,
                    ..Options::default()
                },
                Checks::Off,
            );
        }
    }
    if let Some(code) = std::env::var("BENCH_BIN")
        .ok()
        .and_then(|f| std::fs::read(f).ok())
    {
        measure("file", &code, Options::default(), Checks::Off);
        measure("  checked", &code, Options::default(), Checks::On);
    }
    exits();
    translation(Checks::Off);
    translation(Checks::On);
}
