//! Writes a thread's stream, through a shared mapping of its current segment.
//!
//! A record counts from the moment the new `committed` is stored, and the mapping's pages belong to the
//! kernel: nothing that counts is lost when the process dies, in whatever way. Space is allocated before
//! a segment is used, so a full disk is an error of `append` and not a SIGBUS.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use crate::anchor::segment_rights;
use crate::codec::{self, Decoder, MAX_BODY, Sink, SiteCache, State};
use crate::error::{Result, TraceError};
use crate::event::{Record, ThreadId};
use crate::limits::LiftedLimits;
use crate::load::SegmentReader;
use crate::reader::{open_segment, segments_of, streams_dir};
use crate::segment::{
    Boundary, COMMITTED_AT, FINISH_AT, FIRST_SEGMENT, Finished, Form, HEADER_LEN,
    MAX_HEAVY_SEGMENT, MAX_SEGMENT, RECORD_HEADER_LEN, RawFinish, RawHeader, SEGMENT_GROWTH,
    STREAMS, chain_check, chain_next, chain_next_parts, file_name,
};
use crate::sys::{self, PAGE, SharedMap, absolute};

/// Pages are made present in steps of this size: a fault for each would cost more.
const POPULATE_STEP: usize = 64 << 10;

/// Records from this size on are written to the file with a system call, from where their data is. The
/// kernel then makes the file's pages as large as the record, while each 4 KiB touched through the mapping
/// cost a fault and an entry in the file system's journal.
const MIN_DIRECT: usize = 16 << 10;

/// Whether large records may be written through a descriptor that is opened for the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptors {
    /// Yes.
    Momentary,
    /// No: another thread of the process may open, use or close descriptors at the same time, and must
    /// not meet one of ours.
    Avoid,
}

/// Writes one thread's stream.
///
/// Dropping it lets go without a mark, so that is what a forked child does with its copy of the
/// parent's writer ([`StreamWriter::detach`]); [`std::mem::forget`] is fine too. The thread's own end
/// should be [`StreamWriter::finish`].
///
/// Not reentrant: a signal handler must not append to a stream that it may have interrupted.
pub struct StreamWriter {
    dir: PathBuf,
    thread: ThreadId,
    segment: u32,
    map: SharedMap,
    /// Offset in the segment's file of the next record.
    pos: usize,
    /// Up to here the pages are present.
    ready: usize,
    /// Size of the segment's file.
    end: usize,
    records: u64,
    chain: u64,
    state: State,
    sites: SiteCache,
    /// How much to make present next time.
    step: usize,
    /// Bytes of the segment that were written with a system call.
    direct: usize,
    /// Device and inode of the segment's file.
    identity: (u64, u64),
    descriptors: Descriptors,
    /// Content bytes of segments that are finished.
    bytes_before: u64,
    poisoned: bool,
}

impl StreamWriter {
    /// Starts the stream of `thread` in the trace directory `dir`.
    pub fn create(dir: &Path, thread: ThreadId) -> Result<Self> {
        let _lifted = LiftedLimits::new();
        for form in [Form::Raw, Form::Zst] {
            let name = file_name(thread, 0, form);
            if sys::stat_at(&streams_dir(dir)?, &name).is_ok() {
                let path = dir.join(STREAMS).join(name);
                let error = io::Error::from_raw_os_error(libc::EEXIST);
                return Err(TraceError::io(&path, "create", error));
            }
        }
        Self::start(dir, thread, 0, Boundary::stream_start(thread))
    }

    /// Continues the stream of a thread whose former writer is gone: after `execve`. Finishes the
    /// segment that it left.
    pub fn resume(dir: &Path, thread: ThreadId) -> Result<Self> {
        let _lifted = LiftedLimits::new();
        let segments = segments_of(dir, thread)?;
        let Some(&last) = segments.last() else {
            let path = dir.join(STREAMS).join(file_name(thread, 0, Form::Raw));
            let what = format!("the stream of thread {} that is to be continued", thread.0);
            return Err(TraceError::truncated(&path, 0, what));
        };
        let mut left = open_segment(dir, thread, last)?;
        let at = match left.stated_end() {
            Some(end) => end,
            None => finish_left(dir, thread, last, &mut left)?,
        };
        Self::start(dir, thread, last + 1, at)
    }

