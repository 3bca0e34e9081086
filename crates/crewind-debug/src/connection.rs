//! One connection of a front end.

use crate::engine::Error;
use crate::target::{Session, Stop};
use gdbstub::conn::{Connection as Conn, ConnectionExt};
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{DisconnectReason, GdbStub};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

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

/// Whether the other side wants attention while the replay runs.
pub(crate) struct Interrupts<'a> {
    connection: &'a mut Connection,
}

impl Interrupts<'_> {
    pub(crate) fn pending(&mut self) -> bool {
        // A connection that is gone is noticed by reading.
        !matches!(self.connection.peek(), Ok(None))
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
        let mut interrupts = Interrupts { connection };
        let stop = target
            .run(&mut interrupts)
            .map_err(WaitForStopReasonError::Target)?;
        if interrupts.pending() {
            // Ctrl-C: it is answered with the reason to stop.
            let byte = connection
                .read()
                .map_err(WaitForStopReasonError::Connection)?;
            if byte != 3 {
                return Ok(Event::IncomingData(byte));
            }
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

/// A stream that is read and written in pieces, not byte by byte.
struct Buffered<T> {
    stream: T,
    input: VecDeque<u8>,
    output: Vec<u8>,
}

impl<T: Read + AsRawFd> Buffered<T> {
    fn new(stream: T) -> Self {
        Buffered {
            stream,
            input: VecDeque::new(),
            output: Vec::new(),
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
            if let Some(b) = self.input.pop_front() {
                return Ok(b);
            }
            self.fill()?;
        }
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        if self.input.is_empty() && self.is_ready() {
            self.fill()?;
        }
        Ok(self.input.front().copied())
    }
}
