//! Bytes of an operand as text.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{MAX_BYTES, MAX_ELEMENTS};
use crate::flags;
use crate::names::signal_name;
use crate::types::Shape;

/// Prints `bytes`, the first of `len`. `false`, with nothing printed, when there is no way to.
pub(super) fn print(shape: Shape, bytes: &[u8], len: u64, out: &mut String) -> bool {
    match shape {
        Shape::Opaque => return false,
        Shape::Bytes => quote(bytes, len as usize, out),
        Shape::I32 => list(bytes, 4, len, true, out, |b, out| {
            let _ = write!(out, "{}", u32_at(b, 0) as i32);
        }),
        Shape::I64 => list(bytes, 8, len, true, out, |b, out| {
            let _ = write!(out, "{}", u64_at(b, 0) as i64);
        }),
        Shape::Hex64 => list(bytes, 8, len, true, out, |b, out| {
            let _ = write!(out, "{:#x}", u64_at(b, 0));
        }),
        Shape::Timespec => list(bytes, 16, len, false, out, |b, out| time(b, "nsec", out)),
        Shape::Timeval => list(bytes, 16, len, false, out, |b, out| time(b, "usec", out)),
        Shape::Pollfd => list(bytes, 8, len, true, out, pollfd),
        Shape::Epoll => list(bytes, 12, len, true, out, |b, out| {
            flags::EPOLL_EVENTS.decode(u32_at(b, 0).into(), {
                out.push_str("{events=");
                out
            });
            let _ = write!(out, ", data={:#x}}}", u64_at(b, 4));
        }),
        Shape::Rlimit => list(bytes, 16, len, false, out, |b, out| {
            let _ = write!(
                out,
                "{{rlim_cur={}, rlim_max={}}}",
                limit(u64_at(b, 0)),
                limit(u64_at(b, 8))
            );
        }),
        Shape::Sigset => sigset(u64_at(bytes, 0), out),
        Shape::FdSet => fd_set(bytes, out),
        Shape::WaitStatus => wait_status(u32_at(bytes, 0) as i32, out),
        Shape::Stat => stat(bytes, out),
        Shape::Flock => flock(bytes, out),
        Shape::Sockaddr => return sockaddr(bytes, out),
    }
    true
}

