//! Reads a thread's stream: one sequence of records over all its segments.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::codec::{Decoder, is_last_kind, kind_of, tag};
use crate::error::{Result, TraceError};
use crate::event::{Record, ThreadId};
use crate::load::SegmentReader;
use crate::segment::{Boundary, Form, STREAMS, file_name, parse_file_name};
use crate::sys;

/// How a stream ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// With the end of its thread or process: nothing is missing.
    Complete,
    /// Earlier: the recording was cut, or the rest is damaged.
    Cut {
        /// What is missing.
        why: String,
    },
}

/// Reads a stream from its beginning, one record at a time.
///
/// A failure stays: once `next` or `peek` returned an error, they return it always. All records before
/// it are as they were written.
pub struct StreamReader {
    dir: PathBuf,
    thread: ThreadId,
    /// Numbers of the segments there are, ascending.
    segments: Vec<u32>,
    /// Place in `segments` of the one after the current.
    upcoming: usize,
    current: Option<SegmentReader>,
    decoder: Decoder,
    /// Where the stream stands at the beginning of the upcoming segment.
    at: Boundary,
    records: u64,
    last_kind: Option<u8>,
    failed: Option<TraceError>,
}

impl StreamReader {
    /// Opens the stream of `thread` in the trace directory `dir`.
    pub fn open(dir: &Path, thread: ThreadId) -> Result<Self> {
        let mut segments = segments_of(dir, thread)?;
        if segments.is_empty() {
            segments.extend(segment_behind_gap(dir, thread, 0)?);
        }
        if segments.is_empty() {
            return Err(TraceError::truncated(
                &dir.join(STREAMS).join(file_name(thread, 0, Form::Raw)),
                0,
                format!("the stream of thread {}", thread.0),
            ));
        }
        Ok(StreamReader {
            dir: sys::absolute(dir),
            thread,
            segments,
            upcoming: 0,
            current: None,
            decoder: Decoder::default(),
            at: Boundary::stream_start(thread),
            records: 0,
            last_kind: None,
            failed: None,
        })
    }

    /// The stream's thread.
    pub fn thread(&self) -> ThreadId {
        self.thread
    }

    /// How many records `next` has given: the number of the next one, counting from 0.
    pub fn seq(&self) -> u64 {
        self.records
    }

