//! The loader against the real kernel: programs are loaded into real memory of a child process, looked at,
//! and in some tests really run there, which shows the image to be right.

mod common;

use common::{End, child, compile, dir, in_child};
use crewind_guest::errno::Errno;
use crewind_guest::layout::*;
use crewind_guest::loader::*;
use crewind_guest::mm::Space;
use crewind_trace::event::FileRef;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const CHECKER: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <elf.h>
static char zeros[100000];
static int data[3] = {1, 2, 3};
int main(int argc, char **argv) {
    if (argc != 3 || strcmp(argv[1], "one") || strcmp(argv[2], "two") || argv[3]) return 1;
    if (!getenv("CREWIND_TEST") || strcmp(getenv("CREWIND_TEST"), "yes")) return 2;
    for (unsigned i = 0; i < sizeof zeros; i++) if (zeros[i]) return 3;
    if (data[0] + data[1] + data[2] != 6) return 4;
    if (strcmp((char *)getauxval(AT_PLATFORM), "x86_64")) return 5;
    if (getauxval(AT_SYSINFO_EHDR)) return 6;
    Elf64_Phdr *ph = (Elf64_Phdr *)getauxval(AT_PHDR);
    int loads = 0;
    for (unsigned i = 0; i < getauxval(AT_PHNUM); i++) loads += ph[i].p_type == PT_LOAD;
    if (loads < 2) return 7;
    void *p = malloc(1 << 20);
    if (!p) return 8;
    memset(p, 1, 1 << 20);
    return (long)&main < 0x60000000l && (long)&argc > 0x400000000000l ? 42 : 9;
}
"#;

fn strings(list: &[&str]) -> Vec<Vec<u8>> {
    list.iter().map(|s| s.as_bytes().to_vec()).collect()
}

fn image(plan: &Plan, env: &[&str]) -> ImageInfo {
    let refs: Vec<FileRef> = plan
        .files
        .iter()
        .map(|f| FileRef {
            hash: [3; 32],
            len: f.len,
        })
        .collect();
    let info = ImageInfo::new(plan, &refs, strings(env), [9; 16], 8 << 20, 77);
    let again = ImageInfo::from_bytes(&info.to_bytes()).unwrap();
    assert_eq!(again, info);
    again
}

fn load_path(path: &Path, args: &[&str]) -> Result<(Space, Loaded, ImageInfo), String> {
    let name = path.as_os_str().as_bytes();
    let argv: Vec<Vec<u8>> = std::iter::once(name.to_vec())
        .chain(strings(args))
        .collect();
    let plan = plan(name, name, &argv).map_err(|e| e.to_string())?;
    let info = image(&plan, &["CREWIND_TEST=yes", "LC_ALL=C"]);
    let mut space = Space::new();
    let loaded = load(&info, &mut space, &OriginalFiles(&plan)).map_err(|e| e.to_string())?;
    Ok((space, loaded, info))
}

/// Gives code its execute rights and jumps into it. The program ends the process.
fn run(space: &Space, loaded: &Loaded) -> ! {
    for v in space.vmas().iter().filter(|v| v.prot.exec) {
        // SAFETY: a mapping of the loaded program.
        let done = unsafe { libc::mprotect(v.start as *mut _, v.len() as usize, v.prot.bits()) };
        assert_eq!(done, 0);
    }
    // SAFETY: the program was loaded as the kernel does it and takes this process over; nothing of the
    // runtime is used after.
    unsafe {
        std::arch::asm!(
            "mov rsp, {sp}",
            "xor edx, edx",
            "xor ebp, ebp",
            "jmp {pc}",
            sp = in(reg) loaded.sp,
            pc = in(reg) loaded.pc,
            options(noreturn)
        )
    }
}

fn runs_to(path: &Path, status: i32) {
    let (end, text) = child(|| {
        let (space, loaded, _) = load_path(path, &["one", "two"])?;
        run(&space, &loaded)
    });
    assert_eq!(end, End::Exit(status), "{}: {text}", path.display());
}

#[test]
fn static_program_runs_natively() {
    runs_to(
        &compile(&dir("static"), "fixed", CHECKER, &["-static", "-no-pie"]),
        42,
    );
}

#[test]
fn static_pie_runs_natively() {
    runs_to(
        &compile(&dir("static_pie"), "static_pie", CHECKER, &["-static-pie"]),
        42,
    );
}

