//! A trace as a whole: its directory.
//!
//! ```text
//! <trace root>/<name>/meta.json     what was recorded (see `Meta`)
//!                     end.json      how it ended; missing when the recording was cut
//!                     session.bin   used while recording only
//!                     memory.bin    memory at the start, of a recording that began in the middle
//!                     streams/      the threads' events
//!                     files/        contents of mapped files
//! <trace root>/latest               symlink to the newest trace
//! <trace root>/.store/              contents of mapped files, shared by the traces
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::anchor::let_others_in;
use crate::codec::is_last_kind;
use crate::error::{Result, TraceError};
use crate::event::{Event, ProcId, StartHow, ThreadId};
use crate::files::{FILES, make_dir, unhex};
use crate::load::SegmentReader;
use crate::meta::{self, End, Meta};
use crate::reader::{StreamEnd, StreamReader, all_segments, open_segment, segments_of};
use crate::segment::{FORMAT_VERSION, STREAMS, parse_file_name};
use crate::session::SESSION;
use crate::sys::{self, Unlink};

const META: &str = "meta.json";
const END: &str = "end.json";
const LATEST: &str = "latest";

/// The files at a trace's top. `meta.json` is last, so that what an interrupted removal leaves can be
/// removed again.
const OWN_FILES: [&str; 6] = [
    crate::memory::MEMORY,
    SESSION,
    END,
    "end.json.new",
    "meta.json.new",
    META,
];

/// `meta.json` holds one command line; Linux does not allow longer ones than 6 MiB or so.
const MAX_JSON: u64 = 64 << 20;

/// A trace's directory.
#[derive(Clone, Debug)]
pub struct TraceDir {
    path: PathBuf,
    meta: Meta,
}

/// A process of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSummary {
    /// Its number.
    pub proc: ProcId,
    /// Who created it.
    pub parent: Option<ProcId>,
    /// How.
    pub how: StartHow,
    /// Process id the guest saw.
    pub pid: i32,
    /// Its threads, the first one first.
    pub threads: Vec<ThreadId>,
}

/// A thread's stream, as [`TraceDir::verify`] found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSummary {
    /// The thread.
    pub thread: ThreadId,
    /// Records that can be read.
    pub records: u64,
    /// How it ends.
    pub end: StreamEnd,
}

