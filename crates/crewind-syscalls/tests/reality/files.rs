//! Files, directories, attributes.

use std::os::fd::AsRawFd;

use crewind_syscalls::{Mem, Range, after, before, row};

use crate::harness::{Arena, Dir, Own, Tight, check, close, fails, syscall, works};

const AT_FDCWD: u64 = -100i64 as u64;

#[test]
fn reading() {
    let dir = Dir::new("reading");
    let file = dir.file();
    let fd = file.as_raw_fd() as u64;
    assert_eq!(
        works("pread64", Tight::Yes, |a| [fd, a.alloc(100), 100, 0, 0, 0]),
        22
    );
    assert_eq!(
        works("pread64", Tight::Yes, |a| [fd, a.alloc(7), 7, 3, 0, 0]),
        7
    );
    for name in ["preadv", "preadv2"] {
        let n = works(name, Tight::Yes, |a| {
            let (first, second, third) = (a.alloc(5), a.alloc(8), a.alloc(100));
            [fd, a.words(&[first, 5, second, 8, third, 100]), 3, 2, 0, 0]
        });
        assert_eq!(n, 20);
    }
    works("readv", Tight::Yes, |a| {
        // SAFETY: seeking the test's own file.
        unsafe { libc::lseek(fd as i32, 0, libc::SEEK_SET) };
        let (first, second) = (a.alloc(0), a.alloc(9));
        [fd, a.words(&[first, 0, second, 9]), 2, 0, 0, 0]
    });
    // A count far beyond memory: the kernel writes what there is.
    works("pread64", Tight::Yes, |a| [fd, a.alloc(22), 22, 0, 0, 0]);
    fails("read", libc::EBADF, |a| {
        [u64::MAX, a.alloc(10), 10, 0, 0, 0]
    });
}

#[test]
fn writing_writes_no_memory() {
    let dir = Dir::new("writing");
    let file = dir.file();
    let fd = file.as_raw_fd() as u64;
    works("pwrite64", Tight::Yes, |a| [fd, a.alloc(10), 10, 0, 0, 0]);
    works("writev", Tight::Yes, |a| {
        let (first, second) = (a.alloc(5), a.alloc(8));
        [fd, a.words(&[first, 5, second, 8]), 2, 0, 0, 0]
    });
    let out = dir.0.join("out");
    let out = std::fs::File::create(out).expect("file");
    let out = out.as_raw_fd() as u64;
    // The upper bytes of the offset stay zero.
    works("sendfile", Tight::No, |a| [out, fd, a.words(&[1]), 5, 0, 0]);
    works("copy_file_range", Tight::No, |a| {
        [fd, a.words(&[1]), out, a.words(&[2]), 3, 0]
    });
}

#[test]
fn status() {
    let dir = Dir::new("status");
    let file = dir.file();
    let fd = file.as_raw_fd() as u64;
    let path = dir.path().to_owned();
    // Reserved words at the end are written too.
    works("stat", Tight::Yes, |a| {
        [a.string(&path), a.alloc(144), 0, 0, 0, 0]
    });
    works("lstat", Tight::Yes, |a| {
        [a.string(&path), a.alloc(144), 0, 0, 0, 0]
    });
    works("fstat", Tight::Yes, |a| [fd, a.alloc(144), 0, 0, 0, 0]);
    works("newfstatat", Tight::Yes, |a| {
        [AT_FDCWD, a.string(&path), a.alloc(144), 0, 0, 0]
    });
    works("statx", Tight::Yes, |a| {
        [AT_FDCWD, a.string(&path), 0, 0xfff, a.alloc(256), 0]
    });
    works("statfs", Tight::Yes, |a| {
        [a.string(&path), a.alloc(120), 0, 0, 0, 0]
    });
    works("fstatfs", Tight::Yes, |a| [fd, a.alloc(120), 0, 0, 0, 0]);
    check("ustat", Tight::Yes, |a| [1, a.alloc(32), 0, 0, 0, 0]);
    works("cachestat", Tight::Yes, |a| {
        [fd, a.words(&[0, 0]), a.alloc(40), 0, 0, 0]
    });
    check("file_getattr", Tight::Yes, |a| {
        [AT_FDCWD, a.string(&path), a.alloc(24), 24, 0, 0]
    });
    check("file_getattr", Tight::Yes, |a| {
        [AT_FDCWD, a.string(&path), a.alloc(40), 40, 0, 0]
    });
    fails("stat", libc::ENOENT, |a| {
        [a.string("/does/not/exist"), a.alloc(144), 0, 0, 0, 0]
    });
    works("sysfs", Tight::Yes, |a| [2, 0, a.alloc(256), 0, 0, 0]);
}

