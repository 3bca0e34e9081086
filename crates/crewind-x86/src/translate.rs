//! One translation: guest instructions are decoded, then emitted.
//!
//! The rules that emission keeps:
//! - Ticks: `ret`, indirect jumps and calls, and transfers taken to a lower or equal address, whatever blocks look
//!   like. A direct transfer ticks at its source, an indirect one at its target's indirect entry, where it is known
//!   whether flags are dead.
//! - No guest memory is accessed between a tick and its transfer.
//! - Whatever accesses guest memory can fault and be done again from the state `recover` gives.
//! - Fields that are patched later lie in one cache line.
//! - Nothing comes between a comparison and its jump (the cpu fuses them).

mod rounds;
mod unroll;

use crate::api::{CodeSource, FetchFault, Options};
use crate::cache::PageHasher;
use crate::checks::Plan;
use crate::ctx::COUNTERS;
use crate::emit::{Buf, Cell, Cells, RCX};
use crate::guard::{Checks, Guard};
use crate::insn::{Class, InsnKind, classify};
use crate::liveness;
use crate::recover::{MapWriter, Owed};
use crate::stubs::Stubs;
use iced_x86::{
    Code, ConstantOffsets, Decoder, DecoderError, Encoder, Instruction, InstructionInfoFactory,
    OpKind, Register,
};
use std::collections::HashSet;
use std::hash::BuildHasherDefault;

/// A direct transfer out of the translation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewLink {
    pub target: u64,
    /// Offset of the rel32 field in the code.
    pub field: u32,
}

/// How a transfer came to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Always,
    /// Behind a condition: mostly a loop.
    Conditional,
    /// By a call.
    Call,
}

/// A jump to a stub for a tick at the limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewTick {
    /// Offset of the rel32 field in the code.
    pub field: u32,
    /// Index of the transfer's link in this translation.
    pub link: u32,
    /// The stub, once it has one.
    pub slot: u32,
}

/// A place where the runtime does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    pub pc: u64,
    pub what: SiteKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SiteKind {
    Syscall {
        len: u8,
    },
    Insn {
        kind: InsnKind,
        len: u8,
        bytes: [u8; 15],
    },
    Unsupported(&'static str),
    Break,
    /// Not the instruction itself, but the comparison in front of it.
    Event,
}

/// Numbers that the next translation and site get.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NextIds {
    pub frag: u32,
    pub site: u32,
    /// The next check of rights, and the next range of one.
    pub check: u32,
    pub test: u32,
}

/// What a translation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Reached by a direct transfer or from outside.
    Direct,
    /// Reached by an indirect transfer: starts with an indirect entry.
    Indirect,
    /// One instruction, thrown away afterwards: no look-ups, no ends other than stubs.
    Step,
    /// Reached by the jump back of a loop.
    Loop(Calls),
}

/// What becomes of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Calls {
    /// They end the translation, and conditional jumps are not taken.
    End,
    /// It goes on in what is called, and behind the call when that returns; a conditional jump to where the loop is known to
    /// go by is taken.
    Followed,
}

/// On a link's target and a translation's pc: it is for a loop that has gone round a few times (`Calls::End`).
pub(crate) const LOOP: u64 = 1 << 63;
/// The same: it is for a loop that no single translation holds otherwise, if there is one (`Calls::Followed`).
pub(crate) const WIDE_LOOP: u64 = 1 << 62;
/// Both.
pub(crate) const MARKS: u64 = LOOP | WIDE_LOOP;

pub(crate) struct Dec {
    pub insn: Instruction,
    offsets: ConstantOffsets,
    pub class: Class,
    bytes: [u8; 15],
}

impl Dec {
    pub(crate) fn pc(&self) -> u64 {
        self.insn.ip()
    }
    fn len(&self) -> usize {
        self.insn.len()
    }
    /// Whether it has a rip-relative operand that may be out of reach of the cache.
    pub(crate) fn is_far(&self) -> bool {
        self.insn.is_ip_rel_memory_operand() && self.insn.ip_rel_memory_address() >= 1 << 31
    }
    fn raw(&self) -> &[u8] {
        self.bytes.get(..self.insn.len()).unwrap_or(&self.bytes)
    }
}

/// Translates; keeps its buffers from one translation to the next.
pub(crate) struct Translator {
    pub options: Options,
    pub cells: Cells,
    pub stubs: Stubs,
    pub table: u64,
    /// The cell that is 0 when somebody wants the thread out, if there is anybody (`Poke`).
    pub calm: Option<Cell>,
    decoder_options: u32,
    /// Whether faults show flags that would be overwritten.
    pub(crate) faults: liveness::Faults,
    pub(crate) decs: Vec<Dec>,
    fallthrough: Option<u64>,
    pub(crate) purpose: Purpose,
    pub(crate) ids: NextIds,
    /// The code.
    pub buf: Buf,
    /// Table for `recover`.
    pub map: MapWriter,
    pub links: Vec<NewLink>,
    pub ticks: Vec<NewTick>,
    pub sites: Vec<Site>,
    /// Guest ranges the translation depends on.
    pub ranges: Vec<(u64, u64)>,
    /// Offset of the body, behind the indirect entry.
    pub body: usize,
    /// Offset of the indirect entry.
    pub entry: usize,
    /// How far before it the rel32 field of its jump to the next entry of its slot lies.
    pub chain_field: usize,
    pub guest_bytes: u64,
    pub guest_insns: usize,
    pub(crate) infos: InstructionInfoFactory,
    loop_is_fast: bool,
    /// The table of rights, if accesses are checked.
    pub(crate) guard: Option<Guard>,
    /// The next translation is made without checks.
    pub(crate) unchecked: bool,
    pub(crate) plan: Plan,
    pub(crate) checks: Checks,
    /// Pcs with a comparison of the clock.
    pub(crate) event_sites: HashSet<u64, BuildHasherDefault<PageHasher>>,
    /// Where translated code is always left; see `sites`.
    pub(crate) breaks: HashSet<u64, BuildHasherDefault<PageHasher>>,
    /// Rel32 fields of jumps that leave at event sites, and the sites' numbers.
    pub(crate) fires: Vec<crate::sites::Fire>,
    has_rorx: bool,
    /// Ticks emitted so far: they take turns on the counters.
    ticks_emitted: u32,
    /// Where the translation begins.
    start: u64,
    /// The translation is a loop that can be translated for `Purpose::Loop`; see `rounds`.
    rounds: bool,
    /// The last translation was to be a loop, and there is none or it does not fit.
    vain: bool,
    /// Where the calls that were followed return to.
    returns: Vec<u64>,
    /// A place that the loop is known to go by (`Purpose::Loop`).
    pub(crate) via: Option<u64>,
    /// What the clock is ahead by.
    pub(crate) owed: Option<Owed>,
    /// Some of the code is `CodeSource::unsteady`.
    pub(crate) unsteady: bool,
}

