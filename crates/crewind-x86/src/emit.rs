//! Encoding of the few instructions the translator adds to the guest's.

use crate::ctx::{self, COUNTERS, Ctx};
use crate::rights::NO_REG;
use std::io;
use std::mem::offset_of;

/// Where something lies that translated code reads or writes besides guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    /// In the thread's `Ctx`: displacement from FS.
    Thread(i32),
    /// At a fixed address, in reach of rip-relative operands.
    Fixed(u64),
}

impl Cell {
    pub(crate) fn plus(self, n: u32) -> Cell {
        match self {
            Cell::Thread(d) => Cell::Thread(d + n as i32),
            Cell::Fixed(a) => Cell::Fixed(a + u64::from(n)),
        }
    }
}

/// The state that translated code itself keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cells {
    /// The first counter of the clock.
    pub clk: Cell,
    pub scratch: Cell,
    pub target: Cell,
    pub exit_arg: Cell,
    /// Value of the register that checks of rights use.
    pub borrowed: Cell,
    pub fs_base: Cell,
    pub disarm: Cell,
    pub armed_pc: Cell,
    /// Cells that are always beside the cache: the start of its `Hot`.
    pub hot: Cell,
}

/// Cells at a fixed address. A processor forwards stores to loads for free only when the operand has no segment base.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub(crate) struct Hot {
    pub clk: [i64; COUNTERS],
    pub target: u64,
    pub scratch: [u64; 2],
    pub exit_arg: u32,
    /// 0 while somebody wants the thread out of translated code (`Poke`), else 1.
    pub calm: u32,
    /// See `sites`.
    pub disarm: u32,
    /// As in `Ctx`.
    pub armed_pc: u32,
    /// The guest's FS base.
    pub fs_base: u64,
    /// See `guard`.
    pub borrowed: u64,
    /// rax while it holds saved flags.
    pub saved_rax: u64,
    /// The bits of rights that forbid reading.
    pub read_mask: u32,
    /// Arguments and stack of the routine in `rep`.
    pub rep_params: u32,
    pub rep_return: u64,
    pub rep_rsp: u64,
    pub stack: [u64; 8],
}

/// Displacement of the context from FS: the same for every thread of the process, as the context is a thread-local of
/// the executable.
pub(crate) fn ctx_displacement() -> io::Result<i32> {
    let fs: u64;
    // SAFETY: the first word of the TLS block is its own address (x86-64 psABI).
    unsafe {
        core::arch::asm!("mov {}, fs:[0]", out(reg) fs, options(nostack, readonly, preserves_flags));
    }
    let base = (ctx::ctx() as u64).wrapping_sub(fs) as i64;
    i32::try_from(base).ok().filter(|b| *b < 0).ok_or_else(|| {
        io::Error::other("the per-thread context is not in the executable's static TLS block")
    })
}

impl Cells {
    /// Cells in the thread's context.
    pub(crate) fn of_thread(ctx: i32, hot: u64) -> Cells {
        let at = |o: usize| Cell::Thread(ctx + o as i32);
        Cells {
            clk: at(offset_of!(Ctx, clk)),
            scratch: at(offset_of!(Ctx, scratch)),
            target: at(offset_of!(Ctx, target)),
            exit_arg: at(offset_of!(Ctx, exit_arg)),
            borrowed: at(offset_of!(Ctx, scratch) + 16),
            fs_base: at(offset_of!(Ctx, fs_base)),
            disarm: at(offset_of!(Ctx, disarm)),
            armed_pc: at(offset_of!(Ctx, armed_pc)),
            hot: Cell::Fixed(hot),
        }
    }

    /// The counters of the clock.
    pub(crate) fn clocks(&self) -> impl Iterator<Item = Cell> + use<> {
        let first = self.clk;
        (0..COUNTERS as u32).map(move |n| first.plus(8 * n))
    }

    /// Cells of a `Hot` at this address.
    pub(crate) fn fixed(hot: u64) -> Cells {
        let at = |o: usize| Cell::Fixed(hot + o as u64);
        Cells {
            clk: at(offset_of!(Hot, clk)),
            scratch: at(offset_of!(Hot, scratch)),
            target: at(offset_of!(Hot, target)),
            exit_arg: at(offset_of!(Hot, exit_arg)),
            borrowed: at(offset_of!(Hot, borrowed)),
            fs_base: at(offset_of!(Hot, fs_base)),
            disarm: at(offset_of!(Hot, disarm)),
            armed_pc: at(offset_of!(Hot, armed_pc)),
            hot: Cell::Fixed(hot),
        }
    }
}

