//! What two states of the same program differ in. Pure.

use super::wire::Regs;
use crate::fpstate;
use std::fmt::Write;

/// Names of the general registers, in the order of their numbers.
pub const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// The arithmetic flags.
pub const ARITHMETIC: u64 = 0x8d5;
/// Flags that belong to the guest: the arithmetic ones, DF, AC, ID.
pub const GUEST_FLAGS: u64 = ARITHMETIC | 0x24_0400;

/// One line per register that differs.
pub fn registers(want: &Regs, found: &Regs, flags: u64) -> Vec<String> {
    let mut out = Vec::new();
    let mut line = |name: &str, a: u64, b: u64| {
        if a != b {
            out.push(format!(
                "{name}: translated {a:#x}, native {b:#x}, bits that differ {:#x}",
                a ^ b
            ));
        }
    };
    for ((name, a), b) in NAMES.iter().zip(want.gpr).zip(found.gpr) {
        line(name, a, b);
    }
    line("rip", want.rip, found.rip);
    line("clock", want.clock, found.clock);
    line("fs base", want.fs_base, found.fs_base);
    line("flags", want.rflags & flags, found.rflags & flags);
    out
}

/// A field of a floating point image.
struct Field {
    name: String,
    at: usize,
    len: usize,
}

/// The fields that are the guest's. The x87 instruction and data pointers are not: they are addresses of code,
/// which differ, and the runtime shows zeros for them.
fn fields() -> Vec<Field> {
    let mut out = Vec::new();
    let mut add = |name: String, at, len| out.push(Field { name, at, len });
    add("x87 control word".into(), 0, 2);
    add("x87 status word".into(), 2, 2);
    add("x87 tags".into(), 4, 1);
    add("mxcsr".into(), 24, 4);
    for i in 0..8 {
        add(format!("st({i})"), 32 + 16 * i, 10);
    }
    for i in 0..16 {
        add(format!("xmm{i}"), 160 + 16 * i, 16);
    }
    for (component, at) in fpstate::layout().components() {
        let (name, first, count, len) = match component {
            2 => ("upper half of ymm", 0, 16, 16),
            5 => ("k", 0, 8, 8),
            6 => ("upper half of zmm", 0, 16, 32),
            _ => ("zmm", 16, 16, 64),
        };
        for i in 0..count {
            add(format!("{name}{}", first + i), at + len * i, len);
        }
    }
    out
}

/// Copies the guest's fields and nothing else.
pub fn take_over(image: &mut [u8], from: &[u8]) {
    for f in fields() {
        let range = f.at..f.at + f.len;
        if let (Some(to), Some(from)) = (image.get_mut(range.clone()), from.get(range)) {
            to.copy_from_slice(from);
        }
    }
}

/// One line per floating point or vector register that differs.
pub fn vectors(want: &[u8], found: &[u8]) -> Vec<String> {
    if same_vectors(want, found) {
        return Vec::new();
    }
    let differs = |f: &Field| {
        let range = f.at..f.at + f.len;
        let (a, b) = (want.get(range.clone())?, found.get(range)?);
        (a != b).then(|| format!("{}: translated {}, native {}", f.name, number(a), number(b)))
    };
    fields().iter().filter_map(differs).collect()
}

/// The common case, without names.
fn same_vectors(want: &[u8], found: &[u8]) -> bool {
    const HEADER: std::ops::Range<usize> = 512..576;
    let part = |r: std::ops::Range<usize>| want.get(r.clone()) == found.get(r);
    let size = fpstate::layout().size;
    part(0..5)
        && part(24..28)
        && (0..8).all(|i| part(32 + 16 * i..42 + 16 * i))
        && part(160..416)
        && fpstate::layout().components().all(|(component, at)| {
            let len = match component {
                2 => 256,
                5 => 64,
                6 => 512,
                _ => 1024,
            };
            at >= HEADER.end && at + len <= size && part(at..at + len)
        })
}

/// A little-endian number in hexadecimal.
fn number(bytes: &[u8]) -> String {
    let mut s = String::from("0x");
    for b in bytes.iter().rev() {
        let _ = write!(s, "{b:02x}");
    }
    s
}

/// All registers, four a line.
pub fn show(r: &Regs) -> String {
    let mut s = String::new();
    for (i, (name, v)) in NAMES.iter().zip(r.gpr).enumerate() {
        let _ = write!(
            s,
            "{}{name:>3} {v:016x}",
            if i % 4 == 0 { "\n    " } else { "  " }
        );
    }
    let _ = write!(
        s,
        "\n    rip {:016x}  flags {:x}  fs base {:x}  clock {}",
        r.rip, r.rflags, r.fs_base, r.clock
    );
    s
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_live_flags_count() {
        let a = Regs {
            rflags: 0x246,
            ..Regs::default()
        };
        let b = Regs {
            rflags: 0x247,
            ..Regs::default()
        };
        assert!(registers(&a, &b, GUEST_FLAGS & !1).is_empty());
        assert_eq!(registers(&a, &b, GUEST_FLAGS).len(), 1);
        let mut c = a;
        c.gpr[3] = 5;
        assert!(registers(&a, &c, GUEST_FLAGS)[0].starts_with("rbx: translated 0x0, native 0x5"));
    }

    #[test]
    fn every_vector_field_counts_and_nothing_else() {
        let size = fpstate::frame_size();
        let want = vec![0u8; size];
        let counted: usize = fields().iter().map(|f| f.len).sum();
        let mut seen = 0;
        for at in 0..size {
            let mut found = want.clone();
            found[at] = 1;
            let told = vectors(&want, &found);
            assert!(told.len() <= 1);
            seen += told.len();
            let mut copy = want.clone();
            take_over(&mut copy, &found);
            assert_eq!(copy != want, !told.is_empty());
        }
        assert_eq!(seen, counted);
    }
}
