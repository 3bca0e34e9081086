//! The crewind trace: events, streams, segments, and the store of mapped files.
//!
//! Knows nothing about how events come about or are replayed, and never touches guest memory.
//!
//! A recorded thread writes its [`StreamWriter`]; the process that supervises the recording makes the
//! [`TraceDir`] and the [`Session`], and runs the [`Compactor`]; contents of mapped files go through the
//! [`FileStore`]. Replay and tools read with [`StreamReader`]. Reading treats a trace as untrusted: damage
//! and malice give an error or an earlier end that says why, not a wrong record.
//!
//! ```
//! use crewind_trace::event::{Event, Record, ThreadId};
//! use crewind_trace::{Meta, Options, StreamEnd, StreamReader, StreamWriter, TraceDir};
//!
//! # fn main() -> crewind_trace::Result<()> {
//! # let root = tempfile::tempdir().unwrap();
//! # let root = root.path();
//! let meta = Meta::now(&["true".into()], root, Options::default());
//! let trace = TraceDir::create(root, "true-0", meta)?;
//! let mut writer = StreamWriter::create(trace.path(), ThreadId(1))?;
//! writer.append(&Record { clock: 7, pc: 0x40_1000, regs: 0, event: Event::Preempt { turn: 1 } })?;
//! writer.append(&Record { clock: 9, pc: 0x40_1010, regs: 0, event: Event::Killed })?;
//! writer.finish()?;
//!
//! let mut reader = StreamReader::open(trace.path(), ThreadId(1))?;
//! while let Some(record) = reader.next()? {
//!     println!("{record}");
//! }
//! assert_eq!(reader.end(), StreamEnd::Complete);
//! # Ok(())
//! # }
//! ```

mod anchor;
mod codec;
mod compact;
mod dir;
pub mod error;
pub mod event;
mod files;
#[doc(hidden)]
pub mod fuzz;
mod limits;
mod load;
mod memory;
mod meta;
mod outline;
mod reader;
mod segment;
mod session;
mod show;
mod sys;
mod writer;

pub use anchor::{Anchors, anchor, may_write, open_anchors};
pub use codec::MAX_RECORD_DATA;
pub use compact::{Compactor, Totals, compact};
pub use dir::{ProcessSummary, StreamSummary, TraceDir};
pub use error::{Result, TraceError};
pub use files::{FileStore, Removed, Verify};
pub use limits::LiftedLimits;
pub use memory::{CHUNK_PAGES, MEMORY, MemoryWriter, create_memory, read_memory};
pub use meta::{CpuInfo, End, Meta, Options, Text};
pub use outline::Outline;
pub use reader::{StreamEnd, StreamReader};
pub use segment::FORMAT_VERSION;
pub use session::{Counter, OutputClass, OutputGuard, Session};
pub use writer::{Descriptors, StreamWriter};
