//! `cpuid` as the guest sees it.

use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

/// Registers after `cpuid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct CpuidRegs {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// The host's own answer.
pub(crate) fn host(leaf: u32, subleaf: u32) -> CpuidRegs {
    let r = __cpuid_count(leaf, subleaf);
    CpuidRegs {
        eax: r.eax,
        ebx: r.ebx,
        ecx: r.ecx,
        edx: r.edx,
    }
}

/// The host has XSAVE and the kernel uses it.
fn has_osxsave() -> bool {
    host(1, 0).ecx & 1 << 27 != 0
}

/// The host is an AMD cpu (or one by AMD's design).
pub fn is_amd() -> bool {
    static AMD: OnceLock<bool> = OnceLock::new();
    *AMD.get_or_init(|| {
        let v = host(0, 0);
        // AuthenticAMD, HygonGenuine.
        matches!(v.ebx, 0x6874_7541 | 0x6f67_7948)
    })
}

pub(crate) fn has_rdrand() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| host(1, 0).ecx & 1 << 30 != 0)
}

pub(crate) fn has_rdseed() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| max_leaf() >= 7 && host(7, 0).ebx & 1 << 18 != 0)
}

pub(crate) fn has_xgetbv1() -> bool {
    max_leaf() >= 0xd && host(0xd, 1).eax & 1 << 2 != 0
}

fn max_leaf() -> u32 {
    host(0, 0).eax
}

/// Whether user code may use `wrgsbase` and its kin: the kernel tells in AT_HWCAP2.
pub(crate) fn has_fsgsbase() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        const HWCAP2_FSGSBASE: u64 = 1 << 1;
        // SAFETY: reads the auxiliary vector.
        unsafe { libc::getauxval(libc::AT_HWCAP2) & HWCAP2_FSGSBASE != 0 }
    })
}

/// x87, SSE, AVX, AVX-512: the components of XSAVE that the guest sees.
const XCR0_KEPT: u64 = 0b1110_0111;

/// XCR0 as the guest sees it.
pub fn guest_xcr0() -> u64 {
    static XCR0: OnceLock<u64> = OnceLock::new();
    *XCR0.get_or_init(|| {
        if !has_osxsave() {
            return 0;
        }
        let (lo, hi): (u32, u32);
        // SAFETY: cpuid shows that the kernel turned xsave on.
        unsafe {
            core::arch::asm!("xgetbv", in("ecx") 0, out("eax") lo, out("edx") hi, options(nomem, nostack));
        }
        (u64::from(hi) << 32 | u64::from(lo)) & XCR0_KEPT
    })
}

/// Offset and size of a component in the standard format. (Kept: `cpuid` leaves a virtual machine.)
pub(crate) fn component(n: u32) -> (usize, usize) {
    static TABLE: OnceLock<[(usize, usize); 64]> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let mut t = [(0, 0); 64];
        for (n, e) in t
            .iter_mut()
            .enumerate()
            .filter(|(n, _)| XCR0_KEPT >> n & 1 != 0)
        {
            let c = host(0xd, n as u32);
            *e = (c.ebx as usize, c.eax as usize);
        }
        t
    });
    table.get(n as usize).copied().unwrap_or_default()
}

/// Bytes of the standard format for the guest's XCR0.
pub(crate) fn xsave_size() -> u32 {
    (2..64)
        .filter(|n| guest_xcr0() >> n & 1 != 0)
        .map(component)
        .map(|(o, s)| (o + s) as u32)
        .max()
        .unwrap_or(576)
}

/// Bytes of the compacted format for these components (none is aligned among those kept).
pub(crate) fn compact_size(mask: u64) -> u32 {
    576 + (2..63)
        .filter(|n| mask >> n & 1 != 0)
        .map(|n| component(n).1 as u32)
        .sum::<u32>()
}

