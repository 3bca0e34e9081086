//! Emits the checks of rights that `checks` plans.
//!
//! A check is a few instructions before a guest instruction: the address into a scratch register, from it the place
//! in the table, a look at the granule there and the one behind it, a jump if either lacks the right. What is jumped
//! to lies behind the translation: it looks at exactly the granules of the range and goes back, or leaves with
//! everything as it was before the check.
//!
//! The scratch register's value is kept in the cell `borrowed` from the first check that uses it to the instruction
//! that needs it back, or until an instruction sets it anyway; `recover` knows. Where flags are dead a check may destroy
//! them, as the clock's update does; else it works with `rorx`, `pext` and `jrcxz`, or saves the flags in rax.

use crate::checks::{Checked, FOUR_GRANULES, TWO_GRANULES};
use crate::emit::{Cell, NOT_EQUAL, RCX};
use crate::insn::Class;
use crate::recover::Owed;
use crate::rights::Dest;
use crate::rights::{GRANULE, NO_READ, NO_REG, NO_WRITE, Operand, Rep, Special, Test};
use crate::translate::{Dec, Purpose, Translator};
use iced_x86::Instruction;

const RAX: u8 = 0;

/// How checks look at the table while flags are alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlagFree {
    /// With `rorx` and `pext`.
    Fast,
    /// With `rorx`; `pext` is microcode.
    NoPext,
    /// Flags are saved in rax.
    Save,
}

impl FlagFree {
    /// What suits this machine.
    pub(crate) fn host() -> FlagFree {
        if !std::arch::is_x86_feature_detected!("bmi2") {
            return FlagFree::Save;
        }
        // AMD before Zen 3 (family 0x19) takes some 20 to 300 cycles for a pext.
        let sign = crate::cpuid::host(1, 0).eax;
        let family = (sign >> 8 & 15) + (sign >> 20 & 255);
        if crate::cpuid::is_amd() && family < 0x19 {
            FlagFree::NoPext
        } else {
            FlagFree::Fast
        }
    }
}

/// Where the table of rights and the cells of checks are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard {
    /// Address of the table, below 2 GB.
    pub table: u64,
    /// Its bytes stand for pages, and keys guard all accesses of instructions that a fault leaves undone.
    pub pages: bool,
    pub flag_free: FlagFree,
}

/// A place where a check may leave.
#[derive(Clone, Debug)]
pub(crate) struct CheckSite {
    pub pc: u64,
    pub frag: u32,
    /// Host address behind the check.
    pub resume: u64,
    /// Register that is in the cell `borrowed` there, or `NO_REG`.
    pub held: u8,
    /// The ranges, among all tests: what must hold behind the check.
    pub tests: std::ops::Range<u32>,
    /// Ranges that only the instruction itself tells.
    pub special: Option<Box<Asked>>,
    /// What the clock is ahead by.
    pub owed: Option<Owed>,
}

/// An instruction whose ranges are not fixed.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub kind: Special,
    pub insn: Instruction,
    pub write: bool,
}

/// Number of the check of a translation that `step` made; those of others count from 0.
pub(crate) const STEP_CHECK: u32 = u32::MAX - 1;

/// Code behind the translation that looks exactly.
struct Side {
    /// The rel32 field that leads here.
    from: usize,
    back: usize,
    test: Test,
    way: Way,
    /// Of the translation's checks.
    site: usize,
}

/// A check's scratch register and what it must leave alone.
#[derive(Clone, Copy)]
struct Way {
    reg: u8,
    flags_dead: bool,
}

/// Jumps to the code that leaves at a check.
struct Fail {
    from: Vec<usize>,
    /// Register to take from the cell `borrowed`.
    held: Option<u8>,
    id: u32,
}

/// What the emission of checks keeps during a translation.
#[derive(Default)]
pub(crate) struct Checks {
    pub sites: Vec<CheckSite>,
    pub tests: Vec<Test>,
    /// The register whose value is in the cell `borrowed`.
    pub held: Option<u8>,
    /// It stays there: nothing else uses the register.
    pub pinned: bool,
    sides: Vec<Side>,
    fails: Vec<Fail>,
    /// At least as many bytes as `finish_checks` will emit.
    pub behind: usize,
}

