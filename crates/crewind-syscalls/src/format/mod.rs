//! Calls as text, in the manner of strace.

mod shape;

use std::fmt::Write;

use crate::flags::{self, FlagSet};
use crate::names::{errno_name, errno_text, signal_name};
use crate::plan::{Operand, Place, Plan, before, c_str_len, iovecs, is_error, read_u32, read_u64};
use crate::special::{fcntl, futex, ioctl, ipc, prctl};
use crate::types::{Arg, ArgKind, Args, Buf, Dir, Mem, Row, Shape};

/// Bytes that a call wrote, from the log.
#[derive(Clone, Copy, Debug)]
pub struct OutBytes<'a> {
    /// First guest address.
    pub addr: u64,
    /// The bytes.
    pub data: &'a [u8],
}

/// Prints a call. `ret` is `None` while it has not returned. What it read is shown when `mem` is there (guest
/// memory as of the call), what it wrote from `outs`. Without them pointers are printed as such.
pub fn format(
    row: &Row,
    args: &Args,
    ret: Option<i64>,
    mem: Option<&dyn Mem>,
    outs: &[OutBytes],
) -> String {
    let view = View { mem, outs };
    let plan = before(row, args, &view);
    let printer = Printer {
        row,
        args,
        ret,
        view: &view,
        plan: &plan,
    };
    let mut out = format!("{}(", row.name);
    for (i, arg) in (0u8..).zip(row.args) {
        if printer.hidden(i) {
            continue;
        }
        if i > 0 {
            out.push_str(", ");
        }
        printer.argument(i, arg, &mut out);
    }
    out.push_str(") = ");
    printer.result(&mut out);
    out
}

/// Guest memory where it is known: what the call wrote, then memory as of the call.
struct View<'a> {
    mem: Option<&'a dyn Mem>,
    outs: &'a [OutBytes<'a>],
}

impl View<'_> {
    /// The logged bytes from `addr` on, at most `max`.
    fn written(&self, addr: u64, max: u64) -> Option<&[u8]> {
        self.outs.iter().find_map(|out| {
            let skip = usize::try_from(addr.checked_sub(out.addr)?).ok()?;
            let bytes = out.data.get(skip..).filter(|bytes| !bytes.is_empty())?;
            Some(bytes.get(..max as usize).unwrap_or(bytes))
        })
    }

    fn string(&self, addr: u64) -> Option<Vec<u8>> {
        let len = c_str_len(self, addr, 4096)?;
        let mut bytes = vec![0; len as usize];
        self.read(addr, &mut bytes).then_some(bytes)
    }
}

impl Mem for View<'_> {
    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        if buf.is_empty() {
            return true;
        }
        if let Some(bytes) = self.written(addr, buf.len() as u64)
            && bytes.len() == buf.len()
        {
            buf.copy_from_slice(bytes);
            return true;
        }
        self.mem.is_some_and(|mem| mem.read(addr, buf))
    }
}

/// No more than this much of a buffer, and so many elements of an array, are shown.
const MAX_BYTES: usize = 32;
const MAX_ELEMENTS: usize = 8;
/// Bytes of an operand looked at for printing.
const MAX_OPERAND: u64 = 4096;

struct Printer<'a> {
    row: &'a Row,
    args: &'a Args,
    ret: Option<i64>,
    view: &'a View<'a>,
    plan: &'a Plan,
}

const OPEN: u32 = 2;
const MMAP: u32 = 9;
const BRK: u32 = 12;
const IOCTL: u32 = 16;
const MREMAP: u32 = 25;
const SHMAT: u32 = 30;
const SETSOCKOPT: u32 = 54;
const GETSOCKOPT: u32 = 55;
const FCNTL: u32 = 72;
const UMASK: u32 = 95;
const OPENAT: u32 = 257;
const MQ_OPEN: u32 = 240;

