//! The store of contents of files that are mapped, or of which much is read: by content, shared by the traces of one trace root.
//!
//! ```text
//! <trace root>/.store/<hex>          a content, named by its BLAKE3
//! <trace root>/.store/index/<key>    the hash of the file that had this identity and these times
//! <trace>/files/<hex>                hard link to the content (or a copy, where links are impossible)
//! ```
//!
//! So a library is read once, not once per recording. The traces are complete without the store: it is
//! a cache, and can be deleted at any time.

use std::collections::{HashMap, HashSet};
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Result, TraceError};
use crate::event::FileRef;
use crate::limits::LiftedLimits;
use crate::sys::{self, Unlink};

/// Subdirectory of a trace for the files' contents.
pub(crate) const FILES: &str = "files";
/// Subdirectory of a trace root for the shared store.
pub(crate) const STORE: &str = ".store";
const INDEX: &str = "index";

/// A file that changed so recently can change again without its times showing it.
const SETTLED: Duration = Duration::from_secs(1);

/// Which checks a content gets when it is opened for replay. Its size is always checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Nothing more: for contents on a disk that is trusted.
    Size,
    /// Its hash as well, once per content.
    Hash,
}

/// What [`FileStore::gc`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Contents.
    pub files: u64,
    /// Their size, bytes.
    pub bytes: u64,
}

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Key {
    fn of(file: &File) -> io::Result<Self> {
        let m = file.metadata()?;
        if !m.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is not a regular file",
            ));
        }
        Ok(Key {
            dev: m.dev(),
            ino: m.ino(),
            size: m.size(),
            mtime: (m.mtime(), m.mtime_nsec()),
            ctime: (m.ctime(), m.ctime_nsec()),
        })
    }

    fn name(&self) -> String {
        let Key {
            dev,
            ino,
            size,
            mtime,
            ctime,
        } = self;
        format!(
            "{dev:x}-{ino:x}-{size:x}-{:x}.{:x}-{:x}.{:x}",
            mtime.0, mtime.1, ctime.0, ctime.1
        )
    }

    /// Whether a later change must show in the times.
    fn settled(&self) -> bool {
        let Ok(now) = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) else {
            return false;
        };
        let newest = self.mtime.0.max(self.ctime.0);
        u64::try_from(newest)
            .is_ok_and(|newest| newest.saturating_add(1 + SETTLED.as_secs()) < now.as_secs())
    }
}

/// Contents of files, for one trace.
pub struct FileStore {
    trace: PathBuf,
    /// `None` for replay.
    store: Option<PathBuf>,
    verify: Verify,
    /// Files known to be in this trace.
    linked: Mutex<HashMap<Key, FileRef>>,
    /// Contents whose hash was checked.
    verified: Mutex<HashSet<[u8; 32]>>,
}

impl FileStore {
    /// For recording into `trace_dir`, with the store in `trace_root`.
    pub fn open(trace_root: &Path, trace_dir: &Path) -> Result<Self> {
        let store = sys::absolute(&trace_root.join(STORE));
        if sys::open_subdir(trace_dir, FILES).is_err() {
            make_dir(&trace_dir.join(FILES))?;
        }
        let made = make_dir(&store).and_then(|()| make_dir(&store.join(INDEX)));
        // A process that gave up its user, or changed its root, does without.
        let reachable = match made {
            Ok(()) => true,
            Err(e)
                if e.io_kind() != Some(io::ErrorKind::PermissionDenied)
                    && e.io_kind() != Some(io::ErrorKind::NotFound) =>
            {
                return Err(e);
            }
            Err(_) => false,
        };
        Ok(FileStore {
            store: reachable.then_some(store),
            ..Self::for_replay(trace_dir, Verify::Hash)
        })
    }

    /// For replaying `trace_dir`: nothing can be put.
    pub fn for_replay(trace_dir: &Path, verify: Verify) -> Self {
        FileStore {
            trace: sys::absolute(trace_dir),
            store: None,
            verify,
            linked: Mutex::default(),
            verified: Mutex::default(),
        }
    }

