//! Encoding of one record, and its inverse. Both stand here, event by event, so they cannot drift apart.
//!
//! A *body* is:
//!
//! ```text
//! tag | flags << 5     u8; the meaning of the flags depends on the tag, unused ones are 0
//! clock                varint, difference to the previous record's
//! site                 varint: 0 = a new site, its pc follows in 8 bytes; n = the nth new site so far
//! regs                 u32
//! fields               as in `encode_event`
//! ```
//!
//! Integers are little-endian. A *varint* is LEB128. A *group* of values holds one nibble per value, its
//! number of significant bytes (0..=8), and then these bytes: addresses cost a store, not a loop.
//!
//! Bodies depend on a [`State`], which starts anew with each segment, except for the clock. Its values
//! are differences with wrap-around, so every value can be encoded, sensible or not.

use std::borrow::Cow;

use crate::event::{Edge, Event, FileRef, MemWrite, ProcId, Record, StartHow, Stop, ThreadId};

/// Tags, for statistics too: number and name of each kind of event.
pub(crate) mod tag {
    pub const PROCESS_START: u8 = 1;
    pub const THREAD_START: u8 = 2;
    pub const IMAGE: u8 = 3;
    pub const SYSCALL: u8 = 4;
    pub const FILE_MAPPING: u8 = 5;
    pub const INSN: u8 = 6;
    pub const SIGNAL: u8 = 7;
    pub const PREEMPT: u8 = 8;
    pub const FORK: u8 = 9;
    pub const CLONE: u8 = 10;
    pub const EXEC: u8 = 11;
    pub const THREAD_EXIT: u8 = 12;
    pub const PROCESS_EXIT: u8 = 13;
    pub const KILLED: u8 = 14;
    pub const FILE_DATA: u8 = 15;
    pub const SYNC: u8 = 16;
    pub const SHARED: u8 = 17;

    /// One more than the largest tag; there is room for 31.
    pub const COUNT: usize = 18;
    /// By tag.
    pub const NAMES: [&str; COUNT] = [
        "",
        "process-start",
        "thread-start",
        "image",
        "syscall",
        "file-mapping",
        "insn",
        "signal",
        "preempt",
        "fork",
        "clone",
        "exec",
        "thread-exit",
        "process-exit",
        "killed",
        "file-data",
        "sync",
        "shared",
    ];
}

const TAG_BITS: u32 = 5;
const TAG_MASK: u8 = (1 << TAG_BITS) - 1;
const FLAG_0: u8 = 1 << TAG_BITS;
const FLAG_1: u8 = 2 << TAG_BITS;
const FLAG_2: u8 = 4 << TAG_BITS;

/// Sum of the data bytes that one record may carry (outputs, image description, siginfo); larger outputs
/// must be split over several records by whoever writes them.
pub const MAX_RECORD_DATA: usize = 255 << 20;

/// Largest body.
pub(crate) const MAX_BODY: usize = 256 << 20;

/// What encoding a record needs to know of those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Clock of the previous record of the stream.
    pub clock: u64,
    /// Latest turn number in this segment.
    turn: u64,
    /// Latest output sequence number in this segment.
    output: u64,
}

impl State {
    /// The state a segment starts with.
    pub(crate) fn at_segment_start(clock: u64) -> Self {
        State {
            clock,
            turn: 0,
            output: 0,
        }
    }
}

/// The kind of event, readable without decoding the body.
pub(crate) fn kind_of(body: &[u8]) -> Option<u8> {
    body.first().map(|b| b & TAG_MASK)
}

/// Whether a stream may end with an event of this kind.
pub(crate) fn is_last_kind(kind: u8) -> bool {
    matches!(kind, tag::THREAD_EXIT | tag::PROCESS_EXIT | tag::KILLED)
}

// ---------------------------------------------------------------------------------------------------
// Sites

const SITE_SLOTS: usize = 2048;

#[derive(Clone, Copy, Default)]
struct SiteSlot {
    pc: u64,
    /// Number of the site in the segment of `epoch`.
    number: u32,
    epoch: u32,
}

/// The writer's memory of site numbers: direct-mapped, so a lookup costs the same always and nothing is
/// ever allocated. A pc that lost its slot to another gets a second number, which only costs space.
pub(crate) struct SiteCache {
    slots: Box<[SiteSlot]>,
    epoch: u32,
    count: u32,
}

