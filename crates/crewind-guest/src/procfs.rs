//! The guest's view of `/proc/self`: which files would show the runtime, and what they say instead.
//!
//! Pure text work; who opens what, and serves the text, is decided elsewhere. `maps` and `smaps` come from
//! `Space::render_maps` and `Space::render_smaps`.

use crate::loader::ArgArea;

/// A file below `/proc/<pid>` that needs attention, because the kernel's text would show the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcFile {
    /// `maps`
    Maps,
    /// `smaps`
    Smaps,
    /// `smaps_rollup`
    SmapsRollup,
    /// `cmdline`
    Cmdline,
    /// `environ`
    Environ,
    /// `exe`, a link
    Exe,
    /// `auxv`
    Auxv,
    /// `comm`
    Comm,
    /// `stat`
    Stat,
    /// `statm`
    Statm,
    /// `status`
    Status,
    /// `mem`
    Mem,
    /// `pagemap`
    Pagemap,
    /// `map_files` or something in it
    MapFiles,
    /// `task`, a directory
    TaskDir,
    /// `fd`, a directory
    FdDir,
    /// `fd/N`
    Fd(i32),
    /// `fdinfo`, a directory
    FdInfoDir,
    /// `fdinfo/N`
    FdInfo(i32),
}

/// A path classified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcPath {
    /// Which file.
    pub file: ProcFile,
    /// The thread named by `task/<tid>`, or `thread-self` as 0; `None` for the whole process.
    pub tid: Option<i32>,
}

fn number(name: &[u8]) -> Option<i32> {
    let text = std::str::from_utf8(name).ok()?;
    (text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty()).then(|| text.parse().ok())?
}

/// Which file of the process's own `/proc` directory an absolute path names, if any that needs attention.
/// Paths with `..` and other links to `/proc` are not seen through.
pub fn classify(path: &[u8], own_pid: i32) -> Option<ProcPath> {
    if !path.starts_with(b"/") {
        return None;
    }
    let mut parts = path
        .split(|&b| b == b'/')
        .filter(|p| !p.is_empty() && *p != b".");
    if parts.next() != Some(b"proc") {
        return None;
    }
    let mut tid = match parts.next()? {
        b"self" => None,
        b"thread-self" => Some(0),
        pid if number(pid) == Some(own_pid) => None,
        _ => return None,
    };
    let mut name = parts.next()?;
    if name == b"task" && tid.is_none() {
        let Some(thread) = parts.next() else {
            return Some(ProcPath {
                file: ProcFile::TaskDir,
                tid,
            });
        };
        tid = Some(number(thread)?);
        name = parts.next()?;
    }
    let rest = parts.next();
    if parts.next().is_some() && name != b"map_files" {
        return None;
    }
    let file = match (name, rest) {
        (b"fd", None) => ProcFile::FdDir,
        (b"fd", Some(n)) => ProcFile::Fd(number(n)?),
        (b"fdinfo", None) => ProcFile::FdInfoDir,
        (b"fdinfo", Some(n)) => ProcFile::FdInfo(number(n)?),
        (b"map_files", _) => ProcFile::MapFiles,
        (_, Some(_)) => return None,
        (b"maps", None) => ProcFile::Maps,
        (b"smaps", None) => ProcFile::Smaps,
        (b"smaps_rollup", None) => ProcFile::SmapsRollup,
        (b"cmdline", None) => ProcFile::Cmdline,
        (b"environ", None) => ProcFile::Environ,
        (b"exe", None) => ProcFile::Exe,
        (b"auxv", None) => ProcFile::Auxv,
        (b"comm", None) => ProcFile::Comm,
        (b"stat", None) => ProcFile::Stat,
        (b"statm", None) => ProcFile::Statm,
        (b"status", None) => ProcFile::Status,
        (b"mem", None) => ProcFile::Mem,
        (b"pagemap", None) => ProcFile::Pagemap,
        _ => return None,
    };
    Some(ProcPath { file, tid })
}

