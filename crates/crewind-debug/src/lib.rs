//! A debugger on a recording: moving in time, and gdb's remote protocol over that.
//!
//! Knows nothing about how guest code runs: it asks replaying processes ([`engine`]), of which there is one where the
//! debugger is, and a sleeping one for each checkpoint. [`timeline`] decides which checkpoint to go on from and how far,
//! [`target`] is what gdb sees of that.

mod arch;
mod connection;
mod copy;
pub mod engine;
mod files;
mod lldb;
mod memory;
mod monitor;
pub mod point;
mod target;
pub mod timeline;

pub use connection::{Connection, Ended, serve, tcp, unix};
pub use files::Find;
pub use target::Session;
