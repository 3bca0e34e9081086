//! Traces that were cut or changed anywhere: an error or a shorter replay that says so; never a crash, a hang or
//! wrong output. And whole ones: a hundred replays, no difference.
//!
//! `CREWIND_E2E_DAMAGE=1000` tries so many damages.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::{CREWIND, Output, Place, build, guest_sources, run, show};

const LIMIT: Duration = Duration::from_secs(30);

/// Statuses that a damaged trace may give: its end, a mistake (no trace any more).
const TRACE_END: i32 = 119;
const USAGE: i32 = 120;

fn crewind(place: &Place, args: &[&str]) -> Result<Output, String> {
    place.crewind(args, LIMIT)
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_below(&entry.path())),
            Ok(_) => found.push(entry.path()),
            Err(_) => {}
        }
    }
    found.sort();
    found
}

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// A number below `bound`.
fn below(state: &mut u64, bound: usize) -> usize {
    usize::try_from(next(state) % u64::try_from(bound.max(1)).unwrap_or(1)).unwrap_or(0)
}

/// Changes some bytes somewhere; says what it did.
fn damage(bytes: &mut Vec<u8>, state: &mut u64) -> String {
    let length = bytes.len();
    let at = below(state, length);
    match next(state) % 4 {
        0 => {
            bytes.truncate(at);
            format!("cut to {at} of {length}")
        }
        1 => {
            let bit = next(state) % 8;
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
            format!("bit {bit} of byte {at} of {length} flipped")
        }
        2 => {
            let end = (at + 1 + below(state, 64)).min(length);
            for byte in bytes.get_mut(at..end).unwrap_or_default() {
                *byte = u8::try_from(next(state) & 0xff).unwrap_or(0);
            }
            format!("bytes {at} to {end} of {length} random")
        }
        _ => {
            let end = (at + 1 + below(state, 4096)).min(length);
            bytes.get_mut(at..end).unwrap_or_default().fill(0);
            format!("bytes {at} to {end} of {length} zeroed")
        }
    }
}

#[test]
fn damaged_traces() {
    let rounds = std::env::var("CREWIND_E2E_DAMAGE")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(60);
    let place = Place::new("damaged_traces");
    let script = "for i in 1 2 3 4; do echo line $i; (echo sub $i; exit $i) || true; done; echo a b c | tr ' ' '\\n'; exit 7";
    let recorded = crewind(
        &place,
        &["record", "--checksum", "-o", "good", "bash", "-c", script],
    )
    .unwrap();
    assert_eq!(recorded.status.code(), Some(7), "{}", show(&recorded));
    let good = place.work.join("good");
    let trace = place.work.join("t");
    // Contents of mapped files are large and many: streams and descriptions get half of the damages.
    let files = files_below(&good);
    let (contents, own): (Vec<_>, Vec<_>) = files
        .iter()
        .partition(|f| f.parent().is_some_and(|p| p.ends_with("files")));
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for round in 0..rounds {
        let pool = if round % 4 == 0 { &contents } else { &own };
        let victim = pool[below(&mut state, pool.len())];
        let _ = std::fs::remove_dir_all(&trace);
        let copied = std::process::Command::new("cp")
            .args(["-r"])
            .arg(&good)
            .arg(&trace)
            .status();
        assert!(copied.is_ok_and(|s| s.success()));
        let relative = victim.strip_prefix(&good).expect("it is below").to_owned();
        let mut bytes = std::fs::read(victim).expect("it can be read");
        let original = bytes.clone();
        let what = damage(&mut bytes, &mut state);
        let target = trace.join(&relative);
        let _ = std::fs::remove_file(&target);
        std::fs::write(&target, &bytes).expect("it can be written");
        let context = format!("round {round}: {}: {what}", relative.display());
        for command in ["replay", "info", "dump"] {
            let output = crewind(&place, &[command, "t"])
                .unwrap_or_else(|e| panic!("{context}: {command}: {e}"));
            let code = output.status.code();
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(
                code.is_some() && !error.contains("panicked"),
                "{context}: {command}: {}",
                show(&output)
            );
            if command != "replay" {
                continue;
            }
            let whole = output.stdout == recorded.stdout && code == Some(7);
            let said = matches!(code, Some(TRACE_END | USAGE)) && error.contains("crewind: ");
            assert!(whole || said, "{context}: {}", show(&output));
            assert!(
                recorded.stdout.starts_with(&output.stdout),
                "{context}: wrong output: {}",
                show(&output)
            );
            // What nobody reads in a replay may be damaged without effect; a stream may not.
            let in_stream = relative.starts_with("streams") && bytes != original;
            assert!(
                !(whole && in_stream),
                "{context}: the damage went unnoticed"
            );
        }
    }
    place.clear();
}

/// Replays one recording a hundred times.
fn hundred(name: &str, command: &[&str]) {
    let place = Place::new(name);
    let words: Vec<&str> = ["record", "--checksum", "--"]
        .into_iter()
        .chain(command.iter().copied())
        .collect();
    let recorded = crewind(&place, &words).unwrap();
    place.remove_work();
    for i in 0..100 {
        let words = [CREWIND, "replay"];
        let replayed = run(place.command(&words, Path::new("/"), &[]), b"", LIMIT)
            .unwrap_or_else(|e| panic!("{i}: {e}"));
        assert_eq!(
            replayed.status,
            recorded.status,
            "replay {i}: {}\n{}",
            show(&replayed),
            place.hint()
        );
        assert!(
            replayed.stdout == recorded.stdout,
            "replay {i}: {}\n{}",
            show(&replayed),
            place.hint()
        );
        assert!(
            replayed.stderr.is_empty(),
            "replay {i}: {}\n{}",
            show(&replayed),
            place.hint()
        );
    }
    place.clear();
}

#[test]
fn hundred_replays_of_processes() {
    let script = "for i in 1 2 3; do echo $RANDOM $BASHPID $(date +%N) & done; wait; echo x | sed s/x/y/ | cat";
    hundred("hundred_replays_of_processes", &["bash", "-c", script]);
}

#[test]
fn hundred_replays_of_races() {
    let program = build(&guest_sources().join("thread_races.c"), &[], "");
    hundred(
        "hundred_replays_of_races",
        &[program.to_str().expect("paths are UTF-8")],
    );
}
