//! From a cache address back to the guest's exact state: the table of one translation.
//!
//! One entry per guest instruction. First byte: low nibble the guest's length (1 to 15), high nibble a form:
//! 0: the emitted length is the same; 1: a byte with the emitted length; 2: that and a byte with the register that
//! lies in scratch slot 0 while the pc is behind the first emitted instruction. Guest length 0: form 0, a byte with the
//! length of padding; form 1, eight bytes with the guest pc that follows (a jump was followed); form 2, a byte with the
//! length of code that belongs to the next instruction, and one with the register that lies in the cell `borrowed`
//! meanwhile; form 3, two bytes with what the clock is ahead by from here on (`Owed`). Form 3 of an instruction is form 1 with
//! a byte more, the register that lies in `borrowed` all the time; form 4 is form 2 with that byte.

/// Ticks that a counter of the clock has counted in advance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owed {
    /// Which counter.
    pub counter: u8,
    /// How many.
    pub ticks: u8,
}

/// Writes a table.
#[derive(Default)]
pub(crate) struct MapWriter {
    pub bytes: Vec<u8>,
}

impl MapWriter {
    pub(crate) fn insn(
        &mut self,
        guest: usize,
        host: usize,
        spilled: Option<u8>,
        borrowed: Option<u8>,
    ) {
        debug_assert!(
            (1..16).contains(&guest) && host < 256,
            "guest {guest} host {host}"
        );
        let g = guest.clamp(1, 15) as u8;
        let h = host as u8;
        match (spilled, borrowed) {
            (Some(s), Some(b)) => self.bytes.extend_from_slice(&[g | 0x40, h, s, b]),
            (None, Some(b)) => self.bytes.extend_from_slice(&[g | 0x30, h, b]),
            (Some(s), None) => self.bytes.extend_from_slice(&[g | 0x20, h, s]),
            (None, None) if guest == host => self.bytes.push(g),
            (None, None) => self.bytes.extend_from_slice(&[g | 0x10, h]),
        }
    }

    pub(crate) fn pad(&mut self, mut host: usize) {
        while host != 0 {
            let n = host.min(255);
            self.bytes.extend_from_slice(&[0, n as u8]);
            host -= n;
        }
    }

    /// Code in front of an instruction while `borrowed` is in its cell.
    pub(crate) fn check(&mut self, mut host: usize, borrowed: u8) {
        while host != 0 {
            let n = host.min(255);
            self.bytes.extend_from_slice(&[0x20, n as u8, borrowed]);
            host -= n;
        }
    }

    /// One or the other.
    pub(crate) fn code(&mut self, host: usize, borrowed: Option<u8>) {
        match borrowed {
            Some(reg) => self.check(host, reg),
            None => self.pad(host),
        }
    }

    /// What the clock is ahead by from here on.
    pub(crate) fn owed(&mut self, owed: Owed) {
        self.bytes
            .extend_from_slice(&[0x30, owed.counter, owed.ticks]);
    }

    pub(crate) fn jump(&mut self, pc: u64) {
        self.bytes.push(0x10);
        self.bytes.extend_from_slice(&pc.to_le_bytes());
    }
}

/// A place found in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub pc: u64,
    /// Register to take from scratch slot 0.
    pub spilled: Option<u8>,
    /// Register to take from the cell `borrowed`.
    pub borrowed: Option<u8>,
    /// What the clock is ahead by.
    pub owed: Option<Owed>,
}

/// One entry of a table.
enum Entry {
    Insn {
        guest: u64,
        host: usize,
        spilled: Option<u8>,
        borrowed: Option<u8>,
    },
    Code {
        host: usize,
        borrowed: Option<u8>,
    },
    Jump(u64),
    Owed(Owed),
}

fn next(it: &mut impl Iterator<Item = u8>) -> Option<Entry> {
    let b = it.next()?;
    let guest = u64::from(b & 15);
    if guest == 0 {
        return Some(match b >> 4 {
            0 => Entry::Code {
                host: usize::from(it.next()?),
                borrowed: None,
            },
            1 => {
                let mut raw = [0u8; 8];
                for r in &mut raw {
                    *r = it.next()?;
                }
                Entry::Jump(u64::from_le_bytes(raw))
            }
            2 => Entry::Code {
                host: usize::from(it.next()?),
                borrowed: Some(it.next()?),
            },
            _ => Entry::Owed(Owed {
                counter: it.next()?,
                ticks: it.next()?,
            }),
        });
    }
    let host = match b >> 4 {
        0 => guest as usize,
        _ => usize::from(it.next()?),
    };
    let spilled = match b >> 4 {
        2 | 4 => Some(it.next()?),
        _ => None,
    };
    let borrowed = match b >> 4 {
        3 | 4 => Some(it.next()?),
        _ => None,
    };
    Some(Entry::Insn {
        guest,
        host,
        spilled,
        borrowed,
    })
}

