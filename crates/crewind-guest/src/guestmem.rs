//! Reading and writing guest memory from the runtime, where any address may be bad.
//!
//! The copies are a few instructions of assembly at known addresses. When one of them faults, the runtime's
//! SIGSEGV/SIGBUS handler asks [`fixup`] with the faulting pc and continues at the address it gives, where the
//! copy returns with what is left undone. Without that handler a bad address ends the process.
//!
//! A page that code was translated from may be write-protected: call `Space::prepare_kernel_write` before
//! writing, or the write fails like one to read-only memory.

use crate::errno::Errno;
use crate::layout::is_guest;
use crate::par::rights::touch;
use crate::shared;
use std::mem::MaybeUninit;

std::arch::global_asm!(
    ".text",
    ".p2align 4",
    // fn(dst: rdi, src: rsi, len: rdx) -> bytes not copied
    "crewind_guest_copy:",
    "mov rcx, rdx",
    "crewind_guest_copy_at:",
    "rep movsb",
    "crewind_guest_copy_end:",
    "mov rax, rcx",
    "ret",
    ".p2align 4",
    // fn(src: rdi, out: rsi) -> 0, or 1 on a fault
    "crewind_guest_load8:",
    "mov rax, [rdi]",
    "mov [rsi], rax",
    "xor eax, eax",
    "ret",
    "crewind_guest_load4:",
    "mov eax, [rdi]",
    "mov [rsi], eax",
    "xor eax, eax",
    "ret",
    // fn(dst: rdi, value: rsi) -> 0, or 1 on a fault
    "crewind_guest_store8:",
    "mov [rdi], rsi",
    "xor eax, eax",
    "ret",
    "crewind_guest_store4:",
    "mov [rdi], esi",
    "xor eax, eax",
    "ret",
    "crewind_guest_failed:",
    "mov eax, 1",
    "ret",
);

unsafe extern "C" {
    fn crewind_guest_copy(dst: *mut u8, src: *const u8, len: usize) -> usize;
    fn crewind_guest_load8(src: *const u64, out: *mut u64) -> u64;
    fn crewind_guest_load4(src: *const u32, out: *mut u32) -> u64;
    fn crewind_guest_store8(dst: *mut u64, value: u64) -> u64;
    fn crewind_guest_store4(dst: *mut u32, value: u32) -> u64;
    static crewind_guest_copy_at: u8;
    static crewind_guest_copy_end: u8;
    static crewind_guest_failed: u8;
}

/// Where a thread whose guest access faulted at `pc` continues; `None` when `pc` is not in one of the copies
/// of this module. Safe in signal context.
pub fn fixup(pc: u64) -> Option<u64> {
    if let Some(at) = crate::shared::raw::fixup(pc) {
        return Some(at);
    }
    let failed = &raw const crewind_guest_failed as u64;
    let copy_at = &raw const crewind_guest_copy_at as u64;
    if pc == copy_at {
        return Some(&raw const crewind_guest_copy_end as u64);
    }
    let first = [
        crewind_guest_load8 as *const () as u64,
        crewind_guest_load4 as *const () as u64,
        crewind_guest_store8 as *const () as u64,
        crewind_guest_store4 as *const () as u64,
    ];
    first.contains(&pc).then_some(failed)
}

/// Guest memory was not there or not accessible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// How many bytes were copied before the first bad one.
    pub copied: usize,
}

impl From<Fault> for Errno {
    fn from(_: Fault) -> Errno {
        Errno(libc::EFAULT)
    }
}

/// Fills `dst` from guest memory.
pub fn copy_from_guest(dst: &mut [u8], addr: u64) -> Result<(), Fault> {
    if dst.is_empty() {
        return Ok(());
    }
    touch(addr, dst.len() as u64, false);
    let len = guest_prefix(addr, dst.len());
    // SAFETY: `dst` is ours for `len` bytes; the source is in the guest's part of the address space, where
    // nothing of the runtime is, and a fault there ends the copy early (module rules).
    let left = unsafe { crewind_guest_copy(dst.as_mut_ptr(), addr as *const u8, len) };
    let copied = len - left;
    shared::was_read(addr, dst.get(..copied).unwrap_or_default());
    if copied == dst.len() {
        Ok(())
    } else {
        Err(Fault { copied })
    }
}

/// What lies in guest memory now, without a place in the order of what threads do: nothing that the guest can see may
/// depend on it.
pub fn peek_u64(addr: u64) -> Option<u64> {
    let mut value = 0;
    if guest_prefix(addr, 8) < 8 {
        return None;
    }
    // SAFETY: as for `copy_from_guest`; `value` is ours.
    let failed = unsafe { crewind_guest_load8(addr as *const u64, &mut value) };
    (failed == 0).then_some(value)
}

