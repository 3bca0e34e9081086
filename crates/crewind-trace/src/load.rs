//! Reads the bodies of one segment, raw or compressed, checked, in bounded memory.
//!
//! Segments are read with `pread`, never mapped: a file that someone cuts short meanwhile then gives an
//! error and not SIGBUS.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use zstd::bulk::Decompressor;

use crate::codec::{MAX_BODY, kind_of};
use crate::error::{Result, TraceError};
use crate::event::ThreadId;
use crate::segment::{
    Boundary, FRAME_HEADER_LEN, FRAME_TARGET, Finished, Form, FrameHeader, HEADER_LEN,
    RECORD_HEADER_LEN, RawHeader, ZstHeader, chain_check, chain_next,
};

/// Where a segment's bytes are.
pub(crate) trait Source: Send {
    /// Reads at an offset; fewer bytes than asked for only at the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Number of bytes there are.
    fn size(&self) -> io::Result<u64>;
}

impl Source for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(room) = buf.get_mut(done..)
            && !room.is_empty()
        {
            match FileExt::read_at(self, room, offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl Source for Vec<u8> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(self.len());
        let available = self.get(from..).unwrap_or_default();
        let n = available.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..n), available.get(..n)) {
            to.copy_from_slice(from);
        }
        Ok(n)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

enum Kind {
    Raw(RawHeader),
    Zst(ZstCursor),
}

struct ZstCursor {
    header: ZstHeader,
    /// Frames read.
    frame: u32,
    decompressor: Decompressor<'static>,
    stored: Vec<u8>,
}

/// Reader of one segment's bodies.
pub(crate) struct SegmentReader {
    source: Box<dyn Source>,
    file: PathBuf,
    size: u64,
    kind: Kind,
    /// Bytes read (and decompressed) ahead.
    buf: Vec<u8>,
    /// What of `buf` is not consumed yet.
    window: Range<usize>,
    /// Offset in the file of what follows the window.
    offset: u64,
    /// Content bytes before the window.
    consumed: u64,
    /// The next body in `buf`, checked, when it was looked for already.
    loaded: Option<Range<usize>>,
    /// Chain value after it, in raw segments.
    chain_after: u64,
    /// Records and chain value up to the window. The chain value is of use in raw segments only.
    at: Boundary,
}

/// How much a raw segment's reader reads at once.
const READ_AHEAD: usize = 256 << 10;

/// No zstd block of at most 128 KiB takes less than 4 bytes.
const MAX_ZSTD_RATIO: u64 = 32 << 10;

impl SegmentReader {
    pub(crate) fn open(
        source: Box<dyn Source>,
        file: &Path,
        thread: ThreadId,
        segment: u32,
        form: Form,
    ) -> Result<Self> {
        let io = |e| TraceError::io(file, "read", e);
        let size = source.size().map_err(io)?;
        let mut header = [0; HEADER_LEN];
        let n = source.read_at(&mut header, 0).map_err(io)?;
        if n < HEADER_LEN {
            return Err(TraceError::truncated(file, n as u64, "the header"));
        }
        let (kind, at) = match form {
            Form::Raw => {
                let header = RawHeader::decode(&header, thread, segment, file)?;
                (Kind::Raw(header), header.start)
            }
            Form::Zst => {
                let header = ZstHeader::decode(&header, thread, segment, file)?;
                if size < header.file_len {
                    let what = format!("{} more bytes", header.file_len - size);
                    return Err(TraceError::truncated(file, size, what));
                }
                if size > header.file_len {
                    let what = "there is something after its end";
                    return Err(TraceError::corrupt(file, header.file_len, what));
                }
                let decompressor = Decompressor::new().map_err(io)?;
                let stored = Vec::new();
                (
                    Kind::Zst(ZstCursor {
                        header,
                        frame: 0,
                        decompressor,
                        stored,
                    }),
                    header.start,
                )
            }
        };
        Ok(SegmentReader {
            source,
            file: file.to_owned(),
            size,
            kind,
            buf: Vec::new(),
            window: 0..0,
            offset: HEADER_LEN as u64,
            consumed: 0,
            loaded: None,
            chain_after: at.chain,
            at,
        })
    }

    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    pub(crate) fn form(&self) -> Form {
        match self.kind {
            Kind::Raw(_) => Form::Raw,
            Kind::Zst(_) => Form::Zst,
        }
    }

    /// What the header says about the segment's beginning.
    pub(crate) fn start(&self) -> Boundary {
        match &self.kind {
            Kind::Raw(header) => header.start,
            Kind::Zst(cursor) => cursor.header.start,
        }
    }

    /// What the header says about the segment's end, when it was finished (always, if compressed).
    pub(crate) fn stated_end(&self) -> Option<Boundary> {
        match &self.kind {
            Kind::Raw(header) => header.finish.map(|f| f.end),
            Kind::Zst(cursor) => Some(cursor.header.end),
        }
    }

    /// Whether its writer finished it.
    pub(crate) fn finished(&self) -> Finished {
        match &self.kind {
            Kind::Raw(RawHeader {
                finish: Some(_), ..
            }) => Finished::Yes,
            Kind::Raw(_) => Finished::No,
            Kind::Zst(cursor) => cursor.header.finished,
        }
    }

