//! `meta.json` and `end.json`: what a trace says about itself, at its start and at its end.
//!
//! Both are JSON for people and tools to read, and end in a `"check"` member with a hash of the text
//! before it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Result, TraceError};
use crate::segment::FORMAT_VERSION;

/// What `meta.json` says of its format.
pub(crate) const FORMAT: &str = "crewind trace";

/// What was recorded, where and how. Written before anything is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Always "crewind trace".
    pub format: String,
    /// See [`FORMAT_VERSION`].
    pub version: u32,
    /// Version of the crewind that recorded.
    pub crewind: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The program and its arguments.
    pub argv: Vec<Text>,
    /// The program's working directory.
    pub cwd: Text,
    /// How it was recorded.
    pub options: Options,
    /// The machine's cpu.
    pub cpu: CpuInfo,
    /// The machine's kernel, as `uname -r` says.
    pub kernel: String,
}

/// How it was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Number of vcpus.
    pub cpus: u32,
    /// Whether protection keys were used.
    pub pkeys: bool,
    /// Whether the guest's memory was hashed at its end.
    pub checksum: bool,
    /// Others, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub more: BTreeMap<String, String>,
}

/// What a replaying machine's cpu is compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuInfo {
    /// As `cpuid` spells it: "AuthenticAMD", "GenuineIntel".
    pub vendor: String,
    /// Family.
    pub family: u32,
    /// Model.
    pub model: u32,
    /// Stepping.
    pub stepping: u32,
    /// Name for people.
    pub name: String,
    /// The kernel's names of the features (`flags` in /proc/cpuinfo), sorted.
    pub features: Vec<String>,
}

/// How the recording went. Written when it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Exit status of the root process, unless a signal ended it.
    pub status: Option<i32>,
    /// Signal that ended the root process.
    pub signal: Option<i32>,
    /// Duration of the recording.
    pub wall_ns: u64,
    /// Records by kind of event.
    pub counts: BTreeMap<String, u64>,
    /// Records of each thread, by its number: so a stream that is missing is noticed.
    pub threads: BTreeMap<u32, u64>,
    /// What recording threads in parallel took: see [`Counter`](crate::Counter).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sharing: BTreeMap<String, u64>,
    /// Size of the streams before compression, bytes.
    pub raw_bytes: u64,
    /// Size of the streams, bytes.
    pub stored_bytes: u64,
}

impl Meta {
    /// Describes a recording that starts now on this machine.
    pub fn now(argv: &[OsString], cwd: &Path, options: Options) -> Self {
        let created = std::time::SystemTime::now()
            .duration_since(std::time::SystemTime::UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        Meta {
            format: FORMAT.into(),
            version: FORMAT_VERSION,
            crewind: env!("CARGO_PKG_VERSION").into(),
            created,
            argv: argv.iter().map(|arg| Text(arg.clone())).collect(),
            cwd: Text(cwd.into()),
            options,
            cpu: CpuInfo::host(),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .map(|s| s.trim().to_owned())
                .unwrap_or_default(),
        }
    }
}

impl CpuInfo {
    /// This machine's.
    pub fn host() -> Self {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let mut cpu = CpuInfo::default();
        // The first processor's lines; an empty line ends them.
        for line in text.lines().take_while(|line| !line.is_empty()) {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim();
            match key.trim() {
                "vendor_id" => cpu.vendor = value.into(),
                "cpu family" => cpu.family = value.parse().unwrap_or(0),
                "model" => cpu.model = value.parse().unwrap_or(0),
                "stepping" => cpu.stepping = value.parse().unwrap_or(0),
                "model name" => cpu.name = value.into(),
                "flags" => {
                    cpu.features = value.split_ascii_whitespace().map(str::to_owned).collect();
                    cpu.features.sort_unstable();
                }
                _ => {}
            }
        }
        cpu
    }

    /// Features that `self` has and `other` lacks.
    pub fn features_missing_in(&self, other: &CpuInfo) -> Vec<String> {
        self.features
            .iter()
            .filter(|f| !other.features.contains(f))
            .cloned()
            .collect()
    }
}

/// A string of the system: any bytes. In JSON a string, or an array of bytes when it is not UTF-8.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(pub OsString);

impl Text {
    /// The string.
    pub fn as_os_str(&self) -> &OsStr {
        &self.0
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(s) => s.serialize(serializer),
            None => self.0.as_bytes().serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Str(String),
            Bytes(Vec<u8>),
        }
        match Either::deserialize(deserializer).map_err(D::Error::custom)? {
            Either::Str(s) => Ok(Text(s.into())),
            Either::Bytes(b) => Ok(Text(OsString::from_vec(b))),
        }
    }
}

