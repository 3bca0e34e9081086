//! Which rights a translation has to check, and where.
//!
//! The problem: every access to guest memory needs the right to it, and most translations make several accesses that
//! are close together. A right that was found holds until the translation is left: only this thread gives rights
//! away, and only while it is outside translated code. So accesses that are known to lie near each other share one
//! check in front of the first of them.
//!
//! What is known: each register holds a value, named by a number, plus an offset. Pushes, pops, additions of constants
//! and moves between registers change offsets or copy names, everything else gives a new name. Accesses with the same
//! names differ by a constant.
//!
//! The invariant that makes sharing right: whenever the translation is left at a check and goes on behind it, the
//! runtime has had the chance to give rights away, so it is asked not only for what this check is about, but for
//! every earlier check that a later access still relies on (`pending`). So accesses share a check only if the address
//! of the range can be told from the registers everywhere between them.

use crate::api::CodeSource;
use crate::insn::Class;
use crate::liveness;
use crate::rights::{Dest, NO_REG, Operand, Rep, Special, Test};
use crate::translate::Dec;
use iced_x86::{
    Code, CodeSize, Instruction, InstructionInfo, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register, UsedMemory,
};

const RSP: usize = 4;
const RCX: u8 = 1;

/// Longest range that a test of two granules covers whatever its alignment.
pub(crate) const TWO_GRANULES: i64 = 65;
/// The same for four granules.
pub(crate) const FOUR_GRANULES: i64 = 193;
/// How far a check is moved forward to a place where flags are dead.
const MOVE: usize = 12;

/// A register's value: a name and an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Value {
    name: u32,
    offset: i64,
}

/// Values of all general registers.
type Values = [Value; 16];

/// What an instruction does to the general registers, as sets.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Uses {
    /// Read, or written in part, or only perhaps.
    pub read: u16,
    /// Written whole and not read.
    pub set: u16,
}

/// What the addresses of a group have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    base: Option<u32>,
    index: Option<(u32, u8)>,
    fs: bool,
}

/// Accesses that share a check.
#[derive(Clone, Copy, Debug)]
struct Group {
    key: Key,
    /// The range, relative to the named values.
    from: i64,
    to: i64,
    read: bool,
    write: bool,
    /// The check stands before this instruction.
    at: usize,
    /// The last access that relies on it.
    last: usize,
    /// Conditional jumps before the first access.
    jumps: usize,
    /// For addresses that do not fit the scheme: as it is, shared with nothing.
    alone: Option<Operand>,
}

/// Which accesses are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    All,
    /// Those of instructions that a fault can leave half done: what is done then is seen before the position at which
    /// the thread waits for the rest. Repeated strings, gathers and scatters.
    HalfDone,
}

/// Where checks stand in a translation.
#[derive(Default)]
pub(crate) struct Plan {
    groups: Vec<Group>,
    values: Vec<Values>,
    pub uses: Vec<Uses>,
    specials: Vec<Special>,
    /// Whether the flags before each instruction are dead.
    dead: Vec<bool>,
    /// Names that were in rsp.
    stack: Vec<bool>,
    scratch: Vec<Test>,
    /// The checks before one instruction: for `emit` those that stand there, for `pending` all that must hold.
    pub emit: Vec<Test>,
    pub pending: Vec<Test>,
}

impl Plan {
    /// Decides for the instructions of one translation. With `dead` false all flags count as alive.
    pub(crate) fn make(
        &mut self,
        decs: &[Dec],
        src: &dyn CodeSource,
        infos: &mut InstructionInfoFactory,
        faults: liveness::Faults,
        dead: bool,
        what: Checked,
    ) {
        self.groups.clear();
        self.values.clear();
        self.uses.clear();
        self.specials.clear();
        self.dead.clear();
        for n in 0..decs.len() {
            let rest = decs.get(n..).unwrap_or(&[]);
            self.dead
                .push(dead && liveness::dead_in(rest.iter().map(|d| (&d.insn, d.class)), faults));
        }
        let mut now: Values = std::array::from_fn(|r| Value {
            name: r as u32,
            offset: 0,
        });
        self.stack.clear();
        self.stack.resize(16, false);
        if let Some(s) = self.stack.get_mut(RSP) {
            *s = true;
        }
        let mut jumps = 0;
        for (n, d) in decs.iter().enumerate() {
            self.values.push(now);
            let mut tests = std::mem::take(&mut self.scratch);
            tests.clear();
            let info = infos.info(&d.insn);
            let mut special = accesses(info, &d.insn, d.class, &mut tests);
            if what == Checked::HalfDone {
                tests.clear();
                if special == Special::Ask && !d.insn.is_vsib() {
                    special = Special::None;
                }
            }
            for t in &tests {
                let start = t.at.disp as u64;
                let known = t.at.is_static()
                    && !t.write
                    && start
                        .checked_add(u64::from(t.len))
                        .is_some_and(|end| src.constant(start, end));
                if !known {
                    self.add(decs, n, jumps, t);
                }
            }
            self.scratch = tests;
            self.specials.push(special);
            self.uses.push(uses(info));
            self.advance(info, &d.insn, &mut now);
            jumps += usize::from(d.class == Class::Jcc);
        }
    }

