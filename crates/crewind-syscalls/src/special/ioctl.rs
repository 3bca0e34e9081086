//! `ioctl` by request.

use crate::plan::{Builder, Confidence, Operand, Place};
use crate::types::{Blocking, Class, Dir, FileEffect, Notice, Restart, Shape, When, Wrote};

/// What the third argument is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// A number, or not used.
    Value,
    /// A pointer to so many bytes that are read.
    In(u32),
    /// Written.
    Out(u32),
    /// Both.
    InOut(u32),
    /// A number; the result is a new fd.
    NewFd,
    /// As `Value`, but may wait.
    Waits,
    /// As `In`, but may wait.
    InWaits(u32),
    /// As `Value`; writes to the file of the fd.
    ValueWrites,
    /// As `In`; writes to the file of the fd.
    InWrites(u32),
    /// `struct ifconf`: capacity (int) at 0, buffer at 8.
    Ifconf,
    /// `struct ifreq` with a pointer (at 16) to data that the device's driver describes.
    IfreqData,
    /// `struct fiemap` and its extents.
    Fiemap,
    /// `struct file_dedupe_range` and its destinations.
    Dedupe,
    /// Devices that share memory with the program.
    Refuse,
}

pub(crate) struct Request {
    pub number: u32,
    pub name: &'static str,
    pub op: Op,
}

/// `_IOC_WRITE`: the program writes, the kernel reads.
const WRITE: u32 = 1;
/// `_IOC_READ`.
const READ: u32 = 2;

/// `_IOC`.
const fn ioc(dir: u32, kind: u8, number: u8, size: u32) -> u32 {
    dir << 30 | size << 16 | (kind as u32) << 8 | number as u32
}

const TERMIOS: u32 = 36;
const TERMIOS2: u32 = 44;
const TERMIO: u32 = 18;
const IFREQ: u32 = 40;
const SERIAL: u32 = 72;

macro_rules! requests {
    ($($number:expr => $name:ident $op:expr;)*) => {
        &[$(Request { number: $number, name: stringify!($name), op: $op }),*]
    };
}

use Op::*;