/// The link of a tick inside an unrolled loop until it is known.
const LOOP_LINK: u32 = u32::MAX;
/// Blocks are cut here whatever the options say; keeps emitted lengths bounded.
const MAX_INSNS: usize = 256;
/// The same with checks of rights, which mostly take 60 to 100 bytes each.
const MAX_CHECKED: usize = 128;
/// Most bytes for one instruction, with its checks (`enter` with 31 levels takes some 1,200).
const MAX_INSN: usize = 2048;
/// Upper bound of the code of one translation: `MAX_INSNS` of the longest sequence.
pub(crate) const MAX_CODE: usize = (MAX_INSNS + 4) * 160;

impl Translator {
    pub(crate) fn new(options: Options, cells: Cells, stubs: Stubs, table: u64) -> Translator {
        Translator {
            options,
            cells,
            stubs,
            table,
            calm: None,
            decoder_options: crate::insn::decoder_options(),
            faults: liveness::Faults::ShowZeros,
            decs: Vec::new(),
            fallthrough: None,
            purpose: Purpose::Direct,
            ids: NextIds::default(),
            buf: Buf::default(),
            map: MapWriter::default(),
            links: Vec::new(),
            ticks: Vec::new(),
            sites: Vec::new(),
            ranges: Vec::new(),
            body: 0,
            entry: 0,
            chain_field: 0,
            guest_bytes: 0,
            guest_insns: 0,
            infos: InstructionInfoFactory::new(),
            loop_is_fast: crate::cpuid::is_amd(),
            guard: None,
            unchecked: false,
            plan: Plan::default(),
            checks: Checks::default(),
            event_sites: HashSet::default(),
            breaks: HashSet::default(),
            fires: Vec::new(),
            ticks_emitted: 0,
            start: 0,
            rounds: false,
            vain: false,
            returns: Vec::new(),
            via: None,
            owed: None,
            unsteady: false,
            has_rorx: std::arch::is_x86_feature_detected!("bmi2"),
        }
    }

    /// Translates from `pc` for the cache address `host`. Everything is left in the public fields.
    pub(crate) fn translate(
        &mut self,
        src: &dyn CodeSource,
        pc: u64,
        host: u64,
        purpose: Purpose,
        ids: NextIds,
        known: &dyn Fn(u64) -> bool,
    ) -> Result<(), FetchFault> {
        self.purpose = purpose;
        self.ids = ids;
        self.start = pc;
        self.rounds = false;
        self.vain = false;
        self.owed = None;
        self.buf.start(host);
        self.map.bytes.clear();
        self.links.clear();
        self.ticks.clear();
        self.sites.clear();
        self.ranges.clear();
        self.fires.clear();
        self.body = 0;
        self.chain_field = 0;
        self.decode(src, pc, known)?;
        if self.is_loop() && !self.rounds {
            self.vain = true;
            return Ok(());
        }
        self.plan_checks(src);
        if purpose == Purpose::Indirect {
            self.indirect_entry(src, pc, ids.frag);
        }
        self.body = self.buf.pos();
        if self.is_loop() {
            self.vain = !self.emit_rounds(src);
        } else {
            self.emit_all(src);
        }
        self.guest_insns = self.decs.len();
        self.guest_bytes = self.decs.iter().map(|d| d.len() as u64).sum();
        Ok(())
    }

    /// Whether there turned out to be no loop that can be translated as one: nothing was made.
    pub(crate) fn in_vain(&self) -> bool {
        self.vain
    }

    fn is_loop(&self) -> bool {
        matches!(self.purpose, Purpose::Loop(_))
    }

    fn follows_calls(&self) -> bool {
        self.purpose == Purpose::Loop(Calls::Followed)
    }

    // Decoding.