/// Most bytes of one exact look with its jump.
const LOOK: usize = 70;
/// Most bytes of the code that leaves at a check.
const FAIL: usize = 22;

impl Checks {
    pub(crate) fn start(&mut self) {
        self.sites.clear();
        self.tests.clear();
        self.sides.clear();
        self.fails.clear();
        self.held = None;
        self.pinned = false;
        self.behind = 0;
    }
}

/// Granules that a look at the table covers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    One,
    Two,
    Four,
}

/// What is looked at.
#[derive(Clone, Copy)]
enum At {
    /// The granule of the operand plus this.
    Operand(Operand, i64),
    /// A place in the table.
    Index(u64),
}

impl Translator {
    fn guarded(&self) -> bool {
        self.guard.is_some() && !self.unchecked
    }

    /// Plans the checks of what was decoded.
    pub(crate) fn plan_checks(&mut self, src: &dyn crate::api::CodeSource) {
        self.checks.start();
        if !self.guarded() {
            return;
        }
        let dead = self.options.flags_liveness && !self.unsteady;
        let what = match self.guard {
            Some(g) if g.pages => Checked::HalfDone,
            _ => Checked::All,
        };
        self.plan
            .make(&self.decs, src, &mut self.infos, self.faults, dead, what);
    }

    /// Emits the checks before instruction `n`, and gives back the register that it needs.
    pub(crate) fn before(&mut self, decs: &[Dec], n: usize) {
        let Some(guard) = self.guard.filter(|_| self.guarded()) else {
            return;
        };
        if self.plan.any(n) {
            self.checks_at(&guard, decs, n);
        }
        let Some(held) = self.checks.held.filter(|_| !self.checks.pinned) else {
            return;
        };
        let Some(d) = decs.get(n) else { return };
        let uses = self.plan.uses.get(n).copied().unwrap_or_default();
        let fused = decs.get(n + 1).is_some_and(|j| j.class == Class::Jcc);
        if d.class != Class::Plain || d.is_far() || fused || uses.read >> held & 1 != 0 {
            self.give_back();
        }
    }

    /// Instruction `n` was emitted.
    pub(crate) fn behind(&mut self, n: usize) {
        if let Some(held) = self.checks.held
            && self
                .plan
                .uses
                .get(n)
                .is_some_and(|u| u.set >> held & 1 != 0)
        {
            self.checks.held = None;
        }
    }

    /// Loads the borrowed register again.
    pub(crate) fn give_back(&mut self) {
        if let Some(reg) = self.checks.held.take() {
            let start = self.buf.pos();
            self.buf.load(reg, self.cells.borrowed);
            self.map.check(self.buf.pos() - start, reg);
        }
    }

    /// Lends `reg` to checks.
    pub(crate) fn borrow(&mut self, reg: u8) {
        if self.checks.held == Some(reg) {
            return;
        }
        debug_assert!(!self.checks.pinned, "lent to all of the loop");
        self.give_back();
        let start = self.buf.pos();
        self.buf.store(self.cells.borrowed, reg);
        self.map.pad(self.buf.pos() - start);
        self.checks.held = Some(reg);
    }

