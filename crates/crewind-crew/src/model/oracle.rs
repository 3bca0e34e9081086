//! Whether the log says in which order conflicting accesses happened, and whether a replay can follow it.

use super::{Item, What, World};
use crewind_trace::event::Edge;

/// Checks that program order and the logged edges imply the order of every two conflicting accesses, and have no
/// cycle.
///
/// # Errors
/// Two that are not ordered, or a replay that hangs.
pub(super) fn check(world: &World) -> Result<(), String> {
    let mut graph = Graph::new(world);
    for n in 0..world.history.len() {
        graph.order(n)?;
    }
    let accesses = || {
        world
            .history
            .iter()
            .enumerate()
            .filter_map(|(n, i)| match i.what {
                What::Access(granule, write) => Some((n, i, granule, write)),
                What::Sync(_) => None,
            })
    };
    for (y, late, granule, write) in accesses() {
        for (x, early, g, w) in accesses().take_while(|(x, ..)| *x < y) {
            if g != granule || !(w || write) || early.thread == late.thread {
                continue;
            }
            if !graph.implies(x, y) {
                let all: Vec<_> = world.history.iter().map(|i| format!("{i:?}\n")).collect();
                return Err(format!(
                    "{early:?} came before {late:?}, and nothing says so:\n{}",
                    all.concat()
                ));
            }
        }
    }
    Ok(())
}

/// What has to come before what in every replay.
struct Graph<'a> {
    world: &'a World,
    /// Items of each thread: their numbers in the history.
    of: Vec<Vec<usize>>,
    /// By item: its place among those of its thread.
    place: Vec<usize>,
    /// By item: how many items of each thread come before it or are it.
    behind: Vec<Order>,
}

#[derive(Clone)]
enum Order {
    Unknown,
    /// Being found out.
    Pending,
    Known(Vec<usize>),
}

impl<'a> Graph<'a> {
    fn new(world: &'a World) -> Graph<'a> {
        let mut of = vec![Vec::new(); world.threads()];
        let mut place = Vec::new();
        for (n, item) in world.history.iter().enumerate() {
            place.push(of[item.thread].len());
            of[item.thread].push(n);
        }
        Graph {
            world,
            of,
            place,
            behind: vec![Order::Unknown; world.history.len()],
        }
    }

    /// The last item that thread u has done for sure when it has left the edge's clock behind *or* reached its event. It may
    /// be one that came later in the recording: the edge waits for it all the same.
    fn sure(&self, e: &Edge) -> Option<usize> {
        let items = &self.of[e.thread.0 as usize - 1];
        let event = |i: &Item| i.completed + u64::from(matches!(i.what, What::Sync(_)));
        let done = |i: &Item| i.clock <= e.clock && event(i) < e.event;
        let sure = items.iter().take_while(|n| done(&self.world.history[**n]));
        sure.last().copied()
    }

    fn order(&mut self, n: usize) -> Result<Vec<usize>, String> {
        match &self.behind[n] {
            Order::Known(order) => return Ok(order.clone()),
            Order::Pending => return Err(format!("replay hangs: {}", self.world.print())),
            Order::Unknown => self.behind[n] = Order::Pending,
        }
        let item = &self.world.history[n];
        let place = self.place[n];
        let mut order = match place.checked_sub(1) {
            Some(before) => self.order(self.of[item.thread][before])?,
            None => vec![0; self.world.threads()],
        };
        if let What::Sync(edges) = &item.what {
            let all: Vec<usize> = edges.iter().filter_map(|e| self.sure(e)).collect();
            for last in all {
                for (mine, theirs) in order.iter_mut().zip(self.order(last)?) {
                    *mine = (*mine).max(theirs);
                }
            }
        }
        order[item.thread] = place + 1;
        self.behind[n] = Order::Known(order.clone());
        Ok(order)
    }

    /// Whether `x` comes before `y` in every replay.
    fn implies(&self, x: usize, y: usize) -> bool {
        let thread = self.world.history[x].thread;
        matches!(&self.behind[y], Order::Known(order) if order[thread] > self.place[x])
    }
}
