//! What the runtime knows about descriptors: which are its own, and which lead to the recording's own
//! standard input, output and error (so that a replay can show what was written there).

use crewind_syscalls::FdChange;

/// Where a guest descriptor leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Class {
    /// Not looked at since it last changed.
    #[default]
    Unknown,
    /// Somewhere of the guest's own.
    Private,
    /// To the file behind the recorder's descriptor of this number (0, 1 or 2).
    Standard(u8),
}

/// What is known about one descriptor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Info {
    /// Where it leads.
    pub class: Class,
    /// Device of its file.
    pub dev: u64,
    /// Inode of its file.
    pub ino: u64,
}

/// Identity (device, inode) of the recorder's descriptors 0, 1 and 2; zero when closed.
pub type Standard = [(u64, u64); 3];

/// Descriptors above this are not cached.
const CACHED: i32 = 1 << 16;

/// The table.
#[derive(Clone, Debug, Default)]
pub struct FdTable {
    standard: Standard,
    cache: Vec<Info>,
    own: Vec<i32>,
}

impl FdTable {
    /// A table for a process with the given standard files and runtime descriptors.
    pub fn new(standard: Standard, own: Vec<i32>) -> Self {
        FdTable {
            standard,
            cache: Vec::new(),
            own,
        }
    }

    /// The recorder's standard files.
    pub fn standard(&self) -> Standard {
        self.standard
    }

    /// True for the runtime's own descriptors, which the guest does not see.
    pub fn is_own(&self, fd: i32) -> bool {
        self.own.contains(&fd)
    }

    /// Adds one of the runtime's own descriptors.
    pub fn add_own(&mut self, fd: i32) {
        self.own.push(fd);
        self.own.sort_unstable();
    }

    /// Forgets one of them, which is closed.
    pub fn remove_own(&mut self, fd: i32) {
        self.own.retain(|f| *f != fd);
    }

    /// The runtime's own descriptors.
    pub fn own(&self) -> &[i32] {
        &self.own
    }

    /// What `fd` is; asks the kernel when that is not known.
    pub fn info(&mut self, fd: i32) -> Info {
        if let Some(i) = usize::try_from(fd).ok().and_then(|i| self.cache.get(i))
            && i.class != Class::Unknown
        {
            return *i;
        }
        let Some((dev, ino)) = identity(fd) else {
            return Info {
                class: Class::Private,
                dev: 0,
                ino: 0,
            };
        };
        let same = |n: usize| self.standard[n] == (dev, ino);
        let own_number = usize::try_from(fd).ok().filter(|n| *n < 3 && same(*n));
        // /dev/null is one file for everybody: only the inherited descriptor itself counts.
        let elsewhere = || {
            [1, 2, 0]
                .into_iter()
                .find(|n| same(*n))
                .filter(|_| !is_null(dev, ino))
        };
        let class = match own_number.or_else(elsewhere) {
            Some(n) => Class::Standard(n as u8),
            None => Class::Private,
        };
        let info = Info { class, dev, ino };
        if (0..CACHED).contains(&fd) {
            let i = fd as usize;
            if self.cache.len() <= i {
                self.cache.resize(i + 1, Info::default());
            }
            self.cache[i] = info;
        }
        info
    }

    /// Forgets what was known about descriptors that a call changed.
    pub fn changed(&mut self, change: &FdChange) {
        match *change {
            FdChange::Open { fd, .. } | FdChange::Close { fd } => self.forget(fd, fd),
            FdChange::Dup { new, .. } => self.forget(new, new),
            FdChange::CloseRange { first, last } => {
                self.forget(
                    first.min(i32::MAX as u32) as i32,
                    last.min(i32::MAX as u32) as i32,
                );
            }
            FdChange::SetCloexec { .. } => {}
        }
    }

    fn forget(&mut self, first: i32, last: i32) {
        for i in self
            .cache
            .iter_mut()
            .take(last.saturating_add(1).max(0) as usize)
            .skip(first.max(0) as usize)
        {
            *i = Info::default();
        }
    }
}

/// Identity of the recorder's descriptors, looked up in a process that inherited them. Standard input counts
/// only when it is a terminal, to which programs also write.
pub fn inherited() -> Standard {
    // SAFETY: asks about a descriptor.
    let terminal = unsafe { libc::isatty(0) } == 1;
    std::array::from_fn(|i| {
        identity(i as i32)
            .filter(|_| i > 0 || terminal)
            .unwrap_or((0, 0))
    })
}

fn is_null(dev: u64, ino: u64) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/dev/null").is_ok_and(|m| (m.dev(), m.ino()) == (dev, ino))
}

/// Device and inode behind a descriptor.
pub fn identity(fd: i32) -> Option<(u64, u64)> {
    let mut st = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the kernel fills the struct; zeroed is valid for it anyway.
    let st = unsafe {
        if crate::hostcall::raw(
            libc::SYS_fstat,
            [fd as u64, st.as_mut_ptr() as u64, 0, 0, 0, 0],
        ) != 0
        {
            return None;
        }
        st.assume_init()
    };
    Some((st.st_dev, st.st_ino))
}
