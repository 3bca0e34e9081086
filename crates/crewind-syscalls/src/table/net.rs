//! Sockets.

use super::kinds::*;
use crate::flags as f;
use crate::types::ArgKind::*;
use crate::types::Blocking::MayFd;
use crate::types::Restart::Restartable;
use crate::types::{Cloexec, Dir, FdEffect, Len, Row, Shape};

const SOCK_CLOEXEC: u64 = 0o2000000;
const SOCKADDR_IN: crate::types::ArgKind = input(Len::Arg(2), Shape::Sockaddr);
const SOCKADDR_OUT: crate::types::ArgKind = ValueResult {
    len: 2,
    shape: Shape::Sockaddr,
};

pub(super) const ROWS: &[Row] = rows! {
    41 socket(domain: Flags(&f::AF), type: Flags(&f::SOCK), protocol: Int)
        { fds: FdEffect::New(Cloexec::Flag(1, SOCK_CLOEXEC)) };
    42 connect(sockfd: Fd, addr: SOCKADDR_IN, addrlen: Int) { blocking: MayFd(0), restart: Restartable };
    43 accept(sockfd: Fd, addr: SOCKADDR_OUT, addrlen: ResultLen(1))
        { blocking: MayFd(0), restart: Restartable, fds: FdEffect::New(Cloexec::No) };
    44 sendto(sockfd: Fd, buf: in_buf(2), len: Size, flags: Flags(&f::MSG),
        dest_addr: input(Len::Arg(5), Shape::Sockaddr), addrlen: Int)
        { blocking: MayFd(0), restart: Restartable, writes_to: Some(0) };
    45 recvfrom(sockfd: Fd, buf: out_buf(2), len: Size, flags: Flags(&f::MSG),
        src_addr: ValueResult { len: 5, shape: Shape::Sockaddr }, addrlen: ResultLen(4))
        { blocking: MayFd(0), restart: Restartable };
    46 sendmsg(sockfd: Fd, msg: Msghdr(Dir::In), flags: Flags(&f::MSG))
        { blocking: MayFd(0), restart: Restartable, writes_to: Some(0) };
    47 recvmsg(sockfd: Fd, msg: Msghdr(Dir::Out), flags: Flags(&f::MSG))
        { blocking: MayFd(0), restart: Restartable, fds: FdEffect::Recvmsg };
    48 shutdown(sockfd: Fd, how: Flags(&f::SHUT));
    49 bind(sockfd: Fd, addr: SOCKADDR_IN, addrlen: Int);
    50 listen(sockfd: Fd, backlog: Int);
    51 getsockname(sockfd: Fd, addr: SOCKADDR_OUT, addrlen: ResultLen(1));
    52 getpeername(sockfd: Fd, addr: SOCKADDR_OUT, addrlen: ResultLen(1));
    53 socketpair(domain: Flags(&f::AF), type: Flags(&f::SOCK), protocol: Int, sv: outs_as(8, Shape::I32))
        { fds: FdEffect::Pair { array: 3, cloexec: Cloexec::Flag(1, SOCK_CLOEXEC) } };
    54 setsockopt(sockfd: Fd, level: Flags(&f::SOCKOPT_LEVEL), optname: Flags(&f::SO), optval: Setsockopt,
        optlen: Int);
    55 getsockopt(sockfd: Fd, level: Flags(&f::SOCKOPT_LEVEL), optname: Flags(&f::SO),
        optval: ValueResult { len: 4, shape: Shape::I32 }, optlen: ResultLen(3))
        { fds: FdEffect::Getsockopt };
    288 accept4(sockfd: Fd, addr: SOCKADDR_OUT, addrlen: ResultLen(1), flags: Flags(&f::SOCK_FLAGS))
        { blocking: MayFd(0), restart: Restartable, fds: FdEffect::New(Cloexec::Flag(3, SOCK_CLOEXEC)) };
    299 recvmmsg(sockfd: Fd, msgvec: Mmsghdr { dir: Dir::Out, count: 2 }, vlen: Uint, flags: Flags(&f::MSG),
        timeout: Remaining(Shape::Timespec))
        { blocking: MayFd(0), restart: Restartable, fds: FdEffect::Recvmmsg };
    307 sendmmsg(sockfd: Fd, msgvec: Mmsghdr { dir: Dir::In, count: 2 }, vlen: Uint, flags: Flags(&f::MSG))
        { blocking: MayFd(0), restart: Restartable, writes_to: Some(0) };
};
