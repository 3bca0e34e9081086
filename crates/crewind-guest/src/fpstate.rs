//! The guest's floating point and vector state as an XSAVE area in standard format, for signal frames.
//!
//! The vector registers are in the thread's [`Ctx`]; x87 state is still in the host's registers, because the
//! runtime never uses it. The image is a function of the guest's registers only: every component is marked
//! in use, and the x87 instruction and data pointers, which would be addresses in the code cache, are zero.

use crewind_x86::ctx::Ctx;
use std::sync::OnceLock;

/// Bytes of the legacy (FXSAVE) region.
const LEGACY: usize = 512;
/// Bytes of the XSAVE header.
const HEADER: usize = 64;
/// "XSFP": the kernel's FP_XSTATE_MAGIC1, in the software bytes of the legacy region.
const MAGIC1: u32 = 0x4650_5853;
/// The kernel's FP_XSTATE_MAGIC2, after the area.
const MAGIC2: u32 = 0x4650_5845;
/// Offset of the software-reserved bytes (struct _fpx_sw_bytes).
const SW_BYTES: usize = 464;
/// Components the guest may see: x87, SSE, AVX, opmask, ZMM_Hi256, Hi16_ZMM.
const KNOWN: u64 = 0xe7;

/// Where each component lies in the standard format.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Components in use on this machine, as in XCR0.
    pub features: u64,
    /// Size of the area without the trailing magic.
    pub size: usize,
    offsets: [usize; 8],
}

/// The machine's layout; zero features mean that only FXSAVE exists.
pub fn layout() -> &'static Layout {
    static LAYOUT: OnceLock<Layout> = OnceLock::new();
    LAYOUT.get_or_init(|| {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        let has_xsave = __cpuid(1).ecx & (1 << 27) != 0;
        if !has_xsave {
            return Layout {
                features: 0,
                size: LEGACY,
                offsets: [0; 8],
            };
        }
        let (lo, hi): (u32, u32);
        // SAFETY: OSXSAVE is set, so xgetbv(0) exists.
        unsafe {
            core::arch::asm!("xgetbv", in("ecx") 0, out("eax") lo, out("edx") hi);
        }
        let features = ((u64::from(hi) << 32) | u64::from(lo)) & KNOWN;
        let mut l = Layout {
            features,
            size: LEGACY + HEADER,
            offsets: [0; 8],
        };
        for i in 2..8u32 {
            if features & (1 << i) != 0 {
                let c = __cpuid_count(0xd, i);
                l.offsets[i as usize] = c.ebx as usize;
                l.size = l.size.max(c.ebx as usize + c.eax as usize);
            }
        }
        l
    })
}

/// Bytes a signal frame needs for the state.
pub fn frame_size() -> usize {
    let l = layout();
    if l.features == 0 { LEGACY } else { l.size + 4 }
}

#[repr(C, align(64))]
struct Fx([u8; LEGACY]);

/// The x87 state of a guest thread, which lives in its host thread: to be seen from another one.
pub struct X87(Box<Fx>);

impl Default for X87 {
    fn default() -> Self {
        X87(Box::new(Fx([0; LEGACY])))
    }
}

impl X87 {
    /// Notes the calling host thread's.
    pub fn note(&mut self) {
        // SAFETY: a 64-byte aligned area of 512 bytes.
        unsafe {
            core::arch::asm!("fxsave64 [{}]", in(reg) self.0.0.as_mut_ptr());
        }
    }
}

/// Writes the guest's state in the form the kernel puts into a signal frame.
pub fn save(ctx: &Ctx) -> Vec<u8> {
    let mut x87 = X87::default();
    x87.note();
    save_with(ctx, &x87)
}

/// As above, with an x87 state noted earlier.
pub fn save_with(ctx: &Ctx, x87: &X87) -> Vec<u8> {
    let l = layout();
    let mut out = vec![0u8; frame_size()];
    out[..LEGACY].copy_from_slice(&x87.0.0);
    out[6..24].fill(0);
    out[24..28].copy_from_slice(&ctx.mxcsr.to_le_bytes());
    for i in 0..16 {
        out[160 + 16 * i..][..16].copy_from_slice(&ctx.vec.zmm[i][..16]);
    }
    out[416..LEGACY].fill(0);
    if l.features == 0 {
        return out;
    }
    out[SW_BYTES..][..4].copy_from_slice(&MAGIC1.to_le_bytes());
    out[SW_BYTES + 4..][..4].copy_from_slice(&(l.size as u32 + 4).to_le_bytes());
    out[SW_BYTES + 8..][..8].copy_from_slice(&l.features.to_le_bytes());
    out[SW_BYTES + 16..][..4].copy_from_slice(&(l.size as u32).to_le_bytes());
    out[LEGACY..][..8].copy_from_slice(&l.features.to_le_bytes());
    for (comp, off) in l.components() {
        match comp {
            2 => (0..16)
                .for_each(|i| out[off + 16 * i..][..16].copy_from_slice(&ctx.vec.zmm[i][16..32])),
            5 => (0..8)
                .for_each(|i| out[off + 8 * i..][..8].copy_from_slice(&ctx.vec.k[i].to_le_bytes())),
            6 => (0..16)
                .for_each(|i| out[off + 32 * i..][..32].copy_from_slice(&ctx.vec.zmm[i][32..])),
            _ => (0..16)
                .for_each(|i| out[off + 64 * i..][..64].copy_from_slice(&ctx.vec.zmm[16 + i])),
        }
    }
    out[l.size..].copy_from_slice(&MAGIC2.to_le_bytes());
    out
}

