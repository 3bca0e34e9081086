//! Compresses segments: in the background while recording, and the rest at the end.
//!
//! It runs in the process that supervises the recording, never in a recorded one. A raw segment goes
//! away only after its compressed form is there under its name, so a reader finds at least one of them
//! at all times, and so does the next compactor if this one dies.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use zstd::bulk::Compressor;

use crate::anchor::segment_rights;
use crate::codec::{kind_of, tag};
use crate::error::{Result, TraceError};
use crate::event::ThreadId;
use crate::load::{SegmentReader, frame_place};
use crate::reader::{all_segments, open_segment, streams_dir};
use crate::segment::{
    FRAME_HEADER_LEN, FRAME_TARGET, Finished, Form, FrameHeader, HEADER_LEN, STREAMS, ZstHeader,
    file_name,
};
use crate::sys::{self, Unlink, absolute};
use crate::writer::read_to_end;

/// Higher ones are slower than the recording on one core and gain little.
const LEVEL: i32 = 2;

/// When so many finished segments wait, those that are compressed next are compressed less.
const BACKLOG: usize = 3;
/// The level then; about twice as fast.
const FAST_LEVEL: i32 = -3;

/// How long compressing may go on when nothing is recorded any more, beside a part of the time that the
/// recording took. What is not compressed then stays as it is: readers take both forms.
const LEAST_BUDGET: Duration = Duration::from_millis(300);
/// That part is one in so many.
const BUDGET_SHARE: u32 = 4;

/// How often to look for finished segments.
const INTERVAL: Duration = Duration::from_millis(20);

/// Look at a directory in which nothing appears every so many intervals.
const IDLE_ROUNDS: u32 = 25;

/// What is in a trace's streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Records by kind of event.
    pub counts: BTreeMap<String, u64>,
    /// Records by thread.
    pub threads: BTreeMap<u32, u64>,
    /// Bytes of the segments before compression.
    pub raw_bytes: u64,
    /// Bytes of the segments as stored.
    pub stored_bytes: u64,
}

/// Compresses a trace's segments in the background.
pub struct Compactor {
    started: Instant,
    stop: mpsc::Sender<()>,
    worker: JoinHandle<Work>,
}

impl Compactor {
    /// Starts for the trace directory `dir`.
    pub fn start(dir: &Path) -> Result<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let mut work = Work::new(dir);
        let worker = std::thread::Builder::new()
            .name("compactor".into())
            .spawn(move || {
                sys::lower_own_priority();
                let mut listed = None;
                let mut idle = 0;
                while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    // Finished segments come with new ones, most often.
                    let changed = work.last_change();
                    if changed != listed || idle >= IDLE_ROUNDS {
                        (listed, idle) = (changed, 0);
                        work.round(Which::Finished, &|| stopped_now(&stopped));
                    } else {
                        idle += 1;
                    }
                }
                work
            })
            .map_err(|e| TraceError::io(dir, "start compressing", e))?;
        let started = Instant::now();
        Ok(Compactor {
            started,
            stop,
            worker,
        })
    }

    /// Compresses the rest, as far as that is quick. To be called when all recorded processes are gone.
    ///
    /// Segments that are damaged, or for which there is no space, stay as they are; the first such
    /// error is returned beside the totals.
    pub fn finish(self) -> (Totals, Option<TraceError>) {
        drop(self.stop);
        let deadline = Instant::now() + LEAST_BUDGET.max(self.started.elapsed() / BUDGET_SHARE);
        let Ok(mut work) = self.worker.join() else {
            return (Totals::default(), None);
        };
        // What failed meanwhile may work now (there is space again); what does not fails once more.
        work.given_up.clear();
        work.error = None;
        work.round(Which::All, &|| Instant::now() >= deadline);
        work.into_totals()
    }
}

/// Whether the other end of the channel is gone.
fn stopped_now(stopped: &mpsc::Receiver<()>) -> bool {
    stopped.try_recv() == Err(TryRecvError::Disconnected)
}

/// Compresses all segments of a trace that no process writes to any more: after a recorder that died.
pub fn compact(dir: &Path) -> (Totals, Option<TraceError>) {
    let mut work = Work::new(dir);
    work.round(Which::All, &|| false);
    work.into_totals()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// Only what its writer finished.
    Finished,
    All,
}

struct Work {
    dir: PathBuf,
    /// Segments that could not be compressed, not to be tried again.
    given_up: HashSet<(ThreadId, u32)>,
    /// Segments that stay as they are.
    kept: HashSet<(ThreadId, u32)>,
    /// Segments that are counted already.
    counted: HashSet<(ThreadId, u32)>,
    by_tag: [u64; 32],
    threads: BTreeMap<u32, u64>,
    raw_bytes: u64,
    error: Option<TraceError>,
}

impl Work {
    fn new(dir: &Path) -> Self {
        Work {
            dir: absolute(dir),
            given_up: HashSet::new(),
            kept: HashSet::new(),
            counted: HashSet::new(),
            by_tag: [0; 32],
            threads: BTreeMap::new(),
            raw_bytes: 0,
            error: None,
        }
    }

