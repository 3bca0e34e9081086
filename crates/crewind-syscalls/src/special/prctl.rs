//! `prctl` by option.

use crate::plan::{Builder, Confidence, Operand, c_str_len};
use crate::types::{Class, Dir, Notice, Shape, Wrote};

/// What the arguments of an option point to. Those not named here are numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    /// Nothing.
    None,
    /// Argument `.0` to a string that is read.
    Str(u8),
    /// Argument `.0` to so many bytes that are written, printed so.
    Out(u8, u32, Shape),
    /// Argument `.0` to a buffer, `.1` its capacity; the result is the number of bytes there were.
    OutBuf(u8, u8),
    /// Only `PR_SCHED_CORE_GET` writes.
    SchedCore,
}

struct PrOption {
    number: i32,
    name: &'static str,
    memory: Memory,
    class: Class,
}

const fn plain(number: i32, name: &'static str) -> PrOption {
    PrOption {
        number,
        name,
        memory: Memory::None,
        class: Class::Pass,
    }
}

const fn with(number: i32, name: &'static str, memory: Memory) -> PrOption {
    PrOption {
        number,
        name,
        memory,
        class: Class::Pass,
    }
}

const fn refuse(number: i32, name: &'static str, errno: i32, why: &'static str) -> PrOption {
    PrOption {
        number,
        name,
        memory: Memory::None,
        class: Class::Refuse(errno, Notice::Loud, why),
    }
}

const fn runtime(number: i32, name: &'static str, memory: Memory) -> PrOption {
    PrOption {
        number,
        name,
        memory,
        class: Class::Runtime,
    }
}

const SYSCALLS: &str = "a filter would also apply to the recorder's own calls";

static OPTIONS: &[PrOption] = &[
    plain(1, "PR_SET_PDEATHSIG"),
    with(2, "PR_GET_PDEATHSIG", Memory::Out(1, 4, Shape::I32)),
    plain(3, "PR_GET_DUMPABLE"),
    plain(4, "PR_SET_DUMPABLE"),
    with(5, "PR_GET_UNALIGN", Memory::Out(1, 4, Shape::I32)),
    plain(6, "PR_SET_UNALIGN"),
    plain(7, "PR_GET_KEEPCAPS"),
    plain(8, "PR_SET_KEEPCAPS"),
    with(9, "PR_GET_FPEMU", Memory::Out(1, 4, Shape::I32)),
    plain(10, "PR_SET_FPEMU"),
    with(11, "PR_GET_FPEXC", Memory::Out(1, 4, Shape::I32)),
    plain(12, "PR_SET_FPEXC"),
    plain(13, "PR_GET_TIMING"),
    plain(14, "PR_SET_TIMING"),
    with(15, "PR_SET_NAME", Memory::Str(1)),
    with(16, "PR_GET_NAME", Memory::Out(1, 16, Shape::Bytes)),
    with(19, "PR_GET_ENDIAN", Memory::Out(1, 4, Shape::I32)),
    plain(20, "PR_SET_ENDIAN"),
    plain(21, "PR_GET_SECCOMP"),
    refuse(22, "PR_SET_SECCOMP", libc::EINVAL, SYSCALLS),
    plain(23, "PR_CAPBSET_READ"),
    plain(24, "PR_CAPBSET_DROP"),
    with(25, "PR_GET_TSC", Memory::Out(1, 4, Shape::I32)),
    refuse(
        26,
        "PR_SET_TSC",
        libc::EINVAL,
        "the recorder itself reads the time-stamp counter",
    ),
    plain(27, "PR_GET_SECUREBITS"),
    plain(28, "PR_SET_SECUREBITS"),
    plain(29, "PR_SET_TIMERSLACK"),
    plain(30, "PR_GET_TIMERSLACK"),
    plain(31, "PR_TASK_PERF_EVENTS_DISABLE"),
    plain(32, "PR_TASK_PERF_EVENTS_ENABLE"),
    plain(33, "PR_MCE_KILL"),
    plain(34, "PR_MCE_KILL_GET"),
    refuse(
        35,
        "PR_SET_MM",
        libc::EPERM,
        "it describes the recorder's address space, not the program's",
    ),
    plain(36, "PR_SET_CHILD_SUBREAPER"),
    with(37, "PR_GET_CHILD_SUBREAPER", Memory::Out(1, 4, Shape::I32)),
    plain(38, "PR_SET_NO_NEW_PRIVS"),
    plain(39, "PR_GET_NO_NEW_PRIVS"),
    runtime(40, "PR_GET_TID_ADDRESS", Memory::Out(1, 8, Shape::Hex64)),
    plain(41, "PR_SET_THP_DISABLE"),
    plain(42, "PR_GET_THP_DISABLE"),
    plain(43, "PR_MPX_ENABLE_MANAGEMENT"),
    plain(44, "PR_MPX_DISABLE_MANAGEMENT"),
    plain(45, "PR_SET_FP_MODE"),
    plain(46, "PR_GET_FP_MODE"),
    plain(47, "PR_CAP_AMBIENT"),
    plain(50, "PR_SVE_SET_VL"),
    plain(51, "PR_SVE_GET_VL"),
    plain(52, "PR_GET_SPECULATION_CTRL"),
    plain(53, "PR_SET_SPECULATION_CTRL"),
    plain(54, "PR_PAC_RESET_KEYS"),
    plain(55, "PR_SET_TAGGED_ADDR_CTRL"),
    plain(56, "PR_GET_TAGGED_ADDR_CTRL"),
    plain(57, "PR_SET_IO_FLUSHER"),
    plain(58, "PR_GET_IO_FLUSHER"),
    refuse(59, "PR_SET_SYSCALL_USER_DISPATCH", libc::EINVAL, SYSCALLS),
    plain(60, "PR_PAC_SET_ENABLED_KEYS"),
    plain(61, "PR_PAC_GET_ENABLED_KEYS"),
    with(62, "PR_SCHED_CORE", Memory::SchedCore),
    plain(63, "PR_SME_SET_VL"),
    plain(64, "PR_SME_GET_VL"),
    refuse(
        65,
        "PR_SET_MDWE",
        libc::EINVAL,
        "it would forbid the recorder to translate code",
    ),
    plain(66, "PR_GET_MDWE"),
    plain(67, "PR_SET_MEMORY_MERGE"),
    plain(68, "PR_GET_MEMORY_MERGE"),
    plain(69, "PR_RISCV_V_SET_CONTROL"),
    plain(70, "PR_RISCV_V_GET_CONTROL"),
    plain(71, "PR_RISCV_SET_ICACHE_FLUSH_CTX"),
    plain(72, "PR_PPC_GET_DEXCR"),
    plain(73, "PR_PPC_SET_DEXCR"),
    with(
        74,
        "PR_GET_SHADOW_STACK_STATUS",
        Memory::Out(1, 8, Shape::Hex64),
    ),
    plain(75, "PR_SET_SHADOW_STACK_STATUS"),
    plain(76, "PR_LOCK_SHADOW_STACK_STATUS"),
    plain(77, "PR_TIMER_CREATE_RESTORE_IDS"),
    plain(78, "PR_FUTEX_HASH"),
    runtime(0x4155_5856, "PR_GET_AUXV", Memory::OutBuf(1, 2)),
    with(0x5356_4d41, "PR_SET_VMA", Memory::Str(4)),
    plain(0x5961_6d61, "PR_SET_PTRACER"),
];