impl SiteCache {
    pub(crate) fn new() -> Self {
        SiteCache {
            slots: vec![SiteSlot::default(); SITE_SLOTS].into_boxed_slice(),
            epoch: 1,
            count: 0,
        }
    }

    /// Forgets all numbers: a new segment begins.
    pub(crate) fn reset(&mut self) {
        self.count = 0;
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            self.slots.fill(SiteSlot::default());
            self.epoch = 1;
        }
    }

    /// The number of `pc`, or `None` when it has just been given the next one.
    #[inline]
    fn number(&mut self, pc: u64) -> Option<u32> {
        let hash = pc.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        let slot = self.slots.get_mut(hash as usize % SITE_SLOTS)?;
        if slot.pc == pc && slot.epoch == self.epoch {
            return Some(slot.number);
        }
        self.count += 1;
        *slot = SiteSlot {
            pc,
            number: self.count,
            epoch: self.epoch,
        };
        None
    }
}

// ---------------------------------------------------------------------------------------------------
// Encoding

/// Data of this size is worth writing from where it is.
const MIN_APART: usize = 4 << 10;

/// Data of a body that was not copied into it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Apart<'d> {
    /// How many copied bytes come before it.
    pub at: usize,
    /// The data.
    pub data: &'d [u8],
}

/// Where a body is encoded to. Running out of room is remembered and nothing is written any more.
pub(crate) struct Sink<'a, 'd> {
    buf: &'a mut [u8],
    pos: usize,
    overflow: bool,
    apart: Option<&'a mut Vec<Apart<'d>>>,
}

impl<'a, 'd> Sink<'a, 'd> {
    pub(crate) fn new(buf: &'a mut [u8]) -> Self {
        Sink {
            buf,
            pos: 0,
            overflow: false,
            apart: None,
        }
    }

    /// A sink that copies all but large data, and notes in `apart` where that belongs.
    pub(crate) fn with_apart(buf: &'a mut [u8], apart: &'a mut Vec<Apart<'d>>) -> Self {
        Sink {
            apart: Some(apart),
            ..Sink::new(buf)
        }
    }

    /// Bytes written, unless there were more than fit.
    pub(crate) fn written(&self) -> Option<usize> {
        (!self.overflow).then_some(self.pos)
    }

    #[inline]
    fn array<const N: usize>(&mut self, bytes: [u8; N]) {
        match self
            .buf
            .get_mut(self.pos..)
            .and_then(|b| b.first_chunk_mut::<N>())
        {
            Some(room) => {
                *room = bytes;
                self.pos += N;
            }
            None => self.overflow = true,
        }
    }

    #[inline]
    fn u8(&mut self, v: u8) {
        self.array([v]);
    }

    #[inline]
    fn varint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.u8(v as u8 | 0x80);
            v >>= 7;
        }
        self.u8(v as u8);
    }

    fn raw(&mut self, bytes: &'d [u8]) {
        if bytes.len() >= MIN_APART
            && let Some(apart) = &mut self.apart
        {
            apart.push(Apart {
                at: self.pos,
                data: bytes,
            });
            return;
        }
        match self
            .buf
            .get_mut(self.pos..)
            .and_then(|b| b.get_mut(..bytes.len()))
        {
            Some(room) => {
                room.copy_from_slice(bytes);
                self.pos += bytes.len();
            }
            None => self.overflow = true,
        }
    }

    fn bytes(&mut self, bytes: &'d [u8]) {
        self.varint(bytes.len() as u64);
        self.raw(bytes);
    }

    /// Values by their significant bytes. Needs 8 bytes of room for each, whatever it takes in the end.
    #[inline]
    fn group(&mut self, values: &[u64]) {
        for pair in values.chunks(2) {
            let low = significant_bytes(pair[0]);
            let high = pair.get(1).map_or(0, |v| significant_bytes(*v));
            self.u8((low | high << 4) as u8);
            for (v, n) in pair.iter().zip([low, high]) {
                let before = self.pos;
                self.array(v.to_le_bytes());
                self.pos = before + n;
            }
        }
    }
}

#[inline]
fn significant_bytes(v: u64) -> usize {
    (71 - v.leading_zeros() as usize) / 8
}

#[inline]
fn zigzag(v: i64) -> u64 {
    (v << 1 ^ v >> 63) as u64
}