/// Terminals, and what works on every fd.
static GENERAL: &[Request] = requests! {
    0x5401 => TCGETS Out(TERMIOS);
    0x5402 => TCSETS In(TERMIOS);
    0x5403 => TCSETSW InWaits(TERMIOS);
    0x5404 => TCSETSF InWaits(TERMIOS);
    0x5405 => TCGETA Out(TERMIO);
    0x5406 => TCSETA In(TERMIO);
    0x5407 => TCSETAW InWaits(TERMIO);
    0x5408 => TCSETAF InWaits(TERMIO);
    0x5409 => TCSBRK Waits;
    0x540a => TCXONC Value;
    0x540b => TCFLSH Value;
    0x540c => TIOCEXCL Value;
    0x540d => TIOCNXCL Value;
    0x540e => TIOCSCTTY Value;
    0x540f => TIOCGPGRP Out(4);
    0x5410 => TIOCSPGRP In(4);
    0x5411 => TIOCOUTQ Out(4);
    0x5412 => TIOCSTI In(1);
    0x5413 => TIOCGWINSZ Out(8);
    0x5414 => TIOCSWINSZ In(8);
    0x5415 => TIOCMGET Out(4);
    0x5416 => TIOCMBIS In(4);
    0x5417 => TIOCMBIC In(4);
    0x5418 => TIOCMSET In(4);
    0x5419 => TIOCGSOFTCAR Out(4);
    0x541a => TIOCSSOFTCAR In(4);
    0x541b => FIONREAD Out(4);
    0x541d => TIOCCONS Value;
    0x541e => TIOCGSERIAL Out(SERIAL);
    0x541f => TIOCSSERIAL In(SERIAL);
    0x5420 => TIOCPKT In(4);
    0x5421 => FIONBIO In(4);
    0x5422 => TIOCNOTTY Value;
    0x5423 => TIOCSETD In(4);
    0x5424 => TIOCGETD Out(4);
    0x5425 => TCSBRKP Waits;
    0x5427 => TIOCSBRK Value;
    0x5428 => TIOCCBRK Value;
    0x5429 => TIOCGSID Out(4);
    ioc(READ, b'T', 0x2a, TERMIOS2) => TCGETS2 Out(TERMIOS2);
    ioc(WRITE, b'T', 0x2b, TERMIOS2) => TCSETS2 In(TERMIOS2);
    ioc(WRITE, b'T', 0x2c, TERMIOS2) => TCSETSW2 InWaits(TERMIOS2);
    ioc(WRITE, b'T', 0x2d, TERMIOS2) => TCSETSF2 InWaits(TERMIOS2);
    0x542e => TIOCGRS485 Out(32);
    0x542f => TIOCSRS485 InOut(32);
    ioc(READ, b'T', 0x30, 4) => TIOCGPTN Out(4);
    ioc(WRITE, b'T', 0x31, 4) => TIOCSPTLCK In(4);
    ioc(READ, b'T', 0x32, 4) => TIOCGDEV Out(4);
    // The number encodes a pointer, but the argument is the signal itself.
    ioc(WRITE, b'T', 0x36, 4) => TIOCSIG Value;
    0x5437 => TIOCVHANGUP Value;
    ioc(READ, b'T', 0x38, 4) => TIOCGPKT Out(4);
    ioc(READ, b'T', 0x39, 4) => TIOCGPTLCK Out(4);
    ioc(READ, b'T', 0x40, 4) => TIOCGEXCL Out(4);
    ioc(0, b'T', 0x41, 0) => TIOCGPTPEER NewFd;
    0x5450 => FIONCLEX Value;
    0x5451 => FIOCLEX Value;
    0x5452 => FIOASYNC In(4);
    0x5456 => TIOCGLCKTRMIOS Out(TERMIOS);
    0x5457 => TIOCSLCKTRMIOS In(TERMIOS);
    0x5459 => TIOCSERGETLSR Out(4);
    0x545c => TIOCMIWAIT Waits;
    0x545d => TIOCGICOUNT Out(80);
    0x5460 => FIOQSIZE Out(8);
};

/// Virtual consoles and keyboards.
static CONSOLE: &[Request] = requests! {
    0x4b2f => KIOCSOUND Value;
    0x4b30 => KDMKTONE Value;
    0x4b31 => KDGETLED Out(1);
    0x4b32 => KDSETLED Value;
    0x4b33 => KDGKBTYPE Out(1);
    0x4b3a => KDSETMODE Value;
    0x4b3b => KDGETMODE Out(4);
    0x4b44 => KDGKBMODE Out(4);
    0x4b45 => KDSKBMODE Value;
    0x4b46 => KDGKBENT InOut(4);
    0x4b47 => KDSKBENT In(4);
    0x4b4e => KDSIGACCEPT Value;
    0x4b52 => KDKBDREP InOut(8);
    0x4b62 => KDGKBMETA Out(4);
    0x4b63 => KDSKBMETA Value;
    0x4b64 => KDGKBLED Out(1);
    0x4b65 => KDSKBLED Value;
    0x5600 => VT_OPENQRY Out(4);
    0x5601 => VT_GETMODE Out(8);
    0x5602 => VT_SETMODE In(8);
    0x5603 => VT_GETSTATE Out(6);
    0x5604 => VT_SENDSIG Value;
    0x5605 => VT_RELDISP Value;
    0x5606 => VT_ACTIVATE Value;
    0x5607 => VT_WAITACTIVE Waits;
    0x5608 => VT_DISALLOCATE Value;
    0x5609 => VT_RESIZE In(6);
    0x560a => VT_RESIZEX In(12);
    0x560b => VT_LOCKSWITCH Value;
    0x560c => VT_UNLOCKSWITCH Value;
    0x560d => VT_GETHIFONTMASK Out(2);
};