pub(crate) const RCX: u8 = 1;

/// Conditions of jumps, as in their opcodes.
pub(crate) const EQUAL: u8 = 4;
pub(crate) const NOT_EQUAL: u8 = 5;
pub(crate) const NOT_NEGATIVE: u8 = 9;

/// Encodes `Buf::flagless_update` for an address, without allocating. Returns its length.
pub(crate) fn flagless_update_at(out: &mut [u8; 24], at: u64, clk: Cell, by: i8) -> usize {
    match clk {
        Cell::Thread(disp) => {
            *out = [
                0x64, 0x48, 0x8b, 0x0c, 0x25, 0, 0, 0, 0, // mov rcx, fs:[clk]
                0x48, 0x8d, 0x49, by as u8, // lea rcx, [rcx+by]
                0x64, 0x48, 0x89, 0x0c, 0x25, 0, 0, 0, 0, // mov fs:[clk], rcx
                0, 0,
            ];
            out[5..9].copy_from_slice(&disp.to_le_bytes());
            out[18..22].copy_from_slice(&disp.to_le_bytes());
            22
        }
        Cell::Fixed(addr) => {
            out[..18].copy_from_slice(&[
                0x48, 0x8b, 0x0d, 0, 0, 0, 0, // mov rcx, [clk]
                0x48, 0x8d, 0x49, by as u8, // lea rcx, [rcx+by]
                0x48, 0x89, 0x0d, 0, 0, 0, 0, // mov [clk], rcx
            ]);
            let rel = |end: u64| (addr.wrapping_sub(at.wrapping_add(end)) as i32).to_le_bytes();
            out[3..7].copy_from_slice(&rel(7));
            out[14..18].copy_from_slice(&rel(18));
            18
        }
    }
}

/// Code under construction for a known address.
#[derive(Default)]
pub(crate) struct Buf {
    pub bytes: Vec<u8>,
    /// Address that `bytes[0]` will have.
    pub base: u64,
}

impl Buf {
    pub(crate) fn start(&mut self, base: u64) {
        self.bytes.clear();
        self.base = base;
    }

