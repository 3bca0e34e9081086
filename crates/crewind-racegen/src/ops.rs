//! The instructions that random programs are made of.

use crate::emit::{Code, SHARED, STRUCTURES, TABLE};

macro_rules! kinds {
    ($($kind:ident $name:literal $doc:literal,)*) => {
        /// A kind of instructions.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind {
            $(#[doc = $doc] $kind,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &[Kind] = &[$(Kind::$kind),*];

            /// Its name on the command line.
            pub fn name(self) -> &'static str {
                match self {
                    $(Kind::$kind => $name,)*
                }
            }
        }
    };
}

kinds! {
    Load "load" "Plain loads of 1 to 8 bytes, also as operands of arithmetic.",
    Store "store" "Plain stores of 1 to 8 bytes.",
    Modify "modify" "Read-modify-writes without lock.",
    Locked "locked" "Locked read-modify-writes.",
    Xchg "xchg" "Exchanges, which lock without a prefix.",
    Cmpxchg "cmpxchg" "Compare-and-exchange of 1 to 8 bytes, and xadd.",
    Wide "wide" "cmpxchg8b and cmpxchg16b.",
    Bits "bits" "Bit instructions whose register operand reaches far from their address.",
    Branch "branch" "Branches that depend on what was read, and bounded waits for a change.",
    Stack "stack" "push and pop of memory, and a stack in shared memory.",
    Call "call" "Calls and jumps through pointers that threads exchange.",
    Strings "strings" "rep movs, stos, cmps, scas and lods of random lengths, in both directions.",
    Sse "sse" "Moves and arithmetic of 16 bytes, scalars, streaming stores.",
    Avx "avx" "The same of 32 bytes, masked moves, gathers.",
    Avx512 "avx512" "The same of 64 bytes, masked, and scatters.",
    X87 "x87" "Loads and stores of the old floating point unit, of 2 to 10 bytes.",
    Fence "fence" "Fences and pauses.",
    Save "save" "fxsave and xsave, which write hundreds of bytes.",
    Time "time" "rdtsc.",
    SyscallOut "syscall-out" "System calls that write into shared memory.",
    SyscallIn "syscall-in" "System calls that read shared memory.",
    Vectored "vectored" "readv and writev with pieces in different places.",
    Futex "futex" "Waits and wakes on shared words.",
    Map "map" "madvise and mprotect of shared pages.",
}

impl Kind {
    /// The kind of that name.
    pub fn by_name(name: &str) -> Option<Kind> {
        Kind::ALL.iter().copied().find(|k| k.name() == name)
    }

    /// Whether its result can differ even when one thread runs alone.
    pub fn varies(self) -> bool {
        matches!(self, Kind::Time | Kind::SyscallOut | Kind::Futex)
    }
}

/// Where an operand may lie.
#[derive(Clone, Copy)]
enum Align {
    /// Anywhere.
    Any,
    /// Anywhere within a cache line, for so many bytes: a locked access over a line border stops the whole machine, and may
    /// be forbidden.
    Line(u64),
    /// At a multiple.
    Natural(u64),
}

impl Align {
    fn of(self, offset: u64) -> u64 {
        match self {
            Align::Any => offset,
            Align::Line(size) => offset - (offset % 64 + size).saturating_sub(64),
            Align::Natural(n) => offset & !(n - 1),
        }
    }
}

const POINTERS: [&str; 4] = ["byte ptr", "word ptr", "dword ptr", "qword ptr"];
const A: [&str; 4] = ["al", "ax", "eax", "rax"];
const C: [&str; 4] = ["cl", "cx", "ecx", "rcx"];

