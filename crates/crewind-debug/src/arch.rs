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

impl From<&wire::Registers> for Regs {
    fn from(r: &wire::Registers) -> Regs {
        let mut b = Vec::with_capacity(900);
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
        for y in &r.ymm {
            b.extend_from_slice(&y[..16]);
        }
        b.extend_from_slice(&r.mxcsr.to_le_bytes());
        // orig_rax: no system call is under way.
        b.extend_from_slice(&u64::MAX.to_le_bytes());
        b.extend_from_slice(&r.fs_base.to_le_bytes());
        b.extend_from_slice(&0u64.to_le_bytes());
        for y in &r.ymm {
            b.extend_from_slice(&y[16..]);
        }
        Regs {
            bytes: b,
            rip: r.rip,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn description_and_bytes_have_one_length() {
        let mut bits = 0;
        for reg in DESCRIPTION.split("<reg ").skip(1) {
            let size = reg.split("bitsize=\"").nth(1).unwrap();
            bits += size.split('"').next().unwrap().parse::<usize>().unwrap();
        }
        let r = wire::Registers {
            gpr: [1; 16],
            rip: 2,
            rflags: 3,
            fs_base: 4,
            mxcsr: 5,
            x87: [0; 160],
            ymm: [[7; 32]; 16],
        };
        assert_eq!(Regs::from(&r).bytes.len() * 8, bits);
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