    fn checks_at(&mut self, guard: &Guard, decs: &[Dec], n: usize) {
        let Some(d) = decs.get(n) else { return };
        self.plan.look_at(n);
        let id = if self.purpose == Purpose::Step {
            STEP_CHECK
        } else {
            self.ids.check + self.checks.sites.len() as u32
        };
        let site = self.checks.sites.len();
        let tests = std::mem::take(&mut self.plan.emit);
        let flags_dead = self.plan.flags_dead(n);
        let registers = tests.iter().fold(0, |all, t| all | t.at.registers());
        let needs_register = tests.iter().any(|t| !(t.at.is_static() && flags_dead));
        if needs_register {
            let reg = match self.checks.held {
                _ if !flags_dead => RCX,
                Some(h) if registers >> h & 1 == 0 => h,
                held => {
                    // The registers of addresses are needed now.
                    if held.is_some() {
                        self.give_back();
                    }
                    self.plan.scratch_register(n, registers)
                }
            };
            if self.checks.held.is_some_and(|h| registers >> h & 1 != 0) {
                self.give_back();
            }
            self.borrow(reg);
        }
        let fail = Fail {
            from: Vec::new(),
            held: self.checks.held,
            id,
        };
        self.checks.fails.push(fail);
        self.checks.behind += FAIL;
        let start = self.buf.pos();
        let way = Way {
            reg: self.checks.held.unwrap_or(RCX),
            flags_dead,
        };
        let mut intact = true;
        for t in &tests {
            self.whole_test(guard, t, way, site, &mut intact);
        }
        self.plan.emit = tests;
        // A register of an address is not lent longer.
        let back = self.checks.held.filter(|h| registers >> h & 1 != 0);
        if let Some(reg) = back {
            self.buf.load(reg, self.cells.borrowed);
            self.checks.held = None;
        }
        let len = self.buf.pos() - start;
        self.map.code(len, back.or(self.checks.held));
        let special = self.special(d, n, id);
        let first = self.ids.test + self.checks.tests.len() as u32;
        self.checks.tests.extend_from_slice(&self.plan.pending);
        self.checks.sites.push(CheckSite {
            pc: d.pc(),
            frag: self.ids.frag,
            resume: self.buf.here(),
            held: self.checks.held.unwrap_or(NO_REG),
            tests: first..first + self.plan.pending.len() as u32,
            special,
            owed: self.owed,
        });
    }

    /// What only the instruction itself tells.
    fn special(&mut self, d: &Dec, n: usize, id: u32) -> Option<Box<Asked>> {
        let kind = self.plan.special(n);
        if kind == Special::None {
            return None;
        }
        self.give_back();
        let start = self.buf.pos();
        self.buf.store_imm(self.cells.exit_arg, id);
        match kind {
            Special::Rep(rep) => {
                self.buf
                    .store_imm(guard_cell(self, Which::Params), rep_params(&rep));
                let at = guard_cell(self, Which::Return);
                self.buf.store_imm(at, 0);
                let field = self.buf.pos() - 4;
                self.buf.jmp_to(self.stubs.rep);
                let back = self.buf.here() as u32;
                if let Some(f) = self.buf.bytes.get_mut(field..field + 4) {
                    f.copy_from_slice(&back.to_le_bytes());
                }
            }
            _ => self.buf.jmp_to(self.stubs.check),
        }
        self.map.pad(self.buf.pos() - start);
        let write = crate::checks::asks_for_write(self.infos.info(&d.insn));
        Some(Box::new(Asked {
            kind,
            insn: d.insn,
            write,
        }))
    }

    /// A test of any length, in pieces that one look covers.
    fn whole_test(&mut self, guard: &Guard, t: &Test, way: Way, site: usize, intact: &mut bool) {
        if t.at.is_static() {
            // The granules are known: the look is exact.
            let first = t.at.disp as u64 / GRANULE;
            let last = (t.at.disp as u64).wrapping_add(u64::from(t.len) - 1) / GRANULE;
            let mut g = first;
            while g <= last {
                let index = g & (crate::rights::RIGHTS_LEN as u64 - 1);
                let two = g < last && index + 1 < crate::rights::RIGHTS_LEN as u64;
                let width = if two { Width::Two } else { Width::One };
                let from = self.look(guard, At::Index(index), width, t.write, way);
                self.leave_from(site, from);
                g += 1 + u64::from(two);
            }
            *intact &= way.flags_dead;
            return;
        }
        let mut done = 0;
        while done < i64::from(t.len) {
            let len = (i64::from(t.len) - done).min(FOUR_GRANULES);
            let width = if len <= TWO_GRANULES {
                Width::Two
            } else {
                Width::Four
            };
            self.whole_again(t.at, way, intact);
            let from = self.look(guard, At::Operand(t.at, done), width, t.write, way);
            *intact = false;
            let back = self.buf.pos();
            let mut test = *t;
            test.at.disp = t.at.disp.wrapping_add(done);
            test.len = len as u32;
            self.checks.behind += (len as usize).div_ceil(64) * LOOK + LOOK + 5;
            self.checks.sides.push(Side {
                from,
                back,
                test,
                way,
                site,
            });
            done += len;
        }
    }