/// Address of an operand, without a size. Uses r10 and r11, which hold it until the next one.
fn address(code: &mut Code, align: Align) -> String {
    let hot = *code.random.pick(&code.hot);
    match code.random.below(10) {
        0..4 => format!("[rbx + {}]", align.of(hot)),
        4..7 => {
            // Somewhere that changes from round to round: in all of it, or near a hot place.
            let (mask, base) = if code.random.one_in(2) {
                (SHARED - 1, 0)
            } else {
                (127, hot.min(SHARED - 256) & !63)
            };
            let (mask, offset) = match align {
                Align::Any => (mask, base + code.random.below(8)),
                Align::Line(size) => (mask & !63, base + code.random.below(65 - size)),
                Align::Natural(n) => (mask & !(n - 1), base),
            };
            let shift = code.random.between(10, 40);
            code.line("mov r10, r15");
            code.line(format!("shr r10, {shift}"));
            code.line(format!("and r10d, {mask}"));
            format!("[rbx + r10 + {offset}]")
        }
        7..9 => {
            // Sometimes shared, sometimes the thread's own, in one instruction.
            let (shared, own) = (align.of(hot), align.of(code.random.below(SHARED)));
            code.line(format!("lea r10, [rbx + {shared}]"));
            code.line(format!("lea r11, [r12 + {own}]"));
            let bit = code.random.below(64);
            code.line(format!("bt r15, {bit}"));
            code.line("cmovc r10, r11");
            "[r10]".to_owned()
        }
        _ => format!("[r12 + {}]", align.of(code.random.below(SHARED))),
    }
}

/// Puts the address of an operand into a register.
fn point(code: &mut Code, register: &str, align: Align) {
    let address = address(code, align);
    code.line(format!("lea {register}, {address}"));
}

/// A value that depends on the thread's past, in rax.
fn value(code: &mut Code) {
    match code.random.below(4) {
        0 => code.line("mov rax, r13"),
        1 => code.line("mov rax, r15"),
        2 => code.line("mov rax, r14"),
        _ => {
            let constant = code.random.next();
            code.line(format!("movabs rax, {constant:#x}"));
        }
    }
}

/// A random length in rcx, of bytes.
fn length(code: &mut Code) {
    let mask = *code.random.pick(&[7, 31, 63, 255, 511]);
    code.line("mov rcx, r15");
    code.line("shr rcx, 33");
    code.line(format!("and ecx, {mask}"));
}

/// Emits one instruction of a kind, with what it takes.
pub fn emit(code: &mut Code, kind: Kind) {
    match kind {
        Kind::Load => load(code),
        Kind::Store => store(code),
        Kind::Modify => modify(code, false),
        Kind::Locked => modify(code, true),
        Kind::Xchg => xchg(code),
        Kind::Cmpxchg => cmpxchg(code),
        Kind::Wide => wide(code),
        Kind::Bits => bits(code),
        Kind::Branch => branch(code),
        Kind::Stack => stack(code),
        Kind::Call => call(code),
        Kind::Strings => strings(code),
        Kind::Sse => sse(code),
        Kind::Avx => avx(code),
        Kind::Avx512 => avx512(code),
        Kind::X87 => x87(code),
        Kind::Fence => {
            let fence = *code.random.pick(&["mfence", "lfence", "sfence", "pause"]);
            code.line(fence);
        }
        Kind::Save => save(code),
        Kind::Time => {
            let read = *code.random.pick(&["rdtsc", "rdtscp"]);
            code.line(read);
            code.fold("rax");
        }
        Kind::SyscallOut => syscall_out(code),
        Kind::SyscallIn => syscall_in(code),
        Kind::Vectored => vectored(code),
        Kind::Futex => futex(code),
        Kind::Map => map(code),
    }
}

fn load(code: &mut Code) {
    let size = code.random.below(4) as usize;
    let at = format!("{} {}", POINTERS[size], address(code, Align::Any));
    match code.random.below(4) {
        0 => {
            let operation = *code.random.pick(&["add", "xor", "sub", "and", "or"]);
            code.line("mov rax, r15");
            code.line(format!("{operation} {}, {at}", A[size]));
        }
        1 => {
            code.line("xor eax, eax");
            code.line("mov rcx, r13");
            code.line(format!("cmp {at}, {}", C[size]));
            code.line("seta al");
        }
        2 if size > 0 => {
            code.line("mov rax, r13");
            code.line("test r15, 64");
            code.line(format!("cmovnz {}, {at}", A[size]));
        }
        _ => match size {
            0 | 1 => {
                let extend = *code.random.pick(&["movzx eax", "movsx rax"]);
                code.line(format!("{extend}, {at}"));
            }
            _ => code.line(format!("mov {}, {at}", A[size])),
        },
    }
    code.fold("rax");
}

fn store(code: &mut Code) {
    let size = code.random.below(4) as usize;
    value(code);
    let at = format!("{} {}", POINTERS[size], address(code, Align::Any));
    if code.random.one_in(4) {
        let constant = code.random.below(100);
        code.line(format!("mov {at}, {constant}"));
    } else {
        code.line(format!("mov {at}, {}", A[size]));
    }
}