/// Bytes beyond the end read as zero: structures cut short by the log still print.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    for (to, from) in part.iter_mut().zip(bytes.get(at..).unwrap_or(&[])) {
        *to = *from;
    }
    part
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(part(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(part(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(part(bytes, at))
}

/// Quotes the first of `len` bytes as a C string.
pub(super) fn quote(bytes: &[u8], len: usize, out: &mut String) {
    let shown = bytes.get(..MAX_BYTES).unwrap_or(bytes);
    let shown = shown.get(..len).unwrap_or(shown);
    out.push('"');
    for &byte in shown {
        let _ = match byte {
            b'"' => write!(out, "\\\""),
            b'\\' => write!(out, "\\\\"),
            b'\n' => write!(out, "\\n"),
            b'\t' => write!(out, "\\t"),
            b'\r' => write!(out, "\\r"),
            0 => write!(out, "\\0"),
            0x20..=0x7e => write!(out, "{}", char::from(byte)),
            _ => write!(out, "\\x{byte:02x}"),
        };
    }
    out.push('"');
    if shown.len() < len {
        out.push_str("...");
    }
}

/// An array; a single element without brackets unless `always`.
fn list(
    bytes: &[u8],
    size: usize,
    len: u64,
    always: bool,
    out: &mut String,
    print: impl Fn(&[u8], &mut String),
) {
    let brackets = always || len > size as u64;
    if brackets {
        out.push('[');
    }
    for (i, element) in bytes.chunks_exact(size).enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        if i == MAX_ELEMENTS {
            out.push_str("...");
            break;
        }
        print(element, out);
    }
    if brackets {
        out.push(']');
    }
}

fn time(b: &[u8], unit: &str, out: &mut String) {
    let _ = write!(
        out,
        "{{tv_sec={}, tv_{unit}={}}}",
        u64_at(b, 0) as i64,
        u64_at(b, 8) as i64
    );
}

fn pollfd(b: &[u8], out: &mut String) {
    let _ = write!(out, "{{fd={}, events=", u32_at(b, 0) as i32);
    flags::POLL_EVENTS.decode(u16_at(b, 4).into(), out);
    let revents = u16_at(b, 6);
    if revents != 0 {
        out.push_str(", revents=");
        flags::POLL_EVENTS.decode(revents.into(), out);
    }
    out.push('}');
}

fn limit(value: u64) -> String {
    if value == u64::MAX {
        "RLIM_INFINITY".into()
    } else {
        value.to_string()
    }
}

fn sigset(set: u64, out: &mut String) {
    // Mostly full sets are shorter by what they lack.
    let (set, sign) = if set.count_ones() > 32 {
        (!set, "~[")
    } else {
        (set, "[")
    };
    out.push_str(sign);
    let mut first = true;
    for signal in (1..=64).filter(|signal| set >> (signal - 1) & 1 == 1) {
        if !first {
            out.push(' ');
        }
        first = false;
        let name = signal_name(signal).unwrap_or("?");
        out.push_str(name.strip_prefix("SIG").unwrap_or(name));
    }
    out.push(']');
}

fn fd_set(bytes: &[u8], out: &mut String) {
    out.push('[');
    let set = bytes.iter().enumerate().flat_map(|(i, byte)| {
        (0..8)
            .filter(move |bit| byte >> bit & 1 == 1)
            .map(move |bit| i * 8 + bit)
    });
    for (i, fd) in set.enumerate() {
        if i > 0 {
            out.push(' ');
        }
        if i == 4 * MAX_ELEMENTS {
            out.push_str("...");
            break;
        }
        let _ = write!(out, "{fd}");
    }
    out.push(']');
}

fn wait_status(status: i32, out: &mut String) {
    let _ = if libc::WIFEXITED(status) {
        write!(out, "[{{exited, status={}}}]", libc::WEXITSTATUS(status))
    } else if libc::WIFSTOPPED(status) {
        write!(
            out,
            "[{{stopped, signal={}}}]",
            signal_name(libc::WSTOPSIG(status)).unwrap_or("?")
        )
    } else if libc::WIFCONTINUED(status) {
        write!(out, "[{{continued}}]")
    } else {
        let core = if libc::WCOREDUMP(status) {
            ", core dumped"
        } else {
            ""
        };
        write!(
            out,
            "[{{killed, signal={}{core}}}]",
            signal_name(libc::WTERMSIG(status)).unwrap_or("?")
        )
    };
}

/// `struct stat`: mode at 24, rdev at 40, size at 48.
fn stat(b: &[u8], out: &mut String) {
    let mode = u32_at(b, 24);
    let kind = match mode & libc::S_IFMT {
        libc::S_IFREG => "S_IFREG",
        libc::S_IFDIR => "S_IFDIR",
        libc::S_IFCHR => "S_IFCHR",
        libc::S_IFBLK => "S_IFBLK",
        libc::S_IFIFO => "S_IFIFO",
        libc::S_IFLNK => "S_IFLNK",
        libc::S_IFSOCK => "S_IFSOCK",
        _ => "0",
    };
    let _ = write!(out, "{{st_mode={kind}|0{:o}, ", mode & 0o7777);
    let _ = match mode & libc::S_IFMT {
        libc::S_IFCHR | libc::S_IFBLK => {
            let device = u64_at(b, 40);
            write!(
                out,
                "st_rdev=makedev({:#x}, {:#x})",
                libc::major(device),
                libc::minor(device)
            )
        }
        _ => write!(out, "st_size={}", u64_at(b, 48)),
    };
    out.push_str(", ...}");
}

/// `struct flock`: type (i16) at 0, whence (i16) at 2, start at 8, length at 16.
fn flock(b: &[u8], out: &mut String) {
    out.push_str("{l_type=");
    flags::LOCK_TYPE.decode(u16_at(b, 0).into(), out);
    out.push_str(", l_whence=");
    flags::SEEK.decode(u16_at(b, 2).into(), out);
    let _ = write!(
        out,
        ", l_start={}, l_len={}}}",
        u64_at(b, 8) as i64,
        u64_at(b, 16) as i64
    );
}

fn sockaddr(b: &[u8], out: &mut String) -> bool {
    if b.len() < 2 {
        return false;
    }
    out.push_str("{sa_family=");
    flags::AF.decode(u16_at(b, 0).into(), out);
    let port = u16::from_be_bytes(part(b, 2));
    let _ = match i32::from(u16_at(b, 0)) {
        libc::AF_INET => {
            write!(
                out,
                ", sin_port={port}, sin_addr=\"{}\"",
                Ipv4Addr::from(part::<4>(b, 4))
            )
        }
        libc::AF_INET6 => {
            write!(
                out,
                ", sin6_port={port}, sin6_addr=\"{}\"",
                Ipv6Addr::from(part::<16>(b, 8))
            )
        }
        libc::AF_UNIX => {
            let path = b.get(2..).unwrap_or(&[]);
            // An abstract name starts with a zero byte; others end at one.
            let len = match path.iter().position(|&byte| byte == 0) {
                Some(0) | None => path.len(),
                Some(end) => end,
            };
            out.push_str(", sun_path=");
            quote(path, len, out);
            Ok(())
        }
        libc::AF_NETLINK => write!(
            out,
            ", nl_pid={}, nl_groups={:#x}",
            u32_at(b, 4),
            u32_at(b, 8)
        ),
        _ => write!(out, ", ..."),
    };
    out.push('}');
    true
}
