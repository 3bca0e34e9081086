//! Clocks and timers.

use super::kinds::*;
use crate::flags as f;
use crate::types::ArgKind::*;
use crate::types::Blocking::Always;
use crate::types::Restart::RestartBlock;
use crate::types::{Cloexec, FdEffect, Len, Row, Shape, When, Wrote};

const TIMEX: u32 = 208;

pub(super) const ROWS: &[Row] = rows! {
    // The rest of the time is written when a handler interrupts it.
    35 nanosleep(req: TIMESPEC_IN, rem: output(Len::Bytes(16), Wrote::All, When::Errno(libc::EINTR), Shape::Timespec))
        { blocking: Always, restart: RestartBlock };
    36 getitimer(which: Flags(&f::ITIMER), curr_value: ITIMERVAL_OUT);
    37 alarm(seconds: Uint);
    38 setitimer(which: Flags(&f::ITIMER), new_value: ITIMERVAL_IN, old_value: ITIMERVAL_OUT);
    96 gettimeofday(tv: outs_as(16, Shape::Timeval), tz: outs_as(8, Shape::I32));
    100 times(buf: outs_as(32, Shape::I64));
    159 adjtimex(buf: inouts(TIMEX, Shape::Opaque));
    164 settimeofday(tv: ins_as(16, Shape::Timeval), tz: ins_as(8, Shape::I32));
    201 time(tloc: I64_OUT);
    222 timer_create(clockid: Flags(&f::CLOCK), sevp: Sigevent, timerid: U32_OUT);
    223 timer_settime(timerid: Int, flags: Flags(&f::TIMER_FLAGS), new_value: ITIMERSPEC_IN, old_value: ITIMERSPEC_OUT);
    224 timer_gettime(timerid: Int, curr_value: ITIMERSPEC_OUT);
    225 timer_getoverrun(timerid: Int);
    226 timer_delete(timerid: Int);
    227 clock_settime(clockid: Flags(&f::CLOCK), tp: TIMESPEC_IN);
    228 clock_gettime(clockid: Flags(&f::CLOCK), tp: TIMESPEC_OUT);
    229 clock_getres(clockid: Flags(&f::CLOCK), res: TIMESPEC_OUT);
    230 clock_nanosleep(clockid: Flags(&f::CLOCK), flags: Flags(&f::TIMER_FLAGS), req: TIMESPEC_IN, rem: ClockRem)
        { blocking: Always, restart: RestartBlock };
    283 timerfd_create(clockid: Flags(&f::CLOCK), flags: Flags(&f::TIMERFD))
        { fds: FdEffect::New(Cloexec::Flag(1, 0o2000000)) };
    286 timerfd_settime(fd: Fd, flags: Flags(&f::TIMERFD_SET), new_value: ITIMERSPEC_IN, old_value: ITIMERSPEC_OUT);
    287 timerfd_gettime(fd: Fd, curr_value: ITIMERSPEC_OUT);
    305 clock_adjtime(clockid: Flags(&f::CLOCK), buf: inouts(TIMEX, Shape::Opaque));
};
