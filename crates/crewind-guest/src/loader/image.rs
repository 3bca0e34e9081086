//! [`ImageInfo`]: everything that determines a program's image in memory.

use super::{ExecError, Plan};
use crate::mm::FileId;
use crewind_trace::event::FileRef;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt::Write;

/// A byte string, written as text with `\xNN` for what is not printable ASCII.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    fn escaped(&self) -> String {
        let mut out = String::with_capacity(self.0.len());
        for &b in &self.0 {
            match b {
                b'\\' => out.push_str("\\\\"),
                b' '..=b'~' => out.push(b.into()),
                // Writing to a String does not fail.
                _ => drop(write!(out, "\\x{b:02x}")),
            }
        }
        out
    }

    fn unescaped(text: &str) -> Option<Bytes> {
        let mut out = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes().iter();
        while let Some(&b) = rest.next() {
            if b != b'\\' {
                out.push(b);
                continue;
            }
            match rest.next()? {
                b'\\' => out.push(b'\\'),
                b'x' => {
                    let digit = |b: &u8| char::from(*b).to_digit(16);
                    let (hi, lo) = (digit(rest.next()?)?, digit(rest.next()?)?);
                    out.push((hi * 16 + lo) as u8);
                }
                _ => return None,
            }
        }
        Some(Bytes(out))
    }
}

impl From<&[u8]> for Bytes {
    fn from(b: &[u8]) -> Bytes {
        Bytes(b.to_vec())
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(b: Vec<u8>) -> Bytes {
        Bytes(b)
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "b\"{}\"", self.escaped())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.escaped())
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(d)?;
        Bytes::unescaped(&text).ok_or_else(|| serde::de::Error::custom("bad escape in byte string"))
    }
}

/// What a file is in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileRole {
    /// The program.
    Program,
    /// Its ELF interpreter (`ld-linux-x86-64.so.2`).
    Interpreter,
}

/// A file of the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFile {
    /// What it is.
    pub role: FileRole,
    /// Its full path, as `/proc/self/exe` and `/proc/self/maps` show it.
    pub path: Bytes,
    /// `st_dev`
    pub dev: u64,
    /// `st_ino`
    pub ino: u64,
    /// BLAKE3 of its content, in hexadecimal.
    #[serde(with = "hex32")]
    pub hash: [u8; 32],
    /// Its size.
    pub len: u64,
}

impl ImageFile {
    /// Its content's name in the trace's store.
    pub fn file_ref(&self) -> FileRef {
        FileRef {
            hash: self.hash,
            len: self.len,
        }
    }

    /// The file as mappings name it.
    pub fn id(&self) -> FileId {
        FileId {
            dev: self.dev,
            ino: self.ino,
            path: self.path.0.as_slice().into(),
        }
    }
}

mod hex32 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(hash: &[u8; 32], s: S) -> Result<S::Ok, S::Error> {
        let text: String = hash.iter().map(|b| format!("{b:02x}")).collect();
        s.serialize_str(&text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(d)?;
        let mut hash = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return Err(D::Error::custom("a hash has 64 hexadecimal digits"));
        }
        for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(D::Error::custom)?;
            *byte = u8::from_str_radix(digits, 16).map_err(D::Error::custom)?;
        }
        Ok(hash)
    }
}

/// The user the guest sees itself as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Real user id.
    pub uid: u32,
    /// Effective user id.
    pub euid: u32,
    /// Real group id.
    pub gid: u32,
    /// Effective group id.
    pub egid: u32,
    /// `AT_SECURE`
    pub secure: bool,
}

impl Credentials {
    /// Those of this process.
    pub fn current() -> Credentials {
        // SAFETY: these calls only return numbers.
        let (uid, euid, gid, egid) = unsafe {
            (
                libc::getuid(),
                libc::geteuid(),
                libc::getgid(),
                libc::getegid(),
            )
        };
        Credentials {
            uid,
            euid,
            gid,
            egid,
            secure: false,
        }
    }
}

/// What the auxiliary vector says of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineFacts {
    /// `AT_HWCAP`: cpuid(1).edx as the guest sees it.
    pub hwcap: u64,
    /// `AT_HWCAP2`
    pub hwcap2: u64,
    /// `AT_PLATFORM`
    pub platform: String,
    /// `AT_CLKTCK`
    pub clktck: u64,
    /// `AT_MINSIGSTKSZ`
    pub minsigstksz: u64,
}

