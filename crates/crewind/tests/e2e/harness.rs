//! Runs a command natively, recorded, and replayed, and compares what comes out.
//!
//! All three run in an empty work directory of the same path, or the replay rather without: before it, the directory
//! with all files is removed, and it runs from another one. A failure keeps the trace and prints the command that
//! replays it.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The binary under test.
pub const CREWIND: &str = env!("CARGO_BIN_EXE_crewind");

/// Where tests build and work.
pub fn scratch() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("e2e")
}

/// Guest programs' sources.
pub fn guest_sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests")
}

/// Whether two native runs give the same output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Natively {
    /// Always: the recording is compared with a native run.
    Same,
    /// No (times, pids, races): only replay and recording are compared.
    Varies,
}

/// What crewind's warnings on standard error mean for a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warnings {
    /// They count as output, so they make it fail.
    Unexpected,
    /// The program does what crewind warns about.
    Expected,
}

/// What one run gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit status or signal.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// A test case: a command and what is expected of it.
#[derive(Clone, Debug)]
pub struct Case {
    name: String,
    command: Vec<String>,
    environment: Vec<(String, String)>,
    stdin: Vec<u8>,
    files: Vec<(String, Vec<u8>)>,
    record_options: Vec<String>,
    natively: Natively,
    expected: Option<i32>,
    timeout: Duration,
    replays: usize,
    warnings: Warnings,
    known_failure: Option<String>,
    missing: Option<String>,
}

/// Raw wait status of an end by `signal`, or an exit with `code`.
pub fn exited(code: i32) -> i32 {
    code << 8
}

impl Case {
    /// A case that runs `command`, which must exit with 0.
    pub fn new(name: &str, command: &[&str]) -> Case {
        let replays = std::env::var("CREWIND_E2E_REPLAYS")
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(1);
        Case {
            name: name.to_owned(),
            command: command.iter().map(|&s| s.to_owned()).collect(),
            environment: Vec::new(),
            stdin: Vec::new(),
            files: Vec::new(),
            record_options: vec!["--checksum".into()],
            natively: Natively::Same,
            expected: Some(exited(0)),
            timeout: Duration::from_secs(60),
            replays,
            warnings: Warnings::Unexpected,
            known_failure: None,
            missing: None,
        }
    }

    /// A case that runs a bash script.
    pub fn bash(name: &str, script: &str) -> Case {
        Case::new(name, &["bash", "-c", script])
    }

    /// Path of the program.
    pub fn program(&self) -> &str {
        self.command.first().expect("a command has a program")
    }

    /// Another name, for a case that differs from one of the same program.
    pub fn named(mut self, name: &str) -> Case {
        self.name = name.to_owned();
        self
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: &str) -> Case {
        self.command.push(arg.to_owned());
        self
    }

    /// Standard input; else it is empty.
    pub fn stdin(mut self, bytes: &[u8]) -> Case {
        self.stdin = bytes.to_vec();
        self
    }

    /// A file that is there before each run, relative to the work directory.
    pub fn file(mut self, path: &str, content: impl Into<Vec<u8>>) -> Case {
        self.files.push((path.to_owned(), content.into()));
        self
    }

    /// An environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Case {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// An option for `crewind record`.
    #[allow(dead_code, reason = "for cases with options of their own")]
    pub fn record_option(mut self, option: &str) -> Case {
        self.record_options.push(option.to_owned());
        self
    }

    /// Two native runs differ.
    pub fn varies(mut self) -> Case {
        self.natively = Natively::Varies;
        self
    }

    /// The raw wait status that all three runs must have; `None`: whatever the native run had.
    pub fn expect(mut self, status: Option<i32>) -> Case {
        self.expected = status;
        self
    }

    /// Warnings of crewind are no failure.
    pub fn warns(mut self) -> Case {
        self.warnings = Warnings::Expected;
        self
    }

    /// Seconds for each of the three runs; 60 otherwise.
    pub fn timeout(mut self, seconds: u64) -> Case {
        self.timeout = Duration::from_secs(seconds);
        self
    }

    /// The test is known to fail. When it passes after all, it fails, so that this note goes.
    #[allow(dead_code, reason = "there may be none at the moment")]
    pub fn known_failure(mut self, why: &str) -> Case {
        self.known_failure = Some(why.to_owned());
        self
    }