#[test]
fn dynamic_program_runs_natively() {
    runs_to(
        &compile(&dir("dynamic"), "dynamic", CHECKER, &["-pie", "-fPIE"]),
        42,
    );
}

#[test]
fn fixed_dynamic_program_runs_natively() {
    runs_to(
        &compile(
            &dir("fixed_dynamic"),
            "fixed_dynamic",
            CHECKER,
            &["-no-pie"],
        ),
        42,
    );
}

#[test]
fn large_alignment_is_kept() {
    let source = r#"
        __attribute__((aligned(65536))) char big[100]; int argc_copy;
        int main(int argc, char **argv) { argc_copy = argc; return (long)big % 65536 ? 1 : 43; }
    "#;
    let flags = ["-static-pie", "-Wl,-z,max-page-size=2097152"];
    runs_to(&compile(&dir("aligned"), "aligned", source, &flags), 43);
}

#[test]
fn what_is_shown_is_what_the_host_has() {
    in_child(|| {
        let (space, loaded, info) = load_path(Path::new("/bin/true"), &[])?;
        let ours = String::from_utf8(space.render_maps()).unwrap();
        let host = std::fs::read_to_string("/proc/self/maps").unwrap();
        // Line by line, except for rights of code, and names that only the guest has.
        let cut = |line: &str| {
            let line = line
                .replace("r-xp", "r--p")
                .replace("[stack]", "")
                .replace("[heap]", "");
            line.trim_end().to_owned()
        };
        let host: Vec<String> = host
            .lines()
            .filter(|l| u64::from_str_radix(l.split('-').next().unwrap(), 16).unwrap() < GUEST_END)
            .map(cut)
            .collect();
        let joined: Vec<String> = merge(ours.lines().map(cut).collect());
        assert_eq!(joined, host, "\nours:\n{ours}");
        assert!(
            ours.contains("ld-linux-x86-64.so.2") || ours.contains("ld-2"),
            "{ours}"
        );
        assert_eq!(info.comm(), b"true");
        assert_ne!(loaded.interp_base, 0);
        assert_eq!(loaded.sp % 16, 0);
        let (start, end) = space
            .executable_range(loaded.pc)
            .ok_or("entry is not code")?;
        assert!((start..end).contains(&loaded.pc));
        Ok(())
    });
}

/// Joins neighbouring lines of one file that became alike when execute rights were cut.
fn merge(lines: Vec<String>) -> Vec<String> {
    let parse = |l: &str| {
        let f: Vec<&str> = l.split_whitespace().collect();
        let (a, b) = f[0].split_once('-').unwrap();
        let n = |s: &str| u64::from_str_radix(s, 16).unwrap();
        (n(a), n(b), f[1].to_owned(), n(f[2]), f[3..].join(" "))
    };
    let mut out: Vec<String> = Vec::new();
    for line in lines {
        if let Some(last) = out.last_mut() {
            let (a, b) = (parse(last), parse(&line));
            if a.1 == b.0
                && a.2 == b.2
                && a.4 == b.4
                && b.4 != "00:00 0"
                && a.3 + (a.1 - a.0) == b.3
            {
                *last = last.replacen(&format!("-{:08x} ", a.1), &format!("-{:08x} ", b.1), 1);
                continue;
            }
        }
        out.push(line);
    }
    out
}

#[test]
fn loading_twice_gives_the_same() {
    let dump = || {
        let (_, text) = child(|| {
            let (space, loaded, _) = load_path(Path::new("/bin/true"), &["x"])?;
            let maps = String::from_utf8(space.render_maps()).unwrap();
            Err(format!("{maps}{loaded:x?}{:x}", space.checksum()))
        });
        text
    };
    let first = dump();
    assert!(first.contains("[stack]"), "{first}");
    assert_eq!(first, dump());
}