impl Layout {
    /// Components beyond x87 and SSE, by number, and where each begins.
    pub fn components(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        [2, 5, 6, 7]
            .into_iter()
            .filter(|c| self.features & (1 << c) != 0)
            .map(|c| (c, self.offsets[c]))
    }
}

/// Bits of MXCSR that may be set (bit 17, misaligned exception mask, exists on AMD but not on Intel).
const MXCSR_MASK: u32 = 0x2ffff;

/// An image that cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadState;

/// Restores the guest's state from the image in a signal frame, as `rt_sigreturn` does. `image` holds what
/// could be read at the frame's pointer: at least the legacy region.
///
/// # Errors
/// The image is too short or holds an invalid MXCSR: the kernel raises SIGSEGV then.
pub fn restore(ctx: &mut Ctx, image: &[u8]) -> Result<(), BadState> {
    if image.len() < LEGACY {
        return Err(BadState);
    }
    let l = layout();
    let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap_or_default());
    let extended = l.features != 0 && word(SW_BYTES) == MAGIC1 && image.len() >= l.size;
    let present = if extended {
        u64::from_le_bytes(image[LEGACY..LEGACY + 8].try_into().unwrap_or_default()) & l.features
    } else {
        3
    };
    let mxcsr = if present & 6 != 0 { word(24) } else { 0x1f80 };
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(BadState);
    }
    reset(ctx);
    ctx.mxcsr = mxcsr;
    if present & 1 != 0 {
        let mut fx = Box::new(Fx([0; LEGACY]));
        fx.0[..160].copy_from_slice(&image[..160]);
        fx.0[24..32].copy_from_slice(&[0x80, 0x1f, 0, 0, 0, 0, 0, 0]);
        restore_x87(&fx);
    }
    if present & 2 != 0 {
        for i in 0..16 {
            ctx.vec.zmm[i][..16].copy_from_slice(&image[160 + 16 * i..][..16]);
        }
    }
    for (comp, off) in l.components() {
        if present & (1 << comp) == 0 {
            continue;
        }
        match comp {
            2 => (0..16)
                .for_each(|i| ctx.vec.zmm[i][16..32].copy_from_slice(&image[off + 16 * i..][..16])),
            5 => (0..8).for_each(|i| {
                ctx.vec.k[i] =
                    u64::from_le_bytes(image[off + 8 * i..][..8].try_into().unwrap_or_default());
            }),
            6 => (0..16)
                .for_each(|i| ctx.vec.zmm[i][32..].copy_from_slice(&image[off + 32 * i..][..32])),
            _ => (0..16)
                .for_each(|i| ctx.vec.zmm[16 + i].copy_from_slice(&image[off + 64 * i..][..64])),
        }
    }
    Ok(())
}

/// The state a signal handler starts with: everything initial (the kernel's fpu__clear_user_states).
pub fn reset(ctx: &mut Ctx) {
    ctx.mxcsr = 0x1f80;
    for z in &mut ctx.vec.zmm {
        z.fill(0);
    }
    ctx.vec.k.fill(0);
    // SAFETY: initialises x87 state, which belongs to the guest.
    unsafe { core::arch::asm!("fninit") };
}

fn restore_x87(fx: &Fx) {
    // SAFETY: fxrstor also loads xmm registers and MXCSR; the former are declared clobbered, the latter is
    // the runtime's default value in the image.
    unsafe {
        core::arch::asm!(
            "fxrstor64 [{}]", in(reg) fx.0.as_ptr(),
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
            out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_round_trips() {
        let mut ctx = Box::new(Ctx::new());
        for (i, z) in ctx.vec.zmm.iter_mut().enumerate() {
            z.iter_mut()
                .enumerate()
                .for_each(|(j, b)| *b = (i * 64 + j) as u8);
        }
        ctx.vec.k = [1, 2, 3, 4, 5, 6, 7, 8];
        ctx.mxcsr = 0x7f80;
        let image = save(&ctx);
        let mut back = Box::new(Ctx::new());
        restore(&mut back, &image).unwrap();
        assert_eq!(back.mxcsr, 0x7f80);
        assert_eq!(save(&back), image);
    }
}