    fn decode(
        &mut self,
        src: &dyn CodeSource,
        start: u64,
        known: &dyn Fn(u64) -> bool,
    ) -> Result<(), FetchFault> {
        self.decs.clear();
        self.returns.clear();
        let max = match self.purpose {
            Purpose::Step => 1,
            Purpose::Loop(_) => self.most_in_rounds(),
            _ if self.guard.is_some() => self.options.max_block_insns.clamp(1, MAX_CHECKED),
            _ => self.options.max_block_insns.clamp(1, MAX_INSNS),
        };
        let mut pc = start;
        let mut origin = start;
        let mut run_start = start;
        let mut copies = 1;
        let mut slice = fetch(src, pc)?;
        self.unsteady = src.unsteady(pc);
        let mut dec = Decoder::with_ip(64, slice, pc, self.decoder_options);
        self.fallthrough = None;
        loop {
            let mut insn = Instruction::default();
            dec.decode_out(&mut insn);
            if insn.is_invalid() && dec.last_error() == DecoderError::NoMoreBytes {
                // The slice may be capped: ask again from here.
                let more = if pc == origin {
                    None
                } else {
                    fetch(src, pc).ok()
                };
                if let Some(s) = more {
                    slice = s;
                    origin = pc;
                    dec = Decoder::with_ip(64, slice, pc, self.decoder_options);
                    continue;
                }
                if self.decs.is_empty() {
                    return Err(FetchFault {
                        addr: pc.wrapping_add(slice.len() as u64),
                    });
                }
                self.fallthrough = Some(pc);
                break;
            }
            let class = if self.is_break(pc) {
                Class::Break
            } else {
                classify(&insn)
            };
            if self.decs.len() >= max && (class != Class::Jcc || self.purpose == Purpose::Step) {
                self.fallthrough = Some(pc);
                break;
            }
            let at = pc.wrapping_sub(origin) as usize;
            let mut bytes = [0u8; 15];
            match slice.get(at..at + 15) {
                Some(b) => bytes.copy_from_slice(b),
                None => {
                    for (d, s) in bytes.iter_mut().zip(slice.get(at..).unwrap_or(&[])) {
                        *d = *s;
                    }
                }
            }
            let offsets = if insn.is_ip_rel_memory_operand() {
                dec.get_constant_offsets(&insn)
            } else {
                ConstantOffsets::default()
            };
            let target = insn.near_branch_target();
            let next = insn.next_ip();
            self.decs.push(Dec {
                insn,
                offsets,
                class,
                bytes,
            });
            pc = next;
            if class == Class::Undefined {
                // That it is undefined may depend on all the bytes an instruction can have.
                let read = slice.len().saturating_sub(at).min(15) as u64;
                self.ranges
                    .push((insn.ip(), insn.ip().saturating_add(read)));
            }
            let to = match class {
                Class::Plain | Class::RdFsBase => None,
                Class::Jcc | Class::Jmp if target == start && self.unrolls(src, start, copies) => {
                    copies += 1;
                    Some(start)
                }
                Class::Jcc if target >= next && self.goes_by(target) => Some(target),
                Class::Jcc
                    if target >= next && self.options.superblocks && self.decs.len() < max =>
                {
                    None
                }
                Class::Jcc | Class::CountJump | Class::Trap => {
                    self.fallthrough = Some(next);
                    break;
                }
                Class::Jmp
                    if target >= next
                        && self.options.superblocks
                        && self.purpose != Purpose::Step
                        && (self.is_loop() || self.decs.len() < max / 2 && !known(target)) =>
                {
                    Some(target)
                }
                _ => match self.followed(src, &insn, class) {
                    None => break,
                    to => to,
                },
            };
            if let Some(to) = to {
                let Ok(s) = fetch(src, to) else { break };
                self.unsteady |= src.unsteady(to);
                self.ranges.push((run_start, next));
                (slice, pc, origin, run_start) = (s, to, to, to);
                dec = Decoder::with_ip(64, slice, pc, self.decoder_options);
                // Marks the transfer as followed.
                self.fallthrough = Some(to);
                continue;
            }
            if self.purpose == Purpose::Step {
                self.fallthrough = Some(pc);
                break;
            }
        }
        self.ranges
            .push((run_start, pc.max(run_start.saturating_add(1))));
        Ok(())
    }

    // Emission.

    fn emit_all(&mut self, src: &dyn CodeSource) {
        let decs = std::mem::take(&mut self.decs);
        let mut cut = None;
        for (n, d) in decs.iter().enumerate() {
            if self.buf.pos() + self.checks.behind > MAX_CODE - MAX_INSN {
                cut = Some(d.pc());
                break;
            }
            let next = decs.get(n + 1);
            if self.is_event_site(d.pc()) {
                self.event_site(&decs, n);
            }
            let target = d.insn.near_branch_target();
            if d.class == Class::Jmp && next.is_some() && target > d.pc() {
                // Followed.
                self.map.jump(target);
                continue;
            }
            self.before(&decs, n);
            if next.is_some_and(|next| next.pc() <= d.pc()) {
                let before = self.buf.pos();
                self.go_round(d);
                self.map.insn(d.len(), self.buf.pos() - before, None, None);
                self.map.jump(target);
                continue;
            }
            if next.is_some_and(|j| j.class == Class::Jcc && !self.is_event_site(j.pc())) {
                // The jump's field, two bytes behind this instruction, must not cross a line, and no padding may come
                // in between.
                let pad = self.buf.align_field(d.len() + 2);
                self.map.pad(pad);
            }
            let before = self.buf.pos();
            let spilled = self.emit(src, d);
            self.map
                .insn(d.len(), self.buf.pos() - before, spilled, self.checks.held);
            self.behind(n);
        }
        let open = match decs.last().map(|d| d.class) {
            Some(Class::Plain | Class::RdFsBase | Class::Trap | Class::Jcc | Class::CountJump) => {
                self.fallthrough
            }
            _ => None,
        };
        self.give_back();
        if let Some(pc) = cut.or(open) {
            self.jump_link(pc);
        }
        if let Some(first) = decs.first() {
            self.link_rounds(first.pc());
        }
        self.finish_checks();
        self.finish_sites();
        self.decs = decs;
    }