impl TraceDir {
    /// Makes the trace `name` in `root` (which is made too), and lets `latest` point to it.
    pub fn create(root: &Path, name: &str, meta: Meta) -> Result<Self> {
        if name.is_empty() || name.starts_with('.') || name.contains('/') || name == LATEST {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "it is no name for a trace");
            return Err(TraceError::io(Path::new(name), "create", error));
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(|e| match e.kind() {
                // Not "exists already", which would say that the name is taken.
                io::ErrorKind::AlreadyExists => {
                    TraceError::io(root, "create", io::ErrorKind::NotADirectory.into())
                }
                _ => TraceError::io(root, "create", e),
            })?;
        let path = root.join(name);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|e| TraceError::io(&path, "create", e))?;
        let trace = Self::furnish(path, meta)?;
        Self::point_latest(root, Path::new(name))?;
        Ok(trace)
    }

    /// Makes a trace of the directory `path`, which must be empty or not exist yet; its parent must exist.
    /// No `latest` points to it.
    pub fn create_at(path: &Path, meta: Meta) -> Result<Self> {
        let io = |e| TraceError::io(path, "create", e);
        if let Err(e) = std::fs::DirBuilder::new().mode(0o700).create(path) {
            let empty =
                || std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
            if e.kind() != io::ErrorKind::AlreadyExists || !empty() {
                return Err(io(e));
            }
        }
        Self::furnish(path.canonicalize().map_err(io)?, meta)
    }

    /// Makes a trace of an empty directory.
    fn furnish(path: PathBuf, meta: Meta) -> Result<Self> {
        // First what makes it a trace, so that `remove` takes what an interruption leaves.
        let trace = TraceDir {
            path: sys::absolute(&path),
            meta,
        };
        trace.write(META, &trace.meta)?;
        make_dir(&trace.path.join(STREAMS))?;
        make_dir(&trace.path.join(FILES))?;
        let_others_in(&trace.path).map_err(|e| TraceError::io(&trace.path, "prepare", e))?;
        Ok(trace)
    }

    /// Lets `latest` in `root` point to a trace: a name there, or an absolute path.
    pub fn point_latest(root: &Path, trace: &Path) -> Result<()> {
        let latest = root.join(LATEST);
        let temporary = root.join(format!(".latest-{}", std::process::id()));
        let _ = std::fs::remove_file(&temporary);
        symlink(trace, &temporary)
            .and_then(|()| std::fs::rename(&temporary, &latest))
            .map_err(|e| {
                let _ = std::fs::remove_file(&temporary);
                TraceError::io(&latest, "point to the new trace with", e)
            })
    }

    /// As [`TraceDir::create`], with the first free name of `base-0`, `base-1`, ...
    pub fn create_numbered(root: &Path, base: &str, meta: Meta) -> Result<Self> {
        let mut number = 0u32;
        loop {
            match Self::create(root, &format!("{base}-{number}"), meta.clone()) {
                Err(e)
                    if e.io_kind() == Some(io::ErrorKind::AlreadyExists) && number < u32::MAX =>
                {
                    number += 1;
                }
                other => return other,
            }
        }
    }

    /// Opens a trace. A symlink to it (`latest`) will do.
    pub fn open(path: &Path) -> Result<Self> {
        let path = &path.canonicalize().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => not_a_trace(path, "there is nothing of that name"),
            _ => TraceError::io(path, "open", e),
        })?;
        if !path.is_dir() {
            return Err(not_a_trace(path, "it is not a directory"));
        }
        let Some(text) = read_text(path, META)? else {
            return Err(not_a_trace(path, "it has no meta.json"));
        };
        let file = path.join(META);
        match meta::version_of(&text) {
            Some(found) if found > FORMAT_VERSION => {
                return Err(TraceError::FutureVersion {
                    path: path.clone(),
                    found,
                    supported: FORMAT_VERSION,
                });
            }
            // Not understood as a whole, or not at all: parsing says more.
            _ => {}
        }
        let meta: Meta = meta::from_text(&text, &file)?;
        if meta.format != meta::FORMAT {
            return Err(not_a_trace(path, "its meta.json is of something else"));
        }
        Ok(TraceDir {
            path: path.clone(),
            meta,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was recorded.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// How it ended; `None` when the recording was cut (or still runs).
    pub fn end(&self) -> Result<Option<End>> {
        match read_text(&self.path, END)? {
            Some(text) => meta::from_text(&text, &self.path.join(END)).map(Some),
            None => Ok(None),
        }
    }

    /// Writes down how it ended.
    pub fn write_end(&self, end: &End) -> Result<()> {
        self.write(END, end)
    }

    /// All threads that have a stream, ascending.
    pub fn threads(&self) -> Result<Vec<ThreadId>> {
        let mut threads: Vec<_> = all_segments(&self.path)?
            .into_iter()
            .map(|(t, ..)| t)
            .collect();
        threads.sort_unstable();
        threads.dedup();
        Ok(threads)
    }

    /// All processes, ascending, from the first records of all streams. Threads whose stream is empty
    /// (the recording was cut just then) are left out.
    pub fn processes(&self) -> Result<Vec<ProcessSummary>> {
        let mut processes = BTreeMap::new();
        let mut others = Vec::new();
        for thread in self.threads()? {
            let mut reader = StreamReader::open(&self.path, thread)?;
            // What a thread of a parallel recording waits for comes before its start.
            while matches!(
                reader.peek()?.map(|record| record.event),
                Some(Event::Sync { .. })
            ) {
                reader.next()?;
            }
            match reader.next()?.map(|record| record.event) {
                Some(Event::ProcessStart {
                    proc,
                    parent,
                    how,
                    pid,
                }) => {
                    let summary = ProcessSummary {
                        proc,
                        parent,
                        how,
                        pid,
                        threads: vec![thread],
                    };
                    processes.insert(proc, summary);
                }
                Some(Event::ThreadStart { proc, .. }) => others.push((proc, thread)),
                _ => {}
            }
        }
        for (proc, thread) in others {
            if let Some(process) = processes.get_mut(&proc) {
                process.threads.push(thread);
            }
        }
        Ok(processes.into_values().collect())
    }

    /// How a thread ended: its last record, if that is an end. Reads the last segment only.
    pub fn thread_end(&self, thread: ThreadId) -> Result<Option<Event<'static>>> {
        let Some(&last) = segments_of(&self.path, thread)?.last() else {
            return Ok(None);
        };
        let mut segment = open_segment(&self.path, thread, last)?;
        last_event(&mut segment)
    }

    /// Reads everything: all streams to their ends, and compares with what `end.json` says. Returns what
    /// there is of each; a stream that is missing although `end.json` knows it has 0 records.
    pub fn verify(&self) -> Result<Vec<StreamSummary>> {
        let end = self.end()?;
        let mut found = Vec::new();
        for thread in self.threads()? {
            let mut reader = StreamReader::open(&self.path, thread)?;
            while let Ok(Some(_)) = reader.next() {}
            found.push(StreamSummary {
                thread,
                records: reader.seq(),
                end: reader.end(),
            });
        }
        for (&thread, &records) in end.iter().flat_map(|end| &end.threads) {
            match found.iter_mut().find(|s| s.thread.0 == thread) {
                Some(stream) if stream.records == records => {}
                Some(stream) => {
                    if stream.end == StreamEnd::Complete {
                        let why = format!("end.json says that it has {records} records");
                        stream.end = StreamEnd::Cut { why };
                    }
                }
                None => found.push(StreamSummary {
                    thread: ThreadId(thread),
                    records: 0,
                    end: StreamEnd::Cut {
                        why: "its stream is missing".into(),
                    },
                }),
            }
        }
        Ok(found)
    }

    /// The traces in `root`, oldest first. Directories that are not traces are left out.
    pub fn list(root: &Path) -> Result<Vec<TraceDir>> {
        let entries = match std::fs::read_dir(root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(TraceError::io(root, "list", e)),
        };
        let mut traces = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| TraceError::io(root, "list", e))?;
            if entry.file_type().is_ok_and(|t| t.is_dir())
                && let Ok(trace) = Self::open(&entry.path())
            {
                traces.push(trace);
            }
        }
        traces.sort_by(|a, b| (a.meta.created, &a.path).cmp(&(b.meta.created, &b.path)));
        Ok(traces)
    }

    /// The trace that `latest` in `root` points to.
    pub fn latest(root: &Path) -> Result<Self> {
        Self::open(&root.join(LATEST))
    }

    /// Removes a trace. Refuses what is not one, and keeps (with an error) a directory that holds
    /// anything crewind did not make.
    pub fn remove(path: &Path) -> Result<()> {
        // Not through `open`: a damaged trace can be removed, too.
        let text = read_text(path, META)?;
        let is_ours = text.is_some_and(|text| text.contains(meta::FORMAT));
        if !is_ours {
            return Err(not_a_trace(path, "it has no meta.json of crewind's"));
        }
        let path = &path
            .canonicalize()
            .map_err(|e| TraceError::io(path, "open", e))?;
        let io = |e| TraceError::io(path, "remove", e);
        let is_segment =
            |name: &str| parse_file_name(name.strip_suffix(".new").unwrap_or(name)).is_some();
        let is_content = |name: &str| unhex(name).is_some() || name.starts_with("new-");
        let is_known = |name: &str| OWN_FILES.contains(&name) || name == STREAMS || name == FILES;
        // Look at everything before removing anything.
        refuse_others(path, ".", is_known)?;
        refuse_others(path, STREAMS, is_segment)?;
        refuse_others(path, FILES, is_content)?;
        let dir = sys::open_dir(path).map_err(io)?;
        remove_all(path, STREAMS)?;
        remove_all(path, FILES)?;
        for name in OWN_FILES {
            match sys::unlink_at(&dir, name, Unlink::File) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io(e)),
                _ => {}
            }
        }
        std::fs::remove_dir(path).map_err(io)?;
        if let Some(root) = path.parent() {
            let latest = root.join(LATEST);
            let points_here = std::fs::read_link(&latest)
                .is_ok_and(|target| Some(target.as_os_str()) == path.file_name());
            if points_here {
                let _ = std::fs::remove_file(latest);
            }
        }
        Ok(())
    }

    /// Writes a JSON file whole or not at all.
    fn write(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let file = self.path.join(name);
        let text = meta::to_text(value)
            .map_err(|e| TraceError::io(&file, "write", io::Error::other(e)))?;
        let temporary = format!("{name}.new");
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
        (|| {
            let dir = sys::open_dir(&self.path)?;
            sys::open_at(&dir, &temporary, flags, 0o600)?.write_all(text.as_bytes())?;
            sys::rename_at(&dir, &temporary, name)
        })()
        .map_err(|e| TraceError::io(&file, "write", e))
    }
}

