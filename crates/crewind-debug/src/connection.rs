//! One connection of a front end.

use crate::engine::Error;
use crate::target::{Session, Stop};
use gdbstub::conn::{Connection as Conn, ConnectionExt};
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{DisconnectReason, GdbStub};
use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A connection, of either kind.
pub type Connection = Box<dyn ConnectionExt<Error = io::Error>>;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The front end went away; it or another one may come back.
    Detached,
    /// It wants the process to be gone.
    Killed,
}

thread_local! {
    /// When Ctrl-C came last, if nothing has stopped for it yet. (A connection is a trait object of gdbstub's, which has no
    /// room for this.)
    static ASKED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A Ctrl-C that is older than this when the replay runs on was meant for what has stopped by itself.
const FRESH: Duration = Duration::from_millis(500);

fn is_asked() -> bool {
    ASKED.get().is_some_and(|at| at.elapsed() < FRESH)
}

/// Whether the other side wants attention while the replay runs.
pub(crate) struct Interrupts<'a> {
    connection: &'a mut Connection,
    /// Something was told to stop for it.
    told: bool,
}

impl Interrupts<'_> {
    pub(crate) fn pending(&mut self) -> bool {
        // A connection that is gone is noticed by reading.
        let pending = !matches!(self.connection.peek(), Ok(None)) || is_asked();
        self.told |= pending;
        pending
    }
}

struct Loop;

impl BlockingEventLoop for Loop {
    type Target = Session;
    type Connection = Connection;
    type StopReason = Stop;

    fn wait_for_stop_reason(
        target: &mut Session,
        connection: &mut Connection,
    ) -> Result<Event<Stop>, WaitForStopReasonError<Error, io::Error>> {
        let mut interrupts = Interrupts {
            connection,
            told: false,
        };
        if interrupts.pending() && is_asked() {
            // Ctrl-C came when one of many steps was done: the next one is not made.
            ASKED.set(None);
            return Ok(Event::TargetStopped(target.interrupted()));
        }
        let stop = target
            .run(&mut interrupts)
            .map_err(WaitForStopReasonError::Target)?;
        if interrupts.told {
            ASKED.set(None);
        }
        if !matches!(interrupts.connection.peek(), Ok(None)) {
            let byte = connection
                .read()
                .map_err(WaitForStopReasonError::Connection)?;
            return Ok(Event::IncomingData(byte));
        }
        Ok(Event::TargetStopped(stop))
    }

    fn on_interrupt(target: &mut Session) -> Result<Option<Stop>, Error> {
        Ok(Some(target.interrupted()))
    }
}

/// Serves one front end until it goes away.
///
/// # Errors
/// The replaying process is gone.
pub fn serve(session: &mut Session, connection: Connection) -> Result<Ended, Error> {
    let stub = GdbStub::new(connection);
    let served = stub.run_blocking::<Loop>(session);
    session.left_alone();
    match served {
        Ok(DisconnectReason::Kill) => Ok(Ended::Killed),
        Ok(_) => Ok(Ended::Detached),
        Err(e) if e.is_connection_error() => Ok(Ended::Detached),
        Err(e) if e.is_target_error() => Err(e.into_target_error().unwrap_or_else(|| {
            Error::Refused("the connection failed for an unknown reason".into())
        })),
        // It does not speak as it should: the next one may.
        Err(e) => {
            eprintln!("crewind: the connection failed: {e}");
            Ok(Ended::Detached)
        }
    }
}

/// For a front end that connected over TCP.
///
/// # Errors
/// The socket cannot be set up.
pub fn tcp(stream: TcpStream) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    Ok(Box::new(Buffered::new(stream)))
}

/// For one that connected over a Unix socket.
pub fn unix(stream: UnixStream) -> Connection {
    Box::new(Buffered::new(stream))
}

/// A stream that is read and written in pieces, not byte by byte. Takes Ctrl-C out: gdb sends it when it thinks that the
/// program runs, which may have stopped by itself.
struct Buffered<T> {
    stream: T,
    input: VecDeque<u8>,
    output: Vec<u8>,
    /// The byte that comes next is inside of a packet.
    in_packet: bool,
}

/// What gdb sends for Ctrl-C, between packets.
const CTRL_C: u8 = 3;

impl<T: Read + AsRawFd> Buffered<T> {
    fn new(stream: T) -> Self {
        Buffered {
            stream,
            input: VecDeque::new(),
            output: Vec::new(),
            in_packet: false,
        }
    }

    /// Waits for bytes.
    fn fill(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        let n = self.stream.read(&mut bytes)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.input.extend(bytes.iter().take(n));
        Ok(())
    }

    /// Takes Ctrl-C out of what comes next.
    fn sift(&mut self) {
        while !self.in_packet && self.input.front() == Some(&CTRL_C) {
            self.input.pop_front();
            ASKED.set(Some(Instant::now()));
        }
    }

    /// Whether reading would not wait.
    fn is_ready(&self) -> bool {
        let mut fd = libc::pollfd {
            fd: self.stream.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one live structure.
        unsafe { libc::poll(&mut fd, 1, 0) > 0 }
    }
}

impl<T: Read + Write> Conn for Buffered<T> {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.output.push(byte);
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.output)?;
        self.output.clear();
        Ok(())
    }
}

impl<T: Read + Write + AsRawFd> ConnectionExt for Buffered<T> {
    fn read(&mut self) -> io::Result<u8> {
        loop {
            self.sift();
            if let Some(b) = self.input.pop_front() {
                self.in_packet = match b {
                    b'$' => true,
                    // The checksum is digits.
                    b'#' => false,
                    _ => self.in_packet,
                };
                return Ok(b);
            }
            self.fill()?;
        }
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        if self.input.is_empty() && self.is_ready() {
            self.fill()?;
        }
        self.sift();
        Ok(self.input.front().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_c_is_taken_out_between_packets_only() {
        let (mut theirs, ours) = UnixStream::pair().expect("a pair of sockets");
        let mut connection = unix(ours);
        assert_eq!(connection.peek().expect("it is open"), None);
        assert!(!is_asked());
        Write::write_all(&mut theirs, b"$X1,1:\x03#3f\x03+").expect("there is room");
        let mut read = Vec::new();
        for _ in 0..10 {
            read.push(connection.read().expect("there is more"));
        }
        assert_eq!(read, b"$X1,1:\x03#3f+"[..10]);
        assert!(!is_asked(), "that was data");
        assert_eq!(connection.read().expect("there is more"), b'+');
        assert!(is_asked());
        ASKED.set(None);
        Write::write_all(&mut theirs, b"\x03").expect("there is room");
        assert_eq!(connection.peek().expect("it is open"), None);
        assert!(is_asked());
    }
}