#[inline]
fn unzigzag(v: u64) -> i64 {
    (v >> 1) as i64 ^ -((v & 1) as i64)
}

/// Upper bound of a body without its data and values: head and all fixed fields.
const FIXED_BOUND: usize = 128;
/// Upper bound of what an output takes besides its data.
const OUT_BOUND: usize = 32;

/// An upper bound of what is left of the record's body when large data is kept apart.
pub(crate) fn bound_copied(record: &Record<'_>) -> usize {
    let apart: usize = match &record.event {
        Event::Syscall { outs, .. } => outs
            .iter()
            .map(|out| out.data.len())
            .filter(|len| *len >= MIN_APART)
            .sum(),
        Event::Image { info } | Event::Signal { info, .. } if info.len() >= MIN_APART => info.len(),
        _ => 0,
    };
    bound(record).saturating_sub(apart)
}

/// Most bytes of an edge: a thread's number, sizes of two values, the values.
const EDGE_BOUND: usize = 5 + 1 + 16;

fn outs_bound(outs: &[MemWrite<'_>]) -> usize {
    outs.iter().fold(0usize, |size, out| {
        size.saturating_add(out.data.len())
            .saturating_add(OUT_BOUND)
    })
}

/// An upper bound of the size of the record's body.
#[inline]
pub(crate) fn bound(record: &Record<'_>) -> usize {
    FIXED_BOUND
        + match &record.event {
            Event::Syscall { args, outs, .. } => args
                .len()
                .saturating_mul(9)
                .saturating_add(outs_bound(outs)),
            Event::Image { info } | Event::Signal { info, .. } => info.len(),
            Event::Insn { values, .. } => values.len().saturating_mul(9),
            Event::Sync { edges, .. } => edges.len().saturating_mul(EDGE_BOUND),
            Event::Shared { writes, .. } => outs_bound(writes),
            _ => 0,
        }
}

/// Encodes a record. The caller checks `sink` for overflow, and must not use `state` and `sites` any
/// more if there was one.
#[inline]
pub(crate) fn encode<'d>(
    record: &'d Record<'_>,
    state: &mut State,
    sites: &mut SiteCache,
    sink: &mut Sink<'_, 'd>,
) {
    sink.u8(head(&record.event));
    sink.varint(record.clock.wrapping_sub(state.clock));
    state.clock = record.clock;
    match sites.number(record.pc) {
        Some(number) => sink.varint(u64::from(number)),
        None => {
            sink.u8(0);
            sink.array(record.pc.to_le_bytes());
        }
    }
    sink.array(record.regs.to_le_bytes());
    encode_event(&record.event, state, sink);
}

/// Tag and flags.
#[inline]
fn head(event: &Event<'_>) -> u8 {
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    match event {
        Event::ProcessStart { parent, .. } => tag::PROCESS_START | flag(parent.is_some(), FLAG_0),
        Event::ThreadStart { .. } => tag::THREAD_START,
        Event::Image { .. } => tag::IMAGE,
        Event::Syscall {
            outs, output, turn, ..
        } => {
            tag::SYSCALL
                | flag(!outs.is_empty(), FLAG_0)
                | flag(output.is_some(), FLAG_1)
                | flag(turn.is_some(), FLAG_2)
        }
        Event::FileMapping { .. } => tag::FILE_MAPPING,
        Event::Insn { .. } => tag::INSN,
        Event::Signal { synchronous, .. } => tag::SIGNAL | flag(*synchronous, FLAG_0),
        Event::Preempt { .. } => tag::PREEMPT,
        Event::Fork { turn, .. } => tag::FORK | flag(turn.is_some(), FLAG_0),
        Event::Clone { .. } => tag::CLONE,
        Event::Exec => tag::EXEC,
        Event::ThreadExit { .. } => tag::THREAD_EXIT,
        Event::ProcessExit {
            status,
            signal,
            memory,
        } => {
            tag::PROCESS_EXIT
                | flag(status.is_some(), FLAG_0)
                | flag(signal.is_some(), FLAG_1)
                | flag(memory.is_some(), FLAG_2)
        }
        Event::Killed => tag::KILLED,
        Event::Sync {
            order, vcpu, stop, ..
        } => {
            tag::SYNC
                | flag(order.is_some(), FLAG_0)
                | flag(vcpu.is_some(), FLAG_1)
                | flag(*stop == Stop::Find, FLAG_2)
        }
        Event::FileData { .. } => tag::FILE_DATA,
        Event::Shared { step, writes } => {
            tag::SHARED | flag(*step, FLAG_0) | flag(!writes.is_empty(), FLAG_1)
        }
    }
}

