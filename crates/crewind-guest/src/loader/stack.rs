//! The stack a program starts with, byte for byte as the kernel lays it out. Pure.

use super::{Bytes, ExecError};
use crate::guestmem::MAX_ARG_STRLEN;

/// Bytes the kernel allows for arguments, environment and their pointers together, given the soft
/// `RLIMIT_STACK`.
pub fn arg_limit(stack_limit: u64) -> u64 {
    const STK_LIM: u64 = 8 << 20;
    const ARG_MAX: u64 = 128 << 10;
    (stack_limit / 4).clamp(ARG_MAX, STK_LIM / 4 * 3)
}

/// E2BIG when the strings of an `execve` are too long or too many.
pub fn check_sizes(
    execfn: &[u8],
    argv: &[Vec<u8>],
    envp: &[Vec<u8>],
    stack_limit: u64,
) -> Result<(), ExecError> {
    let limit = arg_limit(stack_limit);
    let pointers = (argv.len().max(1) + envp.len()) as u64 * 8;
    let strings: u64 = argv.iter().chain(envp).map(|s| s.len() as u64 + 1).sum();
    if argv.iter().chain(envp).any(|s| s.len() >= MAX_ARG_STRLEN) {
        return Err(ExecError::new(
            libc::E2BIG,
            "an argument or variable is longer than 128 KiB",
        ));
    }
    let total = pointers + strings + execfn.len() as u64 + 1;
    if total > limit {
        let text = format!("arguments and environment take {total} bytes; {limit} are allowed");
        return Err(ExecError::new(libc::E2BIG, text));
    }
    Ok(())
}

/// Where arguments and environment are, as `/proc/self/{cmdline,environ,stat}` use it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ArgArea {
    /// First byte of the first argument.
    pub arg_start: u64,
    /// After the last argument's NUL.
    pub arg_end: u64,
    /// First byte of the environment.
    pub env_start: u64,
    /// After its last NUL.
    pub env_end: u64,
}

/// An initial stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StackImage {
    /// Stack pointer: address of the first of `bytes`.
    pub sp: u64,
    /// All from `sp` to the top.
    pub bytes: Vec<u8>,
    /// The auxiliary vector with its final `AT_NULL`.
    pub auxv: Vec<(u64, u64)>,
    pub args: ArgArea,
}

/// What goes on the stack.
pub(super) struct StackInput<'a> {
    pub top: u64,
    pub execfn: &'a Bytes,
    pub argv: &'a [Bytes],
    pub envp: &'a [Bytes],
    pub random: &'a [u8; 16],
    pub platform: &'a str,
}

