//! What a debugger and a replaying process say to each other, over a stream socket.
//!
//! The debugger asks and the process answers, one message each, in turns. A message is two lengths (little-endian, 4 bytes
//! each), a text in JSON, and bytes: memory and registers travel as they are.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// A moment of a replay. All that a process does has one total order: its guest threads take turns, and each record of
/// the log that is taken, and each change from one thread to another, is an event. Between two events one thread runs;
/// there its clock tells the order, and at one clock the pc, which only grows until the next tick.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Point {
    /// Events before it.
    pub event: u64,
    /// Clock of the thread that runs.
    pub clock: u64,
    /// Its pc.
    pub pc: u64,
}

/// A moment, and who runs then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// When.
    pub point: Point,
    /// The thread's number in the trace.
    pub thread: u32,
}

impl Place {
    /// Whether both are in front of the same dynamic instruction. (They may differ in what others did meanwhile.)
    pub fn same_instruction(&self, other: &Place) -> bool {
        self.thread == other.thread
            && self.point.clock == other.point.clock
            && self.point.pc == other.point.pc
    }
}

/// Which accesses count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Writes.
    Write,
    /// Reads.
    Read,
    /// Both.
    Any,
}

/// Memory that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// First byte.
    pub addr: u64,
    /// Number of bytes.
    pub len: u64,
    /// Which accesses count.
    pub access: Access,
}

/// What is noted on the way, without stopping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Collect {
    /// Nothing: stop where there is a reason.
    #[default]
    Nothing,
    /// The last breakpoint or watchpoint that was met.
    Hits,
    /// Where a thread was before its last instruction, from a clock of it on.
    Steps {
        /// The thread.
        thread: u32,
        /// Its clock from which on it is looked at after each instruction.
        clock: u64,
    },
}

/// How to go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Stop at the first moment that is not before this one.
    pub goal: Option<Point>,
    /// Stop when this thread runs and its clock is at least this.
    pub until: Option<(u32, u64)>,
    /// Stop when a thread has done one instruction, or left a range of code.
    pub step: Option<Step>,
    /// What is noted.
    pub collect: Collect,
    /// Stop in front of signals.
    pub signals: bool,
    /// A breakpoint in front of this instruction does not count.
    pub except: Option<Place>,
    /// Stop after about this much work: ticks, and events at `EVENT_WORK` each.
    pub work: u64,
}

/// Which ways of making a process are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forks {
    /// Those that copy memory.
    pub fork: bool,
    /// Those that share it until the child has executed a program.
    pub vfork: bool,
}

/// A step of one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The thread.
    pub thread: u32,
    /// It goes on while its pc is in here.
    pub range: Option<(u64, u64)>,
}

/// How a thread goes on alone, away from the recording.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stray {
    /// The thread; the others stand still.
    pub thread: u32,
    /// Stop when it has done one instruction.
    pub step: bool,
    /// With `step`: stop when it has left this range of code.
    pub range: Option<(u64, u64)>,
    /// Stop after this many ticks.
    pub work: u64,
}

/// Work that an event counts as, in ticks: a few microseconds.
pub const EVENT_WORK: u64 = 1000;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Go on; answered with [`Answer::Stopped`].
    Run(Run),
    /// These are all the breakpoints.
    Breaks(Vec<u64>),
    /// These are all the watched ranges.
    Watches(Vec<Watch>),
    /// These system calls are caught; without any, all.
    Calls(Option<Vec<u64>>),
    /// The making of these processes is caught.
    Forks(Forks),
    /// Who is there.
    Threads,
    /// The registers of a thread, as [`Registers`].
    Registers(u32),
    /// Memory; fewer bytes if not all can be read.
    Read {
        /// First byte.
        addr: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Change the registers of a thread to the bytes that follow, a [`Registers`]. (Like all changes, for a copy that is
    /// thrown away: the recording does not go on from it.)
    SetRegisters(u32),
    /// Change memory, from here on, to the bytes that follow.
    Write {
        /// First byte.
        addr: u64,
    },
    /// Go on without the recording; answered with [`Answer::Stopped`]. From here on this is a process to be thrown away.
    Stray(Stray),
    /// The program.
    Program,
    /// Become two: another process like this one answers on the socket that is sent behind this.
    Fork,
    /// A hash of all registers and writable memory, for tests.
    Checksum,
    /// End.
    Quit,
}

/// Why a run stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// It has not begun.
    Start,
    /// The goal is reached.
    Goal,
    /// The work is done.
    Work,
    /// The step is done.
    Step,
    /// The thread that was stepped has ended; another one runs.
    StepEnded,
    /// In front of a breakpoint.
    Break,
    /// Behind an access to watched memory.
    Watch(Watch),
    /// In front of a system call, or behind it.
    Call {
        /// Its number.
        nr: u32,
        /// Behind it.
        done: bool,
    },
    /// Behind the making of a process.
    Forked {
        /// Its id.
        pid: i32,
        /// By `vfork`.
        vfork: bool,
    },
    /// In front of the delivery of a signal.
    Signal(u32),
    /// Away from the recording, the thread cannot go on: why.
    Cannot(String),
    /// The process is at its end, and in front of it.
    End(String),
}

