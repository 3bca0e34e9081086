//! Calls as text.

use std::collections::BTreeMap;

use crewind_syscalls::{Args, Mem, OutBytes, format, rows};

/// Memory made of a few pieces.
#[derive(Default)]
struct Pieces(BTreeMap<u64, Vec<u8>>);

impl Pieces {
    fn with(mut self, addr: u64, bytes: &[u8]) -> Self {
        self.0.insert(addr, bytes.to_vec());
        self
    }

    fn words(self, addr: u64, words: &[u64]) -> Self {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.with(addr, &bytes)
    }
}

impl Mem for Pieces {
    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        self.0
            .range(..=addr)
            .next_back()
            .is_some_and(|(start, bytes)| {
                let skip = (addr - start) as usize;
                match bytes.get(skip..skip + buf.len()) {
                    Some(found) => {
                        buf.copy_from_slice(found);
                        true
                    }
                    // Pieces are padded with zeros up to their page's end.
                    None if skip + buf.len() <= 4096 => {
                        for (i, byte) in buf.iter_mut().enumerate() {
                            *byte = bytes.get(skip + i).copied().unwrap_or(0);
                        }
                        true
                    }
                    None => false,
                }
            })
    }
}

fn text(name: &str, args: &[u64], ret: i64, mem: Option<&Pieces>, outs: &[(u64, &[u8])]) -> String {
    let row = rows()
        .find(|row| row.name == name)
        .unwrap_or_else(|| panic!("no call {name}"));
    let mut all: Args = [0; 6];
    all[..args.len()].copy_from_slice(args);
    let outs: Vec<_> = outs
        .iter()
        .map(|(addr, data)| OutBytes { addr: *addr, data })
        .collect();
    format(row, &all, Some(ret), mem.map(|mem| mem as &dyn Mem), &outs)
}

const CWD: u64 = -100i64 as u64;

#[test]
fn files() {
    let mem = Pieces::default()
        .with(0x1000, b"/etc/passwd\0")
        .with(0x2000, b"hello\n\"x\"\0\x01");
    assert_eq!(
        text("openat", &[CWD, 0x1000, 0o2000000], 3, Some(&mem), &[]),
        "openat(AT_FDCWD, \"/etc/passwd\", O_RDONLY|O_CLOEXEC) = 3"
    );
    assert_eq!(
        text("openat", &[CWD, 0x1000, 0o1101, 0o644], -2, None, &[]),
        "openat(AT_FDCWD, 0x1000, O_WRONLY|O_CREAT|O_TRUNC, 0644) = -1 ENOENT (No such file or directory)"
    );
    assert_eq!(
        text("write", &[1, 0x2000, 11], 11, Some(&mem), &[]),
        "write(1, \"hello\\n\\\"x\\\"\\0\\x01\", 11) = 11"
    );
    assert_eq!(
        text("read", &[0, 0x3000, 100], 3, None, &[(0x3000, b"abc")]),
        "read(0, \"abc\", 100) = 3"
    );
    assert_eq!(
        text("read", &[0, 0x3000, 100], -9, None, &[]),
        "read(0, 0x3000, 100) = -1 EBADF (Bad file descriptor)"
    );
    let long = [b'a'; 100];
    assert_eq!(
        text("read", &[0, 0x3000, 100], 100, None, &[(0x3000, &long)]),
        format!("read(0, \"{}\"..., 100) = 100", "a".repeat(32))
    );
    assert_eq!(
        text(
            "pipe2",
            &[0x3000, 0],
            0,
            None,
            &[(0x3000, &[3, 0, 0, 0, 4, 0, 0, 0])]
        ),
        "pipe2([3, 4], 0) = 0"
    );
    assert_eq!(
        text("lseek", &[3, -1i64 as u64, 1], -22, None, &[]),
        "lseek(3, -1, SEEK_CUR) = -1 EINVAL (Invalid argument)"
    );
    assert_eq!(
        text("fcntl", &[3, 3], 0o2002, None, &[]),
        "fcntl(3, F_GETFL) = 0x402 (flags O_RDWR|O_APPEND)"
    );
    assert_eq!(
        text("fcntl", &[3, 2, 1], 0, None, &[]),
        "fcntl(3, F_SETFD, FD_CLOEXEC) = 0"
    );
    assert_eq!(text("umask", &[0o22], 0o77, None, &[]), "umask(022) = 077");
}

#[test]
fn memory() {
    assert_eq!(
        text(
            "mmap",
            &[0, 4096, 3, 0x22, u64::MAX, 0],
            0x7000_0000,
            None,
            &[]
        ),
        "mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0x0) = 0x70000000"
    );
    assert_eq!(text("brk", &[0], 0x5000, None, &[]), "brk(NULL) = 0x5000");
    assert_eq!(
        text("madvise", &[0x1000, 4096, 4], 0, None, &[]),
        "madvise(0x1000, 4096, MADV_DONTNEED) = 0"
    );
}