/// Files, file systems, block devices.
static FILES: &[Request] = requests! {
    0x0001 => FIBMAP InOut(4);
    0x0002 => FIGETBSZ Out(4);
    ioc(WRITE | READ, b'X', 119, 4) => FIFREEZE Waits;
    ioc(WRITE | READ, b'X', 120, 4) => FITHAW Value;
    ioc(WRITE | READ, b'X', 121, 24) => FITRIM InOut(24);
    // The argument is the source's fd.
    ioc(WRITE, 0x94, 9, 4) => FICLONE ValueWrites;
    ioc(WRITE, 0x94, 13, 32) => FICLONERANGE InWrites(32);
    ioc(WRITE | READ, 0x94, 54, 24) => FIDEDUPERANGE Dedupe;
    // These encode `long`, and have always used `int`.
    ioc(READ, b'f', 1, 8) => FS_IOC_GETFLAGS Out(4);
    ioc(WRITE, b'f', 2, 8) => FS_IOC_SETFLAGS In(4);
    ioc(READ, b'v', 1, 8) => FS_IOC_GETVERSION Out(4);
    ioc(WRITE, b'v', 2, 8) => FS_IOC_SETVERSION In(4);
    ioc(WRITE | READ, b'f', 11, 32) => FS_IOC_FIEMAP Fiemap;
    ioc(READ, b'X', 31, 28) => FS_IOC_FSGETXATTR Out(28);
    ioc(WRITE, b'X', 32, 28) => FS_IOC_FSSETXATTR In(28);
    ioc(READ, 0x94, 49, 256) => FS_IOC_GETFSLABEL Out(256);
    ioc(WRITE, 0x94, 50, 256) => FS_IOC_SETFSLABEL In(256);
    ioc(READ, 0x15, 0, 17) => FS_IOC_GETFSUUID Out(17);
    ioc(READ, 0x15, 1, 129) => FS_IOC_GETFSSYSFSPATH Out(129);
    ioc(0, 0x12, 93, 0) => BLKROSET In(4);
    ioc(0, 0x12, 94, 0) => BLKROGET Out(4);
    ioc(0, 0x12, 95, 0) => BLKRRPART Value;
    ioc(0, 0x12, 96, 0) => BLKGETSIZE Out(8);
    ioc(0, 0x12, 97, 0) => BLKFLSBUF Value;
    ioc(0, 0x12, 98, 0) => BLKRASET Value;
    ioc(0, 0x12, 99, 0) => BLKRAGET Out(8);
    ioc(0, 0x12, 100, 0) => BLKFRASET Value;
    ioc(0, 0x12, 101, 0) => BLKFRAGET Out(8);
    ioc(0, 0x12, 103, 0) => BLKSECTGET Out(2);
    ioc(0, 0x12, 104, 0) => BLKSSZGET Out(4);
    // Encode `size_t`, and use `int`.
    ioc(READ, 0x12, 112, 8) => BLKBSZGET Out(4);
    ioc(WRITE, 0x12, 113, 8) => BLKBSZSET In(4);
    ioc(READ, 0x12, 114, 8) => BLKGETSIZE64 Out(8);
    ioc(0, 0x12, 119, 0) => BLKDISCARD InWrites(16);
    ioc(0, 0x12, 120, 0) => BLKIOMIN Out(4);
    ioc(0, 0x12, 121, 0) => BLKIOOPT Out(4);
    ioc(0, 0x12, 122, 0) => BLKALIGNOFF Out(4);
    ioc(0, 0x12, 123, 0) => BLKPBSZGET Out(4);
    ioc(0, 0x12, 124, 0) => BLKDISCARDZEROES Out(4);
    ioc(0, 0x12, 125, 0) => BLKSECDISCARD InWrites(16);
    ioc(0, 0x12, 126, 0) => BLKROTATIONAL Out(2);
    ioc(0, 0x12, 127, 0) => BLKZEROOUT InWrites(16);
    ioc(READ, 0x12, 128, 8) => BLKGETDISKSEQ Out(8);
    0x0301 => HDIO_GETGEO Out(16);
    0x4c00 => LOOP_SET_FD Value;
    0x4c01 => LOOP_CLR_FD Value;
    0x4c04 => LOOP_SET_STATUS64 In(232);
    0x4c05 => LOOP_GET_STATUS64 Out(232);
    0x4c06 => LOOP_CHANGE_FD Value;
    0x4c07 => LOOP_SET_CAPACITY Value;
    0x4c08 => LOOP_SET_DIRECT_IO Value;
    0x4c09 => LOOP_SET_BLOCK_SIZE Value;
    0x4c0a => LOOP_CONFIGURE In(304);
    0x4c80 => LOOP_CTL_ADD Value;
    0x4c81 => LOOP_CTL_REMOVE Value;
    0x4c82 => LOOP_CTL_GET_FREE Value;
};

