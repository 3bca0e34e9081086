//! The x86-64 signal frame: what the kernel's `setup_rt_frame` writes and `rt_sigreturn` reads
//! (arch/x86/kernel/signal_64.c, arch/x86/include/uapi/asm/sigcontext.h).

use super::{SigAction, SigInfo, Stack};
use crate::{fpstate, guestmem};
use crewind_x86::ctx::Ctx;

/// Offsets in the frame, from the return address on.
const UC: usize = 8;
const UC_STACK: usize = UC + 16;
const MC: usize = UC + 40;
const UC_MASK: usize = MC + 256;
const INFO: usize = UC_MASK + 8;
/// Size of the frame below the floating point state.
const FRAME: usize = INFO + 128;
/// UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS.
const UC_FLAGS: u64 = 7;
/// Bytes below rsp that a leaf function may use.
const RED_ZONE: u64 = 128;
/// Selectors of 64-bit user code: what the kernel stores in cs/gs/fs/ss.
const SEGMENTS: u64 = 0x002b_0000_0000_0033;
/// gpr index (hardware order) of each register in `sigcontext`, in its order:
/// r8..r15, di, si, bp, bx, dx, ax, cx, sp.
const ORDER: [usize; 16] = [8, 9, 10, 11, 12, 13, 14, 15, 7, 6, 5, 3, 2, 0, 1, 4];
/// Flags that `rt_sigreturn` takes from the frame (FIX_EFLAGS).
const FIX_EFLAGS: u64 = 0x0005_0dd5;
const TF: u64 = 0x100;
const DF: u64 = 0x400;
const RF: u64 = 0x1_0000;
const AC: u64 = 0x4_0000;

const RAX: usize = 0;
const RDX: usize = 2;
const RSP: usize = 4;
const RSI: usize = 6;
const RDI: usize = 7;

/// A frame that cannot be written, or read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadFrame;

/// Pushes a frame for `info` and points the guest at its handler. `mask` is the mask to restore on return.
///
/// # Errors
/// The stack is not writable: the kernel raises a fatal SIGSEGV then.
pub fn push(
    ctx: &mut Ctx,
    action: &SigAction,
    info: &SigInfo,
    stack: &mut Stack,
    mask: u64,
) -> Result<(), BadFrame> {
    let signo = info.signo();
    let mut sp = ctx.gpr[RSP].wrapping_sub(RED_ZONE);
    let on_stack = stack.contains(ctx.gpr[RSP]);
    let enter = action.flags & libc::SA_ONSTACK as u64 != 0 && stack.enabled() && !on_stack;
    if enter {
        sp = stack.sp.wrapping_add(stack.size);
    }
    let fp = fpstate::save(ctx);
    let fp_at = sp.wrapping_sub(fp.len() as u64) & !63;
    let at = (fp_at.wrapping_sub(FRAME as u64) & !15).wrapping_sub(8);
    if (enter || on_stack) && stack.enabled() && !stack.holds(at) {
        return Err(BadFrame);
    }
    let mut f = [0u8; FRAME];
    let mut put = |off: usize, v: u64| f[off..off + 8].copy_from_slice(&v.to_le_bytes());
    put(0, action.restorer);
    put(UC, UC_FLAGS);
    put(UC_STACK, stack.sp);
    put(UC_STACK + 8, u64::from(stack.flags));
    put(UC_STACK + 16, stack.size);
    for (i, r) in ORDER.iter().enumerate() {
        put(MC + 8 * i, ctx.gpr[*r]);
    }
    put(MC + 128, ctx.rip);
    put(MC + 136, ctx.rflags);
    put(MC + 144, SEGMENTS);
    put(MC + 152, info.err);
    put(MC + 160, info.trapno);
    put(MC + 168, mask);
    put(MC + 176, info.cr2);
    put(MC + 184, fp_at);
    put(UC_MASK, mask);
    f[INFO..].copy_from_slice(&info.bytes);
    guestmem::copy_to_guest(fp_at, &fp).map_err(|_| BadFrame)?;
    guestmem::copy_to_guest(at, &f).map_err(|_| BadFrame)?;
    if stack.flags & super::SS_AUTODISARM != 0 {
        *stack = Stack::default();
    }
    ctx.gpr[RDI] = u64::from(signo);
    ctx.gpr[RSI] = at + INFO as u64;
    ctx.gpr[RDX] = at + UC as u64;
    ctx.gpr[RAX] = 0;
    ctx.gpr[RSP] = at;
    ctx.rip = action.handler;
    ctx.rflags &= !(DF | RF | TF | AC);
    fpstate::reset(ctx);
    Ok(())
}

/// What `rt_sigreturn` brings back besides the registers.
pub struct Returned {
    /// The signal mask to set.
    pub mask: u64,
    /// The alternate stack to set.
    pub stack: Stack,
}

/// Pops the frame at the guest's stack pointer.
///
/// # Errors
/// The frame cannot be read or holds invalid state: SIGSEGV.
pub fn pop(ctx: &mut Ctx) -> Result<Returned, BadFrame> {
    let at = ctx.gpr[RSP].wrapping_sub(8);
    let mut f = [0u8; INFO];
    guestmem::copy_from_guest(&mut f, at).map_err(|_| BadFrame)?;
    let get = |off: usize| u64::from_le_bytes(f[off..off + 8].try_into().unwrap_or_default());
    let fp_at = get(MC + 184);
    let mut image = vec![0u8; fpstate::layout().size];
    if fp_at != 0 {
        // The area may end with the legacy region when the guest built the frame itself.
        if guestmem::copy_from_guest(&mut image, fp_at).is_err() {
            image.truncate(512);
            guestmem::copy_from_guest(&mut image, fp_at).map_err(|_| BadFrame)?;
        }
    }
    for (i, r) in ORDER.iter().enumerate() {
        ctx.gpr[*r] = get(MC + 8 * i);
    }
    ctx.rip = get(MC + 128);
    ctx.rflags = (ctx.rflags & !FIX_EFLAGS) | (get(MC + 136) & FIX_EFLAGS & !TF) | 0x202;
    if fp_at == 0 {
        fpstate::reset(ctx);
    } else {
        fpstate::restore(ctx, &image).map_err(|_| BadFrame)?;
    }
    let stack = Stack {
        sp: get(UC_STACK),
        flags: get(UC_STACK + 8) as u32,
        size: get(UC_STACK + 16),
    };
    Ok(Returned {
        mask: get(UC_MASK),
        stack,
    })
}