    /// Records and chain value up to the next body; the clock is the segment's start's.
    pub(crate) fn at(&self) -> Boundary {
        match &self.kind {
            Kind::Raw(_) => self.at,
            // Its chain value is not computed, but known at the end.
            Kind::Zst(cursor) if self.at.records == cursor.header.end.records => Boundary {
                chain: cursor.header.end.chain,
                ..self.at
            },
            Kind::Zst(_) => self.at,
        }
    }

    /// Content bytes consumed.
    pub(crate) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// The next body, or `None` at the end of the segment. Gives the same again until [`Self::advance`].
    pub(crate) fn load(&mut self) -> Result<Option<Range<usize>>> {
        if self.loaded.is_none() {
            self.loaded = match self.kind {
                Kind::Raw(header) => self.load_raw(header)?,
                Kind::Zst(_) => self.load_zst()?,
            };
        }
        Ok(self.loaded.clone())
    }

    /// The bytes of a body that `load` gave.
    pub(crate) fn body(&self, range: Range<usize>) -> &[u8] {
        self.buf.get(range).unwrap_or_default()
    }

    /// Goes on to the next body.
    pub(crate) fn advance(&mut self) {
        if let Some(body) = self.loaded.take() {
            self.consumed += (body.end - self.window.start) as u64;
            self.at.chain = self.chain_after;
            self.at.records += 1;
            self.window.start = body.end;
        }
    }

    /// An error at the current place.
    pub(crate) fn corrupt(&self, what: impl Into<String>) -> TraceError {
        let header = if self.form() == Form::Raw {
            HEADER_LEN as u64
        } else {
            0
        };
        TraceError::corrupt(&self.file, header + self.consumed, what)
    }

    /// Number of records by kind, and content bytes, of a finished raw segment: from the records' heads,
    /// without reading or checking the rest. `None` for others, and when something is wrong.
    pub(crate) fn count_raw(&self) -> Option<([u64; 32], u64)> {
        let Kind::Raw(header) = &self.kind else {
            return None;
        };
        let finish = header.finish?;
        let mut by_kind = [0; 32];
        // The length, the check, and the first byte of the body.
        const HEAD: usize = RECORD_HEADER_LEN + 1;
        let mut window = vec![0; 16 << 10];
        let (mut start, mut len) = (0, 0);
        let mut at = 0;
        while at < finish.len {
            if at + HEAD as u64 > start + len {
                start = at;
                len = self
                    .source
                    .read_at(&mut window, HEADER_LEN as u64 + start)
                    .ok()? as u64;
            }
            let [a, b, c, d, _, _, _, _, first] = *window
                .get((at - start) as usize..len as usize)?
                .first_chunk::<HEAD>()?;
            *by_kind.get_mut(usize::from(kind_of(&[first])?))? += 1;
            at += RECORD_HEADER_LEN as u64 + u64::from(u32::from_le_bytes([a, b, c, d]));
        }
        let records: u64 = by_kind.iter().sum();
        (at == finish.len && records == finish.end.records - header.start.records)
            .then_some((by_kind, finish.len))
    }

    /// Reads content of a finished raw segment from `at` on, as it is stored.
    pub(crate) fn sample_raw(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.source.read_at(buf, HEADER_LEN as u64 + at)
    }

    // -----------------------------------------------------------------------------------------------
    // Raw

