//! Operands of one call: collected before it, and what the kernel wrote of them after it.

use crate::special;
use crate::types::{Arg, ArgKind, Args, Buf, Dir, Len, Mem, Row, Shape, Total, When, Wrote};

/// A range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// First address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Where the pointer to an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this argument register.
    Arg(u8),
    /// In guest memory, at this address; it lies inside an earlier operand with [`Role::Struct`].
    Mem(u64),
}

/// What kind of memory an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Plain bytes.
    Flat,
    /// Holds pointers to other operands of the plan, which say where ([`Place::Mem`]).
    Struct,
    /// A futex word: its address is its identity, so it cannot be accessed at another one.
    FutexWord,
}

/// One range of memory that the kernel may access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    /// The argument it belongs to.
    pub arg: u8,
    /// Where the pointer to it is.
    pub place: Place,
    /// Its address.
    pub addr: u64,
    /// Bytes that the kernel accesses at most.
    pub cap: u64,
    /// Direction.
    pub dir: Dir,
    /// How many of its bytes are written, in the case of `when`.
    pub wrote: Wrote,
    /// When it is written.
    pub when: When,
    /// Kind.
    pub role: Role,
    /// How it prints.
    pub shape: Shape,
}

/// How sure the table is about the operands of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Confidence {
    /// Described by the table.
    #[default]
    Known,
    /// An `ioctl` not in the table; its number encodes direction and size, which were believed. What lies
    /// behind pointers inside its argument is not seen.
    Guessed,
    /// Nothing is known: memory near the pointer is compared before and after.
    Unknown,
}

/// The operands of one call. Reusable: [`before_into`] clears it.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The operands; those that hold pointers come before those they point to.
    pub operands: Vec<Operand>,
    /// How sure this is. Worth a warning with the call's name and arguments when not
    /// [`Confidence::Known`].
    pub confidence: Confidence,
    /// Memory as it was before the call, for [`Wrote::Diff`].
    snapshots: Vec<Vec<u8>>,
}

impl Plan {
    /// An empty plan.
    pub fn new() -> Self {
        Self::default()
    }
}

/// Which operands a plan is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// All.
    All,
    /// Only those that may be written.
    Written,
}

/// The kernel moves no more bytes than this in one call (`MAX_RW_COUNT`).
const MAX_RW: u64 = 0x7fff_f000;
/// `UIO_MAXIOV`: calls with longer arrays fail.
const MAX_IOV: u64 = 1024;
/// `PATH_MAX`.
const MAX_PATH: u64 = 4096;
/// A call that fails with `EFAULT` may have written up to the page that faulted. Of operands up to this
/// size everything is reported that can be read; larger ones belong to calls that report a short count.
const MAX_FAULTED: u64 = 1 << 16;

/// Collects all operands of a call, before it is executed.
pub fn before(row: &Row, args: &Args, mem: &dyn Mem) -> Plan {
    let mut plan = Plan::new();
    fill(row, args, mem, Want::All, &mut plan);
    plan
}

/// As [`before`], into a plan made earlier, and only the operands that the call may write. Cheaper: paths
/// and buffers that are only read are not looked at.
pub fn before_into(row: &Row, args: &Args, mem: &dyn Mem, plan: &mut Plan) {
    fill(row, args, mem, Want::Written, plan);
}

fn fill(row: &Row, args: &Args, mem: &dyn Mem, want: Want, plan: &mut Plan) {
    plan.operands.clear();
    plan.snapshots.clear();
    plan.confidence = Confidence::Known;
    let mut builder = Builder {
        row,
        args,
        mem,
        want,
        plan,
        arg: 0,
    };
    for (i, arg) in (0u8..).zip(row.args) {
        builder.arg = i;
        builder.argument(arg);
    }
}

/// Gives the ranges of guest memory that the kernel wrote, in order of address and not overlapping.
/// `mem` is guest memory after the call. `ranges` is cleared first. A range that cannot be read was not
/// written: TCP counts bytes that `MSG_TRUNC` discards without looking at the buffer.
pub fn after(plan: &Plan, ret: i64, mem: &dyn Mem, ranges: &mut Vec<Range>) {
    ranges.clear();
    for op in plan.operands.iter().filter(|op| op.dir.writes()) {
        if ret == -i64::from(libc::EFAULT) {
            if op.cap <= MAX_FAULTED {
                readable_parts(mem, op.addr, op.cap, ranges);
            }
        } else if op.when.met(ret) {
            let start = ranges.len();
            written(plan, op, ret, mem, ranges);
            if is_error(ret) {
                // The call may have failed because of this very address.
                for range in ranges.split_off(start) {
                    readable_parts(mem, range.addr, range.len, ranges);
                }
            }
        }
    }
    normalise(ranges);
}