    fn start(dir: &Path, thread: ThreadId, segment: u32, at: Boundary) -> Result<Self> {
        let (map, identity) = new_segment(dir, thread, segment, at, FIRST_SEGMENT)?;
        Ok(StreamWriter {
            dir: absolute(dir),
            thread,
            segment,
            map,
            pos: HEADER_LEN,
            ready: HEADER_LEN,
            end: FIRST_SEGMENT,
            records: at.records,
            chain: at.chain,
            state: State::at_segment_start(at.clock),
            sites: SiteCache::new(),
            step: POPULATE_STEP,
            direct: 0,
            identity,
            descriptors: Descriptors::Avoid,
            bytes_before: 0,
            poisoned: false,
        })
    }

    /// Says whether a descriptor may be opened while a record is appended; by default not.
    pub fn set_descriptors(&mut self, descriptors: Descriptors) {
        self.descriptors = descriptors;
    }

    /// Appends a record. When this fails with anything but [`TraceError::TooLarge`], the stream can not be
    /// continued: the record is missing in it.
    #[inline]
    pub fn append(&mut self, record: &Record<'_>) -> Result<()> {
        let need = RECORD_HEADER_LEN + codec::bound(record);
        if need > self.ready - self.pos {
            if need >= MIN_DIRECT
                && self.descriptors == Descriptors::Momentary
                && self.append_direct(record, need)? == Done::Yes
            {
                return Ok(());
            }
            self.make_room(need)?;
        }
        let room = self.map.bytes_mut().get_mut(self.pos..self.ready);
        let Some((head, room)) = room.and_then(|r| r.split_first_chunk_mut::<RECORD_HEADER_LEN>())
        else {
            return Err(self.poison());
        };
        let mut sink = Sink::new(room);
        codec::encode(record, &mut self.state, &mut self.sites, &mut sink);
        let written = sink.written();
        let Some(body) = written.and_then(|len| room.get(..len)) else {
            return Err(self.poison());
        };
        self.chain = chain_next(self.chain, body);
        put_record_header(head, body.len(), self.chain);
        self.pos += RECORD_HEADER_LEN + body.len();
        self.records += 1;
        self.publish();
        Ok(())
    }

    /// Appends a record past the mapping, unless the file cannot be opened (the guest may have used up its
    /// descriptors, or changed its root).
    #[cold]
    fn append_direct(&mut self, record: &Record<'_>, need: usize) -> Result<Done> {
        if self.poisoned {
            return Err(self.poison());
        }
        self.make_space(need)?;
        let _lifted = LiftedLimits::new();
        let Some(file) = self.reopen() else {
            return Ok(Done::No);
        };
        let mut copied = vec![0; codec::bound_copied(record)];
        let mut apart = Vec::new();
        let mut sink = Sink::with_apart(&mut copied, &mut apart);
        codec::encode(record, &mut self.state, &mut self.sites, &mut sink);
        let written = sink.written();
        let Some(copied) = written.and_then(|len| copied.get(..len)) else {
            return Err(self.poison());
        };
        let mut head = [0; RECORD_HEADER_LEN];
        let mut parts: Vec<&[u8]> = Vec::with_capacity(2 * apart.len() + 2);
        let mut from = 0;
        for piece in &apart {
            parts.push(copied.get(from..piece.at).unwrap_or_default());
            parts.push(piece.data);
            from = piece.at;
        }
        parts.push(copied.get(from..).unwrap_or_default());
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.chain = chain_next_parts(self.chain, parts.iter().copied());
        put_record_header(&mut head, len, self.chain);
        parts.insert(0, &head);
        if let Err(e) = sys::write_parts_at(&file, &parts, self.pos as u64) {
            self.poison();
            return Err(TraceError::io(&self.file(), "write", e));
        }
        self.pos += RECORD_HEADER_LEN + len;
        self.direct += len;
        // What comes next may be as large; a page is enough until it turns out otherwise.
        self.ready = self.ready.max(self.pos);
        self.step = PAGE;
        self.records += 1;
        self.publish();
        Ok(Done::Yes)
    }

