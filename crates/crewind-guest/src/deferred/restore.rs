//! Replaying a recording that began in the middle: the process is put together as it was then.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::checkpoint::{Checkpoint, Doing, Of, Shown};
use super::is_start;
use crate::par::Par;
use crate::par::replay::At;
use crate::process::clone::{Begins, Birth};
use crate::runtime::Runtime;
use crate::start::Failure;
use crate::thread::Thread;
use crewind_trace::event::{Event, FileRef};

/// Threads of a process that have come to where its recording was ended from outside.
static AT_END: AtomicUsize = AtomicUsize::new(0);

fn damaged(what: std::fmt::Arguments<'_>) -> ! {
    crate::report::fail(
        Failure::TraceEnd,
        format_args!("the trace is damaged: {what}"),
    )
}

impl Runtime {
    /// Puts mappings and memory into place, and the state that all threads share.
    pub(crate) fn restore(&mut self, c: &Checkpoint) {
        for m in &c.mappings {
            let vma = m.vma();
            let at = vma.start;
            let backing = match &m.object {
                None => None,
                Some(Shown::Anon { .. }) => None,
                Some(Shown::File { offset, stored, .. }) => {
                    let file = match stored {
                        Some((hash, len)) => self.stored(&hash.0, *len),
                        None => empty(offset + vma.len()),
                    };
                    Some((file.as_raw_fd(), *offset, file))
                }
            };
            let source = backing.as_ref().map(|(fd, offset, _)| (*fd, *offset));
            if let Err(e) = self.space.restore(vma, source) {
                crate::report::fail(
                    Failure::Usage,
                    format_args!("memory at {at:#x} cannot be mapped: {e}"),
                );
            }
        }
        let mem = std::fs::OpenOptions::new()
            .write(true)
            .open("/proc/self/mem");
        let read = match mem {
            Ok(mem) => crewind_trace::read_memory(&self.trace, |addr, page| {
                if !crate::layout::is_guest(addr, page.len() as u64) {
                    return Err(std::io::ErrorKind::InvalidData.into());
                }
                // All is mapped writable until the end.
                mem.write_all_at(page, addr)
            }),
            Err(e) => crate::report::fail(
                Failure::Usage,
                format_args!("/proc/self/mem cannot be opened: {e}"),
            ),
        };
        if let Err(e) = read {
            crate::report::fail(Failure::TraceEnd, format_args!("{e}"));
        }
        if let Err(e) = self.space.restored(&c.space) {
            crate::report::fail(
                Failure::Usage,
                format_args!("memory cannot be protected as it was: {e}"),
            );
        }
        for (signo, action) in c.actions() {
            if let Some(a) = self.actions.get_mut(signo) {
                *a = action;
            }
        }
        self.loaded = c.loaded.clone();
        self.comm = c.comm.0.clone();
    }

    fn stored(&self, hash: &[u8], len: u64) -> File {
        let Ok(hash) = hash.try_into() else {
            damaged(format_args!("a file of its first mappings has no name"));
        };
        match self.store.open_ref(&FileRef { hash, len }) {
            Ok(f) => f,
            Err(e) => crate::report::fail(Failure::TraceEnd, format_args!("{e}")),
        }
    }

    /// Makes the threads that there were, and lets this one, the first of the trace, go on as the one it was.
    pub(crate) fn restore_threads(&mut self, th: &mut Thread, c: &Checkpoint) {
        let Some((own, others)) = c.threads.split_first() else {
            damaged(format_args!("it begins without a thread"));
        };
        th.tid = own.tid;
        own.put_into(th);
        Birth::state_of(own).restore(th.ctx());
        if c.vcpus == 0 {
            return;
        }
        let par = match Par::start(
            self.mode,
            self.options.sharing,
            crate::par::MAX_VCPUS,
            th.id,
            self.complete_trace,
            self.replay_caches(),
            &self.trace,
        ) {
            Ok(par) => par,
            Err(e) => crate::report::fail(
                Failure::Unsupported,
                format_args!("there is no memory for replaying threads in parallel ({e})"),
            ),
        };
        self.par = Some(par);
        self.new_caches();
        if let Doing::Holds(v) = own.doing {
            par.begin_on(th, v);
        } else {
            par.begin_on_none(th);
        }
        par.register(th);
        th.in_event = true;
        for of in others {
            self.restore_thread(th, of, par);
        }
        self.handlers_want_flags(th, par);
        match own.doing {
            Doing::Holds(_) => {}
            doing => {
                th.in_event = false;
                par.unlock();
                if !par.begin(th, doing, self.shared.as_ref()) {
                    par.idle_for_ever(th, At::Place);
                }
            }
        }
    }

