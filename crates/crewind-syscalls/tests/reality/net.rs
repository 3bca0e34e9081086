//! Sockets.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use crewind_syscalls::{FdChange, Output, fd_changes, output_bytes, row};

use crate::harness::{Arena, Own, Tight, check, close, fails, syscall, works};

#[test]
fn addresses() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("socket");
    let fd = listener.as_raw_fd() as u64;
    let stream = TcpStream::connect(listener.local_addr().expect("address")).expect("connection");
    works("getsockname", Tight::No, |a| {
        [fd, a.alloc(128), a.u32(128), 0, 0, 0]
    });
    // Too small: the address is cut, the length is the whole one's.
    works("getsockname", Tight::No, |a| {
        [fd, a.alloc(5), a.u32(5), 0, 0, 0]
    });
    works("getpeername", Tight::No, |a| {
        [stream.as_raw_fd() as u64, a.alloc(16), a.u32(16), 0, 0, 0]
    });
    fails("getpeername", libc::ENOTCONN, |a| {
        [fd, a.alloc(16), a.u32(16), 0, 0, 0]
    });
    for name in ["accept", "accept4"] {
        let mut clients = Vec::new();
        works(name, Tight::No, |a| {
            clients.push(
                TcpStream::connect(listener.local_addr().expect("address")).expect("connection"),
            );
            [fd, a.alloc(100), a.u32(100), 0, 0, 0]
        });
        // Without an address its length is not looked at.
        let ret = works(name, Tight::Yes, |_| {
            clients.push(
                TcpStream::connect(listener.local_addr().expect("address")).expect("connection"),
            );
            [fd, 0, 0x1234, 0, 0, 0]
        });
        close(ret);
    }
    works("socketpair", Tight::Yes, |a| [1, 1, 0, a.alloc(8), 0, 0]);
}

#[test]
fn options() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("socket");
    let fd = listener.as_raw_fd() as u64;
    works("getsockopt", Tight::No, |a| {
        [fd, 1, libc::SO_TYPE as u64, a.alloc(4), a.u32(4), 0]
    });
    works("getsockopt", Tight::No, |a| {
        [fd, 1, libc::SO_LINGER as u64, a.alloc(8), a.u32(8), 0]
    });
    works("getsockopt", Tight::No, |a| {
        [fd, 6, libc::TCP_INFO as u64, a.alloc(400), a.u32(400), 0]
    });
    works("getsockopt", Tight::No, |a| {
        [
            fd,
            6,
            libc::TCP_CONGESTION as u64,
            a.alloc(16),
            a.u32(16),
            0,
        ]
    });
    works("setsockopt", Tight::Yes, |a| {
        [fd, 1, libc::SO_KEEPALIVE as u64, a.u32(1), 4, 0]
    });
    works("setsockopt", Tight::Yes, |a| {
        // One instruction: accept everything.
        let code = a.bytes(&[6, 0, 0, 0, 255, 255, 0, 0]);
        [
            fd,
            1,
            libc::SO_ATTACH_FILTER as u64,
            a.words(&[1, code]),
            16,
            0,
        ]
    });
    fails("getsockopt", libc::ENOPROTOOPT, |a| {
        [fd, 1, 9999, a.alloc(4), a.u32(4), 0]
    });
    let (one, _two) = UnixDatagram::pair().expect("sockets");
    let fd = one.as_raw_fd() as u64;
    works("getsockopt", Tight::No, |a| {
        [fd, 1, libc::SO_PEERCRED as u64, a.alloc(12), a.u32(12), 0]
    });
    check("getsockopt", Tight::No, |a| {
        [fd, 1, 59, a.alloc(4), a.u32(0), 0]
    });
}