/// A copy of guest memory.
pub fn copy_of_guest(addr: u64, len: usize) -> Result<Vec<u8>, Fault> {
    let mut bytes: Vec<u8> = Vec::with_capacity(len);
    let within = guest_prefix(addr, len);
    touch(addr, within as u64, false);
    // SAFETY: there is room for `len` bytes; the source is in the guest's part of the address space, where
    // nothing of the runtime is, and a fault there ends the copy early (module rules).
    let left = unsafe { crewind_guest_copy(bytes.as_mut_ptr(), addr as *const u8, within) };
    let copied = within - left;
    if copied < len {
        return Err(Fault { copied });
    }
    // SAFETY: all `len` bytes were just written.
    unsafe { bytes.set_len(len) };
    shared::was_read(addr, &bytes);
    Ok(bytes)
}

/// Writes `src` to guest memory.
pub fn copy_to_guest(addr: u64, src: &[u8]) -> Result<(), Fault> {
    if src.is_empty() {
        return Ok(());
    }
    let len = guest_prefix(addr, src.len());
    touch(addr, len as u64, true);
    // SAFETY: the destination is in the guest's part of the address space, where nothing of the runtime is,
    // and a fault there ends the copy early (module rules).
    let left = unsafe { crewind_guest_copy(addr as *mut u8, src.as_ptr(), len) };
    let copied = len - left;
    shared::was_written(addr, src.get(..copied).unwrap_or_default());
    if copied == src.len() {
        Ok(())
    } else {
        Err(Fault { copied })
    }
}

/// How many of the `len` bytes at `addr` are before the first address that can not be the guest's.
fn guest_prefix(addr: u64, len: usize) -> usize {
    use crate::layout::{GUEST_END, GUEST_LAST, RUNTIME_LOW};
    if is_guest(addr, len as u64) {
        return len;
    }
    if !is_guest(addr, 1) {
        return 0;
    }
    let lines = [RUNTIME_LOW, GUEST_END, GUEST_LAST];
    let line = lines.into_iter().find(|line| addr < *line);
    (line.unwrap_or(addr) - addr).min(len as u64) as usize
}

/// Types for which every bit pattern is a value and which have no padding that matters.
///
/// # Safety
/// Any bytes must be a valid value, and the type must hold no references.
pub unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($t:ty),*) => { $(
        // SAFETY: integers take any bits.
        unsafe impl Plain for $t {}
    )* };
}
plain!(u8, i8, u16, i16, u32, i32, u64, i64, usize, isize);
// SAFETY: an array of such values has no padding of its own.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Reads one value.
pub fn read<T: Plain>(addr: u64) -> Result<T, Fault> {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: the zeroed value's bytes are initialised, and it lives as long as the slice.
    let bytes =
        unsafe { std::slice::from_raw_parts_mut(value.as_mut_ptr().cast::<u8>(), size_of::<T>()) };
    copy_from_guest(bytes, addr)?;
    // SAFETY: all bytes are initialised, and any bytes are a `T` (Plain).
    Ok(unsafe { value.assume_init() })
}

/// Writes one value, byte for byte. `T` must have no padding, or what the padding holds reaches the guest.
pub fn write<T: Plain>(addr: u64, value: &T) -> Result<(), Fault> {
    // SAFETY: reading the object representation of a `Plain` value that outlives the slice.
    let bytes = unsafe {
        std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>())
    };
    copy_to_guest(addr, bytes)
}

/// Reads a 64-bit word.
pub fn read_u64(addr: u64) -> Result<u64, Fault> {
    let mut out = 0;
    touch(addr, 8, false);
    // SAFETY: the address is in the guest's part; a fault makes the function return 1 (module rules).
    if is_guest(addr, 8) && unsafe { crewind_guest_load8(addr as *const u64, &mut out) } == 0 {
        shared::was_read(addr, &out.to_ne_bytes());
        return Ok(out);
    }
    Err(Fault { copied: 0 })
}

/// Reads a 32-bit word. One access when aligned, so it is fit for futex words.
pub fn read_u32(addr: u64) -> Result<u32, Fault> {
    let mut out = 0;
    touch(addr, 4, false);
    // SAFETY: as in `read_u64`.
    if is_guest(addr, 4) && unsafe { crewind_guest_load4(addr as *const u32, &mut out) } == 0 {
        shared::was_read(addr, &out.to_ne_bytes());
        return Ok(out);
    }
    Err(Fault { copied: 0 })
}

