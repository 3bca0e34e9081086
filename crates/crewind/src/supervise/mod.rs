//! Starting the root guest process and staying out of its way until it ends.
//!
//! The guest stays in the supervisor's process group, so the terminal's signals and job control reach it as they
//! reach any program. The supervisor blocks them for itself and does by hand what a shell would see: it stops when
//! the guest stops, passes on signals that were sent to it alone, and ends as the guest ends.

mod guardian;
mod inherited;
mod signals;
mod spawn;
mod watch;

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crewind_guest::start::{Failure, Report};

use crate::fail::{Error, Result, say};
use crate::part::Parts;

use guardian::Guardian;
pub use inherited::Inherited;
use signals::Signals;
pub use signals::end_by;
pub use watch::Watch;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this exit status.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

impl Ended {
    /// The exit status to end with; does not return when it was a signal, which ends this process as well.
    pub fn repeat(self) -> i32 {
        match self {
            Ended::Exited(status) => status,
            Ended::Signaled(signal) => end_by(signal),
        }
    }
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The root's end, and the others' for at most this long: as a shell waits for a command, whose daemons go on.
    RootThen(Duration),
    /// The end of all processes.
    All,
}

/// What the keyboard and `kill` do to the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalsGo {
    /// To the guest, whose program decides.
    ToGuest,
    /// To the supervisor, which stops everything: a replay gets its signals from the trace.
    ToSupervisor,
}

/// How a run went.
#[derive(Debug)]
pub struct Outcome {
    /// End of the root process.
    pub ended: Ended,
    /// The first failure that a guest process reported.
    pub failure: Option<(Failure, String)>,
    /// Where a replay of an unfinished trace ended: in the root process if there is a choice.
    pub stream_end: Option<String>,
    /// The errno of `execve`, when the program could not be executed.
    pub cannot_execute: Option<i32>,
    /// Processes of the guest that go on.
    pub others: Others,
}

impl Outcome {
    /// How crewind is to end. A failure's message was printed when it came.
    pub fn end(&self) -> Ended {
        match self.failure {
            Some((failure, _)) => Ended::Exited(failure.status()),
            None => self.ended,
        }
    }
}

/// Whether processes besides the root are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// All ended.
    Gone,
    /// Some go on.
    Live,
}

/// A running root process.
pub struct Guest {
    pid: libc::pid_t,
    control: OwnedFd,
    signals: Signals,
    go: SignalsGo,
    watch: Option<Watch>,
    /// Recordings of parts of the run.
    parts: Parts,
    /// Dismissed when this goes.
    _guardian: Option<Guardian>,
}

/// How long the other processes of a replay may go on after one failed.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

impl Guest {
    /// Recordings of parts of the run so far.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// The control socket, to be handed to the keeper.
    pub fn into_control(self) -> OwnedFd {
        self.control
    }

    /// Has a replay looked after while it is waited for.
    pub fn watch(&mut self, watch: Watch) {
        self.watch = Some(watch);
    }

    /// Waits for the end.
    pub fn wait(&mut self, until: Until) -> Result<Outcome> {
        let mut run = Run {
            ended: None,
            failure: None,
            cannot_execute: None,
            control_open: true,
            deadline: None,
            stream_end: None,
        };
        let mut look_at = Instant::now() + watch::INTERVAL;
        while !run.over(until) {
            self.poll(&run)?;
            if let Some(watch) = &mut self.watch
                && Instant::now() >= look_at
            {
                look_at = Instant::now() + watch::INTERVAL;
                if run.failure.is_none()
                    && let Some((failure, message)) = watch.look()
                {
                    run.note(Report::Failed { failure, message }, self.go);
                    signals::kill_descendants(self.pid);
                }
            }
            if run.control_open {
                self.read_reports(&mut run)?;
            }
            self.take_signals(&mut run, until)?;
            if run.deadline.is_some_and(|at| Instant::now() >= at) && self.stop_waiting(&mut run) {
                break;
            }
        }
        if !run.control_open {
            self.parts.all_ended();
        }
        let ended = run
            .ended
            .ok_or_else(|| Error::internal("the guest process vanished"))?;
        Ok(Outcome {
            ended,
            failure: run.failure,
            stream_end: run.stream_end.map(|(_, message)| message),
            cannot_execute: run.cannot_execute,
            others: if run.control_open {
                Others::Live
            } else {
                Others::Gone
            },
        })
    }

    /// Sleeps until something happens or the deadline, or it is time to look at a replay.
    fn poll(&self, run: &Run) -> Result<()> {
        let left = run
            .deadline
            .map(|at| at.saturating_duration_since(Instant::now()));
        let look = self.watch.as_ref().map(|_| watch::INTERVAL);
        let timeout = left.into_iter().chain(look).min().map_or(-1, |left| {
            i32::try_from(left.as_millis())
                .unwrap_or(i32::MAX)
                .saturating_add(1)
        });
        let control = if run.control_open {
            self.control.as_raw_fd()
        } else {
            -1
        };
        let mut fds = [self.signals.raw_fd(), control].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        // SAFETY: pointer and count are those of the array.
        let n = unsafe { libc::poll(fds.as_mut_ptr(), 2, timeout) };
        if n < 0 {
            let e = io::Error::last_os_error();
            if e.kind() != io::ErrorKind::Interrupted {
                return Err(Error::internal(format!("poll failed: {e}")));
            }
        }
        Ok(())
    }

