//! Memory in which each operand ends at a page that cannot be accessed, and the comparison.

use crewind_syscalls::{
    Confidence, Mem, Place, Plan, Range, after, before, before_into, row, rows,
};

const PAGE: usize = 4096;
const PATTERNS: [u8; 2] = [0xaa, 0x55];

/// The test's own memory, read through the kernel so that bad addresses do no harm.
pub struct Own;

impl Mem for Own {
    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        let local = libc::iovec {
            iov_base: buf.as_mut_ptr().cast(),
            iov_len: buf.len(),
        };
        let remote = libc::iovec {
            iov_base: addr as *mut _,
            iov_len: buf.len(),
        };
        // SAFETY: `local` describes `buf`; the kernel checks `remote`.
        let n = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
        n == buf.len() as isize
    }
}

/// A raw system call.
pub fn syscall(nr: u32, args: [u64; 6]) -> i64 {
    // SAFETY: the tests pass operands that live in their arena.
    let ret = unsafe {
        libc::syscall(
            i64::from(nr),
            args[0],
            args[1],
            args[2],
            args[3],
            args[4],
            args[5],
        )
    };
    if ret == -1 {
        -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    } else {
        ret
    }
}

struct Chunk {
    /// First page of the mapping.
    map: usize,
    map_len: usize,
    addr: usize,
    len: usize,
}

/// The operands of one call.
pub struct Arena {
    chunks: Vec<Chunk>,
    pattern: u8,
}

impl Arena {
    pub fn new(pattern: u8) -> Self {
        Arena {
            chunks: Vec::new(),
            pattern,
        }
    }

    /// Memory for an operand, filled with the pattern.
    pub fn alloc(&mut self, len: usize) -> u64 {
        let data = len.div_ceil(PAGE).max(1) * PAGE;
        let map_len = data + PAGE;
        // SAFETY: a new private mapping; the last page becomes the guard.
        let map = unsafe {
            let map = libc::mmap(
                std::ptr::null_mut(),
                map_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(map, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(map.byte_add(data), PAGE, libc::PROT_NONE), 0);
            map
        };
        let addr = map as usize + data - len;
        // SAFETY: the data part is writable.
        unsafe { std::ptr::write_bytes(map.cast::<u8>(), self.pattern, data) };
        self.chunks.push(Chunk {
            map: map as usize,
            map_len,
            addr,
            len,
        });
        addr as u64
    }

    /// An operand with this content.
    pub fn bytes(&mut self, bytes: &[u8]) -> u64 {
        let addr = self.alloc(bytes.len());
        self.set(addr, bytes);
        addr
    }

    pub fn set(&mut self, addr: u64, bytes: &[u8]) {
        // SAFETY: the tests write inside what they allocated.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), addr as *mut u8, bytes.len()) };
    }

    pub fn u32(&mut self, value: u32) -> u64 {
        self.bytes(&value.to_le_bytes())
    }

    pub fn words(&mut self, words: &[u64]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.bytes(&bytes)
    }

    pub fn string(&mut self, text: &str) -> u64 {
        self.bytes(format!("{text}\0").as_bytes())
    }

    /// Content of all pages that operands lie in, with their addresses.
    fn snapshot(&self) -> Vec<(u64, Vec<u8>)> {
        self.chunks
            .iter()
            .map(|chunk| {
                let len = chunk.map_len - PAGE;
                // SAFETY: mapped by `alloc`, and no one writes meanwhile.
                let bytes = unsafe { std::slice::from_raw_parts(chunk.map as *const u8, len) };
                (chunk.map as u64, bytes.to_vec())
            })
            .collect()
    }

    fn contains(&self, addr: u64, len: u64) -> bool {
        self.chunks.iter().any(|chunk| {
            let start = chunk.addr as u64;
            addr >= start && addr + len <= start + chunk.len as u64
        })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for chunk in &self.chunks {
            // SAFETY: mapped by `alloc`, not used any more.
            unsafe { libc::munmap(chunk.map as *mut _, chunk.map_len) };
        }
    }
}

/// Whether every byte reported must have been written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tight {
    Yes,
    /// Padding, or a range that the kernel may leave alone.
    No,
}

fn number(name: &str) -> u32 {
    rows()
        .find(|row| row.name == name)
        .unwrap_or_else(|| panic!("no call {name}"))
        .nr
}

