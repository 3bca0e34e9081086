//! The FPU-state family (fxsave, xsave, ...), with results that depend on nothing but the guest's state.
//!
//! The processor's own results hold things that are not the guest's: the addresses of the last x87 instruction and
//! operand (they point into the code cache, and vendors differ in when they keep them) and which components are in
//! their initial state (which depends on what the runtime did). Here the addresses are always 0, a save writes every
//! component that is asked for and supported, and XSTATE_BV has them all.

use crate::cpuid;
use crate::ctx::Ctx;
use crate::insn::{GuestMemory, InsnExit, InsnFault, InsnKind, effective_address};
use crate::stubs::Vectors;
use iced_x86::{Instruction, Mnemonic};
use std::sync::OnceLock;

/// An fxsave image, aligned as the instruction wants.
#[repr(C, align(16))]
struct Legacy([u8; 512]);

const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
const OPMASK: u64 = 1 << 5;
const ZMM_HI: u64 = 1 << 6;
const HI_ZMM: u64 = 1 << 7;
const COMPACT: u64 = 1 << 63;
const MXCSR_INIT: u32 = 0x1f80;
const HEADER: usize = 512;
const EXTENDED: usize = 576;

/// Does the instruction at `ctx.rip` and moves `ctx.rip` behind it.
///
/// The x87 state of the calling thread is the guest's.
pub fn emulate(ctx: &mut Ctx, insn: &InsnExit, mem: &mut dyn GuestMemory) -> Result<(), InsnFault> {
    let i = insn.decode(ctx.rip);
    let addr = effective_address(ctx, &i);
    match insn.kind {
        InsnKind::Fxsave => {
            aligned(addr, 16)?;
            let l = legacy_image(ctx, X87 | SSE, true, &[0; 512]);
            // The last 96 bytes are not written.
            store(mem, addr, l.0.get(..416).unwrap_or(&l.0))?;
        }
        InsnKind::Fxrstor => {
            aligned(addr, 16)?;
            let mut l = Legacy([0; 512]);
            load(mem, addr, &mut l.0)?;
            restore_legacy(ctx, &l, X87 | SSE, true)?;
        }
        InsnKind::Fnsave | InsnKind::Fnstenv => x87_environment(mem, &i, addr)?,
        InsnKind::Xsave | InsnKind::Xsaveopt => {
            save(ctx, mem, addr, false)?;
        }
        InsnKind::Xsavec => save(ctx, mem, addr, true)?,
        InsnKind::Xrstor => restore(ctx, mem, addr)?,
        _ => return Err(InsnFault::InvalidOpcode),
    }
    ctx.rip = i.next_ip();
    Ok(())
}

/// Bits of MXCSR that the cpu has; others raise #GP.
fn mxcsr_mask() -> u32 {
    static MASK: OnceLock<u32> = OnceLock::new();
    *MASK.get_or_init(|| {
        let mut host = Legacy([0; 512]);
        // SAFETY: 512 bytes, aligned to 16.
        unsafe { core::arch::x86_64::_fxsave64(host.0.as_mut_ptr()) };
        match u32::from_le_bytes(get::<4>(&host.0, 28)) {
            0 => 0xffbf,
            m => m,
        }
    })
}

fn aligned(addr: u64, to: u64) -> Result<(), InsnFault> {
    if addr & (to - 1) == 0 {
        Ok(())
    } else {
        Err(InsnFault::GeneralProtection)
    }
}

fn load(mem: &mut dyn GuestMemory, addr: u64, buf: &mut [u8]) -> Result<(), InsnFault> {
    mem.read(addr, buf)
        .map_err(|addr| InsnFault::Memory { addr, write: false })
}

fn store(mem: &mut dyn GuestMemory, addr: u64, buf: &[u8]) -> Result<(), InsnFault> {
    mem.write(addr, buf)
        .map_err(|addr| InsnFault::Memory { addr, write: true })
}

/// Copies `src` to the start of `dst[at..]`; both are sized by construction.
fn put(dst: &mut [u8], at: usize, src: &[u8]) {
    if let Some(d) = dst.get_mut(at..at + src.len()) {
        d.copy_from_slice(src);
    }
}

