//! Records as one line of text each, for people. System calls appear by number: names are known elsewhere.

use std::fmt;

use crate::event::{Event, FileRef, MemWrite, ProcId, Record, StartHow, ThreadId};

/// Bytes of data shown at most.
const SHOWN: usize = 16;

impl fmt::Display for ProcId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", self.0)
    }
}

impl fmt::Display for ThreadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}", self.0)
    }
}

impl fmt::Display for StartHow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StartHow::Root => "root",
            StartHow::Fork => "fork",
            StartHow::Vfork => "vfork",
        })
    }
}

impl fmt::Display for FileRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough to find it in a listing.
        for byte in self.hash.iter().take(8) {
            write!(f, "{byte:02x}")?;
        }
        write!(f, "..({} bytes)", self.len)
    }
}

impl fmt::Display for MemWrite<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}]={}", self.addr, Data(&self.data))
    }
}

/// Data as an escaped string, cut, with its length.
struct Data<'a>(&'a [u8]);

impl fmt::Display for Data<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.get(..SHOWN).unwrap_or(self.0);
        write!(f, "\"{}\"", shown.escape_ascii())?;
        if shown.len() < self.0.len() {
            write!(f, "..({} bytes)", self.0.len())?;
        }
        Ok(())
    }
}

/// Values separated by commas.
struct List<'a>(&'a [u64]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, value) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            if *value < 10 {
                write!(f, "{value}")?
            } else {
                write!(f, "{value:#x}")?
            }
        }
        Ok(())
    }
}

/// " name value" when there is a value.
struct Maybe<T>(&'static str, Option<T>);

impl<T: fmt::Display> fmt::Display for Maybe<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.1 {
            Some(value) => write!(f, " {} {value}", self.0),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Record<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:#x} {:08x} {}",
            self.clock, self.pc, self.regs, self.event
        )
    }
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::ProcessStart {
                proc,
                parent,
                how,
                pid,
            } => {
                write!(
                    f,
                    "process-start {proc} ({how}) pid {pid}{}",
                    Maybe("parent", *parent)
                )
            }
            Event::ThreadStart { proc, tid, turn } => {
                write!(f, "thread-start in {proc} tid {tid} turn {turn}")
            }
            Event::Image { info } => write!(f, "image ({} bytes)", info.len()),
            Event::Syscall {
                nr,
                args,
                ret,
                outs,
                output,
                turn,
            } => {
                write!(f, "syscall {nr}({}) = {ret}", List(args))?;
                for out in outs {
                    write!(f, " {out}")?;
                }
                if let Some((fd, seq)) = output {
                    write!(f, " output {seq} to {fd}")?;
                }
                write!(f, "{}", Maybe("turn", *turn))
            }
            Event::FileMapping {
                addr,
                len,
                offset,
                file,
                ..
            } => {
                write!(
                    f,
                    "file-mapping {addr:#x}+{len:#x} of {file} at {offset:#x}"
                )
            }
            Event::FileData {
                addr,
                len,
                offset,
                file,
            } => write!(f, "file-data {addr:#x}+{len:#x} of {file} at {offset:#x}"),
            Event::Insn { kind, values } => write!(f, "insn {kind} = {}", List(values)),
            Event::Signal {
                signo,
                fault_addr,
                synchronous,
                ..
            } => {
                write!(f, "signal {signo}")?;
                if *synchronous {
                    write!(f, " synchronous at {fault_addr:#x}")
                } else {
                    Ok(())
                }
            }
            Event::Preempt { turn } => write!(f, "preempt turn {turn}"),
            Event::Fork {
                child,
                child_thread,
                nr,
                pid,
                turn,
            } => write!(
                f,
                "fork by {nr} of {child} {child_thread} pid {pid}{}",
                Maybe("turn", *turn)
            ),
            Event::Clone { thread, tid } => write!(f, "clone of {thread} tid {tid}"),
            Event::Exec => f.write_str("exec"),
            Event::ThreadExit { status } => write!(f, "thread-exit {status}"),
            Event::ProcessExit {
                status,
                signal,
                memory,
            } => {
                write!(
                    f,
                    "process-exit{}{}",
                    Maybe("status", *status),
                    Maybe("signal", *signal)
                )?;
                match memory {
                    Some(hash) => write!(f, " memory {hash:016x}"),
                    None => Ok(()),
                }
            }
            Event::Killed => f.write_str("killed"),
            Event::Sync {
                order,
                vcpu,
                stop: _,
                edges,
            } => {
                f.write_str("sync")?;
                write!(f, "{}{}", Maybe("order", *order), Maybe("vcpu", *vcpu))?;
                for e in edges.iter() {
                    write!(f, " {} past {} or at #{}", e.thread, e.clock, e.event)?;
                }
                Ok(())
            }
            Event::Shared { step, writes } => {
                f.write_str(if *step { "shared in turn" } else { "shared" })?;
                for w in writes {
                    write!(f, " {:#x}+{}", w.addr, w.data.len())?;
                }
                Ok(())
            }
        }
    }
}