fn modify(code: &mut Code, locked: bool) {
    let size = code.random.below(4) as usize;
    let (prefix, align) = if locked {
        ("lock ", Align::Line(1 << size))
    } else {
        ("", Align::Any)
    };
    value(code);
    let at = format!("{} {}", POINTERS[size], address(code, align));
    match code.random.below(if locked { 3 } else { 5 }) {
        0 => {
            let one = *code.random.pick(&["inc", "dec", "not", "neg"]);
            code.line(format!("{prefix}{one} {at}"));
        }
        1 => {
            // What the flags say about the old value is an observation.
            let operation = *code.random.pick(&["add", "sub", "adc", "sbb"]);
            code.line("bt r15, 5");
            code.line(format!("{prefix}{operation} {at}, {}", A[size]));
            code.line("setc al");
            code.line("seto cl");
            code.line("movzx eax, al");
            code.line("movzx ecx, cl");
            code.line("lea eax, [rax + rcx*2]");
            code.fold("rax");
        }
        2 => {
            let operation = *code.random.pick(&["or", "and", "xor", "add"]);
            let constant = code.random.below(128);
            code.line(format!("{prefix}{operation} {at}, {constant}"));
            code.line("sets al");
            code.line("movzx eax, al");
            code.fold("rax");
        }
        3 => {
            let shift = *code.random.pick(&["shl", "shr", "sar", "rol", "ror"]);
            let by = code.random.between(1, 7);
            code.line(format!("{shift} {at}, {by}"));
        }
        _ => {
            // Read and written by two instructions: what comes between gets lost.
            code.line(format!("mov {}, {at}", C[size]));
            code.line(format!("add {}, {}", C[size], A[size]));
            code.line(format!("mov {at}, {}", C[size]));
        }
    }
}

fn xchg(code: &mut Code) {
    let size = code.random.below(4) as usize;
    value(code);
    let at = address(code, Align::Line(1 << size));
    code.line(format!("xchg {} {at}, {}", POINTERS[size], A[size]));
    code.fold("rax");
}

fn cmpxchg(code: &mut Code) {
    let size = code.random.below(4) as usize;
    let at = format!(
        "{} {}",
        POINTERS[size],
        address(code, Align::Line(1 << size))
    );
    let prefix = if code.random.one_in(6) { "" } else { "lock " };
    match code.random.below(3) {
        0 => {
            code.line("mov rax, r15");
            code.line(format!("{prefix}xadd {at}, {}", A[size]));
            code.fold("rax");
        }
        1 => {
            // Once, whether it succeeds or not.
            code.line("mov rax, r14");
            code.line("mov rcx, r15");
            code.line(format!("{prefix}cmpxchg {at}, {}", C[size]));
            code.line("setz cl");
            code.line("add rax, rcx");
            code.fold("rax");
        }
        _ => {
            // Until it succeeds: other threads go on when it does not.
            let again = code.new_label();
            code.line(format!("mov {}, {at}", A[size]));
            code.place(&again);
            code.line("mov rcx, rax");
            code.line("rol rcx, 3");
            code.line("inc rcx");
            code.line(format!("lock cmpxchg {at}, {}", C[size]));
            code.line(format!("jnz {again}"));
            let register = match size {
                0 => "movzx eax, al",
                1 => "movzx eax, ax",
                2 => "mov eax, eax",
                _ => "nop",
            };
            code.line(register);
            code.fold("rax");
        }
    }
}

fn wide(code: &mut Code) {
    let sixteen = code.random.one_in(2);
    let at = if sixteen {
        format!("xmmword ptr {}", address(code, Align::Natural(16)))
    } else {
        format!("qword ptr {}", address(code, Align::Line(8)))
    };
    // Its operand rbx is the shared memory's address otherwise; the address is taken before.
    code.line(format!("lea rdi, {}", &at[at.find('[').unwrap_or(0)..]));
    code.line("mov rsi, rbx");
    code.line("mov rax, r13");
    code.line("mov rdx, r14");
    code.line("mov rbx, r15");
    code.line("mov rcx, r13");
    let (instruction, pointer) = if sixteen {
        ("cmpxchg16b", "xmmword ptr")
    } else {
        ("cmpxchg8b", "qword ptr")
    };
    // The first reads, mostly; the second exchanges unless somebody came between.
    code.line(format!("lock {instruction} {pointer} [rdi]"));
    code.line(format!("lock {instruction} {pointer} [rdi]"));
    code.line("setz cl");
    code.line("mov rbx, rsi");
    code.line("movzx ecx, cl");
    code.line("add rax, rcx");
    code.line("lea rax, [rax + rdx*2]");
    code.fold("rax");
}