/// A call that fails half-way through its memory has written some of it.
#[test]
fn fault_in_the_middle() {
    let mut a = Arena::new(0xaa);
    // `uname` needs 390 bytes; a page that cannot be accessed follows these.
    let args = [a.alloc(200), 0, 0, 0, 0, 0];
    let plan = before(row(63).expect("row"), &args, &Own);
    let ret = syscall(63, args);
    assert_eq!(ret, -i64::from(libc::EFAULT));
    let mut ranges = Vec::new();
    after(&plan, ret, &Own, &mut ranges);
    assert_eq!(
        ranges,
        [Range {
            addr: args[0],
            len: 200
        }]
    );
}

#[test]
fn directories_and_links() {
    let dir = Dir::new("directories");
    let _file = dir.file();
    std::os::unix::fs::symlink("target of the link", dir.0.join("link")).expect("link");
    let link = dir.0.join("link").to_str().expect("path").to_owned();
    works("readlink", Tight::Yes, |a| {
        [a.string(&link), a.alloc(100), 100, 0, 0, 0]
    });
    works("readlink", Tight::Yes, |a| {
        [a.string(&link), a.alloc(5), 5, 0, 0, 0]
    });
    works("readlinkat", Tight::Yes, |a| {
        [AT_FDCWD, a.string(&link), a.alloc(100), 100, 0, 0]
    });
    works("getcwd", Tight::Yes, |a| [a.alloc(4096), 4096, 0, 0, 0, 0]);
    fails("getcwd", libc::ERANGE, |a| [a.alloc(1), 1, 0, 0, 0, 0]);
    // Names are padded without writing the padding.
    for name in ["getdents64", "getdents"] {
        let path = dir.path().to_owned();
        let handle = std::fs::File::open(path).expect("directory");
        let fd = handle.as_raw_fd() as u64;
        let n = works(name, Tight::No, |a| {
            // SAFETY: rewinds the test's own directory.
            unsafe { libc::lseek(fd as i32, 0, libc::SEEK_SET) };
            [fd, a.alloc(1000), 1000, 0, 0, 0]
        });
        assert!(n > 0);
        assert_eq!(
            works(name, Tight::Yes, |a| [fd, a.alloc(1000), 1000, 0, 0, 0]),
            0
        );
    }
}

#[test]
fn attributes() {
    let dir = Dir::new("attributes");
    let file = dir.file();
    let fd = file.as_raw_fd() as u64;
    let path = dir.0.join("file").to_str().expect("path").to_owned();
    let set = check("setxattr", Tight::Yes, |a| {
        [
            a.string(&path),
            a.string("user.crewind"),
            a.bytes(b"value"),
            5,
            0,
            0,
        ]
    });
    if set == -i64::from(libc::EOPNOTSUPP) {
        eprintln!("SKIP: the temporary directory's file system has no user attributes");
        return;
    }
    assert_eq!(set, 0);
    for (name, first) in [("getxattr", 0), ("lgetxattr", 0), ("fgetxattr", fd)] {
        let call = |len: u64| {
            works(name, Tight::Yes, |a| {
                let first = if first == 0 { a.string(&path) } else { first };
                [
                    first,
                    a.string("user.crewind"),
                    a.alloc(len as usize),
                    len,
                    0,
                    0,
                ]
            })
        };
        assert_eq!(call(100), 5);
        assert_eq!(call(0), 5);
    }
    assert!(
        works("listxattr", Tight::Yes, |a| [
            a.string(&path),
            a.alloc(100),
            100,
            0,
            0,
            0
        ]) > 0
    );
    assert!(works("flistxattr", Tight::Yes, |a| [fd, a.alloc(0), 0, 0, 0, 0]) > 0);
    let ret = check("getxattrat", Tight::Yes, |a| {
        let value = a.alloc(50);
        let args = a.words(&[value, 50]);
        [
            AT_FDCWD,
            a.string(&path),
            0,
            a.string("user.crewind"),
            args,
            16,
        ]
    });
    assert!(ret == 5 || ret == -i64::from(libc::ENOSYS), "{ret}");
    check("listxattrat", Tight::Yes, |a| {
        [AT_FDCWD, a.string(&path), 0, a.alloc(100), 100, 0]
    });
}

