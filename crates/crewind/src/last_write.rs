//! `crewind last-write`: who wrote to memory last, without a debugger.

use std::fmt::Write as _;
use std::io::Write as _;

use crewind_debug::engine;
use crewind_debug::point::{Wanted, describe, number};
use crewind_debug::timeline::{Reason, Timeline};
use crewind_guest::debug::wire::Step;

use crate::backtrace::{Objects, mapped_files};
use crate::cli::{LastWriteArgs, output_error};
use crate::debug::{self, Opened, Quiet};
use crate::fail::{Error, Result};
use crate::locate;

/// Most bytes whose values are shown.
const SHOWN: u64 = 64;

/// Memory as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    addr: u64,
    len: u64,
}

/// `ADDR` or `ADDR:LEN`.
pub fn parse_range(text: &str) -> std::result::Result<Range, String> {
    let (addr, len) = text.split_once(':').unwrap_or((text, "1"));
    match (number(addr), number(len)) {
        (Some(addr), Some(len)) if len > 0 && addr.checked_add(len).is_some() => {
            Ok(Range { addr, len })
        }
        _ => Err("an address and a number of bytes are wanted, as 0x4000:8".into()),
    }
}

fn failed(e: engine::Error) -> Error {
    match e {
        engine::Error::Refused(why) => Error::usage(why),
        engine::Error::Gone(_) => Error::internal(e.to_string()),
    }
}

/// Tells; returns the exit status.
pub fn run(args: &LastWriteArgs) -> Result<i32> {
    let trace = locate::open(Some(&args.trace))?;
    let at = match &args.at {
        Some(text) => Wanted::parse(text).map_err(|e| Error::usage(format!("--at: {e}")))?,
        None => Wanted::End,
    };
    let Opened {
        engine,
        stopped,
        chosen,
    } = debug::open(&trace, args.process.as_deref(), Quiet::Yes)?;
    let mut timeline = Timeline::new(engine, &stopped).map_err(failed)?;
    let never = &mut || false;
    let reached = timeline.go_to(at, never).map_err(failed)?;
    if let (Reason::End(_), Wanted::Event(_)) = (&reached, at) {
        return Err(Error::usage(format!(
            "--at: that is behind the end, which is at {}",
            describe(&timeline.place())
        )));
    }
    let Range { addr, len } = args.memory;
    let found = timeline.last_write(addr, len, never).map_err(failed)?;
    let Some(place) = found else {
        let text = format!(
            "{addr:#x} was not written before {}\n",
            describe(&timeline.place())
        );
        show(&text)?;
        return Ok(1);
    };
    timeline.go_to_point(place.point, never).map_err(failed)?;
    let mapped = mapped_files(&trace, &chosen.path)?;
    let engine = timeline.engine();
    let regs = engine.registers(place.thread).map_err(failed)?;
    let mut objects = Objects::of(engine, &trace, &chosen.image, &mapped).map_err(failed)?;
    let backtrace = objects.backtrace(engine, &regs);
    let shown = len.min(SHOWN);
    let before = engine.read(addr, shown).map_err(failed)?;
    let step = Step {
        thread: place.thread,
        range: None,
    };
    timeline.go(Some(step), never).map_err(failed)?;
    let behind = timeline.engine().read(addr, shown).map_err(failed)?;
    let mut text = format!("last written at {}\n", describe(&place));
    // Writing to a String does not fail.
    let _ = writeln!(text, "before  {}", bytes(&before));
    let _ = writeln!(text, "behind  {}", bytes(&behind));
    for line in backtrace.lines() {
        text.push_str(&line);
        text.push('\n');
    }
    show(&text)?;
    Ok(0)
}

fn bytes(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing is mapped there".into();
    }
    let mut text = String::new();
    for b in bytes {
        // Writing to a String does not fail.
        let _ = write!(text, "{b:02x} ");
    }
    text.pop();
    text
}

fn show(text: &str) -> Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|e| output_error(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        let range = |addr, len| Ok(Range { addr, len });
        assert_eq!(parse_range("0x10"), range(16, 1));
        assert_eq!(parse_range("16:0x8"), range(16, 8));
        for bad in ["", "x", "1:0", "1:", ":1", "0xffffffffffffffff:2"] {
            assert!(parse_range(bad).is_err(), "{bad}");
        }
    }
}