#[test]
fn scripts_are_followed() {
    let dir = dir("scripts");
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.as_os_str().as_bytes().to_vec()
    };
    let s = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
    let one = write("one", "#! /bin/true  -a b \n");
    let p = plan(&one, b"./one", &strings(&["zero", "x"])).unwrap();
    assert_eq!(p.argv, strings(&["/bin/true", "-a b", "./one", "x"]));
    assert_eq!(p.execfn, b"./one");
    assert_eq!(p.files.len(), 2);
    let mut last = one;
    for i in 2..=5 {
        last = write(&format!("s{i}"), &format!("#!{}\n", s(&last)));
    }
    let p = plan(&last, &last, &strings(&["zero"])).unwrap();
    assert_eq!(p.argv.len(), 2 + 5);
    assert_eq!(p.argv[0], b"/bin/true");
    assert_eq!(p.argv.last().unwrap(), &last);
    let six = write("s6", &format!("#!{}\n", s(&last)));
    assert_eq!(
        plan(&six, &six, &strings(&["zero"])).unwrap_err().errno,
        Errno(libc::ELOOP)
    );
    // The kernel agrees.
    assert!(
        std::process::Command::new(std::ffi::OsStr::from_bytes(&last))
            .status()
            .unwrap()
            .success()
    );
    let e = std::process::Command::new(std::ffi::OsStr::from_bytes(&six))
        .status()
        .unwrap_err();
    assert_eq!(e.raw_os_error(), Some(libc::ELOOP));
}

/// Files that cannot be executed get the kernel's own error.
#[test]
fn errors_are_the_kernels() {
    let dir = dir("errors");
    let good = std::fs::read("/bin/true").unwrap();
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let interp = good.windows(9).position(|w| w == b"/lib64/ld").unwrap();
    let mut cases: Vec<(&str, Vec<u8>, u32)> = vec![
        ("empty", Vec::new(), 0o755),
        ("text", b"hello\n".to_vec(), 0o755),
        ("noexec", good.clone(), 0o644),
        ("machine", patched(18, &[0xb7, 0]), 0o755),
        ("type", patched(16, &[1, 0]), 0o755),
        ("phentsize", patched(54, &[55, 0]), 0o755),
        ("phnum", patched(56, &[0, 0]), 0o755),
        ("phoff", patched(32, &[0xff; 7]), 0o755),
        ("no_interp", patched(interp, b"/nowhere\0"), 0o755),
        ("bad_interp", patched(interp, b"/bin/sh\0\0"), 0o755),
        ("text_interp", patched(interp, b"/etc/passwd\0"), 0o755),
        ("no_such_script", b"#!/nowhere/at/all\n".to_vec(), 0o755),
        ("dir_script", b"#!/tmp\n".to_vec(), 0o755),
        ("nothing_script", b"#!\n".to_vec(), 0o755),
        ("cut_header", good[..40].to_vec(), 0o755),
    ];
    cases.push((
        "long_script",
        [b"#!/".to_vec(), vec![b'x'; 300]].concat(),
        0o755,
    ));
    for (name, content, mode) in cases {
        let path = dir.join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let bytes = path.as_os_str().as_bytes();
        let ours = plan(bytes, bytes, &strings(&["x"]))
            .map(|_| ())
            .map_err(|e| e.errno.0);
        let c_path = std::ffi::CString::new(bytes).unwrap();
        let (end, _) = child(|| {
            let argv = [c"x".as_ptr(), std::ptr::null()];
            // SAFETY: NUL-terminated strings in NULL-terminated arrays.
            unsafe {
                libc::execve(c_path.as_ptr(), argv.as_ptr(), argv[1..].as_ptr());
                libc::_exit(Errno::last().0)
            }
        });
        let kernel = match end {
            End::Exit(0) => Ok(()),
            End::Exit(e) => Err(e),
            End::Signal(_) => Err(libc::ENOEXEC),
        };
        // `bad_interp` is a program that the kernel takes for an interpreter; so do we.
        if name == "bad_interp" {
            assert!(ours.is_ok(), "{ours:?}");
            continue;
        }
        assert_eq!(ours, kernel, "{name}");
    }
    let refused = |path: &[u8]| plan(path, path, &strings(&["x"])).unwrap_err().errno.0;
    assert_eq!(refused(b"/tmp"), libc::EACCES);
    assert_eq!(refused(b"/dev/null"), libc::EACCES);
    assert_eq!(refused(b"/nowhere"), libc::ENOENT);
    assert_eq!(refused(b""), libc::ENOENT);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]
    /// Damaged headers are refused or loaded; they never make the loader crash.
    #[test]
    fn damaged_files_do_no_harm(damage in proptest::collection::vec((0..800usize, proptest::prelude::any::<u8>()), 1..4)) {
        let dir = dir("damaged");
        let path = dir.join("program");
        let mut file = std::fs::read("/bin/true").unwrap();
        for (at, byte) in damage {
            file[at] = byte;
        }
        std::fs::write(&path, file).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let (end, text) = child(|| load_path(&path, &[]).map(drop));
        assert!(matches!(end, End::Exit(0 | 1)), "{end:?}: {text}");
    }
}