    fn read_reports(&mut self, run: &mut Run) -> Result<()> {
        loop {
            match Report::receive(self.control.as_raw_fd()) {
                Ok(Some(Report::Began { trace })) => self.parts.began(trace),
                Ok(Some(Report::Ended { trace })) => self.parts.ended(&trace),
                Ok(Some(report)) => run.note(report, self.go),
                Ok(None) => {
                    run.control_open = false;
                    return Ok(());
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // A guest process that writes nonsense there is broken, but the run may well be fine.
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    say(&format!("unreadable report of a guest process: {e}"))
                }
                Err(e) => return Err(Error::internal(format!("control socket: {e}"))),
            }
        }
    }

    fn take_signals(&mut self, run: &mut Run, until: Until) -> Result<()> {
        while let Some(signal) = self.signals.next()? {
            match signal.number {
                libc::SIGCHLD => self.reap(run, until)?,
                libc::SIGCONT => signals::continue_if_stopped(self.pid),
                _ if run.ended.is_some() => {}
                number if self.go == SignalsGo::ToSupervisor => {
                    if matches!(
                        number,
                        libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT
                    ) {
                        signals::kill_descendants(self.pid);
                        end_by(number);
                    }
                }
                _ if signal.was_sent_to_us_alone() => signals::send(self.pid, signal.number),
                _ => {}
            }
        }
        Ok(())
    }

    /// Looks whether the root stopped or ended.
    fn reap(&mut self, run: &mut Run, until: Until) -> Result<()> {
        while run.ended.is_none() {
            let mut status = 0;
            // SAFETY: `status` is a live int.
            let pid = unsafe {
                libc::waitpid(self.pid, &raw mut status, libc::WNOHANG | libc::WUNTRACED)
            };
            if pid != self.pid {
                break;
            }
            if libc::WIFSTOPPED(status) {
                self.signals.stop_self(libc::WSTOPSIG(status));
            } else if libc::WIFSIGNALED(status) {
                run.ended = Some(Ended::Signaled(libc::WTERMSIG(status)));
            } else {
                run.ended = Some(Ended::Exited(libc::WEXITSTATUS(status)));
            }
        }
        if self.go == SignalsGo::ToSupervisor {
            signals::reap_orphans(self.pid);
        }
        if run.ended.is_some() {
            let grace = match until {
                Until::RootThen(grace) => Some(grace),
                Until::All => None,
            };
            let at = grace.and_then(|grace| Instant::now().checked_add(grace));
            run.deadline = run.deadline.or(at);
        }
        Ok(())
    }

    /// The deadline passed. Returns true when the wait is over.
    fn stop_waiting(&self, run: &mut Run) -> bool {
        run.deadline = None;
        if self.go == SignalsGo::ToSupervisor {
            // A replay that failed: the rest may wait for ever for what will not happen.
            signals::kill_descendants(self.pid);
            return false;
        }
        run.ended.is_some()
    }
}

/// State of [`Guest::wait`].
struct Run {
    ended: Option<Ended>,
    failure: Option<(Failure, String)>,
    cannot_execute: Option<i32>,
    control_open: bool,
    deadline: Option<Instant>,
    /// Where the streams of a process ended in an unfinished trace: the root's if that has come.
    stream_end: Option<(u32, String)>,
}

impl Run {
    fn over(&self, until: Until) -> bool {
        match until {
            // Without a deadline left, or at its end, `stop_waiting` decides.
            Until::RootThen(_) | Until::All => self.ended.is_some() && !self.control_open,
        }
    }

    fn note(&mut self, report: Report, go: SignalsGo) {
        match report {
            Report::Warning { message } => say(&format!("warning: {message}")),
            // In one piece, because the guest may write to the same terminal.
            Report::Text { text } => drop(std::io::stderr().write_all(text.as_bytes())),
            // The end of the process says so too.
            Report::Complete | Report::Began { .. } | Report::Ended { .. } => {}
            Report::StreamEnds { thread, message } => {
                let first = self.stream_end.as_ref().is_none_or(|(t, _)| thread < *t);
                if first {
                    self.stream_end = Some((thread, message));
                }
            }
            Report::CannotExecute { errno } => self.cannot_execute = Some(errno),
            Report::Failed { failure, message } => {
                if self.failure.is_none() {
                    say(&message);
                    self.failure = Some((failure, message));
                }
                if go == SignalsGo::ToSupervisor {
                    self.deadline = Instant::now().checked_add(AFTER_FAILURE);
                }
            }
        }
    }
}

pub use spawn::spawn;