/// Lays a stack out. `auxv` is given the addresses of (random bytes, execfn, platform) and returns the vector
/// without its end. `None` when it does not fit below `top`.
pub(super) fn build(
    input: &StackInput<'_>,
    auxv: impl FnOnce(u64, u64, u64) -> Vec<(u64, u64)>,
) -> Option<StackImage> {
    // Downwards: 8 zero bytes, execfn, environment, arguments.
    let strings: usize = input
        .argv
        .iter()
        .chain(input.envp)
        .map(|s| s.0.len() + 1)
        .sum();
    let mut p = input
        .top
        .checked_sub(8 + input.execfn.0.len() as u64 + 1 + strings as u64)?;
    let mut high = Vec::with_capacity(strings + input.execfn.0.len() + 9);
    let high_start = p;
    let mut args = ArgArea {
        arg_start: p,
        ..ArgArea::default()
    };
    let mut pointers = Vec::new();
    let mut put = |s: &Bytes, pointers: &mut Vec<u64>| {
        pointers.push(p);
        high.extend_from_slice(&s.0);
        high.push(0);
        p += s.0.len() as u64 + 1;
        p
    };
    args.arg_end = args.arg_start;
    for s in input.argv {
        args.arg_end = put(s, &mut pointers);
    }
    let argc = pointers.len() as u64;
    pointers.push(0);
    (args.env_start, args.env_end) = (args.arg_end, args.arg_end);
    for s in input.envp {
        args.env_end = put(s, &mut pointers);
    }
    pointers.push(0);
    let execfn = args.env_end;
    put(input.execfn, &mut Vec::new());
    high.extend_from_slice(&[0; 8]);

    // Below: platform, random bytes, and 16-aligned the vectors.
    let platform = (high_start & !15).checked_sub(input.platform.len() as u64 + 1)?;
    let random = platform.checked_sub(16)?;
    let mut auxv = auxv(random, execfn, platform);
    auxv.push((libc::AT_NULL, 0));
    let words = 1 + pointers.len() as u64 + auxv.len() as u64 * 2;
    let sp = random.checked_sub(words * 8)? & !15;

    let mut bytes = Vec::with_capacity((input.top - sp) as usize);
    let vectors = [argc]
        .into_iter()
        .chain(pointers)
        .chain(auxv.iter().flat_map(|&(k, v)| [k, v]));
    for word in vectors {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.resize((random - sp) as usize, 0);
    bytes.extend_from_slice(input.random);
    bytes.extend_from_slice(input.platform.as_bytes());
    bytes.resize((high_start - sp) as usize, 0);
    bytes.extend_from_slice(&high);
    Some(StackImage {
        sp,
        bytes,
        auxv,
        args,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn word(s: &StackImage, at: u64) -> u64 {
        let i = (at - s.sp) as usize;
        u64::from_le_bytes(s.bytes[i..i + 8].try_into().unwrap())
    }

    fn string(s: &StackImage, at: u64) -> Vec<u8> {
        s.bytes[(at - s.sp) as usize..]
            .iter()
            .copied()
            .take_while(|&b| b != 0)
            .collect()
    }

    fn strings() -> impl Strategy<Value = Vec<Vec<u8>>> {
        proptest::collection::vec(proptest::collection::vec(1u8.., 0..30), 0..20)
    }

    proptest! {
        /// Reads the stack as a program's start code does.
        #[test]
        fn a_program_finds_what_was_put(argv in strings(), envp in strings(), execfn in proptest::collection::vec(1u8.., 1..40)) {
            let to = |v: &Vec<Vec<u8>>| v.iter().cloned().map(Bytes).collect::<Vec<_>>();
            let (a, e) = (to(&argv), to(&envp));
            let input = StackInput {
                top: 0x7000_0000_0000, execfn: &Bytes(execfn.clone()), argv: &a, envp: &e,
                random: &[7; 16], platform: "x86_64",
            };
            let s = build(&input, |r, x, p| vec![(25, r), (31, x), (15, p)]).unwrap();
            prop_assert_eq!(s.sp % 16, 0);
            prop_assert_eq!(s.sp + s.bytes.len() as u64, 0x7000_0000_0000);
            let mut at = s.sp;
            prop_assert_eq!(word(&s, at), argv.len() as u64);
            let mut list = || {
                let mut out = Vec::new();
                loop {
                    at += 8;
                    match word(&s, at) { 0 => return out, p => out.push(string(&s, p)) }
                }
            };
            prop_assert_eq!(list(), argv.clone());
            prop_assert_eq!(list(), envp);
            prop_assert_eq!(word(&s, at + 8), 25);
            prop_assert_eq!(&s.bytes[(word(&s, at + 16) - s.sp) as usize..][..16], &[7; 16]);
            prop_assert_eq!(string(&s, word(&s, at + 32)), execfn);
            prop_assert_eq!(string(&s, word(&s, at + 48)), b"x86_64".to_vec());
            prop_assert_eq!((word(&s, at + 56), word(&s, at + 64)), (0, 0));
            let area = &s.bytes[(s.args.arg_start - s.sp) as usize..(s.args.arg_end - s.sp) as usize];
            let want: Vec<u8> = argv.iter().flat_map(|a| a.iter().copied().chain([0])).collect();
            prop_assert_eq!(area, &want[..]);
        }
    }

    #[test]
    fn limits() {
        assert_eq!(arg_limit(8 << 20), 2 << 20);
        assert_eq!(arg_limit(u64::MAX), 6 << 20);
        assert_eq!(arg_limit(0), 128 << 10);
        let big = vec![vec![b'x'; MAX_ARG_STRLEN]];
        assert_eq!(
            check_sizes(b"x", &big, &[], u64::MAX).unwrap_err().errno.0,
            libc::E2BIG
        );
        let fits = vec![vec![b'x'; MAX_ARG_STRLEN - 1]];
        assert!(check_sizes(b"x", &fits, &[], 8 << 20).is_ok());
        assert!(check_sizes(b"x", &fits, &[], 0).is_err());
    }
}