/// Sockets and network devices. The kernel copies a `struct ifreq` whole in both directions.
static NETWORK: &[Request] = requests! {
    0x8901 => FIOSETOWN In(4);
    0x8902 => SIOCSPGRP In(4);
    0x8903 => FIOGETOWN Out(4);
    0x8904 => SIOCGPGRP Out(4);
    0x8905 => SIOCATMARK Out(4);
    0x8906 => SIOCGSTAMP Out(16);
    0x8907 => SIOCGSTAMPNS Out(16);
    ioc(READ, 0x89, 0x06, 16) => SIOCGSTAMP_NEW Out(16);
    ioc(READ, 0x89, 0x07, 16) => SIOCGSTAMPNS_NEW Out(16);
    0x890b => SIOCADDRT In(120);
    0x890c => SIOCDELRT In(120);
    0x8910 => SIOCGIFNAME InOut(IFREQ);
    0x8912 => SIOCGIFCONF Ifconf;
    0x8913 => SIOCGIFFLAGS InOut(IFREQ);
    0x8914 => SIOCSIFFLAGS In(IFREQ);
    0x8915 => SIOCGIFADDR InOut(IFREQ);
    0x8916 => SIOCSIFADDR In(IFREQ);
    0x8917 => SIOCGIFDSTADDR InOut(IFREQ);
    0x8918 => SIOCSIFDSTADDR In(IFREQ);
    0x8919 => SIOCGIFBRDADDR InOut(IFREQ);
    0x891a => SIOCSIFBRDADDR In(IFREQ);
    0x891b => SIOCGIFNETMASK InOut(IFREQ);
    0x891c => SIOCSIFNETMASK In(IFREQ);
    0x891d => SIOCGIFMETRIC InOut(IFREQ);
    0x891e => SIOCSIFMETRIC In(IFREQ);
    0x8921 => SIOCGIFMTU InOut(IFREQ);
    0x8922 => SIOCSIFMTU In(IFREQ);
    0x8923 => SIOCSIFNAME In(IFREQ);
    0x8924 => SIOCSIFHWADDR In(IFREQ);
    0x8927 => SIOCGIFHWADDR InOut(IFREQ);
    0x8929 => SIOCGIFSLAVE InOut(IFREQ);
    0x8931 => SIOCADDMULTI In(IFREQ);
    0x8932 => SIOCDELMULTI In(IFREQ);
    0x8933 => SIOCGIFINDEX InOut(IFREQ);
    0x8934 => SIOCSIFPFLAGS In(IFREQ);
    0x8935 => SIOCGIFPFLAGS InOut(IFREQ);
    0x8942 => SIOCGIFTXQLEN InOut(IFREQ);
    0x8943 => SIOCSIFTXQLEN In(IFREQ);
    0x8946 => SIOCETHTOOL IfreqData;
    0x8947 => SIOCGMIIPHY InOut(IFREQ);
    0x8948 => SIOCGMIIREG InOut(IFREQ);
    0x8949 => SIOCSMIIREG In(IFREQ);
    0x894b => SIOCOUTQNSD Out(4);
    0x894c => SIOCGSKNS NewFd;
    0x8953 => SIOCDARP In(68);
    0x8954 => SIOCGARP InOut(68);
    0x8955 => SIOCSARP In(68);
    0x8970 => SIOCGIFMAP InOut(IFREQ);
    0x8971 => SIOCSIFMAP In(IFREQ);
    0x8982 => SIOCGIFVLAN InOut(IFREQ);
    0x89a0 => SIOCBRADDBR In(16);
    0x89a1 => SIOCBRDELBR In(16);
    0x89a2 => SIOCBRADDIF In(IFREQ);
    0x89a3 => SIOCBRDELIF In(IFREQ);
    // The number encodes an int; the structure is larger.
    ioc(WRITE, b'T', 202, 4) => TUNSETIFF InOut(IFREQ);
    ioc(WRITE, b'T', 203, 4) => TUNSETPERSIST Value;
    ioc(WRITE, b'T', 204, 4) => TUNSETOWNER Value;
    ioc(WRITE, b'T', 205, 4) => TUNSETLINK Value;
    ioc(WRITE, b'T', 206, 4) => TUNSETGROUP Value;
    ioc(READ, b'T', 207, 4) => TUNGETFEATURES Out(4);
    ioc(WRITE, b'T', 208, 4) => TUNSETOFFLOAD Value;
    ioc(READ, b'T', 210, 4) => TUNGETIFF Out(IFREQ);
    ioc(READ, b'T', 211, 4) => TUNGETSNDBUF Out(4);
    ioc(WRITE, b'T', 212, 4) => TUNSETSNDBUF In(4);
    ioc(READ, b'T', 215, 4) => TUNGETVNETHDRSZ Out(4);
    ioc(WRITE, b'T', 216, 4) => TUNSETVNETHDRSZ In(4);
    ioc(WRITE, b'T', 217, 4) => TUNSETQUEUE In(IFREQ);
};