fn get<const N: usize>(src: &[u8], at: usize) -> [u8; N] {
    src.get(at..at + N)
        .and_then(|s| s.try_into().ok())
        .unwrap_or([0; N])
}

/// Registers in memory order of the legacy area.
fn legacy_image(ctx: &Ctx, components: u64, with_mxcsr: bool, old: &[u8; 512]) -> Legacy {
    let mut l = Legacy(*old);
    if components & X87 != 0 {
        let mut host = Legacy([0; 512]);
        // SAFETY: 512 bytes, aligned to 16. The thread's x87 state is the guest's.
        unsafe { core::arch::x86_64::_fxsave64(host.0.as_mut_ptr()) };
        put(&mut l.0, 0, &get::<5>(&host.0, 0)); // control, status, tags
        put(&mut l.0, 5, &[0; 19]); // reserved, opcode and the two addresses
        for n in 0..8 {
            // Six reserved bytes behind each register are written as zeros.
            put(&mut l.0, 32 + 16 * n, &get::<10>(&host.0, 32 + 16 * n));
            put(&mut l.0, 42 + 16 * n, &[0; 6]);
        }
    }
    if with_mxcsr {
        put(&mut l.0, 24, &ctx.mxcsr.to_le_bytes());
        put(&mut l.0, 28, &mxcsr_mask().to_le_bytes());
    }
    if components & SSE != 0 {
        for (n, z) in ctx.vec.zmm.iter().take(16).enumerate() {
            put(&mut l.0, 160 + 16 * n, &get::<16>(z, 0));
        }
    }
    l
}

/// Takes x87 and SSE state from a legacy area; `init` leaves out what is not in `components`.
fn restore_legacy(
    ctx: &mut Ctx,
    l: &Legacy,
    components: u64,
    with_mxcsr: bool,
) -> Result<(), InsnFault> {
    let mxcsr = u32::from_le_bytes(get::<4>(&l.0, 24));
    if with_mxcsr && mxcsr & !mxcsr_mask() != 0 {
        return Err(InsnFault::GeneralProtection);
    }
    if components & X87 != 0 {
        restore_x87(l);
    }
    if with_mxcsr {
        ctx.mxcsr = mxcsr;
    }
    if components & SSE != 0 {
        for (n, z) in ctx.vec.zmm.iter_mut().take(16).enumerate() {
            put(z, 0, &get::<16>(&l.0, 160 + 16 * n));
        }
    }
    Ok(())
}

/// Loads the x87 part of an image into the thread, everything else of the thread's unchanged.
fn restore_x87(l: &Legacy) {
    let mut host = Legacy([0; 512]);
    // SAFETY: 512 bytes aligned to 16; what is loaded is what was saved but for the x87 part.
    unsafe {
        core::arch::x86_64::_fxsave64(host.0.as_mut_ptr());
        put(&mut host.0, 0, &get::<5>(&l.0, 0));
        put(&mut host.0, 5, &[0; 19]);
        put(&mut host.0, 32, &get::<128>(&l.0, 32));
        core::arch::x86_64::_fxrstor64(host.0.as_ptr());
    }
}

fn init_x87() {
    let mut l = Legacy([0; 512]);
    put(&mut l.0, 0, &0x37fu16.to_le_bytes());
    restore_x87(&l);
}