    /// The next record, or `None` at the end of the stream (see [`Self::end`] for which end).
    #[allow(clippy::should_implement_trait)] // Records borrow from the reader.
    pub fn next(&mut self) -> Result<Option<Record<'_>>> {
        self.get(Step::Take)
    }

    /// The record that `next` will give.
    pub fn peek(&mut self) -> Result<Option<Record<'_>>> {
        self.get(Step::Stay)
    }

    /// Goes to the record number `seq`, forwards or backwards, without reading all before it. Going
    /// beyond the end leaves the reader at the end. Clears an earlier failure.
    pub fn seek(&mut self, seq: u64) -> Result<()> {
        let (mut low, mut high) = (0, self.segments.len());
        // The last segment that starts at or before `seq`.
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let Some(&number) = self.segments.get(middle) else {
                break;
            };
            if open_segment(&self.dir, self.thread, number)?
                .start()
                .records
                <= seq
            {
                low = middle;
            } else {
                high = middle;
            }
        }
        self.failed = None;
        self.last_kind = None;
        self.current = None;
        self.upcoming = low;
        self.at = match self.segments.get(low) {
            Some(&number) if low > 0 => open_segment(&self.dir, self.thread, number)?.start(),
            _ => Boundary::stream_start(self.thread),
        };
        self.records = self.at.records;
        while self.records < seq && self.next()?.is_some() {}
        Ok(())
    }

    /// How the stream ends. Known once `next` returned `None` or an error; before that, it is how the
    /// stream would end if it ended here.
    pub fn end(&self) -> StreamEnd {
        if let Some(error) = &self.failed {
            return StreamEnd::Cut {
                why: error.to_string(),
            };
        }
        match self.last_kind {
            Some(kind) if is_last_kind(kind) => StreamEnd::Complete,
            Some(tag::EXEC) => StreamEnd::Cut {
                why: "it ends in an execve, the new program recorded nothing".into(),
            },
            Some(kind) => StreamEnd::Cut {
                why: format!(
                    "its last record is not an end but {}",
                    tag::NAMES
                        .get(usize::from(kind))
                        .copied()
                        .unwrap_or("unknown")
                ),
            },
            None => StreamEnd::Cut {
                why: "it has no records".into(),
            },
        }
    }

    fn get(&mut self, step: Step) -> Result<Option<Record<'_>>> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let body = match self.load() {
            Ok(Some(body)) => body,
            Ok(None) => return Ok(None),
            Err(error) => {
                self.failed = Some(error.clone());
                return Err(error);
            }
        };
        let Some(segment) = &mut self.current else {
            return Ok(None);
        };
        if step == Step::Take {
            segment.advance();
            self.records += 1;
        }
        let body = segment.body(body);
        let kind = kind_of(body);
        let decoded = match step {
            Step::Take => self.decoder.decode(body),
            Step::Stay => self.decoder.peek(body),
        };
        match decoded {
            Ok(record) => {
                if step == Step::Take {
                    self.last_kind = kind;
                }
                Ok(Some(record))
            }
            Err(what) => {
                let error = segment.corrupt(what);
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Finds the next body, going over to the next segment where one ends.
    fn load(&mut self) -> Result<Option<Range<usize>>> {
        loop {
            if let Some(segment) = &mut self.current {
                if let Some(body) = segment.load()? {
                    if self.last_kind.is_some_and(is_last_kind) {
                        return Err(segment.corrupt("there is a record after the thread's end"));
                    }
                    return Ok(Some(body));
                }
                let clock = self.decoder.clock();
                self.at = Boundary {
                    clock,
                    ..segment.at()
                };
                if segment.stated_end().is_some_and(|end| end != self.at) {
                    return Err(segment.corrupt("the segment does not end as its header says"));
                }
            }
            let expected = self.upcoming as u32;
            let number = match self.segments.get(self.upcoming) {
                Some(&number) => number,
                None if self.last_kind.is_some_and(is_last_kind) => return Ok(None),
                None => match segment_behind_gap(&self.dir, self.thread, expected)? {
                    // One that was written since this reader was made.
                    Some(number) if number == expected => return Ok(None),
                    Some(number) => number,
                    None => return Ok(None),
                },
            };
            let dir = self.dir.join(STREAMS);
            if number != expected {
                let file = dir.join(file_name(self.thread, expected, Form::Raw));
                let what = format!("the segment itself: {number} exists, {expected} is missing");
                return Err(TraceError::truncated(&file, 0, what));
            }
            let next = open_segment(&self.dir, self.thread, number)?;
            let start = next.start();
            if start.records > self.at.records
                && let Some(before) = &self.current
            {
                let what = format!(
                    "{} more records, as the next segment says",
                    start.records - self.at.records
                );
                return Err(TraceError::truncated(
                    before.file(),
                    before.consumed(),
                    what,
                ));
            }
            if start != self.at {
                return Err(next.corrupt("the segment does not continue the one before"));
            }
            self.decoder.reset(start.clock);
            self.current = Some(next);
            self.upcoming += 1;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Look only.
    Stay,
    /// Go on to the one after.
    Take,
}

/// Opens a segment in the form in which it is there. When it is there in both (its compressing was cut
/// after the last step but one), they are equal.
pub(crate) fn open_segment(dir: &Path, thread: ThreadId, number: u32) -> Result<SegmentReader> {
    let streams = streams_dir(dir)?;
    let mut missing = None;
    // In this order: a segment that is just being compressed appears as zst before raw goes away.
    for form in [Form::Raw, Form::Zst] {
        let name = file_name(thread, number, form);
        let path = dir.join(STREAMS).join(&name);
        match sys::open_at(&streams, &name, libc::O_RDONLY | libc::O_NONBLOCK, 0) {
            Ok(file) => {
                if !file.metadata().is_ok_and(|m| m.is_file()) {
                    return Err(TraceError::corrupt(&path, 0, "it is not a regular file"));
                }
                return SegmentReader::open(Box::new(file), &path, thread, number, form);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => missing = Some((path, e)),
            Err(e) => return Err(TraceError::io(&path, "open", e)),
        }
    }
    match missing {
        Some((path, e)) => Err(TraceError::io(&path, "open", e)),
        None => Err(TraceError::truncated(dir, 0, "a segment")),
    }
}

pub(crate) fn streams_dir(dir: &Path) -> Result<std::fs::File> {
    sys::open_subdir(dir, STREAMS).map_err(|e| TraceError::io(&dir.join(STREAMS), "open", e))
}

/// Numbers of the segments of a thread, ascending, up to the first that is not there.
///
/// They are looked up by name. A list of the directory may lack a segment that is just being compressed: its new name
/// can come where the list has been already, and its old one go before the list comes there. And a trace may have
/// thousands of others.
pub(crate) fn segments_of(dir: &Path, thread: ThreadId) -> Result<Vec<u32>> {
    let streams = streams_dir(dir)?;
    // In this order: the compressed form is there before the raw one goes away.
    let there = |number: u32| {
        [Form::Raw, Form::Zst]
            .iter()
            .any(|form| sys::stat_at(&streams, &file_name(thread, number, *form)).is_ok())
    };
    Ok((0..).take_while(|&number| there(number)).collect())
}

/// The first segment of a thread that is there from number `from` on.
fn segment_behind_gap(dir: &Path, thread: ThreadId, from: u32) -> Result<Option<u32>> {
    let all = all_segments(dir)?;
    let behind = all
        .into_iter()
        .filter(|(t, n, _)| *t == thread && *n >= from);
    Ok(behind.map(|(_, number, _)| number).min())
}

/// Whether there is anything of a thread's stream.
pub(crate) fn has_segments(dir: &Path, thread: ThreadId) -> Result<bool> {
    Ok(!segments_of(dir, thread)?.is_empty() || segment_behind_gap(dir, thread, 0)?.is_some())
}

/// All segments of a trace, in no order. One that is just being compressed may be missing.
pub(crate) fn all_segments(dir: &Path) -> Result<Vec<(ThreadId, u32, Form)>> {
    let names =
        sys::names(dir, STREAMS).map_err(|e| TraceError::io(&dir.join(STREAMS), "list", e))?;
    Ok(names
        .iter()
        .filter_map(|name| parse_file_name(name))
        .collect())
}