    /// Programs without which the test is skipped: counted, printed, and a failure in CI, whose set-up installs them.
    pub fn needs(mut self, programs: &[&str]) -> Case {
        let absent = programs.iter().find(|p| find_program(p).is_none());
        self.missing = self.missing.or(absent.map(|p| (*p).to_owned()));
        self
    }

    /// Runs it in each way to record that `modes` lists, `rounds` times each; panics on failure. A mode that this
    /// machine lacks is a skip.
    pub fn run_in_modes(&self, rounds: usize) {
        for mode in crate::modes::all() {
            if let Some(missing) = mode.missing() {
                note_skip(&format!("{}-{}", self.name, mode.name), missing);
                continue;
            }
            for &cpus in &mode.cpus {
                for round in 1..=rounds {
                    let mut case = self.clone();
                    case.name = format!("{}-{}-{cpus}-{round}", self.name, mode.name);
                    case.record_options.extend(mode.options(cpus));
                    case.run();
                }
            }
        }
    }

    /// Runs it; panics on failure.
    pub fn run(self) {
        if let Some(missing) = &self.missing {
            return skip(&self.name, &format!("{missing} is not installed"));
        }
        let known = self.known_failure.clone();
        match (self.try_run(), known) {
            (Ok(()), None) => {}
            (Err(report), None) => panic!("{report}"),
            (Err(report), Some(why)) => eprintln!("known failure ({why}):\n{report}"),
            (Ok(()), Some(why)) => {
                panic!("passes although it is a known failure ({why}): take the note away")
            }
        }
    }

    fn try_run(&self) -> Result<(), String> {
        let place = Place::new(&self.name);
        let native = self.in_work_directory(
            &place,
            &self.command.iter().map(String::as_str).collect::<Vec<_>>(),
        )?;
        if let Some(expected) = self.expected
            && native.status.into_raw() & !0x80 != expected
        {
            return Err(format!(
                "the native run is not as expected:\n{}",
                show(&native)
            ));
        }
        if std::env::var("CREWIND_E2E").is_ok_and(|v| v == "native") {
            place.clear();
            return Ok(());
        }
        let mut record: Vec<&str> = vec![CREWIND, "record"];
        record.extend(self.record_options.iter().map(String::as_str));
        record.push("--");
        record.extend(self.command.iter().map(String::as_str));
        let mut recorded = self
            .in_work_directory(&place, &record)
            .map_err(|e| format!("recording: {e}\n{}", place.hint()))?;
        let trace_line = take_last_line(&mut recorded.stderr);
        if !trace_line.starts_with("crewind: trace in ") {
            recorded.stderr.extend_from_slice(trace_line.as_bytes());
            return Err(format!(
                "recording failed:\n{}\n{}",
                show(&recorded),
                place.hint()
            ));
        }
        if trace_line.contains("go on") {
            place.wait_for_the_end()?;
        }
        self.drop_warnings(&mut recorded);
        if recorded.status.into_raw() & !0x80 != native.status.into_raw() & !0x80 {
            return Err(format!(
                "recorded: {}, native: {}\n{}\n{}",
                recorded.status,
                native.status,
                show(&recorded),
                place.hint()
            ));
        }
        if self.natively == Natively::Same {
            compare("recorded", &recorded, "native", &native)
                .map_err(|e| format!("{e}{}", place.hint()))?;
        }
        // Nothing that the recording used may be needed now.
        place.remove_work();
        for round in 1..=self.replays {
            let mut replayed = run(
                place.command(&[CREWIND, "replay"], Path::new("/"), &self.environment),
                b"not what the recording read\n",
                self.timeout,
            )
            .map_err(|e| format!("replay {round}: {e}\n{}", place.hint()))?;
            self.drop_warnings(&mut replayed);
            compare("replayed", &replayed, "recorded", &recorded)
                .map_err(|e| format!("replay {round}: {e}{}", place.hint()))?;
        }
        place.clear();
        Ok(())
    }

    fn drop_warnings(&self, output: &mut Output) {
        if self.warnings == Warnings::Expected {
            let is_output = |line: &&[u8]| !line.starts_with(b"crewind: warning: ");
            output.stderr = output
                .stderr
                .split_inclusive(|&b| b == b'\n')
                .filter(is_output)
                .flatten()
                .copied()
                .collect();
        }
    }