    /// Emits one instruction; the result is the register that is in scratch slot 0 meanwhile.
    fn emit(&mut self, src: &dyn CodeSource, d: &Dec) -> Option<u8> {
        match d.class {
            Class::Plain | Class::Trap => self.plain(d),
            Class::RdFsBase => {
                // rdgsbase: the modrm byte's reg field 0 -> 1.
                self.buf.put(d.raw());
                if let Some(m) = self.buf.bytes.last_mut() {
                    *m |= 1 << 3;
                }
                None
            }
            Class::Jcc => self.jcc(src, d),
            Class::CountJump => self.count_jump(src, d),
            Class::Jmp => {
                let target = d.insn.near_branch_target();
                self.taken(src, d.pc(), target, Taken::Always)
            }
            Class::Call => {
                let spilled = self.push_return(d.insn.next_ip());
                self.taken(src, d.pc(), d.insn.near_branch_target(), Taken::Call);
                spilled
            }
            Class::JmpIndirect | Class::CallIndirect => {
                self.buf.store(self.cells.scratch, RCX);
                self.load_target(d);
                self.buf.store(self.cells.target, RCX);
                if d.class == Class::CallIndirect {
                    let next = d.insn.next_ip();
                    if fits_push(next) {
                        self.push_imm(next);
                    } else {
                        self.buf.mov_imm(RCX, next);
                        self.buf.put(&[0x51]);
                        self.buf.load(RCX, self.cells.target);
                    }
                }
                self.look_up();
                Some(RCX)
            }
            Class::Ret => {
                self.buf.store(self.cells.scratch, RCX);
                self.buf.put(&[0x59]);
                if d.insn.code() == Code::Retnq_imm16 {
                    // lea rsp, [rsp + imm]
                    self.buf.put(&[0x48, 0x8d, 0xa4, 0x24]);
                    self.buf.put32(i32::from(d.insn.immediate16()));
                }
                self.buf.store(self.cells.target, RCX);
                self.look_up();
                Some(RCX)
            }
            Class::Syscall => {
                self.site(Site {
                    pc: d.pc(),
                    what: SiteKind::Syscall { len: d.len() as u8 },
                });
                None
            }
            Class::Runtime(kind) => {
                let what = SiteKind::Insn {
                    kind,
                    len: d.len() as u8,
                    bytes: d.bytes,
                };
                self.site(Site { pc: d.pc(), what });
                None
            }
            Class::Unsupported(text) => {
                self.site(Site {
                    pc: d.pc(),
                    what: SiteKind::Unsupported(text),
                });
                None
            }
            Class::Break => {
                self.site(Site {
                    pc: d.pc(),
                    what: SiteKind::Break,
                });
                None
            }
            Class::Undefined => {
                self.buf.put(&[0x0f, 0x0b]);
                None
            }
        }
    }

    fn site(&mut self, s: Site) {
        let id = self.ids.site + self.sites.len() as u32;
        self.sites.push(s);
        self.buf.store_imm(self.cells.exit_arg, id);
        self.buf.jmp_to(self.stubs.site);
    }

    /// Copies an instruction, with `fs:` made `gs:` and rip-relative addresses corrected.
    fn plain(&mut self, d: &Dec) -> Option<u8> {
        let start = self.buf.pos();
        if d.insn.is_ip_rel_memory_operand() {
            let target = d.insn.ip_rel_memory_address();
            if d.insn.code() == Code::Lea_r64_m {
                let reg = d.insn.op0_register().number() as u8;
                self.buf.mov_imm(reg, target);
                return None;
            }
            let end = self.buf.here() + d.len() as u64;
            let rel = target.wrapping_sub(end) as i64;
            let short = d.insn.memory_base() == Register::EIP;
            if !short && i32::try_from(rel).is_err() {
                return self.far_operand(d, target);
            }
            self.buf.put(d.raw());
            let at = start + d.offsets.displacement_offset();
            if let Some(field) = self.buf.bytes.get_mut(at..at + 4) {
                field.copy_from_slice(&(rel as i32).to_le_bytes());
            }
        } else {
            self.buf.put(d.raw());
        }
        if d.insn.segment_prefix() == Register::FS {
            fs_to_gs(self.buf.bytes.get_mut(start..).unwrap_or(&mut []));
        }
        None
    }

    /// An operand that rip-relative addressing does not reach from the cache: goes through a register that the
    /// instruction does not use.
    fn far_operand(&mut self, d: &Dec, target: u64) -> Option<u8> {
        const CANDIDATES: [Register; 11] = [
            Register::RSI,
            Register::RDI,
            Register::RBX,
            Register::RBP,
            Register::RDX,
            Register::RCX,
            Register::RAX,
            Register::R8,
            Register::R9,
            Register::R10,
            Register::R11,
        ];
        let used: Vec<Register> = self
            .infos
            .info(&d.insn)
            .used_registers()
            .iter()
            .map(|u| u.register().full_register())
            .collect();
        for reg in CANDIDATES.into_iter().filter(|r| !used.contains(r)) {
            let mut insn = d.insn;
            insn.set_memory_base(reg);
            insn.set_memory_displacement64(0);
            insn.set_memory_displ_size(0);
            if d.insn.segment_prefix() == Register::FS {
                insn.set_segment_prefix(Register::GS);
            }
            let n = reg.number() as u8;
            let mut enc = Encoder::new(64);
            if enc.encode(&insn, 0).is_err() {
                continue;
            }
            let code = enc.take_buffer();
            self.buf.store(self.cells.scratch, n);
            self.buf.mov_imm(n, target);
            self.buf.put(&code);
            self.buf.load(n, self.cells.scratch);
            return Some(n);
        }
        self.site(Site {
            pc: d.pc(),
            what: SiteKind::Unsupported("a rip-relative operand far from the code cache"),
        });
        None
    }

