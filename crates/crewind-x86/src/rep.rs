//! The check of repeated string instructions: a routine beside the stubs, as the range is known only when it runs.
//!
//! Translated code jumps to it with its arguments in cells, and with the number of the check in `exit_arg`. It goes back
//! to the address in `rep_return`, or leaves at the check. It needs flags and registers, so it has a small stack in the
//! cells: the guest's must not be touched. Signals that come here do not mind, handlers run on a stack of their own.

use crate::emit::Hot;
use crate::rights::{NO_READ, NO_WRITE, PAGE_SHIFT, RIGHTS_LEN};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::mem::{offset_of, size_of};

/// Arguments: the low two bits are log2 of the element's size.
pub(crate) const SOURCE: u32 = 1 << 2;
pub(crate) const DEST_READ: u32 = 1 << 3;
pub(crate) const DEST_WRITE: u32 = 1 << 4;
pub(crate) const ADDR32: u32 = 1 << 5;
pub(crate) const FS: u32 = 1 << 6;
/// Times the element's size.
pub(crate) const SIZE: u32 = 1 << 16;

/// Elements that are looked at here at most; more are asked for without a look.
const MOST: i32 = 1 << 20;
/// Bytes that are saved.
const SAVED: u64 = 5 * 8;

struct Routine {
    a: CodeAssembler,
    hot: u64,
    table: u64,
    fail: CodeLabel,
    /// A byte of the table stands for a page, not for a granule.
    pages: bool,
}

type R = Result<(), IcedError>;

impl Routine {
    fn q(&self, o: usize) -> AsmMemoryOperand {
        qword_ptr(self.hot + o as u64)
    }

    fn d(&self, o: usize) -> AsmMemoryOperand {
        dword_ptr(self.hot + o as u64)
    }

    /// Looks at the rights of edx bytes from the element at rax on (or down to it and beyond, by the direction).
    fn scan(&mut self, bit: u8) -> R {
        let table = self.table;
        let pages = self.pages;
        let a = &mut self.a;
        let (mut up, mut eight, mut one, mut done) = (
            a.create_label(),
            a.create_label(),
            a.create_label(),
            a.create_label(),
        );
        // The saved flags.
        a.test(dword_ptr(rsp + (SAVED - 8) as i32), 0x400)?;
        a.je(up)?;
        a.mov(ecx, ebx)?;
        a.shr(ecx, 16)?;
        if pages {
            a.add(rax, rcx)?;
            a.sub(rax, rdx)?;
        } else {
            a.add(eax, ecx)?;
            a.sub(eax, edx)?;
        }
        a.set_label(&mut up)?;
        // Around the end of the table nothing is looked at.
        if pages {
            a.lea(rcx, ptr(rax + rdx - 1))?;
            for r in [rax, rcx] {
                a.shr(r, PAGE_SHIFT)?;
            }
            for r in [eax, ecx] {
                a.and(r, (RIGHTS_LEN - 1) as i32)?;
            }
            a.cmp(ecx, eax)?;
            a.jb(self.fail)?;
        } else {
            a.lea(ecx, ptr(rax + rdx - 1))?;
            a.cmp(ecx, eax)?;
            a.jb(self.fail)?;
            a.shr(eax, 6)?;
            a.shr(ecx, 6)?;
        }
        a.sub(ecx, eax)?;
        a.push(rdx)?;
        a.mov(rdx, u64::from(bit) * 0x0101_0101_0101_0101)?;
        // ecx: granules left, less one.
        a.set_label(&mut eight)?;
        a.cmp(ecx, 7)?;
        a.jb(one)?;
        a.test(qword_ptr(rax + table as i32), rdx)?;
        a.jne(self.fail)?;
        a.add(eax, 8)?;
        a.sub(ecx, 8)?;
        a.jae(eight)?;
        a.jmp(done)?;
        a.set_label(&mut one)?;
        a.test(byte_ptr(rax + table as i32), i32::from(bit))?;
        a.jne(self.fail)?;
        a.inc(eax)?;
        a.sub(ecx, 1)?;
        a.jae(one)?;
        a.set_label(&mut done)?;
        a.pop(rdx)
    }