    /// One run in a fresh work directory.
    fn in_work_directory(&self, place: &Place, command: &[&str]) -> Result<Output, String> {
        place.remove_work();
        for (path, content) in &self.files {
            let path = place.work.join(path);
            std::fs::create_dir_all(path.parent().unwrap_or(&place.work))
                .map_err(|e| e.to_string())?;
            std::fs::write(&path, content).map_err(|e| e.to_string())?;
        }
        std::fs::create_dir_all(&place.work).map_err(|e| e.to_string())?;
        run(
            place.command(command, &place.work, &self.environment),
            &self.stdin,
            self.timeout,
        )
    }
}

/// Directories of one test.
pub struct Place {
    /// Its own folder.
    pub base: PathBuf,
    /// Where the program runs.
    pub work: PathBuf,
    /// Where its traces are.
    pub traces: PathBuf,
}

impl Place {
    /// An empty place.
    pub fn new(name: &str) -> Place {
        let base = scratch().join("run").join(name);
        let _ = std::fs::remove_dir_all(&base);
        let place = Place {
            work: base.join("work"),
            traces: base.join("traces"),
            base,
        };
        std::fs::create_dir_all(&place.work).expect("the scratch directory can be written");
        place
    }

    /// A command with the tests' environment: small, the same everywhere, without what changes output.
    pub fn command(&self, words: &[&str], directory: &Path, more: &[(String, String)]) -> Command {
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .current_dir(directory)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", &self.work)
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC")
            .env("TERM", "dumb")
            .env("CREWIND_TRACE_DIR", &self.traces)
            .envs(more.iter().map(|(k, v)| (k, v)));
        for name in ["CREWIND_LOG", "RUST_BACKTRACE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }

    /// Crewind as such a command, in the work directory.
    pub fn crewind_command(&self, words: &[&str], more: &[(String, String)]) -> Command {
        self.command(&[&[CREWIND], words].concat(), &self.work, more)
    }

    /// Runs crewind in the work directory, with nothing to read.
    pub fn crewind(&self, words: &[&str], limit: Duration) -> Result<Output, String> {
        run(self.crewind_command(words, &[]), b"", limit)
    }

    /// Empties the work directory by removing it.
    pub fn remove_work(&self) {
        // Programs may leave directories without rights.
        let _ = Command::new("chmod")
            .args(["-R", "u+rwx"])
            .arg(&self.work)
            .stderr(Stdio::null())
            .status();
        let _ = std::fs::remove_dir_all(&self.work);
    }

    /// After success.
    pub fn clear(&self) {
        self.remove_work();
        let _ = std::fs::remove_dir_all(&self.base);
    }

    /// Waits until the processes that went on ended too.
    fn wait_for_the_end(&self) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !self.traces.join("latest/end.json").exists() {
            if Instant::now() > deadline {
                return Err(format!("the recording does not end\n{}", self.hint()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// How to look at a failure.
    pub fn hint(&self) -> String {
        format!(
            "the trace is kept; replay it with\n  CREWIND_TRACE_DIR={} {CREWIND} replay\n",
            self.traces.display()
        )
    }
}

/// Builds a guest program and makes a case of it, as the directives at its head say:
///
/// `// build: FLAGS`, `// args: WORDS`, `// exit: N`, `// signal: NAME`, `// varies`, `// warns`, `// timeout: SECONDS`,
/// `// also-lib` (also built as a library, whose path is the first argument), `// stdin: TEXT`,
/// `// known-failure: WHY`.
pub fn guest(name: &str) -> Case {
    let source = source_of(name);
    let text = std::fs::read_to_string(&source).expect("the guest's source can be read");
    let directive = |key: &str| {
        text.lines()
            .take_while(|l| l.starts_with("//"))
            .find_map(|l| {
                l.strip_prefix("// ")?
                    .strip_prefix(key)?
                    .strip_prefix(": ")
                    .map(str::to_owned)
            })
    };
    let flag = |key: &str| {
        text.lines()
            .take_while(|l| l.starts_with("//"))
            .any(|l| l == format!("// {key}"))
    };
    let flags: Vec<String> = directive("build")
        .unwrap_or_default()
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let program = build(&source, &flags, "");
    let mut case = Case::new(name, &[program.to_str().expect("paths are UTF-8")]);
    if flag("also-lib") {
        let library = build(
            &source,
            &["-shared".into(), "-fPIC".into(), "-DLIB".into()],
            ".so",
        );
        case = case.arg(library.to_str().expect("paths are UTF-8"));
    }
    for arg in directive("args").unwrap_or_default().split_whitespace() {
        case = case.arg(arg);
    }
    if let Some(code) = directive("exit") {
        case = case.expect(Some(exited(code.parse().expect("exit: has a number"))));
    }
    if let Some(signal) = directive("signal") {
        case = case.expect(Some(signal_number(&signal)));
    }
    if flag("varies") {
        case = case.varies();
    }
    if flag("warns") {
        case = case.warns();
    }
    if let Some(seconds) = directive("timeout") {
        case = case.timeout(seconds.parse().expect("timeout: has a number"));
    }
    if let Some(text) = directive("stdin") {
        case = case.stdin(format!("{}\n", text.replace("\\n", "\n")).as_bytes());
    }
    if let Some(why) = directive("known-failure") {
        case = case.known_failure(&why);
    }
    case
}

fn signal_number(name: &str) -> i32 {
    match name {
        "ABRT" => libc::SIGABRT,
        "SEGV" => libc::SIGSEGV,
        "KILL" => libc::SIGKILL,
        "TERM" => libc::SIGTERM,
        _ => panic!("no number known for signal {name}"),
    }
}

fn source_of(name: &str) -> PathBuf {
    ["c", "cc", "S", "rs"]
        .iter()
        .map(|extension| guest_sources().join(format!("{name}.{extension}")))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("no guest program {name}"))
}

/// Compiles a guest program unless that was done since its source changed.
pub fn build(source: &Path, flags: &[String], suffix: &str) -> PathBuf {
    let directory = scratch().join("guests");
    std::fs::create_dir_all(&directory).expect("the scratch directory can be written");
    let stem = source.file_stem().unwrap_or_default().to_string_lossy();
    let program = directory.join(format!("{stem}{suffix}"));
    let time = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
    let headers = ["check.h", "par.h"].map(|name| time(&guest_sources().join(name)));
    if time(&program) > headers.into_iter().fold(time(source), Option::max) {
        return program;
    }
    // Tests may build the same program at once: each builds its own, the last one stays.
    let temporary = directory.join(format!("{stem}{suffix}.{}", std::process::id()));
    let extension = source.extension().unwrap_or_default();
    let mut command = match extension.to_str() {
        Some("rs") => {
            let mut command = Command::new("rustc");
            command.args(["--edition=2021", "-O", "-g"]);
            command
        }
        Some("cc") => Command::new("g++"),
        _ => Command::new("gcc"),
    };
    if extension != "rs" {
        command.args(["-O1", "-g", "-Wall", "-Wextra", "-Wno-clobbered"]);
        command.args(["-I", guest_sources().to_str().expect("paths are UTF-8")]);
    }
    command.args(flags).arg("-o").arg(&temporary).arg(source);
    if extension != "rs" && !flags.iter().any(|f| f == "-nostdlib") {
        command.args(["-lpthread", "-ldl", "-lm", "-lrt"]);
    }
    let output = command.output().expect("the compiler can be started");
    assert!(
        output.status.success(),
        "{source:?} does not compile:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    std::fs::rename(&temporary, &program).expect("the program can be put in place");
    program
}

/// Runs a command with a limit of time, as the leader of a process group.
pub fn run(mut command: Command, stdin: &[u8], limit: Duration) -> Result<Output, String> {
    let shown = format!("{command:?}");
    // What daemonises or survives its parent stays below this process, to be found at a time-out.
    // SAFETY: this option has one integer argument.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = command
        .spawn()
        .map_err(|e| format!("cannot start {shown}: {e}"))?;
    let mut pipe = child.stdin.take().expect("stdin is a pipe");
    let input = stdin.to_vec();
    std::thread::spawn(move || {
        // A program that reads less is no failure.
        let _ = pipe.write_all(&input);
    });
    let (sender, ends) = mpsc::channel();
    let mut stdout = child.stdout.take().expect("stdout is a pipe");
    let mut stderr = child.stderr.take().expect("stderr is a pipe");
    let out_sender = sender.clone();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stdout.read_to_end(&mut bytes);
        let _ = out_sender.send((1, bytes));
    });
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stderr.read_to_end(&mut bytes);
        let _ = sender.send((2, bytes));
    });
    let deadline = Instant::now() + limit;
    let mut timed_out = false;
    let mut collected = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let left = deadline.saturating_duration_since(Instant::now());
        let received = ends.recv_timeout(left).or_else(|_| {
            timed_out = true;
            kill_descendants();
            ends.recv_timeout(Duration::from_secs(5))
        });
        match received {
            Ok((1, bytes)) => collected.0 = bytes,
            Ok((_, bytes)) => collected.1 = bytes,
            Err(_) => break,
        }
    }
    // Output is closed; the end itself follows soon or never.
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            break status;
        }
        if Instant::now() >= deadline + Duration::from_secs(1) {
            timed_out = true;
            kill_descendants();
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let output = Output {
        status,
        stdout: collected.0,
        stderr: collected.1,
    };
    if timed_out {
        return Err(format!(
            "no end within {} s: {shown}\n{}",
            limit.as_secs(),
            show(&output)
        ));
    }
    Ok(output)
}

/// Kills every process below this one; all are the test's own.
fn kill_descendants() {
    let mut look_at = vec![std::process::id().to_string()];
    while let Some(pid) = look_at.pop() {
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let children =
                std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace() {
                look_at.push(child.to_owned());
                if let Ok(number) = child.parse::<i32>() {
                    // SAFETY: no memory is involved.
                    unsafe { libc::kill(number, libc::SIGKILL) };
                }
            }
        }
    }
}

