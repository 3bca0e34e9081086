//! Guest threads that take turns on one host thread, for replaying under a debugger.
//!
//! The problem: a checkpoint is a fork, and a fork copies one host thread. So each guest thread has a host stack of its
//! own, and where it would wait for another one it changes to the stack of one that can go on.
//!
//! Who goes on is a function of the recording: the thread with the lowest number whose wait is over. It runs until it
//! has to wait itself. That comes: a thread in replay goes no further than its next record, and what others wait for it
//! to do lies before that, or is that it has reached it.
//!
//! # What belongs to a host thread and has to be changed with the stack
//! The context of translated code (copied: it is a thread-local at an address that code knows), x87 state, the GS base
//! (the guest's FS base), and which guest thread the signal handler finds. The alternate signal stack is shared:
//! handlers run to their ends. Everything else is saved by the calling convention.

use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::start::Failure;
use crate::thread::{self, Thread};
use crewind_trace::event::{Edge, ThreadId};
use crewind_x86::ctx::Ctx;

/// What a thread waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    /// Its turn on the one vcpu.
    Turn(u64),
    /// Another thread to leave a point behind.
    Left(Edge),
    /// Its place in the order of events.
    Order(u64),
    /// Nothing: it goes on when its turn comes.
    Nothing,
    /// Nothing that comes.
    Never,
}

/// No thread can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stuck;

#[repr(C, align(64))]
struct X87([u8; 512]);

/// A guest thread that does not run.
struct Fiber {
    rsp: u64,
    ctx: Box<Ctx>,
    x87: Box<X87>,
    current: *mut Thread,
    waits: Wait,
    stack: Option<Stack>,
}

impl Fiber {
    fn new(stack: Option<Stack>) -> Box<Fiber> {
        Box::new(Fiber {
            rsp: 0,
            ctx: Box::new(Ctx::new()),
            x87: Box::new(X87([0; 512])),
            current: std::ptr::null_mut(),
            waits: Wait::Nothing,
            stack,
        })
    }
}

/// A host stack.
struct Stack {
    base: *mut libc::c_void,
}

/// Bytes of a stack, and of the part below that catches overflows.
const STACK: usize = 512 << 10;
const GUARD: usize = 64 << 10;

impl Stack {
    fn new() -> std::io::Result<Stack> {
        // SAFETY: a new mapping; its lowest part is made inaccessible.
        unsafe {
            let base = libc::mmap(
                std::ptr::null_mut(),
                GUARD + STACK,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            );
            if base == libc::MAP_FAILED {
                return Err(std::io::Error::last_os_error());
            }
            libc::mprotect(base, GUARD, libc::PROT_NONE);
            Ok(Stack { base })
        }
    }

    fn top(&self) -> u64 {
        self.base as u64 + (GUARD + STACK) as u64
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; whoever drops it runs on another stack.
        unsafe { libc::munmap(self.base, GUARD + STACK) };
    }
}

/// All guest threads of the process.
struct Sched {
    fibers: BTreeMap<ThreadId, Box<Fiber>>,
    current: ThreadId,
    /// The new thread's creator, which goes on when the new one first waits.
    creator: Option<ThreadId>,
    /// Stack of a thread that has ended, until another one runs.
    dead: Option<Box<Fiber>>,
}

struct Global(UnsafeCell<Option<Sched>>);

// SAFETY: used by one host thread, which is the point of it.
unsafe impl Sync for Global {}

static SCHED: Global = Global(UnsafeCell::new(None));
static ACTIVE: AtomicBool = AtomicBool::new(false);

/// Whether guest threads take turns on one host thread.
pub(crate) fn active() -> bool {
    ACTIVE.load(Ordering::Relaxed)
}

/// # Safety
/// No other reference from here is in use: none is kept over a change of stacks.
unsafe fn sched() -> Option<&'static mut Sched> {
    // SAFETY: by contract; one host thread.
    unsafe { (*SCHED.0.get()).as_mut() }
}

/// From now on guest threads take turns on this host thread, which runs thread `id`: the process has no other.
pub(crate) fn start(id: ThreadId) {
    let s = Sched {
        fibers: BTreeMap::from([(id, Fiber::new(None))]),
        current: id,
        creator: None,
        dead: None,
    };
    // SAFETY: nothing else uses it now.
    unsafe { *SCHED.0.get() = Some(s) };
    ACTIVE.store(true, Ordering::Relaxed);
}

/// In a new process that goes on as thread `id` alone.
pub(crate) fn only(id: ThreadId) {
    if !active() {
        return;
    }
    // SAFETY: no reference is kept.
    let Some(s) = (unsafe { sched() }) else {
        return;
    };
    let own = s.fibers.remove(&s.current);
    // The other stacks hold values of threads that do not exist here: they are given back, nothing is dropped.
    s.fibers.clear();
    s.dead = None;
    s.creator = None;
    s.current = id;
    s.fibers.insert(id, own.unwrap_or_else(|| Fiber::new(None)));
}