    /// When a file last appeared or vanished in the directory.
    fn last_change(&self) -> Option<SystemTime> {
        std::fs::metadata(self.dir.join(STREAMS))
            .and_then(|m| m.modified())
            .ok()
    }

    /// Goes over all segments, until `enough`.
    fn round(&mut self, which: Which, enough: &dyn Fn() -> bool) {
        let segments = match all_segments(&self.dir) {
            Ok(segments) => segments,
            Err(e) => return self.note(e),
        };
        let mut raw: Vec<_> = segments
            .iter()
            .filter(|(.., form)| *form == Form::Raw)
            .map(|(thread, number, _)| (*thread, *number))
            .filter(|segment| !self.given_up.contains(segment) && !self.kept.contains(segment))
            .collect();
        raw.sort_unstable();
        for (i, &(thread, number)) in raw.iter().enumerate() {
            let level = if raw.len() - i > BACKLOG {
                FAST_LEVEL
            } else {
                LEVEL
            };
            match self.compress(thread, number, which, level, enough) {
                Ok(()) => {}
                Err(e) => {
                    self.given_up.insert((thread, number));
                    self.note(e);
                }
            }
        }
    }

    fn note(&mut self, error: TraceError) {
        self.error.get_or_insert(error);
    }

    fn compress(
        &mut self,
        thread: ThreadId,
        number: u32,
        which: Which,
        level: i32,
        enough: &dyn Fn() -> bool,
    ) -> Result<()> {
        let mut segment = open_segment(&self.dir, thread, number)?;
        if segment.form() != Form::Raw
            || (which == Which::Finished && segment.finished() == Finished::No)
        {
            return Ok(());
        }
        let counted = segment.count_raw();
        if let Some((by_tag, len)) = counted {
            let out_of_time = which == Which::All && enough();
            if out_of_time || !gains(&segment, len).unwrap_or(true) {
                self.keep(thread, number, len)?;
                self.count(thread, number, &by_tag, len);
                return Ok(());
            }
            if enough() {
                return Ok(());
            }
        }
        let end = match segment.stated_end() {
            Some(end) => end,
            None => read_to_end(&mut open_segment(&self.dir, thread, number)?)?,
        };
        let streams = streams_dir(&self.dir)?;
        let name = file_name(thread, number, Form::Zst);
        let temporary = format!("{name}.new");
        let path = self.dir.join(STREAMS).join(&name);
        let io = |e| TraceError::io(&path, "write", e);
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;
        let file = sys::open_at(&streams, &temporary, flags, 0o600)
            .and_then(|file| {
                file.set_permissions(segment_rights(&streams)?)?;
                Ok(file)
            })
            .map_err(io)?;
        // A segment that its writer finished can stay as it is.
        let stop_early = counted.is_some();
        let written = (|| {
            let mut frames =
                FrameWriter::new(&file, frame_place(segment.start()), level).map_err(io)?;
            let mut by_tag = [0u64; 32];
            while let Some(body) = segment.load()? {
                let body = segment.body(body);
                if let Some(count) = kind_of(body).and_then(|k| by_tag.get_mut(usize::from(k))) {
                    *count += 1;
                }
                frames.put(body).map_err(io)?;
                segment.advance();
                if stop_early && enough() {
                    return Ok(None);
                }
            }
            let (count, file_len) = frames.finish().map_err(io)?;
            let header = ZstHeader {
                start: segment.start(),
                end,
                frames: count,
                finished: segment.finished(),
                file_len,
            };
            file.write_all_at(&header.encode(thread, number), 0)
                .map_err(io)?;
            sys::rename_at(&streams, &temporary, &name).map_err(io)?;
            Ok::<_, TraceError>(Some(by_tag))
        })();
        let by_tag = match written {
            Ok(Some(by_tag)) => by_tag,
            Ok(None) => {
                let _ = sys::unlink_at(&streams, &temporary, Unlink::File);
                return self.compress(thread, number, which, level, enough);
            }
            Err(e) => {
                let _ = sys::unlink_at(&streams, &temporary, Unlink::File);
                return Err(e);
            }
        };
        let raw = file_name(thread, number, Form::Raw);
        sys::unlink_at(&streams, &raw, Unlink::File)
            .map_err(|e| TraceError::io(&self.dir.join(STREAMS).join(&raw), "remove", e))?;
        self.count(thread, number, &by_tag, segment.consumed());
        Ok(())
    }

    /// Leaves a segment as it is, but for the space behind its content.
    fn keep(&mut self, thread: ThreadId, number: u32, len: u64) -> Result<()> {
        self.kept.insert((thread, number));
        let name = file_name(thread, number, Form::Raw);
        streams_dir(&self.dir).and_then(|streams| {
            sys::open_at(&streams, &name, libc::O_RDWR, 0)
                .and_then(|file| file.set_len(HEADER_LEN as u64 + len))
                .map_err(|e| TraceError::io(&self.dir.join(STREAMS).join(&name), "trim", e))
        })
    }

