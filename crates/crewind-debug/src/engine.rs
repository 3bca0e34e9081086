//! A replaying process, as the debugger sees it.

use crewind_guest::debug::wire::{
    Answer, Channel, Forks, Place, ProgramInfo, Registers, Request, Run, Stopped, Stray,
    ThreadInfo, Watch,
};
use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Why a replaying process did not do what it was asked.
#[derive(Debug)]
pub enum Error {
    /// It is gone, or speaks nonsense.
    Gone(io::Error),
    /// It says why.
    Refused(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Gone(e) => write!(f, "the replaying process is gone ({e})"),
            Error::Refused(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Self {
        Error::Gone(e)
    }
}

/// Result of asking.
pub type Result<T> = std::result::Result<T, Error>;

/// A replaying process that stands still. It ends when this is dropped.
#[derive(Debug)]
pub struct Engine {
    channel: Channel,
    looks_out: LookOut,
    place: Place,
}

/// What a process looks out for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LookOut {
    /// Breakpoints.
    pub breaks: Vec<u64>,
    /// Watched memory.
    pub watches: Vec<Watch>,
    /// System calls; an empty list: all of them.
    pub calls: Option<Vec<u64>>,
    /// The making of processes.
    pub forks: Forks,
}

impl LookOut {
    /// For nothing.
    pub fn is_empty(&self) -> bool {
        *self == LookOut::default()
    }
}

impl Engine {
    /// Waits until the process at the other end of a socket stands at its beginning.
    ///
    /// # Errors
    /// It ends before.
    pub fn connect(stream: UnixStream) -> Result<(Engine, Stopped)> {
        let mut channel = Channel::new(stream);
        let stopped = match channel.receive::<Answer>()?.0 {
            Answer::Stopped(s) => s,
            other => return Err(unexpected(&other)),
        };
        let engine = Engine {
            channel,
            looks_out: LookOut::default(),
            place: stopped.place,
        };
        Ok((engine, stopped))
    }

    /// Where it stands.
    pub fn place(&self) -> Place {
        self.place
    }

    fn ask(&mut self, request: &Request) -> Result<(Answer, Vec<u8>)> {
        self.ask_with(request, &[])
    }

    fn ask_with(&mut self, request: &Request, bytes: &[u8]) -> Result<(Answer, Vec<u8>)> {
        self.channel.send(request, bytes)?;
        match self.channel.receive()? {
            (Answer::Failed(why), _) => Err(Error::Refused(why)),
            other => Ok(other),
        }
    }

    fn tell(&mut self, request: &Request) -> Result<()> {
        self.tell_with(request, &[])
    }

    fn tell_with(&mut self, request: &Request, bytes: &[u8]) -> Result<()> {
        match self.ask_with(request, bytes)? {
            (Answer::Done, _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Sets what it looks out for.
    ///
    /// # Errors
    /// It is gone.
    pub fn look_out(&mut self, wanted: &LookOut) -> Result<()> {
        if self.looks_out.breaks != wanted.breaks {
            self.tell(&Request::Breaks(wanted.breaks.clone()))?;
            self.looks_out.breaks.clone_from(&wanted.breaks);
        }
        if self.looks_out.watches != wanted.watches {
            self.tell(&Request::Watches(wanted.watches.clone()))?;
            self.looks_out.watches.clone_from(&wanted.watches);
        }
        if self.looks_out.calls != wanted.calls {
            self.tell(&Request::Calls(wanted.calls.clone()))?;
            self.looks_out.calls.clone_from(&wanted.calls);
        }
        if self.looks_out.forks != wanted.forks {
            self.tell(&Request::Forks(wanted.forks))?;
            self.looks_out.forks = wanted.forks;
        }
        Ok(())
    }

    /// Lets it run.
    ///
    /// # Errors
    /// It is gone.
    pub fn run(&mut self, run: Run) -> Result<Stopped> {
        match self.ask(&Request::Run(run))? {
            (Answer::Stopped(s), _) => {
                self.place = s.place;
                Ok(s)
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Changes the registers of a thread. The process is for throwing away from now on.
    ///
    /// # Errors
    /// There is no such thread.
    pub fn set_registers(&mut self, thread: u32, registers: &Registers) -> Result<()> {
        self.tell_with(&Request::SetRegisters(thread), &registers.to_bytes())
    }

    /// Changes memory. The process is for throwing away from now on.
    ///
    /// # Errors
    /// There is none.
    pub fn write(&mut self, addr: u64, bytes: &[u8]) -> Result<()> {
        self.tell_with(&Request::Write { addr }, bytes)
    }

    /// Lets one thread go on alone, without the recording. The process is for throwing away from now on.
    ///
    /// # Errors
    /// There is no such thread.
    pub fn stray(&mut self, how: Stray) -> Result<Stopped> {
        match self.ask(&Request::Stray(how))? {
            (Answer::Stopped(s), _) => Ok(s),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Another process in the same state.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn fork(&mut self) -> Result<Engine> {
        let (ours, theirs) = UnixStream::pair()?;
        self.channel.send(&Request::Fork, &[])?;
        self.channel.send_fd(theirs.as_raw_fd())?;
        drop(theirs);
        match self.channel.receive::<Answer>()?.0 {
            Answer::Done => {}
            Answer::Failed(why) => return Err(Error::Refused(why)),
            other => return Err(unexpected(&other)),
        }
        let (mut engine, _) = Engine::connect(ours)?;
        engine.looks_out.clone_from(&self.looks_out);
        Ok(engine)
    }

    /// Its threads.
    ///
    /// # Errors
    /// It is gone.
    pub fn threads(&mut self) -> Result<Vec<ThreadInfo>> {
        match self.ask(&Request::Threads)? {
            (Answer::Threads(t), _) => Ok(t),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Registers of a thread.
    ///
    /// # Errors
    /// There is no such thread.
    pub fn registers(&mut self, thread: u32) -> Result<Registers> {
        match self.ask(&Request::Registers(thread))? {
            (Answer::Bytes, bytes) => Registers::from_bytes(&bytes)
                .ok_or_else(|| Error::Gone(io::ErrorKind::InvalidData.into())),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Memory, as far as it can be read.
    ///
    /// # Errors
    /// The process is gone.
    pub fn read(&mut self, addr: u64, len: u64) -> Result<Vec<u8>> {
        match self.ask(&Request::Read { addr, len })? {
            (Answer::Bytes, bytes) => Ok(bytes),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// The program.
    ///
    /// # Errors
    /// The process is gone.
    pub fn program(&mut self) -> Result<ProgramInfo> {
        match self.ask(&Request::Program)? {
            (Answer::Program(p), _) => Ok(p),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// A hash of all registers and writable memory.
    ///
    /// # Errors
    /// The process is gone.
    pub fn checksum(&mut self) -> Result<u64> {
        match self.ask(&Request::Checksum)? {
            (Answer::Checksum(sum), _) => Ok(sum),
            (other, _) => Err(unexpected(&other)),
        }
    }
}

fn unexpected(answer: &Answer) -> Error {
    Error::Gone(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("unexpected answer {answer:?}"),
    ))
}
