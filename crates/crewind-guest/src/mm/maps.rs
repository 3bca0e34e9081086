//! The guest's mappings as `/proc/self/maps` and `/proc/self/smaps` show them.

use super::Space;
use super::vma::{Object, Role, Vma};
use std::io::Write;

/// Column (from 0) after which a mapping's name stands, as in the kernel's `show_map_vma`.
const NAME_COLUMN: usize = 25 + 8 * 6;

/// Device number of shared anonymous memory and System V segments as the kernel shows it.
const SHMEM_DEV: (u32, u32) = (0, 1);

impl<H> Space<H> {
    /// Text of `/proc/self/maps`.
    pub fn render_maps(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for v in self.vmas.iter() {
            line(v, &mut out);
        }
        out
    }

    /// Text of `/proc/self/smaps`: sizes are right, what is resident is not known and shown as 0.
    pub fn render_smaps(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for v in self.vmas.iter() {
            line(v, &mut out);
            field(&mut out, "Size", v.len() / 1024);
            for name in ["KernelPageSize", "MMUPageSize"] {
                field(&mut out, name, 4);
            }
            for name in [
                "Rss",
                "Pss",
                "Pss_Dirty",
                "Shared_Clean",
                "Shared_Dirty",
                "Private_Clean",
                "Private_Dirty",
                "Referenced",
                "Anonymous",
                "KSM",
                "LazyFree",
                "AnonHugePages",
                "ShmemPmdMapped",
                "FilePmdMapped",
                "Shared_Hugetlb",
                "Private_Hugetlb",
                "Swap",
                "SwapPss",
                "Locked",
            ] {
                field(&mut out, name, 0);
            }
            out.extend_from_slice(b"THPeligible:           0\nVmFlags: ");
            out.extend_from_slice(&vm_flags(v));
            out.push(b'\n');
        }
        out
    }
}

fn field(out: &mut Vec<u8>, name: &str, kib: u64) {
    // Writing to a Vec does not fail.
    let _ = writeln!(out, "{:<16}{:>8} kB", format!("{name}:"), kib);
}

fn vm_flags(v: &Vma) -> Vec<u8> {
    let may_write = match &v.object {
        Object::File(f) => f.may_write,
        Object::Shm { may_write, .. } => *may_write,
        Object::Anon | Object::SharedAnon { .. } => true,
    };
    let flags = [
        (v.prot.read, "rd"),
        (v.prot.write, "wr"),
        (v.prot.exec, "ex"),
        (v.flags.shared, "sh"),
        (true, "mr"),
        (may_write, "mw"),
        (true, "me"),
        (v.flags.shared, "ms"),
        (v.flags.growsdown || v.flags.role == Role::Stack, "gd"),
        (v.flags.locked, "lo"),
        (v.flags.dontfork, "dc"),
        (v.flags.role == Role::Plain && v.flags.noreserve, "nr"),
        (v.flags.wipeonfork, "wf"),
        (v.object == Object::Anon, "ac"),
    ];
    flags
        .iter()
        .filter(|(on, _)| *on)
        .flat_map(|(_, name)| format!("{name} ").into_bytes())
        .collect()
}

fn line(v: &Vma, out: &mut Vec<u8>) {
    let begin = out.len();
    let flag = |on: bool, c: char| if on { c } else { '-' };
    let (dev, ino, offset) = match &v.object {
        Object::Anon => ((0, 0), 0, 0),
        Object::File(f) => (
            (libc::major(f.id.dev), libc::minor(f.id.dev)),
            f.id.ino,
            f.offset,
        ),
        Object::SharedAnon { object, offset } => (SHMEM_DEV, *object, *offset),
        Object::Shm { id, offset, .. } => (SHMEM_DEV, *id as u64, *offset),
    };
    let _ = write!(
        out,
        "{:08x}-{:08x} {}{}{}{} {:08x} {:02x}:{:02x} {} ",
        v.start,
        v.end,
        flag(v.prot.read, 'r'),
        flag(v.prot.write, 'w'),
        flag(v.prot.exec, 'x'),
        if v.flags.shared { 's' } else { 'p' },
        offset,
        dev.0,
        dev.1,
        ino,
    );
    let name: &[u8] = match (&v.object, v.flags.role) {
        (Object::Anon, Role::Heap) => b"[heap]",
        (Object::Anon, Role::Stack) => b"[stack]",
        (Object::Anon, Role::Plain) => b"",
        (Object::SharedAnon { .. }, _) => b"/dev/zero (deleted)",
        (Object::Shm { .. }, _) => b"/SYSV00000000 (deleted)",
        (Object::File(f), _) => &f.id.path,
    };
    if !name.is_empty() {
        while out.len() - begin < NAME_COLUMN {
            out.push(b' ');
        }
        for &b in name {
            match b {
                b'\n' => out.extend_from_slice(b"\\012"),
                _ => out.push(b),
            }
        }
    }
    out.push(b'\n');
}