    pub(crate) fn special(&self, n: usize) -> Special {
        self.specials.get(n).copied().unwrap_or(Special::None)
    }

    pub(crate) fn flags_dead(&self, n: usize) -> bool {
        self.dead.get(n).copied().unwrap_or(false)
    }

    /// Puts the checks before instruction `n` into `emit` and `pending`.
    pub(crate) fn look_at(&mut self, n: usize) {
        self.emit.clear();
        self.pending.clear();
        for g in &self.groups {
            if g.at > n || g.last < n {
                continue;
            }
            let at = match g.alone {
                Some(o) => Some(o),
                None => self.operand(n, g.key, g.from),
            };
            debug_assert!(at.is_some(), "a checked address was lost");
            let Some(at) = at else { continue };
            let t = Test {
                at,
                len: g.to.wrapping_sub(g.from) as u32,
                read: g.read,
                write: g.write,
            };
            self.pending.push(t);
            if g.at == n {
                self.emit.push(t);
            }
        }
    }

    /// Whether any check stands before instruction `n`.
    pub(crate) fn any(&self, n: usize) -> bool {
        self.special(n) != Special::None || self.groups.iter().any(|g| g.at == n)
    }

    /// A register that checks before instruction `n` may use, none of `not`: one that is set before it is read if
    /// there is one, else the one that is needed last.
    pub(crate) fn scratch_register(&self, n: usize, not: u16) -> u8 {
        let mut open = !(not | 1 << RSP);
        let (mut set, mut last) = (None, None);
        for u in self.uses.get(n..).unwrap_or(&[]) {
            if open == 0 {
                break;
            }
            let here = open & (u.read | u.set);
            if here != 0 {
                if open & u.set & !u.read != 0 {
                    set = Some(open & u.set & !u.read);
                }
                last = Some(here);
            }
            open &= !here;
        }
        let pick = set
            .or_else(|| (open != 0).then_some(open))
            .or(last)
            .unwrap_or(1 << RCX);
        pick.trailing_zeros() as u8
    }

    fn add(&mut self, decs: &[Dec], n: usize, jumps: usize, t: &Test) {
        let Some(now) = self.values.get(n).copied() else {
            return;
        };
        let value = |r: u8| now.get(usize::from(r)).copied();
        let (base, index) = (value(t.at.base), value(t.at.index));
        let key = Key {
            base: base.map(|v| v.name),
            index: index.map(|v| (v.name, t.at.scale)),
            fs: t.at.fs,
        };
        let of = |v: Option<Value>| v.map_or(0, |v| v.offset);
        let from =
            t.at.disp
                .wrapping_add(of(base))
                .wrapping_add(of(index).wrapping_mul(i64::from(t.at.scale)));
        let mut g = Group {
            key,
            from,
            to: from.wrapping_add(i64::from(t.len)),
            read: t.read,
            write: t.write,
            at: n,
            last: n,
            jumps,
            alone: None,
        };
        if t.at.addr32 || t.at.index8 {
            g.alone = Some(t.at);
            (g.from, g.to) = (0, i64::from(t.len));
            self.groups.push(g);
            return;
        }
        if self.join(&g, jumps) {
            return;
        }
        // Back to where flags are dead, over nothing that could leave.
        if !self.flags_dead(n) {
            for p in (n.saturating_sub(MOVE)..n).rev() {
                // (A call in between is followed.)
                if decs
                    .get(p)
                    .is_none_or(|d| !matches!(d.class, Class::Plain | Class::Call))
                    || self.operand(p, key, from).is_none()
                {
                    break;
                }
                if self.flags_dead(p) {
                    g.at = p;
                    break;
                }
            }
        }
        self.groups.push(g);
    }