fn bits(code: &mut Code) {
    let operation = *code
        .random
        .pick(&["bts", "btr", "btc", "bt", "lock bts", "lock btr"]);
    if code.random.one_in(2) {
        // 2 KiB in each direction.
        code.line("mov rax, r15");
        code.line("sar rax, 49");
        code.line(format!("{operation} qword ptr [rbx + {}], rax", SHARED / 2));
    } else {
        let at = address(code, Align::Line(8));
        let bit = code.random.below(64);
        code.line(format!("{operation} qword ptr {at}, {bit}"));
    }
    code.line("setc al");
    code.line("movzx eax, al");
    code.fold("rax");
}

fn branch(code: &mut Code) {
    let at = address(code, Align::Any);
    let end = code.new_label();
    match code.random.below(3) {
        0 => {
            let mask = 1 << code.random.below(8);
            code.line(format!("test byte ptr {at}, {mask}"));
            let jump = *code.random.pick(&["jz", "jnz"]);
            code.line(format!("{jump} {end}"));
            store(code);
            load(code);
            code.place(&end);
        }
        1 => {
            // How long another thread leaves a word alone, up to a limit.
            let again = code.new_label();
            code.line(format!("lea rdi, {at}"));
            code.line("mov eax, dword ptr [rdi]");
            code.line("mov ecx, 30");
            code.place(&again);
            code.line("cmp eax, dword ptr [rdi]");
            code.line(format!("jne {end}"));
            code.line("dec ecx");
            code.line(format!("jnz {again}"));
            code.place(&end);
            code.line("shl rcx, 32");
            code.line("add rax, rcx");
            code.fold("rax");
        }
        _ => {
            // Rounds as many as a racing word says.
            let again = code.new_label();
            code.line(format!("movzx ecx, byte ptr {at}"));
            code.line("and ecx, 15");
            code.line("inc ecx");
            point(code, "rdi", Align::Any);
            code.line("mov eax, ecx");
            code.place(&again);
            code.line("add dword ptr [rdi], ecx");
            code.line("rol rax, 5");
            code.line("xor eax, dword ptr [rdi]");
            code.line("dec ecx");
            code.line(format!("jnz {again}"));
            code.fold("rax");
        }
    }
}

fn stack(code: &mut Code) {
    match code.random.below(3) {
        // A handler's frame would be written there too, and could be destroyed.
        0 if !code.signals => {
            point(code, "r8", Align::Natural(8));
            code.line("mov r9, rsp");
            code.line("lea rsp, [r8 + 512]");
            value(code);
            code.line("push rax");
            code.line("push r15");
            code.line("pushfq");
            code.line("pop rcx");
            code.line("pop rax");
            code.line("pop qword ptr [rsp + 8]");
            code.line("mov rsp, r9");
            code.fold("rax");
        }
        0 | 1 => {
            let at = address(code, Align::Any);
            code.line(format!("push qword ptr {at}"));
            code.line("mov rax, [rsp]");
            let to = address(code, Align::Any);
            code.line(format!("pop qword ptr {to}"));
            code.fold("rax");
        }
        _ => {
            let at = address(code, Align::Any);
            value(code);
            code.line("push rax");
            code.line("pushfq");
            code.line("popfq");
            code.line(format!("pop qword ptr {at}"));
        }
    }
}

fn call(code: &mut Code) {
    // Few slots, so that threads meet there; pointers are only ever moved whole.
    let slot = |code: &mut Code| {
        format!(
            "qword ptr [rbx - {}]",
            TABLE - 8 * (code.random.below(12) * 7)
        )
    };
    let (a, b) = (slot(code), slot(code));
    match code.random.below(5) {
        0 => {
            code.line(format!("mov rax, {a}"));
            code.line(format!("xchg rax, {b}"));
            code.line(format!("mov {a}, rax"));
        }
        1 => {
            code.line(format!("push {a}"));
            code.line(format!("pop {b}"));
        }
        2 => {
            let back = code.new_label();
            code.line("mov eax, r14d");
            code.line(format!("lea rcx, [rip + {back}]"));
            code.line("push rcx");
            code.line(format!("jmp {a}"));
            code.place(&back);
            code.fold("rax");
        }
        _ => {
            code.line("mov eax, r14d");
            code.line(format!("call {a}"));
            code.fold("rax");
        }
    }
}

