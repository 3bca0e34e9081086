//! Memory that goes over from one thread to another as a whole: a buffer that is handed on, a context out of a pool.
//!
//! Who gets it goes through it in any order (tables are not walked in a row), so what lies next to its accesses says
//! nothing, but that it takes page after page of one region and nobody takes any back does. The more of them, the more
//! is taken at once. As soon as another vcpu takes something in the region, it is a matter of pages again, unless a
//! whole region went over before that: then the next move is one as well.

use crate::page::PAGE;

/// Granules of a region: 128 KiB.
pub(crate) const REGION: u32 = PAGE << MOST;
/// log2 of the pages of a region.
const MOST: u8 = 5;
/// Claims in a row that say nothing yet.
const FIRST: u8 = 2;

/// What is known of a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Region {
    /// The vcpu that takes it.
    by: u16,
    /// How often it took a part of it, in a row; with those that an earlier move is counted as.
    row: u8,
}

impl Region {
    /// A vcpu took a part of the region from others, to write to it.
    pub(crate) fn taken(&mut self, by: usize) {
        let by = by as u16;
        if self.by == by {
            self.row = self.row.saturating_add(1).min(FIRST + MOST);
            return;
        }
        // After the move of a whole region the next one begins with a quarter of it.
        self.row = match self.row >= FIRST + MOST {
            true => FIRST + MOST - 2,
            false => 0,
        };
        self.by = by;
    }

    /// From where to where a claim to granule `i` by a vcpu is to reach at least. None: the page is enough.
    pub(crate) fn reach(&self, i: u32, by: usize) -> Option<(u32, u32)> {
        let mut next = *self;
        next.taken(by);
        let pages = 1 << next.row.checked_sub(FIRST + 1)? << 1;
        let size = PAGE * pages.min(1u32 << MOST);
        let start = i / size * size;
        Some((start, start.saturating_add(size)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes all of the region's pages in an order that is not theirs; how many claims that took.
    fn take_all(r: &mut Region, by: usize) -> u32 {
        let mut mine = [false; (REGION / PAGE) as usize];
        let mut claims = 0;
        for n in 0..REGION / PAGE {
            let page = n * 7 % (REGION / PAGE);
            if mine[page as usize] {
                continue;
            }
            let i = page * PAGE + 5;
            let (from, to) = r.reach(i, by).unwrap_or((i, (page + 1) * PAGE));
            assert!(from <= i && i < to && to <= REGION);
            mine[(from / PAGE) as usize..to.div_ceil(PAGE) as usize].fill(true);
            r.taken(by);
            claims += 1;
        }
        claims
    }

    #[test]
    fn what_moves_as_a_whole_is_taken_in_large_pieces() {
        let mut r = Region::default();
        assert!(take_all(&mut r, 1) <= 8);
        // And in larger ones from then on.
        assert!(take_all(&mut r, 0) <= 3);
        assert!(take_all(&mut r, 1) <= 3);
    }

    #[test]
    fn pages_of_two_vcpus_are_left_to_each() {
        let mut r = Region::default();
        for n in 0..100 {
            assert_eq!(r.reach(n * PAGE % REGION, n as usize % 2), None);
            r.taken(n as usize % 2);
        }
        // A few in a row are not a move.
        for by in [1, 1, 0, 0, 1, 1, 0, 0] {
            assert_eq!(r.reach(3, by), None);
            r.taken(by);
        }
    }

    #[test]
    fn a_move_that_is_cut_short_is_forgotten() {
        let mut r = Region::default();
        (0..4).for_each(|_| r.taken(1));
        assert!(r.reach(0, 1).is_some());
        r.taken(0);
        assert_eq!(r.reach(0, 1), None);
        assert_eq!(r.reach(0, 0), None);
    }

    #[test]
    fn the_last_region_ends_with_the_table() {
        let mut r = Region::default();
        (0..10).for_each(|_| r.taken(1));
        let (from, to) = r.reach(u32::MAX, 1).expect("it moves");
        assert!(from < to);
    }
}
