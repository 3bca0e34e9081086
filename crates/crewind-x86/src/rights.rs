//! The table of rights of a vcpu, which translated code looks at before each access to guest memory.
//!
//! One byte per granule of 64 bytes. Addresses that differ by a multiple of 4 GB share a byte: what the one allows the
//! other gets as well, so whoever sets a byte decides for all of them.

use crate::ctx::Ctx;
use iced_x86::{Instruction, Mnemonic, Register};

/// Reading is forbidden.
pub const NO_READ: u8 = 1;
/// Writing is forbidden. Whatever may not be read may not be written either, so this bit is set with `NO_READ`.
pub const NO_WRITE: u8 = 2;
/// Bytes of guest memory that one byte stands for.
pub const GRANULE: u64 = 64;
/// Bytes of a table, without the slack behind it.
pub const RIGHTS_LEN: usize = 1 << 26;
/// Bytes behind the table that are mapped too: a check may look at a few more bytes than it needs.
pub const RIGHTS_SLACK: usize = 4096;

/// Where in the table the granule of an address is.
pub const fn index(addr: u64) -> usize {
    (addr as u32 >> 6) as usize
}

/// The same where a byte stands for a page: addresses that differ by a multiple of 256 GB share it.
pub const fn page_index(addr: u64) -> usize {
    (addr >> PAGE_SHIFT) as usize & (RIGHTS_LEN - 1)
}

/// log2 of the bytes of a page.
pub const PAGE_SHIFT: u32 = 12;

/// Guest memory that an instruction is about to access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CheckedRange {
    /// First byte.
    pub addr: u64,
    /// Number of bytes, not 0.
    pub len: u64,
    /// It is written.
    pub write: bool,
    /// It is read.
    pub read: bool,
}

/// No register.
pub(crate) const NO_REG: u8 = 0xff;

/// An address as a function of the general registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Operand {
    pub base: u8,
    pub index: u8,
    pub scale: u8,
    /// Relative to the guest's FS base.
    pub fs: bool,
    /// The sum is cut to 32 bits.
    pub addr32: bool,
    /// The index is the low byte of its register (`xlat`).
    pub index8: bool,
    pub disp: i64,
}

impl Operand {
    /// The address does not depend on registers.
    pub(crate) fn is_static(&self) -> bool {
        self.base == NO_REG && self.index == NO_REG && !self.fs
    }

    /// The registers it is made of, as a set.
    pub(crate) fn registers(&self) -> u16 {
        [self.base, self.index]
            .into_iter()
            .filter(|r| *r != NO_REG)
            .fold(0, |all, r| all | 1 << r)
    }

    fn address(&self, ctx: &Ctx) -> u64 {
        let reg = |r: u8| ctx.gpr.get(usize::from(r)).copied().unwrap_or(0);
        let mut index = reg(self.index);
        if self.index8 {
            index &= 0xff;
        }
        let sum = reg(self.base)
            .wrapping_add(index.wrapping_mul(u64::from(self.scale)))
            .wrapping_add(self.disp as u64);
        let sum = if self.addr32 { sum & 0xffff_ffff } else { sum };
        sum.wrapping_add(if self.fs { ctx.fs_base } else { 0 })
    }
}

/// A range that needs rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Test {
    pub at: Operand,
    pub len: u32,
    pub read: bool,
    pub write: bool,
}

impl Test {
    pub(crate) fn range(&self, ctx: &Ctx) -> CheckedRange {
        CheckedRange {
            addr: self.at.address(ctx),
            len: u64::from(self.len),
            write: self.write,
            read: self.read,
        }
    }
}

/// What an instruction accesses besides fixed ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    None,
    /// A string instruction that repeats.
    Rep(Rep),
    /// The ranges depend on vector registers or bit offsets: emitted code always asks.
    Ask,
}

/// A string instruction that repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rep {
    /// log2 of the element's size.
    pub shift: u8,
    /// Whether [rsi] is read.
    pub source: bool,
    /// What is done to [rdi].
    pub dest: Dest,
    pub addr32: bool,
    /// [rsi] is relative to the FS base.
    pub fs: bool,
}

/// What a string instruction does to [rdi].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dest {
    None,
    Read,
    Write,
}

/// Addresses of programs end here.
const TOP: u64 = 1 << 47;
const RSI: usize = 6;
const RDI: usize = 7;
const DIRECTION: u64 = 0x400;

/// Ranges of a repeated string instruction with the registers of `ctx`: everything up to the count, of which a
/// comparison may use less.
pub(crate) fn rep_ranges(rep: &Rep, ctx: &Ctx, out: &mut Vec<CheckedRange>) {
    let cut = |v: u64| if rep.addr32 { v & 0xffff_ffff } else { v };
    let count = cut(ctx.gpr[1]);
    if count == 0 {
        return;
    }
    let size = 1u64 << rep.shift;
    let len = count.saturating_mul(size).min(TOP);
    let mut add = |at: u64, write: bool| {
        // Downwards the last element comes first.
        let (addr, len) = if ctx.rflags & DIRECTION == 0 {
            (at, len.min(TOP.saturating_sub(at)).max(size))
        } else {
            let end = at.saturating_add(size);
            (end.saturating_sub(len), len.min(end))
        };
        out.push(CheckedRange {
            addr,
            len,
            write,
            read: !write,
        });
    };
    if rep.source {
        let fs = if rep.fs { ctx.fs_base } else { 0 };
        add(cut(ctx.gpr[RSI]).wrapping_add(fs), false);
    }
    match rep.dest {
        Dest::None => {}
        Dest::Read => add(cut(ctx.gpr[RDI]), false),
        Dest::Write => add(cut(ctx.gpr[RDI]), true),
    }
}