fn strings(code: &mut Code) {
    let size = code.random.below(4);
    let letter = ["b", "w", "d", "q"][size as usize];
    let operation = code.random.below(5);
    let backwards = operation < 2 && code.random.one_in(4);
    // Backwards it writes below its start, where there must be room.
    let room = if backwards { 1024 } else { 0 };
    for register in ["rsi", "rdi"] {
        point(code, register, Align::Any);
        if room > 0 {
            code.line(format!("add {register}, {room}"));
        }
    }
    length(code);
    if size > 0 {
        code.line(format!("shr ecx, {size}"));
    }
    value(code);
    if backwards {
        code.line("std");
    }
    match operation {
        0 => code.line(format!("rep movs{letter}")),
        1 => code.line(format!("rep stos{letter}")),
        2 => {
            code.line("cmp eax, eax");
            let repeat = *code.random.pick(&["repe", "repne"]);
            code.line(format!("{repeat} cmps{letter}"));
        }
        3 => {
            code.line("cmp eax, eax");
            let repeat = *code.random.pick(&["repe", "repne"]);
            code.line(format!("{repeat} scas{letter}"));
        }
        _ => {
            let single = *code.random.pick(&["lods", "movs", "stos"]);
            code.line(format!("{single}{letter}"));
        }
    }
    if backwards {
        code.line("cld");
    }
    code.line("lea rcx, [rcx + rcx*2]");
    code.line("add rax, rcx");
    code.fold("rax");
}

fn sse(code: &mut Code) {
    match code.random.below(6) {
        0 => {
            let at = address(code, Align::Any);
            code.line(format!("movdqu xmm0, {at}"));
            let to = address(code, Align::Any);
            code.line(format!("movups {to}, xmm0"));
        }
        1 => {
            let at = address(code, Align::Natural(16));
            code.line("movq xmm0, r15");
            code.line(format!("paddd xmm0, {at}"));
            code.line(format!("movaps {at}, xmm0"));
        }
        2 => {
            let at = address(code, Align::Natural(16));
            code.line("movq xmm0, r13");
            code.line("punpcklqdq xmm0, xmm0");
            code.line(format!("movntdq {at}, xmm0"));
        }
        3 => {
            let at = address(code, Align::Any);
            code.line(format!("cvtsi2sd xmm0, qword ptr {at}"));
            let to = address(code, Align::Any);
            code.line(format!("movsd qword ptr {to}, xmm0"));
        }
        4 => {
            let at = address(code, Align::Any);
            code.line(format!("movhps xmm0, qword ptr {at}"));
            let to = address(code, Align::Any);
            code.line(format!("movlps qword ptr {to}, xmm0"));
        }
        _ => {
            let at = address(code, Align::Any);
            code.line(format!("movd xmm0, dword ptr {at}"));
            let to = address(code, Align::Natural(4));
            code.line("mov eax, r15d");
            code.line(format!("movnti dword ptr {to}, eax"));
        }
    }
    code.line("movq rax, xmm0");
    code.fold("rax");
}

/// What follows is skipped on a processor that cannot do it.
fn where_able(code: &mut Code, bit: u32, emit: impl FnOnce(&mut Code)) {
    let end = code.new_label();
    code.line(format!("test byte ptr [rip + features], {bit}"));
    code.line(format!("jz {end}"));
    emit(code);
    code.line("vzeroupper");
    code.place(&end);
}

/// Eight indices in ymm1, 16 in zmm1, all within shared memory.
fn indices(code: &mut Code, vector: &str) {
    code.line("vmovq xmm1, r15");
    code.line(format!("vpbroadcastq {vector}1, xmm1"));
    code.line("mov eax, 0x3039");
    code.line("vmovd xmm2, eax");
    code.line(format!("vpbroadcastd {vector}2, xmm2"));
    code.line(format!("vpmulld {vector}1, {vector}1, {vector}2"));
    code.line(format!("vpsrlq {vector}2, {vector}1, 11"));
    code.line(format!("vpunpckhdq {vector}1, {vector}1, {vector}2"));
    let drop = 32 - SHARED.trailing_zeros();
    code.line(format!("vpsrld {vector}1, {vector}1, {drop}"));
}

