//! Start of a guest process.

use std::collections::BTreeMap;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;

use crate::debug::Debugger;
use crate::diag;
use crate::fds::{self, FdTable};
use crate::hostcall;
use crate::layout;
use crate::loader::{self, FileProvider, ImageFile, ImageInfo, Loaded, Source};
use crate::lockstep::Lockstep;
use crate::log::Log;
use crate::mm::Space;
use crate::process::clone::{open_follower, open_writer};
use crate::replayed::{Recording, ReplayShared};
use crate::report;
use crate::runtime::{self, ExecContext, HOLDER, Runtime, ThreadRef};
use crate::sched;
use crate::signal::{IGN, MAX, SigAction, bit, host};
use crate::start::{CloseOnExec, Failure, GuestStart, Mode, dup_high};
use crate::thread::{self, Thread};
use crate::vcpu::Vcpu;
use crewind_trace::event::{Event, FileRef, ProcId, StartHow, ThreadId};
use crewind_trace::{FileStore, Session, StreamWriter, Verify};
use crewind_x86::{CodeCache, Config};

/// Entry of a guest process: `crewind __guest FD`.
pub fn main() -> ! {
    let fd = std::env::args()
        .nth(2)
        .and_then(|a| a.parse::<RawFd>().ok());
    let Some(fd) = fd else {
        diag::die(
            Failure::Internal,
            format_args!("`__guest` is for crewind itself; use `crewind record`"),
        );
    };
    // SAFETY: the descriptor was made for us by whoever started this process.
    let start = match GuestStart::receive(unsafe { OwnedFd::from_raw_fd(fd) }) {
        Ok(s) => s,
        Err(e) => diag::die(Failure::Internal, format_args!("bad start message: {e}")),
    };
    report::init(start.control);
    claim_host_stack();
    if let Err(why) = crate::mm::host::check_guest_range_is_free() {
        report::fail(Failure::Unsupported, format_args!("{why}"));
    }
    if let Err(e) = run(start) {
        report::fail(
            Failure::Internal,
            format_args!("cannot start the program's process: {e}"),
        );
    }
    // The leader's own end while other threads go on: only this host thread ends.
    // SAFETY: ends the calling thread; its stack is not used any more.
    unsafe {
        hostcall::raw(libc::SYS_exit, [0; 6]);
    }
    unreachable!("exit returned")
}

/// Makes the kernel grow this thread's stack now: the guest may lower its stack limit later, which would stop
/// the runtime's from growing.
#[inline(never)]
fn claim_host_stack() {
    let mut room = [0u8; 512 << 10];
    for page in room.chunks_mut(4096) {
        page[0] = 1;
    }
    std::hint::black_box(&mut room);
}

