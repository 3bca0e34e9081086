//! Commands of our own, which gdb passes on: `monitor ...`.

use crate::engine::Error;
use crate::point::{Wanted, describe, number};
use crate::target::Session;
use crate::timeline::Reason;
use crewind_guest::debug::wire::Forks;

const HELP: &str = "\
when                    where this is: event, thread, position
goto EVENT              to a moment; also goto start, goto end, goto THREAD:CLOCK[:PC]
last-write ADDR [LEN]   the last write to memory before this moment
checksum                hash of registers and memory here
catch fork|vfork|none   stop behind the making of processes
checkpoints             how many checkpoints there are
(gdb's own commands `when`, `goto` and `last-write` are made of these and show where they lead.)";

impl Session {
    /// Does a command; the result is for the user.
    pub(crate) fn command(&mut self, line: &str) -> Result<String, Error> {
        let mut words = line.split_whitespace();
        let command = words.next().unwrap_or("help");
        let rest: Vec<&str> = words.collect();
        let done = match (command, rest.as_slice()) {
            ("when", []) => Ok(self.when()),
            ("goto", [to]) => self.goto(to),
            ("jump", [to]) => Ok(self.jump(to)),
            ("last-write", [addr]) => self.last_write(addr, "1"),
            ("last-write", [addr, len]) => self.last_write(addr, len),
            ("checksum", []) => self.timeline.checksum().map(|sum| format!("{sum:016x}")),
            ("checkpoints", []) => Ok(self.timeline.checkpoints().to_string()),
            ("catch", [what]) => self.catch(what),
            ("help", _) => Ok(HELP.into()),
            _ => Ok(format!("unknown: {line}\n{HELP}")),
        };
        match done {
            Err(Error::Refused(why)) => Ok(why),
            other => other,
        }
    }

    fn when(&self) -> String {
        let mut text = describe(&self.timeline.place());
        if let Some(how) = self.timeline.ended() {
            text.push_str(&format!(" ({how})"));
        }
        text
    }

    /// Moves the session.
    ///
    /// # Errors
    /// There is no such moment.
    pub fn goto(&mut self, to: &str) -> Result<String, Error> {
        let wanted = Wanted::parse(to).map_err(Error::Refused)?;
        self.forget_copy();
        let reason = self.timeline.go_to(wanted, &mut || false)?;
        let ended = match reason {
            Reason::End(_) if wanted != Wanted::End => "that is behind the end; ",
            _ => "",
        };
        Ok(format!("{ended}now at {}", self.when()))
    }

    /// The same with the next resumption: gdb then shows where that led, and can interrupt it. With a mistake in it, the
    /// next resumption stays here.
    fn jump(&mut self, to: &str) -> String {
        match Wanted::parse(to) {
            Ok(wanted) => {
                self.jump = Some(Some(wanted));
                String::new()
            }
            Err(why) => {
                self.jump = Some(None);
                why
            }
        }
    }

    fn catch(&mut self, what: &str) -> Result<String, Error> {
        let forks = &mut self.forks;
        match what {
            "fork" => forks.fork = true,
            "vfork" => forks.vfork = true,
            "none" => *forks = Forks::default(),
            "exec" => {
                return Ok("a session is about one program: it ends where that executes the next one, and says how to see that".into());
            }
            _ => {
                return Err(Error::Refused(format!(
                    "\"{what}\" cannot be caught; fork, vfork, none can"
                )));
            }
        }
        self.timeline.set_forks(self.forks);
        Ok(match what {
            "none" => "no making of processes is caught any more".into(),
            _ => format!("stops behind each {what}; `monitor catch none` ends that"),
        })
    }

    fn last_write(&mut self, addr: &str, len: &str) -> Result<String, Error> {
        let (Some(addr), Some(len)) = (number(addr), number(len).filter(|n| *n > 0)) else {
            return Err(Error::Refused(
                "last-write ADDR [LEN] wants two numbers, as 0x4000 or 64".into(),
            ));
        };
        let found = self.timeline.last_write(addr, len, &mut || false)?;
        Ok(match found {
            Some(place) => {
                let p = place.point;
                format!(
                    "last written by {}; goto {}:{}:{:#x} leads there",
                    describe(&place),
                    place.thread,
                    p.clock,
                    p.pc
                )
            }
            None => format!("{addr:#x} was not written before this moment"),
        })
    }
}