    /// The address of the first element into rax.
    fn element(&mut self, from: AsmRegister64) -> R {
        self.a.mov(rax, from)?;
        let mut long = self.a.create_label();
        self.a.test(ebx, ADDR32 as i32)?;
        self.a.je(long)?;
        self.a.mov(eax, eax)?;
        self.a.set_label(&mut long)?;
        self.a.nop()
    }

    fn restore(&mut self) -> R {
        self.a.pop(rcx)?;
        self.a.pop(rbx)?;
        self.a.pop(rdx)?;
        self.a.pop(rax)?;
        self.a.popfq()?;
        let m = self.q(offset_of!(Hot, rep_rsp));
        self.a.mov(rsp, m)
    }

    fn body(&mut self, check: u64) -> R {
        let stack = self.hot + offset_of!(Hot, stack) as u64 + size_of::<[u64; 8]>() as u64;
        let m = self.q(offset_of!(Hot, rep_rsp));
        self.a.mov(m, rsp)?;
        self.a.mov(esp, stack as u32)?;
        self.a.pushfq()?;
        for r in [rax, rdx, rbx, rcx] {
            self.a.push(r)?;
        }
        let (mut long, mut pass, mut dest, mut read, mut no_fs) = (
            self.a.create_label(),
            self.a.create_label(),
            self.a.create_label(),
            self.a.create_label(),
            self.a.create_label(),
        );
        let m = self.d(offset_of!(Hot, rep_params));
        self.a.mov(ebx, m)?;
        self.a.mov(rdx, rcx)?;
        self.a.test(ebx, ADDR32 as i32)?;
        self.a.je(long)?;
        self.a.mov(edx, ecx)?;
        self.a.set_label(&mut long)?;
        self.a.test(rdx, rdx)?;
        self.a.je(pass)?;
        self.a.cmp(rdx, MOST)?;
        self.a.ja(self.fail)?;
        self.a.mov(ecx, ebx)?;
        self.a.and(ecx, 3)?;
        self.a.shl(edx, cl)?;
        self.a.test(ebx, SOURCE as i32)?;
        self.a.je(dest)?;
        self.element(rsi)?;
        self.a.test(ebx, FS as i32)?;
        self.a.je(no_fs)?;
        if self.pages {
            let m = self.q(offset_of!(Hot, fs_base));
            self.a.add(rax, m)?;
        } else {
            let m = self.d(offset_of!(Hot, fs_base));
            self.a.add(eax, m)?;
        }
        self.a.set_label(&mut no_fs)?;
        self.a.nop()?;
        self.scan(NO_READ)?;
        self.a.set_label(&mut dest)?;
        self.element(rdi)?;
        self.a.test(ebx, DEST_READ as i32)?;
        self.a.jne(read)?;
        self.a.test(ebx, DEST_WRITE as i32)?;
        self.a.je(pass)?;
        self.scan(NO_WRITE)?;
        self.a.jmp(pass)?;
        self.a.set_label(&mut read)?;
        self.a.nop()?;
        self.scan(NO_READ)?;
        self.a.set_label(&mut pass)?;
        self.restore()?;
        let m = self.q(offset_of!(Hot, rep_return));
        self.a.jmp(m)?;
        let mut fail = self.fail;
        self.a.set_label(&mut fail)?;
        self.a.mov(esp, (stack - SAVED) as u32)?;
        self.restore()?;
        self.a.jmp(check)
    }
}

/// Assembles the routine for `base`. `check` is the stub that leaves at a check.
/// `pages` says whether a byte of the table stands for a page.
pub(crate) fn assemble(
    base: u64,
    hot: u64,
    table: u64,
    check: u64,
    pages: bool,
) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let fail = a.create_label();
    let mut r = Routine {
        a,
        hot,
        table,
        fail,
        pages,
    };
    r.body(check)?;
    r.a.assemble(base)
}
