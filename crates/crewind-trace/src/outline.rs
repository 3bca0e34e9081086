//! What a replay of a trace comes to, found by reading all of it: which streams are reached, how far, and which
//! numbers in the order of output nobody shows.
//!
//! A number can be missing: a process that is killed (SIGKILL, or the recording as a whole) between its write and
//! the record of it leaves a hole, and so does a stream that no record leads to. What comes after a hole would wait
//! for ever for its turn.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use crate::dir::TraceDir;
use crate::error::{Result, TraceError};
use crate::event::{Event, ThreadId};
use crate::reader::{StreamReader, has_segments};
use crate::segment::{Form, STREAMS, file_name};

/// A trace as a replay sees it.
#[derive(Debug, Default)]
pub struct Outline {
    /// Records of each stream that the root's leads to. A stream that is not there at all has none: its thread was
    /// killed before its first record.
    pub records: BTreeMap<ThreadId, u64>,
    /// Numbers in the order of output that no record of these streams has, below the last one that is there;
    /// ascending.
    pub missing: Vec<Range<u64>>,
    /// What cannot be read, one for each stream.
    pub damage: Vec<TraceError>,
}

impl Outline {
    /// Reads a trace, which may still grow: then it is that of some moment.
    ///
    /// # Errors
    /// The directory cannot be read. Damage of streams is in the result.
    pub fn read(trace: &TraceDir) -> Result<Self> {
        let dir = trace.path();
        let stated = trace.end()?.map(|end| end.threads).unwrap_or_default();
        let mut outline = Outline::default();
        let mut seen = Vec::new();
        let mut to_read = vec![ThreadId(1)];
        while let Some(thread) = to_read.pop() {
            if outline.records.contains_key(&thread) {
                continue;
            }
            let stated = stated.get(&thread.0).copied().unwrap_or(0);
            let (records, failure) = if has_segments(dir, thread)? {
                read_stream(dir, thread, &mut to_read, &mut seen)
            } else {
                (0, None)
            };
            let failure = failure.or_else(|| {
                (records < stated).then(|| {
                    let file = dir.join(STREAMS).join(file_name(thread, 0, Form::Raw));
                    let what = format!("{} more records of thread {}", stated - records, thread.0);
                    TraceError::truncated(&file, 0, what)
                })
            });
            outline.damage.extend(failure);
            outline.records.insert(thread, records);
        }
        outline.missing = gaps(seen);
        Ok(outline)
    }
}

/// Reads a stream to its end or to its first damage; notes what it leads to and its places in the order of output.
fn read_stream(
    dir: &Path,
    thread: ThreadId,
    leads_to: &mut Vec<ThreadId>,
    seen: &mut Vec<Range<u64>>,
) -> (u64, Option<TraceError>) {
    let mut reader = match StreamReader::open(dir, thread) {
        Ok(reader) => reader,
        Err(e) => return (0, Some(e)),
    };
    let own = seen.len();
    loop {
        match reader.next() {
            Ok(Some(record)) => match record.event {
                Event::Fork { child_thread, .. } => leads_to.push(child_thread),
                Event::Clone { thread, .. } => leads_to.push(thread),
                Event::Syscall {
                    output: Some((_, seq)),
                    ..
                } => match seen.get_mut(own..).and_then(<[_]>::last_mut) {
                    Some(last) if last.end == seq => last.end = seq.saturating_add(1),
                    _ => seen.push(seq..seq.saturating_add(1)),
                },
                _ => {}
            },
            Ok(None) => return (reader.seq(), None),
            Err(e) => return (reader.seq(), Some(e)),
        }
    }
}

/// What lies between the ranges, from 0 on.
fn gaps(mut seen: Vec<Range<u64>>) -> Vec<Range<u64>> {
    seen.sort_unstable_by_key(|r| r.start);
    let mut at = 0;
    let mut gaps = Vec::new();
    for r in seen {
        if r.start > at {
            gaps.push(at..r.start);
        }
        at = at.max(r.end);
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_lie_between_ranges_in_any_order() {
        let gaps = |seen: &[(u64, u64)]| -> Vec<(u64, u64)> {
            let seen = seen.iter().map(|&(start, end)| start..end).collect();
            gaps(seen).into_iter().map(|r| (r.start, r.end)).collect()
        };
        assert_eq!(gaps(&[]), []);
        assert_eq!(gaps(&[(0, 5)]), []);
        assert_eq!(gaps(&[(9, 10), (2, 5), (5, 7)]), [(0, 2), (7, 9)]);
        // A damaged trace may have a number twice.
        assert_eq!(gaps(&[(0, 5), (3, 4), (8, 9)]), [(5, 8)]);
    }
}