// ---------------------------------------------------------------------------------------------------
// Files

const CHECK: &str = ",\n  \"check\": \"";

/// The text of a file that holds `value`, which is serialised as an object.
pub(crate) fn to_text(value: &impl Serialize) -> serde_json::Result<String> {
    let mut text = serde_json::to_string_pretty(value)?;
    // The check is to be the object's last member.
    let end = text.trim_end_matches(['}', '\n', ' ']).len();
    // Braces that belong to inner objects stay.
    let end = text.rfind("\n}").unwrap_or(end);
    text.truncate(end);
    let check = xxh3_64(text.as_bytes());
    text.push_str(CHECK);
    text.push_str(&format!("{check:016x}\"\n}}\n"));
    Ok(text)
}

/// The inverse of [`to_text`].
pub(crate) fn from_text<T: DeserializeOwned>(text: &str, file: &Path) -> Result<T> {
    let value = serde_json::from_str(text).map_err(|e| {
        if e.is_eof() {
            TraceError::truncated(file, text.len() as u64, "more JSON")
        } else {
            TraceError::corrupt(
                file,
                offset_of(text, &e),
                format!("it cannot be understood: {e}"),
            )
        }
    })?;
    let Some((checked, rest)) = text.rsplit_once(CHECK) else {
        return Err(TraceError::corrupt(
            file,
            text.len() as u64,
            "it does not end in its checksum",
        ));
    };
    if rest != format!("{:016x}\"\n}}\n", xxh3_64(checked.as_bytes())) {
        return Err(TraceError::corrupt(
            file,
            0,
            "its checksum is wrong, it was changed",
        ));
    }
    Ok(value)
}

fn offset_of(text: &str, error: &serde_json::Error) -> u64 {
    let before: usize = text
        .split_inclusive('\n')
        .take(error.line().saturating_sub(1))
        .map(str::len)
        .sum();
    (before + error.column().saturating_sub(1)) as u64
}

/// The format version that a text claims, whatever else it says.
pub(crate) fn version_of(text: &str) -> Option<u32> {
    #[derive(Deserialize)]
    struct Head {
        format: String,
        version: u32,
    }
    let head: Head = serde_json::from_str(text).ok()?;
    (head.format == FORMAT).then_some(head.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_survives_and_every_flip_is_noticed() {
        let argv = ["prog", "a \"b\" }", "ü"].map(OsString::from).to_vec();
        let mut meta = Meta::now(&argv, Path::new("/somewhere"), Options::default());
        meta.argv.push(Text(OsString::from_vec(vec![0xff, b'a'])));
        let text = to_text(&meta).unwrap();
        let file = Path::new("meta.json");
        assert_eq!(from_text::<Meta>(&text, file).unwrap(), meta);
        let _: serde_json::Value = serde_json::from_str(&text).unwrap();
        for i in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[i] ^= 1;
            if let Ok(text) = String::from_utf8(bytes) {
                assert!(from_text::<Meta>(&text, file).is_err(), "flip at {i}");
            }
            if text.is_char_boundary(i) {
                assert!(from_text::<Meta>(&text[..i], file).is_err(), "cut at {i}");
            }
        }
    }

    #[test]
    fn end_survives() {
        let mut end = End {
            status: Some(3),
            ..End::default()
        };
        end.counts.insert("syscall".into(), 7);
        end.threads.insert(1, 9);
        let text = to_text(&end).unwrap();
        assert_eq!(from_text::<End>(&text, Path::new("end.json")).unwrap(), end);
        let empty = to_text(&End::default()).unwrap();
        assert_eq!(
            from_text::<End>(&empty, Path::new("end.json")).unwrap(),
            End::default()
        );
    }

    #[test]
    fn host_cpu_is_known() {
        let cpu = CpuInfo::host();
        assert!(
            !cpu.vendor.is_empty() && cpu.features.contains(&"sse2".into()),
            "{cpu:?}"
        );
        assert!(cpu.features_missing_in(&cpu).is_empty());
    }
}