    /// Address of the next byte.
    pub(crate) fn here(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    pub(crate) fn pos(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn put(&mut self, b: &[u8]) {
        self.bytes.extend_from_slice(b);
    }

    pub(crate) fn put32(&mut self, v: i32) {
        self.put(&v.to_le_bytes());
    }

    /// An instruction with a cell as its operand: REX (0: none), opcode, modrm's reg field, and the length of the
    /// immediate that the caller appends.
    fn cell_op(&mut self, rex: u8, op: u8, reg: u8, cell: Cell, immediate: u64) {
        if let Cell::Thread(_) = cell {
            self.put(&[0x64]);
        }
        if rex != 0 {
            self.put(&[rex]);
        }
        let reg = (reg & 7) << 3;
        match cell {
            Cell::Thread(disp) => {
                self.put(&[op, 0x04 | reg, 0x25]);
                self.put32(disp);
            }
            Cell::Fixed(addr) => {
                self.put(&[op, 0x05 | reg]);
                let rel = addr.wrapping_sub(self.here() + 4 + immediate) as i32;
                self.put32(rel);
            }
        }
    }

    /// Length of `add_one`.
    pub(crate) fn add_one_len(cell: Cell) -> usize {
        match cell {
            Cell::Thread(_) => 10,
            Cell::Fixed(_) => 8,
        }
    }

    /// `mov [cell], reg`
    pub(crate) fn store(&mut self, cell: Cell, reg: u8) {
        self.cell_op(0x48 | (reg >> 3 << 2), 0x89, reg, cell, 0);
    }

    /// `mov reg, [cell]`
    pub(crate) fn load(&mut self, reg: u8, cell: Cell) {
        self.cell_op(0x48 | (reg >> 3 << 2), 0x8b, reg, cell, 0);
    }

    /// `mov reg, dword [cell]`, for the first eight registers.
    pub(crate) fn load32(&mut self, reg: u8, cell: Cell) {
        self.cell_op(0, 0x8b, reg, cell, 0);
    }

    /// As `load32`, for any register.
    pub(crate) fn load32_any(&mut self, reg: u8, cell: Cell) {
        let rex = if reg >= 8 { 0x44 } else { 0 };
        self.cell_op(rex, 0x8b, reg, cell, 0);
    }

    /// `add reg, dword [cell]`
    pub(crate) fn add32(&mut self, reg: u8, cell: Cell) {
        let rex = if reg >= 8 { 0x44 } else { 0 };
        self.cell_op(rex, 0x03, reg, cell, 0);
    }

    /// `shr reg, by` of 32 bits.
    pub(crate) fn shr32(&mut self, reg: u8, by: u8) {
        if reg >= 8 {
            self.put(&[0x41]);
        }
        self.put(&[0xc1, 0xe8 | (reg & 7), by]);
    }

    /// `movzx reg, low byte of from`
    pub(crate) fn movzx8(&mut self, reg: u8, from: u8) {
        self.put(&[
            0x40 | (reg >> 3 << 2) | (from >> 3),
            0x0f,
            0xb6,
            0xc0 | (reg & 7) << 3 | (from & 7),
        ]);
    }

    /// An instruction of 32 bits with the operand `[base + disp]`, or `[disp]` without a base.
    pub(crate) fn memory(&mut self, prefix: &[u8], op: &[u8], reg: u8, base: u8, disp: i32) {
        self.put(prefix);
        let high = (reg >> 3 << 2) | if base == NO_REG { 0 } else { base >> 3 };
        if high != 0 {
            self.put(&[0x40 | high]);
        }
        self.put(op);
        let reg = (reg & 7) << 3;
        match base {
            NO_REG => self.put(&[0x04 | reg, 0x25]),
            b if b & 7 == 4 => self.put(&[0x84 | reg, 0x24]),
            b => self.put(&[0x80 | reg | (b & 7)]),
        }
        self.put32(disp);
    }

    /// `lea reg, [base + index * scale + disp]` of 32 bits. Each of the registers may be missing.
    pub(crate) fn lea32(&mut self, reg: u8, base: u8, index: u8, scale: u8, disp: i32) {
        let bit = |r: u8, at: u8| {
            if r == NO_REG { 0 } else { r >> 3 << at }
        };
        let rex = bit(reg, 2) | bit(index, 1) | bit(base, 0);
        if rex != 0 {
            self.put(&[0x40 | rex]);
        }
        let r = (reg & 7) << 3;
        if index == NO_REG && disp == 0 && base != NO_REG {
            // mov
            self.put(&[0x8b, 0xc0 | r | (base & 7)]);
            return;
        }
        self.put(&[0x8d]);
        let short = i8::try_from(disp);
        let mode = match (base, short) {
            (NO_REG, _) => 0,
            (b, Ok(0)) if b & 7 != 5 => 0,
            (_, Ok(_)) => 0x40,
            _ => 0x80,
        };
        let needs_sib = index != NO_REG || base == NO_REG || base & 7 == 4;
        if needs_sib {
            let x = if index == NO_REG { 4 } else { index & 7 };
            let b = if base == NO_REG { 5 } else { base & 7 };
            let s = scale.trailing_zeros() as u8;
            self.put(&[mode | r | 4, s << 6 | x << 3 | b]);
        } else {
            self.put(&[mode | r | (base & 7)]);
        }
        match (base, mode, short) {
            (NO_REG, ..) => self.put32(disp),
            (_, 0, _) => {}
            (_, 0x40, Ok(d)) => self.put(&[d as u8]),
            _ => self.put32(disp),
        }
    }

    /// Sets the four bytes at `pos`, a jump's displacement, to lead here.
    pub(crate) fn rel32_here(&mut self, pos: usize) {
        let rel = (self.bytes.len() - pos - 4) as i32;
        if let Some(f) = self.bytes.get_mut(pos..pos + 4) {
            f.copy_from_slice(&rel.to_le_bytes());
        }
    }

    /// `mov dword [cell], imm`
    pub(crate) fn store_imm(&mut self, cell: Cell, imm: u32) {
        self.cell_op(0, 0xc7, 0, cell, 4);
        self.put32(imm as i32);
    }

    /// `add qword [cell], 1`
    pub(crate) fn add_one(&mut self, cell: Cell) {
        self.add(cell, 1);
    }

    /// `add qword [cell], by`
    pub(crate) fn add(&mut self, cell: Cell, by: i8) {
        self.cell_op(0x48, 0x83, 0, cell, 1);
        self.put(&[by as u8]);
    }

    /// `cmp dword [cell], 0`
    pub(crate) fn compare_zero(&mut self, cell: Cell) {
        self.cell_op(0, 0x83, 7, cell, 1);
        self.put(&[0]);
    }

    /// Advances the clock through rcx without touching flags: `mov rcx, [clk]; lea rcx, [rcx+by]; mov [clk], rcx`.
    pub(crate) fn flagless_update(&mut self, clk: Cell, by: i8) {
        let mut code = [0u8; 24];
        let n = flagless_update_at(&mut code, self.here(), clk, by);
        self.put(code.get(..n).unwrap_or(&code));
    }

    /// `mov reg, imm`, the shortest form.
    pub(crate) fn mov_imm(&mut self, reg: u8, imm: u64) {
        if let Ok(v) = u32::try_from(imm) {
            if reg >= 8 {
                self.put(&[0x41]);
            }
            self.put(&[0xb8 | (reg & 7)]);
            self.put32(v as i32);
        } else {
            self.put(&[0x48 | (reg >> 3), 0xb8 | (reg & 7)]);
            self.put(&imm.to_le_bytes());
        }
    }

    /// `jmp rel32` to a fixed place of the cache.
    pub(crate) fn jmp_to(&mut self, to: u64) {
        self.put(&[0xe9]);
        let rel = to.wrapping_sub(self.here() + 4) as i32;
        self.put32(rel);
    }

    /// Nops so that a four-byte field that starts `ahead` bytes from here lies in one cache line: it is patched while
    /// other threads run it. Returns how many.
    pub(crate) fn align_field(&mut self, ahead: usize) -> usize {
        let field = self.here() + ahead as u64;
        let over = (field & 63) as usize;
        if over <= 60 {
            return 0;
        }
        let pad = 64 - over;
        self.put(match pad {
            1 => &[0x90],
            2 => &[0x66, 0x90],
            _ => &[0x0f, 0x1f, 0x00],
        });
        pad
    }

    /// Filling, so that what stands `ahead` bytes from here is aligned: predicting the branches of an indirect entry gets
    /// slow where they straddle (fib 1.5x -> 2.8x in bad luck).
    pub(crate) fn align_entry(&mut self, ahead: u64) {
        while !(self.here() + ahead).is_multiple_of(16) {
            self.put(&[0xcc]);
        }
    }

    /// A jump with a condition (as in its opcode) to the place at `pos`; `None`: in any case.
    pub(crate) fn jump_back(&mut self, cc: Option<u8>, pos: usize) {
        match cc {
            Some(cc) => self.put(&[0x0f, 0x80 | cc]),
            None => self.put(&[0xe9]),
        }
        let rel = pos as i64 - (self.pos() as i64 + 4);
        self.put32(rel as i32);
    }

    /// A jump with a condition to a place that comes later; `rel32_here` sets it. Returns its field.
    pub(crate) fn jump_ahead(&mut self, cc: u8) -> usize {
        self.put(&[0x0f, 0x80 | cc]);
        self.put32(0);
        self.pos() - 4
    }

    /// A jump that is taken unless rcx is 0, without looking at flags. Returns its field as `jump_ahead` does.
    pub(crate) fn jump_ahead_unless_rcx_is_0(&mut self) -> usize {
        // jrcxz over a jump
        self.put(&[0xe3, 5, 0xe9]);
        self.put32(0);
        self.pos() - 4
    }

    /// `lea rcx, [rcx + disp]`
    pub(crate) fn add_to_rcx(&mut self, disp: i32) {
        self.put(&[0x48, 0x8d, 0x89]);
        self.put32(disp);
    }

    /// Nops, so that what follows is at a multiple of 16. Returns how many bytes.
    pub(crate) fn align_loop(&mut self) -> usize {
        let pad = self.here().wrapping_neg() as usize & 15;
        let mut left = pad;
        while left > 0 {
            let nop: &[u8] = match left {
                1 => &[0x90],
                2 => &[0x66, 0x90],
                3 => &[0x0f, 0x1f, 0x00],
                4..7 => &[0x0f, 0x1f, 0x40, 0x00],
                _ => &[0x0f, 0x1f, 0x80, 0, 0, 0, 0],
            };
            self.put(nop);
            left -= nop.len();
        }
        pad
    }

    /// A short jump back to the place at `pos`.
    pub(crate) fn short_back(&mut self, op: u8, pos: usize) {
        let rel = pos as isize - (self.pos() as isize + 2);
        debug_assert!(rel >= -128);
        self.put(&[op, rel as i8 as u8]);
    }

    /// Sets the byte at `pos`, a short jump's displacement, to lead here.
    pub(crate) fn short_here(&mut self, pos: usize) {
        let rel = self.bytes.len() - pos - 1;
        debug_assert!(rel < 128, "short jump over {rel} bytes");
        if let Some(b) = self.bytes.get_mut(pos) {
            *b = rel as u8;
        }
    }
}
