//! The vocabulary of the table: what a row says about a call and about each of its arguments.

use crate::flags::FlagSet;

/// Guest memory, as far as this crate may look at it.
pub trait Mem {
    /// Fills `buf` from guest address `addr`; `false` when not all of it is readable (then `buf` holds
    /// nothing of meaning).
    fn read(&self, addr: u64, buf: &mut [u8]) -> bool;
}

/// The six argument registers of a call. A call that takes fewer ignores the rest.
pub type Args = [u64; 6];

/// Everything the table knows about one system call.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// x86-64 number.
    pub nr: u32,
    /// Name as in the kernel's table (`pread64`, `newfstatat`, ...).
    pub name: &'static str,
    /// The arguments it takes, in order; at most six.
    pub args: &'static [Arg],
    /// Who executes it. Some calls depend on a command argument: ask [`crate::class`].
    pub class: Class,
    /// Whether it may block. For this call with these arguments: ask [`crate::may_block`].
    pub blocking: Blocking,
    /// What a signal handler does to it while it blocks. With these arguments: ask [`crate::restart`].
    pub restart: Restart,
    /// File descriptors made and closed: [`crate::fd_changes`] says which.
    pub fds: FdEffect,
    /// Change of a file's content: [`crate::file_effect`] says to which file.
    pub file: FileEffect,
    /// Argument that holds the fd the call outputs to; [`crate::output_bytes`] gives the bytes.
    pub writes_to: Option<u8>,
    /// Argument that holds a signal mask in force only during the call; see [`crate::temp_sigmask`].
    pub sigmask: Option<TempMask>,
}

impl Row {
    /// What a row says when it says nothing: a call that reads and writes no memory, never blocks, and is
    /// skipped in replay.
    pub(crate) const BASE: Row = Row {
        nr: u32::MAX,
        name: "",
        args: &[],
        class: Class::Pass,
        blocking: Blocking::Never,
        restart: Restart::None,
        fds: FdEffect::None,
        file: FileEffect::None,
        writes_to: None,
        sigmask: None,
    };
}

/// One argument.
#[derive(Clone, Copy, Debug)]
pub struct Arg {
    /// Name as in the manual page.
    pub name: &'static str,
    /// What it is.
    pub kind: ArgKind,
}

/// Who executes a call, recording and replaying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Executed when recording, with its results logged; skipped in replay, where they come from the log.
    Pass,
    /// The runtime has code of its own for it, in both modes (mappings, threads, signal state, exit).
    Runtime,
    /// Not executed: the guest gets this errno (a positive number), and the user the reason.
    Refuse(i32, Notice, &'static str),
}

/// Whether a refusal is worth telling the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Programs probe for it and do the same thing another way: no message.
    Quiet,
    /// The program may behave differently: say so.
    Loud,
}

/// Whether a call may wait, so that the vcpu must be given up first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocking {
    /// Ends by itself soon (disk access included).
    Never,
    /// May wait, depending on the arguments or on state that is not visible here.
    May,
    /// May wait, depending on what the fd in this argument is.
    MayFd(u8),
    /// Its purpose is to wait.
    Always,
}

/// What happens to a call that a signal handler interrupted before it had any effect. From the kernel's
/// return codes (`ERESTART*` in include/linux/errno.h) at each call's wait, which signal(7) sums up under
/// "Interruption of system calls and library functions by signal handlers".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Not interrupted by signals, or gives `EINTR` whether or not a handler ran.
    None,
    /// `ERESTARTSYS`: restarted when the handler has `SA_RESTART`, else `EINTR`.
    Restartable,
    /// `ERESTARTNOHAND`: `EINTR` when a handler ran, whatever its flags.
    NoHand,
    /// `ERESTART_RESTARTBLOCK`: `EINTR` when a handler ran, whatever its flags; without one the kernel goes
    /// on with what is left of the time.
    RestartBlock,
    /// `ERESTARTNOINTR`: always restarted; the program never sees the interruption.
    NoIntr,
}

/// What a call does to the table of file descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdEffect {
    /// Nothing.
    None,
    /// Returns a new fd.
    New(Cloexec),
    /// Writes two new fds to the array in this argument.
    Pair {
        /// Argument with the array's address.
        array: u8,
        /// Where close-on-exec is decided.
        cloexec: Cloexec,
    },
    /// `dup` family: returns a new fd for the file of the fd in argument 0.
    Dup(Cloexec),
    /// Closes the fd in argument 0.
    Close,
    /// `close_range`.
    CloseRange,
    /// `fcntl`: depends on the command.
    Fcntl,
    /// `ioctl`: depends on the request.
    Ioctl,
    /// `recvmsg`: fds arrive in control messages.
    Recvmsg,
    /// `recvmmsg`: the same, several messages.
    Recvmmsg,
    /// `getsockopt`: `SO_PEERPIDFD` makes one.
    Getsockopt,
    /// `clone3`/`clone` with `CLONE_PIDFD`; left to the runtime.
    Clone,
}

