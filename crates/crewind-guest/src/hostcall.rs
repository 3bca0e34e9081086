//! Host system calls made on the guest's behalf.
//!
//! A signal that arrives between "is one pending?" and the `syscall` instruction must not be slept through,
//! so the check and the instruction form a window: a host handler that finds the pc inside it moves the pc
//! to the abort path (design, rule 4 of section 10), and the call reports [`ABORTED`] without having run.

use std::sync::atomic::AtomicU32;

/// Returned by [`guest_syscall`] when a signal came before the system call started. Outside the errno range.
pub const ABORTED: i64 = -1000;

core::arch::global_asm!(
    r#"
    .text
    .p2align 4
    .globl crewind_guest_syscall
    .type crewind_guest_syscall, @function
crewind_guest_syscall:
    mov rax, rdi
    mov r11, rdx
    mov rdi, [rsi]
    mov rdx, [rsi + 16]
    mov r10, [rsi + 24]
    mov r8,  [rsi + 32]
    mov r9,  [rsi + 40]
    mov rsi, [rsi + 8]
    .globl crewind_guest_syscall_window
crewind_guest_syscall_window:
    cmp dword ptr [r11], 0
    jne 2f
    syscall
    .globl crewind_guest_syscall_end
crewind_guest_syscall_end:
    ret
    .globl crewind_guest_syscall_abort
crewind_guest_syscall_abort:
2:
    mov rax, -1000
    ret
    .size crewind_guest_syscall, . - crewind_guest_syscall
"#
);

unsafe extern "C" {
    fn crewind_guest_syscall(nr: u64, args: *const u64, pending: *const AtomicU32) -> i64;
    static crewind_guest_syscall_window: u8;
    static crewind_guest_syscall_end: u8;
    static crewind_guest_syscall_abort: u8;
}

/// Makes a host system call unless `pending` is set by a signal handler before it starts.
///
/// # Safety
/// The call must be one that does not harm the runtime: pointers are the guest's or valid buffers.
pub unsafe fn guest_syscall(nr: u32, args: &[u64; 6], pending: &AtomicU32) -> i64 {
    // SAFETY: the stub follows the C ABI; the caller vouches for the call itself.
    unsafe { crewind_guest_syscall(u64::from(nr), args.as_ptr(), pending) }
}

/// Tells the kernel where the calling thread's list of robust mutexes is in the guest; 0: it has none. What the kernel does
/// with it at the thread's end is in futex words that have the thread's number, which is the host's.
pub fn set_robust_list(head: u64) {
    /// Size of `struct robust_list_head`.
    const SIZE: u64 = 24;
    // SAFETY: the kernel looks at the list when the thread ends, and bears with whatever is there.
    unsafe { raw(libc::SYS_set_robust_list, [head, SIZE, 0, 0, 0, 0]) };
}

/// For the host signal handler: where to continue instead when `pc` lies in the window.
pub fn window_fixup(pc: u64) -> Option<u64> {
    let start = &raw const crewind_guest_syscall_window as u64;
    let end = &raw const crewind_guest_syscall_end as u64;
    (start..end)
        .contains(&pc)
        .then_some(&raw const crewind_guest_syscall_abort as u64)
}

/// Address of a `syscall` instruction of two bytes.
pub fn syscall_instruction() -> u64 {
    &raw const crewind_guest_syscall_end as u64 - 2
}

/// Makes a host system call for the runtime itself; negative errno on failure.
///
/// # Safety
/// As for the call made.
pub unsafe fn raw(nr: i64, a: [u64; 6]) -> i64 {
    let ret: i64;
    // SAFETY: the kernel clobbers rax, rcx and r11 only; the caller vouches for the call.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") nr => ret,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _,
        );
    }
    ret
}
