//! Whether memory is short: then checkpoints, which keep it, are given up.
//!
//! How much is to be left to others can be said: `CREWIND_SPARE_MEMORY=512M`.

use std::fs::read_to_string;
use std::path::Path;

/// Less than this part of all memory to spare is too little, if nothing else is said.
const PART: u64 = 16;

/// How much is to be left to others, as a user says it.
const SPARE: &str = "CREWIND_SPARE_MEMORY";

/// Memory of the machine, or of the control group that the process is in. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Memory {
    all: u64,
    to_spare: u64,
}

impl Memory {
    fn is_short(self, spare: Option<u64>) -> bool {
        self.to_spare < spare.unwrap_or(self.all / PART)
    }
}

/// Whether the machine, or the control group this process is in, has little memory to spare. What cannot be found out
/// counts as plenty.
pub(crate) fn is_short() -> bool {
    let machine = read_to_string("/proc/meminfo")
        .ok()
        .and_then(|t| of_machine(&t));
    let group = read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|t| of_group(&t, Path::new("/sys/fs/cgroup")));
    let spare = std::env::var(SPARE).ok().and_then(|t| bytes(&t));
    machine
        .into_iter()
        .chain(group)
        .any(|memory| memory.is_short(spare))
}

/// A number of bytes: `1000`, `64K`, `512M`, `4G`, `1T`.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, shift) = match text.chars().last()?.to_ascii_uppercase() {
        'K' => (text.get(..text.len() - 1)?, 10),
        'M' => (text.get(..text.len() - 1)?, 20),
        'G' => (text.get(..text.len() - 1)?, 30),
        'T' => (text.get(..text.len() - 1)?, 40),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// From the text of `/proc/meminfo`.
fn of_machine(text: &str) -> Option<Memory> {
    let value = |name: &str| {
        let rest = text.lines().find_map(|l| l.strip_prefix(name))?;
        let number: u64 = rest.split_whitespace().next()?.parse().ok()?;
        number.checked_mul(1024)
    };
    Some(Memory {
        all: value("MemTotal:")?,
        to_spare: value("MemAvailable:")?,
    })
}

/// From the text of `/proc/self/cgroup` (version 2) and the group's files: the group with the least to spare of this one and
/// those around it. Pages of files that are only cached count as spare.
fn of_group(text: &str, root: &Path) -> Option<Memory> {
    let path = text.lines().find_map(|l| l.strip_prefix("0::"))?;
    let own = root.join(path.trim_start_matches('/'));
    own.ancestors()
        .take_while(|dir| dir.starts_with(root))
        .filter_map(limit_of)
        .min_by_key(|m| m.to_spare)
}

fn limit_of(dir: &Path) -> Option<Memory> {
    let number = |name: &str| -> Option<u64> {
        read_to_string(dir.join(name))
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    // "max" is no number, and no limit.
    let all = number("memory.max")?;
    let used = number("memory.current")?;
    let statistics = read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let cached = statistics
        .lines()
        .find_map(|l| l.strip_prefix("inactive_file "))
        .and_then(|n| n.trim().parse::<u64>().ok())
        .unwrap_or(0);
    Some(Memory {
        all,
        to_spare: all.saturating_sub(used.saturating_sub(cached)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_machine() {
        let text = "MemTotal:       16000000 kB\nMemFree:  5 kB\nMemAvailable:     999000 kB\n";
        let m = of_machine(text).expect("both are there");
        assert_eq!((m.all, m.to_spare), (16_000_000 << 10, 999_000 << 10));
        assert!(m.is_short(None));
        assert!(
            !of_machine(&text.replace("999000", "1000001"))
                .expect("both")
                .is_short(None)
        );
        assert_eq!(of_machine("MemTotal: 5 kB\n"), None);
        assert_eq!(of_machine("MemTotal: x kB\nMemAvailable: 7 kB\n"), None);
    }

    #[test]
    fn what_a_user_says() {
        assert_eq!(bytes("1000"), Some(1000));
        assert_eq!(bytes("64k"), Some(64 << 10));
        assert_eq!(bytes(" 2G\n"), Some(2 << 30));
        for nonsense in ["", "G", "-1", "1.5G", "99999999999T", "ß"] {
            assert_eq!(bytes(nonsense), None, "{nonsense}");
        }
        let m = Memory {
            all: 1600,
            to_spare: 200,
        };
        assert!(!m.is_short(None) && m.is_short(Some(201)) && !m.is_short(Some(200)));
    }

    #[test]
    fn of_a_group_and_those_around_it() {
        let root = std::env::temp_dir().join(format!("crewind-groups-{}", std::process::id()));
        let inner = root.join("a/b");
        std::fs::create_dir_all(&inner).expect("a directory");
        let put = |at: &str, text: &str| std::fs::write(root.join(at), text).expect("a file");
        put("a/memory.max", "1600\n");
        put("a/memory.current", "1590\n");
        put("a/memory.stat", "anon 5\ninactive_file 40\n");
        put("a/b/memory.max", "max\n");
        put("a/b/memory.current", "3\n");
        let m = of_group("1:cpu:/x\n0::/a/b\n", &root).expect("the outer one has a limit");
        assert_eq!((m.all, m.to_spare), (1600, 50));
        assert!(m.is_short(None));
        assert_eq!(of_group("0::/\n", &root), None);
        assert_eq!(of_group("0::/../..\n", &root), None);
        std::fs::remove_dir_all(&root).expect("it was made here");
    }
}