/// Where close-on-exec of a new fd is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloexec {
    /// Never set.
    No,
    /// Always set.
    Yes,
    /// Set when argument `.0` has the bit(s) `.1`.
    Flag(u8, u64),
    /// In the `flags` of `struct open_how` that this argument points to.
    OpenHow(u8),
}

/// Change of a file's content by a call, so that mapped pages of that file are written too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileEffect {
    /// None.
    None,
    /// Writes to the file of the fd in this argument.
    Fd(u8),
    /// Changes the length of the file of the fd in this argument (or punches holes in it).
    TruncateFd(u8),
    /// Changes the length of the file that the path in this argument names.
    TruncatePath(u8),
    /// An open that truncates when it has `O_TRUNC`: the flags are in this argument. The returned fd is
    /// that of the file.
    OpenTrunc(u8),
    /// `openat2`: as above, flags in the `struct open_how`.
    OpenHowTrunc(u8),
    /// `creat`: always truncates.
    Creat,
    /// `ioctl`: depends on the request.
    Ioctl,
}

/// Where the signal mask of `ppoll` and its like is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TempMask {
    /// Argument points to the mask.
    Direct(u8),
    /// Argument points to `{ sigset_t *mask; size_t size }`.
    Indirect(u8),
}

/// Direction of an operand in memory, seen from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dir {
    /// The kernel reads it.
    In,
    /// The kernel writes it.
    Out,
    /// The kernel reads, then writes it.
    InOut,
}

impl Dir {
    /// Whether the kernel may write it.
    pub fn writes(self) -> bool {
        self != Dir::In
    }

    /// Whether the kernel reads it.
    pub fn reads(self) -> bool {
        self != Dir::Out
    }
}

/// Length of a flat operand. Of an argument that is a 32-bit number only those bits count, and a negative one
/// is no length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Len {
    /// So many bytes.
    Bytes(u32),
    /// So many bytes as this argument says.
    Arg(u8),
    /// This argument times so many bytes.
    Times(u8, u32),
    /// This argument plus so many bytes.
    Plus(u8, u32),
    /// As `struct` sizes that start with their own `u32 size`, at most this.
    SelfSized(u32),
}

/// How much of an operand a successful call wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// Nothing (an operand that is only read).
    Nothing,
    /// All of it.
    All,
    /// As many bytes as the call returned.
    Ret,
    /// As many bytes as the call returned, times this.
    RetTimes(u32),
    /// As many bytes as the call returned, plus this.
    RetPlus(u32),
    /// A part of what a scattering call wrote: `total` less what the operands before it took.
    Share {
        /// The sum over all operands of the array.
        total: Total,
        /// What fits into the operands before this one.
        before: u64,
    },
    /// As many bytes as the `u32` at this guest address says after the call, times `scale`.
    U32At {
        /// Where it is.
        addr: u64,
        /// Bytes per unit.
        scale: u32,
        /// Bytes more than that.
        plus: u32,
    },
    /// As many bytes as the `u64` at this guest address says after the call.
    U64At(u64),
    /// Only these parts: (offset, length).
    Fields(&'static [(u32, u32)]),
    /// These parts (offset, length) of as many elements as the call returned.
    Elements {
        /// Size of an element.
        size: u32,
        /// Parts of each.
        fields: &'static [(u32, u32)],
    },
    /// A string with its terminator.
    CStr,
    /// All of it if the bytes are not those before the call. For what the kernel updates when it can and
    /// leaves when it cannot, such as the remaining time of `pselect6` in memory that is not writable.
    IfChanged([u8; 16]),
    /// Compare with the snapshot of this number in the plan: for operands whose length nobody knows.
    Diff(u16),
}

/// Where the sum over a scattering call's operands is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Total {
    /// The call's result.
    Ret,
    /// A `u32` at this guest address, after the call.
    U32At(u64),
}

/// Outcomes of a call in which an operand is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The result is no error.
    Success,
    /// The result is above zero.
    Positive,
    /// The result is above this (element of an array of which the result counts those done).
    Above(u32),
    /// The result is no error, or this errno.
    SuccessOr(i32),
    /// The result is this errno.
    Errno(i32),
    /// Whatever the result.
    Always,
}

/// Number of elements of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// So many.
    Is(u32),
    /// As this argument says.
    Arg(u8),
}

/// How a flat operand is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Bytes, quoted.
    Bytes,
    /// 32-bit numbers.
    I32,
    /// 64-bit numbers.
    I64,
    /// 64-bit words in hex.
    Hex64,
    /// `struct timespec`s.
    Timespec,
    /// `struct timeval`s.
    Timeval,
    /// `struct sockaddr`.
    Sockaddr,
    /// `struct stat`.
    Stat,
    /// `struct pollfd`s.
    Pollfd,
    /// `struct epoll_event`s.
    Epoll,
    /// `sigset_t`.
    Sigset,
    /// `int` that `wait4` reports.
    WaitStatus,
    /// `struct rlimit`.
    Rlimit,
    /// `fd_set`.
    FdSet,
    /// `struct flock`.
    Flock,
    /// A structure without a printer: `{N bytes}`.
    Opaque,
}

