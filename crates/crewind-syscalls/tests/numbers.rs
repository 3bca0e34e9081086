//! The table against what the machine's C headers say.

use std::collections::BTreeMap;

use crewind_syscalls::{ArgKind, FdEffect, rows, syscall_name};

/// Name by number, from `asm/unistd_64.h`; empty when the kernel's headers are not installed.
fn header() -> BTreeMap<u32, String> {
    let places = [
        "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
        "/usr/include/asm/unistd_64.h",
    ];
    let text = places
        .iter()
        .find_map(|place| std::fs::read_to_string(place).ok())
        .unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut words = line.strip_prefix("#define __NR_")?.split_whitespace();
            let name = words.next()?.to_owned();
            Some((words.next()?.parse().ok()?, name))
        })
        .collect()
}

#[test]
fn numbers_and_names_are_those_of_the_header() {
    let header = header();
    if header.is_empty() {
        eprintln!("SKIP: no kernel headers here");
        return;
    }
    for (nr, name) in header {
        // Newer kernels than the table's may have more.
        if nr <= crewind_syscalls::LAST {
            assert_eq!(syscall_name(nr), Some(name.as_str()), "number {nr}");
        }
    }
}

#[test]
fn names_are_unique() {
    let mut names: Vec<_> = rows().map(|row| row.name).collect();
    let count = names.len();
    assert_eq!(count, 337 + (crewind_syscalls::LAST as usize - 423));
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

/// A row's references to its own arguments are to ones that it has, and of the right kind.
#[test]
fn rows_are_consistent() {
    for row in rows() {
        let kind = |arg: u8| {
            row.args
                .get(usize::from(arg))
                .unwrap_or_else(|| panic!("{}: no argument {arg}", row.name))
                .kind
        };
        if let Some(fd) = row.writes_to {
            assert!(matches!(kind(fd), ArgKind::Fd), "{}", row.name);
        }
        if let FdEffect::Pair { array, .. } = row.fds {
            assert!(matches!(kind(array), ArgKind::Buf(_)), "{}", row.name);
        }
        for arg in row.args {
            match arg.kind {
                ArgKind::Iovec { count, .. }
                | ArgKind::RemoteIovec { count }
                | ArgKind::Mmsghdr { count, .. } => {
                    assert!(
                        matches!(kind(count), ArgKind::Size | ArgKind::Uint),
                        "{}",
                        row.name
                    );
                }
                ArgKind::ValueResult { len, .. } => {
                    assert!(matches!(kind(len), ArgKind::ResultLen(_)), "{}", row.name);
                }
                ArgKind::ResultLen(of) => {
                    assert!(
                        matches!(kind(of), ArgKind::ValueResult { .. }),
                        "{}",
                        row.name
                    );
                }
                ArgKind::Buf(buf) => {
                    use crewind_syscalls::Len::*;
                    if let Arg(n) | Times(n, _) | Plus(n, _) = buf.len {
                        let sized = matches!(
                            kind(n),
                            ArgKind::Size | ArgKind::Uint | ArgKind::Int | ArgKind::Long
                        );
                        assert!(sized, "{}: {}", row.name, arg.name);
                    }
                }
                _ => {}
            }
        }
    }
}