    /// Sees to it that the file's content is in the trace. Quick for a file that is known by its
    /// identity and times.
    ///
    /// When the file is being written to meanwhile, the content is one that was read; it is for the
    /// caller to keep that from happening, or to live with it.
    pub fn put(&self, file: &File) -> Result<FileRef> {
        self.put_with(file, Times::Trusted)
    }

    /// As [`FileStore::put`], for a file whose content can change without its times showing it: one
    /// that is mapped shared and writable by someone, or is in memory only (`memfd_create`).
    pub fn put_fresh(&self, file: &File) -> Result<FileRef> {
        self.put_with(file, Times::Ignored)
    }

    /// The file's content, if this trace or the store has it already: puts it into the trace then. Never reads the file.
    pub fn find(&self, file: &File) -> Result<Option<FileRef>> {
        Key::of(file)
            .and_then(|key| self.known(&key))
            .map_err(|e| TraceError::io(&self.trace.join(FILES), "look for a file in", e))
    }

    fn put_with(&self, file: &File, times: Times) -> Result<FileRef> {
        let io = |e| TraceError::io(&self.trace.join(FILES), "store a mapped file in", e);
        let _lifted = LiftedLimits::new();
        let key = Key::of(file).map_err(io)?;
        if times == Times::Trusted
            && let Some(known) = self.known(&key).map_err(io)?
        {
            return Ok(known);
        }
        let file_ref = self.copy(file).map_err(io)?;
        // The times count only if nothing changed from before the copy until after it, and nothing can
        // have changed since in the same instant of the file system's clock.
        if times == Times::Trusted && key.settled() && Key::of(file).map_err(io)? == key {
            if let Some(store) = &self.store {
                // Only the next recording's speed depends on it.
                let _ = write_index(store, &key, &file_ref);
            }
            self.remember(key, &file_ref);
        }
        Ok(file_ref)
    }

    fn remember(&self, key: Key, file: &FileRef) {
        lock(&self.linked).insert(key, file.clone());
    }