#[inline]
fn encode_event<'d>(event: &'d Event<'_>, state: &mut State, s: &mut Sink<'_, 'd>) {
    match event {
        Event::ProcessStart {
            proc,
            parent,
            how,
            pid,
        } => {
            s.varint(u64::from(proc.0));
            if let Some(parent) = parent {
                s.varint(u64::from(parent.0));
            }
            s.u8(match how {
                StartHow::Root => 0,
                StartHow::Fork => 1,
                StartHow::Vfork => 2,
            });
            s.varint(zigzag(i64::from(*pid)));
        }
        Event::ThreadStart { proc, tid, turn } => {
            s.varint(u64::from(proc.0));
            s.varint(zigzag(i64::from(*tid)));
            encode_turn(*turn, state, s);
        }
        Event::Image { info } => s.bytes(info),
        Event::Syscall {
            nr,
            args,
            ret,
            outs,
            output,
            turn,
        } => {
            s.varint(u64::from(*nr));
            s.varint(args.len() as u64);
            s.group(args);
            s.group(&[zigzag(*ret)]);
            if !outs.is_empty() {
                encode_outs(outs, args, s);
            }
            if let Some((fd, seq)) = output {
                s.u8(*fd);
                s.varint(seq.wrapping_sub(state.output));
                state.output = *seq;
            }
            if let Some(turn) = turn {
                encode_turn(*turn, state, s);
            }
        }
        Event::FileMapping {
            addr,
            len,
            offset,
            dev,
            ino,
            file,
        } => {
            s.group(&[*addr, *len, *offset, *dev, *ino, file.len]);
            s.array(file.hash);
        }
        Event::FileData {
            addr,
            len,
            offset,
            file,
        } => {
            s.group(&[*addr, *len, *offset, file.len]);
            s.array(file.hash);
        }
        Event::Insn { kind, values } => {
            s.u8(*kind);
            s.varint(values.len() as u64);
            s.group(values);
        }
        Event::Signal {
            signo,
            info,
            fault_addr,
            synchronous: _,
        } => {
            s.u8(*signo);
            s.group(&[*fault_addr]);
            s.bytes(info);
        }
        Event::Preempt { turn } => encode_turn(*turn, state, s),
        Event::Fork {
            child,
            child_thread,
            nr,
            pid,
            turn,
        } => {
            s.varint(u64::from(child.0));
            s.varint(u64::from(child_thread.0));
            s.varint(u64::from(*nr));
            s.varint(zigzag(i64::from(*pid)));
            if let Some(turn) = turn {
                encode_turn(*turn, state, s);
            }
        }
        Event::Clone { thread, tid } => {
            s.varint(u64::from(thread.0));
            s.varint(zigzag(i64::from(*tid)));
        }
        Event::Exec | Event::Killed => {}
        Event::ThreadExit { status } => s.varint(zigzag(i64::from(*status))),
        Event::ProcessExit {
            status,
            signal,
            memory,
        } => {
            if let Some(status) = status {
                s.varint(zigzag(i64::from(*status)));
            }
            if let Some(signal) = signal {
                s.u8(*signal);
            }
            if let Some(memory) = memory {
                s.array(memory.to_le_bytes());
            }
        }
        Event::Sync {
            order,
            vcpu,
            stop: _,
            edges,
        } => {
            if let Some(order) = order {
                encode_turn(*order, state, s);
            }
            if let Some(vcpu) = vcpu {
                s.u8(*vcpu);
            }
            s.varint(edges.len() as u64);
            for e in edges.iter() {
                s.varint(u64::from(e.thread.0));
                s.group(&[e.clock, e.event]);
            }
        }
        Event::Shared { step: _, writes } => {
            if !writes.is_empty() {
                encode_outs(writes, &[], s);
            }
        }
    }
}

#[inline]
fn encode_turn(turn: u64, state: &mut State, s: &mut Sink<'_, '_>) {
    s.varint(turn.wrapping_sub(state.turn));
    state.turn = turn;
}

