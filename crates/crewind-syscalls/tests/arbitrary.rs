//! Whatever a guest passes, nothing panics, and what is reported lies inside what was announced.

use crewind_syscalls::{
    Args, Mem, OutBytes, Plan, after, before, before_into, class, fd_changes, file_effect, format,
    may_block, output_bytes, restart, row, rows, temp_sigmask,
};
use proptest::prelude::*;

/// Memory whose bytes follow from their address and a seed; some pages are not there.
struct Hashed(u64);

impl Hashed {
    fn byte(&self, addr: u64) -> u8 {
        let mixed = (addr ^ self.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // Mostly zeros, so that counts and lengths are often small.
        if mixed >> 60 < 11 {
            0
        } else {
            (mixed >> 32) as u8
        }
    }

    fn mapped(&self, addr: u64) -> bool {
        let page = addr >> 12;
        page != 0 && (page ^ self.0).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 62 != 0
    }
}

impl Mem for Hashed {
    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        for (i, byte) in (0..).zip(buf.iter_mut()) {
            let Some(at) = addr.checked_add(i) else {
                return false;
            };
            if !self.mapped(at) {
                return false;
            }
            *byte = self.byte(at);
        }
        true
    }
}

fn argument() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => 0u64..70,
        1 => any::<u64>(),
        3 => 0x10_0000u64..0x20_0000,
        1 => (0u64..64).prop_map(|n| u64::MAX - n),
        1 => prop::sample::select(vec![0x5401u64, 0x8912, 0x8946, 0xc020_660b, 0xc018_9436, 0x4155_5856, 0x100]),
    ]
}

fn result() -> impl Strategy<Value = i64> {
    prop_oneof![0i64..100, -40i64..0, any::<i64>(), Just(-14)]
}

fn check(nr: u32, args: Args, ret: i64, seed: u64) {
    let Some(row) = row(nr) else { return };
    let mem = Hashed(seed);
    let plan = before(row, &args, &mem);
    let mut ranges = Vec::new();
    after(&plan, ret, &mem, &mut ranges);
    for pair in ranges.windows(2) {
        assert!(pair[0].addr + pair[0].len <= pair[1].addr);
    }
    for range in &ranges {
        let end = range
            .addr
            .checked_add(range.len)
            .expect("no range passes the end of memory");
        // Ranges of several operands may have been joined, so look at both ends.
        for at in [range.addr, end - 1] {
            let inside = |op: &crewind_syscalls::Operand| {
                op.dir.writes() && at >= op.addr && at - op.addr < op.cap
            };
            assert!(plan.operands.iter().any(inside), "{}: {at:#x}", row.name);
        }
    }
    let mut written = Plan::new();
    before_into(row, &args, &mem, &mut written);
    let mut same = Vec::new();
    after(&written, ret, &mem, &mut same);
    assert_eq!(ranges, same);

    let outs: Vec<_> = ranges
        .iter()
        .map(|range| (range.addr, vec![1u8; range.len.min(100) as usize]))
        .collect();
    let outs: Vec<_> = outs
        .iter()
        .map(|(addr, data)| OutBytes { addr: *addr, data })
        .collect();
    for mem in [None, Some(&mem as &dyn Mem)] {
        let text = format(row, &args, Some(ret), mem, &outs);
        assert!(text.starts_with(row.name) && text.len() < 10_000, "{text}");
        format(row, &args, None, mem, &[]);
    }
    let mut changes = Vec::new();
    fd_changes(row, &args, ret, &mem, &mut changes);
    let _ = (
        class(row, &args),
        restart(row, &args),
        may_block(row, &args, &mem),
    );
    let _ = (
        file_effect(row, &args, &mem),
        output_bytes(row, &args, ret, &mem),
    );
    let _ = temp_sigmask(row, &args, &mem);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_call(
        nr in 0u32..=crewind_syscalls::LAST,
        args in prop::array::uniform6(argument()),
        ret in result(),
        seed in any::<u64>(),
    ) {
        check(nr, args, ret, seed);
    }
}

#[test]
fn every_call_with_extreme_arguments() {
    for row in rows() {
        for value in [
            0,
            1,
            0x10_0000,
            u64::from(u32::MAX),
            i64::MAX as u64,
            u64::MAX,
        ] {
            for ret in [0, 1, -1, -14, -4, i64::MAX, i64::MIN] {
                check(row.nr, [value; 6], ret, 7);
            }
        }
    }
}
