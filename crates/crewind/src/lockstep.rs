//! `crewind lockstep`.

use crewind_guest::start::{Flip, LockstepOptions};

use crate::cli::{LockstepArgs, RecordArgs};
use crate::fail::{Error, Result};
use crate::record;
use crate::supervise::Ended;

/// Runs a program beside a native one; returns the program's exit status when they agree.
pub fn run(args: LockstepArgs) -> Result<i32> {
    let options = LockstepOptions {
        from: args.from,
        every: args.every,
        memory: args.memory,
        flip: args.flip,
    };
    let place = std::env::temp_dir().join(format!("crewind-lockstep-{}", std::process::id()));
    std::fs::create_dir(&place)
        .map_err(|e| Error::usage(format!("cannot make {}: {e}", place.display())))?;
    let record = RecordArgs {
        start_at_signal: None,
        start_at_function: None,
        stop_after: None,
        by_granule: false,
        alternate: false,
        sharing: crate::cli::SharingArg::Serial,
        output: Some(place.join("trace")),
        cpus: Some(1),
        no_pkeys: true,
        checksum: false,
        verbose: false,
        command: args.command,
    };
    let ended = record::record(&record, Some(options));
    // The trace is not what this was for.
    let _ = std::fs::remove_dir_all(&place);
    ended.map(Ended::repeat)
}

/// `BLOCK:REGISTER:BIT`
pub fn parse_flip(text: &str) -> std::result::Result<Flip, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let [after, register, bit] = parts.as_slice() else {
        return Err("three numbers are needed: BLOCK:REGISTER:BIT".into());
    };
    let small = |s: &str| s.parse::<u8>().map_err(|e| e.to_string());
    Ok(Flip {
        after: after
            .parse()
            .map_err(|e: std::num::ParseIntError| e.to_string())?,
        register: small(register)?,
        bit: small(bit)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flips_are_three_numbers() {
        assert_eq!(
            parse_flip("10:3:63"),
            Ok(Flip {
                after: 10,
                register: 3,
                bit: 63
            })
        );
        for bad in ["", "1:2", "1:2:3:4", "1:2:x", "1:300:0"] {
            assert!(parse_flip(bad).is_err(), "{bad}");
        }
    }
}