/// Cuts the last line off and returns it without its end.
pub fn take_last_line(bytes: &mut Vec<u8>) -> String {
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let start = body
        .iter()
        .rposition(|&b| b == b'\n')
        .map_or(0, |at| at + 1);
    let line = String::from_utf8_lossy(&body[start..]).into_owned();
    bytes.truncate(start);
    line
}

/// Compares two runs; the error shows the first difference.
fn compare(a_name: &str, a: &Output, b_name: &str, b: &Output) -> Result<(), String> {
    let mut text = String::new();
    if a.status.into_raw() & !0x80 != b.status.into_raw() & !0x80 {
        let _ = writeln!(text, "{a_name}: {}, {b_name}: {}", a.status, b.status);
    }
    for (what, a_bytes, b_bytes) in [
        ("output", &a.stdout, &b.stdout),
        ("error output", &a.stderr, &b.stderr),
    ] {
        if a_bytes != b_bytes {
            let at = a_bytes.iter().zip(b_bytes.iter()).position(|(x, y)| x != y);
            let at = at.unwrap_or(a_bytes.len().min(b_bytes.len()));
            let line = a_bytes[..at].iter().filter(|&&b| b == b'\n').count() + 1;
            let start = a_bytes[..at]
                .iter()
                .rposition(|&b| b == b'\n')
                .map_or(0, |p| p + 1);
            let excerpt = |bytes: &[u8]| {
                let end = bytes.len().min(at + 300);
                String::from_utf8_lossy(bytes.get(start..end).unwrap_or_default()).into_owned()
            };
            let _ = writeln!(
                text,
                "{what} differs at byte {at}, line {line} ({} and {} bytes)\n--- {a_name}\n{}\n--- {b_name}\n{}\n---",
                a_bytes.len(),
                b_bytes.len(),
                excerpt(a_bytes),
                excerpt(b_bytes)
            );
        }
    }
    if text.is_empty() { Ok(()) } else { Err(text) }
}