fn avx(code: &mut Code) {
    where_able(code, 1, |code| {
        match code.random.below(5) {
            0 => {
                let at = address(code, Align::Any);
                code.line(format!("vmovdqu ymm0, {at}"));
                let to = address(code, Align::Any);
                code.line(format!("vmovups {to}, ymm0"));
            }
            1 => {
                let at = address(code, Align::Natural(32));
                code.line("vmovq xmm0, r15");
                code.line("vpbroadcastq ymm0, xmm0");
                code.line(format!("vpxor ymm0, ymm0, {at}"));
                let store = *code.random.pick(&["vmovdqa", "vmovntdq"]);
                code.line(format!("{store} {at}, ymm0"));
            }
            2 => {
                // The sign of each element of the mask decides.
                let at = address(code, Align::Any);
                code.line("vmovq xmm1, r15");
                code.line("vpbroadcastq ymm1, xmm1");
                code.line("vpsllvd ymm1, ymm1, ymm1");
                code.line(format!("vpmaskmovd ymm0, ymm1, {at}"));
                let to = address(code, Align::Any);
                code.line(format!("vpmaskmovd {to}, ymm1, ymm0"));
            }
            3 => {
                indices(code, "ymm");
                code.line("vpcmpeqd ymm3, ymm3, ymm3");
                code.line("vpxor ymm0, ymm0, ymm0");
                code.line("vpgatherdd ymm0, [rbx + ymm1], ymm3");
            }
            _ => {
                let at = address(code, Align::Any);
                code.line(format!("vbroadcastsd ymm0, qword ptr {at}"));
                let to = address(code, Align::Any);
                code.line(format!("vextracti128 xmmword ptr {to}, ymm0, 1"));
            }
        }
        code.line("vextracti128 xmm1, ymm0, 1");
        code.line("vpxor xmm0, xmm0, xmm1");
        code.line("vmovq rax, xmm0");
        code.fold("rax");
    });
}

fn avx512(code: &mut Code) {
    where_able(code, 2, |code| {
        match code.random.below(4) {
            0 => {
                let at = address(code, Align::Any);
                code.line(format!("vmovdqu64 zmm0, {at}"));
                let to = address(code, Align::Any);
                code.line(format!("vmovdqu64 {to}, zmm0"));
            }
            1 => {
                let at = address(code, Align::Natural(64));
                code.line("vpbroadcastq zmm0, r15");
                code.line(format!("vpaddq zmm0, zmm0, {at}"));
                let store = *code.random.pick(&["vmovdqa64", "vmovntdq"]);
                code.line(format!("{store} {at}, zmm0"));
            }
            2 => {
                code.line("kmovq k1, r15");
                let at = address(code, Align::Any);
                code.line(format!("vmovdqu8 zmm0{{k1}}{{z}}, {at}"));
                let to = address(code, Align::Any);
                code.line(format!("vmovdqu8 {to}{{k1}}, zmm0"));
            }
            _ => {
                indices(code, "zmm");
                code.line("kmovw k1, r15d");
                code.line("vpbroadcastd zmm0, r13d");
                code.line("vpscatterdd [rbx + zmm1]{k1}, zmm0");
                code.line("kmovw k1, r15d");
                code.line("vpgatherdd zmm0{k1}, [rbx + zmm1]");
            }
        }
        code.line("vextracti64x4 ymm1, zmm0, 1");
        code.line("vpxor ymm0, ymm0, ymm1");
        code.line("vmovq rax, xmm0");
        code.fold("rax");
    });
}

fn x87(code: &mut Code) {
    let from = *code.random.pick(&[
        "fild word",
        "fild dword",
        "fild qword",
        "fld dword",
        "fld qword",
        "fld tbyte",
    ]);
    let to = *code.random.pick(&[
        "fistp word",
        "fistp dword",
        "fistp qword",
        "fstp dword",
        "fstp qword",
        "fstp tbyte",
    ]);
    let at = address(code, Align::Any);
    code.line(format!("{from} ptr {at}"));
    let at = address(code, Align::Any);
    code.line(format!("lea rdi, {at}"));
    code.line(format!("{to} ptr [rdi]"));
    code.line("mov rax, [rdi]");
    code.fold("rax");
}

