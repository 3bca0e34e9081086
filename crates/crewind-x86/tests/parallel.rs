//! Several caches run at the same time in different threads.

mod common;

use common::*;
use crewind_x86::ctx;
use crewind_x86::rights::{self, NO_READ, NO_WRITE, RIGHTS_LEN, RIGHTS_SLACK};
use crewind_x86::{CodeCache, Config, Exit, Options};
use iced_x86::code_asm::*;
use std::sync::Barrier;

const THREADS: u64 = 2;
const COUNT: u64 = 300_000;

/// Adds 1 to [rdi] `COUNT` times, through a call.
fn program() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let (mut l, mut f, mut main) = (a.create_label(), a.create_label(), a.create_label());
    a.jmp(main).unwrap();
    a.set_label(&mut f).unwrap();
    a.add(qword_ptr(rdi), 1).unwrap();
    a.ret().unwrap();
    a.set_label(&mut main).unwrap();
    a.mov(ebx, COUNT as u32).unwrap();
    a.set_label(&mut l).unwrap();
    a.call(f).unwrap();
    a.dec(ebx).unwrap();
    a.jne(l).unwrap();
    a.syscall().unwrap();
    a.assemble(CODE).unwrap()
}

/// Each thread has its own cache and its own table of rights; the code is the same. Rights that a thread has do not
/// help the other.
#[test]
fn caches_do_not_know_each_other() {
    let code = Region::new(CODE, 1 << 16);
    code.write(CODE, &program());
    let data = Region::new(DATA, DATA_SIZE);
    let stacks = Region::new(STACK_TOP - STACK_SIZE as u64, STACK_SIZE);
    let tables: Vec<Region> = (0..THREADS)
        .map(|n| Region::new(RIGHTS + (n << 27), RIGHTS_LEN + RIGHTS_SLACK))
        .collect();
    let barrier = Barrier::new(THREADS as usize);
    std::thread::scope(|s| {
        for (n, table) in tables.iter().enumerate() {
            let (n, barrier) = (n as u64, &barrier);
            s.spawn(move || {
                let mut cache = CodeCache::new(Config {
                    cache_base: CACHE + (n << 26),
                    cache_size: 16 << 20,
                    table_base: TABLE - (n << 20),
                    options: Options::default(),
                    rights: Some(table.base),
                    pages: false,
                    pkru: false,
                })
                .expect("cache");
                let src = Source {
                    ranges: vec![(CODE, CODE + (1 << 16))],
                    ..Source::default()
                };
                let mine = DATA + 128 * n;
                table.bytes()[rights::index(mine)] = NO_READ | NO_WRITE;
                // SAFETY: the thread's own context.
                let c = unsafe { &mut *ctx::ctx() };
                *c = ctx::Ctx::new();
                c.rip = CODE;
                c.gpr[4] = STACK_TOP - 4096 - 8192 * n;
                c.gpr[7] = mine;
                c.set_limit(u64::MAX);
                barrier.wait();
                // SAFETY: the thread's own context, and memory of its own.
                let exit = unsafe { cache.run(c, &src) };
                let Exit::Check { site } = exit else {
                    panic!("{exit:?}")
                };
                assert_eq!(c.gpr[3], COUNT, "nothing is done yet");
                let mut ranges = Vec::new();
                cache.check_ranges(site, c, &mut ranges);
                assert!(
                    ranges
                        .iter()
                        .any(|r| r.addr == mine && r.len == 8 && r.write)
                );
                table.bytes()[rights::index(mine)] = 0;
                cache.pass_check(c, site);
                barrier.wait();
                // SAFETY: as above.
                let exit = unsafe { cache.run(c, &src) };
                assert!(matches!(exit, Exit::Syscall { .. }), "{exit:?}");
                assert_eq!(c.clock(), 3 * COUNT - 1);
            });
        }
    });
    for n in 0..THREADS {
        let at = 128 * n as usize;
        let v = u64::from_le_bytes(data.bytes()[at..at + 8].try_into().unwrap());
        assert_eq!(v, COUNT);
    }
    drop(stacks);
}
