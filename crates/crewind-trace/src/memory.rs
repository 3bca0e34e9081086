//! Memory of a process at the moment at which its recording began: `memory.bin` of a trace that begins in the middle.
//!
//! Several processes write it at once, each a *part* of the pages, while the recorded program goes on. A part is a
//! sequence of chunks, each appended in one piece; the last one is empty and tells how many there were. So what is
//! missing is noticed, whoever was killed.
//!
//! ```text
//! header  "crewind memory\n\0", version, number of parts
//! chunk   part, pages, stored bytes, 0, hash; addresses of the pages; the pages, compressed (zstd)
//! ```
//!
//! A writer allocates nothing once it is made: it is used in a copy of a process whose other threads may have held
//! the allocator's lock when it was copied.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Result, TraceError};
use crate::sys;

/// Its name in a trace's directory.
pub const MEMORY: &str = "memory.bin";

const MAGIC: &[u8; 16] = b"crewind memory\n\0";
const VERSION: u32 = 1;
const HEADER: usize = 24;
const CHUNK_HEADER: usize = 24;
const PAGE: usize = 4096;
/// Pages of a chunk. All chunks of a part but the last two have so many.
pub const CHUNK_PAGES: usize = 64;
/// Little time rather than little space: the program waits for the copy at the recording's end.
const LEVEL: i32 = 1;

/// Makes the file of a trace, for so many parts.
///
/// # Errors
/// It cannot be made or written.
pub fn create_memory(trace: &Path, parts: u32) -> Result<OwnedFd> {
    let path = trace.join(MEMORY);
    (|| {
        let dir = sys::open_dir(trace)?;
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_APPEND;
        let file = sys::open_at(&dir, MEMORY, flags, 0o600)?;
        let mut header = [0; HEADER];
        header[..16].copy_from_slice(MAGIC);
        header[16..20].copy_from_slice(&VERSION.to_le_bytes());
        header[20..].copy_from_slice(&parts.to_le_bytes());
        write_all(file.as_raw_fd(), &header)?;
        Ok(OwnedFd::from(file))
    })()
    .map_err(|e| TraceError::io(&path, "create", e))
}

fn write_all(fd: i32, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length are those of a live slice.
    let n = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    match usize::try_from(n) {
        Ok(n) if n == bytes.len() => Ok(()),
        // The end of a file that may have others behind it cannot be mended.
        Ok(_) => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Writes one part.
pub struct MemoryWriter {
    fd: i32,
    part: u32,
    chunks: u64,
    addrs: Vec<u64>,
    pages: Vec<u8>,
    out: Vec<u8>,
    context: zstd::zstd_safe::CCtx<'static>,
}

impl MemoryWriter {
    /// A writer of part `part` into a file that stays open meanwhile.
    pub fn new(fd: i32, part: u32) -> Self {
        let mut writer = MemoryWriter {
            fd,
            part,
            chunks: 0,
            addrs: Vec::with_capacity(CHUNK_PAGES),
            pages: vec![0; CHUNK_PAGES * PAGE],
            out: vec![
                0;
                CHUNK_HEADER
                    + 8 * CHUNK_PAGES
                    + zstd::zstd_safe::compress_bound(CHUNK_PAGES * PAGE)
            ],
            context: zstd::zstd_safe::CCtx::create(),
        };
        // Takes what memory it will ever need.
        let _ = (writer.context).compress(&mut writer.out[..], &writer.pages, LEVEL);
        writer
    }

    /// Adds the page at `addr`, which `read` fills in; a page that it cannot read, or that has only zeros, is left out.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn page(&mut self, addr: u64, read: impl FnOnce(&mut [u8]) -> bool) -> io::Result<()> {
        let at = self.addrs.len() * PAGE;
        let page = &mut self.pages[at..at + PAGE];
        if !read(page) || page.iter().all(|b| *b == 0) {
            return Ok(());
        }
        self.addrs.push(addr);
        if self.addrs.len() == CHUNK_PAGES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let n = self.addrs.len();
        let pages = &self.pages[..n * PAGE];
        let (head, rest) = self.out.split_at_mut(CHUNK_HEADER + 8 * n);
        let stored = self
            .context
            .compress(rest, pages, LEVEL)
            .map_err(|_| io::Error::from_raw_os_error(libc::EIO))?;
        head[..4].copy_from_slice(&self.part.to_le_bytes());
        head[4..8].copy_from_slice(&(n as u32).to_le_bytes());
        head[8..12].copy_from_slice(&(stored as u32).to_le_bytes());
        head[12..16].fill(0);
        for (to, addr) in head[CHUNK_HEADER..].chunks_exact_mut(8).zip(&self.addrs) {
            to.copy_from_slice(&addr.to_le_bytes());
        }
        let hash = hash_of(&head[..16], &head[CHUNK_HEADER..], pages);
        head[16..24].copy_from_slice(&hash.to_le_bytes());
        let len = CHUNK_HEADER + 8 * n + stored;
        write_all(self.fd, &self.out[..len])?;
        self.addrs.clear();
        self.chunks += 1;
        Ok(())
    }

    /// Ends the part.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(&mut self) -> io::Result<()> {
        if !self.addrs.is_empty() {
            self.flush()?;
        }
        let mut end = [0; CHUNK_HEADER];
        end[..4].copy_from_slice(&self.part.to_le_bytes());
        let hash = hash_of(&end[..16], &self.chunks.to_le_bytes(), &[]);
        end[16..24].copy_from_slice(&hash.to_le_bytes());
        write_all(self.fd, &end)
    }
}

