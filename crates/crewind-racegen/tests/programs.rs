//! What generated programs must be: the same for the same seed, complete, and sound when they run natively.

use std::process::Command;

use crewind_racegen::{Kind, Options, assembly, build};

#[test]
fn a_seed_determines_the_programs() {
    let options = |seed, programs| Options {
        seed,
        programs,
        ..Options::default()
    };
    let (few, more) = (assembly(&options(5, 3)), assembly(&options(5, 4)));
    assert_eq!(few, assembly(&options(5, 3)));
    assert_ne!(few, assembly(&options(6, 3)));
    // Number 2 is the same whether there is a number 3 or not.
    let code = few.split(".section").next().expect("there is code");
    assert!(more.starts_with(code.trim_end()));
}

#[test]
fn every_kind_has_a_name_of_its_own() {
    for &kind in Kind::ALL {
        assert_eq!(Kind::by_name(kind.name()), Some(kind));
    }
    assert_eq!(Kind::by_name("no such kind"), None);
}

/// Each kind alone and all together: compiles, ends, and one thread alone always sees the same.
#[test]
fn programs_are_sound() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let mut groups: Vec<(String, Vec<Kind>)> = Kind::ALL
        .iter()
        .map(|&k| {
            let others = Kind::ALL.iter().copied().filter(|&o| o != k).collect();
            (k.name().to_owned(), others)
        })
        .collect();
    groups.push(("all".to_owned(), Vec::new()));
    for (name, mut without) in groups {
        let executable = directory.path().join(&name);
        let run = |words: &[&str]| {
            let output = Command::new(&executable)
                .args(words)
                .output()
                .expect("it can be started");
            assert!(
                output.status.success(),
                "{name} {words:?}: {} {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let options = Options {
            seed: 9,
            programs: 5,
            without: without.clone(),
            without_signals: false,
        };
        build(&options, &executable).expect("gcc takes it");
        assert_eq!(run(&["0", "5", "0"]).lines().count(), 5);
        run(&["0", "3", "8"]);
        // What one thread sees is a function of the program, unless it asks for times and the like.
        without.extend(Kind::ALL.iter().copied().filter(|k| k.varies()));
        let quiet = Options {
            without,
            without_signals: true,
            ..options
        };
        build(&quiet, &executable).expect("gcc takes it");
        assert_eq!(run(&["0", "5", "1"]), run(&["0", "5", "1"]), "{name}");
    }
}