/// A failure before the guest's first instruction.
type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn run(start: GuestStart) -> Fallible<()> {
    let lifted = crewind_trace::LiftedLimits::new();
    let own = OwnFds::open(start.control)?;
    diag::init(&start.log_level, start.control);
    restore_limits(&start);
    host::install_stack()?;
    let mut fds_own = own.list();
    let (shared, shared_fd) = match start.mode {
        Mode::Record => (None, -1),
        Mode::Replay => {
            let shared = ReplayShared::open(start.shared)?;
            shared.install();
            fds_own.push(start.shared);
            (Some(shared), start.shared)
        }
    };
    let part = start.options.deferred.as_ref();
    if let Some([streams, files, session]) = start.anchors {
        fds_own.extend([streams, files, session]);
        let anchors = crewind_trace::Anchors {
            streams,
            files,
            session,
        };
        crewind_trace::anchor(&start.trace, anchors);
    }
    fds_own.sort_unstable();
    let standard = if start.resumed {
        start.standard
    } else {
        fds::inherited()
    };
    let store = match start.mode {
        // Of no trace yet.
        Mode::Record if part.is_some() => FileStore::for_replay(&start.trace, Verify::Size),
        Mode::Record => FileStore::open(&start.trace_root, &start.trace)?,
        Mode::Replay => FileStore::for_replay(&start.trace, Verify::Hash),
    };
    let session = match start.mode {
        Mode::Record if part.is_some() => None,
        Mode::Record => Some(Session::open(&start.trace)?),
        Mode::Replay => None,
    };
    let complete_trace = shared
        .as_ref()
        .is_some_and(|s| s.recording() == Recording::Finished);
    // SAFETY: returns a number.
    let pid = unsafe { hostcall::raw(libc::SYS_getpid, [0; 6]) } as i32;
    let id = ThreadId(start.thread);
    // Only the first program, and only where effects of the kernel are first seen.
    let lockstep = start
        .options
        .lockstep
        .filter(|_| start.mode == Mode::Record && !start.resumed);
    let cache = CodeCache::new(Config {
        cache_base: layout::CACHE_START,
        cache_size: (layout::CACHE_END - layout::CACHE_START) as usize,
        table_base: layout::TABLE_START,
        options: lockstep
            .as_ref()
            .map(Lockstep::translation)
            .unwrap_or_default(),
        rights: None,
        pages: false,
        pkru: false,
    })?;
    let mut th = Thread::new(id, pid, Log::Closed);
    let (image, pid, log) = match start.mode {
        Mode::Record => record_image(&start, &store, &mut th, pid)?,
        Mode::Replay => replay_image(&start, &mut th, complete_trace)?,
    };
    th.log = log;
    th.tid = pid;
    th.started = true;
    let checkpoint = image.checkpoint.clone();
    let mut rt = Box::new(Runtime {
        mode: start.mode,
        options: start.options.clone(),
        trace: start.trace.clone(),
        proc: ProcId(start.proc),
        pid,
        space: Space::new(),
        cache: Box::new(cache),
        actions: [SigAction::default(); MAX + 1],
        fds: FdTable::new(standard, fds_own),
        threads: BTreeMap::new(),
        vcpu: Vcpu::held(),
        par: None,
        comm: image.comm().to_vec(),
        image,
        loaded: Loaded::default(),
        session,
        shared,
        store,
        file_data: crate::filedata::FileData::default(),
        in_vfork: false,
        complete_trace,
        limits: start.limits,
        exec: ExecContext {
            personality: start.personality,
            stack_limit: start.stack_limit,
            control: start.control,
            shared: shared_fd,
            anchors: start.anchors,
            exe: own.exe,
            trace_root: start.trace_root.clone(),
            log_level: start.log_level.clone(),
        },
        preempter: false,
        lockstep: lockstep.map(|o| Box::new(Lockstep::new(o))),
        deferred: part.map(crate::deferred::State::new),
        from_checkpoint: checkpoint.is_some(),
        debug: (start.options.debug.as_ref()).map(|o| Box::new(Debugger::new(o))),
        plan: crewind_syscalls::Plan::new(),
        ranges: Vec::new(),
        changes: Vec::new(),
        warned: Default::default(),
        fd_directories: Default::default(),
    });
    if rt.mode == Mode::Replay {
        rt.space.keep_private();
    }
    match &checkpoint {
        Some(c) => rt.restore(c),
        None => rt.load()?,
    }
    set_name(&rt.comm);
    for s in 1..=MAX as u32 {
        if checkpoint.is_some() {
            break;
        }
        if start.ignored & bit(s) != 0 {
            rt.actions[s as usize].handler = IGN;
        }
    }
    let ctx = th.ctx();
    (ctx.rip, ctx.gpr[4], ctx.rflags) = (rt.loaded.pc, rt.loaded.sp, 0x202);
    ctx.set_clock(0);
    th.mask = start.blocked;
    let p: *mut Thread = &mut *th;
    rt.threads.insert(id, ThreadRef(p));
    HOLDER.store(th.ctx, Ordering::Release);
    thread::set_current(p);
    host::install_synchronous();
    if rt.recording() {
        rt.limits.keep_some_descriptors();
    }
    if rt.recording() {
        let_libc_take_its_signal();
        rt.sync_actions();
    } else {
        // Children of a replay are not waited for by the guest.
        host::set_disposition(libc::SIGCHLD as u32, host::Host::Ignore);
        host::set_disposition(libc::SIGPIPE as u32, host::Host::Ignore);
        if start.options.debug.is_some() {
            // The keyboard is the debugger's.
            for s in [libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP] {
                host::set_disposition(s as u32, host::Host::Ignore);
            }
        }
    }
    if start.mode == Mode::Replay && (start.options.one_thread || start.options.debug.is_some()) {
        sched::start(id);
    }
    runtime::install(rt);
    drop(lifted);
    host::set_mask(if start.mode == Mode::Record {
        start.blocked
    } else {
        0
    });
    // SAFETY: this thread holds the vcpu of the runtime just made.
    let rt = unsafe { runtime::get() };
    if let Some(c) = &checkpoint {
        rt.restore_threads(&mut th, c);
    }
    crate::deferred::listen(rt);
    rt.run_thread(&mut th);
    thread::set_current(std::ptr::null_mut());
    // Its siblings may still look at it until the process ends.
    std::mem::forget(th);
    if sched::active() {
        sched::finish();
    }
    Ok(())
}