core::arch::global_asm!(
    r#"
    .text
    .p2align 4
    .type crewind_change_stack, @function
# fn(save: rdi, rsp: rsi): puts the stack pointer into *save and goes on where `rsp` was saved.
crewind_change_stack:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    mov [rdi], rsp
    mov rsp, rsi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret

    .p2align 4
    .type crewind_first_frame, @function
# Where a new stack begins: calls r13(r12), which does not return.
crewind_first_frame:
    xor ebp, ebp
    mov rdi, r12
    call r13
    ud2
"#
);

unsafe extern "C" {
    fn crewind_change_stack(save: *mut u64, rsp: u64);
    fn crewind_first_frame();
}

/// Runs `body` as thread `id` until it waits for the first time; then its creator, which calls this, goes on.
///
/// # Errors
/// There is no memory for a stack.
pub(crate) fn spawn(id: ThreadId, body: impl FnOnce() + 'static) -> std::io::Result<()> {
    type Body = Box<dyn FnOnce()>;
    extern "C" fn enter(body: *mut Body) -> ! {
        {
            // SAFETY: made by `spawn`, for this.
            let body = unsafe { Box::from_raw(body) };
            body();
        }
        finish()
    }
    let stack = Stack::new()?;
    let body: Box<Body> = Box::new(Box::new(body));
    let mut fiber = Fiber::new(None);
    let frame: [u64; 7] = [
        0,
        0,
        enter as *const () as u64,
        Box::into_raw(body) as u64,
        0,
        0,
        crewind_first_frame as *const () as u64,
    ];
    // Behind the `ret`, rsp is a multiple of 16, as the call needs it.
    let rsp = stack.top() - 64;
    // SAFETY: inside the new stack.
    unsafe { std::ptr::copy_nonoverlapping(frame.as_ptr(), (rsp - 56) as *mut u64, 7) };
    fiber.rsp = rsp - 56;
    fiber.stack = Some(stack);
    // SAFETY: no reference is kept over the change of stacks.
    let Some(s) = (unsafe { sched() }) else {
        return Err(std::io::ErrorKind::Other.into());
    };
    let creator = s.current;
    // The new thread starts in the state of its creator, as a host thread would in that of nobody: it sets its own.
    save(&mut fiber.ctx, &mut fiber.x87);
    s.creator = Some(creator);
    s.fibers.insert(id, fiber);
    change(id);
    Ok(())
}

/// Waits; others go on meanwhile.
///
/// # Errors
/// Nobody can go on, this thread neither.
pub(crate) fn wait(w: Wait) -> Result<(), Stuck> {
    // SAFETY: no reference is kept over the change of stacks.
    let Some(s) = (unsafe { sched() }) else {
        return Ok(());
    };
    if let Some(creator) = s.creator.take() {
        if let Some(f) = s.fibers.get_mut(&s.current) {
            f.waits = w;
        }
        change(creator);
        return Ok(());
    }
    if is_over(&w) {
        return Ok(());
    }
    if let Some(f) = s.fibers.get_mut(&s.current) {
        f.waits = w;
    }
    let next = next(s).ok_or(Stuck)?;
    change(next);
    Ok(())
}

/// Waits for nothing that comes.
///
/// # Errors
/// Nobody can go on.
pub(crate) fn wait_for_ever() -> Stuck {
    loop {
        if wait(Wait::Never).is_err() {
            return Stuck;
        }
    }
}

fn next(s: &Sched) -> Option<ThreadId> {
    s.fibers
        .iter()
        .find(|(_, f)| is_over(&f.waits))
        .map(|(id, _)| *id)
}

fn is_over(w: &Wait) -> bool {
    match w {
        Wait::Turn(turn) => crate::runtime::vcpu().serving() == *turn,
        Wait::Left(edge) => crate::par::get().is_some_and(|p| p.is_left_behind(edge)),
        Wait::Order(k) => crate::par::get().is_some_and(|p| p.events_done() + 1 == *k),
        Wait::Nothing => true,
        Wait::Never => false,
    }
}

/// The thread that runs has ended. Its stack is given back once another one runs.
pub(crate) fn finish() -> ! {
    // SAFETY: no reference is kept over the change of stacks.
    if let Some(s) = unsafe { sched() } {
        if let Some(creator) = s.creator.take() {
            s.dead = s.fibers.remove(&s.current);
            change(creator);
        }
        s.dead = s.fibers.remove(&s.current);
        if let Some(next) = next(s) {
            change(next);
        }
    }
    crate::report::fail(
        Failure::TraceEnd,
        format_args!("the trace ends here: a thread has ended, and no other one goes on"),
    )
}

fn save(ctx: &mut Ctx, x87: &mut X87) {
    // SAFETY: both are valid; the calling thread is not in translated code.
    unsafe {
        std::ptr::copy_nonoverlapping(crewind_x86::ctx::ctx(), ctx, 1);
        core::arch::asm!("fxsave64 [{}]", in(reg) x87.0.as_mut_ptr());
    }
}