    /// Adds an access to a group that has a check already.
    fn join(&mut self, new: &Group, jumps: usize) -> bool {
        let on_stack = new.key.index.is_none()
            && new
                .key
                .base
                .is_some_and(|b| self.stack.get(b as usize).copied().unwrap_or(false));
        let limit = if on_stack {
            FOUR_GRANULES
        } else {
            TWO_GRANULES
        };
        for n in (0..self.groups.len()).rev() {
            let Some(g) = self.groups.get(n).copied() else {
                break;
            };
            // Ranges around the end of the numbers stay alone.
            if g.key != new.key || g.alone.is_some() || g.to < g.from || new.to < new.from {
                continue;
            }
            let from = g.from.min(new.from);
            let to = g.to.max(new.to);
            // A path that only reads must not ask for the right to write.
            let rw = new.write && !g.write && g.jumps != jumps;
            let fits = (from == g.from && to == g.to)
                || to
                    .checked_sub(from)
                    .is_some_and(|len| (0..=limit).contains(&len));
            // The range must be tellable wherever the translation may be left until then.
            if rw || !fits || (g.at..=new.last).any(|p| self.operand(p, g.key, from).is_none()) {
                continue;
            }
            if let Some(g) = self.groups.get_mut(n) {
                (g.from, g.to, g.last) = (from, to, new.last);
                g.read |= new.read;
                g.write |= new.write;
            }
            return true;
        }
        false
    }

    /// An operand that gives the address `from` of `key` before instruction `n`.
    fn operand(&self, n: usize, key: Key, from: i64) -> Option<Operand> {
        let now = self.values.get(n)?;
        let find = |name: u32, not: usize| {
            now.iter()
                .enumerate()
                .find(|(r, v)| v.name == name && *r != not)
                .map(|(r, v)| (r as u8, v.offset))
        };
        let mut disp = from;
        let mut base = NO_REG;
        let (mut index, mut scale) = (NO_REG, 1);
        if let Some(name) = key.base {
            let (r, offset) = find(name, usize::MAX)?;
            base = r;
            disp = disp.wrapping_sub(offset);
        }
        if let Some((name, by)) = key.index {
            // rsp cannot be an index.
            let (r, offset) = find(name, RSP)?;
            index = r;
            scale = by;
            disp = disp.wrapping_sub(offset.wrapping_mul(i64::from(by)));
        }
        Some(Operand {
            base,
            index,
            scale,
            fs: key.fs,
            addr32: false,
            index8: false,
            disp,
        })
    }

    fn name(&mut self, r: usize) -> Value {
        self.stack.push(r == RSP);
        Value {
            name: self.stack.len() as u32 - 1,
            offset: 0,
        }
    }

    /// What the registers hold behind an instruction.
    fn advance(&mut self, info: &InstructionInfo, i: &Instruction, now: &mut Values) {
        let before = *now;
        for u in info.used_registers() {
            let r = u.register();
            if r.is_gpr() && writes(u.access()) {
                let n = r.full_register().number();
                let v = self.name(n);
                if let Some(slot) = now.get_mut(n) {
                    *slot = v;
                }
            }
        }
        let Some((to, from, by)) = moved(i) else {
            return;
        };
        if let (Some(slot), Some(v)) = (now.get_mut(to), before.get(from)) {
            *slot = Value {
                name: v.name,
                offset: v.offset.wrapping_add(by),
            };
        }
    }
}