/// Text of `auxv`.
pub fn auxv(vector: &[(u64, u64)]) -> Vec<u8> {
    vector
        .iter()
        .flat_map(|(k, v)| [k.to_le_bytes(), v.to_le_bytes()])
        .flatten()
        .collect()
}

/// Text of `comm`.
pub fn comm(name: &[u8]) -> Vec<u8> {
    [name, b"\n"].concat()
}

/// Text of `cmdline`, from the guest's memory as it is now: programs change their arguments to show in `ps`.
/// `read` copies guest memory and says how many bytes it could.
pub fn cmdline(area: &ArgArea, mut read: impl FnMut(u64, &mut [u8]) -> usize) -> Vec<u8> {
    let args = bytes(area.arg_start, area.arg_end, &mut read);
    if args.last().is_none_or(|&b| b == 0) || area.env_start != area.arg_end {
        return args;
    }
    // The last NUL was overwritten: the program's title runs on into the environment, up to a NUL.
    let mut title = args;
    title.extend(bytes(area.env_start, area.env_end, &mut read));
    let end = title.iter().position(|&b| b == 0).unwrap_or(title.len());
    title.truncate(end);
    title
}

/// Text of `environ`.
pub fn environ(area: &ArgArea, mut read: impl FnMut(u64, &mut [u8]) -> usize) -> Vec<u8> {
    bytes(area.env_start, area.env_end, &mut read)
}

fn bytes(start: u64, end: u64, read: &mut impl FnMut(u64, &mut [u8]) -> usize) -> Vec<u8> {
    let mut out = vec![0; end.saturating_sub(start) as usize];
    let got = read(start, &mut out);
    out.truncate(got);
    out
}

/// What `stat`, `statm` and `status` say about the guest rather than about the whole process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessView {
    /// Name of the thread or program.
    pub comm: Vec<u8>,
    /// Number of guest threads.
    pub threads: u32,
    /// Bytes the guest has mapped.
    pub vsize: u64,
    /// Start of the program's code.
    pub start_code: u64,
    /// End of the program's code.
    pub end_code: u64,
    /// Initial stack pointer.
    pub start_stack: u64,
    /// Start of the program's data.
    pub start_data: u64,
    /// End of the program's data.
    pub end_data: u64,
    /// Start of the heap.
    pub start_brk: u64,
    /// Arguments and environment.
    pub args: ArgArea,
    /// Pending signals of the thread.
    pub sig_pending: u64,
    /// Pending signals of the process.
    pub shd_pending: u64,
    /// Blocked signals.
    pub sig_blocked: u64,
    /// Ignored signals.
    pub sig_ignored: u64,
    /// Caught signals.
    pub sig_caught: u64,
}

/// The kernel's `stat` line with what belongs to the guest put in. A line of an unknown form is returned as
/// it is.
pub fn stat(kernel: &[u8], view: &ProcessView) -> Vec<u8> {
    let open = kernel.iter().position(|&b| b == b'(');
    let close = kernel.iter().rposition(|&b| b == b')');
    let (Some(open), Some(close)) = (open, close) else {
        return kernel.to_vec();
    };
    let tail = String::from_utf8_lossy(kernel.get(close + 1..).unwrap_or_default()).into_owned();
    let mut fields: Vec<String> = tail.split_ascii_whitespace().map(str::to_owned).collect();
    // Numbered as in proc_pid_stat(5): the first after the name is field 3.
    let low = |signals: u64| signals & 0x7fff_ffff;
    let changes = [
        (20, view.threads.into()),
        (23, view.vsize),
        (26, view.start_code),
        (27, view.end_code),
        (28, view.start_stack),
        (29, 0),
        (30, 0),
        (31, low(view.sig_pending)),
        (32, low(view.sig_blocked)),
        (33, low(view.sig_ignored)),
        (34, low(view.sig_caught)),
        (45, view.start_data),
        (46, view.end_data),
        (47, view.start_brk),
        (48, view.args.arg_start),
        (49, view.args.arg_end),
        (50, view.args.env_start),
        (51, view.args.env_end),
    ];
    for (number, value) in changes {
        if let Some(field) = fields.get_mut(number - 3) {
            *field = value.to_string();
        }
    }
    let head = kernel.get(..=open).unwrap_or_default();
    [head, &view.comm, b") ", fields.join(" ").as_bytes(), b"\n"].concat()
}