/// Whether `ret` is in the range that means an errno.
pub(crate) fn is_error(ret: i64) -> bool {
    (-4095..0).contains(&ret)
}

impl When {
    pub(crate) fn met(self, ret: i64) -> bool {
        match self {
            When::Success => !is_error(ret),
            When::Positive => ret > 0,
            When::Above(n) => ret > i64::from(n),
            When::SuccessOr(e) => !is_error(ret) || ret == -i64::from(e),
            When::Errno(e) => ret == -i64::from(e),
            When::Always => true,
        }
    }
}

/// Adds what was written of one operand.
fn written(plan: &Plan, op: &Operand, ret: i64, mem: &dyn Mem, ranges: &mut Vec<Range>) {
    let count = u64::try_from(ret).unwrap_or(0);
    let len = match op.wrote {
        Wrote::Nothing => 0,
        Wrote::All => op.cap,
        Wrote::Ret => count,
        Wrote::RetTimes(n) => count.saturating_mul(n.into()),
        Wrote::RetPlus(n) => count.saturating_add(n.into()),
        Wrote::Share { total, before } => {
            let total = match total {
                Total::Ret => count,
                Total::U32At(addr) => read_u32(mem, addr).unwrap_or(0).into(),
            };
            total.saturating_sub(before)
        }
        Wrote::U32At { addr, scale, plus } => {
            let n = u64::from(read_u32(mem, addr).unwrap_or(0));
            n * u64::from(scale) + u64::from(plus)
        }
        Wrote::U64At(addr) => read_u64(mem, addr).unwrap_or(0),
        Wrote::Fields(fields) => {
            push_fields(ranges, op, 0, fields);
            return;
        }
        Wrote::Elements { size, fields } => {
            let size = u64::from(size.max(1));
            for i in 0..count.min(op.cap / size) {
                push_fields(ranges, op, i * size, fields);
            }
            return;
        }
        Wrote::CStr => c_str_len(mem, op.addr, op.cap).map_or(0, |n| n + 1),
        Wrote::IfChanged(old) => {
            let mut new = [0; 16];
            if mem.read(op.addr, &mut new) && new != old {
                op.cap
            } else {
                0
            }
        }
        Wrote::Diff(snapshot) => {
            if let Some(old) = plan.snapshots.get(usize::from(snapshot)) {
                changed_parts(mem, op.addr, old, ranges);
            }
            return;
        }
    };
    push(ranges, op.addr, len.min(op.cap));
}

fn push(ranges: &mut Vec<Range>, addr: u64, len: u64) {
    if len > 0 {
        ranges.push(Range { addr, len });
    }
}

/// Adds parts of the structure at `base` inside an operand, as far as they fit.
fn push_fields(ranges: &mut Vec<Range>, op: &Operand, base: u64, fields: &[(u32, u32)]) {
    for &(offset, len) in fields {
        let (start, len) = (base + u64::from(offset), u64::from(len));
        if start + len <= op.cap {
            push(ranges, op.addr + start, len);
        }
    }
}

/// Sorts, and joins ranges that overlap.
fn normalise(ranges: &mut Vec<Range>) {
    if ranges.len() < 2 {
        return;
    }
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let end = kept.addr.saturating_add(kept.len);
        let overlap = next.addr < end;
        if overlap {
            kept.len = end.max(next.addr.saturating_add(next.len)) - kept.addr;
        }
        overlap
    });
}

const PAGE: u64 = 4096;

/// Bytes from `addr` to the end of its page.
fn to_page_end(addr: u64) -> u64 {
    PAGE - addr % PAGE
}

/// Adds the pages of a range that can be read. Of a long range only those up to the first that cannot.
fn readable_parts(mem: &dyn Mem, addr: u64, len: u64, ranges: &mut Vec<Range>) {
    let mut done = 0;
    while done < len {
        let at = addr.wrapping_add(done);
        let part = to_page_end(at).min(len - done);
        if mem.read(at, &mut [0]) {
            push(ranges, at, part);
        } else if len > MAX_FAULTED {
            return;
        }
        done += part;
    }
}

/// The bytes from `addr` that can be read, at most `len`.
fn read_prefix(mem: &dyn Mem, addr: u64, len: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut done = 0;
    while done < len {
        let at = addr.wrapping_add(done);
        let part = to_page_end(at).min(len - done);
        let start = bytes.len();
        bytes.resize(start + part as usize, 0);
        if !mem.read(at, &mut bytes[start..]) {
            bytes.truncate(start);
            break;
        }
        done += part;
    }
    bytes
}

