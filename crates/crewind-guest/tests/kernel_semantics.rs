//! `Space` against the kernel itself: the same random calls are made through both at the same addresses, in one
//! child process after the other, and must give the same results and the same mappings.

mod common;

use common::in_child;
use crewind_guest::errno::Errno;
use crewind_guest::layout::*;
use crewind_guest::mm::{Backing, MmapArgs, Placement, Space};
use proptest::prelude::*;
use std::fs::File;
use std::os::fd::AsRawFd;

#[derive(Clone, Debug)]
enum Call {
    Mmap {
        addr: u64,
        len: u64,
        prot: i32,
        flags: i32,
        fd: usize,
        offset: u64,
    },
    Munmap {
        addr: u64,
        len: u64,
    },
    Mprotect {
        addr: u64,
        len: u64,
        prot: i32,
    },
    Mremap {
        addr: u64,
        old: u64,
        new: u64,
        flags: i32,
        to: u64,
    },
    Madvise {
        addr: u64,
        len: u64,
        advice: i32,
    },
    Msync {
        addr: u64,
        len: u64,
        flags: i32,
    },
    Mincore {
        addr: u64,
        len: u64,
    },
    Write {
        addr: u64,
        value: u8,
    },
}

const ARENA: u64 = 0x2000_0000;
const PAGES: u64 = 16;
const ARENA_END: u64 = ARENA + PAGES * PAGE;

fn calls() -> impl Strategy<Value = Vec<Call>> {
    // Mostly fine addresses and lengths, some that are not.
    let at = || {
        prop_oneof![
            30 => (0..PAGES).prop_map(|p| ARENA + p * PAGE),
            1 => (0..PAGES * PAGE).prop_map(|p| ARENA + p),
        ]
    };
    let len = || prop_oneof![20 => (1..6u64).prop_map(|p| p * PAGE), 3 => 0..4 * PAGE, 1 => Just(u64::MAX - 5)];
    let prot = || prop_oneof![20 => 0..8i32, 1 => Just(16), 1 => Just(libc::PROT_GROWSDOWN | 3)];
    let sharing = prop_oneof![
        6 => Just(libc::MAP_PRIVATE), 6 => Just(libc::MAP_SHARED), 2 => Just(libc::MAP_SHARED_VALIDATE), 1 => Just(0),
    ];
    let fixed = prop_oneof![6 => Just(libc::MAP_FIXED), 3 => Just(libc::MAP_FIXED_NOREPLACE)];
    let kind = prop_oneof![4 => Just(libc::MAP_ANONYMOUS), 4 => Just(0), 1 => Just(libc::MAP_NORESERVE | libc::MAP_ANONYMOUS)];
    let offset =
        prop_oneof![8 => (0..3u64).prop_map(|p| p * PAGE), 1 => Just(1u64), 1 => Just(!0xfff)];
    let remap = prop_oneof![
        Just(0),
        Just(libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED),
        Just(libc::MREMAP_FIXED),
        Just(64),
    ];
    let advice = prop_oneof![
        6 => Just(libc::MADV_DONTNEED), 2 => Just(libc::MADV_WIPEONFORK), 2 => Just(libc::MADV_KEEPONFORK),
        1 => Just(libc::MADV_DONTFORK), 1 => Just(libc::MADV_DOFORK), 1 => Just(libc::MADV_WILLNEED),
        2 => Just(libc::MADV_FREE), 1 => Just(77),
    ];
    let call = prop_oneof![
        6 => (at(), len(), prot(), (sharing, fixed, kind), 0..3usize, offset).prop_map(
            |(addr, len, prot, (s, f, k), fd, offset)| Call::Mmap { addr, len, prot, flags: s | f | k, fd, offset }),
        2 => (at(), len()).prop_map(|(addr, len)| Call::Munmap { addr, len }),
        4 => (at(), len(), prot()).prop_map(|(addr, len, prot)| Call::Mprotect { addr, len, prot }),
        3 => (at(), len(), len(), remap, at())
            .prop_map(|(addr, old, new, flags, to)| Call::Mremap { addr, old, new, flags, to }),
        3 => (at(), len(), advice).prop_map(|(addr, len, advice)| Call::Madvise { addr, len, advice }),
        1 => (at(), len(), 0..8i32).prop_map(|(addr, len, flags)| Call::Msync { addr, len, flags }),
        1 => (at(), len()).prop_map(|(addr, len)| Call::Mincore { addr, len }),
        4 => (at(), 1u8..).prop_map(|(addr, value)| Call::Write { addr, value }),
    ];
    proptest::collection::vec(call, 1..40)
}