    /// The segment's file, when it is still found under its name.
    fn reopen(&self) -> Option<File> {
        let name = file_name(self.thread, self.segment, Form::Raw);
        let streams = streams_dir(&self.dir).ok()?;
        let file = sys::open_at(&streams, &name, libc::O_WRONLY | libc::O_NONBLOCK, 0).ok()?;
        let meta = file.metadata().ok()?;
        ((meta.dev(), meta.ino()) == self.identity).then_some(file)
    }

    /// Makes what was written so far count.
    #[inline]
    fn publish(&mut self) {
        if let Some(committed) = self.map.atomic_u64(COMMITTED_AT) {
            committed.store((self.pos - HEADER_LEN) as u64, Ordering::Release);
        }
    }

    /// Marks the stream's last segment as finished, and lets go.
    pub fn finish(mut self) -> Result<()> {
        if self.poisoned {
            return Err(self.poison());
        }
        self.finish_segment();
        Ok(())
    }

    /// In the copy that a forked child has of its parent's writer: whether the parent has appended a record since,
    /// that counts.
    pub fn has_gone_on(&self) -> bool {
        let word = |at| {
            self.map
                .atomic_u64(at)
                .map_or(0, |w| w.load(Ordering::Acquire))
        };
        if word(COMMITTED_AT) > (self.pos - HEADER_LEN) as u64 {
            return true;
        }
        // It may have gone over to the next segment for it.
        word(FINISH_AT) != 0
            && open_segment(&self.dir, self.thread, self.segment + 1)
                .and_then(|mut next| next.load())
                .is_ok_and(|body| body.is_some())
    }

    /// Lets go without a mark, as dropping does: for the copy that a forked child has of its parent's.
    pub fn detach(self) {
        drop(self);
    }

    /// Bytes of records that this writer appended (before compression).
    pub fn bytes(&self) -> u64 {
        self.bytes_before + (self.pos - HEADER_LEN) as u64
    }

    /// Records in the stream, those of former writers included: the seq of the next record.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The stream's thread.
    pub fn thread(&self) -> ThreadId {
        self.thread
    }

    fn file(&self) -> PathBuf {
        self.dir
            .join(STREAMS)
            .join(file_name(self.thread, self.segment, Form::Raw))
    }

    /// Nothing more can be appended: every append comes here from now on.
    #[cold]
    fn poison(&mut self) -> TraceError {
        self.poisoned = true;
        self.ready = self.pos;
        self.end = self.pos;
        TraceError::Poisoned { file: self.file() }
    }

    fn at(&self) -> Boundary {
        Boundary {
            clock: self.state.clock,
            records: self.records,
            chain: self.chain,
        }
    }

    /// Sees to it that `need` bytes are ready at `pos`.
    #[cold]
    fn make_room(&mut self, need: usize) -> Result<()> {
        if self.poisoned {
            return Err(self.poison());
        }
        self.make_space(need)?;
        let to = self.end.min((self.pos + need).next_multiple_of(self.step));
        self.step = (self.step * 2).min(POPULATE_STEP);
        if let Err(e) = self.map.populate(self.ready, to) {
            self.poison();
            return Err(TraceError::io(&self.file(), "write", e));
        }
        self.ready = to;
        Ok(())
    }

    /// Sees to it that the segment has `need` bytes at `pos`.
    fn make_space(&mut self, need: usize) -> Result<()> {
        if need > MAX_BODY {
            return Err(TraceError::TooLarge {
                size: need as u64,
                limit: MAX_BODY as u64,
            });
        }
        if need <= self.end - self.pos {
            return Ok(());
        }
        self.next_segment(need).inspect_err(|_| {
            self.poison();
        })
    }

    /// Goes over to a new segment with room for `need` bytes.
    fn next_segment(&mut self, need: usize) -> Result<()> {
        let heavy = self.direct > self.end / 2;
        let most = if heavy {
            MAX_HEAVY_SEGMENT
        } else {
            MAX_SEGMENT
        };
        let size = (self.end * SEGMENT_GROWTH)
            .min(most)
            .max((HEADER_LEN + need).next_multiple_of(PAGE));
        // First make the new one, then mark the old one: if the first fails, nothing has changed.
        let (map, identity) =
            new_segment(&self.dir, self.thread, self.segment + 1, self.at(), size)?;
        self.finish_segment();
        self.bytes_before += (self.pos - HEADER_LEN) as u64;
        self.map = map;
        self.identity = identity;
        self.segment += 1;
        self.pos = HEADER_LEN;
        self.ready = HEADER_LEN;
        self.end = size;
        self.direct = 0;
        self.state = State::at_segment_start(self.state.clock);
        self.sites.reset();
        Ok(())
    }