/// Reports the changed bytes of `old`, in pieces of 16.
fn changed_parts(mem: &dyn Mem, addr: u64, old: &[u8], ranges: &mut Vec<Range>) {
    let new = read_prefix(mem, addr, old.len() as u64);
    const STEP: usize = 16;
    for (i, (a, b)) in old.chunks(STEP).zip(new.chunks(STEP)).enumerate() {
        if a == b {
            continue;
        }
        let at = addr.wrapping_add((i * STEP) as u64);
        match ranges.last_mut() {
            Some(last) if last.addr.wrapping_add(last.len) == at => last.len += b.len() as u64,
            _ => push(ranges, at, b.len() as u64),
        }
    }
}

pub(crate) fn read_u16(mem: &dyn Mem, addr: u64) -> Option<u16> {
    let mut b = [0; 2];
    (addr != 0 && mem.read(addr, &mut b)).then(|| u16::from_le_bytes(b))
}

pub(crate) fn read_u32(mem: &dyn Mem, addr: u64) -> Option<u32> {
    let mut b = [0; 4];
    (addr != 0 && mem.read(addr, &mut b)).then(|| u32::from_le_bytes(b))
}

pub(crate) fn read_u64(mem: &dyn Mem, addr: u64) -> Option<u64> {
    let mut b = [0; 8];
    (addr != 0 && mem.read(addr, &mut b)).then(|| u64::from_le_bytes(b))
}

/// Length of a string without its terminator; `None` when it has none within `max` readable bytes.
pub(crate) fn c_str_len(mem: &dyn Mem, addr: u64, max: u64) -> Option<u64> {
    let mut chunk = [0; 256];
    let mut done = 0;
    while done < max {
        let at = addr.wrapping_add(done);
        let part = to_page_end(at).min(max - done).min(chunk.len() as u64) as usize;
        let bytes = chunk.get_mut(..part)?;
        if !mem.read(at, bytes) {
            return None;
        }
        if let Some(n) = bytes.iter().position(|&b| b == 0) {
            return Some(done + n as u64);
        }
        done += part as u64;
    }
    None
}

/// The buffers of an iovec array: (address of the element, buffer address, length). Empty when the kernel
/// would refuse the array.
pub(crate) fn iovecs(
    mem: &dyn Mem,
    addr: u64,
    count: u64,
) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
    let count = if count <= MAX_IOV { count } else { 0 };
    (0..count).map_while(move |i| {
        let at = addr.wrapping_add(i * 16);
        Some((
            at,
            read_u64_any(mem, at)?,
            read_u64_any(mem, at.wrapping_add(8))?,
        ))
    })
}

fn read_u64_any(mem: &dyn Mem, addr: u64) -> Option<u64> {
    let mut b = [0; 8];
    mem.read(addr, &mut b).then(|| u64::from_le_bytes(b))
}

/// Collects operands.
pub(crate) struct Builder<'a> {
    /// The call.
    pub row: &'a Row,
    pub args: &'a Args,
    pub mem: &'a dyn Mem,
    pub want: Want,
    pub plan: &'a mut Plan,
    /// The argument at hand.
    pub arg: u8,
}