    /// An address with the scratch register in it needs that register's own value.
    fn whole_again(&mut self, at: Operand, way: Way, intact: &mut bool) {
        if !*intact && at.registers() >> way.reg & 1 != 0 {
            self.buf.load(way.reg, self.cells.borrowed);
            *intact = true;
        }
    }

    fn leave_from(&mut self, site: usize, field: usize) {
        if let Some(f) = self.checks.fails.get_mut(site) {
            f.from.push(field);
        }
    }

    /// Looks at the table and jumps if a right is missing. The result is the place of the jump's rel32 field.
    fn look(&mut self, guard: &Guard, at: At, width: Width, write: bool, way: Way) -> usize {
        let bit = if write { NO_WRITE } else { NO_READ };
        let mask = match width {
            Width::One => u32::from(bit),
            Width::Two => u32::from(bit) * 0x0101,
            Width::Four => u32::from(bit) * 0x0101_0101,
        };
        let s = way.reg;
        if way.flags_dead {
            let (base, disp) = match at {
                At::Operand(o, extra) => {
                    if self.address(s, o, extra) {
                        self.buf.add32(s, self.cells.fs_base);
                    }
                    self.buf.shr32(s, 6);
                    (s, guard.table)
                }
                At::Index(i) => (NO_REG, guard.table + i),
            };
            match width {
                Width::One => {
                    self.buf.memory(&[], &[0xf6], 0, base, disp as i32);
                    self.buf.put(&[bit]);
                }
                // A test of 16 bits would have a prefix that changes its length, which is slow to decode.
                _ => {
                    self.buf.memory(&[], &[0xf7], 0, base, disp as i32);
                    self.buf.put32(mask as i32);
                }
            }
            return self.buf.jump_ahead(NOT_EQUAL);
        }
        debug_assert_eq!(s, RCX);
        let add = match at {
            At::Operand(o, extra) => self.address(s, o, extra),
            At::Index(_) => false,
        };
        let save = match guard.flag_free {
            FlagFree::Fast => add,
            FlagFree::NoPext => add || !write,
            FlagFree::Save => true,
        };
        let saved = guard_cell(self, Which::Saved);
        if save {
            self.buf.store(saved, RAX);
            // lahf; seto al
            self.buf.put(&[0x9f, 0x0f, 0x90, 0xc0]);
            if add {
                self.buf.add32(s, self.cells.fs_base);
            }
        }
        let (base, disp) = match at {
            At::Operand(..) => {
                if save {
                    self.buf.shr32(s, 6);
                } else {
                    // rorx rcx, rcx, 6: the low half is the index but for bits that a 32-bit address leaves out.
                    self.buf.put(&[0xc4, 0xe3, 0xfb, 0xf0, 0xc9, 0x06]);
                }
                (RCX, guard.table)
            }
            At::Index(i) => (NO_REG, guard.table + i),
        };
        let cut: &[u8] = if save || base == NO_REG { &[] } else { &[0x67] };
        let op: &[u8] = match width {
            Width::One => &[0x0f, 0xb6],
            Width::Two => &[0x0f, 0xb7],
            Width::Four => &[0x8b],
        };
        self.buf.memory(cut, op, RCX, base, disp as i32);
        if save {
            // and ecx, mask; add al, 0x7f; sahf
            self.buf.put(&[0x81, 0xe1]);
            self.buf.put32(mask as i32);
            self.buf.put(&[0x04, 0x7f, 0x9e]);
            self.buf.load(RAX, saved);
        } else if !write {
            // pext ecx, ecx, [mask]. For writes nothing need be masked: a granule that may not be read may not be
            // written, so all bytes must be 0.
            self.buf.put(&[0xc4, 0xe2, 0x72, 0xf5, 0x0c, 0x25]);
            let cell = guard_cell(self, Which::ReadMask);
            if let Cell::Fixed(a) = cell {
                self.buf.put32(a as i32);
            }
        }
        self.buf.jump_ahead_unless_rcx_is_0()
    }