    fn finish_segment(&mut self) {
        let finish = RawFinish {
            len: (self.pos - HEADER_LEN) as u64,
            end: self.at(),
        };
        if let Some(header) = self.map.bytes_mut().first_chunk_mut::<HEADER_LEN>() {
            RawHeader::put_finish(header, finish);
        }
    }
}

/// Whether something was done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Done {
    No,
    Yes,
}

#[inline]
fn put_record_header(head: &mut [u8; RECORD_HEADER_LEN], len: usize, chain: u64) {
    let [a, b, c, d] = (len as u32).to_le_bytes();
    let [e, f, g, h] = chain_check(chain).to_le_bytes();
    *head = [a, b, c, d, e, f, g, h];
}

/// Makes a segment's file: it appears under its name when its header and space are there.
fn new_segment(
    dir: &Path,
    thread: ThreadId,
    segment: u32,
    at: Boundary,
    size: usize,
) -> Result<(SharedMap, (u64, u64))> {
    let _lifted = LiftedLimits::new();
    let streams = streams_dir(dir)?;
    let name = file_name(thread, segment, Form::Raw);
    let temporary = format!("{name}.new");
    let path = dir.join(STREAMS).join(&name);
    let header = RawHeader::encode_new(thread, segment, at, (size - HEADER_LEN) as u64);
    let made = (|| {
        let file = sys::open_at(
            &streams,
            &temporary,
            libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC,
            0o600,
        )?;
        // The guest's umask may have left less.
        file.set_permissions(segment_rights(&streams)?)?;
        sys::allocate(&file, size as u64)?;
        file.write_all_at(&header, 0)?;
        let map = SharedMap::new(&file, size)?;
        let meta = file.metadata()?;
        sys::rename_at(&streams, &temporary, &name)?;
        Ok::<_, io::Error>((map, (meta.dev(), meta.ino())))
    })();
    made.map_err(|e| {
        // Whatever there is of it; the error that counts is the first.
        let _ = sys::unlink_at(&streams, &temporary, sys::Unlink::File);
        match TraceError::io(&path, "create", e) {
            TraceError::NoSpace { path, .. } => TraceError::NoSpace {
                path,
                needed: size as u64,
            },
            other => other,
        }
    })
}

/// Reads an unfinished segment to its end, and marks it as finished there.
fn finish_left(
    dir: &Path,
    thread: ThreadId,
    number: u32,
    left: &mut SegmentReader,
) -> Result<Boundary> {
    let end = read_to_end(left)?;
    debug_assert_eq!(left.finished(), Finished::No);
    let len = left.consumed();
    let path = left.file().to_owned();
    let write = |file: &File| -> io::Result<()> {
        file.write_all_at(&len.to_le_bytes(), COMMITTED_AT as u64)?;
        let mut header = [0; HEADER_LEN];
        file.read_exact_at(&mut header, 0)?;
        RawHeader::put_finish(&mut header, RawFinish { len, end });
        file.write_all_at(&header, 0)
    };
    let name = file_name(thread, number, Form::Raw);
    sys::open_at(&streams_dir(dir)?, &name, libc::O_RDWR, 0)
        .and_then(|file| write(&file))
        .map_err(|e| TraceError::io(&path, "write", e))?;
    Ok(end)
}

/// Reads a segment to its end: where that is.
pub(crate) fn read_to_end(segment: &mut SegmentReader) -> Result<Boundary> {
    let mut decoder = Decoder::default();
    decoder.reset(segment.start().clock);
    while let Some(body) = segment.load()? {
        let decoded = decoder.decode(segment.body(body)).map(|_| ());
        if let Err(what) = decoded {
            return Err(segment.corrupt(what));
        }
        segment.advance();
    }
    Ok(Boundary {
        clock: decoder.clock(),
        ..segment.at()
    })
}