fn load(f: &Fiber) {
    let own = crewind_x86::ctx::ctx();
    // SAFETY: as for `save`. `fxrstor` loads vector registers too, which are declared clobbered, and the runtime's own
    // MXCSR, which it was saved with.
    unsafe {
        std::ptr::copy_nonoverlapping(&raw const *f.ctx, own, 1);
        core::arch::asm!(
            "fxrstor64 [{}]", in(reg) f.x87.0.as_ptr(),
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
            out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
        );
        crewind_x86::set_guest_fs_base((*own).fs_base);
        if let Some(th) = f.current.as_mut() {
            th.ctx = own;
        }
    }
    thread::set_current(f.current);
}

/// Goes on as thread `to`; returns when somebody changes to the present one.
fn change(to: ThreadId) {
    // SAFETY: no reference is kept over the change of stacks.
    let Some(s) = (unsafe { sched() }) else {
        return;
    };
    let from = std::mem::replace(&mut s.current, to);
    if from == to {
        return;
    }
    crate::debug::count();
    let mut nowhere = 0;
    let place: *mut u64 = match s.fibers.get_mut(&from) {
        Some(f) => {
            save(&mut f.ctx, &mut f.x87);
            f.current = thread::current();
            // SAFETY: the calling thread's own. Others see its registers where they are kept now.
            if let Some(th) = unsafe { f.current.as_mut() } {
                th.ctx = &raw mut *f.ctx;
            }
            &raw mut f.rsp
        }
        None => &raw mut nowhere,
    };
    let Some(f) = s.fibers.get_mut(&to) else {
        crate::diag::die(
            Failure::Internal,
            format_args!("thread t{} is to run and does not exist", to.0),
        );
    };
    f.waits = Wait::Nothing;
    load(f);
    let rsp = f.rsp;
    // SAFETY: `rsp` was saved by this function or made by `spawn`, on a stack that nobody runs on; `place` is in a box
    // that stays where it is, or on the stack of a thread that never comes back.
    unsafe { crewind_change_stack(place, rsp) };
    // SAFETY: as above.
    if let Some(s) = unsafe { sched() } {
        s.dead = None;
    }
}

/// In a process that is thrown away: from now on thread `id` is the one that runs, on the stack of whoever calls this, and
/// the thread that was there is one that does not run. Null: there is no such thread.
pub(crate) fn stand_for(id: ThreadId) -> *mut Thread {
    // SAFETY: no reference is kept.
    let Some(s) = (unsafe { sched() }) else {
        return std::ptr::null_mut();
    };
    if s.current == id {
        return thread::current();
    }
    if !s.fibers.contains_key(&id) {
        return std::ptr::null_mut();
    }
    if let Some(f) = s.fibers.get_mut(&s.current) {
        save(&mut f.ctx, &mut f.x87);
        f.current = thread::current();
        // SAFETY: the calling thread's own, as in `change`.
        if let Some(th) = unsafe { f.current.as_mut() } {
            th.ctx = &raw mut *f.ctx;
        }
    }
    s.current = id;
    if let Some(f) = s.fibers.get(&id) {
        load(f);
    }
    thread::current()
}

/// Changes the x87 state of a thread: the first 160 bytes of an FXSAVE image, of which MXCSR does not count.
pub(crate) fn set_x87(id: ThreadId, image: &[u8; 160]) {
    let put = |area: &mut [u8; 512]| {
        area[..24].copy_from_slice(&image[..24]);
        area[32..160].copy_from_slice(&image[32..]);
    };
    // SAFETY: no reference is kept.
    let own = unsafe { sched() };
    let kept = own
        .filter(|s| s.current != id)
        .and_then(|s| s.fibers.get_mut(&id));
    match kept {
        Some(f) => put(&mut f.x87.0),
        None => {
            let mut now = Box::new(X87([0; 512]));
            // SAFETY: an aligned area of 512 bytes, which the processor has filled: what is loaded is valid but for what
            // x87 itself would fault on later. Vector registers are loaded with what they hold.
            unsafe {
                core::arch::asm!("fxsave64 [{}]", in(reg) now.0.as_mut_ptr());
                put(&mut now.0);
                core::arch::asm!(
                    "fxrstor64 [{}]", in(reg) now.0.as_ptr(),
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                    out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                );
            }
        }
    }
}

/// The first 160 bytes of an FXSAVE image of a thread: its x87 state.
pub(crate) fn x87_of(id: ThreadId) -> [u8; 160] {
    let mut image = [0; 160];
    // SAFETY: no reference is kept.
    let own = unsafe { sched() };
    let kept = own
        .filter(|s| s.current != id)
        .and_then(|s| s.fibers.get(&id));
    match kept {
        Some(f) => image.copy_from_slice(&f.x87.0[..160]),
        None => {
            let mut now = Box::new(X87([0; 512]));
            // SAFETY: an aligned area of 512 bytes.
            unsafe { core::arch::asm!("fxsave64 [{}]", in(reg) now.0.as_mut_ptr()) };
            image.copy_from_slice(&now.0[..160]);
        }
    }
    image
}
