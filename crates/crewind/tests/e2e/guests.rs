//! The guest programs of `tests/guests`, one test each; their sources say what they need and how they end.

use std::collections::BTreeSet;

use crate::harness::{guest, guest_sources};

macro_rules! guests {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                guest(stringify!($name)).run();
            }
        )*
        const LISTED: &[&str] = &[$(stringify!($name)),*];
    };
}

guests! {
    hello_dynamic hello_nopie hello_static hello_static_pie hello_asm cxx_exceptions rust_program
    sig_info sig_nested sig_altstack sig_restart sig_inherit sig_fault sig_fault_repair sig_fatal sig_overflow
    sig_timer_10000 sig_wait sig_state sig_longjmp sig_cxx_throw sig_stop_continue
    death_computing death_abort death_segv death_kill death_kill_threads death_term kill_races kill_contended
    ucontext_coroutines fork_tree fork_output fork_state spawn exec_chain exec_script exec_errno wait_variants
    pipes_sockets poll_select_epoll event_fds pty
    mmap_basic mmap_file mmap_written heap_brk
    code_selfmodify code_jit_wx code_dlopen insn_nondet fpu_x87 fpu_vector
    insn_integer control_flow proc_self fd_limits stack_deep limits_ids limits_own limits_descriptors user_changed root_changed files file_again io_large stdin_lines sysv_ipc clocks
    thread_basic thread_sync thread_races thread_cancel thread_processes thread_many thread_memory thread_cxx thread_setxid thread_direct_io
}

#[test]
fn every_guest_program_is_listed() {
    let sources = std::fs::read_dir(guest_sources()).expect("the sources are there");
    let found: BTreeSet<String> = sources
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|e| e != "h"))
        .filter_map(|entry| Some(entry.path().file_stem()?.to_string_lossy().into_owned()))
        .collect();
    let listed: BTreeSet<String> = LISTED
        .iter()
        .chain(crate::parallel::GUESTS)
        .chain(crate::shared::GUESTS)
        .map(|&name| name.to_owned())
        .collect();
    assert_eq!(found, listed);
}