    fn jcc(&mut self, src: &dyn CodeSource, d: &Dec) -> Option<u8> {
        let cc = condition(d);
        let target = d.insn.near_branch_target();
        if target > d.pc() {
            self.cond_link(cc, target);
            return None;
        }
        // The transfer ticks: an inverted jump over the tick leaves the block.
        self.cond_link(cc ^ 1, d.insn.next_ip());
        self.fallthrough = None;
        self.taken(src, d.pc(), target, Taken::Conditional)
    }

    fn count_jump(&mut self, src: &dyn CodeSource, d: &Dec) -> Option<u8> {
        // The native instruction over the jump that leaves.
        let target = d.insn.near_branch_target();
        self.buf.align_field(d.len() + 1);
        self.buf.put(d.raw());
        let rel8 = self.buf.pos() - 1;
        self.jump_link(d.insn.next_ip());
        self.buf.short_here(rel8);
        self.fallthrough = None;
        self.taken(src, d.pc(), target, Taken::Conditional)
    }

    /// A direct transfer from `from` to `to` that is taken, with its tick if it has one. Ends the block.
    fn taken(&mut self, src: &dyn CodeSource, from: u64, to: u64, kind: Taken) -> Option<u8> {
        if to > from {
            self.jump_link(to);
            return None;
        }
        let link = self.links.len();
        let dead = self.flags_dead(src, to);
        // What has come round is likely to go on.
        let to = match kind {
            Taken::Call => to,
            _ if to == self.start && self.rounds => to | LOOP,
            _ if dead
                && to != self.start
                && self.options.unroll
                && self.purpose != Purpose::Step =>
            {
                to | WIDE_LOOP
            }
            _ => to,
        };
        if dead {
            let clk = self.next_clock();
            match kind {
                // A loop: the sign jump is its edge.
                Taken::Conditional => {
                    self.buf.align_field(Buf::add_one_len(self.cells.clk) + 2);
                    self.buf.add_one(clk);
                    match self.calm {
                        None => self.cond_link(8, to),
                        Some(calm) => {
                            self.buf.put(&[0x0f, 0x89]);
                            self.tick_stub(link);
                            self.buf.compare_zero(calm);
                            self.cond_link(5, to);
                        }
                    }
                    self.buf.put(&[0xe9]);
                    self.tick_stub(link);
                }
                // Code that runs for the first time mispredicts conditional jumps that are taken, others hardly.
                Taken::Always | Taken::Call => {
                    self.buf
                        .align_field(Buf::add_one_len(self.cells.clk) + 6 + 1);
                    self.buf.add_one(clk);
                    self.buf.put(&[0x0f, 0x89]);
                    self.tick_stub(link);
                    if let Some(calm) = self.calm {
                        self.buf.compare_zero(calm);
                        self.buf.put(&[0x0f, 0x84]);
                        self.tick_stub(link);
                    }
                    self.jump_link(to);
                }
            }
            return None;
        }
        self.buf.store(self.cells.scratch, RCX);
        let slow = self.flagless_tick();
        let poked = self.calm.map(|calm| {
            self.buf.load32(RCX, calm);
            self.buf.put(&[0xe3, 0]);
            self.buf.pos() - 1
        });
        self.buf.load(RCX, self.cells.scratch);
        self.jump_link(to);
        self.buf.short_here(slow);
        if let Some(poked) = poked {
            self.buf.short_here(poked);
        }
        self.buf.load(RCX, self.cells.scratch);
        self.buf.put(&[0xe9]);
        self.tick_stub(link);
        Some(RCX)
    }

    /// The counter for the next tick.
    fn next_clock(&mut self) -> Cell {
        let n = self.next_counter();
        self.clock_of(n)
    }

    /// Its number.
    fn next_counter(&mut self) -> u8 {
        let n = self.ticks_emitted % COUNTERS as u32;
        self.ticks_emitted = self.ticks_emitted.wrapping_add(1);
        n as u8
    }

    fn clock_of(&self, counter: u8) -> Cell {
        self.cells.clk.plus(8 * u32::from(counter))
    }

    /// The rel32 field of a jump to a stub that leaves because the transfer of the link with this index found the limit.
    fn tick_stub(&mut self, link: usize) {
        self.ticks.push(NewTick {
            field: self.buf.pos() as u32,
            link: link as u32,
            slot: 0,
        });
        self.buf.put32(0);
    }

    /// Advances the clock through rcx without touching flags. Returns the place of the short displacement that is
    /// taken at the limit. `note_stop` knows this sequence.
    fn flagless_tick(&mut self) -> usize {
        self.flagless_check();
        self.buf.put(&[0xe3, 0]);
        self.buf.pos() - 1
    }

    /// Advances the clock through rcx and leaves its upper half there, so that `jecxz` (its opcode follows) finds the limit.
    /// Not read back from memory where there is `rorx`: that load is not forwarded for free, as it takes a part of what was
    /// stored (half the time of a tick in code that stores a lot). A request that comes behind the store is seen at the
    /// next tick.
    fn flagless_check(&mut self) {
        let clk = self.next_clock();
        self.buf.flagless_update(clk, 1);
        if self.has_rorx {
            // rorx rcx, rcx, 32
            self.buf.put(&[0xc4, 0xe3, 0xfb, 0xf0, 0xc9, 32]);
        } else {
            self.buf.load32(RCX, clk.plus(4));
        }
        self.buf.put(&[0x67]);
    }

    fn flags_dead(&mut self, src: &dyn CodeSource, pc: u64) -> bool {
        if !self.options.flags_liveness || src.unsteady(pc) {
            return false;
        }
        let Ok(bytes) = src.fetch(pc) else {
            return false;
        };
        match liveness::all_dead(pc, bytes, self.decoder_options, self.faults) {
            Some(end) => {
                self.ranges.push((pc, end));
                true
            }
            None => false,
        }
    }

