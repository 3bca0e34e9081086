//! Segments: the files that a stream consists of, their names, headers and checks.
//!
//! A *raw* segment is written in place through a mapping, a *compressed* one is made from a finished raw
//! one. Both hold the same bodies (see `codec`), framed differently:
//!
//! ```text
//! raw:        header | { len u32, check u32, body } ...      (preallocated: zeros follow)
//! compressed: header | { frame header, zstd({ len varint, body } ...) } ...
//! ```
//!
//! The *chain* value runs through all records of a stream: each record's check is a part of the chain
//! value after it. So the check depends on all that came before, and a record that was lost, moved or
//! taken from another stream does not pass. Compressed segments leave the checks out (they are pure
//! entropy, a third of the size) and have one hash per frame instead.

use std::path::Path;

use std::hash::Hasher;

use twox_hash::XxHash3_64;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Result, TraceError};
use crate::event::ThreadId;

/// Version of the trace format. Raised whenever a trace written by the new code would be misread or
/// refused by the old code, or the other way round: a changed meaning or layout of anything stored, a
/// new kind of event. Old versions stay readable, or are refused by name.
pub const FORMAT_VERSION: u32 = 5;

/// Size of both kinds of header.
pub(crate) const HEADER_LEN: usize = 128;
/// What precedes a body in a raw segment.
pub(crate) const RECORD_HEADER_LEN: usize = 8;
/// File size of a stream's first segment.
pub(crate) const FIRST_SEGMENT: usize = 64 << 10;
/// File size of a segment at most, unless one record needs more.
pub(crate) const MAX_SEGMENT: usize = 4 << 20;
/// The same for one that follows a segment mostly of large data: a new file costs the recorded thread
/// about as much as 64 KiB of data.
pub(crate) const MAX_HEAVY_SEGMENT: usize = 64 << 20;
/// Each segment is larger by this factor.
pub(crate) const SEGMENT_GROWTH: usize = 4;

const RAW_MAGIC: [u8; 8] = *b"CREWRAW\n";
const ZST_MAGIC: [u8; 8] = *b"CREWZST\n";
const FINISH_MAGIC: u64 = u64::from_le_bytes(*b"FINISHED");

/// Subdirectory of a trace for the streams.
pub(crate) const STREAMS: &str = "streams";

// ---------------------------------------------------------------------------------------------------
// Names

/// How a segment is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    Raw,
    Zst,
}

impl Form {
    fn extension(self) -> &'static str {
        match self {
            Form::Raw => "raw",
            Form::Zst => "zst",
        }
    }
}

/// File name of a segment.
pub(crate) fn file_name(thread: ThreadId, segment: u32, form: Form) -> String {
    format!("t{}.{segment:06}.{}", thread.0, form.extension())
}

/// The inverse of [`file_name`]; `None` for every other name, temporary files among them.
pub(crate) fn parse_file_name(name: &str) -> Option<(ThreadId, u32, Form)> {
    let mut parts = name.strip_prefix('t')?.split('.');
    let thread = ThreadId(parts.next()?.parse().ok()?);
    let segment = parts.next()?.parse().ok()?;
    let form = match parts.next()? {
        "raw" => Form::Raw,
        "zst" => Form::Zst,
        _ => return None,
    };
    // Only the canonical spelling, so that no two names mean the same segment.
    (parts.next().is_none() && file_name(thread, segment, form) == name)
        .then_some((thread, segment, form))
}

// ---------------------------------------------------------------------------------------------------
// Checks

/// Both implementations of XXH3 give the same. This one has the smaller fixed cost, and the other uses
/// the vector instructions that the machine has: twice as fast for long input.
const LONG: usize = 1 << 10;

/// The hash of a body.
#[inline]
fn body_hash(body: &[u8]) -> u64 {
    if body.len() < LONG {
        xxh3_64(body)
    } else {
        XxHash3_64::oneshot(body)
    }
}