impl Printer<'_> {
    fn value(&self, i: u8) -> u64 {
        self.args.get(usize::from(i)).copied().unwrap_or(0)
    }

    /// Arguments that the call does not look at with these flags.
    fn hidden(&self, i: u8) -> bool {
        let creates = |flags: u64| {
            flags & libc::O_CREAT as u64 != 0
                || flags & libc::O_TMPFILE as u64 == libc::O_TMPFILE as u64
        };
        match (self.row.nr, i) {
            (OPEN, 2) => !creates(self.value(1)),
            (OPENAT, 3) => !creates(self.value(2)),
            (MQ_OPEN, 2 | 3) => !creates(self.value(1)),
            (FCNTL, 2) => matches!(
                self.value(1) as i32,
                libc::F_GETFD
                    | libc::F_GETFL
                    | libc::F_GETOWN
                    | libc::F_GETPIPE_SZ
                    | libc::F_GET_SEALS
            ),
            _ => false,
        }
    }

    /// Socket options have names only at one level.
    fn foreign_option(&self, i: u8) -> bool {
        matches!((self.row.nr, i), (SETSOCKOPT | GETSOCKOPT, 2))
            && self.value(1) as i32 != libc::SOL_SOCKET
    }

    fn argument(&self, i: u8, arg: &Arg, out: &mut String) {
        let value = self.value(i);
        // Writing to a String cannot fail.
        let _ = match arg.kind {
            ArgKind::Int | ArgKind::Fd | ArgKind::Pid => write!(out, "{}", value as i32),
            ArgKind::Uint if (self.row.nr, i) == (IOCTL, 1) => {
                request(value, out);
                Ok(())
            }
            ArgKind::Uint => write!(out, "{}", value as u32),
            ArgKind::Long => write!(out, "{}", value as i64),
            ArgKind::Size => write!(out, "{value}"),
            ArgKind::Hex => write!(out, "{value:#x}"),
            ArgKind::DirFd if value as i32 == libc::AT_FDCWD => write!(out, "AT_FDCWD"),
            ArgKind::DirFd => write!(out, "{}", value as i32),
            ArgKind::Id if value as i32 == -1 => write!(out, "-1"),
            ArgKind::Id => write!(out, "{}", value as u32),
            ArgKind::Flags(_) if self.foreign_option(i) => write!(out, "{}", value as i32),
            ArgKind::Flags(set) => {
                set.decode(value & 0xffff_ffff, out);
                Ok(())
            }
            ArgKind::Signal => match signal_name(value as i32) {
                Some(name) => write!(out, "{name}"),
                None => write!(out, "{}", value as i32),
            },
            ArgKind::Mode => write!(out, "0{:o}", value as u32),
            ArgKind::Dev => {
                write!(
                    out,
                    "makedev({:#x}, {:#x})",
                    libc::major(value),
                    libc::minor(value)
                )
            }
            ArgKind::Addr => {
                pointer(value, out);
                Ok(())
            }
            ArgKind::Path => {
                self.path(value, out);
                Ok(())
            }
            ArgKind::StrArray => {
                self.strings(value, out);
                Ok(())
            }
            ArgKind::Ioctl => {
                self.ioctl(i, out);
                Ok(())
            }
            ArgKind::Fcntl => {
                self.fcntl(i, out);
                Ok(())
            }
            ArgKind::Prctl => {
                self.prctl(i, out);
                Ok(())
            }
            ArgKind::FutexVal2 if !futex::val2_is_time(self.args) => {
                write!(out, "{}", value as u32)
            }
            ArgKind::FutexAddr | ArgKind::FutexAddr2 | ArgKind::FutexWord => {
                pointer(value, out);
                Ok(())
            }
            ArgKind::Semctl if ipc::semctl_takes_value(self.value(2)) => {
                write!(out, "{}", value as i32)
            }
            ArgKind::Keyctl => write!(out, "{value:#x}"),
            ArgKind::Iovec { dir, count } => {
                self.iovec(value, self.value(count), dir, out);
                Ok(())
            }
            ArgKind::Msghdr(dir) => {
                self.message(value, dir, out);
                Ok(())
            }
            ArgKind::Buf(Buf { shape, dir, .. }) => {
                self.memory(i, dir, shape, out);
                Ok(())
            }
            _ => {
                self.operand(i, out);
                Ok(())
            }
        };
    }

    /// The operand that argument `i` points to, whatever it is.
    fn operand(&self, i: u8, out: &mut String) {
        match self
            .plan
            .operands
            .iter()
            .find(|op| op.place == Place::Arg(i))
        {
            Some(op) => self.memory(i, op.dir, op.shape, out),
            None => pointer(self.value(i), out),
        }
    }

    fn memory(&self, i: u8, dir: Dir, shape: Shape, out: &mut String) {
        let op = self
            .plan
            .operands
            .iter()
            .find(|op| op.place == Place::Arg(i));
        let value = self.value(i);
        match op {
            Some(op) if op.addr == value => match self.bytes(op, dir) {
                Some((bytes, len)) if shape::print(shape, &bytes, len, out) => {}
                _ => pointer(value, out),
            },
            _ => pointer(value, out),
        }
    }

    /// The bytes of an operand, as far as wanted, and how many there are.
    fn bytes(&self, op: &Operand, dir: Dir) -> Option<(Vec<u8>, u64)> {
        let (bytes, len) = if dir == Dir::Out {
            let bytes = self.view.written(op.addr, op.cap)?;
            (
                bytes.get(..MAX_OPERAND as usize).unwrap_or(bytes).to_vec(),
                bytes.len() as u64,
            )
        } else {
            let mut bytes = vec![0; op.cap.min(MAX_OPERAND) as usize];
            if !self.view.read(op.addr, &mut bytes) {
                return None;
            }
            (bytes, op.cap)
        };
        Some((bytes, len))
    }

    fn path(&self, addr: u64, out: &mut String) {
        match self.view.string(addr) {
            Some(text) if addr != 0 => shape::quote(&text, text.len(), out),
            _ => pointer(addr, out),
        }
    }

    fn strings(&self, addr: u64, out: &mut String) {
        let Some(mut item) = read_u64(self.view, addr) else {
            return pointer(addr, out);
        };
        let mut at = addr;
        out.push('[');
        for i in 0.. {
            if item == 0 {
                break;
            }
            if i > 0 {
                out.push_str(", ");
            }
            if i == MAX_ELEMENTS {
                out.push_str("...");
                break;
            }
            self.path(item, out);
            at = at.wrapping_add(8);
            item = read_u64(self.view, at).unwrap_or(0);
        }
        out.push(']');
    }

    fn iovec(&self, addr: u64, count: u64, dir: Dir, out: &mut String) {
        let mut elements = iovecs(self.view, addr, count).peekable();
        if elements.peek().is_none() {
            return pointer(addr, out);
        }
        // Of scattered input only as many bytes as came.
        let mut left = match (dir, self.ret) {
            (Dir::In, _) => u64::MAX,
            (_, ret) => u64::try_from(ret.unwrap_or(0)).unwrap_or(0),
        };
        out.push('[');
        for (i, (_, base, len)) in elements.enumerate() {
            if i > 0 {
                out.push_str(", ");
            }
            if i == MAX_ELEMENTS {
                out.push_str("...");
                break;
            }
            let shown = len.min(left);
            left -= shown;
            out.push_str("{iov_base=");
            let mut bytes = vec![0; shown.min(MAX_BYTES as u64) as usize];
            if base != 0 && self.view.read(base, &mut bytes) {
                shape::quote(&bytes, shown as usize, out);
            } else {
                pointer(base, out);
            }
            let _ = write!(out, ", iov_len={len}}}");
        }
        out.push(']');
    }

    fn message(&self, at: u64, dir: Dir, out: &mut String) {
        let field = |offset: u64| read_u64(self.view, at.wrapping_add(offset));
        let (Some(name), Some(iov), Some(count), Some(control)) =
            (field(0), field(16), field(24), field(32))
        else {
            return pointer(at, out);
        };
        out.push_str("{msg_name=");
        let len = read_u32(self.view, at.wrapping_add(8)).unwrap_or(0);
        let mut bytes = vec![0; len.min(128) as usize];
        let shown = name != 0
            && self.view.read(name, &mut bytes)
            && shape::print(Shape::Sockaddr, &bytes, bytes.len() as u64, out);
        if !shown {
            pointer(name, out);
        }
        let _ = write!(out, ", msg_namelen={len}, msg_iov=");
        self.iovec(iov, count, dir, out);
        let _ = write!(out, ", msg_iovlen={count}, msg_control=");
        pointer(control, out);
        let _ = write!(
            out,
            ", msg_controllen={}, msg_flags=",
            field(40).unwrap_or(0)
        );
        flags::MSG.decode(
            read_u32(self.view, at.wrapping_add(48)).unwrap_or(0).into(),
            out,
        );
        out.push('}');
    }

    fn ioctl(&self, i: u8, out: &mut String) {
        let value = self.value(i);
        match ioctl::request(self.value(1)).map(|request| request.op) {
            Some(
                ioctl::Op::Value | ioctl::Op::NewFd | ioctl::Op::Waits | ioctl::Op::ValueWrites,
            ) => {
                let _ = write!(out, "{}", value as i64);
            }
            _ => self.operand(i, out),
        }
    }

    fn fcntl(&self, i: u8, out: &mut String) {
        let value = self.value(i);
        let command = self.value(1) as i32;
        if fcntl::operand(command).is_some() {
            return self.operand(i, out);
        }
        match command {
            libc::F_SETFD => flags::FD_FLAGS.decode(value, out),
            libc::F_SETFL => flags::OPEN.decode(value, out),
            _ => {
                let _ = write!(out, "{}", value as i64);
            }
        }
    }

    fn prctl(&self, i: u8, out: &mut String) {
        let value = self.value(i);
        if i == 0 {
            match prctl::name(value) {
                Some(name) => out.push_str(name),
                None => {
                    let _ = write!(out, "{}", value as i32);
                }
            }
        } else if prctl::is_string(self.value(0), i) {
            self.path(value, out);
        } else if self
            .plan
            .operands
            .iter()
            .any(|op| op.place == Place::Arg(i))
        {
            self.operand(i, out);
        } else {
            let _ = write!(out, "{value:#x}");
        }
    }

    fn result(&self, out: &mut String) {
        let Some(ret) = self.ret else {
            out.push('?');
            return;
        };
        let _ = match self.row.nr {
            _ if is_error(ret) => {
                let errno = -(ret as i32);
                match (errno_name(errno), errno_text(errno)) {
                    (Some(name), Some(text)) => write!(out, "-1 {name} ({text})"),
                    _ => write!(out, "{ret}"),
                }
            }
            MMAP | BRK | MREMAP | SHMAT => write!(out, "{ret:#x}"),
            UMASK => write!(out, "0{ret:o}"),
            FCNTL if self.value(1) as i32 == libc::F_GETFL => {
                let _ = write!(out, "{ret:#x} (flags ");
                flags::OPEN.decode(ret as u64, out);
                out.push(')');
                Ok(())
            }
            FCNTL if self.value(1) as i32 == libc::F_GETFD && ret != 0 => {
                let _ = write!(out, "{ret:#x} (flags ");
                flags::FD_FLAGS.decode(ret as u64, out);
                out.push(')');
                Ok(())
            }
            _ => write!(out, "{ret}"),
        };
    }
}

/// Prints a pointer.
fn pointer(value: u64, out: &mut String) {
    if value == 0 {
        out.push_str("NULL");
    } else {
        let _ = write!(out, "{value:#x}");
    }
}

/// Prints an `ioctl` request: its name, or what its number encodes.
fn request(number: u64, out: &mut String) {
    static DIRS: FlagSet = FlagSet {
        field: 0,
        values: &[],
        bits: &[(1, "_IOC_WRITE"), (2, "_IOC_READ")],
    };
    if let Some(request) = ioctl::request(number) {
        out.push_str(request.name);
        return;
    }
    out.push_str("_IOC(");
    DIRS.decode(number >> 30 & 3, out);
    let _ = write!(
        out,
        ", {:#x}, {:#x}, {:#x})",
        number >> 8 & 0xff,
        number & 0xff,
        number >> 16 & 0x3fff
    );
}
