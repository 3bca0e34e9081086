//! `crewind lockstep`: agreement on correct programs, and that a mistake is found where it is made.

use std::path::Path;
use std::time::Duration;

use crate::harness::{CREWIND, Output, Place, build, run};

/// Runs `crewind lockstep` with these words.
fn lockstep(name: &str, words: &[&str]) -> Output {
    let place = Place::new(&format!("lockstep_{name}"));
    let all: Vec<&str> = [CREWIND, "lockstep"].iter().chain(words).copied().collect();
    let output = run(
        place.command(&all, &place.work, &[]),
        b"",
        Duration::from_secs(120),
    )
    .expect("it ends in time");
    place.clear();
    output
}

/// Both must have gone to the end without a difference.
fn agrees(output: &Output, stdout: &str) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("lockstep: no difference in"), "{told}");
    assert!(told.contains("until the end of the program"), "{told}");
    assert!(output.status.success(), "{:?}\n{told}", output.status);
    assert_eq!(String::from_utf8_lossy(&output.stdout), stdout);
}

#[test]
fn true_agrees() {
    agrees(&lockstep("true", &["--", "/bin/true"]), "");
}

#[test]
fn bash_agrees_under_the_options_of_a_recording() {
    agrees(
        &lockstep(
            "bash",
            &["--every", "20", "--", "bash", "-c", "echo $((1+2))"],
        ),
        "3\n",
    );
}

#[test]
fn numbers_strings_signals_and_mappings_agree() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lockstep/mixed.c");
    let program = build(&source, &[], "");
    let program = program.to_str().expect("paths are UTF-8");
    agrees(&lockstep("mixed", &["--", program]), "ok\n");
    agrees(
        &lockstep("mixed_every", &["--every", "7", "--memory", "--", program]),
        "ok\n",
    );
}

#[test]
fn a_later_start_agrees() {
    agrees(
        &lockstep("from", &["--from", "1000", "--", "/bin/true"]),
        "",
    );
}

#[test]
fn a_flipped_bit_is_found_at_its_block() {
    let output = lockstep("flip", &["--flip", "500:3:7", "--", "/bin/true"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(122), "{told}");
    assert!(told.contains("lockstep: after block 500 at 0x"), "{told}");
    let different: Vec<&str> = told
        .lines()
        .filter(|l| l.contains("bits that differ"))
        .collect();
    assert_eq!(different.len(), 1, "{told}");
    assert!(
        different[0].contains("rbx:") && different[0].ends_with("bits that differ 0x80"),
        "{told}"
    );
    assert!(
        told.contains("executed natively") && told.contains("blocks before"),
        "{told}"
    );
    assert!(!told.contains("no difference"), "{told}");
}