fn writes(a: OpAccess) -> bool {
    matches!(
        a,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

fn gpr64(r: Register) -> Option<usize> {
    r.is_gpr64().then(|| r.number())
}

/// For an instruction that sets a register to another one (or itself) plus a constant: which, from which, how much.
/// Of a `pop` or `push` it is rsp.
fn moved(i: &Instruction) -> Option<(usize, usize, i64)> {
    let first = || (i.op_count() > 0 && i.op0_kind() == OpKind::Register).then(|| i.op0_register());
    match i.mnemonic() {
        Mnemonic::Push | Mnemonic::Pushfq | Mnemonic::Pushf | Mnemonic::Call | Mnemonic::Ret => {
            Some((RSP, RSP, i64::from(i.stack_pointer_increment())))
        }
        Mnemonic::Pop | Mnemonic::Popfq | Mnemonic::Popf => {
            if first().is_some_and(|r| r.full_register() == Register::RSP) {
                return None;
            }
            Some((RSP, RSP, i64::from(i.stack_pointer_increment())))
        }
        Mnemonic::Add | Mnemonic::Sub => {
            let r = gpr64(first()?)?;
            let by = match i.op1_kind() {
                OpKind::Immediate8to64 | OpKind::Immediate32to64 => i.immediate(1) as i64,
                _ => return None,
            };
            let by = if i.mnemonic() == Mnemonic::Add {
                by
            } else {
                by.wrapping_neg()
            };
            Some((r, r, by))
        }
        Mnemonic::Inc => gpr64(first()?).map(|r| (r, r, 1)),
        Mnemonic::Dec => gpr64(first()?).map(|r| (r, r, -1)),
        Mnemonic::Lea => {
            let to = gpr64(first()?)?;
            let from = gpr64(i.memory_base())?;
            (i.memory_index() == Register::None).then_some((
                to,
                from,
                i.memory_displacement64() as i64,
            ))
        }
        Mnemonic::Mov if i.op1_kind() == OpKind::Register => {
            Some((gpr64(first()?)?, gpr64(i.op1_register())?, 0))
        }
        _ => None,
    }
}

fn uses(info: &InstructionInfo) -> Uses {
    let mut u = Uses::default();
    for r in info.used_registers() {
        let reg = r.register();
        if !reg.is_gpr() {
            continue;
        }
        let bit = 1u16 << reg.full_register().number();
        match r.access() {
            OpAccess::None | OpAccess::NoMemAccess => {}
            OpAccess::Write if reg.size() >= 4 => u.set |= bit,
            _ => u.read |= bit,
        }
    }
    u.set &= !u.read;
    u
}

/// Whether an operand's address is cut to 32 bits.
pub(crate) fn is_addr32(i: &Instruction) -> bool {
    i.memory_base().size() == 4
        || i.memory_index().size() == 4 && i.memory_index().is_gpr()
        || i.memory_base() == Register::None
            && i.memory_index() == Register::None
            && i.memory_displ_size() == 4
}

/// What an instruction accesses that translated code does. The fixed ranges go to `out`.
pub(crate) fn accesses(
    info: &InstructionInfo,
    i: &Instruction,
    class: Class,
    out: &mut Vec<Test>,
) -> Special {
    match class {
        Class::Plain | Class::Call | Class::Ret | Class::JmpIndirect | Class::CallIndirect => {}
        // Transfers on flags and counts, and what leaves translated code, access nothing there.
        _ => return Special::None,
    }
    // They fault.
    if i.is_privileged() {
        return Special::None;
    }
    let bits = matches!(
        i.mnemonic(),
        Mnemonic::Bt | Mnemonic::Btc | Mnemonic::Btr | Mnemonic::Bts
    );
    let used = info.used_memory();
    let mut accessed = used
        .iter()
        .filter(|m| !matches!(m.access(), OpAccess::None | OpAccess::NoMemAccess));
    if i.is_vsib() || bits && i.op0_kind() == OpKind::Memory && i.op1_kind() == OpKind::Register {
        return match accessed.next() {
            Some(_) => Special::Ask,
            None => Special::None,
        };
    }
    if i.is_string_instruction() && (i.has_rep_prefix() || i.has_repne_prefix()) {
        return Special::Rep(rep(i, used));
    }
    if i.mnemonic() == Mnemonic::Clzero {
        // iced does not list it. The whole line that the address lies in is written.
        out.push(Test {
            at: Operand {
                base: 0,
                index: NO_REG,
                scale: 1,
                fs: i.segment_prefix() == Register::FS,
                addr32: i.code() == Code::Clzerod,
                index8: false,
                disp: -63,
            },
            len: 127,
            read: false,
            write: true,
        });
    }
    for m in accessed {
        match test(i, m) {
            Some(t) => out.push(t),
            None => return Special::Ask,
        }
    }
    Special::None
}

/// Whether the access to memory of a `Special::Ask` writes.
pub(crate) fn asks_for_write(info: &InstructionInfo) -> bool {
    info.used_memory().iter().any(|m| writes(m.access()))
}

fn rep(i: &Instruction, used: &[UsedMemory]) -> Rep {
    let mut rep = Rep {
        // The size of the memory used is not known, as the count is not.
        shift: i.memory_size().size().max(1).trailing_zeros() as u8,
        source: false,
        dest: Dest::None,
        addr32: false,
        fs: false,
    };
    for m in used {
        rep.addr32 |= m.base().size() == 4;
        if matches!(m.base(), Register::RSI | Register::ESI) {
            rep.source = true;
            rep.fs |= m.segment() == Register::FS;
        } else if writes(m.access()) {
            rep.dest = Dest::Write;
        } else {
            rep.dest = Dest::Read;
        }
    }
    rep
}

/// The range of a memory operand.
fn test(i: &Instruction, m: &UsedMemory) -> Option<Test> {
    let number = |r: Register| {
        if r.is_gpr() {
            r.full_register().number() as u8
        } else {
            NO_REG
        }
    };
    let mut len = m.memory_size().size() as u32;
    if i.mnemonic() == Mnemonic::Movsxd {
        // Of two bytes by the manuals, but processors read four.
        len = len.max(4);
    }
    if len == 0 {
        return None;
    }
    let read = matches!(
        m.access(),
        OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    );
    let addr32 = m.address_size() == CodeSize::Code32;
    let is_static = m.base() == Register::None && m.index() == Register::None;
    Some(Test {
        at: Operand {
            base: number(m.base()),
            index: number(m.index()),
            scale: m.scale().max(1) as u8,
            fs: m.segment() == Register::FS,
            // Such an address is cut already.
            addr32: addr32 && !is_static,
            index8: m.index().is_gpr8(),
            disp: m.displacement() as i64,
        },
        len,
        read,
        write: writes(m.access()),
    })
}