#[inline]
fn chain_step(chain: u64, hash: u64) -> u64 {
    (chain.rotate_left(23) ^ hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The chain value after a record with this body.
#[inline]
pub(crate) fn chain_next(chain: u64, body: &[u8]) -> u64 {
    chain_step(chain, body_hash(body))
}

/// The chain value after a record whose body consists of these parts.
pub(crate) fn chain_next_parts<'a>(chain: u64, parts: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut hasher = XxHash3_64::new();
    parts.for_each(|part| hasher.write(part));
    chain_step(chain, hasher.finish())
}

/// The part of a chain value that is stored with the record.
#[inline]
pub(crate) fn chain_check(chain: u64) -> u32 {
    (chain >> 32) as u32
}

/// The chain value a stream starts with.
pub(crate) fn chain_start(thread: ThreadId) -> u64 {
    xxh3_64(&thread.0.to_le_bytes())
}

// ---------------------------------------------------------------------------------------------------
// Where a segment stands in its stream

/// A place between two records of a stream, as both neighbours of a segment boundary know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Boundary {
    /// Clock of the record before.
    pub clock: u64,
    /// Number of records before.
    pub records: u64,
    /// Chain value.
    pub chain: u64,
}

impl Boundary {
    pub(crate) fn stream_start(thread: ThreadId) -> Self {
        Boundary {
            clock: 0,
            records: 0,
            chain: chain_start(thread),
        }
    }
}

struct Fields<'a> {
    bytes: &'a mut [u8; HEADER_LEN],
    pos: usize,
}

impl Fields<'_> {
    fn put<const N: usize>(&mut self, v: [u8; N]) {
        // Headers have a fixed layout that fits (see the tests), so there is always room.
        if let Some(room) = self
            .bytes
            .get_mut(self.pos..)
            .and_then(|b| b.first_chunk_mut::<N>())
        {
            *room = v;
        }
        self.pos += N;
    }

    /// Puts the hash of all since `from`.
    fn put_check(&mut self, from: usize) {
        let check = self.bytes.get(from..self.pos).map_or(0, xxh3_64);
        self.put(check.to_le_bytes());
    }
}

struct FieldReader<'a> {
    bytes: &'a [u8; HEADER_LEN],
    pos: usize,
}

impl FieldReader<'_> {
    fn get<const N: usize>(&mut self) -> [u8; N] {
        let v = self
            .bytes
            .get(self.pos..)
            .and_then(|b| b.first_chunk::<N>())
            .copied();
        self.pos += N;
        v.unwrap_or([0; N])
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.get())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.get())
    }

    /// Whether the hash of what was read since `from` follows.
    fn check(&mut self, from: usize) -> bool {
        let expected = self.bytes.get(from..self.pos).map_or(0, xxh3_64);
        self.u64() == expected
    }
}

/// What starts both kinds of header: magic, version, header length, thread, segment.
fn put_intro(f: &mut Fields<'_>, magic: [u8; 8], thread: ThreadId, segment: u32) {
    f.put(magic);
    f.put(FORMAT_VERSION.to_le_bytes());
    f.put((HEADER_LEN as u32).to_le_bytes());
    f.put(thread.0.to_le_bytes());
    f.put(segment.to_le_bytes());
}

fn check_intro(
    f: &mut FieldReader<'_>,
    magic: [u8; 8],
    thread: ThreadId,
    segment: u32,
    file: &Path,
) -> Result<()> {
    if f.get() != magic {
        return Err(TraceError::corrupt(
            file,
            0,
            "it does not start like a segment of a trace",
        ));
    }
    let version = f.u32();
    if version > FORMAT_VERSION {
        return Err(TraceError::FutureVersion {
            path: file.to_owned(),
            found: version,
            supported: FORMAT_VERSION,
        });
    }
    if version == 0 || f.u32() as usize != HEADER_LEN {
        return Err(TraceError::corrupt(
            file,
            8,
            "there never was such a format version",
        ));
    }
    if f.u32() != thread.0 || f.u32() != segment {
        return Err(TraceError::corrupt(
            file,
            16,
            "its header names another thread or segment",
        ));
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------------------
// Raw segments

/// Offset of the published length of the content.
pub(crate) const COMMITTED_AT: usize = 64;
/// Offset of the finish block.
pub(crate) const FINISH_AT: usize = 72;

/// Header of a raw segment. The first part never changes, `committed` grows, and the finish block is
/// zero until the segment is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawHeader {
    pub start: Boundary,
    /// Content bytes there is room for.
    pub capacity: u64,
    /// Content bytes published: at least so many are valid.
    pub committed: u64,
    pub finish: Option<RawFinish>,
}

/// What is known of a finished raw segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawFinish {
    /// Content bytes.
    pub len: u64,
    pub end: Boundary,
}