fn gpr(ctx: &Ctx, r: Register) -> u64 {
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

/// Element `n` of a vector register, of `size` bytes.
fn element(ctx: &Ctx, r: Register, n: usize, size: usize) -> u64 {
    let bytes = ctx.vec.zmm.get(r.number());
    let mut v = [0u8; 8];
    if let (Some(b), Some(v)) = (
        bytes.and_then(|z| z.get(n * size..(n + 1) * size)),
        v.get_mut(..size),
    ) {
        v.copy_from_slice(b);
    }
    u64::from_le_bytes(v)
}

/// Ranges of an instruction of kind `Special::Ask`.
pub(crate) fn asked_ranges(i: &Instruction, ctx: &Ctx, write: bool, out: &mut Vec<CheckedRange>) {
    let Some(op) = (0..i.op_count()).find(|n| i.op_kind(*n) == iced_x86::OpKind::Memory) else {
        return;
    };
    let address = |n: usize| {
        i.virtual_address(op, n, |reg, n, size| {
            Some(match reg {
                Register::FS => ctx.fs_base,
                Register::ES | Register::CS | Register::SS | Register::DS | Register::GS => 0,
                r if r.is_vector_register() => {
                    let v = element(ctx, r, n, size);
                    // Offsets are signed.
                    if size == 4 {
                        v as u32 as i32 as i64 as u64
                    } else {
                        v
                    }
                }
                r => gpr(ctx, r),
            })
        })
        .unwrap_or(0)
    };
    if !i.is_vsib() {
        bit_range(i, ctx, address(0), out);
        return;
    }
    let offset = if i.is_vsib64() { 8 } else { 4 };
    let size = i.memory_size().size().max(1);
    let offsets = i.memory_index().size() / offset;
    let (mut data, mut mask) = (usize::MAX, None);
    for n in (0..i.op_count()).filter(|n| *n != op) {
        let r = i.op_register(n);
        if !r.is_vector_register() {
            continue;
        }
        data = data.min(r.size() / size);
        // The third operand of the AVX2 forms is the mask: the sign bits of elements as large as the data.
        if n == 2 {
            mask = Some(r);
        }
    }
    for n in 0..offsets.min(data) {
        let wanted = match (mask, i.op_mask()) {
            (Some(m), _) => element(ctx, m, n, size) >> (8 * size - 1) & 1 != 0,
            (None, Register::None) => true,
            (None, k) => ctx.vec.k.get(k.number()).copied().unwrap_or(!0) >> n & 1 != 0,
        };
        if wanted {
            out.push(CheckedRange {
                addr: address(n),
                len: size as u64,
                write,
                read: !write,
            });
        }
    }
}

/// The range of `bt` and the like with a bit offset in a register, which reaches beyond the operand.
fn bit_range(i: &Instruction, ctx: &Ctx, base: u64, out: &mut Vec<CheckedRange>) {
    let r = i.op1_register();
    let size = r.size().max(2) as u32;
    let bits = 8 * size;
    let offset = (gpr(ctx, r) << (64 - bits)) as i64 >> (64 - bits);
    let words = offset >> bits.trailing_zeros();
    let write = i.mnemonic() != Mnemonic::Bt;
    let mut addr = base.wrapping_add((words * i64::from(size)) as u64);
    if crate::checks::is_addr32(i) {
        addr &= 0xffff_ffff;
    }
    out.push(CheckedRange {
        addr,
        len: u64::from(size),
        write,
        read: true,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rep(dest: Dest, source: bool, shift: u8) -> Rep {
        Rep {
            shift,
            source,
            dest,
            addr32: false,
            fs: false,
        }
    }

    #[test]
    fn repeated_strings_have_the_range_of_their_count() {
        let mut c = Ctx::new();
        (c.gpr[1], c.gpr[6], c.gpr[7]) = (10, 0x1000, 0x2000);
        let mut out = Vec::new();
        rep_ranges(&rep(Dest::Write, true, 2), &c, &mut out);
        let ranges: Vec<_> = out.iter().map(|r| (r.addr, r.len, r.write)).collect();
        assert_eq!(ranges, [(0x1000, 40, false), (0x2000, 40, true)]);
        c.rflags |= DIRECTION;
        out.clear();
        rep_ranges(&rep(Dest::Read, false, 3), &c, &mut out);
        let ranges: Vec<_> = out.iter().map(|r| (r.addr, r.len, r.write)).collect();
        assert_eq!(ranges, [(0x2008 - 80, 80, false)]);
        c.gpr[1] = 0;
        out.clear();
        rep_ranges(&rep(Dest::Write, true, 0), &c, &mut out);
        assert!(out.is_empty());
        // The length of a string, the old way.
        c.gpr[1] = u64::MAX;
        c.rflags = 0;
        rep_ranges(&rep(Dest::Read, false, 0), &c, &mut out);
        assert_eq!((out[0].addr, out[0].len), (0x2000, TOP - 0x2000));
    }

    #[test]
    fn a_register_that_is_base_and_index_counts_once() {
        let mut at = Operand {
            base: 2,
            index: 2,
            scale: 1,
            fs: false,
            addr32: false,
            index8: false,
            disp: 0,
        };
        assert_eq!(at.registers(), 1 << 2);
        (at.base, at.index) = (NO_REG, 15);
        assert_eq!(at.registers(), 1 << 15);
    }

    #[test]
    fn indices_alias_every_four_gigabytes() {
        assert_eq!(index(0), 0);
        assert_eq!(index(127), 1);
        assert_eq!(index(0x1_0000_0040), 1);
        assert_eq!(index(u64::MAX), RIGHTS_LEN - 1);
    }
}
