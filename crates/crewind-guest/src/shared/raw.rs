//! Loads, stores and exchanges on memory that other processes use at the same time: each is one access of the processor,
//! and one to memory that is not there fails instead of ending the process.

std::arch::global_asm!(
    ".text",
    ".p2align 4",
    // fn(src: rdi, out: rsi) -> 0, or 1 on a fault
    "crewind_shared_load1:",
    "movzx eax, byte ptr [rdi]",
    "mov [rsi], al",
    "xor eax, eax",
    "ret",
    "crewind_shared_load2:",
    "movzx eax, word ptr [rdi]",
    "mov [rsi], ax",
    "xor eax, eax",
    "ret",
    "crewind_shared_load4:",
    "mov eax, [rdi]",
    "mov [rsi], eax",
    "xor eax, eax",
    "ret",
    "crewind_shared_load8:",
    "mov rax, [rdi]",
    "mov [rsi], rax",
    "xor eax, eax",
    "ret",
    "crewind_shared_load16:",
    "movups xmm0, [rdi]",
    "movups [rsi], xmm0",
    "xor eax, eax",
    "ret",
    // fn(dst: rdi, value: rsi) -> 0, or 1 on a fault
    "crewind_shared_store1:",
    "mov [rdi], sil",
    "xor eax, eax",
    "ret",
    "crewind_shared_store2:",
    "mov [rdi], si",
    "xor eax, eax",
    "ret",
    "crewind_shared_store4:",
    "mov [rdi], esi",
    "xor eax, eax",
    "ret",
    "crewind_shared_store8:",
    "mov [rdi], rsi",
    "xor eax, eax",
    "ret",
    // fn(at: rdi, old: rsi, new: rdx) -> 0, 1 on a fault, 2 if it is not the old value
    "crewind_shared_swap1:",
    "mov rax, rsi",
    "crewind_shared_swap1_at:",
    "lock cmpxchg [rdi], dl",
    "jmp crewind_shared_swapped",
    "crewind_shared_swap2:",
    "mov rax, rsi",
    "crewind_shared_swap2_at:",
    "lock cmpxchg [rdi], dx",
    "jmp crewind_shared_swapped",
    "crewind_shared_swap4:",
    "mov rax, rsi",
    "crewind_shared_swap4_at:",
    "lock cmpxchg [rdi], edx",
    "jmp crewind_shared_swapped",
    "crewind_shared_swap8:",
    "mov rax, rsi",
    "crewind_shared_swap8_at:",
    "lock cmpxchg [rdi], rdx",
    "crewind_shared_swapped:",
    "setne al",
    "movzx eax, al",
    "add eax, eax",
    "ret",
    // The same for 16 bytes: fn(at: rdi, old: *rsi, new: *rdx)
    "crewind_shared_swap16:",
    "mov r9, rbx",
    "mov r8, rdx",
    "mov rax, [rsi]",
    "mov rdx, [rsi + 8]",
    "mov rbx, [r8]",
    "mov rcx, [r8 + 8]",
    "crewind_shared_swap16_at:",
    "lock cmpxchg16b [rdi]",
    "mov rbx, r9",
    "jmp crewind_shared_swapped",
    "crewind_shared_failed16:",
    "mov rbx, r9",
    "crewind_shared_failed:",
    "mov eax, 1",
    "ret",
);

unsafe extern "C" {
    fn crewind_shared_load1(src: *const u8, out: *mut u8) -> u64;
    fn crewind_shared_load2(src: *const u8, out: *mut u8) -> u64;
    fn crewind_shared_load4(src: *const u8, out: *mut u8) -> u64;
    fn crewind_shared_load8(src: *const u8, out: *mut u8) -> u64;
    fn crewind_shared_load16(src: *const u8, out: *mut u8) -> u64;
    fn crewind_shared_store1(dst: *mut u8, value: u64) -> u64;
    fn crewind_shared_store2(dst: *mut u8, value: u64) -> u64;
    fn crewind_shared_store4(dst: *mut u8, value: u64) -> u64;
    fn crewind_shared_store8(dst: *mut u8, value: u64) -> u64;
    fn crewind_shared_swap1(at: *mut u8, old: u64, new: u64) -> u64;
    fn crewind_shared_swap2(at: *mut u8, old: u64, new: u64) -> u64;
    fn crewind_shared_swap4(at: *mut u8, old: u64, new: u64) -> u64;
    fn crewind_shared_swap8(at: *mut u8, old: u64, new: u64) -> u64;
    fn crewind_shared_swap16(at: *mut u8, old: *const u8, new: *const u8) -> u64;
    static crewind_shared_swap1_at: u8;
    static crewind_shared_swap2_at: u8;
    static crewind_shared_swap4_at: u8;
    static crewind_shared_swap8_at: u8;
    static crewind_shared_swap16_at: u8;
    static crewind_shared_failed: u8;
    static crewind_shared_failed16: u8;
}

/// As [`crate::guestmem::fixup`], for the accesses of this module. Safe in signal context.
pub fn fixup(pc: u64) -> Option<u64> {
    let first = [
        crewind_shared_load1 as *const () as u64,
        crewind_shared_load2 as *const () as u64,
        crewind_shared_load4 as *const () as u64,
        crewind_shared_load8 as *const () as u64,
        crewind_shared_load16 as *const () as u64,
        crewind_shared_store1 as *const () as u64,
        crewind_shared_store2 as *const () as u64,
        crewind_shared_store4 as *const () as u64,
        crewind_shared_store8 as *const () as u64,
        &raw const crewind_shared_swap1_at as u64,
        &raw const crewind_shared_swap2_at as u64,
        &raw const crewind_shared_swap4_at as u64,
        &raw const crewind_shared_swap8_at as u64,
    ];
    if pc == &raw const crewind_shared_swap16_at as u64 {
        return Some(&raw const crewind_shared_failed16 as u64);
    }
    first
        .contains(&pc)
        .then_some(&raw const crewind_shared_failed as u64)
}