/// Guest instruction at `offset` into the translation's body. None behind the last one.
pub(crate) fn find(map: &[u8], start_pc: u64, offset: usize) -> Option<Place> {
    let mut pc = start_pc;
    let mut at = 0usize;
    let mut owed = None;
    let mut it = map.iter().copied();
    while let Some(e) = next(&mut it) {
        let (guest, host, spilled, borrowed) = match e {
            Entry::Jump(to) => {
                pc = to;
                continue;
            }
            Entry::Owed(o) => {
                owed = Some(o);
                continue;
            }
            Entry::Code { host, borrowed } => (0, host, None, borrowed),
            Entry::Insn {
                guest,
                host,
                spilled,
                borrowed,
            } => (guest, host, spilled, borrowed),
        };
        if offset < at + host {
            return Some(Place {
                pc,
                spilled: spilled.filter(|_| offset > at),
                borrowed,
                owed,
            });
        }
        at += host;
        pc = pc.wrapping_add(guest);
    }
    // Directly behind the last instruction: a trap of it (int3).
    (offset == at).then_some(Place {
        pc,
        spilled: None,
        borrowed: None,
        owed,
    })
}

/// Whether the translation holds the guest instruction at `pc`. A jump that was followed counts where it leads from.
pub(crate) fn holds(map: &[u8], start_pc: u64, pc: u64) -> bool {
    let mut at = start_pc;
    let mut it = map.iter().copied();
    loop {
        if at == pc {
            return true;
        }
        match next(&mut it) {
            None => return false,
            Some(Entry::Jump(to)) => at = to,
            Some(Entry::Code { .. } | Entry::Owed(_)) => {}
            Some(Entry::Insn { guest, .. }) => at = at.wrapping_add(guest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_place() {
        let mut w = MapWriter::default();
        w.insn(3, 3, None, None);
        w.pad(2);
        w.insn(5, 10, None, None);
        w.jump(0x9000);
        w.insn(1, 30, Some(1), None);
        let at = |o| find(&w.bytes, 0x1000, o);
        assert_eq!(
            at(0),
            Some(Place {
                pc: 0x1000,
                spilled: None,
                borrowed: None,
                owed: None,
            })
        );
        assert_eq!(
            at(2),
            Some(Place {
                pc: 0x1000,
                spilled: None,
                borrowed: None,
                owed: None,
            })
        );
        assert_eq!(
            at(3),
            Some(Place {
                pc: 0x1003,
                spilled: None,
                borrowed: None,
                owed: None,
            })
        );
        assert_eq!(
            at(5),
            Some(Place {
                pc: 0x1003,
                spilled: None,
                borrowed: None,
                owed: None,
            })
        );
        assert_eq!(
            at(14),
            Some(Place {
                pc: 0x1003,
                spilled: None,
                borrowed: None,
                owed: None,
            })
        );
        assert_eq!(
            at(15),
            Some(Place {
                pc: 0x9000,
                spilled: None,
                borrowed: None,
                owed: None,
            })
        );
        assert_eq!(
            at(16),
            Some(Place {
                pc: 0x9000,
                spilled: Some(1),
                borrowed: None,
                owed: None,
            })
        );
        assert_eq!(
            at(45),
            Some(Place {
                pc: 0x9001,
                spilled: None,
                borrowed: None,
                owed: None,
            })
        );
        assert_eq!(at(46), None);
        assert!(holds(&w.bytes, 0x1000, 0x1003) && holds(&w.bytes, 0x1000, 0x1008));
        assert!(holds(&w.bytes, 0x1000, 0x9000) && !holds(&w.bytes, 0x1000, 0x1004));
    }

    #[test]
    fn finds_what_the_clock_is_ahead_by() {
        let mut w = MapWriter::default();
        w.pad(3);
        for ticks in [2, 1] {
            w.owed(Owed { counter: 3, ticks });
            w.insn(4, 4, None, Some(3));
            w.jump(0x1000);
        }
        let at =
            |o| find(&w.bytes, 0x1000, o).map(|p| (p.pc, p.owed.map(|o| (o.counter, o.ticks))));
        assert_eq!(at(2), Some((0x1000, None)));
        assert_eq!(at(3), Some((0x1000, Some((3, 2)))));
        assert_eq!(at(7), Some((0x1000, Some((3, 1)))));
        assert!(holds(&w.bytes, 0x1000, 0x1004) && !holds(&w.bytes, 0x1000, 0x1001));
    }

    #[test]
    fn finds_borrowed_registers() {
        let mut w = MapWriter::default();
        w.pad(7);
        w.check(300, 3);
        w.insn(4, 4, None, Some(3));
        w.insn(2, 2, None, None);
        w.insn(1, 20, Some(1), Some(3));
        let at = |o| find(&w.bytes, 0x1000, o).map(|p| (p.pc, p.borrowed));
        assert_eq!(at(6), Some((0x1000, None)));
        assert_eq!(at(7), Some((0x1000, Some(3))));
        assert_eq!(at(306), Some((0x1000, Some(3))));
        assert_eq!(at(310), Some((0x1000, Some(3))));
        assert_eq!(at(311), Some((0x1004, None)));
        assert_eq!(at(313), Some((0x1006, Some(3))));
        let both = find(&w.bytes, 0x1000, 314).map(|p| (p.spilled, p.borrowed));
        assert_eq!(both, Some((Some(1), Some(3))));
    }
}
