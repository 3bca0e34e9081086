//! `ioctl` on terminals, files and sockets.

use std::os::fd::AsRawFd;

use crate::harness::{Dir, Tight, check, close, fails, works};

fn open_pty() -> (u64, u64) {
    // SAFETY: opens the machine's pty multiplexer, unlocks and opens the other side.
    unsafe {
        let master = libc::open(c"/dev/ptmx".as_ptr(), libc::O_RDWR | libc::O_NOCTTY);
        assert!(master >= 0, "no /dev/ptmx");
        let mut unlock = 0;
        assert_eq!(libc::ioctl(master, libc::TIOCSPTLCK, &mut unlock), 0);
        let slave = libc::ioctl(master, libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY);
        assert!(slave >= 0);
        (master as u64, slave as u64)
    }
}

#[test]
fn terminals() {
    let (master, slave) = open_pty();
    let get = |fd: u64, request: u64, size: usize| {
        works("ioctl", Tight::Yes, |a| {
            [fd, request, a.alloc(size), 0, 0, 0]
        });
    };
    get(slave, libc::TCGETS, 36);
    get(slave, libc::TCGETS2, 44);
    get(slave, libc::TCGETA, 18);
    get(slave, libc::TIOCGWINSZ, 8);
    get(slave, libc::TIOCOUTQ, 4);
    get(slave, libc::FIONREAD, 4);
    get(slave, libc::TIOCGETD, 4);
    get(slave, libc::TIOCGSOFTCAR, 4);
    get(slave, u64::from(0x8004_5440u32), 4);
    get(slave, 0x5456, 36);
    get(master, libc::TIOCGPTN, 4);
    get(master, u64::from(0x8004_5438u32), 4);
    get(master, u64::from(0x8004_5439u32), 4);
    // SAFETY: the structures are plain data.
    let old: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: any 36 bytes of a termios.
    let bytes = unsafe { std::slice::from_raw_parts((&raw const old).cast::<u8>(), 36) };
    works("ioctl", Tight::Yes, |a| {
        [slave, libc::TCSETS, a.bytes(bytes), 0, 0, 0]
    });
    works("ioctl", Tight::Yes, |a| {
        [slave, libc::TCSETSW, a.bytes(bytes), 0, 0, 0]
    });
    works("ioctl", Tight::Yes, |a| {
        [
            slave,
            libc::TIOCSWINSZ,
            a.bytes(&[1, 0, 2, 0, 0, 0, 0, 0]),
            0,
            0,
            0,
        ]
    });
    works("ioctl", Tight::Yes, |a| {
        [slave, libc::FIONBIO, a.u32(0), 0, 0, 0]
    });
    works("ioctl", Tight::Yes, |_| [slave, libc::TCFLSH, 2, 0, 0, 0]);
    works("ioctl", Tight::Yes, |_| {
        [slave, libc::FIOCLEX, u64::MAX, 0, 0, 0]
    });
    check("ioctl", Tight::Yes, |a| {
        [slave, libc::TIOCGPGRP, a.alloc(4), 0, 0, 0]
    });
    check("ioctl", Tight::Yes, |a| {
        [slave, libc::TIOCGSID, a.alloc(4), 0, 0, 0]
    });
    close(slave as i64);
    close(master as i64);
    let dir = Dir::new("not-a-terminal");
    let file = dir.file();
    fails("ioctl", libc::ENOTTY, |a| {
        [file.as_raw_fd() as u64, libc::TCGETS, a.alloc(36), 0, 0, 0]
    });
}

#[test]
fn files() {
    let dir = Dir::new("file-ioctls");
    let file = dir.file();
    let fd = file.as_raw_fd() as u64;
    works("ioctl", Tight::Yes, |a| {
        [fd, libc::FIONREAD, a.alloc(4), 0, 0, 0]
    });
    works("ioctl", Tight::Yes, |a| [fd, 2, a.alloc(4), 0, 0, 0]);
    works("ioctl", Tight::Yes, |a| [fd, 0x5460, a.alloc(8), 0, 0, 0]);
    check("ioctl", Tight::Yes, |a| {
        [fd, libc::FS_IOC_GETFLAGS, a.alloc(4), 0, 0, 0]
    });
    check("ioctl", Tight::Yes, |a| {
        [fd, libc::FS_IOC_GETVERSION, a.alloc(4), 0, 0, 0]
    });
    check("ioctl", Tight::Yes, |a| {
        [fd, 0x801c_581f, a.alloc(28), 0, 0, 0]
    });
    check("ioctl", Tight::No, |a| {
        [fd, 0x8100_9431, a.alloc(256), 0, 0, 0]
    });
    check("ioctl", Tight::Yes, |a| {
        [fd, 0x8011_1500, a.alloc(17), 0, 0, 0]
    });
    // FIEMAP with room for two extents; flags 1 asks to write the file out first.
    check("ioctl", Tight::No, |a| {
        let map = a.alloc(32 + 2 * 56);
        a.set(map, &[0; 32]);
        a.set(map + 8, &u64::MAX.to_le_bytes());
        a.set(map + 16, &1u32.to_le_bytes());
        a.set(map + 24, &2u32.to_le_bytes());
        [fd, 0xc020_660b, map, 0, 0, 0]
    });
    let null = std::fs::File::open("/proc/self/ns/net").expect("namespace");
    check("ioctl", Tight::Yes, |a| {
        [null.as_raw_fd() as u64, 0xb704, a.alloc(4), 0, 0, 0]
    });
    works("ioctl", Tight::Yes, |_| {
        [null.as_raw_fd() as u64, 0xb703, 0, 0, 0, 0]
    });
    if let Ok(random) = std::fs::File::open("/dev/random") {
        works("ioctl", Tight::Yes, |a| {
            [random.as_raw_fd() as u64, 0x8004_5200, a.alloc(4), 0, 0, 0]
        });
    }
}

#[test]
fn sockets() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("socket");
    let fd = socket.as_raw_fd() as u64;
    works("ioctl", Tight::Yes, |a| {
        [fd, libc::FIONREAD, a.alloc(4), 0, 0, 0]
    });
    works("ioctl", Tight::Yes, |a| [fd, 0x8903, a.alloc(4), 0, 0, 0]);
    for request in [
        libc::SIOCGIFFLAGS,
        libc::SIOCGIFADDR,
        libc::SIOCGIFMTU,
        libc::SIOCGIFINDEX,
        0x8927,
    ] {
        works("ioctl", Tight::No, |a| {
            let ifreq = a.alloc(40);
            a.set(ifreq, b"lo\0");
            [fd, request, ifreq, 0, 0, 0]
        });
    }
    works("ioctl", Tight::No, |a| {
        let ifreq = a.alloc(40);
        a.set(ifreq + 16, &1u32.to_le_bytes());
        [fd, 0x8910, ifreq, 0, 0, 0]
    });
    works("ioctl", Tight::No, |a| {
        let list = a.alloc(400);
        [fd, libc::SIOCGIFCONF, a.words(&[400, list]), 0, 0, 0]
    });
    works("ioctl", Tight::No, |a| {
        [fd, libc::SIOCGIFCONF, a.words(&[0, 0]), 0, 0, 0]
    });
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("socket");
    let stream =
        std::net::TcpStream::connect(listener.local_addr().expect("address")).expect("connection");
    works("ioctl", Tight::Yes, |a| {
        [stream.as_raw_fd() as u64, 0x8905, a.alloc(4), 0, 0, 0]
    });
    works("ioctl", Tight::Yes, |a| {
        [stream.as_raw_fd() as u64, 0x894b, a.alloc(4), 0, 0, 0]
    });
}