/// The memory was not there, or not accessible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swap {
    Done,
    /// Somebody else was faster.
    Changed,
}

fn word(bytes: &[u8]) -> u64 {
    let mut w = [0; 8];
    for (to, from) in w.iter_mut().zip(bytes) {
        *to = *from;
    }
    u64::from_le_bytes(w)
}

/// Size of the next piece of a range that is accessed in pieces: aligned words where it can be.
fn piece(addr: u64, left: usize) -> usize {
    let aligned = 1 << addr.trailing_zeros().min(3);
    let fits = 1 << left.ilog2().min(3);
    aligned.min(fits)
}

/// Loads what lies at a guest address: at once if it is of a size that processors load at once, else in aligned words.
/// The caller knows that it is the guest's.
pub(super) fn load(addr: u64, out: &mut [u8]) -> Result<(), Gone> {
    let (src, to) = (addr as *const u8, out.as_mut_ptr());
    // SAFETY: `out` has that many bytes, the source is guest memory by the caller's promise, and a fault there makes
    // the function return 1 (module rules).
    let failed = unsafe {
        match out.len() {
            0 => 0,
            1 => crewind_shared_load1(src, to),
            2 => crewind_shared_load2(src, to),
            4 => crewind_shared_load4(src, to),
            8 => crewind_shared_load8(src, to),
            16 => crewind_shared_load16(src, to),
            _ => {
                let mut at = 0;
                while at < out.len() {
                    let n = piece(addr + at as u64, out.len() - at);
                    let Some(part) = out.get_mut(at..at + n) else {
                        break;
                    };
                    load(addr + at as u64, part)?;
                    at += n;
                }
                0
            }
        }
    };
    if failed == 0 { Ok(()) } else { Err(Gone) }
}

/// Stores likewise.
pub(super) fn store(addr: u64, bytes: &[u8]) -> Result<(), Gone> {
    let (dst, value) = (addr as *mut u8, word(bytes));
    // SAFETY: guest memory by the caller's promise; a fault makes the function return 1.
    let failed = unsafe {
        match bytes.len() {
            0 => 0,
            1 => crewind_shared_store1(dst, value),
            2 => crewind_shared_store2(dst, value),
            4 => crewind_shared_store4(dst, value),
            8 => crewind_shared_store8(dst, value),
            _ => {
                let mut at = 0;
                while at < bytes.len() {
                    let n = piece(addr + at as u64, bytes.len() - at);
                    let Some(part) = bytes.get(at..at + n) else {
                        break;
                    };
                    store(addr + at as u64, part)?;
                    at += n;
                }
                0
            }
        }
    };
    if failed == 0 { Ok(()) } else { Err(Gone) }
}

/// Whether [`swap`] can exchange so much there.
pub(super) fn swappable(addr: u64, len: usize) -> bool {
    matches!(len, 1 | 2 | 4 | 8) || len == 16 && addr.is_multiple_of(16)
}

/// Stores `new` if what is there is still `old`.
pub(crate) fn swap(addr: u64, old: &[u8], new: &[u8]) -> Result<Swap, Gone> {
    debug_assert!(old.len() == new.len() && swappable(addr, old.len()));
    let at = addr as *mut u8;
    let (o, n) = (word(old), word(new));
    // SAFETY: as in `store`; the slices of 16 bytes are that long.
    let result = unsafe {
        match old.len() {
            1 => crewind_shared_swap1(at, o, n),
            2 => crewind_shared_swap2(at, o, n),
            4 => crewind_shared_swap4(at, o, n),
            8 => crewind_shared_swap8(at, o, n),
            _ => crewind_shared_swap16(at, old.as_ptr(), new.as_ptr()),
        }
    };
    match result {
        0 => Ok(Swap::Done),
        2 => Ok(Swap::Changed),
        _ => Err(Gone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_exchanged() {
        #[repr(align(16))]
        struct Memory([u8; 64]);
        let mut m = Memory(std::array::from_fn(|i| i as u8));
        let base = m.0.as_mut_ptr() as u64;
        for (offset, len) in [(0, 1), (3, 2), (5, 4), (9, 8), (16, 16), (1, 32), (7, 20)] {
            let addr = base + offset as u64;
            let mut seen = vec![0; len];
            load(addr, &mut seen).unwrap();
            let expected: Vec<u8> = (0..len).map(|i| (offset + i) as u8).collect();
            assert_eq!(seen, expected);
            let other: Vec<u8> = seen.iter().map(|b| b ^ 0xff).collect();
            if swappable(addr, len) {
                assert_eq!(swap(addr, &other, &seen), Ok(Swap::Changed));
                assert_eq!(swap(addr, &seen, &other), Ok(Swap::Done));
            } else {
                store(addr, &other).unwrap();
            }
            let mut now = vec![0; len];
            load(addr, &mut now).unwrap();
            assert_eq!(now, other);
            store(addr, &seen).unwrap();
        }
        assert!(m.0.iter().enumerate().all(|(i, b)| *b == i as u8));
    }
}