    fn restore_thread(&mut self, th: &mut Thread, of: &Of, par: &'static Par) {
        let id = of.thread_id();
        let begins = Begins {
            of: of.clone(),
            par,
        };
        match Birth::again(self, begins, th.vcpu) {
            Some(child) => {
                self.threads.insert(id, child);
            }
            None => crate::report::fail(
                Failure::Usage,
                format_args!(
                    "this machine cannot make another thread; the recording began with one more"
                ),
            ),
        }
    }

    /// In a thread that the recording began with: takes it to where it goes on, and runs it.
    pub(crate) fn run_restored(th: &mut Thread, doing: Doing, par: &'static Par) {
        // SAFETY: `shared` is never changed once the process has begun.
        let shared = unsafe { crate::runtime::get() }.shared.as_ref();
        if !par.begin(th, doing, shared) {
            par.idle_for_ever(th, At::Place);
        }
        // SAFETY: the runtime lock is held.
        let rt = unsafe { crate::runtime::get() };
        if doing == Doing::New {
            let r = th.take();
            if !is_start(r.as_ref()) {
                rt.end_of_log(th);
            }
        }
        rt.run_thread(th);
    }

    /// Replaying: the thread has come to where the recording of its process was ended from outside. True when it is the
    /// last one.
    pub(crate) fn all_at_end(&mut self) -> bool {
        self.from_checkpoint && AT_END.fetch_add(1, Ordering::SeqCst) + 1 >= self.threads.len()
    }
}

/// What a thread is given that starts again.
pub(crate) fn first_record(th: &mut Thread, doing: Doing) {
    if doing == Doing::New {
        return;
    }
    let r = th.take();
    if !is_start(r.as_ref()) {
        damaged(format_args!(
            "thread t{} does not begin as it should",
            th.id.0
        ));
    }
}

/// An empty file in memory of this length.
fn empty(len: u64) -> File {
    // SAFETY: a terminated name; the descriptor is new and nobody else's.
    let file = unsafe {
        let fd = libc::memfd_create(c"crewind-restored".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            crate::report::fail(
                Failure::Usage,
                format_args!(
                    "no file in memory can be made: {}",
                    std::io::Error::last_os_error()
                ),
            );
        }
        File::from_raw_fd(fd)
    };
    if let Err(e) = file.set_len(len) {
        crate::report::fail(
            Failure::Usage,
            format_args!("no file in memory can be made: {e}"),
        );
    }
    file
}

impl Par {
    /// Replaying: takes a thread that the recording began with to where it goes on, with the runtime lock. False: it never
    /// did before the recording ended.
    fn begin(
        &self,
        th: &mut Thread,
        doing: Doing,
        shared: Option<&crate::replayed::ReplayShared>,
    ) -> bool {
        match doing {
            Doing::Holds(_) => {
                self.lock_for(th);
            }
            Doing::Call => {
                if !self.settle_call(th, shared) {
                    return false;
                }
                // Unless a signal, or the end, came instead.
                th.begins_in_call = !matches!(
                    th.upcoming().map(|r| &r.event),
                    None | Some(Event::Signal { .. } | Event::Killed)
                );
            }
            Doing::Waits | Doing::New => {
                if !self.settle_start(th) {
                    return false;
                }
            }
        }
        th.epoch = self.epoch();
        th.in_event = true;
        true
    }
}