/// Namespaces, processes, random numbers, clocks.
static OTHER: &[Request] = requests! {
    ioc(0, 0xb7, 1, 0) => NS_GET_USERNS NewFd;
    ioc(0, 0xb7, 2, 0) => NS_GET_PARENT NewFd;
    ioc(0, 0xb7, 3, 0) => NS_GET_NSTYPE Value;
    ioc(0, 0xb7, 4, 0) => NS_GET_OWNER_UID Out(4);
    ioc(0, 0xff, 1, 0) => PIDFD_GET_CGROUP_NAMESPACE NewFd;
    ioc(0, 0xff, 2, 0) => PIDFD_GET_IPC_NAMESPACE NewFd;
    ioc(0, 0xff, 3, 0) => PIDFD_GET_MNT_NAMESPACE NewFd;
    ioc(0, 0xff, 4, 0) => PIDFD_GET_NET_NAMESPACE NewFd;
    ioc(0, 0xff, 5, 0) => PIDFD_GET_PID_NAMESPACE NewFd;
    ioc(0, 0xff, 6, 0) => PIDFD_GET_PID_FOR_CHILDREN_NAMESPACE NewFd;
    ioc(0, 0xff, 7, 0) => PIDFD_GET_TIME_NAMESPACE NewFd;
    ioc(0, 0xff, 8, 0) => PIDFD_GET_TIME_FOR_CHILDREN_NAMESPACE NewFd;
    ioc(0, 0xff, 9, 0) => PIDFD_GET_USER_NAMESPACE NewFd;
    ioc(0, 0xff, 10, 0) => PIDFD_GET_UTS_NAMESPACE NewFd;
    ioc(READ, b'R', 0, 4) => RNDGETENTCNT Out(4);
    ioc(WRITE, b'R', 1, 4) => RNDADDTOENTCNT In(4);
    ioc(0, b'R', 4, 0) => RNDZAPENTCNT Value;
    ioc(0, b'R', 6, 0) => RNDCLEARPOOL Value;
    ioc(0, b'R', 7, 0) => RNDRESEEDCRNG Value;
    ioc(0, b'p', 1, 0) => RTC_AIE_ON Value;
    ioc(0, b'p', 2, 0) => RTC_AIE_OFF Value;
    ioc(0, b'p', 3, 0) => RTC_UIE_ON Value;
    ioc(0, b'p', 4, 0) => RTC_UIE_OFF Value;
    ioc(0, b'p', 5, 0) => RTC_PIE_ON Value;
    ioc(0, b'p', 6, 0) => RTC_PIE_OFF Value;
    ioc(WRITE, b'p', 7, 36) => RTC_ALM_SET In(36);
    ioc(READ, b'p', 8, 36) => RTC_ALM_READ Out(36);
    ioc(READ, b'p', 9, 36) => RTC_RD_TIME Out(36);
    ioc(WRITE, b'p', 10, 36) => RTC_SET_TIME In(36);
    ioc(READ, b'p', 11, 8) => RTC_IRQP_READ Out(8);
    // The number itself.
    ioc(WRITE, b'p', 12, 8) => RTC_IRQP_SET Value;
    ioc(READ, b'p', 13, 8) => RTC_EPOCH_READ Out(8);
    ioc(WRITE, b'p', 14, 8) => RTC_EPOCH_SET Value;
    ioc(WRITE, b'p', 15, 40) => RTC_WKALM_SET In(40);
    ioc(READ, b'p', 16, 40) => RTC_WKALM_RD Out(40);
};