fn save(code: &mut Code) {
    code.line("movq xmm1, r15");
    point(code, "rdi", Align::Natural(64));
    if code.random.one_in(2) {
        code.line("fxsave64 [rdi]");
        code.line("mov rax, [rdi + 176]");
    } else {
        // Without AVX the processor may not have xsave.
        where_able(code, 1, |code| {
            code.line("mov eax, 6");
            code.line("xor edx, edx");
            code.line("xsave64 [rdi]");
        });
        code.line("mov rax, [rdi + 176]");
    }
    code.fold("rax");
}

/// A system call whose arguments are in place; takes its result into the digest.
fn syscall(code: &mut Code, number: u32) {
    code.line(format!("mov eax, {number}"));
    code.line("syscall");
    code.fold("rax");
}

fn syscall_out(code: &mut Code) {
    match code.random.below(5) {
        0 => {
            point(code, "rdi", Align::Any);
            length(code);
            code.line("mov esi, ecx");
            code.line("xor edx, edx");
            syscall(code, 318); // getrandom
        }
        1 => {
            code.line("mov edi, 1");
            point(code, "rsi", Align::Any);
            syscall(code, 228); // clock_gettime
        }
        2 => {
            code.line("mov edi, [rbp + 40]");
            point(code, "rsi", Align::Any);
            length(code);
            code.line("mov edx, ecx");
            code.line("xor r10d, r10d");
            syscall(code, 17); // pread64
        }
        3 => {
            point(code, "rdi", Align::Any);
            code.line("xor esi, esi");
            syscall(code, 96); // gettimeofday
        }
        _ => {
            code.line("mov edi, [rbp + 32]");
            point(code, "rsi", Align::Any);
            length(code);
            code.line("mov edx, ecx");
            syscall(code, 0); // read from its pipe
        }
    }
}

fn syscall_in(code: &mut Code) {
    code.line("mov edi, [rbp + 36]");
    point(code, "rsi", Align::Any);
    length(code);
    code.line("mov edx, ecx");
    syscall(code, 1); // write into its pipe
    if code.random.one_in(2) {
        code.line("mov edi, [rbp + 32]");
        point(code, "rsi", Align::Any);
        length(code);
        code.line("mov edx, ecx");
        syscall(code, 0); // read from its pipe
        code.line("mov rax, [rsi]");
        code.fold("rax");
    }
}

fn vectored(code: &mut Code) {
    for piece in 0..2 {
        point(code, "rax", Align::Any);
        code.line(format!("mov [r12 + {}], rax", STRUCTURES + 16 * piece));
        length(code);
        code.line(format!("mov [r12 + {}], rcx", STRUCTURES + 16 * piece + 8));
    }
    let out = code.random.one_in(2);
    code.line(format!("mov edi, [rbp + {}]", if out { 36 } else { 32 }));
    code.line(format!("lea rsi, [r12 + {STRUCTURES}]"));
    code.line("mov edx, 2");
    syscall(code, if out { 20 } else { 19 });
}

fn futex(code: &mut Code) {
    const PRIVATE_FLAG: u64 = 128;
    point(code, "rdi", Align::Natural(4));
    if code.random.one_in(2) {
        // Until somebody wakes it, or 20 us are over.
        code.line(format!("mov qword ptr [r12 + {}], 0", STRUCTURES + 64));
        code.line(format!("mov qword ptr [r12 + {}], 20000", STRUCTURES + 72));
        code.line(format!("lea r10, [r12 + {}]", STRUCTURES + 64));
        code.line("mov edx, [rdi]");
        code.line(format!("mov esi, {PRIVATE_FLAG}"));
    } else {
        code.line("mov edx, 2");
        code.line(format!("mov esi, {}", PRIVATE_FLAG + 1));
    }
    syscall(code, 202);
}

fn map(code: &mut Code) {
    let page = 4096 * code.random.below(SHARED / 4096);
    code.line(format!("lea rdi, [rbx + {page}]"));
    code.line("mov esi, 4096");
    if code.random.one_in(2) {
        code.line("mov edx, 4");
        syscall(code, 28); // madvise(MADV_DONTNEED)
    } else {
        code.line("mov edx, 3");
        syscall(code, 10); // mprotect, to what it is
    }
}