fn x87_environment(mem: &mut dyn GuestMemory, i: &Instruction, addr: u64) -> Result<(), InsnFault> {
    let mut image = [0u8; 108];
    let short = i.memory_size().size() == 14 || i.memory_size().size() == 94;
    // Saved in the format of the instruction, put back, made canonical, stored, and only then masked or initialised, as
    // the store may fault.
    // SAFETY: 108 bytes hold any of the formats; fnsave followed by frstor leaves x87 state as it was.
    unsafe {
        core::arch::asm!("fnsave [{0}]", "frstor [{0}]", in(reg) image.as_mut_ptr(), options(nostack));
    }
    let (env, regs) = if short { (14, 94) } else { (28, 108) };
    let mut out = [0u8; 108];
    if short {
        // Control, status and tag words side by side; the addresses stay 0.
        for n in 0..3 {
            put(&mut out, 2 * n, &get::<2>(&image, 4 * n));
        }
        put(&mut out, 14, &get::<80>(&image, 28));
    } else {
        for n in 0..3 {
            // The upper halves read as ones.
            put(&mut out, 4 * n, &get::<2>(&image, 4 * n));
            put(&mut out, 4 * n + 2, &[0xff, 0xff]);
        }
        put(&mut out, 24, &[0, 0, 0xff, 0xff]);
        put(&mut out, 28, &get::<80>(&image, 28));
    }
    let all = i.mnemonic() == Mnemonic::Fnsave;
    store(
        mem,
        addr,
        out.get(..if all { regs } else { env }).unwrap_or(&out),
    )?;
    if all {
        // SAFETY: initialises x87 as the guest's instruction does.
        unsafe { core::arch::asm!("fninit", options(nomem, nostack)) };
    } else {
        // SAFETY: 28 bytes fit. Done natively for its effect: it masks all exceptions, and unlike `fldcw` does not raise a
        // pending one.
        unsafe { core::arch::asm!("fnstenv [{}]", in(reg) image.as_mut_ptr(), options(nostack)) };
    }
    Ok(())
}

/// Components asked for by edx:eax that the guest has.
fn requested(ctx: &Ctx) -> Result<u64, InsnFault> {
    let xcr0 = cpuid::guest_xcr0();
    if xcr0 == 0 {
        return Err(InsnFault::InvalidOpcode);
    }
    Ok((ctx.gpr[2] << 32 | (ctx.gpr[0] & 0xffff_ffff)) & xcr0)
}

/// Where each extended component of `mask` lies: (component, offset, size).
fn layout(mask: u64, compact: bool) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut next = EXTENDED;
    (2..63u32)
        .filter(move |n| mask >> n & 1 != 0)
        .map(move |n| {
            let (offset, size) = cpuid::component(n);
            let at = if compact { next } else { offset };
            next += size;
            (1u64 << n, at, size)
        })
}

fn save(ctx: &Ctx, mem: &mut dyn GuestMemory, addr: u64, compact: bool) -> Result<(), InsnFault> {
    let components = requested(ctx)?;
    aligned(addr, 64)?;
    let mut old = [0u8; 512];
    load_for_write(mem, addr, &mut old)?;
    // The compacted form counts MXCSR to SSE alone.
    let with_mxcsr = components & if compact { SSE } else { SSE | AVX } != 0;
    let l = legacy_image(ctx, components, with_mxcsr, &old);
    // Everything is put together first and stored in the order of addresses, then a fault can only cut the end off;
    // the instruction is done again from the start.
    let mut header = [0u8; 16];
    let used = if compact { 16 } else { 8 };
    if compact {
        put(&mut header, 0, &components.to_le_bytes());
        put(&mut header, 8, &(components | COMPACT).to_le_bytes());
    } else {
        // Bits of components not asked for stay, as does the rest of the header in both forms.
        let mut old = [0u8; 8];
        load_for_write(mem, addr + HEADER as u64, &mut old)?;
        let bv = (u64::from_le_bytes(old) & !components) | components;
        put(&mut header, 0, &bv.to_le_bytes());
    }
    store(
        mem,
        addr,
        l.0.get(..if components & 3 == 3 { 416 } else { 512 })
            .unwrap_or(&l.0),
    )?;
    store(
        mem,
        addr + HEADER as u64,
        header.get(..used).unwrap_or(&header),
    )?;
    for (c, at, size) in layout(components, compact) {
        // The largest component that is kept is the upper sixteen zmm registers.
        let mut image = [0u8; 1024];
        let image = image.get_mut(..size).ok_or(InsnFault::InvalidOpcode)?;
        gather(ctx, c, image);
        store(mem, addr + at as u64, image)?;
    }
    Ok(())
}

/// Bytes that are going to be written: a fault is a write fault.
fn load_for_write(mem: &mut dyn GuestMemory, addr: u64, buf: &mut [u8]) -> Result<(), InsnFault> {
    mem.read(addr, buf)
        .map_err(|addr| InsnFault::Memory { addr, write: true })
}

/// Parts of a zmm register that an extended component holds: (first register, registers, offset, size).
fn part(component: u64) -> Option<(usize, usize, usize, usize)> {
    match component {
        AVX => Some((0, 16, 16, 16)),
        ZMM_HI => Some((0, 16, 32, 32)),
        HI_ZMM => Some((16, 16, 0, 64)),
        _ => None,
    }
}