    /// The low 32 bits of an address into `s`, without flags. True if the FS base is still to be added.
    fn address(&mut self, s: u8, o: Operand, extra: i64) -> bool {
        let disp = o.disp.wrapping_add(extra) as i32;
        if o.index8 {
            self.buf.movzx8(s, o.index);
            self.buf.lea32(s, s, o.base, 1, disp);
            return o.fs;
        }
        if o.fs && o.registers() >> s & 1 == 0 {
            self.buf.load32_any(s, self.cells.fs_base);
            if o.base != NO_REG {
                self.buf.lea32(s, s, o.base, 1, disp);
            } else if disp != 0 {
                self.buf.lea32(s, s, NO_REG, 1, disp);
            }
            if o.index != NO_REG {
                self.buf.lea32(s, s, o.index, o.scale, 0);
            }
            return false;
        }
        self.buf.lea32(s, o.base, o.index, o.scale, disp);
        o.fs
    }

    /// Emits what lies behind the translation.
    pub(crate) fn finish_checks(&mut self) {
        let Some(guard) = self.guard else { return };
        let sides = std::mem::take(&mut self.checks.sides);
        for side in &sides {
            self.buf.rel32_here(side.from);
            let len = i64::from(side.test.len);
            let mut offset = 0;
            let mut intact = false;
            loop {
                self.whole_again(side.test.at, side.way, &mut intact);
                let at = At::Operand(side.test.at, offset);
                let from = self.look(&guard, at, Width::One, side.test.write, side.way);
                intact = false;
                self.leave_from(side.site, from);
                if offset == len - 1 {
                    break;
                }
                offset = (offset + GRANULE as i64).min(len - 1);
            }
            let back = self.buf.base + side.back as u64;
            self.buf.jmp_to(back);
        }
        self.checks.sides = sides;
        let fails = std::mem::take(&mut self.checks.fails);
        for f in fails.iter().filter(|f| !f.from.is_empty()) {
            for field in &f.from {
                self.buf.rel32_here(*field);
            }
            if let Some(reg) = f.held {
                self.buf.load(reg, self.cells.borrowed);
            }
            self.buf.store_imm(self.cells.exit_arg, f.id);
            self.buf.jmp_to(self.stubs.check);
        }
        self.checks.fails = fails;
    }
}

/// Cells that only checks use.
#[derive(Clone, Copy)]
enum Which {
    Params,
    Return,
    Saved,
    ReadMask,
}

fn guard_cell(t: &Translator, which: Which) -> Cell {
    use crate::emit::Hot;
    use std::mem::offset_of;
    let o = match which {
        Which::Params => offset_of!(Hot, rep_params),
        Which::Return => offset_of!(Hot, rep_return),
        Which::Saved => offset_of!(Hot, saved_rax),
        Which::ReadMask => offset_of!(Hot, read_mask),
    };
    t.cells.hot.plus(o as u32)
}

/// The argument of the routine for repeated string instructions.
pub(crate) fn rep_params(r: &Rep) -> u32 {
    use crate::rep::*;
    let mut p = u32::from(r.shift) | (SIZE << r.shift);
    if r.source {
        p |= SOURCE;
    }
    p |= match r.dest {
        Dest::None => 0,
        Dest::Read => DEST_READ,
        Dest::Write => DEST_WRITE,
    };
    if r.addr32 {
        p |= ADDR32;
    }
    if r.fs {
        p |= FS;
    }
    p
}