static FAMILIES: [&[Request]; 5] = [GENERAL, FILES, NETWORK, OTHER, CONSOLE];

/// Whole types of request whose numbers say truly what they read and write, without pointers inside:
/// (type, whose). Input devices, hidraw, PIDFD_GET_INFO, namespaces.
const HONEST: &[u8] = &[b'E', b'H', b'j', 0xff, 0xb7];

/// Types of device that cannot work: KVM, userfaultfd.
const REFUSED: &[u8] = &[0xae, 0xaa];

/// The table's entry for a request. The kernel looks at 32 bits of the argument.
pub(crate) fn request(number: u64) -> Option<&'static Request> {
    let number = number as u32;
    FAMILIES
        .iter()
        .flat_map(|family| family.iter())
        .find(|request| request.number == number)
}

fn op(number: u64) -> Option<Op> {
    if let Some(request) = request(number) {
        return Some(request.op);
    }
    let kind = (number >> 8) as u8;
    if HONEST.contains(&kind) {
        Some(encoded(number))
    } else {
        REFUSED.contains(&kind).then_some(Refuse)
    }
}

/// What the number says about the argument.
fn encoded(number: u64) -> Op {
    let size = (number >> 16 & 0x3fff) as u32;
    match (number >> 30) as u32 & 3 {
        _ if size == 0 => Value,
        0 => Value,
        WRITE => In(size),
        READ => Out(size),
        _ => InOut(size),
    }
}

/// Memory near the argument of a request about which nothing is known.
const UNKNOWN: u64 = 4096;

pub(super) fn operands(b: &mut Builder) {
    let number = b.value(1);
    let Some(op) = op(number) else {
        // Compare memory rather than trust the number: then it does no harm if the argument is no pointer.
        let size = number >> 16 & 0x3fff;
        if encoded(number) == Value {
            b.plan.confidence = Confidence::Unknown;
            b.unknown_argument(UNKNOWN);
        } else {
            b.plan.confidence = Confidence::Guessed;
            b.unknown_argument(size);
        }
        return;
    };
    let at = b.here();
    let (size, dir) = match op {
        Value | NewFd | Waits | ValueWrites | Refuse => return,
        In(n) | InWaits(n) | InWrites(n) => (n, Dir::In),
        Out(n) => (n, Dir::Out),
        InOut(n) => (n, Dir::InOut),
        Ifconf => return ifconf(b),
        IfreqData => {
            b.structure(IFREQ.into(), Dir::InOut, Wrote::All);
            b.plan.confidence = Confidence::Guessed;
            let data_at = at.wrapping_add(16);
            if let Some(data) = b.u64_at(data_at) {
                b.unknown(Place::Mem(data_at), data, UNKNOWN);
            }
            return;
        }
        Fiemap => {
            // struct fiemap: mapped extents (u32) at 20, capacity (u32) at 24, extents of 56 bytes from 32.
            let capacity = b.u32_at(at.wrapping_add(24)).unwrap_or(0);
            let op = b.operand(32 + u64::from(capacity) * 56, Dir::InOut);
            let wrote = Wrote::U32At {
                addr: at.wrapping_add(20),
                scale: 56,
                plus: 32,
            };
            return b.push(Operand { wrote, ..op });
        }
        Dedupe => {
            // struct file_dedupe_range: number of destinations (u16) at 16, destinations of 32 bytes from 24.
            let count = crate::plan::read_u16(b.mem, at.wrapping_add(16)).unwrap_or(0);
            return b.flat(24 + u64::from(count) * 32, Dir::InOut);
        }
    };
    let op = b.operand(size.into(), dir);
    b.push(Operand {
        shape: if size == 4 { Shape::I32 } else { Shape::Opaque },
        ..op
    });
}