/// The host's `cpuid` without what cannot be made deterministic: TSX, PKU, CET, WAITPKG, RDPRU, MONITORX, AMX, UINTR,
/// key locker, performance counters; ids of the cpu it happens to run on are 0.
pub fn guest_cpuid(leaf: u32, subleaf: u32) -> CpuidRegs {
    // Beyond the highest leaf Intel gives the data of the highest basic leaf: give zeros, as AMD does.
    let top = if leaf < 0x4000_0000 {
        max_leaf()
    } else {
        host(leaf & 0xf000_0000, 0).eax
    };
    let zero = CpuidRegs::default();
    match leaf {
        0x4000_0000..=0x4fff_ffff => return zero,
        _ if leaf > top => return zero,
        _ => {}
    }
    let mut r = host(leaf, subleaf);
    match leaf {
        1 => {
            r.ebx &= 0x00ff_ffff; // initial APIC id
            r.ecx &= !(1 << 3); // monitor
            r.ecx &= !(1 << 15); // pdcm
            r.ecx &= !(1 << 24); // tsc-deadline
            r.ecx &= !(1 << 31); // hypervisor: its leaves are not shown
            // The kernel sets OSXSAVE per cpu; it is on in user mode wherever XSAVE is.
        }
        7 => match subleaf {
            0 => {
                r.eax = r.eax.min(2);
                r.ebx &= !(1 << 4 | 1 << 11 | 1 << 2 | 1 << 14); // HLE, RTM, SGX, MPX
                if !has_fsgsbase() {
                    r.ebx &= !1;
                }
                // PKU, OSPKE, WAITPKG, CET_SS, key locker, SGX_LC, ENQCMD, RDPID stays
                r.ecx &=
                    !(1 << 3 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 23 | 1 << 29 | 1 << 30 | 1 << 31);
                // UINTR, RTM_ALWAYS_ABORT, TSX_FORCE_ABORT, HYBRID, TSXLDTRK, PCONFIG, ARCH_LBR, CET_IBT, AMX
                r.edx &= !(1 << 5
                    | 1 << 11
                    | 1 << 13
                    | 1 << 15
                    | 1 << 16
                    | 1 << 18
                    | 1 << 19
                    | 1 << 20
                    | 1 << 22
                    | 1 << 24
                    | 1 << 25);
            }
            1 => {
                r.eax &= !(1 << 17 | 1 << 21 | 1 << 22 | 1 << 27); // FRED, AMX-FP16, HRESET, MSRLIST
                r.edx &= !(1 << 8 | 1 << 15 | 1 << 18 | 1 << 19 | 1 << 21); // AMX, USER_MSR, CET_SSS, AVX10, APX
            }
            2 => {}
            _ => return zero,
        },
        // MONITOR, performance counters, SGX, tracing, tiles, key locker, AVX10.
        5 | 0xa | 0x12 | 0x14 | 0x19 | 0x1a | 0x1c | 0x1d | 0x1e | 0x23 | 0x24 => return zero,
        0xb | 0x1f | 0x8000_0026 => r.edx = 0, // x2APIC id
        0xd => return xsave_leaf(subleaf, r),
        0x8000_0001 => {
            r.ecx &= !(1 << 2 | 1 << 29 | 1 << 23 | 1 << 24 | 1 << 28 | 1 << 15 | 1 << 10); // SVM, MONITORX, counters, LWP, IBS
        }
        0x8000_0008 => r.ebx &= !(1 << 4 | 1 << 3), // RDPRU, INVLPGB
        0x8000_001e => {
            r.eax = 0;
            r.ebx &= !0xff;
            r.ecx &= !0xff;
        }
        0x8000_000a | 0x8000_001b | 0x8000_001f | 0x8000_0022 => return zero,
        _ => {}
    }
    r
}

fn xsave_leaf(subleaf: u32, host: CpuidRegs) -> CpuidRegs {
    let xcr0 = guest_xcr0();
    match subleaf {
        0 => CpuidRegs {
            eax: xcr0 as u32,
            ebx: xsave_size(),
            ecx: xsave_size(),
            edx: 0,
        },
        // XSAVEOPT, XSAVEC, XGETBV(1); supervisor state and XFD are not for the guest.
        1 => CpuidRegs {
            eax: host.eax & 0b111,
            ebx: compact_size(xcr0),
            ecx: 0,
            edx: 0,
        },
        2..=63 if xcr0 >> subleaf & 1 != 0 => host,
        _ => CpuidRegs::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hides_what_varies() {
        let l7 = guest_cpuid(7, 0);
        assert_eq!(l7.ebx & (1 << 4 | 1 << 11), 0);
        assert_eq!(l7.ecx & (1 << 3 | 1 << 4), 0);
        assert_eq!(guest_cpuid(0x4000_0000, 0), CpuidRegs::default());
        assert_eq!(guest_cpuid(0x1f00_0000, 0), CpuidRegs::default());
        assert_eq!(guest_cpuid(1, 0).ebx >> 24, 0);
        assert_eq!(guest_cpuid(0xd, 9), CpuidRegs::default());
        if guest_xcr0() == 7 {
            assert_eq!(guest_cpuid(0xd, 0).ebx, 832);
        }
    }
}
