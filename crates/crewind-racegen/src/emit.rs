//! Programs, threads and their loops as assembly; the instructions themselves are in `ops`.

use std::fmt::Write as _;

use crate::Options;
use crate::ops::{self, Kind};
use crate::random::Random;

/// Bytes that all threads use. A page of slack follows, for accesses that begin near the end.
pub const SHARED: u64 = 4 * 4096;
/// Before them: pointers to functions, which nothing but exchanges of pointers writes.
pub const TABLE: u64 = 4096;
/// Bytes of each thread's own; loop counters and structures for system calls lie behind `SHARED` of them.
pub const PRIVATE: u64 = SHARED + 2 * 4096;
/// In private memory: counters of inner loops.
pub const COUNTERS: u64 = SHARED + 4096;
/// In private memory: structures that system calls take.
pub const STRUCTURES: u64 = COUNTERS + 512;
/// Functions that a program can call through pointers.
pub const TARGETS: u64 = 4;
/// Threads that have code of their own; as in `runtime.c`.
const FUNCTIONS: u64 = 8;

/// Assembly being written.
///
/// Registers: rbx shared memory, r12 private memory, r13 digest, r14 rounds left, r15 walk, rbp context. The others are
/// free between instructions.
pub struct Code {
    /// The text so far.
    pub text: String,
    /// Random numbers of this thread's code.
    pub random: Random,
    /// Places that the program's threads like to meet in.
    pub hot: Vec<u64>,
    /// Whether handlers may run, on the stack that the thread has.
    pub signals: bool,
    label: u64,
}

impl Code {
    /// One line.
    pub fn line(&mut self, line: impl AsRef<str>) {
        self.text.push_str("    ");
        self.text.push_str(line.as_ref());
        self.text.push('\n');
    }

    /// A label that was not used before, in the whole file.
    pub fn new_label(&mut self) -> String {
        self.label += 1;
        format!(".L{}", self.label)
    }

    /// Puts a label here.
    pub fn place(&mut self, label: &str) {
        let _ = writeln!(self.text, "{label}:");
    }

    /// Takes a 64-bit register into the digest.
    pub fn fold(&mut self, register: &str) {
        self.line(format!("xor r13, {register}"));
        self.line("imul r13, r13, 0x1e3779b1");
        self.line("ror r13, 23");
    }

    /// Goes on in the walk, so that addresses and values change from round to round.
    pub fn step(&mut self) {
        self.line("lea r15, [r15 + r15*4 + 0x3039]");
        if self.random.one_in(3) {
            self.line("rol r15, 7");
        }
        // What was read decides where to go: one wrong value and everything after is wrong.
        if self.random.one_in(3) {
            self.line("add r15, r13");
        }
    }
}

/// All programs of one file.
pub fn assembly(options: &Options) -> String {
    let kinds: Vec<Kind> = Kind::ALL
        .iter()
        .copied()
        .filter(|k| !options.without.contains(k))
        .collect();
    let mut text = String::from("    .intel_syntax noprefix\n    .text\n");
    let mut table = String::from(
        "    .section .data.rel.ro, \"aw\"\n    .balign 16\n    .globl programs\nprograms:\n",
    );
    let mut label = 0;
    for program in 0..options.programs {
        let mut random = Random::new(options.seed.wrapping_mul(1_000_003).wrapping_add(program));
        let threads = random.between(2, FUNCTIONS);
        let signals = random.one_in(4) && !options.without_signals;
        let hot = hot_places(&mut random);
        let _ = writeln!(
            table,
            "    .quad {threads}, {:#x}, {}",
            random.next(),
            u64::from(signals)
        );
        // A program prefers a few kinds, so that each gets programs full of it.
        let preferred: Vec<Kind> = (0..4)
            .filter(|_| !kinds.is_empty())
            .map(|_| *random.pick(&kinds))
            .collect();
        for thread in 0..threads {
            let mut code = Code {
                text: std::mem::take(&mut text),
                random: Random::new(random.next()),
                hot: hot.clone(),
                signals,
                label,
            };
            let name = format!("p{program}t{thread}");
            body(&mut code, &name, &kinds, &preferred);
            text = code.text;
            label = code.label;
            let _ = writeln!(table, "    .quad {name}");
        }
        for _ in threads..FUNCTIONS {
            table.push_str("    .quad 0\n");
        }
        for target in 0..TARGETS {
            // They keep to rax, and to the shared word in rdi.
            let name = format!("p{program}f{target}");
            let _ = writeln!(
                text,
                "{name}:\n    add rax, {}\n    add dword ptr [rbx + {}], {}\n    ret",
                random.below(1000),
                random.pick(&hot),
                target + 1
            );
            let _ = writeln!(table, "    .quad {name}");
        }
    }
    let _ = write!(
        table,
        "    .globl program_count, shared_size, table_size, private_size\nprogram_count: .quad {}\nshared_size: .quad {SHARED}\n\
         table_size: .quad {TABLE}\nprivate_size: .quad {PRIVATE}\n    .section .note.GNU-stack, \"\", @progbits\n",
        options.programs
    );
    text + &table
}