impl RawHeader {
    /// The header of a new segment.
    pub(crate) fn encode_new(
        thread: ThreadId,
        segment: u32,
        start: Boundary,
        capacity: u64,
    ) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut f = Fields {
            bytes: &mut bytes,
            pos: 0,
        };
        put_intro(&mut f, RAW_MAGIC, thread, segment);
        f.put(start.clock.to_le_bytes());
        f.put(start.records.to_le_bytes());
        f.put(start.chain.to_le_bytes());
        f.put((capacity as u32).to_le_bytes());
        let check = f.bytes.get(..f.pos).map_or(0, xxh3_64);
        f.put(((check >> 32) as u32).to_le_bytes());
        debug_assert_eq!(f.pos, 56);
        bytes
    }

    /// Writes the finish block into a header.
    pub(crate) fn put_finish(header: &mut [u8; HEADER_LEN], finish: RawFinish) {
        let mut f = Fields {
            bytes: header,
            pos: FINISH_AT,
        };
        f.put(FINISH_MAGIC.to_le_bytes());
        f.put(finish.len.to_le_bytes());
        f.put(finish.end.clock.to_le_bytes());
        f.put(finish.end.records.to_le_bytes());
        f.put(finish.end.chain.to_le_bytes());
        f.put_check(FINISH_AT);
        debug_assert!(f.pos <= HEADER_LEN);
    }

    pub(crate) fn decode(
        bytes: &[u8; HEADER_LEN],
        thread: ThreadId,
        segment: u32,
        file: &Path,
    ) -> Result<Self> {
        let mut f = FieldReader { bytes, pos: 0 };
        check_intro(&mut f, RAW_MAGIC, thread, segment, file)?;
        let start = Boundary {
            clock: f.u64(),
            records: f.u64(),
            chain: f.u64(),
        };
        let capacity = u64::from(f.u32());
        let check = bytes.get(..f.pos).map_or(0, xxh3_64);
        if f.u32() != (check >> 32) as u32 {
            return Err(TraceError::corrupt(
                file,
                24,
                "the header's checksum is wrong",
            ));
        }
        if bytes.get(f.pos..COMMITTED_AT) != Some(&[0; 8]) {
            return Err(TraceError::corrupt(
                file,
                f.pos as u64,
                "the header is not zero there",
            ));
        }
        f.pos = COMMITTED_AT;
        let committed = f.u64();
        // A block that does not pass is one whose writing was cut, or is damaged: the records have
        // checks of their own, and the next segment says how many there must have been.
        f.pos = FINISH_AT;
        let magic = f.u64();
        let len = f.u64();
        let end = Boundary {
            clock: f.u64(),
            records: f.u64(),
            chain: f.u64(),
        };
        let passed = f.check(FINISH_AT);
        let finish =
            (magic == FINISH_MAGIC && passed && len <= capacity).then_some(RawFinish { len, end });
        if bytes
            .get(f.pos..)
            .is_some_and(|rest| rest.iter().any(|b| *b != 0))
        {
            return Err(TraceError::corrupt(
                file,
                f.pos as u64,
                "the header is not zero there",
            ));
        }
        // A finished segment's length is known better than from `committed`, which has no check.
        if finish.is_none() && committed > capacity {
            return Err(TraceError::corrupt(
                file,
                COMMITTED_AT as u64,
                "its length is too large",
            ));
        }
        Ok(RawHeader {
            start,
            capacity,
            committed,
            finish,
        })
    }
}

// ---------------------------------------------------------------------------------------------------
// Compressed segments

/// Whether the writer finished the segment, or was cut while writing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finished {
    No,
    Yes,
}

