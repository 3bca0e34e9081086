//! How much to take at once: threads that go through memory get it in runs that double.
//!
//! What tells that a thread goes through memory is that it asks for what lies right behind (or in front of) what it took
//! before. That it *has* what lies there tells little: a thread that looks over the border of its part of an array would
//! take as much of its neighbour's part as it has of its own, and the neighbour would have to take it all back.

/// Runs that a thread took lately and that it may be going on from: a few, because it may go through several arrays at once.
#[derive(Debug, Default)]
pub struct Streams {
    read: Kind,
    write: Kind,
}

/// Those taken to be read, or to be written: readers of columns of a matrix begin a new run in each row, and may write to
/// a few at the same time.
#[derive(Debug, Default)]
struct Kind {
    /// Start and end.
    last: [(u32, u32); COUNT],
    /// The one that is replaced next.
    next: usize,
}

/// Rows of a block that is worked on, arrays that are merged.
const COUNT: usize = 8;

impl Kind {
    fn longest(&self, adjoins: impl Fn(u32, u32) -> bool) -> u32 {
        let found = self
            .last
            .iter()
            .filter(|(start, end)| adjoins(*start, *end));
        found.map(|(start, end)| end - start).max().unwrap_or(0)
    }

    fn took(&mut self, start: u32, end: u32) {
        for s in self.last.iter_mut().filter(|(start, end)| start < end) {
            if s.1 == start {
                s.1 = end;
                return;
            }
            if s.0 == end {
                s.0 = start;
                return;
            }
        }
        if let Some(s) = self.last.get_mut(self.next) {
            *s = (start, end);
        }
        self.next = (self.next + 1) % COUNT;
    }
}

impl Streams {
    /// How much was taken in a row right in front of `i`.
    pub fn before(&self, i: u32, write: bool) -> u32 {
        self.longest(write, |_, end| end == i)
    }

    /// How much was taken in a row from `i` on.
    pub fn behind(&self, i: u32, write: bool) -> u32 {
        self.longest(write, |start, _| start == i)
    }

    /// What was taken to be written can be read as well; the other way round it is no promise.
    fn longest(&self, write: bool, adjoins: impl Fn(u32, u32) -> bool) -> u32 {
        let written = self.write.longest(&adjoins);
        match write {
            true => written,
            false => written.max(self.read.longest(&adjoins)),
        }
    }

    /// A run was taken.
    pub fn took(&mut self, start: u32, end: u32, write: bool) {
        match write {
            true => self.write.took(start, end),
            false => self.read.took(start, end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goes from `from` to `to`, taking as much again as before each time; how often it took.
    fn walk(s: &mut Streams, from: u32, to: u32, write: bool) -> u32 {
        let (mut at, mut takes) = (from, 0);
        while at < to {
            let end = at + s.before(at, write).max(1);
            s.took(at, end, write);
            (at, takes) = (end, takes + 1);
        }
        takes
    }

    #[test]
    fn runs_double_upwards_and_downwards() {
        assert_eq!(walk(&mut Streams::default(), 1000, 1000 + 1024, true), 11);
        let mut s = Streams::default();
        let (mut at, mut takes) = (100_000u32, 0);
        while at > 100_000 - 1024 {
            let start = at - s.behind(at, false).max(1);
            s.took(start, at, false);
            (at, takes) = (start, takes + 1);
        }
        assert_eq!(takes, 11);
    }

    #[test]
    fn several_arrays_at_once() {
        let mut s = Streams::default();
        let mut at = [1000u32, 50_000, 90_000];
        for _ in 0..10 {
            for (n, at) in at.iter_mut().enumerate() {
                let write = n == 2;
                let end = *at + s.before(*at, write).max(1);
                s.took(*at, end, write);
                *at = end;
            }
        }
        assert_eq!(at, [1000 + 512, 50_000 + 512, 90_000 + 512]);
    }

    #[test]
    fn what_was_read_is_no_reason_to_take_more_for_writing() {
        let mut s = Streams::default();
        walk(&mut s, 0, 512, false);
        assert_eq!((s.before(512, false), s.before(512, true)), (512, 0));
        let mut s = Streams::default();
        walk(&mut s, 0, 512, true);
        assert_eq!((s.before(512, false), s.before(512, true)), (512, 512));
    }

    #[test]
    fn reading_here_and_there_does_not_end_a_run_that_is_written() {
        let mut s = Streams::default();
        walk(&mut s, 0, 512, true);
        for n in 0..100 {
            s.took(100_000 + 2 * n, 100_001 + 2 * n, false);
        }
        assert_eq!(s.before(512, true), 512);
    }

    #[test]
    fn places_elsewhere_begin_anew() {
        let mut s = Streams::default();
        walk(&mut s, 4096, 8192, true);
        assert_eq!((s.before(8191, true), s.before(8193, true)), (0, 0));
        for n in 0..COUNT as u32 {
            s.took(100_000 + 2 * n, 100_001 + 2 * n, true);
        }
        assert_eq!(s.before(8192, true), 0);
    }

    #[test]
    fn nothing_taken_is_no_stream() {
        let s = Streams::default();
        assert_eq!((s.before(0, false), s.behind(0, false)), (0, 0));
        let mut s = Streams::default();
        s.took(5, 6, false);
        s.took(0, 5, false);
        assert_eq!(s.behind(0, false), 6);
    }
}