/// The runtime's C library handles a signal of its own (33, for `setuid` of all threads), which it installs with the first thread that
/// it makes. The guest's C library wants the same one for itself, and does that in front of its first thread: so this comes before.
fn let_libc_take_its_signal() {
    if let Ok(thread) = std::thread::Builder::new()
        .stack_size(32 << 10)
        .spawn(|| ())
    {
        let _ = thread.join();
    }
}

/// Recording: checks the program, keeps its files, and starts (or goes on with) the stream.
fn record_image(
    start: &GuestStart,
    store: &FileStore,
    th: &mut Thread,
    pid: i32,
) -> Fallible<(ImageInfo, i32, Log)> {
    let argv: Vec<Vec<u8>> = start.argv.iter().map(|b| b.0.clone()).collect();
    let envp: Vec<Vec<u8>> = start.envp.iter().map(|b| b.0.clone()).collect();
    let execfn = if start.execfn.0.is_empty() {
        &start.program.0
    } else {
        &start.execfn.0
    };
    let plan = match loader::plan(&start.program.0, execfn, &argv) {
        Ok(p) => p,
        Err(e) if !start.resumed => report::cannot_execute(e.errno.0),
        Err(e) => return Err(e.into()),
    };
    let part = start.options.deferred.is_some();
    let refs: Vec<FileRef> = plan
        .files
        .iter()
        .map(|f| {
            if part {
                // Kept when a recording begins.
                return Ok(FileRef {
                    hash: [0; 32],
                    len: 0,
                });
            }
            store.put(&f.file)
        })
        .collect::<Result<_, _>>()?;
    let mut random = [0u8; 16];
    // SAFETY: fills a live array.
    unsafe {
        hostcall::raw(
            libc::SYS_getrandom,
            [random.as_mut_ptr() as u64, 16, 0, 0, 0, 0],
        );
    }
    let mut image = ImageInfo::new(&plan, &refs, envp, random, start.stack_limit.soft, pid);
    image.machine.hwcap = u64::from(crewind_x86::cpuid::guest_cpuid(1, 0).edx);
    image.machine.minsigstksz = 440 + 64 + crate::fpstate::frame_size() as u64;
    if part {
        return Ok((image, pid, Log::Off));
    }
    let id = ThreadId(start.thread);
    th.log = if start.resumed {
        Log::Record(StreamWriter::resume(&start.trace, id)?)
    } else {
        let log = open_writer(&start.trace, id);
        th.log = log;
        th.append(Event::ProcessStart {
            proc: ProcId(start.proc),
            parent: None,
            how: StartHow::Root,
            pid,
        });
        std::mem::replace(&mut th.log, Log::Closed)
    };
    th.append(Event::Image {
        info: image.to_bytes().into(),
    });
    let log = std::mem::replace(&mut th.log, Log::Closed);
    Ok((image, pid, log))
}

