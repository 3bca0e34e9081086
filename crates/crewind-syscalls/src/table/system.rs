//! The system as a whole: information, administration, calls that no longer exist.

use super::kinds::*;
use crate::flags as f;
use crate::types::ArgKind::*;
use crate::types::Blocking::May;
use crate::types::Class::Refuse;
use crate::types::Notice::{Loud, Quiet};
use crate::types::Restart::Restartable;
use crate::types::Row;

const GONE: &str = "not implemented by Linux";
const KERNEL: &str = "a recorded program does not change the kernel";

pub(super) const ROWS: &[Row] = rows! {
    63 uname(buf: outs(390));
    99 sysinfo(info: outs(112));
    103 syslog(type: Int, bufp: SyslogBuf, len: Int) { blocking: May, restart: Restartable };
    134 uselib(library: Path) { class: Refuse(libc::ENOSYS, Quiet, GONE) };
    153 vhangup();
    154 modify_ldt(func: Int, ptr: Addr, bytecount: Size)
        { class: Refuse(libc::ENOSYS, Loud, "segments of the local descriptor table are not translated") };
    156 _sysctl(args: Addr) { class: Refuse(libc::ENOSYS, Quiet, GONE) };
    163 acct(filename: Path);
    167 swapon(path: Path, swapflags: Hex);
    168 swapoff(path: Path);
    169 reboot(magic: Hex, magic2: Hex, cmd: Hex, arg: Path);
    170 sethostname(name: in_buf(1), len: Int);
    171 setdomainname(name: in_buf(1), len: Int);
    172 iopl(level: Int) { class: Refuse(libc::EPERM, Loud, "input from ports is not recorded") };
    173 ioperm(from: Size, num: Size, turn_on: Int)
        { class: Refuse(libc::EPERM, Loud, "input from ports is not recorded") };
    174 create_module() { class: Refuse(libc::ENOSYS, Quiet, GONE) };
    175 init_module(module_image: Addr, len: Size, param_values: Path) { class: Refuse(libc::EPERM, Loud, KERNEL) };
    176 delete_module(name: Path, flags: Hex) { class: Refuse(libc::EPERM, Loud, KERNEL) };
    177 get_kernel_syms() { class: Refuse(libc::ENOSYS, Quiet, GONE) };
    178 query_module() { class: Refuse(libc::ENOSYS, Quiet, GONE) };
    179 quotactl(cmd: Hex, special: Path, id: Id, addr: Addr)
        { class: Refuse(libc::ENOSYS, Loud, "the table does not describe quotactl") };
    180 nfsservctl() { class: Refuse(libc::ENOSYS, Quiet, GONE) };
    181 getpmsg() { class: Refuse(libc::ENOSYS, Quiet, GONE) };
    182 putpmsg() { class: Refuse(libc::ENOSYS, Quiet, GONE) };
    183 afs_syscall() { class: Refuse(libc::ENOSYS, Quiet, GONE) };
    184 tuxcall() { class: Refuse(libc::ENOSYS, Quiet, GONE) };
    185 security() { class: Refuse(libc::ENOSYS, Quiet, GONE) };
    212 lookup_dcookie(cookie: Hex, buffer: Addr, len: Size) { class: Refuse(libc::ENOSYS, Quiet, GONE) };
    236 vserver() { class: Refuse(libc::ENOSYS, Quiet, GONE) };
    246 kexec_load(entry: Addr, nr_segments: Size, segments: Addr, flags: Hex)
        { class: Refuse(libc::EPERM, Loud, KERNEL) };
    298 perf_event_open(attr: Addr, pid: Pid, cpu: Int, group_fd: Fd, flags: Hex)
        { class: Refuse(libc::ENOSYS, Loud, "perf events share memory with the kernel") };
    313 finit_module(fd: Fd, param_values: Path, flags: Hex) { class: Refuse(libc::EPERM, Loud, KERNEL) };
    // Waits only until the kernel's generator is seeded, early in boot.
    318 getrandom(buf: out_buf(1), buflen: Size, flags: Flags(&f::GETRANDOM)) { restart: Restartable };
    320 kexec_file_load(kernel_fd: Fd, initrd_fd: Fd, cmdline_len: Size, cmdline: Addr, flags: Hex)
        { class: Refuse(libc::EPERM, Loud, KERNEL) };
    321 bpf(cmd: Int, attr: Addr, size: Uint)
        { class: Refuse(libc::EPERM, Loud, "the table does not describe bpf") };
    335 uretprobe() { class: Refuse(libc::ENOSYS, Quiet, "only the kernel's probe trampoline makes it") };
    336 uprobe() { class: Refuse(libc::ENOSYS, Quiet, "only the kernel's probe trampoline makes it") };
    443 quotactl_fd(fd: Fd, cmd: Hex, id: Id, addr: Addr)
        { class: Refuse(libc::ENOSYS, Loud, "the table does not describe quotactl") };
    459 lsm_get_self_attr(attr: Uint, ctx: LsmCtx, size: LsmSize, flags: Hex);
    460 lsm_set_self_attr(attr: Uint, ctx: in_buf(2), size: Uint, flags: Hex);
    461 lsm_list_modules(ids: LsmIds, size: LsmSize, flags: Hex);
};