/// A flat operand: one range of memory whose length the arguments give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buf {
    /// Direction.
    pub dir: Dir,
    /// Capacity.
    pub len: Len,
    /// What of it a call writes that meets `when`.
    pub wrote: Wrote,
    /// When it is written.
    pub when: When,
    /// How it prints.
    pub shape: Shape,
}

/// What an argument is.
#[derive(Clone, Copy, Debug)]
pub enum ArgKind {
    /// Signed 32-bit number.
    Int,
    /// Signed 64-bit number.
    Long,
    /// Unsigned 32-bit number.
    Uint,
    /// Unsigned 64-bit number.
    Size,
    /// A word best shown in hex.
    Hex,
    /// File descriptor.
    Fd,
    /// File descriptor of a directory, or `AT_FDCWD`.
    DirFd,
    /// Named bits or values.
    Flags(&'static FlagSet),
    /// Signal number.
    Signal,
    /// Process, thread or process group id.
    Pid,
    /// User or group id (-1 is "leave").
    Id,
    /// Permission bits, octal.
    Mode,
    /// Device number.
    Dev,
    /// An address that the call does not access as data.
    Addr,
    /// Path or other string, read up to its terminator.
    Path,
    /// Array of pointers to strings, ended by NULL.
    StrArray,
    /// Flat operand.
    Buf(Buf),
    /// `struct iovec` array; its length is in argument `count`.
    Iovec {
        /// Direction of the buffers.
        dir: Dir,
        /// Argument with the number of elements.
        count: u8,
    },
    /// `struct iovec` array whose buffers are in another process: only the array itself is an operand.
    RemoteIovec {
        /// Argument with the number of elements.
        count: u8,
    },
    /// `struct msghdr`.
    Msghdr(Dir),
    /// `struct mmsghdr` array.
    Mmsghdr {
        /// Direction of the messages.
        dir: Dir,
        /// Argument with the number of elements.
        count: u8,
    },
    /// Buffer of which argument `len` points to the capacity: a `u32`, which the call replaces by the
    /// length there was.
    ValueResult {
        /// Argument with the address of the `u32`.
        len: u8,
        /// How it prints.
        shape: Shape,
    },
    /// The `u32` that belongs to a [`ArgKind::ValueResult`] in argument `.0`; skipped with it when that is NULL.
    ResultLen(u8),
    /// `fd_set`; argument 0 has the number of bits.
    FdSet,
    /// Time that is left: read, and replaced by what remains.
    Remaining(Shape),
    /// Third argument of `ioctl`, by request.
    Ioctl,
    /// Third argument of `fcntl`, by command.
    Fcntl,
    /// Argument of `prctl`, by option.
    Prctl,
    /// First address of `futex`, by operation.
    FutexAddr,
    /// Fourth argument of `futex`: time or number.
    FutexVal2,
    /// Fifth argument of `futex`.
    FutexAddr2,
    /// A futex word that is read, and slept on.
    FutexWord,
    /// Array of `struct futex_waitv`, 24 bytes each.
    FutexWaitv {
        /// Their number.
        count: Count,
    },
    /// Fourth argument of `semctl`.
    Semctl,
    /// Third argument of `shmctl`.
    Shmctl,
    /// Third argument of `msgctl`.
    Msgctl,
    /// Argument of `keyctl`.
    Keyctl,
    /// Option value of `setsockopt`.
    Setsockopt,
    /// Header of `capget`/`capset`.
    CapHeader,
    /// Data of `capget`/`capset`.
    CapData(Dir),
    /// `struct file_handle`.
    FileHandle(Dir),
    /// Mount id of `name_to_handle_at`.
    MountId,
    /// `{ sigset_t *; size_t }` of `pselect6` and its like.
    SigsetPair,
    /// `struct sigevent`.
    Sigevent,
    /// Buffer of `syslog`.
    SyslogBuf,
    /// Second argument of `sysfs`.
    SysfsArg1,
    /// Third argument of `sysfs`.
    SysfsArg2,
    /// `struct xattr_args` and its value.
    XattrArgs(Dir),
    /// Value of `fsconfig`.
    FsconfigValue,
    /// `struct iovec` array of `vmsplice`: read or written, depending on the end of the pipe.
    Vmsplice,
    /// Answer of `statmount`.
    Statmount,
    /// Vector of `mincore`: a byte per page.
    Mincore,
    /// Bit mask of NUMA nodes; argument `bits` has its length.
    Nodemask {
        /// Argument with the number of bits.
        bits: u8,
    },
    /// The same, written.
    NodemaskOut {
        /// Argument with the number of bits.
        bits: u8,
    },
    /// `struct sched_attr`: read; its size field is written when the kernel finds it too large.
    SchedAttr,
    /// Remaining time of `clock_nanosleep`.
    ClockRem,
    /// Contexts of `lsm_get_self_attr`; argument 2 points to the capacity.
    LsmCtx,
    /// Ids of `lsm_list_modules`; argument 1 points to the capacity.
    LsmIds,
    /// The capacity of those: replaced by what is needed, also when it is too small.
    LsmSize,
}