fn hash_of(head: &[u8], addrs: &[u8], pages: &[u8]) -> u64 {
    (xxh3_64(pages).rotate_left(1) ^ xxh3_64(addrs)).rotate_left(1) ^ xxh3_64(head)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// Reads a trace's memory: `page` gets each page that has something in it, with its address.
///
/// # Errors
/// The file cannot be read, is damaged, or has not all its parts; or `page` fails.
pub fn read_memory(trace: &Path, mut page: impl FnMut(u64, &[u8]) -> io::Result<()>) -> Result<()> {
    let path = trace.join(MEMORY);
    let io = |e| TraceError::io(&path, "read", e);
    let mut file = io::BufReader::with_capacity(1 << 20, File::open(&path).map_err(io)?);
    let mut offset = 0;
    let mut header = [0; HEADER];
    fill(&mut file, &mut header, &mut offset, &path)?;
    if &header[..16] != MAGIC || word(&header, 16) != VERSION {
        return Err(TraceError::corrupt(
            &path,
            0,
            "it does not begin as it should",
        ));
    }
    let parts = word(&header, 20);
    let mut ended = 0;
    let mut chunks = std::collections::BTreeMap::<u32, u64>::new();
    let mut pages = vec![0; CHUNK_PAGES * PAGE];
    while ended < parts {
        let at = offset;
        let bad = |what: &str| TraceError::corrupt(&path, at, what);
        let mut head = [0; CHUNK_HEADER];
        fill(&mut file, &mut head, &mut offset, &path)?;
        let (part, n, stored) = (word(&head, 0), word(&head, 4) as usize, word(&head, 8));
        let hash = long(&head, 16);
        let count = chunks.entry(part).or_default();
        if n == 0 {
            if hash_of(&head[..16], &count.to_le_bytes(), &[]) != hash {
                return Err(bad("a part of the memory is missing"));
            }
            ended += 1;
            continue;
        }
        let most = zstd::zstd_safe::compress_bound(CHUNK_PAGES * PAGE);
        if n > CHUNK_PAGES || stored as usize > most {
            return Err(bad("a piece of the memory is larger than possible"));
        }
        let mut addrs = vec![0; 8 * n];
        fill(&mut file, &mut addrs, &mut offset, &path)?;
        let mut compressed = vec![0; stored as usize];
        fill(&mut file, &mut compressed, &mut offset, &path)?;
        let got = zstd::bulk::decompress_to_buffer(&compressed, &mut pages)
            .map_err(|_| bad("a piece of the memory cannot be decompressed"))?;
        if got != n * PAGE || hash_of(&head[..16], &addrs, &pages[..got]) != hash {
            return Err(bad("a piece of the memory has changed"));
        }
        *count += 1;
        for (k, content) in pages[..got].chunks_exact(PAGE).enumerate() {
            page(long(&addrs, 8 * k), content)
                .map_err(|e| TraceError::io(&path, "put into place what is in", e))?;
        }
    }
    match file.read(&mut [0]).map_err(io)? {
        0 => Ok(()),
        _ => Err(TraceError::corrupt(
            &path,
            offset,
            "there is more than its parts",
        )),
    }
}

fn fill(from: &mut impl Read, to: &mut [u8], offset: &mut u64, path: &Path) -> Result<()> {
    match from.read_exact(to) {
        Ok(()) => {
            *offset += to.len() as u64;
            Ok(())
        }
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(TraceError::truncated(
            path,
            *offset,
            "the memory that the recording began with",
        )),
        Err(e) => Err(TraceError::io(path, "read", e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(dir: &Path, pages: &[(u64, u8)]) {
        let fd = create_memory(dir, 2).unwrap();
        let mut parts = [
            MemoryWriter::new(fd.as_raw_fd(), 0),
            MemoryWriter::new(fd.as_raw_fd(), 1),
        ];
        for (k, &(addr, byte)) in pages.iter().enumerate() {
            parts[k % 2]
                .page(addr, |p| {
                    p.fill(byte);
                    true
                })
                .unwrap();
        }
        for p in &mut parts {
            p.finish().unwrap();
        }
    }

    #[test]
    fn pages_come_back_and_zeros_take_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let pages: Vec<(u64, u8)> = (0..500).map(|k| (k * 8192, (k % 7) as u8)).collect();
        written(dir.path(), &pages);
        let mut found = Vec::new();
        read_memory(dir.path(), |addr, page| {
            assert!(page.iter().all(|b| *b == page[0]));
            found.push((addr, page[0]));
            Ok(())
        })
        .unwrap();
        found.sort_unstable();
        let wanted: Vec<_> = pages.into_iter().filter(|p| p.1 != 0).collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let pages: Vec<(u64, u8)> = (0..200).map(|k| (k * 4096, 1 + (k % 7) as u8)).collect();
        written(dir.path(), &pages);
        let path = dir.path().join(MEMORY);
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 10, HEADER, HEADER + 5, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(
                read_memory(dir.path(), |_, _| Ok(())).is_err(),
                "cut at {cut}"
            );
        }
        for at in (0..whole.len()).step_by(37) {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            std::fs::write(&path, &changed).unwrap();
            assert!(
                read_memory(dir.path(), |_, _| Ok(())).is_err(),
                "changed at {at}"
            );
        }
    }
}
