//! Registers as gdb wants them.

use crewind_guest::debug::wire;
use gdbstub::arch::{Arch, Registers};

/// x86-64 with AVX, as seen by a user program on Linux.
pub enum X86 {}

/// Registers in the order of the description.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Regs {
    bytes: Vec<u8>,
    rip: u64,
}

/// Numbers of general registers in the encoding of instructions, in gdb's order: rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp.
const ORDER: [usize; 16] = [0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15];

/// Selectors of a 64-bit user program on Linux: cs, ss, ds, es, fs, gs.
const SELECTORS: [u32; 6] = [0x33, 0x2b, 0, 0, 0, 0];

/// How many bytes registers have without those of AVX-512.
const PLAIN: usize = 16 * 8 + 8 + 4 + 6 * 4 + 8 * 10 + 8 * 4 + 16 * 16 + 4 + 8 + 2 * 8 + 16 * 16;
/// And with them: xmm16 to xmm31, the halves of their ymm, k0 to k7, the upper halves of zmm.
const WIDE: usize = PLAIN + 16 * 16 + 16 * 16 + 8 * 8 + 32 * 32;

impl Regs {
    /// As gdb sees them, with those of AVX-512 or without.
    pub fn new(r: &wire::Registers, avx512: bool) -> Regs {
        let mut b = Vec::with_capacity(WIDE);
        for n in ORDER {
            b.extend_from_slice(&r.gpr.get(n).copied().unwrap_or(0).to_le_bytes());
        }
        b.extend_from_slice(&r.rip.to_le_bytes());
        b.extend_from_slice(&(r.rflags as u32).to_le_bytes());
        for s in SELECTORS {
            b.extend_from_slice(&s.to_le_bytes());
        }
        let image = &r.x87;
        let half = |at: usize| u32::from(image[at]) | u32::from(image[at + 1]) << 8;
        for n in 0..8 {
            b.extend_from_slice(&image[32 + 16 * n..][..10]);
        }
        let (control, status, opcode) = (half(0), half(2), half(6));
        let control = [
            control,
            status,
            u32::from(full_tags(image)),
            0,
            0,
            0,
            0,
            opcode,
        ];
        for c in control {
            b.extend_from_slice(&c.to_le_bytes());
        }
        let (low, high) = r.zmm.split_at(16);
        low.iter().for_each(|z| b.extend_from_slice(&z[..16]));
        b.extend_from_slice(&r.mxcsr.to_le_bytes());
        // orig_rax: no system call is under way.
        b.extend_from_slice(&u64::MAX.to_le_bytes());
        b.extend_from_slice(&r.fs_base.to_le_bytes());
        b.extend_from_slice(&0u64.to_le_bytes());
        low.iter().for_each(|z| b.extend_from_slice(&z[16..32]));
        if avx512 {
            high.iter().for_each(|z| b.extend_from_slice(&z[..16]));
            high.iter().for_each(|z| b.extend_from_slice(&z[16..32]));
            for k in &r.k {
                b.extend_from_slice(&k.to_le_bytes());
            }
            r.zmm.iter().for_each(|z| b.extend_from_slice(&z[32..]));
        }
        Regs {
            bytes: b,
            rip: r.rip,
        }
    }

    /// What a thread has to have for gdb to see these; what gdb does not see is as in `now`. None: these are not all
    /// registers.
    pub fn to_wire(&self, now: &wire::Registers) -> Option<wire::Registers> {
        let mut rest = self.bytes.as_slice();
        let avx512 = match rest.len() {
            PLAIN => false,
            WIDE => true,
            _ => return None,
        };
        let mut r = now.clone();
        let mut take = |n: usize| {
            let (head, tail) = rest.split_at_checked(n)?;
            rest = tail;
            Some(head)
        };
        let word = |b: &[u8]| Some(u64::from_le_bytes(b.try_into().ok()?));
        let half = |b: &[u8]| Some(u32::from_le_bytes(b.try_into().ok()?));
        for n in ORDER {
            *r.gpr.get_mut(n)? = word(take(8)?)?;
        }
        r.rip = word(take(8)?)?;
        r.rflags = half(take(4)?)?.into();
        take(4 * SELECTORS.len())?;
        for n in 0..8 {
            r.x87[32 + 16 * n..][..10].copy_from_slice(take(10)?);
        }
        let mut control = [0; 8];
        for c in &mut control {
            *c = half(take(4)?)?;
        }
        let [fctrl, fstat, ftag, .., fop] = control;
        r.x87[..2].copy_from_slice(&(fctrl as u16).to_le_bytes());
        r.x87[2..4].copy_from_slice(&(fstat as u16).to_le_bytes());
        r.x87[4] = (0..8).fold(0, |t, n| t | u8::from(ftag >> (2 * n) & 3 != 3) << n);
        r.x87[6..8].copy_from_slice(&(fop as u16).to_le_bytes());
        let (low, high) = r.zmm.split_at_mut(16);
        for z in low.iter_mut() {
            z[..16].copy_from_slice(take(16)?);
        }
        r.mxcsr = half(take(4)?)?;
        take(8)?;
        r.fs_base = word(take(8)?)?;
        take(8)?;
        for z in low.iter_mut() {
            z[16..32].copy_from_slice(take(16)?);
        }
        if avx512 {
            for z in high.iter_mut() {
                z[..16].copy_from_slice(take(16)?);
            }
            for z in high.iter_mut() {
                z[16..32].copy_from_slice(take(16)?);
            }
            for k in &mut r.k {
                *k = word(take(8)?)?;
            }
            for z in &mut r.zmm {
                z[32..].copy_from_slice(take(32)?);
            }
        }
        Some(r)
    }
}