    /// A file that this trace or the store has already.
    fn known(&self, key: &Key) -> io::Result<Option<FileRef>> {
        if let Some(file) = lock(&self.linked).get(key) {
            return Ok(Some(file.clone()));
        }
        let Some(store) = &self.store else {
            return Ok(None);
        };
        let Some(file) = read_index(store, key) else {
            return Ok(None);
        };
        let name = hex(&file.hash);
        let files = sys::open_subdir(&self.trace, FILES)?;
        let Ok(store) = sys::open_dir(store) else {
            return Ok(None);
        };
        match sys::link_at(&store, &name, &files, &name) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            // Not there any more, or links are impossible: copy.
            Err(_) => return Ok(None),
        }
        let there = sys::stat_at(&files, &name)?;
        if u64::try_from(there.st_size) != Ok(file.len) {
            return Ok(None);
        }
        self.remember(*key, &file);
        Ok(Some(file))
    }

    /// Copies the file's content into the trace, and links it to the store.
    fn copy(&self, from: &File) -> io::Result<FileRef> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let files = sys::open_subdir(&self.trace, FILES)?;
        let temporary = format!(
            "new-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;
        let mut to = sys::open_at(&files, &temporary, flags, 0o600)?;
        let copied = copy_and_hash(from, &mut to).and_then(|file_ref| {
            // Nobody may change a content: it is shared.
            to.set_permissions(Permissions::from_mode(0o400))?;
            Ok(file_ref)
        });
        let file_ref = match copied {
            Ok(file_ref) => file_ref,
            Err(e) => {
                let _ = sys::unlink_at(&files, &temporary, Unlink::File);
                return Err(e);
            }
        };
        let name = hex(&file_ref.hash);
        // Kept already, for a process that could not look it up: shared with the store as it is.
        let there = sys::stat_at(&files, &name)
            .is_ok_and(|st| u64::try_from(st.st_size) == Ok(file_ref.len));
        if there {
            sys::unlink_at(&files, &temporary, Unlink::File)?;
            return Ok(file_ref);
        }
        // Into the trace first, so that the content in the store never has less than two links while
        // it is needed.
        sys::rename_at(&files, &temporary, &name)?;
        if let Some(store) = &self.store
            && let Ok(store) = sys::open_dir(store)
            && let Err(e) = sys::link_at(&files, &name, &store, &name)
            && e.kind() == io::ErrorKind::AlreadyExists
        {
            // Another trace has it: share, so that it takes its space once. It stays a copy when the other cannot
            // be linked to (too many links).
            share(&store, &files, &name, &temporary, file_ref.len);
        }
        Ok(file_ref)
    }

    /// Opens a content that was put, to compare with it: unlike for a replay, it may be damaged.
    pub fn open_own(&self, file: &FileRef) -> Result<File> {
        self.open_checked(file, Verify::Size)
    }

    /// Opens a content. What is not there, or is not what was recorded, is an error.
    pub fn open_ref(&self, file: &FileRef) -> Result<File> {
        self.open_checked(file, self.verify)
    }

    fn open_checked(&self, file: &FileRef, verify: Verify) -> Result<File> {
        let name = hex(&file.hash);
        let path = self.trace.join(FILES).join(&name);
        let io = |e| TraceError::io(&path, "open", e);
        let opened = sys::open_subdir(&self.trace, FILES)
            .and_then(|files| sys::open_at(&files, &name, libc::O_RDONLY | libc::O_NONBLOCK, 0))
            .map_err(io)?;
        let metadata = opened.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(TraceError::corrupt(&path, 0, "it is not a regular file"));
        }
        if metadata.len() < file.len {
            let what = format!("{} bytes of content in all", file.len);
            return Err(TraceError::truncated(&path, metadata.len(), what));
        }
        if metadata.len() > file.len {
            return Err(TraceError::corrupt(
                &path,
                file.len,
                "there is more than was recorded",
            ));
        }
        if verify == Verify::Hash && !lock(&self.verified).contains(&file.hash) {
            let mut hasher = blake3::Hasher::new();
            hash_file(&opened, &mut hasher).map_err(io)?;
            if hasher.finalize().as_bytes() != &file.hash {
                return Err(TraceError::corrupt(
                    &path,
                    0,
                    "its content is not what was recorded",
                ));
            }
            lock(&self.verified).insert(file.hash);
        }
        Ok(opened)
    }

    /// Removes contents from the store of `trace_root` that no trace links to, and index entries that
    /// lead nowhere. Safe while recordings run: at worst they copy once more.
    pub fn gc(trace_root: &Path) -> Result<Removed> {
        let path = trace_root.join(STORE);
        let io = |e| TraceError::io(&path, "clean up", e);
        let mut removed = Removed::default();
        let names = match sys::names(trace_root, STORE) {
            Ok(names) => names,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(removed),
            Err(e) => return Err(io(e)),
        };
        let store = sys::open_subdir(trace_root, STORE).map_err(io)?;
        let mut kept = HashSet::new();
        for name in names {
            let Some(hash) = unhex(&name) else { continue };
            let Ok(st) = sys::stat_at(&store, &name) else {
                continue;
            };
            if st.st_nlink > 1 {
                kept.insert(hash);
            } else if sys::unlink_at(&store, &name, Unlink::File).is_ok() {
                removed.files += 1;
                removed.bytes += u64::try_from(st.st_size).unwrap_or(0);
            }
        }
        let index = match sys::open_subdir(&path, INDEX) {
            Ok(index) => index,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(removed),
            Err(e) => return Err(io(e)),
        };
        for name in sys::names(&path, INDEX).map_err(io)? {
            let used = read_index_entry(&index, &name).is_some_and(|hash| kept.contains(&hash));
            if !used {
                let _ = sys::unlink_at(&index, &name, Unlink::File);
            }
        }
        Ok(removed)
    }
}

/// Whether a file's identity and times tell its content.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Times {
    Trusted,
    Ignored,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What these mutexes protect is valid after every statement.
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