/// Each output: 0 and its address, or n when it goes to where argument n-1 points; then the data.
fn encode_outs<'d>(outs: &'d [MemWrite<'_>], args: &[u64], s: &mut Sink<'_, 'd>) {
    s.varint(outs.len() as u64);
    for out in outs {
        match args.iter().take(6).position(|a| *a == out.addr) {
            Some(i) => s.u8(i as u8 + 1),
            None => {
                s.u8(0);
                s.array(out.addr.to_le_bytes());
            }
        }
        s.bytes(&out.data);
    }
}

// ---------------------------------------------------------------------------------------------------
// Decoding

/// What is wrong with a body.
pub(crate) type Bad = &'static str;

/// The reader's part of the state.
#[derive(Default)]
pub(crate) struct Decoder {
    state: State,
    /// pc of each site of the segment.
    sites: Vec<u64>,
    /// Values of the record decoded last.
    values: Vec<u64>,
}

impl Decoder {
    /// A new segment begins.
    pub(crate) fn reset(&mut self, clock: u64) {
        self.state = State::at_segment_start(clock);
        self.sites.clear();
    }

    pub(crate) fn clock(&self) -> u64 {
        self.state.clock
    }

    /// Decodes the next body and moves on.
    pub(crate) fn decode<'a>(&'a mut self, body: &'a [u8]) -> Result<Record<'a>, Bad> {
        let Decoder {
            state,
            sites,
            values,
        } = self;
        let (record, after, new_site) = decode(body, *state, sites, values)?;
        *state = after;
        if let Some(pc) = new_site {
            sites.push(pc);
        }
        Ok(record)
    }

    /// Decodes the next body and stays.
    pub(crate) fn peek<'a>(&'a mut self, body: &'a [u8]) -> Result<Record<'a>, Bad> {
        let Decoder {
            state,
            sites,
            values,
        } = self;
        decode(body, *state, sites, values).map(|(record, ..)| record)
    }
}

struct Source<'a> {
    rest: &'a [u8],
}

const SHORT: Bad = "the record ends early";

impl<'a> Source<'a> {
    #[inline]
    fn take(&mut self, n: usize) -> Result<&'a [u8], Bad> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(SHORT)?;
        self.rest = rest;
        Ok(head)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Bad> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(SHORT)?;
        self.rest = rest;
        Ok(*head)
    }

    #[inline]
    fn u8(&mut self) -> Result<u8, Bad> {
        self.array::<1>().map(|[b]| b)
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Bad> {
        let mut v = 0u64;
        let mut shift = 0;
        loop {
            let b = self.u8()?;
            if shift == 63 && b > 1 {
                return Err("a number is too large");
            }
            v |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return Ok(v);
            }
            shift += 7;
        }
    }

    fn varint_u32(&mut self) -> Result<u32, Bad> {
        u32::try_from(self.varint()?).map_err(|_| "a number is larger than 32 bits")
    }

    fn varint_i32(&mut self) -> Result<i32, Bad> {
        i32::try_from(unzigzag(self.varint()?)).map_err(|_| "a number is larger than 32 bits")
    }

    /// A count of things of which each takes at least `min_half_bytes` half bytes of what is left.
    fn count(&mut self, min_half_bytes: usize) -> Result<usize, Bad> {
        let n = usize::try_from(self.varint()?).map_err(|_| SHORT)?;
        if n.saturating_mul(min_half_bytes) > self.rest.len().saturating_mul(2) {
            return Err(SHORT);
        }
        Ok(n)
    }

    fn bytes(&mut self) -> Result<&'a [u8], Bad> {
        let n = usize::try_from(self.varint()?).map_err(|_| SHORT)?;
        self.take(n)
    }

    #[inline]
    fn group(&mut self, count: usize, mut each: impl FnMut(u64)) -> Result<(), Bad> {
        let mut left = count;
        while left > 0 {
            let lens = self.u8()?;
            each(self.significant(lens & 15)?);
            if left > 1 {
                each(self.significant(lens >> 4)?);
            } else if lens >> 4 != 0 {
                return Err("a group of values is malformed");
            }
            left = left.saturating_sub(2);
        }
        Ok(())
    }

    #[inline]
    fn significant(&mut self, n: u8) -> Result<u64, Bad> {
        if n > 8 {
            return Err("a group of values is malformed");
        }
        // Most often there is enough behind it to load 8 bytes and forget the rest.
        if let Some(bytes) = self.rest.first_chunk::<8>() {
            self.take(usize::from(n))?;
            let unused = 64 - 8 * u32::from(n);
            return Ok(u64::from_le_bytes(*bytes)
                .checked_shl(unused)
                .map_or(0, |v| v >> unused));
        }
        let mut le = [0; 8];
        for (to, from) in le.iter_mut().zip(self.take(usize::from(n))?) {
            *to = *from;
        }
        Ok(u64::from_le_bytes(le))
    }

    fn group_of<const N: usize>(&mut self) -> Result<[u64; N], Bad> {
        let mut values = [0; N];
        let mut slots = values.iter_mut();
        self.group(N, |v| {
            if let Some(slot) = slots.next() {
                *slot = v;
            }
        })?;
        Ok(values)
    }
}