    /// `jmp` to a translation of `target`.
    fn jump_link(&mut self, target: u64) {
        self.buf.align_field(1);
        self.buf.put(&[0xe9]);
        self.link_field(target);
    }

    /// `jcc` to a translation of `target`.
    fn cond_link(&mut self, cc: u8, target: u64) {
        self.buf.align_field(2);
        self.buf.put(&[0x0f, 0x80 | cc]);
        self.link_field(target);
    }

    fn link_field(&mut self, target: u64) {
        let field = self.buf.pos() as u32;
        self.buf.put32(0);
        self.links.push(NewLink { target, field });
    }

    fn push_imm(&mut self, v: u64) {
        self.buf.put(&[0x68]);
        self.buf.put32(v as u32 as i32);
    }

    fn push_return(&mut self, pc: u64) -> Option<u8> {
        if fits_push(pc) {
            self.push_imm(pc);
            // A flagless tick that follows spills rcx, but only behind the push.
            return None;
        }
        self.buf.store(self.cells.scratch, RCX);
        self.buf.mov_imm(RCX, pc);
        self.buf.put(&[0x51]);
        self.buf.load(RCX, self.cells.scratch);
        Some(RCX)
    }

    /// Loads the target of an indirect jump or call into rcx, whose value is in the scratch slot.
    fn load_target(&mut self, d: &Dec) {
        let raw = d.raw();
        let mut gs = false;
        let mut addr32 = false;
        let mut at = 0;
        while let Some(b) = raw.get(at) {
            match b {
                0x64 => gs = true,
                0x67 => addr32 = true,
                0x66 | 0xf2 | 0xf3 | 0xf0 | 0x2e | 0x36 | 0x3e | 0x26 | 0x65 => {}
                _ => break,
            }
            at += 1;
        }
        let mut rex = 0u8;
        if let Some(b) = raw.get(at).filter(|b| *b & 0xf0 == 0x40) {
            rex = *b & 0x3;
            at += 1;
        }
        let modrm = raw.get(at + 1).copied().unwrap_or(0);
        let rest = raw.get(at + 2..).unwrap_or(&[]);
        let memory = d.insn.op0_kind() == OpKind::Memory;
        if gs && memory {
            self.buf.put(&[0x65]);
        }
        let rip_relative = memory && modrm & 0xc7 == 5;
        if rip_relative {
            let target = d.insn.ip_rel_memory_address();
            let end = self.buf.here() + 7;
            match i32::try_from(target.wrapping_sub(end) as i64) {
                Ok(rel) => {
                    self.buf.put(&[0x48, 0x8b, 0x0d]);
                    self.buf.put32(rel);
                }
                Err(_) => {
                    // The segment prefix must stand at the load.
                    if gs {
                        self.buf.bytes.pop();
                    }
                    self.buf.mov_imm(RCX, target);
                    if gs {
                        self.buf.put(&[0x65]);
                    }
                    self.buf.put(&[0x48, 0x8b, 0x09]);
                }
            }
            return;
        }
        if addr32 && memory {
            self.buf.put(&[0x67]);
        }
        self.buf.put(&[0x48 | rex, 0x8b, (modrm & 0xc7) | RCX << 3]);
        self.buf.put(rest);
    }

    /// Goes to the translation of the pc in rcx and `target`; the guest's rcx is in the scratch slot.
    fn look_up(&mut self) {
        if !self.options.inline_lookup || self.purpose == Purpose::Step {
            self.buf.jmp_to(self.stubs.miss);
            return;
        }
        // movzx ecx, cx; jmp [rcx*8 + table]
        self.buf.put(&[0x0f, 0xb7, 0xc9, 0xff, 0x24, 0xcd]);
        self.buf.put32(self.table as i32);
    }

    /// The entry for indirect transfers: checks the pc, ticks, restores rcx and falls into the body. The jump taken
    /// for another pc leads to the next entry with the same slot of the table. The check must leave flags alone, as
    /// they may be alive at the real target.
    fn indirect_entry(&mut self, src: &dyn CodeSource, pc: u64, id: u32) {
        let o = self.cells;
        let dead = self.flags_dead(src, pc);
        // What is jumped to seldom comes first, so that the usual way has no taken branch.
        self.buf.align_entry(if dead { 5 + 4 } else { 5 + 5 + 4 });
        let mismatch = self.buf.pos();
        self.buf.jmp_to(self.stubs.miss);
        let slow = self.buf.pos();
        if !dead {
            self.buf.jmp_to(self.stubs.indirect_tick);
        }
        self.buf.put32(id as i32);
        self.entry = self.buf.pos();
        self.chain_field = self.entry - (mismatch + 1);
        self.buf.load(RCX, o.target);
        // `loop` takes 1 off and jumps if that does not give 0. It is slow on Intel's processors.
        let bias = u64::from(self.loop_is_fast);
        let minus = bias.wrapping_sub(pc);
        if let Ok(disp) = i32::try_from(minus as i64) {
            self.buf.add_to_rcx(disp);
        } else {
            const RDX: u8 = 2;
            self.buf.store(o.scratch.plus(8), RDX);
            self.buf.mov_imm(RDX, minus);
            self.buf.put(&[0x48, 0x8d, 0x0c, 0x11]);
            self.buf.load(RDX, o.scratch.plus(8));
        }
        if self.loop_is_fast {
            self.buf.short_back(0xe2, mismatch);
        } else {
            self.buf.put(&[0xe3, 2]);
            self.buf.short_back(0xeb, mismatch);
        }
        if dead {
            let clk = self.next_clock();
            self.buf.add_one(clk);
            self.buf.put(&[0x0f, 0x89]);
            let rel = self.stubs.indirect_tick.wrapping_sub(self.buf.here() + 4) as i32;
            self.buf.put32(rel);
            if let Some(calm) = self.calm {
                self.buf.compare_zero(calm);
                self.buf.put(&[0x0f, 0x84]);
                let rel = self.stubs.indirect_tick.wrapping_sub(self.buf.here() + 4) as i32;
                self.buf.put32(rel);
            }
        } else {
            self.flagless_check();
            self.buf.short_back(0xe3, slow);
            if let Some(calm) = self.calm {
                self.buf.load32(RCX, calm);
                self.buf.short_back(0xe3, slow);
            }
        }
        self.buf.load(RCX, o.scratch);
    }