/// Something that was met on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hit {
    /// In front of the instruction.
    pub place: Place,
    /// What it was.
    pub why: Why,
}

/// Where a run stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// Why.
    pub why: Why,
    /// Where.
    pub place: Place,
    /// The last thing met that was to be noted.
    pub last: Option<Hit>,
    /// Work done.
    pub work: u64,
}

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadInfo {
    /// Its number in the trace.
    pub id: u32,
    /// The id that the program sees.
    pub tid: i32,
    /// Its clock.
    pub clock: u64,
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramInfo {
    /// The process's number in the trace.
    pub process: u32,
    /// The id that the program sees.
    pub pid: i32,
    /// Path of the executable.
    pub path: String,
    /// The auxiliary vector.
    pub auxv: Vec<(u64, u64)>,
    /// Its name in `ps`.
    pub name: String,
    /// Its threads have the registers of AVX-512.
    pub avx512: bool,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To `Run`, and without being asked when the process is there.
    Stopped(Stopped),
    /// To `Threads`.
    Threads(Vec<ThreadInfo>),
    /// To `Program`.
    Program(ProgramInfo),
    /// Bytes follow.
    Bytes,
    /// To `Checksum`.
    Checksum(u64),
    /// Done.
    Done,
    /// It cannot be done.
    Failed(String),
}

/// Registers of a thread, as bytes in an order of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15.
    pub gpr: [u64; 16],
    /// pc.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// FS base.
    pub fs_base: u64,
    /// MXCSR.
    pub mxcsr: u32,
    /// The first 160 bytes of an FXSAVE image: x87.
    pub x87: [u8; 160],
    /// zmm0 to zmm31; zeros where the machine has less.
    pub zmm: [[u8; 64]; 32],
    /// k0 to k7.
    pub k: [u64; 8],
}

/// Bytes of [`Registers`].
const REGISTERS: usize = 16 * 8 + 3 * 8 + 4 + 160 + 32 * 64 + 8 * 8;

impl Registers {
    /// As bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(REGISTERS);
        for v in self
            .gpr
            .iter()
            .chain([&self.rip, &self.rflags, &self.fs_base])
        {
            out.extend_from_slice(&v.to_le_bytes());
        }
        out.extend_from_slice(&self.mxcsr.to_le_bytes());
        out.extend_from_slice(&self.x87);
        for z in &self.zmm {
            out.extend_from_slice(z);
        }
        for k in &self.k {
            out.extend_from_slice(&k.to_le_bytes());
        }
        out
    }

    /// From bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Registers> {
        if bytes.len() != REGISTERS {
            return None;
        }
        let mut rest = bytes;
        let mut take = |n: usize| {
            let (head, tail) = rest.split_at_checked(n)?;
            rest = tail;
            Some(head)
        };
        let mut gpr = [0; 16];
        for g in &mut gpr {
            *g = u64::from_le_bytes(take(8)?.try_into().ok()?);
        }
        let rip = u64::from_le_bytes(take(8)?.try_into().ok()?);
        let rflags = u64::from_le_bytes(take(8)?.try_into().ok()?);
        let fs_base = u64::from_le_bytes(take(8)?.try_into().ok()?);
        let mxcsr = u32::from_le_bytes(take(4)?.try_into().ok()?);
        let x87 = take(160)?.try_into().ok()?;
        let mut zmm = [[0; 64]; 32];
        for z in &mut zmm {
            z.copy_from_slice(take(64)?);
        }
        let mut k = [0; 8];
        for m in &mut k {
            *m = u64::from_le_bytes(take(8)?.try_into().ok()?);
        }
        Some(Registers {
            gpr,
            rip,
            rflags,
            fs_base,
            mxcsr,
            x87,
            zmm,
            k,
        })
    }
}

/// Longest message that is believed.
const LIMIT: u32 = 256 << 20;

/// One end of the conversation.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
}

impl Channel {
    /// Over a connected stream socket.
    pub fn new(stream: UnixStream) -> Channel {
        Channel { stream }
    }

    /// Over the socket with this number.
    ///
    /// # Safety
    /// The descriptor is open, and nobody else's.
    pub unsafe fn from_raw(fd: RawFd) -> Channel {
        // SAFETY: by contract.
        Channel::new(unsafe { UnixStream::from_raw_fd(fd) })
    }

