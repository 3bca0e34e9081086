//! The ways to record that the tests of programs with threads go through: `tests/modes.txt`, which scripts read too.

/// One way to record.
pub struct Mode {
    /// Its name.
    pub name: String,
    need: Need,
    /// Numbers of vcpus to test.
    pub cpus: Vec<u32>,
    options: Vec<String>,
}

/// What a machine must have for it.
#[derive(Clone, Copy)]
enum Need {
    Nothing,
    Pkeys,
}

impl Mode {
    /// What this machine lacks for it.
    pub fn missing(&self) -> Option<&'static str> {
        let text = || std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        match self.need {
            Need::Nothing => None,
            Need::Pkeys if !text().split_whitespace().any(|flag| flag == "ospke") => {
                Some("the machine has no memory protection keys")
            }
            Need::Pkeys if !kernel_gives_keys() => {
                Some("the kernel refuses memory protection keys here")
            }
            Need::Pkeys => None,
        }
    }

    /// Options for `crewind record`.
    pub fn options(&self, cpus: u32) -> impl Iterator<Item = String> {
        let number = cpus.to_string();
        self.options
            .iter()
            .map(move |word| word.replace("{cpus}", &number))
    }
}

/// A filter of system calls may forbid them, in a container.
fn kernel_gives_keys() -> bool {
    // SAFETY: allocates a key without touching memory, and frees it.
    unsafe {
        let key = libc::syscall(libc::SYS_pkey_alloc, 0, 0);
        key >= 0 && libc::syscall(libc::SYS_pkey_free, key) == 0
    }
}

/// All modes that are for tests.
pub fn all() -> Vec<Mode> {
    include_str!("../modes.txt")
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        .map(parse)
        .filter(|mode| !mode.cpus.is_empty())
        .collect()
}

fn parse(line: &str) -> Mode {
    let mut words = line.split_whitespace().map(str::to_owned);
    let mut word = || words.next().expect("a mode has four columns");
    let (name, need, cpus, _for_stress) = (word(), word(), word(), word());
    Mode {
        name,
        need: match need.as_str() {
            "always" => Need::Nothing,
            "pkeys" => Need::Pkeys,
            _ => panic!("unknown need in {line}"),
        },
        cpus: cpus
            .split(',')
            .filter(|n| *n != "-")
            .map(|n| n.parse().expect("vcpus are numbers"))
            .collect(),
        options: words.collect(),
    }
}