/// The tag word from the short form that FXSAVE has: two bits a register, by physical number.
fn full_tags(image: &[u8; 160]) -> u16 {
    let top = usize::from(image[3] >> 3 & 7);
    let mut tags = 0;
    for physical in 0..8 {
        let tag = if image[4] >> physical & 1 == 0 {
            3
        } else {
            let st = (physical + 8 - top) % 8;
            let v = &image[32 + 16 * st..][..10];
            let exponent = u16::from(v[8]) | u16::from(v[9] & 0x7f) << 8;
            let zero = v[..8].iter().all(|b| *b == 0);
            match exponent {
                0x7fff => 2,
                0 if zero => 1,
                0 => 2,
                _ if v[7] & 0x80 == 0 => 2,
                _ => 0,
            }
        };
        tags |= tag << (2 * physical);
    }
    tags
}

impl Registers for Regs {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.rip
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.bytes.iter().for_each(|b| write_byte(Some(*b)));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        self.bytes = bytes.to_vec();
        Ok(())
    }
}

impl Arch for X86 {
    type Usize = u64;
    type Registers = Regs;
    type BreakpointKind = usize;
    type RegId = ();

    fn target_description_xml() -> Option<&'static str> {
        Some(DESCRIPTION)
    }
}

/// The features of gdb's own amd64-avx-linux description, in its order.
const DESCRIPTION: &str = include_str!("x86_64.xml");

/// The description for threads with the registers of AVX-512, or without.
pub fn description(avx512: bool) -> String {
    if !avx512 {
        return DESCRIPTION.to_owned();
    }
    let mut feature = String::from(AVX512);
    let mut reg = |name: String, bits: u32, kind: &str| {
        feature.push_str(&format!(
            "<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\"/>\n"
        ));
    };
    (16..32).for_each(|n| reg(format!("xmm{n}"), 128, "vec128"));
    (16..32).for_each(|n| reg(format!("ymm{n}h"), 128, "uint128"));
    (0..8).for_each(|n| reg(format!("k{n}"), 64, "uint64"));
    (0..32).for_each(|n| reg(format!("zmm{n}h"), 256, "v2ui128"));
    feature.push_str("</feature>\n</target>");
    DESCRIPTION.replace("</target>", &feature)
}

/// The beginning of gdb's own 64bit-avx512 feature.
const AVX512: &str = r#"<feature name="org.gnu.gdb.i386.avx512">
<vector id="v4f" type="ieee_single" count="4"/>
<vector id="v2d" type="ieee_double" count="2"/>
<vector id="v16i8" type="int8" count="16"/>
<vector id="v8i16" type="int16" count="8"/>
<vector id="v4i32" type="int32" count="4"/>
<vector id="v2i64" type="int64" count="2"/>
<union id="vec128">
<field name="v4_float" type="v4f"/>
<field name="v2_double" type="v2d"/>
<field name="v16_int8" type="v16i8"/>
<field name="v8_int16" type="v8i16"/>
<field name="v4_int32" type="v4i32"/>
<field name="v2_int64" type="v2i64"/>
<field name="uint128" type="uint128"/>
</union>
<vector id="v2ui128" type="uint128" count="2"/>
"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> wire::Registers {
        let mut r = wire::Registers {
            gpr: std::array::from_fn(|n| n as u64 + 100),
            rip: 2,
            rflags: 3,
            fs_base: 4,
            mxcsr: 5,
            x87: [0; 160],
            zmm: std::array::from_fn(|n| std::array::from_fn(|m| (7 * n + m) as u8)),
            k: std::array::from_fn(|n| n as u64 + 200),
        };
        // 1.0 in the one register that is in use.
        (r.x87[0], r.x87[3], r.x87[4]) = (0x7f, 7 << 3, 0x80);
        (r.x87[32 + 7], r.x87[32 + 8], r.x87[32 + 9]) = (0x80, 0xff, 0x3f);
        r
    }

    #[test]
    fn description_and_bytes_have_one_length() {
        for avx512 in [false, true] {
            let mut bits = 0;
            let text = description(avx512);
            for reg in text.split("<reg ").skip(1) {
                let size = reg.split("bitsize=\"").nth(1).unwrap();
                bits += size.split('"').next().unwrap().parse::<usize>().unwrap();
            }
            assert_eq!(Regs::new(&some(), avx512).bytes.len() * 8, bits);
        }
    }

    #[test]
    fn registers_survive_the_way_to_gdb_and_back() {
        let r = some();
        assert_eq!(Regs::new(&r, true).to_wire(&r), Some(r.clone()));
        let mut other = r.clone();
        other.gpr = [0; 16];
        other.k = [0; 8];
        let back = Regs::new(&r, false).to_wire(&other).unwrap();
        assert_eq!((back.gpr, back.k), (r.gpr, [0; 8]));
        let short = Regs {
            bytes: vec![0; 9],
            rip: 0,
        };
        assert_eq!(short.to_wire(&r), None);
    }

    #[test]
    fn tags_of_the_x87_stack() {
        let mut image = [0; 160];
        assert_eq!(full_tags(&image), 0xffff);
        // Top 6; physical 6 and 7 in use: 1.0 and 0.0.
        image[3] = 6 << 3;
        image[4] = 0xc0;
        image[32 + 7] = 0x80;
        image[32 + 8] = 0xff;
        image[32 + 9] = 0x3f;
        assert_eq!(full_tags(&image), 0b01_00_11_11_11_11_11_11);
    }
}
