//! Messages from the translated process to the tracer of its twin: a byte stream, so that the one can run ahead
//! of the other as far as the socket's buffer reaches.

use std::io::{self, Read};

/// General state of one thread at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Regs {
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8..r15.
    pub gpr: [u64; 16],
    /// Pc.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// FS base as the guest sees it.
    pub fs_base: u64,
    /// Control transfers so far, as the runtime counts them.
    pub clock: u64,
}

/// The state that a stretch of translated code led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// Number of the stretch, from 1.
    pub number: u64,
    /// Where it began.
    pub start: u64,
    /// Its end.
    pub regs: Regs,
    /// Flags that are alive there.
    pub flags: u64,
    /// Floating point and vector state, in the form of a signal frame.
    pub fp: Vec<u8>,
}

/// What the tracer is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Run the twin to this position and compare.
    Check(Check),
    /// An event was done by the runtime: take its result over.
    Set {
        /// Registers.
        regs: Regs,
        /// As in [`Check`].
        fp: Vec<u8>,
    },
    /// Remove mappings.
    Unmap {
        /// First byte.
        addr: u64,
        /// Bytes.
        len: u64,
    },
    /// Make a private mapping of zeros.
    Map {
        /// First byte.
        addr: u64,
        /// Bytes.
        len: u64,
        /// `PROT_*`, the guest's.
        prot: u64,
    },
    /// Set rights.
    Protect {
        /// First byte.
        addr: u64,
        /// Bytes.
        len: u64,
        /// `PROT_*`, the guest's.
        prot: u64,
    },
    /// Write memory, whatever its rights.
    Bytes {
        /// First byte.
        addr: u64,
        /// Content.
        data: Vec<u8>,
    },
    /// Answer with the twin's process id as soon as everything before is done.
    Barrier,
    /// Nothing more comes. The text says why, for the summary; empty when there is to be none.
    Finish(String),
}

/// Longest message taken: data goes in pieces far below.
const MAX: usize = 16 << 20;

struct Out<'a>(&'a mut Vec<u8>);

impl Out<'_> {
    fn u64(&mut self, v: u64) -> &mut Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }

    fn regs(&mut self, r: &Regs) -> &mut Self {
        r.gpr
            .iter()
            .chain([&r.rip, &r.rflags, &r.fs_base, &r.clock])
            .for_each(|v| {
                self.u64(*v);
            });
        self
    }

    fn bytes(&mut self, b: &[u8]) {
        self.0.extend_from_slice(b);
    }
}

struct In<'a>(&'a [u8]);

impl In<'_> {
    fn u64(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*word))
    }

    fn regs(&mut self) -> Option<Regs> {
        let mut r = Regs::default();
        for v in &mut r.gpr {
            *v = self.u64()?;
        }
        (r.rip, r.rflags, r.fs_base, r.clock) =
            (self.u64()?, self.u64()?, self.u64()?, self.u64()?);
        Some(r)
    }
}

impl Message {
    /// Appends the message to `to`.
    pub fn put(&self, to: &mut Vec<u8>) {
        let head = to.len();
        to.extend_from_slice(&[0; 5]);
        let mut o = Out(to);
        let tag = match self {
            Message::Check(c) => {
                o.u64(c.number)
                    .u64(c.start)
                    .regs(&c.regs)
                    .u64(c.flags)
                    .bytes(&c.fp);
                1
            }
            Message::Set { regs, fp } => {
                o.regs(regs).bytes(fp);
                2
            }
            Message::Unmap { addr, len } => {
                o.u64(*addr).u64(*len);
                3
            }
            Message::Map { addr, len, prot } => {
                o.u64(*addr).u64(*len).u64(*prot);
                4
            }
            Message::Protect { addr, len, prot } => {
                o.u64(*addr).u64(*len).u64(*prot);
                5
            }
            Message::Bytes { addr, data } => {
                o.u64(*addr).bytes(data);
                6
            }
            Message::Barrier => 7,
            Message::Finish(why) => {
                o.bytes(why.as_bytes());
                8
            }
        };
        let len = (to.len() - head - 5) as u32;
        if let Some([t, l @ ..]) = to.get_mut(head..head + 5) {
            *t = tag;
            l.copy_from_slice(&len.to_le_bytes());
        }
    }

    /// Reads one message; `None` at the end of the stream.
    pub fn take(from: &mut impl Read) -> io::Result<Option<Message>> {
        let mut head = [0; 5];
        match from.read_exact(&mut head) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            done => done?,
        }
        let [tag, l @ ..] = head;
        let len = u32::from_le_bytes(l) as usize;
        if len > MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "message too long",
            ));
        }
        let mut body = vec![0; len];
        from.read_exact(&mut body)?;
        Message::parse(tag, &body)
            .map(Some)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "bad message"))
    }

    fn parse(tag: u8, body: &[u8]) -> Option<Message> {
        let mut i = In(body);
        Some(match tag {
            1 => Message::Check(Check {
                number: i.u64()?,
                start: i.u64()?,
                regs: i.regs()?,
                flags: i.u64()?,
                fp: i.0.to_vec(),
            }),
            2 => Message::Set {
                regs: i.regs()?,
                fp: i.0.to_vec(),
            },
            3 => Message::Unmap {
                addr: i.u64()?,
                len: i.u64()?,
            },
            4 => Message::Map {
                addr: i.u64()?,
                len: i.u64()?,
                prot: i.u64()?,
            },
            5 => Message::Protect {
                addr: i.u64()?,
                len: i.u64()?,
                prot: i.u64()?,
            },
            6 => Message::Bytes {
                addr: i.u64()?,
                data: i.0.to_vec(),
            },
            7 => Message::Barrier,
            8 => Message::Finish(String::from_utf8_lossy(body).into_owned()),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back() {
        let regs = Regs {
            gpr: std::array::from_fn(|i| i as u64),
            rip: 17,
            rflags: 18,
            fs_base: 19,
            clock: 20,
        };
        let all = [
            Message::Check(Check {
                number: 1,
                start: 2,
                regs,
                flags: 3,
                fp: vec![4; 5],
            }),
            Message::Set { regs, fp: vec![] },
            Message::Unmap { addr: 1, len: 2 },
            Message::Map {
                addr: 1,
                len: 2,
                prot: 3,
            },
            Message::Protect {
                addr: 1,
                len: 2,
                prot: 3,
            },
            Message::Bytes {
                addr: 1,
                data: vec![1, 2, 3],
            },
            Message::Barrier,
            Message::Finish("why".into()),
        ];
        let mut stream = Vec::new();
        all.iter().for_each(|m| m.put(&mut stream));
        let mut from = stream.as_slice();
        for m in all {
            assert_eq!(Message::take(&mut from).unwrap(), Some(m));
        }
        assert_eq!(Message::take(&mut from).unwrap(), None);
    }

    #[test]
    fn damage_is_an_error() {
        assert!(Message::take(&mut [9, 0, 0, 0, 0].as_slice()).is_err());
        assert!(Message::take(&mut [3, 1, 0, 0, 0, 7].as_slice()).is_err());
        assert!(Message::take(&mut [3, 255, 255, 255, 255].as_slice()).is_err());
    }
}
