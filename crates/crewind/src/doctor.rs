//! `crewind doctor`: what this machine offers, what recording mode follows, and why.

use std::io::Write;
use std::path::Path;

use crewind_guest::start::{Options, Sharing};
use crewind_trace::CpuInfo;
use serde_json::json;

use crate::cli::{DoctorArgs, output_error};
use crate::fail::{Error, Result};
use crate::{human, locate};

/// Judgement of one finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    /// As it should be.
    Good,
    /// Works, with a limit worth knowing.
    Note,
    /// Recording will not work.
    Bad,
}

/// One finding.
struct Finding {
    verdict: Verdict,
    what: &'static str,
    found: String,
    /// What follows from it or what to do, when it is not simply good.
    advice: Option<String>,
}

/// Number of vcpus that a recording uses.
pub fn vcpus(options: &Options) -> u32 {
    options.parallel()
}

/// Cores that a program started here may use.
pub fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// How this machine records threads best, of which `most` or as many as there are cores run at once, and whether
/// protection keys may be used. There are keys for a few threads only; more of them at once gain more.
pub fn best_sharing(most: Option<u32>, keys: bool) -> Sharing {
    let cores = cores();
    match most.unwrap_or(cores) {
        _ if cores == 1 => Sharing::Serial,
        n if keys && n <= crewind_guest::par::keys::MOST_VCPUS => Sharing::Adaptive,
        _ => Sharing::Software,
    }
}

/// Shows the findings.
pub fn run(args: &DoctorArgs) -> Result<i32> {
    let findings = findings();
    let worst = findings
        .iter()
        .map(|f| f.verdict)
        .max()
        .unwrap_or(Verdict::Good);
    let options = Options {
        cpus: Some(cores()),
        sharing: best_sharing(None, no_pkeys().is_none()),
        ..Options::default()
    };
    let most = vcpus(&options);
    let (name, mode, why) = match options.sharing {
        Sharing::Serial => (
            "serialised",
            "serialised: the threads of a process run one at a time, on one virtual processor"
                .to_owned(),
            "there is only one core",
        ),
        Sharing::Software => (
            "parallel",
            format!(
                "parallel: up to {most} threads of a process run at once, and checks in front of accesses to memory \
                 order what they share"
            ),
            "there is more than one core, and that works on every machine",
        ),
        Sharing::Pkeys => (
            "parallel",
            format!(
                "parallel: up to {most} threads of a process run at once, and memory protection keys order what they share"
            ),
            "the machine has more than one core, and memory protection keys",
        ),
        Sharing::Adaptive => (
            "parallel",
            format!(
                "parallel: up to {most} threads of a process run at once, and memory protection keys order what they \
                 share, or checks in front of accesses to memory where they share much"
            ),
            "the machine has more than one core, and memory protection keys",
        ),
    };
    let text = if args.json {
        let list: Vec<_> = findings
            .iter()
            .map(|f| {
                json!({"verdict": format!("{:?}", f.verdict).to_lowercase(), "what": f.what, "found": f.found, "advice": f.advice})
            })
            .collect();
        let value = json!({"mode": name, "vcpus": most, "why": why, "findings": list});
        serde_json::to_string_pretty(&value).map_err(|e| Error::internal(e.to_string()))? + "\n"
    } else {
        let mut text = String::new();
        for finding in &findings {
            let mark = match finding.verdict {
                Verdict::Good => "ok  ",
                Verdict::Note => "note",
                Verdict::Bad => "BAD ",
            };
            text.push_str(&format!("{mark}  {:<18} {}\n", finding.what, finding.found));
            if let Some(advice) = &finding.advice {
                text.push_str(&format!("{:<24} {advice}\n", ""));
            }
        }
        text.push_str(&format!("\nmode  {mode}\n      because {why}\n"));
        text
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|e| output_error(&e))?;
    Ok(if worst == Verdict::Bad {
        crewind_guest::start::Failure::Unsupported.status()
    } else {
        0
    })
}

fn good(what: &'static str, found: impl Into<String>) -> Finding {
    Finding {
        verdict: Verdict::Good,
        what,
        found: found.into(),
        advice: None,
    }
}

fn note(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding {
        verdict: Verdict::Note,
        what,
        found: found.into(),
        advice: Some(advice.into()),
    }
}

fn bad(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding {
        verdict: Verdict::Bad,
        what,
        found: found.into(),
        advice: Some(advice.into()),
    }
}

fn findings() -> Vec<Finding> {
    let cpu = CpuInfo::host();
    let has = |feature: &str| cpu.features.iter().any(|f| f == feature);
    let mut list = vec![
        good(
            "cpu",
            if cpu.name.is_empty() {
                "unknown (no /proc/cpuinfo)".into()
            } else {
                cpu.name.clone()
            },
        ),
        good(
            "cores",
            std::thread::available_parallelism()
                .map_or_else(|_| "unknown".into(), |n| n.to_string()),
        ),
    ];
    list.push(match has("fsgsbase") {
        true => good("fsgsbase", "there"),
        false => bad(
            "fsgsbase",
            "missing",
            "user code cannot set segment bases on this machine; use a cpu since 2013 and Linux 5.9 or newer",
        ),
    });
    list.push(match no_pkeys() {
        None => note(
            "protection keys",
            "there",
            "recordings of threads in parallel use them; `record --no-pkeys` does without, and software checks each access to memory",
        ),
        Some(why) => note(
            "protection keys",
            why,
            "recordings of threads in parallel do without them: software checks each access to memory",
        ),
    });
    list.push(match (has("avx512f"), has("avx")) {
        (true, _) => good("vectors", "AVX-512"),
        (false, true) => good("vectors", "AVX"),
        (false, false) => good("vectors", "SSE"),
    });
    list.push(match has("invlpgb") {
        true => note(
            "invlpgb",
            "there",
            "page rights are taken away without interrupts; crewind adds a barrier",
        ),
        false => good("tlb shootdown", "by interrupt"),
    });
    list.push(good(
        "kernel",
        read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into()),
    ));
    list.extend(layout());
    list.extend(memory());
    list.push(executable_memory());
    list.push(personality());
    list.extend(trace_root());
    list
}