/// Header of a compressed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ZstHeader {
    pub start: Boundary,
    pub end: Boundary,
    /// Number of frames.
    pub frames: u32,
    pub finished: Finished,
    /// Size of the file.
    pub file_len: u64,
}

impl ZstHeader {
    pub(crate) fn encode(&self, thread: ThreadId, segment: u32) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut f = Fields {
            bytes: &mut bytes,
            pos: 0,
        };
        put_intro(&mut f, ZST_MAGIC, thread, segment);
        for boundary in [self.start, self.end] {
            f.put(boundary.clock.to_le_bytes());
            f.put(boundary.records.to_le_bytes());
            f.put(boundary.chain.to_le_bytes());
        }
        f.put(self.frames.to_le_bytes());
        f.put(match self.finished {
            Finished::No => 0u32.to_le_bytes(),
            Finished::Yes => 1u32.to_le_bytes(),
        });
        f.put(self.file_len.to_le_bytes());
        f.put_check(0);
        debug_assert!(f.pos <= HEADER_LEN);
        bytes
    }

    pub(crate) fn decode(
        bytes: &[u8; HEADER_LEN],
        thread: ThreadId,
        segment: u32,
        file: &Path,
    ) -> Result<Self> {
        let mut f = FieldReader { bytes, pos: 0 };
        check_intro(&mut f, ZST_MAGIC, thread, segment, file)?;
        let start = Boundary {
            clock: f.u64(),
            records: f.u64(),
            chain: f.u64(),
        };
        let end = Boundary {
            clock: f.u64(),
            records: f.u64(),
            chain: f.u64(),
        };
        let frames = f.u32();
        let finished = f.u32();
        let file_len = f.u64();
        if !f.check(0) {
            return Err(TraceError::corrupt(
                file,
                24,
                "the header's checksum is wrong",
            ));
        }
        if bytes
            .get(f.pos..)
            .is_some_and(|rest| rest.iter().any(|b| *b != 0))
        {
            return Err(TraceError::corrupt(
                file,
                f.pos as u64,
                "the header is not zero there",
            ));
        }
        if end.records < start.records {
            return Err(TraceError::corrupt(
                file,
                24,
                "the header's counts contradict each other",
            ));
        }
        let finished = if finished == 1 {
            Finished::Yes
        } else {
            Finished::No
        };
        Ok(ZstHeader {
            start,
            end,
            frames,
            finished,
            file_len,
        })
    }
}

/// Content bytes after which a frame ends; a record is never divided, so one can make it larger.
pub(crate) const FRAME_TARGET: usize = 256 << 10;
/// Size of a frame header.
pub(crate) const FRAME_HEADER_LEN: usize = 16;

/// What precedes each frame's compressed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    /// Compressed bytes that follow.
    pub stored: u32,
    /// Size of the content.
    pub content: u32,
    /// See [`FrameHeader::hash_of`].
    pub hash: u64,
}

impl FrameHeader {
    /// The hash of a frame: covers its content, sizes and place in its stream.
    pub(crate) fn hash_of(content: &[u8], stored: u32, frame: u32, place: u64) -> u64 {
        let mut about = [0; 16];
        about[..4].copy_from_slice(&stored.to_le_bytes());
        about[4..8].copy_from_slice(&frame.to_le_bytes());
        about[8..].copy_from_slice(&place.to_le_bytes());
        chain_next(xxh3_64(&about), content)
    }

    pub(crate) fn encode(&self) -> [u8; FRAME_HEADER_LEN] {
        let mut bytes = [0; FRAME_HEADER_LEN];
        bytes[..4].copy_from_slice(&self.stored.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.content.to_le_bytes());
        bytes[8..].copy_from_slice(&self.hash.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; FRAME_HEADER_LEN]) -> Self {
        let [a, b, c, d, e, f, g, h, hash @ ..] = *bytes;
        FrameHeader {
            stored: u32::from_le_bytes([a, b, c, d]),
            content: u32::from_le_bytes([e, f, g, h]),
            hash: u64::from_le_bytes(hash),
        }
    }
}
