//! Whether the arithmetic flags are dead at a pc.
//!
//! A clock update may destroy flags if all are dead. Where guest state becomes visible (a fault, a tick) each dead
//! flag is shown as 0, so that what was destroyed, which depends on the clock's limit, never shows. For that the
//! answer must be monotonic: a flag dead at T with the killing instruction K is dead at every instruction from T to
//! K. So the scan is linear, stops at the first instruction that could leave the line, and never leaves the page of
//! its start.

use crate::insn::{Class, classify};
use iced_x86::{Code, Decoder, FlowControl, Instruction, Mnemonic, OpKind, RflagsBits};

/// OF, SF, ZF, AF, PF, CF in the flags register.
pub(crate) const ARITH: u64 = 0x8d5;

const ALL: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// Enough for the killer to be found where there is one in practice.
const MAX_INSNS: usize = 24;

/// `bytes` cut at the end of the page of `pc`.
pub(crate) fn within_page(pc: u64, bytes: &[u8]) -> &[u8] {
    let room = 4096 - (pc & 4095) as usize;
    bytes.get(..room).unwrap_or(bytes)
}

/// If all arithmetic flags are dead at `pc`: the address behind the last instruction looked at.
pub(crate) fn all_dead(pc: u64, bytes: &[u8], decoder_options: u32, faults: Faults) -> Option<u64> {
    let (dead, end) = scan(pc, bytes, decoder_options, faults, Stop::AtFirstRead);
    (dead == ARITH).then_some(end)
}

/// The arithmetic flags that are dead at `pc`, as in the flags register.
pub(crate) fn dead_flags(pc: u64, bytes: &[u8], decoder_options: u32, faults: Faults) -> u64 {
    scan(pc, bytes, decoder_options, faults, Stop::AtEnd).0
}

/// Whether a fault counts as reading flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Faults {
    /// No: nobody looks at the flags of a faulting instruction. They are shown as zeros.
    ShowZeros,
    /// Yes: the guest handles faults, and its handler sees the flags of that moment.
    ShowFlags,
}

/// Whether an instruction can raise a fault that depends on its operands.
fn can_fault(insn: &Instruction) -> bool {
    if matches!(insn.mnemonic(), Mnemonic::Lea | Mnemonic::Nop) {
        return false;
    }
    insn.op_kinds().any(|k| {
        !matches!(
            k,
            OpKind::Register
                | OpKind::Immediate8
                | OpKind::Immediate8_2nd
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64
        )
    }) || insn.stack_pointer_increment() != 0
        || matches!(insn.mnemonic(), Mnemonic::Div | Mnemonic::Idiv)
        || insn.is_privileged()
}

#[derive(PartialEq)]
enum Stop {
    /// The first flag found alive is enough to know.
    AtFirstRead,
    /// Every flag counts.
    AtEnd,
}

fn scan(pc: u64, bytes: &[u8], decoder_options: u32, faults: Faults, stop: Stop) -> (u64, u64) {
    let mut dec = Decoder::with_ip(64, within_page(pc, bytes), pc, decoder_options);
    let mut open = ALL;
    let mut dead = 0;
    let mut insn = Instruction::default();
    for _ in 0..MAX_INSNS {
        if open == 0 || !dec.can_decode() {
            break;
        }
        dec.decode_out(&mut insn);
        let class = classify(&insn);
        if insn.is_invalid() || insn.flow_control() != FlowControl::Next || class != Class::Plain {
            break;
        }
        if faults == Faults::ShowFlags && can_fault(&insn) {
            break;
        }
        let read = insn.rflags_read() & open;
        if read != 0 && stop == Stop::AtFirstRead {
            break;
        }
        open &= !read;
        let killed = kills(&insn) & open;
        dead |= killed;
        open &= !killed;
    }
    (to_register(dead), dec.ip())
}

/// Whether all arithmetic flags are dead before the first of these instructions, which follow each other as they
/// run. Says yes only where `all_dead` does, so what is destroyed never shows.
pub(crate) fn dead_in<'a>(
    insns: impl Iterator<Item = (&'a Instruction, Class)>,
    faults: Faults,
) -> bool {
    let mut open = ALL;
    let mut page = None;
    for (insn, class) in insns.take(MAX_INSNS) {
        let first = *page.get_or_insert(insn.ip() >> 12);
        if class != Class::Plain
            || insn.flow_control() != FlowControl::Next
            || (insn.next_ip() - 1) >> 12 != first
            || faults == Faults::ShowFlags && can_fault(insn)
            || insn.rflags_read() & open != 0
        {
            return false;
        }
        open &= !kills(insn);
        if open == 0 {
            return true;
        }
    }
    false
}

fn to_register(bits: u32) -> u64 {
    [
        (RflagsBits::CF, 0),
        (RflagsBits::PF, 2),
        (RflagsBits::AF, 4),
        (RflagsBits::ZF, 6),
        (RflagsBits::SF, 7),
        (RflagsBits::OF, 11),
    ]
    .into_iter()
    .filter(|(b, _)| bits & b != 0)
    .map(|(_, at)| 1u64 << at)
    .sum()
}

/// Flags the instruction sets whatever its operands. "Undefined" flags are left out: hardware may pass the old
/// value on. (AF after the logical ones is the exception: it is 0 or 1, never the old value.)
fn kills(insn: &Instruction) -> u32 {
    match insn.mnemonic() {
        Mnemonic::Shl
        | Mnemonic::Sal
        | Mnemonic::Shr
        | Mnemonic::Sar
        | Mnemonic::Rol
        | Mnemonic::Ror
        | Mnemonic::Rcl
        | Mnemonic::Rcr
        | Mnemonic::Shld
        | Mnemonic::Shrd => {
            // A count of 0 leaves all flags alone.
            let last = insn.op_count() - 1;
            if insn.op_kind(last) != OpKind::Immediate8 || insn.immediate(last) & 31 == 0 {
                return 0;
            }
        }
        _ if insn.has_rep_prefix() || insn.has_repne_prefix() => return 0,
        _ => {}
    }
    let sure = insn.rflags_written() | insn.rflags_cleared() | insn.rflags_set();
    let logical = matches!(
        insn.mnemonic(),
        Mnemonic::And | Mnemonic::Or | Mnemonic::Xor | Mnemonic::Test
    );
    let af = if logical && insn.code() != Code::INVALID {
        RflagsBits::AF
    } else {
        0
    };
    (sure & !insn.rflags_undefined()) | af
}