/// Why memory protection keys cannot be used here; None: they can.
pub fn no_pkeys() -> Option<String> {
    if !crewind_guest::par::keys::available() {
        let has = CpuInfo::host().features.iter().any(|f| f == "pku");
        return Some(
            match has {
                true => "the kernel does not enable them; start Linux without `nopku`",
                false => "the cpu has none, or the hypervisor hides them",
            }
            .into(),
        );
    }
    // SAFETY: allocates a key without touching memory; it is freed at once.
    let key = unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, 0) };
    if key < 0 {
        let e = std::io::Error::last_os_error();
        return Some(format!(
            "the kernel refuses them ({e}); a container's seccomp filter may forbid pkey_alloc"
        ));
    }
    // SAFETY: frees the key just allocated, which nothing uses.
    unsafe { libc::syscall(libc::SYS_pkey_free, key) };
    None
}

/// What decides where the kernel puts things.
fn layout() -> Vec<Finding> {
    let mut list = Vec::new();
    if read("/proc/sys/vm/legacy_va_layout").is_some_and(|v| v != "0") {
        list.push(bad(
            "address layout",
            "vm.legacy_va_layout is set",
            "the runtime needs the top of the address space; `sysctl vm.legacy_va_layout=0`",
        ));
    }
    let number = |path| read(path).and_then(|v| v.parse::<u64>().ok());
    if let Some(min) = number("/proc/sys/vm/mmap_min_addr") {
        const LOWEST: u64 = 0x1_0000;
        list.push(if min <= LOWEST {
            good("mmap_min_addr", min.to_string())
        } else {
            note(
                "mmap_min_addr",
                min.to_string(),
                "programs below that address cannot be placed; the usual value is 65536",
            )
        });
    }
    if let Some(max) = number("/proc/sys/vm/max_map_count") {
        const USUAL: u64 = 65530;
        list.push(if max >= USUAL {
            good("max_map_count", max.to_string())
        } else {
            note(
                "max_map_count",
                max.to_string(),
                "programs with many mappings may run out; `sysctl vm.max_map_count=262144`",
            )
        });
    }
    list
}

fn memory() -> Vec<Finding> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a live struct of the right type.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) } == 0;
    if known && limit.rlim_cur != libc::RLIM_INFINITY {
        return vec![note(
            "address space",
            format!("limited to {} (ulimit -v)", human::size(limit.rlim_cur)),
            "the runtime reserves address space of its own; raise the limit if programs cannot start",
        )];
    }
    Vec::new()
}

/// Whether memory can become executable after it was written: the code cache needs that.
fn executable_memory() -> Finding {
    let size = 4096;
    // SAFETY: a new private mapping that nothing else uses.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return bad("executable memory", "no memory at all", "free some memory");
    }
    // SAFETY: `page` is the mapping made above; it is never executed, and unmapped here.
    let refused = unsafe {
        let rc = libc::mprotect(
            page,
            size,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
        );
        let error = std::io::Error::last_os_error();
        libc::munmap(page, size);
        (rc != 0).then_some(error)
    };
    match refused {
        None => good("executable memory", "allowed"),
        Some(e) => bad(
            "executable memory",
            format!("refused: {e}"),
            "a security policy (SELinux execmem, a seccomp filter) forbids writable code; allow it for crewind",
        ),
    }
}

fn personality() -> Finding {
    // SAFETY: asks and changes nothing.
    let now = unsafe { libc::personality(0xffff_ffff) };
    if now < 0 {
        return note(
            "personality",
            format!("refused: {}", std::io::Error::last_os_error()),
            "a seccomp filter forbids personality(2); it is needed only under `setarch`",
        );
    }
    good("personality", format!("{now:#x}"))
}

fn trace_root() -> Vec<Finding> {
    let root = match locate::trace_root() {
        Ok(root) => root,
        Err(e) => return vec![bad("traces", "no place", e.message)],
    };
    let existing = root
        .ancestors()
        .find(|p| p.exists())
        .unwrap_or(Path::new("/"));
    let shown = root.display().to_string();
    use std::os::unix::ffi::OsStrExt;
    let Ok(name) = std::ffi::CString::new(existing.as_os_str().as_bytes()) else {
        return vec![bad("traces", shown, "its name holds a NUL byte")];
    };
    // SAFETY: `name` is NUL-terminated and lives over the call.
    if unsafe { libc::access(name.as_ptr(), libc::W_OK) } != 0 {
        let e = std::io::Error::last_os_error();
        return vec![bad(
            "traces",
            format!("{shown}: {e}"),
            "set CREWIND_TRACE_DIR to a folder you may write to",
        )];
    }
    // SAFETY: plain data, filled by the next call when it succeeds.
    let mut fs: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `name` is NUL-terminated, `fs` is live.
    if unsafe { libc::statvfs(name.as_ptr(), &raw mut fs) } != 0 {
        return vec![good("traces", shown)];
    }
    let free = fs.f_bavail.saturating_mul(fs.f_frsize);
    const LITTLE: u64 = 1 << 30;
    let found = format!("{shown}, {} free", human::size(free));
    vec![if free >= LITTLE {
        good("traces", found)
    } else {
        note(
            "traces",
            found,
            "little space; `crewind rm --older 7d` removes old traces, CREWIND_TRACE_DIR moves them",
        )
    }]
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}
