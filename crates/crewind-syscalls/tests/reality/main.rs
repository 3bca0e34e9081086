//! The table against the running kernel: calls are made on memory filled with a pattern, twice with
//! different patterns, and every byte that changed must lie in a range that the table reports.

mod files;
mod harness;
mod interrupted;
mod ioctls;
mod ipc;
mod net;
mod process;
mod waiting;
