//! `crewind ls` and `crewind rm`.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crewind_trace::{FileStore, TraceDir};
use serde_json::json;

use crate::cli::{LsArgs, RmArgs, output_error};
use crate::fail::{Error, Result, say};
use crate::human;
use crate::locate::{self, Activity, trace_error};

/// What became of a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is being recorded.
    Recording,
    /// The root process exited with this status.
    Exited(i32),
    /// A signal ended the root process.
    Signaled(i32),
    /// The recorder did not come to its end.
    Cut,
    /// What the trace says of its end cannot be read.
    Damaged(String),
}

impl Status {
    /// Looks at a trace.
    pub fn of(trace: &TraceDir) -> Status {
        match trace.end() {
            Err(e) => Status::Damaged(e.to_string()),
            Ok(Some(end)) => match (end.status, end.signal) {
                (_, Some(signal)) => Status::Signaled(signal),
                (status, None) => Status::Exited(status.unwrap_or(0)),
            },
            Ok(None) if locate::activity(trace.path()) == Activity::Recording => Status::Recording,
            Ok(None) => Status::Cut,
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Status::Recording => f.write_str("recording"),
            Status::Exited(status) => write!(f, "exit {status}"),
            Status::Signaled(signal) => write!(f, "signal {signal}"),
            Status::Cut => f.write_str("cut off"),
            Status::Damaged(_) => f.write_str("damaged"),
        }
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// How long ago a moment was, in words.
pub fn ago(seconds: u64) -> String {
    match human::age(now().saturating_sub(seconds)) {
        age if age == "now" => "just now".into(),
        age => format!("{age} ago"),
    }
}

/// Bytes that a trace takes on disk. Contents of mapped files that other traces share are counted in each.
pub fn disk_size(directory: &Path) -> u64 {
    let mut total = 0;
    let mut look_at = vec![directory.to_owned()];
    while let Some(directory) = look_at.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => look_at.push(entry.path()),
                Ok(meta) => total += meta.blocks() * 512,
                Err(_) => {}
            }
        }
    }
    total
}

/// The recorded command as one would type it.
pub fn command_line(trace: &TraceDir) -> String {
    let words: Vec<String> = trace
        .meta()
        .argv
        .iter()
        .map(|a| human::quote(&a.to_string()))
        .collect();
    words.join(" ")
}

/// Lists the traces.
pub fn ls(args: &LsArgs) -> Result<i32> {
    let root = locate::trace_root()?;
    let traces = TraceDir::list(&root).map_err(|e| trace_error(&e))?;
    let mut rows = Vec::new();
    let mut objects = Vec::new();
    for trace in &traces {
        let name = trace
            .path()
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let status = Status::of(trace);
        let wall = trace.end().ok().flatten().map(|end| end.wall_ns);
        let size = disk_size(trace.path());
        let age = now().saturating_sub(trace.meta().created);
        if args.json {
            objects.push(json!({
                "name": name,
                "path": trace.path().to_string_lossy(),
                "created": trace.meta().created,
                "wall_ns": wall,
                "disk_bytes": size,
                "status": status.to_string(),
                "argv": trace.meta().argv,
            }));
        } else {
            let wall = wall.map_or_else(
                || "-".into(),
                |ns| human::duration(Duration::from_nanos(ns)),
            );
            rows.push(vec![
                name,
                human::age(age),
                wall,
                human::size(size),
                status.to_string(),
                command_line(trace),
            ]);
        }
    }
    let mut text = String::new();
    if args.json {
        text = serde_json::to_string_pretty(&objects)
            .map_err(|e| Error::internal(e.to_string()))?
            + "\n";
    } else if rows.is_empty() {
        say(&format!(
            "no traces in {}; `crewind record -- CMD` makes one",
            root.display()
        ));
    } else {
        let header = ["NAME", "AGE", "TIME", "SIZE", "STATUS", "COMMAND"]
            .map(str::to_owned)
            .to_vec();
        rows.insert(0, header);
        let width = human::terminal_width();
        for line in human::table(&rows, &[1, 2, 3]) {
            text.push_str(&human::fit(&line, width));
            text.push('\n');
        }
    }
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|e| output_error(&e))?;
    Ok(0)
}

/// Removes traces, then contents of mapped files that no trace needs any more.
pub fn rm(args: &RmArgs) -> Result<i32> {
    let mut failed = None;
    if args.traces.is_empty() {
        let root = locate::trace_root()?;
        let oldest = args.older.map(|age| now().saturating_sub(age.as_secs()));
        for trace in TraceDir::list(&root).map_err(|e| trace_error(&e))? {
            let wanted = oldest.is_none_or(|oldest| trace.meta().created <= oldest);
            if wanted && locate::activity(trace.path()) == Activity::Resting {
                failed = remove(trace.path()).err().or(failed);
            }
        }
    }
    for which in &args.traces {
        let result = locate::find(which).and_then(|path| remove(&path));
        if let Err(e) = result {
            // The others are removed all the same.
            say(&e.message);
            failed = Some(Error {
                status: e.status,
                message: String::new(),
            });
        }
    }
    if let Ok(root) = locate::trace_root()
        && root.exists()
    {
        let _ = FileStore::gc(&root);
    }
    match failed {
        None => Ok(0),
        Some(e) if e.message.is_empty() => Ok(e.status),
        Some(e) => Err(e),
    }
}

fn remove(path: &Path) -> Result<()> {
    if locate::activity(path) == Activity::Recording {
        return Err(Error::usage(format!(
            "{} is being recorded; end the program first, then remove its trace",
            path.display()
        )));
    }
    TraceDir::remove(path).map_err(|e| trace_error(&e))
}
