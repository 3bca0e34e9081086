//! End-to-end tests: real programs, run natively, recorded and replayed.
//!
//! `CREWIND_E2E=native` runs the native part only, to try out new guest programs. `CREWIND_E2E_REPLAYS=100` replays each
//! recording so many times. `CREWIND_RANDOM_PROGRAMS=2000` runs more random programs, `CREWIND_RANDOM_SEED` others.

mod cli;
mod damage;
mod debug;
mod debug_calls;
mod debug_control;
mod file_data;
mod guests;
mod harness;
mod lockstep;
mod modes;
mod parallel;
mod parallel_programs;
mod part;
mod programs;
mod shared;
mod unfinished;