fn option(number: u64) -> Option<&'static PrOption> {
    let number = number as i32;
    OPTIONS.iter().find(|option| option.number == number)
}

pub(crate) fn name(number: u64) -> Option<&'static str> {
    option(number).map(|option| option.name)
}

/// Whether argument `arg` of an option is a string.
pub(crate) fn is_string(number: u64, arg: u8) -> bool {
    option(number).is_some_and(|option| option.memory == Memory::Str(arg))
}

pub(crate) fn class(number: u64) -> Class {
    option(number).map_or(Class::Pass, |option| option.class)
}

const PR_SCHED_CORE_GET: u64 = 0;

pub(super) fn operands(b: &mut Builder) {
    let Some(option) = option(b.value(0)) else {
        b.plan.confidence = Confidence::Unknown;
        // The option itself is no pointer.
        if b.arg > 0 {
            b.unknown_argument(256);
        }
        return;
    };
    match option.memory {
        Memory::Str(arg) if arg == b.arg => {
            if let Some(n) = c_str_len(b.mem, b.here(), 4096) {
                b.flat(n + 1, Dir::In);
            }
        }
        Memory::Out(arg, size, shape) if arg == b.arg => {
            let op = b.operand(size.into(), Dir::Out);
            b.push(Operand { shape, ..op });
        }
        Memory::OutBuf(arg, len) if arg == b.arg => {
            let op = b.operand(b.value(len), Dir::Out);
            b.push(Operand {
                wrote: Wrote::Ret,
                ..op
            });
        }
        Memory::SchedCore if b.arg == 4 && b.value(1) == PR_SCHED_CORE_GET => b.flat(8, Dir::Out),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_unique() {
        let mut numbers: Vec<_> = super::OPTIONS.iter().map(|option| option.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), super::OPTIONS.len());
    }
}