#[test]
fn receiving() {
    let (one, two) = (
        UdpSocket::bind("127.0.0.1:0").expect("socket"),
        UdpSocket::bind("127.0.0.1:0").expect("socket"),
    );
    let to = one.local_addr().expect("address");
    let fd = one.as_raw_fd() as u64;
    let send = |text: &[u8]| {
        two.send_to(text, to).expect("sent");
    };
    let n = works("recvfrom", Tight::No, |a| {
        send(b"a datagram");
        [fd, a.alloc(100), 100, 0, a.alloc(128), a.u32(128)]
    });
    assert_eq!(n, 10);
    works("recvfrom", Tight::Yes, |a| {
        send(b"a datagram");
        [fd, a.alloc(100), 100, 0, 0, 0x1234]
    });
    // The result is the datagram's length, the buffer is shorter.
    let n = works("recvfrom", Tight::No, |a| {
        send(b"a datagram");
        [fd, a.alloc(4), 4, libc::MSG_TRUNC as u64, 0, 0]
    });
    assert_eq!(n, 10);
    works("recvmsg", Tight::No, |a| {
        send(b"a longer datagram");
        let (name, first, second, control) = (a.alloc(28), a.alloc(6), a.alloc(50), a.alloc(64));
        let iov = a.words(&[first, 6, second, 50]);
        [fd, a.words(&[name, 28, iov, 2, control, 64, 0]), 0, 0, 0, 0]
    });
    let n = works("recvmmsg", Tight::No, |a| {
        send(b"first");
        send(b"the second");
        let mut headers = Vec::new();
        for _ in 0..3 {
            let (name, buffer) = (a.alloc(16), a.alloc(40));
            let iov = a.words(&[buffer, 40]);
            headers.extend([name, 16, iov, 1, 0, 0, 0, 0]);
        }
        [fd, a.words(&headers), 3, libc::MSG_DONTWAIT as u64, 0, 0]
    });
    assert_eq!(n, 2);
    works("recvmmsg", Tight::No, |a| {
        send(b"first");
        let buffer = a.alloc(40);
        let iov = a.words(&[buffer, 40]);
        [
            fd,
            a.words(&[0, 0, iov, 1, 0, 0, 0, 0]),
            1,
            0,
            a.words(&[5, 0]),
            0,
        ]
    });
    let port = to.port().to_be_bytes();
    let address = [2, 0, port[0], port[1], 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    let from = two.as_raw_fd() as u64;
    works("sendto", Tight::Yes, |a| {
        [from, a.alloc(9), 9, 0, a.bytes(&address), 16]
    });
    works("sendmmsg", Tight::No, |a| {
        let (name, buffer) = (a.bytes(&address), a.alloc(11));
        let iov = a.words(&[buffer, 11]);
        [from, a.words(&[name, 16, iov, 1, 0, 0, 0, 0]), 1, 0, 0, 0]
    });
}

/// A control message with an fd, and what the table makes of it.
#[test]
fn passing_fds() {
    let (one, two) = UnixDatagram::pair().expect("sockets");
    let (from, to) = (one.as_raw_fd() as u64, two.as_raw_fd() as u64);
    let send = || {
        let mut a = Arena::new(0);
        let buffer = a.bytes(b"fd");
        let iov = a.words(&[buffer, 2]);
        // Length 20, SOL_SOCKET, SCM_RIGHTS, the fd.
        let control = a.words(&[20, 1 | 1 << 32, from]);
        let header = a.words(&[0, 0, iov, 1, control, 24, 0]);
        assert_eq!(syscall(46, [from, header, 0, 0, 0, 0]), 2);
    };
    works("recvmsg", Tight::No, |a| {
        send();
        let (buffer, control) = (a.alloc(10), a.alloc(64));
        let iov = a.words(&[buffer, 10]);
        [to, a.words(&[0, 0, iov, 1, control, 64, 0]), 0, 0, 0, 0]
    });
    send();
    let mut a = Arena::new(0);
    let (buffer, control) = (a.alloc(10), a.alloc(64));
    let iov = a.words(&[buffer, 10]);
    let args = [
        to,
        a.words(&[0, 0, iov, 1, control, 64, 0]),
        libc::MSG_CMSG_CLOEXEC as u64,
        0,
        0,
        0,
    ];
    let ret = syscall(47, args);
    let mut changes = Vec::new();
    fd_changes(row(47).expect("row"), &args, ret, &Own, &mut changes);
    match changes.as_slice() {
        [FdChange::Open { fd, cloexec: true }] => close(i64::from(*fd)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn output_of_messages() {
    let (one, _two) = UnixDatagram::pair().expect("sockets");
    let fd = one.as_raw_fd() as u64;
    let mut a = Arena::new(0);
    let (first, second) = (a.bytes(b"hello "), a.bytes(b"world"));
    let iov = a.words(&[first, 6, second, 5]);
    let args = [fd, a.words(&[0, 0, iov, 2, 0, 0, 0]), 0, 0, 0, 0];
    let ret = syscall(46, args);
    assert_eq!(ret, 11);
    let Output::Bytes(ranges) = output_bytes(row(46).expect("row"), &args, ret, &Own) else {
        panic!("no bytes");
    };
    let ranges: Vec<_> = ranges.iter().map(|range| (range.addr, range.len)).collect();
    assert_eq!(ranges, [(first, 6), (second, 5)]);
}
