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

/// For each other thread the newest point that a thread's log makes it wait for.
#[derive(Clone, Debug, Default)]
pub struct Known {
    newest: HashMap<ThreadId, (u64, u64)>,
    #[cfg(test)]
    pub(crate) mutant: Option<Mutant>,
}

impl Known {
    /// Of the edges that thread `me` has come to wait for those that nothing implies. They are going to be logged, so they
    /// are known from now on.
    pub fn reduce(&mut self, me: ThreadId, edges: &[Edge]) -> Vec<Edge> {
        let mut out: Vec<Edge> = Vec::new();
        for e in edges {
            if e.thread == me || self.implies(e) {
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

    /// Nothing is known any more: the thread begins anew.
    pub fn clear(&mut self) {
        self.newest.clear();
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
            known.reduce(me, &[edge(2, 5, 3), edge(1, 9, 9), edge(2, 4, 3)]),
            [edge(2, 5, 3)]
        );
        assert_eq!(known.reduce(me, &[edge(2, 5, 3), edge(2, 5, 2)]), []);
        assert_eq!(known.reduce(me, &[edge(2, 5, 4)]), [edge(2, 5, 4)]);
        assert_eq!(
            known.reduce(me, &[edge(2, 6, 4), edge(3, 1, 1)]),
            [edge(2, 6, 4), edge(3, 1, 1)]
        );
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