impl MachineFacts {
    /// Those of this machine, from this process's own auxiliary vector. What the runtime hides from the guest
    /// in `cpuid` is for the caller to take out.
    pub fn current() -> MachineFacts {
        // SAFETY: getauxval only returns numbers.
        let aux = |kind| unsafe { libc::getauxval(kind) };
        MachineFacts {
            hwcap: aux(libc::AT_HWCAP),
            hwcap2: aux(libc::AT_HWCAP2),
            platform: "x86_64".into(),
            clktck: aux(libc::AT_CLKTCK),
            minsigstksz: aux(libc::AT_MINSIGSTKSZ),
        }
    }
}

/// Everything that determines a program's image: loading it twice gives the same memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Path the program was executed by (`AT_EXECFN`); for a script, the script's.
    pub execfn: Bytes,
    /// Arguments, with those that scripts add.
    pub argv: Vec<Bytes>,
    /// Environment.
    pub envp: Vec<Bytes>,
    /// The bytes `AT_RANDOM` points to.
    pub random: [u8; 16],
    /// User.
    pub credentials: Credentials,
    /// Machine.
    pub machine: MachineFacts,
    /// Soft `RLIMIT_STACK`.
    pub stack_limit: u64,
    /// Process id the guest sees.
    pub pid: i32,
    /// The program, then its interpreter if it has one.
    pub files: Vec<ImageFile>,
    /// The process as it was when its recording began, if that was in the middle of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Box<crate::deferred::checkpoint::Checkpoint>>,
}

impl ImageInfo {
    /// Puts an image together from a plan; `refs` are the stored contents of `plan.files`, in their order.
    pub fn new(
        plan: &Plan,
        refs: &[FileRef],
        envp: Vec<Vec<u8>>,
        random: [u8; 16],
        stack_limit: u64,
        pid: i32,
    ) -> ImageInfo {
        let files = plan.files.iter().zip(refs).map(|(f, stored)| ImageFile {
            role: f.role,
            path: f.id.path.as_ref().into(),
            dev: f.id.dev,
            ino: f.id.ino,
            hash: stored.hash,
            len: stored.len,
        });
        ImageInfo {
            execfn: plan.execfn.clone().into(),
            argv: plan.argv.iter().cloned().map(Bytes).collect(),
            envp: envp.into_iter().map(Bytes).collect(),
            random,
            credentials: Credentials::current(),
            machine: MachineFacts::current(),
            stack_limit,
            pid,
            files: files.collect(),
            checkpoint: None,
        }
    }

    /// The program's file.
    pub fn program(&self) -> Option<&ImageFile> {
        self.files.iter().find(|f| f.role == FileRole::Program)
    }

    /// The interpreter's file.
    pub fn interpreter(&self) -> Option<&ImageFile> {
        self.files.iter().find(|f| f.role == FileRole::Interpreter)
    }

    /// The name `/proc/self/comm` starts with: the end of the path, at most 15 bytes.
    pub fn comm(&self) -> &[u8] {
        let name = self
            .execfn
            .0
            .rsplit(|&b| b == b'/')
            .next()
            .unwrap_or_default();
        &name[..name.len().min(15)]
    }

    /// For [`crewind_trace::event::Event::Image`].
    pub fn to_bytes(&self) -> Vec<u8> {
        // Strings, numbers and structs of them always serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// From [`ImageInfo::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<ImageInfo, ExecError> {
        serde_json::from_slice(bytes).map_err(|e| {
            ExecError::new(libc::EINVAL, format!("bad program image in the trace: {e}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn byte_strings_survive(b in proptest::collection::vec(any::<u8>(), 0..40)) {
            let json = serde_json::to_string(&Bytes(b.clone())).unwrap();
            prop_assert_eq!(serde_json::from_str::<Bytes>(&json).unwrap().0, b);
        }

        #[test]
        fn bad_escapes_are_errors(s in "[\\\\x0-9a-z]{0,6}") {
            let _ = Bytes::unescaped(&s);
        }
    }
}
