//! The host's signal handlers. Everything here runs in signal context: no allocation, no locks, no runtime
//! state but the thread's own slots.
//!
//! A fault in translated code becomes an exit from it with the guest's exact state. Any other signal is put
//! into the thread's slot, everything is blocked until it has been let in (so the kernel keeps what comes
//! later, and merges it as it would natively), and translated code is asked to stop at its next tick.

use std::sync::atomic::Ordering;

use super::{SYNCHRONOUS, SigInfo};
use crate::{diag, guestmem, hostcall, runtime, thread};
use crewind_x86::ctx::Ctx;
use crewind_x86::{CodeCache, Recovered, RecoveredKind};

/// Bytes of a host thread's alternate stack: handlers are small, but an AVX-512 frame is 3 KiB.
const ALT_STACK: usize = 64 << 10;

/// `si_code` of an access that is not aligned, while AC is set in the flags.
const BUS_ADRALN: i32 = 1;

/// Kernel `struct sigaction` as `rt_sigaction` takes it.
#[repr(C)]
struct KernelAction {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

core::arch::global_asm!(
    r#"
    .text
    .globl crewind_host_restorer
    .type crewind_host_restorer, @function
crewind_host_restorer:
    mov eax, 15
    syscall
    ud2

    // The kernel enters handlers with the flags of what was interrupted, but for DF, TF and RF. With AC set, unaligned
    // accesses of the handler would be faults.
    .globl crewind_host_handler
    .type crewind_host_handler, @function
crewind_host_handler:
    push 0x202
    popfq
    jmp {on_signal}
"#,
    on_signal = sym on_signal,
);

unsafe extern "C" {
    fn crewind_host_restorer();
    fn crewind_host_handler();
}

/// Gives the calling thread an alternate stack for host handlers.
pub fn install_stack() -> std::io::Result<()> {
    // SAFETY: a fresh mapping, kept for the life of the thread.
    unsafe {
        let p = libc::mmap(
            std::ptr::null_mut(),
            ALT_STACK,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        );
        if p == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let ss = libc::stack_t {
            ss_sp: p,
            ss_flags: 0,
            ss_size: ALT_STACK,
        };
        if libc::sigaltstack(&ss, std::ptr::null_mut()) != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// What the host should do with a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The kernel's default action.
    Default,
    /// Ignore it.
    Ignore,
    /// Call our handler; with the guest's `SA_NOCLDSTOP | SA_NOCLDWAIT`.
    Catch(u64),
}

/// Sets the host's disposition of a signal.
pub fn set_disposition(signo: u32, host: Host) {
    let (handler, flags) = match host {
        Host::Default => (0, 0),
        Host::Ignore => (1, 0),
        Host::Catch(extra) => (
            crewind_host_handler as *const () as u64,
            (libc::SA_SIGINFO | libc::SA_ONSTACK) as u64 | 0x0400_0000 | extra,
        ),
    };
    let act = KernelAction {
        handler,
        flags,
        restorer: crewind_host_restorer as *const () as u64,
        mask: u64::MAX,
    };
    // SAFETY: a valid kernel sigaction; the handler follows signal-context rules.
    unsafe {
        hostcall::raw(
            libc::SYS_rt_sigaction,
            [u64::from(signo), &raw const act as u64, 0, 8, 0, 0],
        );
    }
}

/// The host's present disposition: true when the signal is ignored.
pub fn is_ignored(signo: u32) -> bool {
    let mut act = KernelAction {
        handler: 0,
        flags: 0,
        restorer: 0,
        mask: 0,
    };
    // SAFETY: the kernel fills the struct.
    unsafe {
        hostcall::raw(
            libc::SYS_rt_sigaction,
            [u64::from(signo), 0, &raw mut act as u64, 8, 0, 0],
        );
    }
    act.handler == 1
}

/// Sets the calling thread's host mask to a guest mask. Synchronous signals always stay open.
pub fn set_mask(mask: u64) {
    set_native_mask(mask & !SYNCHRONOUS);
}

/// Sets the calling thread's host mask to exactly this: for a program that runs without a runtime.
pub fn set_native_mask(mask: u64) {
    // SAFETY: the kernel reads eight bytes.
    unsafe {
        hostcall::raw(
            libc::SYS_rt_sigprocmask,
            [libc::SIG_SETMASK as u64, &raw const mask as u64, 0, 8, 0, 0],
        );
    }
}

/// Blocks everything in the calling thread: for the runtime's own threads, and before handing over.
pub fn block_all() {
    set_mask(u64::MAX);
}

/// The calling thread's host mask.
pub fn current_mask() -> u64 {
    let mut mask = 0u64;
    // SAFETY: the kernel writes eight bytes.
    unsafe {
        hostcall::raw(
            libc::SYS_rt_sigprocmask,
            [0, 0, &raw mut mask as u64, 8, 0, 0],
        );
    }
    mask
}

/// Installs the handler for the synchronous signals; in replay these are the only ones caught.
pub fn install_synchronous() {
    for s in 1..=31 {
        if SYNCHRONOUS & super::bit(s) != 0 {
            set_disposition(s, Host::Catch(0));
        }
    }
}

fn gregs(uc: &libc::ucontext_t) -> Recovered {
    let g = &uc.uc_mcontext.gregs;
    let r = |i: i32| g[i as usize] as u64;
    Recovered {
        gpr: [
            r(libc::REG_RAX),
            r(libc::REG_RCX),
            r(libc::REG_RDX),
            r(libc::REG_RBX),
            r(libc::REG_RSP),
            r(libc::REG_RBP),
            r(libc::REG_RSI),
            r(libc::REG_RDI),
            r(libc::REG_R8),
            r(libc::REG_R9),
            r(libc::REG_R10),
            r(libc::REG_R11),
            r(libc::REG_R12),
            r(libc::REG_R13),
            r(libc::REG_R14),
            r(libc::REG_R15),
        ],
        rip: r(libc::REG_RIP),
        rflags: r(libc::REG_EFL),
    }
}

fn set_gregs(uc: &mut libc::ucontext_t, from: &Recovered) {
    let g = &mut uc.uc_mcontext.gregs;
    let mut w = |i: i32, v: u64| g[i as usize] = v as i64;
    let order = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    for (i, r) in order.into_iter().enumerate() {
        w(r, from.gpr[i]);
    }
    w(libc::REG_RIP, from.rip);
    w(libc::REG_EFL, from.rflags);
}

/// The one host handler.
extern "C" fn on_signal(sig: i32, info: *mut libc::siginfo_t, uc: *mut libc::c_void) {
    // The frame has the rights that the thread had, and gives them back.
    crate::par::keys::open_all();
    // SAFETY: the kernel passes a valid ucontext and siginfo to an SA_SIGINFO handler.
    let (uc, code) = unsafe { (&mut *uc.cast::<libc::ucontext_t>(), (*info).si_code) };
    let pc = uc.uc_mcontext.gregs[libc::REG_RIP as usize] as u64;
    let th = thread::current();
    if th.is_null() {
        return internal_fault(sig, pc, uc);
    }
    let mut s = SigInfo::zeroed();
    // SAFETY: siginfo_t is 128 bytes.
    unsafe { std::ptr::copy_nonoverlapping(info.cast::<u8>(), s.bytes.as_mut_ptr(), 128) };
    // SAFETY: the cache lives as long as the process; nothing changes it while this thread is inside it, and
    // outside it only the address range is looked at.
    let cache: Option<&CodeCache> = unsafe { runtime::cache_for_handler(th) };
    if SYNCHRONOUS & super::bit(sig as u32) != 0 && code > 0 {
        if let Some(to) = guestmem::fixup(pc) {
            uc.uc_mcontext.gregs[libc::REG_RIP as usize] = to as i64;
            return;
        }
        let Some(cache) = cache.filter(|c| c.contains(pc)) else {
            return internal_fault(sig, pc, uc);
        };
        let mut regs = gregs(uc);
        if sig == libc::SIGBUS && code == BUS_ADRALN && cache.look_unaligned(&mut regs) {
            set_gregs(uc, &regs);
            return;
        }
        if cache.recover(&mut regs) != Some(RecoveredKind::Exact) {
            return internal_fault(sig, pc, uc);
        }
        s.err = uc.uc_mcontext.gregs[libc::REG_ERR as usize] as u64;
        s.trapno = uc.uc_mcontext.gregs[libc::REG_TRAPNO as usize] as u64;
        s.cr2 = uc.uc_mcontext.gregs[libc::REG_CR2 as usize] as u64;
        if matches!(sig, libc::SIGFPE | libc::SIGILL | libc::SIGTRAP) && s.addr() == pc {
            s.set_addr(regs.rip);
        }
        // SAFETY: the thread's own slots; the thread is in translated code, so nobody else uses them.
        unsafe {
            (*th).fault = s;
            (*(*th).ctx).rip = regs.rip;
        }
        regs.rip = cache.fault_exit_entry();
        set_gregs(uc, &regs);
        return;
    }
    // SAFETY: as above; `pending` was 0 because everything is blocked from now until the slot is taken. The
    // exception is a synchronous signal sent by a process, which the slot then loses to the newer one.
    unsafe {
        *(*th).slot.get() = s;
        (*th).pending.store(1, Ordering::Release);
    }
    set_uc_mask(uc, !SYNCHRONOUS);
    if let Some(to) = hostcall::window_fixup(pc) {
        uc.uc_mcontext.gregs[libc::REG_RIP as usize] = to as i64;
    }
    // SAFETY: the thread's own context; only the clock's upper half and the request flag are written.
    unsafe { Ctx::request_stop((*th).ctx) };
    if let Some(cache) = cache.filter(|c| c.contains(pc)) {
        let mut regs = gregs(uc);
        if cache.note_stop(&mut regs) {
            set_gregs(uc, &regs);
        }
    }
}

fn set_uc_mask(uc: &mut libc::ucontext_t, mask: u64) {
    // SAFETY: the kernel's mask is the first eight bytes of glibc's larger sigset_t.
    unsafe { (&raw mut uc.uc_sigmask).cast::<u64>().write(mask) };
}

/// A fault in the runtime itself: say where, and die of it.
fn internal_fault(sig: i32, pc: u64, uc: &libc::ucontext_t) {
    let mut line = *b"crewind: internal error: signal ?? at runtime pc 0x????????????????, address 0x????????????????, rsp 0x????????????????\n";
    let hex = |line: &mut [u8], at: usize, v: u64| {
        for i in 0..16 {
            line[at + i] = b"0123456789abcdef"[(v >> (60 - 4 * i)) as usize & 15];
        }
    };
    line[32] = b'0' + (sig / 10) as u8;
    line[33] = b'0' + (sig % 10) as u8;
    hex(&mut line, 51, pc);
    hex(
        &mut line,
        79,
        uc.uc_mcontext.gregs[libc::REG_CR2 as usize] as u64,
    );
    hex(
        &mut line,
        103,
        uc.uc_mcontext.gregs[libc::REG_RSP as usize] as u64,
    );
    diag::write_all(&line);
    set_disposition(sig as u32, Host::Default);
}

/// Gives a signal back to the kernel, as pending for the calling thread.
pub fn requeue(info: &SigInfo) {
    // SAFETY: a process may send itself any siginfo; the kernel copies 128 bytes.
    unsafe {
        let pid = hostcall::raw(libc::SYS_getpid, [0; 6]) as u64;
        let tid = hostcall::raw(libc::SYS_gettid, [0; 6]) as u64;
        hostcall::raw(
            libc::SYS_rt_tgsigqueueinfo,
            [
                pid,
                tid,
                u64::from(info.signo()),
                info.bytes.as_ptr() as u64,
                0,
                0,
            ],
        );
    }
}
