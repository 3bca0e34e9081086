//! The table: rows by family, joined by number when the crate is compiled.

use crate::types::Row;

/// Rows in the form `number name(argument: kind, ...) { field: value, ... };`. Fields that are left out
/// are those of [`Row::BASE`].
macro_rules! rows {
    ($(
        $nr:literal $name:ident($($arg:ident: $kind:expr),* $(,)?) $({ $($field:ident: $value:expr),* $(,)? })?;
    )*) => {
        &[$($crate::types::Row {
            nr: $nr,
            name: stringify!($name),
            args: const { &[$($crate::types::Arg { name: stringify!($arg), kind: $kind }),*] },
            $($($field: $value,)*)?
            ..$crate::types::Row::BASE
        }),*]
    };
}

mod event;
mod file;
mod ipc;
mod kinds;
mod memory;
mod net;
mod path;
mod process;
mod signal;
mod system;
mod time;

/// Number of the newest call in the table: `file_setattr` (Linux 6.17; 6.18 added none after it, only
/// `uprobe` at 336).
pub const LAST: u32 = 469;

const FAMILIES: &[&[Row]] = &[
    file::ROWS,
    path::ROWS,
    memory::ROWS,
    process::ROWS,
    signal::ROWS,
    time::ROWS,
    event::ROWS,
    net::ROWS,
    ipc::ROWS,
    system::ROWS,
];

const SIZE: usize = LAST as usize + 1;

/// The numbers that exist: x86-64's own up to 336, and those shared with other architectures from 424.
const fn exists(nr: u32) -> bool {
    nr <= 336 || (nr >= 424 && nr <= LAST)
}

static TABLE: [Option<&'static Row>; SIZE] = join();

/// Puts each row at its number. Does not compile when a number is missing or there twice.
const fn join() -> [Option<&'static Row>; SIZE] {
    let mut table: [Option<&'static Row>; SIZE] = [None; SIZE];
    let mut family = 0;
    while family < FAMILIES.len() {
        let rows = FAMILIES[family];
        let mut i = 0;
        while i < rows.len() {
            let row = &rows[i];
            assert!(exists(row.nr), "row for a number that does not exist");
            assert!(table[row.nr as usize].is_none(), "two rows with one number");
            assert!(row.args.len() <= 6, "more than six arguments");
            table[row.nr as usize] = Some(row);
            i += 1;
        }
        family += 1;
    }
    let mut nr = 0;
    while nr < SIZE {
        assert!(
            table[nr].is_some() == exists(nr as u32),
            "number without a row"
        );
        nr += 1;
    }
    table
}

/// The row of a call; `None` for numbers that Linux 6.18 does not have.
pub fn row(nr: u32) -> Option<&'static Row> {
    *TABLE.get(nr as usize)?
}

/// All rows, by number.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    TABLE.iter().flatten().copied()
}

/// Name of a call.
pub fn syscall_name(nr: u32) -> Option<&'static str> {
    row(nr).map(|row| row.name)
}
