//! How people write moments.

use crewind_guest::debug::wire::Place;

/// A moment as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The beginning.
    Start,
    /// The end.
    End,
    /// The first moment behind this many events.
    Event(u64),
    /// A thread in front of an instruction.
    Position {
        /// Its number in the trace.
        thread: u32,
        /// Its clock.
        clock: u64,
        /// The pc; None: where the clock gets there.
        pc: Option<u64>,
    },
}

/// A number, decimal or hexadecimal with `0x`.
pub fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

impl Wanted {
    /// `start`, `end`, `EVENT`, `THREAD:CLOCK`, `THREAD:CLOCK:PC`.
    ///
    /// # Errors
    /// It is none of these; the text says what they are.
    pub fn parse(text: &str) -> Result<Wanted, String> {
        let bad = || {
            format!(
                "\"{text}\" is no moment; give a number of an event, start, end, THREAD:CLOCK or THREAD:CLOCK:PC (`when` shows both)"
            )
        };
        match text.trim() {
            "start" | "begin" => return Ok(Wanted::Start),
            "end" => return Ok(Wanted::End),
            _ => {}
        }
        let parts: Vec<&str> = text.trim().split(':').collect();
        let thread =
            |t: &str| number(t.strip_prefix('t').unwrap_or(t)).and_then(|n| n.try_into().ok());
        match parts.as_slice() {
            [event] => number(event).map(Wanted::Event),
            [t, clock] => thread(t)
                .zip(number(clock))
                .map(|(thread, clock)| Wanted::Position {
                    thread,
                    clock,
                    pc: None,
                }),
            [t, clock, pc] => {
                thread(t)
                    .zip(number(clock))
                    .zip(number(pc))
                    .map(|((thread, clock), pc)| Wanted::Position {
                        thread,
                        clock,
                        pc: Some(pc),
                    })
            }
            _ => None,
        }
        .ok_or_else(bad)
    }
}

/// As `when` shows it.
pub fn describe(place: &Place) -> String {
    let p = place.point;
    format!(
        "event {}, thread {}, position {}:{}:{:#x}",
        p.event, place.thread, place.thread, p.clock, p.pc
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read() {
        assert_eq!(Wanted::parse("12"), Ok(Wanted::Event(12)));
        assert_eq!(Wanted::parse("end"), Ok(Wanted::End));
        let position = |pc| Wanted::Position {
            thread: 2,
            clock: 300,
            pc,
        };
        assert_eq!(Wanted::parse("2:300"), Ok(position(None)));
        assert_eq!(Wanted::parse("t2:300:0x40"), Ok(position(Some(0x40))));
        for bad in ["", "x", "1:2:3:4", "-1", "1:", "0x"] {
            assert!(Wanted::parse(bad).is_err(), "{bad}");
        }
    }
}