/// The kernel's `statm` with the guest's total size put in.
pub fn statm(kernel: &[u8], view: &ProcessView) -> Vec<u8> {
    let text = String::from_utf8_lossy(kernel);
    let rest = text.split_once(' ').map_or("", |(_, rest)| rest.trim_end());
    format!("{} {rest}\n", view.vsize / crate::layout::PAGE).into_bytes()
}

/// The kernel's `status` with what belongs to the guest put in.
pub fn status(kernel: &[u8], view: &ProcessView) -> Vec<u8> {
    let mut out = Vec::with_capacity(kernel.len());
    let kib = |bytes: u64| format!("{:>8} kB", bytes / 1024);
    let set = |signals: u64| format!("{signals:016x}");
    for line in kernel.split_inclusive(|&b| b == b'\n') {
        let key = line.split(|&b| b == b':').next().unwrap_or_default();
        let value = match key {
            b"Name" => String::from_utf8_lossy(&view.comm).into_owned(),
            b"Threads" => view.threads.to_string(),
            b"VmPeak" | b"VmSize" => kib(view.vsize),
            b"VmExe" => kib(view.end_code.saturating_sub(view.start_code)),
            b"SigPnd" => set(view.sig_pending),
            b"ShdPnd" => set(view.shd_pending),
            b"SigBlk" => set(view.sig_blocked),
            b"SigIgn" => set(view.sig_ignored),
            b"SigCgt" => set(view.sig_caught),
            _ => {
                out.extend_from_slice(line);
                continue;
            }
        };
        out.extend_from_slice(key);
        out.extend_from_slice(b":\t");
        out.extend_from_slice(value.as_bytes());
        out.push(b'\n');
    }
    out
}

/// Form of directory entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dirents {
    /// `getdents64`
    New,
    /// `getdents`
    Old,
}