impl Builder<'_> {
    /// Value of argument `i`.
    pub fn value(&self, i: u8) -> u64 {
        self.args.get(usize::from(i)).copied().unwrap_or(0)
    }

    /// Value of argument `i` as a length, in the width that the kernel gives it.
    fn count(&self, i: u8) -> u64 {
        let value = self.value(i);
        match self.row.args.get(usize::from(i)).map(|arg| arg.kind) {
            Some(ArgKind::Int) => u64::try_from(value as i32).unwrap_or(0),
            Some(ArgKind::Uint) => value & 0xffff_ffff,
            _ => value,
        }
    }

    /// Value of the argument at hand.
    pub fn here(&self) -> u64 {
        self.value(self.arg)
    }

    pub fn u32_at(&self, addr: u64) -> Option<u32> {
        read_u32(self.mem, addr)
    }

    pub fn u64_at(&self, addr: u64) -> Option<u64> {
        read_u64(self.mem, addr)
    }

    /// Adds an operand, unless it is NULL, empty or not wanted.
    pub fn push(&mut self, mut op: Operand) {
        if op.addr == 0 || op.cap == 0 || (self.want == Want::Written && !op.dir.writes()) {
            return;
        }
        op.cap = op.cap.min(u64::MAX - op.addr);
        self.plan.operands.push(op);
    }

    /// An operand that the argument at hand points to.
    pub fn operand(&self, cap: u64, dir: Dir) -> Operand {
        Operand {
            arg: self.arg,
            place: Place::Arg(self.arg),
            addr: self.here(),
            cap,
            dir,
            wrote: if dir.writes() {
                Wrote::All
            } else {
                Wrote::Nothing
            },
            when: When::Success,
            role: Role::Flat,
            shape: Shape::Opaque,
        }
    }

    /// Flat memory that the argument at hand points to, all of it written on success.
    pub fn flat(&mut self, cap: u64, dir: Dir) {
        let op = self.operand(cap, dir);
        self.push(op);
    }

    /// Memory that the pointer at guest address `at` points to.
    pub fn nested(&self, at: u64, addr: u64, cap: u64, dir: Dir) -> Operand {
        Operand {
            place: Place::Mem(at),
            addr,
            ..self.operand(cap, dir)
        }
    }

    /// A structure at the argument that holds pointers.
    pub fn structure(&mut self, cap: u64, dir: Dir, wrote: Wrote) {
        let op = Operand {
            wrote,
            role: Role::Struct,
            ..self.operand(cap, dir)
        };
        self.push(op);
    }

    /// Memory of unknown length at `addr`: what is readable of `cap` bytes is kept, to be compared later.
    pub fn unknown(&mut self, place: Place, addr: u64, cap: u64) {
        let bytes = read_prefix(self.mem, addr, cap);
        let Ok(number) = u16::try_from(self.plan.snapshots.len()) else {
            return;
        };
        let op = Operand {
            place,
            addr,
            wrote: Wrote::Diff(number),
            when: When::Always,
            ..self.operand(bytes.len() as u64, Dir::InOut)
        };
        self.plan.snapshots.push(bytes);
        self.push(op);
    }

    /// As [`Builder::unknown`], for the argument at hand, which may be no pointer at all.
    pub fn unknown_argument(&mut self, cap: u64) {
        // Nothing is mapped below this (vm.mmap_min_addr); small values are numbers.
        if self.here() >= 0x1_0000 {
            self.unknown(Place::Arg(self.arg), self.here(), cap);
        }
    }

    /// The buffers of an iovec array at guest address `addr`.
    pub fn iovec_buffers(&mut self, addr: u64, count: u64, dir: Dir, total: Total, when: When) {
        if self.want == Want::Written && !dir.writes() {
            return;
        }
        let mut before = 0u64;
        for (at, base, len) in iovecs(self.mem, addr, count) {
            let wrote = if dir.writes() {
                Wrote::Share { total, before }
            } else {
                Wrote::Nothing
            };
            let len = len.min(MAX_RW);
            let op = Operand {
                wrote,
                when,
                shape: Shape::Bytes,
                ..self.nested(at, base, len, dir)
            };
            self.push(op);
            before = before.saturating_add(len);
        }
    }

    pub fn length(&self, len: Len) -> u64 {
        match len {
            Len::Bytes(n) => n.into(),
            Len::Arg(i) => self.count(i).min(MAX_RW),
            Len::Times(i, n) => self.count(i).saturating_mul(n.into()).min(MAX_RW),
            Len::Plus(i, n) => self.count(i).min(MAX_RW).saturating_add(n.into()),
            Len::SelfSized(max) => self.u32_at(self.here()).unwrap_or(0).min(max).into(),
        }
    }

    fn argument(&mut self, arg: &Arg) {
        match arg.kind {
            ArgKind::Buf(Buf {
                dir,
                len,
                wrote,
                when,
                shape,
            }) => {
                if self.here() == 0 || (self.want == Want::Written && !dir.writes()) {
                    return;
                }
                let cap = self.length(len);
                let op = Operand {
                    wrote,
                    when,
                    shape,
                    ..self.operand(cap, dir)
                };
                self.push(op);
            }
            ArgKind::Path => {
                if self.want == Want::All
                    && self.here() != 0
                    && let Some(n) = c_str_len(self.mem, self.here(), MAX_PATH)
                {
                    self.flat(n + 1, Dir::In);
                }
            }
            ArgKind::Iovec { dir, count } => {
                let count = self.value(count);
                let cap = if count <= MAX_IOV { count * 16 } else { 0 };
                self.structure(cap, Dir::In, Wrote::Nothing);
                self.iovec_buffers(self.here(), count, dir, Total::Ret, When::Success);
            }
            ArgKind::RemoteIovec { count } => {
                let count = self.value(count);
                self.flat(if count <= MAX_IOV { count * 16 } else { 0 }, Dir::In);
            }
            kind => special::operands(self, kind),
        }
    }
}