#[inline]
fn decode<'a>(
    body: &'a [u8],
    before: State,
    sites: &[u64],
    values: &'a mut Vec<u64>,
) -> Result<(Record<'a>, State, Option<u64>), Bad> {
    let mut s = Source { rest: body };
    let mut state = before;
    let head = s.u8()?;
    state.clock = before.clock.wrapping_add(s.varint()?);
    let (pc, new_site) = match s.varint()? {
        0 => {
            let pc = u64::from_le_bytes(s.array()?);
            (pc, Some(pc))
        }
        n => {
            let i = usize::try_from(n - 1).map_err(|_| "a site number is too large")?;
            (*sites.get(i).ok_or("a site number is too large")?, None)
        }
    };
    let regs = u32::from_le_bytes(s.array()?);
    let event = decode_event(head, &mut s, &mut state, values)?;
    if !s.rest.is_empty() {
        return Err("the record is too long");
    }
    Ok((
        Record {
            clock: state.clock,
            pc,
            regs,
            event,
        },
        state,
        new_site,
    ))
}

#[inline]
fn decode_event<'a>(
    head: u8,
    s: &mut Source<'a>,
    state: &mut State,
    values: &'a mut Vec<u64>,
) -> Result<Event<'a>, Bad> {
    let has = |flag: u8| head & flag != 0;
    let tag = head & TAG_MASK;
    let flags_known = match tag {
        tag::PROCESS_START | tag::SIGNAL | tag::FORK => FLAG_0,
        tag::SHARED => FLAG_0 | FLAG_1,
        tag::SYSCALL | tag::PROCESS_EXIT | tag::SYNC => FLAG_0 | FLAG_1 | FLAG_2,
        _ => 0,
    };
    if head & !TAG_MASK & !flags_known != 0 {
        return Err("unknown flags");
    }
    Ok(match tag {
        tag::PROCESS_START => Event::ProcessStart {
            proc: ProcId(s.varint_u32()?),
            parent: if has(FLAG_0) {
                Some(ProcId(s.varint_u32()?))
            } else {
                None
            },
            how: match s.u8()? {
                0 => StartHow::Root,
                1 => StartHow::Fork,
                2 => StartHow::Vfork,
                _ => return Err("unknown way to start a process"),
            },
            pid: s.varint_i32()?,
        },
        tag::THREAD_START => Event::ThreadStart {
            proc: ProcId(s.varint_u32()?),
            tid: s.varint_i32()?,
            turn: decode_turn(s, state)?,
        },
        tag::IMAGE => Event::Image {
            info: Cow::Borrowed(s.bytes()?),
        },
        tag::SYSCALL => {
            let nr = s.varint_u32()?;
            let count = s.count(1)?;
            values.clear();
            s.group(count, |v| values.push(v))?;
            let args: &'a [u64] = values;
            let [ret] = s.group_of::<1>()?;
            let outs = if has(FLAG_0) {
                decode_outs(s, args)?
            } else {
                Vec::new()
            };
            let output = if has(FLAG_1) {
                let fd = s.u8()?;
                state.output = state.output.wrapping_add(s.varint()?);
                Some((fd, state.output))
            } else {
                None
            };
            let turn = if has(FLAG_2) {
                Some(decode_turn(s, state)?)
            } else {
                None
            };
            Event::Syscall {
                nr,
                args: Cow::Borrowed(args),
                ret: unzigzag(ret),
                outs,
                output,
                turn,
            }
        }
        tag::FILE_MAPPING => {
            let [addr, len, offset, dev, ino, file_len] = s.group_of::<6>()?;
            let file = FileRef {
                hash: s.array()?,
                len: file_len,
            };
            Event::FileMapping {
                addr,
                len,
                offset,
                dev,
                ino,
                file,
            }
        }
        tag::FILE_DATA => {
            let [addr, len, offset, file_len] = s.group_of::<4>()?;
            let file = FileRef {
                hash: s.array()?,
                len: file_len,
            };
            Event::FileData {
                addr,
                len,
                offset,
                file,
            }
        }
        tag::INSN => {
            let kind = s.u8()?;
            let count = s.count(1)?;
            values.clear();
            s.group(count, |v| values.push(v))?;
            Event::Insn {
                kind,
                values: Cow::Borrowed(values),
            }
        }
        tag::SIGNAL => {
            let signo = s.u8()?;
            let [fault_addr] = s.group_of::<1>()?;
            let info = Cow::Borrowed(s.bytes()?);
            Event::Signal {
                signo,
                info,
                fault_addr,
                synchronous: has(FLAG_0),
            }
        }
        tag::PREEMPT => Event::Preempt {
            turn: decode_turn(s, state)?,
        },
        tag::FORK => Event::Fork {
            child: ProcId(s.varint_u32()?),
            child_thread: ThreadId(s.varint_u32()?),
            nr: s.varint_u32()?,
            pid: s.varint_i32()?,
            turn: if has(FLAG_0) {
                Some(decode_turn(s, state)?)
            } else {
                None
            },
        },
        tag::CLONE => Event::Clone {
            thread: ThreadId(s.varint_u32()?),
            tid: s.varint_i32()?,
        },
        tag::EXEC => Event::Exec,
        tag::THREAD_EXIT => Event::ThreadExit {
            status: s.varint_i32()?,
        },
        tag::PROCESS_EXIT => Event::ProcessExit {
            status: if has(FLAG_0) {
                Some(s.varint_i32()?)
            } else {
                None
            },
            signal: if has(FLAG_1) { Some(s.u8()?) } else { None },
            memory: if has(FLAG_2) {
                Some(u64::from_le_bytes(s.array()?))
            } else {
                None
            },
        },
        tag::KILLED => Event::Killed,
        tag::SYNC => {
            let order = if has(FLAG_0) {
                Some(decode_turn(s, state)?)
            } else {
                None
            };
            let vcpu = if has(FLAG_1) { Some(s.u8()?) } else { None };
            /// Least size of an edge: thread, sizes of two values.
            const MIN_HALF_BYTES: usize = 4;
            let count = s.count(MIN_HALF_BYTES)?;
            let mut edges = Vec::with_capacity(count.min(64));
            for _ in 0..count {
                let thread = ThreadId(s.varint_u32()?);
                let [clock, event] = s.group_of::<2>()?;
                edges.push(Edge {
                    thread,
                    clock,
                    event,
                });
            }
            Event::Sync {
                order,
                vcpu,
                stop: if has(FLAG_2) { Stop::Find } else { Stop::Comes },
                edges: Cow::Owned(edges),
            }
        }
        tag::SHARED => Event::Shared {
            step: has(FLAG_0),
            writes: if has(FLAG_1) {
                decode_outs(s, &[])?
            } else {
                Vec::new()
            },
        },
        _ => return Err("unknown kind of event"),
    })
}

fn decode_turn(s: &mut Source<'_>, state: &mut State) -> Result<u64, Bad> {
    state.turn = state.turn.wrapping_add(s.varint()?);
    Ok(state.turn)
}

fn decode_outs<'a>(s: &mut Source<'a>, args: &[u64]) -> Result<Vec<MemWrite<'a>>, Bad> {
    /// Least size of an output: where, length.
    const MIN_HALF_BYTES: usize = 4;
    let count = s.count(MIN_HALF_BYTES)?;
    // A `MemWrite` is larger than its encoding, so its number alone must not decide an allocation.
    let mut outs = Vec::with_capacity(count.min(64));
    for _ in 0..count {
        let addr = match s.u8()? {
            0 => u64::from_le_bytes(s.array()?),
            n => *args
                .get(usize::from(n) - 1)
                .ok_or("an output of an argument that is not there")?,
        };
        outs.push(MemWrite {
            addr,
            data: Cow::Borrowed(s.bytes()?),
        });
    }
    Ok(outs)
}