    fn count(&mut self, thread: ThreadId, number: u32, by_tag: &[u64; 32], content: u64) {
        if !self.counted.insert((thread, number)) {
            return;
        }
        for (total, count) in self.by_tag.iter_mut().zip(by_tag) {
            *total += count;
        }
        *self.threads.entry(thread.0).or_default() += by_tag.iter().sum::<u64>();
        self.raw_bytes += content + HEADER_LEN as u64;
    }

    /// Counts what was not compressed by this compactor, and adds up.
    fn into_totals(mut self) -> (Totals, Option<TraceError>) {
        let mut stored_bytes = 0;
        for (thread, number, form) in all_segments(&self.dir).unwrap_or_default() {
            let counted = streams_dir(&self.dir)
                .ok()
                .and_then(|streams| sys::stat_at(&streams, &file_name(thread, number, form)).ok());
            stored_bytes += counted.map_or(0, |st| u64::try_from(st.st_size).unwrap_or(0));
            if self.counted.contains(&(thread, number)) {
                continue;
            }
            if let Ok(mut segment) = open_segment(&self.dir, thread, number) {
                let (by_tag, len) = segment.count_raw().unwrap_or_else(|| {
                    let mut by_tag = [0; 32];
                    count_kinds(&mut segment, &mut by_tag);
                    (by_tag, segment.consumed())
                });
                self.count(thread, number, &by_tag, len);
            }
        }
        let counts = tag::NAMES
            .iter()
            .zip(self.by_tag)
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| ((*name).to_owned(), count))
            .collect();
        let Work {
            threads,
            raw_bytes,
            error,
            ..
        } = self;
        (
            Totals {
                counts,
                threads,
                raw_bytes,
                stored_bytes,
            },
            error,
        )
    }
}

/// Whether compressing a finished raw segment would make it clearly smaller, judged by samples.
fn gains(segment: &SegmentReader, len: u64) -> io::Result<bool> {
    const SAMPLE: u64 = 32 << 10;
    const SAMPLES: u64 = 4;
    // Small ones are not worth the question.
    if len < 4 * SAMPLE * SAMPLES {
        return Ok(true);
    }
    let mut compressor = Compressor::new(1)?;
    let mut buf = vec![0; SAMPLE as usize];
    let (mut content, mut stored) = (0, 0);
    for i in 0..SAMPLES {
        let n = segment.sample_raw((len - SAMPLE) / (SAMPLES - 1) * i, &mut buf)?;
        let sample = buf.get(..n).unwrap_or_default();
        content += sample.len();
        stored += compressor.compress(sample)?.len();
    }
    Ok(stored < content - content / 10)
}

fn count_kinds(segment: &mut SegmentReader, by_tag: &mut [u64; 32]) {
    while let Ok(Some(body)) = segment.load() {
        let kind = kind_of(segment.body(body));
        if let Some(count) = kind.and_then(|k| by_tag.get_mut(usize::from(k))) {
            *count += 1;
        }
        segment.advance();
    }
}

/// Writes frames after the place of the header.
struct FrameWriter<'a> {
    file: &'a File,
    place: u64,
    compressor: Compressor<'static>,
    content: Vec<u8>,
    stored: Vec<u8>,
    frames: u32,
    offset: u64,
}

impl<'a> FrameWriter<'a> {
    fn new(file: &'a File, place: u64, level: i32) -> io::Result<Self> {
        Ok(FrameWriter {
            file,
            place,
            compressor: Compressor::new(level)?,
            content: Vec::with_capacity(FRAME_TARGET + (4 << 10)),
            stored: Vec::new(),
            frames: 0,
            offset: HEADER_LEN as u64,
        })
    }

    fn put(&mut self, body: &[u8]) -> io::Result<()> {
        let mut len = body.len();
        while len >= 0x80 {
            self.content.push(len as u8 | 0x80);
            len >>= 7;
        }
        self.content.push(len as u8);
        self.content.extend_from_slice(body);
        if self.content.len() >= FRAME_TARGET {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stored.clear();
        self.stored.resize(FRAME_HEADER_LEN, 0);
        self.stored
            .extend_from_slice(&self.compressor.compress(&self.content)?);
        let stored = (self.stored.len() - FRAME_HEADER_LEN) as u32;
        let hash = FrameHeader::hash_of(&self.content, stored, self.frames, self.place);
        let header = FrameHeader {
            stored,
            content: self.content.len() as u32,
            hash,
        };
        if let Some(room) = self.stored.first_chunk_mut() {
            *room = header.encode();
        }
        self.file.write_all_at(&self.stored, self.offset)?;
        self.offset += self.stored.len() as u64;
        self.frames += 1;
        self.content.clear();
        Ok(())
    }

    /// Number of frames, size of the file.
    fn finish(mut self) -> io::Result<(u32, u64)> {
        if !self.content.is_empty() {
            self.flush()?;
        }
        self.file.flush()?;
        Ok((self.frames, self.offset))
    }
}