/// Writes a 32-bit word at an aligned address if it still has a value that was read before, as one access of the processor:
/// other processes may use it at the same time. False: it has another value.
pub fn swap_u32(addr: u64, old: u32, new: u32) -> Result<bool, Fault> {
    touch(addr, 4, true);
    if !is_guest(addr, 4) || !addr.is_multiple_of(4) {
        return Err(Fault { copied: 0 });
    }
    let new = new.to_ne_bytes();
    match shared::raw::swap(addr, &old.to_ne_bytes(), &new) {
        Ok(shared::raw::Swap::Done) => {
            shared::was_written(addr, &new);
            Ok(true)
        }
        Ok(shared::raw::Swap::Changed) => Ok(false),
        Err(shared::raw::Gone) => Err(Fault { copied: 0 }),
    }
}

/// Writes a 64-bit word.
pub fn write_u64(addr: u64, value: u64) -> Result<(), Fault> {
    touch(addr, 8, true);
    // SAFETY: as in `read_u64`.
    if is_guest(addr, 8) && unsafe { crewind_guest_store8(addr as *mut u64, value) } == 0 {
        shared::was_written(addr, &value.to_ne_bytes());
        return Ok(());
    }
    Err(Fault { copied: 0 })
}

/// Writes a 32-bit word.
pub fn write_u32(addr: u64, value: u32) -> Result<(), Fault> {
    touch(addr, 4, true);
    // SAFETY: as in `read_u64`.
    if is_guest(addr, 4) && unsafe { crewind_guest_store4(addr as *mut u32, value) } == 0 {
        shared::was_written(addr, &value.to_ne_bytes());
        return Ok(());
    }
    Err(Fault { copied: 0 })
}

/// Why a string could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StrError {
    /// Bad address: EFAULT.
    Fault,
    /// No NUL within the limit: ENAMETOOLONG or E2BIG, as the caller's call has it.
    TooLong,
}

/// Reads bytes up to a NUL, which is not returned. `limit` counts the NUL.
pub fn read_cstr(addr: u64, limit: usize) -> Result<Vec<u8>, StrError> {
    const STEP: usize = 256;
    let mut out = Vec::new();
    while out.len() < limit {
        let at = addr.checked_add(out.len() as u64).ok_or(StrError::Fault)?;
        // Up to a boundary of STEP, so that no read crosses into a page the string does not reach.
        let want = (STEP - (at as usize & (STEP - 1))).min(limit - out.len());
        let mut buf = [0u8; STEP];
        let piece = &mut buf[..want];
        copy_from_guest(piece, at).map_err(|_| StrError::Fault)?;
        match piece.iter().position(|&b| b == 0) {
            Some(n) => {
                out.extend_from_slice(&piece[..n]);
                return Ok(out);
            }
            None => out.extend_from_slice(piece),
        }
    }
    Err(StrError::TooLong)
}

/// Longest path the kernel takes, with its NUL.
pub const PATH_MAX: usize = 4096;
/// Longest single `execve` string, with its NUL.
pub const MAX_ARG_STRLEN: usize = 32 * 4096;

/// Reads a path argument: EFAULT or ENAMETOOLONG.
pub fn read_path(addr: u64) -> Result<Vec<u8>, Errno> {
    read_cstr(addr, PATH_MAX).map_err(|e| match e {
        StrError::Fault => Errno(libc::EFAULT),
        StrError::TooLong => Errno(libc::ENAMETOOLONG),
    })
}

/// Reads a NULL-terminated array of strings, as `execve` does (a null array is an empty one). `room` is what
/// is left of the limit on strings and pointers together, and is reduced by what was read; E2BIG beyond it.
pub fn read_strings(array: u64, room: &mut u64) -> Result<Vec<Vec<u8>>, Errno> {
    let mut out = Vec::new();
    if array == 0 {
        return Ok(out);
    }
    loop {
        let at = array
            .checked_add(out.len() as u64 * 8)
            .ok_or(Errno(libc::EFAULT))?;
        let string = read_u64(at)?;
        if string == 0 {
            return Ok(out);
        }
        let bytes = read_cstr(string, MAX_ARG_STRLEN).map_err(|e| match e {
            StrError::Fault => Errno(libc::EFAULT),
            StrError::TooLong => Errno(libc::E2BIG),
        })?;
        *room = room
            .checked_sub(bytes.len() as u64 + 1 + 8)
            .ok_or(Errno(libc::E2BIG))?;
        out.push(bytes);
    }
}