    fn load_raw(&mut self, header: RawHeader) -> Result<Option<Range<usize>>> {
        if let Some(finish) = header.finish
            && self.consumed == finish.len
        {
            let agree = finish.end.records == self.at.records && finish.end.chain == self.at.chain;
            return if agree {
                Ok(None)
            } else {
                Err(self.corrupt("the segment's content does not match its finishing checksum"))
            };
        }
        // In an unfinished segment, `committed` is only a lower bound: a writer that was killed may have
        // written one more record, which counts if it passes its check, and the bytes of `committed`
        // have no check of their own.
        let least = header.finish.map_or(header.committed, |finish| finish.len);
        let must = self.consumed < least;
        let limit = if must { least } else { header.capacity };
        match self.check_raw(limit) {
            Ok(Ok(body)) => Ok(Some(body)),
            Ok(Err(what)) if must => Err(what),
            Ok(Err(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The record at the window's start, or why there is none. The outer error is one of reading.
    fn check_raw(&mut self, limit: u64) -> Result<std::result::Result<Range<usize>, TraceError>> {
        let left = limit - self.consumed;
        if left < RECORD_HEADER_LEN as u64 {
            return Ok(Err(self.corrupt("no record fits there")));
        }
        if !self.fill(RECORD_HEADER_LEN, limit)? {
            return Ok(Err(TraceError::truncated(
                &self.file,
                self.size,
                "more records",
            )));
        }
        let head = self
            .buf
            .get(self.window.start..)
            .and_then(|b| b.first_chunk::<8>());
        let Some([a, b, c, d, check @ ..]) = head.copied() else {
            return Ok(Err(self.corrupt("no record fits there")));
        };
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        if len == 0 || len > MAX_BODY || len as u64 > left - RECORD_HEADER_LEN as u64 {
            return Ok(Err(self.corrupt("a record's length is wrong")));
        }
        if !self.fill(RECORD_HEADER_LEN + len, limit)? {
            return Ok(Err(TraceError::truncated(
                &self.file,
                self.size,
                "the rest of a record",
            )));
        }
        let start = self.window.start + RECORD_HEADER_LEN;
        let body = start..start + len;
        let chain = self
            .buf
            .get(body.clone())
            .map_or(0, |b| chain_next(self.at.chain, b));
        if chain_check(chain) != u32::from_le_bytes(check) {
            return Ok(Err(self.corrupt("a record's checksum is wrong")));
        }
        self.chain_after = chain;
        Ok(Ok(body))
    }

    /// Gets `need` bytes into the window; `false` when the file ends before. Reads nothing that lies
    /// `limit` content bytes or more after the header.
    fn fill(&mut self, need: usize, limit: u64) -> Result<bool> {
        let have = self.window.len();
        if have >= need {
            return Ok(true);
        }
        let end = (limit + HEADER_LEN as u64).min(self.size);
        let left = usize::try_from(end.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        if left < need - have {
            return Ok(false);
        }
        let more = left.min(READ_AHEAD.max(need - have));
        self.buf.copy_within(self.window.clone(), 0);
        self.window = 0..have;
        self.buf.resize(have + more, 0);
        let room = self.buf.get_mut(have..).unwrap_or_default();
        let n = self
            .source
            .read_at(room, self.offset)
            .map_err(|e| TraceError::io(&self.file, "read", e))?;
        self.offset += n as u64;
        self.window.end += n;
        Ok(self.window.len() >= need)
    }

    // -----------------------------------------------------------------------------------------------
    // Compressed

    fn load_zst(&mut self) -> Result<Option<Range<usize>>> {
        if self.window.is_empty() && !self.next_frame()? {
            return Ok(None);
        }
        let content = self.buf.get(self.window.clone()).unwrap_or_default();
        let mut len = 0usize;
        let mut prefix = 0;
        loop {
            let byte = content.get(prefix).copied();
            let Some(byte) = byte.filter(|_| prefix < 5) else {
                return Err(self.corrupt("a record's length is wrong"));
            };
            len |= usize::from(byte & 0x7f) << (7 * prefix);
            prefix += 1;
            if byte < 0x80 {
                break;
            }
        }
        if len == 0 || len > content.len() - prefix {
            return Err(self.corrupt("a record's length is wrong"));
        }
        let start = self.window.start + prefix;
        Ok(Some(start..start + len))
    }

    /// Reads and decompresses the next frame; `false` at the end.
    fn next_frame(&mut self) -> Result<bool> {
        let at = self.at;
        let Kind::Zst(cursor) = &mut self.kind else {
            return Ok(false);
        };
        let file = &self.file;
        let corrupt = |what: &str| TraceError::corrupt(file, self.offset, what);
        if cursor.frame == cursor.header.frames {
            if self.offset != self.size || at.records != cursor.header.end.records {
                return Err(corrupt("the segment's content does not match its header"));
            }
            return Ok(false);
        }
        let read = |buf: &mut [u8], offset: u64| match self.source.read_at(buf, offset) {
            Ok(n) if n == buf.len() => Ok(()),
            Ok(n) => Err(TraceError::truncated(
                file,
                offset + n as u64,
                "the rest of a frame",
            )),
            Err(e) => Err(TraceError::io(file, "read", e)),
        };
        let mut header = [0; FRAME_HEADER_LEN];
        read(&mut header, self.offset)?;
        let header = FrameHeader::decode(&header);
        let left = self
            .size
            .saturating_sub(self.offset + FRAME_HEADER_LEN as u64);
        let content = header.content as usize;
        if u64::from(header.stored) > left
            || content == 0
            || content > MAX_BODY + FRAME_TARGET
            || content as u64 > u64::from(header.stored) * MAX_ZSTD_RATIO
        {
            return Err(corrupt("a frame's sizes are wrong"));
        }
        cursor.stored.resize(header.stored as usize, 0);
        read(&mut cursor.stored, self.offset + FRAME_HEADER_LEN as u64)?;
        self.buf.clear();
        self.buf.reserve_exact(content);
        let n = cursor
            .decompressor
            .decompress_to_buffer(&cursor.stored, &mut self.buf);
        if n.ok() != Some(content) {
            return Err(corrupt("a frame cannot be decompressed"));
        }
        let place = frame_place(cursor.header.start);
        let hash = FrameHeader::hash_of(&self.buf, header.stored, cursor.frame, place);
        if hash != header.hash {
            return Err(corrupt("a frame's checksum is wrong"));
        }
        cursor.frame += 1;
        self.offset += FRAME_HEADER_LEN as u64 + u64::from(header.stored);
        self.window = 0..content;
        Ok(true)
    }
}

/// What binds a frame's hash to its segment.
pub(crate) fn frame_place(start: Boundary) -> u64 {
    start.chain.wrapping_add(start.records)
}
