// A Rust program: collections, a caught panic, formatting, a child process, a file.
use std::collections::{BTreeMap, HashMap};
use std::io::Write;

fn main() {
    let mut words: HashMap<String, usize> = HashMap::new();
    for i in 0..10_000_usize {
        *words.entry(format!("word{}", i * 7919 % 997)).or_default() += i;
    }
    let sorted: BTreeMap<_, _> = words.iter().collect();
    let total: usize = sorted.values().copied().sum();
    println!("{} words, total {total}", sorted.len());
    std::panic::set_hook(Box::new(|_| eprintln!("a panic")));
    let caught = std::panic::catch_unwind(|| {
        let numbers: Vec<u32> = (0..3).collect();
        numbers[std::hint::black_box(7)]
    });
    println!("caught: {}", caught.is_err());
    let child = std::process::Command::new("/bin/echo").arg("from a child").output().unwrap();
    print!("{}", String::from_utf8_lossy(&child.stdout));
    assert!(std::process::Command::new("/no/such/program").spawn().is_err());
    let mut file = std::fs::File::create("rust.txt").unwrap();
    writeln!(file, "{:?}", &sorted.keys().take(3).collect::<Vec<_>>()).unwrap();
    drop(file);
    print!("{}", std::fs::read_to_string("rust.txt").unwrap());
    let handle = std::thread::spawn(move || (1..=20_u64).product::<u64>());
    println!("{}", handle.join().unwrap());
}