/// Replaying: reads what the recording started with.
fn replay_image(
    start: &GuestStart,
    th: &mut Thread,
    complete: bool,
) -> Fallible<(ImageInfo, i32, Log)> {
    th.log = open_follower(&start.trace, ThreadId(start.thread), start.skip);
    loop {
        match th.take().map(|r| r.event) {
            Some(Event::ProcessStart { .. }) => {}
            Some(Event::Image { info }) => {
                let image = ImageInfo::from_bytes(&info)?;
                let pid = image.pid;
                let log = std::mem::replace(&mut th.log, Log::Closed);
                return Ok((image, pid, log));
            }
            // Killed, or cut, before its program started.
            None => th.log_is_over(complete, &start.trace),
            other => report::fail(
                Failure::TraceEnd,
                format_args!(
                    "the trace is damaged: instead of the program that process {} executed it has {other:?}",
                    start.proc
                ),
            ),
        }
    }
}

struct Files<'a> {
    mode: Mode,
    store: &'a FileStore,
}

impl FileProvider for Files<'_> {
    fn open(&self, file: &ImageFile) -> Result<Source, crate::errno::Errno> {
        use std::os::unix::ffi::OsStrExt;
        if self.mode == Mode::Record
            && let Ok(f) = std::fs::File::open(std::ffi::OsStr::from_bytes(&file.path.0))
        {
            return Ok(Source::Original(f));
        }
        match self.store.open_ref(&file.file_ref()) {
            Ok(f) => Ok(Source::Stored(f)),
            Err(e) => report::fail(Failure::TraceEnd, format_args!("{e}")),
        }
    }
}

impl Runtime {
    fn load(&mut self) -> Fallible<()> {
        let files = Files {
            mode: self.mode,
            store: &self.store,
        };
        self.loaded = loader::load(&self.image, &mut self.space, &files)?;
        Ok(())
    }
}

/// The process's name in `ps`.
fn set_name(comm: &[u8]) {
    let mut name = [0u8; 16];
    let n = comm.len().min(15);
    name[..n].copy_from_slice(&comm[..n]);
    // SAFETY: a terminated string of at most 16 bytes.
    unsafe {
        hostcall::raw(
            libc::SYS_prctl,
            [libc::PR_SET_NAME as u64, name.as_ptr() as u64, 0, 0, 0, 0],
        );
    }
}

/// Gives the guest its own stack limit back; the runtime was started with a finite one.
fn restore_limits(start: &GuestStart) {
    let l = libc::rlimit {
        rlim_cur: start.stack_limit.soft,
        rlim_max: start.stack_limit.hard,
    };
    // SAFETY: a valid struct.
    unsafe {
        libc::setrlimit(libc::RLIMIT_STACK, &l);
    }
}

/// The runtime's own descriptors.
struct OwnFds {
    control: RawFd,
    exe: RawFd,
}

impl OwnFds {
    fn open(control: RawFd) -> Fallible<OwnFds> {
        // SAFETY: plain calls with a literal path; the descriptors stay open for ever.
        unsafe {
            let exe = libc::open(c"/proc/self/exe".as_ptr(), libc::O_PATH | libc::O_CLOEXEC);
            if exe < 0 {
                return Err(std::io::Error::last_os_error().into());
            }
            let exe = raise(exe, control)?;
            Ok(OwnFds { control, exe })
        }
    }

    fn list(&self) -> Vec<i32> {
        vec![self.control, self.exe]
    }
}

/// Moves a descriptor to a number of at least `low`.
fn raise(fd: RawFd, low: RawFd) -> std::io::Result<RawFd> {
    // SAFETY: asks for the flags of a descriptor of ours.
    let keep = unsafe { libc::fcntl(fd, libc::F_GETFD) } & libc::FD_CLOEXEC != 0;
    let high = dup_high(
        fd,
        low,
        if keep {
            CloseOnExec::Yes
        } else {
            CloseOnExec::No
        },
    )?;
    // SAFETY: ours, and replaced by `high`.
    unsafe { libc::close(fd) };
    Ok(high)
}