/// Places where threads meet: several in one line, at line borders, at page borders, somewhere.
fn hot_places(random: &mut Random) -> Vec<u64> {
    let line = random.below(SHARED / 64 - 2) * 64;
    let page = random.between(1, 3) * 4096;
    let mut places: Vec<u64> = (0..4).map(|_| line + random.below(64)).collect();
    places.push(line + 64 - random.between(1, 15));
    places.extend((0..3).map(|_| page - random.between(1, 70)));
    places.extend((0..3).map(|_| random.below(SHARED - 64)));
    places
}

/// One thread's function.
fn body(code: &mut Code, name: &str, kinds: &[Kind], preferred: &[Kind]) {
    code.place(name);
    for register in ["rbx", "rbp", "r12", "r13", "r14", "r15"] {
        code.line(format!("push {register}"));
    }
    // Calls find the stack aligned, and pushes of memory have room.
    code.line("sub rsp, 72");
    code.line("mov rbp, rdi");
    code.line("mov rbx, [rbp]");
    code.line("mov r12, [rbp + 8]");
    code.line("mov r13, [rbp + 16]");
    code.line("mov r15, [rbp + 24]");
    // Registers may hold addresses, which differ from run to run, and xsave shows them.
    for register in 0..16 {
        code.line(format!("pxor xmm{register}, xmm{register}"));
    }
    let able = code.new_label();
    code.line("test byte ptr [rip + features], 1");
    code.line(format!("jz {able}"));
    code.line("vzeroall");
    code.place(&able);
    let rounds = code.random.between(20, 200);
    code.line(format!("mov r14d, {rounds}"));
    let again = code.new_label();
    code.place(&again);
    let mut left = code.random.between(6, 30);
    while left > 0 {
        let inner = code.random.between(1, left.min(6));
        left -= inner;
        if code.random.one_in(4) {
            inner_loop(code, inner, kinds, preferred);
        } else {
            sequence(code, inner, kinds, preferred);
        }
    }
    code.line("dec r14");
    code.line(format!("jnz {again}"));
    code.line("mov [rbp + 16], r13");
    code.line("add rsp, 72");
    for register in ["r15", "r14", "r13", "r12", "rbp", "rbx"] {
        code.line(format!("pop {register}"));
    }
    code.line("ret");
}

fn sequence(code: &mut Code, length: u64, kinds: &[Kind], preferred: &[Kind]) {
    for _ in 0..length {
        let from = if code.random.one_in(2) {
            preferred
        } else {
            kinds
        };
        if from.is_empty() {
            continue;
        }
        let kind = *code.random.pick(from);
        ops::emit(code, kind);
        code.step();
    }
}

/// A few rounds of a short loop: what is executed often is translated differently.
fn inner_loop(code: &mut Code, length: u64, kinds: &[Kind], preferred: &[Kind]) {
    let rounds = code.random.between(2, 8);
    let counter = format!(
        "dword ptr [r12 + {}]",
        COUNTERS + 4 * code.random.below(100)
    );
    code.line(format!("mov {counter}, {rounds}"));
    let again = code.new_label();
    code.place(&again);
    sequence(code, length, kinds, preferred);
    code.line(format!("dec {counter}"));
    code.line(format!("jnz {again}"));
}