/// A run for people.
pub fn show(output: &Output) -> String {
    let cut = |bytes: &[u8]| {
        let start = bytes.len().saturating_sub(3000);
        String::from_utf8_lossy(&bytes[start..]).into_owned()
    };
    format!(
        "{}\n--- output\n{}--- error output\n{}---",
        output.status,
        cut(&output.stdout),
        cut(&output.stderr)
    )
}

/// Looks a program up in the tests' PATH.
pub fn find_program(name: &str) -> Option<PathBuf> {
    if name.starts_with('/') {
        return Some(PathBuf::from(name)).filter(|p| p.exists());
    }
    [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ]
    .iter()
    .map(|d| Path::new(d).join(name))
    .find(|p| p.exists())
}

/// Notes a skip for want of a program. In CI, whose set-up installs everything, it is a failure.
pub fn skip(name: &str, why: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "{name} would be skipped, in CI: {why}"
    );
    note_skip(name, why);
}

/// Notes a skip for want of hardware, which no set-up can install, where `scripts/test` counts and prints it.
pub fn note_skip(name: &str, why: &str) {
    let directory = scratch().join("skipped");
    let _ = std::fs::create_dir_all(&directory);
    let _ = std::fs::write(directory.join(name), why);
    eprintln!("SKIPPED {name}: {why}");
}