/// A call that could leave the arena would meet what else is in the process.
fn stays_inside(call: &Call) -> bool {
    let inside = |addr: u64, len: u64| len > 1 << 60 || addr + len <= ARENA_END;
    match *call {
        Call::Mmap { addr, len, .. } | Call::Munmap { addr, len } => inside(addr, len),
        Call::Mremap {
            addr, old, new, to, ..
        } => inside(addr, old.max(new)) && inside(to, new),
        _ => true,
    }
}

type Outcome = Result<u64, i32>;

/// What both sides are told about by `/proc/self/maps`, page by page.
fn pages() -> Vec<Option<(String, u8)>> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut out = vec![None; PAGES as usize];
    for line in maps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (a, b) = fields[0].split_once('-').unwrap();
        let n = |s: &str| u64::from_str_radix(s, 16).unwrap();
        let mut at = n(a).max(ARENA);
        while at < n(b).min(ARENA_END) {
            let name = fields.get(5).copied().unwrap_or("");
            let from = if fields[3] == "00:00" || name == "/dev/zero" {
                0
            } else {
                n(fields[2]) + at - n(a)
            };
            let key = format!("{} {from:x} {name}", fields[1]);
            let readable = fields[1].starts_with('r');
            out[((at - ARENA) / PAGE) as usize] = Some((key, if readable { byte(at) } else { 0 }));
            at += PAGE;
        }
    }
    out
}

/// A byte of guest memory, 0 where there is none (beyond the end of a file).
fn byte(at: u64) -> u8 {
    let mut b = 0u8;
    let local = libc::iovec {
        iov_base: (&raw mut b).cast(),
        iov_len: 1,
    };
    let remote = libc::iovec {
        iov_base: at as *mut _,
        iov_len: 1,
    };
    // SAFETY: writes one byte to `b`.
    unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    b
}

fn put(at: u64, value: u8) {
    let mut value = value;
    let local = libc::iovec {
        iov_base: (&raw mut value).cast(),
        iov_len: 1,
    };
    let remote = libc::iovec {
        iov_base: at as *mut _,
        iov_len: 1,
    };
    // SAFETY: writes one byte, if anything, to the arena, where no Rust object is.
    unsafe { libc::process_vm_writev(libc::getpid(), &local, 1, &remote, 1, 0) };
}

fn real(ret: i64) -> Outcome {
    if ret == -1 {
        Err(Errno::last().0)
    } else {
        Ok(ret as u64)
    }
}

fn by_kernel(call: &Call, fds: &[i32]) -> Outcome {
    let errno = |ret: i64| real(ret);
    // SAFETY: only arguments of which the effects stay in the arena (`stays_inside`), where no Rust object is.
    unsafe {
        match *call {
            Call::Mmap {
                addr,
                len,
                prot,
                flags,
                fd,
                offset,
            } => errno(libc::syscall(
                libc::SYS_mmap,
                addr,
                len,
                prot,
                flags,
                fds[fd],
                offset,
            )),
            Call::Munmap { addr, len } => errno(libc::syscall(libc::SYS_munmap, addr, len)),
            Call::Mprotect { addr, len, prot } => {
                errno(libc::syscall(libc::SYS_mprotect, addr, len, prot))
            }
            Call::Mremap {
                addr,
                old,
                new,
                flags,
                to,
            } => errno(libc::syscall(libc::SYS_mremap, addr, old, new, flags, to)),
            Call::Madvise { addr, len, advice } => {
                errno(libc::syscall(libc::SYS_madvise, addr, len, advice))
            }
            Call::Msync { addr, len, flags } => {
                errno(libc::syscall(libc::SYS_msync, addr, len, flags))
            }
            Call::Mincore { addr, len } => {
                let mut vec = [0u8; 64];
                errno(libc::syscall(
                    libc::SYS_mincore,
                    addr,
                    len,
                    vec.as_mut_ptr(),
                ))
            }
            Call::Write { addr, value } => {
                put(addr, value);
                Ok(0)
            }
        }
    }
}