    /// The descriptor.
    pub fn raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn send(&mut self, message: &impl Serialize, bytes: &[u8]) -> io::Result<()> {
        let text = serde_json::to_vec(message).map_err(io::Error::other)?;
        let mut out = Vec::with_capacity(8 + text.len() + bytes.len());
        for n in [text.len(), bytes.len()] {
            let n = u32::try_from(n).map_err(io::Error::other)?;
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(&text);
        out.extend_from_slice(bytes);
        self.stream.write_all(&out)
    }

    /// Waits for a message.
    ///
    /// # Errors
    /// The other end is gone, or sent nonsense.
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<(T, Vec<u8>)> {
        let mut head = [0; 8];
        self.stream.read_exact(&mut head)?;
        let [a, b, c, d, e, f, g, h] = head;
        let (text, bytes) = (
            u32::from_le_bytes([a, b, c, d]),
            u32::from_le_bytes([e, f, g, h]),
        );
        if text > LIMIT || bytes > LIMIT {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut buffer = vec![0; text as usize];
        self.stream.read_exact(&mut buffer)?;
        let message = serde_json::from_slice(&buffer)?;
        let mut buffer = vec![0; bytes as usize];
        self.stream.read_exact(&mut buffer)?;
        Ok((message, buffer))
    }

    /// Sends a descriptor.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn send_fd(&mut self, fd: RawFd) -> io::Result<()> {
        let mut control = Control([0; 24]);
        let mut byte = [0u8; 1];
        let mut iov = iovec(&mut byte);
        let msg = message(&mut iov, &mut control);
        // SAFETY: the buffer has room for a header and one descriptor, and `msg` refers to live memory.
        let n = unsafe {
            let c = libc::CMSG_FIRSTHDR(&msg);
            (*c).cmsg_level = libc::SOL_SOCKET;
            (*c).cmsg_type = libc::SCM_RIGHTS;
            (*c).cmsg_len = libc::CMSG_LEN(4) as usize;
            libc::CMSG_DATA(c).cast::<RawFd>().write_unaligned(fd);
            libc::sendmsg(self.raw_fd(), &msg, libc::MSG_NOSIGNAL)
        };
        if n == 1 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Receives a descriptor.
    ///
    /// # Errors
    /// None comes.
    pub fn receive_fd(&mut self) -> io::Result<OwnedFd> {
        let mut control = Control([0; 24]);
        let mut byte = [0u8; 1];
        let mut iov = iovec(&mut byte);
        let mut msg = message(&mut iov, &mut control);
        // SAFETY: `msg` refers to live memory; what the kernel says there is a descriptor is one, and new.
        unsafe {
            if libc::recvmsg(self.raw_fd(), &mut msg, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            let c = libc::CMSG_FIRSTHDR(&msg);
            if c.is_null() || (*c).cmsg_type != libc::SCM_RIGHTS {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let fd = libc::CMSG_DATA(c).cast::<RawFd>().read_unaligned();
            Ok(OwnedFd::from_raw_fd(fd))
        }
    }
}

/// Room for a control message with one descriptor.
#[repr(C, align(8))]
struct Control([u8; 24]);

fn iovec(byte: &mut [u8; 1]) -> libc::iovec {
    libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    }
}

fn message(iov: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: zeros are a valid `msghdr`.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.0.as_mut_ptr().cast();
    msg.msg_controllen = control.0.len();
    msg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_descriptors_arrive() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (Channel::new(a), Channel::new(b));
        a.send(&Request::Read { addr: 1, len: 2 }, &[1, 2, 3])
            .unwrap();
        let (r, bytes): (Request, _) = b.receive().unwrap();
        assert_eq!(
            (r, bytes),
            (Request::Read { addr: 1, len: 2 }, vec![1, 2, 3])
        );
        let (c, d) = UnixStream::pair().unwrap();
        a.send_fd(d.as_raw_fd()).unwrap();
        let mut d = Channel::new(UnixStream::from(b.receive_fd().unwrap()));
        Channel::new(c).send(&Answer::Done, &[]).unwrap();
        assert_eq!(d.receive::<Answer>().unwrap().0, Answer::Done);
        drop(a);
        assert!(b.receive::<Request>().is_err());
    }

    #[test]
    fn registers_survive() {
        let mut r = Registers {
            gpr: [0; 16],
            rip: 1,
            rflags: 2,
            fs_base: 3,
            mxcsr: 4,
            x87: [5; 160],
            zmm: [[6; 64]; 32],
            k: [8; 8],
        };
        r.gpr[15] = 7;
        assert_eq!(Registers::from_bytes(&r.to_bytes()), Some(r.clone()));
        assert_eq!(Registers::from_bytes(&r.to_bytes()[1..]), None);
    }
}