    /// An indirect entry for a translation that has none, with a jump to `body`.
    pub(crate) fn separate_entry(
        &mut self,
        src: &dyn CodeSource,
        pc: u64,
        id: u32,
        host: u64,
        body: u64,
    ) {
        self.buf.start(host);
        self.ranges.clear();
        self.indirect_entry(src, pc, id);
        self.buf.jmp_to(body);
    }
}

/// The condition of a conditional jump, as in its opcode.
fn condition(d: &Dec) -> u8 {
    (d.insn.condition_code() as u8).wrapping_sub(1) & 15
}

fn fits_push(pc: u64) -> bool {
    pc < 1 << 31
}

fn fetch(src: &dyn CodeSource, pc: u64) -> Result<&[u8], FetchFault> {
    src.fetch(pc).and_then(|s| {
        if s.is_empty() {
            Err(FetchFault { addr: pc })
        } else {
            Ok(s)
        }
    })
}

/// Makes the `fs` prefixes of one instruction `gs` prefixes.
fn fs_to_gs(bytes: &mut [u8]) {
    for b in bytes {
        match *b {
            0x64 => *b = 0x65,
            0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3 | 0x2e | 0x36 | 0x3e | 0x26 | 0x65 => {}
            _ => break,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::rounds::{FIRST_ROUNDS, ROUNDS};
    use super::unroll::COPIES;
    use super::*;
    use crate::emit::Cells;
    use iced_x86::{FlowControl, Mnemonic};
    use std::collections::HashSet;

    /// Code at 0x40_0000, and nothing else.
    struct Bytes(Vec<u8>);

    const PC: u64 = 0x40_0000;
    const HOST: u64 = 0x7020_0000;

    impl CodeSource for Bytes {
        fn fetch(&self, pc: u64) -> Result<&[u8], FetchFault> {
            self.0
                .get(pc.wrapping_sub(PC) as usize..)
                .ok_or(FetchFault { addr: pc })
        }
        fn translated(&self, _: u64, _: u64) {}
    }

    fn translate(code: &[u8], host: u64) -> (Translator, Vec<Instruction>) {
        translate_for(Purpose::Direct, code, host)
    }

    fn translate_for(purpose: Purpose, code: &[u8], host: u64) -> (Translator, Vec<Instruction>) {
        let mut t = translator();
        let out = translate_with(&mut t, purpose, code, host);
        (t, out)
    }

    fn translator() -> Translator {
        let stubs = Stubs {
            miss: HOST - 64,
            indirect_tick: HOST - 32,
            ..Stubs::default()
        };
        let cells = Cells::fixed(HOST - 4096);
        Translator::new(Options::default(), cells, stubs, 0x7000_0000)
    }

    fn translate_with(
        t: &mut Translator,
        purpose: Purpose,
        code: &[u8],
        host: u64,
    ) -> Vec<Instruction> {
        let ids = NextIds {
            frag: 1,
            ..NextIds::default()
        };
        t.translate(&Bytes(code.to_vec()), PC, host, purpose, ids, &|_| false)
            .expect("code");
        Decoder::with_ip(64, &t.buf.bytes, host, 0).iter().collect()
    }

    fn one_line(host: u64, t: &Translator) {
        for l in &t.links {
            let at = host + u64::from(l.field);
            assert_eq!(at & !63, (at + 3) & !63, "field at {at:#x}");
        }
    }

    #[test]
    fn comparison_and_jump_stay_together_at_every_alignment() {
        // cmp rax, rbx; jb +0x10 / jb -5; ud2
        for jump in [0x10u8, 0xfb] {
            for skew in 0..64 {
                let (t, out) = translate(&[0x48, 0x39, 0xd8, 0x72, jump, 0x0f, 0x0b], HOST + skew);
                one_line(HOST + skew, &t);
                let cmp = out
                    .iter()
                    .position(|i| i.mnemonic() == Mnemonic::Cmp)
                    .expect("cmp");
                assert_eq!(
                    out[cmp + 1].flow_control(),
                    FlowControl::ConditionalBranch,
                    "{skew}"
                );
            }
        }
    }

    fn add_amounts(out: &[Instruction]) -> Vec<i64> {
        let to_counter = out
            .iter()
            .filter(|i| i.mnemonic() == Mnemonic::Add && i.op0_kind() == OpKind::Memory);
        to_counter.map(|i| i.immediate(1) as i64).collect()
    }

    #[test]
    fn a_loop_ticks_between_its_jump_and_its_head() {
        // sub ecx, 1; jne -5
        let (t, out) = translate(&[0x83, 0xe9, 0x01, 0x75, 0xfb], HOST);
        let m: Vec<Mnemonic> = out.iter().map(Instruction::mnemonic).collect();
        use Mnemonic::{Add, Je, Jmp, Jns, Js, Sub};
        let mut expected = [Sub, Je, Add, Jns].repeat(FIRST_ROUNDS - 1);
        expected.extend([Sub, Je, Add, Js, Jmp]);
        assert_eq!(m, expected);
        // It goes on in the translation that counts in advance.
        let mut targets = vec![PC + 5; FIRST_ROUNDS];
        targets.push(PC | LOOP);
        assert_eq!(
            t.links.iter().map(|l| l.target).collect::<Vec<_>>(),
            targets
        );
        // Every tick that finds the limit leaves for the head.
        assert_eq!(t.ticks.len(), FIRST_ROUNDS);
        assert!(t.ticks.iter().all(|k| k.link == FIRST_ROUNDS as u32));
    }

    #[test]
    fn rounds_are_counted_in_advance_and_paid_back_at_the_ends() {
        // The same, and cmp eax, eax behind it.
        let code = [0x83, 0xe9, 0x01, 0x75, 0xfb, 0x39, 0xc0];
        let (t, out) = translate_for(Purpose::Loop(Calls::End), &code, HOST);
        let n = ROUNDS as i64;
        // The last copy's end is what its jump falls through to.
        let mut amounts = vec![n, -1];
        amounts.extend((2..=n).rev().map(|k| -k));
        amounts.push(-n);
        assert_eq!(add_amounts(&out), amounts);
        let count = |m| out.iter().filter(|i| i.mnemonic() == m).count();
        assert_eq!((count(Mnemonic::Sub), count(Mnemonic::Jns)), (ROUNDS, 1));
        let mut targets = vec![PC + 5; ROUNDS];
        targets.push(PC);
        assert_eq!(
            t.links.iter().map(|l| l.target).collect::<Vec<_>>(),
            targets
        );
        let counters: HashSet<u64> = out
            .iter()
            .filter(|i| i.mnemonic() == Mnemonic::Add)
            .map(Instruction::ip_rel_memory_address)
            .collect();
        assert_eq!(counters.len(), 1);
    }

    #[test]
    fn a_loop_that_looks_at_the_clock_counts_each_round() {
        let code = [0x83, 0xe9, 0x01, 0x75, 0xfb];
        let mut t = translator();
        t.event_sites.insert(PC);
        let out = translate_with(&mut t, Purpose::Direct, &code, HOST);
        let counters: HashSet<u64> = out
            .iter()
            .filter(|i| i.mnemonic() == Mnemonic::Add && i.op0_kind() == OpKind::Memory)
            .map(Instruction::ip_rel_memory_address)
            .collect();
        assert_eq!(add_amounts(&out), [1; COPIES]);
        assert_eq!(counters.len(), COUNTERS);
        translate_with(&mut t, Purpose::Loop(Calls::End), &code, HOST);
        assert!(t.in_vain());
    }

    #[test]
    fn flags_that_are_read_survive_a_tick() {
        // adc rax, rbx; dec ecx; jne -7: the carry goes round.
        let (_, out) = translate(&[0x48, 0x11, 0xd8, 0xff, 0xc9, 0x75, 0xf9], HOST);
        assert!(out.iter().all(|i| i.mnemonic() != Mnemonic::Add));
        assert!(out.iter().any(|i| i.mnemonic() == Mnemonic::Jecxz));
    }

    #[test]
    fn without_rorx_the_limit_is_read_from_the_counter() {
        let code = [0x48, 0x11, 0xd8, 0xff, 0xc9, 0x75, 0xf9];
        let (mut t, _) = translate(&code, HOST);
        for has_rorx in [true, false] {
            t.has_rorx = has_rorx;
            t.ticks_emitted = 1;
            t.buf.start(HOST);
            t.flagless_tick();
            let out: Vec<Instruction> =
                Decoder::with_ip(64, &t.buf.bytes, HOST, 0).iter().collect();
            let m: Vec<Mnemonic> = out.iter().map(Instruction::mnemonic).collect();
            use Mnemonic::{Jecxz, Lea, Mov, Rorx};
            assert_eq!(m, [Mov, Lea, Mov, if has_rorx { Rorx } else { Mov }, Jecxz]);
            if !has_rorx {
                let counter = out[2].ip_rel_memory_address();
                assert_eq!(out[3].ip_rel_memory_address(), counter + 4);
            }
        }
    }

    #[test]
    fn a_return_pops_before_it_ticks() {
        let (_, out) = translate(&[0xc3], HOST);
        let m: Vec<Mnemonic> = out.iter().map(Instruction::mnemonic).collect();
        assert_eq!(
            m,
            [
                Mnemonic::Mov,
                Mnemonic::Pop,
                Mnemonic::Mov,
                Mnemonic::Movzx,
                Mnemonic::Jmp
            ]
        );
    }

    #[test]
    fn rip_relative_operands_reach_their_target() {
        // mov eax, [rip+0x100]
        let (_, out) = translate(&[0x8b, 0x05, 0x00, 0x01, 0x00, 0x00, 0x0f, 0x0b], HOST);
        assert_eq!(out[0].ip_rel_memory_address(), PC + 6 + 0x100);
    }

    #[test]
    fn forward_jumps_are_followed() {
        // jmp +1; int3; nop; ud2
        let (t, out) = translate(&[0xeb, 0x01, 0xcc, 0x90, 0x0f, 0x0b], HOST);
        assert_eq!(out[0].mnemonic(), Mnemonic::Nop);
        assert!(t.links.is_empty());
    }

    #[test]
    fn what_the_guest_cannot_have_is_undefined() {
        for code in [
            &[0x0f, 0x01, 0xee][..],
            &[0xc7, 0xf8, 0, 0, 0, 0],
            &[0x0f, 0x01, 0xd9],
            &[0x06],
        ] {
            let mut code = code.to_vec();
            code.resize(16, 0x90);
            let (_, out) = translate(&code, HOST);
            assert_eq!(out[0].mnemonic(), Mnemonic::Ud2, "{code:x?}");
        }
    }
}