#[test]
fn handles() {
    let dir = Dir::new("handles");
    let path = dir.path().to_owned();
    let too_small = check("name_to_handle_at", Tight::No, |a| {
        [AT_FDCWD, a.string(&path), a.words(&[0]), a.alloc(4), 0, 0]
    });
    if too_small == -i64::from(libc::EOPNOTSUPP) {
        eprintln!("SKIP: the temporary directory's file system has no handles");
        return;
    }
    assert_eq!(too_small, -i64::from(libc::EOVERFLOW));
    works("name_to_handle_at", Tight::No, |a| {
        let handle = a.alloc(8 + 128);
        a.set(handle, &128u32.to_le_bytes());
        [AT_FDCWD, a.string(&path), handle, a.alloc(4), 0, 0]
    });
    check("name_to_handle_at", Tight::No, |a| {
        let handle = a.alloc(8 + 128);
        a.set(handle, &128u32.to_le_bytes());
        [AT_FDCWD, a.string(&path), handle, a.alloc(8), 1, 0]
    });
}

#[test]
fn opening() {
    let dir = Dir::new("opening");
    let path = dir.path().to_owned();
    let mut fds = Vec::new();
    works("openat", Tight::Yes, |a| {
        [AT_FDCWD, a.string(&path), 0, 0, 0, 0]
    });
    fds.push(works("openat2", Tight::Yes, |a| {
        [AT_FDCWD, a.string(&path), a.words(&[0, 0, 0]), 24, 0, 0]
    }));
    works("pipe", Tight::Yes, |a| [a.alloc(8), 0, 0, 0, 0, 0]);
    works("pipe2", Tight::Yes, |a| {
        [a.alloc(8), libc::O_CLOEXEC as u64, 0, 0, 0, 0]
    });
    fails("pipe2", libc::EINVAL, |a| [a.alloc(8), 1, 0, 0, 0, 0]);
    fds.push(works("memfd_create", Tight::Yes, |a| {
        [a.string("name"), 0, 0, 0, 0, 0]
    }));
    fds.into_iter().for_each(close);
}

#[test]
fn mounts() {
    // struct mnt_id_req: size, spare, mount id, what is wanted.
    let root = check("listmount", Tight::Yes, |a| {
        [a.words(&[24, u64::MAX, 0]), a.alloc(80), 10, 0, 0, 0]
    });
    if root < 0 {
        eprintln!("SKIP: listmount gives {root}");
        return;
    }
    let mut id = [0u8; 8];
    let mut arena = Arena::new(0);
    let (request, list) = (arena.words(&[24, u64::MAX, 0]), arena.alloc(8));
    assert_eq!(syscall(458, [request, list, 1, 0, 0, 0]), 1);
    assert!(Own.read(list, &mut id));
    let id = u64::from_le_bytes(id);
    for what in [0x1, 0x2, 0x8 | 0x10 | 0x20] {
        works("statmount", Tight::No, |a| {
            [a.words(&[24, id, what]), a.alloc(4096), 4096, 0, 0, 0]
        });
    }
}

#[test]
fn locks() {
    let dir = Dir::new("locks");
    let file = dir.file();
    let fd = file.as_raw_fd() as u64;
    works("fcntl", Tight::No, |a| {
        let lock = libc::flock {
            l_type: 1,
            l_whence: 0,
            l_start: 0,
            l_len: 10,
            l_pid: 0,
        };
        let lock = [
            u64::from(lock.l_type as u16),
            lock.l_start as u64,
            lock.l_len as u64,
            0,
        ];
        [fd, libc::F_GETLK as u64, a.words(&lock), 0, 0, 0]
    });
    works("fcntl", Tight::Yes, |a| [fd, 16, a.alloc(8), 0, 0, 0]);
    works("fcntl", Tight::Yes, |a| [fd, 17, a.alloc(8), 0, 0, 0]);
    works("fcntl", Tight::Yes, |a| [fd, 1035, a.alloc(8), 0, 0, 0]);
    works("fcntl", Tight::Yes, |_| {
        [fd, libc::F_GETFL as u64, u64::MAX, 0, 0, 0]
    });
}