/// Makes a call with each pattern and compares. `setup` prepares operands and arguments. Returns the last
/// result.
pub fn check(name: &str, tight: Tight, mut setup: impl FnMut(&mut Arena) -> [u64; 6]) -> i64 {
    let row = row(number(name)).expect("has a row");
    let mut last = 0;
    // Reported bytes that neither pattern saw change, by place in the report.
    let mut unchanged: Option<Vec<bool>> = None;
    for pattern in PATTERNS {
        let mut arena = Arena::new(pattern);
        let args = setup(&mut arena);
        let plan = before(row, &args, &Own);
        assert_eq!(plan.confidence, Confidence::Known, "{name}");
        check_operands(name, &arena, &plan);
        let mut only_written = Plan::new();
        before_into(row, &args, &Own, &mut only_written);

        let old = arena.snapshot();
        let ret = syscall(row.nr, args);
        let new = arena.snapshot();

        let mut ranges = Vec::new();
        after(&plan, ret, &Own, &mut ranges);
        let mut same = Vec::new();
        after(&only_written, ret, &Own, &mut same);
        assert_eq!(
            ranges, same,
            "{name}: a plan without inputs reports the same"
        );
        for pair in ranges.windows(2) {
            assert!(
                pair[0].addr + pair[0].len <= pair[1].addr,
                "{name}: {ranges:?} in order"
            );
        }
        check_covered(name, pattern, ret, &old, &new, &ranges);
        let marks = marks(&old, &new, &ranges);
        unchanged = Some(match unchanged {
            Some(earlier) if earlier.len() == marks.len() => {
                earlier.iter().zip(&marks).map(|(a, b)| *a && *b).collect()
            }
            _ => marks,
        });
        last = ret;
    }
    if tight == Tight::Yes {
        let unchanged = unchanged.unwrap_or_default();
        let slack = unchanged.iter().filter(|b| **b).count();
        assert_eq!(
            slack,
            0,
            "{name} = {last}: of {} bytes reported {slack} were not written",
            unchanged.len()
        );
    }
    last
}

/// Like [`check`], and the call must succeed.
pub fn works(name: &str, tight: Tight, setup: impl FnMut(&mut Arena) -> [u64; 6]) -> i64 {
    let ret = check(name, tight, setup);
    assert!(!(-4095..0).contains(&ret), "{name} = {ret}");
    ret
}

/// Like [`check`], and the call must fail with this errno.
pub fn fails(name: &str, errno: i32, setup: impl FnMut(&mut Arena) -> [u64; 6]) {
    assert_eq!(check(name, Tight::No, setup), -i64::from(errno), "{name}");
}

/// Operands lie inside what the test allocated: the table claims no memory that the call does not have.
fn check_operands(name: &str, arena: &Arena, plan: &Plan) {
    for op in &plan.operands {
        assert!(
            arena.contains(op.addr, op.cap),
            "{name}: {op:x?} is outside its memory"
        );
        if let Place::Mem(at) = op.place {
            let inside = plan
                .operands
                .iter()
                .any(|o| at >= o.addr && at + 8 <= o.addr + o.cap);
            assert!(inside, "{name}: pointer of {op:x?} is in no operand");
            let mut pointer = [0; 8];
            assert!(Own.read(at, &mut pointer));
            assert_eq!(u64::from_le_bytes(pointer), op.addr, "{name}: {op:x?}");
        }
    }
}

fn reported(ranges: &[Range], addr: u64) -> bool {
    ranges
        .iter()
        .any(|range| addr >= range.addr && addr < range.addr + range.len)
}

fn check_covered(
    name: &str,
    pattern: u8,
    ret: i64,
    old: &[(u64, Vec<u8>)],
    new: &[(u64, Vec<u8>)],
    ranges: &[Range],
) {
    for ((base, old), (_, new)) in old.iter().zip(new) {
        for (addr, (a, b)) in (*base..).zip(old.iter().zip(new)) {
            assert!(
                a == b || reported(ranges, addr),
                "{name} = {ret}: the kernel wrote {addr:#x} (pattern {pattern:#x}), reported are {ranges:x?}"
            );
        }
    }
}

/// For each byte reported, whether it is the same as before the call.
fn marks(old: &[(u64, Vec<u8>)], new: &[(u64, Vec<u8>)], ranges: &[Range]) -> Vec<bool> {
    let mut marks = Vec::new();
    for ((base, old), (_, new)) in old.iter().zip(new) {
        for (addr, (a, b)) in (*base..).zip(old.iter().zip(new)) {
            if reported(ranges, addr) {
                marks.push(a == b);
            }
        }
    }
    marks
}

/// Closes a fd that a call returned.
pub fn close(fd: i64) {
    // SAFETY: the test owns it.
    unsafe { libc::close(fd as i32) };
}

/// A directory that is removed at the end.
pub struct Dir(pub std::path::PathBuf);

impl Dir {
    pub fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("crewind-syscalls-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("temporary directory");
        Dir(path)
    }

    /// A file in it, with some content.
    pub fn file(&self) -> std::fs::File {
        let path = self.0.join("file");
        std::fs::write(&path, b"some content of a file").expect("temporary file");
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .expect("temporary file")
    }

    pub fn path(&self) -> &str {
        self.0.to_str().expect("plain path")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