fn by_space(space: &mut Space, call: &Call, fds: &[i32]) -> Outcome {
    let raw = |r: Result<u64, Errno>| r.map_err(|e| e.0);
    match *call {
        Call::Mmap {
            addr,
            len,
            prot,
            flags,
            fd,
            offset,
        } => {
            let args = MmapArgs {
                addr,
                len,
                prot,
                flags,
                offset,
                placement: Placement::Normal,
            };
            raw(space.mmap(&args, Backing::Fd(fds[fd])).result)
        }
        Call::Munmap { addr, len } => raw(space.munmap(addr, len).result.map(|()| 0)),
        Call::Mprotect { addr, len, prot } => {
            raw(space.mprotect(addr, len, prot).result.map(|()| 0))
        }
        Call::Mremap {
            addr,
            old,
            new,
            flags,
            to,
        } => raw(space.mremap(addr, old, new, flags, to).result),
        Call::Madvise { addr, len, advice } => {
            raw(space.madvise(addr, len, advice).result.map(|()| 0))
        }
        Call::Msync { addr, len, flags } => raw(space.msync(addr, len, flags).map(|()| 0)),
        Call::Mincore { addr, len } => raw(space.mincore(addr, len).map(|_| 0)),
        Call::Write { addr, value } => {
            put(addr, value);
            Ok(0)
        }
    }
}

/// Two files of two pages, the second open for reading only, and a number that is no descriptor.
fn files() -> (Vec<File>, Vec<i32>) {
    let dir = common::dir("kernel_semantics");
    let name = dir.join(format!("file{}", std::process::id()));
    std::fs::write(&name, [vec![1u8; 4096], vec![2u8; 4096]].concat()).unwrap();
    let both = File::options().read(true).write(true).open(&name).unwrap();
    let read = File::open(&name).unwrap();
    std::fs::remove_file(&name).unwrap();
    let fds = vec![both.as_raw_fd(), read.as_raw_fd(), 900];
    (vec![both, read], fds)
}

type Seen = (Vec<Outcome>, Vec<Option<(String, u8)>>);

fn seen(calls: &[Call], mut one: impl FnMut(&Call, &[i32]) -> Outcome) -> Seen {
    let (_keep, fds) = files();
    let results = calls.iter().map(|call| one(call, &fds)).collect();
    (results, pages())
}

fn compare(calls: &[Call]) {
    let calls: Vec<Call> = calls.iter().filter(|c| stays_inside(c)).cloned().collect();
    in_child(|| {
        let kernel = seen(&calls, by_kernel);
        // SAFETY: the arena, where no Rust object is.
        unsafe { libc::munmap(ARENA as *mut _, (ARENA_END - ARENA) as usize) };
        let mut space = Space::new();
        let mut ours = seen(&calls, |call, fds| by_space(&mut space, call, fds));
        // Rights to execute, and pages that only those make readable, are the guest's alone.
        let guest = |page: usize| space.find(ARENA + page as u64 * PAGE).map(|v| v.prot);
        for (i, page) in ours.1.iter_mut().enumerate() {
            if let (Some((key, b)), Some(prot)) = (page, guest(i)) {
                let flag = |on, c| if on { c } else { "-" };
                let rights = [
                    flag(prot.read, "r"),
                    flag(prot.write, "w"),
                    flag(prot.exec, "x"),
                ]
                .concat();
                key.replace_range(..3, &rights);
                if !prot.read {
                    *b = 0;
                }
            }
        }
        for (i, call) in calls.iter().enumerate() {
            if let Call::Mremap { .. } = call {
                match (kernel.0[i], ours.0[i]) {
                    // Linux 6.17 turned the order of two checks round.
                    (Err(libc::EFAULT | libc::EINVAL), Err(libc::EFAULT | libc::EINVAL)) => {
                        continue;
                    }
                    // It also moves several mappings at once, which we refuse as older ones do. What follows
                    // can no longer be compared.
                    (Ok(_), Err(libc::EFAULT)) => return Ok(()),
                    _ => {}
                }
            }
            if kernel.0[i] != ours.0[i] {
                return Err(format!(
                    "{call:x?}: kernel {:x?}, here {:x?}",
                    kernel.0[i], ours.0[i]
                ));
            }
        }
        // The kernel takes freed pages when it likes, we at once.
        let freed = calls.iter().any(|c| {
            matches!(
                c,
                Call::Madvise {
                    advice: libc::MADV_FREE,
                    ..
                }
            )
        });
        let name = |p: &Option<(String, u8)>| p.as_ref().map(|(key, _)| key.clone());
        for (i, (kernel, ours)) in kernel.1.iter().zip(&ours.1).enumerate() {
            if kernel != ours && !(freed && name(kernel) == name(ours)) {
                return Err(format!("page {i}: kernel {kernel:?}, here {ours:?}"));
            }
        }
        Ok(())
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn same_results_and_mappings(calls in calls()) {
        compare(&calls);
    }
}