fn not_a_trace(path: &Path, why: &str) -> TraceError {
    TraceError::NotATrace {
        path: path.to_owned(),
        why: why.to_owned(),
    }
}

fn read_text(dir: &Path, name: &str) -> Result<Option<String>> {
    let path = dir.join(name);
    let io = |e| TraceError::io(&path, "read", e);
    let dir = match sys::open_dir(dir) {
        Ok(dir) => dir,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
    };
    let file: File = match sys::open_at(&dir, name, libc::O_RDONLY | libc::O_NONBLOCK, 0) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
    };
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() || metadata.len() > MAX_JSON {
        return Err(TraceError::corrupt(
            &path,
            0,
            "it is not a file of that kind",
        ));
    }
    let mut bytes = Vec::new();
    file.take(MAX_JSON).read_to_end(&mut bytes).map_err(io)?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(e) => {
            let offset = e.utf8_error().valid_up_to() as u64;
            Err(TraceError::corrupt(&path, offset, "it is not UTF-8"))
        }
    }
}

/// An error if there is anything in the subdirectory `sub` that has no name of ours.
fn refuse_others(path: &Path, sub: &str, ours: impl Fn(&str) -> bool) -> Result<()> {
    let names = match sys::names(path, sub) {
        Ok(names) => names,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(TraceError::io(&path.join(sub), "list", e)),
    };
    match names.iter().find(|name| !ours(name)) {
        Some(name) => {
            let error = io::Error::new(
                io::ErrorKind::DirectoryNotEmpty,
                format!("there is {name} in it, which crewind did not make"),
            );
            Err(TraceError::io(path, "remove", error))
        }
        None => Ok(()),
    }
}