fn ifconf(b: &mut Builder) {
    let at = b.here();
    b.structure(16, Dir::InOut, Wrote::Fields(&[(0, 4)]));
    let buffer_at = at.wrapping_add(8);
    let (Some(len), Some(buffer)) = (b.u32_at(at), b.u64_at(buffer_at)) else {
        return;
    };
    let op = b.nested(buffer_at, buffer, len.into(), Dir::Out);
    b.push(Operand {
        wrote: Wrote::U32At {
            addr: at,
            scale: 1,
            plus: 0,
        },
        when: When::Success,
        ..op
    });
}

pub(crate) fn class(number: u64) -> Class {
    if op(number) == Some(Refuse) {
        Class::Refuse(
            libc::ENOTTY,
            Notice::Loud,
            "this device shares memory with the program",
        )
    } else {
        Class::Pass
    }
}

pub(crate) fn blocking(number: u64) -> Blocking {
    match op(number) {
        Some(Waits | InWaits(_)) | None => Blocking::May,
        _ => Blocking::Never,
    }
}

pub(crate) fn restart(number: u64) -> Restart {
    if blocking(number) == Blocking::Never {
        Restart::None
    } else {
        Restart::Restartable
    }
}

pub(crate) fn file_effect(number: u64) -> FileEffect {
    match op(number) {
        Some(ValueWrites | InWrites(_)) => FileEffect::Fd(0),
        _ => FileEffect::None,
    }
}

const FIONCLEX: u32 = 0x5450;
const FIOCLEX: u32 = 0x5451;
const TIOCGPTPEER: u32 = ioc(0, b'T', 0x41, 0);

/// What a request does to the fd table.
pub(crate) enum FdOp {
    Nothing,
    /// Sets close-on-exec of the fd itself.
    Cloexec(bool),
    /// Returns a new fd.
    New {
        cloexec: bool,
    },
}

pub(crate) fn fd_op(number: u64, argument: u64) -> FdOp {
    match number as u32 {
        FIONCLEX => FdOp::Cloexec(false),
        FIOCLEX => FdOp::Cloexec(true),
        TIOCGPTPEER => FdOp::New {
            cloexec: argument & libc::O_CLOEXEC as u64 != 0,
        },
        _ if op(number) == Some(NewFd) => FdOp::New { cloexec: true },
        _ => FdOp::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique() {
        let mut numbers: Vec<_> = FAMILIES
            .iter()
            .flat_map(|family| family.iter())
            .map(|request| request.number)
            .collect();
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count);
    }

    #[test]
    fn numbers_agree_with_libc() {
        for (name, number) in [
            ("TCGETS", libc::TCGETS),
            ("TCGETS2", libc::TCGETS2),
            ("TCSETSF2", libc::TCSETSF2),
            ("TIOCGPTN", libc::TIOCGPTN),
            ("TIOCSPTLCK", libc::TIOCSPTLCK),
            ("TIOCGPTPEER", libc::TIOCGPTPEER),
            ("TIOCGWINSZ", libc::TIOCGWINSZ),
            ("FIONREAD", libc::FIONREAD),
            ("FICLONE", libc::FICLONE),
            ("FICLONERANGE", libc::FICLONERANGE),
            ("FS_IOC_GETFLAGS", libc::FS_IOC_GETFLAGS),
            ("FS_IOC_SETFLAGS", libc::FS_IOC_SETFLAGS),
            ("SIOCGIFCONF", libc::SIOCGIFCONF),
            ("SIOCGIFADDR", libc::SIOCGIFADDR),
            ("TUNSETIFF", libc::TUNSETIFF),
            ("NS_GET_PARENT", libc::NS_GET_PARENT),
            ("BLKSSZGET", libc::BLKSSZGET),
            ("FIOCLEX", libc::FIOCLEX),
        ] {
            assert_eq!(request(number).map(|request| request.name), Some(name));
        }
    }
}