fn gather(ctx: &Ctx, component: u64, image: &mut [u8]) {
    if component == OPMASK {
        for (n, k) in ctx.vec.k.iter().enumerate() {
            put(image, 8 * n, &k.to_le_bytes());
        }
    } else if let Some((first, count, offset, size)) = part(component) {
        for (n, z) in ctx.vec.zmm.iter().skip(first).take(count).enumerate() {
            put(image, size * n, z.get(offset..offset + size).unwrap_or(&[]));
        }
    }
}

/// The reverse of `gather`; None: initial state.
fn scatter(ctx: &mut Ctx, component: u64, image: Option<&[u8]>) {
    if component == OPMASK {
        for (n, k) in ctx.vec.k.iter_mut().enumerate() {
            *k = image.map_or(0, |i| u64::from_le_bytes(get::<8>(i, 8 * n)));
        }
    } else if let Some((first, count, offset, size)) = part(component) {
        for (n, z) in ctx.vec.zmm.iter_mut().skip(first).take(count).enumerate() {
            match image.and_then(|i| i.get(size * n..size * (n + 1))) {
                Some(s) => put(z, offset, s),
                None => z.get_mut(offset..offset + size).unwrap_or(&mut []).fill(0),
            }
        }
    }
}

fn restore(ctx: &mut Ctx, mem: &mut dyn GuestMemory, addr: u64) -> Result<(), InsnFault> {
    let components = requested(ctx)?;
    let xcr0 = cpuid::guest_xcr0();
    aligned(addr, 64)?;
    let mut header = [0u8; 64];
    load(mem, addr + HEADER as u64, &mut header)?;
    let bv = u64::from_le_bytes(get::<8>(&header, 0));
    let comp = u64::from_le_bytes(get::<8>(&header, 8));
    let compact = comp & COMPACT != 0;
    let layout_mask = comp & !COMPACT;
    let reserved = if compact {
        header.get(16..)
    } else {
        header.get(8..24)
    };
    let reserved_used = reserved.unwrap_or(&[]).iter().any(|b| *b != 0);
    let bad = if compact {
        layout_mask & !xcr0 != 0 || bv & !layout_mask != 0
    } else {
        bv & !xcr0 != 0
    };
    if bad || reserved_used {
        return Err(InsnFault::GeneralProtection);
    }
    // Everything is read before anything changes: a fault leaves the state alone.
    let mut legacy = Legacy([0; 512]);
    load(mem, addr, &mut legacy.0)?;
    let mut images = Vec::new();
    let mask = if compact { layout_mask } else { components };
    for (c, at, size) in layout(mask, compact).filter(|(c, _, _)| components & bv & c != 0) {
        let mut image = vec![0u8; size];
        load(mem, addr + at as u64, &mut image)?;
        images.push((c, image));
    }
    // The standard form loads MXCSR whenever SSE or AVX is asked for, the compacted one only with SSE state.
    let from_memory = components & bv;
    let with_mxcsr = if compact {
        from_memory & SSE != 0
    } else {
        components & (SSE | AVX) != 0
    };
    restore_legacy(ctx, &legacy, from_memory & (X87 | SSE), with_mxcsr)?;
    let initial = components & !bv;
    if initial & X87 != 0 {
        init_x87();
    }
    if initial & SSE != 0 {
        if compact {
            ctx.mxcsr = MXCSR_INIT;
        }
        for z in ctx.vec.zmm.iter_mut().take(16) {
            put(z, 0, &[0; 16]);
        }
    }
    for c in [AVX, OPMASK, ZMM_HI, HI_ZMM]
        .into_iter()
        .filter(|c| initial & c != 0)
    {
        scatter(ctx, c, None);
    }
    for (c, image) in &images {
        scatter(ctx, *c, Some(image));
    }
    Ok(())
}

/// Whether the processor keeps the guest's vector state in the parts of `Ctx::vec` that this crate fills.
pub fn vector_bytes() -> usize {
    match Vectors::host() {
        Vectors::Xmm => 16,
        Vectors::Ymm => 32,
        Vectors::Zmm => 64,
    }
}