/// Removes the subdirectory `sub` with the files in it.
fn remove_all(path: &Path, sub: &str) -> Result<()> {
    let io = |e| TraceError::io(&path.join(sub), "remove", e);
    let dir = match sys::open_subdir(path, sub) {
        Ok(dir) => dir,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io(e)),
    };
    for name in sys::names(path, sub).map_err(io)? {
        sys::unlink_at(&dir, &name, Unlink::File).map_err(io)?;
    }
    let parent = sys::open_dir(path).map_err(io)?;
    sys::unlink_at(&parent, sub, Unlink::Dir).map_err(io)
}

fn last_event(segment: &mut SegmentReader) -> Result<Option<Event<'static>>> {
    use crate::codec::{Decoder, kind_of};
    let mut decoder = Decoder::default();
    decoder.reset(segment.start().clock);
    let mut last = None;
    while let Some(body) = segment.load()? {
        let body = segment.body(body);
        last = None;
        let kind = kind_of(body);
        let record = decoder.decode(body);
        match record {
            Ok(record) if kind.is_some_and(is_last_kind) => {
                last = match record.event {
                    Event::ThreadExit { status } => Some(Event::ThreadExit { status }),
                    Event::ProcessExit {
                        status,
                        signal,
                        memory,
                    } => Some(Event::ProcessExit {
                        status,
                        signal,
                        memory,
                    }),
                    Event::Killed => Some(Event::Killed),
                    _ => None,
                };
            }
            Ok(_) => {}
            Err(what) => return Err(segment.corrupt(what)),
        }
        segment.advance();
    }
    Ok(last)
}