#[test]
fn structures() {
    let mut status = [0u8; 144];
    status[24..28].copy_from_slice(&0o100644u32.to_le_bytes());
    status[48] = 42;
    assert_eq!(
        text("fstat", &[3, 0x3000], 0, None, &[(0x3000, &status)]),
        "fstat(3, {st_mode=S_IFREG|0644, st_size=42, ...}) = 0"
    );
    let mem = Pieces::default()
        .words(0x1000, &[1, 500])
        .words(0x2000, &[3 | 1 << 32 | 1 << 48]);
    assert_eq!(
        text("nanosleep", &[0x1000, 0], 0, Some(&mem), &[]),
        "nanosleep({tv_sec=1, tv_nsec=500}, NULL) = 0"
    );
    assert_eq!(
        text(
            "poll",
            &[0x2000, 1, u64::from(u32::MAX)],
            1,
            Some(&mem),
            &[]
        ),
        "poll([{fd=3, events=POLLIN, revents=POLLIN}], 1, -1) = 1"
    );
    let address =
        Pieces::default().with(0x1000, &[2, 0, 0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        text("connect", &[3, 0x1000, 16], 0, Some(&address), &[]),
        "connect(3, {sa_family=AF_INET, sin_port=80, sin_addr=\"127.0.0.1\"}, 16) = 0"
    );
    let unix = Pieces::default().with(0x1000, b"\x01\0/run/socket\0");
    assert_eq!(
        text("bind", &[3, 0x1000, 14], 0, Some(&unix), &[]),
        "bind(3, {sa_family=AF_UNIX, sun_path=\"/run/socket\"}, 14) = 0"
    );
    assert_eq!(
        text(
            "wait4",
            &[u64::MAX, 0x1000, 0, 0],
            77,
            None,
            &[(0x1000, &[0, 3, 0, 0])]
        ),
        "wait4(-1, [{exited, status=3}], 0, NULL) = 77"
    );
    let vectors = Pieces::default()
        .words(0x1000, &[0x2000, 3, 0x3000, 5])
        .with(0x2000, b"abc")
        .with(0x3000, b"hello");
    assert_eq!(
        text("writev", &[1, 0x1000, 2], 8, Some(&vectors), &[]),
        "writev(1, [{iov_base=\"abc\", iov_len=3}, {iov_base=\"hello\", iov_len=5}], 2) = 8"
    );
}

#[test]
fn special() {
    let size = [24, 0, 80, 0, 0, 0, 0, 0];
    assert_eq!(
        text("ioctl", &[1, 0x5413, 0x3000], 0, None, &[(0x3000, &size)]),
        "ioctl(1, TIOCGWINSZ, 0x3000) = 0"
    );
    assert_eq!(
        text(
            "ioctl",
            &[1, 0x541b, 0x3000],
            0,
            None,
            &[(0x3000, &[5, 0, 0, 0])]
        ),
        "ioctl(1, FIONREAD, [5]) = 0"
    );
    assert_eq!(
        text("ioctl", &[1, 0xc010_7701, 0x3000], -25, None, &[]),
        "ioctl(1, _IOC(_IOC_WRITE|_IOC_READ, 0x77, 0x1, 0x10), 0x3000) = -1 ENOTTY (Inappropriate ioctl for device)"
    );
    assert_eq!(
        text("futex", &[0x3000, 0x80, 2, 0, 0, 0], -11, None, &[]),
        "futex(0x3000, FUTEX_WAIT|FUTEX_PRIVATE_FLAG, 2, NULL, NULL, 0x0) = -1 EAGAIN (Resource temporarily unavailable)"
    );
    let name = Pieces::default().with(0x1000, b"worker\0");
    assert_eq!(
        text("prctl", &[15, 0x1000], 0, Some(&name), &[]),
        "prctl(PR_SET_NAME, \"worker\", 0x0, 0x0, 0x0) = 0"
    );
    assert_eq!(
        text("kill", &[77, 15], 0, None, &[]),
        "kill(77, SIGTERM) = 0"
    );
    let set = Pieces::default().words(0x1000, &[1 << 1 | 1 << 14]);
    assert_eq!(
        text("rt_sigprocmask", &[0, 0x1000, 0, 8], 0, Some(&set), &[]),
        "rt_sigprocmask(SIG_BLOCK, [INT TERM], NULL, 8) = 0"
    );
    assert_eq!(text("exit_group", &[0], 0, None, &[]), "exit_group(0) = 0");
}