pub(crate) fn make_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(TraceError::io(path, "create", e)),
    }
}

/// Puts the store's content in the place of the trace's own copy.
fn share(store: &File, files: &File, name: &str, temporary: &str, len: u64) {
    let same_size = sys::stat_at(store, name).is_ok_and(|st| u64::try_from(st.st_size) == Ok(len));
    if same_size
        && sys::link_at(store, name, files, temporary).is_ok()
        && sys::rename_at(files, temporary, name).is_err()
    {
        let _ = sys::unlink_at(files, temporary, Unlink::File);
    }
    // Renaming a link over another link of the same file does nothing, and leaves the first.
    let _ = sys::unlink_at(files, temporary, Unlink::File);
}

/// Copies a content and hashes what was copied, which matters when the file changes meanwhile.
fn copy_and_hash(from: &File, to: &mut File) -> io::Result<FileRef> {
    let mut hasher = blake3::Hasher::new();
    if sys::reflink(from, to).is_ok() {
        let len = hash_file(to, &mut hasher)?;
        return Ok(FileRef {
            hash: *hasher.finalize().as_bytes(),
            len,
        });
    }
    let mut buf = vec![0; 256 << 10];
    let mut len = 0;
    loop {
        let n = read_some(from, &mut buf, len)?;
        if n == 0 {
            break;
        }
        let chunk = buf.get(..n).unwrap_or_default();
        hasher.update(chunk);
        to.write_all(chunk)?;
        len += n as u64;
    }
    Ok(FileRef {
        hash: *hasher.finalize().as_bytes(),
        len,
    })
}

fn hash_file(file: &File, hasher: &mut blake3::Hasher) -> io::Result<u64> {
    let mut buf = vec![0; 256 << 10];
    let mut len = 0;
    loop {
        let n = read_some(file, &mut buf, len)?;
        if n == 0 {
            return Ok(len);
        }
        hasher.update(buf.get(..n).unwrap_or_default());
        len += n as u64;
    }
}

/// Reads without moving the file's position, which may be the guest's.
fn read_some(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match file.read_at(buf, offset) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

// ---------------------------------------------------------------------------------------------------
// Index entries: hash (32 bytes), length (8), check (8)

const ENTRY_LEN: usize = 48;

fn write_index(store: &Path, key: &Key, file: &FileRef) -> io::Result<()> {
    let index = sys::open_subdir(store, INDEX)?;
    let mut entry = Vec::with_capacity(ENTRY_LEN);
    entry.extend_from_slice(&file.hash);
    entry.extend_from_slice(&file.len.to_le_bytes());
    let check = xxh3_64(&entry);
    entry.extend_from_slice(&check.to_le_bytes());
    // No temporary name: an entry that is not whole does not pass its check.
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
    sys::open_at(&index, &key.name(), flags, 0o600)?.write_all(&entry)
}

fn read_index(store: &Path, key: &Key) -> Option<FileRef> {
    let index = sys::open_subdir(store, INDEX).ok()?;
    let hash = read_index_entry(&index, &key.name())?;
    Some(FileRef {
        hash,
        len: key.size,
    })
}

fn read_index_entry(index: &File, name: &str) -> Option<[u8; 32]> {
    let mut file = sys::open_at(index, name, libc::O_RDONLY, 0).ok()?;
    let mut entry = [0; ENTRY_LEN];
    file.read_exact(&mut entry).ok()?;
    let (content, check) = entry.split_last_chunk::<8>()?;
    if xxh3_64(content) != u64::from_le_bytes(*check) {
        return None;
    }
    content.first_chunk::<32>().copied()
}

// ---------------------------------------------------------------------------------------------------
// Names

fn hex(hash: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*hash).to_hex().to_string()
}

/// The inverse of [`hex`]; `None` for everything else.
pub(crate) fn unhex(name: &str) -> Option<[u8; 32]> {
    let hash = blake3::Hash::from_hex(name).ok()?;
    (hash.to_hex().as_str() == name).then_some(*hash.as_bytes())
}
