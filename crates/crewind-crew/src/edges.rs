//! Edges: those a thread has not logged yet, and those it need not log.

use std::collections::HashMap;

use crewind_trace::event::{Edge, ThreadId};

#[cfg(test)]
use crate::Mutant;

/// What lies behind all that a thread did with the rights that are taken from it: its position, and the edges that it
/// has come to wait for and has not logged. It may have those for rights that it never used; but others think of it as
/// the last one who did, and an edge to it implies only what stands in its log at that position.
#[derive(Clone, Debug, Default)]
pub struct Point {
    /// None when nobody was ever there.
    at: Option<Edge>,
    waits_for: Vec<Edge>,
    #[cfg(test)]
    pub(crate) mutant: Option<Mutant>,
}

impl Point {
    /// The thread stands at `at`.
    pub fn set(&mut self, at: Edge, not_logged: &[Edge]) {
        self.at = Some(at);
        self.waits_for.clear();
        #[cfg(test)]
        if self.mutant == Some(Mutant::PointWithoutEdges) {
            return;
        }
        self.waits_for.extend_from_slice(not_logged);
    }

    /// What who takes something there waits for.
    pub fn edges(&self) -> impl Iterator<Item = Edge> {
        self.at.iter().chain(&self.waits_for).copied()
    }
}

/// Threads that have ended, each with the number of its last event in the order of events.
///
/// Pages keep edges for ever, one for each thread that wrote there: a program that makes thousands of short threads has
/// thousands with the pages of its allocator. Each thread that comes later would log them all.
#[derive(Clone, Debug, Default)]
pub struct Ends {
    /// By number of the thread, from 0 on; 0: it has not ended.
    orders: Vec<u64>,
}

impl Ends {
    /// `thread` does nothing more, to memory either, after event number `order`, which is its own.
    pub fn note(&mut self, thread: ThreadId, order: u64) {
        let at = thread.0 as usize;
        if self.orders.len() <= at {
            self.orders.resize(at + 1, 0);
        }
        if let Some(end) = self.orders.get_mut(at) {
            *end = order;
        }
    }

    /// The numbers begin anew.
    pub fn clear(&mut self) {
        self.orders.clear();
    }

    /// Whether all that `thread` ever did lies before who has come to event number `order`.
    fn lies_before(&self, thread: ThreadId, order: u64) -> bool {
        let end = self.orders.get(thread.0 as usize).copied();
        end.is_some_and(|end| end != 0 && end <= order)
    }
}

/// For each other thread the newest point that a thread's log makes it wait for.
#[derive(Clone, Debug, Default)]
pub struct Known {
    newest: HashMap<ThreadId, (u64, u64)>,
    /// Number of the thread's last event in the order of events: all with lower ones lie before it.
    order: u64,
    #[cfg(test)]
    pub(crate) mutant: Option<Mutant>,
}

impl Known {
    /// Of the edges that thread `me` has come to wait for those that nothing implies. They are going to be logged, so they
    /// are known from now on.
    /// An edge to a thread that `ends` has may be implied by the order of events; no `ends` is right too.
    pub fn reduce(&mut self, me: ThreadId, edges: &[Edge], ends: Option<&Ends>) -> Vec<Edge> {
        let mut out: Vec<Edge> = Vec::new();
        for e in edges {
            if e.thread == me || ends.is_some_and(|ends| ends.lies_before(e.thread, self.order)) {
                continue;
            }
            if self.implies(e) {
                continue;
            }
            match out.iter_mut().find(|x| x.thread == e.thread) {
                Some(x) if x.clock <= e.clock && x.event <= e.event => *x = *e,
                Some(x) if e.clock <= x.clock && e.event <= x.event => {}
                _ => out.push(*e),
            }
        }
        for e in &out {
            let known = self.newest.entry(e.thread).or_default();
            if known.0 <= e.clock && known.1 <= e.event {
                *known = (e.clock, e.event);
            }
        }
        out
    }

    fn implies(&self, e: &Edge) -> bool {
        let (clock, event) = self.newest.get(&e.thread).copied().unwrap_or_default();
        #[cfg(test)]
        if self.mutant == Some(Mutant::ReducedByHalf) {
            return e.clock <= clock || e.event <= event;
        }
        e.clock <= clock && e.event <= event
    }

    /// The thread's log makes it wait for its turn as event number `order`.
    pub fn comes_at(&mut self, order: u64) {
        self.order = order;
    }

    /// Nothing is known any more: the thread begins anew.
    pub fn clear(&mut self) {
        self.newest.clear();
        self.order = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(thread: u32, clock: u64, event: u64) -> Edge {
        Edge {
            thread: ThreadId(thread),
            clock,
            event,
        }
    }

    #[test]
    fn an_edge_is_dropped_when_both_components_are_known() {
        let me = ThreadId(1);
        let mut known = Known::default();
        assert_eq!(
            known.reduce(me, &[edge(2, 5, 3), edge(1, 9, 9), edge(2, 4, 3)], None),
            [edge(2, 5, 3)]
        );
        assert_eq!(known.reduce(me, &[edge(2, 5, 3), edge(2, 5, 2)], None), []);
        assert_eq!(known.reduce(me, &[edge(2, 5, 4)], None), [edge(2, 5, 4)]);
        assert_eq!(
            known.reduce(me, &[edge(2, 6, 4), edge(3, 1, 1)], None),
            [edge(2, 6, 4), edge(3, 1, 1)]
        );
    }

    #[test]
    fn edges_to_threads_that_ended_before_the_last_event_are_dropped() {
        let me = ThreadId(1);
        let mut ends = Ends::default();
        ends.note(ThreadId(2), 7);
        ends.note(ThreadId(4), 9);
        let edges = [edge(2, 5, 3), edge(3, 5, 3), edge(4, 5, 3), edge(8, 1, 1)];
        let after = |order: Option<u64>| {
            let mut known = Known::default();
            if let Some(order) = order {
                known.comes_at(order);
            }
            known.reduce(me, &edges, Some(&ends))
        };
        // Who has come to no event, or to one before the end, has to wait.
        assert_eq!(after(None), edges);
        assert_eq!(after(Some(6)), edges);
        assert_eq!(after(Some(8)), [edges[1], edges[2], edges[3]]);
        assert_eq!(after(Some(9)), [edges[1], edges[3]]);
        // Both begin anew.
        let mut known = Known::default();
        known.comes_at(20);
        known.clear();
        assert_eq!(known.reduce(me, &edges, Some(&ends)), edges);
        let mut known = Known::default();
        known.comes_at(20);
        ends.clear();
        assert_eq!(known.reduce(me, &edges, Some(&ends)), edges);
    }

    #[test]
    fn a_point_has_what_is_not_logged() {
        let mut p = Point::default();
        assert_eq!(p.edges().count(), 0);
        p.set(edge(2, 1, 1), &[edge(3, 4, 4)]);
        assert_eq!(
            p.edges().collect::<Vec<_>>(),
            [edge(2, 1, 1), edge(3, 4, 4)]
        );
        p.set(edge(2, 2, 1), &[]);
        assert_eq!(p.edges().collect::<Vec<_>>(), [edge(2, 2, 1)]);
    }
}