/// Takes hidden names out of what `getdents` returned; returns how many bytes are left. When that is none
/// although there were some, read on: 0 means the end of the directory.
pub fn filter_dirents(buf: &mut [u8], form: Dirents, hidden: impl Fn(&[u8]) -> bool) -> usize {
    let (mut from, mut to) = (0, 0);
    while let Some(len) = buf.get(from + 16..from + 18) {
        let len = usize::from(u16::from_le_bytes([len[0], len[1]]));
        let name_at = match form {
            Dirents::New => 19,
            Dirents::Old => 18,
        };
        let Some(name) = buf.get(from..from + len).and_then(|e| e.get(name_at..)) else {
            break;
        };
        let name = name.split(|&b| b == 0).next().unwrap_or_default();
        if !hidden(name) {
            buf.copy_within(from..from + len, to);
            to += len;
        }
        from += len;
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths() {
        let f = |p: &[u8]| classify(p, 42).map(|p| (p.file, p.tid));
        assert_eq!(f(b"/proc/self/maps"), Some((ProcFile::Maps, None)));
        assert_eq!(f(b"//proc/./42//maps"), Some((ProcFile::Maps, None)));
        assert_eq!(f(b"/proc/43/maps"), None);
        assert_eq!(f(b"/proc/self"), None);
        assert_eq!(f(b"/proc/self/maps/x"), None);
        assert_eq!(
            f(b"/proc/thread-self/comm"),
            Some((ProcFile::Comm, Some(0)))
        );
        assert_eq!(f(b"/proc/self/task"), Some((ProcFile::TaskDir, None)));
        assert_eq!(
            f(b"/proc/self/task/43/stat"),
            Some((ProcFile::Stat, Some(43)))
        );
        assert_eq!(f(b"/proc/self/task/x/stat"), None);
        assert_eq!(f(b"/proc/self/fd"), Some((ProcFile::FdDir, None)));
        assert_eq!(f(b"/proc/self/fd/"), Some((ProcFile::FdDir, None)));
        assert_eq!(f(b"/proc/self/fd/12"), Some((ProcFile::Fd(12), None)));
        assert_eq!(f(b"/proc/self/fd/+1"), None);
        assert_eq!(
            f(b"/proc/self/map_files/0-1"),
            Some((ProcFile::MapFiles, None))
        );
        assert_eq!(f(b"/proc/self/limits"), None);
        assert_eq!(f(b"proc/self/maps"), None);
        assert_eq!(f(b""), None);
    }

    #[test]
    fn stat_keeps_its_shape() {
        let kernel = std::fs::read("/proc/self/stat").unwrap();
        let view = ProcessView {
            comm: b"a) b (c".to_vec(),
            threads: 3,
            ..ProcessView::default()
        };
        let ours = stat(&kernel, &view);
        let fields = |s: &[u8]| {
            String::from_utf8_lossy(s)
                .rsplit(')')
                .next()
                .unwrap()
                .split(' ')
                .count()
        };
        assert_eq!(fields(&kernel), fields(&ours));
        let text = String::from_utf8(ours).unwrap();
        assert!(text.contains(" (a) b (c) "));
        assert_eq!(
            text.rsplit(')').next().unwrap().split_whitespace().nth(17),
            Some("3")
        );
        assert_eq!(stat(b"x", &view), b"x");
    }

    #[test]
    fn status_keeps_its_lines() {
        let kernel = std::fs::read("/proc/self/status").unwrap();
        let view = ProcessView {
            comm: b"prog".to_vec(),
            threads: 2,
            sig_blocked: 1,
            ..ProcessView::default()
        };
        let text = String::from_utf8(status(&kernel, &view)).unwrap();
        assert_eq!(
            text.lines().count(),
            kernel.split(|&b| b == b'\n').count() - 1
        );
        assert!(text.starts_with("Name:\tprog\n") && text.contains("\nThreads:\t2\n"));
        assert!(text.contains("\nSigBlk:\t0000000000000001\n"));
    }

    #[test]
    fn titles() {
        let memory = |text: &'static [u8]| {
            move |at: u64, out: &mut [u8]| {
                let n = out.len();
                out.copy_from_slice(&text[at as usize..at as usize + n]);
                n
            }
        };
        let area = ArgArea {
            arg_start: 0,
            arg_end: 4,
            env_start: 4,
            env_end: 9,
        };
        assert_eq!(cmdline(&area, memory(b"a\0b\0c=d\0x\0")), b"a\0b\0");
        assert_eq!(cmdline(&area, memory(b"title on\0")), b"title on");
        assert_eq!(environ(&area, memory(b"a\0b\0c=d\0x")), b"c=d\0x");
    }

    proptest! {
        #[test]
        fn dirents(names in proptest::collection::vec("[0-9]{1,12}", 0..20), junk in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut buf = Vec::new();
            let mut want: Vec<u8> = Vec::new();
            for n in &names {
                let len = (19 + n.len() + 1).next_multiple_of(8);
                let mut e = vec![0; 16];
                e.extend((len as u16).to_le_bytes());
                e.push(8);
                e.extend(n.as_bytes());
                e.resize(len, 0);
                if n.len() % 2 == 0 { want.extend(&e); }
                buf.extend(e);
            }
            let left = filter_dirents(&mut buf, Dirents::New, |n| n.len() % 2 == 1);
            prop_assert_eq!(&buf[..left], &want[..]);
            // What no kernel returns does no harm.
            let mut junk = junk;
            let n = filter_dirents(&mut junk, Dirents::Old, |_| false);
            prop_assert!(n <= junk.len());
        }
    }
}
